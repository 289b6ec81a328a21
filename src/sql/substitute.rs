//! `${NAME}`, `${NAME:-default}` and `${file:PATH}` in the user's SQL, replaced so that a value stays a value.
//!
//! What a reference may become depends on where it stands, and sqlparser's own tokenizer says where that is: the
//! references are masked with letters, the masked text is tokenized (it has the lines and columns of the original), and
//! each reference lies in some token:
//!
//! - in a `'literal'`: any value; its quotes are doubled, so that it can never end the literal;
//! - in a `"quoted name"` or bare: only letters, digits, and `_ . + -`: a number, a name, never a piece of SQL;
//! - in a comment: left as it is;
//! - in any other kind of literal (`E'…'`, `$$…$$`, …), where other escapes count: refused.
//!
//! `$${` stands for `${`. As in a shell, `:-` takes the default for a variable that is unset *or* empty.
//!
//! The **stored** text is the one that a checkpoint keeps: it gives the same text when it is substituted again, with
//! thresholds as they were and addresses as they are then. In it, these stay references: `${file:…}`, variables whose
//! name or value looks like a secret, and in CREATE EXTERNAL TABLE the LOCATION and the options that say where and how to
//! connect; not those that rows depend on ([`OF_ROWS`]).
//!
//! Invariant: substituting `stored` again, with the same values, gives `text`. A reference that fails is a [`Problem`]
//! with its place, and the mask stays in the text, so that the statements around it are still looked at.

use std::ops::Range;

use sqlparser::dialect::GenericDialect;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace};

use super::place::Cursor;
use super::syntax::unreadable;
use crate::connector::redact;

/// What a reference asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// An environment variable.
    Variable(&'a str),
    /// The content of a file.
    File(&'a str),
}

/// Gives the value, `None` if there is none, or why it cannot be read. The environment is passed in, never asked for.
pub type Lookup<'a> = &'a dyn Fn(Wanted) -> Result<Option<String>, String>;

/// Options of a table that the rows of a batch depend on, or what becomes of them; or the beginnings of their names.
const OF_ROWS: [&str; 11] = [
    "watermark.",
    "format",
    "avro.",
    "role",
    "key",
    "headers",
    "on_conflict",
    "transaction",
    "table",
    "index",
    "op_type",
];

/// A value longer than this is refused.
const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Shorter secrets are not looked for in messages: they would match everywhere.
const SECRET_CHARS_MIN: usize = 4;

/// The texts of one file.
#[derive(Debug, Clone, Default)]
pub struct Substituted {
    pub text: String,
    pub stored: String,
    /// Covers `text` without gaps, in order.
    pub segments: Vec<Segment>,
    pub problems: Vec<Problem>,
    /// Where in `text` a mask stands for a reference that failed.
    pub broken: Vec<usize>,
    /// Values that must not be printed, each with the reference that may be.
    pub secrets: Vec<(String, String)>,
}

/// A piece of `text` and where it came from.
#[derive(Debug, Clone)]
pub struct Segment {
    /// Begin in `text`.
    pub text: usize,
    /// Where in the original: of the same length if `verbatim`, else the whole reference.
    pub source: Range<usize>,
    pub verbatim: bool,
}

/// What is wrong with a reference, or with the tokens of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In the original.
    pub source: Range<usize>,
    pub message: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind<'a> {
    /// `$${`
    Escape,
    Variable {
        name: &'a str,
        default: Option<&'a str>,
    },
    File(&'a str),
    Malformed(&'static str),
}

struct Reference<'a> {
    range: Range<usize>,
    kind: Kind<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    Comment,
    Literal,
    QuotedName,
    Bare,
    Other,
}

pub fn substitute(source: &str, lookup: Lookup) -> Substituted {
    let references = find(source);
    let masked = mask(source, &references);
    let mut out = Substituted::default();
    let mut tokens = vec![];
    if let Err(error) = Tokenizer::new(&GenericDialect {}, &masked).tokenize_with_location_into_buf(&mut tokens) {
        let at = Cursor::new(source).advance(error.location.line, error.location.column);
        let (message, hint) = unreadable(&error, &tokens);
        out.problems.push(Problem { source: at..at + 1, message, hint });
        out.broken.push(0);
        // The kind of every later reference is in doubt, so none is looked up.
        out.verbatim(source, 0..source.len());
        return out;
    }
    let addresses = addresses(source, &tokens);
    let contexts = contexts(source, &tokens, &references);
    let mut done = 0;
    let mut plain = String::new(); // text since the last reference that stays one in `stored`
    for (reference, context) in references.iter().zip(contexts) {
        plain.push_str(&source[done..reference.range.start]);
        out.verbatim(source, done..reference.range.start);
        done = reference.range.end;
        if context == Context::Comment {
            out.verbatim(source, reference.range.clone());
            out.flush(&mut plain);
            out.stored.push_str(&source[reference.range.clone()]);
            continue;
        }
        let keep = addresses.iter().any(|a| a.contains(&reference.range.start));
        out.replace(source, reference, context, keep, &mut plain, lookup);
    }
    plain.push_str(&source[done..]);
    out.verbatim(source, done..source.len());
    out.flush(&mut plain);
    out
}

impl Substituted {
    fn verbatim(&mut self, source: &str, range: Range<usize>) {
        if !range.is_empty() {
            self.segments.push(Segment { text: self.text.len(), source: range.clone(), verbatim: true });
            self.text.push_str(&source[range]);
        }
    }

    /// What `plain` holds must come out of another substitution as it is.
    fn flush(&mut self, plain: &mut String) {
        self.stored.push_str(&plain.replace("${", "$${"));
        plain.clear();
    }

    fn replace(
        &mut self,
        source: &str,
        reference: &Reference,
        context: Context,
        in_address: bool,
        plain: &mut String,
        lookup: Lookup,
    ) {
        let written = &source[reference.range.clone()];
        self.segments.push(Segment { text: self.text.len(), source: reference.range.clone(), verbatim: false });
        if reference.kind == Kind::Escape {
            self.text.push_str("${");
            plain.push_str("${");
            return;
        }
        let next = source[reference.range.end..].chars().next();
        let value = value(&reference.kind, lookup).and_then(|value| {
            let text = fit(&value, context, self.text.chars().next_back(), next)?;
            if plain.ends_with('$') && self.stays(reference, &value, in_address) {
                return Err(("a reference cannot follow a value that ends in $".into(), None));
            }
            Ok((value, text))
        });
        match value {
            Err((what, hint)) => {
                self.broken.push(self.text.len());
                self.text.push_str(&masked(written));
                self.problems.push(Problem { source: reference.range.clone(), message: what, hint });
                plain.push_str(written);
            }
            Ok((value, text)) => {
                self.text.push_str(&text);
                if secret(reference, &value) && value.chars().count() >= SECRET_CHARS_MIN {
                    self.secrets.push((value.clone(), written.to_string()));
                }
                if self.stays(reference, &value, in_address) {
                    self.flush(plain);
                    self.stored.push_str(written);
                } else {
                    plain.push_str(&text);
                }
            }
        }
    }

    fn stays(&self, reference: &Reference, value: &str, in_address: bool) -> bool {
        in_address || secret(reference, value)
    }
}

/// A value that is neither printed nor stored: from a file, or by its name or look.
fn secret(reference: &Reference, value: &str) -> bool {
    match &reference.kind {
        Kind::File(_) => true,
        Kind::Variable { name, default } => {
            let name = name.to_ascii_uppercase();
            *default != Some(value)
                && (["PASSWORD", "PASSWD", "SECRET", "CREDENTIAL", "PRIVATE_KEY"]
                    .iter()
                    .any(|word| name.contains(word))
                    || ["TOKEN", "API_KEY", "ACCESS_KEY"].iter().any(|word| name.ends_with(word))
                    || redact(value) != value)
        }
        Kind::Escape | Kind::Malformed(_) => false,
    }
}

type Refused = (String, Option<String>);

fn value(kind: &Kind, lookup: Lookup) -> Result<String, Refused> {
    let (value, what) = match kind {
        Kind::Malformed(why) => return Err(((*why).into(), Some("write $${ for the characters ${ themselves".into()))),
        Kind::Escape => return Ok("${".into()),
        Kind::Variable { name, default } => {
            let what = format!("environment variable {name}");
            let found = lookup(Wanted::Variable(name)).map_err(|why| (format!("{what} {why}"), None))?;
            let value = match (found, default) {
                (Some(value), None) => value,
                (Some(value), Some(_)) if !value.is_empty() => value,
                (_, Some(default)) => (*default).to_string(),
                (None, None) => {
                    let hint = format!("set it, or give it a default: ${{{name}:-…}}");
                    return Err((format!("{what} is not set"), Some(hint)));
                }
            };
            (value, what)
        }
        Kind::File(path) => {
            let what = format!("file {path:?}");
            let found = lookup(Wanted::File(path)).map_err(|why| (format!("{what} cannot be read: {why}"), None))?;
            let Some(mut value) = found else { return Err((format!("{what} is not there"), None)) };
            if value.ends_with('\n') {
                value.pop();
                if value.ends_with('\r') {
                    value.pop();
                }
            }
            (value, what)
        }
    };
    if value.len() > VALUE_BYTES_MAX {
        return Err((format!("the value of {what} is longer than {VALUE_BYTES_MAX} bytes"), None));
    }
    if value.contains('\0') {
        return Err((format!("the value of {what} has a zero byte"), None));
    }
    Ok(value)
}

/// The value as it may stand in this context, between these neighbours. Never names the value: it may be a secret.
fn fit(value: &str, context: Context, before: Option<char>, after: Option<char>) -> Result<String, Refused> {
    let quote = || Some("put the reference in quotes: '${…}'".to_string());
    match context {
        Context::Literal => Ok(value.replace('\'', "''")),
        Context::QuotedName | Context::Bare => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
            let comment =
                value.contains("--") || value.ends_with('-') || (value.starts_with('-') && before == Some('-'));
            if !value.chars().all(plain) || (context == Context::Bare && comment) {
                let what = "outside of a '…' literal a value may only be a number or a name";
                return Err((what.into(), quote()));
            }
            // E'…', X'…' and the like: a value must not turn one kind of literal into another.
            if context == Context::Bare && matches!(after, Some('\'' | '"' | '`' | '&')) {
                return Err(("a reference cannot stand directly before a quote".into(), quote()));
            }
            Ok(value.to_string())
        }
        Context::Other | Context::Comment => {
            Err(("a reference cannot stand in this kind of literal".into(), Some("use a plain '…' literal".into())))
        }
    }
}

fn find(source: &str) -> Vec<Reference<'_>> {
    let mut found = vec![];
    let mut from = 0;
    while let Some(at) = source[from..].find("${").map(|at| from + at) {
        if at > from && source.as_bytes()[at - 1] == b'$' {
            found.push(Reference { range: at - 1..at + 2, kind: Kind::Escape });
            from = at + 2;
            continue;
        }
        let (end, kind) = reference(source, at);
        found.push(Reference { range: at..end, kind });
        from = end;
    }
    found
}

/// The reference that begins at `at`; one that is malformed ends behind its `${`.
fn reference(source: &str, at: usize) -> (usize, Kind<'_>) {
    let line = source[at..].find('\n').map_or(source.len(), |end| at + end);
    let malformed = |why| (at + 2, Kind::Malformed(why));
    let Some(end) = source[at..line].find('}').map(|end| at + end) else {
        return malformed("a reference is not closed: } is missing on its line");
    };
    let inner = &source[at + 2..end];
    if inner.contains("${") {
        return malformed("a reference cannot hold another one");
    }
    if let Some(path) = inner.strip_prefix("file:") {
        return if path.is_empty() { malformed("a file has no path") } else { (end + 1, Kind::File(path)) };
    }
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(named) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return malformed("a reference is ${NAME}, ${NAME:-default} or ${file:PATH}");
    }
    (end + 1, Kind::Variable { name, default })
}

/// Letters instead of references: the same lines and columns.
fn mask(source: &str, references: &[Reference]) -> String {
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for Reference { range, .. } in references {
        out.push_str(&source[done..range.start]);
        out.push_str(&masked(&source[range.clone()]));
        done = range.end;
    }
    out.push_str(&source[done..]);
    out
}

/// A letter that begins no other kind of literal.
fn masked(written: &str) -> String {
    "z".repeat(written.chars().count())
}

fn contexts(source: &str, tokens: &[TokenWithSpan], references: &[Reference]) -> Vec<Context> {
    let mut cursor = Cursor::new(source);
    let mut tokens = tokens.iter().peekable();
    let mut context = Context::Other;
    let mut next = tokens.peek().map(|t| cursor.advance(t.span.start.line, t.span.start.column));
    let mut of = |reference: &Reference| {
        while next.is_some_and(|begin| begin <= reference.range.start) {
            if let Some(token) = tokens.next() {
                context = context_of(&token.token);
            }
            next = tokens.peek().map(|t| cursor.advance(t.span.start.line, t.span.start.column));
        }
        context
    };
    references.iter().map(&mut of).collect()
}

fn context_of(token: &Token) -> Context {
    match token {
        Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)) => Context::Comment,
        Token::SingleQuotedString(_) => Context::Literal,
        Token::Word(word) if word.quote_style.is_some() => Context::QuotedName,
        Token::Word(_) => Context::Bare,
        _ => Context::Other,
    }
}

/// The literals of CREATE EXTERNAL TABLE statements that are an address or an option of a connection.
fn addresses(source: &str, tokens: &[TokenWithSpan]) -> Vec<Range<usize>> {
    let mut cursor = Cursor::new(source);
    let mut found = vec![];
    let mut words = String::new();
    // The last two tokens: what a literal is the value of.
    let mut before: [Option<&Token>; 2] = [None, None];
    for token in tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))) {
        match &token.token {
            Token::SemiColon => words.clear(),
            Token::Word(word) if words.len() < 64 => {
                words.push_str(&word.value.to_ascii_uppercase());
                words.push(' ');
            }
            Token::SingleQuotedString(_) if external(&words) && is_address(before) => {
                let begin = cursor.advance(token.span.start.line, token.span.start.column);
                let end = cursor.advance(token.span.end.line, token.span.end.column);
                found.push(begin..end);
            }
            _ => {}
        }
        before = [before[1], Some(&token.token)];
    }
    found
}

/// `LOCATION '…'`, or the value of an option: `'name' '…'` behind `(` or `,`.
fn is_address(before: [Option<&Token>; 2]) -> bool {
    let [first, last] = before;
    let option = match last {
        Some(Token::Word(word)) if word.value.eq_ignore_ascii_case("LOCATION") => return true,
        Some(Token::SingleQuotedString(name)) => name,
        Some(Token::Word(word)) => &word.value,
        _ => return false,
    };
    let is_option = matches!(first, Some(Token::LParen | Token::Comma));
    let of_rows = |known: &&str| option == known || (known.ends_with('.') && option.starts_with(*known));
    is_option && !OF_ROWS.iter().any(of_rows)
}

fn external(words: &str) -> bool {
    let words = words.strip_prefix("CREATE ").unwrap_or("");
    let words = words.strip_prefix("OR REPLACE ").unwrap_or(words);
    let words = words.strip_prefix("UNBOUNDED ").unwrap_or(words);
    words.starts_with("EXTERNAL ")
}

#[cfg(test)]
mod tests;
