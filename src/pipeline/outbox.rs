//! Sinks that are written in the background: the pipeline hands a batch's rows over and goes on, whatever the sink does.
//!
//! ```text
//! run ─▶ rows of batch N ─▶ [hand over: outbox/…/N, durable] ─▶ commit N ─┐
//!                                                                         ▼ from now on
//!                           sink ◀── [deliver: N, N+1, … in order, one at a time] ──▶ outbox/…/N is removed
//!                             └──── rows it refuses ─▶ outbox-refused/N ─▶ the next plan lists them ─▶ its dead letters
//! ```
//!
//! Only committed batches are delivered: a batch that is planned anew has left nothing in such a sink, so none of them has to
//! be asked what it holds, and a start does not wait for one that is away. Every sink recognises a batch that it has, so a
//! delivery that was interrupted, or whose file could not be removed, is simply repeated.
//!
//! Invariants: a row is in the outbox, in the sink, or among what was refused, at any moment. Batches arrive in order. An older start
//! delivers nothing: it asks the checkpoint before each batch, and the sink fences it as ever.
//! Limits: bytes on disk by `poundlock.outbox`, then handing over waits; in memory one batch that is handed over and one that is
//! delivered, and some words about each that waits.
//!
//! Failure: a sink that is away opens its circuit ([`Breaker`]) and is tried on; so does one that somebody has to mend (a table is
//! missing, a password is wrong). Being fenced, and a checkpoint that cannot be read, stop the pipeline.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::start::now;
use crate::checkpoint::status::OutboxStatus;
use crate::checkpoint::{BatchPlan, Checkpoint, Waiting};
use crate::connector::background::blocking;
use crate::connector::{Guarantee, Identity, Sink, TableDefinition, Wave, WriteReport, WriteRequest};
use crate::{Error, Result};

pub mod adopt;
pub mod deliver;
pub mod entry;

/// A file takes at least so much of a disk: so the number of batches that wait is bounded too.
const BLOCK_BYTES: u64 = 4_096;

/// Batches whose refused rows one plan lists: each has at most a thousand of an INSERT.
pub(super) const REFUSED_BATCHES_MAX: usize = 10;

/// How long a run that ends by itself waits without any batch being delivered.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long it waits in all when it was told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// One sink's. Cheap to clone.
#[derive(Clone)]
pub struct Outbox(Arc<Shared>);

struct Shared {
    /// Of the sink, and of the folder of what is handed over.
    name: String,
    /// By name.
    tables: BTreeMap<String, Arc<TableDefinition>>,
    shape: String,
    limit: u64,
    checkpoint: Checkpoint,
    breaker: Arc<Breaker>,
    /// Files of what was refused and no plan lists yet; of all outboxes together.
    refused: Arc<Mutex<BTreeSet<String>>>,
    state: Mutex<State>,
    /// Raised whenever `state` has changed.
    changed: watch::Sender<()>,
    /// Whoever waits for the sink's next attempt need not: it is made now.
    nudge: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    /// Handed over; their batch is not committed yet.
    handed: Vec<Waiting>,
    /// Committed, the oldest first.
    waiting: VecDeque<Waiting>,
    /// Of both, on disk.
    bytes: u64,
    /// Somebody delivers; else room is not waited for.
    is_delivered: bool,
    /// Since when handing over waits for room.
    full: Option<i64>,
    delivered: Option<u64>,
    deliveries: u64,
    /// What has ended delivery, until it is told.
    failed: Option<Error>,
    ended: bool,
    told: bool,
    stop: CancellationToken,
}

fn on_disk(waiting: &Waiting) -> u64 {
    waiting.bytes.max(BLOCK_BYTES)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// `refused` is shared by all outboxes of a pipeline.
    pub fn new(
        name: &str,
        tables: impl IntoIterator<Item = Arc<TableDefinition>>,
        limit: u64,
        checkpoint: &Checkpoint,
        refused: &Arc<Mutex<BTreeSet<String>>>,
    ) -> Self {
        let tables: BTreeMap<_, _> = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        Self(Arc::new(Shared {
            name: name.to_string(),
            shape: entry::shape(tables.values()),
            tables,
            limit,
            checkpoint: checkpoint.clone(),
            breaker: Arc::new(Breaker::new(name, "its rows wait in the outbox", now())),
            refused: Arc::clone(refused),
            state: Mutex::default(),
            changed: watch::channel(()).0,
            nudge: tokio::sync::Notify::new(),
        }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn breaker(&self) -> &Arc<Breaker> {
        &self.0.breaker
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Changes the state and tells whoever waits for it.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.0.changed.send_replace(());
        done
    }

    /// What stands in for the sink while batches are written.
    pub fn handing_over(&self, guarantee: Guarantee) -> HandOver {
        HandOver { outbox: self.clone(), guarantee }
    }

    pub(super) fn stop_with(&self, stop: CancellationToken) {
        self.state().stop = stop;
    }

    /// A batch is committed: what was handed over of it may go.
    pub fn committed(&self, of: BatchPlan) {
        self.change(|state| {
            let (mut committed, rest): (Vec<_>, Vec<_>) =
                state.handed.drain(..).partition(|waiting| waiting.of.batch <= of.batch);
            committed.sort_by_key(|waiting| waiting.of.batch);
            state.waiting.extend(committed);
            state.handed = rest;
        });
    }

    /// What waits, for the status.
    pub fn status(&self) -> OutboxStatus {
        let state = self.state();
        OutboxStatus {
            batches: state.waiting.len() as u64,
            rows: state.waiting.iter().map(|waiting| waiting.rows).sum(),
            bytes: state.waiting.iter().map(|waiting| waiting.bytes).sum(),
            oldest: state.waiting.front().map(|waiting| waiting.of.planned_at),
            limit: self.0.limit,
            full: state.full.is_some(),
            delivered: state.delivered,
        }
    }

    /// The oldest batch that waits.
    pub fn next(&self) -> Option<Waiting> {
        self.state().waiting.front().cloned()
    }

    /// Batches that wait, and how many were delivered by this process.
    fn progress(&self) -> (usize, u64) {
        let state = self.state();
        (state.waiting.len(), state.deliveries)
    }

    /// What has ended delivery; told once.
    fn take_failure(&self) -> Option<Error> {
        let mut state = self.state();
        if !state.ended || state.told {
            return None;
        }
        state.told = true;
        let ended = || Error::internal(format!("delivery to sink {} has ended", self.0.name));
        Some(state.failed.take().unwrap_or_else(ended))
    }

    /// # Errors
    /// The storage does not take it; it was told to stop while it waited for room; delivery has failed.
    async fn hand_over(&self, request: &WriteRequest) -> Result<WriteReport> {
        let of = BatchPlan { batch: request.batch, planned_at: request.planned_at };
        let rows = request.inserts.iter().map(|insert| insert.row_count() as u64).sum();
        let report = WriteReport { handed_over: true, ..WriteReport::default() };
        if rows == 0 {
            return Ok(report);
        }
        let request = request.clone(); // the rows are shared
        let (entry, payload) = blocking(move || entry::encode(&request)).await?;
        let (folder, shape) = (self.0.name.clone(), self.0.shape.clone());
        let mut waiting = Waiting { folder, of, rows, shape, bytes: payload.len() as u64 };
        self.room_for(&waiting).await?;
        waiting.bytes = self.0.checkpoint.put_outbox(&waiting, &entry, payload).await?;
        self.change(|state| {
            // The same again, after an error: it is there once.
            let again = state.handed.iter().position(|other| other.of.batch == of.batch);
            if let Some(other) = again.map(|again| state.handed.remove(again)) {
                state.bytes -= on_disk(&other);
            }
            state.bytes += on_disk(&waiting);
            state.handed.push(waiting);
        });
        Ok(report)
    }

    /// Waits as long as there is no room. One batch alone is taken however large it is.
    async fn room_for(&self, new: &Waiting) -> Result<()> {
        let mut changed = self.0.changed.subscribe();
        loop {
            if let Some(error) = self.take_failure() {
                return Err(error);
            }
            let stop = {
                let mut state = self.state();
                let is_alone = state.waiting.is_empty() && state.handed.is_empty();
                if state.ended {
                    // Somebody has been told why.
                    return Err(Error::external(format!(
                        "delivery to sink {} has ended: its outbox is full",
                        self.0.name
                    )));
                }
                if is_alone || !state.is_delivered || state.bytes + on_disk(new) <= self.0.limit {
                    if let Some(since) = state.full.take() {
                        let waited_s = (now() - since) / 1_000_000;
                        tracing::info!(
                            sink = self.0.name,
                            waited_s,
                            "there is room in the outbox again: the pipeline goes on"
                        );
                    }
                    return Ok(());
                }
                if state.full.is_none() {
                    state.full = Some(now());
                    let (sink, batches, bytes, limit) = (&*self.0.name, state.waiting.len(), state.bytes, self.0.limit);
                    tracing::warn!(sink, batches, bytes, limit, "the outbox is full: the pipeline waits for the sink");
                }
                state.stop.clone()
            };
            tokio::select! {
                _ = changed.changed() => {}
                () = stop.cancelled() => {
                    let error = format!("the outbox of sink {} is full", self.0.name);
                    let cause = self.0.breaker.view().error.unwrap_or_else(|| "its batches are being delivered".into());
                    let hint = "nothing is lost: the next start finishes the batch. SET poundlock.outbox higher, or see why the sink takes no rows";
                    return Err(Error::external(error).cause(cause).hint(hint));
                }
            }
        }
    }
}

/// Puts what it is given into the outbox of its sink.
pub struct HandOver {
    outbox: Outbox,
    guarantee: Guarantee,
}

#[async_trait]
impl Sink for HandOver {
    fn name(&self) -> &str {
        self.outbox.name()
    }

    fn guarantee(&self) -> Guarantee {
        self.guarantee.clone()
    }

    fn tables(&self) -> Vec<String> {
        self.outbox.0.tables.keys().cloned().collect()
    }

    /// Nothing is connected to. What is in the outbox is as old as the checkpoint that it is a part of.
    async fn open(&mut self, _: &Identity) -> Result<Option<u64>> {
        Ok(None)
    }

    /// What is handed over is written nowhere before its batch is committed.
    async fn holds(&mut self, _: u64) -> Result<bool> {
        Ok(false)
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        match request.wave {
            Wave::Rows => self.outbox.hand_over(request).await,
            Wave::DeadLetters => Err(Error::internal("dead letters were given to a sink with an outbox")),
        }
    }
}

/// All outboxes of a pipeline. Cheap to clone.
#[derive(Clone, Default)]
pub struct Outboxes {
    all: Vec<Outbox>,
    refused: Arc<Mutex<BTreeSet<String>>>,
}

impl Outboxes {
    pub fn new(all: Vec<Outbox>, refused: Arc<Mutex<BTreeSet<String>>>) -> Self {
        Self { all, refused }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Outbox> {
        self.all.iter()
    }

    pub fn committed(&self, of: BatchPlan) {
        self.all.iter().for_each(|outbox| outbox.committed(of));
    }

    /// Files of what was refused, that a plan is to list: the oldest, some of them at a time.
    pub(super) fn refused(&self) -> Vec<String> {
        lock(&self.refused).iter().take(REFUSED_BATCHES_MAX).cloned().collect()
    }

    /// A plan lists them.
    pub(super) fn listed(&self, names: &[String]) {
        lock(&self.refused).retain(|name| !names.contains(name));
    }

    /// Returns when delivery to one of them has ended, with why.
    pub(super) async fn failure(&self) -> Error {
        let mut changed: Vec<_> = self.all.iter().map(|outbox| outbox.0.changed.subscribe()).collect();
        loop {
            if let Some(error) = self.all.iter().find_map(Outbox::take_failure) {
                return error;
            }
            any(&mut changed).await;
        }
    }

    /// Waits until nothing waits any more, as long as batches are delivered; when it is told to stop, only for a moment.
    /// Returns whether all is empty.
    ///
    /// # Errors
    /// Delivery has ended.
    pub(super) async fn drained(&self, stop: &CancellationToken) -> Result<bool> {
        self.drained_within(stop, DRAIN_PATIENCE, STOP_PATIENCE).await
    }

    async fn drained_within(&self, stop: &CancellationToken, patience: Duration, after_stop: Duration) -> Result<bool> {
        let mut changed: Vec<_> = self.all.iter().map(|outbox| outbox.0.changed.subscribe()).collect();
        let progress = || -> (usize, u64) {
            let all = self.all.iter().map(Outbox::progress);
            all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        };
        let waits = |outbox: &&Outbox| outbox.progress().0 > 0;
        for outbox in self.all.iter().filter(waits) {
            tracing::info!(sink = outbox.name(), batches = outbox.progress().0, "delivering what waits in the outbox");
            outbox.0.nudge.notify_one();
        }
        let (mut known, mut deadline) = (progress(), Instant::now() + patience);
        let mut stopped = None;
        loop {
            if let Some(error) = self.all.iter().find_map(Outbox::take_failure) {
                return Err(error);
            }
            let found = progress();
            if found.0 == 0 {
                return Ok(true);
            }
            if stop.is_cancelled() {
                deadline = *stopped.get_or_insert_with(|| Instant::now() + after_stop);
            } else if found.1 != known.1 {
                (known, deadline) = (found, Instant::now() + patience);
            }
            tokio::select! {
                () = any(&mut changed) => {}
                () = tokio::time::sleep_until(deadline) => return Ok(false),
                () = stop.cancelled(), if stopped.is_none() => {}
            }
        }
    }

    /// Those that are not empty, for people.
    pub(super) fn left(&self) -> Vec<String> {
        let waits = self.all.iter().map(|outbox| (outbox, outbox.status())).filter(|(_, status)| status.batches > 0);
        let line = |(outbox, status): (&Outbox, OutboxStatus)| {
            let error = outbox.0.breaker.view().error.map_or_else(String::new, |error| format!(": {error}"));
            format!("{} batches ({} rows) for sink {}{error}", status.batches, status.rows, outbox.name())
        };
        waits.map(line).collect()
    }
}

/// Returns when one of them has changed; never, if there is none.
async fn any(changed: &mut [watch::Receiver<()>]) {
    let all = changed.iter_mut().map(|changed| Box::pin(changed.changed()));
    let all: Vec<_> = all.collect();
    match all.is_empty() {
        true => std::future::pending().await,
        false => drop(futures::future::select_all(all).await),
    }
}

#[cfg(test)]
mod tests;
