//! The sink: one transaction per batch and wave, row by row through a cached statement.
//!
//! Our own tables are `poundlock_pipelines` (who may write) and `poundlock_batches` (what is in).

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::row::{OwnedRow, RowConverter, SortField};
use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Statement, Transaction, TransactionBehavior, params};

use super::bind::{Unbound, bind};
use super::columns::described;
use super::{create_table, failure, insert_statement, is_refusal, open, target};
use crate::connector::database::column::{Column, supported};
use crate::connector::database::ledger::{
    BATCHES_KEPT, RETENTION_EVERY, fenced, hashes, json, offsets_json, stored_report, too_many_refused, wave_name,
};
use crate::connector::database::{DatabaseTable, OnConflict, REFUSED_MAX};
use crate::connector::{Guarantee, Identity, InsertReport, InsertRows, Refusal, Sink, Wave, WriteReport, WriteRequest};
use crate::error::reason_text;
use crate::point::point;
use crate::{Error, Result};

const CREATE: &str = "
CREATE TABLE IF NOT EXISTS poundlock_pipelines (uuid TEXT PRIMARY KEY, name TEXT NOT NULL, epoch BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS poundlock_batches (
    uuid TEXT NOT NULL, batch BIGINT NOT NULL, wave TEXT NOT NULL, epoch BIGINT NOT NULL, whole BOOLEAN NOT NULL,
    planned_at BIGINT NOT NULL, offsets TEXT NOT NULL, hashes TEXT NOT NULL, report TEXT NOT NULL,
    written_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (uuid, batch, wave)) WITHOUT ROWID;";

pub struct SqliteSink {
    name: String,
    state: Arc<Mutex<State>>,
    keyed: bool,
    tables: Vec<String>,
}

struct State {
    path: PathBuf,
    tables: BTreeMap<String, DatabaseTable>,
    busy_timeout: Duration,
    identity: Option<Identity>,
    connection: Option<Connection>,
}

impl SqliteSink {
    /// `tables` are all in the file.
    pub(in crate::connector::database) fn new(name: String, path: PathBuf, tables: Vec<DatabaseTable>) -> Self {
        let keyed = tables.iter().any(|t| t.on_conflict() != OnConflict::Refuse);
        let busy_timeout = tables.iter().map(|t| t.connect_timeout).max().unwrap_or_default();
        let tables: BTreeMap<_, _> = tables.into_iter().map(|t| (t.definition().name.clone(), t)).collect();
        let names = tables.keys().cloned().collect();
        let state = State { path, tables, busy_timeout, identity: None, connection: None };
        Self { name, state: Arc::new(Mutex::new(state)), keyed, tables: names }
    }

    /// Runs on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = self.state.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut state = state.lock().map_err(|_| Error::internal("an earlier write to SQLite panicked"))?;
            work(&mut state)
        });
        done.await.map_err(|e| Error::internal("a write to SQLite panicked").cause(e))?
    }
}

#[async_trait]
impl Sink for SqliteSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn tables(&self) -> Vec<String> {
        self.tables.clone()
    }

    fn records_every_batch(&self) -> bool {
        true
    }

    fn guarantee(&self) -> Guarantee {
        let keyed = if self.keyed { "; rows with a key that is there already are settled by ON CONFLICT" } else { "" };
        let how = "the rows of all its tables and the batch record are committed in one transaction of the file; \
                   a batch whose record is there is skipped";
        Guarantee { level: "exactly-once", how: format!("{how}{keyed}") }
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        let identity = identity.clone();
        self.blocking(move |state| state.open(identity)).await
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        self.blocking(move |state| {
            let uuid = state.identity()?.uuid.to_string();
            let sql = "SELECT EXISTS (SELECT 1 FROM poundlock_batches WHERE uuid = ?1 AND batch = ?2)";
            let found = state.connection()?.query_row(sql, params![uuid, signed(batch)?], |row| row.get(0));
            found.map_err(|e| failure(&e, "could not look for a batch record"))
        })
        .await
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        let request = request.clone(); // the rows are shared
        self.blocking(move |state| state.write(&request)).await
    }
}

impl State {
    fn identity(&self) -> Result<&Identity> {
        self.identity.as_ref().ok_or_else(|| Error::internal("a sink was used before it was opened"))
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() {
            self.connection = Some(open(&self.path, self.busy_timeout, true)?);
        }
        self.connection.as_mut().ok_or_else(|| Error::internal("no connection to SQLite"))
    }

    fn open(&mut self, identity: Identity) -> Result<Option<u64>> {
        self.connection = None;
        self.identity = Some(identity.clone());
        let tables: Vec<DatabaseTable> = self.tables.values().cloned().collect();
        let path = self.path.clone();
        let doing = format!("could not open the database {}", path.display());
        let failed = |e: rusqlite::Error| failure(&e, &doing);
        let connection = self.connection()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        transaction.execute_batch(CREATE).map_err(failed)?;
        let uuid = identity.uuid.to_string();
        let epoch = signed(identity.epoch)?;
        let sql = "SELECT epoch FROM poundlock_pipelines WHERE uuid = ?1";
        let theirs: Option<i64> = transaction.query_row(sql, [&uuid], |row| row.get(0)).optional().map_err(failed)?;
        if let Some(theirs) = theirs.filter(|theirs| *theirs > epoch) {
            return Err(fenced(identity.epoch, theirs));
        }
        let sql = "SELECT uuid FROM poundlock_pipelines p WHERE name = ?1 AND uuid <> ?2
                   AND EXISTS (SELECT 1 FROM poundlock_batches b WHERE b.uuid = p.uuid) LIMIT 1";
        let other = transaction.query_row(sql, params![identity.name, uuid], |row| row.get::<_, String>(0));
        if let Some(other) = other.optional().map_err(failed)? {
            identity.succeed(&other, &format!("the database {}", path.display()))?;
        }
        let sql = "UPDATE poundlock_pipelines SET name = name || ' (replaced)', epoch = epoch + 1
                   WHERE name = ?1 AND uuid <> ?2";
        transaction.execute(sql, params![identity.name, uuid]).map_err(failed)?;
        let sql = "INSERT INTO poundlock_pipelines (uuid, name, epoch) VALUES (?1, ?2, ?3)
                   ON CONFLICT (uuid) DO UPDATE SET name = excluded.name, epoch = excluded.epoch";
        transaction.execute(sql, params![uuid, identity.name, epoch]).map_err(failed)?;
        let errors: Vec<Error> = tables.iter().filter_map(|table| check(&transaction, table).err()).collect();
        if let Some(error) = Error::all(errors) {
            return Err(error);
        }
        let sql = "SELECT max(batch) FROM poundlock_batches WHERE uuid = ?1 AND whole";
        let newest: Option<i64> = transaction.query_row(sql, [&uuid], |row| row.get(0)).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(newest.and_then(|batch| u64::try_from(batch).ok()))
    }

    fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        let identity = self.identity()?.clone();
        let tables = self.tables.clone();
        let dead_letters = tables.values().any(DatabaseTable::is_dead_letters);
        let whole = request.wave == if dead_letters { Wave::DeadLetters } else { Wave::Rows };
        let written = write_batch(self.connection()?, &tables, &identity, request, whole);
        if written.is_err() {
            self.connection = None; // rolls back what was open
        }
        written
    }
}

/// Makes the table if it is missing; if it is there, its columns and its key must be.
fn check(transaction: &Transaction, table: &DatabaseTable) -> Result<()> {
    let definition = table.definition();
    for field in definition.schema.fields() {
        if !supported(field.data_type()) {
            let message =
                format!("column \"{}\" of table {} has type {}", field.name(), definition.name, field.data_type());
            return Err(Error::user(format!("{message}, which SQLite cannot hold")).at(definition.place.clone()));
        }
    }
    let create = transaction.execute_batch(&create_table(table));
    create.map_err(|e| failure(&e, &format!("could not make table {}", table.target_name())))?;
    described(transaction, table, true)?;
    match transaction.prepare(&insert_statement(table)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::user(format!("table {} does not fit its declaration", target(table)))
            .at(definition.place.clone())
            .cause(error)
            .hint("change the declaration, or rename the table in the file: it is then made anew")),
    }
}

fn write_batch(
    connection: &mut Connection,
    tables: &BTreeMap<String, DatabaseTable>,
    identity: &Identity,
    request: &WriteRequest,
    whole: bool,
) -> Result<WriteReport> {
    let doing = format!("could not write batch {}", request.batch);
    let failed = |e: rusqlite::Error| failure(&e, &doing);
    let (uuid, wave) = (identity.uuid.to_string(), wave_name(request.wave));
    point!("sqlite::before_write");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let sql = "SELECT p.epoch, b.hashes, b.report FROM poundlock_pipelines p
               LEFT JOIN poundlock_batches b ON b.uuid = p.uuid AND b.batch = ?2 AND b.wave = ?3 WHERE p.uuid = ?1";
    type Found = (i64, Option<String>, Option<String>);
    let found = transaction
        .query_row(sql, params![uuid, signed(request.batch)?, wave], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    let found: Option<Found> = found.optional().map_err(failed)?;
    match found {
        None => return Err(Error::external("the database does not know this pipeline any more")),
        Some((epoch, _, _)) if epoch != signed(identity.epoch)? => return Err(fenced(identity.epoch, epoch)),
        Some((_, Some(hashes), Some(report))) => return stored_report(request, &hashes, &report),
        Some(_) => {}
    }
    let mut report = WriteReport::default();
    for insert in &request.inserts {
        let Some(table) = tables.get(&insert.table.name) else {
            return Err(Error::internal(format!("table {} is not of this sink", insert.table.name)));
        };
        let at = format!("batch {}, table {}", request.batch, insert.table.name);
        let (account, mut refusals) = write_insert(&transaction, table, insert).map_err(|e| e.at(at))?;
        report.inserts.insert(insert.insert, account);
        report.refusals.append(&mut refusals);
    }
    let sql = "INSERT INTO poundlock_batches (uuid, batch, wave, epoch, whole, planned_at, offsets, hashes, report)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let record = params![
        uuid,
        signed(request.batch)?,
        wave,
        signed(identity.epoch)?,
        whole,
        request.planned_at,
        offsets_json(&request.offsets)?,
        json("the hashes", &hashes(request))?,
        json("the report", &report)?,
    ];
    transaction.execute(sql, record).map_err(failed)?;
    if request.batch.is_multiple_of(RETENTION_EVERY) && request.batch > BATCHES_KEPT {
        let sql = "DELETE FROM poundlock_batches WHERE uuid = ?1 AND batch <= ?2";
        transaction.execute(sql, params![uuid, signed(request.batch - BATCHES_KEPT)?]).map_err(failed)?;
    }
    point!("sqlite::before_commit");
    transaction.commit().map_err(failed)?;
    point!("sqlite::after_commit");
    Ok(report)
}

fn write_insert(
    transaction: &Transaction,
    table: &DatabaseTable,
    insert: &InsertRows,
) -> Result<(InsertReport, Vec<Refusal>)> {
    let doing = format!("could not write to table {}", insert.table.name);
    let failed = |e: rusqlite::Error| failure(&e, &doing);
    let mut statement = transaction.prepare_cached(&insert_statement(table)).map_err(failed)?;
    let (mut report, mut refusals) = (InsertReport::default(), vec![]);
    let mut keys = Keys::new(table)?;
    let (mut number, mut text) = (0, String::new());
    for batch in &insert.rows {
        let columns = batch.columns().iter().map(Column::new).collect::<Result<Vec<_>>>()?;
        keys.enter(batch)?;
        for row in 0..batch.num_rows() {
            let refused = match write_row(&mut statement, &columns, row, &mut text) {
                // Nothing was changed: the key was there, and its row stays.
                Ok(0) => {
                    report.conflict += 1;
                    continue;
                }
                Ok(_) if keys.is_second(row) => {
                    report.conflict += 1;
                    continue;
                }
                Ok(_) => {
                    report.written += 1;
                    continue;
                }
                Err((column, Unbound::Refused(why))) => {
                    format!("column \"{}\": {why}", batch.schema().field(column).name())
                }
                Err((_, Unbound::Failed(error))) if is_refusal(&error) => error.to_string(),
                Err((_, Unbound::Failed(error))) => return Err(failed(error)),
            };
            if refusals.len() == REFUSED_MAX {
                return Err(too_many_refused(&insert.table.name, &refused));
            }
            report.refused += 1;
            refusals.push(Refusal { insert: insert.insert, row: number + row, error: reason_text(&refused) });
        }
        number += batch.num_rows();
    }
    Ok((report, refusals))
}

/// Returns how many rows of the table changed; an error with the number of the column that it is about.
fn write_row(
    statement: &mut Statement,
    columns: &[Column],
    row: usize,
    text: &mut String,
) -> Result<usize, (usize, Unbound)> {
    for (index, column) in columns.iter().enumerate() {
        bind(statement, index + 1, column, row, text).map_err(|e| (index, e))?;
    }
    statement.raw_execute().map_err(|e| (0, e.into()))
}

/// The keys of the batch's rows that were written, where a later row replaces an earlier one: that one then counts as a
/// conflict, as it does in PostgreSQL.
struct Keys {
    columns: Vec<usize>,
    converter: Option<RowConverter>,
    rows: Option<arrow::row::Rows>,
    seen: HashSet<OwnedRow>,
}

impl Keys {
    fn new(table: &DatabaseTable) -> Result<Self> {
        let schema = &table.definition().schema;
        let mut keys = Self { columns: vec![], converter: None, rows: None, seen: HashSet::new() };
        if table.on_conflict() == OnConflict::Update {
            let columns = table.definition().primary_key.iter().map(|name| schema.index_of(name));
            keys.columns = columns.collect::<std::result::Result<_, _>>()?;
            let fields = keys.columns.iter().map(|c| SortField::new(schema.field(*c).data_type().clone()));
            keys.converter = Some(RowConverter::new(fields.collect())?);
        }
        Ok(keys)
    }

    fn enter(&mut self, batch: &RecordBatch) -> Result<()> {
        if let Some(converter) = &self.converter {
            let columns: Vec<_> = self.columns.iter().map(|c| batch.column(*c).clone()).collect();
            self.rows = Some(converter.convert_columns(&columns)?);
        }
        Ok(())
    }

    /// Notes the row's key; whether it was there.
    fn is_second(&mut self, row: usize) -> bool {
        self.rows.as_ref().is_some_and(|rows| !self.seen.insert(rows.row(row).owned()))
    }
}

/// SQLite has no unsigned integers.
fn signed(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::internal("a batch or epoch is larger than SQLite's integers"))
}
