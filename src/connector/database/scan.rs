//! A database's table in DataFusion: one stream of record batches, read-only.
//!
//! Projection, limit and the conditions of `filter` go to the database; the statement is part of EXPLAIN.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use super::filter::{Dialect, condition};
use super::{DatabaseTable, Place, postgres, sqlite};

/// Rows of a record batch.
pub(super) const BATCH_ROWS: usize = 8_192;

/// Record batches that wait for the query.
const BATCHES_AHEAD: usize = 2;

#[derive(Debug)]
pub(super) struct DatabaseProvider {
    table: Arc<DatabaseTable>,
    dialect: Dialect,
}

impl DatabaseProvider {
    pub fn new(table: DatabaseTable) -> Self {
        let dialect = match &table.place {
            Place::Postgres(_) => Dialect::Postgres,
            Place::Sqlite(_) => Dialect::Sqlite,
        };
        Self { table: Arc::new(table), dialect }
    }
}

#[async_trait]
impl TableProvider for DatabaseProvider {
    fn schema(&self) -> SchemaRef {
        self.table.definition().schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all = self.schema();
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..all.fields().len()).collect());
        let schema = Arc::new(all.project(&columns)?);
        let conditions: Vec<String> = filters.iter().filter_map(|f| condition(f, &all, self.dialect)).collect();
        // A limit above a condition that the database does not check would cut off rows that pass it.
        let limit = limit.filter(|_| conditions.len() == filters.len());
        let query = Query { schema: schema.clone(), conditions, limit };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(DatabaseScan { table: self.table.clone(), query, properties: Arc::new(properties) }))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let schema = self.schema();
        let pushed = filters.iter().map(|filter| match condition(filter, &schema, self.dialect) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        });
        Ok(pushed.collect())
    }
}

/// What to read of a table.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// The columns wanted; there may be none (`SELECT count(*)`).
    pub schema: SchemaRef,
    conditions: Vec<String>,
    limit: Option<usize>,
}

impl Query {
    /// ` WHERE … LIMIT …`, or nothing.
    pub fn tail(&self) -> String {
        let mut tail = String::new();
        if !self.conditions.is_empty() {
            tail.push_str(&format!(" WHERE {}", self.conditions.join(" AND ")));
        }
        if let Some(limit) = self.limit {
            tail.push_str(&format!(" LIMIT {limit}"));
        }
        tail
    }
}

#[derive(Debug)]
struct DatabaseScan {
    table: Arc<DatabaseTable>,
    query: Query,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for DatabaseScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<&str> = self.query.schema.fields().iter().map(|f| f.name().as_str()).collect();
        let (target, tail) = (self.table.target_name(), self.query.tail());
        write!(f, "DatabaseScan: SELECT {} FROM {target}{tail}", names.join(", "))
    }
}

impl ExecutionPlan for DatabaseScan {
    fn name(&self) -> &'static str {
        "DatabaseScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut builder = RecordBatchReceiverStream::builder(self.query.schema.clone(), BATCHES_AHEAD);
        let (batches, table, query) = (builder.tx(), self.table.clone(), self.query.clone());
        match &self.table.place {
            Place::Postgres(address) => {
                let address = address.clone();
                builder.spawn(async move {
                    // The receiver is gone when the query has enough.
                    let read = postgres::read(&table, &address, &query, |batch| async {
                        batches.send(Ok(batch)).await.is_ok()
                    });
                    read.await.map_err(|e| DataFusionError::External(Box::new(e)))
                });
            }
            Place::Sqlite(path) => {
                let path = path.clone();
                builder.spawn_blocking(move || {
                    let read = sqlite::read(&table, &path, &query, |batch| batches.blocking_send(Ok(batch)).is_ok());
                    read.map_err(|e| DataFusionError::External(Box::new(e)))
                });
            }
        }
        Ok(builder.build())
    }
}
