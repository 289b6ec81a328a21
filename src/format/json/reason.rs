//! Why a payload was refused: a stable, short text for `_error`, with the place in the payload.

use std::fmt;

pub type Outcome<T> = Result<T, Box<Reason>>;

/// Characters of a value that a reason repeats.
const QUOTE_MAX: usize = 60;
/// Characters of the path to a value: deep payloads must not make long reasons.
const PATH_MAX: usize = 120;

pub struct Reason {
    /// `column`, `column.field`, `column[3].field`; empty for what concerns the payload as a whole.
    path: String,
    text: String,
    /// Offset in the payload, from 0.
    at: usize,
    /// The payload is no JSON: the column where that was found says nothing.
    syntax: bool,
}

impl Reason {
    #[cold]
    pub fn syntax(what: &str, at: usize) -> Box<Self> {
        Box::new(Self { path: String::new(), text: format!("not JSON: {what}"), at, syntax: true })
    }

    #[cold]
    pub fn value(text: impl Into<String>, at: usize) -> Box<Self> {
        Box::new(Self { path: String::new(), text: text.into(), at, syntax: false })
    }

    /// The reason as seen from one level further out: `step` is a name, or an index in brackets.
    #[cold]
    pub fn within(mut self: Box<Self>, step: &str) -> Box<Self> {
        if !self.syntax {
            let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
            self.path = format!("{}{dot}{}", shorten(step, QUOTE_MAX), self.path);
            if self.path.chars().nth(PATH_MAX).is_some() {
                self.path = shorten(&self.path, PATH_MAX).into_owned();
            }
        }
        self
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{} (byte {})", self.text, self.at)
    }
}

/// A scalar as it stands in the payload, cut.
pub fn quote(raw: &str) -> std::borrow::Cow<'_, str> {
    shorten(raw, QUOTE_MAX)
}

fn shorten(text: &str, characters: usize) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(characters) {
        Some((cut, _)) => format!("{}…", &text[..cut]).into(),
        None => text.into(),
    }
}
