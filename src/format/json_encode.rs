//! Rows as JSON objects, one text per row: what a Kafka value holds.
//!
//! arrow-json's encoders write the values, except where their form is not ours:
//!
//! | type | text |
//! |---|---|
//! | NULL | `null`: the field is always there |
//! | BOOLEAN, integers, floats | as such; floats in the shortest form that reads back the same |
//! | NaN, infinities | `null`: JSON has no number for them |
//! | DECIMAL | a number with all its digits: readers that go through a double lose some of them |
//! | VARCHAR | a string; control characters, `"` and `\` escaped, all else as UTF-8 |
//! | BYTEA | a string of base64 (RFC 4648 with padding, as Kafka Connect does), also inside lists and structs |
//! | DATE | `"2024-01-31"` |
//! | TIMESTAMP | `"2024-01-31T00:00:00.000000"`, as many decimals as the column has |
//! | TIMESTAMPTZ | the same in UTC, with `Z` |
//! | STRUCT, MAP; LIST | an object; a list |
//!
//! Fields stand in the order asked for, nothing depends on the other rows: the same row is always the same bytes.
//! What is written here is read back by [`JsonDecoder`](super::json::JsonDecoder) into equal columns (a property test),
//! NaN excepted.

use std::sync::Arc;

use arrow::array::{Array, ArrayAccessor, AsArray, RecordBatch, StringArray, StringBuilder};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{
    DataType, Date32Type, FieldRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use arrow::error::ArrowError;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};

use super::{base64, time};
use crate::{Error, Result};

/// The JSON texts of the rows of one batch.
#[derive(Debug, Default)]
pub struct EncodedRows {
    bytes: Vec<u8>,
    /// Where each row's text ends in `bytes`.
    ends: Vec<usize>,
}

impl EncodedRows {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text of one row; empty if there is no such row.
    pub fn row(&self, index: usize) -> &[u8] {
        let begin = if index == 0 { Some(&0) } else { self.ends.get(index - 1) };
        match (begin, self.ends.get(index)) {
            (Some(begin), Some(end)) => &self.bytes[*begin..*end],
            _ => &[],
        }
    }

    /// Appends a row: what `write` appends to the bytes.
    pub fn push_with<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let result = write(&mut self.bytes);
        self.ends.push(self.bytes.len());
        result
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.row(index))
    }
}

/// One JSON text per value, NULL where it is NULL: nested values in a format that has no place for them.
///
/// # Errors
/// A type that JSON has no form for.
pub fn encode_values(field: &FieldRef, array: &dyn Array) -> Result<StringArray> {
    let options = options();
    let mut encoder = make_encoder(field, array, &options).map_err(|cause| unfit(field, cause))?;
    let mut texts = StringBuilder::new();
    let mut text = vec![];
    for row in 0..array.len() {
        if encoder.is_null(row) {
            texts.append_null();
            continue;
        }
        text.clear();
        encoder.encode(row, &mut text);
        texts.append_value(String::from_utf8_lossy(&text));
    }
    Ok(texts.finish())
}

fn options() -> EncoderOptions {
    EncoderOptions::default().with_explicit_nulls(true).with_encoder_factory(Arc::new(Forms))
}

fn unfit(field: &FieldRef, cause: ArrowError) -> Error {
    let (name, data_type) = (field.name(), field.data_type());
    Error::user(format!("column {name:?} has type {data_type}, which JSON has no form for")).cause(cause)
}

/// One object per row, of the columns named by position, in that order.
///
/// # Errors
/// A column does not exist, or has a type that JSON has no form for (a union, a map whose keys are not text).
pub fn encode_rows(batch: &RecordBatch, columns: &[usize]) -> Result<EncodedRows> {
    let options = options();
    let schema = batch.schema();
    let mut encoders = Vec::with_capacity(columns.len());
    for (position, column) in columns.iter().enumerate() {
        let (Some(field), Some(array)) = (schema.fields().get(*column), batch.columns().get(*column)) else {
            return Err(Error::internal(format!(
                "column {column} of {} is to be written as JSON",
                batch.num_columns()
            )));
        };
        let encoder = make_encoder(field, array, &options).map_err(|cause| unfit(field, cause))?;
        let name = serde_json::Value::from(field.name().as_str());
        encoders.push((format!("{}{name}:", if position == 0 { '{' } else { ',' }), encoder));
    }
    let mut rows = EncodedRows { bytes: vec![], ends: Vec::with_capacity(batch.num_rows()) };
    for row in 0..batch.num_rows() {
        if encoders.is_empty() {
            rows.bytes.push(b'{');
        }
        for (name, encoder) in &mut encoders {
            rows.bytes.extend_from_slice(name.as_bytes());
            if encoder.is_null(row) {
                rows.bytes.extend_from_slice(b"null");
            } else {
                encoder.encode(row, &mut rows.bytes);
            }
        }
        rows.bytes.push(b'}');
        rows.ends.push(rows.bytes.len());
    }
    Ok(rows)
}

/// The types whose text differs from arrow-json's (hexadecimal, fractions of varying length, errors within the text).
#[derive(Debug)]
struct Forms;

impl EncoderFactory for Forms {
    /// `array` may be of another type than `field` (values of a dictionary, keys of a map): the array counts.
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => Box::new(Base64(array.as_binary::<i32>())),
            DataType::LargeBinary => Box::new(Base64(array.as_binary::<i64>())),
            DataType::BinaryView => Box::new(Base64(array.as_binary_view())),
            DataType::FixedSizeBinary(_) => Box::new(Base64(array.as_fixed_size_binary())),
            DataType::Date32 => Box::new(Date(array.as_primitive::<Date32Type>().values().clone())),
            DataType::Timestamp(unit, zone) => Box::new(match unit {
                TimeUnit::Second => Timestamp::new(array.as_primitive::<TimestampSecondType>().values(), 1, zone),
                TimeUnit::Millisecond => {
                    Timestamp::new(array.as_primitive::<TimestampMillisecondType>().values(), 1_000, zone)
                }
                TimeUnit::Microsecond => {
                    Timestamp::new(array.as_primitive::<TimestampMicrosecondType>().values(), 1_000_000, zone)
                }
                TimeUnit::Nanosecond => {
                    Timestamp::new(array.as_primitive::<TimestampNanosecondType>().values(), 1_000_000_000, zone)
                }
            }),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Base64<A>(A);

impl<'a, A: ArrayAccessor<Item = &'a [u8]>> Encoder for Base64<A> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        base64::encode(self.0.value(row), out);
        out.push(b'"');
    }
}

struct Date(ScalarBuffer<i32>);

impl Encoder for Date {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        time::write_date(self.0[row].into(), out);
        out.push(b'"');
    }
}

struct Timestamp {
    values: ScalarBuffer<i64>,
    per_second: i64,
    end: &'static [u8],
}

impl Timestamp {
    fn new<Z>(values: &ScalarBuffer<i64>, per_second: i64, zone: &Option<Z>) -> Self {
        Self { values: values.clone(), per_second, end: if zone.is_some() { b"Z\"" } else { b"\"" } }
    }
}

impl Encoder for Timestamp {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        time::write_timestamp(self.values[row], self.per_second, out);
        out.extend_from_slice(self.end);
    }
}

#[cfg(test)]
pub(in crate::format) mod tests;
