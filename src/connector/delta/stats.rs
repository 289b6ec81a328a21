//! What an entry of the log tells of a file's values: rows, minima, maxima and NULLs of its first columns.
//!
//! Written from the file's footer. No value lies outside, but a bound need not be a value: long texts are cut, and others
//! cut times to milliseconds.
//!
//! Source: the Delta protocol, *Per-file Statistics*.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::stats::Precision;
use datafusion::common::{ScalarValue, Statistics};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::ParquetMetaData;
use serde_json::{Map, Value, json};

use crate::connector::parquet::reader::of_partition_value;
use crate::{Error, Result};

/// As Delta has it by default: each entry of the log holds them for each file.
const COLUMNS_MAX: usize = 32;

/// Digits that a number of JSON keeps whichever reader takes it for a double.
const DIGITS_MAX: u8 = 15;

/// Of a file with these columns.
pub fn of_file(metadata: &ParquetMetaData, schema: &Schema) -> Result<String> {
    let (mut minima, mut maxima, mut nulls) = (Map::new(), Map::new(), Map::new());
    let groups = metadata.row_groups();
    for field in schema.fields().iter().take(COLUMNS_MAX).filter(|field| !field.data_type().is_nested()) {
        let name = field.name();
        let failed =
            |e: parquet::errors::ParquetError| Error::internal(format!("statistics of column {name:?}")).cause(e);
        let converter = StatisticsConverter::try_new(name, schema, metadata.file_metadata().schema_descr());
        let converter = converter.map_err(failed)?;
        let counts = converter.row_group_null_counts(groups).map_err(failed)?;
        if counts.null_count() > 0 {
            continue;
        }
        let counted: u64 = counts.values().iter().sum();
        nulls.insert(name.clone(), counted.into());
        if !has_bounds(field.data_type()) {
            continue;
        }
        let lowest = converter.row_group_mins(groups).map_err(failed)?;
        let highest = converter.row_group_maxes(groups).map_err(failed)?;
        // A row group without a value has no bounds, and needs none.
        let values =
            groups.iter().enumerate().filter(|(group, of)| i64::try_from(counts.value(*group)) != Ok(of.num_rows()));
        let values: Vec<usize> = values.map(|(group, _)| group).collect();
        if values.is_empty() || values.iter().any(|group| lowest.is_null(*group) || highest.is_null(*group)) {
            continue;
        }
        let pick = |of: &dyn Array, wanted: Ordering| -> Result<Option<ScalarValue>> {
            let mut best: Option<ScalarValue> = None;
            for group in &values {
                let value = ScalarValue::try_from_array(of, *group)?;
                if best.as_ref().is_none_or(|best| value.partial_cmp(best) == Some(wanted)) {
                    best = Some(value);
                }
            }
            Ok(best)
        };
        let bounds = (pick(&lowest, Ordering::Less)?, pick(&highest, Ordering::Greater)?);
        // A day of the year 300,000 has no text.
        if let (Some(lowest), Some(highest)) = bounds
            && let (Ok(lowest), Ok(highest)) = (to_json(&lowest), to_json(&highest))
        {
            minima.insert(name.clone(), lowest);
            maxima.insert(name.clone(), highest);
        }
    }
    let rows = metadata.file_metadata().num_rows();
    Ok(json!({ "numRecords": rows, "minValues": minima, "maxValues": maxima, "nullCount": nulls }).to_string())
}

/// Floats have none: a footer does not tell of NaN, which SQL puts above all numbers.
fn has_bounds(data_type: &DataType) -> bool {
    use DataType::{Date32, Decimal128, Int8, Int16, Int32, Int64, LargeUtf8, Timestamp, Utf8, Utf8View};
    match data_type {
        Decimal128(precision, _) => *precision <= DIGITS_MAX,
        Int8 | Int16 | Int32 | Int64 | Date32 | Utf8 | LargeUtf8 | Utf8View => true,
        Timestamp(unit, _) => *unit == TimeUnit::Microsecond,
        _ => false,
    }
}

fn to_json(value: &ScalarValue) -> Result<Value> {
    let text = arrow::compute::cast(&value.to_array()?, &DataType::Utf8)?;
    let text = text.as_string::<i32>().value(0).to_string();
    let number = value.data_type().is_integer() || matches!(value, ScalarValue::Decimal128(..));
    match number {
        true => {
            serde_json::from_str(&text).map_err(|e| Error::internal(format!("{text} as a number of JSON")).cause(e))
        }
        false => Ok(text.into()),
    }
}

/// What a scan and what pruning may know of a file, by column of `schema`: files' columns, then partition columns, whose values
/// are given.
pub struct Known {
    /// Exact where it says so; `None`: not even the rows are counted.
    pub statistics: Option<Arc<Statistics>>,
    pub bounds: Option<Arc<Statistics>>,
}

/// `size`: of the file, in bytes. What cannot be read is not known.
pub fn read(stats: Option<&str>, schema: &Schema, partition: &[ScalarValue], size: u64) -> Known {
    let stats: Value = stats.and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_default();
    let Some(rows) = stats["numRecords"].as_u64().and_then(|rows| usize::try_from(rows).ok()) else {
        return Known { statistics: None, bounds: None };
    };
    let in_files = schema.fields().len() - partition.len();
    let mut bounds = Statistics::new_unknown(schema);
    bounds.num_rows = Precision::Exact(rows);
    bounds.total_byte_size = Precision::Inexact(usize::try_from(size).unwrap_or(usize::MAX));
    for (field, column) in schema.fields().iter().zip(&mut bounds.column_statistics).take(in_files) {
        let nulls = stats["nullCount"][field.name()].as_u64().and_then(|nulls| usize::try_from(nulls).ok());
        column.null_count = nulls.map_or(Precision::Absent, Precision::Exact);
        let bound = |of: &str| from_json(&stats[of][field.name()], field.data_type());
        if let (Some(lowest), Some(highest)) = (bound("minValues"), bound("maxValues")) {
            column.min_value = Precision::Exact(lowest);
            column.max_value = Precision::Exact(above(highest));
        }
    }
    for (value, column) in partition.iter().zip(&mut bounds.column_statistics[in_files..]) {
        *column = of_partition_value(value, bounds.num_rows);
    }
    // What is told to the planner as exact may become an answer by itself.
    let mut told = bounds.clone();
    for column in told.column_statistics.iter_mut().take(in_files) {
        column.min_value = std::mem::take(&mut column.min_value).to_inexact();
        column.max_value = std::mem::take(&mut column.max_value).to_inexact();
    }
    Known { statistics: Some(Arc::new(told)), bounds: Some(Arc::new(bounds)) }
}

fn from_json(value: &Value, data_type: &DataType) -> Option<ScalarValue> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    has_bounds(data_type).then(|| ScalarValue::try_from_string(text, data_type).ok()).flatten()
}

/// Others cut times to milliseconds.
fn above(value: ScalarValue) -> ScalarValue {
    match value {
        ScalarValue::TimestampMicrosecond(Some(micros), zone) => {
            ScalarValue::TimestampMicrosecond(Some(micros.saturating_add(999)), zone)
        }
        other => other,
    }
}

/// Rows that an entry counts in its file.
pub fn rows(stats: Option<&str>) -> Option<u64> {
    serde_json::from_str::<Value>(stats?).ok()?["numRecords"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_others_cut_still_hold_every_value() {
        let at = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let highest = from_json(&json!("2026-11-23T10:00:00.123Z"), &at(Some("UTC"))).map(above);
        let micros = match highest {
            Some(ScalarValue::TimestampMicrosecond(Some(micros), _)) => micros,
            other => panic!("{other:?}"),
        };
        assert_eq!(micros % 1_000_000, 123_999);
        assert_eq!(from_json(&json!(1.5), &DataType::Float64), None);
        assert_eq!(from_json(&json!({"a": 1}), &DataType::Int64), None);
        assert_eq!(from_json(&json!("x"), &DataType::Int64), None);
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let schema = Schema::empty();
        assert!(read(None, &schema, &[], 1).statistics.is_none());
        assert!(read(Some("{}"), &schema, &[], 1).statistics.is_none());
        assert!(read(Some("not json"), &schema, &[], 1).statistics.is_none());
        assert_eq!(rows(Some(r#"{"numRecords":3}"#)), Some(3));
    }
}
