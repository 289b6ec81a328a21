//! `poundlock compact`: the small files of closed partitions of Parquet tables become few, while the pipeline runs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::flags::SettingFlags;
use super::generate::period;
use super::load::load;
use super::output::Out;
use crate::checkpoint::Checkpoint;
use crate::connector::TableDefinition;
use crate::connector::background::blocking;
use crate::connector::parquet::compact::{Compaction, Report, Which};
use crate::sql::settings::size;
use crate::sql::{Program, nearest};
use crate::{Error, Result};

/// Merge the small files of closed partitions of Parquet tables, on local disk
///
/// It may run while the pipeline does, and while the tables are read: whoever lists a partition finds the old files or the new ones. A
/// query that has listed the old ones and not yet opened them fails, and is to be asked again. Tables on S3 and tables without
/// PARTITIONED BY are for STORED AS DELTA.
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock compact queries/ lake.user_events --dry-run")]
pub struct CompactArgs {
    /// The folder of .sql files
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    /// Tables that INSERTs of the files write [default: all that can be merged]
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,

    /// A partition is closed when nothing was added to it for so long, 10s or more
    #[arg(long, value_name = "DURATION", value_parser = quiet, default_value = "1h", allow_hyphen_values = true)]
    pub quiet_for: Duration,

    /// How large a merged file may be; files of half that stay as they are
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "128MB", allow_hyphen_values = true)]
    pub target_size: u64,

    /// Only say what would be merged
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// # Errors
/// The files are wrong; a table that was named cannot be merged; there is no checkpoint; disk trouble.
pub async fn run(args: CompactArgs) -> anyhow::Result<ExitCode> {
    if !args.queries.exists() {
        let error = Error::user(format!("there is no folder {} with the queries", args.queries.display()));
        return Err(error
            .hint("it comes before the tables, as in: poundlock compact queries/ lake.user_events")
            .into());
    }
    let program = load(&args.queries, &args.settings).await?;
    let (name, url) = (program.settings.name()?, &program.settings.checkpoint);
    let tables = tables(&program, &args.tables)?;
    let Some(checkpoint) = Checkpoint::read_only(url, name).await? else {
        let hint = "it says which files are of committed batches: --checkpoint, CHECKPOINT_BASE and --name say which one is meant";
        return Err(Error::user(format!("pipeline {name:?} has no checkpoint in {url:?}")).hint(hint).into());
    };
    let Some(last) = checkpoint.last_committed().await? else {
        writeln!(Out::stdout(), "nothing to merge: pipeline {name:?} has committed nothing yet")?;
        return Ok(ExitCode::SUCCESS);
    };
    let (asked, now) = (Instant::now(), SystemTime::now());
    let quiet_since = now.checked_sub(args.quiet_for).unwrap_or(SystemTime::UNIX_EPOCH);
    let pipeline = checkpoint.identity().uuid;
    let which = Which { pipeline, last, asked, quiet_since, target_size: args.target_size };
    for (name, table) in tables {
        let text = match table {
            Ok(table) => {
                let (which, of, dry_run) = (which.clone(), name.clone(), args.dry_run);
                let report = blocking(move || merge(&table, &which, &of, dry_run)).await?;
                text(&name, &report, args.dry_run)
            }
            Err(error) => format!("skipped: {error}\n"),
        };
        Out::stdout().write_all(text.as_bytes()).context("could not write to stdout")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be merged, and why it cannot be where nobody asked for it.
///
/// # Errors
/// A table that was named cannot be merged.
fn tables(program: &Program, named: &[String]) -> Result<BTreeMap<String, Result<Compaction>>> {
    let written: BTreeMap<String, Arc<TableDefinition>> =
        program.written().into_iter().map(|table| (table.name.clone(), table)).collect();
    if named.is_empty() {
        let plain = written.into_iter().filter(|(_, table)| table.stored_as == "PARQUET");
        return Ok(plain.map(|(name, table)| (name, Compaction::of(&table))).collect());
    }
    let (mut tables, mut errors) = (BTreeMap::new(), vec![]);
    for name in named {
        let found = written.get(name).or_else(|| written.get(&format!("public.{name}")));
        match found.map(Compaction::of) {
            Some(Ok(table)) => drop(tables.insert(name.clone(), Ok(table))),
            Some(Err(error)) => errors.push(error),
            None => {
                let near = nearest(name, written.keys().map(String::as_str));
                let error = Error::user(format!("no INSERT writes a table {name:?}"));
                errors.push(error.with_hint(near.map(|near| format!("did you mean {near}?"))));
            }
        }
    }
    Error::all(errors).map_or(Ok(tables), Err)
}

fn merge(table: &Compaction, which: &Which, name: &str, dry_run: bool) -> Result<Report> {
    let partitions = table.partitions()?;
    let bar = progress(partitions.len() as u64, name);
    let each = || bar.inc(1);
    let report = match dry_run {
        true => table.plan(which, &partitions, &each),
        false => table.run(which, &partitions, &each),
    };
    bar.finish_and_clear();
    report
}

/// `lake.events: merged 2 partitions, 120 files into 2, 1.20 MiB into 400.00 KiB; 1 still written, 3 with nothing to merge`
fn text(name: &str, report: &Report, dry_run: bool) -> String {
    let (before, after) = (report.before, report.after);
    let merged = if dry_run { "would merge" } else { "merged" };
    let mut text = match report.merged {
        0 => format!("{name}: nothing to merge"),
        partitions => {
            let noun = if partitions == 1 { "partition" } else { "partitions" };
            let [partitions, from, into] = [partitions, before.files, after.files].map(HumanCount);
            format!("{name}: {merged} {partitions} {noun}, {from} files into {into}, {}", HumanBytes(before.bytes))
        }
    };
    if report.merged > 0 && !dry_run {
        text += &format!(" into {}", HumanBytes(after.bytes));
    }
    let counts = [(report.open, "still written"), (report.whole, "with nothing to merge")];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", HumanCount(*count)))
        .collect();
    if !counts.is_empty() {
        text += &format!("; {}", counts.join(", "));
    }
    text.push('\n');
    for (partition, why) in &report.skipped {
        text += &format!("{name}: left {} as it is: {why}\n", partition.display());
    }
    text
}

fn progress(partitions: u64, name: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(partitions).with_prefix(name.to_string());
    match ProgressStyle::with_template("{prefix} {wide_bar} {human_pos} of {human_len} partitions, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A query asks for the last committed batch, then lists the files: what came between is not merged under its eyes.
const QUIET_MIN: Duration = Duration::from_secs(10);

fn quiet(text: &str) -> anyhow::Result<Duration> {
    let quiet = period(text)?;
    if quiet < QUIET_MIN {
        return Err(anyhow!("less than {} s: a query may just be listing the files", QUIET_MIN.as_secs()));
    }
    Ok(quiet)
}

fn bytes(text: &str) -> anyhow::Result<u64> {
    size(text).filter(|bytes| *bytes > 0).ok_or_else(|| anyhow!("not a size such as 128MB or '64 MiB'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::parquet::compact::Size;

    #[test]
    fn a_table_is_a_line_and_what_was_left_another() {
        let mut report = Report { open: 1, whole: 3, ..Report::default() };
        assert_eq!(text("t", &report, false), "t: nothing to merge; 1 still written, 3 with nothing to merge\n");
        (report.merged, report.whole) = (2, 0);
        (report.before, report.after) = (Size { files: 1_200, bytes: 2 << 20 }, Size { files: 2, bytes: 1 << 20 });
        report.skipped.push(("k=a".into(), "there is a folder in it: x".into()));
        assert_eq!(
            text("t", &report, false),
            "t: merged 2 partitions, 1,200 files into 2, 2.00 MiB into 1.00 MiB; 1 still written\n\
             t: left k=a as it is: there is a folder in it: x\n"
        );
        assert!(text("t", &report, true).starts_with("t: would merge 2 partitions, 1,200 files into 2, 2.00 MiB;"));
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(bytes("128MB").unwrap(), 128_000_000);
        assert!(quiet("10s").is_ok() && quiet("9s").is_err() && quiet("x").is_err());
        assert!(bytes("0").is_err() && bytes("-1").is_err() && bytes("much").is_err());
    }
}
