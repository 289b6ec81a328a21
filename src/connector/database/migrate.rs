//! `migrations/*.sql` applied to a database, each once, in the order of their numbers.
//!
//! The files are read when it runs, not when it is compiled: they are the user's. refinery keeps what was applied in
//! `refinery_schema_history`, and it only goes forward: it refuses a file that was changed or removed after it was applied, and a
//! new one with a number below. Our own schema (`poundlock`) is made too, so that the pipeline can run with a role that may
//! create nothing.
//!
//! Two starts at once: the second waits for the first under an advisory lock of the session.

use std::path::{Path, PathBuf};
use std::time::Duration;

use refinery::error::Kind;
use refinery::{Runner, load_sql_migrations};

use super::postgres::{self, Address};
use crate::connector::redact;
use crate::{Error, Result};

/// "poundlock" in hexadecimal digits, cut to 63 bits: one lock for all who migrate.
const LOCK: i64 = 0x706f_756e_646c_6f63;

/// A migration may rewrite a large table.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Applies what is new in `dir` and returns it, one `V1__name` each; for SQLite nothing, since its tables come from
/// their declarations.
///
/// # Errors
/// Folder or file unreadable, a statement wrong, an applied file changed (user); the server (external).
pub async fn migrate(url: &str, dir: &Path) -> Result<Vec<String>> {
    if url.trim().starts_with("sqlite:") {
        tracing::info!("nothing to migrate: tables in SQLite are made from their declarations");
        return Ok(vec![]);
    }
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(Error::user(format!("{:?} is not the address of a database", redact(url)))
            .hint("set DATABASE_URL to 'postgres://user:password@host:5432/database'"));
    }
    let address = Address::parse(url)?;
    let migrations = load(dir.to_path_buf()).await?;
    let mut client = postgres::connect(&address, Duration::from_secs(10), STATEMENT_TIMEOUT).await?;
    let doing = format!("could not migrate {address}");
    let locked = client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await;
    locked.map_err(|e| postgres::failure(&e, &doing))?;
    // The lock goes with the connection, however this ends.
    postgres::make_ledger(&client).await?;
    let runner = Runner::new(&migrations);
    let report = match runner.run_async(&mut client).await {
        Ok(report) => report,
        Err(error) => {
            // Only for the message, which can do without it.
            let newest = runner.get_last_applied_migration_async(&mut client).await.ok().flatten();
            let (cause, hint) = explained(&error, newest.map(|newest| newest.version()));
            return Err(Error::user(doing).at(dir.display().to_string()).cause(cause).hint(hint));
        }
    };
    let applied = report.applied_migrations().iter();
    Ok(applied.map(|m| format!("{}{}__{}", m.prefix(), m.version(), m.name())).collect())
}

/// Cause and hint. `newest` is the highest number that was applied.
fn explained(error: &refinery::Error, newest: Option<i32>) -> (String, String) {
    let next = newest.map_or(1, |newest| newest + 1);
    match error.kind() {
        Kind::DivergentVersion(applied, file) if applied.name() == file.name() => (
            format!("file {file}.sql was changed after it was applied"),
            format!("put it back as it was, and what is new into a migration of its own: V{next}__{}.sql", file.name()),
        ),
        Kind::DivergentVersion(applied, file) => (
            format!("file {file}.sql has the number of {applied}, which was applied"),
            format!("put {applied}.sql back, and rename the other: V{next}__{}.sql", file.name()),
        ),
        Kind::MissingVersion(applied) if applied.applied_on().is_some() => (
            format!("{applied} was applied, and its file is gone"),
            "put it back as it was: migrations only go forward, and what it made is undone by a new one".into(),
        ),
        Kind::MissingVersion(file) => (
            format!("file {file}.sql is new, and a migration with a higher number was applied already"),
            format!("migrations only go forward: rename it to V{next}__{}.sql", file.name()),
        ),
        kind => {
            let cause = match kind {
                Kind::Connection(what, source) => {
                    let source = source.downcast_ref().map_or_else(|| source.to_string(), postgres::reason);
                    format!("{what}: {source}")
                }
                kind => kind.to_string(),
            };
            let applied = error.report().map_or(0, |report| report.applied_migrations().len());
            (cause, format!("{applied} of the new files were applied; each is all or nothing"))
        }
    }
}

async fn load(dir: PathBuf) -> Result<Vec<refinery::Migration>> {
    let shown = dir.display().to_string();
    let loaded = tokio::task::spawn_blocking(move || load_sql_migrations(dir)).await;
    let loaded = loaded.map_err(|e| Error::internal("reading the migrations panicked").cause(e))?;
    let mut migrations = loaded.map_err(|e| {
        Error::user(format!("could not read the migrations in {shown}"))
            .cause(e)
            .hint("a migration is a file V1__name.sql, V2__name.sql, …")
    })?;
    migrations.sort();
    // refinery would apply the first and stumble over the second.
    match migrations.windows(2).find(|two| two[0].version() == two[1].version()) {
        Some(two) => Err(Error::user(format!("files {}.sql and {}.sql have the same number", two[0], two[1]))
            .at(shown)
            .hint("give each migration a number of its own, above those that were applied")),
        None => Ok(migrations),
    }
}
