//! The Avro schema that the columns of a table make, where option 'avro.schema' gives none.
//!
//! | column | Avro |
//! |---|---|
//! | BOOLEAN | boolean |
//! | TINYINT, SMALLINT, INT, and UNSIGNED below INT | int |
//! | BIGINT, INT UNSIGNED, BIGINT UNSIGNED | long |
//! | REAL, DOUBLE | float, double |
//! | DECIMAL(p, s) | bytes, decimal |
//! | VARCHAR | string |
//! | BYTEA | bytes |
//! | TIMESTAMP, TIMESTAMPTZ | long, local-timestamp-micros and timestamp-micros |
//! | DATE | int, date |
//! | LIST, STRUCT, MAP | array, record, map |
//!
//! Every field is a union with null, null being its default: so a table that gains or loses a column stays compatible with
//! what is registered, both ways. The record is named after the table, records within it after the way to them.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use serde_json::{Value, json};

use crate::sql::insert::sql_name;
use crate::{Error, Result};

/// The text of the schema. `name`: of the table; what a name in Avro cannot have becomes `_`.
///
/// # Errors
/// Of the user: a column whose name Avro cannot have, or whose type has no form in it.
pub fn schema_of(name: &str, columns: &[FieldRef]) -> Result<String> {
    let mut names = BTreeSet::new();
    record(&usable(name), columns, &mut names).map(|schema| schema.to_string())
}

fn record(name: &str, columns: &[FieldRef], names: &mut BTreeSet<String>) -> Result<Value> {
    let mut own = name.to_string();
    let mut number = 2;
    while !names.insert(own.clone()) {
        own = format!("{name}_{number}");
        number += 1;
    }
    let field = |column: &FieldRef| {
        if !is_name(column.name()) {
            let error = Error::user(format!("column {:?} has a name that Avro cannot have", column.name()));
            return Err(error.hint("letters, digits and '_', not beginning with a digit; rename it with AS"));
        }
        let inner = value(&format!("{own}_{}", column.name()), column.name(), column.data_type(), names)?;
        Ok(json!({"name": column.name(), "type": ["null", inner], "default": null}))
    };
    let fields = columns.iter().map(field).collect::<Result<Vec<_>>>()?;
    Ok(json!({"type": "record", "name": own, "fields": fields}))
}

fn value(path: &str, column: &str, data_type: &DataType, names: &mut BTreeSet<String>) -> Result<Value> {
    Ok(match data_type {
        DataType::Boolean => json!("boolean"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => json!("int"),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => json!("long"),
        DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => json!("string"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => json!("bytes"),
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            json!({"type": "long", "logicalType": "local-timestamp-micros"})
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            json!({"type": "long", "logicalType": "timestamp-micros"})
        }
        DataType::Date32 => json!({"type": "int", "logicalType": "date"}),
        DataType::List(item) => {
            json!({"type": "array", "items": ["null", value(path, column, item.data_type(), names)?]})
        }
        DataType::Struct(fields) => record(path, fields, names)?,
        DataType::Map(entry, _) => match entry.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                json!({"type": "map", "values": ["null", value(path, column, fields[1].data_type(), names)?]})
            }
            _ => return Err(unfit(column, data_type)),
        },
        _ => return Err(unfit(column, data_type)),
    })
}

fn unfit(column: &str, data_type: &DataType) -> Error {
    Error::user(format!("column {column:?} has type {}, which has no form in Avro", sql_name(data_type)))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn usable(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if is_name(&name) { name } else { format!("_{name}") }
}
