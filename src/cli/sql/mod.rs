//! The ad-hoc SQL shell: what needs no knowledge of the engine.

pub mod gate;

pub mod execute;

pub mod output;

pub mod describe;

pub mod prompt;
