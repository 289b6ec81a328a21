//! A default of a schema, which is JSON, as Avro: so it is read like any other value.
//!
//! Source: Avro specification 1.12.0, "Complex Types", table "field default values": bytes and fixed are strings whose code
//! points 0 to 255 are the bytes; of a union, the default is a value of its first branch (any branch that fits is taken, as
//! newer versions allow).

use serde_json::Value;

use super::schema::{Kind, NodeId, Schema};

/// Levels of nested types.
const DEPTH_MAX: usize = 64;

/// Appends the value in the type's own form.
///
/// # Errors
/// What is wrong with it, as the end of a sentence that begins with the field's name.
pub fn encode_default(schema: &Schema, id: NodeId, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    encode(schema, id, value, out, DEPTH_MAX)
}

fn encode(schema: &Schema, id: NodeId, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or("is nested too deep")?;
    let wrong = || format!("is not {}", schema.describe(id));
    match &schema.node(id).kind {
        Kind::Null if value.is_null() => {}
        Kind::Boolean => out.push(value.as_bool().ok_or_else(wrong)?.into()),
        Kind::Int => {
            let number = value.as_i64().filter(|number| i32::try_from(*number).is_ok()).ok_or_else(wrong)?;
            put_long(number, out);
        }
        Kind::Long => put_long(value.as_i64().ok_or_else(wrong)?, out),
        Kind::Float => out.extend_from_slice(&(value.as_f64().ok_or_else(wrong)? as f32).to_le_bytes()),
        Kind::Double => out.extend_from_slice(&value.as_f64().ok_or_else(wrong)?.to_le_bytes()),
        Kind::String => put_bytes(value.as_str().ok_or_else(wrong)?.as_bytes(), out),
        Kind::Bytes => put_bytes(&latin(value).ok_or_else(wrong)?, out),
        Kind::Fixed { size, .. } => {
            out.extend(latin(value).filter(|bytes| bytes.len() == *size).ok_or_else(wrong)?);
        }
        Kind::Enum { symbols, .. } => {
            let at = value.as_str().and_then(|text| symbols.iter().position(|symbol| symbol == text));
            put_long(at.ok_or_else(wrong)? as i64, out);
        }
        Kind::Array(item) => {
            let items = value.as_array().ok_or_else(wrong)?;
            if !items.is_empty() {
                put_long(items.len() as i64, out);
            }
            items.iter().try_for_each(|one| encode(schema, *item, one, out, depth))?;
            out.push(0);
        }
        Kind::Map(inner) => {
            let entries = value.as_object().ok_or_else(wrong)?;
            if !entries.is_empty() {
                put_long(entries.len() as i64, out);
            }
            for (key, one) in entries {
                put_bytes(key.as_bytes(), out);
                encode(schema, *inner, one, out, depth)?;
            }
            out.push(0);
        }
        Kind::Union(branches) => {
            let begin = out.len();
            for (number, branch) in branches.iter().enumerate() {
                put_long(number as i64, out);
                if encode(schema, *branch, value, out, depth).is_ok() {
                    return Ok(());
                }
                out.truncate(begin);
            }
            return Err("is in no branch of its union".into());
        }
        Kind::Record { fields, .. } => {
            let object = value.as_object().ok_or_else(wrong)?;
            for field in fields {
                let own = object.get(&field.name).or(field.default.as_ref());
                let own = own.ok_or_else(|| format!("lacks {:?}", field.name))?;
                encode(schema, field.node, own, out, depth)?;
            }
        }
        Kind::Null => return Err(wrong()),
    }
    Ok(())
}

/// The bytes that a string of code points 0 to 255 stands for.
fn latin(value: &Value) -> Option<Vec<u8>> {
    value.as_str()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// Zigzag, seven bits at a time, the lowest first.
#[inline]
pub fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A length and the bytes.
#[inline]
pub fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}
