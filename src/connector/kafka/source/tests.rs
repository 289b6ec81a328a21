use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::super::mock::MockBroker;
use super::super::options::tests::definition;
use super::super::real_topics::until;
use super::*;

const COLUMNS: &[(&str, DataType)] = &[
    ("id", DataType::Int64),
    ("_error", DataType::Utf8View),
    ("_partition", DataType::Int32),
    ("_offset", DataType::Int64),
];

const ALL: CutLimit = CutLimit::Available { rows: usize::MAX, bytes: usize::MAX };

fn table(brokers: &str, topic: &str, options: &[(&str, &str)]) -> KafkaSourceTable {
    let mut all = vec![("brokers", brokers)];
    all.extend_from_slice(options);
    KafkaSourceTable::try_new(definition(COLUMNS, topic, &all)).unwrap()
}

fn producer(brokers: &str, more: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("linger.ms", "0");
    for (name, value) in more {
        config.set(*name, *value);
    }
    config.create().unwrap()
}

/// Events `{"id":n}` into one partition.
fn produce(producer: &BaseProducer, topic: &str, partition: i32, ids: std::ops::Range<i64>) {
    for id in ids {
        let payload = format!("{{\"id\":{id}}}");
        let record: BaseRecord<str, str> = BaseRecord::to(topic).partition(partition).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
}

fn ids(cut: &Cut) -> Vec<i64> {
    let ids = cut.chunks.iter().flat_map(|chunk| chunk.rows["id"].as_primitive::<Int64Type>().values().to_vec());
    ids.collect()
}

/// Cuts until so many rows have come, with a limit in time.
async fn rows(source: &dyn Source, wanted: usize) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = vec![];
    let deadline = Instant::now() + Duration::from_secs(20);
    while cuts.iter().map(|cut| ids(cut).len()).sum::<usize>() < wanted {
        assert!(Instant::now() < deadline, "rows are missing");
        drop(tokio::time::timeout(Duration::from_millis(100), source.filled(1, 1)).await);
        cuts.push(source.cut(&ALL).await.unwrap());
    }
    cuts
}

/// An exact cut, with a limit in time.
async fn exactly(source: &dyn Source, ranges: &Ranges) -> Result<Cut> {
    let limit = CutLimit::Exactly(ranges.clone());
    tokio::time::timeout(Duration::from_secs(20), source.cut(&limit)).await.expect("the exact cut did not come")
}

/// Cuts until an error comes.
async fn failure(source: &dyn Source) -> Error {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "no error came");
        drop(tokio::time::timeout(Duration::from_millis(100), source.filled(usize::MAX, usize::MAX)).await);
        if let Err(error) = source.cut(&ALL).await {
            return error;
        }
    }
}

fn no_offsets() -> BTreeMap<i32, i64> {
    BTreeMap::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_cuts_and_goes_on_where_it_was() {
    let mock = MockBroker::start(&[("events", 2)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let out = producer(&brokers, &[]);
    produce(&out, "events", 0, 0..100);
    produce(&out, "events", 1, 100..150);
    let table = table(&brokers, "events", &[]);
    let source = table.open("test", &no_offsets(), 16 << 20).await.unwrap();
    assert_eq!(source.end_at_start(), BTreeMap::from([(0, 100), (1, 50)]));
    let cuts = rows(source.as_ref(), 150).await;
    let mut seen: Vec<i64> = cuts.iter().flat_map(ids).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..150).collect::<Vec<_>>());
    let positions: BTreeMap<i32, i64> = cuts.last().unwrap().ranges.iter().map(|(p, range)| (*p, range.to)).collect();
    assert_eq!(positions, BTreeMap::from([(0, 100), (1, 50)]));
    source.acknowledge(&positions).await.unwrap();

    // Nothing is there: an empty cut, at once, at the end of both.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let cut = source.cut(&ALL).await.unwrap();
        assert_eq!(cut.ranges[&0], OffsetRange { from: 100, to: 100 });
        if cut.at_end.len() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "the end of the log was not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(source.lag(), 0);
    produce(&out, "events", 0, 200..203);
    assert_eq!(rows(source.as_ref(), 3).await.iter().flat_map(ids).collect::<Vec<_>>(), [200, 201, 202]);
    drop(source);

    let again = table.open("test", &positions, 16 << 20).await.unwrap();
    assert_eq!(rows(again.as_ref(), 3).await.iter().flat_map(ids).collect::<Vec<_>>(), [200, 201, 202]);
    assert_eq!(table.extent().await.unwrap()[&0], OffsetRange { from: 0, to: 103 });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_cut_gives_the_same_chunks_again() {
    let mock = MockBroker::start(&[("events", 2)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let out = producer(&brokers, &[]);
    produce(&out, "events", 0, 0..30_000);
    produce(&out, "events", 1, 0..500);
    let table = table(&brokers, "events", &[]);
    let live = table.open("test", &no_offsets(), 64 << 20).await.unwrap();
    let mut cuts = vec![];
    while cuts.iter().map(|cut: &Cut| ids(cut).len()).sum::<usize>() < 30_500 {
        live.filled(1, usize::MAX).await;
        cuts.push(live.cut(&CutLimit::Available { rows: 9_000, bytes: usize::MAX }).await.unwrap());
    }
    drop(live);
    // A small buffer: an exact cut must get through though the other partition fills it.
    let replay = table.open("test", &no_offsets(), 100_000).await.unwrap();
    for cut in &cuts {
        // A future that is dropped takes nothing.
        let limit = CutLimit::Exactly(cut.ranges.clone());
        drop(tokio::time::timeout(Duration::from_micros(1), replay.cut(&limit)).await);
        let again = match exactly(replay.as_ref(), &cut.ranges).await {
            Ok(again) => again,
            // The first one was quick enough and has taken them.
            Err(error) if error.message().contains("does not begin") => continue,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(again.ranges, cut.ranges);
        assert_eq!(again.chunks.len(), cut.chunks.len());
        for (a, b) in again.chunks.iter().zip(&cut.chunks) {
            assert_eq!((&a.rows, &a.offsets, a.partition), (&b.rows, &b.offsets, b.partition));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_are_rows_and_memory_is_bounded() {
    let mock = MockBroker::start(&[("events", 1)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let out = producer(&brokers, &[]);
    let bad: BaseRecord<str, str> = BaseRecord::to("events").partition(0).payload("{\"id\":");
    out.send(bad).map_err(|(error, _)| error).unwrap();
    produce(&out, "events", 0, 1..20_001);
    let table = table(&brokers, "events", &[]);
    let source = table.open("test", &no_offsets(), 200_000).await.unwrap();
    // Full before so many: `filled` says so.
    source.filled(usize::MAX, usize::MAX).await;
    let first = source.cut(&ALL).await.unwrap();
    assert!(ids(&first).len() < 20_001 && first.chunks[0].undecodable == 1);
    assert!(first.chunks[0].rows["_error"].is_valid(0));
    let rest = rows(source.as_ref(), 20_001 - ids(&first).len()).await;
    let last = rest.last().unwrap().chunks.last().unwrap();
    assert_eq!(last.offsets.last(), Some(&20_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_says_why() {
    let mock = MockBroker::start(&[("events", 2)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    produce(&producer(&brokers, &[]), "events", 0, 0..10);
    let open = async |topic: &str, from: &[(i32, i64)]| {
        let from = from.iter().copied().collect();
        match table(&brokers, topic, &[]).open("test", &from, 1 << 20).await {
            Ok(_) => panic!("opened"),
            Err(error) => error.to_string(),
        }
    };
    assert!(open("nothing", &[]).await.contains("kafka-topics.sh --create --topic nothing"));
    assert!(open("events", &[(0, 11), (1, 0)]).await.contains("wanted offset 11, end of the log 10"));
    assert!(open("events", &[(0, 0), (7, 0)]).await.contains("fewer partitions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_offsets_hold_for_a_first_start_only() {
    let mock = MockBroker::start(&[("events", 2)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let out = producer(&brokers, &[]);
    produce(&out, "events", 0, 0..10);
    produce(&out, "events", 1, 0..5);
    let table = table(&brokers, "events", &[("starting_offsets", "latest")]);
    let first = table.open("test", &no_offsets(), 1 << 20).await.unwrap();
    assert_eq!(first.cut(&ALL).await.unwrap().ranges[&0], OffsetRange { from: 10, to: 10 });
    // Partition 1 was added since the checkpoint was written: none of its records may be missed.
    let later = table.open("test", &BTreeMap::from([(0, 10)]), 1 << 20).await.unwrap();
    assert_eq!(rows(later.as_ref(), 5).await.iter().flat_map(ids).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_no_error() {
    let mock = MockBroker::start(&[("events", 1)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let out = producer(&brokers, &[]);
    produce(&out, "events", 0, 0..10);
    let source = table(&brokers, "events", &[]).open("test", &no_offsets(), 1 << 20).await.unwrap();
    rows(source.as_ref(), 10).await;
    mock.with(|cluster| cluster.broker_down(-1)).unwrap().unwrap();
    until("somebody misses the broker", || source.away().is_some());
    assert!(source.cut(&ALL).await.unwrap().chunks.is_empty());
    mock.with(|cluster| cluster.broker_up(-1)).unwrap().unwrap();
    produce(&out, "events", 0, 10..12);
    assert_eq!(rows(source.as_ref(), 2).await.iter().flat_map(ids).collect::<Vec<_>>(), [10, 11]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ad_hoc_sql_reads_to_the_end_and_stops() {
    let mock = MockBroker::start(&[("events", 3)]).unwrap();
    let brokers = mock.bootstrap_servers().to_string();
    let out = producer(&brokers, &[]);
    produce(&out, "events", 0, 0..20_000);
    produce(&out, "events", 1, 0..10);
    let context = datafusion::prelude::SessionContext::new();
    let table = super::super::bounded_table(definition(COLUMNS, "events", &[("brokers", &brokers)])).unwrap();
    context.register_table("events", table).unwrap();
    let count = async |sql: &str| {
        let frame = context.sql(sql).await.unwrap();
        let batches = tokio::time::timeout(Duration::from_secs(20), frame.collect()).await.unwrap().unwrap();
        batches[0].column(0).as_primitive::<Int64Type>().value(0)
    };
    assert_eq!(count("SELECT count(*) FROM events").await, 20_010);
    assert_eq!(count("SELECT max(_offset) FROM events WHERE _partition = 1").await, 9);
    assert_eq!(count("SELECT sum(one) FROM (SELECT 1 AS one FROM events LIMIT 5)").await, 5);
}

mod real;
