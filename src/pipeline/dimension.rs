//! Bounded tables that queries join with: read whole, kept, read again every `refresh`.
//!
//! The version a batch uses is in its plan, by a hash of the rows; a version's rows go into the checkpoint once, before
//! the first plan that names it, so that a replay joins with what was there then. A refresh runs in the background: a
//! dimension that is down keeps its last rows, and says so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::backoff::{insist, retry_at_start};
use super::rows;
use crate::checkpoint::{Blob, Checkpoint};
use crate::connector::{self, TableDefinition, nullable};
use crate::sql::explain::plain;
use crate::sql::program::DimensionSpec;
use crate::{Error, Result};

/// Rows of a dimension are held in memory, and so is each version in the checkpoint.
const BYTES_MAX: usize = 256 << 20;

/// All rows of a table at one time.
#[derive(Debug)]
pub struct Version {
    /// Content-addressed: the same rows are the same version.
    pub hash: String,
    pub rows: Vec<RecordBatch>,
    image: Bytes,
}

impl Version {
    /// As the checkpoint holds it.
    pub fn image(&self) -> &Bytes {
        &self.image
    }
}

/// A dimension with its newest version; reads again in the background until it is dropped.
pub struct Dimension {
    pub spec: DimensionSpec,
    newest: Arc<Mutex<Arc<Version>>>,
    /// The version the checkpoint is known to hold.
    stored: String,
    refresher: Option<JoinHandle<()>>,
}

impl Drop for Dimension {
    fn drop(&mut self) {
        if let Some(refresher) = &self.refresher {
            refresher.abort();
        }
    }
}

impl Dimension {
    /// # Errors
    /// The table cannot be read now: there is no last version to go on with.
    pub async fn open(spec: DimensionSpec) -> Result<Self> {
        let first =
            retry_at_start(&spec.table.name, "read the dimension", async || read(&spec.table, None).await).await?;
        let newest = Arc::new(Mutex::new(Arc::new(first)));
        let refresher = spec.refresh.map(|every| {
            let (table, newest) = (Arc::clone(&spec.table), Arc::clone(&newest));
            tokio::spawn(refresh(table, every, newest))
        });
        Ok(Self { spec, newest, stored: String::new(), refresher })
    }

    pub fn newest(&self) -> Arc<Version> {
        Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the newest version durable and pins it; its hash goes into the plan.
    pub async fn pin_newest(&mut self, checkpoint: &Checkpoint, stop: &CancellationToken) -> Result<String> {
        let version = self.newest();
        if self.stored != version.hash {
            let put = || checkpoint.put_blob(Blob::Dimension, version.image.clone());
            let hash = insist(stop, "keep the rows of a dimension", put).await?;
            self.stored.clone_from(&version.hash);
            debug_assert_eq!(hash, version.hash);
        }
        self.spec.pinned.pin(version.rows.clone());
        Ok(version.hash.clone())
    }

    /// Pins the version that a plan names.
    pub async fn pin_version(&mut self, hash: &str, checkpoint: &Checkpoint) -> Result<()> {
        self.spec.pinned.pin(rows_of(hash, &self.spec.table, checkpoint).await?);
        Ok(())
    }
}

/// The rows of a version that the checkpoint holds.
pub(super) async fn rows_of(hash: &str, table: &TableDefinition, checkpoint: &Checkpoint) -> Result<Vec<RecordBatch>> {
    let image = checkpoint.get_blob(Blob::Dimension, hash).await?;
    let rows = StreamReader::try_new(image.as_ref(), None)?
        .map(|batch| RecordBatch::try_new(Arc::clone(&table.schema), batch?.columns().to_vec()));
    Ok(rows.collect::<std::result::Result<Vec<_>, _>>()?)
}

async fn refresh(table: Arc<TableDefinition>, every: Duration, newest: Arc<Mutex<Arc<Version>>>) {
    loop {
        tokio::time::sleep(every).await;
        match read(&table, None).await {
            Ok(version) => *newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(version),
            Err(error) => tracing::warn!(table = %table.name, "dimension keeps its last rows: {}", error.line()),
        }
    }
}

/// All rows of a table, or those that meet a condition.
pub(super) async fn read(table: &Arc<TableDefinition>, condition: Option<Expr>) -> Result<Version> {
    let unreadable = |e: DataFusionError| {
        let error = Error::external(format!("could not read table {}", table.name)).at(table.place.clone());
        let may_pass = match e.find_root() {
            DataFusionError::External(own) => own.downcast_ref::<Error>().is_some_and(Error::is_retryable),
            _ => false,
        };
        let error = error.cause(plain(&e));
        if may_pass { error.retryable() } else { error }
    };
    let declared = |batch: &RecordBatch| {
        let fits = RecordBatch::try_new(Arc::clone(&table.schema), batch.columns().to_vec());
        let hint = "declare the column without NOT NULL, or mend the row";
        fits.map_err(|e| Error::user(format!("table {} is not as declared", table.name)).cause(e).hint(hint))
    };
    let context = SessionContext::new();
    let provider = connector::bounded(table, &context.state(), None).await?;
    let mut frame = context.read_table(provider).map_err(unreadable)?;
    if let Some(condition) = condition {
        frame = frame.filter(condition).map_err(unreadable)?;
    }
    let mut stream = frame.execute_stream().await.map_err(unreadable)?;
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(unreadable)?;
        let batch = RecordBatch::try_new(nullable(&table.schema), batch.columns().to_vec())?;
        bytes += batch.get_array_memory_size();
        if bytes > BYTES_MAX {
            let error = format!("table {} is larger than {} MB, too large to join with", table.name, BYTES_MAX >> 20);
            return Err(Error::user(error).hint("declare fewer columns, or a view in the database with fewer rows"));
        }
        batches.push(batch);
    }
    // The order of a database's rows means nothing; sorted, the same rows are the same bytes.
    let batches = rows::sort(batches)?;
    let mut image = Vec::new();
    let mut writer = StreamWriter::try_new(&mut image, &nullable(&table.schema))?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()?;
    drop(writer);
    let hash = Checkpoint::hash_of(&image);
    let rows = batches.iter().map(declared).collect::<Result<Vec<_>>>()?;
    Ok(Version { hash, rows, image: image.into() })
}
