//! Delta tables whose small files are merged all the time, on disk and on S3, read back by their log's JSON.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use poundlock::connector::{Sink, TableDefinition};
use tempfile::TempDir;

use super::{OnS3, no_folders, only, rows_of, short, table, tables};
use crate::harness::delta;
use crate::sink_contract::rig::{Newest, Row, Subject, Tables};

pub struct Delta {
    folder: TempDir,
    tables: Tables,
}

impl Subject for Delta {
    // By the epoch in the log: no entry stands on a newer start's.
    const FENCES: bool = true;
    // A batch without rows for a table leaves no entry there.
    const NEWEST: Newest = Newest::Begun;

    fn fresh() -> Self {
        let folder = TempDir::new().unwrap();
        let location = |name: &str| folder.path().join(name).display().to_string();
        let tables = tables(|name, options| merging(name, &location(name), options), false);
        Self { folder, tables }
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        rows_of_log(self.folder.path().join(short(table)))
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        no_folders()
    }
}

pub struct DeltaOnS3(OnS3);

impl Subject for DeltaOnS3 {
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Begun;

    fn fresh() -> Self {
        Self(OnS3::fresh(merging))
    }

    fn tables(&self) -> &Tables {
        &self.0.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.0.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        rows_of_log(self.0.folder(table))
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        no_folders()
    }

    fn trouble(&self, _after: Duration) -> bool {
        self.0.lose_answers_to([".parquet", "/_delta_log/"]);
        false // a write asks again
    }
}

fn merging(name: &str, location: &str, options: &[(&str, &str)]) -> TableDefinition {
    let merging = [("optimize.interval", "10 ms"), ("optimize.min_files", "2"), ("checkpoint.interval", "3")];
    let table = table(name, "DELTA", location, &[&merging, options].concat());
    TableDefinition { partition_columns: vec!["part".into()], ..table }
}

fn rows_of_log(table: PathBuf) -> Vec<Row> {
    let mut rows = vec![];
    for (file, values) in delta::files(&table) {
        let part = values["part"].as_deref().unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap();
        rows.extend(reader.build().unwrap().flat_map(|batch| rows_of(&batch.unwrap(), Some(part))));
    }
    rows
}
