//! Settings of a run: flag before environment before `SET` before default, all from one registry.
//!
//! A flag changes this run, a `SET` in the files changes the pipeline. `SET datafusion.*` goes to the engine's own
//! configuration, but for the keys that its correctness rests on. The order of the files does not matter to a `SET`.
//!
//! Failures: an unknown key, a value that does not parse or is out of range. All of them are reported at once, each
//! with the flag, variable or line it came from.

use std::collections::BTreeMap;
use std::time::Duration;

use datafusion::prelude::SessionConfig;

use super::explain::{explain, nearest};
use super::place::Place;
use super::statement::{Kind as StatementKind, Statement};
use super::substitute::{Lookup, Wanted};
use super::text::Files;
use super::words::place_of;
use crate::connector::options::duration;
use crate::{Error, Part, Result};

/// Everything a run can be told besides its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Consumer group, transactional.id, and owner of the checkpoint. `run` needs it: see [`Settings::name`].
    pub name: Option<String>,
    pub trigger: Duration,
    /// A path or URL.
    pub checkpoint: String,
    pub max_rows_per_batch: usize,
    pub max_bytes_per_batch: usize,
    /// Bytes of decoded rows waiting, of all sources together.
    pub buffer: usize,
    /// Bytes, for queries.
    pub memory: usize,
    /// Parallel parts of a query, if it was said.
    pub target_partitions: Option<usize>,
    pub migrate: bool,
    /// Batches from one snapshot of the window state to the next.
    pub snapshot_interval: u64,
    /// Bytes of rows that may wait for one sink.
    pub outbox: usize,
}

/// One row of the registry, and of the reference page.
#[derive(Debug, Clone, Copy)]
pub struct SettingDoc {
    /// `poundlock.{name}` in SET.
    pub name: &'static str,
    /// `--{flag}`: the name with dashes.
    pub flag: &'static str,
    /// Environment variables, the first one wins.
    pub environment: &'static [&'static str],
    pub default: Option<&'static str>,
    /// What the value is, as in `--trigger DURATION`.
    pub value: &'static str,
    pub doc: &'static str,
}

impl SettingDoc {
    pub fn key(&self) -> String {
        format!("poundlock.{}", self.name)
    }
}

const REGISTRY: &[SettingDoc] = &[
    SettingDoc {
        name: "name",
        flag: "name",
        environment: &["POUNDLOCK_NAME"],
        default: None,
        value: "NAME",
        doc: "The pipeline: its consumer group, its transactions, the owner of its checkpoint. `run` needs it",
    },
    SettingDoc {
        name: "trigger",
        flag: "trigger",
        environment: &["POUNDLOCK_TRIGGER", "PROCESSING_TRIGGER"],
        default: Some("1 second"),
        value: "DURATION",
        doc: "How often a micro-batch is cut, if neither its rows nor its bytes are full before",
    },
    SettingDoc {
        name: "checkpoint",
        flag: "checkpoint",
        environment: &["POUNDLOCK_CHECKPOINT", "CHECKPOINT_BASE"],
        default: Some("checkpoint"),
        value: "PATH",
        doc: "Where plans, commits and window state are kept: a folder, or `s3://BUCKET/PATH`",
    },
    SettingDoc {
        name: "max_rows_per_batch",
        flag: "max-rows-per-batch",
        environment: &["POUNDLOCK_MAX_ROWS_PER_BATCH"],
        default: Some("500_000"),
        value: "ROWS",
        doc: "A micro-batch of a source is cut at this many rows, or a little more: chunks of up to 8,192 rows stay whole",
    },
    SettingDoc {
        name: "max_bytes_per_batch",
        flag: "max-bytes-per-batch",
        environment: &["POUNDLOCK_MAX_BYTES_PER_BATCH"],
        default: Some("64 MB"),
        value: "SIZE",
        doc: "A micro-batch of a source is cut at this much payload, or when `poundlock.buffer` is full; of several sources each has its share",
    },
    SettingDoc {
        name: "buffer",
        flag: "buffer",
        environment: &["POUNDLOCK_BUFFER"],
        default: Some("24 MB"),
        value: "SIZE",
        doc: "Decoded rows that may wait for their batch, of all sources together; then fetching pauses. The batch that is run and the one that is written are held beside it",
    },
    SettingDoc {
        name: "memory",
        flag: "memory",
        environment: &["POUNDLOCK_MEMORY"],
        default: Some("1 GiB"),
        value: "SIZE",
        doc: "Memory for queries; what needs more spills to disk or fails. So does window state, which cannot spill",
    },
    SettingDoc {
        name: "target_partitions",
        flag: "target-partitions",
        environment: &["POUNDLOCK_TARGET_PARTITIONS"],
        default: None,
        value: "COUNT",
        doc: "Parallel parts of each query: unless set, 1 in a pipeline (more pays off beyond 100,000 rows a batch), and one for every core in `poundlock sql`",
    },
    SettingDoc {
        name: "migrate",
        flag: "migrate",
        environment: &["POUNDLOCK_MIGRATE"],
        default: Some("true"),
        value: "BOOLEAN",
        doc: "Whether `run` applies migrations/ to the database when it starts",
    },
    SettingDoc {
        name: "snapshot_interval",
        flag: "snapshot-interval",
        environment: &["POUNDLOCK_SNAPSHOT_INTERVAL"],
        default: Some("64"),
        value: "BATCHES",
        doc: "The window state is written whole every so many batches, and only its changes in between",
    },
    SettingDoc {
        name: "outbox",
        flag: "outbox",
        environment: &["POUNDLOCK_OUTBOX"],
        default: Some("1 GB"),
        value: "SIZE",
        doc: "Rows that may wait in the checkpoint for one sink with `'delivery' 'outbox'`; beyond it the pipeline waits for that sink",
    },
];

/// Keys of DataFusion that a pipeline sets itself, and what to say instead.
const KEPT: &[(&str, &str)] = &[
    ("datafusion.execution.target_partitions", "SET poundlock.target_partitions"),
    ("datafusion.execution.time_zone", "times are UTC everywhere"),
    ("datafusion.sql_parser.", "declarations and queries must read the same everywhere"),
    ("datafusion.catalog.", "tables are declared in the files"),
    ("datafusion.runtime.", "SET poundlock.memory"),
];

/// All settings, for help and the reference page.
pub fn reference() -> &'static [SettingDoc] {
    REGISTRY
}

/// Puts the settings together. `flags` are by name of the registry.
///
/// # Errors
/// All that is wrong, as one error.
pub fn resolve(
    flags: &BTreeMap<String, String>,
    environment: Lookup,
    files: &Files,
    statements: &[Statement],
) -> Result<Settings> {
    let mut reader = Reader { files, found: BTreeMap::new(), errors: vec![] };
    for statement in statements {
        if let StatementKind::Set { key, value } = &statement.kind {
            reader.set(key, value, statement.place);
        }
    }
    for setting in REGISTRY {
        reader.override_with(setting, flags, environment);
    }
    let settings = Settings {
        name: reader.name(),
        trigger: reader.duration("trigger", Duration::from_millis(1)..=Duration::from_secs(86_400)),
        checkpoint: reader.text("checkpoint"),
        max_rows_per_batch: reader.count("max_rows_per_batch", 1..=1 << 32),
        max_bytes_per_batch: reader.size("max_bytes_per_batch", 1 << 10..=1 << 40),
        buffer: reader.size("buffer", 1 << 10..=1 << 40),
        memory: reader.size("memory", 16 << 20..=1 << 50),
        target_partitions: reader.target_partitions(),
        migrate: reader.boolean("migrate"),
        snapshot_interval: reader.count("snapshot_interval", 1..=1_000_000) as u64,
        outbox: reader.size("outbox", 1 << 10..=1 << 50),
    };
    Error::all(reader.errors).map_or(Ok(settings), Err)
}

/// What they are where nobody has set anything.
pub fn defaults() -> Result<Settings> {
    resolve(&BTreeMap::new(), &|_| Ok(None), &Files::default(), &[])
}

/// Passes every `SET datafusion.*` on to the session's configuration.
///
/// # Errors
/// A key that DataFusion does not know, or that the engine sets itself; a value that does not fit. All as one error.
pub fn configure(mut config: SessionConfig, files: &Files, statements: &[Statement]) -> Result<SessionConfig> {
    let mut errors = vec![];
    for statement in statements {
        let StatementKind::Set { key, value } = &statement.kind else { continue };
        if !key.starts_with("datafusion.") {
            continue;
        }
        let at = |part: &Part| place_of(files, &statement.place, part).unwrap_or(statement.place);
        if let Some((_, instead)) = KEPT.iter().find(|(kept, _)| key.starts_with(kept)) {
            let error = files.error_at(&at(&Part::SettingKey), format!("setting {key} is the engine's own"));
            errors.push(error.hint(*instead));
        } else if let Err(error) = config.options_mut().set(key, value) {
            let known: Vec<String> = config.options().entries().into_iter().map(|entry| entry.key).collect();
            if known.contains(key) {
                errors.append(&mut explain(files, &error, &at(&Part::SettingValue), None));
            } else {
                let error = files.error_at(&at(&Part::SettingKey), format!("setting {key} does not exist"));
                let near = nearest(key, known.iter().map(String::as_str));
                errors.push(match near {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error.hint("`poundlock sql -c 'SHOW ALL'` lists them"),
                });
            }
        }
    }
    Error::all(errors).map_or(Ok(config), Err)
}

impl Settings {
    /// Parallel parts of a pipeline's queries.
    pub fn partitions_of_pipeline(&self) -> usize {
        self.target_partitions.unwrap_or(1)
    }

    /// Parallel parts of an ad-hoc query.
    pub fn partitions_of_query(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.target_partitions.unwrap_or_else(cores)
    }

    /// # Errors
    /// The pipeline has no name.
    pub fn name(&self) -> Result<&str> {
        self.name.as_deref().ok_or_else(|| {
            Error::user("the pipeline has no name")
                .hint("SET poundlock.name = 'my-pipeline'; it names the consumer group and the checkpoint's owner")
        })
    }
}

enum Origin {
    /// "flag --trigger" or "environment variable PROCESSING_TRIGGER".
    Said(String),
    At(Place),
}

struct Reader<'f> {
    files: &'f Files,
    found: BTreeMap<&'static str, (String, Origin)>,
    errors: Vec<Error>,
}

impl Reader<'_> {
    fn set(&mut self, key: &str, value: &str, place: Place) {
        if key.starts_with("datafusion.") {
            return;
        }
        let name = key.strip_prefix("poundlock.");
        if let Some(setting) = name.and_then(|name| REGISTRY.iter().find(|setting| setting.name == name)) {
            self.found.insert(setting.name, (value.to_string(), Origin::At(place)));
            return;
        }
        let place = place_of(self.files, &place, &Part::SettingKey).unwrap_or(place);
        let error = self.files.error_at(&place, format!("setting {key} does not exist"));
        let keys: Vec<String> = REGISTRY.iter().map(SettingDoc::key).collect();
        let known = format!("there are: datafusion.*, {}", keys.join(", "));
        let bare = REGISTRY.iter().find(|setting| setting.name == key).map(SettingDoc::key);
        let near = bare.as_deref().or_else(|| nearest(key, keys.iter().map(String::as_str)));
        self.errors.push(match near {
            Some(near) => error.hint(format!("did you mean {near}? {known}")),
            None => error.hint(known),
        });
    }

    fn override_with(&mut self, setting: &SettingDoc, flags: &BTreeMap<String, String>, environment: Lookup) {
        if let Some(value) = flags.get(setting.name) {
            self.found.insert(setting.name, (value.clone(), Origin::Said(format!("flag --{}", setting.flag))));
            return;
        }
        for variable in setting.environment {
            match environment(Wanted::Variable(variable)) {
                // Empty is as good as unset: compose files pass variables on that nobody set.
                Ok(Some(value)) if !value.is_empty() => {
                    let origin = Origin::Said(format!("environment variable {variable}"));
                    self.found.insert(setting.name, (value, origin));
                    return;
                }
                Ok(_) => {}
                Err(why) => self.errors.push(Error::user(format!("environment variable {variable} {why}"))),
            }
        }
    }

    fn refuse(&mut self, name: &str, value: &str, expected: &str) {
        let error = match self.found.get(name) {
            Some((_, Origin::At(place))) => {
                let place = place_of(self.files, place, &Part::SettingValue).unwrap_or(*place);
                self.files.error_at(&place, format!("setting poundlock.{name} is {value:?}, not {expected}"))
            }
            Some((_, Origin::Said(origin))) => Error::user(format!("{origin} is {value:?}, not {expected}")),
            None => Error::internal(format!("default of setting poundlock.{name} is {value:?}, not {expected}")),
        };
        self.errors.push(error);
    }

    fn value(&self, name: &str) -> Option<String> {
        let default = || REGISTRY.iter().find(|setting| setting.name == name)?.default;
        self.found.get(name).map(|(value, _)| value.trim().to_string()).or_else(|| default().map(str::to_string))
    }

    /// The value read by `parse`, or a complaint and a stand-in that nobody gets to see.
    fn read<T: Default>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        let value = self.value(name).unwrap_or_default();
        parse(&value).unwrap_or_else(|| {
            self.refuse(name, &value, expected);
            T::default()
        })
    }

    fn text(&mut self, name: &str) -> String {
        self.read(name, "a text", |value| (!value.is_empty()).then(|| value.to_string()))
    }

    fn name(&mut self) -> Option<String> {
        self.value("name")?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let expected = "a name of at most 64 letters, digits, '.', '_' and '-', beginning with a letter or digit";
        Some(self.read("name", expected, |value| {
            let begins = value.starts_with(|c: char| c.is_ascii_alphanumeric());
            (begins && value.len() <= 64 && value.chars().all(fits)).then(|| value.to_string())
        }))
    }

    fn target_partitions(&mut self) -> Option<usize> {
        self.value("target_partitions")?;
        Some(self.count("target_partitions", 1..=1_024))
    }

    fn boolean(&mut self, name: &str) -> bool {
        self.read(name, "true or false", |value| match value.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Some(true),
            "false" | "off" | "no" | "0" => Some(false),
            _ => None,
        })
    }

    fn duration(&mut self, name: &str, range: std::ops::RangeInclusive<Duration>) -> Duration {
        self.read(name, "a positive duration such as 500ms or '5 seconds' (1 ms to 1 day)", |value| {
            duration(value).filter(|found| range.contains(found))
        })
    }

    fn count(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> usize {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(name, &expected, |value| {
            let number = value.replace('_', "").parse().ok().filter(|found| range.contains(found))?;
            usize::try_from(number).ok()
        })
    }

    fn size(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> usize {
        let expected = format!("a size such as '64 MB' ({} to {})", shown(*range.start()), shown(*range.end()));
        self.read(name, &expected, |value| {
            let bytes = size(value).filter(|found| range.contains(found))?;
            usize::try_from(bytes).ok()
        })
    }
}

/// Bytes of "64 MB" (a thousand thousands), "64 MiB" (1,024 × 1,024), "1.5 GB", "4096".
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let unit: u64 = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    let number = text[..split].replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (bytes.is_finite() && bytes < 9e15).then_some(bytes as u64)
}

/// As [`size`] reads it.
pub fn shown(bytes: u64) -> String {
    let (mut number, mut units) = (bytes, ["bytes", "KiB", "MiB", "GiB", "TiB"].iter());
    let mut unit = units.next();
    while number >= 1024 && number % 1024 == 0 && units.len() > 0 {
        (number, unit) = (number / 1024, units.next());
    }
    format!("{number} {}", unit.unwrap_or(&""))
}

#[cfg(test)]
mod tests;
