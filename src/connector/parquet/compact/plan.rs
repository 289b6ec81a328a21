//! Which files of a partition become one: those below half the target size, of the same columns, in the order of their batches.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::schema::types::SchemaDescPtr;

use super::super::layout::{FileName, parse_folder};
use super::{Size, Which};

/// A file that may be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub name: FileName,
    pub size: u64,
}

/// Files that become one.
#[derive(Debug)]
pub(super) struct Group {
    /// Of each of them.
    pub schema: SchemaDescPtr,
    /// In order, two at least.
    pub files: Vec<Found>,
    /// In all of them.
    pub rows: u64,
}

#[derive(Debug)]
pub(super) struct Partition {
    pub groups: Vec<Group>,
    /// Of all files of the pipeline.
    pub size: Size,
}

#[derive(Debug)]
pub(super) enum State {
    /// Something was added to it a moment ago.
    Open,
    /// There is nothing to merge.
    Whole,
    /// It cannot be merged, and why.
    Unfit(String),
    Merge(Partition),
}

/// The folders of all partitions, relative to the table's.
pub(super) fn partitions(table: &Path, depth: usize) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for _ in 0..depth {
        let mut below = vec![];
        for folder in found {
            let entries = match fs::read_dir(table.join(&folder)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                // A link leads elsewhere: it cannot be exchanged.
                let is_partition = entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| !name.starts_with(['_', '.']) && parse_folder(name).is_some());
                if is_partition && entry.file_type()?.is_dir() {
                    below.push(folder.join(entry.file_name()));
                }
            }
        }
        found = below;
    }
    found.sort();
    Ok(found)
}

pub(super) fn look_at(folder: &Path, which: &Which) -> io::Result<State> {
    let (mut files, mut size, mut newest) = (vec![], Size::default(), SystemTime::UNIX_EPOCH);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Unfit("it was removed meanwhile".into())),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Open),
            metadata => metadata?,
        };
        if metadata.is_dir() {
            return Ok(State::Unfit(format!("there is a folder in it: {}", entry.file_name().display())));
        }
        newest = newest.max(metadata.modified()?);
        let name = entry.file_name().to_str().and_then(FileName::parse).filter(|_| metadata.is_file());
        if let Some(name) = name.filter(|name| name.pipeline == which.pipeline && name.batch <= which.last) {
            size.files += 1;
            size.bytes += metadata.len();
            files.push(Found { name, size: metadata.len() });
        }
    }
    if newest > which.quiet_since {
        return Ok(State::Open);
    }
    files.retain(|file| file.size < which.target_size / 2);
    if files.len() < 2 {
        return Ok(State::Whole);
    }
    files.sort_by_key(|file| (file.name.batch, file.name.sequence));
    Ok(match groups(folder, files, which.target_size) {
        Ok(groups) if groups.is_empty() => State::Whole,
        Ok(groups) => State::Merge(Partition { groups, size }),
        Err(why) => State::Unfit(why),
    })
}

/// # Errors
/// Which file cannot be read.
fn groups(folder: &Path, files: Vec<Found>, target_size: u64) -> Result<Vec<Group>, String> {
    // The last group of each schema is open.
    let mut groups: Vec<(Group, u64)> = vec![];
    for file in files {
        let path = folder.join(file.name.format());
        let (schema, rows) = footer(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let of_schema = groups.iter_mut().rev().find(|(group, _)| same_columns(&group.schema, &schema));
        match of_schema.filter(|(_, bytes)| bytes + file.size <= target_size) {
            Some((group, bytes)) => {
                *bytes += file.size;
                group.rows += rows;
                group.files.push(file);
            }
            None => {
                let bytes = file.size;
                groups.push((Group { schema, files: vec![file], rows }, bytes));
            }
        }
    }
    Ok(groups.into_iter().map(|(group, _)| group).filter(|group| group.files.len() > 1).collect())
}

/// Columns and rows.
pub(super) fn footer(path: &Path) -> Result<(SchemaDescPtr, u64), ParquetError> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&File::open(path)?)?;
    let file = metadata.file_metadata();
    let rows = u64::try_from(file.num_rows()).map_err(|e| ParquetError::General(e.to_string()))?;
    Ok((file.schema_descr_ptr(), rows))
}

pub(super) fn same_columns(one: &SchemaDescPtr, other: &SchemaDescPtr) -> bool {
    one.root_schema().get_fields() == other.root_schema().get_fields()
}
