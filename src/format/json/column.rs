//! One column under construction: takes values from the scanner, can be cut back to an earlier row, becomes an array.
//!
//! Cells are plain vectors rather than Arrow's builders, which cannot be cut back.
//!
//! Invariant: after `read` has returned `Ok` and after `push_null` the column, and all that is nested in it, is one
//! row longer. After an `Err` it may be anything from half to one row longer; `truncate` repairs that.

use std::borrow::Cow;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, TimeUnit};

use super::bytes::{Bytes, half_pair};
use super::fields::Fields;
use super::finish;
use super::number::{Exact, exact, float, special_float};
use super::reason::{Outcome, Reason, quote};
use super::scan::{Scanner, Text, Value, unescape};
use crate::format::time::{DAYS_MAX, DAYS_MIN, Instant, parse_date, parse_timestamp};
use crate::{Error, Result};

pub struct Column {
    name: String,
    data_type: DataType,
    pub valid: Vec<bool>,
    pub cells: Cells,
}

pub enum Cells {
    Boolean(Vec<bool>),
    /// All widths; UInt64 as the bits of an i64.
    Integer {
        values: Vec<i64>,
        min: i128,
        max: i128,
    },
    Float {
        values: Vec<f64>,
        single: bool,
    },
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Text(Bytes),
    /// Given as base64.
    Binary(Bytes),
    Timestamp {
        values: Vec<i64>,
        per_second: i64,
    },
    /// Days since 1970-01-01.
    Date(Vec<i32>),
    Struct(Fields),
    /// `ends` begins with 0.
    List {
        ends: Vec<i32>,
        items: Box<Column>,
    },
    Map {
        ends: Vec<i32>,
        keys: Bytes,
        values: Box<Column>,
    },
}

impl Column {
    /// # Errors
    /// A type that JSON cannot fill; a nested field that is declared NOT NULL, which a payload cannot promise.
    pub fn try_new(field: &Field) -> Result<Self> {
        Self::of_type(field.name(), field.data_type())
    }

    fn of_type(name: &str, data_type: &DataType) -> Result<Self> {
        let integer = |min, max| Cells::Integer { values: vec![], min, max };
        let cells = match data_type {
            DataType::Boolean => Cells::Boolean(vec![]),
            DataType::Int8 => integer(i8::MIN.into(), i8::MAX.into()),
            DataType::Int16 => integer(i16::MIN.into(), i16::MAX.into()),
            DataType::Int32 => integer(i32::MIN.into(), i32::MAX.into()),
            DataType::Int64 => integer(i64::MIN.into(), i64::MAX.into()),
            DataType::UInt8 => integer(0, u8::MAX.into()),
            DataType::UInt16 => integer(0, u16::MAX.into()),
            DataType::UInt32 => integer(0, u32::MAX.into()),
            DataType::UInt64 => integer(0, u64::MAX.into()),
            DataType::Float32 => Cells::Float { values: vec![], single: true },
            DataType::Float64 => Cells::Float { values: vec![], single: false },
            DataType::Decimal128(precision, scale) => {
                Cells::Decimal { values: vec![], precision: *precision, scale: *scale }
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Cells::Text(Bytes::default()),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Cells::Binary(Bytes::default()),
            DataType::Timestamp(unit, _) => Cells::Timestamp { values: vec![], per_second: per_second(*unit) },
            DataType::Date32 => Cells::Date(vec![]),
            DataType::Struct(fields) if !fields.is_empty() && fields.iter().all(|f| f.is_nullable()) => {
                Cells::Struct(Fields::try_new(fields)?)
            }
            DataType::List(item) if item.is_nullable() => {
                Cells::List { ends: vec![0], items: Box::new(Self::of_type("", item.data_type())?) }
            }
            DataType::Map(entry, _) => match entry.data_type() {
                DataType::Struct(fields) if is_text_map(fields) => Cells::Map {
                    ends: vec![0],
                    keys: Bytes::default(),
                    values: Box::new(Self::of_type("", fields[1].data_type())?),
                },
                _ => return Err(unfit(name, data_type)),
            },
            _ => return Err(unfit(name, data_type)),
        };
        Ok(Self { name: name.to_string(), data_type: data_type.clone(), valid: vec![], cells })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows, a half-read one included once its value has been taken.
    #[inline]
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    pub fn push_null(&mut self) {
        self.valid.push(false);
        match &mut self.cells {
            Cells::Boolean(values) => values.push(false),
            Cells::Integer { values, .. } | Cells::Timestamp { values, .. } => values.push(0),
            Cells::Float { values, .. } => values.push(0.0),
            Cells::Decimal { values, .. } => values.push(0),
            Cells::Date(values) => values.push(0),
            Cells::Text(bytes) | Cells::Binary(bytes) => bytes.push_null(),
            Cells::Struct(fields) => fields.push_null(),
            Cells::List { ends, .. } | Cells::Map { ends, .. } => ends.push(ends.last().copied().unwrap_or(0)),
        }
    }

    /// Cuts the column back to its first `rows` rows; they are all whole.
    pub fn truncate(&mut self, rows: usize) {
        self.valid.truncate(rows);
        let begin = |ends: &mut Vec<i32>| {
            ends.truncate(rows + 1);
            ends.last().copied().unwrap_or(0) as usize
        };
        match &mut self.cells {
            Cells::Boolean(values) => values.truncate(rows),
            Cells::Integer { values, .. } | Cells::Timestamp { values, .. } => values.truncate(rows),
            Cells::Float { values, .. } => values.truncate(rows),
            Cells::Decimal { values, .. } => values.truncate(rows),
            Cells::Date(values) => values.truncate(rows),
            Cells::Text(bytes) | Cells::Binary(bytes) => bytes.truncate(rows),
            Cells::Struct(fields) => fields.truncate(rows),
            Cells::List { ends, items } => items.truncate(begin(ends)),
            Cells::Map { ends, keys, values } => {
                let begin = begin(ends);
                keys.truncate(begin);
                values.truncate(begin);
            }
        }
    }

    /// Takes the next value of the payload as the next row.
    #[inline]
    pub fn read(&mut self, scan: &mut Scanner<'_>) -> Outcome<()> {
        let start = scan.next_at();
        let value = scan.value()?;
        if matches!(value, Value::Null) {
            self.push_null();
            return Ok(());
        }
        let rows = self.len();
        match (&mut self.cells, value) {
            (Cells::Text(bytes), Value::Text(text)) => bytes.push_text(text)?,
            (Cells::Text(bytes), value) => {
                scan.skip(value)?;
                bytes.push(scan.since(start).as_bytes(), start)?;
            }
            (Cells::Binary(bytes), Value::Text(text)) => {
                bytes.push_base64(&resolve(text)?, scan.since(start), start)?;
            }
            (Cells::Struct(fields), Value::Object) => fields.read(rows, scan)?,
            (Cells::List { ends, items }, Value::List) => read_list(ends, items, scan)?,
            (Cells::Map { ends, keys, values }, Value::Object) => read_map(ends, keys, values, scan)?,
            (cells, Value::Bool(value)) => {
                let Cells::Boolean(values) = cells else {
                    return Err(cells.refuse(value_name(scan, start, None), start));
                };
                values.push(value);
            }
            (cells, Value::Number(number)) => cells.push_number(number, number, start)?,
            (cells, Value::Text(text)) => cells.push_text(&resolve(text)?, scan.since(start), start)?,
            (cells, value) => return Err(cells.refuse(value_name(scan, start, Some(value)), start)),
        }
        self.valid.push(true);
        Ok(())
    }

    /// The rows as an array of the declared type; the column is empty afterwards.
    pub fn finish(&mut self) -> Result<ArrayRef> {
        finish::array(&self.data_type, finish::taken(&mut self.valid), &mut self.cells)
    }
}

impl Cells {
    /// A number, or the inside of a string that should be one. `shown` is how the value stands in the payload.
    #[inline]
    fn push_number(&mut self, number: &str, shown: &str, start: usize) -> Outcome<()> {
        let wrong = |what: &str| Err(Reason::value(format!("{} {what}", quote(shown)), start));
        match self {
            Cells::Integer { values, min, max } => match exact(number, 0) {
                // The low 64 bits: what `finish` takes for UInt64.
                Exact::Value(value) if (*min..=*max).contains(&value) => values.push(value as i64),
                Exact::Value(_) | Exact::TooLarge => return wrong(&format!("is not between {min} and {max}")),
                Exact::Fraction | Exact::NotANumber => return wrong("is not an integer"),
            },
            Cells::Float { values, single } => match float(number, *single) {
                Some(value) if value.is_finite() => values.push(value),
                Some(_) => {
                    return wrong(&format!("is too large for a float of {} bits", if *single { 32 } else { 64 }));
                }
                None => return wrong("is not a number"),
            },
            Cells::Decimal { values, precision, scale } => match exact(number, *scale) {
                Exact::Value(value) if value.unsigned_abs() < 10_u128.pow(u32::from(*precision)) => values.push(value),
                Exact::Value(_) | Exact::TooLarge => {
                    return wrong(&format!("does not fit into DECIMAL({precision}, {scale})"));
                }
                Exact::Fraction => return wrong(&format!("has more than {scale} decimal places")),
                Exact::NotANumber => return wrong("is not a number"),
            },
            Cells::Timestamp { values, per_second } => {
                const BEGIN: i128 = DAYS_MIN as i128 * 86_400_000;
                const END: i128 = (DAYS_MAX + 1) as i128 * 86_400_000;
                let millis = match exact(number, 0) {
                    Exact::Value(millis) if (BEGIN..END).contains(&millis) => millis as i64,
                    Exact::Value(_) | Exact::TooLarge => {
                        return wrong("is not between the years 1 and 9999 in milliseconds since 1970");
                    }
                    Exact::Fraction | Exact::NotANumber => return wrong("is not a whole number of milliseconds"),
                };
                let instant =
                    Instant { seconds: millis.div_euclid(1_000), nanos: millis.rem_euclid(1_000) * 1_000_000 };
                match instant.in_units(*per_second) {
                    Some(value) => values.push(value),
                    None => return wrong("is beyond what nanoseconds can count"),
                }
            }
            Cells::Date(values) => match exact(number, 0) {
                Exact::Value(days) if (i128::from(DAYS_MIN)..=i128::from(DAYS_MAX)).contains(&days) => {
                    values.push(days as i32);
                }
                Exact::Value(_) | Exact::TooLarge => {
                    return wrong("is not between the years 1 and 9999 in days since 1970");
                }
                Exact::Fraction | Exact::NotANumber => return wrong("is not a date"),
            },
            _ => return Err(self.refuse(quote(shown), start)),
        }
        Ok(())
    }

    /// A string for a column that is not text.
    fn push_text(&mut self, text: &str, shown: &str, start: usize) -> Outcome<()> {
        match self {
            Cells::Timestamp { values, per_second } => match parse_timestamp(text.as_bytes()) {
                Some(instant) => match instant.in_units(*per_second) {
                    Some(value) => values.push(value),
                    None => {
                        let text = format!("{} is beyond what nanoseconds can count", quote(shown));
                        return Err(Reason::value(text, start));
                    }
                },
                None => return Err(self.refuse(quote(shown), start)),
            },
            Cells::Date(values) => match parse_date(text.as_bytes()) {
                Some(days) => values.push(days as i32),
                None => return Err(self.refuse(quote(shown), start)),
            },
            Cells::Boolean(values) if text == "true" || text == "false" => values.push(text == "true"),
            Cells::Float { values, .. } if special_float(text).is_some() => values.extend(special_float(text)),
            Cells::Integer { .. } | Cells::Float { .. } | Cells::Decimal { .. } => {
                return self.push_number(text, shown, start);
            }
            _ => return Err(self.refuse(quote(shown), start)),
        }
        Ok(())
    }

    #[cold]
    fn refuse(&self, value: impl std::fmt::Display, start: usize) -> Box<Reason> {
        let wanted = match self {
            Cells::Boolean(_) => "true or false",
            Cells::Integer { .. } => "an integer",
            Cells::Float { .. } | Cells::Decimal { .. } => "a number",
            Cells::Text(_) => "text",
            Cells::Binary(_) => "base64",
            Cells::Timestamp { .. } => "a timestamp",
            Cells::Date(_) => "a date",
            Cells::Struct(_) | Cells::Map { .. } => "an object",
            Cells::List { .. } => "a list",
        };
        Reason::value(format!("{value} is not {wanted}"), start)
    }
}

fn value_name<'p>(scan: &Scanner<'p>, start: usize, value: Option<Value<'p>>) -> Cow<'p, str> {
    match value {
        Some(Value::Object) => "an object".into(),
        Some(Value::List) => "a list".into(),
        _ => quote(scan.since(start)),
    }
}

fn resolve(text: Text<'_>) -> Outcome<Cow<'_, str>> {
    if !text.escaped {
        return Ok(text.raw.into());
    }
    let mut out = Vec::with_capacity(text.raw.len());
    unescape(text.raw, &mut out).map_err(|at| half_pair(text, at))?;
    Ok(String::from_utf8_lossy(&out).into_owned().into())
}

fn read_list(ends: &mut Vec<i32>, items: &mut Column, scan: &mut Scanner<'_>) -> Outcome<()> {
    let begin = items.len();
    let mut first = true;
    while scan.item(first)? {
        first = false;
        let index = items.len() - begin;
        items.read(scan).map_err(|reason| reason.within(&format!("[{index}]")))?;
    }
    ends.push(end(items.len(), scan)?);
    Ok(())
}

fn read_map(ends: &mut Vec<i32>, keys: &mut Bytes, values: &mut Column, scan: &mut Scanner<'_>) -> Outcome<()> {
    let begin = values.len();
    let start = scan.next_at();
    let mut first = true;
    while let Some(key) = scan.key(first)? {
        first = false;
        keys.push_text(key)?;
        values.read(scan).map_err(|reason| reason.within(&format!("[\"{}\"]", quote(key.raw))))?;
    }
    if let Some(twice) = keys.duplicate(begin) {
        let key = String::from_utf8_lossy(&twice);
        return Err(Reason::value("given twice", start).within(&format!("[{:?}]", quote(&key))));
    }
    ends.push(end(values.len(), scan)?);
    Ok(())
}

/// An offset of a list: 32 bits, which a chunk of less than 2 GiB of payload cannot exceed.
fn end(rows: usize, scan: &mut Scanner<'_>) -> Outcome<i32> {
    let at = scan.next_at();
    i32::try_from(rows).map_err(|_| Reason::value("more than 2,147,483,647 items in one chunk", at))
}

pub fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn is_text_map(fields: &arrow::datatypes::Fields) -> bool {
    let text = |data_type: &DataType| matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    fields.len() == 2 && text(fields[0].data_type()) && fields[1].is_nullable()
}

fn unfit(name: &str, data_type: &DataType) -> Error {
    Error::user(format!("column {name:?} has type {data_type}, which JSON payloads cannot fill")).hint(
        "declare it VARCHAR to get the JSON text of the value; fields inside STRUCT, LIST and MAP must be nullable",
    )
}
