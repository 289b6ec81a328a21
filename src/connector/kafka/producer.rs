//! One Kafka cluster's transactional producer, and the marker that says which batches are in. Everything here blocks:
//! it runs where the runtime lets it.
//!
//! ```text
//! begin ─▶ messages … ─▶ marker: offset N+1 to the private group ─▶ commit          one transaction per batch and wave
//! ```
//!
//! The marker of wave `rows` is kept by group `<name>.sink`, that of the dead letters by `<name>.sink.dead_letters`: at
//! partition 0 of every topic of the sink, offset N+1 (0: none yet), with metadata `poundlock <uuid> <epoch>`. It is
//! read at partition 0 of *all* topics of the cluster, and the highest of our UUID counts: so it is found though the
//! set of tables has changed since it was written, and another pipeline's of the same name is not taken for ours.
//!
//! Fencing: `init_transactions` ends older producers. A process that slept, lost its connection and comes back would
//! so end the newer one: therefore each start writes its epoch into the marker, and whoever finds a higher one is
//! fenced instead. An older start that looks just before the newer one writes its epoch ends it all the same, looks
//! again and gives up; so a producer that was ended connects once more, and the markers decide.
//!
//! Failure: after any error the producer is dropped; the next call makes a new one, whose `init_transactions` settles
//! an open transaction, and reads the marker again. So a commit whose answer was lost is never repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, PurgeConfig};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::brokers::wait_with;
use super::client::{Context, OPEN_LIMIT, broker_error, left};
use super::marker::{Marker, metadata, read_marker};
use super::options::KafkaTable;
use super::source::default;
use super::topic::partitions_of;
use crate::connector::{Identity, Wave};
use crate::point::point;
use crate::{Error, Result};

/// How long the messages of one transaction may take to be acknowledged, and its commit to be answered: three quarters of
/// the table's `kafka.transaction.timeout.ms`, after which the brokers end it.
fn write_limit(config: &ClientConfig) -> Duration {
    let timeout = config.get("transaction.timeout.ms").and_then(|ms| ms.parse().ok());
    Duration::from_millis(timeout.unwrap_or(60_000)) * 3 / 4
}

/// How long a marker is waited for that is just being written. A start that is alive has committed it within
/// milliseconds; one that was killed before it could leaves it open until the brokers' time-out for transactions, a
/// minute, or until we end it.
const OPEN_MARKER_LIMIT: Duration = Duration::from_secs(2);

/// Between two looks at the acknowledgements.
const ACK_PAUSE_FIRST: Duration = Duration::from_micros(100);
const ACK_PAUSE_MAX: Duration = Duration::from_millis(2);

/// How long clearing up after an error may take; the next producer settles what is left.
const ABORT_LIMIT: Duration = Duration::from_secs(5);

/// `max.message.bytes` of a topic whose configuration we may not read: the brokers' default.
const MESSAGE_BYTES: usize = 1_048_588;

/// Headers of record and batch, beyond key, value and our own headers.
const MESSAGE_OVERHEAD: usize = 512;

/// Where a sink writes: the same for every producer that it makes.
#[derive(Debug)]
pub struct Cluster {
    /// By table name; never empty.
    pub tables: BTreeMap<String, KafkaTable>,
    pub transactional: bool,
}

impl Cluster {
    /// All tables have the same brokers and properties: any of them tells how to connect.
    fn config(&self) -> Result<(&KafkaTable, ClientConfig)> {
        let table = self.tables.values().next();
        let table = table.ok_or_else(|| Error::internal("a Kafka sink has no table"))?;
        Ok((table, table.client_config()))
    }

    fn topics(&self) -> BTreeSet<&str> {
        self.tables.values().map(|table| table.topic.as_str()).collect()
    }
}

struct Groups {
    rows: ConsumerGroupMetadata,
    dead_letters: ConsumerGroupMetadata,
}

/// A connected producer.
pub struct Session {
    producer: BaseProducer<Context>,
    identity: Identity,
    /// `None` where there are no transactions.
    groups: Option<Groups>,
    /// The newest batch that is in, by wave.
    newest: BTreeMap<Wave, u64>,
    /// The size of a message that a topic takes.
    limits: BTreeMap<String, usize>,
    topics: Vec<String>,
    write_limit: Duration,
}

impl Session {
    /// Connects, checks the topics, fences older producers, reads the markers. `again`: our last producer was fenced, and
    /// our marker must still be there. `aloud`: the first time; later whoever writes tells that brokers are away.
    pub fn connect(cluster: &Cluster, identity: &Identity, again: bool, aloud: bool) -> Result<Self> {
        let deadline = Instant::now() + OPEN_LIMIT;
        let (table, config) = cluster.config()?;
        let consumer = |group: Option<&str>, isolation: &str| -> Result<BaseConsumer<Context>> {
            let mut config = config.clone();
            config.set("isolation.level", isolation).set("enable.auto.commit", "false");
            if let Some(group) = group {
                config.set("group.id", group);
            }
            config.create_with_context(table.context()).map_err(|error| table.config_error(&error))
        };
        let rows_group = format!("{}.sink", identity.name);
        // Offsets of a transaction that is being committed are waited for, not passed over.
        let questions = consumer(cluster.transactional.then_some(rows_group.as_str()), "read_committed")?;
        wait_with(&questions, &table.brokers, &table.topic, deadline, aloud)?;
        let mut missing = vec![];
        for table in cluster.tables.values() {
            match partitions_of(&questions, table, deadline) {
                Err(error) if error.fault() == crate::Fault::User => missing.push(error),
                answer => drop(answer?),
            }
        }
        if let Some(error) = Error::all(missing) {
            return Err(error);
        }
        let limits = match is_in_process(&questions, deadline) {
            true => default_limits(cluster),
            false => message_limits(cluster, table, &config),
        };
        let producer_config = producer_config(cluster, config.clone(), identity, &limits);
        let producer: BaseProducer<Context> =
            producer_config.create_with_context(table.context()).map_err(|error| table.config_error(&error))?;
        producer.context().answered(); // the brokers did, just now: from here on its errors are news
        let limits = limits.into_iter().map(|(topic, bytes)| {
            let own = producer_config.get("message.max.bytes").and_then(|value| value.parse().ok());
            (topic, bytes.min(own.unwrap_or(bytes)).saturating_sub(MESSAGE_OVERHEAD))
        });
        let mut session = Self {
            producer,
            identity: identity.clone(),
            groups: None,
            newest: BTreeMap::new(),
            limits: limits.collect(),
            topics: cluster.topics().into_iter().map(str::to_string).collect(),
            write_limit: write_limit(&producer_config),
        };
        if cluster.transactional {
            let dead_letters = consumer(Some(&format!("{rows_group}.dead_letters")), "read_committed")?;
            let passing_over = || consumer(Some(&rows_group), "read_uncommitted");
            if let Err(error) = session.fence(&questions, passing_over, &dead_letters, again, deadline) {
                return Err(if session.is_fenced() { error.retryable() } else { error });
            }
        }
        Ok(session)
    }

    fn fence(
        &mut self,
        rows: &BaseConsumer<Context>,
        passing_over: impl Fn() -> Result<BaseConsumer<Context>>,
        dead_letters: &BaseConsumer<Context>,
        again: bool,
        deadline: Instant,
    ) -> Result<()> {
        let failed = |error: &KafkaError| transaction_error("could not begin to write transactions", error);
        let unread = |error: KafkaError| broker_error("could not read the marker of the last batch", &error);
        let group = |consumer: &BaseConsumer<Context>| {
            consumer.group_metadata().ok_or_else(|| Error::internal("a Kafka group has no metadata"))
        };
        // Before anything is fenced: we may be the older one.
        let marker = match read_marker(rows, &self.identity, &self.topics, Instant::now() + OPEN_MARKER_LIMIT) {
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) => {
                tracing::info!("a transaction was left open between its messages and its commit: it is ended now");
                read_marker(&passing_over()?, &self.identity, &self.topics, deadline)
            }
            marker => marker,
        };
        let marker = marker.map_err(unread)?;
        self.check_epoch(&marker)?;
        if let Some(other) = marker.other.as_ref().filter(|_| !again) {
            self.identity.succeed(other, &format!("Kafka ({})", self.topics.join(", ")))?;
        }
        if again && marker.epoch < self.identity.epoch {
            return Err(Error::external("fenced by a pipeline of the same name with another checkpoint")
                .hint("give each pipeline a poundlock.name of its own"));
        }
        self.producer.init_transactions(left(deadline)).map_err(|error| failed(&error))?;
        let marker = read_marker(rows, &self.identity, &self.topics, deadline).map_err(unread)?;
        self.check_epoch(&marker)?;
        let dead_letters_marker = read_marker(dead_letters, &self.identity, &self.topics, deadline).map_err(unread)?;
        self.groups = Some(Groups { rows: group(rows)?, dead_letters: group(dead_letters)? });
        self.newest = [(Wave::Rows, &marker), (Wave::DeadLetters, &dead_letters_marker)]
            .into_iter()
            .filter_map(|(wave, marker)| Some((wave, marker.batch?)))
            .collect();
        if marker.epoch < self.identity.epoch {
            self.producer.begin_transaction().map_err(|error| failed(&error))?;
            self.commit(Wave::Rows, marker.batch, Instant::now() + OPEN_LIMIT)?;
        }
        Ok(())
    }

    fn check_epoch(&self, marker: &Marker) -> Result<()> {
        if marker.epoch <= self.identity.epoch {
            return Ok(());
        }
        Err(Error::external(format!("fenced by epoch {} of pipeline {:?}", marker.epoch, self.identity.name))
            .hint("a newer start of the same pipeline is writing; this one must not"))
    }

    /// Whether another producer has taken our place.
    pub fn is_fenced(&self) -> bool {
        self.producer.client().fatal_error().is_some_and(|(code, _)| is_fencing(code))
    }

    pub fn newest(&self, wave: Wave) -> Option<u64> {
        self.newest.get(&wave).copied()
    }

    /// The bytes that a message to this topic may have, headers included.
    pub fn limit(&self, topic: &str) -> usize {
        self.limits.get(topic).copied().unwrap_or(MESSAGE_BYTES - MESSAGE_OVERHEAD)
    }

    /// Writes the messages of one wave of a batch; when it returns they are durable, and seen all at once where there
    /// are transactions.
    pub fn write(&mut self, batch: u64, wave: Wave, messages: impl FnOnce(&mut Messages) -> Result<()>) -> Result<()> {
        point!("kafka::before_write");
        let deadline = Instant::now() + self.write_limit;
        self.producer.context().take_failure();
        if self.groups.is_some() {
            let begun = self.producer.begin_transaction();
            begun.map_err(|error| transaction_error("could not begin a transaction", &error))?;
        }
        let mut outbox = Messages { producer: &self.producer, deadline };
        messages(&mut outbox)?;
        self.flush(deadline)?;
        point!("kafka::before_mark");
        if self.groups.is_some() {
            self.commit(wave, Some(batch), deadline)?;
        }
        point!("kafka::after_commit");
        self.newest.insert(wave, batch);
        Ok(())
    }

    /// Waits until every message is acknowledged.
    fn flush(&self, deadline: Instant) -> Result<()> {
        // Not the library's own flush, which sleeps in steps of 100 ms; nor a poll with a limit, which spins at its end.
        let mut pause = ACK_PAUSE_FIRST;
        while self.producer.in_flight_count() > 0 && !self.producer.context().has_failed() {
            if Instant::now() >= deadline {
                return Err(Error::external("the Kafka brokers did not acknowledge the messages in time")
                    .cause(format!("{} of them after {:?}", self.producer.in_flight_count(), self.write_limit))
                    .hint(
                        "raise 'kafka.transaction.timeout.ms', or make batches smaller (poundlock.max_bytes_per_batch)",
                    )
                    .retryable());
            }
            self.producer.poll(Duration::ZERO);
            std::thread::sleep(pause);
            pause = (pause * 2).min(ACK_PAUSE_MAX);
        }
        let Some(failure) = self.producer.context().take_failure() else { return Ok(()) };
        // A fenced producer drops its messages: then not they are the cause.
        let failure = match self.producer.client().fatal_error() {
            Some((code, _)) => KafkaError::MessageProduction(code),
            None => failure,
        };
        let error = transaction_error("a message was not delivered", &failure);
        Err(match failure.rdkafka_error_code() {
            // Rows were measured against the topic's limit: it has been lowered, or we may not read it.
            Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
                Error::external("the brokers refuse the size of a message")
                    .cause(&failure)
                    .hint("set 'kafka.message.max.bytes' and 'kafka.batch.size' to what the topic takes")
            }
            _ => error,
        })
    }

    fn commit(&self, wave: Wave, batch: Option<u64>, deadline: Instant) -> Result<()> {
        let failed = |error: &KafkaError| transaction_error("could not commit a transaction", error);
        let Some(groups) = &self.groups else { return Ok(()) };
        let group = match wave {
            Wave::Rows => &groups.rows,
            Wave::DeadLetters => &groups.dead_letters,
        };
        let offset = batch.map_or(0, |batch| batch.saturating_add(1));
        let offset = i64::try_from(offset);
        let offset = offset.map_err(|error| Error::internal("a batch number is too large").cause(error))?;
        let metadata = metadata(&self.identity);
        let mut marker = TopicPartitionList::new();
        for topic in &self.topics {
            let mut element = marker.add_partition(topic, 0);
            element.set_offset(Offset::Offset(offset)).map_err(|error| failed(&error))?;
            element.set_metadata(&metadata);
        }
        self.producer.send_offsets_to_transaction(&marker, group, left(deadline)).map_err(|error| failed(&error))?;
        point!("kafka::before_commit");
        loop {
            match self.producer.commit_transaction(left(deadline)) {
                Ok(()) => return Ok(()),
                // Answer lost or late: to ask again is safe, librdkafka knows the transaction.
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    /// Clears up after an error, as far as it can be done: readers then need not wait for the next producer.
    pub fn abandon(self) {
        let deadline = Instant::now() + ABORT_LIMIT;
        self.producer.purge(PurgeConfig::default().queue().inflight());
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            self.producer.poll(Duration::ZERO);
            std::thread::sleep(ACK_PAUSE_MAX);
        }
        if self.groups.is_some()
            && let Err(error) = self.producer.abort_transaction(left(deadline))
        {
            tracing::debug!("the transaction was not aborted; the next producer does it: {error}");
        }
    }
}

/// Takes the messages of one transaction.
pub struct Messages<'s> {
    producer: &'s BaseProducer<Context>,
    deadline: Instant,
}

impl Messages<'_> {
    /// Hands a message over; waits while librdkafka's queue is full. `false`: it is too long for the client.
    pub fn send(&mut self, message: BaseRecord<'_, [u8], [u8]>) -> Result<bool> {
        let mut message = message;
        loop {
            let (error, back) = match self.producer.send(message) {
                Ok(()) => return Ok(true),
                Err(refused) => refused,
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => return Ok(false),
                Some(RDKafkaErrorCode::QueueFull) if Instant::now() < self.deadline => {
                    self.producer.poll(Duration::ZERO);
                    std::thread::sleep(ACK_PAUSE_MAX);
                    message = back;
                }
                _ => return Err(transaction_error("a message could not be handed to the Kafka client", &error)),
            }
        }
    }

    /// Serves acknowledgements, so that they do not pile up.
    pub fn breathe(&mut self) {
        self.producer.poll(Duration::ZERO);
    }
}

fn is_fencing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// What failed, and whether a new producer may do better: a fenced one may not.
fn transaction_error(message: &str, error: &KafkaError) -> Error {
    let code = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    };
    match code {
        Some(code) if is_fencing(code) => Error::external(format!("{message}: fenced by a newer producer"))
            .cause(error)
            .hint("another process writes as this pipeline (poundlock.name); only one may"),
        _ => broker_error(message, error),
    }
}

/// librdkafka's own broker never answers what its topics take: each start would wait in vain.
fn is_in_process(questions: &BaseConsumer<Context>, deadline: Instant) -> bool {
    questions.client().fetch_cluster_id(left(deadline)).is_some_and(|id| id.starts_with("mockCluster"))
}

fn default_limits(cluster: &Cluster) -> BTreeMap<String, usize> {
    cluster.topics().into_iter().map(|topic| (topic.to_string(), MESSAGE_BYTES)).collect()
}

/// What each topic takes. Where its configuration cannot be read: the brokers' default.
fn message_limits(cluster: &Cluster, table: &KafkaTable, config: &ClientConfig) -> BTreeMap<String, usize> {
    let topics = cluster.topics();
    let mut limits = default_limits(cluster);
    let ask = || {
        let admin: AdminClient<Context> = config.create_with_context(table.context())?;
        let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(5)));
        let asked: Vec<ResourceSpecifier> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        block_on(admin.describe_configs(&asked, &options))
    };
    match ask() {
        Ok(answers) => {
            for resource in answers.into_iter().flatten() {
                let value = resource.get("max.message.bytes").and_then(|entry| entry.value.as_ref()?.parse().ok());
                if let (OwnedResourceSpecifier::Topic(topic), Some(bytes)) = (&resource.specifier, value) {
                    limits.insert(topic.clone(), bytes);
                }
            }
        }
        Err(error) => tracing::debug!("the size of messages that topics take is not known: {error}"),
    }
    limits
}

fn producer_config(
    cluster: &Cluster,
    mut config: ClientConfig,
    identity: &Identity,
    limits: &BTreeMap<String, usize>,
) -> ClientConfig {
    let longest = limits.values().copied().max().unwrap_or(MESSAGE_BYTES).clamp(1_000, 1_000_000_000);
    let shortest = limits.values().copied().min().unwrap_or(MESSAGE_BYTES).clamp(1, 1_000_000);
    default(&mut config, "message.max.bytes", &longest.to_string());
    // A batch of several messages must not be longer than the smallest topic takes.
    default(&mut config, "batch.size", &shortest.to_string());
    default(&mut config, "compression.type", "lz4");
    default(&mut config, "linger.ms", "1");
    default(&mut config, "queue.buffering.max.kbytes", "32768");
    default(&mut config, "reconnect.backoff.max.ms", "2000");
    default(&mut config, "socket.nagle.disable", "true");
    // The partition of a key is the one that Java's clients choose.
    default(&mut config, "partitioner", "murmur2_random");
    if config.get("message.timeout.ms").is_none() {
        default(&mut config, "delivery.timeout.ms", "30000");
    }
    config.set("enable.idempotence", "true");
    if cluster.transactional {
        config.set("transactional.id", &identity.name);
    }
    config
}
