//! Trying again what may pass by itself at a start, with growing pauses and an end. What is tried while the pipeline runs has
//! a [`super::breaker`] instead, and no end.

use std::time::{Duration, Instant};

use super::breaker::jittered;
use crate::{Error, Result};

/// Whoever started it is watching: half a minute, then an error, whether the attempts are many short ones or a long one.
const OPEN_ATTEMPTS_MAX: u32 = 8;
const OPEN_LIMIT: Duration = Duration::from_secs(30);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Does what a start needs of another system (`name`), again and again while it may pass.
///
/// # Errors
/// The last one, if it will not pass, has come too often, or half a minute is over.
pub async fn retry_at_start<T>(name: &str, what: &str, mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let mut backoff = Backoff { attempt: 1, deadline: Instant::now() + OPEN_LIMIT, pause: BACKOFF_FIRST };
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) => backoff.after(error, name, what).await?,
        }
    }
}

/// Growing pauses between attempts, up to a limit.
struct Backoff {
    attempt: u32,
    /// No attempt begins after this.
    deadline: Instant,
    pause: Duration,
}

impl Backoff {
    /// Waits after an error that may pass.
    ///
    /// # Errors
    /// The error itself, if it will not pass or has come too often.
    async fn after(&mut self, error: Error, name: &str, what: &str) -> Result<()> {
        let is_late = Instant::now() >= self.deadline;
        if !error.is_retryable() || self.attempt >= OPEN_ATTEMPTS_MAX || is_late {
            return Err(error);
        }
        let (pause, line) = (self.pause, error.line());
        tracing::warn!(system = name, attempt = self.attempt, "could not {what}, trying again in {pause:?}: {line}");
        tokio::time::sleep(jittered(pause)).await;
        self.attempt += 1;
        self.pause = (pause * 2).min(BACKOFF_MAX);
        Ok(())
    }
}
