//! The order in which the rows of an INSERT are sent: by key, as far as two words of it tell.
//!
//! A row that follows its neighbour in the index lands on the page that was just used. Measured on PostgreSQL 15, a
//! unique index over (bigint, timestamp, text, text), 500,000 rows: 6.5 µs of the server's time a row as they came, 4.8 µs in
//! order, 2.0 µs without any index. Only the order of two short words is asked for, since a sort of whole keys would cost
//! here what it saves there.
//!
//! Invariant: rows with equal keys stay in the order they came, so that the first or the last of them stays, as the table
//! wants it.

use crate::connector::database::column::{Column, Values};

/// Where a row lies: its record batch, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub batch: u32,
    pub row: u32,
}

/// Every row once. `key` are positions among the columns; without one the rows stay as they came.
pub(super) fn places(batches: &[(usize, Vec<Column>)], total: usize, key: &[usize]) -> Vec<Place> {
    let ends = batches.iter().skip(1).map(|(start, _)| *start).chain([total]);
    let each = batches.iter().zip(ends).enumerate().flat_map(|(batch, ((start, _), end))| {
        // A batch of a pipeline is far below 2³² rows; so is their number.
        (0..end - start).map(move |row| Place { batch: batch as u32, row: row as u32 })
    });
    let words = |place: &Place| {
        let columns = &batches[place.batch as usize].1;
        let word = |n: usize| key.get(n).map_or(0, |column| word(&columns[*column], place.row as usize));
        (word(0), word(1))
    };
    if key.is_empty() {
        return each.collect();
    }
    let mut sorted: Vec<((u64, u64), Place)> = each.map(|place| (words(&place), place)).collect();
    sorted.sort_by_key(|(words, _)| *words);
    sorted.into_iter().map(|(_, place)| place).collect()
}

/// Eight bytes whose order is that of the values, as far as eight bytes tell; NULL comes first.
fn word(column: &Column, row: usize) -> u64 {
    if column.is_null(row) {
        return 0;
    }
    let signed = |value: i64| (value as u64) ^ (1 << 63);
    let bytes = |value: &[u8]| {
        let mut word = [0; 8];
        let length = value.len().min(8);
        word[..length].copy_from_slice(&value[..length]);
        u64::from_be_bytes(word)
    };
    match &column.values {
        Values::Int(values) | Values::Timestamp(values, _) => signed(values[row]),
        Values::UInt(values) => values[row],
        Values::Date(values) => signed(i64::from(values[row])),
        Values::Text(values) => bytes(values.value(row).as_bytes()),
        Values::Bytes(values) => bytes(values.value(row)),
        Values::Null | Values::Bool(_) | Values::Float(_) | Values::Decimal(..) | Values::List(..) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringViewArray};

    use super::*;

    fn batch(start: usize, numbers: Vec<Option<i64>>, texts: Vec<&str>) -> (usize, Vec<Column>) {
        let arrays: [ArrayRef; 2] =
            [Arc::new(Int64Array::from(numbers)), Arc::new(StringViewArray::from_iter_values(texts))];
        (start, arrays.iter().map(|array| Column::new(array).unwrap()).collect())
    }

    fn order(key: &[usize]) -> Vec<(u32, u32)> {
        let batches = [
            batch(0, vec![Some(2), Some(-1), Some(2)], vec!["b", "z", "a"]),
            batch(3, vec![None, Some(2), Some(-1)], vec!["n", "a", "z"]),
        ];
        places(&batches, 6, key).into_iter().map(|place| (place.batch, place.row)).collect()
    }

    #[test]
    fn rows_come_by_key_and_equal_keys_as_they_came() {
        assert_eq!(order(&[0, 1]), [(1, 0), (0, 1), (1, 2), (0, 2), (1, 1), (0, 0)]);
        assert_eq!(order(&[1]), [(0, 2), (1, 1), (0, 0), (1, 0), (0, 1), (1, 2)]);
    }

    #[test]
    fn without_a_key_rows_stay_as_they_came() {
        assert_eq!(order(&[]), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    }
}
