//! The user's `.sql` files, from text to statements with places; then (program) to plans.
//!
//! ```text
//! queries/*.sql ─▶ text (substitute) ─▶ statement ─▶ table, settings ─▶ program
//!                            └───────── place, explain: errors at the user's own line
//! ```

pub mod text;

pub mod substitute;

pub mod statement;

pub mod table;

pub mod types;

pub mod settings;

pub mod place;

pub mod explain;

pub use explain::{explain, nearest};
pub use place::Place;
pub use statement::{Kind, Name, Statement, parse};
pub use table::{UnresolvedTable, define};
pub use text::Files;
