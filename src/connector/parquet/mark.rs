//! The mark of a pipeline beside a table on object storage: which batch has begun there last, and which start of the pipeline
//! may begin the next.
//!
//! ```text
//! <LOCATION>/_poundlock/<UUID of the pipeline>      { epoch, batch }
//!
//! take(E)     a higher epoch: fenced. Else epoch = E
//! begin(N)    batch = N, before the first file of N is put
//! ```
//!
//! On local disk the lock of the checkpoint keeps a second process out. Elsewhere a process that slept may wake when its
//! batch was planned anew by a newer start: its files would replace those that count, or stand beside them. So each change asks
//! for the mark to be as it was read (`If-Match`): the older start fails and begins nothing, and what the newer one has
//! found in the mark stays true. What an older one still has on its way is of a batch that the newer one finds begun, so
//! that one is written again as it was planned: the same bytes under the same names.

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::Table;
use crate::checkpoint::trouble::explained;
use crate::connector::Identity;
use crate::{Error, Result};

/// Times that the mark is read anew because another has changed it: by then two starts quarrel.
const RACES_MAX: u32 = 10;

/// Of no object.
const WRONG_TAG: &str = "\"00000000000000000000000000000000\"";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    epoch: u64,
    /// The last one that has begun.
    batch: Option<u64>,
}

/// As it was last read or written by this start.
#[derive(Debug)]
pub(super) struct Mark {
    path: Path,
    content: Content,
    version: UpdateVersion,
}

impl Mark {
    /// Makes this start the one that may write.
    ///
    /// # Errors
    /// A newer start is there; the server does not honour `If-Match`, or does not answer.
    pub async fn take(table: &Table, identity: &Identity) -> Result<Self> {
        let path = table.location.path.clone().join("_poundlock").join(identity.uuid.to_string());
        for _ in 0..RACES_MAX {
            let found = read(table, &path).await?;
            let mut next = Content { epoch: identity.epoch, batch: None };
            let mut mode = PutMode::Create;
            if let Some(found) = found {
                if found.content.epoch > identity.epoch {
                    return Err(fenced(table, identity, found.content.epoch));
                }
                next.batch = found.content.batch;
                mode = PutMode::Update(found.version);
            }
            if let Some(mark) = write(table, &path, &next, mode).await? {
                let wrong = UpdateVersion { e_tag: Some(WRONG_TAG.into()), version: None };
                return match write(table, &path, &next, PutMode::Update(wrong)).await? {
                    None => Ok(mark),
                    Some(_) => Err(unfit(table)),
                };
            }
        }
        Err(quarrel(table))
    }

    /// The last batch that has begun.
    pub fn batch(&self) -> Option<u64> {
        self.content.batch
    }

    /// Notes that a batch begins, if it is not noted yet.
    ///
    /// # Errors
    /// A newer start is there; the server does not answer (then it may be asked again).
    pub async fn begin(&mut self, table: &Table, identity: &Identity, batch: u64) -> Result<()> {
        for _ in 0..RACES_MAX {
            if self.content.batch >= Some(batch) {
                return Ok(());
            }
            let next = Content { batch: Some(batch), ..self.content.clone() };
            if let Some(mark) = write(table, &self.path, &next, PutMode::Update(self.version.clone())).await? {
                *self = mark;
                return Ok(());
            }
            // Our own write may have come through after all, though its answer was lost.
            let Some(found) = read(table, &self.path).await? else {
                let error =
                    format!("the mark of pipeline {:?} beside table {} is gone", identity.name, table.definition.name);
                let hint = "start again: it is made anew. Was the folder moved while the pipeline ran?";
                return Err(Error::external(error).at(table.location.describe(&self.path)).hint(hint));
            };
            if found.content.epoch > identity.epoch {
                return Err(fenced(table, identity, found.content.epoch));
            }
            *self = found;
        }
        Err(quarrel(table))
    }
}

fn fenced(table: &Table, identity: &Identity, by: u64) -> Error {
    let name = &table.definition.name;
    Error::external(format!("fenced by epoch {by}: a newer start of pipeline {:?} writes table {name}", identity.name))
        .at(format!("this is epoch {}", identity.epoch))
        .hint("another process runs this pipeline (poundlock.name); only one may")
}

fn quarrel(table: &Table) -> Error {
    Error::external(format!("the pipeline's mark beside table {} changes all the time", table.definition.name))
        .retryable()
        .hint("does another process run a pipeline of this name?")
}

fn unfit(table: &Table) -> Error {
    table
        .failed("open")
        .cause("the server has overwritten a file that was to be replaced only as it was read (If-Match)")
        .hint(
            "take a server that honours conditional writes, as Amazon S3 and MinIO do, or a newer version of this one",
        )
}

async fn read(table: &Table, path: &Path) -> Result<Option<Mark>> {
    let failed = |e: &StoreError| explained(table.failed("read the pipeline's mark beside"), e);
    let found = match table.location.store.get(path).await {
        Ok(found) => found,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(e) => return Err(failed(&e)),
    };
    let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
    let bytes = found.bytes().await.map_err(|e| failed(&e))?;
    let content = serde_json::from_slice(&bytes).map_err(|e| {
        let hint = "remove it if you put it there; else say so: nobody but poundlock writes it";
        table.failed("read the pipeline's mark beside").at(table.location.describe(path)).cause(e).hint(hint)
    })?;
    Ok(Some(Mark { path: path.clone(), content, version }))
}

/// `None`: it is not any more as it was found.
async fn write(table: &Table, path: &Path, content: &Content, mode: PutMode) -> Result<Option<Mark>> {
    let text = serde_json::to_vec(content).map_err(|e| Error::internal("a mark has no JSON form").cause(e))?;
    match table.location.store.put_opts(path, PutPayload::from(text), mode.into()).await {
        Ok(put) => Ok(Some(Mark { path: path.clone(), content: content.clone(), version: put.into() })),
        Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. }) => Ok(None),
        Err(e) => Err(explained(table.failed("write the pipeline's mark beside"), &e)),
    }
}
