//! `poundlock generate`: events into a Kafka topic, to have something to look at or to measure with.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::{DateTime, NaiveDateTime};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::connector::kafka::generator::{GeneratorOptions, generate};
use crate::connector::kafka::schemas::client::RegistryOptions;
use crate::connector::kafka::schemas::registry_urls;
use crate::connector::options::duration;

/// Produce events of shop visitors, five of whom click too often, and some broken records
#[derive(Debug, Clone, Args)]
#[command(before_help = "Example: poundlock generate --rate 5000 --count 100000 --create-topic")]
pub struct GenerateArgs {
    /// Kafka brokers
    #[arg(long, env = "KAFKA_BROKER", default_value = "localhost:9092", value_name = "HOST:PORT,…")]
    pub brokers: String,
    #[arg(long, env = "KAFKA_TOPIC", default_value = "user_events")]
    pub topic: String,
    /// Events a second; 0 is as fast as it can
    #[arg(long, default_value_t = 1_000)]
    pub rate: u64,
    /// Stop after so many events
    #[arg(long)]
    pub count: Option<u64>,
    /// Stop after so long: 30s, 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = period, allow_hyphen_values = true)]
    pub duration: Option<Duration>,
    /// The same seed gives the same events
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Users are numbered from 1
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub users: u32,
    /// Share of the events that comes from the five spam users
    #[arg(long, default_value_t = 0.4, value_parser = share)]
    pub spam_share: f64,
    /// Share of the events that is broken: not JSON, truncated, no user, a wrong type, …
    #[arg(long, default_value_t = 0.01, value_parser = share)]
    pub invalid_share: f64,
    /// Event time of the first event (UTC), as in 2026-01-31T08:00:00; without it, the wall clock
    #[arg(long, value_parser = time)]
    pub start: Option<i64>,
    /// With --start: events per second of event time [default: the rate, or 10000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub event_rate: Option<u64>,
    /// What decides the partition of an event
    #[arg(long, value_enum, default_value_t = PartitionBy::RoundRobin)]
    pub partition_by: PartitionBy,
    /// Make the topic if it is not there
    #[arg(long)]
    pub create_topic: bool,
    /// Partitions of the topic that is made
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: i32,
    /// How events are written
    #[arg(long, value_enum, default_value_t = EventFormat::Json)]
    pub format: EventFormat,
    /// With --format avro: the schema registry; the schema is registered as <topic>-value
    #[arg(
        long,
        env = "SCHEMA_REGISTRY_URL",
        default_value = "http://localhost:8081",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub schema_registry: String,
    /// Its user
    #[arg(long, env = "SCHEMA_REGISTRY_USER", hide_env_values = true, value_name = "USER")]
    pub schema_registry_user: Option<String>,
    /// Password of the user
    #[arg(long, env = "SCHEMA_REGISTRY_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub schema_registry_password: Option<String>,
    /// Certificates in PEM that its own may be signed by; default: those of the system
    #[arg(long, env = "SCHEMA_REGISTRY_CA", value_name = "FILE")]
    pub schema_registry_ca: Option<String>,
    /// A property of librdkafka, as in security.protocol=ssl
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    pub properties: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PartitionBy {
    /// The key is the user: a user's events stay in order
    User,
    RoundRobin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventFormat {
    Json,
    Avro,
}

impl GenerateArgs {
    /// # Errors
    /// The address of the registry is none.
    pub fn options(&self) -> anyhow::Result<GeneratorOptions> {
        let avro = match self.format {
            EventFormat::Json => None,
            EventFormat::Avro => {
                let urls = registry_urls(&self.schema_registry);
                let urls = urls.map_err(|what| anyhow!("--schema-registry {what}"))?;
                // Empty is as good as not set.
                let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
                Some(RegistryOptions {
                    user: given(&self.schema_registry_user),
                    password: given(&self.schema_registry_password),
                    ca: given(&self.schema_registry_ca).map(Into::into),
                    ..RegistryOptions::new(urls)
                })
            }
        };
        let by_rate = if self.rate == 0 { 10_000 } else { self.rate };
        Ok(GeneratorOptions {
            topic: self.topic.clone(),
            rate: self.rate,
            count: self.count,
            seed: self.seed,
            users: self.users,
            spam_share: self.spam_share,
            invalid_share: self.invalid_share,
            start: self.start,
            event_rate: self.event_rate.unwrap_or(by_rate),
            key_by_user: self.partition_by == PartitionBy::User,
            create_partitions: self.create_topic.then_some(self.partitions),
            properties: self.properties.iter().cloned().collect(),
            avro,
            produced: Arc::default(),
        })
    }
}

/// Runs until the count or the time is reached, or Ctrl-C.
///
/// # Errors
/// The brokers do not answer, the topic is missing, an event was not delivered.
pub async fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let options = args.options()?;
    let stop = CancellationToken::new();
    let produced = Arc::clone(&options.produced);
    let work = generate(options, &args.brokers, stop.clone());
    tokio::pin!(work);
    let bar = progress(args.count);
    let end = args.duration.map(|duration| tokio::time::Instant::now() + duration);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let generated = loop {
        tokio::select! {
            generated = &mut work => break generated,
            _ = tokio::signal::ctrl_c() => stop.cancel(),
            _ = tick.tick() => {
                bar.set_position(produced.load(Ordering::Relaxed));
                if end.is_some_and(|end| tokio::time::Instant::now() >= end) {
                    stop.cancel();
                }
            }
        }
    };
    bar.finish_and_clear();
    let done = generated?;
    let seconds = done.elapsed.as_secs_f64();
    let rate = done.events as f64 / seconds.max(0.001);
    writeln!(
        std::io::stderr(),
        "{} events ({} broken on purpose, {:.1} MB) to topic {} in {seconds:.1} s: {rate:.0} a second",
        done.events,
        done.invalid,
        done.bytes as f64 / 1e6,
        args.topic,
    )
    .context("could not write to stderr")
}

/// Drawn on a terminal only.
fn progress(count: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match count {
        Some(count) => (ProgressBar::new(count), "{wide_bar} {human_pos} of {human_len} events, {per_sec}, {eta} left"),
        None => (ProgressBar::no_length(), "{spinner} {human_pos} events, {per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

pub(super) fn period(text: &str) -> anyhow::Result<Duration> {
    duration(text).context("not a duration such as 30s, 5m or '1 hour'")
}

fn share(text: &str) -> anyhow::Result<f64> {
    let share: f64 = text.parse().context("not a number")?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(anyhow!("not between 0 and 1")) }
}

/// µs since 1970, UTC.
fn time(text: &str) -> anyhow::Result<i64> {
    let zoned = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_micros());
    let plain = || NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f");
    zoned
        .or_else(|_| plain().map(|time| time.and_utc().timestamp_micros()))
        .context("not a time such as 2026-01-31T08:00:00")
}

fn property(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once('=').context("not NAME=VALUE")?;
    Ok((name.trim().to_string(), value.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: GenerateArgs,
    }

    #[test]
    fn arguments_become_options() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.args.options().unwrap());
        let line = "generate --rate 0 --count 5 --start 2026-01-01T00:00:00 --partition-by user --property a=b=c";
        let options = parse(line).unwrap();
        assert_eq!((options.rate, options.count, options.event_rate), (0, Some(5), 10_000));
        assert_eq!((options.start, options.key_by_user), (Some(1_767_225_600_000_000), true));
        assert_eq!(options.properties["a"], "b=c");
        for wrong in ["soon", "-5s", "30"] {
            let error = parse(&format!("generate --for {wrong}")).unwrap_err().to_string();
            assert!(error.contains("not a duration such as 30s, 5m or '1 hour'"), "{error}");
        }
        assert!(parse("generate --spam-share 2").is_err() && parse("generate --users 0").is_err());
    }
}
