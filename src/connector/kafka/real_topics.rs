//! For tests: topics of a real broker, which agrees in a moment on what it was told.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::topic::{TopicState, topic_state};

const LIMIT: Duration = Duration::from_secs(20);

pub fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS")
}

pub fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap()
}

/// Returns when it is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns when each partition has a leader.
pub fn create(topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let new = settings.iter().fold(new, |new, (key, value)| new.set(key, value));
    block_on(admin().create_topics([&new], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    let is_led = |state| matches!(state, TopicState::Ready(found) if found.len() == partitions as usize);
    until_topic(topic, "it has its leaders", is_led);
}

/// Returns when the broker does not know it any more.
pub fn delete(topic: &str) {
    block_on(admin().delete_topics(&[topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    until_topic(topic, "it is gone", |state| matches!(state, TopicState::Missing));
}

/// The offset behind the last record, committed or not.
pub fn log_end(topic: &str, partition: i32) -> i64 {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers()).set("isolation.level", "read_uncommitted");
    let consumer: BaseConsumer = config.create().unwrap();
    consumer.fetch_watermarks(topic, partition, LIMIT).unwrap().1
}

fn until_topic(topic: &str, what: &str, is_so: impl Fn(TopicState) -> bool) {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers()).create().unwrap();
    let ask = || topic_state(&consumer, topic, Instant::now() + LIMIT).unwrap();
    until(&format!("topic {topic}: {what}"), || is_so(ask()));
}
