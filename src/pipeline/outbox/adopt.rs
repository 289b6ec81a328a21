//! What a start finds in the outbox: rows of committed batches go to the sink that their tables are in now.
//!
//! ```text
//! of a batch that is not committed     removed: the batch is replayed, or planned anew
//! their tables are in one sink         it gets them: a sink with an outbox in the background, a required one at once
//! off, gone, with other columns        the start refuses: nothing is lost
//! ```
//!
//! So the address of a system may change while rows wait for it, and a table may lose its outbox.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::{self, Entry};
use super::{deliver, lock};
use crate::checkpoint::{Checkpoint, Recovery, Waiting};
use crate::connector::TableDefinition;
use crate::connector::background::blocking;
use crate::pipeline::backoff::retry_at_start;
use crate::pipeline::write::Sinks;
use crate::{Error, Result};

/// A sink of the program.
#[derive(Debug)]
pub struct Target {
    pub name: String,
    pub tables: BTreeMap<String, Arc<TableDefinition>>,
}

/// Gives the sinks what waits for them, and finds what was refused and has no dead letters yet.
///
/// # Errors
/// Rows wait for tables that are not written any more; a required sink does not take what waits for it; the storage.
pub(in crate::pipeline) async fn take_up(
    sinks: &mut Sinks,
    checkpoint: &Checkpoint,
    recovery: &Recovery,
) -> Result<()> {
    let last = recovery.last.as_ref();
    for name in last.iter().flat_map(|last| &last.outbox_refused) {
        checkpoint.remove_outbox_refused(name).await?;
    }
    let waiting = committed(checkpoint, last.map(|last| last.number)).await?;
    let mut refused: BTreeSet<String> = checkpoint.outbox_refused().await?.into_iter().collect();
    // It may have been delivered before its rows were removed: it is told when that is repeated.
    refused.retain(|name| waiting.iter().all(|waiting| waiting.refused_name() != *name));
    for (name, waiting) in assign(checkpoint, waiting, &sinks.targets()).await? {
        if let Some(outbox) = sinks.outboxes().iter().find(|outbox| outbox.name() == name) {
            tracing::info!(sink = name, batches = waiting.len(), "batches wait in the outbox");
            outbox.begin_with(waiting);
            continue;
        }
        tracing::info!(sink = name, batches = waiting.len(), "delivering what waits in the outbox that the sink had");
        for waiting in waiting {
            let tables = sinks.tables().clone();
            let sink = sinks.sink(&name)?;
            let delivered = retry_at_start(&name, "deliver what waits in the outbox", async || {
                let request = deliver::read(checkpoint, &waiting, &tables).await?;
                deliver::put(checkpoint, sink, &waiting, &request).await
            });
            refused.extend(delivered.await?.1);
        }
    }
    *lock(&sinks.outboxes().refused) = refused;
    Ok(())
}

/// Those of committed batches, each as it was committed; others are removed.
async fn committed(checkpoint: &Checkpoint, last: Option<u64>) -> Result<Vec<Waiting>> {
    let mut found: Vec<Waiting> = vec![];
    for waiting in checkpoint.outbox().await? {
        if Some(waiting.of.batch) > last {
            checkpoint.remove_outbox(&waiting).await?;
            continue;
        }
        let same = |other: &&mut Waiting| other.folder == waiting.folder && other.of.batch == waiting.of.batch;
        let Some(other) = found.last_mut().filter(same) else {
            found.push(waiting);
            continue;
        };
        // An older start, which did not know yet that it was fenced, has put one of its own.
        let batch = waiting.of.batch;
        let commit = checkpoint.read_commit(batch).await?.map(|(commit, _)| commit.planned_at);
        let commit = commit.ok_or_else(|| {
            let folder = checkpoint.describe_outbox(&waiting.folder);
            Error::external(format!("batch {batch} is twice in {folder}")).hint("restore the checkpoint from a backup")
        })?;
        let (stays, goes) = match waiting.of.planned_at == commit {
            true => (waiting.clone(), other.clone()),
            false => (other.clone(), waiting),
        };
        *other = stays;
        checkpoint.remove_outbox(&goes).await?;
    }
    Ok(found)
}

/// By sink.
async fn assign(
    checkpoint: &Checkpoint,
    waiting: Vec<Waiting>,
    targets: &[Target],
) -> Result<BTreeMap<String, Vec<Waiting>>> {
    let shapes: Vec<String> = targets.iter().map(|target| entry::shape(target.tables.values())).collect();
    let mut of_sinks: BTreeMap<String, Vec<Waiting>> = BTreeMap::new();
    // By folder and reason: batches and rows.
    let mut stranded: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for waiting in waiting {
        let as_it_was =
            |(target, shape): &(&Target, &String)| target.name == waiting.folder && **shape == waiting.shape;
        let known = targets.iter().zip(&shapes).find(as_it_was).map(|(target, _)| target.name.clone());
        let target = match known {
            Some(name) => Ok(name),
            None => by_tables(checkpoint, &waiting, targets).await?,
        };
        match target {
            Ok(name) => of_sinks.entry(name).or_default().push(waiting),
            Err(why) => {
                let (batches, rows) = stranded.entry((waiting.folder.clone(), why)).or_default();
                (*batches, *rows) = (*batches + 1, *rows + waiting.rows);
            }
        }
    }
    let errors = stranded.into_iter().map(|((folder, why), (batches, rows))| {
        let hint = format!(
            "start once with the files and the environment as they were: `run --until-caught-up` ends when all is delivered. Or move \
             {} away, and give these rows up",
            checkpoint.describe_outbox(&folder)
        );
        Error::user(format!("{batches} batches ({rows} rows) wait in the outbox of sink {folder}, and {why}")).hint(hint)
    });
    Error::all(errors.collect()).map_or(Ok(of_sinks), Err)
}

/// The sink that all its tables are in now; or why there is none.
async fn by_tables(
    checkpoint: &Checkpoint,
    waiting: &Waiting,
    targets: &[Target],
) -> Result<std::result::Result<String, String>> {
    let (entry, payload) = checkpoint.read_outbox::<Entry>(waiting).await?;
    let sections = blocking(move || entry::sections(&payload)).await?;
    let mut sinks = BTreeSet::new();
    for (insert, rows) in entry.inserts.iter().zip(&sections) {
        let Some(first) = rows.first() else { continue };
        let found = targets.iter().find_map(|target| Some((target, target.tables.get(&insert.table)?)));
        let Some((target, table)) = found else {
            return Ok(Err(format!("table {} is off, or not written any more", insert.table)));
        };
        if !entry::is_of(&first.schema(), table) {
            return Ok(Err(format!("table {} has other columns now", insert.table)));
        }
        sinks.insert(target.name.clone());
    }
    Ok(match sinks.len() {
        0 | 1 => sinks.pop_first().ok_or_else(|| "it has no rows".to_string()),
        _ => Err(format!("its tables are in several sinks now: {}", sinks.into_iter().collect::<Vec<_>>().join(", "))),
    })
}
