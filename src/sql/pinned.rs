//! A table whose rows are set batch by batch, under plans that stay.
//!
//! Everything a pipeline reads is one of these: the rows of a source between two offsets, the cached rows of a
//! dimension, the rows of a windowed view. The optimized logical plan is made once; a physical plan takes the rows that
//! are pinned when it is made, and is run once. One batch runs at a time, so nobody pins while another plan is made.

use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Column, Result};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableScan, TableType};
use datafusion::physical_plan::ExecutionPlan;

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
    /// A table that is only written: it has no rows here.
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

#[derive(Debug)]
pub struct PinnedTable {
    pub kind: PinnedKind,
    schema: SchemaRef,
    rows: RwLock<Arc<Vec<RecordBatch>>>,
}

impl PinnedTable {
    pub fn new(kind: PinnedKind, schema: SchemaRef) -> Arc<Self> {
        Arc::new(Self { kind, schema, rows: RwLock::default() })
    }

    pub fn rows_schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Replaces the rows; they must be of the table's schema.
    pub fn pin(&self, rows: Vec<RecordBatch>) {
        *self.rows.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rows);
    }

    pub fn pinned(&self) -> Arc<Vec<RecordBatch>> {
        Arc::clone(&self.rows.read().unwrap_or_else(PoisonError::into_inner))
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
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// "Only closed windows" is answered by the state, which then need not finish the open ones.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match &self.kind {
            PinnedKind::Windowed { closed, .. } if closed.is_closed_test(filter) => TableProviderFilterPushDown::Exact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.pinned().as_ref().clone();
        Ok(MemorySourceConfig::try_new_exec(&[rows], self.schema(), projection.cloned())?)
    }
}
