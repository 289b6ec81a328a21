//! The envelope of every record in a checkpoint: what it is, whose it is, and proof that it is whole.
//!
//! ```text
//! 0   "PNDLOCK\n"                   8 bytes
//! 8   format version                u32, little endian
//! 12  length of the header          u32
//! 16  length of the payload         u64
//! 24  header: JSON {key, pipeline, record}
//!     payload: opaque bytes
//!     blake3 of all bytes before    32 bytes
//! ```
//!
//! The header repeats the record's own key and the pipeline's UUID, so that a file that was copied from elsewhere, or
//! renamed, is not taken for what its name says.
//!
//! Invariant for all versions to come: the magic, the version and the closing blake3 stay where they are, so that a
//! record of a newer version is told from a damaged one. Failure: every way to be wrong is an error that names the
//! file; nothing is ever guessed.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

/// Raised with every change that an older program would misread.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"PNDLOCK\n";
const PROLOGUE: usize = 24;
const CHECKSUM: usize = 32;

#[derive(Serialize, Deserialize)]
struct Header<T> {
    /// Below the pipeline's folder, as `commit/00000000000000000007`.
    key: String,
    pipeline: Uuid,
    record: T,
}

/// # Errors
/// The record has no JSON form (a defect), or is beyond 4 GiB of JSON.
pub fn encode<T: Serialize>(key: &str, pipeline: Uuid, record: &T, payload: &[u8]) -> Result<Bytes> {
    let header = serde_json::to_vec(&Header { key: key.to_string(), pipeline, record })
        .map_err(|e| Error::internal(format!("checkpoint record {key} has no JSON form")).cause(e))?;
    let header_length = u32::try_from(header.len())
        .map_err(|_| Error::internal(format!("checkpoint record {key} has a header of {} bytes", header.len())))?;
    let mut bytes = Vec::with_capacity(PROLOGUE + header.len() + payload.len() + CHECKSUM);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&header_length.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(payload);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    Ok(bytes.into())
}

/// What is in a record: the record itself and its payload (a slice, not a copy).
#[derive(Debug)]
pub struct Decoded<T> {
    pub pipeline: Uuid,
    pub record: T,
    pub payload: Bytes,
}

/// `file` is for messages; `key` what the record has to say of itself; `pipeline` whose it has to be, where known.
///
/// # Errors
/// Foreign, truncated, damaged, of a newer format, of another pipeline or under another name: each says so.
pub fn decode<T: DeserializeOwned>(file: &str, key: &str, pipeline: Option<Uuid>, bytes: &Bytes) -> Result<Decoded<T>> {
    let (header_length, payload_length) = verify(file, bytes)?;
    let payload_at = PROLOGUE + header_length;
    let header = &bytes[PROLOGUE..payload_at];
    // Who it belongs to first: a record of a sister program may hold fields that this one does not read.
    let owner: Header<serde::de::IgnoredAny> = serde_json::from_slice(header).map_err(|e| unreadable(file).cause(e))?;
    if let Some(expected) = pipeline
        && owner.pipeline != expected
    {
        return Err(Error::user(format!("checkpoint file {file} belongs to another pipeline"))
            .cause(format!("it is of {}, this checkpoint is of {expected}", owner.pipeline))
            .hint("a checkpoint cannot be put together from files of two; restore it whole"));
    }
    if owner.key != key {
        return Err(Error::user(format!("checkpoint file {file} holds the record {:?}", owner.key))
            .cause("it was renamed or copied")
            .hint("restore the checkpoint whole"));
    }
    let header: Header<T> = serde_json::from_slice(header).map_err(|e| unreadable(file).cause(e))?;
    let payload = bytes.slice(payload_at..payload_at + payload_length);
    Ok(Decoded { pipeline: header.pipeline, record: header.record, payload })
}

/// Lengths of header and payload of a record that is whole and of our version.
fn verify(file: &str, bytes: &[u8]) -> Result<(usize, usize)> {
    let start = bytes.len().min(MAGIC.len());
    if bytes[..start] != MAGIC[..start] {
        return Err(Error::user(format!("checkpoint file {file} is not a record of poundlock"))
            .cause("it does not begin as one")
            .hint("was something else stored in the checkpoint's folder, or is this another program's folder?"));
    }
    if bytes.len() < PROLOGUE + CHECKSUM {
        return Err(truncated(file, bytes.len(), "at least 56"));
    }
    let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
    let whole = blake3::hash(body) == blake3::Hash::from_bytes(checksum.try_into().unwrap_or([0; CHECKSUM]));
    let version = u32::from_le_bytes(array(bytes, 8));
    if whole && version != FORMAT_VERSION {
        return Err(Error::user(format!("checkpoint file {file} has format version {version}"))
            .cause(format!("this program reads version {FORMAT_VERSION}"))
            .hint("run the version of poundlock that wrote it, or a newer one"));
    }
    let header_length = u64::from(u32::from_le_bytes(array(bytes, 12)));
    let payload_length = u64::from_le_bytes(array(bytes, 16));
    let expected =
        ((PROLOGUE + CHECKSUM) as u64).checked_add(header_length).and_then(|n| n.checked_add(payload_length));
    if !whole {
        return Err(match expected {
            Some(expected) if expected > bytes.len() as u64 => truncated(file, bytes.len(), &expected.to_string()),
            _ => Error::external(format!("checkpoint file {file} is damaged"))
                .cause("its checksum does not match its content")
                .hint("restore it from a backup; the disk may be failing"),
        });
    }
    if expected != Some(bytes.len() as u64) {
        return Err(unreadable(file).cause("its lengths do not add up though its checksum is right"));
    }
    Ok((header_length as usize, payload_length as usize))
}

fn truncated(file: &str, have: usize, want: &str) -> Error {
    Error::external(format!("checkpoint file {file} is truncated"))
        .cause(format!("it has {have} bytes of {want}"))
        .hint("restore it from a backup; the disk may have been full or failing")
}

fn unreadable(file: &str) -> Error {
    Error::internal(format!("checkpoint file {file} cannot be read, though it is whole"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: Uuid = Uuid::from_u128(7);

    fn record() -> Bytes {
        encode("commit/1", PIPELINE, &"a record".to_string(), b"payload").unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Decoded<String>> {
        decode("p/commit/1", "commit/1", Some(PIPELINE), &Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn what_was_written_is_read() {
        let decoded = read(&record()).unwrap();
        assert_eq!(decoded.record, "a record");
        assert_eq!(&decoded.payload[..], b"payload");
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let whole = record();
        for length in 0..whole.len() {
            let error = read(&whole[..length]).unwrap_err();
            assert_eq!(error.message(), "checkpoint file p/commit/1 is truncated", "{length} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_an_error() {
        let whole = record();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = read(&bytes).unwrap_err();
            assert!(error.message().contains("p/commit/1"), "bit {bit}: {error}");
            assert!(!error.message().contains("format version"), "bit {bit}: {error}");
        }
        let mut bytes = whole.to_vec();
        bytes[40] ^= 1;
        assert_eq!(read(&bytes).unwrap_err().message(), "checkpoint file p/commit/1 is damaged");
    }

    #[test]
    fn bytes_behind_the_record_are_damage() {
        let mut bytes = record().to_vec();
        bytes.push(0);
        assert_eq!(read(&bytes).unwrap_err().message(), "checkpoint file p/commit/1 is damaged");
    }

    #[test]
    fn a_foreign_file_is_named() {
        let error = read(b"PAR1 something of another program, long enough to hold a record").unwrap_err();
        assert_eq!(error.message(), "checkpoint file p/commit/1 is not a record of poundlock");
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut bytes = record().to_vec();
        bytes[8] = 9;
        assert_eq!(read(&bytes).unwrap_err().message(), "checkpoint file p/commit/1 is damaged");
        let end = bytes.len() - CHECKSUM;
        let checksum = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(checksum.as_bytes());
        let error = read(&bytes).unwrap_err();
        assert_eq!(error.message(), "checkpoint file p/commit/1 has format version 9");
    }

    #[test]
    fn a_record_of_another_pipeline_or_place_is_refused() {
        let error = decode::<String>("f", "commit/1", Some(Uuid::from_u128(8)), &record()).unwrap_err();
        assert!(error.to_string().contains("belongs to another pipeline"), "{error}");
        let error = decode::<String>("f", "commit/2", Some(PIPELINE), &record()).unwrap_err();
        assert!(error.to_string().contains("holds the record \"commit/1\""), "{error}");
    }
}
