//! A folder of the checkpoint, where a connector keeps what it would else have to ask again: schemas, and what was decided
//! about records. What is put is durable when `put` returns. A file ends with the blake3 of what comes before.
//!
//! Calls block, and may be made from any thread but for long: files are small.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::background;
use crate::checkpoint::trouble::explained;
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
    /// The storage does not answer (retryable); the file is not as it was put.
    pub fn get(&self, key: &[&str]) -> Result<Option<Bytes>> {
        let (store, path) = (Arc::clone(&self.store), self.path(key));
        background::wait(async move {
            match store.get(&path).await {
                Ok(found) => {
                    let bytes = found.bytes().await.map_err(|error| failed("read", &path, error))?;
                    checked(&bytes).map(Some).ok_or_else(|| damaged(&path))
                }
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed("read", &path, error)),
            }
        })
    }

    /// Writes the file anew, whole.
    ///
    /// # Errors
    /// The storage does not take it.
    pub fn put(&self, key: &[&str], mut bytes: Vec<u8>) -> Result<()> {
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        let (store, path) = (Arc::clone(&self.store), self.path(key));
        background::wait(async move {
            let put = store.put(&path, PutPayload::from(bytes)).await;
            put.map(drop).map_err(|error| failed("write", &path, error))
        })
    }
}

/// What was put, if it is whole.
fn checked(bytes: &Bytes) -> Option<Bytes> {
    let length = bytes.len().checked_sub(blake3::OUT_LEN)?;
    (blake3::hash(&bytes[..length]).as_bytes() == &bytes[length..]).then(|| bytes.slice(..length))
}

fn damaged(path: &Path) -> Error {
    Error::external(format!("checkpoint file /{path} is damaged"))
        .cause("its checksum is not that of its content")
        .hint("restore the checkpoint from a backup")
}

fn failed(verb: &str, path: &Path, error: object_store::Error) -> Error {
    explained(Error::external(format!("could not {verb} checkpoint file /{path}")), &error)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn what_was_put_is_got_and_a_changed_byte_is_noticed() {
        let store = Arc::new(InMemory::new());
        let kept = Kept::new(Arc::clone(&store) as Arc<dyn ObjectStore>, Path::from("kept"));
        assert_eq!(kept.get(&["a", "b"]).unwrap(), None);
        kept.put(&["a", "b"], vec![1, 2, 3]).unwrap();
        assert_eq!(kept.get(&["a", "b"]).unwrap().as_deref(), Some(&[1, 2, 3][..]));
        for wrong in [vec![], vec![1, 2, 3], vec![0; 40]] {
            store.put(&Path::from("kept/a/b"), PutPayload::from(wrong)).await.unwrap();
            let error = kept.get(&["a", "b"]).unwrap_err();
            assert!(error.to_string().contains("kept/a/b") && !error.is_retryable(), "{error}");
        }
    }
}
