//! One batch after another: the trigger, the plan, the write that runs beside the next batch, the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::breaker::insist;
use super::dimension::{Age, ages};
use super::execute::{Executed, account, ends};
use super::read_back::ReadBack;
use super::start::{Pipeline, now};
use super::status::Keeper;
use super::watermark::Watermark;
use super::write::{Sinks, ToWrite, Written};
use crate::checkpoint::record::{DimensionCommit, Limits, SourcePlan};
use crate::checkpoint::status::SinkStatus;
use crate::checkpoint::{BatchPlan, Checkpoint, Commit, Plan};
use crate::connector::{Cut, CutLimit, OffsetRange};
use crate::point::point;
use crate::{Error, Result};

/// When a run ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Never,
    /// After one batch of what is there.
    Once,
    /// When everything that was there at the start is committed.
    CaughtUp,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub end: End,
    /// At the end, close every window that has a row.
    pub close_windows: bool,
}

/// One committed batch, for the log and the status line.
#[derive(Debug, Clone, Default)]
pub struct BatchSummary {
    pub number: u64,
    /// Records fetched.
    pub rows: u64,
    pub undecodable: u64,
    /// Rows of the dead letters' table.
    pub dead_letters: u64,
    /// Pairs of row and window that the row came too late for.
    pub late: u64,
    /// Pairs of row and window, of rows too far ahead of the clock to be believed.
    pub ahead: u64,
    pub lag: u64,
    pub wait: Duration,
    pub run: Duration,
    pub write: Duration,
    pub commit: Duration,
    /// Lowest watermark; µs.
    pub watermark: Option<i64>,
    /// How old the copies of the dimensions were, by table.
    pub dimensions: BTreeMap<String, Age>,
}

/// What a run tells of itself.
#[derive(Debug)]
pub enum Progress<'a> {
    /// After every cut: the source that has not answered for longest, and for how long; `None`: all do.
    Away(Option<(&'a str, Duration)>),
    /// Every second: how the sinks answer, and what waits for them.
    Sinks(&'a [SinkStatus]),
    /// After every commit.
    Committed(&'a BatchSummary),
}

pub type Observer = Arc<dyn Fn(Progress) + Send + Sync>;

/// A batch being written beside the next one.
struct InFlight {
    task: JoinHandle<Result<BatchSummary>>,
    positions: BTreeMap<String, BTreeMap<i32, i64>>,
}

impl Pipeline {
    /// Runs until its end, or until `stop` is cancelled: then the batch in hand is finished first.
    ///
    /// # Errors
    /// What stops a pipeline: nothing is lost, a restart goes on with the batch that failed.
    pub async fn run(&mut self, options: Options, stop: &CancellationToken, observer: &Observer) -> Result<()> {
        let watched = {
            let mut sinks = self.sinks.lock().await;
            sinks.stop_with(stop.clone());
            sinks.watched()
        };
        let keeper = Keeper::start(&self.checkpoint, watched, self.outboxes.clone(), observer);
        self.stop = stop.clone();
        let mut ahead = None;
        let done = self.batches(options, stop, observer, &mut ahead).await;
        // Whatever stopped it has nothing to do with the batch that is being written: that one is finished.
        let done = match (done, self.drain(&mut ahead, observer).await) {
            (Err(error), Err(other)) => Error::all(vec![error, other]).map_or(Ok(()), Err),
            (Err(error), Ok(())) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(())) => match self.empty_outboxes(stop, observer).await {
                Ok(()) => self.snapshot_at_end().await,
                failed => self.snapshot_at_end().await.and(failed),
            },
        };
        keeper.end().await;
        done
    }

    async fn batches(
        &mut self,
        options: Options,
        stop: &CancellationToken,
        observer: &Observer,
        ahead: &mut Option<InFlight>,
    ) -> Result<()> {
        tracing::info!(ms = self.started.elapsed().as_millis() as u64, next_batch = self.next, "pipeline is running");
        let mut ticks = tokio::time::interval(self.program.settings.trigger);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ends: BTreeMap<String, BTreeMap<i32, i64>> =
            self.sources.iter().map(|(name, source)| (name.clone(), source.end_at_start())).collect();
        let mut reached: BTreeSet<(String, i32)> = BTreeSet::new();
        loop {
            let waiting = Instant::now();
            tokio::select! {
                biased; // under a backlog there is always a full batch: whoever stops it must not have to be lucky
                () = stop.cancelled() => break,
                done = settled(ahead) => { self.finish(done?, observer).await?; continue }
                failed = self.outboxes.failure() => return Err(failed),
                () = self.filled() => ticks.reset(),
                _ = ticks.tick() => {}
            }
            let cuts = self.cut().await?;
            point!("turn::after_cut");
            let away = self.sources.iter().filter_map(|(name, source)| Some((name.as_str(), source.away()?)));
            observer(Progress::Away(away.max_by_key(|(_, since)| *since)));
            for (name, cut) in &cuts {
                for (partition, end) in &ends[name] {
                    let to = cut.ranges.get(partition).map_or(0, |range| range.to);
                    if to >= *end || cut.at_end.contains(partition) {
                        reached.insert((name.clone(), *partition));
                    }
                }
            }
            let all_reached = ends.iter().all(|(name, partitions)| {
                partitions.keys().all(|partition| reached.contains(&(name.clone(), *partition)))
            });
            let last = match options.end {
                End::Never => false,
                End::CaughtUp => all_reached,
                End::Once => cuts.values().any(|cut| !cut.chunks.is_empty()) || all_reached,
            };
            self.read_back(ahead, observer, stop).await?;
            if let Some(plan) = self.plan(&cuts, false).await? {
                let waited = waiting.elapsed();
                self.turn(plan, cuts, ahead, observer, waited).await?;
            }
            if last {
                break;
            }
        }
        if options.close_windows && options.end != End::Never && !stop.is_cancelled() {
            self.close(ahead, observer, stop).await?;
        }
        Ok(())
    }

    /// Returns when a source has a full batch.
    async fn filled(&self) {
        let settings = &self.program.settings;
        let share = self.sources.len().max(1);
        let (rows, bytes) = (settings.max_rows_per_batch, settings.max_bytes_per_batch.min(settings.buffer) / share);
        let filled = self.sources.values().map(|source| Box::pin(source.filled(rows, bytes)));
        match self.sources.is_empty() {
            true => std::future::pending().await,
            false => drop(futures::future::select_all(filled).await),
        }
    }

    async fn cut(&self) -> Result<BTreeMap<String, Cut>> {
        let settings = &self.program.settings;
        let limit = CutLimit::Available { rows: settings.max_rows_per_batch, bytes: settings.max_bytes_per_batch };
        let mut cuts = BTreeMap::new();
        for (name, source) in &self.sources {
            cuts.insert(name.clone(), source.cut(&limit).await?);
        }
        Ok(cuts)
    }

    /// Makes the plan of a cut durable; `None` if there is nothing to do.
    async fn plan(&mut self, cuts: &BTreeMap<String, Cut>, close_windows: bool) -> Result<Option<Plan>> {
        let planned_at = now();
        let mut sources = BTreeMap::new();
        let mut anything = close_windows;
        for (name, cut) in cuts {
            let watermark = &self.watermarks[name];
            let idle = watermark.idle(cut, planned_at);
            let location = self.program.tables[name].location.clone();
            let plan = SourcePlan { location, ranges: cut.ranges.clone(), idle, losses: cut.losses.clone() };
            anything |= !cut.chunks.is_empty() || !cut.losses.is_empty() || cut.ranges.values().any(|r| r.from != r.to);
            anything |= watermark.would_move(&plan, planned_at);
            // Where it begins is fixed by its first plan, be it without a record.
            anything |= self.positions[name].is_empty() && self.sources[name].begins_anew();
            sources.insert(name.clone(), plan);
        }
        let outbox_refused = self.outboxes.refused();
        if !anything && outbox_refused.is_empty() {
            return Ok(None);
        }
        let (mut dimensions, mut dimensions_read_at) = (BTreeMap::new(), BTreeMap::new());
        for dimension in &mut self.dimensions {
            let DimensionCommit { version, read_at } = dimension.pin_newest(&self.checkpoint, &self.stop).await?;
            let name = &dimension.spec.table.name;
            dimensions.insert(name.clone(), version);
            dimensions_read_at.insert(name.clone(), read_at);
        }
        for table in &self.read_back {
            dimensions.insert(table.spec.table.name.clone(), table.pin_newest()?);
        }
        let settings = &self.program.settings;
        let limits = Limits {
            max_rows_per_batch: settings.max_rows_per_batch,
            max_bytes_per_batch: settings.max_bytes_per_batch,
        };
        let plan = Plan {
            number: self.next,
            epoch: self.checkpoint.identity().epoch,
            planned_at,
            sources,
            program: self.text.clone(),
            dimensions,
            dimensions_read_at,
            partitions: settings.partitions_of_pipeline(),
            close_windows,
            limits: Some(limits),
            off: Some(self.program.off.clone()),
            outbox_refused,
        };
        insist(&self.stop, "plan a batch", || self.checkpoint.plan(&plan)).await?;
        self.outboxes.listed(&plan.outbox_refused);
        Ok(Some(plan))
    }

    /// Runs a planned batch while the one before is written, then begins to write it.
    async fn turn(
        &mut self,
        plan: Plan,
        cuts: BTreeMap<String, Cut>,
        ahead: &mut Option<InFlight>,
        observer: &Observer,
        wait: Duration,
    ) -> Result<()> {
        let number = plan.number;
        let began = Instant::now();
        let Executed { to_write, mut commit, delta, snapshot } = self.execute(&plan, cuts).await?;
        let mut summary = BatchSummary { number, wait, run: began.elapsed(), ..BatchSummary::default() };
        describe(&mut summary, &commit);
        summary.lag = self.sources.values().map(|source| source.lag()).sum();
        summary.dimensions = ages(&self.dimensions, &commit.dimensions, plan.planned_at);
        self.drain(ahead, observer).await?;
        point!("turn::before_write");
        let (sinks, checkpoint, stop) = (Arc::clone(&self.sinks), self.checkpoint.clone(), self.stop.clone());
        let positions = plan.sources.iter().map(|(name, source)| (name.clone(), ends(&source.ranges))).collect();
        let dead = self.program.dead_letters.as_ref().map(|table| table.name.clone());
        let (outboxes, of) = (self.outboxes.clone(), BatchPlan { batch: number, planned_at: plan.planned_at });
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let written = write(&sinks, &to_write, &checkpoint).await?;
            summary.write = began.elapsed();
            let began = Instant::now();
            account(&mut commit, &to_write, &written);
            summary.dead_letters =
                commit.inserts.values().filter(|i| Some(&i.table) == dead.as_ref()).map(|i| i.produced).sum();
            insist(&stop, "commit the batch", || checkpoint.commit(&commit, delta.clone())).await?;
            outboxes.committed(of);
            for name in &commit.outbox_refused {
                insist(&stop, "forget refusals that are told", || checkpoint.remove_outbox_refused(name)).await?;
            }
            if let Some(state) = snapshot {
                keep(&checkpoint, &stop, number, &state).await?;
            }
            summary.commit = began.elapsed();
            Ok(summary)
        });
        *ahead = Some(InFlight { task, positions });
        Ok(())
    }

    /// Replays a plan of an earlier run to its commit.
    pub(super) async fn replay(&mut self, plan: &Plan) -> Result<()> {
        tracing::warn!(batch = plan.number, "replaying a batch that was planned but not committed");
        let mut cuts = BTreeMap::new();
        for (name, source) in &self.sources {
            let Some(planned) = plan.sources.get(name) else { continue };
            cuts.insert(name.clone(), source.cut(&CutLimit::Exactly(planned.ranges.clone())).await?);
        }
        for dimension in &mut self.dimensions {
            if let Some(hash) = plan.dimensions.get(&dimension.spec.table.name) {
                dimension.pin_version(hash, &self.checkpoint).await?;
            }
        }
        for table in &mut self.read_back {
            let name = &table.spec.table.name;
            let Some(hash) = plan.dimensions.get(name) else {
                return Err(Error::internal(format!("the plan of batch {} names no rows of {name}", plan.number)));
            };
            table.pin_version(hash, &self.checkpoint).await?;
        }
        let observer: Observer = Arc::new(|progress| {
            if let Progress::Committed(batch) = progress {
                let (rows, invalid, late) = (batch.rows, batch.dead_letters, batch.late);
                tracing::info!(batch = batch.number, rows, invalid, late, "committed the batch that was replayed");
            }
        });
        let mut ahead = None;
        self.outboxes.listed(&plan.outbox_refused);
        self.next = plan.number;
        self.turn(plan.clone(), cuts, &mut ahead, &observer, Duration::ZERO).await?;
        self.drain(&mut ahead, &observer).await
    }

    /// The last batch of a bounded run: no rows, but every window is closed.
    async fn close(
        &mut self,
        ahead: &mut Option<InFlight>,
        observer: &Observer,
        stop: &CancellationToken,
    ) -> Result<()> {
        if self.runner.stores().iter().all(|store| store.panes().is_empty()) {
            return Ok(());
        }
        self.batch_without_records(true, ahead, observer, stop).await
    }

    async fn batch_without_records(
        &mut self,
        close_windows: bool,
        ahead: &mut Option<InFlight>,
        observer: &Observer,
        stop: &CancellationToken,
    ) -> Result<()> {
        let nothing = |(partition, to): (&i32, &i64)| (*partition, OffsetRange { from: *to, to: *to });
        let cut = |(name, ends): (&String, &BTreeMap<i32, i64>)| {
            (name.clone(), Cut { ranges: ends.iter().map(nothing).collect(), ..Cut::default() })
        };
        let cuts = self.positions.iter().map(cut).collect();
        self.read_back(ahead, observer, stop).await?;
        if let Some(plan) = self.plan(&cuts, close_windows).await? {
            self.turn(plan, cuts, ahead, observer, Duration::ZERO).await?;
        }
        self.drain(ahead, observer).await
    }

    /// At the end: what waits in the outboxes is delivered, and what they have refused has its dead letters. When it was told to
    /// stop, only what can be had in a moment.
    ///
    /// # Errors
    /// Nothing was told to stop, and rows still wait.
    async fn empty_outboxes(&mut self, stop: &CancellationToken, observer: &Observer) -> Result<()> {
        loop {
            let is_empty = self.outboxes.drained(stop).await?;
            let left = self.outboxes.left().join("; ");
            match (is_empty, stop.is_cancelled()) {
                (false, true) => {
                    tracing::warn!("in the outbox there are still {left}. The next start delivers them");
                    return Ok(());
                }
                (false, false) => {
                    let hint = "they wait in the outbox, and the next start delivers them; all else is done";
                    return Err(Error::external("a sink does not take what waits for it").cause(left).hint(hint));
                }
                (true, is_stopped) if is_stopped || self.outboxes.refused().is_empty() => return Ok(()),
                (true, _) => self.batch_without_records(false, &mut None, observer, stop).await?,
            }
        }
    }

    /// So that the next start has little to read.
    async fn snapshot_at_end(&mut self) -> Result<()> {
        if self.since_snapshot > 0 && self.next > 0 {
            let image = self.image()?;
            keep(&self.checkpoint, &self.stop, self.next - 1, &image).await?;
        }
        Ok(())
    }

    /// Reads back what the last batch wrote to tables that are, when it is stored.
    async fn read_back(
        &mut self,
        ahead: &mut Option<InFlight>,
        observer: &Observer,
        stop: &CancellationToken,
    ) -> Result<()> {
        if self.read_back.iter().any(ReadBack::is_stale) {
            self.drain(ahead, observer).await?;
        }
        for table in self.read_back.iter_mut().filter(|table| table.is_stale()) {
            let watermark = self.watermarks.get(&table.spec.turn.source).and_then(Watermark::value);
            table.read(watermark, &self.checkpoint, stop).await?;
        }
        Ok(())
    }

    async fn drain(&mut self, ahead: &mut Option<InFlight>, observer: &Observer) -> Result<()> {
        if ahead.is_some() {
            let done = settled(ahead).await?;
            self.finish(done, observer).await?;
        }
        Ok(())
    }

    async fn finish(
        &self,
        (summary, positions): (BatchSummary, BTreeMap<String, BTreeMap<i32, i64>>),
        observer: &Observer,
    ) -> Result<()> {
        point!("turn::before_acknowledge");
        for (name, positions) in &positions {
            if let Some(source) = self.sources.get(name) {
                source.acknowledge(positions).await?;
            }
        }
        point!("turn::after_acknowledge");
        observer(Progress::Committed(&summary));
        Ok(())
    }
}

/// The write in flight, when it is done; never, if there is none.
async fn settled(ahead: &mut Option<InFlight>) -> Result<(BatchSummary, BTreeMap<String, BTreeMap<i32, i64>>)> {
    let Some(running) = ahead else { return std::future::pending().await };
    let done = (&mut running.task).await;
    let positions = std::mem::take(&mut running.positions);
    *ahead = None;
    Ok((done.map_err(|e| Error::internal("the task that writes ended").cause(e))??, positions))
}

async fn write(sinks: &tokio::sync::Mutex<Sinks>, batch: &ToWrite, checkpoint: &Checkpoint) -> Result<Written> {
    sinks.lock().await.write(batch, checkpoint).await
}

/// The state after a batch, and no more of what came before than is needed.
async fn keep(checkpoint: &Checkpoint, stop: &CancellationToken, number: u64, state: &Bytes) -> Result<()> {
    insist(stop, "keep the state", || checkpoint.snapshot(number, state.clone())).await?;
    insist(stop, "remove what is not needed any more", || checkpoint.retain()).await?;
    Ok(())
}

fn describe(summary: &mut BatchSummary, commit: &Commit) {
    for source in commit.sources.values() {
        summary.rows += source.partitions.values().map(|p| p.fetched).sum::<u64>();
        summary.undecodable += source.partitions.values().map(|p| p.undecodable).sum::<u64>();
    }
    summary.late = commit.views.values().map(|view| view.late).sum();
    summary.ahead = commit.views.values().map(|view| view.ahead).sum();
    summary.watermark = commit.sources.values().filter_map(|source| source.watermark).min();
}
