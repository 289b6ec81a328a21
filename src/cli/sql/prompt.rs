//! The interactive prompt: history, completion, statements over several lines, `\d` and its kin.

use std::io::Write;
use std::path::Path;

use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper, Highlighter, Hinter};

use super::describe::{self, Names};
use super::execute::{Settings, execute, stream_of};
use super::output::{Format, write_batches};
use crate::{Error, Result};

const HISTORY_MAX: usize = 10_000;

const HELP: &str = "\
statements end with ';' and may take several lines; Ctrl-C stops a running query, Ctrl-D leaves
\\d              list the tables
\\d TABLE        list the columns of a table
\\format FORMAT  table, csv or json
\\?              this help
\\q              leave
";

/// Reads statements from the terminal and runs them until the user leaves. Errors of statements are shown, and the next
/// one is asked for. The history is kept in the file given; lines that begin with a space are left out of it.
///
/// Blocks the thread while it waits for a line.
///
/// # Errors
/// The terminal cannot be read or written.
pub async fn repl(context: &SessionContext, mut settings: Settings, history: Option<&Path>) -> Result<()> {
    let mut editor = editor(history)?;
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    say(&mut err, "\\? for help, \\q to leave\n")?;
    set_names(&mut editor, context).await;
    loop {
        let line = match editor.readline("sql> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(cause) => return Err(Error::external("could not read from the terminal").cause(cause)),
        };
        if line.trim().is_empty() {
            continue;
        }
        keep(&mut editor, &line, history, &mut err)?;
        let done = match Command::of(&line) {
            Command::Sql(sql) => {
                let done = cancellable(execute(context, "input", sql, settings, &mut out)).await;
                if settings.allow_writes {
                    set_names(&mut editor, context).await;
                }
                done
            }
            _ => command(context, &line, &mut settings, &mut out).await,
        };
        match done {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => say(&mut err, &format!("error: {error}\n"))?,
        }
    }
    Ok(())
}

/// Drops the query when Ctrl-C comes, and with it everything it holds.
async fn cancellable(query: impl Future<Output = Result<bool>>) -> Result<bool> {
    tokio::select! {
        done = query => done,
        signal = tokio::signal::ctrl_c() => Err(match signal {
            Ok(()) => Error::user("cancelled"),
            Err(cause) => Error::external("could not listen for Ctrl-C").cause(cause),
        }),
    }
}

/// Carries out a command of the prompt; SQL is none. True: leave, or the reader of the output went away.
///
/// # Errors
/// There is no such command or table; the output cannot be written.
pub async fn command(
    context: &SessionContext,
    line: &str,
    settings: &mut Settings,
    out: &mut dyn Write,
) -> Result<bool> {
    let rows = match Command::of(line) {
        Command::Quit => return Ok(true),
        Command::Help => return say(&mut std::io::stderr(), HELP).map(|()| false),
        Command::Format(Some(format)) => {
            settings.format = format;
            return Ok(false);
        }
        Command::Format(None) => return Err(Error::user("the formats are table, csv and json")),
        Command::Sql(word) | Command::Strange(word) => {
            return Err(Error::user(format!("there is no command {word}")).hint("\\? lists them"));
        }
        Command::Tables => describe::tables(context).await?,
        Command::Columns(table) => describe::columns(context, table).await?,
    };
    let (schema, rows_max) = (rows.schema(), Some(rows.num_rows()));
    Ok(write_batches(out, stream_of(vec![rows], schema)?, settings.format, rows_max).await?.closed)
}

/// Whether a text is a command of the prompt, and nothing else.
pub fn is_command(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('\\') && text.lines().count() == 1
}

fn say(err: &mut dyn Write, text: &str) -> Result<()> {
    err.write_all(text.as_bytes()).map_err(|cause| Error::external("could not write to stderr").cause(cause))
}

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
enum Command<'l> {
    Sql(&'l str),
    Tables,
    Columns(&'l str),
    Format(Option<Format>),
    Help,
    Quit,
    Strange(&'l str),
}

impl<'l> Command<'l> {
    fn of(line: &'l str) -> Self {
        let line = line.trim();
        let bare = line.trim_end_matches([';', ' ']);
        if ["quit", "exit"].contains(&bare) {
            return Self::Quit;
        }
        if !line.starts_with('\\') {
            return Self::Sql(line);
        }
        let (word, rest) = bare.split_once(char::is_whitespace).unwrap_or((bare, ""));
        match (word, rest.trim()) {
            ("\\d" | "\\dt", "") => Self::Tables,
            ("\\d", table) => Self::Columns(table),
            ("\\format", format) => Self::Format(clap::ValueEnum::from_str(format, true).ok()),
            ("\\?" | "\\h", _) => Self::Help,
            ("\\q", _) => Self::Quit,
            (word, _) => Self::Strange(word),
        }
    }
}

fn editor(history: Option<&Path>) -> Result<Editor<Assistant, FileHistory>> {
    let failed = |cause: ReadlineError| Error::external("could not open the terminal").cause(cause);
    let config = Config::builder().completion_type(CompletionType::List).history_ignore_space(true);
    let config = config.max_history_size(HISTORY_MAX).map_err(failed)?.build();
    let mut editor = Editor::with_config(config).map_err(failed)?;
    editor.set_helper(Some(Assistant::default()));
    if let Some(file) = history.filter(|file| file.exists()) {
        let loaded = editor.load_history(file);
        loaded
            .map_err(|cause| Error::external(format!("could not read the history {}", file.display())).cause(cause))?;
    }
    Ok(editor)
}

/// Adds to the history, in memory and in the file. A history that cannot be kept is said, and no reason to stop.
fn keep(
    editor: &mut Editor<Assistant, FileHistory>,
    line: &str,
    history: Option<&Path>,
    err: &mut dyn Write,
) -> Result<()> {
    let added = editor.add_history_entry(line).unwrap_or(false);
    if let Some(file) = history.filter(|_| added) {
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(cause) = folder.map_err(ReadlineError::from).and_then(|()| editor.append_history(file)) {
            say(err, &format!("could not keep the history in {}: {cause}\n", file.display()))?;
        }
    }
    Ok(())
}

async fn set_names(editor: &mut Editor<Assistant, FileHistory>, context: &SessionContext) {
    let names = describe::names(context).await;
    if let Some(assistant) = editor.helper_mut() {
        assistant.names = names;
    }
}

/// Completes words and decides when a statement is complete.
#[derive(Default, Helper, Hinter, Highlighter)]
struct Assistant {
    names: Names,
}

impl Validator for Assistant {
    fn validate(&self, line: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if is_complete(line.input()) { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// SQL up to a `;` that is in no string, name or comment; a command; or nothing.
fn is_complete(text: &str) -> bool {
    if text.trim().is_empty() || !matches!(Command::of(text), Command::Sql(_)) {
        return true;
    }
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize();
    let last = tokens.as_deref().unwrap_or_default().iter().rev().find(|token| !matches!(token, Token::Whitespace(_)));
    matches!(last, Some(Token::SemiColon))
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = completions(&self.names, line.get(..at).unwrap_or(line));
        Ok((start, words.into_iter().map(|word| Pair { display: word.clone(), replacement: word }).collect()))
    }
}

const KEYWORDS: &[&str] = &[
    "ALL",
    "ANALYZE",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "COUNT",
    "DATE",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FALSE",
    "FILTER",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "ILIKE",
    "IN",
    "INNER",
    "INTERSECT",
    "INTERVAL",
    "IS",
    "JOIN",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "NULLS",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OVER",
    "PARTITION",
    "QUALIFY",
    "RIGHT",
    "SELECT",
    "SHOW",
    "TABLES",
    "THEN",
    "TIMESTAMP",
    "TRUE",
    "UNION",
    "USING",
    "VALUES",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
];

/// Where the word before the cursor begins, and what it could become.
fn completions(names: &Names, before: &str) -> (usize, Vec<String>) {
    let in_word = |c: char| c.is_alphanumeric() || "_.\"\\".contains(c);
    let start = before.trim_end_matches(in_word).len();
    let word = &before[start..];
    if word.is_empty() {
        return (start, vec![]);
    }
    let begins = |name: &str, word: &str| {
        name.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word))
            || name
                .strip_prefix('"')
                .and_then(|n| n.get(..word.len()))
                .is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    let mut found: Vec<String> = names.tables.iter().filter(|name| begins(name, word)).cloned().collect();
    // Behind an alias there are columns only.
    if let (true, Some(dot)) = (found.is_empty(), word.rfind('.')) {
        let columns = names.columns.iter().filter(|name| begins(name, &word[dot + 1..]));
        return (start + dot + 1, columns.cloned().collect());
    }
    found.extend(names.columns.iter().filter(|name| begins(name, word)).cloned());
    let lower = word.starts_with(|c: char| c.is_lowercase());
    let keywords = KEYWORDS.iter().filter(|keyword| begins(keyword, word));
    found.extend(keywords.map(|keyword| if lower { keyword.to_lowercase() } else { (*keyword).to_string() }));
    (start, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_with_a_semicolon() {
        for complete in ["SELECT 1;", "SELECT 1; -- done\n", "SELECT ';';", "", "  \n", "\\d", "\\q", "quit", "a;b;"] {
            assert!(is_complete(complete), "{complete}");
        }
        for incomplete in
            ["SELECT 1", "SELECT ';", "SELECT 1 -- ;", "SELECT 1 /* ;", "SELECT \"a;", "SELECT 1; SELECT 2"]
        {
            assert!(!is_complete(incomplete), "{incomplete}");
        }
    }

    #[test]
    fn commands() {
        assert_eq!(Command::of(" \\d "), Command::Tables);
        assert_eq!(Command::of("\\d lake.events;"), Command::Columns("lake.events"));
        assert_eq!(Command::of("\\format JSON"), Command::Format(Some(Format::Json)));
        assert_eq!(Command::of("\\format xml"), Command::Format(None));
        assert_eq!(Command::of("exit;"), Command::Quit);
        assert_eq!(Command::of("\\x"), Command::Strange("\\x"));
        assert_eq!(Command::of("SELECT 1;"), Command::Sql("SELECT 1;"));
    }

    #[test]
    fn completion() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_string()).collect();
        let names =
            Names { tables: set(&["kafka.events", "totals"]), columns: set(&["event_id", "\"eventTime\"", "n"]) };
        let complete = |before| completions(&names, before);
        assert_eq!(complete("SELECT * FROM kaf"), (14, vec!["kafka.events".to_string()]));
        assert_eq!(complete("SELECT event"), (7, vec!["\"eventTime\"".to_string(), "event_id".to_string()]));
        assert_eq!(complete("SELECT k.event_"), (9, vec!["event_id".to_string()]));
        assert_eq!(complete("wher"), (0, vec!["where".to_string()]));
        assert_eq!(complete("GRO"), (0, vec!["GROUP".to_string()]));
        assert_eq!(complete("SELECT "), (7, vec![]));
        assert_eq!(complete("SELECT é"), (7, vec![]));
        assert_eq!(complete("FROM tot"), (5, vec!["totals".to_string()]));
    }

    #[tokio::test]
    async fn a_command_is_carried_out_anywhere() {
        assert!(
            is_command("\\d") && is_command(" \\d t;\n") && !is_command("SELECT 1") && !is_command("\\d\nSELECT 1")
        );
        let context = SessionContext::new();
        context.sql("CREATE VIEW ones AS SELECT 1 AS one").await.unwrap();
        let mut settings = Settings { format: Format::Table, rows_max: Some(0), allow_writes: false, timing: false };
        let mut out = vec![];
        for line in ["\\format csv", "\\d", "\\d ones"] {
            assert!(!command(&context, line, &mut settings, &mut out).await.unwrap());
        }
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, "schema,table,kind\npublic,ones,view\ncolumn,type,nullable\none,BIGINT,no\n");
        let error = command(&context, "\\x", &mut settings, &mut vec![]).await.unwrap_err().to_string();
        assert_eq!(error, "there is no command \\x\nhint: \\? lists them");
        assert!(command(&context, "\\q", &mut settings, &mut vec![]).await.unwrap());
    }

    #[tokio::test]
    async fn a_finished_query_is_not_cancelled() {
        assert!(cancellable(async { Ok(true) }).await.unwrap());
    }
}
