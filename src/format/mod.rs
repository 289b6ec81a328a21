//! Bytes of records to and from Arrow.

pub mod json;

pub mod json_encode;

mod base64;

pub mod time;
