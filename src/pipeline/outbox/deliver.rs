//! The delivering side of an outbox: one batch after the other into its sink, until each is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::entry::{self, Entry};
use super::{Outbox, State, lock, on_disk};
use crate::checkpoint::{Checkpoint, Waiting};
use crate::connector::background::blocking;
use crate::connector::{Identity, Sink, TableDefinition, WriteReport, WriteRequest};
use crate::pipeline::breaker::jittered;
use crate::pipeline::start::now;
use crate::point::point;
use crate::{Error, Fault, Result};

/// Makes systems ready for these tables, before anything is written to them: migrations. May be tried again.
pub type Prepare = Arc<dyn Fn(Vec<Arc<TableDefinition>>) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// What a delivery needs of the start.
pub struct Opening {
    pub identity: Identity,
    pub prepare: Prepare,
    /// The sink keeps a record of each batch, and must have this one at least: it was there when last seen.
    pub at_least: Option<u64>,
}

/// Between two attempts to read from, or to write to, the checkpoint.
const STORAGE_PAUSE: Duration = Duration::from_secs(1);

/// Ends with its task, however that ends.
struct Ended(Outbox);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.change(|state| state.ended = true);
    }
}

impl Outbox {
    /// What a start has found for it.
    pub(in crate::pipeline) fn begin_with(&self, mut waiting: Vec<Waiting>) {
        waiting.sort_by_key(|waiting| waiting.of.batch);
        self.change(|state| {
            state.bytes += waiting.iter().map(on_disk).sum::<u64>();
            state.waiting.extend(waiting);
        });
    }

    /// Delivers until the task is dropped. Before it has begun, handing over waits for nothing.
    pub async fn deliver(self, mut sink: Box<dyn Sink>, opening: Opening) {
        let ended = Ended(self.clone());
        self.change(|state| {
            state.is_delivered = true;
            // What is told of it goes on from there.
            state.delivered = state.delivered.max(opening.at_least);
        });
        if let Err(error) = self.run(sink.as_mut(), &opening).await {
            self.change(|state| state.failed = Some(error));
        }
        drop(ended);
    }

    async fn run(&self, sink: &mut dyn Sink, opening: &Opening) -> Result<()> {
        self.open(sink, opening).await?;
        let mut changed = self.0.changed.subscribe();
        loop {
            match self.next() {
                Some(waiting) => drop(self.deliver_one(sink, &waiting).await?),
                None => drop(changed.changed().await),
            }
        }
    }

    /// # Errors
    /// What stops a pipeline.
    pub async fn open(&self, sink: &mut dyn Sink, opening: &Opening) -> Result<()> {
        let newest = loop {
            let opened = self.try_open(sink, opening).await;
            if let Some(newest) = self.unless_passing("open the sink", opened).await? {
                break newest;
            }
        };
        let last = self.0.checkpoint.last_committed().await?;
        let name = &self.0.name;
        // It has what is committed, and of what is not it may share a record with others that have.
        if newest > last.map_or(Some(0), |last| Some(last + 1)) {
            let has = last.map_or("nothing".into(), |last| format!("only batch {last}"));
            let error =
                format!("sink {name} has batch {}, the checkpoint has committed {has}", newest.unwrap_or_default());
            let hint = "the checkpoint was set back or lost: restore it. To begin anew, give the pipeline a new poundlock.name, and tables of \
                        its own: all is read again";
            return Err(Error::external(error).hint(hint));
        }
        if let Some(wanted) = opening.at_least.filter(|wanted| sink.records_every_batch() && newest < Some(*wanted)) {
            let has = newest.map_or("no batch".into(), |newest| format!("only batch {newest}"));
            let error = format!("sink {name} has {has}, batch {wanted} was delivered to it");
            let hint = "rows of committed batches are missing there; restore the database, or take another checkpoint";
            return Err(Error::external(error).hint(hint));
        }
        Ok(())
    }

    /// The oldest that waits, until it is in the sink; what became of it.
    ///
    /// # Errors
    /// What stops a pipeline.
    pub async fn deliver_one(&self, sink: &mut dyn Sink, waiting: &Waiting) -> Result<WriteReport> {
        let checkpoint = &self.0.checkpoint;
        let request = loop {
            match read(checkpoint, waiting, &self.0.tables).await {
                Err(error) if error.is_retryable() => self.pause(STORAGE_PAUSE, &error).await,
                request => break request?,
            }
        };
        let (report, refused) = loop {
            let done = self.try_put(sink, waiting, &request).await;
            if let Some(done) = self.unless_passing("deliver", done).await? {
                break done;
            }
        };
        if let Some(name) = refused {
            tracing::warn!(
                sink = self.0.name,
                batch = waiting.of.batch,
                rows = report.refusals.len(),
                "the sink refused rows of the outbox: the next batch has their dead letters"
            );
            lock(&self.0.refused).insert(name);
        }
        self.change(|state| state.is_done(waiting));
        Ok(report)
    }

    async fn pause(&self, pause: Duration, error: &Error) {
        tracing::warn!(sink = self.0.name, "the outbox waits for the checkpoint: {}", error.line());
        tokio::time::sleep(jittered(pause)).await;
    }

    async fn try_open(&self, sink: &mut dyn Sink, opening: &Opening) -> Result<Option<u64>> {
        self.0.checkpoint.ensure_newest().await?;
        self.0.breaker.attempt(now());
        (opening.prepare)(self.0.tables.values().cloned().collect()).await?;
        sink.open(&opening.identity).await
    }

    async fn try_put(
        &self,
        sink: &mut dyn Sink,
        waiting: &Waiting,
        request: &WriteRequest,
    ) -> Result<(WriteReport, Option<String>)> {
        self.0.checkpoint.ensure_newest().await?;
        self.0.breaker.attempt(now());
        put(&self.0.checkpoint, sink, waiting, request).await
    }

    /// What an attempt has given; `None`, after a pause: it is to be made again.
    ///
    /// # Errors
    /// Being fenced; a defect. Not what passes, nor what somebody can mend in the sink.
    async fn unless_passing<T>(&self, what: &str, done: Result<T>) -> Result<Option<T>> {
        let breaker = &self.0.breaker;
        let error = match done {
            Ok(done) => {
                breaker.succeeded(now());
                return Ok(Some(done));
            }
            Err(error) => error,
        };
        if !error.is_retryable() {
            // Whatever a system says, somebody can mend it there. But a newer start delivers in our place.
            match self.0.checkpoint.ensure_newest().await {
                _ if error.fault() == Fault::Internal => return Err(error),
                Err(fenced) if !fenced.is_retryable() => return Err(fenced),
                _ => {}
            }
        }
        let pause = breaker.failed(what, &error, !error.is_retryable(), now());
        // Who looks at the state sees why.
        self.0.changed.send_replace(());
        tokio::select! {
            () = tokio::time::sleep(jittered(pause)) => {}
            () = self.0.nudge.notified() => {}
        }
        Ok(None)
    }
}

impl State {
    fn is_done(&mut self, waiting: &Waiting) {
        if self.waiting.front() == Some(waiting) {
            self.waiting.pop_front();
            self.bytes -= on_disk(waiting);
        }
        self.delivered = Some(waiting.of.batch);
        self.deliveries += 1;
    }
}

/// What waits, as it is to be written.
///
/// # Errors
/// It cannot be read; it is of other tables.
pub(in crate::pipeline) async fn read(
    checkpoint: &Checkpoint,
    waiting: &Waiting,
    tables: &BTreeMap<String, Arc<TableDefinition>>,
) -> Result<WriteRequest> {
    let (entry, payload) = checkpoint.read_outbox::<Entry>(waiting).await?;
    let (of, tables) = (waiting.of, tables.clone());
    blocking(move || entry::decode(of, entry, &payload, &tables)).await
}

/// Writes it, keeps what was refused, and forgets it. Returns the name of the file with what was refused.
///
/// # Errors
/// Of the sink or of the storage: then all of it may be done again.
pub(in crate::pipeline) async fn put(
    checkpoint: &Checkpoint,
    sink: &mut dyn Sink,
    waiting: &Waiting,
    request: &WriteRequest,
) -> Result<(WriteReport, Option<String>)> {
    point!("outbox::before_delivery");
    let report = sink.write(request).await?;
    point!("outbox::after_delivery");
    let mut name = None;
    if !report.refusals.is_empty() {
        let (record, payload) = entry::refused(request, &report.refusals)?;
        name = Some(checkpoint.put_outbox_refused(waiting, &record, payload).await?);
    }
    checkpoint.remove_outbox(waiting).await?;
    Ok((report, name))
}
