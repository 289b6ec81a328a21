//! What must come out: one plain query over all rows, each set into its windows by hand.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::harness::{Done, Event, Step, columns, default_settings, texts};
use crate::sql::functions::BatchValues;
use crate::sql::session::session;

/// An event in one of its windows.
#[derive(Debug, Clone)]
pub struct Pair {
    pub event: Event,
    pub start: i64,
    pub end: i64,
    pub batch: usize,
    /// Why the window misses the event.
    pub missed: Option<&'static str>,
}

/// The pairs of one batch.
pub fn pairs(step: &Step, batch: usize, done: &Done, slide: i64, size: i64) -> Vec<Pair> {
    let mut pairs = vec![];
    for event in step.rows.values().flatten() {
        let Some(ts) = event.ts else { continue };
        let last = ts - ts.rem_euclid(slide);
        for start in (0..size / slide).map(|k| last - k * slide) {
            let end = start + size;
            let missed = match done.before {
                _ if ts > done.ahead_limit => Some("ahead"),
                Some(before) if end <= before => Some("late"),
                _ => None,
            };
            pairs.push(Pair { event: event.clone(), start, end, batch, missed });
        }
    }
    pairs
}

/// A session of plain batch meaning with the table `pairs`: the columns of the events, window_start and window_end.
pub struct Oracle(SessionContext);

impl Oracle {
    pub fn new() -> Self {
        Self(Self::empty())
    }

    pub fn set(&self, pairs: &[&Pair]) {
        let events: Vec<&Event> = pairs.iter().map(|pair| &pair.event).collect();
        let mut columns = columns(&events);
        let bound = |of: fn(&Pair) -> i64| -> ArrayRef {
            Arc::new(pairs.iter().map(|pair| Some(of(pair))).collect::<TimestampMicrosecondArray>())
        };
        columns.push(("window_start", bound(|pair| pair.start)));
        columns.push(("window_end", bound(|pair| pair.end)));
        register(&self.0, "pairs", columns);
    }

    fn empty() -> SessionContext {
        session(SessionConfig::new(), &default_settings(), BatchValues::Fixed { watermark: None }).unwrap()
    }

    /// A session with the table `events` as it is: TUMBLE and HOP have their batch meaning.
    pub fn plain(events: &[&Event]) -> Self {
        let context = Self::empty();
        register(&context, "events", columns(events));
        Self(context)
    }

    pub async fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let frame = self.0.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        texts(&frame.collect().await.unwrap())
    }
}

fn register(context: &SessionContext, name: &str, columns: Vec<(&str, ArrayRef)>) {
    let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap();
    context.deregister_table(name).unwrap();
    context.register_table(name, Arc::new(table)).unwrap();
}

/// The windows that a batch shows: those that got a row, and those that closed and have one.
pub fn shown(pairs: &[Pair], batch: usize, done: &Done) -> BTreeSet<i64> {
    let closes = |end: i64| done.before.is_none_or(|b| b < end) && done.after.is_some_and(|a| end <= a);
    let kept = pairs.iter().filter(|pair| pair.missed.is_none());
    kept.filter(|pair| pair.batch == batch || closes(pair.end)).map(|pair| pair.start).collect()
}
