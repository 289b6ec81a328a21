//! What a start finds: the last commit, the state as a snapshot and deltas, and the plans that were not finished.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::log::{commit_key, follows, plan_key, state_key};
use super::record::{Commit, Plan};
use super::{Checkpoint, Inner, frame};
use crate::{Error, Fault, Result};

/// Records read at a time.
const CONCURRENT_READS: usize = 16;

#[derive(Debug, Default)]
pub struct Recovery {
    /// `None`: nothing is committed yet.
    pub last: Option<Commit>,
    /// The newest snapshot, with the batch it is the state after.
    pub snapshot: Option<(u64, Bytes)>,
    /// The deltas of all batches after the snapshot (of all batches, if there is none), in order, without a gap.
    pub deltas: Vec<(u64, Bytes)>,
    /// Plans that are not committed: of each batch the one of the highest epoch, in order, without a gap, the first
    /// following the last commit.
    pub pending: Vec<Plan>,
    /// The first of them, once a start has forgotten them to plan anew.
    pub forgotten: Option<Plan>,
}

impl Recovery {
    /// Forgets the pending plans. Where the first one began is kept: without any commit nothing else tells it, and
    /// `starting_offsets` would find another place now.
    pub fn forget_pending(&mut self) {
        self.forgotten = self.pending.drain(..).next();
    }

    /// The newest batch that is planned or committed.
    pub fn newest(&self) -> Option<u64> {
        let planned = self.pending.last().map(|plan| plan.number);
        planned.max(self.last.as_ref().map(|last| last.number))
    }
}

impl Checkpoint {
    /// Reads what a start needs; the cost follows from the distance to the newest snapshot, not from the age.
    ///
    /// # Errors
    /// A record is missing, damaged or foreign: it is named. Nothing is passed over.
    pub async fn recover(&self) -> Result<Recovery> {
        let inner = &self.0;
        let snapshots = inner.list("state", None).await?;
        let snapshot = snapshots.last().map(|name| inner.number("state", name)).transpose()?;
        let commits = inner.commits_from(snapshot).await?;
        let last = commits.last().map(|(commit, _)| commit.clone());
        let deltas = commits
            .into_iter()
            .map(|(commit, delta)| (commit.number, delta))
            .filter(|(number, _)| snapshot.is_none_or(|snapshot| *number > snapshot))
            .collect();
        let snapshot = match snapshot {
            Some(number) => Some((number, inner.state(number).await?)),
            None => None,
        };
        let pending = inner.pending(last.as_ref()).await?;
        inner.progress().last = Some(last.as_ref().map(|commit| commit.number));
        pending.iter().for_each(|plan| inner.note_plan(plan));
        Ok(Recovery { last, snapshot, deltas, pending, forgotten: None })
    }
}

impl Checkpoint {
    /// Whether an older start, which nothing kept out until the sinks were opened, has planned or committed a batch beyond what was
    /// found. On local storage the lock kept it out.
    ///
    /// # Errors
    /// The storage does not answer.
    pub async fn has_moved_on(&self, found: &Recovery, newest: Option<u64>) -> Result<bool> {
        let inner = &self.0;
        if inner.location.local.is_some() {
            return Ok(false);
        }
        let committed = found.last.as_ref().map(|last| format!("{:020}", last.number));
        let planned = newest.map(|number| format!("{number:020}-{:020}", u64::MAX));
        Ok(!inner.list("commit", committed).await?.is_empty() || !inner.list("plan", planned).await?.is_empty())
    }
}

impl Inner {
    async fn state(&self, number: u64) -> Result<Bytes> {
        let key = state_key(number);
        let found: frame::Decoded<u64> = self.expect(&key).await.map_err(|e| {
            // Torn or damaged; not a lost connection, nor a newer format.
            if e.fault() != Fault::External || e.is_retryable() {
                return e;
            }
            e.hint(
                "the snapshot before it and the commits since are kept too: with this file moved away, a start goes on \
                 from those (unless it is what --reset-state left)",
            )
        })?;
        Ok(found.payload)
    }

    /// All commits from the snapshot's on, or all there are.
    async fn commits_from(&self, snapshot: Option<u64>) -> Result<Vec<(Commit, Bytes)>> {
        let before = snapshot.and_then(|number| number.checked_sub(1)).map(|before| format!("{before:020}"));
        let names = self.list("commit", before).await?;
        let mut expected = snapshot;
        let mut keys = vec![];
        for name in &names {
            let number = self.number("commit", name)?;
            if expected.map_or(!follows(None, number), |expected| expected != number) {
                return Err(self.hole(expected.unwrap_or(1), number));
            }
            expected = Some(number + 1);
            keys.push(commit_key(number));
        }
        if let Some(snapshot) = snapshot
            && keys.is_empty()
        {
            return Err(self.hole(snapshot, snapshot));
        }
        let reads = keys.into_iter().map(|key| async move {
            let found: frame::Decoded<Commit> = self.expect(&key).await?;
            if commit_key(found.record.number) != key {
                return Err(Error::internal(format!(
                    "checkpoint file {} holds batch {}",
                    self.describe(&key),
                    found.record.number
                )));
            }
            Ok((found.record, found.payload))
        });
        futures::stream::iter(reads).buffered(CONCURRENT_READS).try_collect().await
    }

    fn hole(&self, missing: u64, there: u64) -> Error {
        let missing = self.describe(&commit_key(missing));
        Error::external(format!("checkpoint file {missing} is missing"))
            .cause(format!("records of batch {there} are there"))
            .hint("restore the checkpoint from a backup")
    }

    /// Plans after the last commit.
    ///
    /// Two kinds of plan are void, and nothing of them can be in a sink, since a batch is written only when the one
    /// before is committed: a plan of a lower epoch than the plan of the batch before (which was planned anew), and,
    /// after a batch that two epochs planned and the lower one committed, a plan that continues the other's ranges.
    async fn pending(&self, last: Option<&Commit>) -> Result<Vec<Plan>> {
        // From the last committed batch on: its plans tell which are its successors.
        let names = self.list("plan", last.map(|commit| format!("{:020}", commit.number))).await?;
        let mut epochs: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for name in &names {
            let (number, epoch) = self.plan_name(name)?;
            epochs.entry(number).or_default().insert(epoch);
        }
        let mut previous = last.map(|commit| commit.number);
        let mut floor = 0;
        let mut contested = false;
        if let Some(last) = last {
            let of_last = epochs.remove(&last.number).unwrap_or_default();
            floor = of_last.range(..=last.epoch).last().copied().unwrap_or(0);
            contested = of_last.last().is_some_and(|newest| *newest > last.epoch);
        }
        let mut pending = vec![];
        for (number, epochs) in epochs {
            if !follows(previous, number) {
                let missing = self.describe(&plan_key(previous.map_or(1, |n| n + 1), floor.max(1)));
                return Err(Error::external(format!("a plan such as {missing} is missing"))
                    .cause(format!("batch {number} is planned, the one before is neither planned nor committed"))
                    .hint("restore the checkpoint from a backup"));
            }
            let mut chosen = None;
            for epoch in epochs.range(floor..).rev() {
                let found: frame::Decoded<Plan> = self.expect(&plan_key(number, *epoch)).await?;
                let after_last = if contested { last.filter(|last| last.number + 1 == number) } else { None };
                if after_last.is_none_or(|last| continues(last, &found.record)) {
                    chosen = Some(found.record);
                    break;
                }
            }
            let Some(plan) = chosen else {
                tracing::info!(batch = number, "plans are void: the batch before was planned anew");
                break;
            };
            (previous, floor) = (Some(number), plan.epoch);
            pending.push(plan);
        }
        Ok(pending)
    }

    pub(super) fn plan_name(&self, name: &str) -> Result<(u64, u64)> {
        let foreign = || self.foreign(&format!("plan/{name}"));
        let (number, epoch) = name.split_once('-').ok_or_else(foreign)?;
        Ok((self.number("plan", number)?, self.number("plan", epoch)?))
    }
}

/// Whether the plan begins where the commit ended, in every partition that both know.
fn continues(last: &Commit, plan: &Plan) -> bool {
    plan.sources.iter().all(|(table, source)| {
        let ended = last.sources.get(table).map(|commit| &commit.ranges);
        source.ranges.iter().all(|(partition, range)| {
            ended.and_then(|ended| ended.get(partition)).is_none_or(|ended| ended.to == range.from)
        })
    })
}
