//! Window state as bytes: the delta of a commit, the snapshot of a checkpoint.
//!
//! ```text
//! [store key, 32 ASCII bytes][length, u64 LE][Arrow IPC stream] …     one section for each store
//! ```
//!
//! A batch of the stream is one entry of one pane's list, so a restored list has the length it had, and merges again at
//! the same batch as if the process had never stopped. The key is [`PaneDefinition::key`]: state of another aggregate,
//! or of another version of DataFusion, is not taken for this one. Checksums are the checkpoint's.
//!
//! [`PaneDefinition::key`]: crate::sql::windowed::PaneDefinition::key

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;

use crate::state::panes::States;
use crate::{Error, Result};

const KEY_BYTES: usize = 32;

/// Writes one section after another.
#[derive(Default)]
pub struct ImageWriter(Vec<u8>);

impl ImageWriter {
    /// A store without states has a section too: that it was empty is worth knowing.
    pub fn section<'a>(&mut self, key: &str, states: impl Iterator<Item = &'a States>) -> Result<()> {
        let mut states = states.peekable();
        self.0.extend_from_slice(key.as_bytes());
        let length_at = self.0.len();
        self.0.extend_from_slice(&[0; 8]);
        if let Some(first) = states.peek() {
            let mut writer = StreamWriter::try_new(&mut self.0, &first.rows.schema())?;
            for states in states {
                writer.write(&states.rows)?;
            }
            writer.finish()?;
        }
        let length = (self.0.len() - length_at - 8) as u64;
        self.0[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    pub fn finish(self) -> Bytes {
        self.0.into()
    }
}

/// The states of every store, by key.
pub fn read(image: &Bytes) -> Result<BTreeMap<String, Vec<RecordBatch>>> {
    let mut stores = BTreeMap::new();
    for (key, body) in sections(image)? {
        let batches = match body.is_empty() {
            true => vec![],
            false => StreamReader::try_new(body, None)?.collect::<std::result::Result<_, _>>()?,
        };
        stores.insert(key, batches);
    }
    Ok(stores)
}

/// The keys of the stores, without reading their states.
pub fn keys(image: &Bytes) -> Result<BTreeSet<String>> {
    Ok(sections(image)?.into_iter().map(|(key, _)| key).collect())
}

fn sections(image: &Bytes) -> Result<Vec<(String, &[u8])>> {
    let torn = || Error::external("window state in the checkpoint is cut short").hint("restore it from a backup");
    let mut sections = vec![];
    let mut at = 0;
    while at < image.len() {
        let header = image.get(at..at + KEY_BYTES + 8).ok_or_else(torn)?;
        let key = String::from_utf8_lossy(&header[..KEY_BYTES]).into_owned();
        let length: [u8; 8] = header[KEY_BYTES..].try_into().map_err(|_| torn())?;
        at += KEY_BYTES + 8;
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(|_| torn())?;
        let body = image.get(at..at.checked_add(length).ok_or_else(torn)?).ok_or_else(torn)?;
        at += length;
        sections.push((key, body));
    }
    Ok(sections)
}
