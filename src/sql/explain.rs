//! DataFusion's errors in our words: at the user's line, lower case, with a hint where one is known.
//!
//! Many errors carry a diagnostic with a span, notes and near misses; syntax errors name line and column in their text; of
//! the rest (argument types, anything of the optimizer) a name that the message quotes may tell the place; else it is the
//! one that the caller gives, the statement.
//!
//! No name of a rule or of a kind of error of DataFusion's gets through: what counts is the root of an error, not what it
//! was wrapped in on its way ([`plain`]).

use datafusion::common::{Diagnostic, SchemaError, Span};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use sqlparser::keywords::Keyword;
use sqlparser::parser::ParserError;
use sqlparser::tokenizer::Token;

use super::place::Place;
use super::text::Files;
use super::types;
use super::words::place_of_quoted;
use crate::Error;

/// A hint longer than this is cut: DataFusion lists every signature of a function.
const HINT_CHARS_MAX: usize = 400;

/// One error for each that DataFusion found in a statement.
///
/// `fallback` is the place of the statement; `state` has the tables and functions to suggest for a misspelled name.
pub fn explain(files: &Files, error: &DataFusionError, fallback: &Place, state: Option<&SessionState>) -> Vec<Error> {
    leaves(error).into_iter().map(|leaf| explain_one(files, leaf, fallback, state)).collect()
}

/// What an error says, on its own: as the cause of one of ours. Of what it was wrapped in, what we said is kept (a sentence
/// in lower case, as a file's name), and not DataFusion's names of its rules.
pub fn plain(error: &DataFusionError) -> String {
    let plain = |leaf: &DataFusionError| {
        let mut said = vec![];
        let mut next: Option<&dyn std::error::Error> = Some(leaf);
        while let Some(error) = next {
            if let Some(DataFusionError::Context(text, _)) = error.downcast_ref()
                && text.contains(' ')
                && text.starts_with(char::is_lowercase)
            {
                said.push(text.clone());
            }
            next = error.source();
        }
        said.push(polish(&without_marks(&text(leaf)).0));
        said.join(": ")
    };
    match error {
        DataFusionError::Collection(errors) => errors.iter().map(plain).collect::<Vec<_>>().join("; "),
        other => plain(other),
    }
}

/// Our own error, where that is what DataFusion hands on.
///
/// # Errors
/// It is another one.
pub fn own(error: DataFusionError) -> Result<Error, DataFusionError> {
    match error {
        DataFusionError::External(error) => error.downcast::<Error>().map(|e| *e).map_err(DataFusionError::External),
        DataFusionError::Context(context, inner) => {
            own(*inner).map_err(|inner| DataFusionError::Context(context, Box::new(inner)))
        }
        other => Err(other),
    }
}

/// Line and column that a syntax error names.
pub(super) fn position(error: &DataFusionError) -> Option<(u64, u64)> {
    without_marks(&text(error)).1
}

/// The candidate that was probably meant. Of a single letter that cannot be said.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = name.to_lowercase();
    let distances = candidates.into_iter().map(|candidate| (distance(&name, &candidate.to_lowercase()), candidate));
    let limit = match name.chars().count() {
        0 | 1 => 0,
        letters => (letters / 3).max(1),
    };
    distances.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Edits from one word to the other. Unlike Levenshtein's distance, two letters that changed places are one edit: it is
/// what a hurried typist does.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().take(100).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn leaves(error: &DataFusionError) -> Vec<&DataFusionError> {
    match error {
        DataFusionError::Collection(errors) => errors.iter().flat_map(leaves).collect(),
        DataFusionError::Context(_, inner) if inner.diagnostic().is_none() => leaves(inner),
        DataFusionError::Shared(inner) => leaves(inner),
        _ => vec![error],
    }
}

fn explain_one(files: &Files, error: &DataFusionError, fallback: &Place, state: Option<&SessionState>) -> Error {
    let (message, place, hint) = match error.diagnostic() {
        Some(diagnostic) => (diagnostic.message.clone(), place(files, diagnostic.span), hint(files, diagnostic, state)),
        None => (text(error), None, None),
    };
    // Before anything is cut: a part of a secret is not found.
    let (message, position) = without_marks(&files.hide(&message));
    let place = place.or_else(|| files.place_of_token(position?));
    let (message, rest) = first_sentence(&polish(&message));
    let place = place.or_else(|| place_of_quoted(files, fallback, &message)).unwrap_or(*fallback);
    let hint = hint
        .or(rest)
        .or_else(|| hint_of_text(files, &place, fallback, &message))
        .map(|hint| files.hide(&cut(&lower(hint.trim_end_matches('.')))));
    let found = match error.find_root() {
        DataFusionError::Internal(_) => Error::internal(files.hide(&message)).snippet(files.snippet(&place)),
        _ => files.error_at(&place, &message),
    };
    match hint {
        Some(hint) => found.hint(hint),
        None => found,
    }
}

fn place(files: &Files, span: Option<Span>) -> Option<Place> {
    let span = span?;
    files.place_of_span((span.start.line, span.start.column), (span.end.line, span.end.column))
}

/// What the root of the error says. What follows the first sentence becomes the hint.
fn text(error: &DataFusionError) -> String {
    let text = match error.find_root() {
        DataFusionError::SQL(inner, _) => match inner.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.clone(),
            ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
        },
        DataFusionError::SchemaError(inner, _) => schema_text(inner),
        DataFusionError::Internal(text) => text.clone(),
        DataFusionError::External(inner) => match inner.downcast_ref::<Error>() {
            Some(own) => own.line(),
            None => inner.to_string(),
        },
        root => root.message().into_owned(),
    };
    let text = text.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default();
    match text.rsplit_once("\ncaused by\n") {
        Some((_, root)) => reworded(root),
        None => reworded(text),
    }
}

fn schema_text(error: &SchemaError) -> String {
    let twice = |name: &str| format!("two columns have the name '{name}'. {NAME_APART}");
    match error {
        SchemaError::AmbiguousReference { field } if field.relation.is_some() => twice(&field.name),
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            twice(name)
        }
        SchemaError::FieldNotFound { field, .. } => {
            let text = error.to_string();
            let told = format!("No field named {}", field.quoted_flat_name());
            text.strip_prefix(&told).map_or(text.clone(), |rest| format!("column '{}' not found{rest}", field.name))
        }
        SchemaError::AmbiguousReference { .. } => error.to_string(),
    }
}

const NAME_APART: &str = "Name one of them with AS";

/// Names of functions in FROM.
const TABLE_FUNCTIONS: [&str; 5] = ["TUMBLE", "HOP", "LATE", "UNNEST", "GENERATE_SERIES"];

/// Messages that say it in words of DataFusion's inside, or without a hint that can be given.
fn reworded(text: &str) -> String {
    if let Some(name) = text.strip_prefix("Unsupported SQL type ") {
        let word = name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if word.eq_ignore_ascii_case("KEY") {
            // A misspelled PRIMARY is taken for the name of a column.
            return format!("type '{word}' is not supported. Did you mean PRIMARY KEY (…)?");
        }
        let meant = nearest(word, types::NAMES.iter().copied()).map(|near| format!("Did you mean {near}? "));
        let (meant, known) = (meant.unwrap_or_default(), types::NAMES.join(", "));
        return match word {
            "" => text.to_string(),
            _ => format!("type '{word}' is not supported. {meant}There are: {known}"),
        };
    }
    if let Some((function, why)) = text.split_once(", errors: ")
        && let Some(at) = why.find("No function matches")
    {
        return format!("{function}. {}", &why[at..]);
    }
    if text.contains("require unique expression names") {
        let positions: Vec<usize> = text.split("at position ").skip(1).filter_map(first_number).collect();
        // A cast is named by what is cast.
        let cast = |expr: &'_ str| expr.starts_with("CAST(") || expr.starts_with("TRY_CAST(");
        let name = text.split('"').nth(3).map(|expr| match cast(expr) {
            true => expr.rsplit('(').next().and_then(|inner| inner.split(" AS ").next()).unwrap_or(expr),
            false => expr.rsplit_once(" AS ").map_or(expr, |(_, name)| name),
        });
        let name = name.map_or("", |name| name.rsplit('.').next().unwrap_or(name));
        if let [one, two] = positions.as_slice() {
            let (one, two) = (one + 1, two + 1);
            return format!("columns {one} and {two} of the SELECT have the same name, '{name}'. {NAME_APART}");
        }
    }
    const COPY_FORMATS: &str = "End it with .parquet, .csv or .json, or add STORED AS PARQUET, CSV or JSON";
    if text.starts_with("Format not explicitly set and unable to get file extension") {
        return format!("the target of COPY has no suffix that says its format. {COPY_FORMATS}");
    }
    if let Some(suffix) = text.strip_prefix("There is no registered file format with ext ") {
        return format!("the target of COPY has the suffix .{suffix}, which says no format. {COPY_FORMATS}");
    }
    if let Some(name) = quoted(text, "The window ", " is not defined") {
        return format!("window '{name}' is not defined");
    }
    if let Some(name) = quoted(text, "able function '", "' not found")
        && let Some(near) = nearest(name, TABLE_FUNCTIONS)
    {
        return format!("{text}. Did you mean {near}?");
    }
    text.to_string()
}

/// What the statement itself tells of a name that is not found.
fn hint_of_text(files: &Files, place: &Place, statement: &Place, message: &str) -> Option<String> {
    let tokens = files.tokens(statement);
    if let Some(name) = quoted(message, "window '", "' is not defined") {
        // Behind WINDOW, and between commas: name AS ( … ).
        let named =
            tokens.windows(3).filter_map(|three| match [&three[0].0.token, &three[1].0.token, &three[2].0.token] {
                [Token::Word(name), Token::Word(word), Token::LParen] if word.keyword == Keyword::AS => {
                    Some(name.value.as_str())
                }
                _ => None,
            });
        let meant = nearest(name, named).map(|near| format!("did you mean {near}?"));
        let define =
            || format!("define it behind FROM and WHERE: WINDOW {name} AS (PARTITION BY …); or write OVER (…)");
        return Some(meant.unwrap_or_else(define));
    }
    let name = quoted(message, "column '", "' not found")?;
    let at = tokens.iter().position(|(_, range)| files.place(place.file, range.clone()) == *place)?;
    let before = |back: usize| at.checked_sub(back).map(|at| &tokens[at].0.token);
    let is = |back: usize, keyword: Keyword| matches!(before(back), Some(Token::Word(word)) if word.keyword == keyword);
    let compared = match before(1) {
        Some(Token::Eq | Token::Neq | Token::Lt | Token::LtEq | Token::Gt | Token::GtEq) => true,
        Some(Token::LParen) => is(2, Keyword::IN),
        _ => is(1, Keyword::LIKE) || is(1, Keyword::ILIKE),
    };
    compared.then(|| format!("if it is a text, write it in single quotes: '{name}'"))
}

fn first_number(text: &str) -> Option<usize> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn hint(files: &Files, diagnostic: &Diagnostic, state: Option<&SessionState>) -> Option<String> {
    let meant = |names: &[&str]| format!("did you mean {}?", names.join(" or "));
    if let (Some(name), Some(state)) = (quoted(&diagnostic.message, "table '", "' not found"), state) {
        let tables = tables(state);
        let name = name.trim_start_matches("datafusion.").trim_start_matches("public.");
        let elsewhere = tables.iter().find(|table| table.rsplit('.').next() == Some(name));
        let near = nearest(name, tables.iter().map(String::as_str)).or(elsewhere.map(String::as_str));
        return near.map(|near| meant(&[near]));
    }
    if let (Some(name), Some(state)) = (quoted(&diagnostic.message, "Invalid function '", "'"), state) {
        // DataFusion always suggests one, however far.
        return nearest(name, functions(state)).map(|near| meant(&[near]));
    }
    let mut near = vec![];
    let mut said = vec![];
    for note in &diagnostic.notes {
        if let Some(name) = note.message.strip_prefix("possible column ") {
            near.push(name);
        } else {
            let said_of = place(files, note.span).and_then(|place| files.at(&place));
            said.push(match (said_of, note.message.strip_prefix("this side ").unwrap_or(&note.message)) {
                (Some(written), message) => format!("{written} {message}"),
                (None, message) if message.starts_with("has type") => format!("the other side {message}"),
                (None, message) => message.to_string(),
            });
        }
    }
    if let Some(misspelled) = quoted(&diagnostic.message, "column '", "' not found") {
        near.sort_by_key(|name| distance(misspelled, name.rsplit('.').next().unwrap_or(name)));
        near.truncate(3);
    }
    near.dedup();
    if !near.is_empty() {
        said.push(meant(&near));
    }
    said.extend(diagnostic.helps.iter().map(|help| help.message.clone()));
    (!said.is_empty()).then(|| said.join("; "))
}

/// As a query would write them.
fn tables(state: &SessionState) -> Vec<String> {
    let catalogs = state.catalog_list();
    let catalogs = catalogs.catalog_names().into_iter().filter_map(|name| catalogs.catalog(&name));
    let mut found = vec![];
    for catalog in catalogs {
        for schema in catalog.schema_names() {
            let tables = catalog.schema(&schema).map(|schema| schema.table_names()).unwrap_or_default();
            let name = |table| if schema == "public" { table } else { format!("{schema}.{table}") };
            found.extend(tables.into_iter().map(name));
        }
    }
    found.sort();
    found
}

fn functions(state: &SessionState) -> Vec<&str> {
    let scalar = state.scalar_functions().keys();
    let mut names: Vec<&str> = scalar.chain(state.aggregate_functions().keys()).map(String::as_str).collect();
    names.extend(state.window_functions().keys().map(String::as_str));
    names.sort_unstable();
    names
}

fn quoted<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

/// Takes every " at Line: 7, Column: 14" out of a text; the first one is the place.
fn without_marks(text: &str) -> (String, Option<(u64, u64)>) {
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
            place = place.or(Some((line, column)));
        }
        rest.replace_range(at..column_end, "");
        from = at;
    }
    (rest, place)
}

/// The first sentence or line, and what follows it.
fn first_sentence(message: &str) -> (String, Option<String>) {
    let begins = |at: &usize| message[at + 2..].starts_with(|c: char| c.is_uppercase() || c.is_whitespace());
    let sentence = message.match_indices(". ").chain(message.match_indices("! ")).map(|(at, _)| at).find(begins);
    let end = sentence.into_iter().chain(message.find('\n')).min().unwrap_or(message.len());
    let rest = message[end..].trim_start_matches(['.', '!', ' ', '\n', '\t']);
    let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
    (message[..end].trim_end_matches(['.', '!', ' ']).to_string(), (!rest.is_empty()).then_some(rest))
}

/// Lower case, no final stop, no prefix of DataFusion's, no catalog that the user never named.
fn polish(message: &str) -> String {
    let mut text = message.trim();
    while let Some(rest) = without_kind(text) {
        text = rest;
    }
    let text = text.replace(CONFIGURATION, "");
    let text = text.trim_end_matches('.').replace("datafusion.public.", "").replace("'datafusion.", "'");
    let text = text.replace("Expected: ", "expected ").replace(", found: ", ", found ");
    let text = text
        .replace("found EOF", "found the end of the statement")
        .replace("found ;", "found the end of the statement");
    lower(&text)
}

/// DataFusion advises to change what a pipeline keeps.
const CONFIGURATION: &str = " or disable the datafusion.sql_parser.enable_ident_normalization configuration";

/// Without the kind of error that DataFusion and Arrow put before what they say: "Schema error: ", "Arrow error: ".
fn without_kind(text: &str) -> Option<&str> {
    const OTHERS: [&str; 4] = [
        "Error during planning: ",
        "This feature is not implemented: ",
        "Invalid or Unsupported Configuration: ",
        "Resources exhausted: ",
    ];
    if let Some(rest) = OTHERS.iter().find_map(|kind| text.strip_prefix(kind)) {
        return Some(rest);
    }
    let (kind, rest) = text.split_once(" error: ")?;
    let is_kind =
        kind.starts_with(char::is_uppercase) && kind.split(' ').count() <= 2 && !kind.contains(['\'', '"', ':']);
    is_kind.then_some(rest)
}

/// Lower-cases the first letter, unless it begins a word in capitals or a quoted name.
pub(super) fn lower(text: &str) -> String {
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

#[cfg(test)]
mod tests;
