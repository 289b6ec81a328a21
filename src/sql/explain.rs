//! DataFusion's errors in our words: at the user's line, lower case, with a hint where one is known.
//!
//! Many errors carry a diagnostic with a span, notes and near misses; syntax errors name line and column in their text;
//! the rest (argument types, anything of the optimizer) falls back to the place that the caller gives, the statement.

use datafusion::common::utils::datafusion_strsim::levenshtein;
use datafusion::common::{Diagnostic, Span};
use datafusion::error::DataFusionError;
use sqlparser::parser::ParserError;

use super::place::Place;
use super::text::Files;
use crate::Error;

/// A hint longer than this is cut: DataFusion lists every signature of a function.
const HINT_CHARS_MAX: usize = 400;

/// One error for each that DataFusion found in a statement.
///
/// `fallback` is the place of the statement; `tables` are the names to suggest where a table is not found.
pub fn explain(files: &Files, error: &DataFusionError, fallback: &Place, tables: &[String]) -> Vec<Error> {
    leaves(error).into_iter().map(|leaf| explain_one(files, leaf, fallback, tables)).collect()
}

/// The candidate that was probably meant.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = name.to_lowercase();
    let distances = candidates.into_iter().map(|candidate| (levenshtein(&name, &candidate.to_lowercase()), candidate));
    let limit = (name.chars().count() / 3).max(1);
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

fn leaves(error: &DataFusionError) -> Vec<&DataFusionError> {
    match error {
        DataFusionError::Collection(errors) => errors.iter().flat_map(leaves).collect(),
        DataFusionError::Context(_, inner) if inner.diagnostic().is_none() => leaves(inner),
        DataFusionError::Shared(inner) => leaves(inner),
        _ => vec![error],
    }
}

fn explain_one(files: &Files, error: &DataFusionError, fallback: &Place, tables: &[String]) -> Error {
    let (message, place, hint) = match error.diagnostic() {
        Some(diagnostic) => (diagnostic.message.clone(), place(files, diagnostic.span), hint(diagnostic, tables)),
        None => {
            let (message, place) = located(files, &text(error));
            let (message, rest) = split_lines(&message);
            (message, place, rest)
        }
    };
    // A syntax error of DFParser has its location in the diagnostic and, once more, in the text.
    let (message, place_in_text) = located(files, &message);
    let place = place.or(place_in_text).unwrap_or(*fallback);
    let message = polish(&message);
    let found = files.error_at(&place, &message);
    let found = match error.find_root() {
        DataFusionError::Internal(_) => Error::internal(files.hide(&message)).snippet(files.snippet(&place)),
        _ => found,
    };
    match hint {
        Some(hint) => found.hint(files.hide(&cut(&hint))),
        None => found,
    }
}

fn place(files: &Files, span: Option<Span>) -> Option<Place> {
    let span = span?;
    files.place_of_span((span.start.line, span.start.column), (span.end.line, span.end.column))
}

/// What the error says, without DataFusion's prefixes.
fn text(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::SQL(inner, _) => match inner.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.clone(),
            ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
        },
        DataFusionError::Internal(text) => text.clone(),
        root => root.message().into_owned(),
    }
}

fn hint(diagnostic: &Diagnostic, tables: &[String]) -> Option<String> {
    if let Some(name) = quoted(&diagnostic.message, "table '", "' not found") {
        let name = name.trim_start_matches("datafusion.");
        let near = nearest(name, tables.iter().map(String::as_str));
        return near.map(|near| format!("did you mean {}?", near.trim_start_matches("public.")));
    }
    let mut near = vec![];
    let mut said = vec![];
    for note in &diagnostic.notes {
        if let Some(name) = note.message.strip_prefix("possible column ") {
            near.push(name.to_string());
        } else if let Some(name) = quoted(&note.message, "Possible function '", "'") {
            near.push(name.to_string());
        } else {
            said.push(note.message.clone());
        }
    }
    near.dedup();
    if let Some(misspelled) = quoted(&diagnostic.message, "column '", "' not found") {
        near.sort_by_key(|name| levenshtein(misspelled, name.rsplit('.').next().unwrap_or(name)));
        near.truncate(3);
    }
    if !near.is_empty() {
        said.push(format!("did you mean {}?", near.join(" or ")));
    }
    said.extend(diagnostic.helps.iter().map(|help| lower(&help.message)));
    (!said.is_empty()).then(|| said.join("; "))
}

fn quoted<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

/// Takes every " at Line: 7, Column: 14" out of a text; the first one is the place.
fn located(files: &Files, text: &str) -> (String, Option<Place>) {
    const MARK: &str = " at Line: ";
    const COLUMN: &str = ", Column: ";
    let mut rest = text.to_string();
    let mut place = None;
    let mut from = 0;
    while let Some(at) = rest[from..].find(MARK).map(|at| from + at) {
        let digits = |at: usize| rest[at..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |end| at + end);
        let line_end = digits(at + MARK.len());
        from = line_end;
        if !rest[line_end..].starts_with(COLUMN) {
            continue;
        }
        let column_end = digits(line_end + COLUMN.len());
        let line = rest[at + MARK.len()..line_end].parse();
        let column = rest[line_end + COLUMN.len()..column_end].parse();
        if let (Ok(line), Ok(column)) = (line, column) {
            place = place.or_else(|| files.place_of_token((line, column)));
        }
        rest.replace_range(at..column_end, "");
        from = at;
    }
    (rest, place)
}

/// The first line, and what follows it as a hint.
fn split_lines(message: &str) -> (String, Option<String>) {
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("no reason was given").to_string();
    let rest: Vec<&str> = lines.collect();
    (first, (!rest.is_empty()).then(|| lower(&rest.join(" "))))
}

/// Lower case, no final stop, no prefix of DataFusion's, no catalog that the user never named.
fn polish(message: &str) -> String {
    const PREFIXES: &[&str] = &[
        "Error during planning: ",
        "Schema error: ",
        "SQL error: ",
        "This feature is not implemented: ",
        "Execution error: ",
    ];
    let mut text = message.trim();
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    let text = text.trim_end_matches('.').replace("datafusion.public.", "").replace("'datafusion.", "'");
    let text = text.replace("Expected: ", "expected ").replace(", found: ", ", found ");
    let text = text.replace("found EOF", "found the end of the statement").replace("found ;", "found the end of the statement");
    lower(&text)
}

/// Lower-cases the first letter, unless it begins a word in capitals or a quoted name.
fn lower(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), second) if first.is_uppercase() && !second.is_some_and(|c| c.is_uppercase() || c == '_') => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_string(),
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= HINT_CHARS_MAX {
        return text.to_string();
    }
    text.chars().take(HINT_CHARS_MAX).chain(['…']).collect()
}
