//! Rows into Avro, each as one framed record, by a schema that was resolved against the columns once.
//!
//! A field of the schema takes the column of its name; one that has no column takes its default. Of a union, NULL is its
//! null and all else the first branch that the column fits. A value that its type cannot hold (NULL where there is no null, a
//! number beyond a long, a symbol that is none) refuses its row, with the reason, and no other.
//!
//! Invariant: the same row and schema are always the same bytes.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, Decimal128Array, Float32Array, Float64Array, Int64Array,
    RecordBatch, StringViewArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Float32Type, Float64Type, Int64Type, TimeUnit};

use super::defaults::{encode_default, put_bytes, put_long};
use super::schema::{Field, Kind, Logical, NodeId, Schema};
use crate::format::json_encode::EncodedRows;
use crate::sql::insert::sql_name;
use crate::{Error, Result};

/// See the module's documentation.
#[derive(Debug)]
pub struct Encoder {
    fields: Vec<FieldWrite>,
}

#[derive(Debug)]
enum FieldWrite {
    Column { name: String, column: usize, write: Optional },
    Default(Vec<u8>),
}

/// A type, or a union of one with null.
#[derive(Debug)]
struct Optional {
    /// Numbers of the branches of null and of the type; `None` where there is no union, or no null in it.
    null: Option<i64>,
    branch: Option<i64>,
    write: Write,
}

#[derive(Debug)]
enum Write {
    Boolean,
    /// An int too: they are written alike.
    Long,
    Float,
    Double,
    Text,
    Symbol(HashMap<String, i64>),
    Bytes,
    Fixed(usize),
    Decimal {
        size: Option<usize>,
        factor: i128,
        precision: u32,
    },
    Timestamp {
        factor: i64,
        divisor: i64,
    },
    Record(Vec<FieldWrite>),
    List(Box<Optional>),
    Map(Box<Optional>),
}

/// The records of one batch.
#[derive(Debug, Default)]
pub struct AvroRows {
    /// Of a refused row: nothing.
    pub rows: EncodedRows,
    /// Why a row has no record, by its number.
    pub refused: BTreeMap<usize, String>,
}

impl Encoder {
    /// # Errors
    /// Of the user: the schema is no record, a column has no field in it or one that does not fit, a field has neither a
    /// column nor a default.
    pub fn try_new(schema: &Schema, columns: &[FieldRef]) -> Result<Self> {
        let fields = Compiler { schema }.record(schema.root(), columns);
        let wrong = |reason| Error::user("the columns do not fit the Avro schema").cause(reason);
        Ok(Self { fields: fields.map_err(wrong)? })
    }

    /// One record per row, framed with the schema's id.
    ///
    /// # Errors
    /// Arrow's (internal): the batch has other columns than the encoder was made for.
    pub fn encode(&self, id: u32, batch: &RecordBatch) -> Result<AvroRows> {
        let bound = bind_fields(&self.fields, batch.columns())?;
        let mut encoded = AvroRows::default();
        for row in 0..batch.num_rows() {
            let outcome = encoded.rows.push_with(|out| {
                let begin = out.len();
                out.push(0);
                out.extend_from_slice(&id.to_be_bytes());
                let written = write_fields(&bound, row, out);
                if written.is_err() {
                    out.truncate(begin);
                }
                written
            });
            if let Err(reason) = outcome {
                encoded.refused.insert(row, reason);
            }
        }
        Ok(encoded)
    }
}

struct Compiler<'s> {
    schema: &'s Schema,
}

impl Compiler<'_> {
    fn record(&self, id: NodeId, columns: &[FieldRef]) -> Result<Vec<FieldWrite>, String> {
        let Kind::Record { fields, .. } = &self.schema.node(id).kind else {
            return Err(format!("it is {}, not a record", self.schema.describe(id)));
        };
        if let Some(column) = columns.iter().find(|column| fields.iter().all(|field| field.name != *column.name())) {
            return Err(format!("column {:?} has no field", column.name()));
        }
        fields.iter().map(|field| self.field(field, columns)).collect()
    }

    fn field(&self, field: &Field, columns: &[FieldRef]) -> Result<FieldWrite, String> {
        if let Some(column) = columns.iter().position(|column| *column.name() == field.name) {
            let write = self.optional(field.node, columns[column].data_type());
            let write = write.map_err(|reason| format!("{}: {reason}", field.name))?;
            return Ok(FieldWrite::Column { name: field.name.clone(), column, write });
        }
        let default = field.default.as_ref();
        let default = default.ok_or_else(|| format!("field {:?} has neither a column nor a default", field.name))?;
        let mut bytes = vec![];
        encode_default(self.schema, field.node, default, &mut bytes)
            .map_err(|reason| format!("{}: its default {reason}", field.name))?;
        Ok(FieldWrite::Default(bytes))
    }

    fn optional(&self, id: NodeId, data_type: &DataType) -> Result<Optional, String> {
        let Kind::Union(branches) = &self.schema.node(id).kind else {
            return Ok(Optional { null: None, branch: None, write: self.value(id, data_type)? });
        };
        let is_null = |branch: &NodeId| matches!(self.schema.node(*branch).kind, Kind::Null);
        let null = branches.iter().position(is_null).map(|branch| branch as i64);
        let mut reason = "its union has no branch but null".to_string();
        for (number, branch) in branches.iter().enumerate().filter(|(_, branch)| !is_null(branch)) {
            match self.value(*branch, data_type) {
                Ok(write) => return Ok(Optional { null, branch: Some(number as i64), write }),
                Err(why) => reason = why,
            }
        }
        Err(reason)
    }

    fn value(&self, id: NodeId, data_type: &DataType) -> Result<Write, String> {
        let node = self.schema.node(id);
        let unfit = || format!("{} does not become {}", sql_name(data_type), self.schema.describe(id));
        let is_text = matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let is_binary = matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
        let small = matches!(
            data_type,
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16
        );
        Ok(match (&node.kind, data_type) {
            (Kind::Boolean, DataType::Boolean) => Write::Boolean,
            (Kind::Int, DataType::Date32) => Write::Long,
            (Kind::Int, _) if small => Write::Long,
            (Kind::Long, t) if t.is_integer() => Write::Long,
            (Kind::Long, DataType::Timestamp(unit, _)) => match node.logical {
                Some(Logical::Timestamp(per_second)) => timestamp(per_second, *unit),
                _ => return Err(unfit()),
            },
            (Kind::Float, DataType::Float32) => Write::Float,
            (Kind::Double, DataType::Float32 | DataType::Float64) => Write::Double,
            (Kind::Bytes | Kind::Fixed { .. }, DataType::Decimal128(_, own)) => {
                let Some(Logical::Decimal { precision, scale }) = node.logical else { return Err(unfit()) };
                let size = if let Kind::Fixed { size, .. } = node.kind { Some(size) } else { None };
                let zeros = u32::try_from(i64::from(scale) - i64::from(*own)).map_err(|_| unfit())?;
                let factor = 10_i128.checked_pow(zeros).ok_or_else(unfit)?;
                Write::Decimal { size, factor, precision: precision.min(38) }
            }
            (Kind::String, _) if is_text => Write::Text,
            (Kind::Enum { symbols, .. }, _) if is_text => {
                let numbered = symbols.iter().enumerate().map(|(number, symbol)| (symbol.clone(), number as i64));
                Write::Symbol(numbered.collect())
            }
            (Kind::Bytes, _) if is_binary => Write::Bytes,
            (Kind::Fixed { size, .. }, _) if is_binary => Write::Fixed(*size),
            (Kind::Record { .. }, DataType::Struct(columns)) => Write::Record(self.record(id, columns)?),
            (Kind::Array(item), DataType::List(column)) => {
                Write::List(Box::new(self.optional(*item, column.data_type())?))
            }
            (Kind::Map(value), DataType::Map(entry, _)) => match entry.data_type() {
                DataType::Struct(fields) if fields.len() == 2 => {
                    Write::Map(Box::new(self.optional(*value, fields[1].data_type())?))
                }
                _ => return Err(unfit()),
            },
            _ => return Err(unfit()),
        })
    }
}

fn timestamp(per_second: i64, unit: TimeUnit) -> Write {
    let own = match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    };
    Write::Timestamp { factor: (per_second / own).max(1), divisor: (own / per_second).max(1) }
}

/// A writer beside the array it writes.
struct Bound<'w> {
    nulls: Option<NullBuffer>,
    null: Option<i64>,
    branch: Option<i64>,
    values: Values<'w>,
}

enum BoundField<'w> {
    Column(&'w str, Box<Bound<'w>>),
    Default(&'w [u8]),
}

enum Values<'w> {
    Boolean(BooleanArray),
    Long(Int64Array),
    Float(Float32Array),
    Double(Float64Array),
    Text(StringViewArray),
    Symbol(StringViewArray, &'w HashMap<String, i64>),
    Bytes(BinaryViewArray),
    Fixed(BinaryViewArray, usize),
    Decimal { array: Decimal128Array, size: Option<usize>, factor: i128, precision: u32 },
    Timestamp { array: Int64Array, factor: i64, divisor: i64 },
    Record(Vec<BoundField<'w>>),
    List(OffsetBuffer<i32>, Box<Bound<'w>>),
    Map(OffsetBuffer<i32>, StringViewArray, Box<Bound<'w>>),
}

fn bind_fields<'w>(fields: &'w [FieldWrite], columns: &[ArrayRef]) -> Result<Vec<BoundField<'w>>> {
    let one = |field: &'w FieldWrite| match field {
        FieldWrite::Default(bytes) => Ok(BoundField::Default(bytes)),
        FieldWrite::Column { name, column, write } => {
            let array = columns.get(*column).ok_or_else(|| Error::internal("a column to be written is missing"))?;
            Ok(BoundField::Column(name, Box::new(bind(write, array)?)))
        }
    };
    fields.iter().map(one).collect()
}

fn bind<'w>(write: &'w Optional, array: &ArrayRef) -> Result<Bound<'w>> {
    let long = || -> Result<Int64Array> { Ok(cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone()) };
    let text = || -> Result<StringViewArray> { Ok(cast(array, &DataType::Utf8View)?.as_string_view().clone()) };
    let bytes = || -> Result<BinaryViewArray> { Ok(cast(array, &DataType::BinaryView)?.as_binary_view().clone()) };
    let values = match &write.write {
        Write::Boolean => Values::Boolean(array.as_boolean().clone()),
        Write::Long if *array.data_type() == DataType::Date32 => {
            Values::Long(cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        }
        // What 64 bits do not hold becomes NULL, and is told by that.
        Write::Long => Values::Long(long()?),
        Write::Float => Values::Float(cast(array, &DataType::Float32)?.as_primitive::<Float32Type>().clone()),
        Write::Double => Values::Double(cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone()),
        Write::Text => Values::Text(text()?),
        Write::Symbol(symbols) => Values::Symbol(text()?, symbols),
        Write::Bytes => Values::Bytes(bytes()?),
        Write::Fixed(size) => Values::Fixed(bytes()?, *size),
        Write::Decimal { size, factor, precision } => {
            let array = array.as_primitive::<Decimal128Type>().clone();
            Values::Decimal { array, size: *size, factor: *factor, precision: *precision }
        }
        Write::Timestamp { factor, divisor } => {
            Values::Timestamp { array: long()?, factor: *factor, divisor: *divisor }
        }
        Write::Record(fields) => Values::Record(bind_fields(fields, array.as_struct().columns())?),
        Write::List(item) => {
            let list = array.as_list::<i32>();
            Values::List(list.offsets().clone(), Box::new(bind(item, list.values())?))
        }
        Write::Map(value) => {
            let map = array.as_map();
            let keys = cast(map.keys(), &DataType::Utf8View)?.as_string_view().clone();
            Values::Map(map.offsets().clone(), keys, Box::new(bind(value, map.values())?))
        }
    };
    Ok(Bound { nulls: array.logical_nulls(), null: write.null, branch: write.branch, values })
}

fn write_fields(fields: &[BoundField<'_>], row: usize, out: &mut Vec<u8>) -> Result<(), String> {
    for field in fields {
        match field {
            BoundField::Default(bytes) => out.extend_from_slice(bytes),
            BoundField::Column(name, bound) => {
                bound.write(row, out).map_err(|reason| format!("{name}: {reason}"))?;
            }
        }
    }
    Ok(())
}

impl Bound<'_> {
    fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), String> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            let null = self.null.ok_or("it is NULL, and the schema has no null for it")?;
            put_long(null, out);
            return Ok(());
        }
        if let Some(branch) = self.branch {
            put_long(branch, out);
        }
        match &self.values {
            Values::Boolean(array) => out.push(array.value(row).into()),
            Values::Long(array) if array.is_null(row) => return Err("it does not fit a long".into()),
            Values::Long(array) => put_long(array.value(row), out),
            Values::Float(array) => out.extend_from_slice(&array.value(row).to_le_bytes()),
            Values::Double(array) => out.extend_from_slice(&array.value(row).to_le_bytes()),
            Values::Text(array) => put_bytes(array.value(row).as_bytes(), out),
            Values::Symbol(array, symbols) => {
                let text = array.value(row);
                let shown = || format!("{:?} is no symbol of its enum", text.chars().take(60).collect::<String>());
                put_long(*symbols.get(text).ok_or_else(shown)?, out);
            }
            Values::Bytes(array) => put_bytes(array.value(row), out),
            Values::Fixed(array, size) => {
                let bytes = array.value(row);
                if bytes.len() != *size {
                    return Err(format!("it has {} bytes, not {size}", bytes.len()));
                }
                out.extend_from_slice(bytes);
            }
            Values::Decimal { array, size, factor, precision } => {
                let value = array.value(row).checked_mul(*factor);
                let value = value.filter(|value| value.unsigned_abs() < 10_u128.pow(*precision));
                let value = value.ok_or("it does not fit its decimal")?;
                put_decimal(value, *size, out)?;
            }
            Values::Timestamp { array, factor, divisor } => {
                let value = array.value(row).checked_mul(*factor).ok_or("it is beyond what its timestamp can count")?;
                put_long(value.div_euclid(*divisor), out);
            }
            Values::Record(fields) => write_fields(fields, row, out)?,
            Values::List(offsets, items) => {
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                if !range.is_empty() {
                    put_long(range.len() as i64, out);
                }
                for (index, item) in range.enumerate() {
                    items.write(item, out).map_err(|reason| format!("[{index}]: {reason}"))?;
                }
                out.push(0);
            }
            Values::Map(offsets, keys, values) => {
                let range = offsets[row] as usize..offsets[row + 1] as usize;
                if !range.is_empty() {
                    put_long(range.len() as i64, out);
                }
                for item in range {
                    put_bytes(keys.value(item).as_bytes(), out);
                    values.write(item, out).map_err(|reason| format!("[{:?}]: {reason}", keys.value(item)))?;
                }
                out.push(0);
            }
        }
        Ok(())
    }
}

/// Big-endian two's complement: as short as it can be, or of a fixed size.
fn put_decimal(value: i128, size: Option<usize>, out: &mut Vec<u8>) -> Result<(), String> {
    let wide = value.to_be_bytes();
    let fill = if value < 0 { 0xff } else { 0 };
    // A leading byte says nothing if it is the sign, and the next one begins with the sign too.
    let idle = wide.windows(2).take_while(|pair| pair[0] == fill && (pair[1] >= 0x80) == (fill == 0xff)).count();
    let short = &wide[idle..];
    match size {
        None => put_bytes(short, out),
        Some(size) if short.len() <= size => {
            out.resize(out.len() + size - short.len(), fill);
            out.extend_from_slice(short);
        }
        Some(size) => return Err(format!("it does not fit {size} bytes")),
    }
    Ok(())
}
