//! OPTIONS of a table with `STORED AS DELTA`.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use deltalake_core::table::state::DeltaTableState;

use crate::Result;
use crate::checkpoint::s3;
use crate::connector::parquet::FileFormat;
use crate::connector::{OptionDoc, OptionReader, TableDefinition};

/// Of `STORED AS DELTA`.
pub const OPTIONS: &[OptionDoc] = &[
    (
        "compression",
        "`zstd` (default, level 1), `lz4`, `snappy` or `none`; whole numbers and times are packed, not compressed",
    ),
    ("max_rows_per_row_group", "default 1,048,576"),
    (
        "maintenance",
        "`on` (default): small files are merged and old ones removed in the background; `off`: another program does it, and the log \
         only gets its checkpoints",
    ),
    ("optimize.interval", "how often it is looked for files to merge; default 1 minute"),
    ("optimize.min_files", "so many files of about one size, in one partition, are merged into one; default 8"),
    ("optimize.target_size", "bytes of a merged file; default 134,217,728. Larger files are left as they are"),
    (
        "vacuum.retention",
        "how long a file stays after it was merged into another: a query that takes longer may miss it; default 1 hour, or what the \
         properties of a table say that others have made (7 days)",
    ),
    ("checkpoint.interval", "entries of the log between two of its checkpoints; default 100, or as above"),
    (
        "log.retention",
        "how long entries stay that a checkpoint has made superfluous; default 1 hour, or as above (30 days)",
    ),
];

/// What the background does with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maintenance {
    pub on: bool,
    pub interval: Duration,
    /// At least 2.
    pub min_files: usize,
    /// Bytes.
    pub target_size: u64,
    pub(super) given: Given,
}

/// What the table's properties say too, for whoever looks after it; `None`: the options do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Given {
    retention: Option<Duration>,
    /// Entries; at least 1.
    checkpoint_interval: Option<u64>,
    log_retention: Option<Duration>,
}

/// What counts for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub retention: Duration,
    /// Entries; at least 1.
    pub checkpoint_interval: u64,
    /// `None`: its properties say that the log is never to be cleaned.
    pub log_retention: Option<Duration>,
}

const INTERVAL: Duration = Duration::from_secs(60);
const RETENTION: Duration = Duration::from_secs(3_600);
const CHECKPOINT_INTERVAL: u64 = 100;
const DAY: Duration = Duration::from_secs(86_400);
/// Shorter ones would only read the log.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Merged files are made in memory.
const TARGET_SIZE_MAX: u64 = 1 << 30;
const MIN_FILES: usize = 8;
const MIN_FILES_MAX: u64 = 1_000;
const TARGET_SIZE: u64 = 128 << 20;
const CHECKPOINT_INTERVAL_MAX: u64 = 10_000;
/// Shorter ones leave a reader no time between the log and its files.
const RETENTION_MIN: Duration = Duration::from_secs(1);

pub fn read(definition: &Arc<TableDefinition>) -> Result<(FileFormat, Maintenance)> {
    let mut options = OptionReader::new(definition, OPTIONS).and(s3::OPTIONS);
    let format = FileFormat::read(&mut options)?;
    let on = options.word("maintenance", &["on", "off"], "on")? == "on";
    let interval = options.duration("optimize.interval", INTERVAL)?;
    if interval < INTERVAL_MIN {
        return Err(options.error("optimize.interval", "is shorter than 10 ms").hint("for example '1 minute'"));
    }
    let mut retention = |name: &str| match options.text(name).is_some() {
        false => Ok(None),
        true => match options.duration(name, RETENTION)? {
            value if value >= RETENTION_MIN => Ok(Some(value)),
            _ => Err(options.error(name, "is shorter than a second").hint("for example '1 hour'")),
        },
    };
    let (retention, log_retention) = (retention("vacuum.retention")?, retention("log.retention")?);
    let says_checkpoints = options.text("checkpoint.interval").is_some();
    let mut number = |name: &str, default: u64, from: u64, to: u64| {
        let value = options.number(name, default)?;
        match (from..=to).contains(&value) {
            true => Ok(value),
            false => Err(options.error(name, &format!("is {value}, not between {from} and {to}"))),
        }
    };
    let min_files =
        usize::try_from(number("optimize.min_files", MIN_FILES as u64, 2, MIN_FILES_MAX)?).unwrap_or(usize::MAX);
    let target_size = number("optimize.target_size", TARGET_SIZE, 1 << 10, TARGET_SIZE_MAX)?;
    let checkpoint_interval = number("checkpoint.interval", CHECKPOINT_INTERVAL, 1, CHECKPOINT_INTERVAL_MAX)?;
    options.finish()?;
    let checkpoint_interval = says_checkpoints.then_some(checkpoint_interval);
    let given = Given { retention, checkpoint_interval, log_retention };
    Ok((format, Maintenance { on, interval, min_files, target_size, given }))
}

impl Default for Maintenance {
    fn default() -> Self {
        Self { on: true, interval: INTERVAL, min_files: MIN_FILES, target_size: TARGET_SIZE, given: Given::default() }
    }
}

impl Maintenance {
    /// Properties of a table that is to be made.
    pub fn of_new_table(&self) -> Vec<(&'static str, String)> {
        let Given { retention, checkpoint_interval, log_retention } = self.given;
        let all = Given {
            retention: retention.or(Some(RETENTION)),
            checkpoint_interval: checkpoint_interval.or(Some(CHECKPOINT_INTERVAL)),
            log_retention: log_retention.or(Some(RETENTION)),
        };
        all.properties()
    }

    /// Those that a table gets that is there: only what the options say. None, if another program looks after it.
    pub fn of_old_table(&self) -> Vec<(&'static str, String)> {
        if self.on { self.given.properties() } else { vec![] }
    }

    /// By the options, else by the table's properties, else as Delta has it where nothing is said.
    pub fn terms(&self, state: &DeltaTableState) -> Terms {
        let properties = state.table_config();
        let retention = properties.deleted_file_retention_duration.map(|twice| twice / 2);
        let interval = properties.checkpoint_interval.map(NonZero::get);
        let log_retention = properties.log_retention_duration.unwrap_or(30 * DAY);
        Terms {
            retention: self.given.retention.or(retention).unwrap_or(7 * DAY),
            checkpoint_interval: self.given.checkpoint_interval.or(interval).unwrap_or(CHECKPOINT_INTERVAL),
            log_retention: (properties.enable_expired_log_cleanup != Some(false))
                .then(|| self.given.log_retention.unwrap_or(log_retention)),
        }
    }
}

impl Given {
    fn properties(&self) -> Vec<(&'static str, String)> {
        let seconds = |duration: Duration| format!("interval {} seconds", duration.as_secs().max(1));
        let mut properties = vec![];
        properties.extend(self.checkpoint_interval.map(|entries| ("delta.checkpointInterval", entries.to_string())));
        // Longer than files stay, so that no removed file is forgotten before it was deleted.
        properties.extend(self.retention.map(|stay| ("delta.deletedFileRetentionDuration", seconds(stay * 2))));
        properties.extend(self.log_retention.map(|stay| ("delta.logRetentionDuration", seconds(stay))));
        properties
    }
}
