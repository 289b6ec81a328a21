//! From a program and its checkpoint to a pipeline that stands where the last one stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backoff::retry_at_start;
use super::dimension::Dimension;
use super::outbox::adopt::take_up;
use super::outbox::deliver::{Opening, Prepare};
use super::outbox::{Outbox, Outboxes};
use super::pending::{finish_old, forget_unfit, plan_anew};
use super::read_back::ReadBack;
use super::records::Archive;
use super::restore::ResetState;
use super::run::Runner;
use super::watermark::Watermark;
use super::write::{Sinks, Targets};
use crate::checkpoint::record::{PartitionCommit, SourceCommit};
use crate::checkpoint::{Blob, Checkpoint, Recovery};
use crate::connector::{self, Delivery, Identity, Sink, Source};
use crate::sql::substitute::Lookup;
use crate::sql::{Files, Program};
use crate::{Error, Result};

/// µs since 1970, UTC.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What a start is told of what it may find.
#[derive(Debug, Clone, Copy, Default)]
pub struct Begin {
    /// Goes on without window state that does not fit.
    pub reset: Option<ResetState>,
    /// See [`crate::connector::Identity::takes_over`].
    pub take_over: bool,
}

/// A pipeline between two batches.
pub struct Pipeline {
    pub(super) program: Arc<Program>,
    pub(super) checkpoint: Checkpoint,
    pub(super) runner: Runner,
    pub(super) sinks: Arc<tokio::sync::Mutex<Sinks>>,
    pub(super) outboxes: Outboxes,
    /// What delivers to the sinks with an outbox; ends with the pipeline.
    pub(super) deliveries: JoinSet<()>,
    pub(super) sources: BTreeMap<String, Box<dyn Source>>,
    pub(super) watermarks: BTreeMap<String, Watermark>,
    pub(super) dimensions: Vec<Dimension>,
    pub(super) read_back: Vec<ReadBack>,
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
    /// Whether to wait for a checkpoint that is away.
    pub(super) stop: CancellationToken,
}

impl Pipeline {
    /// Opens everything and finishes what an earlier run has planned but not committed. `prepare` makes systems ready for
    /// tables of this program, when nothing is left that is to be written under another; sinks with an outbox in the background.
    ///
    /// # Errors
    /// What `prepare` says.
    /// A server, table or topic is missing; the checkpoint is damaged or another's; the SQL has changed so that window
    /// state cannot be kept; another process runs the pipeline.
    pub async fn open(program: Program, begin: Begin, lookup: Lookup<'_>, prepare: Prepare) -> Result<Self> {
        let started = Instant::now();
        let program = Arc::new(program);
        let settings = &program.settings;
        let name = settings.name()?;
        let open = async || Checkpoint::open(&settings.checkpoint, name).await;
        let checkpoint = retry_at_start("checkpoint", "open the checkpoint", open).await?;
        let recover = async || checkpoint.recover().await;
        let mut recovery = retry_at_start("checkpoint", "read the checkpoint", recover).await?;
        let newest = recovery.newest();
        let text = stored_text(&program.files)?;
        let keep = async || checkpoint.put_blob(Blob::Program, text.clone()).await;
        let text = retry_at_start("checkpoint", "keep the text of the program", keep).await?;
        // Before our own sinks are opened: two writers of one name would fence each other.
        finish_old(&mut recovery, &text, &checkpoint, &program, begin.take_over, lookup).await?;
        let mut required = program.written();
        required.retain(|table| table.delivery() == Delivery::Required);
        retry_at_start("migrations", "apply the migrations", async || prepare(required.clone()).await).await?;
        let (mut sinks, behind) = open_sinks(&program, &checkpoint, begin.take_over).await?;
        if checkpoint.has_moved_on(&recovery, newest.max(recovery.newest())).await? {
            recovery = checkpoint.recover().await?;
            if let Some(plan) = recovery.pending.iter().find(|plan| plan.program != text) {
                let error = "another process has planned a batch under other SQL while this one started";
                let error = Error::external(error).at(format!("batch {}, epoch {}", plan.number, plan.epoch));
                return Err(error.hint("start again: that process is fenced now"));
            }
        }
        fits(&sinks, &recovery)?;
        take_up(&mut sinks, &checkpoint, &recovery).await?;
        plan_anew(&mut recovery, &mut sinks, &program).await?;
        let mut pipeline = Self::assemble(program, &checkpoint, &recovery, sinks, text, started).await?;
        // A batch in hand was planned on the state that is kept, and is finished on it.
        let forgets = begin.reset.map(|which| if recovery.pending.is_empty() { which } else { ResetState::Changed });
        let unfit = pipeline.restore(&recovery, forgets).await?;
        if !unfit.is_empty() {
            forget_unfit(&mut recovery, &pipeline).await?;
        }
        pipeline.deliver(behind, &recovery, begin.take_over, &prepare).await?;
        for plan in &recovery.pending {
            pipeline.replay(plan).await?;
        }
        if let Some(which) = begin.reset {
            pipeline.reset(which, unfit).await?;
        }
        Ok(pipeline)
    }

    pub(super) async fn assemble(
        program: Arc<Program>,
        checkpoint: &Checkpoint,
        recovery: &Recovery,
        sinks: Sinks,
        text: String,
        started: Instant,
    ) -> Result<Self> {
        let (now, last) = (now(), recovery.last.as_ref());
        same_topics(&program, recovery)?;
        let name = program.settings.name()?.to_string();
        let share = program.settings.buffer / program.sources.len().max(1);
        let opens = program.sources.iter().map(async |source| {
            let mut table = connector::source(&source.table)?;
            table.keep_in(checkpoint.kept());
            let commit = last.and_then(|last| last.sources.get(&source.table.name));
            let committed = commit.into_iter().flat_map(|c| &c.ranges).map(|(partition, range)| (*partition, range.to));
            let mut from: BTreeMap<i32, i64> = committed.collect();
            // A partition that no commit knows begins where the plan does that is to be replayed, or was forgotten.
            let planned = recovery.pending.first().or(recovery.forgotten.as_ref());
            let planned = planned.and_then(|plan| plan.sources.get(&source.table.name));
            // `same_topics` has looked at the pending one; a forgotten one may be of another topic.
            let planned = planned.filter(|p| p.location.is_empty() || p.location == source.table.location);
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
        for source in absent.values_mut() {
            source.lost = 0;
            source.losses.clear();
        }
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
            outboxes: sinks.outboxes().clone(),
            deliveries: JoinSet::new(),
            runner: Runner::new(Arc::clone(&program), vec![]),
            checkpoint: checkpoint.clone(),
            sinks: Arc::new(tokio::sync::Mutex::new(sinks)),
            sources,
            watermarks,
            read_back: program.read_back.iter().cloned().map(ReadBack::new).collect(),
            dimensions,
            positions,
            absent,
            next: last.map_or(0, |last| last.number + 1),
            text,
            program,
            started,
            since_snapshot: 0,
            stop: CancellationToken::new(),
        })
    }
}

/// The sinks with an outbox, which are opened when they are delivered to.
pub(super) type Behind = Vec<(Outbox, Box<dyn Sink>)>;

pub(super) async fn open_sinks(
    program: &Program,
    checkpoint: &Checkpoint,
    takes_over: bool,
) -> Result<(Sinks, Behind)> {
    let written = program.written();
    let limit = program.settings.outbox as u64;
    let (refused, mut sinks, mut behind) = (Arc::default(), vec![], vec![]);
    for mut sink in connector::sinks(&written)? {
        sink.keep_in(checkpoint.kept());
        if connector::delivery(sink.as_ref(), &written) == Delivery::Required {
            sinks.push(sink);
            continue;
        }
        let own = sink.tables();
        let tables = written.iter().filter(|table| own.contains(&table.name)).cloned();
        let outbox = Outbox::new(sink.name(), tables, limit, checkpoint, &refused);
        sinks.push(Box::new(outbox.handing_over(sink.guarantee())));
        behind.push((outbox, sink));
    }
    let outboxes = Outboxes::new(behind.iter().map(|(outbox, _)| outbox.clone()).collect(), refused);
    let identity = Identity { takes_over, ..checkpoint.identity().clone() };
    let dead_letters = program.dead_letters.clone();
    // Only for a column that somebody wants.
    let wanted = dead_letters.as_ref().is_some_and(|table| table.schema.index_of("raw").is_ok());
    let sources = program.sources.iter().map(|source| &source.table).filter(|_| wanted);
    let archive = Archive::new(&identity.name, sources);
    let targets = Targets { sinks, outboxes, written, dead_letters, inserts: program.numbers, archive };
    Ok((Sinks::open(targets, &identity).await?, behind))
}

impl Pipeline {
    /// From now on what waits in an outbox is delivered, and what a batch adds when it is committed.
    async fn deliver(
        &mut self,
        behind: Behind,
        recovery: &Recovery,
        takes_over: bool,
        prepare: &Prepare,
    ) -> Result<()> {
        if behind.is_empty() {
            return Ok(());
        }
        let told = self.checkpoint.status().await?;
        for (outbox, sink) in behind {
            let own = sink.tables();
            let last = recovery.last.as_ref();
            // It had no outbox then, so it has the batch.
            let required =
                last.filter(|last| last.inserts.values().any(|of| own.contains(&of.table) && of.outbox.is_none()));
            let delivered = told.iter().flat_map(|told| &told.sinks).find(|told| told.name == outbox.name());
            let delivered = delivered.and_then(|told| told.outbox.as_ref()?.delivered);
            let opening = Opening {
                identity: Identity { takes_over, ..self.checkpoint.identity().clone() },
                prepare: Arc::clone(prepare),
                at_least: required.map(|last| last.number).or(delivered),
            };
            self.deliveries.spawn(outbox.deliver(sink, opening));
        }
        Ok(())
    }
}

/// Offsets mean something only in the topic they are of.
fn same_topics(program: &Program, recovery: &Recovery) -> Result<()> {
    let hint = "put it back, or start anew under another poundlock.name, with tables of its own: all is read again";
    let committed = recovery.last.iter().flat_map(|last| &last.sources).map(|(name, of)| (name, &of.location));
    let planned = recovery.pending.iter().flat_map(|plan| &plan.sources).map(|(name, of)| (name, &of.location));
    // Empty: of a version that did not note it.
    let known: BTreeSet<(&String, &String)> = committed.chain(planned).filter(|(_, of)| !of.is_empty()).collect();
    for source in &program.sources {
        let (name, location) = (&source.table.name, &source.table.location);
        let place = || source.table.place.clone();
        if let Some((_, other)) = known.iter().find(|(known, of)| *known == name && *of != location) {
            let error = format!("table {name} reads topic {location:?}, the checkpoint has offsets of {other:?}");
            return Err(Error::user(error).at(place()).hint(hint));
        }
        let is_new = known.iter().all(|(known, _)| *known != name);
        let renamed = known.iter().find(|(old, of)| *of == location && !program.tables.contains_key(*old));
        if let Some((old, _)) = renamed.filter(|_| is_new) {
            let error = format!("table {name} reads topic {location:?}, which the checkpoint knows as table {old}");
            return Err(Error::user(error).at(place()).hint(hint));
        }
    }
    Ok(())
}

fn stored_text(files: &Files) -> Result<Bytes> {
    let text = serde_json::to_vec(&files.stored()).map_err(|e| Error::internal("program text").cause(e))?;
    Ok(text.into())
}

/// A sink that knows of batches this checkpoint does not, or has lost some, is another's or was set back.
pub(super) fn fits(sinks: &Sinks, recovery: &Recovery) -> Result<()> {
    let last = recovery.last.as_ref().map(|last| last.number);
    let planned = recovery.pending.last().map(|plan| plan.number).or(last);
    for (name, newest, records, tables) in sinks.newest() {
        if newest > planned {
            let has = planned.map_or("has none".into(), |planned| format!("only has batch {planned}"));
            let error = format!("sink {name} has batch {}, the checkpoint {has}", newest.unwrap_or_default());
            let hint = "the checkpoint was set back or lost: restore it. To begin anew, give the pipeline a new poundlock.name, and tables of \
                        its own: all is read again";
            return Err(Error::user(error).hint(hint));
        }
        let written_before = recovery
            .last
            .as_ref()
            // A batch without rows leaves no record of what was delivered from an outbox.
            .is_some_and(|last| last.inserts.values().any(|of| tables.contains(&of.table) && of.outbox.is_none()));
        if records && written_before && newest < last {
            let error = format!("sink {name} has only batch {newest:?}, the checkpoint has committed {last:?}");
            let hint = "rows of committed batches are missing there; restore the database, or take another checkpoint";
            return Err(Error::user(error).hint(hint));
        }
    }
    Ok(())
}
