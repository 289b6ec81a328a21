//! What the checkpoint says of a batch: the plan before anything is written, the commit after everything is.
//!
//! Both are JSON with a checksum (see `checkpoint::frame`). Event times and clocks are µs since 1970, UTC.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::connector::{InsertReport, Loss, Ranges};

/// Fixes everything that the result of batch `number` depends on, so that a restart replays exactly this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub number: u64,
    pub epoch: u64,
    /// What `now()` is in this batch.
    pub planned_at: i64,
    /// By source table.
    pub sources: BTreeMap<String, SourcePlan>,
    /// Hash of the program's text, which is kept as a blob `program/<hash>`.
    pub program: String,
    /// Dimension table → hash of its rows, kept as a blob `dimension/<hash>`.
    pub dimensions: BTreeMap<String, String>,
    /// When each of them was read; absent in plans of versions that did not note it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dimensions_read_at: BTreeMap<String, i64>,
    /// `target_partitions` of the queries.
    pub partitions: usize,
    /// `--close-windows`: the last batch of a bounded run closes every window.
    #[serde(default)]
    pub close_windows: bool,
    /// What bounded its cut; `None` in plans of versions that did not note it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Tables whose address was empty: addresses are not in the program's text. `None` as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off: Option<BTreeSet<String>>,
    /// Files of rows that sinks with an outbox have refused of earlier batches: their dead letters are in this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbox_refused: Vec<String>,
}

/// The settings of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub max_rows_per_batch: usize,
    pub max_bytes_per_batch: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// As in [`SourceCommit`]; empty in plans of versions that did not note it.
    #[serde(default)]
    pub location: String,
    pub ranges: Ranges,
    pub idle: BTreeSet<i32>,
    #[serde(default)]
    pub losses: Vec<Loss>,
}

/// Batch `number` exists from the moment this record does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Commit {
    pub number: u64,
    pub epoch: u64,
    pub planned_at: i64,
    pub program: String,
    pub sources: BTreeMap<String, SourceCommit>,
    /// By number of the INSERT.
    pub inserts: BTreeMap<usize, InsertCommit>,
    /// By windowed view.
    pub views: BTreeMap<String, ViewAccount>,
    /// Parquet files of this batch: table → paths relative to its location.
    pub files: BTreeMap<String, Vec<String>>,
    /// What it joined with, by dimension.
    #[serde(default)]
    pub dimensions: BTreeMap<String, DimensionCommit>,
    /// As in its plan: they are of no use any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbox_refused: Vec<String>,
}

/// The copy of a dimension that a batch joined with; its age in the batch is `planned_at - read_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DimensionCommit {
    /// Hash of its rows.
    pub version: String,
    /// When reading it began.
    pub read_at: i64,
}

impl Plan {
    /// The copies of dimensions that it fixes, those whose age is known.
    pub fn pinned(&self) -> BTreeMap<String, DimensionCommit> {
        let pinned = self.dimensions.iter().filter_map(|(table, version)| {
            let read_at = *self.dimensions_read_at.get(table)?;
            Some((table.clone(), DimensionCommit { version: version.clone(), read_at }))
        });
        pinned.collect()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceCommit {
    /// The LOCATION that the offsets are of: those of another topic would mean nothing.
    #[serde(default)]
    pub location: String,
    pub ranges: Ranges,
    /// Over all partitions: µs; `None` before the first.
    pub watermark: Option<i64>,
    pub partitions: BTreeMap<i32, PartitionCommit>,
    /// Records that retention removed before this batch could read them, of all partitions together.
    #[serde(default)]
    pub lost: u64,
    /// The same, each by itself; their topic is `location`. Empty in commits of before, which have only the sum.
    #[serde(default)]
    pub losses: Vec<Loss>,
}

/// Per partition: fetched = decoded + undecodable; decoded + undecodable = passed to SQL + refused by a query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionCommit {
    /// Highest event time so far that could move the watermark.
    pub max_event_time: Option<i64>,
    pub idle: bool,
    pub fetched: u64,
    pub decoded: u64,
    pub undecodable: u64,
    pub refused_by_query: u64,
}

/// produced = written + conflict + refused + outbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InsertCommit {
    pub table: String,
    pub produced: u64,
    #[serde(flatten)]
    pub report: InsertReport,
    /// Rows that were put into an outbox; `None`: the sink has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbox: Option<u64>,
    pub hash: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ViewAccount {
    /// Pairs of (input row, window that was closed before it came).
    pub late: u64,
    /// Pairs of (input row, window) of rows too far ahead of the clock to be believed.
    pub ahead: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_by_partition_and_older_records_can_be_read() {
        let source = SourceCommit {
            location: "events".into(),
            lost: 3,
            losses: vec![Loss { partition: 1, from: 20, to: 23, counted: 3 }],
            ..SourceCommit::default()
        };
        let text = serde_json::to_string(&source).unwrap();
        assert!(text.contains(r#""losses":[{"partition":1,"from":20,"to":23,"counted":3}]"#), "{text}");
        assert_eq!(serde_json::from_str::<SourceCommit>(&text).unwrap(), source);

        let older = r#"{"ranges":{"0":{"from":0,"to":9}},"watermark":null,"partitions":{},"lost":5}"#;
        let older: SourceCommit = serde_json::from_str(older).unwrap();
        assert_eq!((older.lost, older.losses), (5, vec![]));
        let older: SourcePlan = serde_json::from_str(r#"{"ranges":{},"idle":[],"lost":5}"#).unwrap();
        assert_eq!(older.losses, []);
    }
}
