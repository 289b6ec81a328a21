//! The systems that the suite runs on, each with a reader that is not the engine's.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use poundlock::connector::memory::{self, FailAt};
use poundlock::connector::{Sink, TableDefinition, sinks};
use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

use super::rig::{Keyed, Newest, Row, Subject, Tables};
use crate::harness::{Proxy, S3, psql};

mod delta;
mod elasticsearch;
mod kafka;
mod outboxed;

pub use delta::{Delta, DeltaOnS3};
pub use elasticsearch::Elasticsearch;
pub use kafka::Kafka;
pub use outboxed::Outboxed;

fn table(name: &str, stored_as: &str, location: &str, options: &[(&str, &str)]) -> TableDefinition {
    let columns = [("id", DataType::Int64), ("v", DataType::Utf8View), ("part", DataType::Utf8View)];
    let fields: Vec<Field> = columns.into_iter().map(|(name, of)| Field::new(name, of, true)).collect();
    TableDefinition {
        name: format!("out.{name}"),
        schema: Arc::new(Schema::new(fields)),
        primary_key: vec![],
        unbounded: false,
        stored_as: stored_as.into(),
        location: location.into(),
        partition_columns: vec![],
        options: options.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect(),
        place: "queries/00_tables.sql:1:1".into(),
    }
}

/// The same for every kind, each from its name and options.
fn tables(make: impl Fn(&str, &[(&str, &str)]) -> TableDefinition, with_keys: bool) -> Tables {
    let settled = with_keys.then_some([("on_conflict", "update"), ("on_conflict", "nothing")]);
    tables_settled_by(make, settled)
}

/// The options of the tables with keys: which row stays, the last or the first.
fn tables_settled_by(
    make: impl Fn(&str, &[(&str, &str)]) -> TableDefinition,
    settled: Option<[(&str, &str); 2]>,
) -> Tables {
    let keyed = |name: &str, option: (&str, &str)| {
        let table = make(name, &[option]);
        Arc::new(TableDefinition { primary_key: vec!["id".into()], ..table })
    };
    Tables {
        plain: Arc::new(make("plain", &[])),
        strict: Arc::new(make("strict", &[])),
        letters: Arc::new(make("letters", &[("role", "dead_letters")])),
        keyed: settled.map(|[last, first]| Keyed { updated: keyed("updated", last), kept: keyed("kept", first) }),
    }
}

fn only(tables: &Tables) -> Box<dyn Sink> {
    let mut sinks = sinks(&tables.all()).unwrap();
    assert_eq!(sinks.len(), 1);
    sinks.remove(0)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_string())
}

/// The last part of a table's name.
fn short(table: &TableDefinition) -> &str {
    table.name.rsplit('.').next().unwrap()
}

fn rows_of(batch: &RecordBatch, part: Option<&str>) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).map(|array| cast(array, &DataType::Utf8).unwrap());
    let (values, parts) = (column("v").unwrap(), column("part"));
    let ids = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
    let value = |row: usize| values.is_valid(row).then(|| values.as_string::<i32>().value(row).to_string());
    let part = |row: usize| match part {
        Some(part) => part.to_string(),
        None => parts.as_ref().unwrap().as_string::<i32>().value(row).to_string(),
    };
    (0..batch.num_rows()).map(|row| (ids.value(row), value(row), part(row))).collect()
}

fn row_of(json: &str) -> Row {
    let json: Value = serde_json::from_str(json).unwrap();
    let text = |name: &str| json[name].as_str().map(str::to_string);
    (json["id"].as_i64().unwrap(), text("v"), text("part").unwrap())
}

/// Fails where it is told to; its futures never wait.
pub struct Memory<const TRANSACTIONS: bool> {
    system: memory::Memory,
    tables: Tables,
}

impl<const TRANSACTIONS: bool> Subject for Memory<TRANSACTIONS> {
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Whole;

    fn fresh() -> Self {
        let system = if TRANSACTIONS { memory::Memory::new() } else { memory::Memory::without_transactions() };
        system.refuse(|insert, row| {
            // The other tables have many rows.
            if short(&insert.table) != "strict" {
                return None;
            }
            let row = insert.rows.iter().flat_map(|rows| rows_of(rows, None)).nth(row)?;
            (row.1.as_deref() == Some("impossible")).then(|| "it is impossible".to_string())
        });
        Self { system, tables: tables(|name, options| table(name, "MEMORY", "", options), false) }
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        Box::new(self.system.sink().of(&self.tables.all()))
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        self.system.table(&table.name).iter().flat_map(|rows| rows_of(rows, None)).collect()
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        vec![((-1, text("impossible"), "p".into()), "it is impossible")]
    }

    fn trouble(&self, after: Duration) -> bool {
        let points = [FailAt::BeforeWrite, FailAt::Midway, FailAt::AfterWrite];
        self.system.fail_once(points[after.as_nanos() as usize % points.len()]);
        true
    }
}

pub struct Sqlite {
    folder: TempDir,
    tables: Tables,
}

impl Sqlite {
    fn connection(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.folder.path().join("db")).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }
}

impl Subject for Sqlite {
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Whole;

    fn fresh() -> Self {
        let folder = TempDir::new().unwrap();
        let location = format!("sqlite:{}", folder.path().join("db").display());
        let tables = tables(|name, options| table(name, "DATABASE", &location, options), true);
        let sqlite = Self { folder, tables };
        // The others are made by the sink.
        let strict = "CREATE TABLE strict (id BIGINT CHECK (id <> -2), v TEXT NOT NULL, part TEXT)";
        sqlite.connection().execute_batch(strict).unwrap();
        sqlite
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        let connection = self.connection();
        let mut statement = connection.prepare(&format!("SELECT id, v, part FROM {}", short(table))).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        vec![((-1, None, "p".into()), "NOT NULL"), ((-2, text("v"), "p".into()), "CHECK")]
    }

    /// Another program holds the file's lock for a moment.
    fn trouble(&self, after: Duration) -> bool {
        let connection = self.connection();
        std::thread::spawn(move || {
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
            std::thread::sleep(after);
            connection.execute_batch("ROLLBACK").unwrap();
        });
        false // a write waits for it, and does not fail
    }
}

pub struct Parquet {
    folder: TempDir,
    tables: Tables,
}

impl Subject for Parquet {
    // The checkpoint fences.
    const FENCES: bool = false;
    const NEWEST: Newest = Newest::Unknown;

    fn fresh() -> Self {
        let folder = TempDir::new().unwrap();
        let make = |name: &str, options: &[(&str, &str)]| {
            let location = folder.path().join(name).display().to_string();
            let table = table(name, "PARQUET", &location, options);
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
        rows_of_folder(&self.folder.path().join(short(table)))
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        no_folders()
    }
}

/// As a program that globs the folder; what begins with `_` is no data.
fn rows_of_folder(folder: &Path) -> Vec<Row> {
    let mut rows = vec![];
    for folder in entries(folder) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        if name.starts_with('_') {
            continue;
        }
        let Some((_, part)) = name.split_once("part=") else { panic!("{name} is no partition") };
        for file in entries(&folder).filter(|file| file.extension().is_some_and(|end| end == "parquet")) {
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap();
            rows.extend(reader.build().unwrap().flat_map(|batch| rows_of(&batch.unwrap(), Some(part))));
        }
    }
    rows
}

/// Rows whose partition cannot name a folder.
fn no_folders() -> Vec<(Row, &'static str)> {
    vec![((-1, text("v"), "x".repeat(300)), "305 bytes long"), ((-2, text("v"), String::new()), "an empty string")]
}

/// Tables on object storage, reached as their options say, over a way on which answers are lost. What is there goes with it.
struct OnS3 {
    server: S3,
    name: String,
    way: Proxy,
    tables: Tables,
}

impl OnS3 {
    /// `make`: a table of this name, location and options.
    fn fresh(make: impl Fn(&str, &str, &[(&str, &str)]) -> TableDefinition) -> Self {
        let (server, name) = (S3::of_environment(), format!("contract-{}", Uuid::new_v4()));
        let way = Proxy::start(&server.endpoint);
        let tables = tables(
            |table_name: &str, options: &[(&str, &str)]| {
                let endpoint = way.url();
                let options = [&[("s3.endpoint", endpoint.as_str()), ("s3.allow_http", "true")], options].concat();
                make(table_name, &server.url(&format!("{name}/{table_name}")), &options)
            },
            false,
        );
        Self { server, name, way, tables }
    }

    fn folder(&self, table: &TableDefinition) -> std::path::PathBuf {
        self.server.folder(&format!("{}/{}", self.name, short(table)))
    }

    /// The next answers to requests about these are lost: the server has done what it was asked.
    fn lose_answers_to(&self, parts: [&str; 2]) {
        parts.iter().for_each(|part| self.way.lose_answer_to(part));
    }
}

impl Drop for OnS3 {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: {}", self.server.folder(&self.name).display());
            return;
        }
        self.server.delete(&self.name);
    }
}

pub struct ParquetOnS3(OnS3);

impl Subject for ParquetOnS3 {
    // By the marks.
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Begun;

    fn fresh() -> Self {
        Self(OnS3::fresh(|name, location, options| {
            let table = table(name, "PARQUET", location, options);
            TableDefinition { partition_columns: vec!["part".into()], ..table }
        }))
    }

    fn tables(&self) -> &Tables {
        &self.0.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.0.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        rows_of_folder(&self.0.folder(table))
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        no_folders()
    }

    fn trouble(&self, _after: Duration) -> bool {
        self.0.lose_answers_to([".parquet", "/_poundlock/"]);
        false // a write asks again
    }
}

/// None of a folder that is not there yet.
fn entries(folder: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path())
}

pub struct Postgres {
    server: String,
    url: String,
    database: String,
    tables: Tables,
}

impl Subject for Postgres {
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Whole;

    fn fresh() -> Self {
        let server = std::env::var("DATABASE_URL").expect("DATABASE_URL: run this through `make test`");
        let database = format!("contract_{}", Uuid::new_v4().simple());
        let (host, _) = server.rsplit_once('/').expect("DATABASE_URL ends with /database");
        let url = format!("{host}/{database}");
        psql(&server, &format!("CREATE DATABASE {database}"));
        let tables = tables(|name, options| table(name, "DATABASE", &url, options), true);
        for (name, more) in [
            ("plain", ""),
            ("strict", ", CHECK (id <> -2)"),
            ("letters", ""),
            ("updated", ", PRIMARY KEY (id)"),
            ("kept", ", PRIMARY KEY (id)"),
        ] {
            psql(&url, &format!("CREATE TABLE {name} (id bigint, v text, part text{more})"));
        }
        Self { server, url, database, tables }
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        let lines = psql(&self.url, &format!("SELECT row_to_json(t) FROM {} t", short(table)));
        lines.lines().map(row_of).collect()
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        vec![((-1, text("a\0b"), "p".into()), "\"v\""), ((-2, text("v"), "p".into()), "check")]
    }

    /// An administrator ends all connections to the database but those of our reader.
    fn trouble(&self, after: Duration) -> bool {
        let (server, database) = (self.server.clone(), self.database.clone());
        std::thread::spawn(move || {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> 'psql'";
            psql(&server, &format!("SELECT pg_sleep({}); {end} AND datname = '{database}'", after.as_secs_f64()));
        });
        true
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: database {}", self.database);
            return;
        }
        psql(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.database));
    }
}
