//! The real program against real servers, judged by another reader.
//!
//! ```text
//! feeder ──▶ Kafka ──▶ poundlock run ──▶ PostgreSQL, Parquet, Kafka, Elasticsearch ──▶ judge.py (DuckDB) ──▶ the same rows,
//!    └────────────── the input topic, read by a plain consumer ───────────────────────────▲                   or a failure
//! ```
//!
//! The judge gets nothing from the engine but its output: it reads the input topic itself and computes what must be
//! there. Every test has topics, a database, an index, folders and a pipeline name of its own, so they run side by side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod events;
mod harness;
mod judge;
mod reference;

mod avro;
mod brokers;
mod cli;
mod compact;
mod delta;
mod demo;
mod dimensions;
mod drift;
mod elasticsearch;
mod http;
mod kill;
mod monitoring;
mod outbox;
mod pipeline;
mod recovery;
mod retention;
mod s3;
mod sample;
mod schemas;
mod secrets;
mod secured;
mod sink_contract;
