//! `poundlock check`: everything that can be said of the files without connecting to anything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::flags::SettingFlags;
use super::load::load;
use super::output::{Out, ReportFormat, print_error};
use crate::connector::{self, Delivery, Sink, TableDefinition, delivery, redact};
use crate::sql::Program;
use crate::sql::program::{ReadBackSpec, SourceSpec, WatermarkSpec};
use crate::sql::settings::shown;
use crate::sql::windowed::Rows;
use crate::{Fault, Result};

/// Parse and plan everything offline; print each INSERT's sink and guarantee
///
/// Exit code 1 if the files have errors.
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock check queries/")]
pub struct CheckArgs {
    /// The folder of .sql files
    #[arg(default_value = "queries")]
    pub queries: PathBuf,

    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,

    #[command(flatten)]
    pub settings: SettingFlags,
}

/// Prints the errors of the files itself: they are the answer, not a failure.
///
/// # Errors
/// The files could not be looked at, or the answer not be printed.
pub async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let report = match load(&args.queries, &args.settings).await.and_then(|program| Report::of(&program)) {
        Ok(report) => report,
        Err(error) if error.fault() == Fault::User => {
            print_error(&error.into());
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    let text = match args.format {
        ReportFormat::Text => report.text(),
        ReportFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    Out::stdout().write_all(text.as_bytes()).context("could not write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

/// What a program does, by what its files say.
#[derive(Debug, Serialize)]
struct Report {
    name: Option<String>,
    files: Vec<String>,
    sources: Vec<Source>,
    dimensions: Vec<Dimension>,
    windowed_views: Vec<View>,
    read_back: Vec<ReadBack>,
    sinks: Vec<SinkReport>,
    inserts: Vec<InsertReport>,
    /// Tables whose address is empty.
    off: BTreeSet<String>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Source {
    table: String,
    address: String,
    watermark: Option<String>,
}

#[derive(Debug, Serialize)]
struct Dimension {
    table: String,
    address: String,
    refresh: Option<String>,
    /// Those that any query reads.
    columns: Vec<String>,
    /// What all rows that are read meet.
    condition: Option<String>,
    max_bytes: usize,
}

#[derive(Debug, Serialize)]
struct View {
    name: String,
    windows: String,
    source: String,
    watermark_delay: String,
}

/// A table that is written and read.
#[derive(Debug, Serialize)]
struct ReadBack {
    table: String,
    address: String,
    how_far: Option<String>,
}

#[derive(Debug, Serialize)]
struct SinkReport {
    name: String,
    delivery: Delivery,
    guarantee: &'static str,
    how: String,
    tables: Vec<String>,
}

#[derive(Debug, Serialize)]
struct InsertReport {
    place: String,
    table: String,
    address: String,
    sink: String,
    guarantee: &'static str,
    /// What it sees of windowed views.
    sees: Vec<&'static str>,
}

impl Report {
    /// # Errors
    /// Tables that cannot be written, or not together.
    fn of(program: &Program) -> Result<Self> {
        let written = program.written();
        let sinks = connector::sinks(&written)?;
        let sink_of = |table: &str| sinks.iter().find(|sink| sink.tables().iter().any(|own| own == table));
        let sources: Vec<Source> = program.sources.iter().map(source).collect();
        let inserts = program.inserts.iter().map(|insert| {
            let sink = sink_of(&insert.table.name);
            InsertReport {
                place: insert.place.clone(),
                table: insert.table.name.clone(),
                address: address(&insert.table),
                sink: sink.map_or_else(String::new, |sink| sink.name().to_string()),
                guarantee: sink.map_or("", |sink| sink.guarantee().level),
                sees: insert.rows.iter().map(|rows| seen(*rows)).collect(),
            }
        });
        Ok(Self {
            name: program.settings.name.clone(),
            files: program.files.iter().map(|file| file.name.clone()).collect(),
            dimensions: program
                .dimensions
                .iter()
                .map(|dimension| Dimension {
                    table: dimension.table.name.clone(),
                    address: address(&dimension.table),
                    refresh: dimension.refresh.map(duration),
                    columns: dimension.read_schema().fields().iter().map(|field| field.name().clone()).collect(),
                    condition: dimension.needed.filter.as_ref().map(|filter| filter.human_display().to_string()),
                    max_bytes: dimension.bytes_max,
                })
                .collect(),
            windowed_views: views(program),
            read_back: program.read_back.iter().map(read_back).collect(),
            inserts: inserts.collect(),
            sinks: sinks.iter().map(|sink| sink_report(sink.as_ref(), delivery(sink.as_ref(), &written))).collect(),
            sources,
            off: program.off.clone(),
            warnings: program.warnings.clone(),
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let unnamed = "without a name: `run` needs SET poundlock.name".to_string();
        out += &format!("pipeline {}\n", self.name.as_ref().unwrap_or(&unnamed));
        out += &format!("files    {}\n", self.files.join(", "));
        section(
            &mut out,
            "reads",
            self.sources.iter().map(|source| {
                let watermark = source.watermark.as_deref().unwrap_or("no watermark, so no windows");
                vec![format!("{}: {}", source.table, source.address), watermark.to_string()]
            }),
        );
        section(
            &mut out,
            "joins with",
            self.dimensions.iter().map(|dimension| {
                let refresh = match &dimension.refresh {
                    Some(every) => format!("read again every {every}"),
                    None => "read once, at the start".into(),
                };
                let condition = dimension.condition.iter().map(|condition| format!(" where {condition}"));
                let (columns, condition) = (dimension.columns.join(", "), condition.collect::<String>());
                let takes = format!("takes {columns}{condition}; at most {}", shown(dimension.max_bytes as u64));
                vec![format!("{}: {}", dimension.table, dimension.address), refresh, takes]
            }),
        );
        section(
            &mut out,
            "windowed views",
            self.windowed_views.iter().map(|view| {
                let line = format!("{}: {} of {}", view.name, view.windows, view.source);
                vec![line, format!("a window closes {} after its end, by event time", view.watermark_delay)]
            }),
        );
        section(
            &mut out,
            "reads back what it wrote",
            self.read_back.iter().map(|table| {
                let line = format!("{}: {}", table.table, table.address);
                let far = table
                    .how_far
                    .as_ref()
                    .map_or("all of it".into(), |far| format!("rows of up to {far} before a window"));
                vec![line, format!("{far}, again after each batch that writes to it")]
            }),
        );
        section(
            &mut out,
            "writes",
            self.inserts.iter().map(|insert| {
                let mut lines = vec![
                    format!("{}: INSERT INTO {}", insert.place, insert.table),
                    format!("{}, {} (sink {})", insert.address, insert.guarantee, insert.sink),
                ];
                if !insert.sees.is_empty() {
                    lines.push(format!("sees {}", insert.sees.join("; and ")));
                }
                lines
            }),
        );
        section(
            &mut out,
            "guarantees",
            self.sinks.iter().map(|sink| {
                let mut lines = vec![format!("{}: {}", sink.name, sink.guarantee), sink.how.clone()];
                if sink.delivery == Delivery::Outbox {
                    lines.push("from an outbox, in the background: a batch is committed before it is there".into());
                }
                lines
            }),
        );
        section(&mut out, "off, for their address is empty", self.off.iter().map(|table| vec![table.clone()]));
        section(&mut out, "warnings", self.warnings.iter().map(|warning| vec![warning.clone()]));
        let plural = if self.inserts.len() == 1 { "" } else { "s" };
        out += &format!("\n{} INSERT{plural}, no errors\n", self.inserts.len());
        out
    }
}

/// Columns of a line of text.
const WIDTH: usize = 110;

/// A title, then items of one line each and their details, wrapped; nothing without items.
fn section(out: &mut String, title: &str, items: impl Iterator<Item = Vec<String>>) {
    for (number, item) in items.enumerate() {
        if number == 0 {
            *out += &format!("\n{title}\n");
        }
        for (line, text) in item.iter().enumerate() {
            let margin = if line == 0 { "  " } else { "      " };
            let mut column = 0;
            for word in text.split(' ') {
                let length = word.chars().count();
                if column > 0 && column + 1 + length > WIDTH {
                    *out += "\n";
                    column = 0;
                }
                *out += if column == 0 { margin } else { " " };
                *out += word;
                column += 1 + length;
            }
            *out += "\n";
        }
    }
}

fn source(source: &SourceSpec) -> Source {
    Source {
        table: source.table.name.clone(),
        address: address(&source.table),
        watermark: source.watermark.as_ref().map(|watermark| describe(watermark, &source.table)),
    }
}

fn describe(watermark: &WatermarkSpec, table: &TableDefinition) -> String {
    let column = table.schema.field(watermark.column).name();
    let [delay, idle, ahead] = [watermark.delay, watermark.idle, watermark.max_ahead].map(micros);
    format!(
        "watermark: {delay} behind {column}; a partition is idle after {idle}; rows more than {ahead} ahead of the \
         clock are in no window"
    )
}

fn views(program: &Program) -> Vec<View> {
    // The same aggregate under two names is one view; one that no INSERT reads is none.
    let mut views = BTreeMap::new();
    for (number, view) in program.windows.views.iter().enumerate().filter(|(_, view)| !view.demands.is_empty()) {
        let store = &program.windows.stores[view.store];
        let windows = match store.slide == view.size {
            true => format!("windows of {}", micros(view.size)),
            false => format!("windows of {}, a new one every {},", micros(view.size), micros(store.slide)),
        };
        let delay = program.sources.iter().find(|source| source.table.name == store.source);
        let delay = delay.and_then(|source| source.watermark.as_ref()).map_or(0, |watermark| watermark.delay);
        let (name, source) = (view.name.clone(), store.source.clone());
        views.insert(number, View { name, windows, source, watermark_delay: micros(delay) });
    }
    views.into_values().collect()
}

fn read_back(spec: &ReadBackSpec) -> ReadBack {
    // From the end of a window that closes, which is after the watermark.
    let how_far = spec.since.as_ref().map(|(_, moved)| micros(moved.saturating_add(spec.turn.size)));
    ReadBack { table: spec.table.name.clone(), address: address(&spec.table), how_far }
}

fn sink_report(sink: &dyn Sink, delivery: Delivery) -> SinkReport {
    let guarantee = sink.guarantee();
    let (name, tables) = (sink.name().to_string(), sink.tables());
    SinkReport { name, delivery, guarantee: guarantee.level, how: guarantee.how, tables }
}

/// Kind and place of a table, without secrets.
fn address(table: &TableDefinition) -> String {
    let location = redact(&table.location);
    match table.options.get("brokers") {
        Some(brokers) => format!("{} topic {location} at {}", table.stored_as, redact(brokers)),
        None if table.stored_as == "ELASTICSEARCH" => {
            let index = table.options.get("index").filter(|index| !index.is_empty());
            let index = index.map_or_else(|| table.name.rsplit('.').next().unwrap_or_default(), String::as_str);
            format!("ELASTICSEARCH index {index} at {location}")
        }
        None => format!("{} {location}", table.stored_as),
    }
}

fn seen(rows: Rows) -> &'static str {
    match rows {
        Rows::Whole => "every row of the windows that changed or closed in the batch",
        Rows::Changed => "the rows of windows that changed in the batch",
        Rows::Closed => "every row of the windows that closed in the batch, each window once",
        Rows::InTurn => "every row of the windows that closed in the batch, one window after the other",
    }
}

fn micros(micros: i64) -> String {
    duration(Duration::from_micros(micros.unsigned_abs()))
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hide_passwords() {
        let table = |stored_as: &str, location: &str, options: &[(&str, &str)]| TableDefinition {
            name: "db.t".into(),
            schema: arrow::datatypes::Schema::empty().into(),
            primary_key: vec![],
            unbounded: false,
            stored_as: stored_as.into(),
            location: location.into(),
            partition_columns: vec![],
            options: options.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect(),
            place: String::new(),
        };
        assert_eq!(address(&table("DATABASE", "postgres://me:x1@h/d", &[])), "DATABASE postgres://me:***@h/d");
        let of_elasticsearch = table("ELASTICSEARCH", "http://me:x1@h:9200", &[("index", "logs")]);
        assert_eq!(address(&of_elasticsearch), "ELASTICSEARCH index logs at http://me:***@h:9200");
        assert_eq!(address(&table("KAFKA", "events", &[("brokers", "a:1,b:2")])), "KAFKA topic events at a:1,b:2");
    }

    #[test]
    fn empty_sections_are_left_out() {
        let mut out = String::new();
        section(&mut out, "none", std::iter::empty());
        section(&mut out, "some", [vec!["a".to_string(), "b".into()], vec!["c".into()]].into_iter());
        assert_eq!(out, "\nsome\n  a\n      b\n  c\n");
    }
}
