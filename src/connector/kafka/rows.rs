//! From the records of one partition to the rows of a chunk: the decoder's columns beside the metadata columns.
//!
//! ```text
//! reader thread: Packer ─▶ Slot (records) ─▶ decoding thread, or a cut that comes first ─▶ Slot (rows) ─▶ Cut
//! ```
//!
//! To read from Kafka and to decode take about as long, so they are two threads' work. The reader copies each payload once,
//! into memory that becomes the column `_raw`.
//!
//! A chunk ends at [`CHUNK_ROWS`] rows or [`CHUNK_BYTES`] of payload, both counted from where the last one ended: the
//! same range of offsets is always cut into the same chunks, so that a replay computes the same bytes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int32Array, Int64Array, RecordBatch, RecordBatchOptions,
    StringViewArray, StringViewBuilder, TimestampMicrosecondBuilder, UInt32Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};

use super::client::lock;
use super::options::{KafkaTable, MetadataColumn};
use super::schemas::Schemas;
use super::values::Format;
use crate::connector::Chunk;
use crate::format::avro;
use crate::format::json::JsonDecoder;
use crate::{Error, Result};

/// DataFusion's own batch size: a chunk is taken as it is by the queries.
pub const CHUNK_ROWS: usize = 8_192;

/// Bounds a chunk of long records; a record longer than this is a chunk of its own.
pub const CHUNK_BYTES: usize = 8 << 20;

/// Of every row, beside its columns: its offset, where its payload ends, validity.
const ROW_BYTES: usize = 16;

/// What a value of this type takes in any case; nested ones about.
fn width(data_type: &DataType) -> usize {
    data_type.primitive_width().unwrap_or(match data_type {
        DataType::Boolean | DataType::Null => 1,
        DataType::Utf8View | DataType::BinaryView => 16,
        DataType::Struct(fields) => fields.iter().map(|field| width(field.data_type())).sum(),
        _ => 8,
    })
}

/// Where each column of the table comes from; shared by all partitions.
#[derive(Debug)]
pub struct RowLayout {
    schema: SchemaRef,
    columns: Vec<Column>,
    data: Vec<FieldRef>,
    topic: String,
    format: Format,
    /// What a row takes in memory, whatever is in it, about.
    row_bytes: usize,
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
        let columns = columns.collect();
        let row_bytes = schema.fields().iter().map(|field| width(field.data_type())).sum::<usize>() + ROW_BYTES;
        Self { columns, data, topic: table.topic.clone(), format: table.format, row_bytes, schema }
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

/// Records that wait to be decoded, one after the other in memory. What is not declared is not kept.
pub struct Packer {
    layout: Arc<RowLayout>,
    partition: i32,
    offsets: Vec<i64>,
    /// The payloads; those that are NULL take no room.
    values: Vec<u8>,
    /// What the first record of a chunk makes room for: nothing is held for partitions that are silent.
    room: usize,
    /// Where each payload ends, after a 0.
    ends: Vec<i32>,
    /// Rows whose payload is NULL.
    tombstones: Vec<usize>,
    bytes: usize,
    timestamps: Option<TimestampMicrosecondBuilder>,
    keys: Option<BinaryBuilder>,
}

impl Packer {
    pub fn new(layout: &Arc<RowLayout>, partition: i32) -> Self {
        Self {
            partition,
            offsets: vec![],
            values: vec![],
            room: 0,
            ends: vec![0],
            tombstones: vec![],
            bytes: 0,
            timestamps: layout
                .type_of(MetadataColumn::Timestamp)
                .map(|data_type| TimestampMicrosecondBuilder::new().with_data_type(data_type.clone())),
            keys: layout.type_of(MetadataColumn::Key).map(|_| BinaryBuilder::new()),
            layout: Arc::clone(layout),
        }
    }

    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// About what the rows hold in memory: the payloads, and what they will be when they are decoded.
    pub fn memory(&self) -> usize {
        self.bytes + self.offsets.len() * self.layout.row_bytes
    }

    pub fn first_offset(&self) -> Option<i64> {
        self.offsets.first().copied()
    }

    /// Whether the chunk has reached its size.
    pub fn is_full(&self) -> bool {
        self.offsets.len() >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES
    }

    pub fn push(&mut self, record: &Record) {
        if self.values.capacity() == 0 {
            self.values.reserve(self.room);
        }
        match record.payload {
            Some(payload) => self.values.extend_from_slice(payload),
            None => self.tombstones.push(self.offsets.len()),
        }
        // CHUNK_BYTES and a record of at most a gigabyte.
        self.ends.push(self.values.len() as i32);
        self.offsets.push(record.offset);
        self.bytes += record.payload.map_or(0, <[u8]>::len) + record.key.map_or(0, <[u8]>::len);
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.append_option(record.timestamp.and_then(|ms| ms.checked_mul(1_000)));
        }
        if let Some(keys) = &mut self.keys {
            keys.append_option(record.key);
        }
    }

    /// The records so far; the next ones begin anew. Not to be called without records.
    pub fn finish(&mut self) -> Arc<Slot> {
        let memory = self.memory();
        let rows = self.offsets.len();
        // The next chunk is probably as long: a buffer that grows is copied again and again.
        self.room = (self.values.len() + self.values.len() / 16).min(CHUNK_BYTES);
        let mut ends = Vec::with_capacity(rows + 1);
        ends.push(0);
        let pack = Pack {
            partition: self.partition,
            offsets: ScalarBuffer::from(std::mem::replace(&mut self.offsets, Vec::with_capacity(rows))),
            values: std::mem::take(&mut self.values),
            ends: std::mem::replace(&mut self.ends, ends),
            tombstones: std::mem::take(&mut self.tombstones),
            bytes: std::mem::take(&mut self.bytes),
            timestamps: self.timestamps.as_mut().map(|times| Arc::new(times.finish()) as ArrayRef),
            keys: self.keys.as_mut().map(BinaryBuilder::finish),
        };
        Arc::new(Slot {
            first: pack.offsets.first().copied().unwrap_or(i64::MAX),
            last: pack.offsets.last().copied().unwrap_or(i64::MIN),
            rows,
            bytes: pack.bytes,
            memory: AtomicUsize::new(memory),
            state: Mutex::new(State::Packed(pack)),
        })
    }
}

/// The records of one chunk.
struct Pack {
    partition: i32,
    offsets: ScalarBuffer<i64>,
    values: Vec<u8>,
    ends: Vec<i32>,
    tombstones: Vec<usize>,
    bytes: usize,
    timestamps: Option<ArrayRef>,
    keys: Option<BinaryArray>,
}

/// A chunk in the buffer. A thread of the source decodes it as soon as it can; a cut that comes first decodes it itself.
pub struct Slot {
    pub first: i64,
    pub last: i64,
    pub rows: usize,
    pub bytes: usize,
    /// Bytes: about, and exactly when it is decoded.
    memory: AtomicUsize,
    state: Mutex<State>,
}

enum State {
    Packed(Pack),
    Decoded(Held),
    Taken,
}

impl Slot {
    pub fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    /// Decodes it, unless that is done; waits for whoever is at it.
    ///
    /// # Errors
    /// Arrow's; the rows are lost to this reader then, and it must end.
    pub fn decode(&self, decoders: &Decoders) -> Result<()> {
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, State::Taken) {
            State::Packed(pack) => {
                let held = decoders.decode(pack)?;
                self.memory.store(held.chunk.rows.get_array_memory_size(), Ordering::Relaxed);
                State::Decoded(held)
            }
            other => other,
        };
        Ok(())
    }

    /// The rows, decoded. Once.
    pub fn take(&self, decoders: &Decoders) -> Result<Held> {
        self.decode(decoders)?;
        match std::mem::replace(&mut *lock(&self.state), State::Taken) {
            State::Decoded(held) => Ok(held),
            State::Packed(_) | State::Taken => Err(Error::internal("the rows of a chunk could not be decoded")),
        }
    }
}

/// What turns records into rows, as many at once as ask for it.
pub struct Decoders {
    layout: Arc<RowLayout>,
    idle: Mutex<Vec<JsonDecoder>>,
    /// Where values may be Avro.
    schemas: Option<Arc<Schemas>>,
}

impl Decoders {
    /// # Errors
    /// A column of a type that has no form in JSON.
    pub fn try_new(layout: Arc<RowLayout>) -> Result<Self> {
        let first = JsonDecoder::try_new(&layout.data)?;
        Ok(Self { layout, idle: Mutex::new(vec![first]), schemas: None })
    }

    /// Of a table that is read, with what is known of its schemas.
    ///
    /// # Errors
    /// As [`try_new`](Self::try_new), and [`Schemas::of`].
    pub fn of(table: &KafkaTable) -> Result<Self> {
        let layout = Arc::new(RowLayout::new(table));
        // Where only the bytes are wanted, no schema is.
        let wants_values = !layout.data.is_empty() || layout.type_of(MetadataColumn::Error).is_some();
        let schemas = if wants_values { Schemas::of(table, &layout.data)? } else { None };
        Ok(Self { schemas, ..Self::try_new(layout)? })
    }

    pub fn schemas(&self) -> Option<Arc<Schemas>> {
        self.schemas.clone()
    }

    pub fn layout(&self) -> &Arc<RowLayout> {
        &self.layout
    }

    fn decode(&self, pack: Pack) -> Result<Held> {
        let idle = lock(&self.idle).pop();
        let mut decoder = match idle {
            Some(decoder) => decoder,
            None => JsonDecoder::try_new(&self.layout.data)?,
        };
        let held = self.decode_with(&mut decoder, pack);
        if held.is_ok() {
            lock(&self.idle).push(decoder);
        }
        held
    }

    fn decode_with(&self, decoder: &mut JsonDecoder, pack: Pack) -> Result<Held> {
        let declared = |column| self.layout.type_of(column);
        let rows = pack.offsets.len();
        let mut errors = declared(MetadataColumn::Error).map(|_| StringViewBuilder::with_capacity(rows));
        let mut undecodable = vec![];
        let mut tombstones = pack.tombstones.iter().copied().peekable();
        let mut judge = self.schemas.as_ref().map(|schemas| schemas.judge(pack.partition));
        for row in 0..rows {
            let is_null = tombstones.next_if_eq(&row).is_some();
            let payload = (!is_null).then(|| &pack.values[pack.ends[row] as usize..pack.ends[row + 1] as usize]);
            let framed = payload.filter(|payload| match self.layout.format {
                Format::Json => false,
                Format::Avro => !payload.is_empty(),
                Format::Auto => payload.first() == Some(&0),
            });
            let refused = match framed {
                None => decoder.push(payload).err(),
                Some(framed) => match &mut judge {
                    Some(judge) => avro::push(decoder, framed, judge.of(framed, pack.offsets[row])).err(),
                    // Of a table that wants only the bytes nothing is judged.
                    None => {
                        decoder.push_null();
                        None
                    }
                },
            };
            if refused.is_some() {
                undecodable.push(row as u32); // a chunk has at most CHUNK_ROWS rows
            }
            if let Some(errors) = &mut errors {
                errors.append_option(refused);
            }
        }
        if let Some(schemas) = &self.schemas {
            schemas.persist()?;
        }
        let data = decoder.finish()?;
        let mut raw = None;
        if declared(MetadataColumn::Raw).is_some() {
            let mut valid = vec![true; if pack.tombstones.is_empty() { 0 } else { rows }];
            pack.tombstones.iter().for_each(|row| valid[*row] = false);
            let nulls = (!valid.is_empty()).then(|| NullBuffer::from(valid));
            let ends = OffsetBuffer::new(ScalarBuffer::from(pack.ends));
            raw = Some(Arc::new(BinaryArray::try_new(ends, Buffer::from_vec(pack.values), nulls)?) as ArrayRef);
        }
        let keys = pack.keys.as_ref().zip(declared(MetadataColumn::Key)).map(|(keys, data_type)| match data_type {
            DataType::Binary => Arc::new(keys.clone()) as ArrayRef,
            _ => Arc::new(keys.iter().map(|key| key.map(String::from_utf8_lossy)).collect::<StringViewArray>()),
        });
        let mut errors = errors.map(|mut errors| Arc::new(errors.finish()) as ArrayRef);
        let (mut timestamps, mut keys) = (pack.timestamps, keys);
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
                    Some(Arc::new(Int32Array::from(vec![pack.partition; rows])) as ArrayRef)
                }
                Column::Metadata(MetadataColumn::Offset) => {
                    Some(Arc::new(Int64Array::new(pack.offsets.clone(), None)) as ArrayRef)
                }
            };
            arrays.extend(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.layout.schema), arrays, &options)?;
        let (offsets, bytes) = (pack.offsets, pack.bytes);
        let chunk = Chunk { partition: pack.partition, rows: batch, offsets, undecodable: undecodable.len(), bytes };
        Ok(Held { chunk, undecodable })
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

/// A chunk that is decoded.
#[derive(Debug)]
pub struct Held {
    pub chunk: Chunk,
    /// The rows that did not decode, to know how many are in a part of the chunk.
    undecodable: Vec<u32>,
}

impl Held {
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
        let decoders = Decoders::try_new(layout()).unwrap();
        let mut rows = Packer::new(decoders.layout(), 3);
        let payloads = [(7, Some(r#"{"id":1}"#)), (9, Some("not json")), (12, None), (13, Some(r#"{"id":2}"#))];
        for (offset, payload) in payloads {
            let (payload, key) = (payload.map(str::as_bytes), Some(b"k".as_slice()));
            rows.push(&Record { offset, payload, key, timestamp: Some(1_000 + offset) });
        }
        let slot = rows.finish();
        assert_eq!((slot.first, slot.last, slot.rows), (7, 13, 4));
        slot.decode(&decoders).unwrap();
        let held = slot.take(&decoders).unwrap();
        assert!(slot.take(&decoders).is_err(), "once");
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
