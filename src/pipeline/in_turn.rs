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

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, is_not_null};
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::DataFusionError;

use super::refused::Failure;
use super::rows::Digests;
use super::run::{Batch, Runner, bounds};
use crate::Error;
use crate::connector::{TableDefinition, is_keyed};
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
                let found = self.insert_rows(number, batch, shared, digests).rows(self.single()).await;
                let found = found.map_err(|error| self.failure_of_insert(error, number))?;
                rows.entry(number).or_default().extend(found.iter().cloned());
                written.push((number, found));
            }
            for (number, found) in written {
                self.add(&program.inserts[number].table, found).map_err(|e| self.failure_of_insert(e, number))?;
            }
        }
        Ok(())
    }

    /// Adds rows to those of their table that are read back, as its sink will.
    fn add(&self, table: &TableDefinition, rows: Vec<RecordBatch>) -> Result<(), DataFusionError> {
        let Some(spec) = self.program().read_back.iter().find(|spec| spec.table.name == table.name) else {
            return Ok(());
        };
        let external = |error: Error| DataFusionError::External(Box::new(error));
        let merged = merge(&spec.pinned.pinned(), rows, &spec.pinned.rows_schema(), &spec.table).map_err(external)?;
        spec.pinned.pin(merged);
        Ok(())
    }
}

/// Without the rows that have a NULL where the table has none: the database will refuse them.
fn storable(batch: &RecordBatch, schema: &SchemaRef) -> crate::Result<RecordBatch> {
    let mut kept = batch.clone();
    for (place, _) in schema.fields().iter().enumerate().filter(|(_, field)| !field.is_nullable()) {
        kept = filter_record_batch(&kept, &is_not_null(kept.column(place))?)?;
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), kept.columns().to_vec())?)
}

/// Rows of a table with others that are written to it: of two with one key, one stays.
fn merge(
    known: &[RecordBatch],
    new: Vec<RecordBatch>,
    schema: &SchemaRef,
    table: &Arc<TableDefinition>,
) -> crate::Result<Vec<RecordBatch>> {
    let new = new.iter().map(|batch| storable(batch, schema)).collect::<crate::Result<Vec<_>>>()?;
    let places = table.primary_key.iter().map(|column| schema.index_of(column)).collect::<Result<Vec<usize>, _>>()?;
    let fields = places.iter().map(|place| SortField::new(schema.field(*place).data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let keys = |batch: &RecordBatch| -> crate::Result<Vec<OwnedRow>> {
        let columns: Vec<_> = places.iter().map(|place| Arc::clone(batch.column(*place))).collect();
        Ok(converter.convert_columns(&columns)?.iter().map(|row| row.owned()).collect())
    };
    let replaces = is_keyed(table);
    let (stay, yield_) = if replaces { (&new[..], known) } else { (known, &new[..]) };
    let mut taken = HashSet::new();
    for batch in stay {
        taken.extend(keys(batch)?);
    }
    let mut merged = stay.to_vec();
    for batch in yield_ {
        let free: BooleanArray = keys(batch)?.iter().map(|key| Some(!taken.contains(key))).collect();
        merged.push(filter_record_batch(batch, &free)?);
    }
    Ok(merged)
}
