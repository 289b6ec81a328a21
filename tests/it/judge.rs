//! Writes down what is in Kafka, PostgreSQL and Elasticsearch after a run, and lets `judge.py` compare it and the lake with the input.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::harness::World;

const TABLES: [&str; 7] = [
    "user_events",
    "user_activity_summary",
    "anomalous_events",
    "user_activity",
    "hourly_metrics",
    "data_quality_checks",
    "anomaly_detection_results",
];

/// The judge's findings; panics with them if anything is lost, doubled, changed or made up. Call it after a clean end.
pub fn judge(world: &World) -> String {
    verdict(world).unwrap_or_else(|findings| panic!("the judge says no\n{findings}"))
}

/// The judge's findings, as an error if it says no.
pub fn verdict(world: &World) -> Result<String, String> {
    let dump = world.folder.join("dump");
    fs::create_dir_all(&dump).unwrap();
    let write = |name: &str, text: String| fs::write(dump.join(name), text).unwrap();
    write("input.jsonl", records(world, &world.events));
    write("dead_letters.jsonl", records(world, &world.dead_letters));
    write("alerts.jsonl", records(world, &world.alerts));
    write("group.json", group(world).to_string());
    for table in TABLES {
        write(&format!("{table}.jsonl"), world.sql(&format!("SELECT row_to_json(t) FROM {table} t")));
    }
    let documents = world.elasticsearch.documents(&world.index);
    let documents = documents.iter().map(|(id, source)| format!("{}\n", json!({ "id": id, "source": source })));
    write("documents.jsonl", documents.collect());
    write("users.jsonl", world.sql("SELECT row_to_json(t) FROM users t"));

    let home = std::env::var("HOME").unwrap_or_default();
    let python =
        std::env::var("POUNDLOCK_PYTHON").unwrap_or_else(|_| format!("{home}/.cache/poundlock/venv/bin/python"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/judge.py");
    let output = Command::new(&python)
        .arg(script)
        .args([&dump, &world.lake()])
        .arg(&world.events)
        .output()
        .unwrap_or_else(|error| panic!("{python}: {error}; tests/services/prerequisites makes it"));
    let findings = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(findings) } else { Err(findings) }
}

/// Everything in a topic that a reader of committed records sees, one JSON object a line, bytes in hex.
fn records(world: &World, topic: &str) -> String {
    let consumer = consumer(world, "nobody");
    let partitions = partitions(&consumer, topic);
    let mut all = TopicPartitionList::new();
    for partition in &partitions {
        all.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&all).unwrap();
    let (mut lines, mut at_end, began) = (String::new(), 0, Instant::now());
    while at_end < partitions.len() {
        assert!(began.elapsed() < Duration::from_secs(120), "{topic} was read to its end in two minutes");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(record)) => writeln!(lines, "{}", line(&record)).unwrap(),
            Some(Err(KafkaError::PartitionEOF(_))) => at_end += 1,
            Some(Err(error)) => panic!("{topic}: {error}"),
        }
    }
    lines
}

fn line(record: &BorrowedMessage) -> Value {
    let headers: BTreeMap<&str, Option<String>> = record
        .headers()
        .map(|headers| headers.iter().map(|header| (header.key, header.value.map(hex))).collect())
        .unwrap_or_default();
    json!({
        "partition": record.partition(),
        "offset": record.offset(),
        "key": record.key().map(hex),
        "value": record.payload().map(hex),
        "headers": headers,
        "timestamp": record.timestamp().to_millis(),
    })
}

/// The pipeline's committed offset and the end of the log, by partition of the input.
fn group(world: &World) -> Value {
    let consumer = consumer(world, &world.name);
    let mut wanted = TopicPartitionList::new();
    for partition in partitions(&consumer, &world.events) {
        wanted.add_partition(&world.events, partition);
    }
    let committed = consumer.committed_offsets(wanted, Duration::from_secs(30)).unwrap();
    let rows = committed.elements().into_iter().map(|element| {
        let (_, end) = consumer.fetch_watermarks(&world.events, element.partition(), Duration::from_secs(30)).unwrap();
        json!({"partition": element.partition(), "committed": element.offset().to_raw(), "end": end})
    });
    rows.collect()
}

fn consumer(world: &World, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", &world.brokers)
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap()
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Vec<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).unwrap();
    metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
