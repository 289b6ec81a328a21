//! A folder of the checkpoint, where a connector keeps what it would else have to ask again: schemas, and what was decided
//! about records. What is put is durable when `put` returns.
//!
//! Calls block, and may be made from any thread but for long: files are small.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::background;
use crate::{Error, Result};

/// See the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Kept {
    store: Arc<dyn ObjectStore>,
    root: Path,
}

impl Kept {
    pub fn new(store: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self { store, root }
    }

    fn path(&self, key: &[&str]) -> Path {
        key.iter().fold(self.root.clone(), |path, part| path.join(*part))
    }

    /// `key`: folders and a name; `None` if there is no such file.
    ///
    /// # Errors
    /// The storage does not answer.
    pub fn get(&self, key: &[&str]) -> Result<Option<Bytes>> {
        let (store, path) = (Arc::clone(&self.store), self.path(key));
        background::wait(async move {
            match store.get(&path).await {
                Ok(found) => found.bytes().await.map(Some).map_err(|error| failed("read", &path, error)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed("read", &path, error)),
            }
        })
    }

    /// Writes the file anew, whole.
    ///
    /// # Errors
    /// The storage does not take it.
    pub fn put(&self, key: &[&str], bytes: Vec<u8>) -> Result<()> {
        let (store, path) = (Arc::clone(&self.store), self.path(key));
        background::wait(async move {
            let put = store.put(&path, PutPayload::from(bytes)).await;
            put.map(drop).map_err(|error| failed("write", &path, error))
        })
    }
}

fn failed(verb: &str, path: &Path, error: object_store::Error) -> Error {
    Error::external(format!("could not {verb} checkpoint file /{path}")).cause(error).retryable()
}
