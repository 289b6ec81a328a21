//! Reads the command line, starts the log and the runtime, calls one verb, chooses the exit code.

use std::process::ExitCode;

use clap::Parser;
use poundlock::cli::{self, Cli};

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _points_of_the_environment = fail::FailScenario::setup();
    let cli = Cli::parse();
    match start(cli) {
        Ok(code) => code,
        Err(error) if cli::output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            cli::output::print_error(&error);
            ExitCode::from(2)
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    cli::log::start(cli.log_format, cli.verbose)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(cli::run(cli.verb));
    // Threads that are still waiting for a server must not keep the process.
    runtime.shutdown_background();
    done
}
