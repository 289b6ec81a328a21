//! The process's environment and mounted files, as `${…}` in the user's files and settings ask for them.

use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::fs::File;
use std::io::{ErrorKind, Read};

use crate::sql::substitute::Wanted;

/// A secret is small; more than this is some other file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A [`crate::sql::substitute::Lookup`]. A relative path starts at the working directory.
pub fn environment(wanted: Wanted) -> Result<Option<String>, String> {
    match wanted {
        Wanted::Variable(name) => match env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => Err("is not UTF-8 text".into()),
        },
        Wanted::File(path) => {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            let mut text = String::new();
            file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
            Ok(Some(text))
        }
    }
}

/// The process's environment with some names set otherwise: what `demo` runs the shipped files in.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn with<const N: usize>(names: [(&str, String); N]) -> Self {
        Self(names.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }

    /// As [`environment`]: pass `&|wanted| environment.get(wanted)` as a lookup.
    pub fn get(&self, wanted: Wanted) -> Result<Option<String>, String> {
        match wanted {
            Wanted::Variable(name) if self.0.contains_key(name) => Ok(self.0.get(name).cloned()),
            other => environment(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_variables_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let shown = path.to_str().unwrap();
        assert_eq!(environment(Wanted::File(shown)), Ok(None));
        std::fs::write(&path, "abc\n").unwrap();
        assert_eq!(environment(Wanted::File(shown)), Ok(Some("abc\n".into())));
        std::fs::write(&path, b"\xff").unwrap();
        assert!(environment(Wanted::File(shown)).is_err());
        assert_eq!(environment(Wanted::Variable("POUNDLOCK_NOT_SET_ANYWHERE")), Ok(None));
        assert!(environment(Wanted::Variable("PATH")).unwrap().is_some());
    }
    #[test]
    fn names_set_otherwise_hide_those_of_the_process() {
        let own = Environment::with([("PATH", "mine".into())]);
        assert_eq!(own.get(Wanted::Variable("PATH")), Ok(Some("mine".into())));
        assert_eq!(own.get(Wanted::Variable("HOME")), environment(Wanted::Variable("HOME")));
        assert_eq!(own.get(Wanted::File("/PATH")), Ok(None));
    }
}
