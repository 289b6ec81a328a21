//! A read replica: asked before the primary, and left out for a while when it does not answer.
//!
//! What it cannot give before the first row is read from the primary: a replica that is away, refuses us, or has not
//! replayed a migration yet is a warning, not an error. The primary's answer is the one that counts. One that fails after its first
//! row is an error that may pass: what was given cannot be taken back, and the next attempt reads the primary.
//!
//! What is known of replicas is known in the whole process, so that each is told of once, however often tables are read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

/// One that failed is asked again after this: to find out that it does not answer may take as long as a connection may.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// By address as it is printed: when those that failed were last asked.
static FAILED: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

/// Whether it is worth to ask it now.
pub(super) fn may_answer(address: &str) -> bool {
    failed_ones().get(address).is_none_or(|asked| asked.elapsed() >= ASK_AGAIN)
}

/// It has given what was asked for.
pub(super) fn has_answered(address: &str) {
    if failed_ones().remove(address).is_some() {
        tracing::info!(replica = address, "the replica answers again");
    }
}

/// It has not.
pub(super) fn has_failed(address: &str, table: &str, error: &Error) {
    if failed_ones().insert(address.to_string(), Instant::now()).is_none() {
        let reason = error.line();
        tracing::warn!(replica = address, table, "the replica cannot be read, the primary is read instead: {reason}");
    }
}

fn failed_ones() -> MutexGuard<'static, BTreeMap<String, Instant>> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_failed_is_left_out_until_it_is_asked_again() {
        let address = "postgres://of-this-test";
        assert!(may_answer(address));
        has_failed(address, "t", &Error::external("away"));
        assert!(!may_answer(address));
        has_answered(address);
        assert!(may_answer(address));
    }
}
