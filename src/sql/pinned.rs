//! A table whose rows are set batch by batch, under plans that stay.
//!
//! Everything a pipeline reads is one of these: the rows of a source between two offsets, the cached rows of a
//! dimension, the rows of a windowed view. Plans are made once, logical and physical: a scan reads the rows that are
//! pinned when it is executed. One batch runs at a time, so nobody pins while a plan is run.
//!
//! What a physical plan is made by must not depend on the rows, or a replay would join in another order than the batch
//! did: sizes are told as fixed, rough figures.

use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, Result, Statistics, internal_datafusion_err};
use datafusion::datasource::source_as_provider;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableScan, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};

use super::bound::{Bound, WatermarkTest};

/// What the rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinnedKind {
    /// The rows of this batch of an unbounded table.
    Source(String),
    /// All rows of a bounded table, as last read.
    Dimension(String),
    /// Those rows of a source in this batch that meet a condition, or do not: see [`super::shared`].
    Part(String),
    /// A table that is written: it has rows here only if it is read back (`sql::read_back`), those of earlier windows.
    Sink(String),
    /// Rows of the windowed view of this number.
    Windowed { view: usize, closed: ClosedColumns },
}

/// Which columns of a windowed view hold the bounds of its window, and its size in µs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedColumns {
    pub start: String,
    pub end: Option<String>,
    pub size: i64,
}

impl ClosedColumns {
    /// What a column says of the window; `None`: nothing.
    pub fn bound(&self, column: &Column) -> Option<Bound> {
        if column.name == self.start {
            return Some(Bound::start(self.size));
        }
        (self.end.as_ref() == Some(&column.name)).then(|| Bound::end(self.size))
    }

    /// Whether the predicate says "this window is closed".
    pub fn is_closed_test(&self, predicate: &Expr) -> bool {
        WatermarkTest::of(predicate, &|column| self.bound(column)) == Some(WatermarkTest::Closed)
    }
}

impl PinnedKind {
    /// About how many rows, for the order of joins: a dimension is held in memory and probed.
    fn usual_rows(&self) -> usize {
        match self {
            Self::Source(_) | Self::Part(_) => 100_000,
            Self::Windowed { .. } => 10_000,
            Self::Dimension(_) | Self::Sink(_) => 1_000,
        }
    }
}

#[derive(Debug)]
pub struct PinnedTable {
    pub kind: PinnedKind,
    rows: Arc<PinnedRows>,
}

/// Rows that scans read when they are executed.
#[derive(Debug)]
pub struct PinnedRows {
    schema: SchemaRef,
    rows: RwLock<Arc<Vec<RecordBatch>>>,
}

impl PinnedRows {
    pub fn new(schema: SchemaRef) -> Arc<Self> {
        Arc::new(Self { schema, rows: RwLock::default() })
    }

    /// Replaces the rows. They are of the schema, all with the same columns; those that no scan reads may be left out.
    pub fn pin(&self, rows: Vec<RecordBatch>) {
        *self.rows.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rows);
    }

    pub fn pinned(&self) -> Arc<Vec<RecordBatch>> {
        Arc::clone(&self.rows.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PinnedTable {
    pub fn new(kind: PinnedKind, schema: SchemaRef) -> Arc<Self> {
        Arc::new(Self { kind, rows: PinnedRows::new(schema) })
    }

    pub fn rows_schema(&self) -> SchemaRef {
        Arc::clone(&self.rows.schema)
    }

    /// See [`PinnedRows::pin`].
    pub fn pin(&self, rows: Vec<RecordBatch>) {
        self.rows.pin(rows);
    }

    pub fn pinned(&self) -> Arc<Vec<RecordBatch>> {
        self.rows.pinned()
    }

    /// The pinned table that a scan reads, if it is one.
    pub fn of(scan: &TableScan) -> Option<PinnedKind> {
        let provider = source_as_provider(&scan.source).ok()?;
        provider.downcast_ref::<Self>().map(|table| table.kind.clone())
    }
}

#[async_trait]
impl TableProvider for PinnedTable {
    fn schema(&self) -> SchemaRef {
        self.rows_schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// "Only closed windows" is answered by the state, which then need not finish the open ones. What is asked of a dimension is
    /// noted, so that no more of it need be read: see [`super::needed`].
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match &self.kind {
            PinnedKind::Windowed { closed, .. } if closed.is_closed_test(filter) => TableProviderFilterPushDown::Exact,
            PinnedKind::Dimension(_) => TableProviderFilterPushDown::Inexact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = state.config_options().execution.target_partitions;
        let (rows, usual) = (Arc::clone(&self.rows), self.kind.usual_rows());
        Ok(Arc::new(PinnedExec::try_new(rows, projection.cloned(), partitions, usual)?))
    }
}

/// Scans pinned rows. With more than one partition each takes every n-th record batch.
#[derive(Debug)]
pub struct PinnedExec {
    rows: Arc<PinnedRows>,
    projection: Option<Vec<usize>>,
    usual_rows: usize,
    properties: Arc<PlanProperties>,
}

impl PinnedExec {
    /// # Errors
    /// The projection names a column that is not there.
    pub fn try_new(
        rows: Arc<PinnedRows>,
        projection: Option<Vec<usize>>,
        partitions: usize,
        usual_rows: usize,
    ) -> Result<Self> {
        let schema = match &projection {
            Some(columns) => Arc::new(rows.schema.project(columns)?),
            None => Arc::clone(&rows.schema),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self { rows, projection, usual_rows, properties: Arc::new(properties) })
    }

    /// Where its columns are in rows that lack some.
    fn positions(&self, rows: &RecordBatch) -> Result<Vec<usize>> {
        let positions = self.schema();
        let positions = positions.fields().iter().map(|field| rows.schema_ref().index_of(field.name()));
        positions
            .collect::<std::result::Result<_, _>>()
            .map_err(|e| internal_datafusion_err!("a column was not read: {e}"))
    }
}

impl DisplayAs for PinnedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "PinnedExec: projection={:?}", self.projection)
    }
}

impl ExecutionPlan for PinnedExec {
    fn name(&self) -> &'static str {
        "PinnedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let partitions = self.properties.partitioning.partition_count();
        let rows = self.rows.pinned();
        let projection = match rows.first() {
            Some(first) if first.num_columns() < self.rows.schema.fields().len() => Some(self.positions(first)?),
            _ => self.projection.clone(),
        };
        let own = rows.iter().skip(partition).step_by(partitions).cloned().collect();
        let stream = MemoryStream::try_new(own, self.schema(), projection)?;
        Ok(Box::pin(stream))
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        const ROW_BYTES: usize = 100;
        let parts = args.partition().map_or(1, |_| self.properties.partitioning.partition_count());
        let rows = self.usual_rows / parts;
        let unknown = Statistics::new_unknown(&self.schema());
        let (num_rows, total_byte_size) = (Precision::Inexact(rows), Precision::Inexact(rows * ROW_BYTES));
        Ok(Arc::new(Statistics { num_rows, total_byte_size, ..unknown }))
    }
}
