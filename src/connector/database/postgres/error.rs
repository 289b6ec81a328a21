//! What an error of PostgreSQL means for us: the row's fault, the user's, or the server's.

use std::error::Error as _;

use tokio_postgres::error::DbError;

use crate::Error;

/// Whose fault a failed statement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The server cannot hold one of the rows; the others may be fine.
    Row,
    /// May pass by itself: connection, lock, deadlock, shutdown, resources, a standby.
    Passing,
    /// Table, column, right, password, name of the database.
    User,
    /// All else that the server says.
    Server,
    /// We spoke wrongly.
    Ours,
}

/// By SQLSTATE (appendix A of PostgreSQL's manual); an error without one is the connection's.
pub(super) fn class(error: &tokio_postgres::Error) -> Class {
    let Some(code) = error.code().map(|c| c.code()) else {
        // tokio-postgres tells the kinds apart by their texts only.
        let text = error.to_string();
        let user = ["TLS handshake", "invalid configuration", "invalid connection string", "authentication error"];
        return match () {
            () if user.iter().any(|u| text.contains(u)) => Class::User,
            () if ["serializing", "deserializing", "parameters", "unexpected message"]
                .iter()
                .any(|o| text.contains(o)) =>
            {
                Class::Ours
            }
            () => Class::Passing,
        };
    };
    match code {
        "22P04" | "08P01" => Class::Ours,
        // 54000: a value too long for its index. P0001: a trigger says no. 44000: a view's check option.
        "54000" | "P0001" | "44000" | "21000" => Class::Row,
        "25006" | "25P03" | "55P03" | "55006" | "57014" | "72000" => Class::Passing,
        "3D000" | "3F000" | "42501" | "42P01" | "42703" | "42P10" | "55000" | "0A000" => Class::User,
        "58030" | "58000" => Class::Passing,
        _ => match &code[..2.min(code.len())] {
            "22" | "23" => Class::Row,
            "08" | "40" | "53" | "57" => Class::Passing,
            "28" => Class::User,
            "42" => Class::User,
            _ => Class::Server,
        },
    }
}

/// ON CONFLICT DO UPDATE has met one key twice.
pub(super) fn is_repetition(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|c| c.code() == "21000")
}

pub(super) fn is_unique_violation(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION)
}

/// What the server said, on one line; a detail may quote the row, which is what a dead letter wants.
pub fn reason(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => db_reason(db),
        None => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

fn db_reason(db: &DbError) -> String {
    let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    // Not the row itself: it is beside the reason in a dead letter, and in no log.
    if let Some(detail) = db.detail().filter(|detail| !detail.starts_with("Failing row contains")) {
        text.push_str(&format!("; {detail}"));
    }
    if let Some(column) = db.column().filter(|c| !db.message().contains(*c)) {
        text.push_str(&format!("; column {column}"));
    }
    text.replace('\n', " ")
}

/// The error to hand up when `what` failed.
pub fn failure(error: &tokio_postgres::Error, what: &str) -> Error {
    let reason = reason(error);
    match class(error) {
        Class::Passing => Error::external(what).cause(reason).retryable(),
        Class::Server => Error::external(what).cause(reason),
        Class::Ours => Error::internal(what).cause(reason),
        Class::Row => Error::user(what).cause(reason),
        Class::User => {
            let code = error.code().map_or("", |c| c.code());
            let hint = match code {
                "42P01" | "42703" | "3F000" => "create it, or let `poundlock migrate` do so",
                "42501" => "grant the role the right, or let a role that may run `poundlock migrate`",
                "3D000" => "create the database first: CREATE DATABASE",
                _ if code.starts_with("28") => "check user and password of the address",
                "" => "check the address, sslmode and sslrootcert",
                _ => return Error::user(what).cause(reason),
            };
            Error::user(what).cause(reason).hint(hint)
        }
    }
}
