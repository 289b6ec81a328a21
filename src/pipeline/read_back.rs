//! The rows of tables that the program writes and reads as well.
//!
//! ```text
//! commit of a batch that wrote to the table ─▶ read what is stored ─▶ into the checkpoint ─▶ named by the next plan
//! ```
//!
//! Batches that write nothing to the table run ahead as all others do, on the rows that were read before. After one that
//! does, the next plan waits for its commit. What a plan read is in the checkpoint, as a dimension is: a replay finds the
//! same rows, though a part of its own may be stored by then.

use std::sync::Arc;

use datafusion::prelude::{ident, lit};
use datafusion::scalar::ScalarValue;
use tokio_util::sync::CancellationToken;

use super::breaker::{Breaker, insist};
use super::dimension::{Version, read, rows_of};
use super::start::now;
use crate::checkpoint::{Blob, Checkpoint};
use crate::connector;
use crate::point::point;
use crate::sql::program::{DimensionSpec, ReadBackSpec};
use crate::{Error, Result};

pub struct ReadBack {
    pub spec: ReadBackSpec,
    /// `None`: to be read before the next plan.
    newest: Option<Version>,
}

impl ReadBack {
    pub fn new(spec: ReadBackSpec) -> Self {
        Self { spec, newest: None }
    }

    /// Whether the table may hold other rows than were read last.
    pub fn is_stale(&self) -> bool {
        self.newest.is_none()
    }

    /// A batch writes to it.
    pub fn forget(&mut self) {
        self.newest = None;
    }

    /// Reads what is stored and makes it durable. Nothing that is written to the table may be on its way.
    ///
    /// # Errors
    /// The table cannot be read, for a reason that will not pass; or it was told to stop.
    pub async fn read(
        &mut self,
        watermark: Option<i64>,
        checkpoint: &Checkpoint,
        stop: &CancellationToken,
    ) -> Result<()> {
        // A replica may not have what was committed just now.
        let table = Arc::new(connector::primary(&self.spec.table));
        let since = self.spec.since.as_ref().zip(watermark).map(|((column, moved), watermark)| {
            let micros = Some(watermark.saturating_add(*moved));
            ident(column).gt_eq(lit(ScalarValue::TimestampMicrosecond(micros, None)))
        });
        let wanted = DimensionSpec::whole(Arc::clone(&table), Arc::clone(&self.spec.pinned), since)?;
        let breaker = Breaker::new(&table.name, "the next batch waits", now());
        let version = loop {
            breaker.attempt(now());
            match read(&wanted).await {
                Ok(version) => break version,
                Err(error) => breaker.pause_after(error, "read it back", stop).await?,
            }
        };
        breaker.succeeded(now());
        let put = || checkpoint.put_blob(Blob::Dimension, version.image().clone());
        insist(stop, "keep the rows that were read back", put).await?;
        point!("read_back::after_read");
        self.newest = Some(version);
        Ok(())
    }

    /// Pins what was read last; its hash goes into the plan.
    ///
    /// # Errors
    /// Of the engine: it has not been read.
    pub fn pin_newest(&self) -> Result<String> {
        let Some(version) = &self.newest else { return Err(Error::internal("a table was not read back")) };
        self.spec.pinned.pin(version.rows.clone());
        Ok(version.hash.clone())
    }

    /// Pins the rows that a plan names.
    pub async fn pin_version(&mut self, hash: &str, checkpoint: &Checkpoint) -> Result<()> {
        let table = &self.spec.table;
        let rows = rows_of(hash, &table.name, &table.schema, checkpoint).await?;
        self.spec.pinned.pin(rows);
        self.newest = None;
        Ok(())
    }
}
