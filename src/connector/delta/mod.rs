//! Delta tables: Parquet files and a log that says which of them count.
//!
//! ```text
//! <LOCATION>/_delta_log/00000000000000001207.json          one entry a commit, put if absent
//! <LOCATION>/event_date=2026-11-23/<UUID>-<epoch>-<batch>-<sequence>.parquet
//!
//! batch N ─▶ files ─▶ entry: add them, txn (UUID, N)       [`DeltaSink`]
//!            in the background ─▶ merge small files, write checkpoints, remove what is old
//! ```
//!
//! A batch is in a table when its entry is, whole or not at all. The entry holds the batch's number as the transaction of the
//! application *(UUID of the checkpoint)*, so whoever finds the number there writes nothing more. An entry is only put on top of
//! entries that were looked at ([`log`]): that is how an older start is kept out, and why two that merge files cannot both
//! replace the same ones.
//!
//! deltalake keeps the log: its format, snapshots, checkpoints and storage. Data files are written, merged and read by our own
//! Parquet code; deltalake's queries would bring a second way to run SQL, and half as many crates again.

mod log;
mod maintain;
mod merge;
mod options;
mod reader;
mod schema;
mod sink;
mod stats;
mod writer;

use std::sync::Arc;

use deltalake_core::DeltaTableError;
use uuid::Uuid;

use super::TableDefinition;
use super::parquet::Table;
use crate::checkpoint::trouble::explained;
use crate::{Error, Result};

pub use options::OPTIONS;
pub use reader::provider;
pub use sink::DeltaSink;

use options::Maintenance;

/// A table as declared, checked, with its options read.
#[derive(Debug, Clone)]
struct DeltaTable {
    table: Arc<Table>,
    maintenance: Maintenance,
}

impl DeltaTable {
    fn new(definition: &Arc<TableDefinition>) -> Result<Self> {
        let (format, maintenance) = options::read(definition)?;
        let table = Arc::new(Table::with_format(definition, format)?);
        schema::of(&table)?;
        Ok(Self { table, maintenance })
    }

    fn name(&self) -> &str {
        &self.table.definition.name
    }

    fn failed(&self, what: &str, error: &DeltaTableError) -> Error {
        failed(&self.table, what, error)
    }
}

/// An error of deltalake as one of ours. What its storage says may pass.
fn failed(table: &Table, what: &str, error: &DeltaTableError) -> Error {
    match error {
        DeltaTableError::ObjectStore { source } => explained(table.failed(what), source),
        _ => table.failed(what).cause(error),
    }
}

/// `<UUID>-<epoch>-<what>.parquet`: a file that this start of the pipeline writes, and no other.
fn file_name(pipeline: Uuid, epoch: u64, what: &str) -> String {
    format!("{pipeline}-{epoch:010}-{what}.parquet")
}

/// Pipeline and epoch of a file that some pipeline wrote; `None`: it is another program's.
fn writer_of(name: &str) -> Option<(Uuid, u64)> {
    let pipeline = Uuid::try_parse(name.get(..36)?).ok()?;
    let (epoch, _) = name.get(36..)?.strip_prefix('-')?.strip_suffix(".parquet")?.split_once('-')?;
    Some((pipeline, epoch.parse().ok().filter(|_| epoch.len() == 10)?))
}

#[cfg(test)]
mod tests;
