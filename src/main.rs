//! Sets the allocator, reads the command line, starts the log and the runtime, calls one verb, chooses the exit code.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use poundlock::cli::{self, Cli};

/// DataFusion's planner is recursive: a query nested as deeply as the limits allow needs more than a thread usually has.
/// Only what is used of it becomes memory.
const STACK_BYTES: usize = 32 << 20;

/// glibc's allocator keeps what each of its arenas once needed, and has up to eight of them a core: two, and large pieces
/// given back at once, were 344 MB where it was 566 MB (docs/performance.md).
const MALLOC: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_TRIM_THRESHOLD_", "33554432")];

/// It reads its settings when a process begins, so this one begins once more, with ours; not if the user has set any.
fn set_allocator() {
    let is_setting = |name: &OsStr| name == "GLIBC_TUNABLES" || name.as_encoded_bytes().starts_with(b"MALLOC_");
    if !cfg!(all(target_os = "linux", target_env = "gnu")) || env::vars_os().any(|(name, _)| is_setting(&name)) {
        return;
    }
    let mut arguments = env::args_os();
    let mut again = Command::new("/proc/self/exe");
    again.arg0(arguments.next().unwrap_or_else(|| "poundlock".into())).args(arguments).envs(MALLOC);
    // Only an error comes back; without the settings all works as well, in more memory.
    drop(again.exec());
}

fn main() -> ExitCode {
    set_allocator();
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
