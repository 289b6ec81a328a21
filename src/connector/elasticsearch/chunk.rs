//! The rows of a batch as documents, in chunks of bounded rows and bytes, made as they are asked for.
//!
//! Of two rows of a batch with one key only one is sent, so that the order in which requests arrive means nothing: the
//! last one where a later document replaces, the first one where it does not.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use serde_json::Value;
use uuid::Uuid;

use super::document_id::Ids;
use super::options::{BulkLimits, ElasticsearchTable, OpType};
use crate::connector::{InsertRows, Refusal, WriteRequest};
use crate::error::reason_text;
use crate::format::json_encode::{EncodedRows, encode_rows};
use crate::{Error, Result};

/// What is asked of Elasticsearch for a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To replace what is there, unless that has a higher version.
    Index { version: u64 },
    /// To leave what is there: it may be of an earlier batch, for the key is the user's.
    CreateByKey,
    /// The same; but nobody else makes this `_id`, so it can only be this very document.
    CreateOwn,
}

/// A document within a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub insert: usize,
    /// Position among the INSERT's rows of this batch.
    pub row: usize,
    pub index: Arc<str>,
    pub id: String,
    pub action: Action,
    bytes: Range<usize>,
}

/// Documents to be sent together, and rows that no document comes of.
#[derive(Debug, Default)]
pub struct Chunk {
    pub items: Vec<Item>,
    bytes: Vec<u8>,
    /// About the bytes of the whole request.
    weight: usize,
    /// Rows that have no `_id` or no index.
    pub refusals: Vec<Refusal>,
    /// By INSERT: rows whose key another row of the batch has.
    pub superseded: BTreeMap<usize, u64>,
}

impl Chunk {
    /// The text of a document.
    pub fn document(&self, item: &Item) -> &[u8] {
        &self.bytes[item.bytes.clone()]
    }

    /// A bulk request of some of its documents: for each a line that says what to do, and one with the document.
    pub fn lines(&self, items: &[usize]) -> Vec<u8> {
        let mut lines = Vec::with_capacity(items.iter().map(|item| weight(&self.items[*item])).sum());
        for item in items.iter().map(|item| &self.items[*item]) {
            let what: &[u8] = match item.action {
                Action::Index { .. } => b"{\"index\":{\"_index\":",
                Action::CreateByKey | Action::CreateOwn => b"{\"create\":{\"_index\":",
            };
            lines.extend_from_slice(what);
            lines.extend_from_slice(Value::from(&*item.index).to_string().as_bytes());
            lines.extend_from_slice(b",\"_id\":");
            lines.extend_from_slice(Value::from(item.id.as_str()).to_string().as_bytes());
            if let Action::Index { version } = item.action {
                lines.extend_from_slice(b",\"version_type\":\"external_gte\",\"version\":");
                lines.extend_from_slice(itoa::Buffer::new().format(version).as_bytes());
            }
            lines.extend_from_slice(b"}}\n");
            // The encoder escapes line breaks within it.
            lines.extend_from_slice(self.document(item));
            lines.push(b'\n');
        }
        lines
    }
}

/// About the bytes of its two lines.
fn weight(item: &Item) -> usize {
    item.bytes.len() + item.index.len() + item.id.len() + 100
}

/// How documents of a batch are made.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// By name.
    pub tables: Arc<BTreeMap<String, ElasticsearchTable>>,
    pub request: Arc<WriteRequest>,
    /// Of the checkpoint.
    pub uuid: Uuid,
    /// Of documents that replace others.
    pub version: u64,
    pub limits: BulkLimits,
}

impl Recipe {
    fn table(&self, insert: &InsertRows) -> Result<&ElasticsearchTable> {
        let name = &insert.table.name;
        self.tables.get(name).ok_or_else(|| Error::internal(format!("table {name} is not of this sink")))
    }

    /// Of some rows of an INSERT.
    fn ids(&self, table: &ElasticsearchTable, insert: usize, rows: &RecordBatch) -> Result<Ids> {
        if !table.is_keyed() {
            let (uuid, batch) = (self.uuid, self.request.batch);
            return Ok(Ids::Numbered(format!("{uuid}-{batch}-{insert}-")));
        }
        // The table's fields: those of the rows may differ in what may be NULL.
        let fields = table.definition.schema.fields();
        Ids::of_key(table.key.iter().map(|column| (&fields[*column], rows.column(*column))))
    }

    fn action(&self, table: &ElasticsearchTable) -> Action {
        match (table.op_type, table.is_keyed()) {
            (OpType::Index, _) => Action::Index { version: self.version },
            (OpType::Create, true) => Action::CreateByKey,
            (OpType::Create, false) => Action::CreateOwn,
        }
    }

    /// `(INSERT, row)` of those that are not sent, for another row of the batch has their key.
    fn superseded(&self) -> Result<BTreeSet<(usize, usize)>> {
        let mut superseded = BTreeSet::new();
        // By 16 bytes of a hash of index and id: two keys share one once in 2⁶⁴ batches of a billion rows.
        let mut seen: HashMap<[u8; 16], (usize, usize)> = HashMap::new();
        let mut id = String::new();
        for insert in &self.request.inserts {
            let table = self.table(insert)?;
            if !table.is_keyed() {
                continue;
            }
            let mut number = 0;
            for rows in &insert.rows {
                let ids = self.ids(table, insert.insert, rows)?;
                let mut names = table.index.of(rows.columns());
                for row in 0..rows.num_rows() {
                    let position = (insert.insert, number);
                    number += 1;
                    // One that is refused is in nobody's way.
                    let (Ok(()), Ok(name)) = (ids.write(row, position.1, &mut id), names.name(row)) else { continue };
                    let mut hasher = blake3::Hasher::new();
                    hasher.update(name.as_bytes()).update(b"\n").update(id.as_bytes());
                    let mut key = [0; 16];
                    hasher.finalize_xof().fill(&mut key);
                    match seen.entry(key) {
                        hash_map::Entry::Vacant(entry) => {
                            entry.insert(position);
                        }
                        hash_map::Entry::Occupied(mut entry) if table.op_type == OpType::Index => {
                            superseded.insert(entry.insert(position));
                        }
                        hash_map::Entry::Occupied(_) => {
                            superseded.insert(position);
                        }
                    }
                }
            }
        }
        Ok(superseded)
    }
}

/// The chunks of a batch, one after the other.
pub struct Chunks {
    recipe: Recipe,
    superseded: BTreeSet<(usize, usize)>,
    /// Where the next slice begins: position of the INSERT, of its record batch, of the row in that.
    next: (usize, usize, usize),
    /// Rows of the INSERT before that record batch.
    before: usize,
    slice: Option<Slice>,
}

/// Some rows of one record batch, encoded.
struct Slice {
    /// Position of the INSERT.
    insert: usize,
    rows: RecordBatch,
    /// Rows of the INSERT before them.
    before: usize,
    ids: Ids,
    documents: EncodedRows,
    /// Of the documents, the next one.
    at: usize,
}

impl Chunks {
    /// # Errors
    /// Of ours: a table or a type that was not checked.
    pub fn new(recipe: Recipe) -> Result<Self> {
        let superseded = recipe.superseded()?;
        Ok(Self { recipe, superseded, next: (0, 0, 0), before: 0, slice: None })
    }

    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// As [`Chunks::new`].
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        let mut chunk = Chunk::default();
        loop {
            let slice = match self.slice.take() {
                Some(slice) => Some(slice),
                None => self.next_slice()?,
            };
            let Some(mut slice) = slice else { break };
            let is_full = self.fill(&mut chunk, &mut slice)?;
            if slice.at < slice.documents.len() {
                self.slice = Some(slice);
            }
            if is_full {
                break;
            }
        }
        let is_empty = chunk.items.is_empty() && chunk.refusals.is_empty() && chunk.superseded.is_empty();
        Ok((!is_empty).then_some(chunk))
    }

    /// As many rows as one request may have: more would be encoded for nobody yet.
    fn next_slice(&mut self) -> Result<Option<Slice>> {
        loop {
            let (position, batch, offset) = self.next;
            let Some(insert) = self.recipe.request.inserts.get(position) else { return Ok(None) };
            let Some(rows) = insert.rows.get(batch) else {
                (self.next, self.before) = ((position + 1, 0, 0), 0);
                continue;
            };
            if offset >= rows.num_rows() {
                self.next = (position, batch + 1, 0);
                self.before += rows.num_rows();
                continue;
            }
            let count = self.recipe.limits.rows.min(rows.num_rows() - offset);
            let columns: Vec<usize> = (0..rows.num_columns()).collect();
            let rows = rows.slice(offset, count);
            let documents = encode_rows(&rows, &columns)?;
            let ids = self.recipe.ids(self.recipe.table(insert)?, insert.insert, &rows)?;
            self.next = (position, batch, offset + count);
            return Ok(Some(Slice { insert: position, rows, before: self.before + offset, ids, documents, at: 0 }));
        }
    }

    /// Takes rows of the slice into the chunk. `true`: the chunk is full.
    fn fill(&self, chunk: &mut Chunk, slice: &mut Slice) -> Result<bool> {
        let insert = &self.recipe.request.inserts[slice.insert];
        let table = self.recipe.table(insert)?;
        let mut names = table.index.of(slice.rows.columns());
        let action = self.recipe.action(table);
        let (limits, mut id) = (self.recipe.limits, String::new());
        let mut shared: Option<Arc<str>> = None;
        while slice.at < slice.documents.len() {
            let row = slice.before + slice.at;
            let insert = insert.insert;
            if self.superseded.contains(&(insert, row)) {
                *chunk.superseded.entry(insert).or_default() += 1;
                slice.at += 1;
                continue;
            }
            let name = match (slice.ids.write(slice.at, row, &mut id), names.name(slice.at)) {
                (Ok(()), Ok(name)) => name,
                (Err(why), _) | (_, Err(why)) => {
                    chunk.refusals.push(Refusal { insert, row, error: reason_text(&why) });
                    slice.at += 1;
                    // So that too many of them are noticed before all are made.
                    if chunk.refusals.len() >= limits.rows {
                        return Ok(true);
                    }
                    continue;
                }
            };
            let index = match &shared {
                Some(shared) if **shared == *name => Arc::clone(shared),
                _ => Arc::clone(shared.insert(name.as_ref().into())),
            };
            let document = slice.documents.row(slice.at);
            let bytes = chunk.bytes.len()..chunk.bytes.len() + document.len();
            let item = Item { insert, row, index, id: id.clone(), action, bytes };
            let is_full = chunk.items.len() >= limits.rows || chunk.weight + weight(&item) > limits.bytes;
            if is_full && !chunk.items.is_empty() {
                return Ok(true);
            }
            chunk.weight += weight(&item);
            chunk.bytes.extend_from_slice(document);
            chunk.items.push(item);
            slice.at += 1;
        }
        Ok(false)
    }
}
