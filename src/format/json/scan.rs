//! A pull scanner over one JSON text (RFC 8259): the caller asks for what may come next and gets slices of the payload.
//!
//! Ours, because serde_json keeps neither the digits of a number (its `arbitrary_precision` is a feature of the whole
//! build, and allocates) nor the place of a value, and the raw text of a value would be scanned twice. A property test
//! in `json/tests.rs` holds this scanner to serde_json: both accept the same texts.
//!
//! Invariants: the payload was checked to be UTF-8; every slice begins and ends at an ASCII byte; nesting is bounded
//! by [`DEPTH_MAX`], so recursion over a payload is too.

use super::reason::{Outcome, Reason};

/// Objects and lists inside each other, the payload's own object included. More is an attack or a mistake, and would
/// cost stack; it is the limit of most JSON libraries.
pub const DEPTH_MAX: u8 = 128;

/// The inside of a JSON string, without its quotes.
#[derive(Clone, Copy)]
pub struct Text<'p> {
    pub raw: &'p str,
    /// The byte of the opening quote.
    pub at: usize,
    /// `raw` has escapes (well formed; surrogates are not yet paired).
    pub escaped: bool,
}

/// What a value begins with. `Object` and `List` are open: go on with [`Scanner::key`] and [`Scanner::item`] until
/// they say that it ended, or call [`Scanner::skip`].
#[derive(Clone, Copy)]
pub enum Value<'p> {
    Null,
    Bool(bool),
    Number(&'p str),
    Text(Text<'p>),
    Object,
    List,
}

pub struct Scanner<'p> {
    text: &'p str,
    at: usize,
    depth: u8,
}

impl<'p> Scanner<'p> {
    /// Starts at byte `at` of the payload.
    pub fn new(text: &'p str, at: usize) -> Self {
        Self { text, at, depth: 0 }
    }

    /// The payload from byte `start` to where the scanner stands.
    pub fn since(&self, start: usize) -> &'p str {
        &self.text[start..self.at]
    }

    fn fail<T>(&self, what: &'static str) -> Outcome<T> {
        let what = if self.at >= self.text.len() { "the payload ends too early" } else { what };
        Err(Reason::syntax(what, self.at.min(self.text.len())))
    }

    /// The next byte that is not white space; 0 at the end (a real zero byte is nowhere allowed either).
    #[inline]
    fn peek(&mut self) -> u8 {
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                other => return *other,
            }
        }
        0
    }

    /// Where the next token begins.
    pub fn next_at(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// Reads a scalar whole, or opens an object or a list.
    #[inline]
    pub fn value(&mut self) -> Outcome<Value<'p>> {
        match self.peek() {
            b'"' => Ok(Value::Text(self.string()?)),
            b'-' | b'0'..=b'9' => self.number(),
            b'{' => self.open(Value::Object),
            b'[' => self.open(Value::List),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            _ => self.fail("expected a value"),
        }
    }

    fn open(&mut self, value: Value<'p>) -> Outcome<Value<'p>> {
        if self.depth == DEPTH_MAX {
            return Err(Reason::syntax("nested deeper than 128 levels", self.at));
        }
        self.depth += 1;
        self.at += 1;
        Ok(value)
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.at += 1;
    }

    fn word(&mut self, word: &str, value: Value<'p>) -> Outcome<Value<'p>> {
        let rest = &self.text.as_bytes()[self.at..];
        if rest.starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(value);
        }
        if word.as_bytes().starts_with(rest) {
            self.at = self.text.len();
        }
        self.fail("expected a value")
    }

    /// Where the scanner stands.
    pub fn at(&self) -> usize {
        self.at
    }

    /// In an object: whether the next key is this one, given with its quotes and the colon; then it is consumed. `first` as
    /// for [`Scanner::key`], which says what there is if it is not.
    #[inline]
    pub fn take_key(&mut self, first: bool, literal: &str) -> bool {
        let begin = self.at;
        if !first {
            if self.peek() != b',' {
                self.at = begin;
                return false;
            }
            self.at += 1;
        }
        self.peek();
        if self.text.as_bytes()[self.at..].starts_with(literal.as_bytes()) {
            self.at += literal.len();
            return true;
        }
        self.at = begin;
        false
    }

    /// In an object: the next key (its colon consumed), or `None` at its end. `first` is true before the first key.
    #[inline]
    pub fn key(&mut self, first: bool) -> Outcome<Option<Text<'p>>> {
        match self.peek() {
            b'}' => {
                self.close();
                return Ok(None);
            }
            b',' if !first => {
                self.at += 1;
                self.peek();
            }
            _ if first => {}
            _ => return self.fail("expected ',' or '}'"),
        }
        if self.peek() != b'"' {
            return self.fail("expected a key in double quotes");
        }
        let key = self.string()?;
        if self.peek() != b':' {
            return self.fail("expected ':'");
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// In a list: whether there is a next item. `first` is true before the first one.
    #[inline]
    pub fn item(&mut self, first: bool) -> Outcome<bool> {
        match self.peek() {
            b']' => {
                self.close();
                return Ok(false);
            }
            b',' if !first => self.at += 1,
            _ if first => {}
            _ => return self.fail("expected ',' or ']'"),
        }
        Ok(true)
    }

    /// Reads a value to its end without looking at what it says.
    pub fn skip_value(&mut self) -> Outcome<()> {
        let value = self.value()?;
        self.skip(value)
    }

    /// Reads the rest of an object or a list that was just opened; a scalar has none.
    pub fn skip(&mut self, value: Value<'p>) -> Outcome<()> {
        let mut first = true;
        match value {
            Value::Object => {
                while self.key(first)?.is_some() {
                    first = false;
                    self.skip_value()?;
                }
            }
            Value::List => {
                while self.item(first)? {
                    first = false;
                    self.skip_value()?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        }
        Ok(())
    }

    /// Nothing may follow the payload's value.
    pub fn end(&mut self) -> Outcome<()> {
        self.peek();
        if self.at < self.text.len() { self.fail("more follows after the object") } else { Ok(()) }
    }

    fn number(&mut self) -> Outcome<Value<'p>> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let length = number_length(&bytes[start..]);
        self.at += length.unwrap_or_else(|stopped| stopped);
        if length.is_err() {
            return self.fail("expected a digit");
        }
        Ok(Value::Number(self.since(start)))
    }

    /// The scanner stands on the opening quote.
    #[inline]
    fn string(&mut self) -> Outcome<Text<'p>> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        self.at = start;
        let mut escaped = false;
        loop {
            self.at += plain_length(&bytes[self.at..]);
            match bytes.get(self.at) {
                Some(b'"') => {
                    let raw = self.since(start);
                    self.at += 1;
                    return Ok(Text { raw, at: start - 1, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return self.fail("a control character in a string"),
            }
        }
    }

    #[cold]
    fn escape(&mut self) -> Outcome<()> {
        self.at += 1;
        match self.text.as_bytes().get(self.at) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                for _ in 0..4 {
                    self.at += 1;
                    if !self.text.as_bytes().get(self.at).is_some_and(u8::is_ascii_hexdigit) {
                        return self.fail("expected four hexadecimal digits after \\u");
                    }
                }
                self.at += 1;
            }
            _ => return self.fail("an escape that JSON does not have"),
        }
        Ok(())
    }
}

/// How many bytes from the beginning are neither a quote, nor a backslash, nor a control character: eight at a time,
/// after Mycroft's test for a zero byte in a word (the lowest hit is exact; borrows only disturb higher bytes).
#[inline]
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        let hits = (word.wrapping_sub(ONES * 0x20) & !word)
            | (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash);
        let hits = hits & HIGH;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let plain = |b: &u8| *b >= 0x20 && *b != b'"' && *b != b'\\';
    at + bytes[at..].iter().position(|b| !plain(b)).unwrap_or(bytes.len() - at)
}

/// The length of the JSON number at the beginning, or where a digit is missing.
#[inline]
pub fn number_length(bytes: &[u8]) -> Result<usize, usize> {
    let digits = |from: usize| {
        let mut to = from;
        while bytes.get(to).is_some_and(u8::is_ascii_digit) {
            to += 1;
        }
        if to == from { Err(from) } else { Ok(to) }
    };
    let mut at = usize::from(bytes.first() == Some(&b'-'));
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at = digits(at + 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-'))))?;
    }
    Ok(at)
}

/// Appends the text with its escapes resolved. `Err` is the byte (within `raw`) of half a surrogate pair, which no
/// UTF-8 text can hold; `out` then ends with a part of the text.
pub fn unescape(raw: &str, out: &mut Vec<u8>) -> Result<(), usize> {
    let bytes = raw.as_bytes();
    let unit = |at: usize| raw.get(at + 2..at + 6).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[at..]) {
        out.extend_from_slice(&bytes[at..at + found]);
        at += found;
        let resolved = match bytes.get(at + 1) {
            Some(b'b') => b'\x08',
            Some(b'f') => b'\x0c',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let mut code = unit(at).ok_or(at)?;
                let mut length = 6;
                if (0xd800..0xdc00).contains(&code) && bytes[at + 6..].starts_with(b"\\u") {
                    let low = unit(at + 6).filter(|low| (0xdc00..0xe000).contains(low)).ok_or(at)?;
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    length = 12;
                }
                let character = char::from_u32(code).ok_or(at)?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at += length;
                continue;
            }
            Some(other) => *other,
            None => return Err(at),
        };
        out.push(resolved);
        at += 2;
    }
    out.extend_from_slice(&bytes[at..]);
    Ok(())
}
