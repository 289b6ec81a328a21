//! A database's table in DataFusion: one stream of record batches, read-only.
//!
//! Projection, limit and the conditions of `filter` go to the database; the statement is part of EXPLAIN. How many rows
//! there are is asked for each plan: a join builds its table of the smaller side. A replica is read before the primary.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::filter::{Dialect, condition};
use super::postgres::Address;
use super::{DatabaseTable, Place, postgres, replica, sqlite};
use crate::Error;
use crate::connector::background::blocking;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use tokio::sync::mpsc::Sender;

/// Rows of a record batch.
pub(super) const BATCH_ROWS: usize = 8_192;

/// How long a plan waits to know how many rows there are.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// What a value takes, about.
const VALUE_BYTES: usize = 16;

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

    /// About; `None` where the database does not know. What cannot be asked now is not known: reading the rows will say why.
    async fn rows(&self) -> Option<usize> {
        let asking = async {
            match &self.table.place {
                Place::Postgres(primary) => {
                    let replica = self.table.replica.as_deref().filter(|r| replica::may_answer(&r.to_string()));
                    postgres::estimated_rows(&self.table, replica.unwrap_or(primary)).await
                }
                Place::Sqlite(path) => {
                    let (table, path) = (Arc::clone(&self.table), path.clone());
                    blocking(move || sqlite::estimated_rows(&table, &path)).await
                }
            }
        };
        let late = |_| Err(Error::external("no answer in time"));
        let asked = tokio::time::timeout(ASK_LIMIT, asking).await.unwrap_or_else(late);
        let table = &self.table.definition().name;
        asked.inspect_err(|error| tracing::debug!("rows of table {table} are not known: {error}")).ok().flatten()
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
        // A limit beside a condition of which the database checks less would cut off rows that pass it.
        let limit = limit.filter(|_| filters.is_empty());
        let query = Query { schema: schema.clone(), conditions, limit };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let rows = self.rows().await;
        Ok(Arc::new(DatabaseScan { table: self.table.clone(), query, rows, properties: Arc::new(properties) }))
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
    /// Of the table, about.
    rows: Option<usize>,
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

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        if let Some(rows) = self.rows {
            let rows = self.query.limit.map_or(rows, |limit| rows.min(limit));
            statistics.num_rows = Precision::Inexact(rows);
            statistics.total_byte_size =
                Precision::Inexact(rows.saturating_mul(VALUE_BYTES * self.schema().fields().len()));
        }
        Ok(Arc::new(statistics))
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut builder = RecordBatchReceiverStream::builder(self.query.schema.clone(), BATCHES_AHEAD);
        let (batches, table, query) = (builder.tx(), self.table.clone(), self.query.clone());
        match &self.table.place {
            Place::Postgres(address) => {
                let address = address.clone();
                builder.spawn(async move {
                    let read = read_postgres(&table, &address, &query, &batches);
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

/// From the replica if there is one that answers, else from the primary.
async fn read_postgres(
    table: &DatabaseTable,
    primary: &Address,
    query: &Query,
    batches: &Sender<Result<RecordBatch>>,
) -> crate::Result<()> {
    let given = &AtomicBool::new(false);
    let read = |address| {
        // The receiver is gone when the query has enough.
        postgres::read(table, address, query, move |batch| async move {
            given.store(true, Ordering::Relaxed);
            batches.send(Ok(batch)).await.is_ok()
        })
    };
    let printed = table.replica.as_ref().map(|replica| (replica, replica.to_string()));
    if let Some((replica, printed)) = printed.filter(|(_, printed)| replica::may_answer(printed)) {
        match read(replica).await {
            Ok(()) => {
                replica::has_answered(&printed);
                return Ok(());
            }
            Err(error) => {
                replica::has_failed(&printed, &table.definition().name, &error);
                // Rows that were handed over cannot be taken back: whoever has them reads all of it again, then of the primary.
                if given.load(Ordering::Relaxed) {
                    return Err(error.retryable().hint("ask again: the primary is read then"));
                }
            }
        }
    }
    read(primary).await
}
