//! What there is to query: tables and columns of a session, for `\d` and for completion.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::common::TableReference;
use datafusion::prelude::SessionContext;

use crate::sql::explain::plain;
use crate::{Error, Result};

/// Names that completion knows at most; a catalog with more is not walked further.
const NAMES_MAX: usize = 20_000;

/// One row per table and view: schema, table, columns.
pub async fn tables(context: &SessionContext) -> Result<RecordBatch> {
    let (mut schemas, mut names, mut kinds) = (vec![], vec![], vec![]);
    for (schema, table) in table_names(context) {
        let reference = TableReference::partial(schema.as_str(), table.as_str());
        let kind = match context.table_provider(reference).await {
            Ok(provider) => format!("{:?}", provider.table_type()).to_lowercase(),
            Err(error) => format!("not readable: {}", plain(&error)),
        };
        schemas.push(schema);
        names.push(table);
        kinds.push(kind);
    }
    texts(&[("schema", schemas), ("table", names), ("kind", kinds)])
}

/// One row per column of a table: column, type (as SQL declares it), nullable.
///
/// # Errors
/// There is no such table.
pub async fn columns(context: &SessionContext, table: &str) -> Result<RecordBatch> {
    let provider = context.table_provider(TableReference::parse_str(table)).await.map_err(|cause| {
        Error::user(format!("there is no table {table}")).cause(plain(&cause)).hint("\\d lists the tables")
    })?;
    let schema = provider.schema();
    let fields = || schema.fields().iter();
    let nullable = |field: &Arc<Field>| if field.is_nullable() { "yes" } else { "no" }.to_string();
    texts(&[
        ("column", fields().map(|f| f.name().clone()).collect()),
        ("type", fields().map(|f| sql_type(f.data_type())).collect()),
        ("nullable", fields().map(nullable).collect()),
    ])
}

fn texts(columns: &[(&str, Vec<String>)]) -> Result<RecordBatch> {
    let fields: Vec<Field> = columns.iter().map(|(name, _)| Field::new(*name, DataType::Utf8, false)).collect();
    let arrays = columns.iter().map(|(_, values)| Arc::new(StringArray::from_iter_values(values)) as _).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// (schema, table) of the default catalog, sorted; without `information_schema`.
pub(super) fn table_names(context: &SessionContext) -> BTreeSet<(String, String)> {
    let state = context.state();
    let default = &state.config().options().catalog.default_catalog;
    let Some(catalog) = context.catalog(default) else { return BTreeSet::new() };
    let schemas = catalog.schema_names().into_iter().filter(|name| name != "information_schema");
    let tables = schemas.filter_map(|name| catalog.schema(&name).map(|schema| (name, schema.table_names())));
    tables.flat_map(|(schema, tables)| tables.into_iter().map(move |table| (schema.clone(), table))).collect()
}

/// Words that completion offers: tables (with their schema, those of the default one also without) and columns, quoted
/// where SQL needs it.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub tables: BTreeSet<String>,
    pub columns: BTreeSet<String>,
}

/// A table that cannot be opened lends no columns; that is no error here.
pub async fn names(context: &SessionContext) -> Names {
    let state = context.state();
    let default = &state.config().options().catalog.default_schema;
    let mut names = Names::default();
    for (schema, table) in table_names(context) {
        if names.tables.len() + names.columns.len() > NAMES_MAX {
            break;
        }
        names.tables.insert(format!("{}.{}", quoted(&schema), quoted(&table)));
        if schema == *default {
            names.tables.insert(quoted(&table));
        }
        if let Ok(provider) = context.table_provider(TableReference::partial(schema, table)).await {
            names.columns.extend(provider.schema().fields().iter().map(|field| quoted(field.name())));
        }
    }
    names
}

/// In double quotes, unless SQL reads the bare name as the same.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    if !name.is_empty() && name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_string();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name a user would declare; Arrow's own for what SQL has no word for.
pub fn sql_type(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "BOOLEAN",
        DataType::Int8 => "TINYINT",
        DataType::Int16 => "SMALLINT",
        DataType::Int32 => "INT",
        DataType::Int64 => "BIGINT",
        DataType::UInt8 => "TINYINT UNSIGNED",
        DataType::UInt16 => "SMALLINT UNSIGNED",
        DataType::UInt32 => "INT UNSIGNED",
        DataType::UInt64 => "BIGINT UNSIGNED",
        DataType::Float32 => "REAL",
        DataType::Float64 => "DOUBLE",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTEA",
        DataType::Date32 => "DATE",
        DataType::Timestamp(TimeUnit::Microsecond, None) => "TIMESTAMP",
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "TIMESTAMPTZ",
        DataType::Decimal128(precision, scale) => return format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) => return format!("{}[]", sql_type(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{} {}", quoted(f.name()), sql_type(f.data_type()))).collect();
            return format!("STRUCT<{}>", fields.join(", "));
        }
        DataType::Map(entry, _) => match entry.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                return format!("MAP(VARCHAR, {})", sql_type(fields[1].data_type()));
            }
            other => return other.to_string(),
        },
        other => return other.to_string(),
    };
    name.to_string()
}

#[cfg(test)]
mod tests {
    use arrow::util::pretty::pretty_format_batches;

    use super::*;

    async fn context() -> SessionContext {
        let context = SessionContext::new();
        for sql in [
            "CREATE SCHEMA lake",
            "CREATE TABLE lake.events (id BIGINT, \"userId\" VARCHAR, price DECIMAL(10, 2), tags VARCHAR[] NOT NULL)",
            "CREATE VIEW totals AS SELECT count(*) AS n FROM lake.events",
        ] {
            context.sql(sql).await.unwrap().collect().await.unwrap();
        }
        context
    }

    fn cells(batch: &RecordBatch) -> Vec<String> {
        let text = pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string();
        let rows = text.lines().filter(|line| line.starts_with('|')).skip(1);
        rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[tokio::test]
    async fn tables_and_columns() {
        let context = context().await;
        assert_eq!(cells(&tables(&context).await.unwrap()), ["| lake | events | base |", "| public | totals | view |"]);
        assert_eq!(
            cells(&columns(&context, "lake.events").await.unwrap()),
            [
                "| id | BIGINT | yes |",
                "| userId | VARCHAR | yes |",
                "| price | DECIMAL(10, 2) | yes |",
                "| tags | VARCHAR[] | no |"
            ]
        );
        let error = columns(&context, "lake.nothing").await.unwrap_err();
        assert_eq!(error.message(), "there is no table lake.nothing");
    }

    #[tokio::test]
    async fn names_for_completion() {
        let names = names(&context().await).await;
        assert_eq!(
            names.tables.iter().map(String::as_str).collect::<Vec<_>>(),
            ["lake.events", "public.totals", "totals"]
        );
        assert!(names.columns.contains("\"userId\"") && names.columns.contains("n"));
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
