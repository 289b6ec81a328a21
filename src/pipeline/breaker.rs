//! When a sink that fails is tried again: soon at first, then seldom, and never not at all.
//!
//! ```text
//!            5 failures in a row                 the pause is over
//! closed ──────────────────────────▶ open ──────────────────────────▶ half-open: one attempt
//!    ▲                                 ▲               │    │
//!    └───────────── it answers ────────│───────────────┘    │
//!                                      └──── it fails ──────┘ a longer pause
//! ```
//!
//! A required sink whose circuit is open makes its batch wait; one with an outbox makes its own rows wait, and nothing else.
//! Nothing is skipped either way. The log tells when a circuit opens, when the first attempt after that begins (further ones
//! are no news), and when it closes, each once, and every ten minutes that it is still open; the state is shown by `status`.
//!
//! Time is passed in (µs since 1970, UTC).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::start::now;
use crate::checkpoint::status::Circuit;
use crate::format::time::lasting;
use crate::{Error, Result};

/// Failures in a row that open the circuit: with the pauses between them some three seconds.
const FAILURES_MAX: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Between two attempts while the circuit is open: so long, at most, is a sink alone after its return.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Between two lines of the log about a circuit that stays open; µs.
const REMINDER: i64 = 600_000_000;

/// Of one sink.
#[derive(Debug)]
pub struct Breaker {
    name: String,
    /// What waits meanwhile, for the log.
    waits: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    circuit: Circuit,
    /// When it was closed, or was not any more.
    since: i64,
    failures: u32,
    error: Option<String>,
    told: i64,
    /// Attempts since it was opened.
    attempts: u64,
    /// When the last attempt began.
    attempted: i64,
}

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub circuit: Circuit,
    pub since: i64,
    /// The last one, while it is not closed.
    pub error: Option<String>,
    /// When the last attempt began.
    pub attempted: i64,
}

impl Breaker {
    pub fn new(name: &str, waits: &'static str, now: i64) -> Self {
        let state = State {
            circuit: Circuit::Closed,
            since: now,
            failures: 0,
            error: None,
            told: now,
            attempts: 0,
            attempted: now,
        };
        Self { name: name.to_string(), waits, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn view(&self) -> View {
        let state = self.state();
        let error = state.error.clone().filter(|_| state.circuit != Circuit::Closed);
        View { circuit: state.circuit, since: state.since, error, attempted: state.attempted }
    }

    /// An attempt begins.
    pub fn attempt(&self, now: i64) {
        let mut state = self.state();
        state.attempted = now;
        if state.circuit == Circuit::Open {
            state.circuit = Circuit::HalfOpen;
            state.attempts += 1;
            match state.attempts {
                1 => tracing::info!(
                    sink = self.name,
                    "circuit half-open: one attempt, and others until it answers, {} s apart at most",
                    PAUSE_MAX.as_secs()
                ),
                _ => tracing::debug!(sink = self.name, "circuit half-open: one attempt"),
            }
        }
    }

    /// It has answered.
    pub fn succeeded(&self, now: i64) {
        let mut state = self.state();
        if state.circuit != Circuit::Closed {
            let after = lasting(now - state.since);
            tracing::info!(sink = self.name, after, "circuit closed: the sink answers again");
            (state.circuit, state.since) = (Circuit::Closed, now);
        }
        (state.failures, state.error) = (0, None);
    }

    /// It has failed in a way that may pass (or, `for_good`, that somebody has to mend there). Returns the pause before the
    /// next attempt, without its jitter.
    pub fn failed(&self, what: &str, error: &Error, for_good: bool, now: i64) -> Duration {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        let line = error.line();
        let pause = match for_good {
            true => PAUSE_MAX,
            false => PAUSE_FIRST.saturating_mul(1 << (state.failures - 1).min(16)).min(PAUSE_MAX),
        };
        match state.circuit {
            Circuit::Closed if for_good || state.failures >= FAILURES_MAX => {
                (state.circuit, state.since, state.told, state.attempts) = (Circuit::Open, now, now, 0);
                let (sink, failures, waits) = (self.name.as_str(), state.failures, self.waits);
                if for_good {
                    tracing::error!(sink, "circuit open, could not {what}; {waits} until that is mended: {error}");
                } else {
                    tracing::warn!(sink, failures, "circuit open, could not {what}; {waits} until it answers: {line}");
                }
            }
            Circuit::Closed => {
                let (sink, attempt) = (self.name.as_str(), state.failures);
                tracing::warn!(sink, attempt, "could not {what}, trying again in {pause:?}: {line}");
            }
            Circuit::Open | Circuit::HalfOpen => {
                state.circuit = Circuit::Open;
                tracing::debug!(sink = self.name, "still could not {what}, trying again in {pause:?}: {line}");
                if now - state.told >= REMINDER {
                    state.told = now;
                    let (sink, since) = (self.name.as_str(), lasting(now - state.since));
                    tracing::warn!(
                        sink,
                        since,
                        "circuit still open, could not {what}; {} until it answers: {line}",
                        self.waits
                    );
                }
            }
        }
        state.error = Some(line);
        pause
    }

    /// Waits after an error that may pass. When it is told to stop, a pause ends at once, and only what is under way is tried.
    ///
    /// # Errors
    /// The error itself, if it will not pass, or if it was told to stop before.
    pub async fn pause_after(&self, error: Error, what: &str, stop: &CancellationToken) -> Result<()> {
        if !error.is_retryable() {
            return Err(error);
        }
        if stop.is_cancelled() {
            let hint = "it was told to stop, so it is not tried again; the next start finishes the batch";
            return Err(error.hint(hint));
        }
        let pause = self.failed(what, &error, false, now());
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = stop.cancelled() => {} // once more
        }
        Ok(())
    }
}

/// Asks the checkpoint, and again while its storage is away: nothing goes on without it, and Kafka holds the data. What it is
/// asked may all be repeated.
///
/// # Errors
/// The last one, if it will not pass, or it was told to stop.
pub async fn insist<T, W>(stop: &CancellationToken, what: &str, work: impl Fn() -> W) -> Result<T>
where
    W: Future<Output = Result<T>>,
{
    let breaker = Breaker::new("checkpoint", "everything waits", now());
    loop {
        breaker.attempt(now());
        match work().await {
            Ok(done) => {
                breaker.succeeded(now());
                return Ok(done);
            }
            Err(error) => breaker.pause_after(error, what, stop).await?,
        }
    }
}

/// Up to a quarter longer, so that several processes do not come back at once.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn failure() -> Error {
        Error::external("could not reach it").cause("connection refused").retryable()
    }

    fn view(breaker: &Breaker) -> (Circuit, i64, Option<String>) {
        let View { circuit, since, error, .. } = breaker.view();
        (circuit, since, error)
    }

    #[test]
    fn it_opens_after_five_failures_in_a_row_and_closes_when_the_sink_answers() {
        let breaker = Breaker::new("s", "its rows wait", 0);
        for failure_number in 1..FAILURES_MAX {
            breaker.attempt(SECOND);
            let pause = breaker.failed("write", &failure(), false, SECOND);
            assert_eq!(pause, PAUSE_FIRST * (1 << (failure_number - 1)));
            assert_eq!(view(&breaker), (Circuit::Closed, 0, None));
        }
        breaker.succeeded(2 * SECOND); // one answer, and they count anew
        for _ in 0..FAILURES_MAX {
            breaker.attempt(SECOND);
            breaker.failed("write", &failure(), false, 3 * SECOND);
        }
        let told = Some("could not reach it: connection refused".to_string());
        assert_eq!(view(&breaker), (Circuit::Open, 3 * SECOND, told.clone()));
        breaker.attempt(SECOND);
        assert_eq!(view(&breaker), (Circuit::HalfOpen, 3 * SECOND, told.clone()));
        breaker.failed("write", &failure(), false, 9 * SECOND);
        assert_eq!(view(&breaker), (Circuit::Open, 3 * SECOND, told), "open since the first time");
        breaker.attempt(SECOND);
        breaker.succeeded(12 * SECOND);
        assert_eq!(view(&breaker), (Circuit::Closed, 12 * SECOND, None));
    }

    #[test]
    fn pauses_grow_to_a_limit_however_often_it_fails() {
        let breaker = Breaker::new("s", "its rows wait", 0);
        let pauses: Vec<Duration> = (0..200).map(|_| breaker.failed("write", &failure(), false, 0)).collect();
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[199]), (PAUSE_FIRST, PAUSE_MAX));
        let jitter: Vec<Duration> = (0..100).map(|_| jittered(PAUSE_MAX)).collect();
        assert!(jitter.iter().all(|pause| (PAUSE_MAX..=PAUSE_MAX.mul_f64(1.25)).contains(pause)));
        assert!(jitter.iter().any(|pause| *pause != jitter[0]));
    }

    #[test]
    fn what_somebody_has_to_mend_opens_it_at_once() {
        let breaker = Breaker::new("s", "its rows wait", 0);
        assert_eq!(breaker.failed("open the sink", &Error::user("no such table"), true, SECOND), PAUSE_MAX);
        assert_eq!(view(&breaker), (Circuit::Open, SECOND, Some("no such table".into())));
    }

    #[tokio::test]
    async fn what_will_not_pass_and_what_fails_after_a_stop_is_not_tried_again() {
        let breaker = Breaker::new("s", "its batch waits", 0);
        let stop = CancellationToken::new();
        assert!(breaker.pause_after(Error::external("fenced"), "write", &stop).await.is_err());
        breaker.pause_after(failure(), "write", &stop).await.unwrap();
        stop.cancel();
        let error = breaker.pause_after(failure(), "write", &stop).await.unwrap_err().to_string();
        assert!(error.contains("the next start finishes the batch"), "{error}");
    }
}
