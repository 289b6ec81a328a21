//! The sink: one transaction per batch and wave, over one connection that is made anew whenever it was lost. A table with
//! `'transaction' 'own'` is a sink of its own, with its own connection and batch records: a second process of the server
//! works for the batch, and its rows are seen a moment before or after those of the others.
//!
//! Invariant: a connection is kept only after a transaction that ended well; after any error it is dropped, so that
//! nothing of a half-done transaction can be committed later. A COMMIT whose answer was lost is cleared up by the next
//! call: it finds the batch record, or does not.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::Client;

use super::connect::{Address, connect};
use super::error::failure;
use super::ledger::{self, Ledger};
use super::write::{Habits, Progress, Writer, at};
use crate::connector::database::{DatabaseTable, OnConflict};
use crate::connector::{Guarantee, Identity, Sink, Wave, WriteReport, WriteRequest};
use crate::point::point;
use crate::{Error, Result};

pub struct PostgresSink {
    name: String,
    address: Address,
    tables: Vec<DatabaseTable>,
    /// The table that has its own transactions; empty for those that share one.
    part: String,
    identity: Option<Identity>,
    session: Option<Session>,
    habits: Habits,
}

struct Session {
    client: Client,
    ledger: Ledger,
    writers: BTreeMap<String, Writer>,
}

impl PostgresSink {
    /// `tables` are all in the database that `address` names; each with the same answer to "has it its own transactions".
    pub(in crate::connector::database) fn new(name: String, address: Address, tables: Vec<DatabaseTable>) -> Self {
        let own = tables.iter().find(|table| table.has_own_transaction());
        let part = own.map_or_else(String::new, |table| table.definition().name.clone());
        Self { name, address, tables, part, identity: None, session: None, habits: Habits::default() }
    }

    /// The largest of the tables' values: they share the connection.
    fn timeout(&self, of: impl Fn(&DatabaseTable) -> Duration) -> Duration {
        self.tables.iter().map(of).max().unwrap_or(Duration::from_secs(10))
    }

    fn identity(&self) -> Result<Identity> {
        self.identity.clone().ok_or_else(|| Error::internal("a sink was used before it was opened"))
    }

    async fn connect(&self, identity: &Identity, takeover: bool) -> Result<Session> {
        let (connect_timeout, timeout) = (self.timeout(|t| t.connect_timeout), self.timeout(|t| t.timeout));
        let client = connect(&self.address, connect_timeout, timeout).await?;
        if takeover {
            ledger::ensure(&client).await?;
        }
        ledger::take(&client, identity, &self.part, takeover).await?;
        let (mut writers, mut errors) = (BTreeMap::new(), vec![]);
        for (number, table) in self.tables.iter().enumerate() {
            match Writer::prepare(&client, table, number).await {
                Ok(writer) => drop(writers.insert(writer.name().to_string(), writer)),
                Err(error) if error.fault() == crate::Fault::User => errors.push(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = Error::all(errors) {
            return Err(error);
        }
        let ledger = Ledger::prepare(&client, &self.part).await?;
        Ok(Session { client, ledger, writers })
    }

    /// The kept connection, or a new one. The caller puts it back when all went well.
    async fn take_session(&mut self) -> Result<Session> {
        match self.session.take().filter(|session| !session.client.is_closed()) {
            Some(session) => Ok(session),
            None => self.connect(&self.identity()?, false).await,
        }
    }

    /// The last wave of a batch in this sink: dead letters, if a table of it takes them.
    fn last_wave(&self) -> Wave {
        if self.tables.iter().any(DatabaseTable::is_dead_letters) { Wave::DeadLetters } else { Wave::Rows }
    }

    async fn write_now(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        let identity = self.identity()?;
        let session = self.take_session().await?;
        let last = self.last_wave() == request.wave;
        let report = session.write(&identity, request, last, &mut self.habits).await?;
        self.session = Some(session);
        Ok(report)
    }
}

impl Session {
    async fn write(
        &self,
        identity: &Identity,
        request: &WriteRequest,
        last: bool,
        habits: &mut Habits,
    ) -> Result<WriteReport> {
        let client = &self.client;
        let ended = |e: tokio_postgres::Error| failure(&e, &format!("could not write batch {}", request.batch));
        point!("postgres::before_write");
        // A constraint that is deferred would refuse its row at COMMIT, and nobody would know which.
        client.batch_execute("BEGIN; SET CONSTRAINTS ALL IMMEDIATE").await.map_err(ended)?;
        if let Some(report) = self.ledger.enter(client, identity, request).await? {
            client.batch_execute("ROLLBACK").await.map_err(ended)?;
            return Ok(report);
        }
        let mut report = WriteReport::default();
        let mut progress = Progress::default();
        for insert in &request.inserts {
            let Some(writer) = self.writers.get(&insert.table.name) else {
                return Err(Error::internal(format!("table {} is not of this sink", insert.table.name)));
            };
            let written = writer.write(client, insert, habits, &mut progress).await;
            let (account, mut refusals) = written.map_err(|e| at(e, request.batch, &insert.table.name))?;
            report.inserts.insert(insert.insert, account);
            report.refusals.append(&mut refusals);
        }
        self.ledger.leave(client, identity, request, last, &report).await?;
        point!("postgres::before_commit");
        client.batch_execute("COMMIT").await.map_err(ended)?;
        point!("postgres::after_commit");
        Ok(report)
    }
}

#[async_trait]
impl Sink for PostgresSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn tables(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.definition().name.clone()).collect()
    }

    fn records_every_batch(&self) -> bool {
        true
    }

    fn guarantee(&self) -> Guarantee {
        let keyed = self.tables.iter().any(|t| t.on_conflict() != OnConflict::Refuse);
        let keyed = if keyed { "; rows with a key that is there already are settled by ON CONFLICT" } else { "" };
        let whose = if self.part.is_empty() { "all its tables that share one" } else { "this table" };
        let how = format!(
            "the rows of {whose} and the batch record are committed in one transaction; a batch whose record is there is skipped"
        );
        Guarantee { level: "exactly-once", how: format!("{how}{keyed}") }
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        self.session = None;
        self.identity = Some(identity.clone());
        let session = self.connect(identity, true).await?;
        let newest = ledger::newest(&session.client, identity.uuid).await?;
        self.session = Some(session);
        Ok(newest)
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        let uuid = self.identity()?.uuid;
        let session = self.take_session().await?;
        let holds = ledger::holds(&session.client, uuid, batch).await?;
        self.session = Some(session);
        Ok(holds)
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        // The server's own time-outs end a statement; this one also ends a silence.
        let timeout = self.timeout(|t| t.timeout) + self.timeout(|t| t.connect_timeout);
        match tokio::time::timeout(timeout, self.write_now(request)).await {
            Ok(report) => report,
            Err(_) => {
                let message = format!("writing batch {} to {} took more than {timeout:?}", request.batch, self.address);
                Err(Error::external(message).retryable().hint("see OPTIONS ('timeout' …), or make batches smaller"))
            }
        }
    }
}
