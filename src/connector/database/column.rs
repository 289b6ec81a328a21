//! Arrow columns in the few physical forms that the encoders of the databases read.
//!
//! A batch's columns are converted once, whole (small integers to 64 bits, strings to views, dictionaries unpacked), so
//! that an encoder needs one branch per logical type and no work per value. Strings and bytes keep their buffers.

use arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, MAX_INLINE_VIEW_LEN, StringViewArray};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType, UInt64Type,
};

use crate::{Error, Result};

pub(super) struct Column {
    nulls: Option<NullBuffer>,
    pub values: Values,
    /// Whether a text has the character U+0000, which PostgreSQL cannot hold; perhaps one that the views do not show.
    pub may_have_nul: bool,
}

pub(super) enum Values {
    Null,
    Bool(BooleanBuffer),
    Int(ScalarBuffer<i64>),
    UInt(ScalarBuffer<u64>),
    Float(ScalarBuffer<f64>),
    /// With the digits after the point.
    Decimal(ScalarBuffer<i128>, u32),
    Text(StringViewArray),
    Bytes(BinaryViewArray),
    /// µs since 1970; `true` if it has a zone (then UTC).
    Timestamp(ScalarBuffer<i64>, bool),
    /// Days since 1970.
    Date(ScalarBuffer<i32>),
    List(OffsetBuffer<i32>, Box<Column>),
}

impl Column {
    /// # Errors
    /// A type that [`supported`] does not name (internal: it is asked when the table is opened).
    pub fn new(array: &ArrayRef) -> Result<Self> {
        let wide = match array.data_type() {
            DataType::Dictionary(_, value) => return Self::new(&cast(array, value)?),
            DataType::Int8 | DataType::Int16 | DataType::Int32 => cast(array, &DataType::Int64)?,
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => cast(array, &DataType::Int64)?,
            DataType::Float32 => cast(array, &DataType::Float64)?,
            DataType::Utf8 | DataType::LargeUtf8 => cast(array, &DataType::Utf8View)?,
            DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) => {
                cast(array, &DataType::BinaryView)?
            }
            DataType::LargeList(item) => cast(array, &DataType::List(item.clone()))?,
            _ => array.clone(),
        };
        let values = match wide.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Bool(wide.as_boolean().values().clone()),
            DataType::Int64 => Values::Int(wide.as_primitive::<Int64Type>().values().clone()),
            DataType::UInt64 => Values::UInt(wide.as_primitive::<UInt64Type>().values().clone()),
            DataType::Float64 => Values::Float(wide.as_primitive::<Float64Type>().values().clone()),
            DataType::Decimal128(_, scale) => {
                let scale = u32::try_from(*scale).map_err(|_| unexpected(wide.data_type()))?;
                Values::Decimal(wide.as_primitive::<Decimal128Type>().values().clone(), scale)
            }
            DataType::Utf8View => Values::Text(wide.as_string_view().clone()),
            DataType::BinaryView => Values::Bytes(wide.as_binary_view().clone()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                Values::Timestamp(wide.as_primitive::<TimestampMicrosecondType>().values().clone(), zone.is_some())
            }
            DataType::Date32 => Values::Date(wide.as_primitive::<Date32Type>().values().clone()),
            DataType::List(_) => {
                let list = wide.as_list::<i32>();
                Values::List(list.offsets().clone(), Box::new(Self::new(list.values())?))
            }
            other => return Err(unexpected(other)),
        };
        let may_have_nul = matches!(&values, Values::Text(texts) if may_have_nul(texts));
        Ok(Self { nulls: wide.nulls().cloned(), values, may_have_nul })
    }

    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        matches!(self.values, Values::Null) || self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }
}

/// One pass over the bytes instead of a search in each value.
fn may_have_nul(texts: &StringViewArray) -> bool {
    const ONES: u128 = u128::MAX / 255;
    let is_inline_nul = |view: &u128| {
        let length = *view as u32;
        if length > MAX_INLINE_VIEW_LEN {
            return false;
        }
        // The bytes of the text, all others not 0; then the test of Mycroft for a zero byte.
        let bytes = (*view >> 32) | u128::MAX.checked_shl(8 * length).unwrap_or(0);
        bytes.wrapping_sub(ONES) & !bytes & (ONES << 7) != 0
    };
    texts.data_buffers().iter().any(|buffer| memchr::memchr(0, buffer).is_some())
        || texts.views().iter().any(is_inline_nul)
}

fn unexpected(data_type: &DataType) -> Error {
    Error::internal(format!("a column of type {data_type} reached a database"))
}

/// Whether values of this type can be written to any database at all.
pub(super) fn supported(data_type: &DataType) -> bool {
    use DataType::*;
    match data_type {
        Null | Boolean | Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 | Float32 | Float64 => true,
        Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_) | Date32 => true,
        Decimal128(_, scale) => *scale >= 0,
        Timestamp(TimeUnit::Microsecond, _) => true,
        Dictionary(_, value) => !matches!(value.as_ref(), Dictionary(..)) && supported(value),
        List(item) | LargeList(item) => {
            !matches!(item.data_type(), List(_) | LargeList(_)) && supported(item.data_type())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_is_seen_wherever_it_stands_and_none_is_seen_where_none_is() {
        let may = |texts: &[&str]| may_have_nul(&StringViewArray::from_iter_values(texts.iter().copied()));
        for length in 0..40 {
            let text = "x".repeat(length);
            assert!(!may(&[&text, "é\u{80}\u{1}"]), "{length}");
            for at in 0..length {
                let mut text = text.clone();
                text.replace_range(at..=at, "\0");
                assert!(may(&["other", &text]), "{length} {at}");
            }
        }
    }
}
