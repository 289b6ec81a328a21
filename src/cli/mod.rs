//! cli

pub mod sql;
