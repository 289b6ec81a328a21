//! From the records of one partition to the rows of a chunk: the decoder's columns beside the metadata columns.
//!
//! A chunk ends at [`CHUNK_ROWS`] rows or [`CHUNK_BYTES`] of payload, both counted from where the last one ended: the
//! same range of offsets is always cut into the same chunks, so that a replay computes the same bytes.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Int32Array, Int64Array, RecordBatch, RecordBatchOptions, StringViewArray,
    StringViewBuilder, TimestampMicrosecondBuilder, UInt32Array,
};
use arrow::buffer::ScalarBuffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};

use super::options::{KafkaTable, MetadataColumn};
use crate::Result;
use crate::connector::Chunk;
use crate::format::json::JsonDecoder;

/// DataFusion's own batch size: a chunk is taken as it is by the queries.
pub const CHUNK_ROWS: usize = 8_192;

/// Bounds a chunk of long records; a record longer than this is a chunk of its own.
pub const CHUNK_BYTES: usize = 8 << 20;

/// Where each column of the table comes from; shared by all partitions.
#[derive(Debug)]
pub struct RowLayout {
    schema: SchemaRef,
    columns: Vec<Column>,
    data: Vec<FieldRef>,
    topic: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Column {
    /// The n-th column of the decoder.
    Data(usize),
    Metadata(MetadataColumn),
}

impl RowLayout {
    pub fn new(table: &KafkaTable) -> Self {
        let schema = Arc::clone(&table.definition.schema);
        let mut data = vec![];
        let columns = schema.fields().iter().map(|field| match MetadataColumn::of(field.name()) {
            Some(column) => Column::Metadata(column),
            None => {
                data.push(Arc::clone(field));
                Column::Data(data.len() - 1)
            }
        });
        Self { columns: columns.collect(), data, topic: table.topic.clone(), schema }
    }

    fn type_of(&self, wanted: MetadataColumn) -> Option<&DataType> {
        let index = self.columns.iter().position(|column| *column == Column::Metadata(wanted))?;
        Some(self.schema.field(index).data_type())
    }
}

/// One record, borrowed from librdkafka.
#[derive(Debug, Clone, Copy)]
pub struct Record<'m> {
    pub offset: i64,
    pub payload: Option<&'m [u8]>,
    pub key: Option<&'m [u8]>,
    /// ms since 1970, UTC.
    pub timestamp: Option<i64>,
}

enum Keys {
    Bytes(BinaryBuilder),
    Text(StringViewBuilder),
}

/// Rows that wait to become a chunk. Columns that are not declared cost nothing.
pub struct RowBuilder {
    layout: Arc<RowLayout>,
    partition: i32,
    decoder: JsonDecoder,
    offsets: Vec<i64>,
    undecodable: Vec<u32>,
    bytes: usize,
    errors: Option<StringViewBuilder>,
    raw: Option<BinaryBuilder>,
    timestamps: Option<TimestampMicrosecondBuilder>,
    keys: Option<Keys>,
}

impl RowBuilder {
    pub fn try_new(layout: &Arc<RowLayout>, partition: i32) -> Result<Self> {
        let declared = |column| layout.type_of(column);
        Ok(Self {
            decoder: JsonDecoder::try_new(&layout.data)?,
            partition,
            offsets: vec![],
            undecodable: vec![],
            bytes: 0,
            errors: declared(MetadataColumn::Error).map(|_| StringViewBuilder::new()),
            raw: declared(MetadataColumn::Raw).map(|_| BinaryBuilder::new()),
            timestamps: declared(MetadataColumn::Timestamp)
                .map(|data_type| TimestampMicrosecondBuilder::new().with_data_type(data_type.clone())),
            keys: declared(MetadataColumn::Key).map(|data_type| match data_type {
                DataType::Binary => Keys::Bytes(BinaryBuilder::new()),
                _ => Keys::Text(StringViewBuilder::new()),
            }),
            layout: Arc::clone(layout),
        })
    }

    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// About what the rows hold in memory.
    pub fn memory(&self) -> usize {
        let copies = 1 + usize::from(self.raw.is_some());
        self.bytes * copies + self.offsets.len() * 32
    }

    pub fn first_offset(&self) -> Option<i64> {
        self.offsets.first().copied()
    }

    /// Whether the chunk has reached its size.
    pub fn is_full(&self) -> bool {
        self.offsets.len() >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES
    }

    /// Appends one row: the record's, or one of NULLs with the reason.
    pub fn push(&mut self, record: &Record) {
        let refused = self.decoder.push(record.payload).err();
        if refused.is_some() {
            // A chunk has at most CHUNK_ROWS rows.
            self.undecodable.push(self.offsets.len() as u32);
        }
        self.offsets.push(record.offset);
        self.bytes += record.payload.map_or(0, <[u8]>::len) + record.key.map_or(0, <[u8]>::len);
        if let Some(errors) = &mut self.errors {
            errors.append_option(refused);
        }
        if let Some(raw) = &mut self.raw {
            raw.append_option(record.payload);
        }
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.append_option(record.timestamp.and_then(|ms| ms.checked_mul(1_000)));
        }
        match &mut self.keys {
            Some(Keys::Bytes(keys)) => keys.append_option(record.key),
            Some(Keys::Text(keys)) => keys.append_option(record.key.map(String::from_utf8_lossy)),
            None => {}
        }
    }

    /// The rows so far as a chunk; the next one begins empty. Not to be called without rows.
    pub fn finish(&mut self) -> Result<Held> {
        let offsets = ScalarBuffer::from(std::mem::take(&mut self.offsets));
        let undecodable = std::mem::take(&mut self.undecodable);
        let bytes = std::mem::take(&mut self.bytes);
        let data = self.decoder.finish()?;
        let rows = offsets.len();
        let mut errors = self.errors.as_mut().map(|errors| Arc::new(errors.finish()) as ArrayRef);
        let mut raw = self.raw.as_mut().map(|raw| {
            let full = raw.finish();
            // The next chunk is probably as long: a buffer that grows is copied again and again.
            let room = (full.values().len() + full.values().len() / 16).min(CHUNK_BYTES);
            *raw = BinaryBuilder::with_capacity(rows, room);
            Arc::new(full) as ArrayRef
        });
        let mut timestamps = self.timestamps.as_mut().map(|times| Arc::new(times.finish()) as ArrayRef);
        let mut keys = self.keys.as_mut().map(|keys| match keys {
            Keys::Bytes(keys) => Arc::new(keys.finish()) as ArrayRef,
            Keys::Text(keys) => Arc::new(keys.finish()) as ArrayRef,
        });
        let mut arrays = Vec::with_capacity(self.layout.columns.len());
        for column in &self.layout.columns {
            let array = match column {
                Column::Data(index) => data.get(*index).map(Arc::clone),
                Column::Metadata(MetadataColumn::Error) => errors.take(),
                Column::Metadata(MetadataColumn::Raw) => raw.take(),
                Column::Metadata(MetadataColumn::Timestamp) => timestamps.take(),
                Column::Metadata(MetadataColumn::Key) => keys.take(),
                Column::Metadata(MetadataColumn::Topic) => Some(repeated(&self.layout.topic, rows)?),
                Column::Metadata(MetadataColumn::Partition) => {
                    Some(Arc::new(Int32Array::from(vec![self.partition; rows])) as ArrayRef)
                }
                Column::Metadata(MetadataColumn::Offset) => {
                    Some(Arc::new(Int64Array::new(offsets.clone(), None)) as ArrayRef)
                }
            };
            arrays.extend(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.layout.schema), arrays, &options)?;
        let chunk = Chunk { partition: self.partition, rows: batch, offsets, undecodable: undecodable.len(), bytes };
        Ok(Held { memory: chunk.rows.get_array_memory_size(), chunk, undecodable })
    }
}

/// The same text in every row, stored once.
fn repeated(text: &str, rows: usize) -> Result<ArrayRef> {
    let one = StringViewArray::from_iter_values([text]);
    let views = ScalarBuffer::from(vec![one.views()[0]; rows]);
    Ok(Arc::new(StringViewArray::try_new(views, one.data_buffers().to_vec(), None)?))
}

/// A copy of the first rows. A slice would keep the whole batch in memory, and be charged for it.
pub fn head(batch: &RecordBatch, rows: usize) -> Result<RecordBatch> {
    let indices = UInt32Array::from_iter_values(0..rows as u32);
    let copy = |array: &ArrayRef| -> Result<ArrayRef> {
        let taken = take(array, &indices, None)?;
        Ok(match taken.data_type() {
            DataType::Utf8View => Arc::new(taken.as_string_view().gc()),
            _ => taken,
        })
    };
    let columns = batch.columns().iter().map(copy).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(batch.schema(), columns, &options)?)
}

/// A chunk in the buffer.
#[derive(Debug)]
pub struct Held {
    pub chunk: Chunk,
    pub memory: usize,
    /// The rows that did not decode, to know how many are in a part of the chunk.
    undecodable: Vec<u32>,
}

impl Held {
    pub fn first_offset(&self) -> i64 {
        self.chunk.offsets.first().copied().unwrap_or(i64::MAX)
    }

    pub fn last_offset(&self) -> i64 {
        self.chunk.offsets.last().copied().unwrap_or(i64::MIN)
    }

    /// A copy of the rows before this offset; `None` if there are none.
    pub fn before(&self, offset: i64) -> Result<Option<Chunk>> {
        let chunk = &self.chunk;
        let rows = chunk.offsets.partition_point(|o| *o < offset);
        if rows == 0 {
            return Ok(None);
        }
        Ok(Some(Chunk {
            partition: chunk.partition,
            rows: head(&chunk.rows, rows)?,
            offsets: chunk.offsets[..rows].to_vec().into(),
            undecodable: self.undecodable.partition_point(|row| (*row as usize) < rows),
            // Payload lengths are not kept by row: this part's share.
            bytes: (chunk.bytes as u128 * rows as u128 / chunk.offsets.len().max(1) as u128) as usize,
        }))
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::super::options::tests::definition;
    use super::*;

    pub fn layout() -> Arc<RowLayout> {
        let columns = [
            ("id", DataType::Int64),
            ("_error", DataType::Utf8View),
            ("_raw", DataType::Binary),
            ("_topic", DataType::Utf8View),
            ("_partition", DataType::Int32),
            ("_offset", DataType::Int64),
            ("_timestamp", DataType::Timestamp(TimeUnit::Microsecond, None)),
            ("_key", DataType::Utf8View),
        ];
        let table = KafkaTable::try_new(definition(&columns, "a_topic_with_a_long_name", &[("brokers", "b")])).unwrap();
        table.check_as_source().unwrap();
        Arc::new(RowLayout::new(&table))
    }

    #[test]
    fn every_record_is_one_row_with_its_metadata() {
        let mut rows = RowBuilder::try_new(&layout(), 3).unwrap();
        let payloads = [(7, Some(r#"{"id":1}"#)), (9, Some("not json")), (12, None), (13, Some(r#"{"id":2}"#))];
        for (offset, payload) in payloads {
            let (payload, key) = (payload.map(str::as_bytes), Some(b"k".as_slice()));
            rows.push(&Record { offset, payload, key, timestamp: Some(1_000 + offset) });
        }
        let held = rows.finish().unwrap();
        let (chunk, batch) = (&held.chunk, &held.chunk.rows);
        assert_eq!((batch.num_rows(), chunk.partition, &chunk.offsets[..]), (4, 3, &[7, 9, 12, 13][..]));
        let ids = batch["id"].as_primitive::<arrow::datatypes::Int64Type>();
        assert_eq!(ids.iter().collect::<Vec<_>>(), [Some(1), None, None, Some(2)]);
        assert!(batch["_error"].is_null(0) && batch["_error"].is_valid(1) && batch["_error"].is_null(3));
        assert_eq!(batch["_raw"].as_binary::<i32>().value(1), b"not json");
        assert!(batch["_raw"].is_null(2));
        assert_eq!(batch["_topic"].as_string_view().value(3), "a_topic_with_a_long_name");
        assert_eq!(batch["_key"].as_string_view().value(0), "k");
        let times = batch["_timestamp"].as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
        assert_eq!(times.value(0), 1_007_000);
        assert!(rows.len() == 0 && rows.bytes() == 0);

        let head = held.before(10).unwrap().unwrap();
        assert_eq!((head.rows.num_rows(), head.undecodable, &head.offsets[..]), (2, 1, &[7, 9][..]));
        assert_eq!(head.rows, batch.slice(0, 2));
        assert!(held.before(7).unwrap().is_none());
    }
}
