//! A Delta table as one version of its log has it.
//!
//! The log is read once, by [`provider`]: a query sees one version however often it scans the table. Files are left out by
//! partition value and by what the log tells of their values, before any of them is opened; then they are scanned as those of
//! a Parquet table are.

use std::sync::Arc;

use arrow::datatypes::Schema;
use chrono::DateTime;
use datafusion::catalog::Session;
use datafusion::common::ScalarValue;
use datafusion::datasource::listing::PartitionedFile;
use deltalake_core::kernel::LogicalFileView;
use object_store::ObjectMeta;

use super::{DeltaTable, log, schema, stats};
use crate::connector::parquet::Table;
use crate::connector::parquet::reader::{ParquetTable, TableFile, scanned};
use crate::connector::{BoundedTable, TableDefinition, nullable};
use crate::{Error, Result};

/// Reads the log. No file is opened yet.
///
/// # Errors
/// The declaration cannot work or does not fit the log; there is no log; the log demands what we do not know.
pub async fn provider(definition: &Arc<TableDefinition>, session: &dyn Session) -> Result<BoundedTable> {
    // Any column may be NULL in files of before it was there.
    let schema = nullable(&definition.schema);
    let table = DeltaTable::new(&Arc::new(TableDefinition { schema, ..TableDefinition::clone(definition) }))?.table;
    let location = &table.location;
    session.runtime_env().register_object_store(location.url.as_ref(), Arc::clone(&location.store));
    let Some(state) = log::load(&table, &log::store_of(&table)?).await? else {
        return Err(Error::user(format!("table {} has no Delta log", definition.name))
            .at(definition.place.clone())
            .cause(format!("LOCATION '{}' has no folder _delta_log", crate::connector::redact(&definition.location)))
            .hint("a pipeline that writes the table makes it; a path is relative to the folder that poundlock was started in"));
    };
    schema::readable(&table, state.protocol(), state.metadata())?;
    schema::fits(&table, state.metadata(), &state.schema())?;
    let columns = scanned(&table);
    let listed = log::files(&table, &state)?;
    let files: Result<Vec<TableFile>> = listed.iter().map(|view| file(&table, columns.table_schema(), view)).collect();
    let mut files = files?;
    // The same order on every machine.
    files.sort_by(|a, b| a.file.object_meta.location.cmp(&b.file.object_meta.location));
    Ok(Arc::new(ParquetTable::new(Table::clone(&table), files)))
}

fn file(table: &Table, columns: &Schema, view: &LogicalFileView) -> Result<TableFile> {
    let path = view.object_store_path();
    let wrong = |cause: String| {
        Error::external(format!("file {path} of Delta table {} cannot be read", table.definition.name)).cause(cause)
    };
    if view.deletion_vector_descriptor().is_some() {
        return Err(wrong("some of its rows are deleted by a deletion vector, which poundlock does not know".into())
            .hint("rewrite the table's files without deletion vectors, as REORG TABLE … APPLY (PURGE) does"));
    }
    let mut values = vec![];
    let of = view.partition_values_map();
    for field in table.partition_fields() {
        let text = of.get(field.name()).cloned().flatten().filter(|text| !text.is_empty());
        let value = match text {
            None => ScalarValue::try_from(field.data_type()),
            Some(text) => ScalarValue::try_from_string(text, field.data_type()),
        };
        values.push(value.map_err(|e| wrong(format!("partition column {:?}: {}", field.name(), e.strip_backtrace())))?);
    }
    let size = u64::try_from(view.size()).unwrap_or(0);
    let location = path.parts().fold(table.location.path.clone(), |to, part| to.join(part));
    let last_modified = DateTime::from_timestamp_millis(view.modification_time()).unwrap_or_default();
    let meta = ObjectMeta { location, last_modified, size, e_tag: None, version: None };
    let known = stats::read(view.stats().as_deref(), columns, &values, size);
    let mut file = PartitionedFile::new_from_meta(meta).with_partition_values(values);
    file.statistics = known.statistics;
    Ok(TableFile { file, bounds: known.bounds })
}
