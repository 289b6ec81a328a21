//! Whether the brokers are there: waited for at the start, and missed while running; both are told.
//!
//! ```text
//! start     question ─▶ no answer: a line ─▶ a longer question … ─▶ the start's limit: an error
//! running   statistics, once a second ─▶ none connected: a warning, then one a minute ─▶ connected: a line
//! ```
//!
//! librdkafka tries again by itself, without end, and says so each time in words of its own. Those go to the log at
//! level debug as long as nobody is connected: here the same is said in ours, at growing intervals.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::util::Timeout;

use super::client::{Context, OPEN_LIMIT, broker_error, left, lock};
use crate::Result;

/// How long the first question waits for its answer: soon enough to be told that something is amiss.
const QUESTION_FIRST: Duration = Duration::from_secs(1);
/// Each one waits twice as long as the one before: lines after 1, 3, 7 and 15 s.
const QUESTION_MAX: Duration = Duration::from_secs(15);

/// Serving what librdkafka has kept (errors, lines for the log) takes so long.
const SERVING: Duration = Duration::from_millis(20);

/// A connection that is made anew at once is no news.
const AWAY_AFTER: Duration = Duration::from_secs(2);
/// Between two lines about the same absence.
const AWAY_AGAIN: Duration = Duration::from_secs(60);

/// A client that can be asked for its brokers.
pub struct Asked<'c> {
    pub context: &'c Context,
    pub brokers: &'c str,
    /// Asks any broker for its metadata.
    pub ask: &'c dyn Fn(Timeout) -> KafkaResult<()>,
    /// Serves callbacks for so long.
    pub serve: &'c dyn Fn(Duration),
}

/// Returns when a broker answers. `aloud`: somebody is watching, so each question without an answer is told.
///
/// # Errors
/// None has until the deadline (external, may pass).
pub fn wait(client: &Asked, deadline: Instant, aloud: bool) -> Result<()> {
    let (mut limit, mut attempt) = (QUESTION_FIRST, 1_u32);
    loop {
        let began = Instant::now();
        let Err(error) = (client.ask)(left(deadline.min(began + limit))) else { break };
        (client.serve)(SERVING);
        let cause = client.context.trouble();
        let cause_text = cause.as_ref().map_or_else(|| error.to_string(), |(_, reason)| reason.clone());
        if Instant::now() >= deadline {
            let code = cause.map_or(error, |(code, _)| KafkaError::Global(code));
            let error = broker_error(format!("no Kafka broker has answered within {OPEN_LIMIT:?}"), &code);
            return Err(error.at(format!("brokers {}", client.brokers)).cause(cause_text));
        }
        let brokers = client.brokers;
        if aloud {
            tracing::warn!(brokers, attempt, "waiting for the Kafka brokers: {cause_text}");
        } else {
            tracing::debug!(brokers, attempt, "waiting for the Kafka brokers: {cause_text}");
        }
        // A question that failed at once is not repeated at once.
        std::thread::sleep(
            limit.saturating_sub(began.elapsed()).min(deadline.saturating_duration_since(Instant::now())),
        );
        limit = (limit * 2).min(QUESTION_MAX);
        attempt += 1;
    }
    client.context.answered();
    if attempt > 1 {
        tracing::info!(brokers = client.brokers, attempt, "the Kafka brokers answer");
    }
    Ok(())
}

/// As [`wait`], for a consumer that reads nothing yet.
pub fn wait_with(
    consumer: &BaseConsumer<Context>,
    brokers: &str,
    topic: &str,
    deadline: Instant,
    aloud: bool,
) -> Result<()> {
    let ask = |timeout: Timeout| consumer.fetch_metadata(Some(topic), timeout).map(drop);
    let serve = |limit: Duration| {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            drop(consumer.poll(limit / 4)); // an error event: the context has seen it
        }
    };
    wait(&Asked { context: consumer.context(), brokers, ask: &ask, serve: &serve }, deadline, aloud)
}

/// Whether librdkafka says that a connection failed, which it then makes anew by itself.
pub fn is_connection(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut)
}

/// What is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Away(Duration),
    StillAway(Duration),
    Back(Duration),
}

/// Whether any broker is connected: known from the first answer on, then by what the statistics say.
#[derive(Debug, Default)]
pub struct Presence(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    is_up: bool,
    /// Since when none is, after one was.
    down_since: Option<Instant>,
    /// When that was told last.
    told: Option<Instant>,
}

impl Presence {
    pub fn observe(&self, is_up: bool, now: Instant) -> Option<Change> {
        let mut state = lock(&self.0);
        if is_up {
            state.is_up = true;
            let since = state.down_since.take();
            return state.told.take().and(since).map(|since| Change::Back(now - since));
        }
        if state.is_up {
            (state.is_up, state.down_since) = (false, Some(now));
        }
        let since = now - state.down_since?;
        let change = match state.told {
            None if since >= AWAY_AFTER => Change::Away(since),
            Some(told) if now - told >= AWAY_AGAIN => Change::StillAway(since),
            _ => return None,
        };
        state.told = Some(now);
        Some(change)
    }

    pub fn is_up(&self) -> bool {
        lock(&self.0).is_up
    }

    /// For how long none has been connected; `None` while one is, or for a moment only.
    pub fn away(&self, now: Instant) -> Option<Duration> {
        let state = lock(&self.0);
        state.told.and(state.down_since).map(|since| now - since)
    }
}

/// librdkafka lists a broker of its own among them (`internal`), which is always up.
pub fn is_any_up(statistics: &Statistics) -> bool {
    let mut brokers = statistics.brokers.values().filter(|broker| broker.source != "internal");
    brokers.any(|broker| matches!(broker.state.as_str(), "UP" | "UPDATE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_told_once_then_now_and_then_and_its_end() {
        let presence = Presence::default();
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let seconds = Duration::from_secs;
        assert_eq!(presence.observe(false, at(0)), None, "it was never there: the start tells that");
        assert_eq!((presence.observe(true, at(5)), presence.is_up()), (None, true));
        // A broker that starts anew is there again at once.
        assert_eq!(presence.observe(false, at(6)), None);
        assert_eq!(presence.observe(true, at(7)), None);
        assert_eq!(presence.observe(false, at(10)), None);
        assert_eq!(presence.away(at(11)), None);
        assert_eq!(presence.observe(false, at(12)), Some(Change::Away(seconds(2))));
        assert_eq!((13..72).filter_map(|second| presence.observe(false, at(second))).count(), 0);
        assert_eq!(presence.away(at(71)), Some(seconds(61)));
        assert_eq!(presence.observe(false, at(72)), Some(Change::StillAway(seconds(62))));
        assert_eq!(presence.observe(false, at(73)), None);
        assert_eq!(presence.observe(true, at(80)), Some(Change::Back(seconds(70))));
        assert_eq!((presence.observe(true, at(81)), presence.away(at(81))), (None, None));
    }
}
