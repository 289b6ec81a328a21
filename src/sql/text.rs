//! The user's `.sql` files: read, substituted, and a way back from every position to the line that the user wrote.
//!
//! ```text
//! DIR/*.sql ──▶ [substitute] ──▶ text ──▶ tokens, statements, plans
//!    ▲                                          │ a span of text
//!    └──────────── Place, snippet ◀─────────────┘
//! ```
//!
//! DataFusion's spans have a line and a column but no file. So the lines of file *i* are counted from *i* · 2³² on
//! ([`Files::first_line`]): a span that comes back from planning, through however many views, names its file.
//!
//! Failures: what is wrong with a reference is kept as a problem with its place, beside the errors that parsing finds,
//! so that all are reported at once; a folder or file that cannot be read is an error at once.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sqlparser::dialect::GenericDialect;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, TokenizerError};

use super::place::{Cursor, Lines, Place, render};
use super::substitute::{Lookup, Problem, Segment, substitute};
use super::words::place_of;
use crate::{Error, Result};

const FILES_MAX: usize = 1_000;
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Bits for the line within a file; a file of [`FILE_BYTES_MAX`] has fewer lines than that.
const LINE_BITS: u32 = 32;

/// All files of a project, in the order of their names.
#[derive(Debug, Default)]
pub struct Files {
    files: Vec<File>,
    /// Values that must not be printed, and what to print instead; longest first.
    secrets: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct File {
    /// As shown to the user: `queries/10_validate.sql`.
    pub name: String,
    /// As written.
    pub source: String,
    /// Substituted: what is parsed. May hold secrets.
    pub text: String,
    /// What the checkpoint keeps; see [`super::substitute`].
    pub stored: String,
    pub problems: Vec<Problem>,
    /// Bytes of `text` in statements that cannot be parsed, because a reference in them failed.
    pub broken: Vec<usize>,
    segments: Vec<Segment>,
    source_lines: Lines,
    text_lines: Lines,
    /// Made when an error asks for them: see [`Files::tokens`].
    tokens: OnceLock<Vec<Located>>,
}

/// A token and its bytes of the text.
pub type Located = (TokenWithSpan, Range<usize>);

/// The tokens of a text but for white space and comments, as far as there are any, and what ended them early.
pub fn tokenize(text: &str) -> (Vec<Located>, Option<TokenizerError>) {
    let mut tokens = vec![];
    let ended = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location_into_buf(&mut tokens).err();
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    let mut cursor = Cursor::new(text);
    let mut located = |token: TokenWithSpan| {
        let begin = cursor.advance(token.span.start.line, token.span.start.column);
        let end = cursor.advance(token.span.end.line, token.span.end.column);
        (token, begin..end)
    };
    (tokens.into_iter().map(&mut located).collect(), ended)
}

impl Files {
    /// Reads `dir/*.sql`: not its folders, no hidden files.
    ///
    /// # Errors
    /// The folder or a file cannot be read, is not UTF-8, or is too large; there is no `.sql` file.
    pub fn read(dir: &Path, lookup: Lookup) -> Result<Self> {
        let mut sources = vec![];
        for path in sql_files(dir)? {
            sources.push((path.display().to_string(), read_file(&path)?));
        }
        Ok(Self::from_stored(sources, lookup))
    }

    /// From (name, text) pairs, such as a checkpoint keeps.
    pub fn from_stored(sources: Vec<(String, String)>, lookup: Lookup) -> Self {
        let mut files = Self::default();
        for (name, source) in sources {
            let mut done = substitute(&source, lookup);
            files.secrets.append(&mut done.secrets);
            files.files.push(File {
                name,
                source_lines: Lines::new(&source),
                text_lines: Lines::new(&done.text),
                source,
                text: done.text,
                stored: done.stored,
                problems: done.problems,
                broken: done.broken,
                segments: done.segments,
                tokens: OnceLock::new(),
            });
        }
        files.secrets.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        files.secrets.dedup();
        files
    }

    /// One text without references: what is typed at a prompt. Its `stored` is not for a checkpoint.
    pub fn verbatim(name: &str, source: &str) -> Self {
        let lines = Lines::new(source);
        let file = File {
            name: name.into(),
            source: source.into(),
            text: source.into(),
            stored: source.into(),
            problems: vec![],
            broken: vec![],
            segments: vec![Segment { text: 0, source: 0..source.len(), verbatim: true }],
            source_lines: lines.clone(),
            text_lines: lines,
            tokens: OnceLock::new(),
        };
        Self { files: vec![file], secrets: vec![] }
    }

    /// (name, stored text) of each file, for the checkpoint: thresholds as they were, secrets and addresses as
    /// references.
    pub fn stored(&self) -> Vec<(String, String)> {
        self.files.iter().map(|file| (file.name.clone(), file.stored.clone())).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &File> {
        self.files.iter()
    }

    /// What is wrong with the references, one error each, with its place.
    pub fn errors(&self) -> Vec<(Place, Error)> {
        let problems = self.files.iter().enumerate().flat_map(|(i, file)| file.problems.iter().map(move |p| (i, p)));
        let error = |(i, problem): (usize, &Problem)| {
            let place = self.place_in_source(i, problem.source.clone());
            let error = self.error_at(&place, &problem.message);
            match &problem.hint {
                Some(hint) => (place, error.hint(hint)),
                None => (place, error),
            }
        };
        problems.map(error).collect()
    }

    /// The number to add to every line of a file before it is parsed.
    pub fn first_line(file: usize) -> u64 {
        (file as u64) << LINE_BITS
    }

    /// The place of a span that the parser or DataFusion has given; `None` for an empty one.
    pub fn place_of_span(&self, start: (u64, u64), end: (u64, u64)) -> Option<Place> {
        let (i, line) = split(start.0)?;
        let file = self.files.get(i)?;
        let begin = file.text_lines.offset(&file.text, line, usize::try_from(start.1).ok()?);
        let end = match split(end.0) {
            Some((j, line)) if i == j => file.text_lines.offset(&file.text, line, usize::try_from(end.1).ok()?),
            _ => begin,
        };
        Some(self.place(i, begin..end))
    }

    /// The place of the word or sign that begins here, for errors that name no end.
    pub fn place_of_token(&self, start: (u64, u64)) -> Option<Place> {
        let (i, line) = split(start.0)?;
        let file = self.files.get(i)?;
        let begin = file.text_lines.offset(&file.text, line, usize::try_from(start.1).ok()?);
        let rest = &file.text[begin..];
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let len = if word > 0 { word } else { rest.chars().next().map_or(0, char::len_utf8) };
        Some(self.place(i, begin..begin + len))
    }

    /// The place of a range of a file's `text`.
    pub fn place(&self, file: usize, range: Range<usize>) -> Place {
        self.place_in_source(file, self.files[file].in_source(range))
    }

    fn place_in_source(&self, file: usize, range: Range<usize>) -> Place {
        let source = &self.files[file].source;
        let (line, column) = self.files[file].source_lines.locate(source, range.start);
        let underlined = source.get(range).unwrap_or("").lines().next().unwrap_or("").trim_end();
        Place { file, line, column, len: underlined.chars().count().max(1) }
    }

    /// The tokens of the statement that begins at this place, or of what is left of it from there; without its `;`.
    pub fn tokens(&self, place: &Place) -> &[Located] {
        let Some(file) = self.files.get(place.file) else { return &[] };
        let tokens = file.tokens.get_or_init(|| tokenize(&file.text).0);
        let begin = file.source_lines.offset(&file.source, place.line, place.column);
        let from = tokens.partition_point(|(_, range)| file.in_source(range.clone()).start < begin);
        let rest = &tokens[from..];
        let end = rest.iter().position(|(token, _)| token.token == Token::SemiColon);
        &rest[..end.unwrap_or(rest.len())]
    }

    /// Where the statements of a file begin.
    pub fn statements(&self, file: usize) -> Vec<Place> {
        let Some(tokens) = self.files.get(file).map(|file| file.tokens.get_or_init(|| tokenize(&file.text).0)) else {
            return vec![];
        };
        let ends = |(token, _): &Located| token.token == Token::SemiColon;
        let first = tokens.split(ends).filter_map(<[Located]>::first);
        first.map(|(_, range)| self.place(file, range.clone())).collect()
    }

    /// A range of `text` as the user wrote it, references unresolved: no secret is in it.
    pub fn written(&self, file: usize, range: Range<usize>) -> &str {
        let file = &self.files[file];
        file.source.get(file.in_source(range)).unwrap_or("")
    }

    /// What the user wrote at a place.
    pub fn at(&self, place: &Place) -> Option<&str> {
        let file = self.files.get(place.file)?;
        let begin = file.source_lines.offset(&file.source, place.line, place.column);
        let end = file.source_lines.offset(&file.source, place.line, place.column + place.len);
        file.source.get(begin..end)
    }

    /// `queries/10_validate.sql:7:14`
    pub fn label(&self, place: &Place) -> String {
        let name = self.files.get(place.file).map_or("", |file| &file.name);
        format!("{name}:{}:{}", place.line, place.column)
    }

    /// The place with its line and a caret.
    pub fn snippet(&self, place: &Place) -> String {
        self.files.get(place.file).map_or_else(String::new, |file| render(&file.name, &file.source, place))
    }

    /// An error of the user's at this place. Secrets in the message are hidden.
    pub fn error_at(&self, place: &Place, message: impl AsRef<str>) -> Error {
        Error::user(self.hide(message.as_ref())).snippet(self.snippet(place))
    }

    /// The statement that a label names.
    pub fn statement_at(&self, label: &str) -> Option<Place> {
        let mut parts = label.rsplitn(3, ':');
        let (column, line) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let name = parts.next()?;
        let file = self.files.iter().position(|file| file.name == name)?;
        let tokens = self.tokens(&Place { file, line, column, len: 1 });
        Some(self.place(file, tokens.first()?.1.start..tokens.last()?.1.end))
    }

    /// An error whose location is the label of a statement, and those that came with it, each at the part of the
    /// statement that it is about. Secrets are hidden.
    pub fn locate(&self, error: Error) -> Error {
        let snippet = |error: &Error| {
            let statement = self.statement_at(error.location()?)?;
            let part = error.part().and_then(|part| place_of(self, &statement, part));
            Some(self.snippet(&part.unwrap_or(statement)))
        };
        error.located(&snippet, &|text| self.hide(text))
    }

    /// The text with every secret that came out of the files' references replaced by the reference.
    pub fn hide(&self, text: &str) -> String {
        let hidden = |text: String, (value, shown): &(String, String)| {
            // A literal may be quoted again where DataFusion prints it.
            text.replace(value, shown).replace(&value.replace('\'', "''"), shown)
        };
        self.secrets.iter().fold(text.to_string(), hidden)
    }
}

impl File {
    /// A range of `text` in the original; of a reference, always the whole.
    fn in_source(&self, range: Range<usize>) -> Range<usize> {
        let start = self.segment(range.start).map_or(0, |(segment, at)| match segment.verbatim {
            true => segment.source.start + at,
            false => segment.source.start,
        });
        if range.is_empty() {
            return start..start;
        }
        let end = self.segment(range.end - 1).map_or(self.source.len(), |(segment, at)| match segment.verbatim {
            true => segment.source.start + at + 1,
            false => segment.source.end,
        });
        start..end.max(start)
    }

    /// The segment that holds a byte of `text`, and how far in the byte lies; behind the end, the last one.
    fn segment(&self, at: usize) -> Option<(&Segment, usize)> {
        let i = self.segments.partition_point(|segment| segment.text <= at);
        let segment = self.segments.get(i.checked_sub(1)?)?;
        Some((segment, (at - segment.text).min(segment.source.len().max(1))))
    }
}

fn split(line: u64) -> Option<(usize, usize)> {
    let within = usize::try_from(line & ((1 << LINE_BITS) - 1)).ok()?;
    (within > 0).then_some((usize::try_from(line >> LINE_BITS).ok()?, within))
}

fn sql_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let shown = dir.display();
    let hint = "a project is a folder of .sql files, given as the first argument; the default is queries/";
    let entries = fs::read_dir(dir)
        .map_err(|e| Error::user(format!("folder {shown} with the queries cannot be read")).cause(e).hint(hint))?;
    let mut paths = vec![];
    for entry in entries {
        let entry = entry.map_err(|e| Error::external(format!("folder {shown} cannot be read")).cause(e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A link is followed (a mounted ConfigMap consists of links); a folder, even one named x.sql, is not entered.
        if name.ends_with(".sql") && !name.starts_with('.') && !entry.path().is_dir() {
            paths.push(entry.path());
        }
    }
    if paths.is_empty() {
        return Err(Error::user(format!("folder {shown} has no .sql file")).hint(hint));
    }
    if paths.len() > FILES_MAX {
        return Err(Error::user(format!("folder {shown} has {} .sql files, more than {FILES_MAX}", paths.len())));
    }
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(paths)
}

fn read_file(path: &Path) -> Result<String> {
    let shown = path.display();
    let unreadable = |e: std::io::Error| Error::user(format!("file {shown} cannot be read")).cause(e);
    let meta = fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(Error::user(format!("{shown} is not a file")));
    }
    if meta.len() > FILE_BYTES_MAX {
        let large = format!("file {shown} has {} bytes, more than {FILE_BYTES_MAX}", meta.len());
        return Err(Error::user(large).hint("split it: the files of a folder are read in the order of their names"));
    }
    let text = String::from_utf8(fs::read(path).map_err(unreadable)?).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Error::user(format!("file {shown} is not UTF-8 text")).at(format!("{shown}:{line}"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_string))
}

#[cfg(test)]
mod tests;
