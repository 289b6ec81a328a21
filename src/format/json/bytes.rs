//! Text and binary cells as Arrow views: up to 12 bytes inside the view, longer ones in one buffer in row order.

use std::collections::HashSet;

use arrow::array::make_view;

use super::reason::{Outcome, Reason, quote};
use super::scan::{Text, unescape};
use crate::format::base64;

/// What a view holds without a buffer.
const INLINE_MAX: usize = 12;
/// View offsets are 32 bits, signed in other implementations of Arrow.
const DATA_MAX: usize = i32::MAX as usize;

#[derive(Default)]
pub struct Bytes {
    pub views: Vec<u128>,
    pub data: Vec<u8>,
}

impl Bytes {
    pub fn push_null(&mut self) {
        self.views.push(0);
    }

    #[inline]
    pub fn push(&mut self, bytes: &[u8], start: usize) -> Outcome<()> {
        self.fits(bytes.len(), start)?;
        self.views.push(make_view(bytes, 0, self.data.len() as u32));
        if bytes.len() > INLINE_MAX {
            self.data.extend_from_slice(bytes);
        }
        Ok(())
    }

    #[inline]
    pub fn push_text(&mut self, text: Text<'_>) -> Outcome<()> {
        if !text.escaped {
            return self.push(text.raw.as_bytes(), text.at);
        }
        self.fits(text.raw.len(), text.at)?;
        let begin = self.data.len();
        if let Err(at) = unescape(text.raw, &mut self.data) {
            self.data.truncate(begin);
            return Err(half_pair(text, at));
        }
        self.seal(begin);
        Ok(())
    }

    /// `shown` is how the value stands in the payload.
    pub fn push_base64(&mut self, text: &str, shown: &str, start: usize) -> Outcome<()> {
        self.fits(text.len(), start)?;
        let begin = self.data.len();
        if !base64::decode(text.as_bytes(), &mut self.data) {
            self.data.truncate(begin);
            return Err(Reason::value(format!("{} is not base64", quote(shown)), start));
        }
        self.seal(begin);
        Ok(())
    }

    /// Makes a cell of what was appended to `data` since `begin`.
    fn seal(&mut self, begin: usize) {
        let bytes = &self.data[begin..];
        self.views.push(make_view(bytes, 0, begin as u32));
        if bytes.len() <= INLINE_MAX {
            self.data.truncate(begin);
        }
    }

    fn fits(&self, more: usize, start: usize) -> Outcome<()> {
        if self.data.len() + more > DATA_MAX {
            return Err(Reason::value("more than 2 GiB of text in one chunk", start));
        }
        Ok(())
    }

    /// The first removed cell that has bytes in the buffer says where they begin: cells and bytes are in one order.
    pub fn truncate(&mut self, rows: usize) {
        let removed = self.views.get(rows..).unwrap_or_default();
        if let Some(view) = removed.iter().find(|view| length(**view) > INLINE_MAX) {
            self.data.truncate((view >> 96) as usize);
        }
        self.views.truncate(rows);
    }

    /// A cell that occurs twice from row `begin` on.
    pub fn duplicate(&self, begin: usize) -> Option<Vec<u8>> {
        let mut seen = HashSet::new();
        self.views[begin..].iter().map(|view| self.value(*view)).find(|value| !seen.insert(value.clone()))
    }

    fn value(&self, view: u128) -> Vec<u8> {
        let length = length(view);
        if length <= INLINE_MAX {
            return view.to_le_bytes()[4..4 + length].to_vec();
        }
        let begin = (view >> 96) as usize;
        self.data[begin..begin + length].to_vec()
    }
}

fn length(view: u128) -> usize {
    view as u32 as usize
}

/// A text with only one half of a UTF-16 surrogate pair cannot be UTF-8.
#[cold]
pub fn half_pair(text: Text<'_>, at: usize) -> Box<Reason> {
    Reason::value("half of a surrogate pair is no character", text.at + 1 + at)
}
