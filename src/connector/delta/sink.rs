//! Writes the rows of a batch: files first, then one entry of the log for each table.
//!
//! ```text
//! rows of the INSERTs into a table ─▶ by partition ─▶ encoded in memory ─▶ one durable put per file ─▶ entry: add, txn N
//! ```
//!
//! A batch without rows for a table leaves nothing there. Tables take their rows side by side, each for itself: a replay
//! skips those that have the batch.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use deltalake_core::kernel::{Action, Add};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use uuid::Uuid;

use super::log::{Log, Outcome, now_ms};
use super::maintain::Keeper;
use super::writer::Writer;
use super::{DeltaTable, file_name, stats};
use crate::checkpoint::trouble::explained;
use crate::connector::background::blocking;
use crate::connector::parquet::Table;
use crate::connector::parquet::partition::{self, PARTITIONS_PER_INSERT, Part};
use crate::connector::parquet::sink::{CONCURRENT_ENCODERS, CONCURRENT_PUTS, encode};
use crate::connector::{
    Guarantee, Identity, InsertReport, InsertRows, Sink, TableDefinition, WriteReport, WriteRequest,
};
use crate::point::point;
use crate::{Error, Result};

/// Tables written at a time.
const CONCURRENT_TABLES: usize = 8;

/// All Delta tables of the program.
#[derive(Debug)]
pub struct DeltaSink {
    tables: Vec<Written>,
    identity: Option<Identity>,
    /// Works in the background from the first opening on, until the sink is dropped.
    keeper: Option<Keeper>,
}

#[derive(Debug)]
struct Written {
    delta: DeltaTable,
    /// `None`: it is to be opened, for the first time or after an error.
    log: Option<Log>,
}

impl DeltaSink {
    /// The sink of a program's DELTA tables, if there are any. Nothing is opened yet.
    ///
    /// # Errors
    /// Options, columns or locations that cannot work; two tables in one folder.
    pub fn for_tables(definitions: &[Arc<TableDefinition>]) -> Result<Option<Self>> {
        let (mut tables, mut errors): (Vec<Written>, Vec<Error>) = (vec![], vec![]);
        for definition in definitions {
            match DeltaTable::new(definition) {
                Err(error) => errors.push(error),
                Ok(delta) => tables.push(Written { delta, log: None }),
            }
        }
        match Error::all(errors) {
            Some(error) => Err(error),
            None => Ok((!tables.is_empty()).then_some(Self { tables, identity: None, keeper: None })),
        }
    }

    async fn open_all(&mut self) -> Result<()> {
        let identity = self.identity.clone();
        let identity = identity.ok_or_else(|| Error::internal("the Delta sink is used before it was opened"))?;
        for table in &mut self.tables {
            table.opened(&identity).await?;
        }
        if self.keeper.is_none() {
            let logs = self.tables.iter().filter_map(|table| Some((table.delta.clone(), table.log.clone()?)));
            self.keeper = Some(Keeper::start(logs.collect())?);
        }
        Ok(())
    }
}

impl Written {
    async fn opened(&mut self, identity: &Identity) -> Result<&mut Log> {
        if self.log.is_none() {
            self.log = Some(Log::open(&self.delta.table, &self.delta.maintenance, identity).await?);
        }
        self.log.as_mut().ok_or_else(|| Error::internal("a log that was just opened"))
    }

    /// The rows of all INSERTs into this table. `true`: it had them.
    async fn write(
        &mut self,
        identity: &Identity,
        batch: u64,
        inserts: Vec<InsertRows>,
    ) -> Result<(WriteReport, bool)> {
        let (table, writer) = (Arc::clone(&self.delta.table), Writer::new(identity));
        let has_rows = inserts.iter().any(|insert| insert.row_count() > 0);
        // An idle batch asks nothing of the storage.
        let already = has_rows && self.opened(identity).await?.batch() >= Some(batch);
        let encoders = inserts.into_iter().map(|insert| {
            let (table, writer) = (Arc::clone(&table), writer.clone());
            blocking(move || Encoded::new(&table, &insert, &writer, batch, already))
        });
        let encoded: Vec<Encoded> = futures::stream::iter(encoders).buffered(CONCURRENT_ENCODERS).try_collect().await?;
        let (mut report, mut adds, mut puts, mut rows) = (WriteReport::default(), vec![], vec![], 0);
        for one in encoded {
            rows += one.report.written;
            report.inserts.insert(one.insert, one.report);
            report.refusals.extend(one.refusals);
            for (add, bytes) in one.files {
                puts.push((add.path.clone(), bytes));
                adds.push(Action::Add(add));
            }
        }
        if puts.is_empty() {
            return Ok((report, already));
        }
        let log = self.opened(identity).await?;
        point!("delta::before_put");
        let within = log.store().object_store(None);
        let puts = puts.into_iter().map(|(path, bytes)| {
            let (within, table) = (Arc::clone(&within), &table);
            async move {
                let to = Path::parse(&path).map_err(|e| Error::internal(format!("{path:?} is not a path")).cause(e))?;
                let put = within.put(&to, bytes.into()).await;
                put.map_err(|e| explained(table.failed("write"), &e))
            }
        });
        let done: Vec<_> = futures::stream::iter(puts).buffer_unordered(CONCURRENT_PUTS).try_collect().await?;
        point!("delta::before_commit");
        let outcome = log.add(batch, adds, rows).await?;
        point!("delta::after_commit");
        tracing::debug!(batch, table = table.definition.name, files = done.len(), ?outcome, "wrote Delta files");
        Ok((report, outcome == Outcome::Already))
    }
}

#[async_trait]
impl Sink for DeltaSink {
    fn name(&self) -> &str {
        "delta"
    }

    fn tables(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.delta.name().to_string()).collect()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            level: "exactly-once",
            how: "an entry of the log has a batch's files and its number, so the batch is in a table whole or not at all, and is \
                  recognised. Readers may see it a moment before it is committed"
                .into(),
        }
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        self.identity = Some(identity.clone());
        self.tables.iter_mut().for_each(|table| table.log = None);
        self.open_all().await?;
        Ok(self.tables.iter().filter_map(|table| table.log.as_ref()?.batch()).max())
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        self.open_all().await?;
        Ok(self.tables.iter().any(|table| table.log.as_ref().is_some_and(|log| log.batch() >= Some(batch))))
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        let identity = self.identity.clone();
        let identity = identity.ok_or_else(|| Error::internal("the Delta sink is used before it was opened"))?;
        if let Some(lost) = request.inserts.iter().find(|rows| !self.tables().contains(&rows.table.name)) {
            return Err(Error::internal(format!("table {} is not of this sink", lost.table.name)));
        }
        // Boxed in a loop: of a closure that borrows mutably the compiler cannot tell that its futures may be sent.
        let mut writes = vec![];
        for table in &mut self.tables {
            let inserts = request.inserts.iter().filter(|rows| rows.table.name == table.delta.name());
            let (inserts, identity): (Vec<_>, &Identity) = (inserts.cloned().collect(), &identity);
            let write = async move {
                let written = table.write(identity, request.batch, inserts).await;
                if written.is_err() {
                    // What the log says is not known any more: the next call reads it.
                    table.log = None;
                }
                written
            };
            writes.push(write.boxed());
        }
        let written = futures::stream::iter(writes).buffer_unordered(CONCURRENT_TABLES).collect::<Vec<_>>().await;
        let mut report = WriteReport::default();
        for one in written {
            let (of_table, already) = one?;
            report.inserts.extend(of_table.inserts);
            report.refusals.extend(of_table.refusals);
            report.already |= already;
        }
        report.refusals.sort_by_key(|refusal| (refusal.insert, refusal.row));
        Ok(report)
    }
}

/// What one INSERT adds to a table, in memory.
struct Encoded {
    insert: usize,
    /// Its path within the table, its bytes.
    files: Vec<(Add, Bytes)>,
    refusals: Vec<crate::connector::Refusal>,
    report: InsertReport,
}

impl Encoded {
    /// `already`: only what is refused is wanted.
    fn new(table: &Table, insert: &InsertRows, writer: &Writer, batch: u64, already: bool) -> Result<Self> {
        let (parts, refusals) = partition::split(table, insert)?;
        let parts = if already { vec![] } else { parts };
        let mut files = Vec::with_capacity(parts.len());
        for (place, part) in parts.into_iter().enumerate() {
            let sequence = insert.insert * PARTITIONS_PER_INSERT + place;
            let name = file_name(writer.pipeline, writer.epoch, &format!("{batch:020}-{sequence:06}"));
            files.push(file(table, part, name)?);
        }
        let refused = refusals.len() as u64;
        let report = InsertReport { written: insert.row_count() as u64 - refused, conflict: 0, refused };
        Ok(Self { insert: insert.insert, files, refusals, report })
    }
}

fn file(table: &Table, part: Part, name: String) -> Result<(Add, Bytes)> {
    let (bytes, metadata) = encode(table.format, &part.rows).map_err(|e| table.failed("encode").cause(e))?;
    let columns = part.rows.first().map(|rows| rows.schema()).unwrap_or_else(|| table.file_schema());
    let fields = table.partition_fields();
    let values = fields.iter().zip(part.values).map(|(field, value)| {
        // Delta writes a time without its zone's letter as SQL does.
        let value = match field.data_type() {
            arrow::datatypes::DataType::Timestamp(_, None) => value.map(|value| value.replace('T', " ")),
            _ => value,
        };
        (field.name().clone(), value)
    });
    let path = if part.folder.is_empty() { name } else { format!("{}/{name}", part.folder) };
    let add = Add {
        path,
        partition_values: values.collect(),
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        modification_time: now_ms(),
        data_change: true,
        stats: Some(stats::of_file(&metadata, &columns)?),
        ..Add::default()
    };
    Ok((add, bytes))
}

/// A name for a merged file.
pub fn merged_name(writer: &Writer) -> String {
    file_name(writer.pipeline, writer.epoch, &format!("merged-{}", Uuid::new_v4().simple()))
}
