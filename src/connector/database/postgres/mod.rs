//! PostgreSQL: COPY BINARY straight in, or through a temporary table where keys may collide; binary reads.
//!
//! ```text
//! one transaction per (batch, wave)
//!   lock the epoch row FOR SHARE       a higher epoch there: we are fenced
//!   the batch record is there? skip    and hand back its report
//!   each INSERT, under a savepoint:    COPY ──▶ table
//!                                      COPY ──▶ temporary table ──▶ INSERT … ON CONFLICT ──▶ table
//!   write the batch record, COMMIT
//! ```
//!
//! It needs a session of its own: prepared statements and temporary tables do not survive a pooler that gives each
//! transaction another connection.

mod read;

mod catalog;
mod connect;
mod copy;
mod error;
mod ledger;
mod order;
mod sink;
mod write;

pub use connect::{Address, connect};
pub use copy::encoded_bytes;
pub use sink::PostgresSink;

pub(super) use error::{failure, reason};
pub(super) use read::{estimated_rows, read};

/// Makes schema `poundlock` where it is missing.
pub(super) async fn make_ledger(client: &tokio_postgres::Client) -> crate::Result<()> {
    ledger::ensure(client).await
}

#[cfg(test)]
mod tests;
