//! The fields of an object — of the payload itself, or of a STRUCT — and how a key finds its column.

use std::collections::HashMap;

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;

use super::column::Column;
use super::reason::{Outcome, Reason};
use super::scan::{Scanner, Text, unescape};
use crate::Result;

/// How many remembered keys are compared before the hash table is asked: as many optional keys may be missing in a row
/// without cost.
const LOOK_AHEAD: usize = 3;
/// After so many keys that the remembered order did not foresee, the order is learnt anew.
const MISSES_MAX: usize = 1_000;
/// A longer key is not worth remembering.
const KEY_MAX: usize = 64;

pub struct Fields {
    columns: Vec<Column>,
    index: HashMap<Box<str>, usize>,
    order: KeyOrder,
}

/// Producers write their keys in one order, unknown ones included: the key after the last one is nearly always the
/// same as in the rows before, and one comparison replaces reading and hashing it.
#[derive(Default)]
struct KeyOrder {
    keys: Vec<Known>,
    misses: usize,
}

struct Known {
    /// As it stands in the payload, with its quotes and the colon.
    literal: Box<str>,
    column: Option<usize>,
}

impl Known {
    fn key(&self) -> &str {
        self.literal.get(1..self.literal.len() - 2).unwrap_or_default()
    }
}

impl Fields {
    /// # Errors
    /// A type that JSON cannot fill.
    pub fn try_new(fields: &[FieldRef]) -> Result<Self> {
        let columns = fields.iter().map(|field| Column::try_new(field)).collect::<Result<Vec<_>>>()?;
        let index = columns.iter().enumerate().map(|(at, column)| (column.name().into(), at)).collect();
        Ok(Self { columns, index, order: KeyOrder::default() })
    }

    /// Reads an object that was just opened, as row number `rows` of every column.
    #[inline]
    pub fn read(&mut self, rows: usize, scan: &mut Scanner<'_>) -> Outcome<()> {
        let mut cursor = 0;
        let mut first = true;
        loop {
            let foreseen = self.order.keys.get(cursor).filter(|known| scan.take_key(first, &known.literal));
            let (found, key_at) = match foreseen {
                Some(known) => {
                    cursor += 1;
                    (known.column, scan.at() - known.literal.len())
                }
                None => {
                    let Some(key) = scan.key(first)? else { break };
                    (self.find(&mut cursor, key), key.at)
                }
            };
            first = false;
            let Some(at) = found else {
                scan.skip_value()?;
                continue;
            };
            let column = &mut self.columns[at];
            if column.len() > rows {
                return Err(Reason::value("given twice", key_at).within(column.name()));
            }
            column.read(scan).map_err(|reason| reason.within(column.name()))?;
        }
        for column in &mut self.columns {
            if column.len() == rows {
                column.push_null();
            }
        }
        Ok(())
    }

    /// In the order they were declared, for a format that names fields by position.
    pub fn columns(&mut self) -> &mut [Column] {
        &mut self.columns
    }

    #[inline]
    fn find(&mut self, cursor: &mut usize, key: Text<'_>) -> Option<usize> {
        for (step, known) in self.order.keys.iter().skip(*cursor).take(LOOK_AHEAD).enumerate() {
            if known.key() == key.raw {
                *cursor += step + 1;
                return known.column;
            }
        }
        self.find_slowly(cursor, key)
    }

    #[cold]
    fn find_slowly(&mut self, cursor: &mut usize, key: Text<'_>) -> Option<usize> {
        let column = if key.escaped {
            let mut name = vec![];
            // Half a surrogate pair is in no name that SQL can declare.
            let whole = unescape(key.raw, &mut name).is_ok();
            String::from_utf8(name).ok().filter(|_| whole).and_then(|name| self.index.get(name.as_str()).copied())
        } else {
            self.index.get(key.raw).copied()
        };
        let keys = &mut self.order.keys;
        if keys.len() < 2 * self.columns.len() + 32 {
            if key.raw.len() <= KEY_MAX {
                let literal = format!("\"{}\":", key.raw).into();
                keys.insert((*cursor).min(keys.len()), Known { literal, column });
                *cursor += 1;
            }
        } else {
            self.order.misses += 1;
            if self.order.misses > MISSES_MAX {
                self.order = KeyOrder::default();
                *cursor = 0;
            }
        }
        column
    }

    pub fn push_null(&mut self) {
        self.columns.iter_mut().for_each(Column::push_null);
    }

    pub fn truncate(&mut self, rows: usize) {
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
    }

    pub fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        self.columns.iter_mut().map(Column::finish).collect()
    }
}
