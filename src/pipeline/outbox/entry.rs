//! The rows of a batch as they lie in an outbox, and those of them that a sink has refused.
//!
//! ```text
//! record: offsets, INSERTs with table and hash       payload: of each INSERT [length, u64 LE][Arrow IPC stream]
//! ```
//!
//! All that the identity of a row follows from is there: batch, INSERT, position, when it was planned. So what is written into
//! a sink from here is what would have been written without an outbox.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::checkpoint::BatchPlan;
use crate::connector::{InsertRows, Ranges, Refusal, TableDefinition, Wave, WriteRequest};
use crate::state::compact::compact;
use crate::{Error, Result};

/// What is in the file beside the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub offsets: BTreeMap<String, Ranges>,
    pub inserts: Vec<EntryInsert>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInsert {
    pub insert: usize,
    pub table: String,
    pub hash: String,
}

/// What a sink has refused of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub batch: u64,
    pub offsets: BTreeMap<String, Ranges>,
    /// Those of each are the rows of one section of the payload.
    pub inserts: Vec<RefusedInsert>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedInsert {
    pub insert: usize,
    pub table: String,
    /// One a row.
    pub errors: Vec<String>,
}

/// Tables of a sink with their columns, as a short text: rows that were handed over under the same are surely of these tables.
pub fn shape<'t>(tables: impl Iterator<Item = &'t Arc<TableDefinition>>) -> String {
    let mut lines: Vec<String> = tables.map(|table| format!("{} {}", table.name, columns(&table.schema))).collect();
    lines.sort_unstable();
    blake3::hash(lines.join("\n").as_bytes()).to_hex()[..12].to_string()
}

/// Whether rows of this schema are rows of the table.
pub fn is_of(rows: &arrow::datatypes::Schema, table: &TableDefinition) -> bool {
    columns(rows) == columns(&table.schema)
}

fn columns(schema: &arrow::datatypes::Schema) -> String {
    let column = |field: &Arc<arrow::datatypes::Field>| format!("{:?} {}", field.name(), field.data_type());
    schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
}

pub fn encode(request: &WriteRequest) -> Result<(Entry, Bytes)> {
    let insert = |rows: &InsertRows| EntryInsert {
        insert: rows.insert,
        table: rows.table.name.clone(),
        hash: rows.hash.clone(),
    };
    let entry = Entry { offsets: request.offsets.clone(), inserts: request.inserts.iter().map(insert).collect() };
    let mut payload = vec![];
    for insert in &request.inserts {
        section(&mut payload, &insert.rows)?;
    }
    Ok((entry, payload.into()))
}

/// The rows of each INSERT.
pub fn sections(payload: &[u8]) -> Result<Vec<Vec<RecordBatch>>> {
    let torn = || Error::external("rows of an outbox are cut short").hint("restore the checkpoint from a backup");
    let (mut sections, mut rest) = (vec![], payload);
    while let Some((length, behind)) = rest.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| torn())?;
        let (body, behind) = behind.split_at_checked(length).ok_or_else(torn)?;
        sections.push(match body.is_empty() {
            true => vec![],
            false => StreamReader::try_new(body, None)?.collect::<std::result::Result<_, _>>()?,
        });
        rest = behind;
    }
    if rest.is_empty() { Ok(sections) } else { Err(torn()) }
}

/// # Errors
/// It has rows of a table that is not among these.
pub fn decode(
    of: BatchPlan,
    entry: Entry,
    payload: &[u8],
    tables: &BTreeMap<String, Arc<TableDefinition>>,
) -> Result<WriteRequest> {
    let mut inserts = vec![];
    for (of, rows) in entry.inserts.into_iter().zip(sections(payload)?) {
        let table = match tables.get(&of.table) {
            Some(table) => table,
            None if rows.is_empty() => continue,
            None => return Err(Error::internal(format!("table {} has no outbox any more", of.table))),
        };
        inserts.push(InsertRows { insert: of.insert, table: Arc::clone(table), rows, hash: of.hash });
    }
    let BatchPlan { batch, planned_at } = of;
    Ok(WriteRequest { batch, wave: Wave::Rows, planned_at, offsets: entry.offsets, inserts })
}

/// The rows that were refused, with why.
///
/// # Errors
/// The sink named a row that the INSERT does not have.
pub fn refused(request: &WriteRequest, refusals: &[Refusal]) -> Result<(Refused, Bytes)> {
    let mut refused = Refused { batch: request.batch, offsets: request.offsets.clone(), inserts: vec![] };
    let mut payload = vec![];
    for insert in &request.inserts {
        let mut of_insert: Vec<&Refusal> = refusals.iter().filter(|refusal| refusal.insert == insert.insert).collect();
        of_insert.sort_by_key(|refusal| refusal.row);
        let (Some(first), Some(last)) = (insert.rows.first(), of_insert.last()) else { continue };
        if last.row >= insert.row_count() {
            return Err(Error::internal(format!(
                "a sink refused row {} of {}, which has fewer",
                last.row, insert.table.name
            )));
        }
        let places = of_insert.iter().map(|refusal| u32::try_from(refusal.row).unwrap_or(u32::MAX));
        let all = concat_batches(&first.schema(), &insert.rows)?;
        section(&mut payload, &[take_record_batch(&all, &UInt32Array::from_iter_values(places))?])?;
        refused.inserts.push(RefusedInsert {
            insert: insert.insert,
            table: insert.table.name.clone(),
            errors: of_insert.iter().map(|refusal| refusal.error.clone()).collect(),
        });
    }
    Ok((refused, payload.into()))
}

/// Without rows it is empty.
fn section(payload: &mut Vec<u8>, rows: &[RecordBatch]) -> Result<()> {
    let length_at = payload.len();
    payload.extend_from_slice(&[0; 8]);
    // A row of a large buffer would take all of it along.
    let mut compacted = rows.iter().map(compact);
    if let Some(first) = compacted.next().transpose()? {
        let all: usize = rows.iter().map(RecordBatch::num_rows).sum();
        // At once, and not by doubling it: a batch may have many megabytes.
        payload.reserve(first.get_array_memory_size().saturating_mul(all) / first.num_rows().max(1));
        let mut writer = StreamWriter::try_new(&mut *payload, &first.schema())?;
        writer.write(&first)?;
        for rows in compacted {
            writer.write(&rows?)?;
        }
        writer.finish()?;
    }
    let length = (payload.len() - length_at - 8) as u64;
    payload[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::array::{Array, AsArray, Int64Array, StringViewArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};

    use super::*;
    use crate::connector::OffsetRange;

    pub fn table(name: &str) -> Arc<TableDefinition> {
        let fields = vec![Field::new("id", DataType::Int64, true), Field::new("t", DataType::Utf8View, true)];
        Arc::new(TableDefinition {
            name: name.into(),
            schema: Arc::new(Schema::new(fields)),
            primary_key: vec![],
            unbounded: false,
            stored_as: "DATABASE".into(),
            location: "sqlite:x".into(),
            partition_columns: vec![],
            options: [("delivery".to_string(), "outbox".to_string())].into(),
            place: String::new(),
        })
    }

    fn rows(table: &TableDefinition, ids: std::ops::Range<i64>) -> RecordBatch {
        let texts = StringViewArray::from_iter_values(ids.clone().map(|id| format!("a text that is not short {id}")));
        let ids = Int64Array::from_iter_values(ids);
        RecordBatch::try_new(Arc::clone(&table.schema), vec![Arc::new(ids), Arc::new(texts)]).unwrap()
    }

    fn request() -> WriteRequest {
        let (one, two) = (table("db.one"), table("db.two"));
        let ranges = Ranges::from([(3, OffsetRange { from: 7, to: 9 })]);
        let insert = |insert, table: &Arc<TableDefinition>, rows| InsertRows {
            insert,
            table: Arc::clone(table),
            rows,
            hash: format!("hash {insert}"),
        };
        let large = rows(&one, 0..1_000);
        WriteRequest {
            batch: 12,
            wave: Wave::Rows,
            planned_at: 5,
            offsets: BTreeMap::from([("kafka.events".to_string(), ranges)]),
            inserts: vec![
                insert(0, &one, vec![large.slice(10, 3), rows(&one, 50..52)]),
                insert(4, &two, vec![]),
                insert(5, &two, vec![rows(&two, 7..8)]),
            ],
        }
    }

    #[test]
    fn rows_come_back_as_they_went_and_take_no_more_room_than_they_need() {
        let request = request();
        let tables = ["db.one", "db.two"].map(|name| (name.to_string(), table(name))).into();
        let (entry, payload) = encode(&request).unwrap();
        assert!(payload.len() < 4_000, "{}", payload.len());
        let of = BatchPlan { batch: 12, planned_at: 5 };
        let back = decode(of, entry.clone(), &payload, &tables).unwrap();
        assert_eq!((back.batch, back.wave, back.planned_at, &back.offsets), (12, Wave::Rows, 5, &request.offsets));
        for (back, went) in back.inserts.iter().zip(&request.inserts) {
            assert_eq!((back.insert, &back.hash, &back.rows), (went.insert, &went.hash, &went.rows));
            assert_eq!(back.table.name, went.table.name);
        }
        assert_eq!(back.inserts.len(), 3);
        for length in 0..payload.len() {
            assert!(
                sections(&payload[..length]).is_err() || length == 0 || sections(&payload[..length]).unwrap().len() < 3
            );
        }
        let error = decode(of, entry, &payload, &BTreeMap::new()).unwrap_err();
        assert!(error.message().contains("db.one"), "{error}");
    }

    #[test]
    fn what_was_refused_is_there_with_its_reasons() {
        let refusal = |insert, row, error: &str| Refusal { insert, row, error: error.into() };
        let refusals = [refusal(5, 0, "c"), refusal(0, 4, "b"), refusal(0, 1, "a")];
        let (refused, payload) = refused(&request(), &refusals).unwrap();
        let of = |insert: &RefusedInsert| (insert.table.clone(), insert.errors.join(" "));
        let found: Vec<_> = refused.inserts.iter().map(of).collect();
        assert_eq!(found, [("db.one".to_string(), "a b".to_string()), ("db.two".to_string(), "c".to_string())]);
        let sections = sections(&payload).unwrap();
        let ids = |rows: &RecordBatch| rows["id"].as_primitive::<Int64Type>().values().to_vec();
        assert_eq!((ids(&sections[0][0]), ids(&sections[1][0])), (vec![11, 51], vec![7]));
        assert_eq!(sections[0][0]["t"].len(), 2);
        assert!(super::refused(&request(), &[refusal(0, 5, "x")]).is_err());
    }

    #[test]
    fn another_column_is_another_shape() {
        let (one, two) = (table("db.one"), table("db.two"));
        let mut other = (*two).clone();
        other.schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, true)]));
        let other = Arc::new(other);
        assert_eq!(shape([&one, &two].into_iter()), shape([&two, &one].into_iter()));
        assert_ne!(shape([&one, &two].into_iter()), shape([&one, &other].into_iter()));
        assert_ne!(shape([&one, &two].into_iter()), shape([&one].into_iter()));
        assert!(is_of(&two.schema, &one) && !is_of(&other.schema, &one));
    }
}
