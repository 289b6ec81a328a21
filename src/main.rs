//! Reads the command line, starts the log and the runtime, calls one verb, chooses the exit code.

use std::process::ExitCode;

use clap::Parser;
use poundlock::cli::{self, Cli};

/// DataFusion's planner is recursive: a query nested as deeply as the limits allow needs more than a thread usually has.
/// Only what is used of it becomes memory.
const STACK_BYTES: usize = 32 << 20;

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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build()?;
    let handle = runtime.handle().clone();
    let verb = std::thread::Builder::new().name("main".into()).stack_size(STACK_BYTES);
    let done = verb.spawn(move || handle.block_on(cli::run(cli.verb)))?.join();
    // Threads that are still waiting for a server must not keep the process.
    runtime.shutdown_background();
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
