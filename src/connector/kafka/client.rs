//! What every Kafka client of ours shares: its log lines, and its errors in words.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::statistics::Statistics;
use rdkafka::util::Timeout;

use super::brokers::{Change, Presence, is_any_up, is_connection};
use crate::Error;

/// How long opening may take before it is given up.
pub const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// Between two log lines about the same trouble.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A poisoned lock means that a thread panicked while it held it; the data behind ours stays usable.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// librdkafka's own lines: of all clients together, since a pipeline has many.
static LINES: LogRate = LogRate::new();

/// Lets one line of a kind through per interval and counts the rest.
pub struct LogRate(Mutex<BTreeMap<String, (Option<Instant>, u64)>>);

impl LogRate {
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// How many were held back since the last one, if this one may be logged.
    pub fn admit(&self, what: &str, now: Instant) -> Option<u64> {
        let mut seen = lock(&self.0);
        if seen.len() > 64 {
            seen.clear(); // Error codes: there are never so many, but the map has a limit.
        }
        let (last, held_back) = seen.entry(what.to_string()).or_default();
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOG_EVERY) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}

/// Callbacks of a client: called from its own polling only.
#[derive(Default)]
pub struct Context {
    topic: String,
    brokers: String,
    /// Consumer: by librdkafka's statistics.
    presence: Presence,
    /// Consumer: the end of each partition, from librdkafka's statistics.
    ends: Mutex<BTreeMap<i32, i64>>,
    /// Producer: the first message of the current transaction that was not delivered.
    failure: Mutex<Option<KafkaError>>,
    has_failed: AtomicBool,
    /// The last error that says more than that no broker is there; its code alone says little.
    trouble: Mutex<Option<(RDKafkaErrorCode, String)>>,
    /// A connection was lost since the last statistics, which tell whether others are there.
    lost: AtomicBool,
}

impl Context {
    pub fn new(topic: &str, brokers: &str) -> Self {
        Self { topic: topic.to_string(), brokers: brokers.to_string(), ..Self::default() }
    }

    /// A broker has: from now on it is missed.
    pub fn answered(&self) {
        *lock(&self.trouble) = None;
        self.presence.observe(true, Instant::now());
    }

    /// How long no broker has been connected.
    pub fn away(&self) -> Option<Duration> {
        self.presence.away(Instant::now())
    }

    /// Ends by partition, as far as known.
    pub fn ends(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        lock(&self.ends)
    }

    pub fn take_failure(&self) -> Option<KafkaError> {
        self.has_failed.store(false, Ordering::Relaxed);
        lock(&self.failure).take()
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// What librdkafka has complained of last, in its own words.
    pub fn trouble(&self) -> Option<(RDKafkaErrorCode, String)> {
        lock(&self.trouble).clone()
    }

    pub fn reason(&self) -> String {
        self.trouble().map(|(_, reason)| reason).unwrap_or_default()
    }

    fn tell(&self, change: Change) {
        let (topic, brokers, cause) = (&self.topic, &self.brokers, self.reason());
        match change {
            Change::Away(_) => tracing::warn!(
                topic,
                brokers,
                "the Kafka brokers are away, batches go on without their records: {cause}"
            ),
            Change::StillAway(since) => {
                tracing::warn!(topic, brokers, "the Kafka brokers are still away, for {} s: {cause}", since.as_secs());
            }
            Change::Back(since) => {
                tracing::info!(topic, brokers, "the Kafka brokers are back after {} s", since.as_secs());
            }
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // Lost connections come as errors too (see `error`), and properties of the other kind of client are expected.
        // A failed commit of the group's offsets is told here only (COMMITFAIL): nothing but lag tools needs it.
        let expected = matches!(facility, "FAIL" | "CONFWARN");
        match level {
            _ if expected => tracing::debug!(target: "librdkafka", "{facility} {message}"),
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::debug!(target: "librdkafka", "{facility} {message}");
            }
            _ => {
                if let Some(held_back) = LINES.admit(facility, Instant::now()) {
                    tracing::warn!(target: "librdkafka", held_back, "{facility} {message}");
                }
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let is_up = is_any_up(&statistics);
        if let Some(change) = self.presence.observe(is_up, Instant::now()) {
            self.tell(change);
            if matches!(change, Change::Back(_)) {
                *lock(&self.trouble) = None;
            }
        }
        // One broker of several: the others go on.
        if self.lost.swap(false, Ordering::Relaxed)
            && is_up
            && let Some(held_back) = LINES.admit("connection", Instant::now())
        {
            tracing::warn!(topic = self.topic, held_back, "a connection to Kafka was lost: {}", self.reason());
        }
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let mut ends = lock(&self.ends);
        for (partition, state) in topic.partitions.iter().filter(|(partition, _)| **partition >= 0) {
            // Negative: not known yet. The last stable offset is where a reader of committed records can get.
            let end = if state.ls_offset >= 0 { state.ls_offset } else { state.hi_offset };
            if end >= 0 {
                ends.insert(*partition, end);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code().filter(|code| *code != RDKafkaErrorCode::PartitionEOF) else {
            return;
        };
        // librdkafka adds in parentheses how often and in what state; the first part says what happened.
        let reason = reason.split(" (after ").next().unwrap_or(reason);
        if code != RDKafkaErrorCode::AllBrokersDown {
            // Of a connection that TLS ended librdkafka tells now as TLS's error, now as one of transport.
            let told = if reason.contains("SSL routines") { RDKafkaErrorCode::SSL } else { code };
            *lock(&self.trouble) = Some((told, reason.to_string()));
        }
        if is_connection(code) || !self.presence.is_up() {
            // Who waits for the brokers tells it: a start, a write, or the statistics.
            self.lost.store(true, Ordering::Relaxed);
            tracing::debug!(target: "librdkafka", topic = self.topic, "{code:?}: {reason}");
        } else if let Some(held_back) = LINES.admit(&format!("{code:?}"), Instant::now()) {
            tracing::warn!(topic = self.topic, held_back, "Kafka: {reason}");
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Err((error, _)) = result
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            *lock(&self.failure) = Some(error.clone());
        }
    }
}

/// A failed call in words; may pass by itself unless the broker said no for good.
pub fn broker_error(message: impl Into<String>, error: &KafkaError) -> Error {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code().or(match error {
        KafkaError::Transaction(error) => Some(error.code()),
        _ => None,
    });
    let described = Error::external(message).cause(error);
    match code {
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed,
        ) => described.hint("give the pipeline's user the rights it needs on topics, group and transactional id"),
        Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism | Code::SSL) => {
            described.hint("check the table's options 'kafka.security.protocol', 'kafka.sasl.…', 'kafka.ssl.…'")
        }
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::OperationTimedOut) => {
            described.retryable().hint("does the broker run, and is its address right?")
        }
        _ => described.retryable(),
    }
}

/// Time left of a limit, never nothing: librdkafka takes zero for "do not wait".
pub fn left(deadline: Instant) -> Timeout {
    Timeout::After(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100)))
}
