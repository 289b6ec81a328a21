//! Writes the rows of a batch as files named by the batch.
//!
//! ```text
//! rows of an INSERT ─▶ by partition ─▶ encoded in memory (blocking threads) ─▶ [mark] ─▶ one durable put per file
//! ```
//!
//! The sequence in a file's name is INSERT × 1,000 + the place of its partition among the batch's sorted ones: it
//! follows from the plan, so a replay puts the same bytes under the same names, whatever was there.
//!
//! The sink is not told when the batch is committed and needs not be: a file of a batch beyond the last commit does
//! not count for our readers, and is written again by the replay.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use super::compact;
use super::layout::{FileName, parse_folder};
use super::mark::Mark;
use super::partition::{self, PARTITIONS_PER_INSERT};
use super::{FileFormat, Table};
use crate::checkpoint::durable::{Durable, create_folders};
use crate::checkpoint::trouble::explained;
use crate::connector::background::blocking;
use crate::connector::{
    Guarantee, Identity, InsertReport, InsertRows, Refusal, Sink, TableDefinition, WriteReport, WriteRequest,
};
use crate::point::point;
use crate::{Error, Part, Result};

/// Files written at a time; each waits for the disk.
pub(in crate::connector) const CONCURRENT_PUTS: usize = 8;

/// Values of a column that are looked at.
const SAMPLE: usize = 1_024;

/// INSERTs encoded at a time: one core each.
pub(in crate::connector) const CONCURRENT_ENCODERS: usize = 2;

/// All Parquet tables of the program that live in one store.
#[derive(Debug)]
pub struct ParquetSink {
    name: String,
    tables: BTreeMap<String, Arc<Table>>,
    identity: Option<Identity>,
    /// Of the tables that are not on this machine.
    marks: BTreeMap<String, Mark>,
    /// Batches from a number on that have files here; known once asked for.
    found: Option<(u64, BTreeSet<u64>)>,
}

impl ParquetSink {
    /// One sink for each store that the tables live in. Nothing is opened yet.
    ///
    /// # Errors
    /// Options, columns or locations that cannot work; two tables in one folder.
    pub fn for_tables(definitions: &[Arc<TableDefinition>]) -> Result<Vec<Self>> {
        let (mut tables, mut errors) = (vec![], vec![]);
        for definition in definitions {
            match Table::new(definition) {
                Ok(table) => tables.push(Arc::new(table)),
                Err(error) => errors.push(error),
            }
        }
        if let Some(error) = Error::all(errors) {
            return Err(error);
        }
        let mut sinks: Vec<Self> = vec![];
        for table in tables {
            let same_store = |sink: &&mut Self| sink.tables.values().any(|t| t.location.url == table.location.url);
            match sinks.iter_mut().find(same_store) {
                Some(sink) => {
                    sink.tables.insert(table.definition.name.clone(), table);
                }
                None => {
                    let name =
                        if sinks.is_empty() { "parquet".to_string() } else { format!("parquet-{}", sinks.len() + 1) };
                    let tables = BTreeMap::from([(table.definition.name.clone(), table)]);
                    sinks.push(Self { name, tables, identity: None, marks: BTreeMap::new(), found: None });
                }
            }
        }
        Ok(sinks)
    }

    fn identity(&self) -> Result<&Identity> {
        self.identity.as_ref().ok_or_else(|| Error::internal(format!("sink {} was not opened", self.name)))
    }

    /// From now on the batch may be seen in these tables, if no newer start has come.
    async fn begin(&mut self, batch: u64, tables: &BTreeSet<String>) -> Result<()> {
        let identity = &self.identity()?.clone();
        let mut begun = vec![];
        for (name, mark) in self.marks.iter_mut().filter(|(name, _)| tables.contains(*name)) {
            let table = self.tables.get(name).ok_or_else(|| Error::internal("a mark is of no table"))?;
            begun.push(mark.begin(table, identity, batch));
        }
        try_join_all(begun).await.map(drop)
    }
}

#[async_trait]
impl Sink for ParquetSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn tables(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            level: "exactly-once",
            how: "files are named by batch and written again under the same names; poundlock reads only files of \
                  committed batches. Other readers may see a whole file a moment before its batch is committed"
                .into(),
        }
    }

    /// Local tables keep no number of their own: `None`. Elsewhere the newest that has begun.
    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        (self.found, self.identity) = (None, Some(identity.clone()));
        self.marks.clear();
        for (name, table) in &self.tables {
            match table.location.local.clone() {
                Some(local) => prepare(table, local).await?,
                None => drop(self.marks.insert(name.clone(), Mark::take(table, identity).await?)),
            }
            of_this_checkpoint(table, identity).await?;
            same_layout(table, identity.uuid).await?;
        }
        Ok(self.marks.values().filter_map(Mark::batch).max())
    }

    /// Where there are marks, they tell. Else lists every table once, then remembers; asked at a start, of the few batches that
    /// are pending.
    async fn holds(&mut self, batch: u64) -> Result<bool> {
        let pipeline = self.identity()?.uuid;
        if !self.marks.is_empty() {
            return Ok(self.marks.values().any(|mark| mark.batch() >= Some(batch)));
        }
        if let Some((from, found)) = &self.found
            && *from <= batch
        {
            return Ok(found.contains(&batch));
        }
        let mut found = BTreeSet::new();
        for table in self.tables.values() {
            let mut listing = table.location.store.list(Some(&table.location.path));
            while let Some(object) = listing.try_next().await.map_err(|e| explained(table.failed("list"), &e))? {
                let name = object.location.filename().and_then(FileName::parse);
                found.extend(name.filter(|n| n.pipeline == pipeline && n.batch >= batch).map(|n| n.batch));
            }
        }
        let holds = found.contains(&batch);
        self.found = Some((batch, found));
        Ok(holds)
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        point!("parquet::before_write");
        let pipeline = self.identity()?.uuid;
        let mut encoders = vec![];
        for insert in &request.inserts {
            let table = self.tables.get(&insert.table.name).cloned();
            let name = &insert.table.name;
            let table = table.ok_or_else(|| Error::internal(format!("table {name} is not of this sink")))?;
            let (insert, batch) = (insert.clone(), request.batch);
            encoders.push(async move {
                let encode = move || Encoded::new(table, &insert, pipeline, batch);
                blocking(encode).await
            });
        }
        let encoded: Vec<Encoded> = futures::stream::iter(encoders).buffered(CONCURRENT_ENCODERS).try_collect().await?;

        let mut report = WriteReport::default();
        let mut puts = vec![];
        for one in encoded {
            report.inserts.insert(one.insert, one.report);
            report.refusals.extend(one.refusals);
            let files = report.files.entry(one.table.definition.name.clone()).or_default();
            for (path, bytes) in one.files {
                files.push(path.clone());
                puts.push((Arc::clone(&one.table), path, bytes));
            }
        }
        report.files.retain(|_, files| !files.is_empty());
        if !puts.is_empty()
            && let Some((from, found)) = &mut self.found
            && *from <= request.batch
        {
            found.insert(request.batch);
        }
        self.begin(request.batch, &report.files.keys().cloned().collect()).await?;
        let puts = puts.into_iter().map(|(table, path, bytes)| async move {
            point!("parquet::before_put");
            let to =
                path.split('/').try_fold(table.location.path.clone(), |to, part| Path::parse(format!("{to}/{part}")));
            let to = to.map_err(|e| Error::internal(format!("{path:?} is not a path")).cause(e))?;
            let put = table.location.store.put(&to, bytes.into()).await;
            put.map_err(|e| explained(table.failed("write"), &e))
        });
        let done: Vec<_> = futures::stream::iter(puts).buffer_unordered(CONCURRENT_PUTS).try_collect().await?;
        tracing::debug!(batch = request.batch, files = done.len(), "wrote Parquet files");
        point!("parquet::after_write");
        Ok(report)
    }
}

/// Where there is no mark, files tell who has written: those of another pipeline, and none of ours, are most often of this one under
/// a checkpoint that is lost. What is read again would be there twice.
async fn of_this_checkpoint(table: &Table, identity: &Identity) -> Result<()> {
    let (Some(local), ours) = (table.location.local.clone(), identity.uuid) else { return Ok(()) };
    let found = blocking(move || {
        let by = |wanted: bool| {
            Durable::find(&local, |name| FileName::parse(name).is_some_and(|name| (name.pipeline == ours) == wanted))
        };
        Ok(by(true).and_then(|own| if own.is_some() { Ok(None) } else { by(false) }))
    });
    let found = found.await?.map_err(|e| explained(table.failed("list"), &e))?;
    let other = found.as_ref().and_then(|file| FileName::parse(file.filename()?)).map(|name| name.pipeline.to_string());
    match other {
        Some(other) if !identity.takes_over => {
            let error = format!(
                "the folder of table {} has files of checkpoint {other}, and none of this one",
                table.definition.name
            );
            Err(Error::user(error).at(table.definition.place.clone()).about(Part::Location).hint(
                "start with the checkpoint of before (--checkpoint, CHECKPOINT_BASE), or give the table a folder of its own. With --take-over its \
                 files stay, and what is read again is there twice for all but poundlock",
            ))
        }
        _ => Ok(()),
    }
}

/// One file that the pipeline has written tells how the others lie: with two layouts in one folder nobody could read it.
async fn same_layout(table: &Table, pipeline: Uuid) -> Result<()> {
    let is_ours = move |name: &str| FileName::parse(name).is_some_and(|name| name.pipeline == pipeline);
    let found = match table.location.local.clone() {
        // Not a listing of all: a lake may have many files.
        Some(local) => {
            let found = blocking(move || Ok(Durable::find(&local, is_ours))).await?;
            found.map_err(|e| explained(table.failed("list"), &e))?
        }
        None => {
            let mut listing = table.location.store.list(Some(&table.location.path));
            loop {
                match listing.try_next().await.map_err(|e| explained(table.failed("list"), &e))? {
                    Some(object) if object.location.filename().is_some_and(is_ours) => break Some(object.location),
                    Some(_) => {}
                    None => break None,
                }
            }
        }
    };
    let Some(file) = found else { return Ok(()) };
    layout_of(table, &file).map_err(|cause| {
        let error = format!("the files of table {} lie in other partitions than it declares", table.definition.name);
        Error::user(error).at(table.definition.place.clone()).cause(cause).hint(
            "PARTITIONED BY says where files lie, so it stays as it is: put it back, or give the table another LOCATION and \
             declare the older files as a table of their own",
        )
    })
}

/// # Errors
/// Why the file does not lie in the table's partitions.
fn layout_of(table: &Table, file: &Path) -> Result<(), String> {
    let below: Vec<String> = file
        .prefix_match(&table.location.path)
        .map(|parts| parts.map(|part| part.as_ref().to_string()).collect())
        .unwrap_or_default();
    let folders = below.len().saturating_sub(1);
    let columns = below[..folders].iter().map(|folder| parse_folder(folder).map(|(column, _)| column));
    let columns = columns.collect::<Option<Vec<_>>>().unwrap_or_default();
    let declared = &table.definition.partition_columns;
    if columns == *declared && folders == declared.len() {
        return Ok(());
    }
    let shown = |columns: &[String]| if columns.is_empty() { "nothing".into() } else { columns.join(", ") };
    Err(format!("file /{file} is partitioned by {}; declared is {}", shown(&columns), shown(declared)))
}

/// The folder is there, can be written, and holds no leftovers.
async fn prepare(table: &Arc<Table>, local: PathBuf) -> Result<()> {
    let (depth, failed) = (table.partition_columns.len(), table.failed("open"));
    let prepared = tokio::task::spawn_blocking(move || {
        compact::staging::repair(&local, depth)?;
        let swept = create_folders(&local).and_then(|()| Durable::sweep(&local, depth));
        swept.map_err(|e| failed.cause(e))
    });
    let prepared = prepared.await.map_err(|e| Error::internal("opening Parquet was stopped").cause(e))?;
    let removed = prepared?;
    if removed > 0 {
        let table = table.definition.name.as_str();
        tracing::info!(removed, table, "removed files that a killed process left half-written");
    }
    // Names that begin with '_' are no data for any reader of such folders.
    let probe = table.location.path.clone().join(format!("_poundlock_can_write_{}", Uuid::new_v4().simple()));
    let store = &table.location.store;
    store.put(&probe, Bytes::new().into()).await.map_err(|e| explained(table.failed("write to"), &e))?;
    store.delete(&probe).await.map_err(|e| explained(table.failed("write to"), &e))
}

/// The files of one INSERT, in memory.
struct Encoded {
    insert: usize,
    table: Arc<Table>,
    /// Path relative to the table's location, content.
    files: Vec<(String, Bytes)>,
    refusals: Vec<Refusal>,
    report: InsertReport,
}

impl Encoded {
    fn new(table: Arc<Table>, insert: &InsertRows, pipeline: Uuid, batch: u64) -> Result<Self> {
        let (parts, refusals) = partition::split(&table, insert)?;
        let mut files = Vec::with_capacity(parts.len());
        for (place, part) in parts.into_iter().enumerate() {
            let sequence = insert.insert * PARTITIONS_PER_INSERT + place;
            let name = FileName { pipeline, batch, sequence }.format();
            let path = if part.folder.is_empty() { name } else { format!("{}/{name}", part.folder) };
            let (bytes, _) = encode(table.format, &part.rows).map_err(|e| table.failed("encode").cause(e))?;
            files.push((path, bytes));
        }
        let refused = refusals.len() as u64;
        let report = InsertReport { written: insert.row_count() as u64 - refused, conflict: 0, refused };
        Ok(Self { insert: insert.insert, table, files, refusals, report })
    }
}

/// Of one file; its rows are not empty.
pub(in crate::connector) fn encode(
    format: FileFormat,
    rows: &[RecordBatch],
) -> parquet::errors::Result<(Bytes, ParquetMetaData)> {
    let Some(first) = rows.first() else { return Err(ParquetError::General("a file without rows".into())) };
    let mut encoded = Vec::new();
    let mut writer = ArrowWriter::try_new_with_options(&mut encoded, first.schema(), writer_options(format, rows)?)?;
    for batch in rows {
        writer.write(batch)?;
    }
    let metadata = writer.close()?;
    Ok((encoded.into(), metadata))
}

/// How a file of such rows is written: columns are judged by some of their values. There is at least one record batch.
pub(in crate::connector) fn writer_options(
    format: FileFormat,
    rows: &[RecordBatch],
) -> parquet::errors::Result<ArrowWriterOptions> {
    let mut properties = WriterProperties::builder()
        .set_compression(format.compression)
        .set_max_row_group_row_count(Some(format.rows_per_row_group))
        .set_statistics_enabled(EnabledStatistics::Chunk);
    let fields = rows.first().map(|first| first.schema().fields().clone()).unwrap_or_default();
    for (index, field) in fields.iter().enumerate() {
        let column = ColumnPath::from(field.name().as_str());
        let repeats = repeats(rows, index)?;
        if !repeats {
            properties = properties.set_column_dictionary_enabled(column.clone(), false);
        }
        // A dictionary or the differences of neighbours (offsets and times grow by little) make of whole numbers fewer bytes than a
        // codec would, which then finds little left, and makes each column of each file dearer to open.
        if is_whole_number(field.data_type()) {
            properties = properties.set_column_compression(column.clone(), Compression::UNCOMPRESSED);
            if !repeats {
                properties = properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
            }
        }
    }
    let properties = properties.build();
    // No Arrow schema in the file: a reader that follows it would see string views, which few know.
    Ok(ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true))
}

/// Of those that Parquet stores as INT32 or INT64; decimals are left as they are.
fn is_whole_number(data_type: &DataType) -> bool {
    use DataType::{Date32, Duration, Time32, Time64, Timestamp};
    data_type.is_integer() || matches!(data_type, Date32 | Time32(_) | Time64(_) | Timestamp(..) | Duration(_))
}

/// Whether the values of a column come again, so that a dictionary of them is worth its making: judged by some of them.
/// A column of structs, lists or maps is not judged.
fn repeats(rows: &[RecordBatch], column: usize) -> parquet::errors::Result<bool> {
    let total: usize = rows.iter().map(RecordBatch::num_rows).sum();
    if total < SAMPLE || rows.iter().any(|batch| batch.column(column).data_type().is_nested()) {
        return Ok(true);
    }
    // Rows of one moment often have one value: from all over the file.
    let (mut seen, mut first_row, mut sampled) = (HashSet::new(), 0, 0);
    for batch in rows {
        let end = first_row + batch.num_rows();
        let places = (sampled..SAMPLE).map(|n| n * total / SAMPLE).take_while(|row| *row < end);
        let places = UInt32Array::from_iter_values(places.map(|row| (row - first_row) as u32));
        (first_row, sampled) = (end, sampled + places.len());
        let sample = take(batch.column(column), &places, None)?;
        let mut hashes = vec![0; sample.len()];
        create_hashes([&sample], &RandomState::with_seed(0), &mut hashes)
            .map_err(|e| ParquetError::External(Box::new(e)))?;
        seen.extend(hashes);
    }
    Ok(seen.len() < SAMPLE / 2)
}
