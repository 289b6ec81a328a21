//! Merges the small files of closed partitions of a local Parquet table, while it is read and written.
//!
//! A partition is closed when nothing was added to it for a while. Its small files are merged in a folder that no reader sees,
//! which is then exchanged with the partition's own: one call of the kernel, so whoever lists the partition finds the old
//! files or the new ones.
//!
//! ```text
//! lake/events/event_date=2026-11-23/                                     what readers see
//! lake/_poundlock_compact_events/event_date=2026-11-23/                  the same in the making; after the exchange, what was
//!
//! mark it ─▶ merge ─▶ hard-link all other files ─▶ [partition held] link what came since, manifest, EXCHANGE ─▶ delete what was
//! ```
//!
//! The folder is beside the table's, not in it: a program that globs `**/*.parquet` would see its files (DuckDB does, also below
//! names that begin with `_`).
//!
//! Only files of this pipeline and of committed batches are merged: others are linked as they are. The names of merged files are
//! new ones ([`merged_name`]): a reader that has listed the old files must not meet a merged one under one of their names, or it
//! would see rows twice; as it is, a file is missing and the reader says so. What was is deleted [`LINGER`] after the exchange, so
//! that a listing that had begun comes to its end; and nothing is exchanged until the last committed batch has been known for as
//! long, so that who has asked for it just before lists the old files.
//!
//! Why a replay never overwrites merged rows nor writes them once more: it is of batches after the last committed one, and files of
//! those are not merged. A merged file has the number of its newest batch, so it counts for readers as that does.
//!
//! Invariants: at any moment, and after a kill at any line, the folder of a partition holds each of its rows once. Before the
//! exchange as many rows were written as were read. Failure: what was begun is cleared up by [`staging::repair`], at the next
//! `compact` and at the next start of the pipeline.

mod merge;
mod plan;
pub(super) mod staging;
mod swap;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::Table;
use super::layout::FileName;
use crate::connector::TableDefinition;
use crate::{Error, Result};

use plan::{Found, Partition};
use staging::Staging;
use swap::Staged;

/// How long a listing may take that began before an exchange, and its beginning after asking for the last committed batch.
const LINGER: Duration = Duration::from_secs(2);

/// More than the sequence of any file that a batch writes: INSERT × 1,000 + partition.
const GENERATION: usize = 1_000_000_000;

/// Which files are merged.
#[derive(Debug, Clone)]
pub struct Which {
    pub pipeline: Uuid,
    /// The last committed batch, as of `asked`.
    pub last: u64,
    pub asked: Instant,
    /// A partition to which something was added since is left alone.
    pub quiet_since: SystemTime,
    /// Bytes of a merged file, at most; files of half as many stay as they are.
    pub target_size: u64,
}

/// Files of one or more partitions, before and after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub files: u64,
    pub bytes: u64,
}

/// What was done to a table, or would be.
#[derive(Debug, Default)]
pub struct Report {
    /// Partitions whose files were merged, with all files of the pipeline in them.
    pub merged: u64,
    pub before: Size,
    /// Not known of what was only planned: bytes are those of before.
    pub after: Size,
    /// Partitions to which something was added a moment ago.
    pub open: u64,
    /// Partitions that have nothing to merge.
    pub whole: u64,
    /// Partitions that cannot be merged, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// A table whose files can be merged.
#[derive(Debug)]
pub struct Compaction {
    table: Table,
    local: PathBuf,
}

impl Compaction {
    /// # Errors
    /// Of the user: the table is none whose files can be merged.
    pub fn of(definition: &Arc<TableDefinition>) -> Result<Self> {
        let refused = |why: &str, hint: &str| {
            Err(Error::user(format!("the files of table {} cannot be merged", definition.name))
                .at(definition.place.clone())
                .cause(why)
                .hint(hint))
        };
        match definition.stored_as.as_str() {
            "PARQUET" => {}
            "DELTA" => {
                return refused("it is STORED AS DELTA", "nothing is to be done: they are merged while rows come in");
            }
            _ => return refused("it is not STORED AS PARQUET", "name tables that are, or none: all are taken"),
        }
        let table = Table::new(definition)?;
        if table.partition_columns.is_empty() {
            let hint = "STORED AS DELTA merges while rows come in; or add PARTITIONED BY, in a new LOCATION";
            return refused("it has no PARTITIONED BY, so no part of it is ever closed", hint);
        }
        match table.location.local.clone() {
            Some(local) if local.parent().is_some() => Ok(Self { table, local }),
            Some(_) => refused("its LOCATION is the root of the file system", "give it a folder"),
            None => refused(
                "it is not on a local disk: no other storage can exchange two folders",
                "STORED AS DELTA merges while rows come in, on S3 too",
            ),
        }
    }

    /// Of all partitions, in order.
    ///
    /// # Errors
    /// A folder cannot be read. A table that has none yet has no partitions.
    pub fn partitions(&self) -> Result<Vec<PathBuf>> {
        plan::partitions(&self.local, self.table.partition_columns.len()).map_err(|e| self.failed(&e))
    }

    /// What [`Compaction::run`] would do.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn plan(&self, which: &Which, partitions: &[PathBuf], each: &dyn Fn()) -> Result<Report> {
        let mut report = Report::default();
        for relative in partitions {
            if let Some(partition) = self.look_at(relative, which, &mut report)? {
                let gone: u64 = partition.groups.iter().map(|group| group.files.len() as u64 - 1).sum();
                let after = Size { files: partition.size.files - gone, ..partition.size };
                report.count(partition.size, after);
            }
            each();
        }
        Ok(report)
    }

    /// Blocks. What an earlier run has left is cleared up first.
    ///
    /// # Errors
    /// Another `compact` is at work on the table; its folders cannot be exchanged; disk trouble. What was done until then is
    /// done, the rest is as it was.
    pub fn run(&self, which: &Which, partitions: &[PathBuf], each: &dyn Fn()) -> Result<Report> {
        let failed = |e: io::Error| self.failed(&e);
        let Some(staging) = Staging::take(&self.local).map_err(failed)? else {
            return Err(self.failed("another process merges its files").hint("wait for its end"));
        };
        staging.repair(self.table.partition_columns.len())?;
        let (mut report, mut lingering) = (Report::default(), VecDeque::new());
        let done = partitions.iter().try_for_each(|relative| {
            let done = self.merge(&staging, relative, which, &mut report);
            lingering.extend(done?.map(|staged| (Instant::now(), staged)));
            each();
            finish(&mut lingering, |at| at.elapsed() >= linger())
        });
        let finished = finish(&mut lingering, |at| {
            sleep(linger().saturating_sub(at.elapsed()));
            true
        });
        done.and(finished)?;
        staging.release().map_err(failed)?;
        Ok(report)
    }

    /// `None`: nothing is to be done, or can be; it is counted.
    fn look_at(&self, relative: &Path, which: &Which, report: &mut Report) -> Result<Option<Partition>> {
        match plan::look_at(&self.local.join(relative), which).map_err(|e| self.failed(&e))? {
            plan::State::Open => report.open += 1,
            plan::State::Whole => report.whole += 1,
            plan::State::Unfit(why) => report.skipped.push((relative.to_path_buf(), why)),
            plan::State::Merge(partition) => return Ok(Some(partition)),
        }
        Ok(None)
    }

    /// One partition, until it is exchanged. `None`: it is as it was.
    fn merge(&self, staging: &Staging, relative: &Path, which: &Which, report: &mut Report) -> Result<Option<Staged>> {
        let Some(partition) = self.look_at(relative, which, report)? else { return Ok(None) };
        let (live, hidden) = (self.local.join(relative), staging.folder().join(relative));
        if hidden.exists() {
            report.skipped.push((relative.to_path_buf(), format!("look at {} and remove it", hidden.display())));
            return Ok(None);
        }
        let mut staged = Staged::begin(&live, &hidden)?;
        let made = (|| {
            let mut after = partition.size;
            for group in &partition.groups {
                let name = merged_name(which.pipeline, &group.files)?;
                let merged = merge::merge(&self.table, &live, group, &staged.path(&name))?;
                after.files -= group.files.len() as u64 - 1;
                after.bytes = after.bytes + merged - group.files.iter().map(|file| file.size).sum::<u64>();
                staged.replaces(name, &group.files);
            }
            sleep(linger().saturating_sub(which.asked.elapsed()));
            Ok((after, staged.swap()?))
        })();
        match made {
            Ok((after, None)) => {
                report.count(partition.size, after);
                Ok(Some(staged))
            }
            Ok((_, Some(why))) => {
                staged.abandon()?;
                report.skipped.push((relative.to_path_buf(), why));
                Ok(None)
            }
            Err(error) => {
                // The error tells more than that it could not be cleared up.
                drop(staged.abandon());
                Err(error)
            }
        }
    }

    fn failed(&self, cause: impl std::fmt::Display) -> Error {
        self.table.failed("merge files of").cause(cause)
    }
}

impl Report {
    fn count(&mut self, before: Size, after: Size) {
        self.merged += 1;
        for (sum, of) in [(&mut self.before, before), (&mut self.after, after)] {
            sum.files += of.files;
            sum.bytes += of.bytes;
        }
    }
}

/// From the oldest on, as long as they have waited.
fn finish(lingering: &mut VecDeque<(Instant, Staged)>, has_waited: impl Fn(&Instant) -> bool) -> Result<()> {
    while lingering.front().is_some_and(|(at, _)| has_waited(at)) {
        if let Some((_, staged)) = lingering.pop_front() {
            staged.finish()?;
        }
    }
    Ok(())
}

/// No test of a single process reads meanwhile.
fn linger() -> Duration {
    if cfg!(test) { Duration::ZERO } else { LINGER }
}

/// That of the newest file, with a sequence that no file had before: only its merging makes it, and it is merged once.
fn merged_name(pipeline: Uuid, files: &[Found]) -> Result<FileName> {
    let newest = files.iter().map(|file| file.name).max_by_key(|name| (name.batch, name.sequence));
    let newest = newest.ok_or_else(|| Error::internal("there are no files to merge"))?;
    let sequence = newest.sequence.checked_add(GENERATION);
    let sequence = sequence.ok_or_else(|| Error::internal("a file was merged too often"))?;
    Ok(FileName { pipeline, sequence, ..newest })
}

/// Of what stands in the place of another: the same users may do the same with it.
fn like(of: &fs::Metadata, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let own = fs::metadata(path)?;
    if (own.uid(), own.gid()) != (of.uid(), of.gid()) {
        chown(path, Some(of.uid()), Some(of.gid())).map_err(|e| {
            io::Error::new(e.kind(), format!("the partition is another user's: run it as the pipeline's user: {e}"))
        })?;
    }
    fs::set_permissions(path, of.permissions())
}
