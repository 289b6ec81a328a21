//! The thread behind a source: polls librdkafka, copies each record to those of its partition, and keeps watch over the
//! topic. Others decode (see `rows`).
//!
//! A thread of its own, because polling blocks; one lock for up to [`SLICE`] records, so that a record costs no lock,
//! no clock and no allocation. A cut that waits for the lock gets it after the slice in hand (well below a millisecond).
//!
//! Failure: what cannot pass by itself (records gone, topic gone, not allowed, a batch that cannot be read) ends the
//! thread and is told by the next cut. All else (a broker away) is logged at intervals, while librdkafka tries again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::buffer::Buffer;
use super::client::{Context, broker_error, lock};
use super::options::KafkaTable;
use super::rows::Record;
use super::schemas::Schemas;
use super::source::Shared;
use super::topic::{TopicState, topic_state, watermarks};
use crate::connector::OffsetRange;
use crate::{Error, Result};

/// Records under one lock.
const SLICE: usize = 256;

/// Payload under one lock: a slice of long records ends earlier.
const SLICE_BYTES: usize = 1 << 20;

/// How long to wait for a record before looking after the rest; bounds how late a command of a cut is seen.
const IDLE: Duration = Duration::from_millis(20);

/// A buffer that is full for so long: partitions are paused, which frees what librdkafka fetched ahead and lets its
/// events be served.
const FULL_LIMIT: Duration = Duration::from_secs(30);

/// Between two questions to the brokers about trouble.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long one question of the running reader may take.
const ASK_LIMIT: Duration = Duration::from_secs(5);

pub struct Reader {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Context>>,
    table: KafkaTable,
    paused: BTreeSet<i32>,
    full_since: Option<Instant>,
    discover_at: Instant,
    /// Successive answers that the topic does not exist: one may be a broker that has just started.
    missing: u32,
    /// The broker has refused an offset: positions have to be compared with what is there.
    check_positions_at: Option<Instant>,
    ask_target_at: Option<Instant>,
    /// Where values may be Avro.
    schemas: Option<Arc<Schemas>>,
    /// The schema of the record before, if it is known.
    last_schema: Option<u32>,
}

impl Reader {
    pub fn new(shared: Arc<Shared>, consumer: Arc<BaseConsumer<Context>>, table: KafkaTable) -> Self {
        let schemas = lock(&shared.buffer).schemas();
        Self {
            discover_at: Instant::now() + table.discovery,
            shared,
            consumer,
            table,
            paused: BTreeSet::new(),
            full_since: None,
            missing: 0,
            check_positions_at: None,
            ask_target_at: None,
            schemas,
            last_schema: None,
        }
    }

    /// Runs until the source is dropped or reading cannot go on.
    pub fn run(mut self) {
        let ended = EndGuard(Arc::clone(&self.shared));
        while !self.shared.is_stopping() {
            if let Err(error) = self.step() {
                lock(&self.shared.buffer).fail(error);
                self.shared.changed.notify_waiters();
                // The source may still acknowledge what was cut before.
                while !self.shared.is_stopping() {
                    std::thread::sleep(IDLE);
                }
            }
        }
        self.commit_last();
        drop(ended);
    }

    /// The last acknowledged offsets, once more and waiting: the commits before it were asynchronous. librdkafka gives
    /// up after the session's time-out; who drops the source does not wait for so long.
    fn commit_last(&self) {
        let Some((positions, _)) = lock(&self.shared.acknowledged).take() else { return };
        let list = offsets(&self.table.topic, &positions);
        if let Err(error) = list.and_then(|list| self.consumer.commit(&list, CommitMode::Sync)) {
            tracing::warn!(
                topic = self.table.topic,
                "the consumer group's last offsets could not be committed \
                (only lag tools need them): {error}"
            );
        }
    }

    fn step(&mut self) -> Result<()> {
        self.place()?;
        if !self.has_space() {
            return Ok(());
        }
        if Instant::now() >= self.discover_at {
            self.discover()?;
        }
        if self.check_positions_at.is_some_and(|at| Instant::now() >= at) {
            self.check_positions()?;
        }
        let consumer = Arc::clone(&self.consumer);
        let Some(first) = consumer.poll(IDLE) else { return Ok(()) };
        match self.take_slice(&consumer, first)? {
            Some(trouble) => self.judge(&trouble),
            None => Ok(()),
        }
    }

    /// Takes what is there, up to a slice; gives back an error event, to be judged without the lock.
    fn take_slice(
        &mut self,
        consumer: &BaseConsumer<Context>,
        first: KafkaResult<BorrowedMessage>,
    ) -> Result<Option<KafkaError>> {
        let mut trouble = None;
        let mut end_seen = false;
        let shared = Arc::clone(&self.shared);
        let mut buffer = lock(&shared.buffer);
        let bytes_before = buffer.bytes;
        let mut event = Some(first);
        let mut events = 0;
        while let Some(result) = event {
            match result {
                Ok(message) => {
                    let record = Record {
                        offset: message.offset(),
                        payload: message.payload(),
                        key: message.key(),
                        timestamp: message.timestamp().to_millis(),
                    };
                    let partition = message.partition();
                    if let Some(schemas) = &self.schemas
                        && let Some(id) =
                            schemas.unsettled(record.payload, partition, record.offset, &mut self.last_schema)
                    {
                        // Cuts go on meanwhile.
                        drop(buffer);
                        schemas.settle(id, &|| shared.is_stopping())?;
                        if shared.is_stopping() {
                            return Ok(None);
                        }
                        buffer = lock(&shared.buffer);
                    }
                    buffer.push(partition, &record);
                }
                Err(KafkaError::PartitionEOF(partition)) => {
                    buffer.end_of_log(partition);
                    end_seen = true;
                }
                Err(error) => trouble = Some(error),
            }
            events += 1;
            // Before the next event is taken: one that is taken and not pushed would be a lost record.
            if trouble.is_some() || events == SLICE || buffer.bytes.saturating_sub(bytes_before) > SLICE_BYTES {
                break;
            }
            event = consumer.poll(Duration::ZERO);
        }
        let wake = end_seen || self.shared.is_awaited(&buffer);
        drop(buffer);
        if wake {
            self.shared.changed.notify_waiters();
        }
        self.shared.let_cuts_in();
        Ok(trouble)
    }

    /// Whether there is room to read on; waits a little if not. An exact cut must be able to finish: while one waits,
    /// only the partitions that it does not need are held back.
    fn has_space(&mut self) -> bool {
        let mut buffer = lock(&self.shared.buffer);
        if !buffer.is_full() {
            drop(buffer);
            self.full_since = None;
            self.pause_only(BTreeSet::new());
            return true;
        }
        if let Some(target) = buffer.target.take() {
            let needed = |p: &i32| target.get(p).is_some_and(|range| !buffer.has_reached(*p, range.to));
            let others = buffer.partitions.keys().copied().filter(|p| !needed(p)).collect();
            buffer.target = Some(target);
            drop(buffer);
            self.pause_only(others);
            return true;
        }
        let all = buffer.partitions.keys().copied().collect();
        drop(self.shared.space.wait_timeout(buffer, Duration::from_millis(100)));
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < FULL_LIMIT {
            return false;
        }
        self.pause_only(all);
        true
    }

    fn pause_only(&mut self, wanted: BTreeSet<i32>) {
        if self.paused == wanted {
            return;
        }
        let list = |partitions: Vec<&i32>| {
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                list.add_partition(&self.table.topic, *partition);
            }
            list
        };
        let pause = list(wanted.difference(&self.paused).collect());
        let resume = list(self.paused.difference(&wanted).collect());
        for (what, result) in [("pause", self.consumer.pause(&pause)), ("resume", self.consumer.resume(&resume))] {
            if let Err(error) = result {
                tracing::warn!(topic = self.table.topic, "could not {what} partitions: {error}");
            }
        }
        self.paused = wanted;
    }

    /// Makes librdkafka read where the buffer wants to go on: after a split, after lost records, with new partitions.
    fn place(&mut self) -> Result<()> {
        self.ask_for_target()?;
        let positions: BTreeMap<i32, i64> = {
            let buffer = lock(&self.shared.buffer);
            if !buffer.partitions.values().any(|state| state.resetting) {
                return Ok(());
            }
            buffer.partitions.iter().map(|(partition, state)| (*partition, state.next)).collect()
        };
        assign(&self.consumer, &self.table, &positions)?;
        // A pause outlives an assignment.
        let everything: BTreeSet<i32> = positions.keys().copied().collect();
        self.paused = everything;
        self.pause_only(BTreeSet::new());
        let mut buffer = lock(&self.shared.buffer);
        for (partition, next) in positions {
            if let Some(state) = buffer.partitions.get_mut(&partition).filter(|state| state.next == next) {
                state.resetting = false;
            }
        }
        Ok(())
    }

    /// An exact cut may end beyond the end of the log that we know: then it is asked for again, and the log read to
    /// that end anew, so that "end of log" means at least this end.
    fn ask_for_target(&mut self) -> Result<()> {
        if self.ask_target_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let beyond: Vec<(i32, i64)> = {
            let buffer = lock(&self.shared.buffer);
            let Some(target) = &buffer.target else { return Ok(()) };
            let unknown = |(p, range): (&i32, &OffsetRange)| {
                let known_end = buffer.partitions.get(p)?.known_end;
                (range.to > known_end && !buffer.has_reached(*p, range.to)).then_some((*p, range.to))
            };
            target.iter().filter_map(unknown).collect()
        };
        for (partition, to) in beyond {
            self.ask_target_at = Some(Instant::now() + ASK_AGAIN);
            let deadline = Instant::now() + ASK_LIMIT;
            let Some(log) = self.passing(watermarks(&self.consumer, &self.table, partition, deadline))? else {
                continue;
            };
            if log.to < to {
                return Err(self.truncated(partition, to, log.to));
            }
            let mut buffer = lock(&self.shared.buffer);
            if let Some(state) = buffer.partitions.get_mut(&partition) {
                state.known_end = log.to;
                state.resetting = true;
            }
        }
        Ok(())
    }

    /// Passing trouble is no error of the reader: it asks again later.
    fn passing<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_retryable() => {
                tracing::debug!(topic = self.table.topic, "{}", error.line());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks for new partitions, and whether the topic is still there.
    fn discover(&mut self) -> Result<()> {
        self.discover_at = Instant::now() + self.table.discovery;
        let deadline = Instant::now() + ASK_LIMIT;
        let found = match topic_state(&self.consumer, &self.table.topic, deadline) {
            Ok(TopicState::Ready(found)) => found,
            Ok(TopicState::Missing) if self.missing >= 1 => {
                return Err(Error::external(format!("topic {:?} was deleted while it was read", self.table.topic))
                    .at(format!("table {}, brokers {}", self.table.definition.name, self.table.brokers))
                    .hint("restore it, or start anew under another poundlock.name, with tables of its own"));
            }
            Ok(TopicState::Missing) => {
                self.missing += 1;
                self.discover_at = Instant::now() + ASK_AGAIN;
                return Ok(());
            }
            // Passing trouble: librdkafka has reported it already.
            Ok(TopicState::NotReady(_)) | Err(_) => return Ok(()),
        };
        let known: BTreeSet<i32> = lock(&self.shared.buffer).partitions.keys().copied().collect();
        let gone = known.iter().find(|partition| !found.contains(partition));
        // Not at the first word: a broker that has just started may know less.
        if gone.is_some() && self.missing == 0 {
            self.missing += 1;
            self.discover_at = Instant::now() + ASK_AGAIN;
            return Ok(());
        }
        self.missing = 0;
        if let Some(gone) = gone {
            return Err(Error::external(format!("partition {gone} of topic {:?} is gone", self.table.topic))
                .hint("was the topic deleted and made again with fewer partitions?"));
        }
        for partition in found.into_iter().filter(|partition| !known.contains(partition)) {
            let log = watermarks(&self.consumer, &self.table, partition, Instant::now() + ASK_LIMIT);
            let Some(log) = self.passing(log)? else { continue };
            tracing::info!(topic = self.table.topic, partition, offset = log.from, "new partition");
            let mut buffer = lock(&self.shared.buffer);
            buffer.add_partition(partition, log.from, log.from, log.to);
            if let Some(state) = buffer.partitions.get_mut(&partition) {
                state.resetting = true;
            }
        }
        Ok(())
    }

    /// Whose fault an error event is, and whether reading can go on.
    fn judge(&mut self, trouble: &KafkaError) -> Result<()> {
        use RDKafkaErrorCode as Code;
        let context = self.consumer.context();
        let fatal = |message: &str| {
            broker_error(format!("{message} topic {:?}", self.table.topic), trouble)
                .cause(context.reason())
                .at(format!("table {}, brokers {}", self.table.definition.name, self.table.brokers))
        };
        if let KafkaError::MessageConsumptionFatal(_) = trouble {
            return Err(fatal("cannot go on reading"));
        }
        match trouble.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                self.check_positions_at.get_or_insert_with(Instant::now);
            }
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                self.discover_at = Instant::now();
            }
            Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => {
                return Err(fatal("not allowed to read"));
            }
            Some(Code::Authentication | Code::SaslAuthenticationFailed) => {
                return Err(fatal("the brokers refused our credentials for"));
            }
            Some(Code::BadMessage | Code::BadCompression | Code::InvalidMessage | Code::NotImplemented) => {
                return Err(fatal("a batch of records cannot be read from"));
            }
            Some(Code::MessageSizeTooLarge) => {
                return Err(fatal("a record is too large to be fetched from")
                    .hint("raise 'kafka.fetch.max.bytes' and 'kafka.receive.message.max.bytes'"));
            }
            // Passing: logged by the client's context; librdkafka tries again.
            _ => {}
        }
        Ok(())
    }

    /// The broker does not have an offset that we want: finds out which, and whether going on is allowed.
    fn check_positions(&mut self) -> Result<()> {
        self.check_positions_at = Some(Instant::now() + ASK_AGAIN);
        let positions: Vec<(i32, i64)> =
            lock(&self.shared.buffer).partitions.iter().map(|(partition, state)| (*partition, state.next)).collect();
        for (partition, next) in positions {
            let log = watermarks(&self.consumer, &self.table, partition, Instant::now() + ASK_LIMIT);
            let Some(log) = self.passing(log)? else { return Ok(()) };
            if next > log.to {
                return Err(self.truncated(partition, next, log.to));
            }
            if next < log.from {
                data_loss(&self.table, partition, next, log.from)?;
            }
            let mut buffer = lock(&self.shared.buffer);
            buffer.skip_lost(partition, log.from);
            if let Some(state) = buffer.partitions.get_mut(&partition) {
                // librdkafka has stopped fetching the partition in question, and does not say which it is.
                state.resetting = true;
            }
        }
        self.check_positions_at = None;
        Ok(())
    }

    fn truncated(&self, partition: i32, wanted: i64, end: i64) -> Error {
        truncated(&self.table, partition, wanted, end)
    }
}

/// Tells the source when the thread ends, were it by a panic.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if !self.0.is_stopping() {
            lock(&self.0.buffer).fail(Error::internal("the thread of the Kafka reader has ended"));
        }
        self.0.changed.notify_waiters();
    }
}

/// Offsets by partition, as librdkafka takes them.
pub fn offsets(topic: &str, positions: &BTreeMap<i32, i64>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in positions {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}

/// Reads all these partitions, each from its offset.
pub fn assign(consumer: &BaseConsumer<Context>, table: &KafkaTable, positions: &BTreeMap<i32, i64>) -> Result<()> {
    let assigned = offsets(&table.topic, positions).and_then(|list| consumer.assign(&list));
    assigned.map_err(|error| {
        Error::internal(format!("could not assign the partitions of topic {:?}", table.topic)).cause(error)
    })
}

/// Records have been removed before they were read: an error, or a warning if the table says so.
pub fn data_loss(table: &KafkaTable, partition: i32, wanted: i64, oldest: i64) -> Result<()> {
    if table.continue_on_data_loss {
        tracing::warn!(
            topic = table.topic,
            partition,
            wanted,
            oldest,
            lost = oldest - wanted,
            "records were removed before they were read; going on at the oldest"
        );
        return Ok(());
    }
    Err(Error::external("records were removed before they were read")
        .at(format!("topic {:?}, partition {partition}, wanted offset {wanted}, oldest offset {oldest}", table.topic))
        .hint("retention or a deletion took them; to go on without them: OPTIONS ('on_data_loss' 'continue')"))
}

pub fn truncated(table: &KafkaTable, partition: i32, wanted: i64, end: i64) -> Error {
    Error::external("the topic ends before the offset to go on from")
        .at(format!("topic {:?}, partition {partition}, wanted offset {wanted}, end of the log {end}", table.topic))
        .hint("was the topic deleted and made again, or truncated? start anew under another poundlock.name, with tables of its own")
}

impl Shared {
    /// Whether anybody waits for what is there now.
    fn is_awaited(&self, buffer: &Buffer) -> bool {
        let reached = |(partition, range): (&i32, &OffsetRange)| buffer.has_reached(*partition, range.to);
        buffer.target.as_ref().is_some_and(|target| target.iter().all(reached)) || self.is_filled(buffer)
    }
}
