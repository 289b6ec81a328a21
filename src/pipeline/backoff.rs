//! Trying again what may pass by itself, with growing pauses and an end.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// A sink that fails so often in a row, or for an hour, stops the pipeline: nothing is lost, Kafka holds the data, a
/// restart goes on with this batch.
const ATTEMPTS_MAX: u32 = 240;
const WRITE_LIMIT: Duration = Duration::from_secs(3_600);
/// At the start, whoever started it is watching: half a minute, then an error, whether the attempts are many short ones
/// or a long one.
const OPEN_ATTEMPTS_MAX: u32 = 8;
const OPEN_LIMIT: Duration = Duration::from_secs(30);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Does what a start needs of another system (`name`), again and again while it may pass.
///
/// # Errors
/// The last one, if it will not pass, has come too often, or half a minute is over.
pub async fn retry_at_start<T>(name: &str, what: &str, mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut backoff = Backoff::new(OPEN_ATTEMPTS_MAX, OPEN_LIMIT);
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) => backoff.after(error, name, what).await?,
        }
    }
}

/// Asks the checkpoint, and again while its storage is away: nothing goes on without it, and Kafka holds the data. What it is
/// asked may all be repeated.
///
/// # Errors
/// The last one, if it will not pass, has come too often, or it was told to stop.
pub async fn insist<T, W>(stop: &CancellationToken, what: &str, work: impl Fn() -> W) -> Result<T>
where
    W: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::while_running();
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) => backoff.after_unless_stopped(stop, error, "checkpoint", what).await?,
        }
    }
}

/// Growing pauses between attempts, up to a limit.
pub struct Backoff {
    attempt: u32,
    attempts_max: u32,
    /// No attempt begins after this.
    deadline: Instant,
    pause: Duration,
}

impl Backoff {
    fn new(attempts_max: u32, limit: Duration) -> Self {
        Self { attempt: 1, attempts_max, deadline: Instant::now() + limit, pause: BACKOFF_FIRST }
    }

    /// For what is written while the pipeline runs.
    pub fn while_running() -> Self {
        Self::new(ATTEMPTS_MAX, WRITE_LIMIT)
    }

    /// Waits after an error that may pass.
    ///
    /// # Errors
    /// The error itself, if it will not pass or has come too often.
    pub async fn after(&mut self, error: Error, name: &str, what: &str) -> Result<()> {
        let is_late = Instant::now() >= self.deadline;
        if !error.is_retryable() || self.attempt >= self.attempts_max || is_late {
            return Err(error);
        }
        let (pause, line) = (self.pause, error.line());
        tracing::warn!(system = name, attempt = self.attempt, "could not {what}, trying again in {pause:?}: {line}");
        tokio::time::sleep(jittered(pause, self.attempt)).await;
        self.attempt += 1;
        self.pause = (pause * 2).min(BACKOFF_MAX);
        Ok(())
    }

    /// As [`Backoff::after`]. When it is told to stop, a pause ends at once, and only what is under way is tried.
    ///
    /// # Errors
    /// Also if it was told to stop before.
    pub async fn after_unless_stopped(
        &mut self,
        stop: &CancellationToken,
        error: Error,
        name: &str,
        what: &str,
    ) -> Result<()> {
        if stop.is_cancelled() {
            let hint = "it was told to stop, so it is not tried again; the next start finishes the batch";
            return Err(error.hint(hint));
        }
        tokio::select! {
            waited = self.after(error, name, what) => waited,
            () = stop.cancelled() => Ok(()), // once more
        }
    }
}

/// Up to a quarter longer, so that several processes do not come back at once.
fn jittered(pause: Duration, number: u32) -> Duration {
    let spread = u64::from(std::process::id()).wrapping_mul(2_654_435_761).wrapping_add(u64::from(number) * 97) % 256;
    pause + pause.mul_f64(spread as f64 / 1_024.0)
}
