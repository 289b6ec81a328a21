//! Values of a database into Arrow columns of the declared types.
//!
//! A column is built in its widest form and cast once per batch, strictly: a value that the declared type cannot hold is
//! an error, never a NULL.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int64Builder,
    ListArray, NullBufferBuilder, StringViewBuilder,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef};

pub(super) enum Builder {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    /// With the digits after the point.
    Decimal(Decimal128Builder, u32),
    Text(StringViewBuilder),
    Bytes(BinaryViewBuilder),
    /// µs since 1970.
    Timestamp(Int64Builder),
    Date(Date32Builder),
    List {
        field: FieldRef,
        offsets: Vec<i32>,
        valid: NullBufferBuilder,
        items: Box<Builder>,
    },
}

impl Builder {
    /// `None`: no database has such a type.
    pub fn new(declared: &DataType) -> Option<Self> {
        use DataType::*;
        Some(match declared {
            Boolean => Self::Bool(BooleanBuilder::new()),
            Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 => Self::Int(Int64Builder::new()),
            Float32 | Float64 => Self::Float(Float64Builder::new()),
            Decimal128(precision, scale) => {
                let builder = Decimal128Builder::new().with_precision_and_scale(*precision, *scale).ok()?;
                Self::Decimal(builder, u32::try_from(*scale).ok()?)
            }
            Utf8 | LargeUtf8 | Utf8View => Self::Text(StringViewBuilder::new()),
            Dictionary(_, value) => Self::new(value)?,
            Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Self::Bytes(BinaryViewBuilder::new()),
            Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => Self::Timestamp(Int64Builder::new()),
            Date32 => Self::Date(Date32Builder::new()),
            List(field) | LargeList(field) => {
                let items = Box::new(Self::new(field.data_type())?);
                Self::List { field: field.clone(), offsets: vec![0], valid: NullBufferBuilder::new(0), items }
            }
            _ => return None,
        })
    }

    pub fn null(&mut self) {
        match self {
            Self::Bool(b) => b.append_null(),
            Self::Int(b) | Self::Timestamp(b) => b.append_null(),
            Self::Float(b) => b.append_null(),
            Self::Decimal(b, _) => b.append_null(),
            Self::Text(b) => b.append_null(),
            Self::Bytes(b) => b.append_null(),
            Self::Date(b) => b.append_null(),
            Self::List { offsets, valid, .. } => {
                offsets.push(offsets.last().copied().unwrap_or(0));
                valid.append_null();
            }
        }
    }

    /// Ends a list whose items were appended to `items`.
    ///
    /// # Errors
    /// More items in a batch than a list column can count.
    pub fn end_list(&mut self) -> Result<(), String> {
        if let Self::List { offsets, valid, items, .. } = self {
            offsets.push(i32::try_from(items.len()).map_err(|_| "too many items in lists")?);
            valid.append_non_null();
        }
        Ok(())
    }

    fn len(&self) -> usize {
        use arrow::array::ArrayBuilder;
        match self {
            Self::Bool(b) => b.len(),
            Self::Int(b) | Self::Timestamp(b) => b.len(),
            Self::Float(b) => b.len(),
            Self::Decimal(b, _) => b.len(),
            Self::Text(b) => b.len(),
            Self::Bytes(b) => b.len(),
            Self::Date(b) => b.len(),
            Self::List { offsets, .. } => offsets.len() - 1,
        }
    }

    /// The values so far as the declared type; the builder is empty again.
    ///
    /// # Errors
    /// A value does not fit the declared type.
    pub fn finish(&mut self, declared: &DataType) -> Result<ArrayRef, arrow::error::ArrowError> {
        let array: ArrayRef = match self {
            Self::Bool(b) => Arc::new(b.finish()),
            Self::Int(b) | Self::Timestamp(b) => Arc::new(b.finish()),
            Self::Float(b) => Arc::new(b.finish()),
            Self::Decimal(b, _) => Arc::new(b.finish()),
            Self::Text(b) => Arc::new(b.finish()),
            Self::Bytes(b) => Arc::new(b.finish()),
            Self::Date(b) => Arc::new(b.finish()),
            Self::List { field, offsets, valid, items } => {
                let offsets = OffsetBuffer::new(std::mem::replace(offsets, vec![0]).into());
                Arc::new(ListArray::try_new(field.clone(), offsets, items.finish(field.data_type())?, valid.finish())?)
            }
        };
        if array.data_type() == declared {
            return Ok(array);
        }
        cast_with_options(&array, declared, &CastOptions { safe: false, ..CastOptions::default() })
    }
}

/// `text` (`-12.340`) as an integer in units of the last of `scale` digits.
pub(super) fn decimal(text: &str, scale: u32) -> Result<i128, String> {
    let misfit = || format!("{text:?} does not fit a decimal with {scale} digits after the point");
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, behind) = digits.split_once('.').unwrap_or((digits, ""));
    let behind = behind.trim_end_matches('0');
    let missing = (scale as usize).checked_sub(behind.len()).ok_or_else(misfit)?;
    if whole.is_empty() && behind.is_empty() || !whole.bytes().chain(behind.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(misfit());
    }
    let mut value: i128 = 0;
    let padding = std::iter::repeat_n(b'0', missing);
    for digit in whole.bytes().chain(behind.bytes()).chain(padding) {
        let next = value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit - b'0')));
        value = next.ok_or_else(misfit)?;
    }
    Ok(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn decimals_are_exact() {
        assert_eq!(decimal("-12.340", 2), Ok(-1234));
        assert_eq!(decimal("0.5", 4), Ok(5000));
        assert_eq!(decimal("7", 0), Ok(7));
        assert!(decimal("0.123", 2).is_err());
        assert!(decimal("NaN", 2).is_err());
        assert!(decimal("", 2).is_err());
        assert!(decimal("99999999999999999999999999999999999999999", 2).is_err());
    }
}
