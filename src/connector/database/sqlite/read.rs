//! Rows of a table as record batches of the declared types.
//!
//! SQLite keeps a value of any type in any column, so each value is looked at: what is not of the declared type (or text
//! that reads as it, for times and decimals) is an error that names the column.

use std::path::Path;

use arrow::array::{RecordBatch, RecordBatchOptions};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use rusqlite::types::ValueRef;
use serde_json::Value;

use super::columns::described;
use super::{failure, open, target};
use crate::connector::database::builder::{Builder, decimal};
use crate::connector::database::scan::{BATCH_ROWS, Query};
use crate::connector::database::{DatabaseTable, quoted};
use crate::{Error, Result};

/// Gives each record batch to `give` until it returns `false`. Blocks.
///
/// # Errors
/// File, table or column missing, or a value that is not of the declared type (user); the disk (external).
pub fn read(
    table: &DatabaseTable,
    path: &Path,
    query: &Query,
    mut give: impl FnMut(RecordBatch) -> bool,
) -> Result<()> {
    let doing = format!("could not read table {}", table.target_name());
    let failed = |e: rusqlite::Error| failure(&e, &doing);
    let connection = open(path, table.connect_timeout, false)?;
    described(&connection, table, false)?;
    let fields = query.schema.fields();
    // A name in quotes that is no column would be text to SQLite: the table's name in front rules that out.
    let name = quoted(&table.target.1);
    let columns: Vec<String> = fields.iter().map(|f| format!("{name}.{}", quoted(f.name()))).collect();
    let columns = if columns.is_empty() { "1".into() } else { columns.join(", ") };
    let mut statement =
        connection.prepare(&format!("SELECT {columns} FROM {}{}", target(table), query.tail())).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let mut builders = vec![];
    for field in fields {
        let builder = Builder::new(field.data_type());
        builders.push(
            builder
                .ok_or_else(|| Error::user(format!("column \"{}\" has a type that no database has", field.name())))?,
        );
    }
    let mut count = 0;
    loop {
        let row = rows.next().map_err(failed)?;
        if let Some(row) = row {
            for (index, builder) in builders.iter_mut().enumerate() {
                let value = row.get_ref(index).map_err(failed)?;
                let wrong =
                    |why| Error::user(doing.clone()).cause(format!("column \"{}\": {why}", fields[index].name()));
                put(builder, value).map_err(wrong)?;
            }
            count += 1;
        }
        let ended = row.is_none();
        if count == BATCH_ROWS || ended && count > 0 {
            let arrays = builders.iter_mut().zip(fields.iter()).map(|(b, f)| b.finish(f.data_type()));
            let arrays = arrays.collect::<std::result::Result<Vec<_>, _>>();
            let options = RecordBatchOptions::new().with_row_count(Some(count));
            let batch =
                arrays.and_then(|arrays| RecordBatch::try_new_with_options(query.schema.clone(), arrays, &options));
            count = 0;
            if !give(batch.map_err(|e| Error::user(doing.clone()).cause(e))?) {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
    }
}

/// Rows that are counted at most: SQLite keeps no figure of a table.
const COUNTED_MAX: u32 = 100_000;

/// How many rows a table has, if they are few.
///
/// # Errors
/// The file's, the table's.
pub fn estimated_rows(table: &DatabaseTable, path: &Path) -> Result<Option<usize>> {
    let failed = |e: rusqlite::Error| failure(&e, &format!("could not look up table {}", table.target_name()));
    let connection = open(path, table.connect_timeout, false)?;
    let sql = format!("SELECT count(*) FROM (SELECT 1 FROM {} LIMIT {COUNTED_MAX})", target(table));
    let rows: u32 = connection.query_row(&sql, [], |row| row.get(0)).map_err(failed)?;
    Ok((rows < COUNTED_MAX).then_some(rows as usize))
}

fn put(builder: &mut Builder, value: ValueRef) -> Result<(), String> {
    match (builder, value) {
        (builder, ValueRef::Null) => builder.null(),
        (Builder::Bool(b), ValueRef::Integer(v @ (0 | 1))) => b.append_value(v == 1),
        (Builder::Int(b), ValueRef::Integer(v)) => b.append_value(v),
        (Builder::Float(b), ValueRef::Real(v)) => b.append_value(v),
        (Builder::Float(b), ValueRef::Integer(v)) if v.unsigned_abs() <= 1 << 53 => b.append_value(v as f64),
        (Builder::Decimal(b, scale), ValueRef::Integer(v)) => b.append_value(decimal(&v.to_string(), *scale)?),
        (Builder::Bytes(b), ValueRef::Blob(v) | ValueRef::Text(v)) => b.append_value(v),
        (builder, ValueRef::Text(v)) => return put_text(builder, std::str::from_utf8(v).map_err(|e| e.to_string())?),
        (_, other) => return Err(format!("the value is of type {}", other.data_type())),
    }
    Ok(())
}

fn put_text(builder: &mut Builder, text: &str) -> Result<(), String> {
    match builder {
        Builder::Text(b) => b.append_value(text),
        Builder::Decimal(b, scale) => b.append_value(decimal(text, *scale)?),
        Builder::Timestamp(b) => b.append_value(timestamp(text).ok_or_else(|| format!("{text:?} is no timestamp"))?),
        Builder::Date(b) => {
            let day: NaiveDate = text.parse().map_err(|_| format!("{text:?} is no date"))?;
            b.append_value(day.signed_duration_since(NaiveDate::default()).num_days() as i32);
        }
        Builder::List { items, .. } => {
            let list: Vec<Value> = serde_json::from_str(text).map_err(|e| format!("no JSON list: {e}"))?;
            list.iter().try_for_each(|item| put_json(items, item))?;
            return builder.end_list();
        }
        _ => return Err(format!("the value is text: {text:?}")),
    }
    Ok(())
}

/// µs since 1970 of an ISO 8601 timestamp, with `T` or a space, with or without a zone (then UTC).
fn timestamp(text: &str) -> Option<i64> {
    let zoned = DateTime::parse_from_rfc3339(text)
        .ok()
        .or_else(|| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%:z").ok());
    if let Some(zoned) = zoned {
        return Some(zoned.timestamp_micros());
    }
    let formats = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f"];
    let plain = formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    plain.map(|plain| plain.and_utc().timestamp_micros())
}

fn put_json(builder: &mut Builder, value: &Value) -> Result<(), String> {
    match (builder, value) {
        (builder, Value::Null) => builder.null(),
        (Builder::Bool(b), Value::Bool(v)) => b.append_value(*v),
        (Builder::Int(b), Value::Number(v)) => b.append_value(v.as_i64().ok_or_else(|| format!("{v} is no bigint"))?),
        (Builder::Float(b), Value::Number(v)) => b.append_value(v.as_f64().ok_or_else(|| format!("{v} is no double"))?),
        (builder, Value::String(v)) => return put_text(builder, v),
        (_, other) => return Err(format!("{other} in a list is not of the declared type")),
    }
    Ok(())
}
