//! `poundlock run`: the pipeline, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::flags::SettingFlags;
use crate::{Error, Result};

/// Run the pipeline of a folder of .sql files
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock run queries/ --trigger 1s --log-format json")]
pub struct RunArgs {
    /// The folder of .sql files
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    /// Stop after one micro-batch
    #[arg(long, conflicts_with = "until_caught_up")]
    pub once: bool,

    /// Stop at the ends of the sources as they are at the start
    #[arg(long)]
    pub until_caught_up: bool,

    /// When a bounded run ends, close the windows that are still open, as if time had passed
    #[arg(long)]
    pub close_windows: bool,

    /// Forget the window state, where changed SQL cannot go on with it; the offsets stay
    #[arg(long)]
    pub reset_state: bool,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// See [`Error`].
pub async fn run(_: RunArgs) -> Result<ExitCode> {
    Err(Error::internal("run is not there yet"))
}
