//! Plans, commits, snapshots, refusals and blobs: what the loop writes, in its order.

use bytes::Bytes;
use object_store::ObjectStoreExt;

use super::record::{Commit, Plan};
use super::{Checkpoint, Inner, frame};
use crate::connector::Refusal;
use crate::point::point;
use crate::{Error, Result};

/// Things kept once, by the hash of their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blob {
    /// SQL text, secrets as references.
    Program,
    /// Rows of a dimension table (Arrow IPC).
    Dimension,
}

impl Blob {
    fn key(self, hash: &str) -> String {
        match self {
            Blob::Program => format!("program/{hash}"),
            Blob::Dimension => format!("dimension/{hash}"),
        }
    }
}

impl Checkpoint {
    /// Durable when it returns; from then on a restart replays exactly this.
    ///
    /// # Errors
    /// Fenced by a higher epoch; this epoch has planned the batch otherwise; the storage does not answer (then the
    /// same plan may be given again).
    pub async fn plan(&self, plan: &Plan) -> Result<()> {
        point!("checkpoint::before_plan");
        let inner = &self.0;
        inner.own_epoch(plan.epoch)?;
        self.ensure_newest().await?;
        // Before the put: what a plan may need must not be swept between.
        inner.note_plan(plan);
        let key = plan_key(plan.number, plan.epoch);
        let bytes = inner.encode(&key, plan, Bytes::new()).await?;
        if !inner.put_new(&key, bytes).await? {
            let found: frame::Decoded<Plan> = inner.expect(&key).await?;
            if found.record != *plan {
                return Err(Error::internal(format!(
                    "batch {} was planned twice by epoch {}, differently",
                    plan.number, plan.epoch
                )));
            }
        }
        point!("checkpoint::after_plan");
        Ok(())
    }

    /// Durable when it returns; from then on the batch exists. `delta` is what the batch did to the state.
    ///
    /// A commit of a lower epoch with the same result is adopted: a process that was slow to notice that it is fenced
    /// has finished the very batch that this one replays.
    ///
    /// # Errors
    /// Fenced by a higher epoch; the batch before is not committed; there is a commit with another result; the
    /// storage does not answer (then the same commit may be given again).
    pub async fn commit(&self, commit: &Commit, delta: Bytes) -> Result<()> {
        point!("checkpoint::before_commit");
        let inner = &self.0;
        inner.own_epoch(commit.epoch)?;
        self.ensure_newest().await?;
        let last = inner.progress().last;
        if let Some(last) = last
            && last != Some(commit.number)
            && !follows(last, commit.number)
        {
            let last = last.map_or("none".to_string(), |n| n.to_string());
            return Err(Error::internal(format!(
                "batch {} cannot be committed: the last committed batch is {last}",
                commit.number
            )));
        }
        let key = commit_key(commit.number);
        let bytes = inner.encode(&key, commit, delta.clone()).await?;
        if !inner.put_new(&key, bytes).await? {
            let found: frame::Decoded<Commit> = inner.expect(&key).await?;
            if found.record.epoch > inner.identity.epoch {
                return Err(inner.fenced(found.record.epoch));
            }
            if !same_result(&found.record, commit) || found.payload != delta {
                return Err(Error::external(format!(
                    "batch {} is committed already, with another result",
                    commit.number
                ))
                .cause(format!("epoch {} committed it, this is epoch {}", found.record.epoch, inner.identity.epoch))
                .hint("start again: the commit that is there counts"));
            }
        }
        inner.progress().last = Some(Some(commit.number));
        point!("checkpoint::after_commit");
        Ok(())
    }

    /// Keeps the state after batch `number`, which must be committed; recovery needs only the deltas after it, and
    /// [`Checkpoint::retain`] only removes what is older than a snapshot. So take one now and then even of an empty
    /// state. One that is there is replaced: `--reset-state` stores one over it that lacks what it forgets.
    ///
    /// # Errors
    /// Fenced; the batch is not committed; the storage does not answer.
    pub async fn snapshot(&self, number: u64, state: Bytes) -> Result<()> {
        point!("checkpoint::before_snapshot");
        let inner = &self.0;
        self.ensure_newest().await?;
        if self.last_committed().await?.is_none_or(|last| number > last) {
            return Err(Error::internal(format!("the state after batch {number} cannot be kept: it is not committed")));
        }
        let key = state_key(number);
        let bytes = inner.encode(&key, &number, state).await?;
        inner.put(&key, bytes).await?;
        point!("checkpoint::after_snapshot");
        Ok(())
    }

    /// The newest committed batch. Asks the storage only if this process does not know yet.
    ///
    /// # Errors
    /// The storage does not answer; a foreign file is among the commits.
    pub async fn last_committed(&self) -> Result<Option<u64>> {
        let inner = &self.0;
        let known = inner.progress().last;
        match known {
            Some(last) if inner.writable => Ok(last),
            _ => inner.list("commit", None).await?.last().map(|name| inner.number("commit", name)).transpose(),
        }
    }

    /// Numbers of the commits that are kept, in order.
    ///
    /// # Errors
    /// As [`Checkpoint::last_committed`].
    pub async fn commits(&self) -> Result<Vec<u64>> {
        self.0.list("commit", None).await?.iter().map(|name| self.0.number("commit", name)).collect()
    }

    /// The commit and its state delta; `None` if the batch is not committed, or its commit not kept any more.
    ///
    /// # Errors
    /// It is damaged or foreign; the storage does not answer.
    pub async fn read_commit(&self, number: u64) -> Result<Option<(Commit, Bytes)>> {
        Ok(self.0.read(&commit_key(number)).await?.map(|found| (found.record, found.payload)))
    }

    /// Stores what a sink refused of a batch and returns what stands: of several attempts the first counts, so that
    /// the dead letters of a replay are the same.
    ///
    /// # Errors
    /// The storage does not answer.
    pub async fn put_refused(&self, of: BatchPlan, sink: &str, refusals: &[Refusal]) -> Result<Vec<Refusal>> {
        point!("checkpoint::before_refused");
        self.ensure_newest().await?;
        let key = refused_key(of, sink)?;
        let bytes = self.0.encode(&key, &refusals, Bytes::new()).await?;
        let refused = match self.0.put_new(&key, bytes).await? {
            true => refusals.to_vec(),
            false => self.0.expect(&key).await?.record,
        };
        point!("checkpoint::after_refused");
        Ok(refused)
    }

    /// `None` if the sink has not stored any for this batch.
    ///
    /// # Errors
    /// As [`Checkpoint::read_commit`].
    pub async fn get_refused(&self, of: BatchPlan, sink: &str) -> Result<Option<Vec<Refusal>>> {
        Ok(self.0.read(&refused_key(of, sink)?).await?.map(|found| found.record))
    }

    /// Returns its hash (blake3, hex), to be named in plans. Give it again whenever a plan is to name it that the plan
    /// before did not: one that no kept plan names is removed.
    ///
    /// # Errors
    /// The storage does not answer.
    pub async fn put_blob(&self, kind: Blob, bytes: Bytes) -> Result<String> {
        let inner = &self.0;
        let _not_swept_meanwhile = inner.blobs.lock().await;
        let hash = Self::hash_of(&bytes);
        let key = kind.key(&hash);
        inner.note_blob(&key, None);
        if inner.location.store.head(&inner.path(&key)).await.is_err() {
            self.ensure_newest().await?;
            inner.put_new(&key, inner.encode(&key, &(), bytes).await?).await?;
        }
        Ok(hash)
    }

    /// The name that [`Checkpoint::put_blob`] gives these bytes.
    pub fn hash_of(bytes: &[u8]) -> String {
        blake3::hash(bytes).to_hex().to_string()
    }

    /// # Errors
    /// It is missing, damaged, or not what its name says.
    pub async fn get_blob(&self, kind: Blob, hash: &str) -> Result<Bytes> {
        let key = kind.key(hash);
        let found: frame::Decoded<()> = self.0.expect(&key).await?;
        if blake3::hash(&found.payload).to_hex().as_str() != hash {
            return Err(Error::external(format!(
                "checkpoint file {} is not what its name says",
                self.0.describe(&key)
            )));
        }
        Ok(found.payload)
    }
}

impl Inner {
    fn own_epoch(&self, epoch: u64) -> Result<()> {
        if epoch == self.identity.epoch {
            return Ok(());
        }
        Err(Error::internal(format!("a record of epoch {epoch} cannot be written in epoch {}", self.identity.epoch)))
    }

    /// Remembers which blobs a plan needs.
    pub(super) fn note_plan(&self, plan: &Plan) {
        for hash in plan.dimensions.values() {
            self.note_blob(&Blob::Dimension.key(hash), Some(plan.number));
        }
        self.note_blob(&Blob::Program.key(&plan.program), Some(plan.number));
        let mut progress = self.progress();
        progress.first_planned = Some(progress.first_planned.map_or(plan.number, |first| first.min(plan.number)));
    }

    /// `None`: for a plan to come.
    fn note_blob(&self, key: &str, plan: Option<u64>) {
        let mut progress = self.progress();
        let number = plan.unwrap_or_else(|| progress.last.flatten().map_or(0, |last| last + 1));
        let used = progress.used.entry(key.to_string()).or_insert(number);
        *used = number.max(*used);
    }
}

/// Two commits of one batch by different starts are the same if they say the same of the rows; what the sinks did
/// ("already there") may differ.
fn same_result(a: &Commit, b: &Commit) -> bool {
    let rows = |c: &Commit| -> Vec<_> {
        c.inserts.iter().map(|(n, i)| (*n, i.table.clone(), i.produced, i.hash.clone())).collect()
    };
    a.number == b.number
        && a.planned_at == b.planned_at
        && a.program == b.program
        && a.sources == b.sources
        && a.views == b.views
        && a.files == b.files
        && rows(a) == rows(b)
}

/// Batches are numbered without a gap, from 0 or 1.
pub(super) fn follows(last: Option<u64>, number: u64) -> bool {
    last.map_or(number <= 1, |last| number == last + 1)
}

pub(super) fn plan_key(number: u64, epoch: u64) -> String {
    format!("plan/{number:020}-{epoch:020}")
}

pub(super) fn commit_key(number: u64) -> String {
    format!("commit/{number:020}")
}

pub(super) fn state_key(number: u64) -> String {
    format!("state/{number:020}")
}

/// A batch as it was planned at one time: planned anew, it has other rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    pub batch: u64,
    /// µs since 1970, UTC.
    pub planned_at: i64,
}

fn refused_key(of: BatchPlan, sink: &str) -> Result<String> {
    if !is_file_name(sink) {
        return Err(Error::internal(format!("sink {sink:?} has a name that is not a file name")));
    }
    Ok(format!("refused/{:020}-{}-{sink}", of.batch, of.planned_at))
}

/// Of a sink: that of a file, too.
pub(super) fn is_file_name(sink: &str) -> bool {
    !sink.is_empty() && sink.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
