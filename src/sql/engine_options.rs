//! Options of a table that are the engine's own, whatever its connector: `role`, `delivery`, `refresh`, `max_bytes`, `watermark.…`.

use std::time::Duration;

use arrow::datatypes::DataType;

use super::insert::sql_name;
use super::nearest;
use super::program::WatermarkSpec;
use super::settings::size;
use crate::connector::options::{ENGINE_OPTIONS, duration};
use crate::connector::{TableDefinition, is_lake};
use crate::{Error, Part, Result};

/// Before a source's partition holds its watermark back no longer, and how far ahead of the clock is believed.
const WATERMARK_IDLE: Duration = Duration::from_secs(60);
const WATERMARK_MAX_AHEAD: Duration = Duration::from_secs(3_600);

/// The option is wrong here.
fn misplaced(table: &TableDefinition, key: &str, why: &str) -> Error {
    wrong(table, key, why).about(Part::Option(key.into()))
}

/// Its value is.
fn wrong(table: &TableDefinition, key: &str, why: &str) -> Error {
    let error = Error::user(format!("option '{key}' {why}")).at(table.place.clone());
    error.about(Part::OptionValue(key.into()))
}

/// Options that mean nothing here, or not what they seem to.
///
/// # Errors
/// Of the user, about that option.
pub fn check(table: &TableDefinition) -> Result<()> {
    match table.options.get("role").map(String::as_str) {
        None | Some("dead_letters" | "valid") => {}
        Some(role) => {
            let error = wrong(table, "role", &format!("is {role:?}, not one of dead_letters, valid"));
            let near = nearest(role, ["dead_letters", "valid"]);
            return Err(error.with_hint(near.map(|near| format!("did you mean '{near}'?"))));
        }
    }
    match table.options.get("delivery").map(String::as_str) {
        None | Some("required") => {}
        Some("outbox") if table.unbounded => {
            let error = wrong(table, "delivery", "is for tables that are written");
            return Err(error.hint("leave it out"));
        }
        Some("outbox") if table.is_dead_letters() => {
            let error = wrong(table, "delivery", "is 'outbox', but the table is for dead letters");
            return Err(error.hint("leave it out: what the sinks with an outbox refuse goes there, and must arrive"));
        }
        Some("outbox") if is_lake(table) => {
            let why = format!(
                "is 'outbox', but what is read of a {} table are the files of committed batches",
                table.stored_as
            );
            return Err(wrong(table, "delivery", &why).hint("leave it out: its files must be there by then"));
        }
        Some("outbox") => {}
        Some(other) => {
            let error = wrong(table, "delivery", &format!("is {other:?}, not one of required, outbox"));
            let near = nearest(other, ["required", "outbox"]);
            return Err(error.with_hint(near.map(|near| format!("did you mean '{near}'?"))));
        }
    }
    // One that nobody knows is refused as such.
    let is_known = |key: &&String| ENGINE_OPTIONS.iter().any(|(name, _)| name == key);
    let watermark = table.options.keys().filter(is_known).find(|key| key.starts_with("watermark."));
    match watermark {
        Some(key) if !table.unbounded => Err(misplaced(table, key, "is for UNBOUNDED tables")
            .hint("leave it out, or write CREATE UNBOUNDED EXTERNAL TABLE")),
        Some(key) if !table.options.contains_key("watermark.column") => {
            let hint = "add 'watermark.column' with the TIMESTAMP column that is the event time";
            Err(misplaced(table, key, "means nothing without 'watermark.column'").hint(hint))
        }
        _ => match OF_DIMENSIONS.iter().find(|key| table.unbounded && table.options.contains_key(**key)) {
            Some(key) => Err(misplaced(table, key, "is for bounded tables that are joined with").hint("leave it out")),
            None => Ok(()),
        },
    }
}

/// `None`: the table has no event time.
///
/// # Errors
/// Of the user, about one of the options.
pub fn watermark(table: &TableDefinition) -> Result<Option<WatermarkSpec>> {
    let Some(name) = table.options.get("watermark.column") else { return Ok(None) };
    let Ok(column) = table.schema.index_of(name) else {
        let names = || table.schema.fields().iter().map(|field| field.name().as_str());
        let hint = match nearest(name, names()) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("it has: {}", names().collect::<Vec<_>>().join(", ")),
        };
        let error = wrong(table, "watermark.column", &format!("names {name:?}, which is no column of {}", table.name));
        return Err(error.hint(hint));
    };
    if !matches!(table.schema.field(column).data_type(), DataType::Timestamp(_, _)) {
        let found = sql_name(table.schema.field(column).data_type());
        let error = Error::user(format!("watermark column {name} is {found}, not TIMESTAMP"));
        return Err(error
            .at(table.place.clone())
            .about(Part::Type(name.clone()))
            .hint("declare it as TIMESTAMP or TIMESTAMPTZ"));
    }
    let micros = |key: &str, default: Duration| {
        let value = match table.options.get(key) {
            None => default,
            Some(text) => duration(text).ok_or_else(|| {
                wrong(table, key, &format!("is {text:?}, not a duration")).hint("for example '30 seconds'")
            })?,
        };
        i64::try_from(value.as_micros()).map_err(|_| wrong(table, key, "is too long").hint("for example '30 seconds'"))
    };
    Ok(Some(WatermarkSpec {
        column,
        delay: micros("watermark.delay", Duration::ZERO)?,
        idle: micros("watermark.idle", WATERMARK_IDLE)?,
        max_ahead: micros("watermark.max_ahead", WATERMARK_MAX_AHEAD)?,
    }))
}

/// Options that mean something where a table is joined with.
const OF_DIMENSIONS: [&str; 2] = ["refresh", "max_bytes"];

/// More often than this a server would do nothing else.
const REFRESH_MIN: Duration = Duration::from_millis(100);

/// The rows of a dimension are held in memory, and each version of them in the checkpoint.
const BYTES_MAX: usize = 256 << 20;

/// `None`: the table is read once.
///
/// # Errors
/// Of the user: it is no duration.
pub fn refresh(table: &TableDefinition) -> Result<Option<Duration>> {
    let Some(text) = table.options.get("refresh") else { return Ok(None) };
    match duration(text) {
        Some(every) if every >= REFRESH_MIN => Ok(Some(every)),
        Some(_) => {
            let error = wrong(table, "refresh", &format!("is {text:?}, more often than every {REFRESH_MIN:?}"));
            Err(error.hint("for example '1 minute'; without it the table is read once, at the start"))
        }
        None => Err(wrong(table, "refresh", &format!("is {text:?}, not a duration")).hint("for example '1 minute'")),
    }
}

/// How much memory the rows of a dimension may take.
///
/// # Errors
/// Of the user: it is no size, or nothing.
pub fn bytes_max(table: &TableDefinition) -> Result<usize> {
    let Some(text) = table.options.get("max_bytes") else { return Ok(BYTES_MAX) };
    let bytes = size(text).and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| wrong(table, "max_bytes", &format!("is {text:?}, not a size")).hint("for example '256 MiB'"))
}
