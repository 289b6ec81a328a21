//! SQLite: a database in one file, where nothing else is at hand.
//!
//! The same contract as PostgreSQL: rows and batch record in one transaction, a higher epoch fences a lower one (every
//! transaction is `BEGIN IMMEDIATE` and looks at the epoch first). WAL with `synchronous = FULL`: what is committed is
//! on disk. Tables that are missing are made from their declarations.
//!
//! | declared                       | stored                                                                      |
//! |--------------------------------|-----------------------------------------------------------------------------|
//! | BOOLEAN, integers              | INTEGER (a boolean as 0 or 1)                                               |
//! | REAL, DOUBLE                   | REAL; NaN is refused, since SQLite would keep it as NULL                    |
//! | DECIMAL                        | TEXT, all digits                                                            |
//! | TIMESTAMP                      | TEXT `2026-11-23 14:05:00.000000`: sorts as time does, and SQLite's date functions read it |
//! | TIMESTAMPTZ                    | the same with `+00:00`                                                      |
//! | DATE                           | TEXT `2026-11-23`                                                           |
//! | VARCHAR, lists (as JSON)       | TEXT                                                                        |
//! | BYTEA                          | BLOB                                                                        |
//!
//! rusqlite blocks, so all of it runs on tokio's threads for blocking work.

use std::path::Path;
use std::time::Duration;

use arrow::datatypes::DataType;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{DatabaseTable, OnConflict, quoted, quoted_list};
use crate::{Error, Result};

mod bind;
mod columns;
mod read;
mod sink;

pub use sink::SqliteSink;

pub(super) use read::{estimated_rows, read};

/// Opens the file, making it if it may be written.
fn open(path: &Path, busy_timeout: Duration, writing: bool) -> Result<Connection> {
    let doing = || format!("could not open the database {}", path.display());
    let flags =
        if writing { OpenFlags::default() } else { OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX };
    if writing && let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::user(doing()).cause(e))?;
    }
    let connection = Connection::open_with_flags(path, flags).map_err(|e| failure(&e, &doing()))?;
    connection.busy_timeout(busy_timeout).map_err(|e| failure(&e, &doing()))?;
    if writing {
        let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";
        connection.execute_batch(pragmas).map_err(|e| failure(&e, &doing()))?;
    }
    Ok(connection)
}

/// The declared table, for a file that does not have it yet.
fn create_table(table: &DatabaseTable) -> String {
    let definition = table.definition();
    let columns = definition.schema.fields().iter().map(|field| {
        let key = definition.primary_key.contains(field.name());
        // SQLite would else take NULLs in a key.
        let not_null = if key || !field.is_nullable() { " NOT NULL" } else { "" };
        format!("{} {}{not_null}", quoted(field.name()), stored_type(field.data_type()))
    });
    let mut parts: Vec<String> = columns.collect();
    if !definition.primary_key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", quoted_list(definition.primary_key.iter().map(String::as_str))));
    }
    format!("CREATE TABLE IF NOT EXISTS {} ({})", target(table), parts.join(", "))
}

/// A name whose affinity keeps the value as we bind it. Never INTEGER: a key of that type would number rows itself.
fn stored_type(declared: &DataType) -> &'static str {
    use DataType::*;
    match declared {
        Boolean | Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => "BIGINT",
        Float32 | Float64 => "REAL",
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => "BLOB",
        _ => "TEXT",
    }
}

fn target(table: &DatabaseTable) -> String {
    match &table.target {
        (Some(schema), name) => format!("{}.{}", quoted(schema), quoted(name)),
        (None, name) => quoted(name),
    }
}

/// One row by position: `INSERT INTO … VALUES (?1, …) ON CONFLICT …`.
fn insert_statement(table: &DatabaseTable) -> String {
    let definition = table.definition();
    let names: Vec<&str> = definition.schema.fields().iter().map(|f| f.name().as_str()).collect();
    let key: Vec<&str> = definition.primary_key.iter().map(String::as_str).collect();
    let values: Vec<String> = (1..=names.len()).map(|n| format!("?{n}")).collect();
    let conflict_target =
        if key.is_empty() { String::new() } else { format!(" ({})", quoted_list(key.iter().copied())) };
    let others: Vec<&str> = names.iter().copied().filter(|name| !key.contains(name)).collect();
    let conflict = match table.on_conflict() {
        OnConflict::Refuse => String::new(),
        OnConflict::Update if !others.is_empty() => {
            let set: Vec<String> = others.iter().map(|c| format!("{0} = excluded.{0}", quoted(c))).collect();
            format!(" ON CONFLICT{conflict_target} DO UPDATE SET {}", set.join(", "))
        }
        OnConflict::Nothing | OnConflict::Update => format!(" ON CONFLICT{conflict_target} DO NOTHING"),
    };
    let (target, names) = (target(table), quoted_list(names.iter().copied()));
    format!("INSERT INTO {target} ({names}) VALUES ({}){conflict}", values.join(", "))
}

/// Whether the row is at fault; then the transaction goes on without it.
fn is_refusal(error: &rusqlite::Error) -> bool {
    let codes = [ErrorCode::ConstraintViolation, ErrorCode::TypeMismatch, ErrorCode::TooBig];
    error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}

/// The error to hand up when `what` failed.
fn failure(error: &rusqlite::Error, what: &str) -> Error {
    use ErrorCode::*;
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked) => Error::external(what)
            .cause(error)
            .retryable()
            .hint("another process writes to this file; SQLite lets in one at a time"),
        Some(DiskFull | SystemIoFailure | OutOfMemory | OperationInterrupted | FileLockingProtocolFailed) => {
            Error::external(what).cause(error).retryable()
        }
        Some(DatabaseCorrupt | NotADatabase) => Error::external(what).cause(error),
        Some(PermissionDenied | ReadOnly | CannotOpen) => {
            Error::user(what).cause(error).hint("check that the file and its folder exist and may be written")
        }
        _ => Error::user(what).cause(error),
    }
}
