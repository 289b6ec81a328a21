//! A pipeline from its text, driven batch by batch: the loop without its source, its sinks and its checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;

use crate::Result;
use crate::checkpoint::record::{SourceCommit, SourcePlan};
use crate::connector::{Chunk, Cut, OffsetRange};
use crate::pipeline::run::{Batch, Outcome, Runner, SourceBatch, maxima};
use crate::pipeline::watermark::Watermark;
use crate::sql::session::QueryContext;
use crate::sql::settings::{self, Settings};
use crate::sql::substitute::Wanted;
use crate::sql::{Files, Program, parse};
use crate::state::image::{self, ImageWriter};
use crate::state::panes::COMPACT_AT;
use crate::state::{Delta, PaneStore};

pub const SECOND: i64 = 1_000_000;
/// 2026-01-01 00:00:00: where event time begins in these tests.
pub const T0: i64 = 1_767_225_600 * SECOND;

/// What every test reads; the columns of [`Event`].
pub const EVENTS: &str = "
CREATE SCHEMA kafka;
CREATE SCHEMA db;
CREATE UNBOUNDED EXTERNAL TABLE kafka.events (
  id BIGINT, k VARCHAR, v BIGINT, f DOUBLE, b BOOLEAN, t VARCHAR, ts TIMESTAMP
)
STORED AS KAFKA LOCATION 'events' OPTIONS ('brokers' 'localhost:9092', 'format' 'json', 'watermark.column' 'ts',
  'watermark.delay' '3 seconds', 'watermark.idle' '20 seconds', 'watermark.max_ahead' '1 hour');
";
pub const SOURCE: &str = "kafka.events";

/// A table that takes rows by key.
pub fn keyed(name: &str, columns: &str, key: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE db.{name} ({columns}, PRIMARY KEY ({key}))
         STORED AS DATABASE LOCATION 'sqlite:/nowhere/test.db' OPTIONS ('on_conflict' 'update');\n"
    )
}

/// A table that takes rows once.
pub fn append(name: &str, columns: &str) -> String {
    format!(
        "CREATE EXTERNAL TABLE kafka.{name} ({columns})
         STORED AS KAFKA LOCATION '{name}' OPTIONS ('brokers' 'localhost:9092', 'format' 'json');\n"
    )
}

fn nothing(_: Wanted) -> std::result::Result<Option<String>, String> {
    Ok(None)
}

pub fn default_settings() -> Settings {
    settings::defaults().unwrap()
}

/// Plans `tables.sql` ([`EVENTS`] and more) and `queries.sql`.
pub async fn plan(tables: &str, queries: &str) -> Result<Program> {
    let texts =
        vec![("tables.sql".to_string(), format!("{EVENTS}{tables}")), ("queries.sql".to_string(), queries.to_string())];
    let files = Files::from_stored(texts, &nothing);
    let script = parse(&files);
    let settings = settings::resolve(&BTreeMap::new(), &nothing, &files, &script.statements);
    Program::plan(files, script, settings).await
}

#[derive(Debug, Clone, Default)]
pub struct Event {
    pub id: i64,
    pub k: Option<String>,
    pub v: Option<i64>,
    pub f: Option<f64>,
    pub b: Option<bool>,
    pub t: Option<String>,
    /// µs.
    pub ts: Option<i64>,
}

pub fn event(id: i64, k: &str, seconds: i64) -> Event {
    Event { id, k: Some(k.into()), v: Some(id), ts: Some(T0 + seconds * SECOND), ..Event::default() }
}

/// The columns of events, named as in [`EVENTS`].
pub fn columns(events: &[&Event]) -> Vec<(&'static str, ArrayRef)> {
    vec![
        ("id", Arc::new(events.iter().map(|e| Some(e.id)).collect::<Int64Array>()) as ArrayRef),
        ("k", Arc::new(events.iter().map(|e| e.k.as_deref()).collect::<StringViewArray>())),
        ("v", Arc::new(events.iter().map(|e| e.v).collect::<Int64Array>())),
        ("f", Arc::new(events.iter().map(|e| e.f).collect::<Float64Array>())),
        ("b", Arc::new(events.iter().map(|e| e.b).collect::<BooleanArray>())),
        ("t", Arc::new(events.iter().map(|e| e.t.as_deref()).collect::<StringViewArray>())),
        ("ts", Arc::new(events.iter().map(|e| e.ts).collect::<TimestampMicrosecondArray>())),
    ]
}

/// What comes in one batch.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// By partition; a partition without rows is listed too.
    pub rows: BTreeMap<i32, Vec<Event>>,
    /// µs.
    pub planned_at: i64,
    /// Partitions that have more rows to be read.
    pub behind: BTreeSet<i32>,
    /// The last batch: all windows close.
    pub close: bool,
    /// What the plan says of idle partitions; `None`: it is being made.
    pub idle: Option<BTreeSet<i32>>,
}

/// One partition, at its end.
pub fn step(seconds: i64, events: Vec<Event>) -> Step {
    Step { rows: [(0, events)].into(), planned_at: T0 + seconds * SECOND, ..Step::default() }
}

#[derive(Debug)]
pub struct Done {
    pub before: Option<i64>,
    pub after: Option<i64>,
    pub ahead_limit: i64,
    pub idle: BTreeSet<i32>,
    pub outcome: Outcome,
}

impl Done {
    /// The rows of an INSERT as text, NULL as `∅`.
    pub fn rows(&self, insert: usize) -> Vec<Vec<String>> {
        texts(&self.outcome.inserts[insert].rows)
    }

    pub fn hashes(&self) -> Vec<&str> {
        self.outcome.inserts.iter().map(|insert| insert.hash.as_str()).collect()
    }
}

/// A pipeline between two batches.
pub struct Sim {
    tables: String,
    queries: String,
    pub program: Arc<Program>,
    compact_at: usize,
    pub runner: Runner,
    watermark: Watermark,
    offsets: BTreeMap<i32, i64>,
    number: u64,
    /// What a checkpoint would hold.
    commit: Option<SourceCommit>,
    snapshot: Option<Bytes>,
    pub deltas: Vec<Bytes>,
}

impl Sim {
    pub async fn start(tables: &str, queries: &str) -> Self {
        let program = plan(tables, queries).await.unwrap_or_else(|error| panic!("{error}"));
        Self::of(tables, queries, program)
    }

    /// Merges the states of a pane when there are so many.
    pub fn compacting_at(mut self, count: usize) -> Self {
        self.compact_at = count;
        self.runner = Runner::new(Arc::clone(&self.program), stores(&self.program, count));
        self
    }

    pub fn of(tables: &str, queries: &str, program: Program) -> Self {
        let program = Arc::new(program);
        let watermark = Watermark::new(program.sources[0].watermark.clone(), None, 0);
        let runner = Runner::new(Arc::clone(&program), stores(&program, COMPACT_AT));
        Self {
            tables: tables.into(),
            queries: queries.into(),
            program,
            compact_at: COMPACT_AT,
            runner,
            watermark,
            offsets: BTreeMap::new(),
            number: 0,
            commit: None,
            snapshot: None,
            deltas: vec![],
        }
    }

    /// As `pipeline::turn` does it.
    pub async fn batch(&mut self, step: &Step) -> Result<Done> {
        let mut cut = Cut::default();
        for (partition, events) in &step.rows {
            let from = self.offsets.get(partition).copied().unwrap_or(0);
            let to = from + events.len() as i64;
            cut.ranges.insert(*partition, OffsetRange { from, to });
            if !step.behind.contains(partition) {
                cut.at_end.insert(*partition);
            }
            for (number, part) in events.chunks(7).enumerate() {
                cut.chunks.push(self.chunk(*partition, from + 7 * number as i64, part));
            }
        }
        let idle = step.idle.clone().unwrap_or_else(|| self.watermark.idle(&cut, step.planned_at));
        let plan = SourcePlan { ranges: cut.ranges.clone(), idle, ..SourcePlan::default() };
        let ahead_limit = self.watermark.ahead_limit(step.planned_at);
        let before = self.watermark.value();
        let highest = match &self.program.sources[0].watermark {
            Some(spec) => maxima(&cut.chunks, spec.column, ahead_limit)?,
            None => BTreeMap::new(),
        };
        let mut watermark = self.watermark.clone();
        watermark.advance(&plan, &highest, step.planned_at);
        if step.close {
            self.runner.stores().iter().filter_map(PaneStore::end).for_each(|end| watermark.close(end));
        }
        let after = watermark.value();
        let source = SourceBatch { chunks: cut.chunks, before, after, ahead_limit };
        let sources = [(self.program.sources[0].table.name.clone(), source)].into();
        let batch = Batch {
            number: self.number,
            planned_at: step.planned_at,
            partitions: self.program.settings.partitions_of_pipeline(),
            sources,
        };
        let outcome = self.runner.run(&batch).await?;

        let partitions = watermark.partitions();
        let (location, ranges) = (String::new(), plan.ranges.clone());
        self.commit = Some(SourceCommit { location, ranges, watermark: after, partitions, ..SourceCommit::default() });
        self.deltas.push(self.image(&outcome.deltas));
        self.runner.apply(outcome.deltas.clone(), &[(SOURCE.to_string(), after)].into()).await?;
        self.watermark = watermark;
        self.offsets.extend(plan.ranges.iter().map(|(partition, range)| (*partition, range.to)));
        self.number += 1;
        Ok(Done { before, after, ahead_limit, idle: plan.idle, outcome })
    }

    fn chunk(&self, partition: i32, offset: i64, events: &[Event]) -> Chunk {
        let events: Vec<&Event> = events.iter().collect();
        let columns = columns(&events).into_iter().map(|(_, column)| column).collect();
        let schema = Arc::clone(&self.program.sources[0].table.schema);
        let rows = RecordBatch::try_new(schema, columns).unwrap();
        let offsets: Vec<i64> = (offset..offset + events.len() as i64).collect();
        Chunk { partition, rows, offsets: offsets.into(), undecodable: 0, bytes: 0 }
    }

    fn image(&self, deltas: &[Delta]) -> Bytes {
        let mut image = ImageWriter::default();
        for (store, delta) in self.runner.stores().iter().zip(deltas) {
            image.section(&store.definition().key(), delta.panes.iter().map(|(_, states)| states)).unwrap();
        }
        image.finish()
    }

    /// The whole state, as bytes.
    pub fn state(&self) -> Bytes {
        let mut image = ImageWriter::default();
        for store in self.runner.stores() {
            image.section(&store.definition().key(), store.panes().values().flatten()).unwrap();
        }
        image.finish()
    }

    /// What a checkpoint does every so many batches.
    pub fn snapshot(&mut self) {
        self.snapshot = Some(self.state());
        self.deltas.clear();
    }

    /// Stops and starts again from what the checkpoint holds, as `pipeline::start` does it.
    pub async fn restart(&mut self, now: i64, planned_anew: bool) {
        if planned_anew {
            self.program = Arc::new(plan(&self.tables, &self.queries).await.unwrap());
        }
        self.watermark = Watermark::new(self.program.sources[0].watermark.clone(), self.commit.as_ref(), now);
        let mut stores = stores(&self.program, self.compact_at);
        let context = QueryContext::new(self.program.state(), 1);
        let images =
            self.snapshot.iter().map(|image| (image, true)).chain(self.deltas.iter().map(|image| (image, false)));
        for (bytes, snapshot) in images {
            let mut sections = image::read(bytes).unwrap();
            for store in &mut stores {
                let states = sections.remove(&store.definition().key()).expect("a section for every store");
                match snapshot {
                    true => states.iter().for_each(|batch| store.restore(std::slice::from_ref(batch)).unwrap()),
                    false if states.is_empty() => {}
                    false => store.restored(&states, i64::MIN, &context).await.unwrap(),
                }
            }
        }
        for store in &mut stores {
            store.evict(self.watermark.value().unwrap_or(i64::MIN));
        }
        self.runner = Runner::new(Arc::clone(&self.program), stores);
    }
}

fn stores(program: &Program, compact_at: usize) -> Vec<PaneStore> {
    program.windows.stores.iter().map(|definition| PaneStore::new(Arc::clone(definition), compact_at)).collect()
}

/// Rows as text, NULL as `∅`.
pub fn texts(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("∅");
    let mut rows = vec![];
    for batch in batches {
        let formats: Vec<ArrayFormatter> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        rows.extend((0..batch.num_rows()).map(|row| formats.iter().map(|f| f.value(row).to_string()).collect()));
    }
    rows
}

/// Sorted; numbers may differ in their last digits.
pub fn assert_same(mut found: Vec<Vec<String>>, mut expected: Vec<Vec<String>>, what: &str) {
    found.sort();
    expected.sort();
    let same = |a: &String, b: &String| {
        a == b
            || matches!((a.parse::<f64>(), b.parse::<f64>()), (Ok(a), Ok(b))
                if (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0))
    };
    let rows = |a: &Vec<String>, b: &Vec<String>| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b));
    if found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| rows(a, b)) {
        return;
    }
    let only = |a: &[Vec<String>], b: &[Vec<String>]| {
        let rows: Vec<String> =
            a.iter().filter(|row| !b.iter().any(|other| rows(row, other))).map(|row| row.join(" | ")).collect();
        rows.join("\n  ")
    };
    let (extra, missing) = (only(&found, &expected), only(&expected, &found));
    panic!("{what}: {} rows, expected {}\nextra:\n  {extra}\nmissing:\n  {missing}", found.len(), expected.len());
}
