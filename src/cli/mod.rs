//! The command line: one file per verb, and what they share.
//!
//! Data goes to stdout, all else to stderr. Exit 0: done; 1: the answer is no (a check failed); 2: could not do it.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

pub mod run;

pub mod check;

pub mod status;

pub mod shell;

pub mod demo;

pub mod generate;

pub mod migrate;

pub mod compact;

pub mod sql;

pub mod load;

pub mod flags;

pub mod environment;

pub mod log;

pub mod output;

/// Kafka micro-batches through your SQL files into every sink together
#[derive(Debug, Parser)]
#[command(
    name = "poundlock",
    version,
    propagate_version = true,
    before_help = "Example: poundlock run queries/ --trigger 1s",
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 could not do it"
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,

    /// How the log is written, to stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "POUNDLOCK_LOG_FORMAT")]
    pub log_format: LogFormat,

    /// More in the log: -v what the engine does, -vv what its libraries do. POUNDLOCK_LOG or RUST_LOG say it in detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Sql(shell::SqlArgs),
    Generate(generate::GenerateArgs),
    Migrate(migrate::MigrateArgs),
    Compact(compact::CompactArgs),
    Demo(demo::DemoArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Carries out one verb.
pub async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    Ok(match verb {
        Verb::Run(args) => run::run(args).await?,
        Verb::Check(args) => check::run(args).await?,
        Verb::Status(args) => status::run(args).await?,
        Verb::Sql(args) => shell::run(args).await?,
        Verb::Generate(args) => generate::run(&args).await.map(|()| ExitCode::SUCCESS)?,
        Verb::Migrate(args) => args.run(&mut output::Out::stdout()).await.map(|()| ExitCode::SUCCESS)?,
        Verb::Compact(args) => compact::run(args).await?,
        Verb::Demo(args) => demo::run(args).await?,
    })
}

/// Whether to colour what goes to stderr: only on a terminal, and never with NO_COLOR (<https://no-color.org>).
pub fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests;
