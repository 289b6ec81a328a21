//! Tells every second how the sinks answer: to the status line, and to a file of the checkpoint that `poundlock status` reads.
//!
//! The file is written when a circuit has opened or closed, and every few seconds besides, so that who reads it knows that the
//! process lives. It is a courtesy: if it cannot be written, the pipeline goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::outbox::Outboxes;
use super::start::now;
use super::turn::{Observer, Progress};
use super::write::Watched;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::status::{Circuit, SinkStatus, Status};

const EVERY: Duration = Duration::from_secs(1);
/// Without a change.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Runs beside the loop.
pub struct Keeper {
    task: JoinHandle<()>,
    end: CancellationToken,
}

impl Keeper {
    pub fn start(checkpoint: &Checkpoint, sinks: Vec<Watched>, outboxes: Outboxes, observer: &Observer) -> Self {
        let (end, started_at) = (CancellationToken::new(), now());
        let (checkpoint, observer, ended) = (checkpoint.clone(), Arc::clone(observer), end.clone());
        let task = tokio::spawn(async move {
            let (mut told, mut written, mut fails) = (vec![], None::<Instant>, false);
            loop {
                let all: Vec<SinkStatus> = sinks.iter().map(|sink| status(sink, &outboxes)).collect();
                observer(Progress::Sinks(&all));
                let circuits: Vec<Circuit> = all.iter().map(|sink| steady(sink.circuit)).collect();
                let is_end = ended.is_cancelled();
                if is_end || circuits != told || written.is_none_or(|at| at.elapsed() >= SIGN_OF_LIFE) {
                    let status = Status {
                        process: Checkpoint::process(),
                        epoch: checkpoint.identity().epoch,
                        started_at,
                        written_at: now(),
                        ended: is_end,
                        sinks: all,
                    };
                    let put = checkpoint.put_status(&status).await;
                    if let Some(error) = put.as_ref().err().filter(|_| !fails) {
                        tracing::warn!("the status could not be kept: {}", error.line());
                    }
                    fails = put.is_err();
                    (told, written) = (circuits, Some(Instant::now()));
                }
                if is_end {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    () = ended.cancelled() => {}
                }
            }
        });
        Self { task, end }
    }

    /// Tells how it has ended.
    pub async fn end(mut self) {
        self.end.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::debug!("the status was not kept: {error}");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An attempt now and then is no news.
fn steady(circuit: Circuit) -> Circuit {
    if circuit == Circuit::HalfOpen { Circuit::Open } else { circuit }
}

fn status(sink: &Watched, outboxes: &Outboxes) -> SinkStatus {
    let view = sink.breaker.view();
    SinkStatus {
        name: sink.name.clone(),
        delivery: sink.delivery,
        circuit: view.circuit,
        since: view.since,
        error: view.error,
        outbox: outboxes.iter().find(|outbox| outbox.name() == sink.name).map(|outbox| outbox.status()),
    }
}
