//! The rows of one INSERT into one table, inside the batch's transaction.
//!
//! ```text
//! COPY into the table            on_conflict: none, and `nothing` while no key has collided lately
//! COPY into a temporary table,   on_conflict: `update`, and `nothing` where a key collided
//!   INSERT … ON CONFLICT         (`update`: DISTINCT ON first, if a key may be there twice)
//! ```
//!
//! Rows are sent in blocks, each in the order of their key (`order`), but encoded as they came: to read ten columns here
//! and there costs ten cache misses a row, to read its encoded form one. While the server takes a block, the next one is
//! encoded. A refusal names a row by its number in the INSERT.
//!
//! Every attempt is under a savepoint. If the server refuses a row (its type, NOT NULL, CHECK, foreign key, a trigger),
//! the rows are halved until it stands alone; it becomes a refusal and all others are written. Halves are written in
//! the order they are sent in, so that "the first stays" and "the last stays" hold across them too.
//!
//! Failure: what is not a row's fault ends the transaction, and the sink drops the connection.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::{Bytes, BytesMut};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use futures::SinkExt;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};

use super::catalog::{Described, describe};
use super::copy::{HEADER, TRAILER, Target, put_fields, put_head, put_row};
use super::error::{Class, class, failure, is_repetition, is_unique_violation, reason};
use super::order::{BLOCK_ROWS, Place, as_they_came, is_exact, places};
use crate::connector::database::column::Column;
use crate::connector::database::ledger::too_many_refused;
use crate::connector::database::{DatabaseTable, OnConflict, REFUSED_MAX, quoted, quoted_list};
use crate::connector::{InsertReport, InsertRows, Refusal};
use crate::error::reason_text;
use crate::{Error, Result};

/// Bytes handed to the connection at once.
const PIECE: usize = 256 * 1024;

/// Batches that go through the temporary table at once after a key collided: replays and producers that send twice
/// collide in runs, and each failed COPY is work done twice.
const STAGED_BATCHES: u32 = 32;

/// About what a value takes, with its length.
const FIELD_BYTES: usize = 16;

/// Our column of the temporary table: the order the rows are sent in, which of equal keys is that of the INSERT.
const ORDINAL: &str = "poundlock_row";

/// A table on one connection.
pub(super) struct Writer {
    table: DatabaseTable,
    described: Described,
    copy: Statement,
    stage: Option<Stage>,
}

struct Stage {
    copy: Statement,
    /// For `update`: refused by the server if a key is there twice.
    insert: Statement,
    /// For `update`: the last row of each key.
    insert_last: Option<Statement>,
}

/// How rows go in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Direct,
    Staged,
    /// By [`Stage::insert_last`].
    StagedLast,
}

/// What lives as long as the sink, whatever the connection.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// Batches still to be staged, by table.
    staged: BTreeMap<String, u32>,
}

/// What lives as long as the transaction.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Where the ordinals of the next attempt begin: rows of an earlier one stay in the temporary table until the end.
    ordinal: i64,
    buffer: BytesMut,
}

impl Writer {
    /// # Errors
    /// The table does not fit its declaration (user).
    pub async fn prepare(client: &Client, table: &DatabaseTable, number: usize) -> Result<Self> {
        let described = describe(client, table, true).await?;
        let name = &described.name;
        let failed = |e: tokio_postgres::Error| failure(&e, &format!("could not prepare to write to table {name}"));
        let definition = table.definition();
        let names: Vec<&str> = definition.schema.fields().iter().map(|f| f.name().as_str()).collect();
        let columns = quoted_list(names.iter().copied());
        let copy = format!("COPY {name} ({columns}) FROM STDIN (FORMAT binary)");
        let copy = client.prepare(&copy).await.map_err(failed)?;
        let stage = if table.on_conflict() == OnConflict::Refuse {
            None
        } else {
            // Not LIKE: the defaults and NOT NULLs of columns that we do not write would be in the way.
            let temporary = format!("poundlock_stage_{number}");
            let create = format!(
                "CREATE TEMPORARY TABLE {temporary} ON COMMIT DELETE ROWS AS \
                 SELECT 0::bigint AS {ORDINAL}, {columns} FROM {name} WITH NO DATA"
            );
            client.batch_execute(&create).await.map_err(failed)?;
            let copy = format!("COPY pg_temp.{temporary} ({ORDINAL}, {columns}) FROM STDIN (FORMAT binary)");
            let insert = |last| insert_statement(table, &described, &names, &format!("pg_temp.{temporary}"), last);
            let insert_last = match table.on_conflict() {
                OnConflict::Update => Some(client.prepare(&insert(true)).await.map_err(failed)?),
                OnConflict::Nothing | OnConflict::Refuse => None,
            };
            Some(Stage {
                copy: client.prepare(&copy).await.map_err(failed)?,
                insert: client.prepare(&insert(false)).await.map_err(failed)?,
                insert_last,
            })
        };
        Ok(Self { table: table.clone(), described, copy, stage })
    }

    pub fn name(&self) -> &str {
        &self.table.definition().name
    }

    /// Writes the rows; call it between BEGIN and COMMIT.
    ///
    /// # Errors
    /// More refused rows than a batch may have (user); anything that is not a row's fault.
    pub async fn write(
        &self,
        client: &Client,
        insert: &InsertRows,
        habits: &mut Habits,
        progress: &mut Progress,
    ) -> Result<(InsertReport, Vec<Refusal>)> {
        let mut batches = vec![];
        let mut total = 0;
        for batch in &insert.rows {
            let columns: Result<Vec<Column>> = batch.columns().iter().map(Column::new).collect();
            batches.push((total, columns?));
            total += batch.num_rows();
        }
        let habit = habits.staged.entry(self.name().to_string()).or_default();
        let schema = &self.table.definition().schema;
        let key = self.table.definition().primary_key.iter().filter_map(|column| schema.index_of(column).ok());
        let key: Vec<usize> = key.collect();
        let mut way = match self.table.on_conflict() {
            OnConflict::Update if may_repeat(&insert.rows, &key)? => Way::StagedLast,
            OnConflict::Update => Way::Staged,
            OnConflict::Nothing if *habit > 0 => Way::Staged,
            OnConflict::Nothing | OnConflict::Refuse => Way::Direct,
        };
        *habit = habit.saturating_sub(1);
        let key: Vec<usize> = key.into_iter().filter(|column| is_exact(self.described.targets[*column])).collect();
        let targets = self.described.targets.clone();
        let rows =
            Arc::new(Rows { order: places(&batches, total, &key), is_sorted: !key.is_empty(), batches, targets });
        let mut refused: BTreeMap<usize, String> = BTreeMap::new();
        let mut written = 0;
        // Ranges still to be written, the first one last.
        let blocks = (0..total).step_by(BLOCK_ROWS).map(|start| start..total.min(start + BLOCK_ROWS));
        let mut ranges: Vec<Range<usize>> = blocks.rev().collect();
        let mut ahead: Option<Ahead> = None;
        while let Some(range) = ranges.pop() {
            let encoded = if rows.is_sorted {
                let ready = ahead.take_if(|ahead| ahead.range == range);
                Some(ready.unwrap_or_else(|| Ahead::begin(&rows, range.clone())).encoded().await?)
            } else {
                None
            };
            if let (None, true, Some(next)) = (&ahead, rows.is_sorted, ranges.last()) {
                ahead = Some(Ahead::begin(&rows, next.clone()));
            }
            let block = Block { range: range.clone(), encoded };
            let attempt = self.attempt(client, &rows, &block, way, &mut refused, progress).await?;
            if refused.len() > REFUSED_MAX {
                let first = refused.values().next().map_or("", String::as_str);
                return Err(too_many_refused(self.name(), first));
            }
            let Err(error) = attempt.map(|rows| written += rows) else { continue };
            let stage = self.stage.as_ref();
            if way == Way::Direct && stage.is_some() && is_unique_violation(&error) {
                way = Way::Staged;
                habits.staged.insert(self.name().to_string(), STAGED_BATCHES);
                ranges.push(range);
            } else if way == Way::Staged && stage.is_some_and(|s| s.insert_last.is_some()) && is_repetition(&error) {
                // The server takes for equal what we do not: citext, a collation that knows no case.
                way = Way::StagedLast;
                ranges.push(range);
            } else if range.len() == 1 {
                refused.insert(rows.number(range.start), reason(&error));
            } else {
                let middle = range.start + range.len() / 2;
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
        }
        // The last halving may have crossed the limit.
        if refused.len() > REFUSED_MAX {
            let first = refused.values().next().map_or("", String::as_str);
            return Err(too_many_refused(self.name(), first));
        }
        let report = InsertReport {
            written,
            conflict: (total as u64).saturating_sub(written + refused.len() as u64),
            refused: refused.len() as u64,
        };
        let refusals = refused.into_iter();
        let refusals =
            refusals.map(|(row, e)| Refusal { insert: insert.insert, row, error: reason_text(&e) }).collect();
        Ok((report, refusals))
    }

    /// One range under a savepoint. `Ok(Err(_))`: the server refused one of its rows; nothing of the range was written.
    async fn attempt(
        &self,
        client: &Client,
        rows: &Rows,
        block: &Block,
        way: Way,
        refused: &mut BTreeMap<usize, String>,
        progress: &mut Progress,
    ) -> Result<Result<u64, tokio_postgres::Error>> {
        let count = block.range.len();
        let doing = || format!("could not write {count} rows to table {}", self.name());
        client.batch_execute("SAVEPOINT attempt").await.map_err(|e| failure(&e, &doing()))?;
        let written = match self.stage.as_ref().filter(|_| way != Way::Direct) {
            None => self.send(client, &self.copy, rows, block, None, refused, &mut progress.buffer).await,
            Some(stage) => {
                let first = progress.ordinal;
                progress.ordinal += count as i64;
                let sent =
                    self.send(client, &stage.copy, rows, block, Some(first), refused, &mut progress.buffer).await;
                let insert = stage.insert_last.as_ref().filter(|_| way == Way::StagedLast).unwrap_or(&stage.insert);
                match sent {
                    Ok(_) => client.execute(insert, &[&first]).await,
                    error => error,
                }
            }
        };
        match written {
            Ok(written) => {
                client.batch_execute("RELEASE SAVEPOINT attempt").await.map_err(|e| failure(&e, &doing()))?;
                Ok(Ok(written))
            }
            Err(error) if class(&error) == Class::Row => {
                // Released too: else the next one would nest in it, one level for every row that is refused.
                let undo = "ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt";
                client.batch_execute(undo).await.map_err(|e| failure(&e, &doing()))?;
                Ok(Err(error))
            }
            Err(error) => Err(failure(&error, &doing())),
        }
    }

    /// COPY, piece by piece; rows that cannot be encoded go to `refused` instead.
    #[allow(clippy::too_many_arguments)]
    async fn send(
        &self,
        client: &Client,
        copy: &Statement,
        rows: &Rows,
        block: &Block,
        ordinal: Option<i64>,
        refused: &mut BTreeMap<usize, String>,
        buffer: &mut BytesMut,
    ) -> Result<u64, tokio_postgres::Error> {
        let mut sink = pin!(client.copy_in::<Statement, Bytes>(copy).await?);
        buffer.clear();
        buffer.reserve(PIECE + PIECE / 4);
        buffer.extend_from_slice(HEADER);
        let Block { range, encoded } = block;
        if let Some(encoded) = encoded.as_ref().filter(|encoded| encoded.refused.len() > REFUSED_MAX) {
            let name = |column: usize| self.table.definition().schema.field(column).name();
            let all = encoded
                .refused
                .iter()
                .map(|(row, (column, why))| (*row, format!("column \"{}\": {why}", name(*column))));
            refused.extend(all);
            return sink.finish().await; // the caller gives the batch up
        }
        for position in range.clone() {
            let ordinal = ordinal.map(|first| first + (position - range.start) as i64);
            let (columns, row) = rows.at(position);
            let put = match encoded {
                Some(encoded) => encoded.of(rows.number(position)).map(|fields| {
                    put_head(buffer, columns.len(), ordinal);
                    buffer.extend_from_slice(fields);
                }),
                None => put_row(buffer, columns, &rows.targets, row, ordinal),
            };
            if let Err((column, why)) = put {
                let column = self.table.definition().schema.field(column).name();
                refused.insert(rows.number(position), format!("column \"{column}\": {why}"));
                if refused.len() > REFUSED_MAX {
                    return sink.finish().await; // the caller gives the batch up
                }
            }
            if buffer.len() >= PIECE {
                sink.feed(buffer.split().freeze()).await?;
                buffer.reserve(PIECE + PIECE / 4);
            }
        }
        buffer.extend_from_slice(TRAILER);
        sink.feed(buffer.split().freeze()).await?;
        sink.finish().await
    }
}

/// The rows of an INSERT, converted once.
struct Rows {
    /// With the number of the first row.
    batches: Vec<(usize, Vec<Column>)>,
    /// Position → row.
    order: Vec<Place>,
    /// Whether that is another order than that of the INSERT.
    is_sorted: bool,
    /// The types of the table's columns.
    targets: Vec<Target>,
}

/// Rows that are sent together.
struct Block {
    /// Positions.
    range: Range<usize>,
    /// Where they are sent in another order than the INSERT's.
    encoded: Option<Encoded>,
}

/// A block that is being encoded.
struct Ahead {
    range: Range<usize>,
    task: JoinHandle<Encoded>,
}

impl Ahead {
    fn begin(rows: &Arc<Rows>, range: Range<usize>) -> Self {
        let (rows, of) = (Arc::clone(rows), range.clone());
        Self { range, task: tokio::task::spawn_blocking(move || rows.encode(of)) }
    }

    async fn encoded(self) -> Result<Encoded> {
        self.task.await.map_err(|e| Error::internal("encoding rows for COPY was stopped").cause(e))
    }
}

/// The values of some rows as they are sent, in the order of the INSERT.
struct Encoded {
    bytes: BytesMut,
    /// Number in the INSERT less the first one's → where its values are; empty for a row that is not among them.
    spans: Vec<Range<usize>>,
    first: usize,
    refused: BTreeMap<usize, (usize, String)>,
}

impl Encoded {
    /// # Errors
    /// The column whose value does not fit, and why.
    fn of(&self, number: usize) -> Result<&[u8], (usize, String)> {
        match self.refused.get(&number) {
            Some(refused) => Err(refused.clone()),
            None => Ok(&self.bytes[self.spans[number - self.first].clone()]),
        }
    }
}

impl Rows {
    fn at(&self, position: usize) -> (&[Column], usize) {
        let place = self.order[position];
        (&self.batches[place.batch as usize].1, place.row as usize)
    }

    /// The row's number in its INSERT, by which a refusal names it.
    fn number(&self, position: usize) -> usize {
        self.number_of(self.order[position])
    }

    fn number_of(&self, place: Place) -> usize {
        self.batches[place.batch as usize].0 + place.row as usize
    }

    fn encode(&self, range: Range<usize>) -> Encoded {
        let is_block =
            range.start.is_multiple_of(BLOCK_ROWS) && range.end == self.order.len().min(range.start + BLOCK_ROWS);
        let places: Vec<Place> = if is_block {
            as_they_came(&self.batches, self.order.len()).skip(range.start).take(range.len()).collect()
        } else {
            let mut places = self.order[range].to_vec();
            places.sort_unstable_by_key(|place| self.number_of(*place));
            places
        };
        let first = places.first().map_or(0, |place| self.number_of(*place));
        let mut encoded = Encoded {
            bytes: BytesMut::with_capacity(places.len() * self.targets.len() * FIELD_BYTES),
            spans: vec![0..0; places.last().map_or(0, |place| self.number_of(*place) - first + 1)],
            first,
            refused: BTreeMap::new(),
        };
        for place in places {
            let (number, start) = (self.number_of(place), encoded.bytes.len());
            let columns = &self.batches[place.batch as usize].1;
            match put_fields(&mut encoded.bytes, columns, &self.targets, place.row as usize) {
                Ok(()) => encoded.spans[number - first] = start..encoded.bytes.len(),
                Err(refused) if encoded.refused.len() <= REFUSED_MAX => {
                    encoded.refused.insert(number, refused);
                }
                Err(_) => {} // the batch is given up before it is asked for
            }
        }
        encoded
    }
}

/// Whether a key may be there twice: two rows whose keys hash to the same.
fn may_repeat(batches: &[RecordBatch], key: &[usize]) -> Result<bool> {
    let mut seen = HashSet::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        let mut hashes = vec![0; batch.num_rows()];
        create_hashes(key.iter().map(|column| batch.column(*column)), &RandomState::with_seed(0), &mut hashes)?;
        if !hashes.into_iter().all(|hash| seen.insert(hash)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// From the temporary table into the table, by the key; `last`: only the last row of each.
fn insert_statement(table: &DatabaseTable, described: &Described, columns: &[&str], stage: &str, last: bool) -> String {
    let list = quoted_list(columns.iter().copied());
    let key: Vec<&str> = table.definition().primary_key.iter().map(String::as_str).collect();
    let keys = quoted_list(key.iter().copied());
    // As COPY does, into identity columns too.
    let into = format!("INSERT INTO {} ({list}) OVERRIDING SYSTEM VALUE SELECT", described.name);
    let from = format!("FROM {stage} WHERE {ORDINAL} >= $1");
    if table.on_conflict() == OnConflict::Nothing {
        let target = if key.is_empty() { String::new() } else { format!(" ({keys})") };
        return format!("{into} {list} {from} ORDER BY {ORDINAL} ON CONFLICT{target} DO NOTHING");
    }
    let set: Vec<String> = columns.iter().filter(|c| !key.contains(c)).map(|c| quoted(c)).collect();
    let set: Vec<String> = set.iter().map(|c| format!("{c} = EXCLUDED.{c}")).collect();
    let action = if set.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", set.join(", ")) };
    if !last {
        return format!("{into} {list} {from} ON CONFLICT ({keys}) DO {action}");
    }
    // ON CONFLICT may not meet one key twice: the last row of each is chosen before. A NULL is no key, unless the index
    // says so.
    let distinct = if described.nulls_equal {
        keys.clone()
    } else {
        let null = key.iter().map(|k| format!("{} IS NULL", quoted(k))).collect::<Vec<_>>().join(" OR ");
        format!("{keys}, CASE WHEN {null} THEN {ORDINAL} END")
    };
    format!(
        "{into} DISTINCT ON ({distinct}) {list} {from} ORDER BY {distinct}, {ORDINAL} DESC ON CONFLICT ({keys}) DO {action}"
    )
}

/// For errors that name the batch.
pub(super) fn at(error: Error, batch: u64, table: &str) -> Error {
    error.at(format!("batch {batch}, table {table}"))
}
