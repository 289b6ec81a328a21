//! `poundlock demo`: the whole pipeline on this machine alone, with an embedded broker, SQLite and local files.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::flags::SettingFlags;
use crate::{Error, Result};

/// Run the shipped pipeline with no service at all: embedded broker, generator, SQLite, local Parquet
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock demo --for 60s")]
pub struct DemoArgs {
    /// The folder of .sql files
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    /// How long events are generated; Ctrl-C stops at any time
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub duration: Duration,

    /// Where the results are put
    #[arg(long, default_value = "demo")]
    pub dir: PathBuf,

    /// Events a second
    #[arg(long, default_value_t = 1_000)]
    pub rate: u64,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// See [`Error`].
pub async fn run(_: DemoArgs) -> Result<ExitCode> {
    Err(Error::internal("demo is not there yet"))
}
