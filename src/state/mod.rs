//! Window state: partial aggregates by pane, merged into windows only where something changed.

pub mod image;

pub mod compact;

pub mod panes;

pub use panes::{Bounds, Delta, PaneStore};
