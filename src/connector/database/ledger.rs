//! What both databases keep about each batch, in the same transaction as its rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::connector::{Ranges, Wave, WriteReport, WriteRequest};
use crate::{Error, Result};

/// Batch records that are kept: enough to look back at, little enough to cost nothing.
pub(super) const BATCHES_KEPT: u64 = 1_000;

/// Old records are deleted once in so many batches.
pub(super) const RETENTION_EVERY: u64 = 64;

/// One INSERT of a batch, as the record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InsertHash {
    pub insert: usize,
    pub table: String,
    pub rows: usize,
    pub hash: String,
}

pub(super) fn wave_name(wave: Wave) -> &'static str {
    match wave {
        Wave::Rows => "rows",
        Wave::DeadLetters => "dead_letters",
    }
}

pub(super) fn hashes(request: &WriteRequest) -> Vec<InsertHash> {
    let inserts = request.inserts.iter();
    inserts
        .map(|i| InsertHash {
            insert: i.insert,
            table: i.table.name.clone(),
            rows: i.row_count(),
            hash: i.hash.clone(),
        })
        .collect()
}

pub(super) fn offsets_json(offsets: &BTreeMap<String, Ranges>) -> Result<String> {
    json("the offsets", offsets)
}

pub(super) fn json<T: Serialize>(what: &str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(format!("could not write {what} as JSON")).cause(e))
}

/// The report of a batch that is in the database already, if it is the batch that is asked for.
///
/// # Errors
/// The stored hashes are of other rows: what was replayed is not what was written (internal).
pub(super) fn stored_report(request: &WriteRequest, hashes_json: &str, report_json: &str) -> Result<WriteReport> {
    let unreadable =
        |e| Error::internal(format!("could not read the stored record of batch {}", request.batch)).cause(e);
    let stored: Vec<InsertHash> = serde_json::from_str(hashes_json).map_err(unreadable)?;
    let asked = hashes(request);
    // More may be stored than is asked for: of a table that was turned off meanwhile.
    if let Some(InsertHash { table, insert, .. }) = asked.iter().find(|asked| !stored.contains(asked)) {
        let which = format!("table {table} (insert {insert})");
        let message = format!("replay differs: batch {} is in the database with other rows in {which}", request.batch);
        let hint =
            "a query gave other rows for the same offsets, or two locations name one database; nothing was written";
        return Err(Error::internal(message).hint(hint));
    }
    let report: WriteReport = serde_json::from_str(report_json).map_err(unreadable)?;
    Ok(WriteReport { already: true, ..report })
}

/// The same error for every database: a start with a higher epoch has taken over.
pub(super) fn fenced(ours: u64, theirs: i64) -> Error {
    Error::external(format!("fenced by epoch {theirs}: this process has epoch {ours}"))
        .hint("another process runs this pipeline now; stop one of the two")
}

/// More rows were refused than a batch may lose.
pub(super) fn too_many_refused(table: &str, first: &str) -> Error {
    Error::user(format!("the database refuses more than {} rows of one batch of table {table}", super::REFUSED_MAX))
        .cause(first)
        .hint(
            "the database has nothing of the batch. Compare the table's columns and constraints with the declaration: if other \
             sinks hold the batch, it is finished as it was planned, so mend the table, not the SQL",
        )
}
