//! DataFusion sessions: one for pipelines (markers and placeholders stay for the engine), one for ad-hoc SQL.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::functions::{BatchValues, batch_functions};
use super::settings::Settings;
use super::types::MicrosecondTypes;
use super::window_tvf::{LowerWindowTvf, WindowTvfPlanner};
use crate::{Error, Result};

/// A session of our dialect: TUMBLE, HOP, LATE, `current_watermark()`, times in µs.
///
/// With [`BatchValues::Placeholders`] it plans for a pipeline; else TUMBLE and HOP have their plain batch meaning.
pub fn session(mut config: SessionConfig, settings: &Settings, values: BatchValues) -> Result<SessionContext> {
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    options.execution.target_partitions = match values {
        BatchValues::Placeholders => settings.partitions_of_pipeline(),
        BatchValues::Fixed { .. } => settings.partitions_of_query(),
    };
    // A bounded pool keeps too little for merging spilled runs by default: a small sort would fail early.
    let share = settings.memory / 64 / options.execution.target_partitions.max(1);
    options.execution.sort_spill_reservation_bytes = share.min(10 << 20);
    // To ask every row whether its key is among those of a join costs as much as the join: measured, a join of 7 M rows with
    // 1,000 takes 1.4 times as long with it.
    options.optimizer.enable_join_dynamic_filter_pushdown = false;
    // Nothing prunes rows that lie in memory, and a plan with such a filter cannot be run again.
    if values == BatchValues::Placeholders {
        let optimizer = &mut config.options_mut().optimizer;
        optimizer.enable_dynamic_filter_pushdown = false;
        optimizer.enable_topk_dynamic_filter_pushdown = false;
        optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    }
    let config = config.with_information_schema(true);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(settings.memory, 1.0).build_arc()?;

    let catalogs: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
    let mut builder = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_catalog_list(Arc::clone(&catalogs))
        .with_type_planner(Arc::new(MicrosecondTypes))
        .with_relation_planners(vec![Arc::new(WindowTvfPlanner(Arc::clone(&catalogs)))]);
    if values != BatchValues::Placeholders {
        builder = builder.with_analyzer_rule(Arc::new(LowerWindowTvf));
    }
    let context = SessionContext::new_with_state(builder.build());
    for function in batch_functions(values) {
        context.register_udf(function);
    }
    Ok(context)
}

/// A session as its queries are run in it, for many of them: a task context is a copy of all functions of its session.
#[derive(Clone)]
pub struct QueryContext {
    state: Arc<SessionState>,
    task: Arc<TaskContext>,
}

impl QueryContext {
    pub fn new(mut state: SessionState, target_partitions: usize) -> Self {
        state.config_mut().options_mut().execution.target_partitions = target_partitions;
        let task = state.task_ctx();
        Self { state: Arc::new(state), task }
    }

    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// All rows of a plan.
    ///
    /// # Errors
    /// The plan's.
    pub async fn collect(&self, plan: Arc<dyn ExecutionPlan>) -> datafusion::error::Result<Vec<RecordBatch>> {
        collect(plan, Arc::clone(&self.task)).await
    }
}

/// Makes `schema` in the session's own catalog; nothing if it is there.
pub fn create_schema(context: &SessionContext, schema: &str) -> Result<()> {
    let catalog = default_catalog(context)?;
    if catalog.schema(schema).is_none() {
        catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new()))?;
    }
    Ok(())
}

pub fn schema_of(context: &SessionContext, schema: &str) -> Result<Option<Arc<dyn SchemaProvider>>> {
    Ok(default_catalog(context)?.schema(schema))
}

fn default_catalog(context: &SessionContext) -> Result<Arc<dyn CatalogProvider>> {
    let state = context.state();
    let name = &state.config_options().catalog.default_catalog;
    if let Some(catalog) = context.catalog(name) {
        return Ok(catalog);
    }
    context.register_catalog(name, Arc::new(MemoryCatalogProvider::new()));
    context.catalog(name).ok_or_else(|| Error::internal("the session has no catalog"))
}
