//! JSON payloads into Arrow columns: one payload is one row, whatever it holds.
//!
//! ```text
//! payload bytes ──▶ [scan] ──▶ [column], one per declared column ──▶ arrays
//!                      └── reason ──▶ a row of NULLs, `_error` and `_raw` filled by the caller
//! ```
//!
//! The scanner is driven by the declared columns and writes straight into their cells; a payload that does not fit
//! has its half-written cells cut back, so the rows before and after it stay. arrow-json was not taken: one bad record
//! loses its batch, it reads 1.5 as the integer 1, and an empty payload shifts rows against offsets. Why not
//! serde_json: see [`scan`].
//!
//! # What becomes of a payload
//!
//! | payload | row |
//! |---|---|
//! | no JSON, truncated, white space only, more after the object, NaN | refused: `not JSON: … (byte n)` |
//! | a list, a string, a number, `null` | refused: `not an object: …` |
//! | empty (0 bytes) | refused: `empty payload` |
//! | none at all (a tombstone) | refused: `no payload (tombstone)`; `_raw` is NULL |
//! | invalid UTF-8, wherever it is | refused: `not UTF-8 (byte n)` |
//! | a byte order mark in front | skipped |
//! | nested deeper than 128, known or unknown | refused as not JSON |
//! | a known key given twice (`null` counts), also inside a STRUCT or MAP | refused: `given twice` |
//! | an unknown key | skipped (not looked into beyond its syntax) |
//! | a missing key, `null`, `{}` | NULL |
//! | 10 MB | no limit here: a row like any other |
//!
//! Keys are compared exactly; upper case and all: `"userId"` is filled by a column declared in double quotes.
//!
//! # What becomes of a value
//!
//! | column | takes | refuses |
//! |---|---|---|
//! | integers | an integer that fits; `1.0` and `1e3`; `"12"` | `1.5`, out of range, `""`, `"012"`, `true` |
//! | DECIMAL(p, s) | a number or `"12.30"`, exactly; zeros beyond the scale | digits beyond scale or precision |
//! | REAL, DOUBLE | a number or `"1.5"`, nearest float; `"NaN"`, `"Infinity"`, `"-Infinity"` (Jackson's) | `1e999` |
//! | BOOLEAN | `true`, `false`, `"true"`, `"false"` | `0`, `1`, `"yes"` |
//! | VARCHAR | a string; else the exact JSON text of the value: `1.50`, `{"a": 1}` | half a surrogate pair |
//! | BYTEA | a string of base64 with padding (Kafka Connect, Jackson) | anything else |
//! | TIMESTAMP, TIMESTAMPTZ | ISO 8601 text; a number: ms since 1970 (see below) | digits in a string, `1.5` |
//! | DATE | `"2024-01-31"`; a number is days since 1970 (Kafka Connect, Avro) | a timestamp |
//! | STRUCT | an object, by the rules of a payload | anything else |
//! | LIST | a list | anything else |
//! | MAP with text keys | an object | anything else |
//!
//! Timestamps: text without a zone is UTC, the forms are those of [`parse_timestamp`](super::time::parse_timestamp),
//! digits beyond the column's unit are cut. Years outside 1 to 9999 are refused, and with them micro- and nanoseconds
//! given as a number.
//!
//! A reason reads `column.field[3]: "abc" is not an integer (byte 17)`: the path, the value as it stands in the payload
//! (cut to 60 characters), what was wanted, and where the value begins, counted from 0. The first one met is given.
//!
//! Invariants: every `push` appends exactly one row to every column; nothing is allocated per row where the keys come
//! in the order of the rows before (escaped strings into other than text columns, and maps, excepted).

mod bytes;
pub(in crate::format) mod column;
pub(in crate::format) mod fields;
mod finish;
mod number;
pub(in crate::format) mod reason;
pub mod scan;

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;

use self::fields::Fields;
use self::reason::{Outcome, Reason};
use self::scan::{Scanner, Value};
use crate::Result;

/// Builds the data columns of one partition's rows; see the module's documentation.
pub struct JsonDecoder {
    fields: Fields,
    rows: usize,
}

impl JsonDecoder {
    /// `data`: the columns (name, type) to be filled from the payload, in the order of the arrays of
    /// [`finish`](Self::finish). Whether they are declared NOT NULL is not looked at: a row that was refused is NULL.
    ///
    /// # Errors
    /// A type that JSON cannot fill.
    pub fn try_new(data: &[FieldRef]) -> Result<Self> {
        Ok(Self { fields: Fields::try_new(data)?, rows: 0 })
    }

    /// Appends one row; `None` is a record without payload. The caller bounds the bytes of one chunk below 2 GiB.
    ///
    /// # Errors
    /// The reason why the payload was refused. Then the row *has* been appended, all NULL.
    pub fn push(&mut self, payload: Option<&[u8]>) -> Result<(), String> {
        match payload {
            None => self.append(|_, _| Err("no payload (tombstone)".to_string())),
            Some([]) => self.append(|_, _| Err("empty payload".to_string())),
            Some(payload) => {
                self.append(|fields, rows| read(fields, rows, payload).map_err(|reason| reason.to_string()))
            }
        }
    }

    /// Appends what `read` makes of row number `rows`, or a row of NULLs.
    #[inline]
    pub(in crate::format) fn append(
        &mut self,
        read: impl FnOnce(&mut Fields, usize) -> Result<(), String>,
    ) -> Result<(), String> {
        let outcome = read(&mut self.fields, self.rows);
        if outcome.is_err() {
            self.fields.truncate(self.rows);
            self.fields.push_null();
        }
        self.rows += 1;
        outcome
    }

    /// A row of NULLs, whatever its record holds: for a table that wants none of its values.
    pub fn push_null(&mut self) {
        self.fields.push_null();
        self.rows += 1;
    }

    /// Rows since the last [`finish`](Self::finish).
    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// One array per column, each of [`len`](Self::len) rows; begins anew.
    pub fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        self.rows = 0;
        self.fields.finish()
    }
}

fn read(fields: &mut Fields, rows: usize, payload: &[u8]) -> Outcome<()> {
    if payload[0] == 0 {
        return Err(Reason::syntax("begins with a zero byte, as records framed by a schema registry do", 0));
    }
    let text = match simdutf8::basic::from_utf8(payload) {
        Ok(text) => text,
        Err(_) => {
            let at = std::str::from_utf8(payload).err().map_or(0, |error| error.valid_up_to());
            return Err(Reason::value("not UTF-8", at));
        }
    };
    let start = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut scan = Scanner::new(text, start);
    let value_at = scan.next_at();
    let found = match scan.value()? {
        Value::Object => {
            fields.read(rows, &mut scan)?;
            return scan.end();
        }
        Value::List => "a list",
        Value::Text(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
    };
    Err(Reason::value(format!("not an object: the payload is {found}"), value_at))
}

#[cfg(test)]
pub(in crate::format) mod tests;

#[cfg(test)]
mod properties;
