//! The bytes of the records that refused rows came from, read again.
//!
//! A batch lets go of its records when its SQL has run: they take more memory than its rows, and hardly a batch is asked
//! for them. When a sink refuses rows, the part of the batch that they lie in is read from the source once more, from the
//! same offsets. What retention has taken meanwhile is NULL; a replay could not read it either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef};
use arrow::buffer::ScalarBuffer;

use super::dead_letters::DeadLetter;
use crate::connector::{self, Chunk, CutLimit, OffsetRange, Ranges, TableDefinition};
use crate::{Error, Result};

/// Bytes that are read ahead of what is asked for.
const BUFFER_BYTES: usize = 1 << 20;

/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Consumer group of such reads; nothing is ever committed to it.
const GROUP: &str = "poundlock-dead-letters";

/// Where the records of a batch can be found again.
#[derive(Debug, Default)]
pub struct Sources(Vec<Arc<TableDefinition>>);

impl Sources {
    /// Of these source tables those that declare `_raw`.
    pub fn new<'t>(tables: impl Iterator<Item = &'t Arc<TableDefinition>>) -> Self {
        Self(tables.filter(|table| table.schema.index_of("_raw").is_ok()).cloned().collect())
    }

    /// The records that the letters miss, as far as they lie in the batch and are still there.
    ///
    /// # Errors
    /// A source cannot be read now (retryable).
    pub async fn records(&self, letters: &[DeadLetter], batch: &BTreeMap<String, Ranges>) -> Result<Records> {
        let mut records = Records::default();
        for table in &self.0 {
            let Some(ranges) = batch.get(&table.name) else { continue };
            let wanted = wanted(letters, &table.location, ranges);
            if wanted.is_empty() {
                continue;
            }
            match tokio::time::timeout(LIMIT, read(table, ranges, wanted)).await {
                Ok(Ok(chunks)) => records.add(table, &chunks),
                Ok(Err(error)) if error.is_retryable() => return Err(error),
                Ok(Err(error)) => {
                    tracing::warn!(
                        table = table.name,
                        "dead letters without the bytes of their records: {}",
                        error.line()
                    );
                }
                Err(_) => {
                    let error = format!("reading records of topic {:?} again took more than {LIMIT:?}", table.location);
                    return Err(Error::external(error).retryable().hint("does the broker run?"));
                }
            }
        }
        Ok(records)
    }
}

/// The part of each partition that has the records the letters miss, of this topic or of one they do not know. A table of
/// the user's may hold any numbers in its columns: only offsets of the batch are looked at.
fn wanted(letters: &[DeadLetter], topic: &str, batch: &Ranges) -> Ranges {
    let mut wanted = Ranges::new();
    for (of, partition, offset) in letters.iter().filter_map(DeadLetter::wants_record) {
        let partition = i32::try_from(partition).ok();
        let range = partition.and_then(|partition| Some((partition, batch.get(&partition)?)));
        let Some((partition, range)) = range.filter(|_| of.is_none_or(|of| of == topic)) else { continue };
        if (range.from..range.to).contains(&offset) {
            let part = wanted.entry(partition).or_insert(OffsetRange { from: offset, to: offset + 1 });
            *part = OffsetRange { from: part.from.min(offset), to: part.to.max(offset + 1) };
        }
    }
    wanted
}

async fn read(table: &Arc<TableDefinition>, batch: &Ranges, wanted: Ranges) -> Result<Vec<Chunk>> {
    // Of partitions that nothing is wanted of, reading begins behind the batch.
    let from = batch.iter().map(|(partition, range)| (*partition, wanted.get(partition).map_or(range.to, |w| w.from)));
    let source = connector::source(table)?.open(GROUP, &from.collect(), BUFFER_BYTES).await?;
    Ok(source.cut(&CutLimit::Exactly(wanted)).await?.chunks)
}

/// Records by topic, partition and offset.
#[derive(Debug, Default)]
pub struct Records(Vec<Part>);

#[derive(Debug)]
struct Part {
    topic: String,
    partition: i64,
    /// Ascending.
    offsets: ScalarBuffer<i64>,
    raw: ArrayRef,
}

impl Records {
    fn add(&mut self, source: &TableDefinition, chunks: &[Chunk]) {
        let parts = chunks.iter().filter_map(|chunk| {
            let raw = Arc::clone(chunk.rows.column_by_name("_raw")?);
            let (topic, partition) = (source.location.clone(), i64::from(chunk.partition));
            Some(Part { topic, partition, offsets: chunk.offsets.clone(), raw })
        });
        self.0.extend(parts);
    }

    /// Gives each letter that misses it the bytes of its record.
    pub fn fill(&self, letters: &mut [DeadLetter]) {
        for letter in letters {
            if let Some((topic, partition, offset)) = letter.wants_record() {
                letter.set_raw(self.raw(topic, partition, offset));
            }
        }
    }

    /// Without a topic, of whichever has the offset, if there is one.
    fn raw(&self, topic: Option<&str>, partition: i64, offset: i64) -> Option<ArrayRef> {
        let of_topic = |part: &&Part| part.partition == partition && topic.is_none_or(|topic| part.topic == topic);
        let mut found = self.0.iter().filter(of_topic).filter_map(|part| {
            let row = part.offsets.binary_search(&offset).ok()?;
            Some(part.raw.slice(row, 1))
        });
        let first = found.next();
        // Two sources may read one topic.
        if topic.is_none() && found.next().is_some() { None } else { first }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::connector::{InsertRows, Refusal};
    use crate::pipeline::dead_letters;

    fn table(location: &str, fields: Vec<Field>) -> Arc<TableDefinition> {
        Arc::new(TableDefinition {
            name: "t".into(),
            schema: Arc::new(Schema::new(fields)),
            primary_key: vec![],
            unbounded: false,
            stored_as: "KAFKA".into(),
            location: location.into(),
            partition_columns: vec![],
            options: [].into(),
            place: String::new(),
        })
    }

    /// Of a row of partition 3 that a sink refused.
    fn letter(topic: Option<&str>, offset: i64) -> DeadLetter {
        let topic: ArrayRef = Arc::new(StringArray::from(vec![topic]));
        let partition: ArrayRef = Arc::new(Int32Array::from(vec![3]));
        let offset: ArrayRef = Arc::new(Int64Array::from(vec![offset]));
        let row = [("topic", topic), ("partition", partition), ("_offset", offset)];
        let rows = vec![RecordBatch::try_from_iter(row).unwrap()];
        let insert = InsertRows { insert: 0, table: table("x", vec![]), rows, hash: String::new() };
        DeadLetter::of_sink(&Refusal { insert: 0, row: 0, error: "too long".into() }, &insert).unwrap()
    }

    #[test]
    fn a_row_that_a_sink_refused_has_the_bytes_of_its_record_and_the_reason() {
        let raw: ArrayRef = Arc::new(BinaryArray::from(vec![&b"seven"[..], &b"nine"[..]]));
        let rows = RecordBatch::try_from_iter([("_raw", raw)]).unwrap();
        let chunk = Chunk { partition: 3, rows, offsets: vec![7, 9].into(), undecodable: 0, bytes: 9 };
        let (mut records, mut two) = (Records::default(), Records::default());
        records.add(&table("events", vec![]), std::slice::from_ref(&chunk));
        for topic in ["events", "others"] {
            two.add(&table(topic, vec![]), std::slice::from_ref(&chunk));
        }
        let raw_of = |records: &Records, topic: Option<&str>, offset: i64| {
            let mut letters = [letter(topic, offset)];
            records.fill(&mut letters);
            let field = |name: &str, of: DataType| Field::new(name, of, true);
            let columns = vec![field("dq_reason", DataType::Utf8), field("raw", DataType::Binary)];
            let rows = dead_letters::rows(&letters, 1, &table("dead", columns)).unwrap();
            assert_eq!(rows[0]["dq_reason"].as_string::<i32>().value(0), "too long");
            let raw = rows[0]["raw"].as_binary::<i32>();
            raw.is_valid(0).then(|| String::from_utf8(raw.value(0).to_vec()).unwrap())
        };
        assert_eq!(raw_of(&records, Some("events"), 9).as_deref(), Some("nine"));
        assert_eq!(raw_of(&records, None, 7).as_deref(), Some("seven"));
        assert_eq!(raw_of(&two, Some("others"), 7).as_deref(), Some("seven"));
        for (records, topic, offset) in [(&records, Some("events"), 8), (&records, Some("other"), 7), (&two, None, 7)] {
            assert_eq!(raw_of(records, topic, offset), None);
        }
    }

    #[test]
    fn only_the_part_of_the_batch_that_has_them_is_read_again() {
        let batch = Ranges::from([(3, OffsetRange { from: 100, to: 200 }), (4, OffsetRange { from: 0, to: 50 })]);
        let letters = [letter(Some("events"), 120), letter(None, 150), letter(Some("events"), 130)];
        assert_eq!(wanted(&letters, "events", &batch), Ranges::from([(3, OffsetRange { from: 120, to: 151 })]));
        // Another topic's, before the batch, behind it.
        let others = [letter(Some("others"), 120), letter(None, 99), letter(Some("events"), 200)];
        assert!(wanted(&others, "events", &batch).is_empty());
        assert!(wanted(&letters, "events", &Ranges::new()).is_empty());
    }
}
