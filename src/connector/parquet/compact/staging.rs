//! The folder beside a table's in which its partitions are merged: one process has it at a time, and it is there only as long as it
//! is needed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::swap::Staged;
use crate::checkpoint::durable::create_folders;
use crate::checkpoint::held;
use crate::{Error, Result};

/// Before the name of the table's folder.
const PREFIX: &str = "_poundlock_compact_";

/// Times that another process removes the folder while it is taken.
const RACES_MAX: usize = 100;

/// Held by this process.
#[derive(Debug)]
pub(in crate::connector::parquet) struct Staging {
    table: PathBuf,
    folder: PathBuf,
    _held: File,
}

impl Staging {
    /// Makes it if need be. `None`: another process has it.
    ///
    /// # Errors
    /// It cannot be made or locked.
    pub fn take(table: &Path) -> io::Result<Option<Self>> {
        let Some(folder) = beside(table) else { return Err(io::Error::other("it is the root of the file system")) };
        for _ in 0..RACES_MAX {
            create_folders(&folder)?;
            match held::exclusive(&folder, Duration::ZERO) {
                // Its last owner has just removed it.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                held => {
                    let with = |held| Self { table: table.to_path_buf(), folder, _held: held };
                    return Ok(held?.map(with));
                }
            }
        }
        Err(io::Error::other(format!("{} is made and removed all the time", folder.display())))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Clears up what a kill has left. Every partition has its rows once, before and after.
    ///
    /// # Errors
    /// Disk trouble.
    pub fn repair(&self, depth: usize) -> Result<()> {
        self.repair_below(&self.folder, depth)
    }

    /// `depth`: levels to the folders of partitions.
    fn repair_below(&self, folder: &Path, depth: usize) -> Result<()> {
        let failed = |e: io::Error| Error::external(format!("could not clear up {}", folder.display())).cause(e);
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_clear = match path.strip_prefix(&self.folder) {
                Ok(_) if path.is_dir() && depth > 1 => {
                    self.repair_below(&path, depth - 1)?;
                    true
                }
                Ok(relative) if path.is_dir() => Staged::repair(&self.table.join(relative), &path)?,
                _ => false,
            };
            if !is_clear {
                let path = path.display();
                tracing::warn!(%path, "a `compact` that was killed did not leave this here: it is left, look at it and remove it");
            }
        }
        Ok(())
    }

    /// At the end: it is needed no more.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn release(self) -> io::Result<()> {
        remove_empty(&self.folder)
    }
}

/// What a `compact` of the table has left that was killed; nothing, if none was, or one is at work.
///
/// # Errors
/// Disk trouble.
pub(in crate::connector::parquet) fn repair(table: &Path, depth: usize) -> Result<()> {
    if !beside(table).is_some_and(|folder| folder.exists()) {
        return Ok(());
    }
    let failed = |e: io::Error| Error::external(format!("could not clear up beside {}", table.display())).cause(e);
    let Some(staging) = Staging::take(table).map_err(failed)? else { return Ok(()) };
    staging.repair(depth)?;
    staging.release().map_err(failed)?;
    tracing::info!(table = %table.display(), "cleared up after a `compact` that was killed");
    Ok(())
}

fn beside(table: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(PREFIX);
    name.push(table.file_name()?);
    Some(table.parent()?.join(name))
}

/// The folder with all folders below it, as far as there are no files.
fn remove_empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}
