//! Where a demo lives on disk: its folder, cleared of an earlier demo, and the queries it runs.
//!
//! Only what a demo makes is ever removed, and only from a folder that a demo has marked as its own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Marks a folder as a demo's.
const MARKER: &str = ".poundlock-demo";

/// What a demo makes anew, relative to its folder. Not `queries`: they may have been edited.
const MADE: [&str; 6] = ["checkpoint", "lake", "demo.db", "demo.db-wal", "demo.db-shm", "dead_letters.jsonl"];

/// The shipped queries, for a start where there is no `queries/`.
const SHIPPED: [(&str, &str); 6] = [
    ("00_tables.sql", include_str!("../../../queries/00_tables.sql")),
    ("10_validate.sql", include_str!("../../../queries/10_validate.sql")),
    ("20_windows.sql", include_str!("../../../queries/20_windows.sql")),
    ("30_anomalies.sql", include_str!("../../../queries/30_anomalies.sql")),
    ("40_event_logs.sql", include_str!("../../../queries/40_event_logs.sql")),
    ("50_monitoring.sql", include_str!("../../../queries/50_monitoring.sql")),
];

/// A demo's folder.
#[derive(Debug, Clone)]
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// Makes the folder, or clears it of what an earlier demo left there. Returns whether there was any.
    ///
    /// # Errors
    /// The folder has files of these names that no demo has made; the disk.
    pub fn prepare(dir: &Path) -> Result<(Self, bool)> {
        let doing = |path: &Path| format!("could not make room for the demo in {}", path.display());
        let failed = |path: PathBuf| move |e: std::io::Error| Error::external(doing(&path)).cause(e);
        let left: Vec<PathBuf> = MADE.iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect();
        let marker = dir.join(MARKER);
        if let Some(foreign) = left.first().filter(|_| !marker.exists()) {
            return Err(Error::user(format!("{} is there, and no demo has made it", foreign.display()))
                .hint("choose another folder with --dir"));
        }
        for path in &left {
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.map_err(failed(path.clone()))?;
        }
        fs::create_dir_all(dir).map_err(failed(dir.to_path_buf()))?;
        fs::write(&marker, "made by `poundlock demo`, which clears this folder when it starts again\n")
            .map_err(failed(marker.clone()))?;
        Ok((Self { dir: dir.to_path_buf() }, !left.is_empty()))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn database(&self) -> PathBuf {
        self.dir.join("demo.db")
    }

    pub fn lake(&self) -> PathBuf {
        self.dir.join("lake")
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }

    pub fn dead_letters(&self) -> PathBuf {
        self.dir.join("dead_letters.jsonl")
    }

    /// The folder to run: the one asked for, if it is there; else the shipped files, put beside the results to be
    /// edited, unless an earlier demo has put them there.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn queries(&self, wanted: &Path, given: bool) -> Result<PathBuf> {
        if given || wanted.is_dir() {
            return Ok(wanted.to_path_buf());
        }
        let own = self.dir.join("queries");
        let failed = |e| Error::external(format!("could not write the queries to {}", own.display())).cause(e);
        match fs::create_dir(&own) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(own),
            made => made.map_err(failed)?,
        }
        for (name, text) in SHIPPED {
            fs::write(own.join(name), text).map_err(failed)?;
        }
        Ok(own)
    }
}

/// A word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_string(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_cleared_of_a_demo_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("demo");
        let (place, cleared) = Place::prepare(&dir).unwrap();
        assert!(!cleared);
        fs::create_dir_all(place.lake().join("user_events")).unwrap();
        fs::write(place.database(), "x").unwrap();
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        let (place, cleared) = Place::prepare(&dir).unwrap();
        assert!(cleared && !place.lake().exists() && !place.database().exists());
        assert!(dir.join("notes.txt").exists());
        fs::remove_file(dir.join(MARKER)).unwrap();
        fs::create_dir(place.lake()).unwrap();
        let error = Place::prepare(&dir).unwrap_err();
        assert!(error.message().contains("no demo has made it"), "{error}");
        assert!(place.lake().exists());
    }

    #[test]
    fn queries_that_are_not_there_are_put_beside_the_results_once() {
        let folder = tempfile::tempdir().unwrap();
        let (place, _) = Place::prepare(folder.path()).unwrap();
        let absent = folder.path().join("absent");
        let own = place.queries(&absent, false).unwrap();
        assert_eq!(fs::read_dir(&own).unwrap().count(), SHIPPED.len());
        fs::write(own.join("30_anomalies.sql"), "edited").unwrap();
        assert_eq!(place.queries(&absent, false).unwrap(), own);
        assert_eq!(fs::read_to_string(own.join("30_anomalies.sql")).unwrap(), "edited");
        assert_eq!(place.queries(&absent, true).unwrap(), absent, "a folder asked for must be there");
        assert_eq!(place.queries(folder.path(), false).unwrap(), folder.path());
    }

    #[test]
    fn every_shipped_file_is_embedded() {
        let queries = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries");
        let mut names: Vec<String> =
            fs::read_dir(queries).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".sql"));
        names.sort();
        assert_eq!(names, SHIPPED.map(|(name, _)| name));
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("demo/demo.db"), "demo/demo.db");
        assert_eq!(quoted("my demo"), "'my demo'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
