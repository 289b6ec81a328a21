//! One micro-batch through the SQL: rows of the sources in, rows of every INSERT out. Nothing is written here.
//!
//! ```text
//! chunks ─▶ pin sources ─▶ deltas of the window state ─▶ pin views ─▶ every INSERT, side by side ─▶ order, hash
//!              ▲                                                          │
//!              └────────── a row that a query refuses is found by halving and left out ◀┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch, max};
use arrow::datatypes::{Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::collect;
use tokio::task::JoinSet;

use super::rows;
use crate::checkpoint::record::ViewAccount;
use crate::connector::{Chunk, InsertRows};
use crate::sql::Program;
use crate::sql::functions::{AHEAD_LIMIT, CURRENT_WATERMARK, PLANNED_AT, WATERMARK_BEFORE, timestamp_type};
use crate::state::panes::Params;
use crate::state::{Bounds, Delta, PaneStore};
use crate::{Error, Result};

/// So many rows of a batch may be refused by queries; more is a fault of the SQL, not of the data.
const REFUSED_MAX: usize = 1_000;

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
}

impl Runner {
    pub fn new(program: Arc<Program>, stores: Vec<PaneStore>) -> Self {
        let nullable = |schema: &SchemaRef| {
            let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
            Arc::new(Schema::new(fields.collect::<Vec<_>>()))
        };
        let schemas = program.inserts.iter().map(|insert| nullable(&insert.table.schema)).collect();
        Self { program, stores, schemas }
    }

    pub fn stores(&self) -> &[PaneStore] {
        &self.stores
    }

    /// # Errors
    /// A query failed other than by single rows, or refuses too many of them. The state is as it was.
    pub async fn run(&self, batch: &Batch) -> Result<Outcome> {
        let state = Arc::new(self.program.state());
        let first = self.try_run(batch, &state).await;
        let outcome = match first {
            Err(Failure { error, rows: true, place }) => {
                let (cleaned, refused) = self.without_refused(batch, &state).await?;
                match self.try_run(&cleaned, &state).await {
                    Ok(mut outcome) if !refused.is_empty() => {
                        outcome.refused = refused;
                        Ok(outcome)
                    }
                    Ok(outcome) => Ok(outcome),
                    Err(_) if refused.is_empty() => Err(stopped(batch, &error, &place)),
                    Err(failure) => Err(stopped(batch, &failure.error, &failure.place)),
                }
            }
            Err(failure) => Err(stopped(batch, &failure.error, &failure.place)),
            Ok(outcome) => Ok(outcome),
        };
        self.unpin();
        outcome
    }

    /// Makes a batch part of the window state.
    pub async fn apply(&mut self, deltas: Vec<Delta>, after: &BTreeMap<String, Option<i64>>) -> Result<()> {
        let state = self.program.state();
        for (store, delta) in self.stores.iter_mut().zip(deltas) {
            let after = after.get(&store.definition().source).copied().flatten().unwrap_or(i64::MIN);
            store.apply(delta, after, &state).await?;
        }
        Ok(())
    }

    async fn try_run(&self, batch: &Batch, state: &Arc<SessionState>) -> std::result::Result<Outcome, Failure> {
        self.pin(batch);
        let (deltas, views) = self.windows(batch, state).await?;
        let mut running = JoinSet::new();
        for (number, insert) in self.program.inserts.iter().enumerate() {
            let plan = insert.plan.clone();
            let params = self.params(batch, &insert.sources);
            let (state, schema) = (Arc::clone(state), Arc::clone(&self.schemas[number]));
            let sorted = !insert.in_source_order;
            running.spawn(async move { (number, insert_rows(plan, params, &state, schema, sorted).await) });
        }
        let mut results = BTreeMap::new();
        while let Some(joined) = running.join_next().await {
            let (number, result) = joined.map_err(|e| Failure::internal(&e))?;
            let place = || self.program.inserts[number].place.clone();
            results.insert(number, result.map_err(|error| Failure::of(error, place()))?);
        }
        let inserts = results.into_iter().map(|(insert, (rows, hash))| {
            let table = Arc::clone(&self.program.inserts[insert].table);
            InsertRows { insert, table, rows, hash }
        });
        Ok(Outcome { inserts: inserts.collect(), deltas, views, refused: vec![] })
    }

    fn pin(&self, batch: &Batch) {
        for source in &self.program.sources {
            let chunks = batch.sources.get(&source.table.name).map_or(&[][..], |source| &source.chunks);
            source.pinned.pin(chunks.iter().map(|chunk| chunk.rows.clone()).collect());
        }
    }

    fn unpin(&self) {
        let views = self.program.windows.views.iter().flat_map(|view| &view.demands).map(|(_, table)| table);
        self.program.sources.iter().map(|source| &source.pinned).chain(views).for_each(|table| table.pin(vec![]));
    }

    /// The deltas of the stores, and the rows of the views pinned.
    async fn windows(
        &self,
        batch: &Batch,
        state: &SessionState,
    ) -> std::result::Result<(Vec<Delta>, BTreeMap<String, ViewAccount>), Failure> {
        let views = &self.program.windows.views;
        let mut deltas = Vec::with_capacity(self.stores.len());
        for (number, store) in self.stores.iter().enumerate() {
            let definition = store.definition();
            let bounds = bounds(batch, &definition.source);
            let params = self.params(batch, &[definition.source.clone()].into());
            let sizes = views.iter().filter(|view| view.store == number).map(|view| view.size);
            let name = views.iter().find(|view| view.store == number).map_or("", |view| &view.name);
            let delta = store.delta(state, bounds, params, sizes).await;
            deltas.push(delta.map_err(|error| Failure::of(error, format!("windowed view {name}")))?);
        }
        let mut accounts = BTreeMap::new();
        for view in views {
            let (store, delta) = (&self.stores[view.store], &deltas[view.store]);
            let bounds = bounds(batch, &store.definition().source);
            for (wanted, table) in &view.demands {
                let rows = store.rows(view, *wanted, delta, bounds, state).await;
                table.pin(rows.map_err(|error| Failure::of(error, format!("windowed view {}", view.name)))?);
            }
            let late = delta.late.get(&view.size).copied().unwrap_or(0);
            accounts.insert(view.name.clone(), ViewAccount { late, ahead: delta.ahead });
        }
        Ok((deltas, accounts))
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

    /// Halves the batch until every row that a query refuses stands alone; gives the batch without them.
    async fn without_refused(&self, batch: &Batch, state: &Arc<SessionState>) -> Result<(Batch, Vec<RefusedRow>)> {
        let mut cleaned = batch.clone();
        let mut refused = Vec::new();
        for (name, source) in &batch.sources {
            let mut chunks = Vec::with_capacity(source.chunks.len());
            for chunk in &source.chunks {
                let mut keep = vec![true; chunk.rows.num_rows()];
                let mut parts = vec![(0, keep.len())];
                while let Some((from, to)) = parts.pop() {
                    let probe = only(batch, name, slice(chunk, from, to));
                    let Err(failure) = self.try_run(&probe, state).await else { continue };
                    if !failure.rows {
                        return Err(stopped(batch, &failure.error, &failure.place));
                    }
                    if to - from > 1 {
                        let middle = from + (to - from) / 2;
                        parts.extend([(middle, to), (from, middle)]);
                        continue;
                    }
                    keep[from] = false;
                    refused.push(RefusedRow {
                        source: name.clone(),
                        partition: chunk.partition,
                        offset: chunk.offsets[from],
                        row: chunk.rows.slice(from, 1),
                        error: failure.error.strip_backtrace(),
                    });
                    if refused.len() > REFUSED_MAX {
                        let error = stopped(batch, &failure.error, &failure.place);
                        return Err(error.hint(format!("more than {REFUSED_MAX} rows of one batch fail like this")));
                    }
                }
                chunks.extend(without(chunk, &keep)?);
            }
            if let Some(source) = cleaned.sources.get_mut(name) {
                source.chunks = chunks;
            }
        }
        Ok((cleaned, refused))
    }
}

fn bounds(batch: &Batch, source: &str) -> Bounds {
    let source = batch.sources.get(source);
    Bounds {
        before: source.and_then(|s| s.before).unwrap_or(i64::MIN),
        after: source.and_then(|s| s.after).unwrap_or(i64::MIN),
        ahead_limit: source.map_or(i64::MAX, |s| s.ahead_limit),
    }
}

async fn insert_rows(
    plan: LogicalPlan,
    params: Params,
    state: &SessionState,
    schema: SchemaRef,
    sorted: bool,
) -> datafusion::error::Result<(Vec<RecordBatch>, String)> {
    let plan = plan.with_param_values(params)?;
    let plan = state.query_planner().create_physical_plan(&plan, state).await?;
    let batches = collect(plan, state.task_ctx()).await?;
    let filled = batches.into_iter().filter(|batch| batch.num_rows() > 0);
    let recast = |batch: RecordBatch| RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec());
    let mut batches = filled.map(recast).collect::<std::result::Result<Vec<_>, _>>()?;
    let external = |e: Error| DataFusionError::External(Box::new(e));
    if sorted {
        batches = rows::sort(batches).map_err(external)?;
    }
    let hash = rows::hash(&batches).map_err(external)?;
    Ok((batches, hash))
}

/// A failed query: whether single rows are to blame, and where it stands.
struct Failure {
    error: DataFusionError,
    rows: bool,
    place: String,
}

impl Failure {
    fn of(error: DataFusionError, place: String) -> Self {
        use arrow::error::ArrowError;
        let rows = match error.find_root() {
            DataFusionError::ArrowError(error, _) => matches!(
                error.as_ref(),
                ArrowError::CastError(_)
                    | ArrowError::ParseError(_)
                    | ArrowError::ComputeError(_)
                    | ArrowError::DivideByZero
                    | ArrowError::ArithmeticOverflow(_)
                    | ArrowError::InvalidArgumentError(_)
            ),
            DataFusionError::Execution(_) => true,
            _ => false,
        };
        Self { error, rows, place }
    }

    fn internal(error: &tokio::task::JoinError) -> Self {
        let error = DataFusionError::Internal(format!("a query task ended: {error}"));
        Self { error, rows: false, place: String::new() }
    }
}

fn stopped(batch: &Batch, error: &DataFusionError, place: &str) -> Error {
    let offsets = batch.sources.iter().flat_map(|(name, source)| {
        source.chunks.iter().map(move |chunk| {
            let (first, last) = (chunk.offsets.first(), chunk.offsets.last());
            let offset = |o: Option<&i64>| o.map_or_else(String::new, i64::to_string);
            format!("{name} partition {} offsets {}..={}", chunk.partition, offset(first), offset(last))
        })
    });
    let mut offsets: Vec<String> = offsets.take(4).collect();
    offsets.insert(0, format!("batch {}, {place}", batch.number));
    Error::user("a query failed; nothing of the batch was written")
        .at(offsets.join(", "))
        .cause(error.strip_backtrace())
        .hint("change the SQL and start again: the batch is planned anew with the new text")
}

fn only(batch: &Batch, source: &str, chunk: Chunk) -> Batch {
    let mut probe = batch.clone();
    for (name, other) in &mut probe.sources {
        other.chunks = if name == source { vec![chunk.clone()] } else { vec![] };
    }
    probe
}

fn slice(chunk: &Chunk, from: usize, to: usize) -> Chunk {
    Chunk {
        partition: chunk.partition,
        rows: chunk.rows.slice(from, to - from),
        offsets: chunk.offsets.slice(from, to - from),
        undecodable: 0,
        bytes: 0,
    }
}

fn without(chunk: &Chunk, keep: &[bool]) -> Result<Option<Chunk>> {
    if keep.iter().all(|keep| *keep) {
        return Ok(Some(chunk.clone()));
    }
    let rows = filter_record_batch(&chunk.rows, &BooleanArray::from(keep.to_vec()))?;
    let kept = chunk.offsets.iter().zip(keep).filter(|(_, keep)| **keep).map(|(offset, _)| *offset);
    let offsets: Vec<i64> = kept.collect();
    Ok((!offsets.is_empty()).then(|| Chunk { rows, offsets: offsets.into(), ..chunk.clone() }))
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
