//! Delta tables whose small files are merged all the time, read back by their log's JSON.

use std::fs::File;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use poundlock::connector::{Sink, TableDefinition};
use tempfile::TempDir;

use super::{only, rows_of, short, table, tables, text};
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
        let make = |name: &str, options: &[(&str, &str)]| {
            let location = folder.path().join(name).display().to_string();
            let merging = [("optimize.interval", "10 ms"), ("optimize.min_files", "2"), ("checkpoint.interval", "3")];
            let table = table(name, "DELTA", &location, &[&merging, options].concat());
            TableDefinition { partition_columns: vec!["part".into()], ..table }
        };
        let tables = tables(make, false);
        Self { folder, tables }
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        let mut rows = vec![];
        for (file, values) in delta::files(&self.folder.path().join(short(table))) {
            let part = values["part"].as_deref().unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap();
            rows.extend(reader.build().unwrap().flat_map(|batch| rows_of(&batch.unwrap(), Some(part))));
        }
        rows
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        vec![((-1, text("v"), "x".repeat(300)), "305 bytes long"), ((-2, text("v"), String::new()), "an empty string")]
    }
}
