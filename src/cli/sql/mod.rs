//! The ad-hoc SQL shell.

pub mod gate;

pub mod execute;

pub mod copy;

pub mod output;

pub mod describe;

pub mod catalog;

pub mod prompt;
