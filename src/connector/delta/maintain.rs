//! What keeps a table small, in the background, so that no batch waits for it.
//!
//! ```text
//! at the start, then each optimize.interval, for each table:
//!   read what is new in the log ─▶ merge small files ─▶ delete files that were merged vacuum.retention ago
//!                               ─▶ a checkpoint, if the last one is checkpoint.interval entries old
//!                               ─▶ remove entries before one that has been there for log.retention
//! once, at the start:              delete what earlier starts have written and never committed
//! ```
//!
//! Each step is whole or not at all for readers, and is done again if it was cut off: a merged file counts when its entry
//! does; a file is deleted only when no entry that a reader may still hold counts it. A step that fails is told, and neither keeps the
//! others from their turn nor itself from the next one. A newer start ends all.

use std::collections::{BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltalake_core::DeltaTable as LoadedTable;
use deltalake_core::kernel::Version;
use deltalake_core::protocol::checkpoints::{cleanup_expired_logs_for, create_checkpoint};
use deltalake_core::table::state::DeltaTableState;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::log::{self, Log, now_ms};
use super::options::Terms;
use super::{DeltaTable, failed, merge, writer_of};
use crate::checkpoint::durable::Durable;
use crate::checkpoint::trouble::explained;
use crate::connector::background::{self, blocking};
use crate::point::point;
use crate::{Error, Result};

/// The work in the background; it ends when this is dropped, after the step it is at.
#[derive(Debug)]
pub struct Keeper {
    stop: CancellationToken,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Keeper {
    /// Of tables that were just opened.
    ///
    /// # Errors
    /// There are no threads to be had.
    pub fn start(tables: Vec<(DeltaTable, Log)>) -> Result<Self> {
        let stop = CancellationToken::new();
        background::spawn(keep(tables, stop.clone()))?;
        Ok(Self { stop })
    }
}

async fn keep(tables: Vec<(DeltaTable, Log)>, stop: CancellationToken) {
    let mut kept: Vec<Kept> = tables.into_iter().map(|(delta, log)| Kept::new(delta, log)).collect();
    while let Some(next) = kept.iter().map(|table| table.due).min() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next.into()) => {}
        }
        let Some(place) = kept.iter().position(|table| table.due == next) else { continue };
        let table = &mut kept[place];
        // Files are read and written in it: this thread serves nobody else meanwhile.
        let turn = || Handle::current().block_on(AssertUnwindSafe(table.turn(&stop)).catch_unwind());
        let ended = match tokio::task::block_in_place(turn) {
            Ok(ended) => ended,
            Err(panic) => {
                let cause = panic.downcast_ref::<String>().map_or("it panicked", |said| said.as_str());
                Ended { errors: vec![Error::internal("a turn ended in the middle").cause(cause)], ..Ended::default() }
            }
        };
        if let Some(error) = Error::all(ended.errors) {
            table.state = None;
            tracing::warn!(
                table = table.delta.name(),
                "could not do all that the Delta table needs, later again: {}",
                error.line()
            );
        }
        table.due = Instant::now() + if ended.more { Duration::ZERO } else { table.delta.maintenance.interval };
        if ended.newer {
            tracing::info!(table = table.delta.name(), "a newer start looks after the Delta table");
            kept.remove(place);
        }
    }
}

/// How a turn has ended.
#[derive(Debug, Default)]
struct Ended {
    errors: Vec<Error>,
    /// There is more to merge.
    more: bool,
    /// A newer start is there.
    newer: bool,
}

/// A table between two turns.
struct Kept {
    delta: DeltaTable,
    log: Log,
    state: Option<LoadedTable>,
    due: Instant,
    swept: bool,
    /// Checkpoints that this start has written, and when.
    checkpoints: VecDeque<(Version, Instant)>,
    vacuumed: Option<Instant>,
}

impl Kept {
    fn new(delta: DeltaTable, log: Log) -> Self {
        let checkpoints = VecDeque::new();
        Self { delta, log, state: None, due: Instant::now(), swept: false, checkpoints, vacuumed: None }
    }

    async fn turn(&mut self, stop: &CancellationToken) -> Ended {
        let mut ended = Ended::default();
        if let Err(error) = self.steps(stop, &mut ended).await {
            ended.errors.push(error);
        }
        ended
    }

    /// # Errors
    /// Without the log there is nothing to do.
    async fn steps(&mut self, stop: &CancellationToken, ended: &mut Ended) -> Result<()> {
        let state = self.update().await?;
        if !self.log.stand_on(&state).await? {
            ended.newer = true;
            return Ok(());
        }
        if self.delta.maintenance.on {
            if !self.swept {
                let swept = self.sweep(&state).await;
                self.swept = swept.is_ok();
                ended.errors.extend(swept.err());
            }
            match merge::all(&self.delta, &mut self.log, &state, stop).await {
                Ok(more) => ended.more = more,
                Err(error) => ended.errors.push(error),
            }
        }
        // Before a checkpoint forgets what was removed long ago.
        let state = self.update().await?;
        let terms = self.delta.maintenance.terms(&state);
        if self.delta.maintenance.on && self.vacuumed.is_none_or(|at| at.elapsed() >= terms.retention / 4) {
            match self.vacuum(&state, terms).await {
                Ok(()) => self.vacuumed = Some(Instant::now()),
                Err(error) => ended.errors.push(error),
            }
        }
        ended.errors.extend(self.checkpoint(&state, terms).await.err());
        if self.delta.maintenance.on {
            ended.errors.extend(self.forget(terms).await.err());
        }
        Ok(())
    }

    /// The state of the table as of now.
    async fn update(&mut self) -> Result<DeltaTableState> {
        let table = &self.delta.table;
        let mut loaded = self.state.take().unwrap_or_else(|| LoadedTable::new(Arc::clone(self.log.store())));
        let read = |error| failed(table, "read the log of", &error).retryable();
        match loaded.version() {
            Some(_) => loaded.update_state().await.map_err(read)?,
            None => loaded.load().await.map_err(read)?,
        }
        let state = loaded.snapshot().cloned().map_err(read)?;
        self.state = Some(loaded);
        Ok(state)
    }

    /// Deletes files of earlier starts that were never added: those starts can add none any more, for this one has been read in
    /// the log.
    async fn sweep(&self, state: &DeltaTableState) -> Result<()> {
        if let Some(local) = self.delta.table.location.local.clone() {
            // The log is a folder below, too.
            let depth = self.delta.table.partition_columns.len().max(1);
            let swept = blocking(move || {
                Durable::sweep(&local, depth)
                    .map_err(|e| Error::external("could not look for leftovers").cause(e).retryable())
            });
            swept.await?;
        }
        let writer = self.log.writer();
        let known = known(&self.delta, state, &self.log).await?;
        let store = self.log.store().object_store(None);
        let mut lost = vec![];
        let mut listing = store.list(None);
        while let Some(object) = listing.try_next().await.map_err(|e| explained(self.delta.table.failed("list"), &e))? {
            let of = object.location.filename().and_then(writer_of);
            let is_earlier = of.is_some_and(|(pipeline, epoch)| pipeline == writer.pipeline && epoch < writer.epoch);
            if is_earlier && !known.contains(&object.location) {
                lost.push(object.location);
            }
        }
        let deleted = self.delete(lost).await?;
        if deleted > 0 {
            tracing::info!(table = self.delta.name(), deleted, "deleted files that earlier starts have not committed");
        }
        Ok(())
    }

    /// Deletes files that were removed from the table so long ago that nobody reads them any more.
    async fn vacuum(&self, state: &DeltaTableState, terms: Terms) -> Result<()> {
        let before = now_ms() - millis(terms.retention);
        let mut removed = vec![];
        let mut tombstones = state.all_tombstones(self.log.store().as_ref());
        while let Some(tombstone) =
            tombstones.try_next().await.map_err(|e| self.delta.failed("read the log of", &e).retryable())?
        {
            if tombstone.deletion_timestamp().is_some_and(|at| at < before)
                && let Ok(path) = Path::parse(tombstone.path())
            {
                removed.push(path);
            }
        }
        drop(tombstones);
        let active = active(&self.delta, state)?;
        removed.retain(|path| !active.contains(path));
        point!("delta::before_vacuum");
        let deleted = self.delete(removed).await?;
        if deleted > 0 {
            tracing::info!(table = self.delta.name(), deleted, "deleted files that were merged into others");
        }
        Ok(())
    }

    /// How many there were. One that is gone already is as good as deleted.
    async fn delete(&self, paths: Vec<Path>) -> Result<usize> {
        let store = self.log.store().object_store(None);
        let mut results = store.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
        let mut deleted = 0;
        while let Some(result) = results.next().await {
            match result {
                Ok(_) => deleted += 1,
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(explained(self.delta.table.failed("delete files of"), &error)),
            }
        }
        Ok(deleted)
    }

    async fn checkpoint(&mut self, state: &DeltaTableState, terms: Terms) -> Result<()> {
        let Some(loaded) = &self.state else { return Ok(()) };
        let last = self.log.last_checkpoint().await?.unwrap_or(0);
        if state.version() < last + terms.checkpoint_interval {
            return Ok(());
        }
        let write = |error| self.delta.failed("write a checkpoint of", &error).retryable();
        create_checkpoint(loaded, None).await.map_err(write)?;
        self.checkpoints.push_back((state.version(), Instant::now()));
        point!("delta::after_checkpoint");
        tracing::debug!(table = self.delta.name(), version = state.version(), "wrote a checkpoint of the log");
        Ok(())
    }

    /// Removes entries before a checkpoint that has been there for as long as they are to be kept, by a clock that nobody
    /// sets: who still reads them began before it.
    async fn forget(&mut self, terms: Terms) -> Result<()> {
        let Some(retention) = terms.log_retention else { return Ok(()) };
        let old = self.checkpoints.iter().rposition(|(_, at)| at.elapsed() >= retention);
        let Some((version, _)) = old.and_then(|old| self.checkpoints.drain(..=old).next_back()) else { return Ok(()) };
        let before = now_ms() - millis(retention);
        let removed = cleanup_expired_logs_for(version, self.log.store().as_ref(), before, None).await;
        let removed = removed.map_err(|error| self.delta.failed("remove old entries of", &error).retryable())?;
        tracing::debug!(table = self.delta.name(), version, removed, "removed entries of the log");
        Ok(())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn active(delta: &DeltaTable, state: &DeltaTableState) -> Result<BTreeSet<Path>> {
    Ok(log::files(&delta.table, state)?.iter().map(|file| file.object_store_path()).collect())
}

/// Every file that an entry names: in the table, or removed and perhaps still read.
async fn known(delta: &DeltaTable, state: &DeltaTableState, log: &Log) -> Result<BTreeSet<Path>> {
    let mut known = active(delta, state)?;
    let mut tombstones = state.all_tombstones(log.store().as_ref());
    while let Some(tombstone) =
        tombstones.try_next().await.map_err(|e| delta.failed("read the log of", &e).retryable())?
    {
        known.extend(Path::parse(tombstone.path()).ok());
    }
    Ok(known)
}
