//! A folder, held: shared while a file is put into it, exclusively while it is exchanged for another or cleared up after.
//!
//! ```text
//! put:      hold shared ─▶ write aside ─▶ rename ─▶ fsync the folder          the path means one folder all the while
//! compact:  hold exclusively ─▶ list once more ─▶ exchange the folders        nothing is put meanwhile
//! ```
//!
//! It is an flock, which the kernel drops when its holder dies. Who waited for a folder may hold one that has been exchanged or
//! removed: it is held only if it is still what its path names. File systems without flock have no `compact`, so a put needs
//! no lock there.

use std::fs::{File, TryLockError, metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// An exchange takes milliseconds: who holds a folder for longer hangs.
const WAIT_MAX: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(1);

/// For a put. Released when it is dropped.
///
/// # Errors
/// There is no such folder; another holds it exclusively all the time.
pub fn shared(folder: &Path) -> io::Result<File> {
    let lock = |file: &File| match file.try_lock_shared() {
        Err(TryLockError::Error(_)) => Ok(()),
        locked => locked,
    };
    let busy =
        || io::Error::new(ErrorKind::TimedOut, "another process holds the folder: does a `poundlock compact` hang?");
    hold(folder, WAIT_MAX, lock)?.ok_or_else(busy)
}

/// `None`: others hold it for longer than one would wait.
///
/// # Errors
/// There is no such folder; the file system has no locks.
pub fn exclusive(folder: &Path, wait: Duration) -> io::Result<Option<File>> {
    hold(folder, wait.min(WAIT_MAX), File::try_lock)
}

fn hold(folder: &Path, wait: Duration, lock: impl Fn(&File) -> Result<(), TryLockError>) -> io::Result<Option<File>> {
    let began = Instant::now();
    loop {
        let file = File::open(folder)?;
        match lock(&file) {
            Ok(()) => {
                let (held, there) = (file.metadata()?, metadata(folder)?);
                if (held.dev(), held.ino()) == (there.dev(), there.ino()) {
                    return Ok(Some(file));
                }
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(e),
        }
        if began.elapsed() >= wait {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_put_and_one_exchanges() {
        let folder = tempfile::tempdir().unwrap();
        let puts = [shared(folder.path()).unwrap(), shared(folder.path()).unwrap()];
        assert!(exclusive(folder.path(), Duration::ZERO).unwrap().is_none());
        drop(puts);
        let held = exclusive(folder.path(), Duration::ZERO).unwrap().unwrap();
        assert!(exclusive(folder.path(), Duration::from_millis(3)).unwrap().is_none());
        drop(held);
        drop(shared(folder.path()).unwrap());
        assert_eq!(shared(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    /// Who waits for a folder gets the one that is there when it is free.
    #[test]
    fn a_folder_that_was_exchanged_is_not_held() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("live"), folder.path().join("other"));
        std::fs::create_dir(&path).unwrap();
        let held = exclusive(&path, Duration::ZERO).unwrap().unwrap();
        let before = held.metadata().unwrap().ino();
        std::thread::scope(|scope| {
            let put = scope.spawn(|| shared(&path).unwrap().metadata().unwrap().ino());
            std::fs::rename(&path, &other).unwrap();
            std::fs::create_dir(&path).unwrap();
            drop(held);
            assert_ne!(put.join().unwrap(), before);
        });
    }
}
