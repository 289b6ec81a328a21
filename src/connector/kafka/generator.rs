//! Events for demos, tests and measurements: shop visitors, five of whom click far too often, and some broken records.
//!
//! The same seed gives the same events, whatever the machine and the version: the random numbers are our own. Only the
//! event time may be the wall clock, unless a start is given. Written by hand into a buffer that is used again: a
//! generator must be faster than what it measures.

pub mod avro;
mod event;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio_util::sync::CancellationToken;

pub use event::{Event, Generator};

use self::avro::AvroWriter;
use super::brokers::{Asked, wait};
use super::client::{Context, OPEN_LIMIT, broker_error, left};
use super::schemas::client::RegistryOptions;
use super::source::default;
use super::topic::topic_missing;
use crate::connector::background::blocking;
use crate::{Error, Result};

/// Events between two looks at the clock.
const SLICE: u64 = 64;

/// How long acknowledgements may take at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);

/// What to generate.
#[derive(Debug, Clone)]
pub struct GeneratorOptions {
    pub topic: String,
    /// Events a second; 0: as fast as it can.
    pub rate: u64,
    /// `None`: until stopped.
    pub count: Option<u64>,
    pub seed: u64,
    pub users: u32,
    /// Share of events that come from the five spam users.
    pub spam_share: f64,
    pub invalid_share: f64,
    /// Event time of the first event, µs since 1970 UTC; `None`: the wall clock.
    pub start: Option<i64>,
    /// With `start`: events per second of event time.
    pub event_rate: u64,
    /// Key of each message: its user, whose events so stay in order; else partitions in turn, without a key.
    pub key_by_user: bool,
    /// Avro, by a schema that is registered here; else JSON.
    pub avro: Option<RegistryOptions>,
    /// Makes the topic, with so many partitions, if it is not there.
    pub create_partitions: Option<i32>,
    /// librdkafka's own (security, say); values may be secrets.
    pub properties: BTreeMap<String, String>,
    /// Counts while it runs, for a progress bar.
    pub produced: Arc<AtomicU64>,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            topic: "user_events".into(),
            rate: 0,
            count: None,
            seed: 1,
            users: 1_000,
            spam_share: 0.4,
            invalid_share: 0.01,
            start: None,
            event_rate: 10_000,
            key_by_user: false,
            avro: None,
            create_partitions: None,
            properties: BTreeMap::new(),
            produced: Arc::default(),
        }
    }
}

/// What was generated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    pub events: u64,
    /// Of these, broken on purpose.
    pub invalid: u64,
    /// Of payload.
    pub bytes: u64,
    pub elapsed: Duration,
}

/// Produces events until `count` is reached or `stop` is cancelled; all are acknowledged when it returns.
///
/// # Errors
/// The topic is missing; the brokers do not answer; an event was not delivered.
pub async fn generate(options: GeneratorOptions, brokers: &str, stop: CancellationToken) -> Result<Generated> {
    let mut config = ClientConfig::new();
    for (name, value) in &options.properties {
        config.set(name, value);
    }
    config.set("bootstrap.servers", brokers).set("client.id", "poundlock-generate");
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Warning);
    default(&mut config, "compression.type", "lz4");
    default(&mut config, "enable.idempotence", "true");
    default(&mut config, "linger.ms", if options.rate == 0 { "20" } else { "5" });
    default(&mut config, "queue.buffering.max.kbytes", "65536");
    default(&mut config, "partitioner", "murmur2_random");
    if let Some(partitions) = options.create_partitions {
        create_topic(&config, brokers, &options.topic, partitions).await?;
    }
    let brokers = brokers.to_string();
    blocking(move || run(&options, &brokers, &config, &stop)).await
}

fn client_error(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => {
            Error::user(format!("property {name:?} of the Kafka client is not accepted"))
        }
        _ => Error::user("the properties do not make a Kafka client"),
    }
}

async fn create_topic(config: &ClientConfig, brokers: &str, topic: &str, partitions: i32) -> Result<()> {
    let failed = |error: &KafkaError| broker_error(format!("could not create topic {topic:?}"), error);
    let context = Context::new(topic, brokers);
    let admin: AdminClient<Context> = config.create_with_context(context).map_err(|error| client_error(&error))?;
    // -1: the brokers' default replication.
    let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().operation_timeout(Some(OPEN_LIMIT)).request_timeout(Some(OPEN_LIMIT));
    for result in admin.create_topics([&wanted], &options).await.map_err(|error| failed(&error))? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(&KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}

fn run(
    options: &GeneratorOptions,
    brokers: &str,
    config: &ClientConfig,
    stop: &CancellationToken,
) -> Result<Generated> {
    let context = Context::new(&options.topic, brokers);
    let producer: BaseProducer<Context> = config.create_with_context(context).map_err(|error| client_error(&error))?;
    let asked = Asked {
        context: producer.context(),
        brokers,
        ask: &|limit| producer.client().fetch_metadata(Some(&options.topic), limit).map(drop),
        serve: &|limit| producer.poll(limit),
    };
    wait(&asked, Instant::now() + OPEN_LIMIT, true)?;
    let partitions = partitions(&producer, &options.topic, brokers)?;
    let mut generator = Generator::new(options);
    let mut avro = options.avro.as_ref().map(|registry| AvroWriter::register(registry, &options.topic)).transpose()?;
    let mut payload = Vec::with_capacity(512);
    let mut key = itoa::Buffer::new();
    let began = Instant::now();
    let mut done = Generated { events: 0, invalid: 0, bytes: 0, elapsed: Duration::ZERO };
    let wanted = options.count.unwrap_or(u64::MAX);
    while done.events < wanted && !stop.is_cancelled() {
        let due = match options.rate {
            0 => u64::MAX,
            rate => (began.elapsed().as_secs_f64() * rate as f64) as u64,
        };
        if done.events >= due {
            producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        let slice = SLICE.min(due - done.events).min(wanted - done.events);
        for index in 0..slice {
            let number = done.events;
            let micros = match options.start {
                Some(start) => start + (u128::from(number) * 1_000_000 / u128::from(options.event_rate.max(1))) as i64,
                None => wall + index as i64,
            };
            let event = match &mut avro {
                Some(avro) => avro.write(&mut generator, micros, &mut payload),
                None => generator.write(micros, &mut payload),
            };
            let mut message: BaseRecord<str, [u8]> = BaseRecord::to(&options.topic).payload(&payload);
            if options.key_by_user {
                message.key = Some(key.format(event.user));
            } else {
                message.partition = Some((number % u64::from(partitions)) as i32);
            }
            send(&producer, message)?;
            done.events += 1;
            done.invalid += u64::from(!event.is_valid);
            done.bytes += payload.len() as u64;
        }
        producer.poll(Duration::ZERO);
        options.produced.store(done.events, Ordering::Relaxed);
        delivered(&producer)?;
    }
    let deadline = Instant::now() + FLUSH_LIMIT;
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(1));
        delivered(&producer)?;
        if Instant::now() >= deadline {
            return Err(Error::external("the brokers did not acknowledge the events in time")
                .cause(format!("{} of them after {FLUSH_LIMIT:?}", producer.in_flight_count())));
        }
    }
    delivered(&producer)?;
    done.elapsed = began.elapsed();
    Ok(done)
}

fn partitions(producer: &BaseProducer<Context>, topic: &str, brokers: &str) -> Result<u32> {
    let deadline = Instant::now() + OPEN_LIMIT;
    loop {
        let metadata = producer.client().fetch_metadata(Some(topic), left(deadline)).map_err(|error| {
            broker_error(format!("could not ask for the partitions of topic {topic:?}"), &error)
                .at(format!("brokers {brokers}"))
        })?;
        let count = metadata.topics().first().map_or(0, |found| found.partitions().len());
        if count > 0 {
            return Ok(count as u32);
        }
        if Instant::now() + OPEN_LIMIT > deadline + Duration::from_secs(2) {
            // A topic just made is there within two seconds.
            return Err(topic_missing("generate", topic, brokers).hint("or give --create-topic"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn send(producer: &BaseProducer<Context>, message: BaseRecord<str, [u8]>) -> Result<()> {
    let mut message = message;
    let deadline = Instant::now() + FLUSH_LIMIT;
    while let Err((error, back)) = producer.send(message) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) || Instant::now() >= deadline {
            return Err(broker_error("an event could not be handed to the Kafka client", &error));
        }
        producer.poll(Duration::from_millis(2));
        delivered(producer)?;
        message = back;
    }
    Ok(())
}

fn delivered(producer: &BaseProducer<Context>) -> Result<()> {
    match producer.context().has_failed().then(|| producer.context().take_failure()).flatten() {
        Some(error) => Err(broker_error("an event was not delivered", &error)),
        None => Ok(()),
    }
}
