//! One process per local checkpoint: an flock, which the kernel drops when its holder dies, however it dies.
//!
//! It also holds between two openings in one process. Network file systems that do not pass flock on are not safe to
//! share; epochs fence there, as on object storage.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{durable, now};
use crate::{Error, Result};

/// Longer is none of ours.
const OWNER_BYTES: u64 = 1000;

/// Makes the folder if need be.
///
/// # Errors
/// Another process holds it (named, with its host); the folder cannot be made or written.
pub(super) fn take(folder: &Path) -> Result<File> {
    let failed =
        |e: &dyn std::fmt::Display| Error::external(format!("could not lock checkpoint {}", folder.display())).cause(e);
    let unmade = |e| {
        let hint = "--checkpoint or CHECKPOINT_BASE says where it is; a relative path begins at the working directory";
        Error::external(format!("could not make the folder {} of the checkpoint", folder.display())).cause(e).hint(hint)
    };
    durable::create_folders(folder).map_err(unmade)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(folder.join("lock")).map_err(|e| failed(&e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let read = file.take(OWNER_BYTES).read_to_string(&mut owner);
            let owner = if read.is_ok() && !owner.is_empty() { owner.trim() } else { "another process" };
            return Err(Error::external(format!("checkpoint {} is in use", folder.display()))
                .cause(format!("{owner} holds it"))
                .hint("a pipeline runs once: stop that process. Another pipeline has another poundlock.name, and tables of its own"));
        }
        Err(TryLockError::Error(e)) => return Err(failed(&e)),
    }
    let owner = format!("{} since {}\n", this_process(), now());
    file.set_len(0).and_then(|()| file.write_all(owner.as_bytes())).map_err(|e| failed(&e))?;
    Ok(file)
}

/// "process 4711 on host a1".
pub(super) fn this_process() -> String {
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    let host = host.unwrap_or_default();
    let host = if host.trim().is_empty() { "this host" } else { host.trim() };
    format!("process {} on host {host}", std::process::id())
}
