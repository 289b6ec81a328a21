//! Files of several versions of a table: what of them can be read as it is declared now.
//!
//! | the column is                                   | read as                                                          |
//! |-------------------------------------------------|------------------------------------------------------------------|
//! | declared, and in no such file                   | NULL; an error if it is declared NOT NULL                        |
//! | in the file, and not declared                   | nothing                                                          |
//! | of a type whose every value the declared one has | that value: INT as BIGINT, REAL as DOUBLE, DATE as TIMESTAMP, …  |
//! | of another                                      | an error that names file, column and both types                  |
//!
//! Timestamps of other units and with or without a zone are the same moments in µs UTC: other writers have them so.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};

use crate::connector::TableDefinition;
use crate::sql::insert::{fits, sql_name};
use crate::{Error, Result};

/// Whether the rows of a file with these columns can be rows of the table.
///
/// # Errors
/// Of the user, about the first column that cannot be read.
pub(super) fn check(table: &TableDefinition, declared: &Schema, found: &Schema, file: &str) -> Result<()> {
    let wrong = |what: String, hint: String| Err(Error::user(what).at(table.place.clone()).hint(hint));
    for column in declared.fields() {
        let (name, declared) = (column.name(), sql_name(column.data_type()));
        match found.field_with_name(name) {
            Ok(found) if readable(found.data_type(), column.data_type()) => {}
            Ok(found) => {
                let found = sql_name(found.data_type());
                let what = format!(
                    "column {name:?} of table {} is {declared} in its declaration and {found} in file {file}",
                    table.name
                );
                let hint = format!(
                    "not every {found} is a {declared}: declare a type that holds both, or a new column beside it, or move the \
                     older files to a table of their own"
                );
                return wrong(what, hint);
            }
            Err(_) if column.is_nullable() => {}
            Err(_) => {
                let what = format!(
                    "column {name:?} of table {} is {declared} NOT NULL in its declaration and not in file {file}",
                    table.name
                );
                return wrong(what, "declare it without NOT NULL: it is NULL in files that were written before".into());
            }
        }
    }
    Ok(())
}

/// Whether a cast gives each value as what it is.
fn readable(found: &DataType, declared: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Date64, Dictionary, FixedSizeBinary, FixedSizeList, Float16, Float32, Float64,
        Int8, Int16, LargeBinary, LargeList, LargeUtf8, List, Map, Struct, Timestamp, UInt8, UInt16, Utf8, Utf8View,
    };
    let bytes = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView | FixedSizeBinary(_));
    let text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    match (found, declared) {
        _ if fits(found, declared) => true,
        (Dictionary(_, value), _) => readable(value, declared),
        (Timestamp(..) | Date32 | Date64, Timestamp(..)) => true,
        (Float16, Float32 | Float64) | (Int8 | UInt8 | Int16 | UInt16, Float32) => true,
        // Without its annotation a text is bytes; one that is no UTF-8 is an error when it is read.
        _ if bytes(found) => bytes(declared) || text(declared),
        _ if text(found) => bytes(declared),
        (List(a) | LargeList(a) | FixedSizeList(a, _), List(b) | LargeList(b)) | (Map(a, _), Map(b, _)) => {
            readable(a.data_type(), b.data_type())
        }
        (Struct(found), Struct(declared)) => declared.iter().all(|field: &Arc<Field>| {
            let same = found.iter().find(|other| other.name() == field.name());
            same.map_or(field.is_nullable(), |other| readable(other.data_type(), field.data_type()))
        }),
        _ => false,
    }
}

/// What is known of a file's columns, as columns of the declaration: minima and maxima in its types. DataFusion itself reads
/// them as if they were of the declared types, and loses them, or their order, where they are not.
pub(super) fn in_declared_types(of_file: Statistics, found: &Schema, declared: &Schema) -> Statistics {
    let column = |field: &Arc<Field>| {
        let Ok(position) = found.index_of(field.name()) else {
            return ColumnStatistics { null_count: of_file.num_rows, ..ColumnStatistics::new_unknown() };
        };
        let column = of_file.column_statistics[position].clone();
        if found.field(position).data_type() == field.data_type() {
            return column;
        }
        ColumnStatistics {
            null_count: column.null_count,
            distinct_count: column.distinct_count,
            min_value: cast(&column.min_value, field),
            max_value: cast(&column.max_value, field),
            ..ColumnStatistics::new_unknown()
        }
    };
    let column_statistics = declared.fields().iter().map(column).collect();
    Statistics { column_statistics, ..of_file }
}

fn cast(value: &Precision<ScalarValue>, field: &Field) -> Precision<ScalarValue> {
    let cast = |value: &ScalarValue| value.cast_to(field.data_type()).ok().filter(|cast| !cast.is_null());
    match value {
        Precision::Exact(value) => cast(value).map_or(Precision::Absent, Precision::Exact),
        Precision::Inexact(value) => cast(value).map_or(Precision::Absent, Precision::Inexact),
        Precision::Absent => Precision::Absent,
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn a_type_is_read_as_one_that_has_all_its_values() {
        let nanos = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
        let list = |of: &DataType| DataType::List(Arc::new(Field::new("item", of.clone(), true)));
        for (found, declared) in [
            (DataType::Int32, DataType::Int64),
            (DataType::Float32, DataType::Float64),
            (DataType::Int16, DataType::Float32),
            (DataType::Int32, DataType::Float64),
            (DataType::Int64, DataType::Decimal128(20, 0)),
            (DataType::Decimal128(10, 2), DataType::Decimal128(12, 3)),
            (DataType::Utf8, DataType::Utf8View),
            (DataType::FixedSizeBinary(16), DataType::Binary),
            (DataType::Date32, micros.clone()),
            (nanos, micros.clone()),
            (list(&DataType::Int32), list(&DataType::Int64)),
        ] {
            assert!(readable(&found, &declared), "{found} as {declared}");
            let either = matches!(found, DataType::Timestamp(..) | DataType::Utf8 | DataType::FixedSizeBinary(_));
            assert_eq!(readable(&declared, &found), either, "{declared} as {found}");
        }
        for (found, declared) in [
            (DataType::Utf8View, DataType::Int64),
            (DataType::Int64, DataType::Utf8View),
            (DataType::Int64, DataType::Float64),
            (DataType::Boolean, DataType::Int64),
            (micros, DataType::Date32),
            (DataType::Decimal128(10, 2), DataType::Decimal128(10, 3)),
        ] {
            assert!(!readable(&found, &declared), "{found} as {declared}");
        }
    }
}
