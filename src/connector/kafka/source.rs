//! A Kafka topic as a source: opened at exact offsets, cut into micro-batches.
//!
//! ```text
//! reader thread ──▶ Mutex<Buffer> ◀── cut, filled, lag
//!                      └─ chunks ──▶ decoding threads
//! ```
//!
//! A cut takes the rows itself, under the buffer's lock and without waiting for the reader: it is answered in the time
//! of one slice (see `reader`) and of decoding what no thread has come to yet. A future that is dropped has taken nothing.
//!
//! Failure: see `reader` for what ends a source. Opening checks every wanted offset against the log, so that retention
//! is told at the start, and a topic that was made again, as long as it is shorter than the one before. One that has grown
//! longer cannot be told from it: librdkafka does not show the ids of topics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::Notify;

use super::brokers::wait_with;
use super::buffer::{Buffer, Taken};
use super::client::{Context, OPEN_LIMIT, broker_error, left, lock};
use super::options::KafkaTable;
use super::reader::{Reader, assign, data_loss, offsets, truncated};
use super::rows::{CHUNK_ROWS, Decoders, RowLayout, Slot};
use super::topic::{partitions_of, watermarks_when_led};
use crate::connector::background::blocking;
use crate::connector::{
    Cut, CutLimit, Kept, OffsetRange, Ranges, Source, SourceTable, StartingOffsets, TableDefinition,
};
use crate::{Error, Result};

/// How long dropping a source waits for its thread: the last commit's limit, and a little to close.
const DROP_LIMIT: Duration = Duration::from_secs(8);

/// A group's offsets are committed again, though unchanged, before the brokers forget them (7 days by default).
const COMMIT_AGAIN: Duration = Duration::from_secs(600);

/// Of one source. More than this are faster than any reader.
const DECODING_THREADS_MAX: usize = 4;

/// A `CREATE UNBOUNDED EXTERNAL TABLE … STORED AS KAFKA` that is read.
#[derive(Debug)]
pub struct KafkaSourceTable {
    table: KafkaTable,
}

impl KafkaSourceTable {
    /// # Errors
    /// Of the user: options, metadata columns or types that cannot be (see [`KafkaTable`]).
    pub fn try_new(definition: Arc<TableDefinition>) -> Result<Self> {
        let table = KafkaTable::try_new(definition)?;
        table.check_as_source()?;
        Decoders::try_new(Arc::new(RowLayout::new(&table)))?;
        Ok(Self { table })
    }

    pub fn table(&self) -> &KafkaTable {
        &self.table
    }
}

#[async_trait]
impl SourceTable for KafkaSourceTable {
    fn definition(&self) -> &Arc<TableDefinition> {
        &self.table.definition
    }

    fn keep_in(&mut self, kept: Kept) {
        self.table.kept = Some(kept);
    }

    async fn open(&self, name: &str, from: &BTreeMap<i32, i64>, buffer_bytes: usize) -> Result<Box<dyn Source>> {
        Ok(Box::new(KafkaSource::open(&self.table, name, from, buffer_bytes).await?))
    }

    async fn extent(&self) -> Result<Ranges> {
        let table = self.table.clone();
        blocking(move || {
            let mut config = table.client_config();
            default(&mut config, "isolation.level", "read_committed");
            let consumer: BaseConsumer<Context> =
                config.create_with_context(table.context()).map_err(|error| table.config_error(&error))?;
            let deadline = Instant::now() + OPEN_LIMIT;
            wait_with(&consumer, &table.brokers, &table.topic, deadline, true)?;
            let partitions = partitions_of(&consumer, &table, deadline)?;
            partitions.into_iter().map(|p| Ok((p, watermarks_when_led(&consumer, &table, p, deadline)?))).collect()
        })
        .await
    }
}

/// Sets what the user has not set.
pub(super) fn default(config: &mut ClientConfig, name: &str, value: &str) {
    if config.get(name).is_none() {
        config.set(name, value);
    }
}

/// What the reader thread and the source share.
pub struct Shared {
    pub(super) buffer: Mutex<Buffer>,
    /// Cuts that want the buffer's lock: the reader, which takes it again at once, lets them in.
    contenders: AtomicUsize,
    pub(super) changed: Notify,
    /// A cut has made room.
    pub(super) space: Condvar,
    stop: AtomicBool,
    /// What `filled` waits for.
    awaited_rows: AtomicUsize,
    awaited_bytes: AtomicUsize,
    /// Offsets committed last, and when.
    pub(super) acknowledged: Mutex<Option<(BTreeMap<i32, i64>, Instant)>>,
}

impl Shared {
    fn with_buffer<T>(&self, work: impl FnOnce(&mut Buffer) -> T) -> T {
        self.contenders.fetch_add(1, Ordering::Relaxed);
        let mut buffer = lock(&self.buffer);
        let result = work(&mut buffer);
        drop(buffer);
        self.contenders.fetch_sub(1, Ordering::Relaxed);
        self.space.notify_all();
        result
    }

    pub(super) fn let_cuts_in(&self) {
        for _ in 0..1_000 {
            if self.contenders.load(Ordering::Relaxed) == 0 {
                return;
            }
            std::thread::yield_now();
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn is_filled(&self, buffer: &Buffer) -> bool {
        buffer.rows >= self.awaited_rows.load(Ordering::Relaxed)
            || buffer.bytes >= self.awaited_bytes.load(Ordering::Relaxed)
            || buffer.is_full()
            || buffer.has_failed()
    }
}

/// A running reader of one topic; dropping it commits the last acknowledged offsets and ends the thread.
pub struct KafkaSource {
    topic: String,
    shared: Arc<Shared>,
    /// `None` only while it is dropped: the reader thread closes the consumer.
    consumer: Option<Arc<BaseConsumer<Context>>>,
    end_at_start: BTreeMap<i32, i64>,
    /// See [`Source::begins_anew`].
    begins_anew: bool,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
    /// Whether dropping waits for the thread; an ad-hoc query has nothing to commit.
    wait_on_drop: bool,
}

impl KafkaSource {
    /// See [`SourceTable::open`]. A partition that `from` does not name begins where the table's `starting_offsets`
    /// say if `from` is empty (a first start), else at its first record: it was added since the checkpoint was written.
    pub async fn open(table: &KafkaTable, name: &str, from: &BTreeMap<i32, i64>, buffer_bytes: usize) -> Result<Self> {
        let (table, name, from) = (table.clone(), name.to_string(), from.clone());
        blocking(move || open(&table, &name, &from, buffer_bytes)).await
    }

    pub(super) fn without_waiting_on_drop(mut self) -> Self {
        self.wait_on_drop = false;
        self
    }

    /// Waits for a chunk's worth of rows, or the end of the log in all partitions, or what `filled` returns for.
    pub(super) async fn chunk_or_end(&self) {
        self.wait(CHUNK_ROWS, usize::MAX, |buffer| buffer.partitions.values().all(|state| state.at_end)).await;
    }

    async fn wait(&self, rows: usize, bytes: usize, or: impl Fn(&Buffer) -> bool) {
        let shared = &self.shared;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let ready = shared.with_buffer(|buffer| {
                shared.awaited_rows.store(rows, Ordering::Relaxed);
                shared.awaited_bytes.store(bytes, Ordering::Relaxed);
                shared.is_filled(buffer) || or(buffer)
            });
            if ready {
                shared.awaited_rows.store(usize::MAX, Ordering::Relaxed);
                shared.awaited_bytes.store(usize::MAX, Ordering::Relaxed);
                return;
            }
            changed.await;
        }
    }

    async fn cut_exactly(&self, ranges: &Ranges) -> Result<Cut> {
        let shared = &self.shared;
        // Dropped with the future: nobody waits any more.
        let target = TargetGuard(shared);
        shared.with_buffer(|buffer| {
            buffer.check_ranges(ranges)?;
            buffer.target = Some(ranges.clone());
            Ok::<_, Error>(())
        })?;
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let taken = shared.with_buffer(|buffer| buffer.check().and_then(|()| buffer.take_exactly(ranges)))?;
            if let Some(taken) = taken {
                drop(target);
                return taken.decode();
            }
            changed.await;
        }
    }
}

struct TargetGuard<'s>(&'s Shared);

impl Drop for TargetGuard<'_> {
    fn drop(&mut self) {
        self.0.with_buffer(|buffer| buffer.target = None);
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn filled(&self, rows: usize, bytes: usize) {
        self.wait(rows, bytes, |_| false).await;
    }

    async fn cut(&self, limit: &CutLimit) -> Result<Cut> {
        let cut = match limit {
            CutLimit::Available { rows, bytes } => {
                let take = |buffer: &mut Buffer| buffer.check().map(|()| buffer.take_available(*rows, *bytes));
                self.shared.with_buffer(take).and_then(Taken::decode)
            }
            CutLimit::Exactly(ranges) => self.cut_exactly(ranges).await,
        };
        cut.map_err(|error| self.place(error))
    }

    async fn acknowledge(&self, positions: &BTreeMap<i32, i64>) -> Result<()> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let mut acknowledged = lock(&self.shared.acknowledged);
        let unchanged = |(last, at): &(BTreeMap<i32, i64>, Instant)| last == positions && at.elapsed() < COMMIT_AGAIN;
        if positions.is_empty() || acknowledged.as_ref().is_some_and(unchanged) {
            return Ok(());
        }
        // Asynchronous; librdkafka logs a failure.
        match offsets(&self.topic, positions).and_then(|list| consumer.commit(&list, CommitMode::Async)) {
            Ok(()) => *acknowledged = Some((positions.clone(), Instant::now())),
            Err(error) => tracing::warn!(
                topic = self.topic,
                "the consumer group's offsets could not be committed \
                (only lag tools need them): {error}"
            ),
        }
        Ok(())
    }

    fn end_at_start(&self) -> BTreeMap<i32, i64> {
        self.end_at_start.clone()
    }

    fn begins_anew(&self) -> bool {
        self.begins_anew
    }

    fn lag(&self) -> u64 {
        let ends = self.consumer.as_ref().map(|consumer| consumer.context().ends().clone()).unwrap_or_default();
        self.shared.with_buffer(|buffer| buffer.lag(&ends))
    }

    fn away(&self) -> Option<Duration> {
        self.consumer.as_ref()?.context().away()
    }
}

impl KafkaSource {
    fn place(&self, error: Error) -> Error {
        // An error that names its place keeps it.
        if error.to_string().contains("\n  where: ") { error } else { error.at(format!("topic {:?}", self.topic)) }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.consumer = None;
        self.shared.stop.store(true, Ordering::Relaxed);
        lock(&self.shared.buffer).close();
        self.shared.space.notify_all();
        if self.wait_on_drop && lock(&self.ended).recv_timeout(DROP_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(topic = self.topic, "the Kafka consumer did not close in time; left to itself");
        }
    }
}

fn consumer_config(table: &KafkaTable, name: &str) -> ClientConfig {
    let mut config = table.client_config();
    // Bounds what librdkafka fetches ahead of us: about 16 MB, and one response of 8 MB. Its own default then waits a
    // second before it fetches again, which would cap the throughput.
    default(&mut config, "queued.max.messages.kbytes", "16384");
    default(&mut config, "queued.min.messages", "50000");
    default(&mut config, "fetch.max.bytes", "8388608");
    default(&mut config, "fetch.queue.backoff.ms", "2");
    default(&mut config, "reconnect.backoff.max.ms", "2000");
    default(&mut config, "socket.nagle.disable", "true");
    default(&mut config, "check.crcs", "true");
    default(&mut config, "isolation.level", "read_committed");
    // A buffer that stays full is no reason to be thrown out of a group that we are not a member of.
    default(&mut config, "max.poll.interval.ms", "86400000");
    for (property, value) in [
        ("group.id", name),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("statistics.interval.ms", "1000"),
    ] {
        config.set(property, value);
    }
    config
}

fn open(table: &KafkaTable, name: &str, from: &BTreeMap<i32, i64>, buffer_bytes: usize) -> Result<KafkaSource> {
    let deadline = Instant::now() + OPEN_LIMIT;
    let consumer: BaseConsumer<Context> = consumer_config(table, name)
        .create_with_context(table.context())
        .map_err(|error| table.config_error(&error))?;
    wait_with(&consumer, &table.brokers, &table.topic, deadline, true)?;
    let partitions = partitions_of(&consumer, table, deadline)?;
    if let Some(gone) = from.keys().find(|partition| !partitions.contains(partition)) {
        return Err(Error::external(format!(
            "partition {gone} is in the checkpoint but not in topic {:?}",
            table.topic
        ))
        .at(format!("topic {:?}, {} partitions", table.topic, partitions.len()))
        .hint("was the topic deleted and made again with fewer partitions? start anew under another poundlock.name, with tables of its own"));
    }
    let logs: Ranges = partitions
        .iter()
        .map(|p| Ok((*p, watermarks_when_led(&consumer, table, *p, deadline)?)))
        .collect::<Result<_>>()?;
    let starts = if from.is_empty() { starting_offsets(&consumer, table, &logs, deadline)? } else { from.clone() };

    let decoders = Arc::new(Decoders::of(table)?);
    let (packed, to_decode) = channel();
    let mut buffer = Buffer::new(Arc::clone(&decoders), packed, buffer_bytes);
    let mut positions = BTreeMap::new();
    for (partition, log) in &logs {
        let start = starts.get(partition).copied().unwrap_or(log.from);
        if start > log.to {
            return Err(truncated(table, *partition, start, log.to));
        }
        if start < log.from {
            data_loss(table, *partition, start, log.from)?;
        }
        buffer.add_partition(*partition, start, start, log.to);
        buffer.skip_lost(*partition, log.from);
        if let Some(state) = buffer.partitions.get_mut(partition) {
            state.resetting = false; // The assignment below begins there.
        }
        positions.insert(*partition, start.max(log.from));
    }
    assign(&consumer, table, &positions)?;
    let ends = logs.iter().map(|(partition, log)| (*partition, log.to)).collect();
    let mut source = start(table, consumer, buffer, ends)?;
    start_decoding(table, &source.shared, decoders, to_decode)?;
    source.begins_anew = from.is_empty() && table.starting_offsets == StartingOffsets::Latest;
    Ok(source)
}

fn start(
    table: &KafkaTable,
    consumer: BaseConsumer<Context>,
    buffer: Buffer,
    end_at_start: BTreeMap<i32, i64>,
) -> Result<KafkaSource> {
    let shared = Arc::new(Shared {
        buffer: Mutex::new(buffer),
        contenders: AtomicUsize::new(0),
        changed: Notify::new(),
        space: Condvar::new(),
        stop: AtomicBool::new(false),
        awaited_rows: AtomicUsize::new(usize::MAX),
        awaited_bytes: AtomicUsize::new(usize::MAX),
        acknowledged: Mutex::new(None),
    });
    let consumer = Arc::new(consumer);
    let reader = Reader::new(Arc::clone(&shared), Arc::clone(&consumer), table.clone());
    let (alive, ended) = sync_channel::<()>(1);
    let run = move || {
        reader.run();
        drop(alive);
    };
    std::thread::Builder::new()
        .name(format!("kafka-{}", table.topic))
        .spawn(run)
        .map_err(|error| Error::external("could not start the thread of the Kafka reader").cause(error))?;
    Ok(KafkaSource {
        topic: table.topic.clone(),
        shared,
        consumer: Some(consumer),
        end_at_start,
        begins_anew: false,
        ended: Mutex::new(ended),
        wait_on_drop: true,
    })
}

/// Threads that decode chunks until the source is dropped.
fn start_decoding(
    table: &KafkaTable,
    shared: &Arc<Shared>,
    decoders: Arc<Decoders>,
    to_decode: Receiver<Arc<Slot>>,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
    let to_decode = Arc::new(Mutex::new(to_decode));
    for _ in 0..threads.clamp(1, DECODING_THREADS_MAX) {
        let (shared, decoders, to_decode) = (Arc::clone(shared), Arc::clone(&decoders), Arc::clone(&to_decode));
        let run = move || {
            loop {
                let next = lock(&to_decode).recv();
                let Ok(slot) = next else { return };
                if shared.is_stopping() {
                    return;
                }
                if let Err(error) = slot.decode(&decoders) {
                    lock(&shared.buffer).fail(error);
                    shared.changed.notify_waiters();
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("decode-{}", table.topic))
            .spawn(run)
            .map_err(|error| Error::external("could not start a thread that decodes").cause(error))?;
    }
    Ok(())
}

/// Where a first start begins in each partition.
fn starting_offsets(
    consumer: &BaseConsumer<Context>,
    table: &KafkaTable,
    logs: &Ranges,
    deadline: Instant,
) -> Result<BTreeMap<i32, i64>> {
    let each =
        |choose: fn(&OffsetRange) -> i64| logs.iter().map(|(partition, log)| (*partition, choose(log))).collect();
    let ms = match table.starting_offsets {
        StartingOffsets::Earliest => return Ok(each(|log| log.from)),
        StartingOffsets::Latest => return Ok(each(|log| log.to)),
        StartingOffsets::Timestamp(ms) => ms,
    };
    let failed = |error: rdkafka::error::KafkaError| {
        broker_error(format!("could not look up offsets by time in topic {:?}", table.topic), &error)
    };
    let mut times = TopicPartitionList::new();
    for partition in logs.keys() {
        times.add_partition_offset(&table.topic, *partition, Offset::Offset(ms)).map_err(failed)?;
    }
    let found = consumer.offsets_for_times(times, left(deadline)).map_err(failed)?;
    let mut starts = BTreeMap::new();
    for element in found.elements() {
        element.error().map_err(failed)?;
        let Some(log) = logs.get(&element.partition()) else { continue };
        let start = match element.offset() {
            Offset::Offset(offset) => offset.clamp(log.from, log.to),
            _ => log.to, // No record is as young.
        };
        starts.insert(element.partition(), start);
    }
    Ok(starts)
}

#[cfg(test)]
mod tests;
