//! From a program and its checkpoint to a pipeline that stands where the last one stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::dimension::Dimension;
use super::run::Runner;
use super::watermark::Watermark;
use super::write::Sinks;
use crate::checkpoint::record::{PartitionCommit, SourceCommit};
use crate::checkpoint::{Blob, Checkpoint, Commit, Recovery};
use crate::connector::{self, Source};
use crate::sql::settings::{self, Settings};
use crate::sql::substitute::Lookup;
use crate::sql::{Files, Program};
use crate::state::{PaneStore, image};
use crate::{Error, Result};

/// µs since 1970, UTC.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A pipeline between two batches.
pub struct Pipeline {
    pub(super) program: Arc<Program>,
    pub(super) checkpoint: Checkpoint,
    pub(super) runner: Runner,
    pub(super) sinks: Arc<tokio::sync::Mutex<Sinks>>,
    pub(super) sources: BTreeMap<String, Box<dyn Source>>,
    pub(super) watermarks: BTreeMap<String, Watermark>,
    pub(super) dimensions: Vec<Dimension>,
    /// The next offset of every partition, by source: what the last batch that ran ended with.
    pub(super) positions: BTreeMap<String, BTreeMap<i32, i64>>,
    /// Sources of earlier programs, kept in every commit: when they come back, they go on where they were.
    pub(super) absent: BTreeMap<String, SourceCommit>,
    /// The number of the next batch.
    pub(super) next: u64,
    /// Blob of the program's stored text.
    pub(super) text: String,
    pub(super) started: Instant,
    pub(super) since_snapshot: u64,
}

impl Pipeline {
    /// Opens everything and finishes what an earlier run has planned but not committed.
    ///
    /// # Errors
    /// A server, table or topic is missing; the checkpoint is damaged or another's; the SQL has changed so that window
    /// state cannot be kept (`reset_state` goes on without it); another process runs the pipeline.
    pub async fn open(program: Program, reset_state: bool, lookup: Lookup<'_>) -> Result<Self> {
        let started = Instant::now();
        let program = Arc::new(program);
        let settings = &program.settings;
        let checkpoint = Checkpoint::open(&settings.checkpoint, settings.name()?).await?;
        let mut recovery = checkpoint.recover().await?;
        let text = stored_text(&program.files)?;
        let text = checkpoint.put_blob(Blob::Program, text).await?;
        // Before our own sinks are opened: two writers of one name would fence each other.
        finish_old(&mut recovery, &text, &checkpoint, settings, lookup).await?;
        let sinks = open_sinks(&program, &checkpoint).await?;
        fits(&sinks, &recovery)?;
        let mut pipeline = Self::assemble(program, &checkpoint, &recovery, sinks, text, started).await?;
        pipeline.restore(&recovery, reset_state && recovery.pending.is_empty()).await?;
        for plan in &recovery.pending {
            pipeline.replay(plan).await?;
        }
        if reset_state && pipeline.next > 0 {
            pipeline.reset().await?;
        }
        Ok(pipeline)
    }

    async fn assemble(
        program: Arc<Program>,
        checkpoint: &Checkpoint,
        recovery: &Recovery,
        sinks: Sinks,
        text: String,
        started: Instant,
    ) -> Result<Self> {
        let (now, last) = (now(), recovery.last.as_ref());
        if let Some(last) = last {
            same_topics(&program, last)?;
        }
        let name = program.settings.name()?.to_string();
        let share = program.settings.buffer / program.sources.len().max(1);
        let opens = program.sources.iter().map(async |source| {
            let table = connector::source(&source.table)?;
            let commit = last.and_then(|last| last.sources.get(&source.table.name));
            let committed = commit.into_iter().flat_map(|c| &c.ranges).map(|(partition, range)| (*partition, range.to));
            let mut from: BTreeMap<i32, i64> = committed.collect();
            // A partition that no commit knows begins where the plan that is to be replayed does.
            let planned = recovery.pending.first().and_then(|plan| plan.sources.get(&source.table.name));
            for (partition, range) in planned.iter().flat_map(|planned| &planned.ranges) {
                from.entry(*partition).or_insert(range.from);
            }
            let opened = table.open(&name, &from, share).await?;
            let watermark = Watermark::new(source.watermark.clone(), commit, now);
            Ok::<_, Error>((source.table.name.clone(), opened, watermark, from))
        });
        let (mut sources, mut watermarks) = (BTreeMap::new(), BTreeMap::new());
        let mut positions = BTreeMap::new();
        for (table, source, watermark, from) in futures::future::try_join_all(opens).await? {
            positions.insert(table.clone(), from);
            sources.insert(table.clone(), source);
            watermarks.insert(table, watermark);
        }
        let mut absent = last.map(|last| last.sources.clone()).unwrap_or_default();
        absent.retain(|name, _| !sources.contains_key(name));
        for partition in absent.values_mut().flat_map(|source| source.partitions.values_mut()) {
            let (max_event_time, idle) = (partition.max_event_time, partition.idle);
            *partition = PartitionCommit { max_event_time, idle, ..PartitionCommit::default() };
        }
        for range in absent.values_mut().flat_map(|source| source.ranges.values_mut()) {
            range.from = range.to;
        }
        let mut dimensions = Vec::new();
        for spec in &program.dimensions {
            dimensions.push(Dimension::open(spec.clone()).await?);
        }
        Ok(Self {
            runner: Runner::new(Arc::clone(&program), vec![]),
            program,
            checkpoint: checkpoint.clone(),
            sinks: Arc::new(tokio::sync::Mutex::new(sinks)),
            sources,
            watermarks,
            dimensions,
            positions,
            absent,
            next: last.map_or(0, |last| last.number + 1),
            text,
            started,
            since_snapshot: 0,
        })
    }

    /// Brings the window state back: the snapshot, then the deltas since.
    async fn restore(&mut self, recovery: &Recovery, reset_state: bool) -> Result<()> {
        let compact_at = self.program.settings.state_compaction;
        let definitions = self.program.windows.stores.iter();
        let mut stores: Vec<PaneStore> =
            definitions.map(|definition| PaneStore::new(Arc::clone(definition), compact_at)).collect();
        if recovery.last.is_some() && !reset_state {
            let images = recovery.snapshot.iter().map(|(_, image)| (image, true));
            let images = images.chain(recovery.deltas.iter().map(|(_, delta)| (delta, false)));
            let state = self.program.state();
            let keys: Vec<String> = stores.iter().map(|store| store.definition().key()).collect();
            for (bytes, snapshot) in images {
                let mut sections = image::read(bytes)?;
                self.same_views(&keys, &sections.keys().cloned().collect(), &stores)?;
                for (store, key) in stores.iter_mut().zip(&keys) {
                    let Some(states) = sections.remove(key) else { continue };
                    match snapshot {
                        // One entry of a list a batch: the lists are as long as they were.
                        true => states.iter().try_for_each(|batch| store.restore(std::slice::from_ref(batch)))?,
                        false if states.is_empty() => {}
                        false => {
                            let watermark = self.watermarks.get(&store.definition().source).and_then(Watermark::value);
                            store.restored(&states, watermark.unwrap_or(i64::MIN), &state).await?;
                        }
                    }
                }
            }
            for store in &mut stores {
                let watermark = self.watermarks.get(&store.definition().source).and_then(Watermark::value);
                store.evict(watermark.unwrap_or(i64::MIN));
            }
        }
        self.runner = Runner::new(Arc::clone(&self.program), stores);
        self.since_snapshot = recovery.deltas.len() as u64;
        Ok(())
    }

    /// Forgets the window state, durably.
    async fn reset(&mut self) -> Result<()> {
        let compact_at = self.program.settings.state_compaction;
        let empty = |definition: &Arc<_>| PaneStore::new(Arc::clone(definition), compact_at);
        self.runner = Runner::new(Arc::clone(&self.program), self.program.windows.stores.iter().map(empty).collect());
        let image = self.image()?;
        self.checkpoint.snapshot(self.next - 1, image).await?;
        tracing::warn!("window state was reset: windows that were open begin anew, and count only what comes now");
        Ok(())
    }

    fn same_views(&self, wanted: &[String], stored: &BTreeSet<String>, stores: &[PaneStore]) -> Result<()> {
        let changed = wanted.iter().zip(stores).enumerate().filter(|(_, (key, _))| !stored.contains(*key));
        let names: Vec<&str> = changed.flat_map(|(number, _)| self.views_of(number)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let error =
            format!("the SQL of windowed view {} has changed, so its kept state does not fit", names.join(", "));
        Err(Error::user(error)
            .cause("the aggregate, its keys, its input, the windows' size, or the version of DataFusion is another")
            .hint("change it back, or start with --reset-state: windows that are open now begin anew"))
    }

    fn views_of(&self, store: usize) -> impl Iterator<Item = &str> {
        self.program.windows.views.iter().filter(move |view| view.store == store).map(|view| view.name.as_str())
    }
}

async fn open_sinks(program: &Program, checkpoint: &Checkpoint) -> Result<Sinks> {
    let sinks = connector::sinks(&program.written())?;
    Sinks::open(sinks, checkpoint.identity(), program.dead_letters.clone(), program.inserts.len()).await
}

/// Settles plans of an earlier program that are not committed: they are finished under their own text if any sink holds
/// a part of them, else they are forgotten and planned anew.
async fn finish_old(
    recovery: &mut Recovery,
    text: &str,
    checkpoint: &Checkpoint,
    settings: &Settings,
    lookup: Lookup<'_>,
) -> Result<()> {
    let Some(plan) = recovery.pending.first().filter(|plan| plan.program != text).cloned() else { return Ok(()) };
    let old = checkpoint.get_blob(Blob::Program, &plan.program).await?;
    let program = plan_stored(&old, settings, lookup).await.map_err(|error| {
        let hint = "the batch may be half written: start once with the old files and environment, then change them";
        error.at(format!("batch {}, planned under the SQL before its change", plan.number)).hint(hint)
    })?;
    let mut sinks = open_sinks(&program, checkpoint).await?;
    fits(&sinks, recovery)?;
    let holding = sinks.holding(plan.number).await?;
    if holding.is_empty() {
        tracing::warn!(batch = plan.number, "the SQL has changed and no sink holds the batch: it is planned anew");
        recovery.pending.clear();
        return Ok(());
    }
    tracing::warn!(batch = plan.number, "finishing the batch under the SQL it was planned with: {holding:?} hold it");
    let (program, name) = (Arc::new(program), plan.program.clone());
    let mut old = Pipeline::assemble(program, checkpoint, recovery, sinks, name.clone(), Instant::now()).await?;
    old.restore(recovery, false).await?;
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

/// Offsets mean something only in the topic they are of.
fn same_topics(program: &Program, last: &Commit) -> Result<()> {
    let hint = "put it back, or start anew under another poundlock.name";
    for source in &program.sources {
        let (name, location) = (&source.table.name, &source.table.location);
        match last.sources.get(name) {
            Some(commit) if commit.location != *location => {
                let error =
                    format!("table {name} reads {location:?}, the checkpoint has offsets of {:?}", commit.location);
                return Err(Error::user(error).at(source.table.place.clone()).hint(hint));
            }
            Some(_) => {}
            None => {
                let renamed = last.sources.iter().find(|(_, commit)| commit.location == *location);
                if let Some((old, _)) = renamed.filter(|(old, _)| !program.tables.contains_key(*old)) {
                    let error = format!("table {name} reads {location:?}, which the checkpoint knows as table {old}");
                    return Err(Error::user(error).at(source.table.place.clone()).hint(hint));
                }
            }
        }
    }
    Ok(())
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

fn stored_text(files: &Files) -> Result<Bytes> {
    let text = serde_json::to_vec(&files.stored()).map_err(|e| Error::internal("program text").cause(e))?;
    Ok(text.into())
}

/// A sink that knows of batches this checkpoint does not, or has lost some, is another's or was set back.
fn fits(sinks: &Sinks, recovery: &Recovery) -> Result<()> {
    let last = recovery.last.as_ref().map(|last| last.number);
    let planned = recovery.pending.last().map(|plan| plan.number).or(last);
    for (name, newest, records, tables) in sinks.newest() {
        if newest > planned {
            let error = format!("sink {name} has batch {newest:?}, the checkpoint only {planned:?}");
            let hint = "the checkpoint was set back or lost; restore it, or give the pipeline a new poundlock.name";
            return Err(Error::user(error).hint(hint));
        }
        let written_before = recovery
            .last
            .as_ref()
            .is_some_and(|last| last.inserts.values().any(|insert| tables.contains(&insert.table)));
        if records && written_before && newest < last {
            let error = format!("sink {name} has only batch {newest:?}, the checkpoint has committed {last:?}");
            let hint = "rows of committed batches are missing there; restore the database, or take another checkpoint";
            return Err(Error::user(error).hint(hint));
        }
    }
    Ok(())
}
