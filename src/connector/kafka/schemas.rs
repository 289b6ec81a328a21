//! What a source knows of the schemas of its topic, and what it has decided about ids that nobody knows.
//!
//! ```text
//! reader thread: id in a frame ─▶ [settle] ─▶ known (memory, checkpoint, registry) ─▶ into the buffer
//!                                     └─▶ unknown, or not usable ─▶ into the buffer, to become a row with `_error`
//! decoding thread: [Judge] ─▶ the plan of the id, or why there is none ─▶ noted, durable before the rows are seen
//! ```
//!
//! The reader settles an id before a record with it enters the buffer, so nothing behind it ever waits: while the registry
//! is away, records with known schemas go on, and one with a new schema holds the reader back, as brokers that are away do.
//!
//! A schema never changes under its id, so what is kept of one is right for ever. That an id is *not* known, or that its
//! schema cannot be had whole (a reference is missing, there are too many), may change: therefore every record that was refused
//! for it is noted (per partition: up to which offset, and why), and a replay refuses it again with the same words.
//!
//! Failure: a registry that is away is asked again with growing pauses; [`COLD_LIMIT`] long where, since the start, it has not
//! answered and nothing that is kept was of use, else [`AWAY_LIMIT`]. Credentials that are refused, or an answer that is not a
//! registry's, are waited for just so: they come from a gateway, or somebody is changing them. Only while it has never answered
//! they end the source at once, for then the options are wrong. One schema never ends it.

pub mod client;
mod refused;

#[cfg(test)]
pub mod fake;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::datatypes::FieldRef;
use bytes::Bytes;

pub use self::client::registry_urls;

use self::client::{Found, Registry, SchemaText};
use self::refused::{Noted, Refused};
use super::client::{LogRate, OPEN_LIMIT, lock};
use super::options::KafkaTable;
use super::values::{AvroOptions, Format};
use crate::connector::kept::Kept;
use crate::error::reason_text;
use crate::format::avro::{Known, frame_id, known};
use crate::point::point;
use crate::{Error, Result};

/// How long a registry that has not answered since the start is waited for, if nothing that is kept was of use.
const COLD_LIMIT: Duration = OPEN_LIMIT;

/// How long one that has answered, or of which schemas are kept.
const AWAY_LIMIT: Duration = Duration::from_secs(3_600);

/// Between two questions to a registry that is away: doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// An id that the registry does not know is asked for again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// A new id may not have come to every instance of the registry yet: it is asked for again for so long, once in a while.
const LAG_LIMIT: Duration = Duration::from_secs(1);

/// Between two looks at whether to stop.
const SLICE: Duration = Duration::from_millis(20);

/// Schemas of one topic.
const KNOWN_MAX: usize = 10_000;

/// Ids that are noted as refused; more are the work of chance, and the oldest are forgotten.
const UNKNOWN_MAX: usize = 10_000;

/// Fields, and columns, that a warning names.
const NAMES_TOLD: usize = 10;

/// Lines about a registry that is away, of all sources together.
static LINES: LogRate = LogRate::new();

/// Of one source. Shared by its reader and its decoding threads.
#[derive(Debug)]
pub struct Schemas {
    topic: String,
    /// The name of the table: what is kept of two tables of one topic is not mixed.
    table: String,
    columns: Vec<FieldRef>,
    avro: Arc<AvroOptions>,
    registry: Registry,
    kept: Option<Kept>,
    state: Mutex<State>,
    /// Held while what is noted is written, so that an older state is not written over a newer one.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<u32, Arc<Known>>,
    refused: BTreeMap<u32, Refused>,
    /// Refused ids met so far.
    met: u64,
    /// `refused` has more than what is kept.
    dirty: bool,
    /// When an id was last waited for.
    lagged: Option<Instant>,
    /// The registry has answered since the start, or something that is kept of it was of use.
    is_warm: bool,
}

impl Schemas {
    /// `None` where all values are JSON. `columns`: those that values fill.
    ///
    /// # Errors
    /// See [`Schemas::open`].
    pub fn of(table: &KafkaTable, columns: &[FieldRef]) -> Result<Option<Arc<Self>>> {
        let avro = match (table.format, &table.avro) {
            (Format::Json, _) | (_, None) => return Ok(None),
            (_, Some(avro)) => Arc::clone(avro),
        };
        let opened = Self::open(&table.topic, &table.definition.name, columns, avro, table.kept.clone());
        Ok(Some(Arc::new(opened.map_err(|error| error.at(table.definition.place.clone()))?)))
    }

    /// Asks the registry nothing yet.
    ///
    /// # Errors
    /// The file of certificates (user), or what is kept, cannot be read.
    pub fn open(
        topic: &str,
        table: &str,
        columns: &[FieldRef],
        avro: Arc<AvroOptions>,
        kept: Option<Kept>,
    ) -> Result<Self> {
        let mut state = State::default();
        if let Some(bytes) = kept.as_ref().map(|kept| kept.get(&["unknown", table])).transpose()?.flatten() {
            let noted: Noted = serde_json::from_slice(&bytes).map_err(|cause| {
                Error::external(format!("what is kept of the schemas of table {table} is damaged"))
                    .cause(cause)
                    .hint("restore the checkpoint from a backup")
            })?;
            state.refused = noted.refused();
        }
        Ok(Self {
            topic: topic.to_string(),
            table: table.to_string(),
            columns: columns.to_vec(),
            registry: Registry::try_new(&avro.registry)?,
            avro,
            kept,
            state: Mutex::new(state),
            writing: Mutex::new(()),
        })
    }

    /// The id of a record that [`settle`](Self::settle) has to look at first; `None` for nearly all.
    #[inline]
    pub fn unsettled(
        &self,
        payload: Option<&[u8]>,
        partition: i32,
        offset: i64,
        last: &mut Option<u32>,
    ) -> Option<u32> {
        let id = frame_id(payload?)?;
        if *last == Some(id) {
            return None;
        }
        let state = lock(&self.state);
        if state.known.contains_key(&id) {
            *last = Some(id);
            return None;
        }
        let decided = state.refused.get(&id).is_some_and(|refused| {
            refused.last(partition).is_some_and(|until| offset <= until)
                || refused.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN)
        });
        (!decided).then_some(id)
    }

    /// Finds out about an id: afterwards it is known, or refused. Blocks; returns early if told to stop.
    ///
    /// # Errors
    /// See the module's documentation.
    pub fn settle(&self, id: u32, stopping: &dyn Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        let mut pause = PAUSE_FIRST;
        let patient = lock(&self.state).may_lag(id, began);
        while !stopping() {
            match self.find(id) {
                Ok(Found::Schema(text)) => {
                    self.learn(id, &text);
                    return Ok(());
                }
                Ok(Found::Unknown) if patient && began.elapsed() < LAG_LIMIT => {
                    lock(&self.state).is_warm = true;
                    rest(PAUSE_FIRST, stopping);
                }
                Ok(Found::Unknown) => {
                    self.refuse(id, None);
                    return Ok(());
                }
                Ok(Found::Unusable(why)) => {
                    self.refuse(id, Some(why));
                    return Ok(());
                }
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => {
                    let limit = if lock(&self.state).is_warm { AWAY_LIMIT } else { COLD_LIMIT };
                    if began.elapsed() >= limit {
                        return Err(error.hint("nothing is lost: start again when it answers, Kafka holds the records"));
                    }
                    if LINES.admit(&self.topic, Instant::now()).is_some() {
                        tracing::warn!(
                            topic = self.topic,
                            id,
                            registry = self.registry.address(),
                            "reading waits for the schema registry: {}",
                            error.line()
                        );
                    }
                    rest(pause, stopping);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        Ok(())
    }

    /// Its records become rows with `_error` for now; `why`: see [`Found::Unusable`].
    fn refuse(&self, id: u32, why: Option<String>) {
        let mut state = lock(&self.state);
        state.is_warm = true;
        let refused = state.meet(id);
        refused.asked = Some(Instant::now());
        refused.reason = why.map(|why| reason_text(&format!("schema {id} is not usable: {why}")));
        let reason = refused.reason.clone();
        drop(state);
        // Records that only look framed have an id each.
        let Some(held_back) = LINES.admit(&format!("{} unknown", self.topic), Instant::now()) else { return };
        let topic = self.topic.as_str();
        match reason {
            None => {
                tracing::warn!(topic, id, held_back, "a record has a schema id that the registry does not know")
            }
            Some(reason) => {
                tracing::warn!(topic, held_back, "{reason}: its records do not decode, it is asked for again later")
            }
        }
    }

    /// From the checkpoint, else from the registry, and kept then.
    fn find(&self, id: u32) -> Result<Found> {
        let (is_warm, is_full) = {
            let state = lock(&self.state);
            (state.is_warm, state.known.len() >= KNOWN_MAX)
        };
        if is_full {
            return Ok(Found::Unusable(format!("topic {:?} has more than {KNOWN_MAX} schemas", self.topic)));
        }
        let (registry, name) = (self.avro.registry_key(), format!("{id}"));
        let key = ["schemas", registry.as_str(), name.as_str()];
        if let Some(kept) = &self.kept {
            let text = |bytes: Bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string());
            match kept.get(&key) {
                Err(error) if error.is_retryable() => return Err(error),
                found => match found.map_err(|error| error.line()).and_then(|bytes| bytes.map(text).transpose()) {
                    Ok(Some(text)) => return Ok(Found::Schema(text)),
                    Ok(None) => {}
                    Err(why) => {
                        tracing::warn!(topic = self.topic, id, "a kept schema is damaged, it is asked for again: {why}")
                    }
                },
            }
        }
        // See the module's documentation.
        let found = self.registry.schema(id).map_err(|error| if is_warm { error.retryable() } else { error })?;
        if let (Some(kept), Found::Schema(text)) = (&self.kept, &found) {
            let bytes =
                serde_json::to_vec(text).map_err(|error| Error::internal("a schema has no JSON").cause(error))?;
            kept.put(&key, bytes)?;
        }
        Ok(found)
    }

    fn learn(&self, id: u32, text: &SchemaText) {
        let known = match text.kind.as_str() {
            "AVRO" => known(id, &text.schema, &text.references, self.avro.reader.as_ref(), &self.columns),
            other => Err(format!("schema {id} is {other}, not Avro")),
        };
        doubt(&self.topic, id, &known, &self.columns);
        let mut state = lock(&self.state);
        state.is_warm = true;
        state.known.insert(id, Arc::new(known));
    }

    /// What is known of the ids in the records of one partition.
    pub fn judge(&self, partition: i32) -> Judge<'_> {
        Judge { schemas: self, partition, last: None, refused: Err(String::new()) }
    }

    /// Makes durable what was noted. To be called before rows that were refused for an unknown id are seen by anyone.
    ///
    /// # Errors
    /// The checkpoint does not take it.
    pub fn persist(&self) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let _writing = lock(&self.writing);
        let noted = {
            let mut state = lock(&self.state);
            if !std::mem::take(&mut state.dirty) {
                return Ok(());
            }
            Noted::of(&state.refused)
        };
        let bytes =
            serde_json::to_vec(&noted).map_err(|error| Error::internal("what is noted has no JSON").cause(error))?;
        let put = keep_note(kept, &self.table, bytes);
        if put.is_err() {
            lock(&self.state).dirty = true;
        }
        put
    }
}

fn keep_note(kept: &Kept, table: &str, bytes: Vec<u8>) -> Result<()> {
    point!("avro::before_note");
    kept.put(&["unknown", table], bytes)?;
    point!("avro::after_note");
    Ok(())
}

/// What is to be told of a schema once, and not of each of its records only.
fn doubt(topic: &str, id: u32, known: &Known, columns: &[FieldRef]) {
    let plan = match known {
        Err(reason) => return tracing::warn!(topic, "{reason}: its records do not decode"),
        Ok(plan) => plan,
    };
    let reasons: Vec<&String> = plan.roots.iter().filter_map(|root| root.as_ref().err()).collect();
    if let [first, ..] = reasons[..]
        && reasons.len() == plan.roots.len()
    {
        return tracing::warn!(topic, "{first}: its records do not decode");
    }
    if !columns.is_empty() && !plan.fills_a_column() {
        let columns = listed(columns.iter().map(|column| column.name().as_str()));
        let fields = listed(plan.fields.iter().map(String::as_str));
        tracing::warn!(
            topic,
            id,
            record = plan.name,
            "schema {id} has no field of the name of a column, so its rows are NULL in all of them: its fields are {fields}, the columns {columns}"
        );
    }
}

/// The first of some names.
fn listed<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let left = names.len().saturating_sub(NAMES_TOLD);
    let told = names.take(NAMES_TOLD).collect::<Vec<_>>().join(", ");
    match (told.is_empty(), left) {
        (true, _) => "none".into(),
        (false, 0) => told,
        (false, left) => format!("{told} and {left} more"),
    }
}

impl State {
    /// Whether a new id that is not known yet is waited for: not for each of many, which are the work of chance.
    fn may_lag(&mut self, id: u32, now: Instant) -> bool {
        let is_new = !self.refused.contains_key(&id);
        let may = is_new && self.lagged.is_none_or(|at| now.saturating_duration_since(at) >= ASK_AGAIN);
        if may {
            self.lagged = Some(now);
        }
        may
    }

    /// A refused id. For a new one the older half is forgotten where there are too many: never the one that is asked for,
    /// whose note is about to be kept.
    fn meet(&mut self, id: u32) -> &mut Refused {
        if !self.refused.contains_key(&id) && self.refused.len() >= UNKNOWN_MAX {
            let mut numbers: Vec<u64> = self.refused.values().map(|refused| refused.number).collect();
            numbers.sort_unstable();
            let limit = numbers[UNKNOWN_MAX / 2];
            // Those that were kept by an earlier start have no number of their own.
            let mut left = UNKNOWN_MAX / 2;
            self.refused.retain(|_, refused| {
                let stays = refused.number >= limit && left > 0;
                left -= usize::from(stays);
                stays
            });
        }
        let met = &mut self.met;
        self.refused.entry(id).or_insert_with(|| {
            *met += 1;
            Refused { number: *met, ..Refused::default() }
        })
    }
}

/// See [`Schemas::judge`].
pub struct Judge<'s> {
    schemas: &'s Schemas,
    partition: i32,
    /// The id of the record before, what is known of it, and up to which offset it was refused.
    last: Option<(u32, Arc<Known>, i64)>,
    /// Why the record before was.
    refused: Known,
}

impl Judge<'_> {
    /// `None`: the registry does not know the id, or did not when this record was first decoded.
    #[inline]
    pub fn of(&mut self, payload: &[u8], offset: i64) -> Option<&Known> {
        let id = frame_id(payload)?;
        if self.last.as_ref().is_none_or(|(last, _, until)| *last != id || offset <= *until) {
            return self.look(id, offset);
        }
        self.last.as_ref().map(|(_, known, _)| known.as_ref())
    }

    #[cold]
    fn look(&mut self, id: u32, offset: i64) -> Option<&Known> {
        let mut state = lock(&self.schemas.state);
        let until = state.refused.get(&id).and_then(|refused| refused.last(self.partition));
        if let Some(known) = state.known.get(&id).filter(|_| until.is_none_or(|until| offset > until)) {
            let known = Arc::clone(known);
            drop(state);
            let (_, known, _) = self.last.insert((id, known, until.unwrap_or(i64::MIN)));
            return Some(&**known);
        }
        // Noted under the lock under which it becomes known: of one id, no record behind a known one is ever refused.
        let (reason, is_new) = state.meet(id).refuse(self.partition, offset);
        state.dirty |= is_new;
        drop(state);
        self.refused = Err(reason?);
        Some(&self.refused)
    }
}

fn rest(time: Duration, stopping: &dyn Fn() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !stopping() {
        std::thread::sleep(SLICE.min(end.saturating_duration_since(Instant::now())));
    }
}

/// The id of a sink's schema: registered, or found. What was answered once is kept, for a start while the registry is away.
///
/// # Errors
/// See [`Registry::register`].
pub fn sink_id(avro: &AvroOptions, subject: &str, schema: &str, kept: Option<&Kept>) -> Result<u32> {
    let registry = Registry::try_new(&avro.registry)?;
    let hash = blake3::hash(format!("{subject}\n{schema}").as_bytes()).to_hex();
    let own = avro.registry_key();
    let key = ["subjects", own.as_str(), &hash.as_str()[..32]];
    let answer = if avro.registers { registry.register(subject, schema) } else { registry.find(subject, schema) };
    match answer {
        Ok(id) => {
            if let Some(kept) = kept {
                kept.put(&key, id.to_string().into_bytes())?;
            }
            Ok(id)
        }
        Err(error) if error.is_retryable() => {
            let bytes = kept.map(|kept| kept.get(&key)).transpose()?.flatten();
            let id = bytes.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok());
            let Some(id) = id else { return Err(error) };
            tracing::warn!(
                subject,
                id,
                "the schema registry is away, the id it gave before is taken: {}",
                error.line()
            );
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
