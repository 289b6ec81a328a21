//! The panes of one or more windowed views, as DataFusion's own partial aggregates.
//!
//! ```text
//! rows of a batch ─▶ input ─▶ not late, not ahead ─▶ AggregateExec(Partial) ─▶ Delta: states by pane
//!   panes + delta ─▶ windows that changed or closed ─▶ AggregateExec(Final) ─▶ rows of the view
//!   delta ─▶ apply: appended to each pane's list; a long list is merged by AggregateExec(PartialReduce)
//! ```
//!
//! Like an LSM tree: the large state is never rewritten for a small batch. A batch only reads the store until its rows
//! are all known to be good; then [`PaneStore::apply`] makes its delta part of the state. Everything is ordered (panes
//! by time, states by batch), and compaction depends only on the length of a list, so a replay gives the same bytes.
//!
//! DataFusion hands out slices of one large buffer; what is kept here is copied first.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::reset_plan_states;

use super::compact::compact;
use crate::sql::functions::timestamp_type;
use crate::sql::pinned::{PinnedExec, PinnedRows};
use crate::sql::session::QueryContext;
use crate::sql::windowed::{PaneDefinition, Rows, View};

/// Of a batch, about: see `sql::pinned`.
const USUAL_ROWS: usize = 100_000;

/// Deltas of a pane at which they are merged. No setting: sums of floating-point numbers, and so the hashes of a replay,
/// depend on it.
pub const COMPACT_AT: usize = 16;

/// What time it is in a batch, in event time and by the clock; µs. `i64::MIN` where there is no watermark yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Late is judged against this one …
    pub before: i64,
    /// … closing against this one.
    pub after: i64,
    /// Rows later than this enter no window.
    pub ahead_limit: i64,
}

/// Partial aggregates of one batch, in the order they were made.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    pub panes: Vec<(i64, States)>,
    /// Pairs of row and window that was closed before the row came, by size of the window (µs).
    pub late: BTreeMap<i64, u64>,
    pub ahead: u64,
}

/// Partial aggregates of one pane, with a hash of the key of each row.
#[derive(Debug, Clone)]
pub struct States {
    pub rows: RecordBatch,
    keys: Arc<[u64]>,
}

/// The plan of the partial aggregate, and where its rows are pinned.
type Partial = (Arc<PinnedRows>, Arc<dyn ExecutionPlan>);

#[derive(Debug)]
pub struct PaneStore {
    definition: Arc<PaneDefinition>,
    /// Start of the pane (µs) → states, oldest first.
    panes: BTreeMap<i64, Vec<States>>,
    /// Length of a list at which it is merged into one.
    compact_at: usize,
    /// Its part of the memory that queries have, too.
    reservation: Option<MemoryReservation>,
    /// Made by the first batch.
    partial: Mutex<Option<Partial>>,
}

impl PaneStore {
    pub fn new(definition: Arc<PaneDefinition>, compact_at: usize) -> Self {
        Self {
            definition,
            panes: BTreeMap::new(),
            compact_at: compact_at.max(2),
            reservation: None,
            partial: Mutex::default(),
        }
    }

    pub fn definition(&self) -> &Arc<PaneDefinition> {
        &self.definition
    }

    pub fn panes(&self) -> &BTreeMap<i64, Vec<States>> {
        &self.panes
    }

    /// Bytes held by the states.
    pub fn bytes(&self) -> usize {
        self.panes.values().flatten().map(|s| s.rows.get_array_memory_size() + 8 * s.keys.len()).sum()
    }

    /// The end of the last window that has a row; `None` without any.
    pub fn end(&self) -> Option<i64> {
        self.panes.keys().next_back().map(|pane| pane.saturating_add(self.definition.size_max))
    }

    /// Partial aggregates of the rows that are now pinned below the view; nothing in the store changes.
    /// `input` is a plan of the definition's, over shared rows or not; `sizes` are those of the views, whose late rows are counted.
    pub async fn delta(
        &self,
        input: Arc<dyn ExecutionPlan>,
        context: &QueryContext,
        bounds: Bounds,
        sizes: impl Iterator<Item = i64>,
    ) -> Result<Delta> {
        let rows = context.collect(input).await?;
        let mut delta = Delta { late: sizes.map(|size| (size, 0)).collect(), ..Delta::default() };
        let mut kept = Vec::with_capacity(rows.len());
        for batch in rows {
            kept.extend(self.admit(batch, bounds, &mut delta)?);
        }
        if kept.is_empty() {
            return Ok(delta);
        }
        let (admitted, plan) = self.partial(kept[0].schema(), context.state())?;
        admitted.pin(kept);
        let states = context.collect(plan).await;
        admitted.pin(vec![]);
        delta.panes = self.by_pane(&states?)?;
        Ok(delta)
    }

    /// The partial aggregate, and where its rows are pinned.
    fn partial(&self, schema: SchemaRef, state: &SessionState) -> Result<Partial> {
        let mut kept = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((rows, plan)) = &*kept {
            return Ok((Arc::clone(rows), reset_plan_states(Arc::clone(plan))?));
        }
        let rows = PinnedRows::new(schema);
        let source = PinnedExec::try_new(Arc::clone(&rows), None, 1, USUAL_ROWS)?;
        let plan = self.aggregate(AggregateMode::Partial, Arc::new(source), state)?;
        *kept = Some((Arc::clone(&rows), Arc::clone(&plan)));
        Ok((rows, plan))
    }

    /// Counts late and ahead rows; keeps the rows that still have an open window.
    fn admit(&self, batch: RecordBatch, bounds: Bounds, delta: &mut Delta) -> Result<Option<RecordBatch>> {
        let definition = &self.definition;
        let starts = micros(batch.column(definition.input_start))?;
        let times = micros(batch.column(definition.input_time))?;
        let (starts, times) = (starts.as_primitive::<Int64Type>(), times.as_primitive::<Int64Type>());
        let oldest = starts.values().iter().min().copied().unwrap_or(i64::MAX);
        let newest = times.values().iter().max().copied().unwrap_or(i64::MIN);
        let all_in_time = oldest.saturating_add(definition.slide) > bounds.before && newest <= bounds.ahead_limit;
        let all_in_time = all_in_time && starts.null_count() == 0;
        if all_in_time {
            return Ok((batch.num_rows() > 0).then_some(batch));
        }
        let mut keep = Vec::with_capacity(batch.num_rows());
        for (row, (start, time)) in starts.values().iter().zip(times.values()).enumerate() {
            // `date_bin` has no bin for years that nanoseconds cannot hold: such a row is in no window.
            let binned = starts.is_valid(row);
            let ahead = *time > bounds.ahead_limit;
            delta.ahead += u64::from(ahead);
            if !ahead {
                let start = if binned { *start } else { i64::MIN };
                for (size, late) in &mut delta.late {
                    *late += missed(start, definition.slide, *size, bounds.before);
                }
            }
            keep.push(binned && !ahead && start.saturating_add(definition.size_max) > bounds.before);
        }
        let kept = filter_record_batch(&batch, &BooleanArray::from(keep))?;
        Ok((kept.num_rows() > 0).then_some(kept))
    }

    /// Makes a batch's delta part of the state and forgets panes that no open window needs.
    ///
    /// # Errors
    /// The state does not fit into the memory of the session any more.
    pub async fn apply(&mut self, delta: Delta, after: i64, context: &QueryContext) -> Result<()> {
        let mut crowded = BTreeSet::new();
        for (pane, states) in delta.panes {
            let list = self.panes.entry(pane).or_default();
            list.push(states);
            if list.len() >= self.compact_at {
                crowded.insert(pane);
            }
        }
        self.evict(after);
        for pane in crowded {
            let Some(list) = self.panes.get(&pane) else { continue };
            let rows = list.iter().map(|states| states.rows.clone()).collect();
            let reduced = self.reduce(AggregateMode::PartialReduce, rows, context).await?;
            let merged = self.by_pane(&reduced)?.into_iter().map(|(_, states)| states).collect();
            self.panes.insert(pane, merged);
        }
        let bytes = self.bytes();
        let pool = &context.state().runtime_env().memory_pool;
        let reservation = self.reservation.get_or_insert_with(|| MemoryConsumer::new("window state").register(pool));
        reservation.try_resize(bytes)
    }

    /// Forgets panes that no window needs that is open at this watermark.
    pub fn evict(&mut self, after: i64) {
        let size = self.definition.size_max;
        self.panes.retain(|pane, _| pane.saturating_add(size) > after);
    }

    /// Puts back states that were read from a checkpoint, as one more entry of each pane's list.
    pub fn restore(&mut self, states: &[RecordBatch]) -> Result<()> {
        for (pane, states) in self.by_pane(states)? {
            self.panes.entry(pane).or_default().push(states);
        }
        Ok(())
    }

    /// Applies the delta of a commit again.
    pub async fn restored(&mut self, states: &[RecordBatch], after: i64, context: &QueryContext) -> Result<()> {
        let delta = Delta { panes: self.by_pane(states)?, ..Delta::default() };
        self.apply(delta, after, context).await
    }

    /// The starts of the windows of this size that a batch changes and that are not closed before it.
    pub fn changed(&self, size: i64, delta: &Delta, bounds: Bounds) -> BTreeSet<i64> {
        let panes = delta.panes.iter().map(|(pane, _)| *pane);
        panes.flat_map(|pane| self.windows_of(pane, size)).filter(|w| w.saturating_add(size) > bounds.before).collect()
    }

    fn windows_of(&self, pane: i64, size: i64) -> impl Iterator<Item = i64> {
        let slide = self.definition.slide;
        (0..size / slide).map(move |k| pane.saturating_sub(k * slide))
    }

    /// The rows of a view that a batch shows, before its delta is applied. In the schema of the view. `changed` are the
    /// windows that the batch changed, here or in another view of the same source; with [`Rows::Changed`] only here; with
    /// [`Rows::InTurn`] the windows to show.
    pub async fn rows(
        &self,
        view: &View,
        rows: Rows,
        changed: &BTreeSet<i64>,
        delta: &Delta,
        bounds: Bounds,
        context: &QueryContext,
    ) -> Result<Vec<RecordBatch>> {
        let mut merge = Merge::new(self, delta);
        let mut windows = if rows == Rows::Closed { BTreeSet::new() } else { changed.clone() };
        if matches!(rows, Rows::Whole | Rows::Closed) {
            windows.extend(self.closing(view.size, &merge, bounds));
        }
        let mut states = Vec::new();
        for window in windows {
            let panes: Vec<i64> = merge.panes_of(window, view.size).collect();
            let parts = match rows {
                Rows::Whole | Rows::Closed | Rows::InTurn => {
                    panes.iter().flat_map(|pane| merge.states(*pane)).collect()
                }
                Rows::Changed => merge.changed(&panes)?,
            };
            for part in parts {
                states.push(self.as_window(&part, window, view.size)?);
            }
        }
        let rows = self.reduce(AggregateMode::Final, states, context).await?;
        let schema = view.schema();
        let recast = |batch: RecordBatch| Ok(RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec())?);
        rows.into_iter().map(recast).collect()
    }

    /// The starts of the windows of this size that a batch closes, before its delta is applied.
    pub fn closed(&self, size: i64, delta: &Delta, bounds: Bounds) -> BTreeSet<i64> {
        self.closing(size, &Merge::new(self, delta), bounds)
    }

    /// The starts of the windows that close in a batch and have a row.
    fn closing(&self, size: i64, merge: &Merge, bounds: Bounds) -> BTreeSet<i64> {
        let closes = |window: &i64| {
            let end = window.saturating_add(size);
            bounds.before < end && end <= bounds.after
        };
        // A pane's windows end in (pane, pane + size].
        let panes = merge.between(bounds.before.saturating_sub(size), bounds.after);
        panes.into_iter().flat_map(|pane| self.windows_of(pane, size)).filter(closes).collect()
    }

    fn aggregate(
        &self,
        mode: AggregateMode,
        input: Arc<dyn ExecutionPlan>,
        state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let d = &self.definition;
        let raw = mode == AggregateMode::Partial;
        let group_by = if raw { Arc::clone(&d.group_by) } else { Arc::new(d.group_by.as_final()) };
        let (aggregates, filters) = (d.aggregates.clone(), d.filters.clone());
        let exec = AggregateExec::try_new(mode, group_by, aggregates, filters, input, Arc::clone(&d.input_schema))?;
        // The rules add the sort an order-sensitive aggregate asks of raw rows; states carry their order with them.
        let rules = if raw { state.physical_optimizers() } else { &[] };
        let plan = Arc::new(exec) as Arc<dyn ExecutionPlan>;
        rules.iter().try_fold(plan, |plan, rule| rule.optimize(plan, state.config_options()))
    }

    async fn reduce(
        &self,
        mode: AggregateMode,
        states: Vec<RecordBatch>,
        context: &QueryContext,
    ) -> Result<Vec<RecordBatch>> {
        let Some(first) = states.first() else { return Ok(vec![]) };
        let schema = first.schema();
        let input = MemorySourceConfig::try_new_exec(&[states], schema, None)?;
        context.collect(self.aggregate(mode, input, context.state())?).await
    }

    /// A pane's states with the bounds of one of its windows written over the bounds of the pane.
    fn as_window(&self, batch: &RecordBatch, window: i64, size: i64) -> Result<RecordBatch> {
        let d = &self.definition;
        if d.slide == size {
            return Ok(batch.clone());
        }
        let mut columns = batch.columns().to_vec();
        for (column, micros) in [(Some(d.start_column), window), (d.end_column, window.saturating_add(size))] {
            let Some(column) = column else { continue };
            let value = ScalarValue::TimestampMicrosecond(Some(micros), None).cast_to(&d.time_type)?;
            columns[column] = value.to_array_of_size(batch.num_rows())?;
        }
        Ok(RecordBatch::try_new(batch.schema(), columns)?)
    }

    /// Splits states by pane, copied out of whatever larger buffers they came in; one entry a pane.
    fn by_pane(&self, states: &[RecordBatch]) -> Result<Vec<(i64, States)>> {
        let Some(first) = states.first() else { return Ok(vec![]) };
        let all = match states {
            [one] => one.clone(),
            _ => arrow::compute::concat_batches(&first.schema(), states)?,
        };
        let starts = micros(all.column(self.definition.start_column))?;
        let mut rows: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (row, pane) in starts.as_primitive::<Int64Type>().values().iter().enumerate() {
            rows.entry(*pane).or_default().push(u32::try_from(row).unwrap_or(u32::MAX));
        }
        let mut panes = Vec::with_capacity(rows.len());
        for (pane, rows) in rows {
            let rows = take_record_batch(&all, &UInt32Array::from(rows))?;
            panes.push((pane, self.states(compact(&rows)?)?));
        }
        Ok(panes)
    }

    fn states(&self, rows: RecordBatch) -> Result<States> {
        let mut keys = vec![0; rows.num_rows()];
        let columns: Vec<_> = self.definition.key_columns.iter().map(|column| rows.column(*column)).collect();
        create_hashes(columns, &RandomState::with_seed(0), &mut keys)?;
        Ok(States { rows, keys: keys.into() })
    }
}

/// Values for the placeholders of the input.
pub type Params = Vec<(&'static str, ScalarValue)>;

/// How many windows of this size that hold the pane were closed at `before`.
fn missed(pane: i64, slide: i64, size: i64, before: i64) -> u64 {
    // The earliest window that holds the pane ends with it; the ends go up by one slide each, to pane + size.
    let first_end = pane.saturating_add(slide);
    if before < first_end {
        return 0;
    }
    let windows = before.saturating_sub(first_end) / slide + 1;
    u64::try_from(windows.min(size / slide)).unwrap_or(0)
}

fn micros(array: &Arc<dyn Array>) -> Result<Arc<dyn Array>> {
    let micros = match array.data_type() {
        DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => Arc::clone(array),
        _ => cast(array, &timestamp_type())?,
    };
    let values = micros.as_primitive::<TimestampMicrosecondType>();
    Ok(Arc::new(arrow::array::Int64Array::new(values.values().clone(), values.nulls().cloned())))
}

/// The panes of the store and of the delta, as one.
struct Merge<'a> {
    store: &'a PaneStore,
    touched: BTreeMap<i64, &'a States>,
    /// The touched panes of the last window that was asked for, and per pane the rows of a key in one of them: the
    /// windows of a HOP that follow each other mostly ask for the same.
    last: (Vec<i64>, BTreeMap<i64, Vec<RecordBatch>>),
}

impl<'a> Merge<'a> {
    fn new(store: &'a PaneStore, delta: &'a Delta) -> Self {
        let touched = delta.panes.iter().map(|(pane, states)| (*pane, states)).collect();
        Self { store, touched, last: Default::default() }
    }

    /// Panes with any state, in `[from, to)`.
    fn between(&self, from: i64, to: i64) -> BTreeSet<i64> {
        if from >= to {
            return BTreeSet::new();
        }
        let kept = self.store.panes.range(from..to).map(|(pane, _)| *pane);
        kept.chain(self.touched.range(from..to).map(|(pane, _)| *pane)).collect()
    }

    /// The panes of a window, which may be one that only another view has.
    fn panes_of(&self, window: i64, size: i64) -> impl Iterator<Item = i64> + use<> {
        let slide = self.store.definition.slide;
        let panes = self.between(window, window.saturating_add(size));
        panes.into_iter().filter(move |pane| pane.saturating_sub(window) % slide == 0)
    }

    fn states(&self, pane: i64) -> impl Iterator<Item = RecordBatch> {
        self.all(pane).map(|states| states.rows.clone())
    }

    fn all(&self, pane: i64) -> impl Iterator<Item = &'a States> + use<'a> {
        let kept = self.store.panes.get(&pane).into_iter().flatten();
        kept.chain(self.touched.get(&pane).copied())
    }

    /// Of these panes, the rows whose key is in one of those that the batch touched.
    fn changed(&mut self, panes: &[i64]) -> Result<Vec<RecordBatch>> {
        let touched: Vec<i64> = panes.iter().copied().filter(|pane| self.touched.contains_key(pane)).collect();
        if touched != self.last.0 {
            self.last = (touched, BTreeMap::new());
        }
        let missing: Vec<i64> = panes.iter().copied().filter(|pane| !self.last.1.contains_key(pane)).collect();
        if !missing.is_empty() {
            let states = self.last.0.iter().filter_map(|pane| self.touched.get(pane));
            let keys: HashSet<u64> = states.flat_map(|states| states.keys.iter().copied()).collect();
            for pane in missing {
                let parts = self.all(pane).map(|states| only(states, &keys)).collect::<Result<Vec<_>>>()?;
                self.last.1.insert(pane, parts.into_iter().filter(|part| part.num_rows() > 0).collect());
            }
        }
        Ok(panes.iter().flat_map(|pane| &self.last.1[pane]).cloned().collect())
    }
}

fn only(states: &States, keys: &HashSet<u64>) -> Result<RecordBatch> {
    let mask: BooleanArray = states.keys.iter().map(|key| Some(keys.contains(key))).collect();
    Ok(filter_record_batch(&states.rows, &mask)?)
}
