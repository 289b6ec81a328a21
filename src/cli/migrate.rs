//! `poundlock migrate`: the files of `migrations/` applied to the database.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::connector::database::migrate::migrate;

/// Create or change the database's tables: apply migrations/V1__name.sql, V2__name.sql, …, each once
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock migrate --database-url postgres://me:secret@localhost/events")]
pub struct MigrateArgs {
    /// The database, as postgres://user:password@host:5432/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: String,

    /// The folder of the files
    #[arg(long, default_value = "migrations", value_name = "DIR")]
    pub dir: PathBuf,
}

impl MigrateArgs {
    /// Prints what was applied, one name a line.
    ///
    /// # Errors
    /// See [`migrate`]; or `out` cannot be written.
    pub async fn run(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let applied = migrate(&self.database_url, &self.dir).await?;
        for name in &applied {
            writeln!(out, "applied {name}")?;
        }
        if applied.is_empty() && self.database_url.starts_with("sqlite:") {
            writeln!(out, "nothing to apply: tables in SQLite are made from their declarations")?;
        } else if applied.is_empty() {
            writeln!(out, "nothing to apply: the database is up to date")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sqlite_has_nothing_to_migrate() {
        let args = MigrateArgs { database_url: "sqlite:x.db".into(), dir: "nowhere".into() };
        let mut out = vec![];
        args.run(&mut out).await.unwrap();
        assert!(String::from_utf8(out).unwrap().contains("made from their declarations"));
        let args = MigrateArgs { database_url: "mysql://me:s3cret@h/d".into(), dir: "nowhere".into() };
        let error = args.run(&mut vec![]).await.unwrap_err().to_string();
        assert!(error.contains("not the address of a database") && !error.contains("s3cret"), "{error}");
    }
}
