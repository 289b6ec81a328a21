//! What only real brokers do: transactions, markers, fencing.

use rdkafka::producer::{BaseProducer, Producer};

use super::*;
use crate::connector::kafka::real_topics::{brokers, create};

fn new_topic(settings: &[(&str, &str)]) -> String {
    let name = format!("sink-{}", Uuid::new_v4());
    // Our messages have a time of long ago: every five minutes the brokers would remove them.
    let forever = [("retention.ms", "-1")];
    create(&name, 1, &[&forever[..], settings].concat());
    name
}

fn keys(topic: &str) -> Vec<String> {
    read(&brokers(), topic).into_iter().map(|(key, _, _)| key).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn a_batch_written_again_after_a_restart_is_there_once() {
    let (rows_topic, dead_topic) = (new_topic(&[]), new_topic(&[]));
    let (rows, dead) = (table(&brokers(), &rows_topic, &[]), table(&brokers(), &dead_topic, &[]));
    let tables = [Arc::clone(&rows), Arc::clone(&dead)];
    let mut first = sink(&tables);
    assert_eq!(first.open(&identity(&rows_topic, 1)).await.unwrap(), None);
    let batch = request(&rows, 0, Wave::Rows, &[(1, "a"), (2, "b")]);
    let letters = request(&dead, 0, Wave::DeadLetters, &[(9, "z")]);
    assert!(!first.write(&batch).await.unwrap().already);
    drop(first);
    // Killed between the waves.
    let mut second = sink(&tables);
    assert_eq!(second.open(&identity(&rows_topic, 2)).await.unwrap(), Some(0));
    assert!(second.holds(0).await.unwrap() && !second.holds(1).await.unwrap());
    assert!(second.write(&batch).await.unwrap().already);
    assert!(!second.write(&letters).await.unwrap().already);
    let began = Instant::now();
    for number in 1..21 {
        second.write(&request(&rows, number, Wave::Rows, &[(100 + number as i64, "t")])).await.unwrap();
    }
    println!("a transaction takes {:?}", began.elapsed() / 20);
    drop(second);
    // Other tables: the marker is found where it was left, and another checkpoint's is not taken for ours.
    let other_topic = new_topic(&[]);
    let other = table(&brokers(), &other_topic, &[]);
    let mut third = sink(&[Arc::clone(&other)]);
    assert_eq!(third.open(&identity(&rows_topic, 3)).await.unwrap(), Some(20));
    assert!(third.write(&request(&other, 20, Wave::Rows, &[(1, "never")])).await.unwrap().already);
    drop(third);
    let mut foreign = sink(&tables);
    let stranger = Identity { uuid: Uuid::from_u128(8), ..identity(&rows_topic, 1) };
    let error = foreign.open(&stranger).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("--take-over"), "{error}");
    let stranger = Identity { takes_over: true, ..stranger };
    assert_eq!(foreign.open(&stranger).await.unwrap(), None);
    // Once is enough.
    let mut again = sink(&tables);
    assert_eq!(again.open(&Identity { takes_over: false, epoch: 2, ..stranger }).await.unwrap(), None);
    // The first one has a marker at the other topic still, but not the last word here.
    again.write(&request(&rows, 0, Wave::Rows, &[(999, "theirs")])).await.unwrap();
    let error = sink(&[Arc::clone(&rows), Arc::clone(&other)]).open(&identity(&rows_topic, 4)).await.unwrap_err();
    assert!(error.to_string().contains("--take-over"), "{error}");
    let expected: Vec<String> = [1, 2].into_iter().chain(101..121).chain([999]).map(|id: i64| id.to_string()).collect();
    assert_eq!((keys(&rows_topic), keys(&dead_topic), keys(&other_topic)), (expected, vec!["9".into()], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn an_older_process_is_fenced_and_does_not_fence_back() {
    let topic = new_topic(&[]);
    let table = table(&brokers(), &topic, &[]);
    let mut old = sink(&[Arc::clone(&table)]);
    old.open(&identity(&topic, 1)).await.unwrap();
    old.write(&request(&table, 0, Wave::Rows, &[(0, "old")])).await.unwrap();
    let mut new = sink(&[Arc::clone(&table)]);
    assert_eq!(new.open(&identity(&topic, 2)).await.unwrap(), Some(0));
    let late = request(&table, 1, Wave::Rows, &[(1, "late")]);
    let error = old.write(&late).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("fenced"), "{error}");
    // It has dropped its producer: a new one must not take over from the newer process.
    let error = old.write(&late).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("fenced by epoch 2"), "{error}");
    assert!(!new.write(&request(&table, 1, Wave::Rows, &[(2, "new")])).await.unwrap().already);
    assert_eq!(keys(&topic), ["0", "2"]);
}

/// It had looked for markers before the newer one left its own, and then ended its producer.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn a_producer_ended_by_an_older_start_comes_back_and_one_ended_by_another_pipeline_does_not() {
    let topic = new_topic(&[]);
    let table = table(&brokers(), &topic, &[]);
    let mut new = sink(&[Arc::clone(&table)]);
    new.open(&identity(&topic, 2)).await.unwrap();
    let late: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers()).set("transactional.id", &topic).create().unwrap();
    late.init_transactions(Duration::from_secs(20)).unwrap();
    let rows = request(&table, 0, Wave::Rows, &[(1, "a")]);
    assert!(new.write(&rows).await.unwrap_err().is_retryable());
    assert!(!new.write(&rows).await.unwrap().already);
    let stranger = Identity { uuid: Uuid::from_u128(8), takes_over: true, ..identity(&topic, 1) };
    sink(&[Arc::clone(&table)]).open(&stranger).await.unwrap();
    let next = request(&table, 1, Wave::Rows, &[(2, "b")]);
    assert!(new.write(&next).await.unwrap_err().is_retryable());
    let error = new.write(&next).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("with another checkpoint"), "{error}");
    assert_eq!(keys(&topic), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn a_transaction_left_open_by_a_crash_is_settled() {
    let topic = new_topic(&[]);
    let table = table(&brokers(), &topic, &[]);
    let crashed: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers()).set("transactional.id", &topic).create().unwrap();
    crashed.init_transactions(Duration::from_secs(20)).unwrap();
    crashed.begin_transaction().unwrap();
    crashed.send(BaseRecord::<str, str>::to(&topic).payload("half")).map_err(|(error, _)| error).unwrap();
    crashed.flush(Duration::from_secs(10)).unwrap();
    let mut sink = sink(&[Arc::clone(&table)]);
    sink.open(&identity(&topic, 1)).await.unwrap();
    sink.write(&request(&table, 0, Wave::Rows, &[(5, "whole")])).await.unwrap();
    assert_eq!(keys(&topic), ["5"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: KAFKA_BROKERS"]
async fn the_size_that_a_topic_takes_is_asked_for() {
    let topic = new_topic(&[("max.message.bytes", "5000")]);
    let wide = new_topic(&[("max.message.bytes", "3000000")]);
    let (table, wide_table) = (table(&brokers(), &topic, &[]), table(&brokers(), &wide, &[]));
    let mut sink = sink(&[Arc::clone(&table), Arc::clone(&wide_table)]);
    sink.open(&identity(&topic, 1)).await.unwrap();
    let letter = |i: u64| char::from(b'a' + (i.wrapping_mul(i).wrapping_mul(2_654_435_761) >> 7) as u8 % 26);
    let random: String = (0..9_000).map(letter).collect();
    let mut rows: Vec<(i64, &str)> = (0..200).map(|id| (id, &random[..4_000])).collect();
    rows.push((200, &random));
    let report = sink.write(&request(&table, 0, Wave::Rows, &rows)).await.unwrap();
    assert_eq!(report.inserts[&2], InsertReport { written: 200, conflict: 0, refused: 1 });
    let long = random.repeat(250);
    let report = sink.write(&request(&wide_table, 1, Wave::Rows, &[(1, &long)])).await.unwrap();
    assert_eq!(report.inserts[&2], InsertReport { written: 1, conflict: 0, refused: 0 });
    assert_eq!((keys(&topic).len(), keys(&wide).len()), (200, 1));
}
