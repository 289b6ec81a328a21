//! Our own tables in the database: who may write (epochs), who is connected (writers), what is in (batches).
//!
//! They are in schema `poundlock` and made only where they are missing, so that a role that may merely
//! SELECT, INSERT and UPDATE them can run once `poundlock migrate` has made them. Old batch records are deleted only by
//! a role that may DELETE.
//!
//! Fencing: every transaction that writes holds the pipeline's row FOR SHARE and has seen its own epoch there. A
//! takeover ends the backends of lower epochs (where the role may), waits for the row FOR UPDATE, and raises the epoch.
//! So a process that slept and wakes either wrote before the takeover saw the row, or not at all.

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use super::error::{failure, is_unique_violation};
use crate::connector::database::ledger::{
    BATCHES_KEPT, RETENTION_EVERY, fenced, hashes, json, offsets_json, stored_report, wave_name,
};
use crate::connector::{Identity, WriteReport, WriteRequest};
use crate::{Error, Result};

/// How long a takeover waits for a transaction of a lower epoch whose backend it may not end.
const TAKEOVER_WAIT: Duration = Duration::from_secs(30);

/// The three tables, each with what it is for.
pub(super) const CREATE: &str = r#"
CREATE SCHEMA IF NOT EXISTS poundlock;
CREATE TABLE IF NOT EXISTS poundlock.pipelines (
    uuid uuid PRIMARY KEY, name text NOT NULL, epoch bigint NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
COMMENT ON TABLE poundlock.pipelines IS 'one row per pipeline that writes here; only the process with this epoch may';
CREATE TABLE IF NOT EXISTS poundlock.writers (
    uuid uuid, epoch bigint, part text, pid integer NOT NULL, backend_start timestamptz NOT NULL,
    PRIMARY KEY (uuid, epoch, part));
COMMENT ON TABLE poundlock.writers IS 'the newest connection of each part, so that a takeover can end it';
CREATE TABLE IF NOT EXISTS poundlock.batches (
    uuid uuid, batch bigint, wave text, part text, epoch bigint NOT NULL, whole boolean NOT NULL,
    planned_at timestamptz NOT NULL, offsets jsonb NOT NULL, hashes jsonb NOT NULL, report jsonb NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (uuid, batch, wave, part));
COMMENT ON TABLE poundlock.batches IS 'one row per batch, wave and part: it is here if and only if the batch''s rows are';
COMMENT ON COLUMN poundlock.batches.part IS 'the table that has transactions of its own; empty for all others together';
"#;

/// Makes our tables where they are missing.
///
/// # Errors
/// The role may not create them (user); the connection (external).
pub(super) async fn ensure(client: &Client) -> Result<()> {
    const FIND: &str = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = 'poundlock' AND c.relname IN ('pipelines', 'writers', 'batches')";
    let doing = "could not make the tables of schema poundlock";
    let there: i64 = client.query_one(FIND, &[]).await.map_err(|e| failure(&e, doing))?.get(0);
    if there == 3 {
        return Ok(());
    }
    // IF NOT EXISTS is no protection against another session doing the same: the lock is.
    let create = format!("BEGIN; SELECT pg_advisory_xact_lock(hashtext('poundlock.ledger')); {CREATE} COMMIT");
    client.batch_execute(&create).await.map_err(|e| {
        let error = failure(&e, doing);
        match e.code().map(|c| c.code()) {
            Some("42501") => error.hint("let a role that may create a schema run `poundlock migrate` once"),
            _ => error,
        }
    })
}

/// Takes the pipeline over for our epoch (`raise`), or makes sure after a reconnect that it is still ours.
///
/// # Errors
/// A higher epoch is there: we are fenced (external). A transaction of a lower epoch does not end (external,
/// retryable).
pub(super) async fn take(client: &Client, identity: &Identity, part: &str, raise: bool) -> Result<()> {
    let failed = |e: tokio_postgres::Error| failure(&e, "could not take the pipeline over in the database");
    let epoch = signed(identity.epoch, "the epoch")?;
    if raise {
        succeed(client, identity, epoch).await?;
    }
    let begin = Instant::now();
    loop {
        end_backends(client, identity, part, epoch).await?;
        match register(client, identity, part, epoch, raise).await {
            Err(Taking::Busy) if begin.elapsed() < TAKEOVER_WAIT => continue,
            Err(Taking::Busy) => {
                let hint = "end it with pg_terminate_backend, or let the role do so: GRANT pg_signal_backend";
                let message = "a transaction of an earlier start of this pipeline does not end";
                return Err(Error::external(message).retryable().hint(hint));
            }
            Err(Taking::Failed(error)) => return Err(failed(error)),
            Ok(Some(theirs)) if theirs > epoch => return Err(fenced(identity.epoch, theirs)),
            Ok(Some(theirs)) if raise || theirs == epoch => return Ok(()),
            // No row, or a lower epoch than the one we wrote there.
            Ok(_) => {
                let message =
                    format!("the database does not know pipeline {} ({}) any more", identity.name, identity.uuid);
                return Err(Error::external(message).hint("was another database put in its place while this one ran?"));
            }
        }
    }
}

/// Makes the name ours: one checkpoint has it at a time, and who had it is fenced. One that has written nothing is no
/// loss.
async fn succeed(client: &Client, identity: &Identity, epoch: i64) -> Result<()> {
    const OTHER: &str = "SELECT uuid FROM poundlock.pipelines p WHERE name = $1 AND uuid <> $2
                         AND EXISTS (SELECT FROM poundlock.batches b WHERE b.uuid = p.uuid) LIMIT 1";
    const REPLACE: &str =
        "UPDATE poundlock.pipelines SET name = name || ' (replaced)', epoch = epoch + 1, updated_at = now()
                           WHERE name = $1 AND uuid <> $2";
    const ADD: &str = "INSERT INTO poundlock.pipelines (uuid, name, epoch) VALUES ($1, $2, $3)
                       ON CONFLICT (uuid) DO NOTHING";
    // Touched only if it must be: who sleeps in a transaction holds it.
    const NAME: &str = "UPDATE poundlock.pipelines SET name = $1 WHERE uuid = $2 AND name <> $1";
    let failed = |e: tokio_postgres::Error| failure(&e, "could not take the pipeline's name in the database");
    let (name, uuid) = (&identity.name, &identity.uuid);
    if let Some(other) = client.query_opt(OTHER, &[name, uuid]).await.map_err(failed)? {
        identity.succeed(&other.get::<_, Uuid>(0).to_string(), "the database")?;
    }
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let done = async {
        client.execute(REPLACE, &[name, uuid]).await?;
        client.execute(NAME, &[name, uuid]).await?;
        client.execute(ADD, &[uuid, name, &epoch]).await
    };
    let done = done.await;
    client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await.map_err(failed)?;
    done.map(drop).map_err(failed)
}

/// Ends the connections that are registered for lower epochs, and for our part in this one: whoever they belong to must
/// write no more.
async fn end_backends(client: &Client, identity: &Identity, part: &str, epoch: i64) -> Result<()> {
    // backend_start is hidden from a role that may not see the other's sessions: then nothing matches, and the lock
    // decides.
    const END: &str = "SELECT a.pid, pg_terminate_backend(a.pid) FROM poundlock.writers w
                       JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_start = w.backend_start
                       WHERE w.uuid = $1 AND (w.epoch < $2 OR w.epoch = $2 AND w.part = $3)
                         AND a.pid <> pg_backend_pid()";
    match client.query(END, &[&identity.uuid, &epoch, &part]).await {
        Ok(ended) if ended.is_empty() => {}
        Ok(ended) => tracing::info!(backends = ended.len(), "ended connections of earlier starts of this pipeline"),
        Err(error) if error.code().is_some_and(|c| c.code() == "42501") => {
            tracing::warn!(%error, "the role may not end connections of earlier starts: waiting for them instead");
        }
        Err(error) => return Err(failure(&error, "could not end connections of earlier starts")),
    }
    Ok(())
}

enum Taking {
    Busy,
    Failed(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Taking {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code().map(|c| c.code()) {
            Some("55P03" | "40P01") => Taking::Busy,
            _ => Taking::Failed(error),
        }
    }
}

/// Locks the row, and if no higher epoch is there, writes ours and this connection. Returns the epoch found.
async fn register(
    client: &Client,
    identity: &Identity,
    part: &str,
    epoch: i64,
    raise: bool,
) -> Result<Option<i64>, Taking> {
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '2s'").await?;
    let outcome = async {
        // Shared where nothing is raised: another part of ours may be writing.
        let lock = if raise { "FOR UPDATE" } else { "FOR SHARE" };
        let lock = format!("SELECT epoch FROM poundlock.pipelines WHERE uuid = $1 {lock}");
        let found: Option<i64> = client.query_opt(&lock, &[&identity.uuid]).await?.map(|row| row.get(0));
        let Some(theirs) = found.filter(|theirs| *theirs <= epoch) else { return Ok(found) };
        if raise && theirs < epoch {
            const RAISE: &str =
                "UPDATE poundlock.pipelines SET epoch = $2, name = $3, updated_at = now() WHERE uuid = $1";
            client.execute(RAISE, &[&identity.uuid, &epoch, &identity.name]).await?;
        }
        // The row of the part's last connection, which has been ended or cannot write any more, is taken over: a start adds none, and no
        // privilege to DELETE is needed.
        const WRITER: &str = "
            WITH us AS (SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()), reused AS (
                UPDATE poundlock.writers w SET epoch = $2, pid = us.pid, backend_start = us.backend_start FROM us
                WHERE w.uuid = $1 AND w.part = $3
                  AND w.epoch = (SELECT max(epoch) FROM poundlock.writers WHERE uuid = $1 AND part = $3)
                RETURNING 1)
            INSERT INTO poundlock.writers (uuid, epoch, part, pid, backend_start)
            SELECT $1, $2, $3, pid, backend_start FROM us WHERE NOT EXISTS (SELECT FROM reused)";
        client.execute(WRITER, &[&identity.uuid, &epoch, &part]).await?;
        Ok(found)
    };
    let outcome: Result<Option<i64>, Taking> = outcome.await;
    client.batch_execute(if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    outcome
}

/// Statements of every batch, prepared once a connection.
pub(super) struct Ledger {
    /// The table whose batches these are; empty for all that share a transaction.
    part: String,
    lock: tokio_postgres::Statement,
    record: tokio_postgres::Statement,
    may_delete: bool,
}

impl Ledger {
    pub async fn prepare(client: &Client, part: &str) -> Result<Self> {
        let failed = |e: tokio_postgres::Error| failure(&e, "could not prepare the statements of schema poundlock");
        const LOCK: &str = "
            SELECT p.epoch, b.hashes::text, b.report::text FROM poundlock.pipelines p
            LEFT JOIN poundlock.batches b ON b.uuid = p.uuid AND b.batch = $2 AND b.wave = $3 AND b.part = $4
            WHERE p.uuid = $1 FOR SHARE OF p";
        const RECORD: &str = "
            INSERT INTO poundlock.batches (uuid, batch, wave, epoch, whole, planned_at, offsets, hashes, report, part)
            VALUES ($1, $2, $3, $4, $5, timestamptz 'epoch' + $6::bigint * interval '1 microsecond',
                    $7::text::jsonb, $8::text::jsonb, $9::text::jsonb, $10)";
        const MAY_DELETE: &str = "SELECT has_table_privilege('poundlock.batches', 'DELETE')";
        Ok(Self {
            part: part.to_string(),
            lock: client.prepare(LOCK).await.map_err(failed)?,
            record: client.prepare(RECORD).await.map_err(failed)?,
            may_delete: client.query_one(MAY_DELETE, &[]).await.map_err(failed)?.get(0),
        })
    }

    /// In a transaction: makes sure that we may write, until it ends. Returns the report if the batch is in already.
    pub async fn enter(&self, client: &Client, who: &Identity, request: &WriteRequest) -> Result<Option<WriteReport>> {
        let (batch, ours) = (signed(request.batch, "the batch")?, signed(who.epoch, "the epoch")?);
        let row = client.query_opt(&self.lock, &[&who.uuid, &batch, &wave_name(request.wave), &self.part]).await;
        let Some(row) = row.map_err(|e| failure(&e, "could not lock the pipeline's row in the database"))? else {
            return Err(Error::external("the database does not know this pipeline any more"));
        };
        let epoch: i64 = row.get(0);
        if epoch != ours {
            return Err(fenced(who.epoch, epoch));
        }
        match (row.get::<_, Option<&str>>(1), row.get::<_, Option<&str>>(2)) {
            (Some(hashes), Some(report)) => stored_report(request, hashes, report).map(Some),
            _ => Ok(None),
        }
    }

    /// In the same transaction, after the rows.
    pub async fn leave(
        &self,
        client: &Client,
        who: &Identity,
        request: &WriteRequest,
        whole: bool,
        report: &WriteReport,
    ) -> Result<()> {
        let (batch, epoch) = (signed(request.batch, "the batch")?, signed(who.epoch, "the epoch")?);
        let offsets = offsets_json(&request.offsets)?;
        let hashes = json("the hashes", &hashes(request))?;
        let report = json("the report", report)?;
        let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[
            &who.uuid,
            &batch,
            &wave_name(request.wave),
            &epoch,
            &whole,
            &request.planned_at,
            &offsets,
            &hashes,
            &report,
            &self.part,
        ];
        client.execute(&self.record, values).await.map_err(|e| {
            let error = failure(&e, "could not write the batch record");
            // A connection that we lost has committed it meanwhile: the next try finds it.
            if is_unique_violation(&e) { Error::external("the batch was written meanwhile").retryable() } else { error }
        })?;
        if self.may_delete && request.batch.is_multiple_of(RETENTION_EVERY) && request.batch > BATCHES_KEPT {
            const DELETE: &str = "DELETE FROM poundlock.batches WHERE uuid = $1 AND batch <= $2 AND part = $3";
            let oldest = batch - BATCHES_KEPT as i64;
            let deleted = client.execute(DELETE, &[&who.uuid, &oldest, &self.part]).await;
            deleted.map_err(|e| failure(&e, "could not delete old batch records"))?;
        }
        Ok(())
    }
}

/// The newest batch all of whose waves are in, in any part: what the database knows of it says how far it was set back,
/// and a table may get its own transactions and give them back.
pub(super) async fn newest(client: &Client, uuid: Uuid) -> Result<Option<u64>> {
    const NEWEST: &str = "SELECT max(batch) FROM poundlock.batches WHERE uuid = $1 AND whole";
    let row = client.query_one(NEWEST, &[&uuid]).await;
    let row = row.map_err(|e| failure(&e, "could not read the newest batch record"))?;
    Ok(row.get::<_, Option<i64>>(0).and_then(|batch| u64::try_from(batch).ok()))
}

/// Whether any part of it is in.
pub(super) async fn holds(client: &Client, uuid: Uuid, batch: u64) -> Result<bool> {
    const HOLDS: &str = "SELECT EXISTS (SELECT 1 FROM poundlock.batches WHERE uuid = $1 AND batch = $2)";
    let row = client.query_one(HOLDS, &[&uuid, &signed(batch, "the batch")?]).await;
    Ok(row.map_err(|e| failure(&e, "could not look for a batch record"))?.get(0))
}

/// PostgreSQL has no unsigned integers.
fn signed(number: u64, what: &str) -> Result<i64> {
    i64::try_from(number).map_err(|_| Error::internal(format!("{what} is larger than a bigint")))
}
