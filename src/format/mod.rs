//! Bytes of records to and from Arrow.

pub mod json;

pub mod json_encode;

pub mod avro;

mod base64;

pub mod time;
