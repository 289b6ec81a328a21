//! What the clauses are made of: subjects, batches, and a [`Rig`] that knows what a system should hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use poundlock::Result;
use poundlock::connector::{
    Identity, InsertReport, InsertRows, OffsetRange, Refusal, Sink, TableDefinition, Wave, WriteReport, WriteRequest,
};
use uuid::Uuid;

/// `(id, v, part)`.
pub type Row = (i64, Option<String>, String);

pub fn row(id: i64, v: &str) -> Row {
    (id, Some(v.to_string()), format!("part {}", id % 3))
}

/// All have the columns `id BIGINT, v VARCHAR, part VARCHAR`.
pub struct Tables {
    pub plain: Arc<TableDefinition>,
    /// Cannot hold [`Subject::impossible`].
    pub strict: Arc<TableDefinition>,
    pub letters: Arc<TableDefinition>,
    pub keyed: Option<Keyed>,
}

/// By `PRIMARY KEY (id)`.
pub struct Keyed {
    /// `'on_conflict' 'update'`, `'op_type' 'index'`
    pub updated: Arc<TableDefinition>,
    /// `'on_conflict' 'nothing'`, `'op_type' 'create'`
    pub kept: Arc<TableDefinition>,
}

impl Tables {
    pub fn all(&self) -> Vec<Arc<TableDefinition>> {
        let keyed = self.keyed.iter().flat_map(|keyed| [&keyed.updated, &keyed.kept]);
        [&self.plain, &self.strict, &self.letters].into_iter().chain(keyed).cloned().collect()
    }
}

/// What a sink's `open` returns: the contract gives it a choice, by what it records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newest {
    /// The last batch all of whose waves are in.
    Whole,
    /// The last batch of which a wave is in.
    Begun,
    /// The sink keeps none.
    Unknown,
}

/// A kind of system, for the suite to run on.
pub trait Subject: Sized {
    /// Whether the system itself keeps older starts out.
    const FENCES: bool;
    const NEWEST: Newest;

    /// A system of its own, with empty tables.
    fn fresh() -> Self;

    fn tables(&self) -> &Tables;

    /// A process's connection, not open yet.
    fn sink(&self) -> Box<dyn Sink>;

    fn rows(&self, table: &TableDefinition) -> Vec<Row>;

    /// Rows that table `strict` cannot hold, each with a part of the reason. They have negative ids.
    fn impossible(&self) -> Vec<(Row, &'static str)>;

    /// Lets something happen to the system about so long from now, where there is something that makes a write fail: a
    /// server that ends connections, say. `false`: there is not.
    fn trouble(&self, _after: Duration) -> bool {
        false
    }
}

/// What a sink gets of one batch.
#[derive(Clone)]
pub struct Batch {
    number: u64,
    wave: Wave,
    inserts: Vec<(Arc<TableDefinition>, Vec<Row>)>,
}

impl Batch {
    pub fn new(number: u64, inserts: Vec<(&Arc<TableDefinition>, Vec<Row>)>) -> Self {
        let inserts = inserts.into_iter().map(|(table, rows)| (Arc::clone(table), rows));
        Self { number, wave: Wave::Rows, inserts: inserts.collect() }
    }

    pub fn dead_letters(number: u64, inserts: Vec<(&Arc<TableDefinition>, Vec<Row>)>) -> Self {
        Self { wave: Wave::DeadLetters, ..Self::new(number, inserts) }
    }

    pub fn request(&self) -> WriteRequest {
        let from = self.number as i64 * 10;
        let ranges = BTreeMap::from([(0, OffsetRange { from, to: from + 10 })]);
        // Two waves of one batch have INSERTs of their own.
        let first = if self.wave == Wave::Rows { 0 } else { 100 };
        let inserts = self.inserts.iter().enumerate().map(|(position, (table, rows))| InsertRows {
            insert: first + position,
            table: Arc::clone(table),
            rows: record_batches(table, rows),
            hash: blake3::hash(format!("{rows:?}").as_bytes()).to_string(),
        });
        WriteRequest {
            batch: self.number,
            wave: self.wave,
            planned_at: 1_700_000_000_000_000 + self.number as i64,
            offsets: BTreeMap::from([("kafka.events".to_string(), ranges)]),
            inserts: inserts.collect(),
        }
    }
}

/// In two pieces, so that positions are counted through all of them.
fn record_batches(table: &TableDefinition, rows: &[Row]) -> Vec<RecordBatch> {
    let (one, two) = rows.split_at(rows.len() / 2);
    let of = |rows: &[Row]| {
        let ids: Int64Array = rows.iter().map(|row| row.0).collect::<Vec<_>>().into();
        let values: StringViewArray = rows.iter().map(|row| row.1.as_deref()).collect();
        let parts = StringViewArray::from_iter_values(rows.iter().map(|row| &row.2));
        RecordBatch::try_new(Arc::clone(&table.schema), vec![Arc::new(ids), Arc::new(values), Arc::new(parts)]).unwrap()
    };
    [one, two].into_iter().filter(|rows| !rows.is_empty()).map(of).collect()
}

/// A system, and what should be in it.
pub struct Rig<S> {
    pub system: S,
    name: String,
    uuid: Uuid,
    epoch: u64,
    /// By table.
    pub model: BTreeMap<String, Vec<Row>>,
}

impl<S: Subject> Rig<S> {
    pub fn new() -> Self {
        let uuid = Uuid::new_v4();
        Self { system: S::fresh(), name: format!("contract-{uuid}"), uuid, epoch: 0, model: BTreeMap::new() }
    }

    /// The next start of the pipeline: a new process with a higher epoch.
    pub async fn start(&mut self) -> (Box<dyn Sink>, Option<u64>) {
        self.epoch += 1;
        let (mut sink, identity) = (self.system.sink(), self.identity(self.epoch));
        let newest = insist(async || sink.open(&identity).await).await;
        (sink, newest)
    }

    pub fn identity(&self, epoch: u64) -> Identity {
        Identity { name: self.name.clone(), uuid: self.uuid, epoch, takes_over: false }
    }

    /// Notes what the batch must leave, row by row, and returns what the sink must report.
    pub fn expect(&mut self, batch: &Batch) -> Expected {
        let impossible = self.system.impossible();
        let mut expected = Expected::default();
        for (insert, (table, rows)) in batch.request().inserts.iter().zip(&batch.inserts) {
            let there = self.model.entry(table.name.clone()).or_default();
            let report = expected.inserts.entry(insert.insert).or_default();
            let keyed = !table.primary_key.is_empty();
            let option = table.options.get("on_conflict").or(table.options.get("op_type"));
            let update = option.is_some_and(|option| option == "update" || option == "index");
            let mut ours = vec![];
            for (position, row) in rows.iter().enumerate() {
                let refused = impossible.iter().find(|(impossible, _)| impossible == row);
                let same_key = there.iter().position(|other| keyed && other.0 == row.0);
                match (refused, same_key) {
                    (Some((_, why)), _) => {
                        report.refused += 1;
                        expected.refusals.push((insert.insert, position, *why));
                    }
                    (None, None) => {
                        report.written += 1;
                        there.push(row.clone());
                        ours.push(row.0);
                    }
                    (None, Some(other)) if update => {
                        there[other] = row.clone();
                        // A row of an earlier batch is replaced, one of this batch never was.
                        if ours.contains(&row.0) {
                            report.conflict += 1
                        } else {
                            report.written += 1
                        }
                        ours.push(row.0);
                    }
                    (None, Some(_)) => report.conflict += 1,
                }
            }
        }
        expected
    }

    /// The system holds what it should, neither less nor more.
    pub fn check(&self) {
        for table in self.system.tables().all() {
            let mut expected = self.model.get(&table.name).cloned().unwrap_or_default();
            expected.sort();
            let mut found = self.system.rows(&table);
            found.sort();
            let differ = expected.iter().zip(&found).find(|(expected, found)| expected != found);
            let (many, few) = (found.len(), expected.len());
            assert!(differ.is_none() && many == few, "{}: {many} rows, not {few}; {differ:?}", table.name);
        }
    }
}

#[derive(Debug, Default)]
pub struct Expected {
    inserts: BTreeMap<usize, InsertReport>,
    /// INSERT, row, a part of the reason.
    refusals: Vec<(usize, usize, &'static str)>,
}

impl Expected {
    pub fn check(&self, report: &WriteReport) {
        assert_eq!(report.inserts, self.inserts);
        assert_eq!(report.refusals.len(), self.refusals.len(), "{:?}", report.refusals);
        for (Refusal { insert, row, error }, (of, position, why)) in report.refusals.iter().zip(&self.refusals) {
            assert_eq!((insert, row), (of, position));
            assert!(error.contains(why), "{error:?} does not say {why:?}");
        }
    }
}

/// The same accounts, refusals and files, whether the sink knows that it repeats itself or not.
pub fn assert_same(again: &WriteReport, first: &WriteReport) {
    assert_eq!(WriteReport { already: first.already, ..again.clone() }, *first);
}

/// As the pipeline does: what may pass is tried again.
pub async fn insist<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> T {
    for _ in 0..20 {
        match attempt().await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("twenty attempts in vain");
}

/// Rows for every table of the first wave, the impossible ones among them.
pub fn mixed<S: Subject>(system: &S, number: u64, plain_rows: i64) -> Batch {
    let tables = system.tables();
    let base = number as i64 * 100_000;
    let long = "x".repeat(250);
    let plain = (0..plain_rows).map(|id| match id % 7 {
        0 => (base + id, None, "part null".to_string()),
        _ => row(base + id, &long),
    });
    let mut strict = vec![row(base, "before")];
    for (impossible, _) in system.impossible() {
        strict.extend([impossible, row(base + strict.len() as i64, "neighbour")]);
    }
    let mut inserts = vec![(&tables.plain, plain.collect()), (&tables.strict, strict)];
    if let Some(keyed) = &tables.keyed {
        // Two rows of each key in a batch; every batch meets the one before.
        let rows: Vec<Row> = (0..20).map(|id| row(number as i64 * 5 + id % 10, &format!("{number}.{id}"))).collect();
        inserts.extend([(&keyed.updated, rows.clone()), (&keyed.kept, rows)]);
    }
    Batch::new(number, inserts)
}
