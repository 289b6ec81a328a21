//! `poundlock sql`: ad-hoc SQL over the tables of a pipeline.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::flags::SettingFlags;
use super::output::Out;
use super::run::INTERRUPTED;
use super::sql::catalog::Catalog;
use super::sql::execute::{Settings, execute};
use super::sql::output::Format;
use super::sql::prompt::{command, is_command, repl};
use crate::{Error, Result};

/// After a signal, for a statement to take back what it has not finished.
const PATIENCE: Duration = Duration::from_secs(2);

/// A script is read whole before any of it runs.
const SCRIPT_BYTES_MAX: u64 = 16 << 20;

/// Query the pipeline's tables: Parquet, the database, topics as they are now. Read-only unless told otherwise
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock sql -c 'SELECT count(*) FROM lake.user_events'")]
pub struct SqlArgs {
    /// The folder of .sql files whose tables and views there are
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    /// Run these statements, or one command of the prompt ('\d' lists the tables), and stop; without -c and -f there is a
    /// prompt
    #[arg(short, long, value_name = "SQL")]
    pub command: Vec<String>,

    /// Run the statements of a file and stop; - is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    pub file: Vec<PathBuf>,

    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,

    /// Rows of each query that are printed [default: 1000 of a table, all of CSV and JSON]
    #[arg(long, value_name = "ROWS")]
    pub max_rows: Option<usize>,

    /// Say on stderr how many rows there were and how long they took
    #[arg(long)]
    pub timing: bool,

    /// Allow statements that change the session or write files: SET, CREATE VIEW, COPY … TO. The pipeline's own tables
    /// are written by the pipeline only
    #[arg(long)]
    pub allow_writes: bool,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// The files cannot be read; a statement is refused or fails. Those before it have run.
pub async fn run(args: SqlArgs) -> Result<ExitCode> {
    let scripts = match scripts(&args)? {
        Some(scripts) => scripts,
        None if std::io::stdin().is_terminal() => vec![],
        None => vec![("stdin".into(), read(std::io::stdin(), "stdin")?)],
    };
    let prompt = scripts.is_empty();
    if prompt {
        // It blocks this thread, which is none of the runtime's.
        work(&args, &scripts, prompt).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let stop = stopped()?;
    // A statement that is dropped takes back what it has not finished.
    tokio::select! {
        done = work(&args, &scripts, prompt) => done.map(|()| ExitCode::SUCCESS),
        () = stop.cancelled() => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// Cancelled by SIGINT or SIGTERM, which are heard on a thread of their own: a query may keep all others busy without ever
/// looking up. The process ends then, too.
fn stopped() -> Result<CancellationToken> {
    let failed = |e| Error::external("could not listen for signals").cause(e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?)
    };
    let stop = CancellationToken::new();
    let told = stop.clone();
    let listen = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
        tokio::time::sleep(PATIENCE).await;
        std::process::exit(i32::from(INTERRUPTED));
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(move || runtime.block_on(listen)).map_err(failed)?;
    Ok(stop)
}

async fn work(args: &SqlArgs, scripts: &[(String, String)], prompt: bool) -> Result<()> {
    let catalog = Catalog::open(&args.queries, &args.settings, &Environment::default()).await?;
    for error in &catalog.left_out {
        tracing::warn!("left out of the catalog: {error}");
    }
    let timing = args.timing || prompt;
    let mut settings =
        Settings { format: args.format, rows_max: args.max_rows, allow_writes: args.allow_writes, timing };
    if prompt {
        return repl(&catalog.context, settings, history().as_deref()).await;
    }
    let mut out = Out::stdout();
    for (name, sql) in scripts {
        let closed = match is_command(sql) {
            true => command(&catalog.context, sql, &mut settings, &mut out).await?,
            false => execute(&catalog.context, name, sql, settings, &mut out).await?,
        };
        if closed {
            break;
        }
    }
    Ok(())
}

/// (name, text); `None` if neither -c nor -f is given.
fn scripts(args: &SqlArgs) -> Result<Option<Vec<(String, String)>>> {
    if args.command.is_empty() && args.file.is_empty() {
        return Ok(None);
    }
    let mut scripts: Vec<(String, String)> = args.command.iter().map(|sql| ("-c".into(), sql.clone())).collect();
    for path in &args.file {
        let shown = path.display().to_string();
        let text = match path == Path::new("-") {
            true => read(std::io::stdin(), "stdin")?,
            false => {
                let unreadable = |e| Error::user(format!("file {shown} cannot be read")).cause(e);
                read(std::fs::File::open(path).map_err(unreadable)?, &shown)?
            }
        };
        scripts.push((shown, text));
    }
    Ok(Some(scripts))
}

fn read(from: impl Read, shown: &str) -> Result<String> {
    let unreadable = |e| Error::user(format!("file {shown} cannot be read")).cause(e);
    let mut text = String::new();
    let bytes = from.take(SCRIPT_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    match bytes as u64 > SCRIPT_BYTES_MAX {
        true => Err(Error::user(format!("file {shown} has more than {SCRIPT_BYTES_MAX} bytes"))),
        false => Ok(text),
    }
}

/// By the XDG base directory specification.
fn history() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("poundlock/history"))
}
