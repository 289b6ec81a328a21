//! `poundlock sql`: ad-hoc SQL over the tables of a pipeline.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::flags::SettingFlags;
use crate::{Error, Result};

/// Query the pipeline's tables: Parquet, the database, topics as they are now. Read-only unless told otherwise
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock sql -c 'SELECT count(*) FROM lake.user_events'")]
pub struct SqlArgs {
    /// The folder of .sql files whose tables and views there are
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    /// Run these statements and stop; without -c and -f there is a prompt
    #[arg(short, long, value_name = "SQL")]
    pub command: Vec<String>,

    /// Run the statements of a file and stop
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    pub file: Vec<PathBuf>,

    #[arg(long, default_value = "table", value_parser = ["table", "csv", "json"])]
    pub format: String,

    /// Allow statements that write
    #[arg(long)]
    pub allow_writes: bool,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// See [`Error`].
pub async fn run(_: SqlArgs) -> Result<ExitCode> {
    Err(Error::internal("sql is not there yet"))
}
