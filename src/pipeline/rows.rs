//! Rows in an order that numbers them, and a hash that tells a true replay from another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::row::{RowConverter, SortField};
use datafusion::common::hash_utils::{RandomState, create_hashes};

use crate::{Error, Result};

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

/// Odd, so that no factor is lost: 2⁶⁴ divided by the golden ratio.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// Hashes of columns: what several INSERTs write of one source is hashed once. For the rows of one batch.
#[derive(Debug, Default)]
pub struct Digests {
    /// By the address of the column, which stays its own as long as the column is held here.
    known: Mutex<HashMap<usize, Arc<Digest>>>,
}

#[derive(Debug)]
struct Digest {
    column: ArrayRef,
    /// Or why it cannot be hashed.
    value: OnceLock<std::result::Result<u64, String>>,
}

impl Digests {
    /// Of the rows in their order, whatever batches they come in; 16 hex digits. NULLs and equal values hash alike however
    /// their buffers are laid out. Not stable from one version of DataFusion to the next.
    pub fn hash(&self, batches: &[RecordBatch]) -> Result<String> {
        let Some(first) = batches.first() else { return Ok(format!("{:016x}", 0)) };
        let mut columns = vec![0_u64; first.num_columns()];
        for batch in batches {
            // The values of a column are the coefficients of a polynomial, so that its parts can be put together. A batch is far
            // below 2³² rows.
            let shift = FACTOR.wrapping_pow(batch.num_rows() as u32);
            for (all, column) in columns.iter_mut().zip(batch.columns()) {
                *all = all.wrapping_mul(shift).wrapping_add(self.column(column)?);
            }
        }
        // NULLs hash to nothing: without their number those that come first would not be seen.
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let all =
            columns.into_iter().fold(rows as u64, |all, column| all.rotate_left(17).wrapping_mul(FACTOR) ^ column);
        Ok(format!("{all:016x}"))
    }

    fn column(&self, column: &ArrayRef) -> Result<u64> {
        let digest = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Digest { column: Arc::clone(column), value: OnceLock::new() });
            Arc::clone(known.entry(Arc::as_ptr(column).cast::<()>().addr()).or_insert_with(new))
        };
        let value = digest.value.get_or_init(|| {
            let mut values = vec![0; digest.column.len()];
            create_hashes([&digest.column], &RandomState::with_seed(0), &mut values).map_err(|e| e.to_string())?;
            Ok(values.iter().fold(0_u64, |all, value| all.wrapping_mul(FACTOR).wrapping_add(*value)))
        });
        value.clone().map_err(|e| Error::internal("a column cannot be hashed").cause(e))
    }
}

#[cfg(test)]
mod tests {
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
        let hash = |batches: &[RecordBatch]| Digests::default().hash(batches);
        let parts = [whole.slice(0, 1), whole.slice(1, 2)];
        assert_eq!(hash(std::slice::from_ref(&whole)).unwrap(), hash(&parts).unwrap());
        let swapped = [whole.slice(1, 2), whole.slice(0, 1)];
        assert_ne!(hash(&[whole]).unwrap(), hash(&swapped).unwrap());
    }

    #[test]
    fn a_value_in_another_row_or_column_is_another_hash() {
        let hash = |numbers: Vec<Option<i64>>, texts: Vec<Option<&str>>| {
            Digests::default().hash(&[batch(numbers, texts)]).unwrap()
        };
        let one = hash(vec![Some(1), Some(2), None], vec![Some("a"), Some("b"), None]);
        assert_ne!(one, hash(vec![Some(2), Some(1), None], vec![Some("a"), Some("b"), None]));
        assert_ne!(one, hash(vec![Some(1), Some(2), None], vec![Some("b"), Some("a"), None]));
        assert_ne!(one, hash(vec![Some(1), None, Some(2)], vec![Some("a"), Some("b"), None]));
        assert_ne!(one, hash(vec![Some(1), Some(2)], vec![Some("a"), Some("b")]));
        let same: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        let pair = |columns: Vec<(&str, ArrayRef)>| RecordBatch::try_from_iter(columns).unwrap();
        let other: ArrayRef = Arc::new(Int64Array::from(vec![7, 9]));
        let left = pair(vec![("a", Arc::clone(&same)), ("b", Arc::clone(&other))]);
        let right = pair(vec![("a", other), ("b", same)]);
        let digests = Digests::default();
        assert_ne!(
            digests.hash(std::slice::from_ref(&left)).unwrap(),
            digests.hash(std::slice::from_ref(&right)).unwrap()
        );
        // Asked again, of what is known.
        assert_eq!(digests.hash(std::slice::from_ref(&left)).unwrap(), Digests::default().hash(&[left]).unwrap());
        assert_eq!(digests.known.lock().unwrap().len(), 2);
    }
}
