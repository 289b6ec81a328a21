//! One record's bytes into the cells of a row, as a [`Plan`] says.
//!
//! Nothing is trusted: every length, count and branch is held against the bytes that are left. An item of a list takes at
//! least a byte, or counts against [`EMPTY_ITEMS_MAX`], so a payload of a few bytes cannot make a billion items.
//!
//! Invariant: as in `json::column`: after `Ok` every column is one row longer, after `Err` anything up to that, and the
//! caller cuts back.

use super::resolve::{Plan, Read, Record, Skip, Step};
use crate::format::json::column::{Cells, Column};
use crate::format::json::reason::{Outcome, Reason, quote};

/// Items without a byte of their own (null, an empty record) in one record.
const EMPTY_ITEMS_MAX: usize = 10_000;

/// Levels of nested types that are passed over: a type may contain itself.
const DEPTH_MAX: usize = 128;

/// Where reading is.
pub struct Cursor<'p> {
    bytes: &'p [u8],
    at: usize,
    skips: &'p [Skip],
    empty_items: usize,
    depth: usize,
}

impl<'p> Cursor<'p> {
    /// `at`: where the record begins in the payload, behind its frame.
    pub fn new(payload: &'p [u8], at: usize, skips: &'p [Skip]) -> Self {
        Self { bytes: payload, at, skips, empty_items: 0, depth: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    /// # Errors
    /// Bytes are left.
    pub fn end(&self) -> Outcome<()> {
        match self.bytes.len().saturating_sub(self.at) {
            0 => Ok(()),
            left => Err(broken(&format!("{left} bytes follow the record"), self.at)),
        }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    #[inline]
    fn byte(&mut self) -> Outcome<u8> {
        match self.bytes.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => Err(cut_off(self.at)),
        }
    }

    #[inline]
    fn take(&mut self, length: usize) -> Outcome<&'p [u8]> {
        match self.bytes[self.at..].get(..length) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(cut_off(self.at)),
        }
    }

    #[inline]
    fn long(&mut self) -> Outcome<i64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(unzigzag(first.into()));
        }
        let start = self.at - 1;
        let mut value = u64::from(first & 0x7f);
        let mut shift = 7;
        loop {
            let byte = self.byte()?;
            // The tenth byte has one bit left.
            if shift == 63 && byte > 1 {
                return Err(broken("a number of more than 64 bits", start));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(unzigzag(value));
            }
            shift += 7;
        }
    }

    #[inline]
    fn int(&mut self) -> Outcome<i64> {
        let start = self.at;
        let value = self.long()?;
        if i32::try_from(value).is_err() {
            return Err(broken("an int of more than 32 bits", start));
        }
        Ok(value)
    }

    /// A length, and so many bytes.
    #[inline]
    fn sized(&mut self) -> Outcome<&'p [u8]> {
        let start = self.at;
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) if length <= self.left() => self.take(length),
            Ok(length) => Err(broken(&format!("a length of {length}, and {} bytes are left", self.left()), start)),
            Err(_) => Err(broken(&format!("a length of {length}"), start)),
        }
    }

    pub fn branch(&mut self, branches: usize) -> Outcome<usize> {
        let start = self.at;
        let number = self.long()?;
        match usize::try_from(number) {
            Ok(branch) if branch < branches => Ok(branch),
            _ => Err(broken(&format!("branch {number} of a union of {branches}"), start)),
        }
    }

    /// The items of the next block of an array or map, 0 at its end; and its bytes, where they are said.
    fn block(&mut self, least: usize) -> Outcome<(usize, Option<usize>)> {
        let start = self.at;
        let count = self.long()?;
        let wrong = |count: i64| broken(&format!("a block of {count} items"), start);
        let bytes = match count {
            0.. => None,
            _ => Some(
                usize::try_from(self.long()?).ok().filter(|size| *size <= self.left()).ok_or_else(|| wrong(count))?,
            ),
        };
        let items = usize::try_from(count.unsigned_abs()).map_err(|_| wrong(count))?;
        if least == 0 {
            self.empty_items = self.empty_items.saturating_add(items);
            if self.empty_items > EMPTY_ITEMS_MAX {
                return Err(broken(&format!("more than {EMPTY_ITEMS_MAX} items without a value"), start));
            }
        } else if items > self.left() / least {
            return Err(broken(&format!("a block of {items} items, and {} bytes are left", self.left()), start));
        }
        Ok((items, bytes))
    }

    fn skip(&mut self, skip: &Skip) -> Outcome<()> {
        match skip {
            Skip::Bytes(length) => self.take(*length).map(drop),
            Skip::Varint => self.long().map(drop),
            Skip::Sized => self.sized().map(drop),
            Skip::Array { item, least } => self.skip_blocks(*least, |cursor| cursor.skip(item)),
            Skip::Map(value) => self.skip_blocks(1, |cursor| {
                cursor.sized()?;
                cursor.skip(value)
            }),
            Skip::Union(branches) => {
                let branch = self.branch(branches.len())?;
                branches.get(branch).map_or(Ok(()), |branch| self.skip(branch))
            }
            Skip::All(all) => all.iter().try_for_each(|skip| self.skip(skip)),
            Skip::Named(number) => {
                let skips = self.skips;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err(broken(&format!("records nested deeper than {DEPTH_MAX}"), self.at));
                }
                skips.get(*number).map_or(Ok(()), |skip| self.skip(skip))?;
                self.depth -= 1;
                Ok(())
            }
        }
    }

    fn skip_blocks(&mut self, least: usize, mut item: impl FnMut(&mut Self) -> Outcome<()>) -> Outcome<()> {
        loop {
            match self.block(least)? {
                (0, _) => return Ok(()),
                (_, Some(bytes)) => self.take(bytes).map(drop)?,
                (items, None) => (0..items).try_for_each(|_| item(self))?,
            }
        }
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cold]
fn broken(what: &str, at: usize) -> Box<Reason> {
    Reason::value(format!("not Avro by its schema: {what}"), at)
}

#[cold]
fn cut_off(at: usize) -> Box<Reason> {
    broken("it ends too early", at)
}

impl Plan {
    /// Reads the record as the next row of every column.
    ///
    /// # Errors
    /// The bytes are not of this schema, a value does not fit its column, or the schema does not resolve.
    pub fn read(&self, columns: &mut [Column], payload: &[u8], at: usize) -> Outcome<()> {
        let mut cursor = Cursor::new(payload, at, &self.skips);
        let branch = if self.is_union { cursor.branch(self.roots.len())? } else { 0 };
        match self.roots.get(branch) {
            Some(Ok(record)) => record.read(columns, &mut cursor)?,
            Some(Err(reason)) => return Err(Reason::value(reason.clone(), cursor.at())),
            None => return Err(Reason::value("its schema is empty", cursor.at())),
        }
        cursor.end()
    }
}

impl Record {
    #[inline]
    fn read(&self, columns: &mut [Column], cursor: &mut Cursor<'_>) -> Outcome<()> {
        for step in &self.steps {
            match step {
                Step::Skip(skip) => cursor.skip(skip)?,
                Step::Column { column, read } => {
                    let Some(column) = columns.get_mut(*column) else { continue };
                    if let Err(reason) = read.read(column, cursor) {
                        return Err(reason.within(column.name()));
                    }
                }
            }
        }
        for column in &self.absent {
            if let Some(column) = columns.get_mut(*column) {
                column.push_null();
            }
        }
        for fill in &self.defaults {
            let Some(column) = columns.get_mut(fill.column) else { continue };
            let mut cursor = Cursor::new(&fill.bytes, 0, &fill.skips);
            fill.read.read(column, &mut cursor).map_err(|reason| reason.within(column.name()))?;
        }
        Ok(())
    }
}

impl Read {
    /// Appends one value.
    #[inline]
    fn read(&self, column: &mut Column, cursor: &mut Cursor<'_>) -> Outcome<()> {
        let start = cursor.at;
        match self {
            Read::Null => {
                column.push_null();
                return Ok(());
            }
            Read::Union(branches) => {
                let branch = cursor.branch(branches.len())?;
                return branches.get(branch).map_or(Ok(()), |branch| branch.read(column, cursor));
            }
            Read::Refuse(reason) => return Err(Reason::value(reason.clone(), start)),
            _ => {}
        }
        match (self, &mut column.cells) {
            (Read::Boolean, Cells::Boolean(values)) => match cursor.byte()? {
                byte @ (0 | 1) => values.push(byte == 1),
                byte => return Err(broken(&format!("{byte} is no boolean"), start)),
            },
            (Read::Int, Cells::Integer { values, min, max }) => {
                let value = cursor.int()?;
                values.push(within(value, *min, *max, start)?);
            }
            (Read::Long, Cells::Integer { values, min, max }) => {
                let value = cursor.long()?;
                values.push(within(value, *min, *max, start)?);
            }
            (Read::IntAsFloat, Cells::Float { values, single }) => values.push(rounded(cursor.int()?, *single)),
            (Read::LongAsFloat, Cells::Float { values, single }) => values.push(rounded(cursor.long()?, *single)),
            (Read::Float, Cells::Float { values, .. }) => {
                let bytes = cursor.take(4)?;
                values.push(f32::from_le_bytes(bytes.try_into().unwrap_or_default()).into());
            }
            (Read::Double, Cells::Float { values, .. }) => {
                let bytes = cursor.take(8)?;
                values.push(f64::from_le_bytes(bytes.try_into().unwrap_or_default()));
            }
            (Read::Text, Cells::Text(bytes)) => {
                let text = cursor.sized()?;
                if simdutf8::basic::from_utf8(text).is_err() {
                    return Err(Reason::value("not UTF-8", start));
                }
                bytes.push(text, start)?;
            }
            (Read::Symbol(symbols), Cells::Text(bytes)) => {
                let number = cursor.long()?;
                let known = usize::try_from(number).ok().and_then(|number| symbols.get(number));
                match known {
                    Some(Some(symbol)) => bytes.push(symbol.as_bytes(), start)?,
                    Some(None) => return Err(Reason::value("a symbol that avro.schema does not have", start)),
                    None => return Err(broken(&format!("symbol {number} of an enum of {}", symbols.len()), start)),
                }
            }
            (Read::Uuid, Cells::Text(bytes)) => {
                let uuid = uuid::Uuid::from_slice(cursor.take(16)?).unwrap_or_default();
                bytes.push(uuid.hyphenated().encode_lower(&mut [0; 36]).as_bytes(), start)?;
            }
            (Read::Binary, Cells::Binary(bytes)) => bytes.push(cursor.sized()?, start)?,
            (Read::Fixed(size), Cells::Binary(bytes)) => bytes.push(cursor.take(*size)?, start)?,
            (Read::Decimal { size, factor }, Cells::Decimal { values, precision, scale }) => {
                let bytes = match size {
                    Some(size) => cursor.take(*size)?,
                    None => cursor.sized()?,
                };
                let value = unscaled(bytes).and_then(|value| value.checked_mul(*factor));
                match value.filter(|value| value.unsigned_abs() < 10_u128.pow(u32::from(*precision))) {
                    Some(value) => values.push(value),
                    None => {
                        let text = format!("the decimal does not fit into DECIMAL({precision}, {scale})");
                        return Err(Reason::value(text, start));
                    }
                }
            }
            (Read::Timestamp { factor, divisor }, Cells::Timestamp { values, .. }) => {
                let value = cursor.long()?;
                match value.checked_mul(*factor) {
                    Some(units) => values.push(units.div_euclid(*divisor)),
                    None => return Err(Reason::value(format!("{value} is beyond what a timestamp can count"), start)),
                }
            }
            (Read::Date, Cells::Date(values)) => values.push(cursor.int()? as i32),
            (Read::Record(record), Cells::Struct(fields)) => record.read(fields.columns(), cursor)?,
            (Read::List { item, least }, Cells::List { ends, items }) => {
                read_list(item, *least, ends, items, cursor)?;
            }
            (Read::Map { value }, Cells::Map { ends, keys, values }) => {
                let begin = values.len();
                loop {
                    let (count, _) = cursor.block(1)?;
                    if count == 0 {
                        break;
                    }
                    for _ in 0..count {
                        let at = cursor.at;
                        let key = cursor.sized()?;
                        let Ok(name) = std::str::from_utf8(key) else { return Err(Reason::value("not UTF-8", at)) };
                        keys.push(key, at)?;
                        value
                            .read(values, cursor)
                            .map_err(|reason| reason.within(&format!("[\"{}\"]", quote(name))))?;
                    }
                }
                if let Some(twice) = keys.duplicate(begin) {
                    let key = String::from_utf8_lossy(&twice);
                    return Err(Reason::value("given twice", start).within(&format!("[{:?}]", quote(&key))));
                }
                ends.push(end(values.len(), start)?);
            }
            // A plan fits the cells it was made for.
            _ => return Err(Reason::value("the engine's plan does not fit the column", start)),
        }
        column.valid.push(true);
        Ok(())
    }
}

fn read_list(
    item: &Read,
    least: usize,
    ends: &mut Vec<i32>,
    items: &mut Column,
    cursor: &mut Cursor<'_>,
) -> Outcome<()> {
    let begin = items.len();
    loop {
        let (count, _) = cursor.block(least)?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            let index = items.len() - begin;
            if let Err(reason) = item.read(items, cursor) {
                return Err(reason.within(&format!("[{index}]")));
            }
        }
    }
    ends.push(end(items.len(), cursor.at)?);
    Ok(())
}

/// An offset of a list: 32 bits.
fn end(items: usize, at: usize) -> Outcome<i32> {
    i32::try_from(items).map_err(|_| Reason::value("more than 2,147,483,647 items in one chunk", at))
}

#[inline]
fn within(value: i64, min: i128, max: i128, at: usize) -> Outcome<i64> {
    if (min..=max).contains(&i128::from(value)) {
        return Ok(value);
    }
    Err(Reason::value(format!("{value} is not between {min} and {max}"), at))
}

/// The nearest float, of 32 bits if `single`.
fn rounded(value: i64, single: bool) -> f64 {
    if single { (value as f32).into() } else { value as f64 }
}

/// Big-endian two's complement; no byte is 0. `None`: more than 128 bits.
fn unscaled(bytes: &[u8]) -> Option<i128> {
    let Some(first) = bytes.first() else { return Some(0) };
    let fill = if *first >= 0x80 { 0xff } else { 0 };
    let excess = bytes.len().saturating_sub(16);
    let (high, low) = bytes.split_at(excess);
    if high.iter().any(|byte| *byte != fill) || (excess > 0 && (low[0] >= 0x80) != (fill == 0xff)) {
        return None;
    }
    let mut wide = [fill; 16];
    wide[16 - low.len()..].copy_from_slice(low);
    Some(i128::from_be_bytes(wide))
}
