//! `poundlock run`: the pipeline, until it is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::environment::environment;
use super::flags::SettingFlags;
use super::load::load;
use crate::checkpoint::status::{Circuit, SinkStatus};
use crate::connector::TableDefinition;
use crate::connector::database::migrate::migrate;
use crate::connector::elasticsearch::{connections, template};
use crate::format::time::write_timestamp;
use crate::pipeline::outbox::deliver::Prepare;
use crate::pipeline::turn::Observer;
use crate::pipeline::{Age, Begin, End, Options, Pipeline, Progress, ResetState, now};
use crate::sql::Program;
use crate::sql::substitute::Lookup;
use crate::{Error, Result};

/// Index templates are in this folder of `migrations/`.
pub const TEMPLATES: &str = "elasticsearch";

/// What a shell says of a program that Ctrl-C has ended.
pub const INTERRUPTED: u8 = 130;

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

    /// Begin windows anew: of the views that are new or changed, whose kept state does not fit (the same without a
    /// value), or of all views; the offsets stay
    #[arg(long, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "changed")]
    pub reset_state: Option<ResetState>,

    /// Begin anew where another checkpoint has written by the same name: what is read again comes again in tables without a
    /// key; a run of the other checkpoint is fenced, and its next start refused
    #[arg(long)]
    pub take_over: bool,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// What is wrong with the files, or what stopped the pipeline. Nothing is lost: a restart goes on.
pub async fn run(args: RunArgs) -> Result<ExitCode> {
    let program = load(&args.queries, &args.settings).await?;
    program.settings.name()?;
    let stop = CancellationToken::new();
    watch_signals(stop.clone())?;
    let end = match (args.once, args.until_caught_up) {
        (true, _) => End::Once,
        (_, true) => End::CaughtUp,
        _ => End::Never,
    };
    if args.close_windows && end == End::Never {
        return Err(Error::user("--close-windows ends a bounded run").hint("add --until-caught-up or --once"));
    }
    let options = Options { end, close_windows: args.close_windows };
    let begin = Begin { reset: args.reset_state, take_over: args.take_over };
    let migrations = program.settings.migrate.then_some(args.queries.as_path());
    drive(program, options, begin, &environment, migrations, &stop, &observer()).await?;
    match (stop.is_cancelled(), end) {
        (false, _) => {}
        (true, End::Never) => tracing::info!("stopped"),
        (true, End::Once | End::CaughtUp) => {
            tracing::warn!("stopped before its end; the next start goes on from here");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens a program's pipeline and runs it to its end, or until `stop`. The migrations beside the folder are applied when
/// this process alone runs the pipeline, and what an earlier text has begun is finished.
///
/// # Errors
/// As [`run`].
pub async fn drive(
    program: Program,
    options: Options,
    begin: Begin,
    lookup: Lookup<'_>,
    migrations_beside: Option<&Path>,
    stop: &CancellationToken,
    observer: &Observer,
) -> Result<()> {
    for warning in &program.warnings {
        tracing::warn!("{warning}");
    }
    for table in &program.off {
        tracing::info!(table, "is off: its address is empty");
    }
    let prepare = migrations(migrations_beside);
    let mut pipeline = tokio::select! {
        opened = Pipeline::open(program, begin, lookup, prepare) => opened?,
        // Nothing is in hand that a restart would not take up again.
        () = stop.cancelled() => return Ok(()),
    };
    pipeline.run(options, stop, observer).await
}

/// Applies what concerns these tables of the project's `migrations/`, which lies beside its `queries/`.
fn migrations(beside: Option<&Path>) -> Prepare {
    let parent = |queries: &Path| queries.canonicalize().ok()?.parent().map(|parent| parent.join("migrations"));
    let folder = beside.and_then(parent).filter(|folder| folder.is_dir());
    if let (Some(queries), None) = (beside, &folder) {
        tracing::info!("no migrations/ beside {}: the tables must be there", queries.display());
    }
    Arc::new(move |tables| {
        let folder = folder.clone();
        Box::pin(async move {
            match folder {
                Some(folder) => apply(&folder, tables).await,
                None => Ok(()),
            }
        })
    })
}

async fn apply(folder: &Path, tables: Vec<Arc<TableDefinition>>) -> Result<()> {
    let databases: BTreeSet<&str> = tables
        .iter()
        .filter(|table| table.stored_as == "DATABASE" && table.location.starts_with("postgres"))
        .map(|table| table.location.as_str())
        .collect();
    for location in databases {
        for migration in migrate(location, folder).await? {
            tracing::info!(migration, "applied");
        }
    }
    let folder = folder.join(TEMPLATES);
    for connection in connections(tables)? {
        for template in template::apply(&connection, &folder).await? {
            tracing::info!(template, "applied");
        }
    }
    Ok(())
}

/// The first Ctrl-C or SIGTERM lets the batch in hand finish, the second ends the process.
pub fn watch_signals(stop: CancellationToken) -> Result<()> {
    let failed = |e| Error::external("could not listen for signals").cause(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        let mut signals = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signals += 1;
            if signals > 1 {
                tracing::warn!("stopped at once; the next start goes on with the batch in hand");
                std::process::exit(i32::from(INTERRUPTED));
            }
            tracing::info!("finishing the batch in hand; once more to stop at once");
            stop.cancel();
        }
    });
    Ok(())
}

/// One line in the log for each batch, and a status line where stderr is a terminal.
pub fn observer() -> Observer {
    let bar = std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}{msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    });
    let (total, began) = (AtomicU64::new(0), Instant::now());
    let [sources, sinks] = [(); 2].map(|()| Mutex::new(String::new()));
    let set = move |of: &Mutex<String>, text: String| *of.lock().unwrap_or_else(PoisonError::into_inner) = text;
    Arc::new(move |progress: Progress| {
        let batch = match progress {
            Progress::Committed(batch) => batch,
            Progress::Away(away) => return set(&sources, absence(away)),
            Progress::Sinks(all) => {
                set(&sinks, trouble(all, now()));
                let prefix = [&sources, &sinks].map(|of| of.lock().unwrap_or_else(PoisonError::into_inner).clone());
                return bar.iter().for_each(|bar| bar.set_prefix(prefix.concat()));
            }
        };
        let total = total.fetch_add(batch.rows, Ordering::Relaxed) + batch.rows;
        let line = || {
            tracing::info!(
                batch = batch.number,
                rows = batch.rows,
                invalid = batch.dead_letters,
                late = batch.late,
                ahead = (batch.ahead > 0).then_some(batch.ahead),
                wait_ms = millis(batch.wait),
                run_ms = millis(batch.run),
                write_ms = millis(batch.write),
                commit_ms = millis(batch.commit),
                lag = batch.lag,
                watermark = batch.watermark.map(instant),
                stale = stale(&batch.dimensions),
                "committed"
            );
        };
        match &bar {
            Some(bar) => {
                bar.suspend(line);
                let rate = total as f64 / began.elapsed().as_secs_f64().max(0.001);
                bar.set_message(format!(
                    "batch {}  {} rows  {}/s  lag {}{}",
                    batch.number,
                    HumanCount(total),
                    HumanCount(rate as u64),
                    HumanCount(batch.lag),
                    stale(&batch.dimensions).map_or_else(String::new, |stale| format!("  stale: {stale}"))
                ));
            }
            None => line(),
        }
    })
}

/// What the status line begins with; empty while every source answers.
fn absence(away: Option<(&str, Duration)>) -> String {
    away.map_or_else(String::new, |(table, since)| format!("{table} does not answer for {} s  ", since.as_secs()))
}

/// The dimensions whose copy is older than it should be, with its age; `None`: none is.
fn stale(dimensions: &BTreeMap<String, Age>) -> Option<String> {
    let stale = dimensions.iter().filter(|(_, age)| age.stale);
    let stale: Vec<String> = stale.map(|(table, age)| format!("{table} {} s", age.age.as_secs())).collect();
    (!stale.is_empty()).then(|| stale.join(", "))
}

/// What the status line says of sinks that do not answer, and of what waits for them.
fn trouble(sinks: &[SinkStatus], now: i64) -> String {
    let of = |sink: &SinkStatus| {
        let waiting = sink.outbox.as_ref().map_or(0, |outbox| outbox.batches);
        let is_full = sink.outbox.as_ref().is_some_and(|outbox| outbox.full);
        let mut text = match sink.circuit {
            Circuit::Closed if !is_full => return String::new(),
            Circuit::Closed => sink.name.clone(),
            _ => format!("{} does not answer for {} s", sink.name, (now - sink.since) / 1_000_000),
        };
        match (waiting, is_full) {
            (_, true) => text += ", its outbox is full",
            (0, false) => {}
            (batches, false) => text += &format!(", {batches} batches wait"),
        }
        text + "  "
    };
    sinks.iter().map(of).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn instant(micros: i64) -> String {
    let mut text = Vec::new();
    write_timestamp(micros, 1_000_000, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::status::OutboxStatus;
    use crate::connector::Delivery;

    #[test]
    fn the_status_line_tells_who_does_not_answer() {
        assert_eq!(
            absence(Some(("kafka.events", Duration::from_millis(12_900)))),
            "kafka.events does not answer for 12 s  "
        );
        assert_eq!(absence(None), "");
    }

    #[test]
    fn only_copies_that_are_too_old_are_told_of() {
        let age = |seconds, stale| Age { age: Duration::from_secs(seconds), stale };
        let mut ages = BTreeMap::from([("db.users".to_string(), age(59, false))]);
        assert_eq!(stale(&ages), None);
        ages.extend([("db.prices".to_string(), age(150, true)), ("db.zones".to_string(), age(9, true))]);
        assert_eq!(stale(&ages).unwrap(), "db.prices 150 s, db.zones 9 s");
    }

    #[test]
    fn the_status_line_tells_which_sink_is_away_and_what_waits() {
        let sink = |circuit, batches, full| SinkStatus {
            name: "es".into(),
            delivery: Delivery::Outbox,
            circuit,
            since: 0,
            error: None,
            outbox: Some(OutboxStatus { batches, full, ..OutboxStatus::default() }),
        };
        let line = |sink: SinkStatus| trouble(&[sink], 7_900_000);
        assert_eq!(line(sink(Circuit::Closed, 5, false)), "");
        assert_eq!(line(sink(Circuit::Open, 5, false)), "es does not answer for 7 s, 5 batches wait  ");
        assert_eq!(line(sink(Circuit::HalfOpen, 5, true)), "es does not answer for 7 s, its outbox is full  ");
        assert_eq!(line(sink(Circuit::Closed, 5, true)), "es, its outbox is full  ");
    }
}
