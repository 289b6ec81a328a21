//! OPTIONS of a table with `STORED AS DELTA`.

use std::sync::Arc;
use std::time::Duration;

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
        "`on` (default): small files are merged and old ones removed in the background; `off`: another program does it",
    ),
    ("optimize.interval", "how often it is looked for files to merge; default 1 minute"),
    ("optimize.min_files", "so many files of about one size, in one partition, are merged into one; default 8"),
    ("optimize.target_size", "bytes of a merged file; default 134,217,728. Larger files are left as they are"),
    (
        "vacuum.retention",
        "how long a file stays after it was merged into another: a query that takes longer may miss it; default 1 hour",
    ),
    ("checkpoint.interval", "entries of the log between two of its checkpoints; default 100"),
    ("log.retention", "how long entries stay that a checkpoint has made superfluous; default 1 hour"),
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
    pub retention: Duration,
    /// Entries; at least 1.
    pub checkpoint_interval: u64,
    pub log_retention: Duration,
}

const INTERVAL: Duration = Duration::from_secs(60);
const RETENTION: Duration = Duration::from_secs(3_600);
/// Shorter ones would only read the log.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Merged files are made in memory.
const TARGET_SIZE_MAX: u64 = 1 << 30;
const MIN_FILES_MAX: u64 = 1_000;
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
    let mut retention = |name: &str| {
        let value = options.duration(name, RETENTION)?;
        match value >= RETENTION_MIN {
            true => Ok(value),
            false => Err(options.error(name, "is shorter than a second").hint("for example '1 hour'")),
        }
    };
    let (retention, log_retention) = (retention("vacuum.retention")?, retention("log.retention")?);
    let mut number = |name: &str, default: u64, from: u64, to: u64| {
        let value = options.number(name, default)?;
        match (from..=to).contains(&value) {
            true => Ok(value),
            false => Err(options.error(name, &format!("is {value}, not between {from} and {to}"))),
        }
    };
    let min_files = usize::try_from(number("optimize.min_files", 8, 2, MIN_FILES_MAX)?).unwrap_or(usize::MAX);
    let target_size = number("optimize.target_size", 128 << 20, 1 << 10, TARGET_SIZE_MAX)?;
    let checkpoint_interval = number("checkpoint.interval", 100, 1, CHECKPOINT_INTERVAL_MAX)?;
    options.finish()?;
    let maintenance =
        Maintenance { on, interval, min_files, target_size, retention, checkpoint_interval, log_retention };
    Ok((format, maintenance))
}

impl Maintenance {
    /// Properties of the table that other programs follow too.
    pub fn properties(&self) -> [(&'static str, String); 3] {
        // Longer than files stay, so that no removed file is forgotten before it was deleted.
        let tombstones = self.retention.as_secs().max(1) * 2;
        [
            ("delta.checkpointInterval", self.checkpoint_interval.to_string()),
            ("delta.deletedFileRetentionDuration", format!("interval {tombstones} seconds")),
            ("delta.logRetentionDuration", format!("interval {} seconds", self.log_retention.as_secs().max(1))),
        ]
    }
}
