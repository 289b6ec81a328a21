//! The memory of one pipeline: plans, commits, window state and blobs, on object storage.
//!
//! ```text
//! <base>/<name>/pipeline                 who this is: uuid, name, when it was made
//! <base>/<name>/lock                     flock; says which process holds it (local storage only)
//! <base>/<name>/epoch/<E>                one per start, put-if-absent
//! <base>/<name>/plan/<N>-<E>             put-if-absent, before anything of batch N is written
//! <base>/<name>/commit/<N>               put-if-absent, after everything is: the commit and the state delta
//! <base>/<name>/state/<N>                snapshot of the state after batch N
//! <base>/<name>/refused/<N>-<planned at>-<sink>  rows that a sink refused, before it reports done
//! <base>/<name>/outbox/…                 rows of committed batches that wait for a sink (see [`outbox`])
//! <base>/<name>/outbox-refused/…         what such a sink has refused of them
//! <base>/<name>/status                   what the process that runs tells of itself (see [`status`])
//! <base>/<name>/program/<hash>           SQL text, by content
//! <base>/<name>/dimension/<hash>         rows of a dimension table, by content
//! <base>/<name>/kept/…                   what connectors would else ask again: schemas
//! ```
//!
//! Numbers have 20 digits, so that names sort as numbers do. A plan is one file and not a folder per batch: one fsync
//! less per batch, and no empty folders left behind. Every file is a [`frame`]; every write is durable when it returns
//! ([`durable`]).
//!
//! Invariants: a batch costs the same however old the pipeline is (no listing, no reading back: one `head` for the
//! fence, one put for the plan, the same for the commit). `commit/N` exists only if `commit/N-1` does. Of two
//! processes on one checkpoint the one with the higher epoch wins: on local storage the lock keeps the second out, on
//! object storage the first finds `epoch/<E+1>` and stops with "fenced by epoch E". There "put-if-absent" is the server's
//! (`If-None-Match: *`), and one that does not honour it is refused when the epoch is taken.
//!
//! Failure: storage trouble is external and retryable, since every call may be repeated; a record that is torn, foreign
//! or of another pipeline is an error that names it.

pub mod durable;
pub mod frame;
pub mod held;
mod lock;
mod log;
pub mod outbox;
pub mod record;
mod recovery;
mod retain;
pub mod s3;
pub mod status;
pub mod trouble;
mod trust;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::connector::{Identity, Kept};
use crate::point::point;
use crate::{Error, Result};

pub use durable::Location;
pub use log::{BatchPlan, Blob};
pub use outbox::Waiting;
pub use record::{Commit, Plan};
pub use recovery::Recovery;
pub use retain::{COMMITS_KEPT, SNAPSHOTS_KEPT};

/// Names are folder names, consumer groups and transactional ids.
const NAME_LENGTH: usize = 100;

/// Starts that race for the next epoch; each loser tries the one after.
const EPOCH_ATTEMPTS: usize = 16;

/// A payload beyond this is hashed on a blocking thread.
const LARGE_PAYLOAD: usize = 1 << 20;

/// One pipeline's checkpoint, opened. Cheap to clone; the lock is released with the last clone.
#[derive(Debug, Clone)]
pub struct Checkpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    location: Location,
    root: Path,
    identity: Identity,
    writable: bool,
    progress: Mutex<Progress>,
    /// A blob is not put while unused ones are removed: it may be one of them.
    blobs: tokio::sync::Mutex<()>,
    /// Held, never read.
    _lock: Option<File>,
}

/// What this process knows without asking the storage.
#[derive(Debug, Default)]
struct Progress {
    /// The newest commit, once recovery or a commit has told.
    last: Option<Option<u64>>,
    /// The first plan that this process wrote or adopted.
    first_planned: Option<u64>,
    /// Blob key → the newest plan that needs it, of those in this process.
    used: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PipelineRecord {
    uuid: Uuid,
    name: String,
    created: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct EpochRecord {
    epoch: u64,
    started: String,
    process: String,
}

impl Checkpoint {
    /// Opens it to run the pipeline: takes the lock and the next epoch; makes it if there is none.
    ///
    /// # Errors
    /// Another process holds it; it is another pipeline's; it is damaged; the storage does not answer.
    pub async fn open(url: &str, name: &str) -> Result<Self> {
        let (location, root) = locate(url, name)?;
        let mut lock = None;
        if let Some(local) = &location.local {
            let folder = local.join(name);
            lock = Some(lock::take(&folder)?);
            let removed = durable::Durable::sweep(&folder, 2)
                .map_err(|e| Error::external(format!("could not read {}", folder.display())).cause(e))?;
            if removed > 0 {
                let folder = folder.display();
                tracing::info!(removed, %folder, "removed files that a killed process left half-written");
            }
        }
        let mut inner = Inner::new(location, root, name, true, lock);
        inner.identity.uuid = match inner.pipeline().await? {
            Some(pipeline) => pipeline.uuid,
            None => inner.create().await?.uuid,
        };
        inner.identity.epoch = inner.next_epoch().await?;
        point!("checkpoint::after_epoch");
        Ok(Self(Arc::new(inner)))
    }

    /// Opens it to look: no lock, no epoch, no write. `None` if there is no such pipeline here.
    ///
    /// # Errors
    /// It is another pipeline's; it is damaged; the storage does not answer.
    pub async fn read_only(url: &str, name: &str) -> Result<Option<Self>> {
        let (location, root) = locate(url, name)?;
        let mut inner = Inner::new(location, root, name, false, None);
        let Some(pipeline) = inner.pipeline().await? else { return Ok(None) };
        inner.identity.uuid = pipeline.uuid;
        inner.identity.epoch = inner.newest_epoch().await?;
        Ok(Some(Self(Arc::new(inner))))
    }

    /// Name, UUID and this start's epoch; read-only: the newest start's.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Where connectors keep what they would else ask again.
    pub fn kept(&self) -> Kept {
        Kept::new(Arc::clone(&self.0.location.store), self.0.root.clone().join("kept"))
    }

    /// For messages: where it is.
    pub fn describe(&self) -> String {
        self.0.location.describe(&self.0.root)
    }

    /// # Errors
    /// A higher epoch has taken over; the storage does not answer.
    pub async fn ensure_newest(&self) -> Result<()> {
        let inner = &self.0;
        if !inner.writable {
            return Err(Error::internal("a checkpoint that was opened to look cannot be written"));
        }
        // A newer start takes the epoch after the newest, so ours is the newest as long as the next one is free.
        let next = format!("epoch/{:020}", inner.identity.epoch + 1);
        match inner.location.store.head(&inner.path(&next)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(inner.failed("read", &next, e)),
            Ok(_) => Err(inner.fenced(inner.newest_epoch().await?)),
        }
    }
}

fn locate(url: &str, name: &str) -> Result<(Location, Path)> {
    let usable = name.len() <= NAME_LENGTH
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !usable {
        return Err(Error::user(format!("poundlock.name is {name:?}"))
            .cause("it names folders, consumer groups and transactions")
            .hint(format!(
                "letters, digits, '-', '_' and '.', beginning with a letter or digit, at most {NAME_LENGTH}"
            )));
    }
    let said = "the checkpoint: --checkpoint, CHECKPOINT_BASE or SET poundlock.checkpoint";
    let location = Location::parse(url).map_err(|error| error.at(said))?;
    let root = location.path.clone().join(name);
    Ok((location, root))
}

impl Inner {
    /// UUID and epoch are still to be found.
    fn new(location: Location, root: Path, name: &str, writable: bool, lock: Option<File>) -> Self {
        let identity = Identity { name: name.to_string(), uuid: Uuid::nil(), epoch: 0, takes_over: false };
        let (progress, blobs) = Default::default();
        Self { location, root, identity, writable, progress, blobs, _lock: lock }
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn describe(&self, key: &str) -> String {
        self.location.describe(&self.path(key))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, verb: &str, key: &str, e: object_store::Error) -> Error {
        trouble::explained(Error::external(format!("could not {verb} checkpoint file {}", self.describe(key))), &e)
    }

    fn fenced(&self, by: u64) -> Error {
        Error::external(format!("fenced by epoch {by}"))
            .at(format!("pipeline {:?}, this is epoch {}", self.identity.name, self.identity.epoch))
            .cause("another process has taken over this pipeline")
            .hint("nothing is lost; stop one of the two if both were meant to run")
    }

    async fn pipeline(&self) -> Result<Option<PipelineRecord>> {
        let Some(bytes) = self.get("pipeline").await? else {
            for folder in ["commit", "plan"] {
                if let Some(name) = self.list(folder, None).await?.first() {
                    return Err(Error::external(format!(
                        "checkpoint {} has no file \"pipeline\"",
                        self.location.describe(&self.root)
                    ))
                    .cause(format!("it holds {folder}/{name}, so it was a pipeline's"))
                    .hint("restore the file from a backup: the UUID in it is in every file and marker of the sinks"));
                }
            }
            return Ok(None);
        };
        let file = self.describe("pipeline");
        let found: frame::Decoded<PipelineRecord> = frame::decode(&file, "pipeline", None, &bytes)?;
        if found.record.name != self.identity.name || found.record.uuid != found.pipeline {
            return Err(Error::user(format!(
                "checkpoint {} is of another pipeline",
                self.location.describe(&self.root)
            ))
            .cause(format!("its name is {:?}, this pipeline is {:?}", found.record.name, self.identity.name))
            .hint("a checkpoint cannot be renamed or copied to a second name; use the name it was made with"));
        }
        Ok(Some(found.record))
    }

    async fn create(&self) -> Result<PipelineRecord> {
        let record = PipelineRecord { uuid: Uuid::new_v4(), name: self.identity.name.clone(), created: now() };
        let bytes = frame::encode("pipeline", record.uuid, &record, &[])?;
        if self.put_new("pipeline", bytes).await? {
            return Ok(record);
        }
        let missing = || Error::external(format!("checkpoint file {} vanished", self.describe("pipeline")));
        self.pipeline().await?.ok_or_else(missing)
    }

    async fn newest_epoch(&self) -> Result<u64> {
        let names = self.list("epoch", None).await?;
        names.iter().try_fold(0, |newest, name| Ok(newest.max(self.number("epoch", name)?)))
    }

    async fn next_epoch(&self) -> Result<u64> {
        for _ in 0..EPOCH_ATTEMPTS {
            let epoch = self.newest_epoch().await? + 1;
            let key = format!("epoch/{epoch:020}");
            let record = EpochRecord { epoch, started: now(), process: lock::this_process() };
            let bytes = frame::encode(&key, self.identity.uuid, &record, &[])?;
            if self.put_new(&key, bytes.clone()).await? {
                self.honours_conditions(&key, bytes).await?;
                return Ok(epoch);
            }
        }
        Err(Error::external(format!("could not take an epoch of pipeline {:?}", self.identity.name))
            .cause(format!("{EPOCH_ATTEMPTS} times another process was faster"))
            .hint("is the pipeline started over and over, in several places?"))
    }

    /// A server that overwrites what it is asked to put if absent would let two processes write one pipeline.
    async fn honours_conditions(&self, key: &str, bytes: Bytes) -> Result<()> {
        if self.location.local.is_some() || !self.put_new(key, bytes).await? {
            return Ok(());
        }
        Err(Error::external(format!(
            "the storage of checkpoint {} is not fit for it",
            self.location.describe(&self.root)
        ))
        .cause("it has overwritten a file that was to be put only if absent (If-None-Match: *)")
        .hint(
            "take a server that honours conditional writes, as Amazon S3 and MinIO do, or a newer version of this one",
        ))
    }

    /// Names in a folder that sort after `after`, sorted.
    async fn list(&self, folder: &str, after: Option<String>) -> Result<Vec<String>> {
        let prefix = self.path(folder);
        let store = &self.location.store;
        let listing = match after {
            Some(after) => store.list_with_offset(Some(&prefix), &prefix.clone().join(after)),
            None => store.list(Some(&prefix)),
        };
        let mut names = vec![];
        let mut listing = listing.map_err(|e| self.failed("list", folder, e));
        while let Some(object) = listing.try_next().await? {
            names.push(object.location.filename().unwrap_or_default().to_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// # Errors
    /// The name is none of ours.
    fn number(&self, folder: &str, name: &str) -> Result<u64> {
        match name.parse() {
            Ok(number) if name.len() == 20 => Ok(number),
            _ => Err(self.foreign(&format!("{folder}/{name}"))),
        }
    }

    fn foreign(&self, key: &str) -> Error {
        Error::user(format!("checkpoint file {} is none of poundlock's", self.describe(key)))
            .cause("its name is not one that poundlock gives")
            .hint("remove it if you put it there")
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self.location.store.get(&self.path(key)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(|e| self.failed("read", key, e))?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("read", key, e)),
        }
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<frame::Decoded<T>>> {
        let Some(bytes) = self.get(key).await? else { return Ok(None) };
        frame::decode(&self.describe(key), key, Some(self.identity.uuid), &bytes).map(Some)
    }

    /// As [`Inner::read`], of a record that has to be there.
    async fn expect<T: DeserializeOwned>(&self, key: &str) -> Result<frame::Decoded<T>> {
        let missing = || {
            Error::external(format!("checkpoint file {} is missing", self.describe(key)))
                .hint("restore the checkpoint from a backup")
        };
        self.read(key).await?.ok_or_else(missing)
    }

    async fn encode<T: Serialize>(&self, key: &str, record: &T, payload: Bytes) -> Result<Bytes> {
        let uuid = self.identity.uuid;
        if payload.len() < LARGE_PAYLOAD {
            return frame::encode(key, uuid, record, &payload);
        }
        let record = serde_json::to_value(record)
            .map_err(|e| Error::internal(format!("checkpoint record {key} has no JSON form")).cause(e))?;
        let owned = key.to_string();
        tokio::task::spawn_blocking(move || frame::encode(&owned, uuid, &record, &payload))
            .await
            .map_err(|e| Error::internal(format!("writing checkpoint record {key} was stopped")).cause(e))?
    }

    /// False if there is one already. It may be our own, whose answer was lost: who asks compares.
    async fn put_new(&self, key: &str, bytes: Bytes) -> Result<bool> {
        let path = self.path(key);
        match self.location.store.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            // Of two at the same time a server may refuse both.
            Err(e @ object_store::Error::AlreadyExists { .. }) => match self.location.store.head(&path).await {
                Ok(_) => Ok(false),
                Err(object_store::Error::NotFound { .. }) => Err(self.failed("write", key, e)),
                Err(e) => Err(self.failed("read", key, e)),
            },
            Err(e) => Err(self.failed("write", key, e)),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        match self.location.store.put(&self.path(key), bytes.into()).await {
            Ok(_) => Ok(()),
            Err(e) => Err(self.failed("write", key, e)),
        }
    }

    /// Those that are gone already are fine. S3 takes a thousand of them in one request.
    async fn delete(&self, keys: &[String]) -> Result<()> {
        let paths: Vec<_> = keys.iter().map(|key| Ok(self.path(key))).collect();
        let mut deleted = self.location.store.delete_stream(futures::stream::iter(paths).boxed());
        while let Some(done) = deleted.next().await {
            match done {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.failed("delete", keys.first().map_or("", String::as_str), e)),
            }
            point!("checkpoint::within_retain");
        }
        Ok(())
    }
}

/// For people who look into a record; nothing depends on it.
fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests;
