//! Bounded tables that queries join with: what they need of it is read and kept, and read again every `refresh`.
//!
//! The version a batch uses is in its plan, by a hash of the rows; a version's rows go into the checkpoint once, before
//! the first plan that names it, so that a replay joins with what was there then. How old a copy is stands in the plan
//! and the commit, too.
//!
//! Failure: a refresh runs in the background. A dimension that is down, or has grown beyond its limit, keeps its last rows:
//! said once, and again when the reason is another; so is that it can be read again. At the start there are no last rows,
//! and it is an error.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::backoff::retry_at_start;
use super::breaker::insist;
use super::rows;
use super::start::now;
use crate::checkpoint::record::DimensionCommit;
use crate::checkpoint::{Blob, Checkpoint};
use crate::connector::background::blocking;
use crate::connector::{self, nullable};
use crate::sql::explain::{own, plain};
use crate::sql::program::DimensionSpec;
use crate::sql::settings::shown;
use crate::state::compact::compact;
use crate::{Error, Result};

/// Whoever does not give all rows by then gives none: a server that hangs must not be waited for silently.
const READ_LIMIT: Duration = Duration::from_secs(600);

/// A reason that is another each time is not told each time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// A copy that has outlived so many of its refreshes is told of.
const STALE_REFRESHES: u32 = 2;

/// What was read of a table at one time.
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

/// The newest version, and when it was found to be that.
#[derive(Debug)]
struct Newest {
    version: Arc<Version>,
    /// µs since 1970: when the last read began that gave these rows. They may be newer, never older.
    read_at: i64,
}

/// How old the copy was that a batch joined with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Age {
    pub age: Duration,
    /// Twice as old as it was meant to become.
    pub stale: bool,
}

/// A dimension with its newest version; reads again in the background until it is dropped.
pub struct Dimension {
    pub spec: DimensionSpec,
    newest: Arc<Mutex<Newest>>,
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
        let first = retry_at_start(&spec.table.name, "read the dimension", async || {
            let read_at = now();
            Ok(Newest { version: Arc::new(read(&spec).await?), read_at })
        });
        let newest = Arc::new(Mutex::new(first.await?));
        let refresher = spec.refresh.map(|every| tokio::spawn(refresh(spec.clone(), every, Arc::clone(&newest))));
        Ok(Self { spec, newest, stored: String::new(), refresher })
    }

    /// Makes the newest version durable and pins it; what the plan says of it.
    pub async fn pin_newest(&mut self, checkpoint: &Checkpoint, stop: &CancellationToken) -> Result<DimensionCommit> {
        let (version, read_at) = {
            let newest = lock(&self.newest);
            (Arc::clone(&newest.version), newest.read_at)
        };
        if self.stored != version.hash {
            let put = || checkpoint.put_blob(Blob::Dimension, version.image.clone());
            let hash = insist(stop, "keep the rows of a dimension", put).await?;
            self.stored.clone_from(&version.hash);
            debug_assert_eq!(hash, version.hash);
        }
        self.spec.pinned.pin(version.rows.clone());
        Ok(DimensionCommit { version: version.hash.clone(), read_at })
    }

    /// Pins the version that a plan names.
    pub async fn pin_version(&mut self, hash: &str, checkpoint: &Checkpoint) -> Result<()> {
        let schema = self.spec.read_schema();
        self.spec.pinned.pin(rows_of(hash, &self.spec.table.name, &schema, checkpoint).await?);
        Ok(())
    }

    /// Of the copy that was pinned for a batch planned at this time.
    pub fn age(&self, pinned: &DimensionCommit, planned_at: i64) -> Age {
        let age = Duration::from_micros(u64::try_from(planned_at - pinned.read_at).unwrap_or(0));
        Age { age, stale: self.spec.refresh.is_some_and(|every| age > every * STALE_REFRESHES) }
    }
}

/// The rows of a version that the checkpoint holds, in these columns.
pub(super) async fn rows_of(
    hash: &str,
    table: &str,
    schema: &SchemaRef,
    checkpoint: &Checkpoint,
) -> Result<Vec<RecordBatch>> {
    let image = checkpoint.get_blob(Blob::Dimension, hash).await?;
    let rows = StreamReader::try_new(image.as_ref(), None)?.map(|batch| {
        let batch = batch?;
        // A version of poundlock that read more, or all, has stored more.
        let columns = schema.fields().iter().map(|field| {
            let column = batch.column_by_name(field.name()).ok_or_else(|| {
                let error = format!("version {hash} of table {table} has no column {:?}", field.name());
                Error::external(error).hint("finish the batch with the version of poundlock that planned it")
            });
            column.cloned()
        });
        Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?)?)
    });
    rows.collect()
}

/// By table, those that a plan says the age of.
pub fn ages(dimensions: &[Dimension], pinned: &BTreeMap<String, DimensionCommit>, at: i64) -> BTreeMap<String, Age> {
    let age = |dimension: &Dimension| {
        let name = &dimension.spec.table.name;
        Some((name.clone(), dimension.age(pinned.get(name)?, at)))
    };
    dimensions.iter().filter_map(age).collect()
}

fn lock(newest: &Mutex<Newest>) -> MutexGuard<'_, Newest> {
    newest.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn refresh(spec: DimensionSpec, every: Duration, newest: Arc<Mutex<Newest>>) {
    let table = &spec.table.name;
    let mut failing: Option<Failing> = None;
    loop {
        tokio::time::sleep(every).await;
        let read_at = now();
        match read(&spec).await {
            Ok(version) => {
                let mut newest = lock(&newest);
                newest.read_at = read_at;
                if newest.version.hash != version.hash {
                    newest.version = Arc::new(version);
                }
                if let Some(Failing { count, .. }) = failing.take() {
                    tracing::info!(table, failed = count, "dimension is read again");
                }
            }
            Err(error) => {
                let age = Duration::from_micros(u64::try_from(now() - lock(&newest).read_at).unwrap_or(0));
                let reason = error.line();
                match &mut failing {
                    Some(known) => known.again(&reason),
                    None => failing = Some(Failing { count: 1, reason: reason.clone(), told: None }),
                }
                if let Some(known) = failing.as_mut().filter(|known| known.told.is_none()) {
                    known.told = Some(Instant::now());
                    let age_s = age.as_secs();
                    tracing::warn!(table, age_s, "dimension keeps its last rows, for it cannot be read: {reason}");
                }
            }
        }
    }
}

/// Refreshes that have failed since the last good one.
struct Failing {
    count: u64,
    reason: String,
    /// When the reason was told; `None`: it is to be.
    told: Option<Instant>,
}

impl Failing {
    fn again(&mut self, reason: &str) {
        self.count += 1;
        if self.reason != reason && self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            self.reason = reason.to_string();
            self.told = None;
        }
    }
}

/// What is needed of a table, as it is now.
pub(super) async fn read(spec: &DimensionSpec) -> Result<Version> {
    let in_time = tokio::time::timeout(READ_LIMIT, read_rows(spec)).await;
    let late = |_| {
        let error =
            format!("table {} was not read to its end in {} minutes", spec.table.name, READ_LIMIT.as_secs() / 60);
        Error::external(error).at(spec.table.place.clone()).retryable()
    };
    let batches = in_time.map_err(late)??;
    let (table, schema) = (spec.table.name.clone(), spec.read_schema());
    blocking(move || version(&table, &schema, batches)).await
}

/// As many rows as are needed, in no order, with columns that may be NULL whatever was declared.
async fn read_rows(spec: &DimensionSpec) -> Result<Vec<RecordBatch>> {
    let table = &spec.table;
    let unreadable = |e: DataFusionError| {
        let other = |e: DataFusionError| {
            Error::external(format!("could not read table {}", table.name)).at(table.place.clone()).cause(plain(&e))
        };
        own(e).unwrap_or_else(other)
    };
    let schema = nullable(&spec.read_schema());
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let context = SessionContext::new();
    let provider = connector::bounded(table, &context.state(), None).await?;
    let mut frame = context.read_table(provider).map_err(unreadable)?;
    if let Some(filter) = &spec.needed.filter {
        frame = frame.filter(filter.clone()).map_err(unreadable)?;
    }
    let frame = frame.select_columns(&names).map_err(unreadable)?;
    let mut stream = frame.execute_stream().await.map_err(unreadable)?;
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(unreadable)?;
        // Strings cut out of larger buffers would each count, and hold, all of them.
        let batch = compact(&RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec())?)?;
        bytes += batch.get_array_memory_size();
        if bytes > spec.bytes_max {
            let error =
                format!("what is read of table {} takes more than {}", table.name, shown(spec.bytes_max as u64));
            return Err(Error::user(error).at(table.place.clone()).hint(
                "read fewer columns of it, or fewer rows (a condition over its own columns is asked of the table itself), or give \
                 it more memory: OPTIONS ('max_bytes' '1 GiB')",
            ));
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// # Errors
/// A NULL where none was declared.
fn version(table: &str, schema: &SchemaRef, batches: Vec<RecordBatch>) -> Result<Version> {
    // The order of a database's rows means nothing; sorted, the same rows are the same bytes.
    let batches = rows::sort(batches)?;
    let mut image = Vec::new();
    let mut writer = StreamWriter::try_new(&mut image, &nullable(schema))?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()?;
    drop(writer);
    let hash = Checkpoint::hash_of(&image);
    let declared = |batch: &RecordBatch| {
        let fits = RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec());
        let hint = "declare the column without NOT NULL, or mend the row";
        fits.map_err(|e| Error::user(format!("table {table} is not as declared")).cause(e).hint(hint))
    };
    let rows = batches.iter().map(declared).collect::<Result<Vec<_>>>()?;
    Ok(Version { hash, rows, image: image.into() })
}
