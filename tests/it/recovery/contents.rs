//! What is in the sinks, read by others than the engine: SQLite's own client, every Parquet file that there is, a plain
//! consumer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use poundlock::connector::kafka::sink::ID_HEADER;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::project::{Project, Servers};
use crate::harness::delta;

pub fn sorted(rows: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut rows: Vec<String> = rows.into_iter().collect();
    rows.sort();
    rows
}

pub fn sqlite(path: &Path, query: &str) -> Vec<String> {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut statement = connection.prepare(query).unwrap();
    let columns = statement.column_count();
    let text = |value: ValueRef| match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
    };
    let rows = statement.query_map([], |row| {
        let values = (0..columns).map(|column| row.get_ref(column).map(text));
        Ok(values.collect::<Result<Vec<_>, _>>()?.join("|"))
    });
    sorted(rows.unwrap().map(Result::unwrap))
}

/// The rows of all files below a folder, with the folder they are in: a file too many is seen as well.
pub fn parquet(folder: &Path, columns: &[&str]) -> Vec<String> {
    let mut rows = vec![];
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") {
                let part = folder.file_name().unwrap().to_str().unwrap();
                rows.extend(file(&path, columns).into_iter().map(|row| format!("{row}|{part}")));
            }
        }
    }
    sorted(rows)
}

/// The rows of the files that count by a table's log, with their partition.
pub fn delta_rows(table: &Path, columns: &[&str]) -> Vec<String> {
    let of = |(path, values): (std::path::PathBuf, BTreeMap<String, Option<String>>)| {
        let values: Vec<String> = values.into_values().map(|value| value.unwrap_or_default()).collect();
        file(&path, columns).into_iter().map(move |row| format!("{row}|{}", values.join("|")))
    };
    sorted(delta::files(table).into_iter().flat_map(of))
}

fn file(path: &Path, columns: &[&str]) -> Vec<String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let mut rows = vec![];
    for batch in reader.map(Result::unwrap) {
        let options = FormatOptions::new();
        let formats = columns.iter().map(|name| {
            let column =
                batch.column_by_name(name).unwrap_or_else(|| panic!("{} has no column {name}", path.display()));
            ArrayFormatter::try_new(column, &options).unwrap()
        });
        let formats: Vec<ArrayFormatter> = formats.collect();
        let row = |row| formats.iter().map(|format| format.value(row).to_string()).collect::<Vec<_>>().join("|");
        rows.extend((0..batch.num_rows()).map(row));
    }
    rows
}

/// The payloads of a topic of one partition. Where there are no transactions a message may have come twice, with the
/// same header: it counts once.
pub fn messages(project: &Project, topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", project.topic("KAFKA_BROKER"))
        .set("group.id", "a test")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    loop {
        assert!(Instant::now() < deadline, "the end of topic {topic} did not come");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(error)) => panic!("topic {topic}: {error}"),
            Some(Ok(message)) => {
                let headers = message.headers().expect("a message of ours has headers");
                let id = headers.iter().find(|header| header.key == ID_HEADER).expect("it has an id").value.unwrap();
                let id = String::from_utf8(id.to_vec()).unwrap();
                let payload = String::from_utf8(message.payload().unwrap().to_vec()).unwrap();
                match found.insert(id.clone(), payload.clone()) {
                    Some(before) if project.servers == Servers::Embedded => assert_eq!(before, payload, "{id}"),
                    Some(_) => panic!("message {id} is in topic {topic} twice"),
                    None => {}
                }
            }
        }
    }
    sorted(found.into_values())
}

/// The documents of an index, those with a key with their `_id`: of the others it is of this run only.
fn documents(project: &Project, index: &str) -> Vec<String> {
    let Some(server) = &project.elasticsearch else { return vec![] };
    let documents = server.documents(&format!("{}_{index}", project.name)).into_iter();
    sorted(documents.map(|(id, document)| match index {
        "counts" => format!("{id} {document}"),
        _ => document.to_string(),
    }))
}

/// All that a project has written, by table.
pub type Contents = BTreeMap<&'static str, Vec<String>>;

pub fn of(project: &Project) -> Contents {
    BTreeMap::from([
        ("db.shares", project.rows("SELECT * FROM shares")),
        ("db.counts", project.rows("SELECT * FROM counts")),
        ("db.closed", project.rows("SELECT * FROM closed")),
        ("db.history", project.rows("SELECT * FROM history")),
        ("late.copies", sqlite(&project.path("late"), "SELECT * FROM copies")),
        ("lake.events", project.lake()),
        ("lake.merged", project.merged()),
        ("kafka.copies", messages(project, project.topic("COPIES"))),
        ("kafka.dead", messages(project, project.topic("DEAD"))),
        ("es.copies", documents(project, "copies")),
        ("es.counts", documents(project, "counts")),
        ("the accounts", accounts(project)),
    ])
}

/// Sums over all commits: records fetched by partition, rows by table of those that take rows once.
fn accounts(project: &Project) -> Vec<String> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for commit in project.commits() {
        for (partition, of) in commit.sources.values().flat_map(|source| &source.partitions) {
            let accounts = [
                ("fetched", of.fetched),
                ("decoded", of.decoded),
                ("undecodable", of.undecodable),
                ("refused by a query", of.refused_by_query),
            ];
            for (what, number) in accounts {
                *sums.entry(format!("partition {partition} {what}")).or_default() += number;
            }
        }
        for insert in
            commit.inserts.values().filter(|insert| !["db.counts", "es.counts"].contains(&insert.table.as_str()))
        {
            let accounts = [("produced", insert.produced), ("refused", insert.report.refused)];
            for (what, number) in accounts {
                *sums.entry(format!("{} {what}", insert.table)).or_default() += number;
            }
        }
    }
    sums.into_iter().map(|(what, number)| format!("{what}: {number}")).collect()
}

/// Says which table differs, and in what.
pub fn assert_same(found: &Contents, expected: &Contents, what: &str) {
    for (table, expected) in expected {
        let found = &found[table];
        let count = |rows: &[String], row: &String| rows.iter().filter(|other| *other == row).count();
        let differ = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter().filter(|row| count(a, row) > count(b, row)).cloned().collect()
        };
        let (extra, missing) = (differ(found, expected), differ(expected, found));
        assert!(found == expected, "{what}: {table} differs\ntoo many: {extra:#?}\nmissing: {missing:#?}");
    }
}
