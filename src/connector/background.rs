//! Between threads that may block and those of a runtime, both ways.
//!
//! [`wait`] is for small requests to the outside from threads that may block, where no runtime is at hand: a thread of our own
//! drives them. Kafka's reader, its decoding threads and its sink are such threads. What they ask is rare (a schema, once an id), so one
//! thread for the whole process is enough.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// Runs what blocks, or is long, on a thread that serves nobody else.
///
/// # Errors
/// The work's own; it panicked (internal).
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::internal("work on a thread of its own has failed").cause(error))?
}

/// Waits for the answer. The future has a time limit of its own.
///
/// # Errors
/// The future's; the thread could not be started.
pub fn wait<T: Send + 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("background").enable_all();
        builder.build().map_err(|error| error.to_string())
    };
    let runtime = RUNTIME.get_or_init(start).as_ref();
    let runtime = runtime.map_err(|cause| Error::external("could not start the background thread").cause(cause))?;
    let (answer, answered) = sync_channel(1);
    runtime.spawn(async move {
        // Nobody waits any more: the answer is of no use.
        drop(answer.send(future.await));
    });
    answered.recv().map_err(|_| Error::internal("a request in the background ended without an answer"))?
}
