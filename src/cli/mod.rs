//! cli
pub mod generate;
