//! Finished cells as Arrow arrays of the declared type.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, ListArray,
    MapArray, PrimitiveArray, StringViewArray, StructArray, UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowTimestampType, DataType, Fields, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;

use super::bytes::Bytes;
use super::column::Cells;
use crate::{Error, Result};

/// A full vector for an empty one, with room for as much again, for a vector that grows is copied on its way; without
/// much room that was left: what waits in a queue should be charged for what it holds.
pub fn taken<T>(values: &mut Vec<T>) -> Vec<T> {
    let length = values.len();
    let mut values = std::mem::replace(values, Vec::with_capacity(length + length / 16));
    if values.capacity() > length + length / 4 {
        values.shrink_to_fit();
    }
    values
}

/// Empties `cells`. The casts are to narrower or differently laid out forms of values that were checked to fit.
pub fn array(data_type: &DataType, valid: Vec<bool>, cells: &mut Cells) -> Result<ArrayRef> {
    let nulls = valid.contains(&false).then(|| NullBuffer::from(valid));
    let array: ArrayRef = match cells {
        Cells::Boolean(values) => Arc::new(BooleanArray::new(taken(values).into(), nulls)),
        Cells::Integer { values, .. } if *data_type == DataType::UInt64 => {
            let values: Vec<u64> = taken(values).into_iter().map(|bits| bits as u64).collect();
            Arc::new(UInt64Array::try_new(values.into(), nulls)?)
        }
        Cells::Integer { values, .. } => Arc::new(Int64Array::try_new(taken(values).into(), nulls)?),
        Cells::Float { values, .. } => Arc::new(Float64Array::try_new(taken(values).into(), nulls)?),
        Cells::Decimal { values, precision, scale } => {
            let array = Decimal128Array::try_new(taken(values).into(), nulls)?;
            Arc::new(array.with_precision_and_scale(*precision, *scale)?)
        }
        Cells::Date(values) => Arc::new(Date32Array::try_new(taken(values).into(), nulls)?),
        Cells::Timestamp { values, .. } => timestamps(data_type, taken(values), nulls)?,
        Cells::Text(bytes) => {
            let (views, data) = parts(bytes);
            Arc::new(StringViewArray::try_new(views.into(), data, nulls)?)
        }
        Cells::Binary(bytes) => {
            let (views, data) = parts(bytes);
            Arc::new(BinaryViewArray::try_new(views.into(), data, nulls)?)
        }
        Cells::Struct(inner) => {
            let DataType::Struct(fields) = data_type else { return Err(mismatch(data_type)) };
            Arc::new(StructArray::try_new(fields.clone(), inner.finish()?, nulls)?)
        }
        Cells::List { ends, items } => {
            let DataType::List(item) = data_type else { return Err(mismatch(data_type)) };
            Arc::new(ListArray::try_new(Arc::clone(item), offsets(ends), items.finish()?, nulls)?)
        }
        Cells::Map { ends, keys, values } => {
            let DataType::Map(entry, ordered) = data_type else { return Err(mismatch(data_type)) };
            let DataType::Struct(fields) = entry.data_type() else { return Err(mismatch(data_type)) };
            let entries = entries(fields, keys, values.finish()?)?;
            Arc::new(MapArray::try_new(Arc::clone(entry), offsets(ends), entries, nulls, *ordered)?)
        }
    };
    if array.data_type() == data_type { Ok(array) } else { Ok(cast(&array, data_type)?) }
}

fn parts(bytes: &mut Bytes) -> (Vec<u128>, Vec<Buffer>) {
    let data = taken(&mut bytes.data);
    (taken(&mut bytes.views), if data.is_empty() { vec![] } else { vec![data.into()] })
}

fn offsets(ends: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let ends = std::mem::replace(ends, vec![0]);
    OffsetBuffer::new(ends.into())
}

fn entries(fields: &Fields, keys: &mut Bytes, values: ArrayRef) -> Result<StructArray, ArrowError> {
    let (views, data) = parts(keys);
    let keys: ArrayRef = Arc::new(StringViewArray::try_new(views.into(), data, None)?);
    StructArray::try_new(fields.clone(), vec![cast(&keys, fields[0].data_type())?, values], None)
}

fn timestamps(data_type: &DataType, values: Vec<i64>, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    fn of<T: ArrowTimestampType>(
        data_type: &DataType,
        values: Vec<i64>,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef> {
        let array = PrimitiveArray::<T>::try_new(values.into(), nulls)?;
        Ok(Arc::new(array.with_data_type(data_type.clone())))
    }
    match data_type {
        DataType::Timestamp(TimeUnit::Second, _) => of::<TimestampSecondType>(data_type, values, nulls),
        DataType::Timestamp(TimeUnit::Millisecond, _) => of::<TimestampMillisecondType>(data_type, values, nulls),
        DataType::Timestamp(TimeUnit::Microsecond, _) => of::<TimestampMicrosecondType>(data_type, values, nulls),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => of::<TimestampNanosecondType>(data_type, values, nulls),
        _ => Err(mismatch(data_type)),
    }
}

/// The cells were made from the type, so this cannot happen.
fn mismatch(data_type: &DataType) -> Error {
    Error::internal(format!("cells of a JSON column do not fit its type {data_type}"))
}
