//! `migrations/*.sql` applied to a database, each once, in the order of their numbers.
//!
//! The files are read when it runs, not when it is compiled: they are the user's. refinery keeps what was applied in
//! `refinery_schema_history` and refuses a file that was changed after it was applied. Our own schema (`poundlock`) is
//! made too, so that the pipeline can run with a role that may create nothing.
//!
//! Two starts at once: the second waits for the first under an advisory lock of the session.

use std::path::{Path, PathBuf};
use std::time::Duration;

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
    let report = Runner::new(&migrations).run_async(&mut client).await.map_err(|error| {
        let applied = error.report().map_or(0, |report| report.applied_migrations().len());
        let cause = match error.kind() {
            refinery::error::Kind::Connection(what, source) => {
                let source = source.downcast_ref().map_or_else(|| source.to_string(), postgres::reason);
                format!("{what}: {source}")
            }
            kind => kind.to_string(),
        };
        let hint = format!("{applied} of the new files were applied; each is all or nothing");
        Error::user(doing.clone()).at(dir.display().to_string()).cause(cause).hint(hint)
    })?;
    let applied = report.applied_migrations().iter();
    Ok(applied.map(|m| format!("{}{}__{}", m.prefix(), m.version(), m.name())).collect())
}

async fn load(dir: PathBuf) -> Result<Vec<refinery::Migration>> {
    let shown = dir.display().to_string();
    let loaded = tokio::task::spawn_blocking(move || load_sql_migrations(dir)).await;
    let loaded = loaded.map_err(|e| Error::internal("reading the migrations panicked").cause(e))?;
    loaded.map_err(|e| {
        Error::user(format!("could not read the migrations in {shown}"))
            .cause(e)
            .hint("a migration is a file V1__name.sql, V2__name.sql, …")
    })
}
