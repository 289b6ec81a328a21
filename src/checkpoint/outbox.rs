//! Rows that wait for a sink with an outbox, and what such sinks have refused.
//!
//! ```text
//! outbox/<folder>/<N>-<planned at>-<rows>-<shape>     rows of batch N for a sink, until they are in it
//! outbox-refused/<N>-<planned at>-<folder>            those of them that it refused, until a committed batch has their dead letters
//! ```
//!
//! The folder is the name that the sink had when the rows were handed over. What a listing tells (how many batches, rows and
//! bytes wait, and since when) need not be read. What is in a file is its writer's affair: here it is a record and bytes.

use bytes::Bytes;
use futures::TryStreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::log::{BatchPlan, is_file_name};
use super::{Checkpoint, frame};
use crate::point::point;
use crate::{Error, Result};

const ROWS: &str = "outbox";
const REFUSED: &str = "outbox-refused";

/// The rows of one batch for one sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The name of the sink when they were handed over.
    pub folder: String,
    pub of: BatchPlan,
    pub rows: u64,
    /// Of the tables of that sink: letters and digits.
    pub shape: String,
    /// Of the file.
    pub bytes: u64,
}

impl Waiting {
    fn key(&self) -> String {
        let BatchPlan { batch, planned_at } = self.of;
        format!("{ROWS}/{}/{batch:020}-{planned_at}-{}-{}", self.folder, self.rows, self.shape)
    }

    fn parse(folder: &str, name: &str, bytes: u64) -> Option<Self> {
        let mut parts = name.split('-');
        let batch = parts.next().filter(|batch| batch.len() == 20)?.parse().ok()?;
        let (planned_at, rows) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let shape = parts.next().filter(|_| parts.next().is_none())?.to_string();
        Some(Self { folder: folder.into(), of: BatchPlan { batch, planned_at }, rows, shape, bytes })
    }

    /// The name of the file with what was refused of it.
    pub fn refused_name(&self) -> String {
        format!("{:020}-{}-{}", self.of.batch, self.of.planned_at, self.folder)
    }
}

impl Checkpoint {
    /// Stores rows; durable when it returns. What is there of the same plan is the same, and is replaced. Returns the bytes of
    /// the file.
    ///
    /// # Errors
    /// Fenced; the storage does not answer.
    pub async fn put_outbox<T: Serialize>(&self, waiting: &Waiting, record: &T, payload: Bytes) -> Result<u64> {
        point!("outbox::before_put");
        if !is_file_name(&waiting.folder) {
            return Err(Error::internal(format!("sink {:?} has a name that is not a file name", waiting.folder)));
        }
        self.ensure_newest().await?;
        let key = waiting.key();
        let bytes = self.0.encode(&key, record, payload).await?;
        let size = bytes.len() as u64;
        self.0.put(&key, bytes).await?;
        point!("outbox::after_put");
        Ok(size)
    }

    /// All that wait, by folder and batch.
    ///
    /// # Errors
    /// A foreign file is among them; the storage does not answer.
    pub async fn outbox(&self) -> Result<Vec<Waiting>> {
        let inner = &self.0;
        let root = inner.path(ROWS);
        let mut listing = inner.location.store.list(Some(&root));
        let mut found = vec![];
        while let Some(object) = listing.try_next().await.map_err(|e| inner.failed("list", ROWS, e))? {
            let parts: Vec<_> = object.location.prefix_match(&root).into_iter().flatten().collect();
            let waiting = match &parts[..] {
                [folder, name] => Waiting::parse(folder.as_ref(), name.as_ref(), object.size),
                _ => None,
            };
            let name = || parts.iter().map(|part| part.as_ref().to_string()).collect::<Vec<_>>().join("/");
            found.push(waiting.ok_or_else(|| inner.foreign(&format!("{ROWS}/{}", name())))?);
        }
        found.sort_by(|a, b| (&a.folder, a.of.batch, a.of.planned_at).cmp(&(&b.folder, b.of.batch, b.of.planned_at)));
        Ok(found)
    }

    /// # Errors
    /// It is missing, damaged or foreign; the storage does not answer.
    pub async fn read_outbox<T: DeserializeOwned>(&self, waiting: &Waiting) -> Result<(T, Bytes)> {
        let found: frame::Decoded<T> = self.0.expect(&waiting.key()).await?;
        Ok((found.record, found.payload))
    }

    /// Forgets rows that are where they belong, or that belong to no batch.
    ///
    /// # Errors
    /// The storage does not answer.
    pub async fn remove_outbox(&self, waiting: &Waiting) -> Result<()> {
        point!("outbox::before_remove");
        self.0.delete(&[waiting.key()]).await?;
        point!("outbox::after_remove");
        Ok(())
    }

    /// Stores what was refused of rows that wait and returns the name of the file: of several attempts the first counts.
    ///
    /// # Errors
    /// Fenced; the storage does not answer.
    pub async fn put_outbox_refused<T: Serialize>(&self, of: &Waiting, record: &T, payload: Bytes) -> Result<String> {
        point!("outbox::before_refused");
        self.ensure_newest().await?;
        let name = of.refused_name();
        let key = format!("{REFUSED}/{name}");
        let bytes = self.0.encode(&key, record, payload).await?;
        self.0.put_new(&key, bytes).await?;
        point!("outbox::after_refused");
        Ok(name)
    }

    /// Names of what was refused, in the order of their batches.
    ///
    /// # Errors
    /// The storage does not answer.
    pub async fn outbox_refused(&self) -> Result<Vec<String>> {
        self.0.list(REFUSED, None).await
    }

    /// # Errors
    /// It is missing, damaged or foreign; the storage does not answer.
    pub async fn read_outbox_refused<T: DeserializeOwned>(&self, name: &str) -> Result<(T, Bytes)> {
        let found: frame::Decoded<T> = self.0.expect(&format!("{REFUSED}/{name}")).await?;
        Ok((found.record, found.payload))
    }

    /// Forgets what a committed batch has the dead letters of.
    ///
    /// # Errors
    /// The storage does not answer.
    pub async fn remove_outbox_refused(&self, name: &str) -> Result<()> {
        point!("outbox::before_forget");
        self.0.delete(&[format!("{REFUSED}/{name}")]).await
    }

    /// For messages: where a sink's rows wait.
    pub fn describe_outbox(&self, folder: &str) -> String {
        self.0.describe(&format!("{ROWS}/{folder}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(batch: u64) -> Waiting {
        let of = BatchPlan { batch, planned_at: 5 };
        Waiting { folder: "elasticsearch-http---a.b-9200".into(), of, rows: 7, shape: "0a1b2c3d".into(), bytes: 0 }
    }

    #[tokio::test]
    async fn what_waits_is_listed_in_order_and_read_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), "p").await.unwrap();
        assert!(checkpoint.outbox().await.unwrap().is_empty());
        for batch in [3, 1, 20] {
            let put = checkpoint.put_outbox(&waiting(batch), &batch, Bytes::from_static(b"rows")).await.unwrap();
            let again = checkpoint.put_outbox(&waiting(batch), &batch, Bytes::from_static(b"rows")).await.unwrap();
            assert!(put > 4 && put == again);
        }
        let found = checkpoint.outbox().await.unwrap();
        assert_eq!(found.iter().map(|of| of.of.batch).collect::<Vec<_>>(), [1, 3, 20]);
        assert_eq!(Waiting { bytes: 0, ..found[0].clone() }, waiting(1));
        assert!(found[0].bytes > 4);
        let (record, payload): (u64, Bytes) = checkpoint.read_outbox(&found[1]).await.unwrap();
        assert_eq!((record, &payload[..]), (3, &b"rows"[..]));
        checkpoint.remove_outbox(&found[1]).await.unwrap();
        checkpoint.remove_outbox(&found[1]).await.unwrap();
        assert_eq!(checkpoint.outbox().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_was_refused_first_stays() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(folder.path().to_str().unwrap(), "p").await.unwrap();
        let name = checkpoint.put_outbox_refused(&waiting(2), &"first", Bytes::new()).await.unwrap();
        assert_eq!(checkpoint.put_outbox_refused(&waiting(2), &"second", Bytes::new()).await.unwrap(), name);
        assert_eq!(checkpoint.outbox_refused().await.unwrap(), std::slice::from_ref(&name));
        assert_eq!(checkpoint.read_outbox_refused::<String>(&name).await.unwrap().0, "first");
        checkpoint.remove_outbox_refused(&name).await.unwrap();
        assert!(checkpoint.outbox_refused().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_older_start_hands_nothing_over_and_a_foreign_file_is_named() {
        let base = format!("memory://outbox-{}", uuid::Uuid::new_v4());
        let old = Checkpoint::open(&base, "p").await.unwrap();
        let new = Checkpoint::open(&base, "p").await.unwrap();
        let error = old.put_outbox(&waiting(1), &(), Bytes::new()).await.unwrap_err();
        assert_eq!(error.message(), "fenced by epoch 2");
        let path = new.0.path("outbox/x/notes.txt");
        object_store::ObjectStoreExt::put(&*new.0.location.store, &path, Bytes::new().into()).await.unwrap();
        let error = new.outbox().await.unwrap_err().to_string();
        assert!(error.contains("outbox/x/notes.txt is none of poundlock's"), "{error}");
    }
}
