//! INSERTs that read what the program has written: run for one closed window after the other.
//!
//! ```text
//! windows that close in the batch, the earliest first
//!   └─▶ pin its rows ─▶ every INSERT of its turn ─▶ their rows, added to those of the table that are read back
//! ```
//!
//! So a window finds the rows of all windows before it, whether they closed in this batch or in earlier ones: how the
//! batches were cut changes nothing. The rows that are added are gone when the batch is over; the next batch that reads
//! the table reads what is stored there by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;

use super::merged::Merged;
use super::refused::Failure;
use super::rows::Digests;
use super::run::{Batch, Runner, bounds};
use crate::sql::program::Turn;
use crate::sql::windowed::{Rows, View};
use crate::state::Delta;

impl Runner {
    /// The rows of those INSERTs, each with their hash, by position in the program.
    pub(super) async fn in_turn(
        &self,
        batch: &Batch,
        deltas: &[Delta],
        shared: bool,
        digests: &Arc<Digests>,
    ) -> Result<BTreeMap<usize, (Vec<RecordBatch>, String)>, Failure> {
        let program = self.program();
        let turns: BTreeSet<&Turn> = program.inserts.iter().filter_map(|insert| insert.turn.as_ref()).collect();
        let before: Vec<_> = program.read_back.iter().map(|spec| spec.pinned.pinned()).collect();
        let mut rows = BTreeMap::new();
        let mut done = Ok(());
        for turn in turns {
            done = self.windows_of(turn, batch, deltas, shared, digests, &mut rows).await;
            if done.is_err() {
                break;
            }
        }
        // A batch may be run again, without rows that a query refuses.
        for (spec, before) in program.read_back.iter().zip(before) {
            spec.pinned.pin(before.to_vec());
        }
        done?;
        let mut finished = BTreeMap::new();
        for (number, rows) in rows {
            let query = self.insert_rows(number, batch, shared, digests);
            let numbered = query.number(rows).map_err(|error| self.failure_of_insert(error, number))?;
            finished.insert(number, numbered);
        }
        Ok(finished)
    }

    async fn windows_of(
        &self,
        turn: &Turn,
        batch: &Batch,
        deltas: &[Delta],
        shared: bool,
        digests: &Arc<Digests>,
        rows: &mut BTreeMap<usize, Vec<RecordBatch>>,
    ) -> Result<(), Failure> {
        let (program, bounds) = (self.program(), bounds(batch, &turn.source));
        let of_turn =
            |view: &&View| view.size == turn.size && self.stores()[view.store].definition().source == turn.source;
        let views: Vec<_> = program.windows.views.iter().filter(of_turn).collect();
        let pinned = |view: &View| {
            view.demands.iter().find(|(rows, _)| *rows == Rows::InTurn).map(|(_, table)| Arc::clone(table))
        };
        let views: Vec<_> = views.into_iter().filter_map(|view| Some((view, pinned(view)?))).collect();
        let numbers = || (0..program.inserts.len()).filter(|i| program.inserts[*i].turn.as_ref() == Some(turn));
        for number in numbers() {
            rows.entry(number).or_default();
        }
        let mut merged = BTreeMap::new();
        let closing =
            views.iter().flat_map(|(view, _)| self.stores()[view.store].closed(view.size, &deltas[view.store], bounds));
        for window in closing.collect::<BTreeSet<i64>>() {
            for (view, table) in &views {
                let (store, delta) = (&self.stores()[view.store], &deltas[view.store]);
                let shown = store.rows(view, Rows::InTurn, &[window].into(), delta, bounds, self.single()).await;
                table.pin(shown.map_err(|error| Failure::whole(error, format!("windowed view {}", view.name)))?);
            }
            let mut written = vec![];
            for number in numbers() {
                let query = self.insert_rows(number, batch, shared, digests);
                let found = query.rows(self.single()).await.and_then(|found| query.in_order(found));
                let found = found.map_err(|error| self.failure_of_insert(error, number))?;
                rows.entry(number).or_default().extend(found.iter().cloned());
                written.push((number, found));
            }
            for (number, found) in written {
                let added = self.add(number, found, &mut merged);
                added.map_err(|error| self.failure_of_insert(DataFusionError::External(Box::new(error)), number))?;
            }
        }
        Ok(())
    }

    /// Adds the rows of an INSERT to those of its table that are read back, as the sink will. `merged`: by table.
    fn add(&self, number: usize, rows: Vec<RecordBatch>, merged: &mut BTreeMap<String, Merged>) -> crate::Result<()> {
        let table = &self.program().inserts[number].table;
        let Some(spec) = self.program().read_back.iter().find(|spec| spec.table.name == table.name) else {
            return Ok(());
        };
        if rows.is_empty() {
            return Ok(());
        }
        let mut known = match merged.remove(&table.name) {
            Some(known) => known,
            None => Merged::of(&spec.pinned.pinned(), spec.pinned.rows_schema(), &spec.table)?,
        };
        for batch in rows {
            known.add(&batch)?;
        }
        spec.pinned.pin(known.rows()?);
        merged.insert(table.name.clone(), known);
        Ok(())
    }
}
