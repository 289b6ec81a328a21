//! Removes what no start and no question needs any more, a little at a time.
//!
//! Kept are the newest two snapshots and all plans and commits from the older one on (so that a damaged snapshot can
//! be done without), at least the last 1,000 commits (for `verify`), and every blob that a kept plan names.
//!
//! Blobs are removed only once this process has written or adopted every plan that is kept: then it knows all that is
//! needed without reading one. A process that restarts often leaves them a while longer.

use super::log::{commit_key, state_key};
use super::{Checkpoint, Inner};
use crate::Result;
use crate::point::point;

/// The newest may be damaged: the one before it and the commits since give the same state.
pub const SNAPSHOTS_KEPT: usize = 2;

/// What `verify` can re-check: about a quarter of an hour at one batch a second, 3 MB.
pub const COMMITS_KEPT: u64 = 1_000;

/// A call does not hold up a batch for long: about a tenth of a second on a local disk.
const DELETIONS_PER_CALL: usize = 1_000;

/// Starts after which an epoch's record may go: a process that slept through so many fails at its commit instead.
const EPOCHS_KEPT: u64 = 1_000;

impl Checkpoint {
    /// Removes up to 1,000 records that are not needed any more; returns how many. Call it after a snapshot, beside
    /// the loop or in it; what is left over goes the next time.
    ///
    /// # Errors
    /// Fenced; the storage does not answer. What is removed stays removed; the call may be repeated.
    pub async fn retain(&self) -> Result<usize> {
        point!("checkpoint::before_retain");
        let inner = &self.0;
        self.ensure_newest().await?;
        let mut snapshots = vec![];
        for name in inner.list("state", None).await? {
            snapshots.push(inner.number("state", &name)?);
        }
        if snapshots.len() < SNAPSHOTS_KEPT {
            return Ok(0);
        }
        let oldest_kept = snapshots[snapshots.len() - SNAPSHOTS_KEPT];
        let last = self.last_committed().await?.unwrap_or(0);
        let horizon = oldest_kept.min((last + 1).saturating_sub(COMMITS_KEPT));

        let mut keys: Vec<String> = snapshots.iter().filter(|n| **n < oldest_kept).map(|n| state_key(*n)).collect();
        for name in inner.list("plan", None).await? {
            if inner.plan_name(&name)?.0 < horizon {
                keys.push(format!("plan/{name}"));
            }
        }
        for name in inner.list("refused", None).await? {
            if inner.number("refused", name.get(..20).unwrap_or(&name))? < horizon {
                keys.push(format!("refused/{name}"));
            }
        }
        for name in inner.list("commit", None).await? {
            let number = inner.number("commit", &name)?;
            if number < horizon {
                keys.push(commit_key(number));
            }
        }
        for name in inner.list("epoch", None).await? {
            if inner.number("epoch", &name)? + EPOCHS_KEPT < inner.identity.epoch {
                keys.push(format!("epoch/{name}"));
            }
        }
        keys.truncate(DELETIONS_PER_CALL);
        inner.delete(&keys).await?;
        let blobs = inner.remove_blobs(horizon, DELETIONS_PER_CALL - keys.len()).await?;
        Ok(keys.len() + blobs)
    }
}

impl Inner {
    /// Blobs that no plan from `horizon` on names, at most `limit`.
    async fn remove_blobs(&self, horizon: u64, limit: usize) -> Result<usize> {
        let knows_all = self.progress().first_planned.is_some_and(|first| first <= horizon);
        if !knows_all {
            return Ok(0);
        }
        let _none_is_put_meanwhile = self.blobs.lock().await;
        let mut unused = vec![];
        for folder in ["program", "dimension"] {
            for name in self.list(folder, None).await? {
                let key = format!("{folder}/{name}");
                if self.progress().used.get(&key).is_none_or(|newest| *newest < horizon) {
                    unused.push(key);
                }
            }
        }
        unused.truncate(limit);
        self.delete(&unused).await?;
        self.progress().used.retain(|key, _| !unused.contains(key));
        Ok(unused.len())
    }
}
