//! One error type: what failed, where, why, whose fault it is, and what to do next.
//!
//! ```text
//! error: could not write 5,000 rows to table "db.user_events"
//!   where: batch 1207, topic "user_events", partition 3, offsets 48210..53210
//!   cause: connection reset by peer
//! hint: nothing was committed; check `status` if it persists
//! ```
//!
//! `message` is lower case, factual, without a final stop. Nothing in an error may hold a secret: connectors name
//! addresses through [`crate::connector::redact`].

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is; decides the log level and what the caller may do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The user's SQL, option, flag or file. Trying again gives the same answer.
    User,
    /// A server, disk or network. Trying again may help if [`Error::retryable`].
    External,
    /// A defect of ours.
    Internal,
}

/// The part of a statement that an error is about. Who finds the error need not have the text: who has it points there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The name that a CREATE makes or an INSERT writes to.
    Name,
    StoredAs,
    Location,
    /// The type of a declared column.
    Type(String),
    /// The name of an option, in lower case.
    Option(String),
    /// Its value; of an option that is missing, the word OPTIONS.
    OptionValue(String),
    /// Of a SET.
    SettingKey,
    SettingValue,
}

/// See the module's documentation. Cheap to move (one pointer).
#[derive(Debug)]
pub struct Error(Box<Parts>);

#[derive(Debug)]
struct Parts {
    fault: Fault,
    retry: bool,
    message: String,
    /// file:line:column, the line and a caret, already laid out; empty where there is none.
    snippet: String,
    location: Option<String>,
    about: Option<Part>,
    cause: Option<String>,
    hint: Option<String>,
    /// Further errors of the same run, each shown whole.
    more: Vec<Error>,
}

impl Error {
    fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            fault,
            retry: false,
            message: message.into(),
            snippet: String::new(),
            location: None,
            about: None,
            cause: None,
            hint: None,
            more: vec![],
        }))
    }

    pub fn user(message: impl Into<String>) -> Self {
        Self::new(Fault::User, message)
    }

    pub fn external(message: impl Into<String>) -> Self {
        Self::new(Fault::External, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Fault::Internal, message)
    }

    /// All of them as one; `None` if there are none.
    pub fn all(mut errors: Vec<Error>) -> Option<Self> {
        if errors.is_empty() {
            return None;
        }
        let mut first = errors.remove(0);
        first.0.more.append(&mut errors);
        Some(first)
    }

    /// Marks the error as one that may pass by itself (a lost connection, a time-out, a full queue).
    pub fn retryable(mut self) -> Self {
        self.0.retry = true;
        self
    }

    /// Where in the data or the system: batch, topic, partition, offsets, table.
    pub fn at(mut self, location: impl Into<String>) -> Self {
        self.0.location = Some(location.into());
        self
    }

    /// Says which table it is about, before where it is.
    pub fn of_table(mut self, table: &str) -> Self {
        let location = self.0.location.take();
        self.0.location = Some(location.map_or(format!("table {table}"), |rest| format!("table {table}, {rest}")));
        self
    }

    pub fn location(&self) -> Option<&str> {
        self.0.location.as_deref()
    }

    /// What of the statement at its location it is about: see [`Error::located`].
    pub fn about(mut self, part: Part) -> Self {
        self.0.about = Some(part);
        self
    }

    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub fn with_hint(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    /// A place in the user's files, laid out (see `sql::text`).
    pub fn snippet(mut self, snippet: impl Into<String>) -> Self {
        self.0.snippet = snippet.into();
        self
    }

    pub fn part(&self) -> Option<&Part> {
        self.0.about.as_ref()
    }

    /// The error and all that came with it, each with its snippet in place of its location, and its texts rewritten.
    pub fn located(mut self, snippet: &dyn Fn(&Self) -> Option<String>, rewrite: &dyn Fn(&str) -> String) -> Self {
        let found = snippet(&self);
        let parts = &mut self.0;
        if let Some(found) = found {
            parts.snippet = found;
            parts.location = None;
        }
        parts.message = rewrite(&parts.message);
        for text in [&mut parts.cause, &mut parts.hint].into_iter().flatten() {
            *text = rewrite(text);
        }
        let more = std::mem::take(&mut parts.more);
        parts.more = more.into_iter().map(|error| error.located(snippet, rewrite)).collect();
        self
    }

    pub fn fault(&self) -> Fault {
        self.0.fault
    }

    pub fn is_retryable(&self) -> bool {
        self.0.retry
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Message and cause on one line, for a log field or a dead letter.
    pub fn line(&self) -> String {
        match &self.0.cause {
            Some(cause) => format!("{}: {cause}", self.0.message),
            None => self.0.message.clone(),
        }
    }
}

/// An error with its causes, on one line; what a cause only repeats is left out.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Why a row was refused, as it goes into records and dead letters: bounded, for it may quote the row, and without the
/// character that databases cannot hold.
pub fn reason_text(text: &str) -> String {
    const CHARACTERS_MAX: usize = 500;
    text.chars().filter(|c| *c != '\0').take(CHARACTERS_MAX).collect()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let parts = &self.0;
        write!(f, "{}", parts.message)?;
        if !parts.snippet.is_empty() {
            write!(f, "\n{}", parts.snippet.trim_end())?;
        }
        // A snippet begins with its place.
        if let Some(location) = parts.location.as_ref().filter(|location| !parts.snippet.contains(location.as_str())) {
            write!(f, "\n  where: {location}")?;
        }
        if let Some(cause) = &parts.cause {
            write!(f, "\n  cause: {cause}")?;
        }
        if let Some(hint) = &parts.hint {
            write!(f, "\nhint: {hint}")?;
        }
        for error in &parts.more {
            write!(f, "\n\nerror: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// An error of Arrow or DataFusion that reached a place where no part of the user's SQL can be named.
impl From<datafusion::error::DataFusionError> for Error {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Self::internal("a query of the engine failed").cause(crate::sql::explain::plain(&error))
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::internal("an Arrow operation failed").cause(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_only_repeated_is_told_once() {
        let inner = std::io::Error::other("connection refused");
        assert_eq!(causes(&std::io::Error::other(inner)), "connection refused");
    }
}
