use arrow::array::{Int64Array, StringViewArray};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use uuid::Uuid;

use super::super::mock::MockBroker;
use super::super::options::tests::definition;
use super::super::schemas::fake::FakeRegistry;
use super::*;

const COLUMNS: &[(&str, DataType)] = &[("id", DataType::Int64), ("text", DataType::Utf8View)];

fn table(brokers: &str, topic: &str, options: &[(&str, &str)]) -> Arc<TableDefinition> {
    let mut all = vec![("brokers", brokers), ("key", "id")];
    all.extend_from_slice(options);
    definition(COLUMNS, topic, &all)
}

fn sink(tables: &[Arc<TableDefinition>]) -> KafkaSink {
    let mut sinks = KafkaSink::for_tables(tables.to_vec()).unwrap();
    assert_eq!(sinks.len(), 1);
    sinks.remove(0)
}

fn identity(name: &str, epoch: u64) -> Identity {
    Identity { name: name.into(), uuid: Uuid::from_u128(7), epoch, takes_over: false }
}

/// Rows `(id, text)` of one INSERT into one table.
fn request(table: &Arc<TableDefinition>, batch: u64, wave: Wave, rows: &[(i64, &str)]) -> WriteRequest {
    let ids: Int64Array = rows.iter().map(|(id, _)| *id).collect::<Vec<_>>().into();
    let texts = StringViewArray::from_iter_values(rows.iter().map(|(_, text)| *text));
    let rows = RecordBatch::try_new(Arc::clone(&table.schema), vec![Arc::new(ids), Arc::new(texts)]).unwrap();
    let insert = InsertRows { insert: 2, table: Arc::clone(table), rows: vec![rows], hash: String::new() };
    WriteRequest { batch, wave, planned_at: 1_700_000_000_000_000, offsets: BTreeMap::new(), inserts: vec![insert] }
}

/// (key, value, header) of every committed message.
fn read(brokers: &str, topic: &str) -> Vec<(String, String, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut messages = vec![];
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline, "no end of the log");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
                let header = message.headers().map(|headers| {
                    let more = headers.iter().skip(1).map(|more| format!(" {}={}", more.key, text(more.value)));
                    format!("{}{}", text(headers.get(0).value), more.collect::<String>())
                });
                let header = header.unwrap_or_default();
                assert_eq!(message.timestamp().to_millis(), Some(1_700_000_000_000));
                messages.push((text(message.key()), text(message.payload()), header));
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return messages,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
}

#[test]
fn one_cluster_is_one_sink() {
    let tables = [table("b:2,a:1", "one", &[]), table("a:1, b:2", "two", &[]), table("c:3", "three", &[])];
    let sinks = KafkaSink::for_tables(tables).unwrap();
    assert_eq!(sinks.iter().map(|sink| sink.name()).collect::<Vec<_>>(), ["kafka-a-1", "kafka-c-3"]);
    let differ = [table("a:1", "one", &[]), table("a:1", "two", &[("kafka.acks", "1")])];
    assert!(KafkaSink::for_tables(differ).err().unwrap().to_string().contains("share a transaction"));
    let overlap = [table("a:1", "one", &[]), table("b:2,a:1", "two", &[])];
    let error = KafkaSink::for_tables(overlap).err().unwrap().to_string();
    assert!(error.contains("name a:1 in different lists of brokers"), "{error}");
    assert_eq!(sinks[0].guarantee().level, "exactly-once");
    let plain = sink(&[table("a:1", "one", &[("transactional", "false")])]);
    assert_eq!(plain.guarantee().level, "at-least-once");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_transactions_rows_are_written_once_in_one_process() {
    let mock = MockBroker::start(&[("out", 1)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let table = table(&brokers, "out", &[("transactional", "false"), ("headers", "text")]);
    let mut sink = sink(&[Arc::clone(&table)]);
    assert_eq!(sink.open(&identity("test", 1)).await.unwrap(), None);
    let rows = request(&table, 5, Wave::Rows, &[(1, "a"), (2, "b")]);
    let report = sink.write(&rows).await.unwrap();
    assert_eq!(report.inserts[&2], InsertReport { written: 2, conflict: 0, refused: 0 });
    assert!(!report.already && sink.write(&rows).await.unwrap().already);
    assert!(sink.holds(5).await.unwrap() && !sink.holds(6).await.unwrap());
    let id = |row: usize| format!("{}-5-1700000000000000-2-{row} text={}", Uuid::from_u128(7), ["a", "b"][row]);
    let value = |id: i64, text: &str| format!(r#"{{"id":{id},"text":"{text}"}}"#);
    assert_eq!(read(&brokers, "out"), [("1".into(), value(1, "a"), id(0)), ("2".into(), value(2, "b"), id(1))]);
}

const KIND: &str = r#"{"type": "record", "name": "shop.Row", "fields": [{"name": "id", "type": "long"}, {"name": "text",
    "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn avro_is_registered_when_the_sink_is_opened_and_what_it_cannot_hold_is_refused() {
    let mock = MockBroker::start(&[("out", 1)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let registry = FakeRegistry::start(|_| (200, r#"{"id": 7}"#.into()));
    let options = [
        ("transactional", "false"),
        ("format", "avro"),
        ("schema.registry.url", registry.url.as_str()),
        ("schema.subject.strategy", "topic_record"),
        ("avro.schema", KIND),
    ];
    let table = table(&brokers, "out", &options);
    let mut sink = sink(&[Arc::clone(&table)]);
    sink.open(&identity("test", 1)).await.unwrap();
    let requests = registry.requests();
    assert!(requests.len() == 1 && requests[0].starts_with("POST /subjects/out-shop.Row/versions "), "{requests:?}");
    let rows = request(&table, 1, Wave::Rows, &[(1, "b"), (2, "c"), (3, "a")]);
    let report = sink.write(&rows).await.unwrap();
    assert_eq!(report.inserts[&2], InsertReport { written: 2, conflict: 0, refused: 1 });
    assert_eq!(report.refusals[0].error, "text: \"c\" is no symbol of its enum");
    // Asked again, the accounts are the same.
    let again = sink.write(&rows).await.unwrap();
    assert!(again.already && again.refusals == report.refusals && again.inserts == report.inserts);
    let values: Vec<String> = read(&brokers, "out").into_iter().map(|(_, value, _)| value).collect();
    assert_eq!(values, ["\0\0\0\0\u{7}\u{2}\u{2}", "\0\0\0\0\u{7}\u{6}\0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_avro_schema_that_is_not_compatible_is_an_error_of_opening() {
    let registry = FakeRegistry::start(|_| (409, r#"{"message": "field id has gone"}"#.into()));
    let mock = MockBroker::start(&[("out", 1)]).unwrap();
    let options = [("format", "avro"), ("schema.registry.url", registry.url.as_str())];
    let mut sink = sink(&[table(mock.bootstrap_servers(), "out", &options)]);
    let error = sink.open(&identity("test", 1)).await.unwrap_err();
    assert!(error.fault() == crate::Fault::User && !error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("not compatible") && text.contains("table kafka.out, subject \"out-value\""), "{text}");
    assert!(text.contains("cause: field id has gone"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_told_with_the_command_that_makes_it() {
    let mock = MockBroker::start(&[("out", 1)]).unwrap();
    let mut sink = sink(&[table(mock.bootstrap_servers(), "nothing", &[("transactional", "false")])]);
    let error = sink.open(&identity("test", 1)).await.unwrap_err();
    assert!(error.to_string().contains("--create --topic nothing") && error.fault() == crate::Fault::User);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_long_is_refused_and_the_others_are_written() {
    let mock = MockBroker::start(&[("out", 1)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let table = table(&brokers, "out", &[("transactional", "false"), ("kafka.message.max.bytes", "2000")]);
    let mut sink = sink(&[Arc::clone(&table)]);
    sink.open(&identity("test", 1)).await.unwrap();
    let long = "x".repeat(3_000);
    let rows = request(&table, 1, Wave::Rows, &[(1, "a"), (2, &long), (3, "c")]);
    let report = sink.write(&rows).await.unwrap();
    assert_eq!(report.inserts[&2], InsertReport { written: 2, conflict: 0, refused: 1 });
    assert_eq!((report.refusals.len(), report.refusals[0].row), (1, 1));
    // Asked again, the accounts are the same.
    let again = sink.write(&rows).await.unwrap();
    assert!(again.already && again.refusals == report.refusals && again.inserts == report.inserts);
    assert_eq!(read(&brokers, "out").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_batch_asks_nothing_of_the_broker() {
    let table = table("127.0.0.1:1", "out", &[]);
    let mut sink = sink(&[Arc::clone(&table)]);
    let report = sink.write(&request(&table, 1, Wave::Rows, &[])).await.unwrap();
    assert_eq!(report.inserts[&2], InsertReport::default());
}

mod real;
