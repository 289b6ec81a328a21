//! What keeps a table small, in the background: on threads of its own, so that no batch waits for it.
//!
//! ```text
//! each optimize.interval, for each table:
//!   read what is new in the log ─▶ merge small files ─▶ delete files that were merged vacuum.retention ago
//!                               ─▶ a checkpoint, if the last one is checkpoint.interval entries old ─▶ remove entries before it
//! once, at the start:              delete what earlier starts have written and never committed
//! ```
//!
//! Each step is whole or not at all for readers, and is done again if it was cut off: a merged file counts when its entry
//! does; a file is deleted only when no entry that a reader may still hold counts it. Trouble is told, and the table's turn comes
//! again. A newer start ends it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltalake_core::DeltaTable as LoadedTable;
use deltalake_core::protocol::checkpoints::{cleanup_expired_logs_for, create_checkpoint};
use deltalake_core::table::state::DeltaTableState;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::log::{self, Log, now_ms};
use super::{DeltaTable, epoch_of, failed, merge};
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
        let tables: Vec<_> = tables.into_iter().filter(|(delta, _)| delta.maintenance.on).collect();
        if tables.is_empty() {
            return Ok(Self { stop });
        }
        background::spawn(keep(tables, stop.clone()))?;
        Ok(Self { stop })
    }
}

async fn keep(tables: Vec<(DeltaTable, Log)>, stop: CancellationToken) {
    let now = Instant::now();
    let mut kept: Vec<Kept> = tables.into_iter().map(|(delta, log)| Kept::new(delta, log, now)).collect();
    while let Some(next) = kept.iter().map(|table| table.due).min() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next.into()) => {}
        }
        let Some(table) = kept.iter_mut().find(|table| table.due == next) else { continue };
        table.due = Instant::now() + table.delta.maintenance.interval;
        match table.turn(&stop).await {
            Ok(()) => {}
            Err(error) if error.is_retryable() => {
                table.state = None;
                tracing::warn!(
                    table = table.delta.name(),
                    "could not look after the Delta table, later again: {}",
                    error.line()
                );
            }
            Err(error) => {
                // Fenced, or what a later turn would not do otherwise either.
                tracing::warn!(table = table.delta.name(), "no longer looks after the Delta table: {}", error.line());
                let name = table.delta.name().to_string();
                kept.retain(|table| table.delta.name() != name);
            }
        }
    }
}

/// A table between two turns.
struct Kept {
    delta: DeltaTable,
    log: Log,
    state: Option<LoadedTable>,
    due: Instant,
    swept: bool,
    /// The entry of the newest checkpoint that this start knows of.
    checkpoint: u64,
    vacuumed: Option<Instant>,
}

impl Kept {
    fn new(delta: DeltaTable, log: Log, now: Instant) -> Self {
        let due = now + delta.maintenance.interval;
        Self { delta, log, state: None, due, swept: false, checkpoint: 0, vacuumed: None }
    }

    async fn turn(&mut self, stop: &CancellationToken) -> Result<()> {
        let state = self.update().await?;
        self.log.stand_on(&state).await?;
        if !self.swept {
            self.sweep(&state).await?;
            self.swept = true;
        }
        merge::all(&self.delta, &mut self.log, &state, stop).await?;
        // Before a checkpoint forgets what was removed long ago.
        let state = self.update().await?;
        let maintenance = self.delta.maintenance;
        if self.vacuumed.is_none_or(|at| at.elapsed() >= maintenance.retention / 4) {
            self.vacuum(&state).await?;
            self.vacuumed = Some(Instant::now());
        }
        self.checkpoint(&state).await
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
            let epoch = object.location.filename().and_then(|name| epoch_of(name, writer.pipeline));
            if epoch.is_some_and(|epoch| epoch < writer.epoch) && !known.contains(&object.location) {
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
    async fn vacuum(&self, state: &DeltaTableState) -> Result<()> {
        let before = now_ms() - millis(self.delta.maintenance.retention);
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

    async fn checkpoint(&mut self, state: &DeltaTableState) -> Result<()> {
        let maintenance = &self.delta.maintenance;
        let Some(loaded) = &self.state else { return Ok(()) };
        if state.version() < self.checkpoint + maintenance.checkpoint_interval {
            return Ok(());
        }
        let write = |error| self.delta.failed("write a checkpoint of", &error).retryable();
        create_checkpoint(loaded, None).await.map_err(write)?;
        self.checkpoint = state.version();
        point!("delta::after_checkpoint");
        let before = now_ms() - millis(maintenance.log_retention);
        let removed = cleanup_expired_logs_for(state.version(), self.log.store().as_ref(), before, None).await;
        let removed = removed.map_err(|error| self.delta.failed("remove old entries of", &error).retryable())?;
        tracing::debug!(table = self.delta.name(), version = state.version(), removed, "wrote a checkpoint of the log");
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
