//! Rows of Arrow columns as PostgreSQL's `COPY … (FORMAT BINARY)`, by the types of the database's columns.
//!
//! Each value is appended to one growing buffer: nothing is allocated or boxed per value. A value that the column
//! cannot hold (an integer out of range, text that is no UUID) takes its row back out of the buffer and gives the
//! reason, without a trip to the server.
//!
//! Source: PostgreSQL manual, "COPY", binary format; the `*_recv` functions of `src/backend/utils/adt`.

use arrow::array::RecordBatch;
use bytes::BytesMut;

use crate::connector::database::column::{Column, Values};

/// `PGCOPY\n\377\r\n\0`, no flags, no extension.
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// A field count of -1 ends the data.
pub(super) const TRAILER: &[u8] = &[0xff, 0xff];

/// µs and days between 1970-01-01 and 2000-01-01.
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// 4714-11-24 BC to 294276-12-31, µs since 2000 (`datatype/timestamp.h`).
const TIMESTAMPS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;
/// 4714-11-24 BC to 5874897-12-31, days since 2000.
const DATES: std::ops::Range<i32> = -2_451_545..2_145_031_949;
/// One field of PostgreSQL.
const BYTES_MAX: usize = 0x3fff_ffff;

/// A type of PostgreSQL that we can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// The first absolute value that does not fit, in units of the Arrow column's last digit, where one is known.
    Numeric(Option<u128>),
    /// text, varchar, bpchar, json, citext, an enum; with the characters a varchar or bpchar may have.
    Text(Option<u32>),
    Jsonb,
    Uuid,
    Bytea,
    Timestamp,
    TimestampTz,
    Date,
}

/// A column of the table: its type, and the type's OID if the column is an array of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub kind: Kind,
    pub array_of: Option<u32>,
}

/// Appends one row.
///
/// # Errors
/// The number of the column whose value does not fit, and why; then `out` is as before.
pub(super) fn put_row(
    out: &mut BytesMut,
    columns: &[Column],
    targets: &[Target],
    row: usize,
    ordinal: Option<i64>,
) -> Result<(), (usize, String)> {
    let start = out.len();
    put_head(out, columns.len(), ordinal);
    put_fields(out, columns, targets, row).inspect_err(|_| out.truncate(start))
}

/// The bytes that COPY sends for these rows, into columns of the plainest types that hold theirs: what a bench measures.
///
/// # Errors
/// A column of no type that is sent.
pub fn encoded_bytes(batch: &RecordBatch) -> crate::Result<usize> {
    let columns = batch.columns().iter().map(Column::new).collect::<crate::Result<Vec<_>>>()?;
    let kind = |column: &Column| match column.values {
        Values::Int(_) | Values::UInt(_) => Kind::Int8,
        Values::Float(_) => Kind::Float8,
        Values::Bool(_) => Kind::Bool,
        Values::Timestamp(_, false) => Kind::Timestamp,
        Values::Timestamp(_, true) => Kind::TimestampTz,
        Values::Date(_) => Kind::Date,
        Values::Bytes(_) => Kind::Bytea,
        _ => Kind::Text(None),
    };
    let targets: Vec<Target> = columns.iter().map(|column| Target { kind: kind(column), array_of: None }).collect();
    let mut out = BytesMut::new();
    for row in 0..batch.num_rows() {
        let put = put_row(&mut out, &columns, &targets, row, None);
        put.map_err(|(column, why)| crate::Error::internal(format!("column {column}: {why}")))?;
    }
    Ok(out.len())
}

/// What a row begins with.
pub(super) fn put_head(out: &mut BytesMut, columns: usize, ordinal: Option<i64>) {
    let fields = columns + usize::from(ordinal.is_some());
    out.extend_from_slice(&(fields as i16).to_be_bytes());
    if let Some(ordinal) = ordinal {
        put8(out, ordinal.to_be_bytes());
    }
}

/// Appends the values of a row.
///
/// # Errors
/// As [`put_row`].
pub(super) fn put_fields(
    out: &mut BytesMut,
    columns: &[Column],
    targets: &[Target],
    row: usize,
) -> Result<(), (usize, String)> {
    let start = out.len();
    for (index, (column, target)) in columns.iter().zip(targets).enumerate() {
        let put = match target.array_of {
            None => put_value(out, column, target.kind, row),
            Some(oid) => put_array(out, column, target.kind, oid, row),
        };
        if let Err(reason) = put {
            out.truncate(start);
            return Err((index, reason));
        }
    }
    Ok(())
}

#[inline]
fn put_value(out: &mut BytesMut, column: &Column, kind: Kind, row: usize) -> Result<(), String> {
    if column.is_null(row) {
        out.extend_from_slice(&(-1i32).to_be_bytes());
        return Ok(());
    }
    match (&column.values, kind) {
        (Values::Int(v), Kind::Int8) => put8(out, v[row].to_be_bytes()),
        (Values::Text(v), Kind::Text(length_max)) => {
            return put_text(out, v.value(row), column.may_have_nul, length_max);
        }
        (Values::Timestamp(v, false), Kind::Timestamp) | (Values::Timestamp(v, true), Kind::TimestampTz) => {
            let since_2000 = v[row].checked_sub(EPOCH_MICROS).filter(|t| TIMESTAMPS.contains(t));
            put8(out, since_2000.ok_or("timestamp out of range")?.to_be_bytes());
        }
        (Values::Int(v), Kind::Int4) => {
            put4(out, i32::try_from(v[row]).map_err(|_| out_of_range(v[row]))?.to_be_bytes())
        }
        (Values::Int(v), Kind::Int2) => {
            put2(out, i16::try_from(v[row]).map_err(|_| out_of_range(v[row]))?.to_be_bytes())
        }
        (Values::Int(v), Kind::Numeric(end)) => return put_numeric(out, i128::from(v[row]), 0, end),
        (Values::UInt(v), Kind::Int8) => {
            put8(out, i64::try_from(v[row]).map_err(|_| out_of_range(v[row]))?.to_be_bytes())
        }
        (Values::UInt(v), Kind::Numeric(end)) => return put_numeric(out, i128::from(v[row]), 0, end),
        (Values::Float(v), Kind::Float8) => put8(out, v[row].to_be_bytes()),
        (Values::Float(v), Kind::Float4) => put4(out, (v[row] as f32).to_be_bytes()), // as it was before
        (Values::Bool(v), Kind::Bool) => out.extend_from_slice(&[0, 0, 0, 1, u8::from(v.value(row))]),
        (Values::Decimal(v, scale), Kind::Numeric(end)) => return put_numeric(out, v[row], *scale, end),
        (Values::Date(v), Kind::Date) => {
            let since_2000 = v[row].checked_sub(EPOCH_DAYS).filter(|d| DATES.contains(d));
            put4(out, since_2000.ok_or("date out of range")?.to_be_bytes());
        }
        (Values::Text(v), Kind::Jsonb) => {
            let text = checked(v.value(row), column.may_have_nul)?;
            put_length(out, text.len() + 1);
            out.extend_from_slice(&[1]);
            out.extend_from_slice(text.as_bytes());
        }
        (Values::Text(v), Kind::Uuid) => {
            let uuid = uuid::Uuid::try_parse(v.value(row)).map_err(|_| "text is no UUID")?;
            put_bytes(out, uuid.as_bytes());
        }
        (Values::Bytes(v), Kind::Uuid) => {
            let bytes: &[u8; 16] = v.value(row).try_into().map_err(|_| "a UUID has 16 bytes")?;
            put_bytes(out, bytes);
        }
        (Values::Bytes(v), Kind::Bytea) => {
            let bytes = v.value(row);
            if bytes.len() > BYTES_MAX {
                return Err("longer than 1 GB".into());
            }
            put_bytes(out, bytes);
        }
        // `catalog` pairs types when the table is opened.
        _ => return Err("the value's type does not fit the column".into()),
    }
    Ok(())
}

fn put_array(out: &mut BytesMut, column: &Column, kind: Kind, oid: u32, row: usize) -> Result<(), String> {
    let (false, Values::List(offsets, items)) = (column.is_null(row), &column.values) else {
        out.extend_from_slice(&(-1i32).to_be_bytes());
        return Ok(());
    };
    let items_of_row = offsets[row] as usize..offsets[row + 1] as usize;
    let has_null = items_of_row.clone().any(|item| items.is_null(item));
    let length_at = out.len();
    let dimensions = i32::from(!items_of_row.is_empty());
    for word in [0, dimensions, i32::from(has_null), oid as i32] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    if dimensions == 1 {
        out.extend_from_slice(&(items_of_row.len() as i32).to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
    }
    for item in items_of_row {
        put_value(out, items, kind, item)?;
    }
    let length = out.len() - length_at - 4;
    if length > BYTES_MAX {
        return Err("longer than 1 GB".into());
    }
    out[length_at..length_at + 4].copy_from_slice(&(length as i32).to_be_bytes());
    Ok(())
}

fn out_of_range(value: impl std::fmt::Display) -> String {
    format!("{value} is out of range")
}

/// Text that PostgreSQL can hold.
#[inline]
fn checked(text: &str, may_have_nul: bool) -> Result<&str, String> {
    if may_have_nul && memchr::memchr(0, text.as_bytes()).is_some() {
        return Err("text with a NUL character, which PostgreSQL cannot hold".into());
    }
    if text.len() > BYTES_MAX {
        return Err("longer than 1 GB".into());
    }
    Ok(text)
}

#[inline]
fn put_text(out: &mut BytesMut, text: &str, may_have_nul: bool, length_max: Option<u32>) -> Result<(), String> {
    let text = checked(text, may_have_nul)?;
    // Spaces beyond the length are cut by the server, as the SQL standard says.
    if let Some(max) = length_max
        && text.len() > max as usize
        && text.trim_end_matches(' ').chars().count() > max as usize
    {
        return Err(format!("text is longer than {max} characters"));
    }
    put_bytes(out, text.as_bytes());
    Ok(())
}

#[inline]
fn put_length(out: &mut BytesMut, length: usize) {
    out.extend_from_slice(&(length as i32).to_be_bytes());
}

#[inline]
fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[inline]
fn put8(out: &mut BytesMut, value: [u8; 8]) {
    let [a, b, c, d, e, f, g, h] = value;
    out.extend_from_slice(&[0, 0, 0, 8, a, b, c, d, e, f, g, h]);
}

#[inline]
fn put4(out: &mut BytesMut, value: [u8; 4]) {
    let [a, b, c, d] = value;
    out.extend_from_slice(&[0, 0, 0, 4, a, b, c, d]);
}

#[inline]
fn put2(out: &mut BytesMut, value: [u8; 2]) {
    out.extend_from_slice(&[0, 0, 0, 2, value[0], value[1]]);
}

/// A decimal as groups of four digits around the point, without leading and trailing zero groups.
fn put_numeric(out: &mut BytesMut, value: i128, scale: u32, end: Option<u128>) -> Result<(), String> {
    let mut rest = value.unsigned_abs();
    if end.is_some_and(|end| rest >= end) {
        return Err("number has more digits than the column".into());
    }
    // Lowest group first. 39 digits and a partial group at the point are 11 groups at most.
    let (mut groups, mut count) = ([0u16; 12], 0);
    let partial = scale % 4;
    if partial != 0 {
        let unit = 10u128.pow(partial);
        groups[0] = ((rest % unit) * 10u128.pow(4 - partial)) as u16;
        (rest, count) = (rest / unit, 1);
    }
    while rest > u128::from(u64::MAX) {
        groups[count] = (rest % 10_000) as u16;
        (rest, count) = (rest / 10_000, count + 1);
    }
    let mut rest = rest as u64; // division of 128 bits is slow
    while rest != 0 {
        groups[count] = (rest % 10_000) as u16;
        (rest, count) = (rest / 10_000, count + 1);
    }
    let behind_point = scale.div_ceil(4) as usize;
    while count > 0 && groups[count - 1] == 0 {
        count -= 1;
    }
    let zeros = groups[..count].iter().take_while(|g| **g == 0).count();
    let digits = &groups[zeros..count];
    let weight = if digits.is_empty() { 0 } else { count as i16 - 1 - behind_point as i16 };
    let sign: u16 = if value < 0 { 0x4000 } else { 0 };
    put_length(out, 8 + 2 * digits.len());
    out.extend_from_slice(&(digits.len() as i16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&(scale as u16).to_be_bytes());
    for group in digits.iter().rev() {
        out.extend_from_slice(&group.to_be_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
