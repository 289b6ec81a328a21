//! A Parquet folder as a table, over exactly the files that count.
//!
//! DataFusion's own `ListingTable` takes whatever lies in a folder, and cannot take partition values with an explicit
//! list of files; so the list is made here and scanned with DataFusion's `ParquetSource`. Files are pruned by
//! partition value, then by statistics of files and row groups.
//!
//! The list is made once, by [`provider`]: a query sees one state of the table however often it scans it.
//!
//! Failure: a file that is no whole Parquet file, lies in no partition, or has a column of another kind than declared
//! is an error that names it.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PrunableStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{
    ColumnStatistics, DFSchema, DataFusionError, ScalarValue, Statistics, TableReference, project_schema,
};
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::listing::helpers::expr_applicable_for_cols;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::cache::cache_manager::{CachedFileMetadata, SchemaFingerprint, TableScopedPath};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStoreExt};
use uuid::Uuid;

use super::{Table, drift, layout};
use crate::checkpoint::trouble::explained;
use crate::connector::{BoundedTable, TableDefinition, nullable};
use crate::{Error, Result};

/// Footers read at a time.
const CONCURRENT_FOOTERS: usize = 32;

type DfResult<T> = datafusion::common::Result<T>;

/// Which files of a table's folder count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// The table is only read: every `.parquet` file.
    All,
    /// The pipeline writes it: its own files up to the last committed batch (`None`: none yet).
    Committed { pipeline: Uuid, last: Option<u64> },
}

/// Lists the table's files and makes a table of those that count. No file is opened yet.
///
/// # Errors
/// The declaration cannot work; the folder cannot be listed; a table that is only read has no folder; a file lies in
/// no partition.
pub async fn provider(
    definition: &Arc<TableDefinition>,
    visible: Visible,
    session: &dyn Session,
) -> Result<BoundedTable> {
    let table = Table::new(definition)?;
    let location = &table.location;
    session.runtime_env().register_object_store(location.url.as_ref(), Arc::clone(&location.store));
    let mut files = vec![];
    for object in list(&table, visible).await? {
        let values = partition_values(&table, &object)?;
        let file = PartitionedFile::new_from_meta(object).with_partition_values(values);
        files.push(TableFile { file, bounds: None });
    }
    // The same order on every machine, oldest batch first.
    files.sort_by(|a, b| a.file.object_meta.location.cmp(&b.file.object_meta.location));
    Ok(Arc::new(ParquetTable::new(table, files)))
}

async fn list(table: &Table, visible: Visible) -> Result<Vec<ObjectMeta>> {
    let location = &table.location;
    let failed = |e: object_store::Error| explained(table.failed("list"), &e);
    if visible == Visible::All {
        // LOCATION may be one file.
        if location.path.as_ref().ends_with(".parquet") && location.local.as_ref().is_none_or(|local| local.is_file()) {
            return Ok(vec![location.store.head(&location.path).await.map_err(failed)?]);
        }
        if location.local.as_ref().is_some_and(|local| !local.exists()) {
            return Err(Error::user(format!("table {} has no folder", table.definition.name))
                .at(table.definition.place.clone())
                .cause(format!("LOCATION '{}' does not exist", table.definition.location))
                .hint("a path is relative to the folder that poundlock was started in"));
        }
    }
    let mut found = vec![];
    let (mut foreign, mut example) = (0, None);
    let mut listing = location.store.list(Some(&location.path));
    while let Some(object) = listing.try_next().await.map_err(failed)? {
        let name = object.location.filename().unwrap_or_default();
        let below = object.location.prefix_match(&location.path);
        let hidden = below.is_some_and(|mut parts| parts.any(|part| part.as_ref().starts_with(['_', '.'])));
        if !name.ends_with(".parquet") || hidden {
            continue;
        }
        match (visible, layout::FileName::parse(name)) {
            (Visible::All, _) => found.push(object),
            (Visible::Committed { pipeline, last }, Some(name)) if name.pipeline == pipeline => {
                if last.is_some_and(|last| name.batch <= last) {
                    found.push(object);
                }
            }
            (Visible::Committed { .. }, _) => {
                foreign += 1;
                example.get_or_insert(object.location);
            }
        }
    }
    if visible == Visible::All && found.is_empty() && location.local.is_none() {
        // There are no folders there that might be empty.
        return Err(Error::user(format!("table {} has no file", table.definition.name))
            .at(table.definition.place.clone())
            .cause(format!("there is none below {}", location.describe(&location.path)))
            .hint("the names of its files end in .parquet"));
    }
    if let Some(example) = example {
        let example = location.describe(&example);
        let table = table.definition.name.as_str();
        tracing::warn!(files = foreign, table, example, "files that this pipeline did not write are not read");
    }
    Ok(found)
}

/// From the path's folders.
fn partition_values(table: &Table, object: &ObjectMeta) -> Result<Vec<ScalarValue>> {
    let shown = table.location.describe(&object.location);
    let misplaced = |cause: String| {
        Error::user(format!("file {shown} is in no partition of table {}", table.definition.name))
            .at(table.definition.place.clone())
            .cause(cause)
            .hint("the table's files lie in folders named column=value, one level for each column of PARTITIONED BY")
    };
    let folders: Vec<String> = match object.location.prefix_match(&table.location.path) {
        Some(parts) => parts.map(|part| part.as_ref().to_string()).collect(),
        None => vec![],
    };
    let mut values = vec![];
    for (level, field) in table.partition_fields().into_iter().enumerate() {
        let folder = if level + 1 < folders.len() { folders[level].as_str() } else { "" };
        let value = match layout::parse_folder(folder) {
            Some((column, value)) if column == *field.name() => value,
            _ => return Err(misplaced(format!("there is no folder {}=… at level {}", field.name(), level + 1))),
        };
        let scalar = match value {
            None => ScalarValue::try_from(field.data_type()),
            Some(text) => ScalarValue::try_from_string(text, field.data_type()),
        };
        values.push(scalar.map_err(|e| misplaced(format!("{folder:?}: {}", e.strip_backtrace())))?);
    }
    Ok(values)
}

/// A file of a table.
#[derive(Debug, Clone)]
pub(in crate::connector) struct TableFile {
    /// With its partition values; its statistics, if there are none, are in its footer.
    pub file: PartitionedFile,
    /// What a log tells of its values, by column of [`ParquetTable::scanned`]: no value lies outside, but these need not be
    /// values. Only good for leaving files out.
    pub bounds: Option<Arc<Statistics>>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct ParquetTable {
    table: Table,
    /// Columns in the files, then partition columns: how DataFusion counts them in a scan.
    scanned: TableSchema,
    /// Where each declared column is in `scanned`.
    order: Vec<usize>,
    files: Vec<TableFile>,
    /// Of `scanned`.
    fingerprint: Arc<SchemaFingerprint>,
}

impl ParquetTable {
    pub(in crate::connector) fn new(table: Table, files: Vec<TableFile>) -> Self {
        let scanned = scanned(&table);
        let positions: Vec<usize> = table.file_columns.iter().chain(&table.partition_columns).copied().collect();
        let mut order = vec![0; positions.len()];
        for (scan_position, declared) in positions.into_iter().enumerate() {
            order[declared] = scan_position;
        }
        let fingerprint = Arc::new(SchemaFingerprint::from_schema(scanned.table_schema()));
        Self { table, scanned, order, files, fingerprint }
    }

    fn on_partitions(&self, filter: &Expr) -> bool {
        let columns: Vec<&str> = self.table.definition.partition_columns.iter().map(String::as_str).collect();
        !columns.is_empty() && expr_applicable_for_cols(&columns, filter)
    }

    /// Whether the filters are asked row by row while a file is read, and only what passes is decoded of the other columns. Where nothing is
    /// filtered by a number or a time, which may be one of many, and no text is to be saved, skipping costs more than it saves: of every
    /// seventh row by half as much again.
    fn skips_rows(&self, projection: Option<&Vec<usize>>, filters: &[Expr]) -> bool {
        let fields = self.table.definition.schema.fields();
        let is_narrow = |field: &Field| field.data_type().is_primitive() || *field.data_type() == DataType::Boolean;
        let asked: BTreeSet<&str> =
            filters.iter().flat_map(Expr::column_refs).map(|column| column.name.as_str()).collect();
        let is_asked = |field: &Field| asked.contains(field.name().as_str());
        let all: Vec<usize> = (0..fields.len()).collect();
        let mut read = projection.unwrap_or(&all).iter().map(|column| &fields[*column]);
        asked.is_empty()
            || fields.iter().any(|field| is_asked(field) && is_narrow(field))
            || read.any(|field| !is_asked(field) && !is_narrow(field))
    }

    /// Files whose partition values pass the filters.
    fn prune(&self, state: &dyn Session, filters: Vec<Expr>) -> DfResult<Vec<TableFile>> {
        let Some(filter) = conjunction(filters) else { return Ok(self.files.clone()) };
        if self.files.is_empty() {
            return Ok(vec![]);
        }
        let fields = self.table.partition_fields();
        let columns = (0..fields.len()).map(|column| {
            let values = self.files.iter().map(|file| file.file.partition_values[column].clone());
            ScalarValue::iter_to_array(values)
        });
        let schema = nullable(&Schema::new(fields));
        let values = RecordBatch::try_new(Arc::clone(&schema), columns.collect::<DfResult<_>>()?)?;
        let passes = state.create_physical_expr(filter, &DFSchema::try_from(schema)?)?;
        let passes = passes.evaluate(&values)?.into_array(self.files.len())?;
        let passes = passes.as_boolean();
        let files = self.files.iter().enumerate().filter(|(row, _)| passes.is_valid(*row) && passes.value(*row));
        Ok(files.map(|(_, file)| file.clone()).collect())
    }

    /// Of these the ones whose bounds leave room for rows that pass the filters.
    fn prune_by_bounds(
        &self,
        state: &dyn Session,
        filters: &[Expr],
        files: Vec<TableFile>,
    ) -> DfResult<Vec<PartitionedFile>> {
        let plain =
            |files: Vec<TableFile>| -> Vec<PartitionedFile> { files.into_iter().map(|file| file.file).collect() };
        let Some(filter) = conjunction(filters.to_vec()) else { return Ok(plain(files)) };
        if files.iter().all(|file| file.bounds.is_none()) {
            return Ok(plain(files));
        }
        let schema = nullable(self.scanned.table_schema());
        let filter = state.create_physical_expr(filter, &DFSchema::try_from(Arc::clone(&schema))?)?;
        let predicate = PruningPredicateBuilder::new().with_file_schema(Arc::clone(&schema)).try_build(filter)?;
        let unknown = Arc::new(Statistics::new_unknown(&schema));
        let bounds = files.iter().map(|file| file.bounds.clone().unwrap_or_else(|| Arc::clone(&unknown)));
        let kept = predicate.prune(&PrunableStatistics::new(bounds.collect(), schema))?;
        Ok(files.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(file, _)| file.file).collect())
    }

    /// What is known of a file from an earlier query of the session, as long as the file is the same; else from its footer: row
    /// count, minima and maxima. Checks the columns.
    async fn inspect(
        &self,
        state: &dyn Session,
        format: &ParquetFormat,
        file: PartitionedFile,
    ) -> DfResult<PartitionedFile> {
        if file.statistics.is_some() {
            return Ok(file);
        }
        let cache = state.runtime_env().cache_manager.get_file_statistic_cache();
        let table = Some(TableReference::bare(self.table.definition.name.as_str()));
        let key = TableScopedPath { table, path: file.object_meta.location.clone() };
        let known = cache.as_ref().and_then(|cache| cache.get(&key));
        if let Some(known) = known.filter(|known| known.is_valid_for(&file.object_meta, &self.fingerprint)) {
            return Ok(PartitionedFile { statistics: Some(known.statistics), ..file });
        }
        let store = &self.table.location.store;
        let named = |e: DataFusionError| {
            DataFusionError::Context(
                format!("file {} cannot be read as Parquet", self.table.location.describe(&file.object_meta.location)),
                Box::new(e),
            )
        };
        let found = format.infer_schema(state, store, std::slice::from_ref(&file.object_meta)).await.map_err(named)?;
        let (declared, path) = (self.scanned.file_schema(), format!("/{}", file.object_meta.location));
        drift::check(&self.table.definition, declared, &found, &path)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let of_file = format.infer_stats(state, store, Arc::clone(&found), &file.object_meta).await.map_err(named)?;
        let statistics = drift::in_declared_types(of_file, &found, declared);
        let statistics = Arc::new(with_partition_values(&file, statistics));
        if let Some(cache) = cache {
            let (meta, fingerprint) = (file.object_meta.clone(), Arc::clone(&self.fingerprint));
            cache.put(&key, CachedFileMetadata::new(meta, fingerprint, Arc::clone(&statistics), None));
        }
        Ok(PartitionedFile { statistics: Some(statistics), ..file })
    }
}

/// Columns in the files, then partition columns.
pub(in crate::connector) fn scanned(table: &Table) -> TableSchema {
    TableSchema::builder(table.file_schema()).with_table_partition_cols(table.partition_fields()).build()
}

/// The file's statistics and those of its partition values. (DataFusion's own method takes a NULL value for none.)
fn with_partition_values(file: &PartitionedFile, mut statistics: Statistics) -> Statistics {
    let of_values = file.partition_values.iter().map(|value| of_partition_value(value, statistics.num_rows));
    statistics.column_statistics.extend(of_values);
    statistics
}

/// Of a column that has one value in all rows of a file.
pub(in crate::connector) fn of_partition_value(value: &ScalarValue, rows: Precision<usize>) -> ColumnStatistics {
    let mut column = ColumnStatistics::new_unknown();
    column.distinct_count = Precision::Exact(1);
    if value.is_null() {
        column.null_count = rows;
    } else {
        column.null_count = Precision::Exact(0);
        column.min_value = Precision::Exact(value.clone());
        column.max_value = Precision::Exact(value.clone());
    }
    column
}

fn row_count(file: &PartitionedFile) -> usize {
    file.statistics.as_ref().and_then(|s| s.num_rows.get_value().copied()).unwrap_or(0)
}

#[async_trait]
impl TableProvider for ParquetTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.table.definition.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        let decide = |filter: &&Expr| match self.on_partitions(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(decide).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let (on_partitions, others): (Vec<Expr>, Vec<Expr>) =
            filters.iter().cloned().partition(|filter| self.on_partitions(filter));
        let files = self.prune(state, on_partitions)?;
        let files = self.prune_by_bounds(state, &others, files)?;
        let mut options = state.default_table_options().parquet;
        options.global.pushdown_filters |= self.skips_rows(projection, &others);
        // Spark's times of old: read as nanoseconds, those beyond the year 2262 would be others.
        options.global.coerce_int96.get_or_insert_with(|| "us".into());
        let format = ParquetFormat::default().with_options(options);
        // Files beyond a LIMIT need not be looked at; with a filter none can be counted on.
        let enough = limit.filter(|_| others.is_empty()).unwrap_or(usize::MAX);
        let (total, mut rows, mut inspected) = (files.len(), 0, Vec::with_capacity(files.len()));
        let mut footers = futures::stream::iter(files)
            .map(|file| self.inspect(state, &format, file))
            .buffered(CONCURRENT_FOOTERS)
            .boxed();
        while rows < enough
            && let Some(file) = footers.try_next().await?
        {
            rows += row_count(&file);
            inspected.push(file);
        }
        drop(footers);
        if inspected.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema(), projection)?)));
        }

        let schema = self.scanned.table_schema();
        let all = inspected.iter().filter_map(|file| file.statistics.as_deref());
        let mut statistics = Statistics::try_merge_iter(all, schema)?;
        if inspected.len() < total {
            statistics = statistics.to_inexact();
        }
        let groups = FileGroup::new(inspected).split_files(state.config().target_partitions().max(1));
        let columns = match projection {
            Some(columns) => columns.iter().map(|column| self.order[*column]).collect(),
            None => self.order.clone(),
        };
        let source = Arc::new(ParquetSource::new(self.scanned.clone()));
        let config = FileScanConfigBuilder::new(self.table.location.url.clone(), source)
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(Some(columns))?
            .with_limit(limit)
            .build();
        format.create_physical_plan(state, config).await
    }
}
