//! Rows of a table with others that are written to it, as its sink will have them.
//!
//! ```text
//! rows that are read back ─┐
//! rows of window 1        ─┼─▶ of two with one key one stays ─▶ what window 3 reads
//! rows of window 2        ─┘
//! ```
//!
//! Which one stays is what the sink does, within a batch as from batch to batch: where it replaces (`on_conflict` `update`)
//! the last, else the first. The rows of an INSERT come in the order in which the sink gets them, so that "last" is the same
//! row here and there. A NULL in a key is equal to no other, as a database has it.
//!
//! Where each key is kept is known from the first row on: a window that is added costs what its own rows cost, however
//! many there are already.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, is_not_null};
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};

use crate::Result;
use crate::connector::{TableDefinition, is_keyed};

pub struct Merged {
    schema: SchemaRef,
    /// Positions of the columns of the key.
    key: Vec<usize>,
    converter: RowConverter,
    /// Whether a later row replaces an earlier one.
    replaces: bool,
    batches: Vec<Kept>,
    /// The row that has the key: number of its record batch, and of the row in it.
    places: HashMap<OwnedRow, (usize, usize)>,
}

struct Kept {
    all: RecordBatch,
    stays: Vec<bool>,
    /// Those of `all` that stay; `None`: to be found anew.
    shown: Option<RecordBatch>,
}

impl Merged {
    /// Of rows of the schema, those of a table.
    ///
    /// # Errors
    /// The key is not among the columns, or not comparable.
    pub fn of(rows: &[RecordBatch], schema: SchemaRef, table: &Arc<TableDefinition>) -> Result<Self> {
        let key = table.primary_key.iter().map(|column| schema.index_of(column));
        let key = key.collect::<std::result::Result<Vec<usize>, _>>()?;
        let fields = key.iter().map(|place| SortField::new(schema.field(*place).data_type().clone())).collect();
        let (converter, replaces) = (RowConverter::new(fields)?, is_keyed(table));
        let mut merged = Self { schema, key, converter, replaces, batches: vec![], places: HashMap::new() };
        for batch in rows {
            merged.add(batch)?;
        }
        Ok(merged)
    }

    /// Rows that are written after all others.
    ///
    /// # Errors
    /// They are not of the table's types.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let rows = storable(rows, &self.schema)?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let mut stays = vec![true; rows.num_rows()];
        // Without a key no row is another one's.
        if !self.key.is_empty() {
            let columns: Vec<_> = self.key.iter().map(|place| Arc::clone(rows.column(*place))).collect();
            let keys = self.converter.convert_columns(&columns)?;
            for (row, key) in keys.iter().enumerate() {
                if columns.iter().any(|column| column.is_null(row)) {
                    continue;
                }
                match self.places.entry(key.owned()) {
                    Entry::Vacant(place) => {
                        place.insert((self.batches.len(), row));
                    }
                    Entry::Occupied(_) if !self.replaces => stays[row] = false,
                    Entry::Occupied(mut place) => match place.insert((self.batches.len(), row)) {
                        (batch, before) if batch == self.batches.len() => stays[before] = false,
                        (batch, before) => {
                            let kept = &mut self.batches[batch];
                            kept.stays[before] = false;
                            kept.shown = None;
                        }
                    },
                }
            }
        }
        self.batches.push(Kept { all: rows, stays, shown: None });
        Ok(())
    }

    /// Those that stay.
    ///
    /// # Errors
    /// Of Arrow.
    pub fn rows(&mut self) -> Result<Vec<RecordBatch>> {
        let mut rows = Vec::with_capacity(self.batches.len());
        for kept in &mut self.batches {
            let shown = match &kept.shown {
                Some(shown) => shown,
                None => {
                    let stays = BooleanArray::from(kept.stays.clone());
                    kept.shown.insert(filter_record_batch(&kept.all, &stays)?)
                }
            };
            rows.extend((shown.num_rows() > 0).then(|| shown.clone()));
        }
        Ok(rows)
    }
}

/// Without the rows that have a NULL where the table has none: the database will refuse them.
fn storable(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut kept = batch.clone();
    for (place, _) in schema.fields().iter().enumerate().filter(|(_, field)| !field.is_nullable()) {
        if kept.column(place).null_count() > 0 {
            kept = filter_record_batch(&kept, &is_not_null(kept.column(place))?)?;
        }
    }
    Ok(RecordBatch::try_new(Arc::clone(schema), kept.columns().to_vec())?)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use proptest::prelude::*;

    use super::*;

    /// Key (may be NULL), value.
    type Row = (Option<i64>, i64);

    fn table(on_conflict: &str) -> Arc<TableDefinition> {
        let column = |name: &str| Field::new(name, DataType::Int64, name == "key");
        Arc::new(TableDefinition {
            name: "db.history".into(),
            schema: Arc::new(Schema::new(vec![column("key"), column("value")])),
            primary_key: vec!["key".into()],
            unbounded: false,
            stored_as: "DATABASE".into(),
            location: "sqlite:none.db".into(),
            partition_columns: vec![],
            options: [("on_conflict".to_string(), on_conflict.to_string())].into(),
            place: String::new(),
        })
    }

    fn batch(table: &TableDefinition, rows: &[Row]) -> RecordBatch {
        let key: Int64Array = rows.iter().map(|(key, _)| *key).collect();
        let value: Int64Array = rows.iter().map(|(_, value)| Some(*value)).collect();
        RecordBatch::try_new(Arc::clone(&table.schema), vec![Arc::new(key), Arc::new(value)]).unwrap()
    }

    fn all(merged: &mut Merged) -> Vec<Row> {
        let of = |batch: &RecordBatch| -> Vec<Row> {
            let column = |at: usize| batch.column(at).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
            column(0).into_iter().zip(column(1)).map(|(key, value)| (key, value.unwrap())).collect()
        };
        merged.rows().unwrap().iter().flat_map(of).collect()
    }

    fn merged(on_conflict: &str, batches: &[Vec<Row>]) -> Vec<Row> {
        let table = table(on_conflict);
        let (known, new) = batches.split_first().unwrap();
        let mut merged = Merged::of(&[batch(&table, known)], Arc::clone(&table.schema), &table).unwrap();
        for rows in new {
            merged.add(&batch(&table, rows)).unwrap();
            all(&mut merged);
        }
        all(&mut merged)
    }

    /// As `docs/reference.md` says of the sink, whether the two rows come in one batch or in two.
    #[test]
    fn of_two_rows_with_one_key_the_last_stays_with_update_and_the_first_else() {
        for batches in [
            vec![vec![(Some(1), 10)], vec![(Some(1), 11), (Some(2), 20), (Some(1), 12)]],
            vec![vec![(Some(1), 10)], vec![(Some(1), 11), (Some(2), 20)], vec![(Some(1), 12)]],
            vec![vec![], vec![(Some(1), 10), (Some(1), 11), (Some(2), 20), (Some(1), 12)]],
        ] {
            let mut updated = merged("update", &batches);
            updated.sort_unstable();
            assert_eq!(updated, [(Some(1), 12), (Some(2), 20)], "{batches:?}");
            assert_eq!(merged("nothing", &batches), [(Some(1), 10), (Some(2), 20)], "{batches:?}");
        }
        assert_eq!(merged("update", &[vec![(None, 1)], vec![(None, 2), (None, 3)]]).len(), 3, "a NULL is no key");
    }

    #[test]
    fn a_row_that_the_table_cannot_hold_replaces_none() {
        let table = table("update");
        let mut merged = Merged::of(&[batch(&table, &[(Some(1), 10)])], Arc::clone(&table.schema), &table).unwrap();
        let nullable =
            Schema::new(vec![Field::new("key", DataType::Int64, true), Field::new("value", DataType::Int64, true)]);
        let columns: Vec<_> = [vec![Some(1), Some(2)], vec![None, Some(20)]]
            .into_iter()
            .map(|values| Arc::new(Int64Array::from(values)) as _)
            .collect();
        merged.add(&RecordBatch::try_new(Arc::new(nullable), columns).unwrap()).unwrap();
        assert_eq!(all(&mut merged), [(Some(1), 10), (Some(2), 20)]);
    }

    /// Row by row, in the plainest words.
    fn plainly(replaces: bool, batches: &[Vec<Row>]) -> Vec<Row> {
        let mut rows: Vec<Row> = vec![];
        for (key, value) in batches.iter().flatten() {
            match rows.iter_mut().find(|row| key.is_some() && row.0 == *key) {
                None => rows.push((*key, *value)),
                Some(row) if replaces => row.1 = *value,
                Some(_) => {}
            }
        }
        rows.sort_unstable();
        rows
    }

    proptest! {
        #[test]
        fn as_if_written_row_by_row(
            batches in proptest::collection::vec(
                proptest::collection::vec((proptest::option::weighted(0.9, 0..8_i64), 0..100_i64), 0..6), 1..8,
            ),
        ) {
            for (on_conflict, replaces) in [("update", true), ("nothing", false)] {
                let mut found = merged(on_conflict, &batches);
                found.sort_unstable();
                prop_assert_eq!(found, plainly(replaces, &batches));
            }
        }
    }

    /// Windows that close in one batch after a pause: the last costs what the first did.
    #[test]
    fn what_is_known_is_not_looked_through_for_each_window() {
        let table = table("update");
        let known: Vec<Row> = (0..200_000).map(|key| (Some(key), key)).collect();
        let begin = Instant::now();
        let mut merged = Merged::of(&[batch(&table, &known)], Arc::clone(&table.schema), &table).unwrap();
        let first = begin.elapsed();
        let begin = Instant::now();
        for window in 0..500 {
            merged.add(&batch(&table, &[(Some(1_000_000 + window), window)])).unwrap();
            merged.rows().unwrap();
        }
        let windows = begin.elapsed();
        assert_eq!(all(&mut merged).len(), 200_500);
        assert!(windows < first * 20, "{windows:?} for 500 windows, {first:?} for what was there before");
    }
}
