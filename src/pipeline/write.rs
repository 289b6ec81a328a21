//! The rows of one batch into every sink: all side by side, then the dead letters, until all of them have it.
//!
//! Asked again with the same batch, a sink leaves the same result; so a retry after any error is safe. What a sink
//! refused is stored before the dead letters are written, and the first answer counts: the dead letters of a replay are
//! the same. A sink with an outbox gets its rows later: here they are only handed over (see [`super::outbox`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;

use super::backoff::retry_at_start;
use super::breaker::{Breaker, insist};
use super::dead_letters::{self, DeadLetter};
use super::outbox::Outboxes;
use super::outbox::adopt::Target;
use super::records::Archive;
use super::rows::Digests;
use super::start::now;
use crate::checkpoint::{BatchPlan, Checkpoint};
use crate::connector::{
    Delivery, Identity, InsertReport, InsertRows, Ranges, Refusal, Sink, TableDefinition, Wave, WriteReport,
    WriteRequest,
};
use crate::point::point;
use crate::{Error, Result};

/// How long records of refused rows are read again after it was told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// All sinks of a program.
pub struct Sinks {
    sinks: Vec<OpenSink>,
    dead_letters: Option<Arc<TableDefinition>>,
    archive: Archive,
    /// INSERTs in the files: the engine's own rows of dead letters are numbered after them.
    inserts: usize,
    /// All that are written, by name.
    written: BTreeMap<String, Arc<TableDefinition>>,
    outboxes: Outboxes,
    /// When it is cancelled, nothing is tried again: the next start finishes the batch.
    stop: CancellationToken,
}

struct OpenSink {
    sink: Box<dyn Sink>,
    tables: BTreeSet<String>,
    newest: Option<u64>,
    /// Of handing over, where it has an outbox, so of the checkpoint: what is delivered has one of its own.
    breaker: Arc<Breaker>,
    /// What is done with a batch's rows, for the log.
    doing: String,
}

/// What [`Sinks::open`] is given.
pub struct Targets {
    /// Those with an outbox stand there as what hands over.
    pub sinks: Vec<Box<dyn Sink>>,
    pub outboxes: Outboxes,
    pub written: Vec<Arc<TableDefinition>>,
    pub dead_letters: Option<Arc<TableDefinition>>,
    /// INSERTs in the files.
    pub inserts: usize,
    pub archive: Archive,
}

/// A sink that may fail, for those who look.
pub struct Watched {
    pub name: String,
    pub delivery: Delivery,
    pub breaker: Arc<Breaker>,
}

impl OpenSink {
    fn takes(&self, rows: &InsertRows) -> bool {
        self.tables.is_empty() || self.tables.contains(&rows.table.name)
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Written {
    pub reports: BTreeMap<usize, InsertReport>,
    /// By table.
    pub files: BTreeMap<String, Vec<String>>,
    /// Rows of dead letters that the engine added.
    pub engine_rows: Option<InsertRows>,
    /// INSERTs whose rows are in an outbox.
    pub handed_over: BTreeSet<usize>,
}

/// A batch that has run.
#[derive(Debug)]
pub struct ToWrite {
    pub number: u64,
    pub planned_at: i64,
    pub offsets: BTreeMap<String, Ranges>,
    pub inserts: Vec<InsertRows>,
    pub refused_by_query: Vec<DeadLetter>,
    /// Of earlier batches.
    pub refused_by_outbox: Vec<RefusedBefore>,
}

/// What a sink with an outbox has refused of one batch.
#[derive(Debug)]
pub struct RefusedBefore {
    pub letters: Vec<DeadLetter>,
    /// Of that batch: there are the records.
    pub offsets: BTreeMap<String, Ranges>,
}

impl Sinks {
    /// Connects to all of them, side by side.
    pub async fn open(targets: Targets, identity: &Identity) -> Result<Self> {
        let Targets { sinks, outboxes, written, dead_letters, inserts, archive } = targets;
        let has_outbox = |name: &str| outboxes.iter().any(|outbox| outbox.name() == name);
        let has_outbox = &has_outbox;
        let open = |mut sink: Box<dyn Sink>| async move {
            let name = sink.name().to_string();
            let newest = retry_at_start(&name, "open the sink", async || sink.open(identity).await).await?;
            // Where rows are handed over, it is the checkpoint that takes them or does not.
            let (of, waits, doing) = match has_outbox(&name) {
                true => (
                    "checkpoint",
                    "their batch waits, and with it all that follow",
                    format!("put the rows for sink {name} into its outbox"),
                ),
                false => (name.as_str(), "its batch waits, and with it all that follow", "write".to_string()),
            };
            let breaker = Arc::new(Breaker::new(of, waits, now()));
            Ok::<_, Error>(OpenSink { tables: sink.tables().into_iter().collect(), sink, newest, breaker, doing })
        };
        let sinks = try_join_all(sinks.into_iter().map(open)).await?;
        let written = written.into_iter().map(|table| (table.name.clone(), table)).collect();
        Ok(Self { sinks, dead_letters, archive, inserts, written, outboxes, stop: CancellationToken::new() })
    }

    pub fn stop_with(&mut self, stop: CancellationToken) {
        self.outboxes.iter().for_each(|outbox| outbox.stop_with(stop.clone()));
        self.stop = stop;
    }

    pub fn outboxes(&self) -> &Outboxes {
        &self.outboxes
    }

    /// The tables that are written, by name.
    pub(super) fn tables(&self) -> &BTreeMap<String, Arc<TableDefinition>> {
        &self.written
    }

    /// Where rows that wait in an outbox can go.
    pub(super) fn targets(&self) -> Vec<Target> {
        let tables = |open: &OpenSink| {
            let own = self.written.iter().filter(|(name, _)| open.tables.contains(*name));
            own.map(|(name, table)| (name.clone(), Arc::clone(table))).collect()
        };
        self.sinks.iter().map(|open| Target { name: open.sink.name().to_string(), tables: tables(open) }).collect()
    }

    /// # Errors
    /// There is none of this name.
    pub(super) fn sink(&mut self, name: &str) -> Result<&mut dyn Sink> {
        let open = self.sinks.iter_mut().find(|open| open.sink.name() == name);
        let open = open.ok_or_else(|| Error::internal(format!("there is no sink {name}")))?;
        Ok(open.sink.as_mut())
    }

    /// All sinks, with the circuits that decide whether rows arrive in them.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let of = |open: &OpenSink| {
            let name = open.sink.name().to_string();
            match self.outboxes.iter().find(|outbox| outbox.name() == name) {
                Some(outbox) => Watched { name, delivery: Delivery::Outbox, breaker: Arc::clone(outbox.breaker()) },
                None => Watched { name, delivery: Delivery::Required, breaker: Arc::clone(&open.breaker) },
            }
        };
        self.sinks.iter().map(of).collect()
    }

    /// Name and newest batch of each (see [`Sink::open`]), whether it records every batch, and its tables.
    pub fn newest(&self) -> impl Iterator<Item = (&str, Option<u64>, bool, &BTreeSet<String>)> {
        self.sinks.iter().map(|s| (s.sink.name(), s.newest, s.sink.records_every_batch(), &s.tables))
    }

    /// The sinks that hold any part of a batch.
    pub async fn holding(&mut self, batch: u64) -> Result<Vec<String>> {
        let mut holding = Vec::new();
        for open in &mut self.sinks {
            let name = open.sink.name().to_string();
            if retry_at_start(&name, "ask the sink what it holds", async || open.sink.holds(batch).await).await? {
                holding.push(name);
            }
        }
        Ok(holding)
    }

    /// Returns when every sink has the batch.
    ///
    /// # Errors
    /// A sink failed for good, or too often; a row was refused and there is no table for dead letters.
    pub async fn write(&mut self, batch: &ToWrite, checkpoint: &Checkpoint) -> Result<Written> {
        let mut written = Written::default();
        let is_dead = |rows: &InsertRows| self.dead_letters.as_ref().is_some_and(|t| t.name == rows.table.name);
        let (dead, rows): (Vec<_>, Vec<_>) = batch.inserts.iter().cloned().partition(is_dead);
        // Before anything is written: a batch that no sink holds can be planned anew under other SQL.
        self.place_for(batch, &batch.refused_by_query)?;
        batch.refused_by_outbox.iter().try_for_each(|before| self.place_for(batch, &before.letters))?;
        let refusals = self.wave(batch, Wave::Rows, &rows, checkpoint, &mut written).await?;
        let mut letters: Vec<DeadLetter> = Vec::new();
        for refusal in &refusals {
            let insert = batch.inserts.iter().find(|rows| rows.insert == refusal.insert);
            let insert = insert.ok_or_else(|| Error::internal("a sink refused a row of an INSERT it did not get"))?;
            letters.push(DeadLetter::of_sink(refusal, insert)?);
        }
        self.find_records(&batch.offsets, &mut letters).await?;
        for before in &batch.refused_by_outbox {
            let mut of_before = before.letters.clone();
            self.find_records(&before.offsets, &mut of_before).await?;
            letters.extend(of_before);
        }
        let dead = self.with_engine_rows(batch, dead, &letters, &mut written)?;
        point!("write::before_dead_letters");
        let refused = self.wave(batch, Wave::DeadLetters, &dead, checkpoint, &mut written).await?;
        if let Some(refusal) = refused.first() {
            let error = Error::user("a dead letter was refused by its own sink").cause(&refusal.error);
            return Err(error
                .at(format!("batch {}", batch.number))
                .hint("a Kafka topic takes messages up to its max.message.bytes; a database column up to its type"));
        }
        point!("write::after_dead_letters");
        Ok(written)
    }

    /// # Errors
    /// A source cannot be read, or it was told to stop before.
    async fn find_records(&self, of: &BTreeMap<String, Ranges>, letters: &mut [DeadLetter]) -> Result<()> {
        if letters.iter().all(|letter| letter.wants_record().is_none()) {
            return Ok(());
        }
        // The batch in hand is finished; but who stops it does not wait for brokers that are away.
        let patience = async {
            self.stop.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        tokio::pin!(patience);
        let breaker = Breaker::new("dead letters", "their batch waits", now());
        loop {
            breaker.attempt(now());
            let error = tokio::select! {
                filled = self.archive.fill(letters, of) => match filled {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                () = &mut patience => Error::external("the records of refused rows could not be read again in time"),
            };
            breaker.pause_after(error, "read refused records again", &self.stop).await?;
        }
    }

    /// # Errors
    /// There are rows that were refused, and no table for them.
    fn place_for(&self, batch: &ToWrite, refused: &[DeadLetter]) -> Result<()> {
        let (None, Some(letter)) = (&self.dead_letters, refused.first()) else { return Ok(()) };
        let error = Error::user("a row was refused, and there is no table for dead letters");
        let error = error.at(format!("batch {}, {}", batch.number, letter.place())).cause(letter.reason());
        let hint = "declare one with OPTIONS ('role' 'dead_letters'): a table that no INSERT writes to";
        Err(error.hint(hint))
    }

    fn with_engine_rows(
        &self,
        batch: &ToWrite,
        mut dead: Vec<InsertRows>,
        of_sinks: &[DeadLetter],
        written: &mut Written,
    ) -> Result<Vec<InsertRows>> {
        self.place_for(batch, of_sinks)?;
        let Some(table) = &self.dead_letters else { return Ok(dead) };
        let mut rows = dead_letters::rows(&batch.refused_by_query, batch.number, table)?;
        rows.extend(dead_letters::rows(of_sinks, batch.number, table)?);
        if !rows.is_empty() {
            let hash = Digests::default().hash(&rows)?;
            let own = InsertRows { insert: self.inserts, table: Arc::clone(table), rows, hash };
            written.engine_rows = Some(own.clone());
            dead.push(own);
        }
        Ok(dead)
    }

    async fn wave(
        &mut self,
        batch: &ToWrite,
        wave: Wave,
        inserts: &[InsertRows],
        checkpoint: &Checkpoint,
        written: &mut Written,
    ) -> Result<Vec<Refusal>> {
        let mut writes = Vec::new();
        if let Some(lost) = inserts.iter().find(|rows| !self.sinks.iter().any(|open| open.takes(rows))) {
            return Err(Error::internal(format!("table {} has no sink", lost.table.name)));
        }
        for open in &mut self.sinks {
            let inserts: Vec<InsertRows> = inserts.iter().filter(|rows| open.takes(rows)).cloned().collect();
            // A batch is whole in a database only when each of its waves has left a record, rows or not.
            let dead_here = self.dead_letters.as_ref().is_some_and(|table| open.tables.contains(&table.name));
            let expected = open.sink.records_every_batch() && (wave == Wave::Rows || dead_here);
            if inserts.is_empty() && !expected {
                continue;
            }
            let (planned_at, offsets) = (batch.planned_at, batch.offsets.clone());
            let request = WriteRequest { batch: batch.number, wave, planned_at, offsets, inserts };
            writes.push(write_one(open, request, checkpoint, &self.stop));
        }
        let mut refusals = Vec::new();
        for (report, request) in try_join_all(writes).await? {
            if report.handed_over {
                written.handed_over.extend(request.inserts.iter().map(|rows| rows.insert));
            }
            for rows in request.inserts.iter().filter(|_| !report.handed_over) {
                let of_insert = report.inserts.get(&rows.insert).copied().unwrap_or_default();
                written.reports.insert(rows.insert, of_insert);
                let produced = rows.row_count() as u64;
                if of_insert.written + of_insert.conflict + of_insert.refused != produced && !report.already {
                    let error = format!("sink accounts for {of_insert:?} of {produced} rows of {}", rows.table.name);
                    return Err(Error::internal(error));
                }
            }
            for (table, files) in report.files {
                written.files.entry(table).or_default().extend(files);
            }
            refusals.extend(report.refusals);
        }
        refusals.sort_by_key(|refusal| (refusal.insert, refusal.row));
        Ok(refusals)
    }
}

async fn write_one(
    open: &mut OpenSink,
    request: WriteRequest,
    checkpoint: &Checkpoint,
    stop: &CancellationToken,
) -> Result<(WriteReport, WriteRequest)> {
    let breaker = &open.breaker;
    let mut report = loop {
        breaker.attempt(now());
        match open.sink.write(&request).await {
            Ok(report) => break report,
            Err(error) => breaker.pause_after(error, &open.doing, stop).await?,
        }
    };
    breaker.succeeded(now());
    if !open.sink.records_every_batch() && request.wave == Wave::Rows {
        let name = open.sink.name();
        let of = BatchPlan { batch: request.batch, planned_at: request.planned_at };
        let stored = match report.already {
            true => insist(stop, "read what was refused", || checkpoint.get_refused(of, name)).await?,
            false => None,
        };
        match stored {
            Some(stored) => report.refusals = stored,
            // Stopped before they were stored: then the sink's own, made again from the same rows, are as good.
            None if report.refusals.is_empty() => {}
            None => {
                let put = || checkpoint.put_refused(of, name, &report.refusals);
                report.refusals = insist(stop, "keep what was refused", put).await?;
            }
        }
    }
    Ok((report, request))
}
