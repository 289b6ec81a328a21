//! The user's SQL files → a [`Program`]: parse, catalog, windows, check.

pub mod functions;
pub mod pinned;
pub mod window_tvf;
pub mod windowed;
