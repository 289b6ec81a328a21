//! The command line: one file a verb.

pub mod generate;

pub mod migrate;

pub mod sql;
