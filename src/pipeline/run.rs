//! One micro-batch through the SQL: rows of the sources in, rows of every INSERT out. Nothing is written here.
//!
//! ```text
//! chunks ─▶ pin sources ─▶ deltas of the window state ─▶ pin views ─▶ every INSERT, side by side ─▶ order, hash
//!              ▲                                                          │
//!              └────────── a row that a query refuses is found by halving and left out ◀┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{cast, max};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use tokio::task::JoinSet;

use super::plans::{Of, Plans};
use super::refused::{Failure, Part, stopped};
use super::rows::{self, Digests};
use crate::checkpoint::record::ViewAccount;
use crate::connector::{Chunk, InsertRows, nullable};
use crate::sql::Program;
use crate::sql::explain::plain;
use crate::sql::functions::{AHEAD_LIMIT, CURRENT_WATERMARK, PLANNED_AT, WATERMARK_BEFORE, timestamp_type};
use crate::sql::session::QueryContext;
use crate::sql::windowed::Rows;
use crate::state::panes::Params;
use crate::state::{Bounds, Delta, PaneStore};
use crate::{Error, Result};

/// So many rows of a batch may be refused by queries; more is a fault of the SQL, not of the data.
pub(super) const REFUSED_MAX: usize = 1_000;

/// One source's part of a batch.
#[derive(Debug, Clone)]
pub struct SourceBatch {
    /// By partition, then offset.
    pub chunks: Vec<Chunk>,
    pub before: Option<i64>,
    pub after: Option<i64>,
    pub ahead_limit: i64,
}

#[derive(Debug, Clone)]
pub struct Batch {
    pub number: u64,
    pub planned_at: i64,
    /// `target_partitions` of its queries: as planned, whatever the setting is now.
    pub partitions: usize,
    /// By source table.
    pub sources: BTreeMap<String, SourceBatch>,
}

/// A row that a query cannot compute with, whatever the order of things.
#[derive(Debug, Clone)]
pub struct RefusedRow {
    pub source: String,
    pub partition: i32,
    pub offset: i64,
    /// The one row, in the schema of the source table.
    pub row: RecordBatch,
    pub error: String,
}

#[derive(Debug)]
pub struct Outcome {
    /// In the order of the program.
    pub inserts: Vec<InsertRows>,
    /// By store.
    pub deltas: Vec<Delta>,
    pub views: BTreeMap<String, ViewAccount>,
    pub refused: Vec<RefusedRow>,
}

/// The SQL of a program and the state of its windows.
pub struct Runner {
    program: Arc<Program>,
    stores: Vec<PaneStore>,
    /// Schemas that rows are handed on in: the table's, all nullable.
    schemas: Vec<SchemaRef>,
    plans: Arc<Plans>,
    /// For the window state, whose bytes must come out the same again: one partition, so one order.
    single: QueryContext,
}

impl Runner {
    pub fn new(program: Arc<Program>, stores: Vec<PaneStore>) -> Self {
        let schemas = program.inserts.iter().map(|insert| nullable(&insert.table.schema)).collect();
        let single = QueryContext::new(program.state(), 1);
        Self { program, stores, schemas, plans: Arc::default(), single }
    }

    pub fn stores(&self) -> &[PaneStore] {
        &self.stores
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn single(&self) -> &QueryContext {
        &self.single
    }

    /// See [`Plans::counts`].
    #[cfg(test)]
    fn plan_counts(&self) -> (usize, usize) {
        self.plans.counts()
    }

    /// # Errors
    /// A query failed other than by single rows, or refuses too many of them. The state is as it was.
    pub async fn run(&self, batch: &Batch) -> Result<Outcome> {
        let context = match batch.partitions {
            1 => self.single.clone(),
            several => QueryContext::new(self.program.state(), several),
        };
        let outcome = self.run_without_refused(batch, &context).await;
        self.unpin();
        outcome
    }

    async fn run_without_refused(&self, batch: &Batch, context: &QueryContext) -> Result<Outcome> {
        let mut refused = Vec::new();
        let mut cleaned = batch.clone();
        // Each time round, one part of the program has been freed of all rows that it refuses.
        for _ in 0..=self.stores.len() + self.program.inserts.len() {
            let failure = match self.try_run(&cleaned, context).await {
                Ok(mut outcome) => {
                    refused.sort_by_key(|row: &RefusedRow| (row.source.clone(), row.partition, row.offset));
                    outcome.refused = refused;
                    return Ok(outcome);
                }
                Err(failure) => failure,
            };
            let found = self.refuse(&mut cleaned, &failure, REFUSED_MAX - refused.len(), context).await?;
            if found.is_empty() {
                return Err(stopped(batch, &failure));
            }
            refused.extend(found);
        }
        Err(Error::internal("a batch without the rows that its queries refuse still fails"))
    }

    /// Makes a batch part of the window state.
    pub async fn apply(&mut self, deltas: Vec<Delta>, after: &BTreeMap<String, Option<i64>>) -> Result<()> {
        for (store, delta) in self.stores.iter_mut().zip(deltas) {
            let after = after.get(&store.definition().source).copied().flatten().unwrap_or(i64::MIN);
            store.apply(delta, after, &self.single).await.map_err(|error| too_large(&error))?;
        }
        Ok(())
    }

    async fn try_run(&self, batch: &Batch, context: &QueryContext) -> std::result::Result<Outcome, Failure> {
        self.pin(batch);
        let shared = self.pin_shared();
        let (deltas, views) = self.windows(batch, shared).await?;
        let digests = Arc::new(Digests::default());
        let mut running = JoinSet::new();
        for number in (0..self.program.inserts.len()).filter(|i| self.program.inserts[*i].turn.is_none()) {
            let rows = self.insert_rows(number, batch, shared, &digests);
            // Row by row, the parts can come in any order. What takes rows together must take them in one order: sums
            // of floating-point numbers, and so the hash of a replay, depend on it.
            let row_wise = self.program.inserts[number].row_wise_over.is_some();
            let context = if row_wise { context } else { &self.single }.clone();
            running.spawn(async move { (number, rows.collect(&context).await) });
        }
        let mut results = BTreeMap::new();
        while let Some(joined) = running.join_next().await {
            let (number, result) = joined.map_err(|e| Failure::internal(&e))?;
            results.insert(number, result);
        }
        if self.program.inserts.iter().any(|insert| insert.turn.is_some()) {
            let in_turn = self.in_turn(batch, &deltas, shared, &digests).await?;
            results.extend(in_turn.into_iter().map(|(number, rows)| (number, Ok(rows))));
        }
        let mut inserts = Vec::with_capacity(results.len());
        for (insert, result) in results {
            // The first in the order of the program, so that a replay refuses the same rows for the same reason.
            let (rows, hash) = result.map_err(|error| self.failure_of_insert(error, insert))?;
            let insert = &self.program.inserts[insert];
            inserts.push(InsertRows { insert: insert.number, table: Arc::clone(&insert.table), rows, hash });
        }
        Ok(Outcome { inserts, deltas, views, refused: vec![] })
    }

    /// Over the shared rows that are pinned, or as it was written.
    pub(super) fn insert_rows(
        &self,
        number: usize,
        batch: &Batch,
        shared: bool,
        digests: &Arc<Digests>,
    ) -> InsertQuery {
        let insert = &self.program.inserts[number];
        // More than one partition come back in any order.
        let in_order = insert.in_source_order && batch.partitions == 1;
        InsertQuery {
            number,
            shared,
            plans: Arc::clone(&self.plans),
            plan: self.program.insert_plan(number, shared).clone(),
            params: self.params(batch, &insert.sources),
            schema: Arc::clone(&self.schemas[number]),
            sorted: !in_order,
            digests: Arc::clone(digests),
        }
    }

    pub(super) fn failure_of_insert(&self, error: DataFusionError, number: usize) -> Failure {
        let insert = &self.program.inserts[number];
        let part = insert.row_wise_over.as_ref().map(|_| Part::Insert(number));
        Failure { error, part, place: insert.place.clone() }
    }

    pub(super) fn pin(&self, batch: &Batch) {
        for source in &self.program.sources {
            let chunks = batch.sources.get(&source.table.name).map_or(&[][..], |source| &source.chunks);
            source.pinned.pin(chunks.iter().map(|chunk| chunk.rows.clone()).collect());
        }
    }

    /// Whether the conditions that queries share could be answered; if one fails on a row, no query shares anything.
    fn pin_shared(&self) -> bool {
        let of = |name: &str| self.program.sources.iter().find(|source| source.table.name == name);
        let rows = |name: &str| of(name).map(|source| source.pinned.pinned()).unwrap_or_default();
        let pinned = self.program.shared.pin(rows);
        pinned.inspect_err(|error| tracing::debug!("queries share nothing in this batch: {error}")).is_ok()
    }

    fn unpin(&self) {
        self.program.shared.unpin();
        let views = self.program.windows.views.iter().flat_map(|view| &view.demands).map(|(_, table)| table);
        self.program.sources.iter().map(|source| &source.pinned).chain(views).for_each(|table| table.pin(vec![]));
    }

    /// The deltas of the stores, and the rows of the views pinned.
    async fn windows(
        &self,
        batch: &Batch,
        shared: bool,
    ) -> std::result::Result<(Vec<Delta>, BTreeMap<String, ViewAccount>), Failure> {
        let mut deltas = Vec::with_capacity(self.stores.len());
        for number in 0..self.stores.len() {
            deltas.push(self.delta(number, batch, shared).await?);
        }
        let views = &self.program.windows.views;
        // Views of one source show the same windows in the same batch, so that they can be joined on them.
        let mut changed: BTreeMap<(&str, i64), BTreeSet<i64>> = BTreeMap::new();
        for view in views {
            let (store, delta) = (&self.stores[view.store], &deltas[view.store]);
            let source = store.definition().source.as_str();
            let here = store.changed(view.size, delta, bounds(batch, source));
            changed.entry((source, view.size)).or_default().extend(here);
        }
        let mut accounts = BTreeMap::new();
        for view in views {
            let (store, delta) = (&self.stores[view.store], &deltas[view.store]);
            let source = store.definition().source.as_str();
            let bounds = bounds(batch, source);
            for (wanted, table) in view.demands.iter().filter(|(wanted, _)| *wanted != Rows::InTurn) {
                let own;
                let changed = match wanted {
                    Rows::Changed => {
                        own = store.changed(view.size, delta, bounds);
                        &own
                    }
                    Rows::Whole | Rows::Closed | Rows::InTurn => &changed[&(source, view.size)],
                };
                let rows = store.rows(view, *wanted, changed, delta, bounds, &self.single).await;
                table.pin(rows.map_err(|error| Failure::whole(error, format!("windowed view {}", view.name)))?);
            }
            let late = delta.late.get(&view.size).copied().unwrap_or(0);
            let windows = u64::try_from(view.size / store.definition().slide).unwrap_or(1);
            accounts.insert(view.name.clone(), ViewAccount { late, ahead: delta.ahead * windows });
        }
        Ok((deltas, accounts))
    }

    /// What the rows that are pinned add to a store.
    pub(super) async fn delta(
        &self,
        number: usize,
        batch: &Batch,
        shared: bool,
    ) -> std::result::Result<Delta, Failure> {
        let (store, views) = (&self.stores[number], &self.program.windows.views);
        let source = &store.definition().source;
        let of_store = || views.iter().filter(|view| view.store == number);
        let params = self.params(batch, &[source.clone()].into());
        let sizes = of_store().map(|view| view.size);
        let input = self.program.store_input(number, shared);
        let of = Of { part: Part::Store(number), shared, partitions: 1 };
        let delta = async {
            let input = self.plans.get(of, input, params, self.single.state()).await?;
            store.delta(input, &self.single, bounds(batch, source), sizes).await
        };
        delta.await.map_err(|error| {
            let names: Vec<&str> = of_store().map(|view| view.name.as_str()).collect();
            Failure { error, part: Some(Part::Store(number)), place: format!("windowed view {}", names.join(", ")) }
        })
    }

    fn params(&self, batch: &Batch, sources: &BTreeSet<String>) -> Params {
        let of = |value: fn(&SourceBatch) -> Option<i64>| {
            let values: Option<Vec<i64>> = sources.iter().map(|s| batch.sources.get(s).and_then(value)).collect();
            values.and_then(|values| values.into_iter().min())
        };
        let timestamp = |micros| ScalarValue::TimestampMicrosecond(micros, None);
        let name = |id: &'static str| id.trim_start_matches('$');
        vec![
            (name(CURRENT_WATERMARK), timestamp(of(|s| s.after))),
            (name(WATERMARK_BEFORE), timestamp(of(|s| s.before))),
            (name(AHEAD_LIMIT), timestamp(of(|s| Some(s.ahead_limit)))),
            (name(PLANNED_AT), ScalarValue::TimestampMicrosecond(Some(batch.planned_at), Some("UTC".into()))),
        ]
    }
}

pub(super) fn too_large(error: &DataFusionError) -> Error {
    let error = Error::user("the state of the windows does not fit into memory").cause(plain(error));
    error.hint("SET poundlock.memory higher, or let windows close earlier (watermark.delay)")
}

pub(super) fn bounds(batch: &Batch, source: &str) -> Bounds {
    let source = batch.sources.get(source);
    Bounds {
        before: source.and_then(|s| s.before).unwrap_or(i64::MIN),
        after: source.and_then(|s| s.after).unwrap_or(i64::MIN),
        ahead_limit: source.map_or(i64::MAX, |s| s.ahead_limit),
    }
}

/// An INSERT with the values of a batch.
pub(super) struct InsertQuery {
    number: usize,
    shared: bool,
    plans: Arc<Plans>,
    plan: LogicalPlan,
    params: Params,
    schema: SchemaRef,
    sorted: bool,
    digests: Arc<Digests>,
}

impl InsertQuery {
    /// Reads what is pinned now; the rows, and their hash.
    pub async fn collect(self, context: &QueryContext) -> datafusion::error::Result<(Vec<RecordBatch>, String)> {
        let rows = self.rows(context).await?;
        self.number(rows)
    }

    /// Reads what is pinned now; the rows as they come.
    pub async fn rows(&self, context: &QueryContext) -> datafusion::error::Result<Vec<RecordBatch>> {
        let state = context.state();
        let partitions = state.config_options().execution.target_partitions;
        let of = Of { part: Part::Insert(self.number), shared: self.shared, partitions };
        let plan = self.plans.get(of, &self.plan, self.params.clone(), state).await?;
        let batches = context.collect(plan).await?;
        let filled = batches.into_iter().filter(|batch| batch.num_rows() > 0);
        let recast = |batch: RecordBatch| RecordBatch::try_new(Arc::clone(&self.schema), batch.columns().to_vec());
        Ok(filled.map(recast).collect::<std::result::Result<Vec<_>, _>>()?)
    }

    /// Rows in the order in which a sink gets them.
    pub fn in_order(&self, batches: Vec<RecordBatch>) -> datafusion::error::Result<Vec<RecordBatch>> {
        if !self.sorted {
            return Ok(batches);
        }
        rows::sort(batches).map_err(|error| DataFusionError::External(Box::new(error)))
    }

    /// All rows of a batch in their order, and their hash.
    pub fn number(&self, mut batches: Vec<RecordBatch>) -> datafusion::error::Result<(Vec<RecordBatch>, String)> {
        batches = self.in_order(batches)?;
        let external = |e: Error| DataFusionError::External(Box::new(e));
        let hash = self.digests.hash(&batches).map_err(external)?;
        Ok((batches, hash))
    }
}

/// The highest event time of each partition that is not after `limit`; µs.
pub fn maxima(chunks: &[Chunk], column: usize, limit: i64) -> Result<BTreeMap<i32, i64>> {
    let mut maxima = BTreeMap::new();
    for chunk in chunks {
        let times = cast(chunk.rows.column(column), &timestamp_type())?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let mut highest = max(times);
        if highest.is_some_and(|time| time > limit) {
            highest = times.iter().flatten().filter(|time| *time <= limit).max();
        }
        if let Some(highest) = highest {
            let known = maxima.entry(chunk.partition).or_insert(highest);
            *known = highest.max(*known);
        }
    }
    Ok(maxima)
}

#[cfg(test)]
mod tests;
