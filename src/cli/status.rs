//! `poundlock status`: how far a pipeline is, and how its sinks answer, read from its checkpoint. Nothing is locked and nothing
//! connected to, so it may be asked while the pipeline runs, or when a system is dead.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::environment::environment;
use super::flags::SettingFlags;
use super::output::{Out, ReportFormat};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::record::DimensionCommit;
use crate::checkpoint::status::{Circuit, OutboxStatus};
use crate::connector::Delivery;
use crate::format::time::{lasting, write_timestamp};
use crate::pipeline::now;
use crate::sql::settings::{Settings, resolve};
use crate::sql::{Files, parse};
use crate::{Error, Result};

/// A process that has told nothing for so long is taken for dead; µs. It tells every five seconds.
const SILENCE_MAX: i64 = 20_000_000;

/// Tell how far the pipeline is and how its sinks answer, from its checkpoint
///
/// May be asked while it runs. What waits in an outbox is counted; how the sinks answer is as the process that runs last told,
/// a few seconds ago.
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock status queries/ --format json")]
pub struct StatusArgs {
    /// The folder of .sql files, for the pipeline's name and the place of its checkpoint
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// The settings are wrong; there is no such checkpoint, or it cannot be read; the answer cannot be printed.
pub async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let settings = settings(&args.queries, &args.settings)?;
    let report = Report::of(&settings.checkpoint, settings.name()?).await?;
    let text = match args.format {
        ReportFormat::Text => report.text(),
        ReportFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    Out::stdout().write_all(text.as_bytes()).context("could not write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// Only of these something is wanted: what else may be wrong with the files is for `check`.
fn settings(queries: &Path, flags: &SettingFlags) -> Result<Settings> {
    let files = Files::read(queries, &environment)?;
    let script = parse(&files);
    resolve(&flags.0, &environment, &files, &script.statements)
}

/// Times are µs since 1970, UTC, in `…_at` and `since`.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    checkpoint: String,
    /// Whether a process has told something of itself a moment ago.
    running: bool,
    process: Option<String>,
    started_at: Option<i64>,
    seen_at: Option<i64>,
    /// The last that is committed.
    batch: Option<u64>,
    planned_at: Option<i64>,
    /// The lowest of the sources.
    watermark: Option<i64>,
    /// Those that the last batch joined with.
    dimensions: Vec<Dimension>,
    sinks: Vec<Sink>,
}

#[derive(Debug, Serialize)]
struct Dimension {
    name: String,
    /// When the copy that the batch saw was read.
    read_at: i64,
    /// How old it was when the batch was planned.
    age_s: i64,
}

#[derive(Debug, Serialize)]
struct Sink {
    name: String,
    /// `None`: no process has told of it; rows wait for it.
    delivery: Option<Delivery>,
    circuit: Option<Circuit>,
    since: Option<i64>,
    error: Option<String>,
    outbox: Option<OutboxStatus>,
    /// For how long the oldest rows have waited.
    oldest_s: Option<i64>,
}

impl Report {
    async fn of(url: &str, name: &str) -> Result<Self> {
        let Some(checkpoint) = Checkpoint::read_only(url, name).await? else {
            let error = format!("pipeline {name:?} has no checkpoint in {url:?}");
            return Err(
                Error::user(error).hint("has it run? --checkpoint, CHECKPOINT_BASE and --name say which one is meant")
            );
        };
        let now = now();
        let mut waiting: BTreeMap<String, OutboxStatus> = BTreeMap::new();
        for rows in checkpoint.outbox().await? {
            let of = waiting.entry(rows.folder).or_default();
            of.batches += 1;
            of.rows += rows.rows;
            of.bytes += rows.bytes;
            of.oldest = of.oldest.or(Some(rows.of.planned_at));
        }
        let told = checkpoint.status().await?;
        let last = match checkpoint.last_committed().await? {
            Some(last) => checkpoint.read_commit(last).await?.map(|(commit, _)| commit),
            None => None,
        };
        let mut sinks = vec![];
        for sink in told.iter().flat_map(|told| &told.sinks) {
            // Counted: what was told is a little older, or of a process that is dead.
            let counted = waiting.remove(&sink.name);
            let outbox = match (&sink.outbox, counted) {
                (Some(told), counted) => {
                    let OutboxStatus { batches, rows, bytes, oldest, .. } = counted.unwrap_or_default();
                    Some(OutboxStatus { batches, rows, bytes, oldest, ..told.clone() })
                }
                (None, counted) => counted,
            };
            let (circuit, since, error) = (Some(sink.circuit), Some(sink.since), sink.error.clone());
            let (name, delivery) = (sink.name.clone(), Some(sink.delivery));
            sinks.push(Sink { name, delivery, circuit, since, error, oldest_s: age(&outbox, now), outbox });
        }
        for (name, counted) in waiting {
            let outbox = Some(counted);
            let oldest_s = age(&outbox, now);
            sinks.push(Sink { name, delivery: None, circuit: None, since: None, error: None, outbox, oldest_s });
        }
        let dimensions = last.iter().flat_map(|last| {
            let of = |(name, copy): (&String, &DimensionCommit)| {
                let age_s = (last.planned_at - copy.read_at).max(0) / 1_000_000;
                Dimension { name: name.clone(), read_at: copy.read_at, age_s }
            };
            last.dimensions.iter().map(of)
        });
        Ok(Self {
            name: name.to_string(),
            dimensions: dimensions.collect(),
            checkpoint: checkpoint.describe(),
            running: told.as_ref().is_some_and(|told| !told.ended && now - told.written_at < SILENCE_MAX),
            process: told.as_ref().map(|told| told.process.clone()),
            started_at: told.as_ref().map(|told| told.started_at),
            seen_at: told.as_ref().map(|told| told.written_at),
            batch: last.as_ref().map(|last| last.number),
            planned_at: last.as_ref().map(|last| last.planned_at),
            watermark: last.as_ref().and_then(|last| last.sources.values().filter_map(|source| source.watermark).min()),
            sinks,
        })
    }

    fn text(&self) -> String {
        let now = now();
        let mut out = format!("pipeline   {}, checkpoint {}\n", self.name, self.checkpoint);
        let process = self.process.as_deref().unwrap_or("no process has told of itself");
        let seen = self.seen_at.map_or_else(String::new, |at| format!(", last seen {} ago", lasting(now - at)));
        out += &format!("{}    {process}{seen}\n", if self.running { "running" } else { "stopped" });
        match self.batch {
            Some(batch) => {
                let planned = self.planned_at.map_or_else(String::new, |at| format!(", planned {}", instant(at)));
                let watermark = self.watermark.map_or_else(|| "none".into(), instant);
                out += &format!("committed  batch {batch}{planned}, watermark {watermark}\n");
            }
            None => out += "committed  nothing yet\n",
        }
        for Dimension { name, age_s, .. } in &self.dimensions {
            let age = lasting(age_s * 1_000_000);
            out += &format!("dimension  {name}: the copy that the batch joined with was {age} old\n");
        }
        for sink in &self.sinks {
            let delivery = match sink.delivery {
                Some(Delivery::Required) => "required",
                Some(Delivery::Outbox) => "outbox",
                None => "not of the last run",
            };
            let circuit = sink.circuit.map_or_else(String::new, |circuit| {
                let since = sink.since.map_or_else(String::new, |since| format!(" for {}", lasting(now - since)));
                format!(", {}{since}", circuit.name())
            });
            out += &format!("sink       {}: {delivery}{circuit}\n", sink.name);
            if let Some(error) = &sink.error {
                out += &format!("           {error}\n");
            }
            if let Some(outbox) = sink.outbox.as_ref().filter(|outbox| outbox.batches > 0) {
                let OutboxStatus { batches, rows, bytes, limit, full, .. } = outbox;
                let age =
                    sink.oldest_s.map_or_else(String::new, |s| format!(", the oldest for {}", lasting(s * 1_000_000)));
                let limit = if *limit > 0 { format!(" of {limit}") } else { String::new() };
                let full = if *full { "; it is full, and the pipeline waits" } else { "" };
                out += &format!("           {batches} batches wait: {rows} rows, {bytes}{limit} bytes{age}{full}\n");
            }
        }
        out
    }
}

fn age(outbox: &Option<OutboxStatus>, now: i64) -> Option<i64> {
    Some((now - outbox.as_ref()?.oldest?).max(0) / 1_000_000)
}

fn instant(micros: i64) -> String {
    let mut text = Vec::new();
    write_timestamp(micros, 1_000_000, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
