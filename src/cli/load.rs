//! From a folder and flags to a planned program: what every verb over the user's files begins with.

use std::path::Path;

use super::environment::Environment;
use super::flags::SettingFlags;
use crate::Result;
use crate::sql::{Files, Program, parse, settings};

/// Reads and plans the files of a folder. Connects to nothing.
///
/// # Errors
/// All errors of all files, each at its place.
pub async fn load(queries: &Path, flags: &SettingFlags) -> Result<Program> {
    load_in(queries, flags, &Environment::default()).await
}

/// As [`load`], with `${…}` of this environment.
///
/// # Errors
/// As [`load`].
pub async fn load_in(queries: &Path, flags: &SettingFlags, environment: &Environment) -> Result<Program> {
    let lookup = |wanted: crate::sql::substitute::Wanted| environment.get(wanted);
    let files = Files::read(queries, &lookup)?;
    let script = parse(&files);
    let settings = settings::resolve(&flags.0, &lookup, &files, &script.statements);
    Program::plan(files, script, settings).await
}
