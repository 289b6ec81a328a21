//! Avro payloads into Arrow columns, and rows into Avro: one payload is one row, whatever it holds.
//!
//! ```text
//! 0 | id, 4 bytes | record ──▶ [Plan] of the schema of that id ──▶ the cells of json::column ──▶ arrays
//! ```
//!
//! [`resolve`] looks at the writer's schema and the columns once; what it makes is run for each record ([`read`]) straight
//! into the cells that the JSON decoder fills too, so that both formats may come on one topic, and a record that does not
//! decode is cut back and stays a row. arrow-avro was not taken: a truncated record loses its batch, and reasons name no
//! field. apache-avro makes a tree of values of each record; it is the oracle of the tests.
//!
//! # What becomes of a payload
//!
//! | payload | row |
//! |---|---|
//! | does not begin with byte 0 | refused: `not Avro: begins with byte n, not 0` (format 'auto': JSON) |
//! | fewer than 5 bytes | refused: `not Avro: n bytes are too few …` |
//! | an id that the registry does not know | refused: `schema n is not in the registry` |
//! | a schema that does not resolve | refused: `schema n: column: …` |
//! | bytes that are not of the schema; any that are left | refused: `column: … (byte n)` |
//! | empty, or none at all | refused, as JSON is |
//!
//! # What becomes of a value
//!
//! As the specification resolves schemas: see [`resolve`]. The reference page has the table for users.
//!
//! A reason reads as those of [`json`](super::json): path, what was wrong, and the byte where the value begins, frame
//! included.
//!
//! Invariants: every `push` appends one row; the same payload, schema and columns give the same row or the same reason.
//!
//! Source: Avro specification 1.12.0; Confluent, "Formats, Serializers, and Deserializers", wire format.

pub mod defaults;
pub mod encode;
mod read;
mod resolve;
pub mod schema;
pub mod table;

use arrow::datatypes::FieldRef;

pub use encode::Encoder;
pub use resolve::Plan;
pub use schema::Schema;

use super::json::JsonDecoder;
use super::json::reason::Reason;

/// Of a frame: the magic byte and the id.
pub const FRAME_BYTES: usize = 5;

/// The id in a frame; `None` if it is none.
#[inline]
pub fn frame_id(payload: &[u8]) -> Option<u32> {
    match payload {
        [0, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// What is known of a schema id: how its records are read, or why they cannot be.
pub type Known = Result<Plan, String>;

/// The plan of a schema's text for these columns.
pub fn known(id: u32, text: &str, references: &[String], reader: Option<&Schema>, columns: &[FieldRef]) -> Known {
    let schema = Schema::parse(text, references).map_err(|error| format!("schema {id} is not usable: {error}"))?;
    let mut plan = Plan::new(&schema, reader, columns);
    for root in &mut plan.roots {
        if let Err(reason) = root {
            *reason = format!("schema {id}: {reason}");
        }
    }
    Ok(plan)
}

/// Appends one row; `known` is what is known of the id in the payload's frame.
///
/// # Errors
/// The reason why the payload was refused. Then the row *has* been appended, all NULL.
#[inline]
pub fn push(decoder: &mut JsonDecoder, payload: &[u8], known: Option<&Known>) -> Result<(), String> {
    decoder.append(|fields, _| match (frame_id(payload), known) {
        (Some(_), Some(Ok(plan))) => {
            plan.read(fields.columns(), payload, FRAME_BYTES).map_err(|reason| reason.to_string())
        }
        (Some(_), Some(Err(reason))) => Err(reason.clone()),
        (Some(id), None) => Err(format!("schema {id} is not in the registry")),
        (None, _) => Err(no_frame(payload)),
    })
}

#[cold]
fn no_frame(payload: &[u8]) -> String {
    match payload.first() {
        None => "empty payload".into(),
        Some(0) => {
            let length = payload.len();
            Reason::value(format!("not Avro: {length} bytes are too few for the id of a schema"), 0).to_string()
        }
        Some(byte) => {
            Reason::value(format!("not Avro: begins with byte {byte}, not 0 and the id of a schema"), 0).to_string()
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod properties;
