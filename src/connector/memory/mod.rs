//! A sink in memory: the plainest thing that keeps the contract of [`Sink`], for tests of what drives sinks.
//!
//! [`Memory`] stands for the system (it survives a restart of the pipeline), [`MemorySink`] for one connection to it.
//! It can be told to fail once at a point, to refuse rows, and to do both transactionally (as a database does) or not
//! (as a folder of files: a failed write leaves a part behind, which the repetition replaces).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use async_trait::async_trait;

use super::{
    Guarantee, Identity, InsertReport, InsertRows, Refusal, Sink, TableDefinition, Wave, WriteReport, WriteRequest,
};
use crate::{Error, Result};

/// Where a write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailAt {
    /// Nothing is written.
    BeforeWrite,
    /// A transaction is rolled back; without transactions the rows of the first INSERT are there.
    Midway,
    /// All is written, and the caller is not told.
    AfterWrite,
}

/// Why a row cannot be held; `None`: it can.
pub type Refuse = Arc<dyn Fn(&InsertRows, usize) -> Option<String> + Send + Sync>;

/// The system that [`MemorySink`] writes to. Cheap to clone; clones are the same system.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    not_transactional: bool,
    epoch: u64,
    /// By batch, then INSERT: table and rows.
    rows: BTreeMap<(u64, usize), (String, Vec<RecordBatch>)>,
    /// What was reported, with the hash of each INSERT.
    records: BTreeMap<(u64, Wave), (BTreeMap<usize, String>, WriteReport)>,
    fail: Option<FailAt>,
    refuse: Option<Refuse>,
    writes: usize,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Memory").field("rows", &self.state().rows.len()).finish_non_exhaustive()
    }
}

impl Memory {
    /// With transactions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Without: a write that fails midway leaves a part.
    pub fn without_transactions() -> Self {
        let memory = Self::default();
        memory.state().not_transactional = true;
        memory
    }

    pub fn sink(&self) -> MemorySink {
        MemorySink { name: "memory".into(), system: self.clone(), epoch: None, tables: vec![], dead_letters: false }
    }

    /// The next write fails there, once, with a retryable error.
    pub fn fail_once(&self, at: FailAt) {
        self.state().fail = Some(at);
    }

    /// From now on rows are refused by this rule.
    pub fn refuse(&self, rule: impl Fn(&InsertRows, usize) -> Option<String> + Send + Sync + 'static) {
        self.state().refuse = Some(Arc::new(rule));
    }

    /// All rows of a table, in the order of batches and INSERTs.
    pub fn table(&self, name: &str) -> Vec<RecordBatch> {
        let state = self.state();
        let batches = state.rows.values().filter(|(table, _)| table == name);
        batches.flat_map(|(_, rows)| rows.clone()).collect()
    }

    pub fn row_count(&self, name: &str) -> usize {
        self.table(name).iter().map(RecordBatch::num_rows).sum()
    }

    /// Batches whose first wave is whole.
    pub fn batches(&self) -> Vec<u64> {
        self.state().records.keys().filter(|(_, wave)| *wave == Wave::Rows).map(|(batch, _)| *batch).collect()
    }

    /// Calls of `write` so far, failed ones included.
    pub fn writes(&self) -> usize {
        self.state().writes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One process's connection to a [`Memory`].
#[derive(Debug)]
pub struct MemorySink {
    name: String,
    system: Memory,
    epoch: Option<u64>,
    /// None: it takes what it is given.
    tables: Vec<String>,
    /// One of them is for dead letters: then a batch without that wave is not whole.
    dead_letters: bool,
}

impl MemorySink {
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_string();
        self
    }

    /// For these tables.
    #[must_use]
    pub fn of(mut self, tables: &[Arc<TableDefinition>]) -> Self {
        self.tables = tables.iter().map(|table| table.name.clone()).collect();
        let is_for_dead_letters = |table: &Arc<TableDefinition>| table.is_dead_letters();
        self.dead_letters = tables.iter().any(is_for_dead_letters);
        self
    }

    /// The epoch of this connection, if no newer one has fenced it.
    fn check(&self, state: &State) -> Result<u64> {
        match self.epoch {
            None => Err(Error::internal(format!("sink {} was not opened", self.name))),
            Some(epoch) if epoch < state.epoch => Err(Error::external(format!("fenced by epoch {}", state.epoch))),
            Some(epoch) => Ok(epoch),
        }
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn name(&self) -> &str {
        &self.name
    }

    fn tables(&self) -> Vec<String> {
        self.tables.clone()
    }

    fn records_every_batch(&self) -> bool {
        true
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee { level: "exactly-once", how: "rows and batch record change together, in memory".into() }
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        let mut state = self.system.state();
        if identity.epoch < state.epoch {
            return Err(Error::external(format!("fenced by epoch {}", state.epoch)));
        }
        state.epoch = identity.epoch;
        self.epoch = Some(identity.epoch);
        let is_there = |batch: u64, wave| state.records.contains_key(&(batch, wave));
        let is_whole =
            |batch: &u64| is_there(*batch, Wave::Rows) && (!self.dead_letters || is_there(*batch, Wave::DeadLetters));
        Ok(state.records.keys().map(|(batch, _)| *batch).filter(is_whole).max())
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        let state = self.system.state();
        self.check(&state)?;
        let recorded = state.records.keys().any(|(number, _)| *number == batch);
        Ok(recorded || state.rows.keys().any(|(number, _)| *number == batch))
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        let mut state = self.system.state();
        self.check(&state)?;
        state.writes += 1;
        let fail = state.fail.take();
        let failed = || Error::external(format!("sink {} fails, as it was told to", self.name)).retryable();
        if fail == Some(FailAt::BeforeWrite) {
            return Err(failed());
        }
        let hashes: BTreeMap<usize, String> = request.inserts.iter().map(|i| (i.insert, i.hash.clone())).collect();
        let key = (request.batch, request.wave);
        if let Some((before, report)) = state.records.get(&key) {
            if *before != hashes {
                return Err(Error::internal(format!("batch {} came again with other rows", request.batch)));
            }
            let report = WriteReport { already: true, ..report.clone() };
            return if fail.is_some() { Err(failed()) } else { Ok(report) };
        }
        let mut report = WriteReport::default();
        let mut kept = vec![];
        for insert in &request.inserts {
            let refusals = refusals(state.refuse.as_ref(), insert);
            let rows = without(insert, &refusals)?;
            let refused = refusals.len() as u64;
            let written = insert.row_count() as u64 - refused;
            report.inserts.insert(insert.insert, InsertReport { written, conflict: 0, refused });
            report.refusals.extend(refusals);
            kept.push((insert, rows));
        }
        if fail == Some(FailAt::Midway) {
            if state.not_transactional
                && let Some((insert, rows)) = kept.into_iter().next()
            {
                state.rows.insert((request.batch, insert.insert), (insert.table.name.clone(), rows));
            }
            return Err(failed());
        }
        for (insert, rows) in kept {
            state.rows.insert((request.batch, insert.insert), (insert.table.name.clone(), rows));
        }
        state.records.insert(key, (hashes, report.clone()));
        if fail == Some(FailAt::AfterWrite) { Err(failed()) } else { Ok(report) }
    }
}

fn refusals(rule: Option<&Refuse>, insert: &InsertRows) -> Vec<Refusal> {
    let Some(rule) = rule else { return vec![] };
    let refused = (0..insert.row_count())
        .filter_map(|row| rule(insert, row).map(|error| Refusal { insert: insert.insert, row, error }));
    refused.collect()
}

fn without(insert: &InsertRows, refusals: &[Refusal]) -> Result<Vec<RecordBatch>> {
    let mut kept = vec![];
    let mut first = 0;
    for rows in &insert.rows {
        let keep = (first..first + rows.num_rows()).map(|row| !refusals.iter().any(|r| r.row == row));
        let keep: Vec<bool> = keep.collect();
        kept.push(arrow::compute::filter_record_batch(rows, &keep.into())?);
        first += rows.num_rows();
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
