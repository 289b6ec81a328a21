//! Rows in an order that numbers them, and a hash that tells a true replay from another.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::row::{RowConverter, SortField};
use datafusion::common::hash_utils::{RandomState, create_hashes};

use crate::Result;

/// Sorts by all columns, in their order: a total order up to rows that are equal.
pub fn sort(batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let Some(first) = batches.first() else { return Ok(batches) };
    let all = concat_batches(&first.schema(), &batches)?;
    if all.num_rows() < 2 {
        return Ok(vec![all]);
    }
    let fields = all.schema().fields().iter().map(|f| SortField::new(f.data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let rows = converter.convert_columns(all.columns())?;
    let mut order: Vec<u32> = (0..u32::try_from(all.num_rows()).unwrap_or(u32::MAX)).collect();
    order.sort_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
    Ok(vec![take_record_batch(&all, &UInt32Array::from(order))?])
}

/// Of the rows in their order, whatever batches they come in; 16 hex digits. NULLs and equal values hash alike however
/// their buffers are laid out. Not stable from one version of DataFusion to the next.
pub fn hash(batches: &[RecordBatch]) -> Result<String> {
    let state = RandomState::with_seed(0);
    let mut all = 0_u64;
    for batch in batches {
        let mut rows = vec![0; batch.num_rows()];
        let columns: &[ArrayRef] = batch.columns();
        create_hashes(columns, &state, &mut rows)?;
        for row in rows {
            all = all.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(row).rotate_left(17);
        }
    }
    Ok(format!("{all:016x}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringViewArray};

    use super::*;

    fn batch(numbers: Vec<Option<i64>>, texts: Vec<Option<&str>>) -> RecordBatch {
        let columns: Vec<(&str, ArrayRef)> =
            vec![("n", Arc::new(Int64Array::from(numbers))), ("t", Arc::new(StringViewArray::from(texts)))];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap()
    }

    #[test]
    fn the_order_does_not_depend_on_how_rows_came() {
        let one = sort(vec![batch(vec![Some(2), None], vec![Some("b"), None]), batch(vec![Some(1)], vec![Some("a")])]);
        let other = sort(vec![batch(vec![Some(1), Some(2), None], vec![Some("a"), Some("b"), None])]);
        assert_eq!(one.unwrap(), other.unwrap());
    }

    #[test]
    fn the_hash_is_of_rows_not_of_batches() {
        let whole = batch(vec![Some(1), None, Some(3)], vec![Some("a"), None, Some("a text longer than twelve bytes")]);
        let parts = [whole.slice(0, 1), whole.slice(1, 2)];
        assert_eq!(hash(std::slice::from_ref(&whole)).unwrap(), hash(&parts).unwrap());
        let swapped = [whole.slice(1, 2), whole.slice(0, 1)];
        assert_ne!(hash(&[whole]).unwrap(), hash(&swapped).unwrap());
    }
}
