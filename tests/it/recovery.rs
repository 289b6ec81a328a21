//! What a start makes of what it finds: the real program, stopped at chosen lines by the environment variable FAILPOINTS
//! (see `src/point.rs`), and started again.

pub mod contents;
pub mod points;
pub mod project;
mod promises;
mod runs;
mod switched;
