//! What a running pipeline tells of itself between its commits: one small file, written at most every second and at least every
//! few, for who looks from outside. Nothing depends on it but one lower bound: up to where an outbox was delivered.

use serde::{Deserialize, Serialize};

use super::{Checkpoint, frame};
use crate::Result;
use crate::connector::Delivery;

const KEY: &str = "status";

/// Whether a sink is written to, by how it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// It is.
    Closed,
    /// It has failed several times in a row, and is left alone for a while.
    Open,
    /// One attempt is made, to see whether it answers again.
    HalfOpen,
}

impl Circuit {
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// "process 4711 on host a1"
    pub process: String,
    pub epoch: u64,
    /// µs since 1970, UTC, as all times here.
    pub started_at: i64,
    pub written_at: i64,
    /// It stopped by itself, with or without an error.
    pub ended: bool,
    pub sinks: Vec<SinkStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    pub name: String,
    pub delivery: Delivery,
    pub circuit: Circuit,
    /// Since when the circuit is closed, or is not.
    pub since: i64,
    /// What it said last while it is not closed; no secret is in it.
    pub error: Option<String>,
    /// With an outbox.
    pub outbox: Option<OutboxStatus>,
}

/// What waits in an outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxStatus {
    pub batches: u64,
    pub rows: u64,
    pub bytes: u64,
    /// When the oldest was planned.
    pub oldest: Option<i64>,
    /// Bytes that may wait.
    pub limit: u64,
    /// The pipeline waits for room.
    pub full: bool,
    /// The last batch that was delivered, as far as was noted: it may be a later one.
    pub delivered: Option<u64>,
}

impl Checkpoint {
    /// Replaces what was told before.
    ///
    /// # Errors
    /// Fenced; the storage does not answer.
    pub async fn put_status(&self, status: &Status) -> Result<()> {
        self.ensure_newest().await?;
        let bytes = frame::encode(KEY, self.identity().uuid, status, &[])?;
        self.0.put(KEY, bytes).await
    }

    /// `None`: no start has told anything yet.
    ///
    /// # Errors
    /// It is damaged or foreign; the storage does not answer.
    pub async fn status(&self) -> Result<Option<Status>> {
        Ok(self.0.read(KEY).await?.map(|found| found.record))
    }

    /// "process 4711 on host a1": this one.
    pub fn process() -> String {
        super::lock::this_process()
    }
}
