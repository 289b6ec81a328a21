//! Apache Kafka: a topic as an unbounded table, as a bounded one for ad-hoc SQL, and as a sink.
//!
//! ```text
//! broker ──▶ reader thread: poll (▶ schemas) ▶ decode ▶ per-partition rows ──▶ Buffer ──▶ cut() ──▶ SQL
//! rows of the INSERTs ──▶ one transaction per batch and wave (messages + marker) ──▶ broker
//! ```
//!
//! Positions come from the checkpoint, never from the consumer group: partitions are assigned by hand, and the group's
//! offsets are only written, so that lag tools see how far the pipeline is. librdkafka is used through its low-level
//! clients, on threads of our own: its asynchronous wrappers cost a third of the throughput.

pub mod options;

mod client;

mod topic;

mod brokers;

pub mod source;

mod buffer;

mod reader;

mod rows;

mod values;

pub mod schemas;

pub mod sink;

mod producer;

mod marker;

pub mod bounded;

pub mod generator;

pub mod mock;

#[cfg(test)]
mod real_topics;

pub use bounded::bounded_table;
pub use options::KafkaTable;
pub use sink::KafkaSink;
pub use source::KafkaSourceTable;
