//! Poundlock: Kafka micro-batches through the user's SQL files into every sink together, exactly once.
//!
//! In reading order; ARCHITECTURE.md draws how the parts meet.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr))]

pub mod error;

mod point;

pub mod pipeline;

pub mod sql;

pub mod state;

pub mod checkpoint;

pub mod format;

pub mod connector;

pub mod cli;

pub use error::{Error, Fault, Part, Result};
