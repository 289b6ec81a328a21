//! Between threads that may block and those of a runtime, both ways.
//!
//! [`wait`] is for small requests to the outside from threads that may block, where no runtime is at hand: a runtime of our own
//! drives them. Kafka's reader, its decoding threads and its sink are such threads. What they ask is rare (a schema, once an id), so two
//! threads for the whole process are enough, for what goes on beside the batches ([`spawn`]) too.
//!
//! That runtime lives as long as the process. Clients of storage are shared, and a connection ends with the runtime that opened it:
//! of a runtime that ends earlier somebody else would notice.

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

/// Begins what goes on beside the batches. What is long or blocks in it belongs into [`blocking`].
///
/// # Errors
/// The threads could not be started.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    drop(runtime()?.spawn(work));
    Ok(())
}

/// Waits for the answer. The future has a time limit of its own.
///
/// # Errors
/// The future's; the threads could not be started.
pub fn wait<T: Send + 'static>(future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (answer, answered) = sync_channel(1);
    spawn(async move {
        // Nobody waits any more: the answer is of no use.
        drop(answer.send(future.await));
    })?;
    answered.recv().map_err(|_| Error::internal("a request in the background ended without an answer"))?
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("background").enable_all();
        builder.build().map_err(|error| error.to_string())
    };
    let runtime = RUNTIME.get_or_init(start).as_ref();
    runtime.map_err(|cause| Error::external("could not start the background threads").cause(cause))
}
