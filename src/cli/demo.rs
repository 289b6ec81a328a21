//! `poundlock demo`: the whole pipeline on this machine alone, with an embedded broker, SQLite and local files.
//!
//! ```text
//! generator ─▶ in-process broker ─▶ the same pipeline as `run`, over the shipped queries/ ─▶ SQLite, Parquet, broker
//!                                                                                              └─▶ what it found
//! ```
//!
//! Only addresses differ from a real run: they come in as the environment that the files' `${…}` see. When the generator
//! has stopped, a second start of the pipeline catches up and closes the windows, as `run --until-caught-up
//! --close-windows` does; so a demo is a restart too.

mod dimensions;
mod place;
mod report;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanCount, ProgressBar};
use tokio_util::sync::CancellationToken;

use self::place::Place;
use self::report::Counted;
use super::environment::Environment;
use super::flags::SettingFlags;
use super::load::load_in;
use super::output::Out;
use super::run::{drive, watch_signals};
use super::sql::catalog::Catalog;
use super::sql::execute::{Settings, execute};
use super::sql::output::Format;
use crate::connector::kafka::generator::{Generated, GeneratorOptions, generate};
use crate::connector::kafka::mock::MockBroker;
use crate::pipeline::turn::Observer;
use crate::pipeline::{Begin, End, Options, Progress};
use crate::sql::Program;
use crate::sql::substitute::Wanted;
use crate::{Error, Result};

/// The in-process broker keeps about 5 MB or 100,000 records a partition: more partitions, more room.
const SOURCE_PARTITIONS: i32 = 4;

/// Lines about progress where stderr is no terminal.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Run the shipped pipeline with no service at all: embedded broker, generator, SQLite, local Parquet
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock demo --for 60s")]
pub struct DemoArgs {
    /// The folder of .sql files [default: queries, or the shipped ones where there is none]
    pub queries: Option<PathBuf>,

    /// How long events are generated; Ctrl-C ends that at any time
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = super::generate::period, allow_hyphen_values = true)]
    pub duration: Duration,

    /// Where the results are put
    #[arg(long, default_value = "demo")]
    pub dir: PathBuf,

    /// Events a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=50_000))]
    pub rate: u64,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// The folder is not the demo's to use; what is wrong with the files; what stopped the pipeline.
pub async fn run(mut args: DemoArgs) -> Result<ExitCode> {
    if args.settings.0.contains_key("checkpoint") {
        return Err(Error::user("the demo keeps its checkpoint with its results").hint("choose the folder with --dir"));
    }
    let (place, cleared) = Place::prepare(&args.dir)?;
    let wanted = args.queries.clone().unwrap_or_else(|| "queries".into());
    let queries = place.queries(&wanted, args.queries.is_some())?;
    let broker = MockBroker::start(&[])?;
    let environment = environment(&place, broker.bootstrap_servers());
    args.settings.0.insert("checkpoint".into(), place.checkpoint().display().to_string());
    say(&opening(&args, &place, &queries, cleared))?;

    let counts = Arc::new(Counts::default());
    let generated = stream(&args, &queries, &environment, &broker, &counts).await?;
    if generated.events == 0 {
        return Err(Error::user("no event was generated").hint("give it more time: --for 60s"));
    }
    say(&format!("{} events were generated; catching up, closing the windows\n", HumanCount(generated.events)))?;
    let program = load_in(&queries, &args.settings, &environment).await?;
    let lookup = |wanted: Wanted| environment.get(wanted);
    let (options, stop) = (Options { end: End::CaughtUp, close_windows: true }, CancellationToken::new());
    drive(program, options, Begin::default(), &lookup, None, &stop, &counts.observer(None)).await?;

    let counted = counts.counted(generated.elapsed);
    let text = results(&place, &queries, &args.settings, &environment, counted).await?;
    Out::stdout().write_all(text.as_bytes()).map_err(|e| Error::external("could not write to stdout").cause(e))?;
    // It ends with the process: clients that are still closing would complain of a broker that has gone.
    std::mem::forget(broker);
    Ok(ExitCode::SUCCESS)
}

/// What the shipped files ask for: addresses of what lives in this process and in the folder.
fn environment(place: &Place, brokers: &str) -> Environment {
    Environment::with([
        ("KAFKA_BROKER", brokers.to_string()),
        ("KAFKA_TRANSACTIONS", "false".into()),
        ("DATABASE_URL", format!("sqlite:{}", place.database().display())),
        ("MONITORING_URL", format!("sqlite:{}", place.database().display())),
        ("DATABASE_REPLICA_URL", String::new()),
        ("ES_URL", String::new()),
        ("LAKE_URL", place.lake().display().to_string()),
        ("CHECKPOINT_BASE", place.checkpoint().display().to_string()),
        ("PROCESSING_TRIGGER", "1 second".into()),
    ])
}

fn opening(args: &DemoArgs, place: &Place, queries: &Path, cleared: bool) -> String {
    let dir = place.dir().display();
    let cleared = if cleared { format!("removed what an earlier demo left in {dir}\n") } else { String::new() };
    format!(
        "{cleared}{} events a second for {} through {}: in-process Kafka broker, SQLite and Parquet in {dir}; Ctrl-C ends it \
         early\n",
        HumanCount(args.rate),
        humantime::format_duration(args.duration),
        queries.display(),
    )
}

/// Pipeline and generator side by side, until the time is over, Ctrl-C comes, or one of them fails.
async fn stream(
    args: &DemoArgs,
    queries: &Path,
    environment: &Environment,
    broker: &MockBroker,
    counts: &Arc<Counts>,
) -> Result<Generated> {
    let program = load_in(queries, &args.settings, environment).await?;
    let topic = make_topics(broker, &program)?;
    dimensions::fill(&program).await?;
    let enough = CancellationToken::new();
    watch_signals(enough.clone())?;
    let stop = CancellationToken::new();
    let lookup = |wanted: Wanted| environment.get(wanted);
    let options = Options { end: End::Never, close_windows: false };
    let bar = progress();
    let observer = counts.observer(bar.clone());
    let pipeline = drive(program, options, Begin::default(), &lookup, None, &stop, &observer);
    let generator = async {
        let options = GeneratorOptions { topic, rate: args.rate, ..GeneratorOptions::default() };
        let generated = generate(options, broker.bootstrap_servers(), enough.clone()).await;
        stop.cancel();
        generated
    };
    let clock = async {
        tokio::select! {
            () = tokio::time::sleep(args.duration) => enough.cancel(),
            () = enough.cancelled() => {}
        }
        Ok(())
    };
    let pipeline = async {
        let ended = pipeline.await;
        enough.cancel();
        ended
    };
    let (ended, generated, timed) = tokio::join!(pipeline, generator, clock);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    timed.and(ended)?;
    generated
}

/// Every topic of the files; returns the one to generate into.
fn make_topics(broker: &MockBroker, program: &Program) -> Result<String> {
    let Some(source) = program.sources.first() else {
        return Err(Error::user("the files read no topic, so there is nothing to demonstrate"));
    };
    for table in program.tables.values().filter(|table| table.stored_as == "KAFKA") {
        let (topic, partitions) = (table.location.clone(), if table.unbounded { SOURCE_PARTITIONS } else { 1 });
        let made = broker.with(move |cluster| cluster.create_topic(&topic, partitions, 1))?;
        made.map_err(|e| Error::external(format!("could not make topic {:?}", table.location)).cause(e))?;
    }
    Ok(source.table.location.clone())
}

/// The findings and what to do next; the dead letters are put into a file.
async fn results(
    place: &Place,
    queries: &Path,
    settings: &SettingFlags,
    environment: &Environment,
    counted: Counted,
) -> Result<String> {
    let catalog = Catalog::open(queries, settings, environment).await?;
    for error in &catalog.left_out {
        tracing::warn!("left out of the catalog: {error}");
    }
    let text = report::findings(&catalog, counted).await;
    keep_dead_letters(&catalog, &place.dead_letters()).await?;
    let program = std::env::args().next().unwrap_or_else(|| "poundlock".into());
    Ok(text + &report::next_steps(place, queries, &program) + report::CAVEAT)
}

async fn keep_dead_letters(catalog: &Catalog, path: &Path) -> Result<()> {
    let failed = |e| Error::external(format!("could not write {}", path.display())).cause(e);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(failed)?);
    let settings = Settings { format: Format::Json, rows_max: None, allow_writes: false, timing: false };
    if let Err(error) = execute(&catalog.context, "demo", report::DEAD_LETTERS, settings, &mut file).await {
        tracing::warn!("the dead letters could not be kept: {}", error.line());
    }
    file.flush().map_err(failed)
}

/// Sums over all batches.
#[derive(Debug, Default)]
struct Counts {
    rows: AtomicU64,
    dead_letters: AtomicU64,
    late: AtomicU64,
    batches: AtomicU64,
}

impl Counts {
    fn counted(&self, elapsed: Duration) -> Counted {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted {
            rows: of(&self.rows),
            dead_letters: of(&self.dead_letters),
            late: of(&self.late),
            batches: of(&self.batches),
            elapsed,
        }
    }

    /// Counts; shows the sums on the bar, or else, now and then, in the log.
    fn observer(self: &Arc<Self>, bar: Option<ProgressBar>) -> Observer {
        let (counts, began, shown) = (Arc::clone(self), Instant::now(), AtomicU64::new(0));
        Arc::new(move |progress: Progress| {
            let Progress::Committed(batch) = progress else { return };
            let add = |count: &AtomicU64, more: u64| count.fetch_add(more, Ordering::Relaxed) + more;
            let rows = add(&counts.rows, batch.rows);
            let dead_letters = add(&counts.dead_letters, batch.dead_letters);
            add(&counts.late, batch.late);
            let batches = add(&counts.batches, 1);
            let seconds = began.elapsed().as_secs();
            let line = || {
                format!(
                    "{} s: {} events, {} dead letters, {} micro-batches, {} waiting",
                    seconds,
                    HumanCount(rows),
                    HumanCount(dead_letters),
                    HumanCount(batches),
                    HumanCount(batch.lag)
                )
            };
            match &bar {
                Some(bar) => bar.set_message(line()),
                None if seconds >= shown.load(Ordering::Relaxed) + REPORT_EVERY.as_secs() => {
                    shown.store(seconds, Ordering::Relaxed);
                    tracing::info!("{}", line());
                }
                None => {}
            }
        })
    }
}

/// Drawn on a terminal only, first when there is a batch to tell of.
fn progress() -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(ProgressBar::new_spinner)
}

fn say(text: &str) -> Result<()> {
    std::io::stderr().write_all(text.as_bytes()).map_err(|e| Error::external("could not write to stderr").cause(e))
}
