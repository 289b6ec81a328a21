//! Topics of a real Kafka, read back by a consumer of our own; values of Avro by apache-avro.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use poundlock::connector::{Sink, TableDefinition};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use uuid::Uuid;

use super::{only, row_of, short, table, tables};
use crate::avro::{ask, variable};
use crate::harness::wait_for;
use crate::sink_contract::rig::{Newest, Row, Subject, Tables};

/// Values as JSON or, with a schema that each sink registers, as Avro.
pub struct Kafka<const AVRO: bool> {
    brokers: String,
    tables: Tables,
    /// Asked for the ends of all messages, and of committed ones.
    uncommitted: BaseConsumer,
    committed: BaseConsumer,
}

const KAFKA_PARTITIONS: i32 = 2;

impl<const AVRO: bool> Subject for Kafka<AVRO> {
    const FENCES: bool = true;
    // A wave without rows leaves no marker, so it cannot tell whether a batch is whole.
    const NEWEST: Newest = Newest::Begun;

    fn fresh() -> Self {
        let brokers = variable("KAFKA_BROKERS");
        let prefix = format!("contract-{}", Uuid::new_v4());
        let registry = if AVRO { variable("SCHEMA_REGISTRY_URL") } else { String::new() };
        let format = [("format", "avro"), ("schema.registry.url", registry.as_str())];
        let format: &[(&str, &str)] = if AVRO { &format } else { &[] };
        let make = |name: &str, options: &[(&str, &str)]| {
            let options = [&[("brokers", brokers.as_str()), ("key", "id")], format, options].concat();
            table(name, "KAFKA", &format!("{prefix}-{name}"), &options)
        };
        let tables = tables(make, false);
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        let topics = tables.all();
        let topics = topics.iter().map(|table| {
            // Our messages have a time of long ago: every five minutes the brokers would remove them.
            let topic = NewTopic::new(&table.location, KAFKA_PARTITIONS, TopicReplication::Fixed(1));
            let topic = topic.set("retention.ms", "-1");
            if short(table) == "strict" { topic.set("max.message.bytes", "3000") } else { topic }
        });
        let topics: Vec<NewTopic> = topics.collect();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        for made in futures::executor::block_on(admin.create_topics(&topics, &options)).unwrap() {
            made.unwrap();
        }
        let [uncommitted, committed] =
            ["read_uncommitted", "read_committed"].map(|isolation| consumer(&brokers, isolation));
        let kafka = Self { brokers, tables, uncommitted, committed };
        for table in kafka.tables.all() {
            // A broker may know of them a little later than the controller.
            wait_for("a new topic", Duration::from_secs(30), || {
                ends(&kafka.committed, &table.location).zip(ends(&kafka.uncommitted, &table.location))
            });
        }
        kafka
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    /// As a reader of committed messages. A commit is durable a moment before the partitions learn of it.
    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        wait_for("the end of all transactions", Duration::from_secs(60), || {
            let (all, committed) = (ends(&self.uncommitted, &table.location), ends(&self.committed, &table.location));
            (all.is_some() && all == committed).then_some(())
        });
        let mut all = TopicPartitionList::new();
        for partition in 0..KAFKA_PARTITIONS {
            all.add_partition_offset(&table.location, partition, Offset::Beginning).unwrap();
        }
        // Always a new one: it begins at the beginning, whatever an earlier look has left in a queue.
        let consumer = consumer(&self.brokers, "read_committed");
        consumer.assign(&all).unwrap();
        let (mut rows, mut at_end, began) = (vec![], BTreeSet::new(), Instant::now());
        while at_end.len() < KAFKA_PARTITIONS as usize {
            assert!(began.elapsed() < Duration::from_secs(60), "{} has an end", table.location);
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) if AVRO => rows.push(row_of_avro(message.payload().unwrap())),
                Some(Ok(message)) => rows.push(row_of(std::str::from_utf8(message.payload().unwrap()).unwrap())),
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(at_end.insert(partition)),
                Some(Err(error)) => panic!("{}: {error}", table.location),
            }
        }
        rows
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        vec![((-1, Some("x".repeat(4_000)), "p".into()), "bytes, topic")]
    }
}

/// By apache-avro, with the schema that the registry has under the record's id.
fn row_of_avro(payload: &[u8]) -> Row {
    use apache_avro::types::Value as Avro;

    static SCHEMAS: Mutex<BTreeMap<u32, Arc<apache_avro::Schema>>> = Mutex::new(BTreeMap::new());

    assert_eq!(payload[0], 0);
    let id = u32::from_be_bytes(payload[1..5].try_into().unwrap());
    let ask = || {
        let answer = ask("GET", &format!("schemas/ids/{id}"), &Value::Null);
        Arc::new(apache_avro::Schema::parse_str(answer["schema"].as_str().unwrap()).unwrap())
    };
    let schema = Arc::clone(SCHEMAS.lock().unwrap().entry(id).or_insert_with(ask));
    let value = apache_avro::from_avro_datum(&schema, &mut &payload[5..], None).unwrap();
    let Avro::Record(fields) = value else { panic!("{value:?}") };
    let inner = |name: &str| match &fields.iter().find(|(field, _)| field == name).unwrap().1 {
        Avro::Union(_, inner) => (**inner).clone(),
        other => other.clone(),
    };
    let text = |name: &str| match inner(name) {
        Avro::String(text) => Some(text),
        Avro::Null => None,
        other => panic!("{name}: {other:?}"),
    };
    let Avro::Long(id) = inner("id") else { panic!("{fields:?}") };
    (id, text("v"), text("part").unwrap())
}

fn consumer(brokers: &str, isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "contract-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "20")
        .create()
        .unwrap()
}

/// Of each partition, as such a reader sees it; `None`: the topic is not known yet.
fn ends(consumer: &BaseConsumer, topic: &str) -> Option<Vec<i64>> {
    let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(10));
    (0..KAFKA_PARTITIONS).map(|partition| end(partition).ok().map(|(_, end)| end)).collect()
}
