//! SQL types as Arrow types, the same in a declaration and in a CAST.
//!
//! All is DataFusion's own conversion but for what [`MicrosecondTypes`] changes: TIMESTAMP is µs and TIMESTAMPTZ µs UTC
//! (DataFusion: ns, and no zone), so that a column, a CAST and a window bound have one type; JSON, UUID and the longer
//! spellings of VARCHAR are text; BLOB and the like are bytes.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, Result, TableReference, plan_err};
use datafusion::logical_expr::planner::{ContextProvider, TypePlanner};
use datafusion::logical_expr::{AggregateUDF, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF};
use datafusion::sql::planner::SqlToRel;
use sqlparser::ast::{ColumnDef, DataType as SqlType, Ident, TimezoneInfo};

/// What hints suggest and list. There are further spellings.
pub const NAMES: &[&str] = &[
    "BIGINT",
    "INT",
    "INTEGER",
    "SMALLINT",
    "TINYINT",
    "DOUBLE",
    "REAL",
    "DECIMAL",
    "BOOLEAN",
    "VARCHAR",
    "TEXT",
    "STRING",
    "BYTEA",
    "DATE",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "JSON",
    "UUID",
    "ARRAY",
    "STRUCT",
    "MAP",
];

/// For `SessionStateBuilder::with_type_planner`.
#[derive(Debug)]
pub struct MicrosecondTypes;

impl TypePlanner for MicrosecondTypes {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        let planned = match sql_type {
            SqlType::Timestamp(precision, zone) => {
                microseconds(sql_type, *precision)?;
                let utc = matches!(zone, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone);
                DataType::Timestamp(TimeUnit::Microsecond, utc.then(|| "UTC".into()))
            }
            SqlType::Datetime(precision) => {
                microseconds(sql_type, *precision)?;
                DataType::Timestamp(TimeUnit::Microsecond, None)
            }
            SqlType::JSON | SqlType::JSONB | SqlType::Uuid => DataType::Utf8View,
            SqlType::Character(_) | SqlType::CharacterVarying(_) | SqlType::CharVarying(_) => DataType::Utf8View,
            SqlType::Nvarchar(_) | SqlType::Clob(_) => DataType::Utf8View,
            SqlType::Map(key, value) => map(key, value)?,
            SqlType::Blob(_) | SqlType::Bytes(_) | SqlType::Binary(_) | SqlType::Varbinary(_) => DataType::Binary,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Field::new("", planned, true))))
    }
}

/// Keys are text: those of JSON and Avro are.
fn map(key: &SqlType, value: &SqlType) -> Result<DataType> {
    let planned = |sql_type: &SqlType| {
        let column = ColumnDef { name: Ident::new("value"), data_type: sql_type.clone(), options: vec![] };
        let schema = SqlToRel::new(&OnlyTypes(ConfigOptions::new())).build_schema(vec![column])?;
        Ok::<_, DataFusionError>(schema.field(0).clone())
    };
    if *planned(key)?.data_type() != DataType::Utf8View {
        return plan_err!("the keys of a MAP are text, not {key}. Use MAP(VARCHAR, {value})");
    }
    let entries = vec![Field::new("key", DataType::Utf8, false), planned(value)?];
    Ok(DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries.into()), false)), false))
}

fn microseconds(sql_type: &SqlType, precision: Option<u64>) -> Result<()> {
    match precision {
        Some(digits) if digits > 6 => {
            plan_err!("type '{sql_type}' is finer than a microsecond. Use TIMESTAMP or TIMESTAMP(6)")
        }
        _ => Ok(()),
    }
}

/// The field of a declared column: its name as SQL resolves it, its type, nullable unless NOT NULL.
pub fn column_field(column: &ColumnDef) -> Result<Field> {
    // Defaults, not the session's options: no SET may change what a declaration means.
    let types = OnlyTypes(ConfigOptions::new());
    let schema = SqlToRel::new(&types).build_schema(vec![column.clone()])?;
    let field = schema.field(0);
    match refused(field.data_type()) {
        Some(why) => plan_err!("type {} of column {} {why}", column.data_type, field.name()),
        None => Ok(field.clone()),
    }
}

/// Types that no connector stores.
fn refused(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Interval(_) => Some("cannot be stored. Use BIGINT for a number of seconds"),
        DataType::Time32(_) | DataType::Time64(_) => Some("cannot be stored. Use VARCHAR or TIMESTAMP"),
        DataType::FixedSizeList(..) => Some("has a fixed length. Leave it out"),
        DataType::List(inner) => refused(inner.data_type()),
        DataType::Struct(fields) => fields.iter().find_map(|field| refused(field.data_type())),
        DataType::Map(entry, _) => refused(entry.data_type()),
        _ => None,
    }
}

/// A planner's context that knows nothing but types.
struct OnlyTypes(ConfigOptions);

impl ContextProvider for OnlyTypes {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        plan_err!("table '{name}' not found")
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(MicrosecondTypes))
    }

    fn get_function_meta(&self, _: &str) -> Option<Arc<ScalarUDF>> {
        None
    }

    fn get_higher_order_meta(&self, _: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, _: &str) -> Option<Arc<AggregateUDF>> {
        None
    }

    fn get_window_meta(&self, _: &str) -> Option<Arc<WindowUDF>> {
        None
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.0
    }

    fn udf_names(&self) -> Vec<String> {
        vec![]
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        vec![]
    }

    fn udaf_names(&self) -> Vec<String> {
        vec![]
    }

    fn udwf_names(&self) -> Vec<String> {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::parser::{DFParser, Statement};

    fn planned(sql_type: &str) -> Result<String> {
        let sql = format!("CREATE EXTERNAL TABLE t (c {sql_type}) STORED AS CSV LOCATION 'x'");
        let Statement::CreateExternalTable(table) = DFParser::parse_sql(&sql)?.remove(0).unwrap() else { panic!() };
        Ok(column_field(&table.columns[0])?.data_type().to_string())
    }

    #[test]
    fn types_are_planned() {
        for (sql, arrow) in [
            ("TIMESTAMP", "Timestamp(µs)"),
            ("TIMESTAMP(3)", "Timestamp(µs)"),
            ("TIMESTAMP WITHOUT TIME ZONE", "Timestamp(µs)"),
            ("DATETIME", "Timestamp(µs)"),
            ("TIMESTAMPTZ", "Timestamp(µs, \"UTC\")"),
            ("TIMESTAMP(6) WITH TIME ZONE", "Timestamp(µs, \"UTC\")"),
            ("VARCHAR", "Utf8View"),
            ("VARCHAR(20)", "Utf8View"),
            ("CHARACTER VARYING(20)", "Utf8View"),
            ("TEXT", "Utf8View"),
            ("STRING", "Utf8View"),
            ("JSON", "Utf8View"),
            ("JSONB", "Utf8View"),
            ("UUID", "Utf8View"),
            ("BYTEA", "Binary"),
            ("BLOB", "Binary"),
            ("TINYINT", "Int8"),
            ("SMALLINT", "Int16"),
            ("INT", "Int32"),
            ("INTEGER", "Int32"),
            ("BIGINT", "Int64"),
            ("BIGINT UNSIGNED", "UInt64"),
            ("REAL", "Float32"),
            ("DOUBLE", "Float64"),
            ("DOUBLE PRECISION", "Float64"),
            ("DECIMAL(12, 2)", "Decimal128(12, 2)"),
            ("NUMERIC(38, 9)", "Decimal128(38, 9)"),
            ("BOOLEAN", "Boolean"),
            ("DATE", "Date32"),
            ("BIGINT[]", "List(Int64)"),
            (
                "MAP(TEXT, BIGINT[])",
                "Map(\"entries\": non-null Struct(\"key\": non-null Utf8, \"value\": List(Int64)), unsorted)",
            ),
            ("ARRAY<TIMESTAMP>", "List(Timestamp(µs))"),
            (
                "STRUCT<a INT, b STRUCT<c TIMESTAMPTZ>>",
                "Struct(\"a\": Int32, \"b\": Struct(\"c\": Timestamp(µs, \"UTC\")))",
            ),
        ] {
            assert_eq!(planned(sql).unwrap(), arrow, "{sql}");
        }
    }

    #[test]
    fn types_that_cannot_be_kept_are_refused() {
        for sql in [
            "TIMESTAMP(9)",
            "TIMESTAMPTZ(9)",
            "INTERVAL",
            "TIME",
            "INT[3]",
            "NONSENSE",
            "STRUCT<a TIMESTAMP(9)>",
            "MAP(INT, INT)",
            "MAP(TEXT, TIME)",
        ] {
            assert!(planned(sql).is_err(), "{sql}");
        }
    }
}
