//! What every end-to-end test stands on: servers of the environment, a [`World`] per test, the [`Program`] that runs in it.

mod answering;
pub mod delta;
mod elasticsearch;
mod feeder;
mod program;
mod proxy;
mod s3;
mod world;

use std::time::{Duration, Instant};

pub use answering::Answering;
pub use elasticsearch::Elasticsearch;
pub use feeder::Feeder;
pub use program::Program;
pub use proxy::{Proxy, Way};
pub use s3::S3;
pub use world::{PARTITIONS, World, create_topics, psql};

/// Asks again and again until there is an answer; panics after `limit`, saying what it waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A number of the environment, such as `POUNDLOCK_KILLS`.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
        _ => default,
    }
}
