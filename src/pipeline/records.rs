//! The bytes of the records that refused rows came from, read again.
//!
//! A batch lets go of its records when its SQL has run: they take more memory than its rows, and hardly a batch is asked
//! for them. When a sink refuses rows, the part of the batch that they lie in is read from the source once more, by a
//! consumer of its own; of rows far apart that is nearly the whole batch, once more in memory.
//!
//! Failure: what retention has taken meanwhile is NULL, with a warning; a replay could not read it either. All else is an
//! error: the dead letters of a replay must be the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef};

use super::dead_letters::DeadLetter;
use crate::connector::{self, CutLimit, OffsetRange, Ranges, Source, TableDefinition};
use crate::{Error, Result};

/// Bytes that are read ahead of what is asked for.
const BUFFER_BYTES: usize = 1 << 20;

/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the records of a batch can be found again.
#[derive(Debug, Default)]
pub struct Archive {
    /// Of the pipeline: its rights are known to do, and nothing is committed to its group here.
    name: String,
    sources: Vec<Arc<TableDefinition>>,
}

/// A record: number of its source in the archive, partition, offset.
type Key = (usize, i32, i64);

impl Archive {
    /// Of these source tables those that declare `_raw`.
    pub fn new<'t>(name: &str, tables: impl Iterator<Item = &'t Arc<TableDefinition>>) -> Self {
        let sources = tables.filter(|table| table.schema.index_of("_raw").is_ok()).cloned().collect();
        Self { name: name.to_string(), sources }
    }

    /// Gives each letter that misses it the bytes of its record, if that is of this batch and still there.
    ///
    /// # Errors
    /// A source cannot be read.
    pub async fn fill(&self, letters: &mut [DeadLetter], batch: &BTreeMap<String, Ranges>) -> Result<()> {
        let keys: Vec<Option<Key>> = letters.iter().map(|letter| self.key(letter, batch)).collect();
        let mut found: BTreeMap<Key, ArrayRef> = BTreeMap::new();
        for number in 0..self.sources.len() {
            let offsets: Vec<(i32, i64)> =
                keys.iter().flatten().filter(|key| key.0 == number).map(|key| (key.1, key.2)).collect();
            if !offsets.is_empty() {
                let read = tokio::time::timeout(LIMIT, self.read(number, &offsets, &mut found)).await;
                read.unwrap_or_else(|_| Err(self.late(number)))?;
            }
        }
        for (letter, key) in letters.iter_mut().zip(&keys) {
            if let Some(raw) = key.and_then(|key| found.get(&key)) {
                letter.set_raw(Arc::clone(raw));
            }
        }
        Ok(())
    }

    /// The record that a letter misses. A table of the user's may hold any numbers in its columns: only offsets of the batch
    /// count, and without a topic only those that one source alone has.
    fn key(&self, letter: &DeadLetter, batch: &BTreeMap<String, Ranges>) -> Option<Key> {
        let (topic, partition, offset) = letter.wants_record()?;
        let partition = i32::try_from(partition).ok()?;
        let has = |table: &TableDefinition| {
            let range = batch.get(&table.name).and_then(|ranges| ranges.get(&partition));
            range.is_some_and(|range| (range.from..range.to).contains(&offset))
        };
        let of_topic = |table: &TableDefinition| topic.is_none_or(|topic| topic == table.location);
        let mut sources = self.sources.iter().enumerate().filter(|(_, table)| of_topic(table) && has(table));
        let (number, _) = sources.next()?;
        // Two tables of one topic have the same records.
        let is_one = topic.is_some() || sources.next().is_none();
        is_one.then_some((number, partition, offset))
    }

    async fn read(&self, number: usize, offsets: &[(i32, i64)], found: &mut BTreeMap<Key, ArrayRef>) -> Result<()> {
        let table = &self.sources[number];
        let source = connector::raw_source(table)?;
        let log = source.extent().await?;
        let (wanted, lost) = part_of(&log, offsets);
        if lost > 0 {
            let table = table.name.as_str();
            tracing::warn!(
                records = lost,
                table,
                "dead letters without the bytes of records that are not there any more"
            );
        }
        if wanted.is_empty() {
            return Ok(());
        }
        // Of partitions that nothing is wanted of, reading begins at the end.
        let from =
            log.iter().map(|(partition, range)| (*partition, wanted.get(partition).map_or(range.to, |w| w.from)));
        let opened = Reading(Some(source.open(&self.name, &from.collect(), BUFFER_BYTES).await?));
        let Some(opened) = &opened.0 else { return Ok(()) };
        for chunk in opened.cut(&CutLimit::Exactly(wanted)).await?.chunks {
            let Some(raw) = chunk.rows.column_by_name("_raw") else { continue };
            for (partition, offset) in offsets.iter().filter(|(partition, _)| *partition == chunk.partition) {
                if let Ok(row) = chunk.offsets.binary_search(offset) {
                    found.insert((number, *partition, *offset), raw.slice(row, 1));
                }
            }
        }
        Ok(())
    }

    fn late(&self, number: usize) -> Error {
        let topic = &self.sources[number].location;
        let error = format!("reading records of topic {topic:?} again took more than {LIMIT:?}");
        Error::external(error).retryable().hint("does the broker run?")
    }
}

/// Closing a consumer blocks: not on a thread that others need.
struct Reading(Option<Box<dyn Source>>);

impl Drop for Reading {
    fn drop(&mut self) {
        let source = self.0.take();
        drop(tokio::task::spawn_blocking(move || drop(source)));
    }
}

/// From the first to the last of these offsets in each partition, as far as the log has them; and how many it has not.
fn part_of(log: &Ranges, offsets: &[(i32, i64)]) -> (Ranges, usize) {
    let (mut part, mut lost) = (Ranges::new(), 0);
    for (partition, offset) in offsets {
        if !log.get(partition).is_some_and(|range| (range.from..range.to).contains(offset)) {
            lost += 1;
            continue;
        }
        let range = part.entry(*partition).or_insert(OffsetRange { from: *offset, to: offset + 1 });
        *range = OffsetRange { from: range.from.min(*offset), to: range.to.max(offset + 1) };
    }
    (part, lost)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, Int64Array, RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::connector::{InsertRows, Refusal};

    fn table(name: &str, topic: &str) -> Arc<TableDefinition> {
        Arc::new(TableDefinition {
            name: name.into(),
            schema: Arc::new(Schema::new(vec![Field::new("_raw", DataType::Binary, true)])),
            primary_key: vec![],
            unbounded: true,
            stored_as: "KAFKA".into(),
            location: topic.into(),
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
        let insert = InsertRows { insert: 0, table: table("x", ""), rows, hash: String::new() };
        DeadLetter::of_sink(&Refusal { insert: 0, row: 0, error: "too long".into() }, &insert).unwrap()
    }

    fn ranges(from: i64, to: i64) -> Ranges {
        Ranges::from([(3, OffsetRange { from, to })])
    }

    #[test]
    fn a_record_is_looked_for_where_the_batch_has_it() {
        let archive = Archive::new("p", [table("a", "events"), table("b", "others")].iter());
        let batch = BTreeMap::from([("a".to_string(), ranges(100, 200)), ("b".to_string(), ranges(150, 300))]);
        let key = |topic, offset| archive.key(&letter(topic, offset), &batch);
        assert_eq!(key(Some("events"), 160), Some((0, 3, 160)));
        assert_eq!(key(Some("others"), 160), Some((1, 3, 160)));
        // Without a topic: of the only source that can have it.
        assert_eq!((key(None, 120), key(None, 250), key(None, 160)), (Some((0, 3, 120)), Some((1, 3, 250)), None));
        // Of another topic, before the batch, behind it.
        assert_eq!((key(Some("third"), 160), key(Some("events"), 99), key(Some("events"), 200)), (None, None, None));
    }

    #[test]
    fn only_the_part_of_the_log_that_has_them_is_read() {
        let log = Ranges::from([(3, OffsetRange { from: 100, to: 200 }), (4, OffsetRange { from: 0, to: 50 })]);
        let (part, lost) = part_of(&log, &[(3, 120), (3, 150), (3, 130), (3, 99), (4, 50), (5, 0)]);
        assert_eq!((part, lost), (ranges(120, 151), 3));
        assert_eq!(part_of(&log, &[(3, 7)]), (Ranges::new(), 1));
    }
}
