//! One partition in another's place: the folder in the making, the exchange, and what is to be done after it.
//!
//! | `_poundlock_merged` is           | so the folders were     | what a kill has left to do                     |
//! |----------------------------------|-------------------------|------------------------------------------------|
//! | in the hidden folder             | not exchanged           | delete the hidden folder                       |
//! | in the partition                 | exchanged               | what [`Staged::finish`] does: it has the names |
//! | nowhere, the hidden one is empty | exchanged, or just made | delete the hidden folder                       |
//!
//! The manifest goes with the folder that it lies in, so it tells by itself; it is whole before the exchange. A partition that has one
//! has its hidden folder until it has none.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::layout::FileName;
use super::like;
use super::plan::Found;
use crate::checkpoint::durable::{create_folders, is_aside, sync_folder};
use crate::checkpoint::held;
use crate::point::point;
use crate::{Error, Result};

/// No reader takes a file of such a name for data.
pub(super) const MANIFEST: &str = "_poundlock_merged";

/// A partition that is put into all the time is not closed.
const WAIT_FOR_PUTS: Duration = Duration::from_secs(2);

/// Times that something is put into a folder which is no partition any more; none of ours is.
const LATE_MAX: usize = 100;

/// Names of files that need not be kept of what was the partition.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Manifest {
    /// Merged into others.
    replaced: BTreeSet<String>,
    /// In the new folder too.
    linked: BTreeSet<String>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Staged {
    live: PathBuf,
    hidden: PathBuf,
    /// Names of what was merged.
    merged: BTreeSet<String>,
    manifest: Manifest,
    exchanged: bool,
}

impl Staged {
    /// Makes the hidden folder, with the mark that it is no partition yet.
    pub fn begin(live: &Path, hidden: &Path) -> Result<Self> {
        let make = || {
            if live.join(MANIFEST).exists() {
                // Of a folder that somebody has removed.
                remove(&live.join(MANIFEST))?;
                sync_folder(live)?;
            }
            create_folders(hidden)?;
            like(&fs::metadata(live)?, hidden)?;
            create(&hidden.join(MANIFEST))?.sync_all()?;
            sync_folder(hidden)
        };
        make().map_err(|e| failed("make a folder beside", live, &e))?;
        point!("compact::after_mark");
        let (merged, manifest) = Default::default();
        Ok(Self { live: live.to_path_buf(), hidden: hidden.to_path_buf(), merged, manifest, exchanged: false })
    }

    pub fn path(&self, name: &FileName) -> PathBuf {
        self.hidden.join(name.format())
    }

    /// The file that was written under this name has the rows of these.
    pub fn replaces(&mut self, merged: FileName, files: &[Found]) {
        self.merged.insert(merged.format());
        self.manifest.replaced.extend(files.iter().map(|file| file.name.format()));
    }

    /// Exchanges the folders. `Some`: it could not be done now, and why; nothing was changed.
    ///
    /// # Errors
    /// The file system cannot; disk trouble. Nothing was changed.
    pub fn swap(&mut self) -> Result<Option<String>> {
        let failed = |e: io::Error| failed("exchange the folder of", &self.live, &e);
        // Most of the work before anybody has to wait for it.
        if let Err(why) = self.link().map_err(failed)? {
            return Ok(Some(why));
        }
        let Some(held) = held::exclusive(&self.live, WAIT_FOR_PUTS).map_err(failed)? else {
            return Ok(Some("files are put into it all the time".into()));
        };
        match self.link().map_err(failed)? {
            Ok(linked) => self.manifest.linked = linked,
            Err(why) => return Ok(Some(why)),
        }
        let manifest = serde_json::to_vec(&self.manifest).map_err(io::Error::other);
        let write = |manifest: Vec<u8>| {
            let mut file = OpenOptions::new().write(true).truncate(true).open(self.hidden.join(MANIFEST))?;
            file.write_all(&manifest)?;
            file.sync_all()?;
            sync_folder(&self.hidden)
        };
        manifest.and_then(write).map_err(failed)?;
        point!("compact::before_exchange");
        renameat_with(CWD, &self.hidden, CWD, &self.live, RenameFlags::EXCHANGE).map_err(|e| self.unable(e))?;
        self.exchanged = true;
        point!("compact::after_exchange");
        for folder in [&self.live, &self.hidden] {
            folder.parent().map_or(Ok(()), sync_folder).map_err(failed)?;
        }
        drop(held);
        Ok(None)
    }

    /// Every file that is not merged is in the hidden folder too, and none that is gone. Their names; or why the partition
    /// cannot be exchanged.
    fn link(&self) -> io::Result<Result<BTreeSet<String>, String>> {
        let (mut linked, mut missing) = (BTreeSet::new(), self.manifest.replaced.clone());
        for entry in fs::read_dir(&self.live)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                return Ok(Err(format!("the name of {} is no text", entry.path().display())));
            };
            if missing.remove(&name) || is_aside(&name) || name == MANIFEST {
                continue;
            }
            if entry.file_type()?.is_dir() {
                return Ok(Err(format!("there is a folder in it: {name}")));
            }
            if self.merged.contains(&name) {
                return Ok(Err(format!("there is a file {name} in it")));
            }
            let to = self.hidden.join(&name);
            match fs::hard_link(entry.path(), &to) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    // Another file of that name may have been put meanwhile.
                    if fs::symlink_metadata(&to)?.ino() != fs::symlink_metadata(entry.path())?.ino() {
                        fs::remove_file(&to)?;
                        fs::hard_link(entry.path(), &to)?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                done => done?,
            }
            linked.insert(name);
        }
        if let Some(name) = missing.first() {
            return Ok(Err(format!("{name} was removed from it meanwhile")));
        }
        for entry in fs::read_dir(&self.hidden)? {
            let entry = entry?;
            let is_known = |name: &str| name == MANIFEST || self.merged.contains(name) || linked.contains(name);
            if !entry.file_name().to_str().is_some_and(is_known) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Ok(linked))
    }

    /// After the exchange: the hidden folder is what was the partition, and is not needed any more.
    pub fn finish(self) -> Result<()> {
        let failed = |e: io::Error| failed("clear up after", &self.live, &e);
        self.empty().map_err(failed)?;
        point!("compact::after_delete");
        remove(&self.live.join(MANIFEST)).and_then(|()| sync_folder(&self.live)).map_err(failed)?;
        point!("compact::after_manifest");
        for _ in 0..LATE_MAX {
            match fs::remove_dir(&self.hidden) {
                Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => self.empty().map_err(failed)?,
                removed => return removed.map_err(failed),
            }
        }
        Err(failed(io::Error::other("files are put into the folder that it was")))
    }

    /// Whatever another program has put there in the moment of the exchange goes to where it was meant to be.
    fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.hidden)? {
            let entry = entry?;
            let name = entry.file_name();
            let known = name.to_str().is_some_and(|name| {
                self.manifest.replaced.contains(name) || self.manifest.linked.contains(name) || is_aside(name)
            });
            if known {
                remove(&entry.path())?;
                continue;
            }
            match renameat_with(CWD, entry.path(), CWD, self.live.join(&name), RenameFlags::NOREPLACE) {
                // It was put there once more.
                Err(Errno::EXIST) => remove(&entry.path())?,
                moved => moved?,
            }
        }
        sync_folder(&self.live)?;
        sync_folder(&self.hidden)
    }

    /// Before the exchange: nothing has begun. After it, [`Staged::repair`] has to do the rest.
    pub fn abandon(self) -> Result<()> {
        match self.exchanged {
            true => Ok(()),
            false => discard(&self.hidden).map_err(|e| failed("clear up beside", &self.live, &e)),
        }
    }

    fn unable(&self, e: Errno) -> Error {
        let hint = match e {
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => {
                "this file system cannot exchange two folders (ext4, xfs, btrfs and tmpfs of Linux can): STORED AS DELTA merges \
                 without"
            }
            Errno::XDEV => "the folder of the table and the one that it lies in must be on one file system",
            _ => "let the pipeline's user write into the folder of the table and the one that it lies in",
        };
        failed("exchange the folder of", &self.live, &io::Error::from(e)).hint(hint)
    }

    /// Clears up what a kill has left of a partition. `false`: nobody can tell what it is, so it was left.
    pub fn repair(live: &Path, hidden: &Path) -> Result<bool> {
        let trouble = |e: &io::Error| failed("clear up after", live, e);
        let (live, hidden) = (live.to_path_buf(), hidden.to_path_buf());
        if hidden.join(MANIFEST).exists() {
            discard(&hidden).map_err(|e| trouble(&e))?;
            return Ok(true);
        }
        let manifest = match fs::read(live.join(MANIFEST)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| trouble(&e.into()))?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return match fs::remove_dir(&hidden) {
                    Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
                    removed => removed.map(|()| true).map_err(|e| trouble(&e)),
                };
            }
            Err(e) => return Err(trouble(&e)),
        };
        // Nothing is deleted before the exchange is there for good.
        for folder in [&live, &hidden] {
            folder.parent().map_or(Ok(()), sync_folder).map_err(|e| trouble(&e))?;
        }
        Self { live, hidden, merged: BTreeSet::new(), manifest, exchanged: true }.finish().map(|()| true)
    }
}

/// A folder in the making, the mark last: with it a kill leaves something that is known.
fn discard(hidden: &Path) -> io::Result<()> {
    for entry in fs::read_dir(hidden)? {
        let entry = entry?;
        if entry.file_name() != MANIFEST {
            fs::remove_file(entry.path())?;
        }
    }
    sync_folder(hidden)?;
    remove(&hidden.join(MANIFEST))?;
    fs::remove_dir(hidden)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn failed(what: &str, partition: &Path, e: &io::Error) -> Error {
    Error::external(format!("could not {what} a partition")).at(partition.display().to_string()).cause(e)
}

#[cfg(test)]
mod tests;
