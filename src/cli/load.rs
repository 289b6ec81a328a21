//! From a folder and flags to a planned program: what every verb over the user's files begins with.

use std::path::Path;

use super::environment::environment;
use super::flags::SettingFlags;
use crate::sql::{Files, Program, parse, settings};
use crate::{Error, Result};

/// The planner is recursive: a query nested as deeply as the limits allow needs more than a worker's stack.
const PLANNING_STACK_BYTES: usize = 32 << 20;

/// Reads and plans the files of a folder. Connects to nothing.
///
/// # Errors
/// All errors of all files, each at its place.
pub async fn load(queries: &Path, flags: &SettingFlags) -> Result<Program> {
    let (queries, flags) = (queries.to_path_buf(), flags.clone());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let plan = move || {
        let planned = runtime.block_on(plan(&queries, &flags));
        // The receiver waits for as long as this thread runs.
        drop(sender.send(planned));
    };
    let thread = std::thread::Builder::new().name("planner".into()).stack_size(PLANNING_STACK_BYTES);
    thread.spawn(plan).map_err(|e| Error::external("could not start a thread").cause(e))?;
    receiver.await.map_err(|_| Error::internal("planning ended without a result"))?
}

async fn plan(queries: &Path, flags: &SettingFlags) -> Result<Program> {
    let files = Files::read(queries, &environment)?;
    let (statements, errors) = parse(&files);
    let settings = settings::resolve(&flags.0, &environment, &files, &statements);
    match (Error::all(errors), settings) {
        (None, Ok(settings)) => Program::plan(files, statements, settings).await,
        (Some(error), Ok(_)) | (None, Err(error)) => Err(error),
        (Some(one), Err(two)) => Err(Error::all(vec![one, two]).unwrap_or_else(|| Error::internal("no error"))),
    }
}
