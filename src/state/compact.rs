//! Copies of what is kept, without the larger buffers it was cut from.
//!
//! `take` copies numbers and plain strings, but a view array (VARCHAR) goes on pointing into all the buffers it came
//! with, and would hold, and write into the checkpoint, the strings of every other pane.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, GenericListArray, OffsetSizeTrait, RecordBatch};
use arrow::array::{MapArray, StructArray};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

/// The same rows; arrays of views, however deep, in buffers of their own.
pub fn compact(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().map(array).collect::<Result<_, _>>()?;
    RecordBatch::try_new(batch.schema(), columns)
}

fn array(from: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !has_views(from.data_type()) {
        return Ok(Arc::clone(from));
    }
    Ok(match from.data_type() {
        DataType::Utf8View => Arc::new(from.as_string_view().gc()),
        DataType::BinaryView => Arc::new(from.as_binary_view().gc()),
        DataType::List(_) => Arc::new(list::<i32>(from.as_list())?),
        DataType::LargeList(_) => Arc::new(list::<i64>(from.as_list())?),
        DataType::FixedSizeList(field, size) => {
            let from: &FixedSizeListArray = from.as_fixed_size_list();
            let values = array(from.values())?;
            Arc::new(FixedSizeListArray::try_new(Arc::clone(field), *size, values, from.nulls().cloned())?)
        }
        DataType::Struct(fields) => {
            let from = from.as_struct();
            let columns = from.columns().iter().map(array).collect::<Result<_, _>>()?;
            Arc::new(StructArray::try_new(fields.clone(), columns, from.nulls().cloned())?)
        }
        DataType::Map(field, sorted) => {
            let from = from.as_map();
            let entries: ArrayRef = Arc::new(from.entries().clone());
            let entries = array(&entries)?.as_struct().clone();
            let (offsets, nulls) = (from.offsets().clone(), from.nulls().cloned());
            Arc::new(MapArray::try_new(Arc::clone(field), offsets, entries, nulls, *sorted)?)
        }
        _ => Arc::clone(from),
    })
}

fn list<O: OffsetSizeTrait>(from: &GenericListArray<O>) -> Result<GenericListArray<O>, ArrowError> {
    let field = match from.data_type() {
        DataType::List(field) | DataType::LargeList(field) => Arc::clone(field),
        other => return Err(ArrowError::InvalidArgumentError(format!("{other} is no list"))),
    };
    GenericListArray::try_new(field, from.offsets().clone(), array(from.values())?, from.nulls().cloned())
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) | DataType::Map(f, _) => {
            has_views(f.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|f| has_views(f.data_type())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ListArray, StringViewArray, UInt32Array};
    use arrow::buffer::OffsetBuffer;
    use arrow::compute::take_record_batch;
    use arrow::datatypes::Field;

    use super::*;

    #[test]
    fn a_part_does_not_hold_the_strings_of_the_whole() {
        let texts: ArrayRef =
            Arc::new(StringViewArray::from_iter_values((0..1_000).map(|i| format!("a long text {i:05}"))));
        let item = Arc::new(Field::new("item", DataType::Utf8View, true));
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(1, 1_000));
        let lists: ArrayRef = Arc::new(ListArray::new(item, offsets, Arc::clone(&texts), None));
        let whole = RecordBatch::try_from_iter([("t", texts), ("l", lists)]).unwrap();
        let part = take_record_batch(&whole, &UInt32Array::from(vec![7, 8])).unwrap();
        assert!(part.get_array_memory_size() > 10_000);
        let compacted = compact(&part).unwrap();
        assert_eq!(compacted, part);
        assert!(compacted.get_array_memory_size() < 2_000, "{}", compacted.get_array_memory_size());
    }
}
