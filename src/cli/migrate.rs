//! `poundlock migrate`: the files of `migrations/` applied to the database, and to Elasticsearch where there is one.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::run::TEMPLATES;
use crate::connector::database::migrate::migrate;
use crate::connector::elasticsearch::options::Connection;
use crate::connector::elasticsearch::template;

/// Create or change the database's tables: apply migrations/V1__name.sql, V2__name.sql, …, each once; and the index templates of
/// migrations/elasticsearch/*.json
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock migrate --database-url postgres://me:secret@localhost/events")]
pub struct MigrateArgs {
    /// The database, as postgres://user:password@host:5432/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: String,

    /// Elasticsearch, as https://user:password@host:9200; without it no templates are applied
    #[arg(long, env = "ES_URL", hide_env_values = true, value_name = "URL")]
    pub es_url: Option<String>,

    /// An API key for it, in place of a user
    #[arg(long, env = "ES_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub es_api_key: Option<String>,

    /// Certificates in PEM that its own may be signed by
    #[arg(long, env = "ES_CA_FILE", value_name = "FILE")]
    pub es_ca_file: Option<String>,

    /// The folder of the files
    #[arg(long, default_value = "migrations", value_name = "DIR")]
    pub dir: PathBuf,
}

impl MigrateArgs {
    /// Prints what was applied, one name a line.
    ///
    /// # Errors
    /// See [`migrate`] and [`template::apply`]; or `out` cannot be written.
    pub async fn run(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut applied = migrate(&self.database_url, &self.dir).await?;
        // Told before anything else can fail: it is done.
        for name in &applied {
            writeln!(out, "applied {name}")?;
        }
        // Empty is as good as not set.
        if let Some(url) = self.es_url.as_deref().filter(|url| !url.is_empty()) {
            let ca_file = self.es_ca_file.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from);
            let connection = Connection::parse(url, self.es_api_key.as_deref(), ca_file)?;
            let templates = template::apply(&connection, &self.dir.join(TEMPLATES)).await?;
            for name in templates {
                writeln!(out, "applied template {name}")?;
                applied.push(name);
            }
        }
        if applied.is_empty() && self.database_url.starts_with("sqlite:") {
            writeln!(out, "nothing to apply: tables in SQLite are made from their declarations")?;
        } else if applied.is_empty() {
            writeln!(out, "nothing to apply: all is up to date")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(database_url: &str, es_url: Option<&str>) -> MigrateArgs {
        let (es_api_key, es_ca_file) = (None, None);
        let es_url = es_url.map(str::to_string);
        MigrateArgs { database_url: database_url.into(), es_url, es_api_key, es_ca_file, dir: "nowhere".into() }
    }

    #[tokio::test]
    async fn sqlite_has_nothing_to_migrate() {
        let mut out = vec![];
        args("sqlite:x.db", Some("")).run(&mut out).await.unwrap();
        assert!(String::from_utf8(out).unwrap().contains("made from their declarations"));
        let error = args("mysql://me:s3cret@h/d", None).run(&mut vec![]).await.unwrap_err().to_string();
        assert!(error.contains("not the address of a database") && !error.contains("s3cret"), "{error}");
        let error = args("sqlite:x.db", Some("ftp://me:s3cret@h")).run(&mut vec![]).await.unwrap_err().to_string();
        assert!(error.contains("not the address of an Elasticsearch") && !error.contains("s3cret"), "{error}");
    }
}
