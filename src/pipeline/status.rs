//! Tells every second how the sinks answer: to the status line, and to a file of the checkpoint that `poundlock status` reads.
//!
//! The file is written when a circuit has opened or closed, when an attempt (half-open) takes longer than a moment, and every few
//! seconds besides, so that who reads it knows that the process lives. It is a courtesy: if it cannot be written, the pipeline
//! goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::breaker::View;
use super::outbox::Outboxes;
use super::start::now;
use super::turn::{Observer, Progress};
use super::write::Watched;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::status::{Circuit, SinkStatus, Status};

const EVERY: Duration = Duration::from_secs(1);
/// Without a change.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// An attempt that takes so long is told of; µs.
const LONG_ATTEMPT: i64 = 1_000_000;

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
                let circuits: Vec<Circuit> = sinks.iter().map(|sink| steady(&sink.breaker.view(), now())).collect();
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

/// An attempt now and then is no news, but one that takes long is.
fn steady(view: &View, now: i64) -> Circuit {
    match view.circuit {
        Circuit::HalfOpen if now - view.attempted < LONG_ATTEMPT => Circuit::Open,
        circuit => circuit,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_told_of_when_it_takes_long() {
        let view = |circuit| View { circuit, since: 0, error: None, attempted: 5 * LONG_ATTEMPT };
        let (soon, later) = (5 * LONG_ATTEMPT + LONG_ATTEMPT - 1, 6 * LONG_ATTEMPT);
        assert_eq!(steady(&view(Circuit::HalfOpen), soon), Circuit::Open);
        assert_eq!(steady(&view(Circuit::HalfOpen), later), Circuit::HalfOpen);
        for circuit in [Circuit::Open, Circuit::Closed] {
            assert_eq!(steady(&view(circuit), later), circuit);
        }
    }
}
