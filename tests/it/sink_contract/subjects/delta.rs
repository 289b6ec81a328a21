//! Delta tables whose small files are merged all the time, on disk and on S3, read back by their log's JSON.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use poundlock::connector::{Sink, TableDefinition};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Proxy, no_folders, only, rows_of, short, table, tables};
use crate::harness::{S3, delta};
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

pub struct DeltaOnS3 {
    server: S3,
    name: String,
    way: Proxy,
    tables: Tables,
}

impl Subject for DeltaOnS3 {
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Begun;

    fn fresh() -> Self {
        let (server, name) = (S3::of_environment(), format!("contract-{}", Uuid::new_v4()));
        let way = Proxy::start(&server.endpoint);
        let make = |table_name: &str, options: &[(&str, &str)]| {
            let endpoint = way.url();
            let options = [&[("s3.endpoint", endpoint.as_str()), ("s3.allow_http", "true")], options].concat();
            merging(table_name, &server.url(&format!("{name}/{table_name}")), &options)
        };
        let tables = tables(make, false);
        Self { server, name, way, tables }
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        rows_of_log(self.server.folder(&format!("{}/{}", self.name, short(table))))
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        no_folders()
    }

    /// The next answers to a file and to an entry of the log are lost: the server has done what it was asked.
    fn trouble(&self, _after: Duration) -> bool {
        self.way.lose_answer_to(".parquet");
        self.way.lose_answer_to("/_delta_log/");
        false // a write asks again
    }
}

impl Drop for DeltaOnS3 {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: {}", self.server.folder(&self.name).display());
            return;
        }
        self.server.delete(&self.name);
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
