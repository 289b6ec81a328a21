//! The tables and views of the files as an ad-hoc session sees them: as they are now, each read to its end.
//!
//! ```text
//! queries/*.sql ─▶ declarations ─▶ DeclaredTable ─▶ its connector, when a query reads it
//!                  views        ─▶ planned over these; INSERTs are left out
//! ```
//!
//! Nothing is connected to and no folder is listed before a query asks for it: a server that is down is the trouble of
//! those who query it, and a shell over a thousand files starts at once. For the same reason a statement of the files
//! that is wrong (a `${NAME}` that is not set, say) is left out and told, and the others can be used.
//!
//! Of a Parquet table that the pipeline writes only files of committed batches count, as of the beginning of the query; of a
//! Delta table, those of the newest entry of its log. All scans of one query see one state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::TableReference;
use datafusion::datasource::TableType;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{DdlStatement, Expr, LogicalPlan, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::describe::table_names;
use crate::checkpoint::{Checkpoint, Location};
use crate::cli::environment::Environment;
use crate::cli::flags::SettingFlags;
use crate::connector::{self, BoundedTable, TableDefinition, is_lake};
use crate::sql::explain::plain;
use crate::sql::functions::BatchValues;
use crate::sql::session::{create_schema, schema_of, session};
use crate::sql::settings::{Settings, configure, resolve};
use crate::sql::statement::{Kind, Name, Statement};
use crate::sql::substitute::Wanted;
use crate::sql::words::place_of;
use crate::sql::{Files, Place, define, explain, parse};
use crate::{Error, Part, Result};

type DfResult<T> = datafusion::error::Result<T>;

/// A session over the files' tables and views.
pub struct Catalog {
    pub context: SessionContext,
    /// What of the files is left out, and why.
    pub left_out: Vec<Error>,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Catalog({} errors)", self.left_out.len())
    }
}

impl Catalog {
    /// Run it on a thread with a large stack: it plans the views.
    ///
    /// # Errors
    /// The folder cannot be read; a setting is wrong.
    pub async fn open(queries: &Path, flags: &SettingFlags, environment: &Environment) -> Result<Self> {
        let lookup = |wanted: Wanted| environment.get(wanted);
        let files = Files::read(queries, &lookup)?;
        let (statements, mut left_out) = parse(&files).into_parts();
        let settings = resolve(&flags.0, &lookup, &files, &statements)?;
        let config = configure(SessionConfig::new(), &files, &statements)?;
        let pipeline = Arc::new(Pipeline::new(&settings));
        let watermark = match pipeline.watermark().await {
            Ok(watermark) => watermark,
            Err(error) => {
                left_out.push(error);
                None
            }
        };
        let context = session(config, &settings, BatchValues::Fixed { watermark })?;
        let written = written(&statements);
        let builder = Builder { files: &files, context: &context, pipeline: &pipeline, written: &written };
        for statement in &statements {
            if let Err(error) = builder.statement(statement).await {
                left_out.push(error);
            }
        }
        Ok(Self { context, left_out })
    }
}

/// Targets of INSERTs, and the dead letters: what the pipeline writes.
fn written(statements: &[Statement]) -> BTreeSet<String> {
    let targets = statements.iter().filter_map(|statement| match &statement.kind {
        Kind::Insert { target, .. } => Some(target.to_string()),
        _ => None,
    });
    targets.collect()
}

struct Builder<'a> {
    files: &'a Files,
    context: &'a SessionContext,
    pipeline: &'a Arc<Pipeline>,
    written: &'a BTreeSet<String>,
}

impl Builder<'_> {
    async fn statement(&self, statement: &Statement) -> Result<()> {
        match &statement.kind {
            Kind::Set { .. } | Kind::Insert { .. } => Ok(()),
            Kind::CreateSchema { name, .. } => create_schema(self.context, name),
            Kind::CreateTable(table) => {
                let definition = Arc::new(define(self.files, table)?);
                let dead_letters = definition.is_dead_letters();
                let written = dead_letters || self.written.contains(&definition.name);
                let of_a_moment = written || definition.stored_as == "DELTA";
                let pipeline = of_a_moment.then(|| Arc::clone(self.pipeline));
                let location = place_of(self.files, &statement.place, &Part::Location);
                let location = location.and_then(|place| self.files.at(&place)).unwrap_or_default().to_string();
                let declared = DeclaredTable { definition, pipeline, location };
                self.register(&table.name, Arc::new(declared), &statement.place)
            }
            Kind::CreateView { name, statement: parsed } => {
                let state = self.context.state();
                let explained = |e: DataFusionError| {
                    let errors = explain(self.files, &e, &statement.place, Some(&state));
                    Error::all(errors).unwrap_or_else(|| Error::internal("a view failed").cause(plain(&e)))
                };
                match state.statement_to_plan(parsed.clone()).await.map_err(explained)? {
                    LogicalPlan::Ddl(DdlStatement::CreateView(view)) => {
                        let view = ViewTable::new(view.input.as_ref().clone(), view.definition);
                        self.register(name, Arc::new(view), &statement.place)
                    }
                    _ => Err(self.files.error_at(&statement.place, "this is no view")),
                }
            }
        }
    }

    fn register(&self, name: &Name, table: Arc<dyn TableProvider>, place: &Place) -> Result<()> {
        let Some(schema) = schema_of(self.context, &name.schema)? else {
            let place = place_of(self.files, place, &Part::Name).unwrap_or(*place);
            let error = self.files.error_at(&place, format!("schema {} does not exist", name.schema));
            return Err(error.hint(format!("put CREATE SCHEMA {}; before it", name.schema)));
        };
        schema.register_table(name.table.clone(), table)?;
        Ok(())
    }
}

/// The pipeline that writes the tables, seen from outside: what it has committed.
#[derive(Debug)]
struct Pipeline {
    checkpoint: String,
    name: Option<String>,
    moment: Mutex<Moment>,
}

/// What one query has seen already.
#[derive(Debug, Default)]
struct Moment {
    /// Tells queries apart: DataFusion sets it anew for each.
    began: Option<DateTime<Utc>>,
    committed: Option<(Uuid, Option<u64>)>,
    tables: BTreeMap<String, BoundedTable>,
}

impl Pipeline {
    fn new(settings: &Settings) -> Self {
        Self { checkpoint: settings.checkpoint.clone(), name: settings.name.clone(), moment: Mutex::default() }
    }

    async fn open(&self) -> Result<Option<Checkpoint>> {
        match &self.name {
            Some(name) => Checkpoint::read_only(&self.checkpoint, name).await,
            None => Ok(None),
        }
    }

    /// Of the last committed batch: µs.
    async fn watermark(&self) -> Result<Option<i64>> {
        let Some(checkpoint) = self.open().await? else { return Ok(None) };
        let Some(last) = checkpoint.last_committed().await? else { return Ok(None) };
        let commit = checkpoint.read_commit(last).await?;
        Ok(commit.and_then(|(commit, _)| commit.sources.values().filter_map(|source| source.watermark).min()))
    }

    /// UUID and last batch; without a checkpoint nothing is committed.
    async fn committed(&self) -> Result<(Uuid, Option<u64>)> {
        let Some(checkpoint) = self.open().await? else {
            let name = self.name.as_deref().unwrap_or_default();
            let local = Location::parse(&self.checkpoint)?.local;
            let looked_at = local.map(|base| base.join(name).display().to_string());
            let checkpoint = looked_at.unwrap_or_else(|| connector::redact(&self.checkpoint));
            tracing::warn!(
                checkpoint,
                name,
                "there is no such checkpoint, so no file of the pipeline counts as committed; --checkpoint or \
                 CHECKPOINT_BASE says where it is, and a relative path begins at the working directory"
            );
            return Ok((Uuid::nil(), None));
        };
        Ok((checkpoint.identity().uuid, checkpoint.last_committed().await?))
    }

    /// The table as of the beginning of the session's query.
    async fn table(&self, definition: &Arc<TableDefinition>, session: &dyn Session) -> Result<BoundedTable> {
        let began = session.execution_props().query_execution_start_time;
        let mut moment = self.moment.lock().await;
        if began.is_none() || moment.began != began {
            *moment = Moment { began, ..Moment::default() };
        }
        if let Some(table) = moment.tables.get(&definition.name) {
            return Ok(Arc::clone(table));
        }
        // The log of a Delta table says by itself what counts.
        let committed = match moment.committed {
            _ if definition.stored_as == "DELTA" => None,
            None => Some(self.committed().await?),
            committed => committed,
        };
        moment.committed = committed.or(moment.committed);
        let table = connector::bounded(definition, session, committed).await?;
        moment.tables.insert(definition.name.clone(), Arc::clone(&table));
        Ok(table)
    }
}

/// A declared table; its connector is asked when a query reads it.
#[derive(Debug)]
struct DeclaredTable {
    definition: Arc<TableDefinition>,
    /// Who writes it, if it is written; of a Delta table, who keeps the version that a query sees.
    pipeline: Option<Arc<Pipeline>>,
    /// Its LOCATION as the user wrote it, references unresolved.
    location: String,
}

impl DeclaredTable {
    async fn open(&self, session: &dyn Session) -> Result<BoundedTable> {
        let definition = &self.definition;
        if definition.location.is_empty() {
            let error = Error::user(format!("table {} is off: its LOCATION is empty", definition.name));
            return Err(error.at(definition.place.clone()));
        }
        match &self.pipeline {
            Some(pipeline) if definition.stored_as == "DELTA" => pipeline.table(definition, session).await,
            Some(pipeline) if definition.stored_as == "PARQUET" => {
                if let Some(folder) = missing_folder(definition) {
                    tracing::warn!(
                        table = definition.name,
                        folder,
                        "there is no such folder, so the table has no rows; its LOCATION is {}, and a relative path begins \
                         at the working directory",
                        self.location
                    );
                }
                pipeline.table(definition, session).await
            }
            _ => connector::bounded(definition, session, None).await,
        }
    }
}

/// The Parquet or Delta table that the pipeline writes in whose folder a path of this machine lies, and that folder.
pub(super) async fn written_lake(context: &SessionContext, path: &Path) -> Option<(String, PathBuf)> {
    for (schema, name) in table_names(context) {
        // A table that cannot be had is none of the files'.
        let Ok(table) = context.table_provider(TableReference::partial(schema, name)).await else { continue };
        let Some(table) = table.downcast_ref::<DeclaredTable>() else { continue };
        let definition = &table.definition;
        if table.pipeline.is_none() || !is_lake(definition) || definition.location.is_empty() {
            continue;
        }
        let folder = Location::of_table(definition).ok().and_then(|location| location.local);
        if let Some(folder) = folder.filter(|folder| path.starts_with(folder)) {
            return Some((definition.name.clone(), folder));
        }
    }
    None
}

/// The folder of a table on this machine, if it is not there.
fn missing_folder(definition: &TableDefinition) -> Option<String> {
    let folder = Location::parse(&definition.location).ok()?.local?;
    (!folder.exists()).then(|| folder.display().to_string())
}

#[async_trait]
impl TableProvider for DeclaredTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.definition.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Every filter is offered to the connector, and checked again above it.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let table = self.open(state).await.map_err(|e| DataFusionError::External(Box::new(e)))?;
        let offered: Vec<&Expr> = filters.iter().collect();
        let supported = table.supports_filters_pushdown(&offered)?;
        let taken = filters.iter().zip(supported).filter(|(_, s)| *s != TableProviderFilterPushDown::Unsupported);
        let taken: Vec<Expr> = taken.map(|(filter, _)| filter.clone()).collect();
        let limit = limit.filter(|_| filters.is_empty());
        table.scan(state, projection, &taken, limit).await
    }

    async fn insert_into(
        &self,
        _: &dyn Session,
        _: Arc<dyn ExecutionPlan>,
        _: InsertOp,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let error = Error::user(format!("table {} is only read here", self.definition.name));
        let hint = "rows are written by an INSERT in the files, batch by batch: see `poundlock run`; \
                    COPY (SELECT …) TO 'file.parquet' writes a file";
        Err(DataFusionError::External(Box::new(error.hint(hint))))
    }
}

#[cfg(test)]
mod tests;
