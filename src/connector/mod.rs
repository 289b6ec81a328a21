//! The systems that rows come from and go to: one folder each, and the contracts they keep.
//!
//! ```text
//! Source ──▶ Cut (chunks of decoded rows, exact offset ranges) ──▶ SQL ──▶ rows of every INSERT ──▶ Sink
//! ```
//!
//! A connector knows nothing of the loop that drives it. A [`Sink`] stands for one *system* (one database, one Kafka
//! cluster, one lake): it gets the rows of all INSERTs into its tables at once, so that it can take them together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

pub mod options;

pub mod registry;

pub mod kafka;

pub mod database;

pub mod parquet;

pub mod delta;

pub mod elasticsearch;

pub mod file;

pub mod memory;

pub mod kept;

pub mod background;

pub mod http;

pub use kept::Kept;
pub use options::{OptionDoc, OptionReader, redact};
pub use registry::{
    bounded, check, delivery, is_keyed, is_lake, is_read_back, is_readable, primary, raw_source, sinks, source,
};

/// A `CREATE [UNBOUNDED] EXTERNAL TABLE` of the user's files, after substitution of `${…}`.
#[derive(Debug, Clone)]
pub struct TableDefinition {
    /// `schema.table` as SQL resolves it (lower case unless quoted); the schema is `public` where none is given.
    pub name: String,
    /// The declared columns in order. TIMESTAMP is µs without zone, TIMESTAMPTZ µs "UTC", VARCHAR is Utf8View,
    /// BYTEA is Binary.
    pub schema: SchemaRef,
    /// Column names of `PRIMARY KEY (…)`; empty where none is declared.
    pub primary_key: Vec<String>,
    pub unbounded: bool,
    /// Upper case: KAFKA, DATABASE, PARQUET, DELTA, ELASTICSEARCH, CSV, JSON.
    pub stored_as: String,
    /// May hold a secret (a password in a URL): print it only through [`redact`].
    pub location: String,
    /// `PARTITIONED BY (…)`, in order.
    pub partition_columns: Vec<String>,
    /// May hold secrets. Lower-case keys.
    pub options: BTreeMap<String, String>,
    /// `file:line:column` of the statement.
    pub place: String,
}

/// Whether a batch waits for a sink, or its rows wait for the sink: `'delivery'`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// A batch is committed when the sink has it.
    Required,
    /// A batch is committed when its rows are in the checkpoint; they are delivered in the background.
    Outbox,
}

impl TableDefinition {
    pub fn delivery(&self) -> Delivery {
        match self.options.get("delivery").map(String::as_str) {
            Some("outbox") => Delivery::Outbox,
            _ => Delivery::Required,
        }
    }

    /// Whether it takes what the engine itself has to refuse: `'role' 'dead_letters'`.
    pub fn is_dead_letters(&self) -> bool {
        self.options.get("role").is_some_and(|role| role.eq_ignore_ascii_case("dead_letters"))
    }
}

/// Who writes: in every file name, marker and batch record, so that nobody else's are taken for ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `poundlock.name`: pipeline, consumer group, transactional.id.
    pub name: String,
    /// Of the checkpoint; made once, never changes.
    pub uuid: Uuid,
    /// Counts the starts of the pipeline; a higher one fences a lower one.
    pub epoch: u64,
    /// Whether it may write where another checkpoint has written by this name (`--take-over`).
    pub takes_over: bool,
}

impl Identity {
    /// Called by a sink in which another checkpoint has written by this name: most often ours is lost, or the wrong one.
    ///
    /// # Errors
    /// It was not told to take over (user).
    pub fn succeed(&self, other: &str, sink: &str) -> Result<()> {
        if self.takes_over {
            tracing::warn!(name = self.name, ours = %self.uuid, other, sink, "taken over from another checkpoint");
            return Ok(());
        }
        let error =
            format!("checkpoint {other} has written to {sink} by the name {:?}, this is {}", self.name, self.uuid);
        Err(Error::user(error).hint(
            "start with the checkpoint of before (--checkpoint, CHECKPOINT_BASE). To begin anew, give --take-over, and move the \
             folders of Parquet tables away: what is read again comes again where no key keeps it single. For a pipeline of its own, choose another poundlock.name",
        ))
    }
}

/// `[from, to)`, as Kafka commits offsets: `to` is the next offset to read. Offsets may be sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetRange {
    pub from: i64,
    pub to: i64,
}

/// Ranges by partition.
pub type Ranges = BTreeMap<i32, OffsetRange>;

/// Decoded rows of one partition, in offset order; never empty.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub partition: i32,
    /// One row per record, in the schema of the table (metadata columns included, where declared).
    pub rows: RecordBatch,
    /// The offset of each row.
    pub offsets: ScalarBuffer<i64>,
    /// Rows whose record did not decode (`_error` is set).
    pub undecodable: usize,
    /// Bytes of payload that these rows came from.
    pub bytes: usize,
}

/// Records that retention removed before they were read (only with `'on_data_loss' 'continue'`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    pub partition: i32,
    /// The offset that was wanted.
    pub from: i64,
    /// The oldest that was there.
    pub to: i64,
    /// At most so many records: offsets may be sparse.
    pub counted: u64,
}

/// What a source hands over for one micro-batch.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// By partition, then offset.
    pub chunks: Vec<Chunk>,
    /// One entry for every partition of the source, empty ranges (`from == to`) included.
    pub ranges: Ranges,
    /// Partitions whose `to` was the end of the log when the cut was made.
    pub at_end: BTreeSet<i32>,
    /// Each is told in one cut.
    pub losses: Vec<Loss>,
}

impl Loss {
    /// Each offset once: a replay finds again what was lost when its batch was planned, and perhaps more.
    pub fn union(losses: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut losses: Vec<Self> = losses.into_iter().collect();
        losses.sort_by_key(|loss| (loss.partition, loss.from, loss.to));
        let mut united: Vec<Self> = Vec::with_capacity(losses.len());
        for loss in losses {
            match united.last_mut().filter(|last| last.partition == loss.partition && last.to >= loss.from) {
                Some(last) if last.to >= loss.to => {}
                Some(last) => {
                    last.counted += loss.counted.min(u64::try_from(loss.to - last.to).unwrap_or(0));
                    last.to = loss.to;
                }
                None => united.push(loss),
            }
        }
        united
    }

    /// The parts before and from an offset.
    pub fn split(self, at: i64) -> (Option<Self>, Option<Self>) {
        let part = |from: i64, to: i64| {
            let counted = self.counted.min(u64::try_from(to - from).unwrap_or(0));
            (from < to).then_some(Self { from, to, counted, ..self })
        };
        (part(self.from, self.to.min(at)), part(self.from.max(at), self.to))
    }
}

/// What [`Source::cut`] should take.
#[derive(Debug, Clone)]
pub enum CutLimit {
    /// What is decoded now, at most so much (at least one chunk if there is one). `rows` and `bytes` may be overshot
    /// by less than one chunk.
    Available { rows: usize, bytes: usize },
    /// Exactly these ranges, waiting until they are read: a replay, or a bounded read. Each `from` must be where the
    /// source stands.
    Exactly(Ranges),
}

/// Where a source begins in partitions that no checkpoint knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartingOffsets {
    Earliest,
    Latest,
    /// The first record whose timestamp is not before this; ms since 1970, UTC.
    Timestamp(i64),
}

/// An unbounded table.
#[async_trait]
pub trait SourceTable: Send + Sync + fmt::Debug {
    fn definition(&self) -> &Arc<TableDefinition>;

    /// Where it may keep what it would else ask again; called before `open`, if there is such a place.
    fn keep_in(&mut self, _kept: Kept) {}

    /// Starts to fetch and decode in the background, from these offsets; if there are none, from the table's own
    /// `starting_offsets`. Partitions that are added later, or that no offset is given for, begin at their first record.
    ///
    /// # Errors
    /// The system cannot be reached in time; the topic does not exist; an offset is not there any more.
    async fn open(&self, name: &str, from: &BTreeMap<i32, i64>, buffer_bytes: usize) -> Result<Box<dyn Source>>;

    /// The first and the next offset of every partition now: a bounded read takes `[first, next)`.
    async fn extent(&self) -> Result<Ranges>;
}

/// A running reader of one unbounded table: fetches and decodes in the background into a buffer of bounded bytes.
///
/// ```text
/// loop {
///     select! { trigger => {}, source.filled(rows, bytes) => {} }
///     let cut = source.cut(&CutLimit::Available { rows, bytes }).await?;
///     …plan, run, write, commit…
///     source.acknowledge(&positions).await?;
/// }
/// ```
#[async_trait]
pub trait Source: Send + Sync {
    /// Returns when at least so much is decoded and waiting, or the reader cannot go on (then `cut` says why).
    async fn filled(&self, rows: usize, bytes: usize);

    /// Takes decoded rows. The ranges of successive cuts are seamless: each begins where the last one ended.
    ///
    /// # Errors
    /// The reader's own error: retention has removed offsets, the topic is gone, authorisation failed. Passing
    /// trouble (a broker away) is no error: the cut is just empty.
    async fn cut(&self, limit: &CutLimit) -> Result<Cut>;

    /// Tells the system how far a committed batch has come (the group's offsets, for lag tools). Not a promise:
    /// the checkpoint is what counts.
    async fn acknowledge(&self, positions: &BTreeMap<i32, i64>) -> Result<()>;

    /// The next offset of every partition when the source was opened.
    fn end_at_start(&self) -> BTreeMap<i32, i64>;

    /// Whether another start would begin elsewhere, for nothing has fixed yet where this one did: `latest`, before the first
    /// batch.
    fn begins_anew(&self) -> bool {
        false
    }

    /// Records between the position of the last cut and the end of the log, as far as known.
    fn lag(&self) -> u64;

    /// For how long the system has not answered; `None` while it does. Cuts are empty meanwhile.
    fn away(&self) -> Option<Duration> {
        None
    }
}

/// The same columns, each of which may be NULL: how rows are handed on, whatever a table declares.
pub fn nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The rows of one INSERT in one batch, in the order that numbers them.
#[derive(Debug, Clone)]
pub struct InsertRows {
    /// Number of the INSERT among all of the files, from 0.
    pub insert: usize,
    pub table: Arc<TableDefinition>,
    /// In the schema of the table (names, order and types; nullability may differ).
    pub rows: Vec<RecordBatch>,
    /// Of the rows in their order, hex (see `pipeline::rows`): a replay of the batch must give the same.
    pub hash: String,
}

impl InsertRows {
    pub fn row_count(&self) -> usize {
        self.rows.iter().map(RecordBatch::num_rows).sum()
    }
}

/// Dead letters go in a second wave, when the refusals of all other tables are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wave {
    Rows,
    DeadLetters,
}

/// All that one sink has to write for one batch in one wave. An INSERT without rows is listed too.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    pub batch: u64,
    pub wave: Wave,
    /// µs since 1970, UTC.
    pub planned_at: i64,
    /// By source table.
    pub offsets: BTreeMap<String, Ranges>,
    pub inserts: Vec<InsertRows>,
}

/// A row that the sink cannot hold, however often it is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub insert: usize,
    /// Position among the INSERT's rows of this batch.
    pub row: usize,
    pub error: String,
}

/// What became of the rows of one INSERT: produced = written + conflict + refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsertReport {
    pub written: u64,
    /// Rows whose key was there already, or came twice in the batch.
    pub conflict: u64,
    pub refused: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteReport {
    /// By number of the INSERT.
    pub inserts: BTreeMap<usize, InsertReport>,
    pub refusals: Vec<Refusal>,
    /// Files made, by table, relative to the table's location (Parquet only).
    pub files: BTreeMap<String, Vec<String>>,
    /// The batch was there already, whole or in part: what was stored of its refusals counts.
    pub already: bool,
    /// The rows wait in an outbox: what becomes of them is not known yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handed_over: bool,
}

/// What a sink promises, printed by `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantee {
    /// "exactly-once" or "at-least-once".
    pub level: &'static str,
    /// By what means, and where it ends.
    pub how: String,
}

/// One system with all the tables of the program that are written to it.
///
/// The same batch number written again leaves the same result, whoever was killed in between: that is the whole
/// contract, and `tests/it/sink_contract.rs` holds every sink to it.
#[async_trait]
pub trait Sink: Send + Sync {
    /// For logs and for `refused/N/<sink>`: short, unique in the program, a file name, no secret.
    fn name(&self) -> &str;

    fn guarantee(&self) -> Guarantee;

    /// Where it may keep what it would else ask again; called before `open`, if there is such a place.
    fn keep_in(&mut self, _kept: Kept) {}

    /// The names of the tables it takes rows of.
    fn tables(&self) -> Vec<String>;

    /// Whether every batch leaves a record here, rows or not: then one that is missing was lost.
    fn records_every_batch(&self) -> bool {
        false
    }

    /// Connects, fences writers of lower epochs, checks that tables and types fit. Returns the newest batch that is in
    /// this sink, where it keeps a record: the newest *whole* one where every batch leaves a record
    /// ([`Sink::records_every_batch`]), for none that is committed may be missing; else the newest of which a part is
    /// in, for none may be newer than what the checkpoint has planned.
    ///
    /// # Errors
    /// A table is missing or does not fit (user); the server does not answer (external, retryable); a higher epoch
    /// is there: *we* are fenced (external, not retryable).
    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>>;

    /// Whether any part of this batch can be seen in the sink.
    async fn holds(&mut self, batch: u64) -> Result<bool>;

    /// Writes the rows; durable when it returns. Called again with the same batch and wave after an error or a
    /// restart. After a retryable error the sink reconnects by itself at the next call.
    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport>;
}

/// A table that can be read to its end: a dimension, ad-hoc SQL.
pub type BoundedTable = Arc<dyn TableProvider>;
