//! Documents in Elasticsearch: bulk requests whose documents have the same `_id` whenever a batch is written.
//!
//! ```text
//! rows ─▶ [chunks: bulk.rows, bulk.bytes] ─▶ bulk.in_flight requests at once ─▶ each document:
//!   2xx                       written
//!   409                       conflict: a newer one is there, or with op_type create any one
//!   429, 5xx, no answer       sent again, after a growing pause
//!   400                       refused, with Elasticsearch's reason: a dead letter
//! ```
//!
//! There are no transactions, so what a batch leaves must not depend on how often, or how far, it was written. A table with
//! a PRIMARY KEY has its `_id` from that; without one, the `_id` is (checkpoint's UUID, batch, INSERT, row). A document with
//! a key has the number of its batch as its version (`version_type` `external_gte`): whatever comes late, from a request
//! that was given up or a process that was stopped for a while, never replaces a newer one.
//!
//! What a start must know, whether any part of a batch can be seen, the documents cannot tell: so before the first of a
//! batch is sent, its number goes into the pipeline's *mark*, one small document of an index of our own ([`mark`]). It fences
//! as well: an older start can begin no batch after a newer one has opened the sink.
//!
//! Speaks what Elasticsearch 8 and 9 have in common, and asks no server for its name or version.

pub mod options;

mod document_id;
mod index_name;

pub mod client;
pub mod mark;

mod bulk;
mod chunk;
mod sink;

pub mod template;

pub use options::{ElasticsearchTable, OPTIONS, OpType};
pub use sink::{ElasticsearchSink, connections};

#[cfg(test)]
mod tests;
