//! One planned batch: the watermarks it moves, its SQL, its part of the window state, its accounts. Nothing is written.
//!
//! What follows here from a plan follows from nothing else, so that a replay gives the same rows. Only the clock is read:
//! since when a partition has had no rows matters to later plans alone, which say what came of it. If retention took more
//! before a replay, its account says so.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::dead_letters::DeadLetter;
use super::outbox::entry::{self, Refused};
use super::run::{Batch, Outcome, SourceBatch, maxima};
use super::start::{Pipeline, now};
use super::write::{RefusedBefore, ToWrite, Written};
use crate::checkpoint::record::{InsertCommit, PartitionCommit, SourceCommit};
use crate::checkpoint::{Commit, Plan};
use crate::connector::{Cut, InsertRows, Loss, Ranges};
use crate::state::image::ImageWriter;
use crate::{Error, Result};

/// A batch that has run, and is to be written and committed.
pub(super) struct Executed {
    pub to_write: ToWrite,
    /// Without what the sinks will tell: see [`account`].
    pub commit: Commit,
    /// The batch's part of the window state, as an image.
    pub delta: Bytes,
    /// The whole state after the batch, where one is due.
    pub snapshot: Option<Bytes>,
}

impl Pipeline {
    /// Runs the SQL of a batch; its part of the state is applied.
    ///
    /// # Errors
    /// A query failed: nothing of the batch was written.
    pub(super) async fn execute(&mut self, plan: &Plan, cuts: BTreeMap<String, Cut>) -> Result<Executed> {
        let mut sources = BTreeMap::new();
        let mut accounts = BTreeMap::new();
        for (name, cut) in cuts {
            let (source, account) = self.take_in(plan, &name, cut)?;
            accounts.insert(name.clone(), account);
            sources.insert(name, source);
        }
        let batch = Batch { number: plan.number, planned_at: plan.planned_at, partitions: plan.partitions, sources };
        let Outcome { inserts, deltas, views, refused } = self.runner.run(&batch).await?;
        for table in &mut self.read_back {
            let writes = |rows: &InsertRows| rows.table.name == table.spec.table.name && rows.row_count() > 0;
            if inserts.iter().any(writes) {
                table.forget();
            }
        }
        let mut letters = Vec::with_capacity(refused.len());
        for row in &refused {
            if let Some(partition) = accounts.get_mut(&row.source).and_then(|a| a.partitions.get_mut(&row.partition)) {
                partition.refused_by_query += 1;
            }
            letters.push(DeadLetter::of_query(row, &self.program.tables[&row.source]));
        }
        let refused_by_outbox = self.refused_before(&plan.outbox_refused).await?;
        let after = batch.sources.iter().map(|(name, source)| (name.clone(), source.after)).collect();
        drop(batch);
        let mut delta = ImageWriter::default();
        for (store, part) in self.runner.stores().iter().zip(&deltas) {
            delta.section(&store.definition().key(), part.panes.iter().map(|(_, states)| states))?;
        }
        self.runner.apply(deltas, &after).await?;
        self.next = plan.number + 1;
        self.since_snapshot += 1;
        let due = self.since_snapshot >= self.program.settings.snapshot_interval;
        let snapshot = if due { Some(self.image()?) } else { None };
        accounts.extend(self.absent.clone());
        let commit = Commit {
            number: plan.number,
            epoch: self.checkpoint.identity().epoch,
            planned_at: plan.planned_at,
            program: plan.program.clone(),
            sources: accounts,
            inserts: BTreeMap::new(),
            views,
            files: BTreeMap::new(),
            dimensions: plan.pinned(),
            outbox_refused: plan.outbox_refused.clone(),
        };
        let offsets = plan.sources.iter().map(|(name, source)| (name.clone(), source.ranges.clone())).collect();
        let (number, planned_at) = (plan.number, plan.planned_at);
        let to_write = ToWrite { number, planned_at, offsets, inserts, refused_by_query: letters, refused_by_outbox };
        Ok(Executed { to_write, commit, delta: delta.finish(), snapshot })
    }

    /// What sinks with an outbox have refused of earlier batches, as the plan lists it.
    async fn refused_before(&self, names: &[String]) -> Result<Vec<RefusedBefore>> {
        let mut all = vec![];
        for name in names {
            let (refused, payload): (Refused, Bytes) = self.checkpoint.read_outbox_refused(name).await?;
            let mut letters = vec![];
            for (insert, rows) in refused.inserts.iter().zip(entry::sections(&payload)?) {
                let places = rows.iter().flat_map(|rows| (0..rows.num_rows()).map(|row| rows.slice(row, 1)));
                for (row, error) in places.zip(&insert.errors) {
                    letters.push(DeadLetter::of_outbox(row, error, &insert.table, refused.batch));
                }
            }
            all.push(RefusedBefore { letters, offsets: refused.offsets });
        }
        Ok(all)
    }

    /// A source's part of a batch: its watermark moves, its records are counted.
    fn take_in(&mut self, plan: &Plan, name: &str, mut cut: Cut) -> Result<(SourceBatch, SourceCommit)> {
        let planned = plan.sources.get(name).ok_or_else(|| Error::internal("a cut without a plan"))?;
        let watermark = self.watermarks.get_mut(name).ok_or_else(|| Error::internal("a source without a watermark"))?;
        let spec = self.program.sources.iter().find(|s| s.table.name == name).and_then(|s| s.watermark.as_ref());
        let ahead_limit = watermark.ahead_limit(plan.planned_at);
        let before = watermark.value();
        cut.chunks.sort_by_key(|chunk| (chunk.partition, chunk.offsets.first().copied()));
        let highest = match spec {
            Some(spec) => maxima(&cut.chunks, spec.column, ahead_limit)?,
            None => BTreeMap::new(),
        };
        watermark.advance(planned, &highest, now());
        if plan.close_windows {
            let stores = self.runner.stores().iter().filter(|store| store.definition().source == name);
            if let Some(end) = stores.filter_map(|store| store.end()).max() {
                watermark.close(end);
            }
        }
        let mut partitions = watermark.partitions();
        for chunk in &cut.chunks {
            let partition: &mut PartitionCommit = partitions.entry(chunk.partition).or_default();
            let (rows, undecodable) = (chunk.rows.num_rows() as u64, chunk.undecodable as u64);
            partition.fetched += rows;
            partition.undecodable += undecodable;
            partition.decoded += rows - undecodable;
        }
        let after = watermark.value();
        let losses = Loss::union(planned.losses.iter().copied().chain(cut.losses));
        self.positions.insert(name.to_string(), ends(&planned.ranges));
        let account = SourceCommit {
            location: self.program.tables[name].location.clone(),
            ranges: planned.ranges.clone(),
            watermark: after,
            partitions,
            lost: losses.iter().map(|loss| loss.counted).sum(),
            losses,
        };
        Ok((SourceBatch { chunks: cut.chunks, before, after, ahead_limit }, account))
    }

    /// The whole state after the last batch that ran.
    pub(super) fn image(&mut self) -> Result<Bytes> {
        let mut image = ImageWriter::default();
        for store in self.runner.stores() {
            image.section(&store.definition().key(), store.panes().values().flatten())?;
        }
        self.since_snapshot = 0;
        Ok(image.finish())
    }
}

/// What each INSERT produced and what became of it.
pub(super) fn account(commit: &mut Commit, batch: &ToWrite, written: &Written) {
    for rows in batch.inserts.iter().chain(&written.engine_rows) {
        let report = written.reports.get(&rows.insert).copied().unwrap_or_default();
        let (table, hash) = (rows.table.name.clone(), rows.hash.clone());
        let produced = rows.row_count() as u64;
        let outbox = written.handed_over.contains(&rows.insert).then_some(produced);
        let insert = InsertCommit { table, produced, report, outbox, hash };
        commit.inserts.insert(rows.insert, insert);
    }
    commit.files.clone_from(&written.files);
}

pub(super) fn ends(ranges: &Ranges) -> BTreeMap<i32, i64> {
    ranges.iter().map(|(partition, range)| (*partition, range.to)).collect()
}
