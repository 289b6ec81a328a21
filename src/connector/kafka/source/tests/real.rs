//! What only real brokers do: transactions, retention, topics that go away.

use futures::executor::block_on;
use rdkafka::admin::{AdminOptions, NewPartitions};

use super::*;
use crate::connector::Loss;
use crate::connector::kafka::real_topics::{admin, brokers, create, delete, log_end};

fn new_topic(partitions: i32) -> String {
    let topic = format!("source-{}", uuid::Uuid::new_v4());
    create(&topic, partitions, &[]);
    topic
}

fn delete_records(topic: &str, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(before)).unwrap();
    block_on(admin().delete_records(&list, &AdminOptions::new())).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn transactions_leave_gaps_and_aborted_records_are_not_seen() {
    let topic = new_topic(1);
    let out = producer(&brokers(), &[("transactional.id", topic.as_str())]);
    out.init_transactions(Duration::from_secs(20)).unwrap();
    for (ids, commit) in [(0..10, true), (10..20, false), (20..30, true)] {
        out.begin_transaction().unwrap();
        produce(&out, &topic, 0, ids);
        match commit {
            true => out.commit_transaction(Duration::from_secs(20)).unwrap(),
            false => out.abort_transaction(Duration::from_secs(20)).unwrap(),
        }
    }
    // 0..10, commit, 11..21 aborted, abort, 22..32, commit: the log ends at 33.
    let table = table(&brokers(), &topic, &[]);
    assert_eq!(table.extent().await.unwrap()[&0], OffsetRange { from: 0, to: 33 });
    let source = table.open("test", &no_offsets(), 1 << 20).await.unwrap();
    let range = |from, to| Ranges::from([(0, OffsetRange { from, to })]);
    let cut = exactly(source.as_ref(), &range(0, 33)).await.unwrap();
    assert_eq!(ids(&cut), (0..10).chain(20..30).collect::<Vec<_>>());
    assert!(cut.at_end.contains(&0) && source.lag() == 0);
    // An open transaction: neither its records nor an end beyond them is seen.
    out.begin_transaction().unwrap();
    produce(&out, &topic, 0, 30..35);
    until("the broker has them", || log_end(&topic, 0) == 38);
    assert!(source.cut(&ALL).await.unwrap().chunks.is_empty());
    assert_eq!(table.extent().await.unwrap()[&0].to, 33);
    out.commit_transaction(Duration::from_secs(20)).unwrap();
    assert_eq!(rows(source.as_ref(), 5).await.iter().flat_map(ids).collect::<Vec<_>>(), [30, 31, 32, 33, 34]);
    drop(source);
    // An exact cut to the end of the gap, by a source that was opened before it was there.
    let early = table.open("test", &BTreeMap::from([(0, 33)]), 1 << 20).await.unwrap();
    out.begin_transaction().unwrap();
    produce(&out, &topic, 0, 35..36);
    out.commit_transaction(Duration::from_secs(20)).unwrap();
    let cut = exactly(early.as_ref(), &range(33, 41)).await.unwrap();
    assert_eq!(ids(&cut), [30, 31, 32, 33, 34, 35]);
    let error = exactly(early.as_ref(), &range(41, 50)).await.unwrap_err().to_string();
    assert!(error.contains("wanted offset 50, end of the log 41"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn removed_records_stop_the_source_or_are_counted() {
    let topic = new_topic(1);
    let out = producer(&brokers(), &[]);
    produce(&out, &topic, 0, 0..100);
    let strict = table(&brokers(), &topic, &[]);
    let lenient = table(&brokers(), &topic, &[("on_data_loss", "continue")]);
    delete_records(&topic, 40);
    let from = BTreeMap::from([(0, 10)]);
    let error = strict.open("test", &from, 1 << 20).await.err().unwrap().to_string();
    assert!(error.contains("wanted offset 10, oldest offset 40") && error.contains("on_data_loss"), "{error}");
    let source = lenient.open("test", &from, 1 << 20).await.unwrap();
    let cuts = rows(source.as_ref(), 60).await;
    let losses: Vec<Loss> = cuts.iter().flat_map(|cut| cut.losses.clone()).collect();
    assert_eq!(losses, [Loss { partition: 0, from: 10, to: 40, counted: 30 }]);
    assert_eq!((cuts[0].ranges[&0].from, ids(cuts.last().unwrap()).last()), (10, Some(&99)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn records_removed_while_the_buffer_was_full() {
    let topic = new_topic(1);
    let out = producer(&brokers(), &[]);
    // More than the buffer and what librdkafka fetches ahead.
    let small = [
        ("kafka.queued.min.messages", "100"),
        ("kafka.queued.max.messages.kbytes", "1"),
        ("kafka.fetch.max.bytes", "2000"),
        ("kafka.max.partition.fetch.bytes", "2000"),
        ("kafka.message.max.bytes", "2000"),
    ];
    for batch in 0..50 {
        produce(&out, &topic, 0, batch * 1_000..(batch + 1) * 1_000);
    }
    for (policy, lost) in [("stop", false), ("continue", true)] {
        let mut options = small.to_vec();
        options.push(("on_data_loss", policy));
        let source = table(&brokers(), &topic, &options).open("test", &no_offsets(), 10_000).await.unwrap();
        source.filled(usize::MAX, usize::MAX).await;
        delete_records(&topic, 45_000 + i64::from(lost));
        if !lost {
            let error = failure(source.as_ref()).await.to_string();
            assert!(error.contains("oldest offset 45000"), "{error}");
        }
    }
    let mut options = small.to_vec();
    options.push(("on_data_loss", "continue"));
    let source = table(&brokers(), &topic, &options).open("test", &no_offsets(), 10_000).await.unwrap();
    source.filled(usize::MAX, usize::MAX).await;
    delete_records(&topic, 49_990);
    let mut first = None;
    let mut total = 0;
    let mut lost = 0;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        drop(tokio::time::timeout(Duration::from_millis(100), source.filled(1, 1)).await);
        let cut = source.cut(&ALL).await.unwrap();
        total += ids(&cut).len() as u64;
        lost += cut.losses.iter().map(|loss| loss.counted).sum::<u64>();
        first.get_or_insert(cut.ranges[&0].from as u64);
        if cut.ranges[&0].to == 50_000 {
            break;
        }
        assert!(Instant::now() < deadline, "rows are missing: {total} + {lost}");
    }
    assert!(lost > 0 && first.is_some_and(|first| total + lost == 50_000 - first), "{first:?}: {total} + {lost}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn a_topic_that_goes_away_is_an_error() {
    let topic = new_topic(1);
    let out = producer(&brokers(), &[]);
    produce(&out, &topic, 0, 0..100);
    let table = table(&brokers(), &topic, &[("partition.discovery", "1 second")]);
    let source = table.open("test", &no_offsets(), 1 << 20).await.unwrap();
    rows(source.as_ref(), 100).await;
    delete(&topic);
    let error = failure(source.as_ref()).await.to_string();
    assert!(error.contains("was deleted"), "{error}");
    drop(source);
    create(&topic, 1, &[]);
    produce(&producer(&brokers(), &[]), &topic, 0, 0..5);
    let error = table.open("test", &BTreeMap::from([(0, 100)]), 1 << 20).await.err().unwrap().to_string();
    assert!(error.contains("truncated"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn new_partitions_are_read_from_their_first_record_and_offsets_are_committed() {
    let topic = new_topic(1);
    let out = producer(&brokers(), &[("topic.metadata.refresh.interval.ms", "500")]);
    produce(&out, &topic, 0, 0..10);
    let table = table(&brokers(), &topic, &[("partition.discovery", "1 second"), ("starting_offsets", "latest")]);
    let source = table.open(&topic, &no_offsets(), 1 << 20).await.unwrap();
    block_on(admin().create_partitions([&NewPartitions::new(&topic, 2)], &AdminOptions::new())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !source.cut(&ALL).await.unwrap().ranges.contains_key(&1) {
        assert!(Instant::now() < deadline, "the new partition is not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    produce(&producer(&brokers(), &[]), &topic, 1, 0..7);
    let cuts = rows(source.as_ref(), 7).await;
    assert_eq!(cuts.iter().flat_map(ids).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    assert_eq!(cuts.last().unwrap().ranges[&1].to, 7);
    source.acknowledge(&BTreeMap::from([(0, 10), (1, 7)])).await.unwrap();
    let began = Instant::now();
    drop(source);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let group: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers()).set("group.id", &topic).create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topic, 0);
    asked.add_partition(&topic, 1);
    let committed = group.committed_offsets(asked, Duration::from_secs(10)).unwrap();
    let offsets: Vec<_> = committed.elements().iter().map(|element| element.offset()).collect();
    assert_eq!(offsets, [Offset::Offset(10), Offset::Offset(7)]);
}

/// CPU time of our threads of this name.
fn thread_seconds(name: &str) -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let ticks = stats.filter(|stat| stat.contains(name)).map(|stat| {
        let fields = stat.rsplit(')').next().unwrap().split(' ');
        let fields: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
        fields[10] + fields[11] // utime, stime; the state is no number.
    });
    ticks.sum::<f64>() / 100.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn generated_events_are_read_fast_and_again_in_any_ranges() {
    use super::super::super::generator::{GeneratorOptions, generate};
    const COUNT: usize = 400_000;
    let topic = format!("source-{}", uuid::Uuid::new_v4());
    let options = GeneratorOptions {
        topic: topic.clone(),
        count: Some(COUNT as u64),
        start: Some(1_767_225_600_000_000),
        create_partitions: Some(3),
        ..GeneratorOptions::default()
    };
    let done = generate(options, &brokers(), tokio_util::sync::CancellationToken::new()).await.unwrap();
    println!("generated {:.0} events/s", done.events as f64 / done.elapsed.as_secs_f64());
    let micros = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
    let columns = [
        ("user_id", DataType::Int64),
        ("product_id", DataType::Int64),
        ("action", DataType::Utf8View),
        ("timestamp", micros),
        ("device_id", DataType::Utf8View),
        ("device_type", DataType::Utf8View),
        ("location", DataType::Utf8View),
        ("user_segment", DataType::Utf8View),
        ("ip_address", DataType::Utf8View),
        ("_error", DataType::Utf8View),
        ("_raw", DataType::Binary),
        ("_topic", DataType::Utf8View),
        ("_partition", DataType::Int32),
        ("_offset", DataType::Int64),
    ];
    let table = KafkaSourceTable::try_new(definition(&columns, &topic, &[("brokers", &brokers())])).unwrap();
    let began = Instant::now();
    let source = table.open("test", &no_offsets(), 64 << 20).await.unwrap();
    let (mut rows, mut undecodable, mut slowest) = (0, 0, Duration::ZERO);
    while rows < COUNT {
        source.filled(1, usize::MAX).await;
        let asked = Instant::now();
        let cut = source.cut(&ALL).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        rows += cut.chunks.iter().map(|chunk| chunk.offsets.len()).sum::<usize>();
        undecodable += cut.chunks.iter().map(|chunk| chunk.undecodable).sum::<usize>();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("the reader's thread: {:.2} µs an event", thread_seconds("kafka-source") * 1e6 / COUNT as f64);
    println!("read {:.0} events/s, slowest cut {slowest:?}", COUNT as f64 / began.elapsed().as_secs_f64());
    // Six of the nine kinds of broken records do not decode; the others are for SQL to find.
    assert!(rows == COUNT && undecodable as u64 <= done.invalid && undecodable as u64 > done.invalid / 2);
    drop(source);

    let replay = table.open("test", &no_offsets(), 4 << 20).await.unwrap();
    let mut from = [0i64; 3];
    let ends: Vec<i64> = table.extent().await.unwrap().values().map(|range| range.to).collect();
    let mut step = 1i64;
    while from.iter().zip(&ends).any(|(from, end)| from < end) {
        step = step * 7 % 30_011 + 1;
        let mut ranges = Ranges::new();
        for (p, from) in from.iter_mut().enumerate() {
            let to = (*from + step * (p as i64 + 1) % 20_000).min(ends[p]);
            ranges.insert(p as i32, OffsetRange { from: *from, to });
            *from = to;
        }
        let cut = exactly(replay.as_ref(), &ranges).await.unwrap();
        for (partition, range) in &ranges {
            let offsets = cut.chunks.iter().filter(|c| c.partition == *partition).flat_map(|c| c.offsets.to_vec());
            assert!(offsets.eq(range.from..range.to), "partition {partition}, {range:?}");
        }
    }
}
