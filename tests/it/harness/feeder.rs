//! Puts the events of a seed into the input topic, paced, in the background or at once; a producer of its own, not the
//! program's `generate`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use super::{PARTITIONS, World};
use crate::events::Events;

/// Sent and acknowledged together. Round the partitions, so that none is ever more than one chunk ahead in event time.
const CHUNK: u64 = 200;

pub struct Feeder {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Feeder {
    /// All `count` events are in the topic when it returns.
    pub fn feed(world: &World, seed: u64, count: u64) {
        let mut producer = Chunks::new(world, seed);
        while producer.sent < count {
            producer.send(CHUNK.min(count - producer.sent));
        }
    }

    /// One chunk is in the topic when it returns; then `per_second` until stopped, `limit` in all.
    pub fn start(world: &World, seed: u64, per_second: u64, limit: u64) -> Self {
        let mut producer = Chunks::new(world, seed);
        producer.send(CHUNK);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(CHUNK)));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            while !stopped.load(Ordering::Relaxed) && producer.sent < limit {
                producer.send(CHUNK);
                counter.store(producer.sent, Ordering::Relaxed);
                let due = Duration::from_secs_f64(producer.sent as f64 / per_second as f64);
                std::thread::sleep(due.saturating_sub(began.elapsed()).min(Duration::from_secs(1)));
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The number of events that are in the topic.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the feeder did not fail");
        self.sent()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Counts what Kafka did not take.
#[derive(Default)]
struct Lost(AtomicU64);

impl ClientContext for Lost {}

impl ProducerContext for Lost {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Chunks {
    producer: BaseProducer<Lost>,
    topic: String,
    events: Events,
    sent: u64,
}

impl Chunks {
    fn new(world: &World, seed: u64) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &world.brokers)
            .set("enable.idempotence", "true") // in order, none twice
            .set("linger.ms", "2")
            .create_with_context(Lost::default())
            .unwrap();
        Self { producer, topic: world.events.clone(), events: Events::new(seed), sent: 0 }
    }

    fn send(&mut self, count: u64) {
        for _ in 0..count {
            let payload = self.events.next();
            let partition = (self.sent % (PARTITIONS as u64 - 1)) as i32;
            let key = partition.to_string();
            let mut record = BaseRecord::to(&self.topic).partition(partition).key(&key);
            if let Some(payload) = &payload {
                record = record.payload(payload);
            }
            // A full queue empties within the flush's own limit.
            while let Err((error, back)) = self.producer.send(record) {
                assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                self.producer.poll(Duration::from_millis(100));
                record = back;
            }
            self.sent += 1;
        }
        self.producer.flush(Duration::from_secs(60)).unwrap();
        assert_eq!(self.producer.context().0.load(Ordering::Relaxed), 0, "Kafka took all events");
    }
}
