//! Batches that were planned and not committed, where a start cannot simply replay them.
//!
//! ```text
//! plan of another text ─▶ a sink holds a part ─▶ finished under its own text ┐
//! lower limits, or tables turned on or off ────▶ replayed as planned         ├─▶ the start goes on
//!            └─▶ no sink holds any part ───────▶ forgotten, planned anew     ┘
//! ```
//!
//! A sink that is off now cannot be asked: it is taken to hold a part.
//!
//! So a batch that fails again and again blocks nothing for ever: change its SQL, or make it smaller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::start::{Pipeline, fits, open_sinks};
use super::write::Sinks;
use crate::checkpoint::{Blob, Checkpoint, Plan, Recovery};
use crate::connector::{TableDefinition, is_lake};
use crate::sql::settings::{self, Settings};
use crate::sql::substitute::Lookup;
use crate::sql::{Files, Program};
use crate::{Error, Result};

/// Settles plans of an earlier text: they are finished under it if any sink holds a part of them, else they are
/// forgotten and planned anew. Rows that a sink has refused go to `new`'s table for dead letters if the earlier text had
/// none: it is what the error asked for.
///
/// # Errors
/// The earlier program cannot be planned or run any more, and a sink holds a part of the batch.
pub(super) async fn finish_old(
    recovery: &mut Recovery,
    text: &str,
    checkpoint: &Checkpoint,
    new: &Program,
    take_over: bool,
    lookup: Lookup<'_>,
) -> Result<()> {
    let Some(plan) = recovery.pending.first().filter(|plan| plan.program != text).cloned() else { return Ok(()) };
    let old = checkpoint.get_blob(Blob::Program, &plan.program).await?;
    let mut program = plan_stored(&old, &new.settings, lookup).await.map_err(|error| {
        error.at(format!("batch {}, planned under the SQL before its change", plan.number)).hint(FINISH_FIRST)
    })?;
    let is_target = |table: &Arc<TableDefinition>| program.targets.contains(&table.name);
    program.dead_letters = program.dead_letters.or_else(|| new.dead_letters.clone().filter(|table| !is_target(table)));
    // What it has an outbox for is delivered later, by the new program.
    let (mut sinks, _) = open_sinks(&program, checkpoint, take_over).await?;
    fits(&sinks, recovery)?;
    let holding = holding(&plan, &program, &mut sinks).await?;
    if holding.is_empty() {
        tracing::warn!(batch = plan.number, "the SQL has changed and no sink holds the batch: it is planned anew");
        recovery.forget_pending();
        return Ok(());
    }
    same_tables(&plan, &program, &holding)?;
    tracing::warn!(batch = plan.number, "finishing the batch under the SQL it was planned with: {holding:?} hold it");
    let (program, name) = (Arc::new(program), plan.program.clone());
    let mut old = Pipeline::assemble(program, checkpoint, recovery, sinks, name.clone(), Instant::now()).await?;
    old.restore(recovery, None).await.map_err(|error| error.hint(FINISH_FIRST))?;
    for (position, plan) in recovery.pending.iter().enumerate() {
        // The plan behind it was made ahead: nothing of it can be written, so it need not keep the old SQL.
        if position > 0 && (plan.program != name || old.sinks.lock().await.holding(plan.number).await?.is_empty()) {
            break;
        }
        old.replay(plan).await?;
    }
    drop(old);
    *recovery = checkpoint.recover().await?;
    // A plan of the new text cannot stand behind one of the old text that was never committed.
    recovery.pending.retain(|plan| plan.program == text);
    Ok(())
}

/// Forgets plans of this text that no sink holds any part of, where the batch would come out otherwise now: smaller, for
/// the limits have become lower, or for other tables. A batch that a sink may hold is finished as it was planned, without
/// the tables that it is not written to any more.
///
/// # Errors
/// Tables were turned on, or sources off, and a sink holds a part of the batch.
pub(super) async fn plan_anew(recovery: &mut Recovery, sinks: &mut Sinks, program: &Program) -> Result<()> {
    let Some(plan) = recovery.pending.first() else { return Ok(()) };
    let why = match (switched(plan, program).is_empty(), limits_are_lower(plan, &program.settings)) {
        (false, _) => "tables were turned on or off",
        (true, true) => "the limits of a batch are lower",
        (true, false) => return Ok(()),
    };
    let holding = holding(plan, program, sinks).await?;
    if holding.is_empty() {
        tracing::warn!(batch = plan.number, "{why} and no sink holds the batch: it is planned anew");
        recovery.forget_pending();
        return Ok(());
    }
    same_tables(plan, program, &holding)?;
    tracing::warn!(batch = plan.number, "{why}, but {holding:?} hold the batch: it is finished as it was planned");
    // Nothing of the one behind it can be written.
    recovery.pending.truncate(1);
    Ok(())
}

/// Forgets plans whose rows cannot be made again, for the window state they follow from does not fit any more.
///
/// # Errors
/// A sink holds a part of the batch.
pub(super) async fn forget_unfit(recovery: &mut Recovery, pipeline: &Pipeline) -> Result<()> {
    let Some(plan) = recovery.pending.first() else { return Ok(()) };
    let holding = holding(plan, &pipeline.program, &mut *pipeline.sinks.lock().await).await?;
    if holding.is_empty() {
        tracing::warn!(
            batch = plan.number,
            "no sink holds the batch: it is planned anew, on the state after the reset"
        );
        recovery.forget_pending();
        return Ok(());
    }
    let error = Error::user("a batch in hand was planned on window state that does not fit any more");
    let cause = format!("{} hold a part of it, and the rest cannot be made without that state", holding.join(", "));
    Err(error.at(format!("batch {}", plan.number)).cause(cause).hint(FINISH_FIRST))
}

const FINISH_FIRST: &str = "the batch may be half written: start once with the files, the environment and the version \
                            of poundlock that planned it, then change them";

/// The sinks that hold a part of a batch, and those that may: a table that was on then and is off now cannot be asked.
async fn holding(plan: &Plan, program: &Program, sinks: &mut Sinks) -> Result<Vec<String>> {
    let mut holding = sinks.holding(plan.number).await?;
    holding.extend(unasked(plan, program).into_iter().map(|table| format!("{table} (off, so it cannot be asked)")));
    Ok(holding)
}

/// Tables that the batch was to be written to and that are off now, but for those that others depend on: a database is
/// whole only with its dead letters, and files of a batch that is committed without them would count.
fn unasked(plan: &Plan, program: &Program) -> BTreeSet<String> {
    let before = plan.off.as_ref();
    let off = program.off.iter().filter(|table| before.is_some_and(|before| !before.contains(*table)));
    let can_be_left_out = |table: &&String| {
        let definition = program.tables.get(*table);
        let alone = definition.is_some_and(|table| !table.is_dead_letters() && !is_lake(table));
        alone && program.targets.contains(*table)
    };
    off.filter(can_be_left_out).cloned().collect()
}

fn limits_are_lower(plan: &Plan, settings: &Settings) -> bool {
    plan.limits.is_some_and(|planned| {
        settings.max_rows_per_batch < planned.max_rows_per_batch
            || settings.max_bytes_per_batch < planned.max_bytes_per_batch
    })
}

/// The tables that were on when the batch was planned and are off now, or the other way round; and the sources that nobody
/// reads any more, for what read them is off.
fn switched(plan: &Plan, program: &Program) -> BTreeSet<String> {
    let switched = plan.off.iter().flat_map(|off| off.symmetric_difference(&program.off)).cloned();
    let is_read = |name: &String| program.sources.iter().any(|source| source.table.name == *name);
    let took_rows = plan.sources.iter().filter(|(_, of)| of.ranges.values().any(|range| range.from != range.to));
    let unread = took_rows.map(|(name, _)| name.clone()).filter(|name| !is_read(name));
    switched.chain(unread).collect()
}

/// A table that is off is simply not written to. But a sink that has a batch takes no rows of another table for it, and the
/// rows of a source that is off would come again when it is on.
fn same_tables(plan: &Plan, program: &Program, holding: &[String]) -> Result<()> {
    let switched: Vec<String> = (&switched(plan, program) - &unasked(plan, program)).into_iter().collect();
    if switched.is_empty() {
        return Ok(());
    }
    let error = format!("table {} was turned on or off in the middle of a batch", switched.join(", "));
    Err(Error::user(error)
        .at(format!("batch {}", plan.number))
        .cause(format!("the batch was planned with it otherwise, and {} hold a part of it", holding.join(", ")))
        .hint("start once with the addresses as they were, which finishes the batch; then turn it on or off"))
}

async fn plan_stored(stored: &Bytes, settings: &Settings, lookup: Lookup<'_>) -> Result<Program> {
    let damaged = |e: serde_json::Error| Error::external("a stored program cannot be read").cause(e);
    let texts: Vec<(String, String)> = serde_json::from_slice(stored).map_err(damaged)?;
    let files = Files::from_stored(texts, lookup);
    let script = crate::sql::parse(&files);
    let own = settings::resolve(&BTreeMap::new(), lookup, &files, &script.statements);
    let (name, checkpoint) = (settings.name.clone(), settings.checkpoint.clone());
    Program::plan(files, script, own.map(|own| Settings { name, checkpoint, ..own })).await
}
