//! Values of Arrow columns as parameters of a statement, by position.

use std::fmt::Write;

use rusqlite::Statement;
use rusqlite::types::Null;

use crate::connector::database::column::{Column, Values};

/// Why a value was not bound.
pub(super) enum Unbound {
    /// SQLite cannot hold it.
    Refused(String),
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Unbound {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

/// Binds parameter `position` (from 1). `text` is scratch space, so that nothing is allocated per value.
pub(super) fn bind(
    statement: &mut Statement,
    position: usize,
    column: &Column,
    row: usize,
    text: &mut String,
) -> Result<(), Unbound> {
    if column.is_null(row) {
        return Ok(statement.raw_bind_parameter(position, Null)?);
    }
    text.clear();
    match &column.values {
        Values::Null => statement.raw_bind_parameter(position, Null)?,
        Values::Bool(v) => statement.raw_bind_parameter(position, v.value(row))?,
        Values::Int(v) => statement.raw_bind_parameter(position, v[row])?,
        Values::UInt(v) => {
            let value = i64::try_from(v[row]).map_err(|_| Unbound::Refused(format!("{} is out of range", v[row])))?;
            statement.raw_bind_parameter(position, value)?;
        }
        Values::Float(v) if v[row].is_nan() => return Err(Unbound::Refused("SQLite has no NaN".into())),
        Values::Float(v) => statement.raw_bind_parameter(position, v[row])?,
        Values::Text(v) => statement.raw_bind_parameter(position, v.value(row))?,
        Values::Bytes(v) => statement.raw_bind_parameter(position, v.value(row))?,
        Values::Decimal(..) | Values::Timestamp(..) | Values::Date(_) => {
            write_text(text, column, row).map_err(Unbound::Refused)?;
            statement.raw_bind_parameter(position, text.as_str())?;
        }
        Values::List(..) => {
            let json = json(column, row).map_err(Unbound::Refused)?;
            statement.raw_bind_parameter(position, json.to_string())?;
        }
    }
    Ok(())
}

/// Decimals, times and days in the form that the module's documentation gives.
fn write_text(text: &mut String, column: &Column, row: usize) -> Result<(), String> {
    let written = match &column.values {
        Values::Decimal(v, scale) => {
            let unit = 10u128.pow(*scale);
            let (sign, value) = (if v[row] < 0 { "-" } else { "" }, v[row].unsigned_abs());
            match *scale {
                0 => write!(text, "{sign}{value}"),
                scale => write!(text, "{sign}{}.{:0width$}", value / unit, value % unit, width = scale as usize),
            }
        }
        Values::Timestamp(v, zone) => {
            let (days, micros) = (v[row].div_euclid(86_400_000_000), v[row].rem_euclid(86_400_000_000));
            write_day(text, days)?;
            let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
            let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            let zone = if *zone { "+00:00" } else { "" };
            write!(text, " {hour:02}:{minute:02}:{second:02}.{fraction:06}{zone}")
        }
        Values::Date(v) => return write_day(text, i64::from(v[row])),
        _ => return Err("the value has no text form".into()),
    };
    written.map_err(|e| e.to_string())
}

fn write_day(text: &mut String, days: i64) -> Result<(), String> {
    use chrono::Datelike;
    const FROM_YEAR_ONE: i64 = 719_163;
    let day = i32::try_from(days + FROM_YEAR_ONE).ok().and_then(chrono::NaiveDate::from_num_days_from_ce_opt);
    let day = day.filter(|day| (0..=9999).contains(&day.year())).ok_or("a time outside the years 0 to 9999")?;
    write!(text, "{:04}-{:02}-{:02}", day.year(), day.month(), day.day()).map_err(|e| e.to_string())
}

fn json(column: &Column, row: usize) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    if column.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match &column.values {
        Values::Null => Value::Null,
        Values::Bool(v) => v.value(row).into(),
        Values::Int(v) => v[row].into(),
        Values::UInt(v) => v[row].into(),
        Values::Float(v) if !v[row].is_finite() => return Err("JSON has no NaN and no infinity".into()),
        Values::Float(v) => v[row].into(),
        Values::Text(v) => v.value(row).into(),
        Values::Bytes(_) => return Err("bytes in a list".into()),
        Values::Decimal(..) | Values::Timestamp(..) | Values::Date(_) => {
            let mut text = String::new();
            write_text(&mut text, column, row)?;
            text.into()
        }
        Values::List(offsets, items) => {
            let range = offsets[row] as usize..offsets[row + 1] as usize;
            range.map(|item| json(items, item)).collect::<Result<Vec<_>, _>>()?.into()
        }
    })
}
