//! The columns of a table as the file has them, compared with its declaration: before rows go in, or come out.
//!
//! SQLite keeps a value of any type in any column, but converts it to the column's affinity first: a text that looks like a
//! number becomes one in a column of numbers, and '007' is gone. So a column must leave what we bind as it is. When it is read,
//! each value is looked at, whatever its column.
//!
//! Source: https://www.sqlite.org/datatype3.html, section 3.1.

use arrow::datatypes::DataType;
use rusqlite::Connection;

use super::{failure, stored_type, target};
use crate::connector::database::DatabaseTable;
use crate::connector::database::misfits::Misfits;
use crate::connector::database::quoted;
use crate::sql::insert::sql_name;
use crate::{Error, Result};

/// What a column makes of a value before it keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

impl Affinity {
    fn of(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |parts: &[&str]| parts.iter().any(|part| declared.contains(part));
        match () {
            () if has(&["INT"]) => Self::Integer,
            () if has(&["CHAR", "CLOB", "TEXT"]) => Self::Text,
            () if declared.is_empty() || has(&["BLOB"]) => Self::Blob,
            () if has(&["REAL", "FLOA", "DOUB"]) => Self::Real,
            () => Self::Numeric,
        }
    }

    /// Whether every value of a declared type is kept as it was bound.
    fn keeps(self, declared: &DataType) -> bool {
        use DataType::{Boolean, Date32, Float32, Float64, Timestamp};
        match declared {
            Boolean => !matches!(self, Self::Text | Self::Real),
            _ if declared.is_integer() => !matches!(self, Self::Text | Self::Real),
            Float32 | Float64 => self != Self::Text,
            // Texts that look like no number.
            Timestamp(..) | Date32 => true,
            _ => match stored_type(declared) {
                "BLOB" => true,
                _ => matches!(self, Self::Text | Self::Blob),
            },
        }
    }
}

/// # Errors
/// Of the user: a column is not there, or would change what is written to it.
pub(super) fn described(connection: &Connection, table: &DatabaseTable, writing: bool) -> Result<()> {
    let definition = table.definition();
    let failed = |e: rusqlite::Error| failure(&e, &format!("could not look up table {}", table.target_name()));
    let (schema, name) = &table.target;
    // Without a schema it is looked for in all.
    let (sql, schema) = match schema {
        Some(schema) => ("SELECT name, type FROM pragma_table_xinfo(?1, ?2)", Some(schema)),
        None => ("SELECT name, type FROM pragma_table_xinfo(?1)", None),
    };
    let mut statement = connection.prepare(sql).map_err(failed)?;
    let row = |row: &rusqlite::Row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
    let rows = match schema {
        Some(schema) => statement.query_map([name, schema], row),
        None => statement.query_map([name], row),
    };
    let stored = rows.and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>).map_err(failed)?;
    // That there is no such table is told by whoever needs it.
    if stored.is_empty() {
        return Ok(());
    }
    let mut misfits = Misfits::default();
    for field in definition.schema.fields() {
        let (column, of) = (quoted(field.name()), field.data_type());
        match stored.iter().find(|(name, _)| name.eq_ignore_ascii_case(field.name())) {
            Some((_, stored)) if !writing || Affinity::of(stored).keeps(of) => {}
            Some((_, stored)) => {
                let stored = if stored.is_empty() { "of no type" } else { stored };
                misfits.add(format!("column {column} is declared {} and is {stored} there", sql_name(of)), None);
            }
            None => {
                let what = format!("column {column} is declared {} and is not there", sql_name(of));
                misfits.add(what, Some(format!("ADD COLUMN {column} {}", stored_type(of))));
            }
        }
    }
    let anew = " or rename the table in the file, which makes it anew";
    match misfits.told(&target(table), anew, "the `sqlite3` shell, once") {
        None => Ok(()),
        Some((cause, hint)) => {
            let error = format!("table {} does not fit its declaration", target(table));
            Err(Error::user(error).at(definition.place.clone()).cause(cause).hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_keeps_what_is_bound_or_is_refused() {
        let keeps = |stored: &str, declared: &DataType| Affinity::of(stored).keeps(declared);
        let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
        for (stored, declared) in [
            ("BIGINT", DataType::Int64),
            ("NUMERIC", DataType::Int64),
            ("BOOLEAN", DataType::Boolean),
            ("VARCHAR(10)", DataType::Utf8View),
            ("", DataType::Utf8View),
            ("DATETIME", time.clone()),
            ("DATE", DataType::Date32),
            ("INTEGER", DataType::Float64),
            ("DOUBLE PRECISION", DataType::Float64),
            ("TEXT", DataType::Decimal128(10, 2)),
            ("TEXT", DataType::Binary),
        ] {
            assert!(keeps(stored, &declared), "{declared} in {stored}");
        }
        for (stored, declared) in [
            ("TEXT", DataType::Int64),
            ("REAL", DataType::Int64),
            ("INTEGER", DataType::Utf8View),
            ("STRING", DataType::Utf8View), // "STRING" has no affinity of text
            ("TEXT", DataType::Float64),
            ("DECIMAL(10, 2)", DataType::Decimal128(10, 2)),
        ] {
            assert!(!keeps(stored, &declared), "{declared} in {stored}");
        }
    }
}
