//! cli
pub mod migrate;
