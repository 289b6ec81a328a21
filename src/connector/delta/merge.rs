//! Merges small files of a partition into larger ones.
//!
//! Files of one partition are of one level where their sizes differ by less than eight times. When a level has
//! `optimize.min_files` files, they become one, of a higher level: so a row is written again once for each level, and not
//! each time that something is added beside it. A partition that has been quiet for an hour is merged whole.
//!
//! ```text
//! files of a level ─▶ read one after the other, as the log's columns ─▶ one file ─▶ entry: remove them, add it; no row changed
//! ```
//!
//! Failure: another has removed one of the files meanwhile — the merged file is deleted, and the next turn looks anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::Schema;
use bytes::Bytes;
use deltalake_core::kernel::{Add, LogicalFileView};
use deltalake_core::table::state::DeltaTableState;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use tokio_util::sync::CancellationToken;

use super::log::{self, Log, Outcome, now_ms};
use super::options::Maintenance;
use super::sink::merged_name;
use super::{DeltaTable, schema, stats, writer_of};
use crate::checkpoint::trouble::explained;
use crate::connector::parquet::sink::writer_options;
use crate::connector::parquet::{FileFormat, Table};
use crate::point::point;
use crate::{Error, Result};

/// Sizes of one level differ by less than two to the power of so much.
const LEVEL_BITS: u32 = 3;

/// Nothing was added to a partition for so long: most likely nothing will be.
const QUIET_MS: i64 = 3_600_000;

/// Of one merge: each is named twice in an entry.
const FILES_MAX: usize = 1_000;

/// Of one table's turn, so that another's comes.
const MERGES_MAX: usize = 64;

/// Merges of one turn that may fail.
const ERRORS_MAX: usize = 3;

/// Rows read at a time.
const ROWS: usize = 8_192;

/// Merges what there is to merge; `true`: there is more of it. Files of other programs are left alone: they may hold what we
/// would write otherwise, and their paths may be written otherwise than ours.
///
/// # Errors
/// Those of the first groups that failed: a file cannot be read, or the merged one not be written; those of [`Log::replace`].
pub async fn all(delta: &DeltaTable, log: &mut Log, state: &DeltaTableState, stop: &CancellationToken) -> Result<bool> {
    let files = log::files(&delta.table, state)?.into_iter();
    let files = files.filter(|file| file.deletion_vector_descriptor().is_none());
    let files =
        files.filter(|file| file.object_store_path().filename().and_then(writer_of).is_some()).map(Candidate::new);
    let groups = plan(files.collect(), &delta.maintenance, now_ms());
    let (more, mut errors) = (groups.len() > MERGES_MAX, vec![]);
    for group in groups.into_iter().take(MERGES_MAX) {
        if stop.is_cancelled() || errors.len() == ERRORS_MAX {
            break;
        }
        errors.extend(merge(delta, log, state, group).await.err());
    }
    Error::all(errors).map_or(Ok(more), Err)
}

/// What of a file decides whether it is merged.
#[derive(Debug, Clone)]
struct Candidate<T> {
    file: T,
    partition: BTreeMap<String, Option<String>>,
    /// Bytes.
    size: u64,
    /// When it was added; ms since 1970.
    added: i64,
}

impl Candidate<LogicalFileView> {
    fn new(file: LogicalFileView) -> Self {
        let partition = file.partition_values_map().into_iter().collect();
        Self { partition, size: u64::try_from(file.size()).unwrap_or(0), added: file.modification_time(), file }
    }
}

/// Groups of files that are to become one each; those of most files first.
fn plan<T>(files: Vec<Candidate<T>>, maintenance: &Maintenance, now: i64) -> Vec<Vec<Candidate<T>>> {
    let mut partitions: BTreeMap<BTreeMap<String, Option<String>>, Vec<Candidate<T>>> = BTreeMap::new();
    for file in files {
        partitions.entry(file.partition.clone()).or_default().push(file);
    }
    let mut groups = vec![];
    for files in partitions.into_values() {
        let newest = files.iter().map(|file| file.added).max().unwrap_or(now);
        let quiet = now - newest > QUIET_MS;
        let mut levels: BTreeMap<u32, Vec<Candidate<T>>> = BTreeMap::new();
        for file in files.into_iter().filter(|file| file.size < maintenance.target_size / 2) {
            let level = if quiet { 0 } else { file.size.max(1).ilog2() / LEVEL_BITS };
            levels.entry(level).or_default().push(file);
        }
        let enough = if quiet { 2 } else { maintenance.min_files };
        for mut files in levels.into_values().filter(|files| files.len() >= enough) {
            files.sort_by_key(|file| file.added);
            groups.extend(by_size(files, maintenance.target_size).into_iter().filter(|group| group.len() > 1));
        }
    }
    groups.sort_by_key(|group: &Vec<Candidate<T>>| std::cmp::Reverse(group.len()));
    groups
}

fn by_size<T>(files: Vec<Candidate<T>>, target_size: u64) -> Vec<Vec<Candidate<T>>> {
    let mut groups: Vec<(u64, Vec<Candidate<T>>)> = vec![];
    for file in files {
        match groups.last_mut() {
            Some((sum, group)) if *sum + file.size <= target_size && group.len() < FILES_MAX => {
                *sum += file.size;
                group.push(file);
            }
            _ => groups.push((file.size, vec![file])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

async fn merge(
    delta: &DeltaTable,
    log: &mut Log,
    state: &DeltaTableState,
    files: Vec<Candidate<LogicalFileView>>,
) -> Result<()> {
    let Some(first) = files.first() else { return Ok(()) };
    let store = log.store().object_store(None);
    let columns = schema::of_files(&state.schema(), state.metadata().partition_columns())?;
    let (bytes, metadata) = read_as_one(&delta.table, &store, &columns, &files).await?;
    let rows = metadata.file_metadata().num_rows();
    let counted: Option<u64> = files.iter().map(|file| stats::rows(file.file.stats().as_deref())).sum();
    if counted.is_some_and(|counted| i64::try_from(counted) != Ok(rows)) {
        let error = format!("{} files have {rows} rows, and {counted:?} by the log", files.len());
        return Err(Error::external(format!("Delta table {} is not as its log says", delta.name())).cause(error));
    }
    let old = first.file.object_store_path();
    let folder = old.as_ref().rsplit_once('/').map_or("", |(folder, _)| folder);
    let name = merged_name(log.writer());
    let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
    let to = Path::parse(&path).map_err(|e| Error::internal(format!("{path:?} is not a path")).cause(e))?;
    let add = Add {
        path,
        partition_values: first.partition.clone().into_iter().collect::<HashMap<_, _>>(),
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        modification_time: files.iter().map(|file| file.added).max().unwrap_or_else(now_ms),
        data_change: false,
        stats: Some(stats::of_file(&metadata, &columns)?),
        ..Add::default()
    };
    let size = bytes.len();
    let put = store.put(&to, bytes.into()).await;
    put.map_err(|e| explained(delta.table.failed("write a merged file of"), &e))?;
    point!("delta::after_merge");
    let removed = files.iter().map(|file| file.file.remove_action(false)).collect();
    match log.replace(removed, add, delta.maintenance.target_size).await {
        Ok(Outcome::Committed) => {
            point!("delta::after_replace");
            tracing::debug!(table = delta.name(), files = files.len(), rows, bytes = size, "merged files");
            Ok(())
        }
        Ok(_) => {
            tracing::info!(
                table = delta.name(),
                "files that were to be merged are gone: another program merges them too"
            );
            let deleted = store.delete(&to).await;
            deleted.map_err(|e| explained(delta.table.failed("delete a merged file of"), &e))
        }
        // Whether the entry is there is not known: the file stays, and the next start looks after it.
        Err(error) => Err(error),
    }
}

/// The rows of the files, one after the other.
async fn read_as_one(
    table: &Arc<Table>,
    store: &Arc<dyn ObjectStore>,
    columns: &Arc<Schema>,
    files: &[Candidate<LogicalFileView>],
) -> Result<(Bytes, ParquetMetaData)> {
    let mut merged = Merged { table: Arc::clone(table), columns: Arc::clone(columns), writer: None };
    for file in files {
        let path = file.file.object_store_path();
        // Whole: it is less than half of what a merged file may be, which is made in memory too.
        let bytes = async { store.get(&path).await?.bytes().await }.await;
        merged.add(bytes.map_err(|e| explained(table.failed("merge files of"), &e))?, &path)?;
    }
    merged.finish()
}

/// A file in the making, in memory.
struct Merged {
    table: Arc<Table>,
    columns: Arc<Schema>,
    writer: Option<ArrowWriter<Vec<u8>>>,
}

impl Merged {
    fn add(&mut self, file: Bytes, path: &Path) -> Result<()> {
        let failed = |e: ParquetError| {
            // Of a file that is damaged it is told at each turn.
            let place = format!("file {path} of table {}", self.table.definition.name);
            self.table.failed("merge files of").at(place).cause(e).retryable()
        };
        let rows = ParquetRecordBatchReaderBuilder::try_new(file).map_err(failed)?.with_batch_size(ROWS);
        for rows in rows.build().map_err(failed)? {
            let rows = as_columns(&rows.map_err(|e| failed(e.into()))?, &self.columns)?;
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => none.insert(writer(self.table.format, &rows).map_err(failed)?),
            };
            writer.write(&rows).map_err(failed)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(Bytes, ParquetMetaData)> {
        let failed = self.table.failed("merge files of");
        let Some(mut writer) = self.writer else {
            return Err(failed.cause("they have no rows"));
        };
        let metadata = writer.finish().map_err(|e| failed.cause(e))?;
        let bytes = std::mem::take(writer.inner_mut());
        Ok((bytes.into(), metadata))
    }
}

fn writer(format: FileFormat, rows: &RecordBatch) -> Result<ArrowWriter<Vec<u8>>, ParquetError> {
    let options = writer_options(format, std::slice::from_ref(rows))?;
    ArrowWriter::try_new_with_options(Vec::new(), rows.schema(), options)
}

/// A file of earlier columns lacks those that were added since.
fn as_columns(rows: &RecordBatch, columns: &Arc<Schema>) -> Result<RecordBatch> {
    let exactly = CastOptions { safe: false, ..CastOptions::default() };
    let of = |field: &Arc<arrow::datatypes::Field>| match rows.column_by_name(field.name()) {
        Some(column) => cast_with_options(column, field.data_type(), &exactly),
        None => Ok(new_null_array(field.data_type(), rows.num_rows())),
    };
    let arrays = columns.fields().iter().map(of).collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(columns), arrays)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(size: u64, added: i64, partition: &str) -> Candidate<()> {
        Candidate { file: (), size, added, partition: BTreeMap::from([("p".to_string(), Some(partition.to_string()))]) }
    }

    fn maintenance(min_files: usize, target_size: u64) -> Maintenance {
        Maintenance { min_files, target_size, ..Maintenance::default() }
    }

    #[test]
    fn files_wait_for_others_of_their_size_and_partition() {
        let few = (0..7).map(|n| file(1_000, n, "a")).collect();
        assert!(plan(few, &maintenance(8, 1 << 20), 10).is_empty());
        let mut enough: Vec<Candidate<()>> = (0..8).map(|n| file(1_000 + n, n as i64, "a")).collect();
        enough.extend([file(1_000, 3, "b"), file(100_000, 3, "a"), file(600_000, 3, "a")]);
        let groups = plan(enough, &maintenance(8, 1 << 20), 10);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [8]);
        // After an hour, what is left of a partition.
        let rest = vec![file(1_000, 0, "a"), file(100_000, 5, "a"), file(600_000, 6, "a"), file(1_000, 0, "b")];
        let groups = plan(rest, &maintenance(8, 1 << 20), QUIET_MS + 7);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    }

    proptest! {
        /// A pipeline that adds a file a second and merges each minute has few files, and writes each row few times again.
        #[test]
        fn a_day_of_files_stays_small(size in 2_000u64..60_000, minutes in 30u64..300) {
            let options = maintenance(8, 128 << 20);
            let (mut files, mut again, mut most) = (Vec::<Candidate<()>>::new(), 0, 0);
            for minute in 0..minutes {
                files.extend((0..60).map(|second| file(size, (minute * 60_000 + second * 1_000) as i64, "a")));
                let now = ((minute + 1) * 60_000) as i64;
                let mut all: Vec<Candidate<()>> = std::mem::take(&mut files);
                for group in plan(all.clone(), &options, now) {
                    let sum: u64 = group.iter().map(|file| file.size).sum();
                    all.retain(|file| !group.iter().any(|gone| gone.size == file.size && gone.added == file.added));
                    all.push(file(sum, group.iter().map(|file| file.added).max().unwrap_or(0), "a"));
                    again += sum;
                }
                files = all;
                most = most.max(files.len());
            }
            let total: u64 = files.iter().map(|file| file.size).sum();
            prop_assert_eq!(total, size * 60 * minutes);
            prop_assert!(most <= 7 * 8, "{most} files");
            prop_assert!(again <= total * 6, "written again {} times", again / total);
        }
    }
}
