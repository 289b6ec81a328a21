//! Events for demos, tests and measurements: shop visitors, five of whom click far too often, and some broken records.
//!
//! The same seed gives the same events, whatever the machine and the version: the random numbers are our own. Only the
//! event time may be the wall clock, unless a start is given. Written by hand into a buffer that is used again: a
//! generator must be faster than what it measures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, Timelike};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio_util::sync::CancellationToken;

use super::brokers::{Asked, wait};
use super::client::{Context, OPEN_LIMIT, broker_error, left};
use super::source::{blocking, default};
use super::topic::topic_missing;
use crate::{Error, Result};

const SPAM_USERS: [u32; 5] = [10, 455, 789, 123, 999];
const ACTIONS: [&str; 4] = ["view", "click", "add_to_cart", "purchase"];
const DEVICES: [&str; 6] = ["mobile", "desktop", "tablet", "smart_tv", "wearable", "other"];
const PLACES: [&str; 7] = ["Hanoi", "Ho Chi Minh City", "Da Nang", "Hue", "Can Tho", "Nha Trang", "other"];
const SEGMENTS: [&str; 5] = ["new", "loyal", "promo_hunter", "high_value", "other"];

/// Kinds of broken records; see [`Generator::write`].
const KINDS: u64 = 9;

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

/// Writes events; pure.
#[derive(Debug)]
pub struct Generator {
    /// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    state: u64,
    users: u64,
    /// Thresholds on 32 random bits.
    spam: u64,
    invalid: u64,
    /// `YYYY-MM-DDTHH:MM:SS.` of the last second that was written.
    second: i64,
    second_text: Vec<u8>,
}

/// What was written by [`Generator::write`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    pub user: u32,
    pub is_valid: bool,
}

impl Generator {
    pub fn new(options: &GeneratorOptions) -> Self {
        let threshold = |share: f64| (share.clamp(0.0, 1.0) * 4_294_967_296.0) as u64;
        Self {
            state: options.seed,
            users: u64::from(options.users.max(1)),
            spam: threshold(options.spam_share),
            invalid: threshold(options.invalid_share),
            second: i64::MIN,
            second_text: Vec::with_capacity(20),
        }
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Puts one event of this time (µs since 1970, UTC) into `out`, in place of what was there.
    pub fn write(&mut self, micros: i64, out: &mut Vec<u8>) -> Event {
        // Three random words, cut into pieces: one call per field would cost more than the writing.
        let (a, b, c) = (self.random(), self.random(), self.random());
        let is_spam = (a & 0xffff_ffff) < self.spam;
        let is_valid = (b & 0xffff_ffff) >= self.invalid;
        let below = |bits: u64, n: u64| ((bits & 0xffff) * n) >> 16;
        let wide = a >> 32;
        let user = if is_spam { SPAM_USERS[(wide % 5) as usize] } else { 1 + (wide % self.users) as u32 };
        let product = 1_000 + below(b >> 32, 1_000);
        let action = if is_spam { "click" } else { ACTIONS[below(b >> 48, 4) as usize] };
        let device = 10_000 + (c & 0xff_ffff) % 90_000;
        let segment = if is_spam { "promo_hunter" } else { SEGMENTS[below(c >> 24, 5) as usize] };
        let kind = if is_valid { KINDS } else { (c >> 40) % KINDS };
        out.clear();
        if kind == 0 {
            out.extend_from_slice(b"not json #");
            number(out, c);
            return Event { user, is_valid };
        }
        if kind == 1 {
            return Event { user, is_valid }; // An empty payload.
        }
        out.push(b'{');
        if kind != 2 {
            out.extend_from_slice(b"\"user_id\": ");
            if kind == 3 {
                out.extend_from_slice(b"\"user_");
                number(out, u64::from(user));
                out.push(b'"');
            } else {
                number(out, u64::from(user));
            }
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(b"\"product_id\": ");
        number(out, product);
        out.extend_from_slice(b", \"action\": ");
        if kind == 4 {
            out.extend_from_slice(b"null");
        } else {
            quoted(out, action);
        }
        out.extend_from_slice(b", \"timestamp\": \"");
        if kind == 5 {
            out.extend_from_slice(b"yesterday at noon");
        } else {
            self.time(micros, out);
        }
        out.extend_from_slice(b"\", \"device_id\": \"device_");
        number(out, device);
        out.extend_from_slice(b"\", \"device_type\": ");
        quoted(out, DEVICES[below(c >> 32, 6) as usize]);
        out.extend_from_slice(b", \"location\": ");
        if kind == 6 {
            out.extend_from_slice(b"\"\xff\xfe\""); // Not UTF-8.
        } else {
            quoted(out, PLACES[below(c >> 48, 7) as usize]);
        }
        out.extend_from_slice(b", \"user_segment\": ");
        quoted(out, segment);
        out.extend_from_slice(b", \"ip_address\": \"");
        let address = self.random();
        for (index, octet) in address.to_le_bytes().into_iter().take(4).enumerate() {
            if index > 0 {
                out.push(b'.');
            }
            number(out, u64::from(octet));
        }
        out.extend_from_slice(b"\"}");
        match kind {
            7 => out.truncate(out.len() / 2),
            8 => {
                out.insert(0, b'[');
                out.push(b']');
            }
            _ => {}
        }
        Event { user, is_valid }
    }

    /// `2026-01-31T08:00:00.000001`.
    fn time(&mut self, micros: i64, out: &mut Vec<u8>) {
        let second = micros.div_euclid(1_000_000);
        if second != self.second {
            let time = DateTime::from_timestamp(second, 0).unwrap_or_default();
            let text = &mut self.second_text;
            text.clear();
            digits(text, time.year().clamp(0, 9_999) as u32, 1_000);
            for (separator, part) in [
                (b'-', time.month()),
                (b'-', time.day()),
                (b'T', time.hour()),
                (b':', time.minute()),
                (b':', time.second()),
            ] {
                text.push(separator);
                digits(text, part, 10);
            }
            text.push(b'.');
            self.second = second;
        }
        out.extend_from_slice(&self.second_text);
        digits(out, micros.rem_euclid(1_000_000) as u32, 100_000);
    }
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Decimal digits, the first one worth `place`.
fn digits(out: &mut Vec<u8>, value: u32, mut place: u32) {
    while place > 0 {
        out.push(b'0' + (value / place % 10) as u8);
        place /= 10;
    }
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
            let event = generator.write(micros, &mut payload);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn events(options: &GeneratorOptions, count: usize) -> Vec<(Event, Vec<u8>)> {
        let mut generator = Generator::new(options);
        let mut out = vec![];
        let mut all = vec![];
        for index in 0..count {
            let event = generator.write(1_767_225_599_999_998 + index as i64, &mut out);
            all.push((event, out.clone()));
        }
        all
    }

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let options = GeneratorOptions::default();
        assert_eq!(events(&options, 500), events(&options, 500));
        assert_ne!(events(&options, 500), events(&GeneratorOptions { seed: 2, ..options }, 500));
        // Fixed for ever: recorded runs are compared over versions.
        let options = GeneratorOptions { invalid_share: 0.0, ..GeneratorOptions::default() };
        let expected =
            r#"{"user_id": 789, "product_id": 1361, "action": "click", "timestamp": "2026-01-01T00:00:00.000000", "#;
        let third = String::from_utf8(events(&options, 3)[2].1.clone()).unwrap();
        assert!(third.starts_with(expected) && third.ends_with(r#""ip_address": "254.139.207.20"}"#), "{third}");
    }

    #[test]
    fn shares_are_kept_and_valid_events_are_json() {
        let options = GeneratorOptions { invalid_share: 0.1, ..GeneratorOptions::default() };
        let all = events(&options, 20_000);
        let spam = all.iter().filter(|(event, _)| SPAM_USERS.contains(&event.user)).count();
        let invalid = all.iter().filter(|(event, _)| !event.is_valid).count();
        assert!((7_700..8_300).contains(&spam), "{spam}");
        assert!((1_850..2_150).contains(&invalid), "{invalid}");
        for (event, payload) in all.iter().filter(|(event, _)| event.is_valid) {
            let value: serde_json::Value = serde_json::from_slice(payload).unwrap();
            assert_eq!((value["user_id"].as_u64(), value.as_object().unwrap().len()), (Some(u64::from(event.user)), 9));
        }
        let first = all.iter().position(|(event, _)| event.is_valid).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&all[first].1).unwrap();
        assert!(value["timestamp"].as_str().unwrap().starts_with("2025-12-31T23:59:59.99999") || first > 1);
    }

    #[test]
    fn every_kind_of_broken_record_comes() {
        let options = GeneratorOptions { invalid_share: 1.0, ..GeneratorOptions::default() };
        let all = events(&options, 500);
        let has = |test: &dyn Fn(&[u8]) -> bool| all.iter().any(|(_, payload)| test(payload));
        assert!(has(&|p| p.starts_with(b"not json")) && has(&|p| p.is_empty()) && has(&|p| p.starts_with(b"[")));
        assert!(has(&|p| std::str::from_utf8(p).is_err()) && has(&|p| p.starts_with(b"{\"product_id")));
        assert!(has(&|p| p.starts_with(b"{\"user_id\": \"user_")));
        assert!(has(&|p| p.starts_with(b"{") && !p.ends_with(b"}")));
        let text = all.iter().map(|(_, p)| String::from_utf8_lossy(p)).collect::<String>();
        assert!(text.contains("\"action\": null") && text.contains("yesterday at noon"));
    }
}
