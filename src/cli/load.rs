//! From a folder and flags to a planned program: what every verb over the user's files begins with.

use std::path::Path;

use tokio::runtime::Handle;

use super::environment::Environment;
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
    load_in(queries, flags, &Environment::default()).await
}

/// As [`load`], with `${…}` of this environment.
///
/// # Errors
/// As [`load`].
pub async fn load_in(queries: &Path, flags: &SettingFlags, environment: &Environment) -> Result<Program> {
    let (queries, flags, environment) = (queries.to_path_buf(), flags.clone(), environment.clone());
    on_large_stack(move |runtime| runtime.block_on(plan(&queries, &flags, &environment))).await?
}

/// Runs work on a thread of its own, which may block and whose stack is large enough to plan any SQL.
///
/// # Errors
/// There is no thread to be had, or it panicked.
pub async fn on_large_stack<T: Send + 'static>(work: impl FnOnce(&Handle) -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let runtime = Handle::current();
    let run = move || {
        let done = work(&runtime);
        // The receiver waits for as long as this thread runs.
        drop(sender.send(done));
    };
    let thread = std::thread::Builder::new().name("planner".into()).stack_size(PLANNING_STACK_BYTES);
    thread.spawn(run).map_err(|e| Error::external("could not start a thread").cause(e))?;
    receiver.await.map_err(|_| Error::internal("planning ended without a result"))
}

async fn plan(queries: &Path, flags: &SettingFlags, environment: &Environment) -> Result<Program> {
    let lookup = |wanted: crate::sql::substitute::Wanted| environment.get(wanted);
    let files = Files::read(queries, &lookup)?;
    let script = parse(&files);
    let settings = settings::resolve(&flags.0, &lookup, &files, &script.statements);
    Program::plan(files, script, settings).await
}
