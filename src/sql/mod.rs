//! The user's `.sql` files, from text to statements with places, to plans that every batch runs.
//!
//! ```text
//! queries/*.sql ─▶ text (substitute) ─▶ statement ─▶ table, settings ─▶ program: INSERTs, windowed views, tables
//!                            └───────── place, explain: errors at the user's own line
//! ```

pub mod text;

pub mod substitute;

pub mod statement;

pub mod doubt;

pub mod table;

mod engine_options;

pub mod types;

pub mod settings;

mod planner;

pub mod program;

pub mod insert;

pub mod session;

pub mod window_tvf;

pub mod window_bin;

pub mod windowed;

mod paned;

pub mod lineage;

mod bound;

mod by_window;

mod read_back;

pub mod functions;

pub mod pinned;

pub mod shared;

pub mod needed;

pub mod place;

pub mod words;

pub mod syntax;

pub mod explain;

pub use explain::{explain, nearest};
pub use place::Place;
pub use program::{Insert, Program};
pub use statement::{Kind, Name, Script, Statement, parse};
pub use table::{UnresolvedTable, define};
pub use text::Files;
