//! Options of a table that are the engine's own, whatever its connector: `role`, `delivery`, `refresh`, `watermark.…`.

use std::time::Duration;

use arrow::datatypes::DataType;

use super::insert::sql_name;
use super::program::WatermarkSpec;
use crate::connector::TableDefinition;
use crate::connector::options::duration;

/// Before a source's partition holds its watermark back no longer, and how far ahead of the clock is believed.
const WATERMARK_IDLE: Duration = Duration::from_secs(60);
const WATERMARK_MAX_AHEAD: Duration = Duration::from_secs(3_600);

/// Options that mean nothing here, or not what they seem to.
pub fn check(table: &TableDefinition) -> Result<(), String> {
    match table.options.get("role").map(String::as_str) {
        None | Some("dead_letters" | "valid") => {}
        Some(role) => return Err(format!("option 'role' is {role:?}, not one of dead_letters, valid")),
    }
    match table.options.get("delivery").map(String::as_str) {
        None | Some("required") => {}
        Some("outbox") => {
            return Err("option 'delivery' 'outbox' comes with a later release; a sink is 'required'".into());
        }
        Some(other) => return Err(format!("option 'delivery' is {other:?}, not 'required'")),
    }
    let watermark = table.options.keys().find(|key| key.starts_with("watermark."));
    match watermark {
        Some(key) if !table.unbounded => Err(format!("option '{key}' is for UNBOUNDED tables")),
        Some(key) if !table.options.contains_key("watermark.column") => {
            Err(format!("option '{key}' means nothing without 'watermark.column'"))
        }
        _ if table.unbounded && table.options.contains_key("refresh") => {
            Err("option 'refresh' is for bounded tables that are joined with".into())
        }
        _ => Ok(()),
    }
}

/// `None`: the table has no event time.
pub fn watermark(table: &TableDefinition) -> Result<Option<WatermarkSpec>, String> {
    let Some(name) = table.options.get("watermark.column") else { return Ok(None) };
    let Ok(column) = table.schema.index_of(name) else {
        return Err(format!("option 'watermark.column' names {name:?}, which is no column of {}", table.name));
    };
    if !matches!(table.schema.field(column).data_type(), DataType::Timestamp(_, _)) {
        let found = sql_name(table.schema.field(column).data_type());
        return Err(format!("watermark column {name} is {found}, not TIMESTAMP"));
    }
    let micros = |key: &str, default: Duration| {
        let value = match table.options.get(key) {
            None => default,
            Some(text) => {
                duration(text).ok_or_else(|| format!("option '{key}' is {text:?}, not a duration like '30 seconds'"))?
            }
        };
        i64::try_from(value.as_micros()).map_err(|_| format!("option '{key}' is too long"))
    };
    Ok(Some(WatermarkSpec {
        column,
        delay: micros("watermark.delay", Duration::ZERO)?,
        idle: micros("watermark.idle", WATERMARK_IDLE)?,
        max_ahead: micros("watermark.max_ahead", WATERMARK_MAX_AHEAD)?,
    }))
}

/// `None`: the table is read once.
pub fn refresh(table: &TableDefinition) -> Result<Option<Duration>, String> {
    let Some(text) = table.options.get("refresh") else { return Ok(None) };
    match duration(text) {
        Some(every) => Ok(Some(every)),
        None => Err(format!("option 'refresh' is {text:?}, not a duration such as '1 minute'")),
    }
}
