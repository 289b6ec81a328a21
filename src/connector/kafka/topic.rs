//! Questions about a topic: whether it is there, its partitions, their first and next offsets.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

use super::client::{broker_error, left};
use super::options::KafkaTable;
use crate::connector::OffsetRange;
use crate::{Error, Result};

pub fn topic_missing(table: &str, topic: &str, brokers: &str) -> Error {
    let broker = brokers.split(',').next().unwrap_or(brokers);
    Error::user(format!("topic {topic:?} of table {table} does not exist"))
        .at(format!("brokers {brokers}"))
        .hint(format!("kafka-topics.sh --create --topic {topic} --partitions 4 --bootstrap-server {broker}"))
}

/// What the brokers say of a topic.
pub enum TopicState {
    Missing,
    /// Just made, or a leader moves; or not allowed.
    NotReady(RDKafkaErrorCode),
    /// Its partitions, sorted.
    Ready(Vec<i32>),
}

pub fn topic_state<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    deadline: Instant,
) -> KafkaResult<TopicState> {
    let metadata = consumer.fetch_metadata(Some(topic), left(deadline))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(TopicState::Missing);
    };
    let partitions = found.partitions();
    Ok(match found.error().map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => TopicState::Missing,
        Some(code) => TopicState::NotReady(code),
        None if partitions.is_empty() || partitions.iter().any(|partition| partition.leader() < 0) => {
            TopicState::NotReady(RDKafkaErrorCode::LeaderNotAvailable)
        }
        None => {
            let mut ids: Vec<i32> = partitions.iter().map(|partition| partition.id()).collect();
            ids.sort_unstable();
            TopicState::Ready(ids)
        }
    })
}

/// The partitions of a topic. Waits until each has a leader.
///
/// # Errors
/// The topic does not exist (user); no answer until the deadline (external).
pub fn partitions_of<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    table: &KafkaTable,
    deadline: Instant,
) -> Result<Vec<i32>> {
    let failed = |error: &KafkaError| {
        broker_error(format!("could not ask for the partitions of topic {:?}", table.topic), error)
            .at(format!("brokers {}", table.brokers))
    };
    loop {
        match topic_state(consumer, &table.topic, deadline).map_err(|error| failed(&error))? {
            TopicState::Ready(partitions) => return Ok(partitions),
            TopicState::Missing => return Err(topic_missing(&table.definition.name, &table.topic, &table.brokers)),
            TopicState::NotReady(code)
                if code == RDKafkaErrorCode::TopicAuthorizationFailed || Instant::now() >= deadline =>
            {
                return Err(failed(&KafkaError::MetadataFetch(code)));
            }
            TopicState::NotReady(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The first and the next offset of a partition; the next one a reader of committed records can get.
pub fn watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    table: &KafkaTable,
    partition: i32,
    deadline: Instant,
) -> Result<OffsetRange> {
    ask_watermarks(consumer, table, partition, deadline).map_err(|error| no_watermarks(table, partition, &error))
}

/// As [`watermarks`], but waits for a leader: the brokers agree in a moment on that of a topic that was just made. For
/// opening only: a running reader has other partitions to read.
pub fn watermarks_when_led<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    table: &KafkaTable,
    partition: i32,
    deadline: Instant,
) -> Result<OffsetRange> {
    loop {
        let error = match ask_watermarks(consumer, table, partition, deadline) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let moving = [RDKafkaErrorCode::NotLeaderForPartition, RDKafkaErrorCode::LeaderNotAvailable];
        if Instant::now() >= deadline || !error.rdkafka_error_code().is_some_and(|code| moving.contains(&code)) {
            return Err(no_watermarks(table, partition, &error));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn ask_watermarks<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    table: &KafkaTable,
    partition: i32,
    deadline: Instant,
) -> KafkaResult<OffsetRange> {
    let (from, to) = consumer.fetch_watermarks(&table.topic, partition, left(deadline))?;
    Ok(OffsetRange { from, to: to.max(from) })
}

fn no_watermarks(table: &KafkaTable, partition: i32, error: &KafkaError) -> Error {
    broker_error(format!("could not ask for the offsets of topic {:?}", table.topic), error)
        .at(format!("topic {:?}, partition {partition}, brokers {}", table.topic, table.brokers))
}
