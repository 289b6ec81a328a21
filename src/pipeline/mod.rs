//! The loop: cut, plan, run, write, commit; and the start that takes it up again.
//!
//! ```text
//!   fetch, decode │ batch N+1 ────────────────────┐
//!   cut plan run  │           batch N+1 ──────────│── at most one batch ahead
//!   write commit  │ batch N ──────────│ batch N+1 │
//! ```
//!
//! The plan of a batch is durable before anything of it is written, its commit after everything is: so a restart knows
//! which batch may be half written, and replays exactly that. No product is named here; no event, no table.

pub mod watermark;

pub mod rows;

pub mod run;

mod in_turn;

mod merged;

mod refused;

pub mod dead_letters;

mod records;

pub mod dimension;

mod read_back;

pub mod write;

pub mod outbox;

pub mod breaker;

mod status;

pub mod start;

mod pending;

mod restore;

mod plans;

pub mod backoff;

mod execute;

pub mod turn;

pub use dimension::Age;
pub use restore::ResetState;
pub use start::{Begin, Pipeline, now};
pub use turn::{BatchSummary, End, Options, Progress};
