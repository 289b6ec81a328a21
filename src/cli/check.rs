//! `poundlock check`: everything that can be said of the files without connecting to anything.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::flags::SettingFlags;
use crate::{Error, Result};

/// Parse and plan everything offline; print each INSERT's sink and guarantee
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock check queries/")]
pub struct CheckArgs {
    /// The folder of .sql files
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// See [`Error`].
pub async fn run(_: CheckArgs) -> Result<ExitCode> {
    Err(Error::internal("check is not there yet"))
}
