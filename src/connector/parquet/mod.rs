//! Parquet tables: a folder of files on object storage, in Hive's layout.
//!
//! ```text
//! <LOCATION>/event_date=2026-11-23/<UUID of the pipeline>-<batch>-<sequence>.parquet
//! ```
//!
//! Writing ([`ParquetSink`]) is append-only. A file is named by its batch, so a replay puts the same bytes under the
//! same name; `commit/N` is what makes it count, and our own readers ([`provider`]) read only files of committed
//! batches. Another program that globs the folder may see a whole file a moment before its commit, never a torn one,
//! never one twice. [`compact`] merges the files of a closed partition on local disk. On object storage a [`mark`]
//! keeps older starts of the pipeline from writing.
//!
//! Strings are plain Parquet strings, timestamps µs with or without UTC adjustment; no Arrow schema is stored in the
//! file, so that it reads the same everywhere. Partition columns are in the path only, as Hive, Spark and DuckDB do it.

pub mod compact;
mod drift;
pub(super) mod layout;
mod mark;
pub(super) mod partition;
pub(super) mod reader;
pub(super) mod sink;

use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::basic::{Compression, ZstdLevel};

use super::{OptionDoc, OptionReader, TableDefinition, is_lake, nullable, redact};
use crate::checkpoint::{Location, s3};
use crate::{Error, Part, Result};

pub use reader::{ParquetTable, Visible, provider};
pub use sink::ParquetSink;

/// Of `STORED AS PARQUET`.
pub const OPTIONS: &[OptionDoc] = &[
    (
        "compression",
        "`zstd` (default, level 1), `lz4`, `snappy` or `none`; whole numbers and times are packed, not compressed",
    ),
    ("max_rows_per_row_group", "default 1,048,576"),
];

/// How files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileFormat {
    pub compression: Compression,
    pub rows_per_row_group: usize,
}

impl FileFormat {
    /// From the options of any table whose files are Parquet.
    pub fn read(options: &mut OptionReader) -> Result<Self> {
        let compression = match options.word("compression", &["zstd", "lz4", "snappy", "none"], "zstd")? {
            "lz4" => Compression::LZ4_RAW,
            "snappy" => Compression::SNAPPY,
            "none" => Compression::UNCOMPRESSED,
            // Level 1: a higher one costs a third of the speed and gains nothing on events (see facts).
            _ => Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()),
        };
        let rows = options.number("max_rows_per_row_group", ROWS_PER_ROW_GROUP)?;
        match usize::try_from(rows) {
            Ok(rows_per_row_group) if rows > 0 => Ok(Self { compression, rows_per_row_group }),
            _ => {
                let error = options.error("max_rows_per_row_group", "is not a usable number of rows");
                Err(error.hint("for example '100_000'"))
            }
        }
    }
}

/// Rows of a row group are in memory while they are encoded; readers prune and parallelise by row group.
const ROWS_PER_ROW_GROUP: u64 = 1_048_576;

/// A table as declared, checked, with its options read.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub definition: Arc<TableDefinition>,
    pub location: Location,
    /// Positions in the declared schema of the partition columns, in their order.
    pub partition_columns: Vec<usize>,
    /// Positions in the declared schema of all other columns: what is in the files.
    pub file_columns: Vec<usize>,
    pub format: FileFormat,
}

impl Table {
    fn new(definition: &Arc<TableDefinition>) -> Result<Self> {
        let mut options = OptionReader::new(definition, OPTIONS).and(s3::OPTIONS);
        let format = FileFormat::read(&mut options)?;
        options.finish()?;
        Self::with_format(definition, format)
    }

    /// Of any table that lies in a folder of Parquet files, in Hive's layout.
    pub fn with_format(definition: &Arc<TableDefinition>, format: FileFormat) -> Result<Self> {
        let wrong = |what: String| Error::user(what).at(definition.place.clone());
        if definition.unbounded {
            return Err(wrong(format!(
                "table {} is UNBOUNDED, but {} tables are read to their end",
                definition.name,
                match definition.stored_as.as_str() {
                    "DELTA" => "Delta",
                    _ => "Parquet",
                }
            ))
            .hint("write CREATE EXTERNAL TABLE"));
        }
        let schema = &definition.schema;
        let mut partition_columns = vec![];
        for name in &definition.partition_columns {
            let index = schema.index_of(name).map_err(|_| {
                wrong(format!("PARTITIONED BY names {name:?}, which is not a column of table {}", definition.name))
                    .hint("declare it among the columns, with its type")
            })?;
            let column = schema.field(index);
            if !partition::can_partition(column.data_type()) {
                return Err(wrong(format!("table {} cannot be partitioned by {name:?}", definition.name))
                    .about(Part::Type(name.clone()))
                    .cause(format!("its type is {}", column.data_type()))
                    .hint("partition by a date, a string, an integer, a decimal, a boolean or a timestamp"));
            }
            partition_columns.push(index);
        }
        let file_columns: Vec<_> = (0..schema.fields().len()).filter(|i| !partition_columns.contains(i)).collect();
        if file_columns.is_empty() {
            return Err(wrong(format!("table {} has no column but those it is partitioned by", definition.name)));
        }
        let location = Location::of_table(definition)?;
        let table = Self { definition: Arc::clone(definition), location, partition_columns, file_columns, format };
        table
            .check_types()
            .map_err(|e| wrong(format!("table {} has a column that Parquet cannot hold", definition.name)).cause(e))?;
        Ok(table)
    }

    /// By writing a row of NULLs: that a type has a place in a Parquet schema does not mean that it can be written.
    fn check_types(&self) -> parquet::errors::Result<()> {
        let schema = nullable(&self.file_schema());
        let columns = schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        let row = RecordBatch::try_new(schema, columns)?;
        sink::encode(self.format, &[row])?;
        Ok(())
    }

    /// What is in the files: no partition columns.
    pub fn file_schema(&self) -> SchemaRef {
        let fields = self.file_columns.iter().map(|i| Arc::clone(&self.definition.schema.fields()[*i]));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    pub fn partition_fields(&self) -> Vec<Arc<Field>> {
        self.partition_columns.iter().map(|i| Arc::clone(&self.definition.schema.fields()[*i])).collect()
    }

    fn column_type(&self, index: usize) -> &DataType {
        self.definition.schema.field(index).data_type()
    }

    pub fn failed(&self, what: &str) -> Error {
        let address = redact(&self.definition.location);
        let kind = if self.definition.stored_as == "DELTA" { "Delta" } else { "Parquet" };
        Error::external(format!("could not {what} {kind} table {}", self.definition.name)).at(address)
    }
}

/// Every file below the LOCATION of a PARQUET or DELTA table is the table's.
///
/// # Errors
/// Of the user: of the tables that are written two share a folder, or one lies in that of another.
pub fn folders_of_their_own(tables: &[Arc<TableDefinition>]) -> Result<()> {
    let (mut seen, mut errors) = (Vec::<(&TableDefinition, Location)>::new(), vec![]);
    for table in tables.iter().filter(|table| is_lake(table)) {
        let here = Location::of_table(table)?;
        let shares = |(_, there): &&(&TableDefinition, Location)| {
            there.url == here.url && (there.path.prefix_matches(&here.path) || here.path.prefix_matches(&there.path))
        };
        if let Some((other, _)) = seen.iter().find(shares) {
            let error = Error::user(format!("tables {} and {} share a folder", other.name, table.name));
            errors.push(
                error
                    .at(table.place.clone())
                    .hint("every file below a table's LOCATION is the table's: give each a folder of its own"),
            );
        }
        seen.push((table, here));
    }
    Error::all(errors).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
