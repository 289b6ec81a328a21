//! Against apache-avro, over random schemas, values and bytes.

use std::sync::Arc;

use apache_avro::types::Value;
use apache_avro::{Schema as Oracle, from_avro_datum};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type, Schema as Columns, TimeUnit,
    TimestampMicrosecondType,
};
use proptest::prelude::*;

use super::tests::framed;
use super::*;
use crate::format::json::tests::{fields, list, map, object};
use crate::format::json_encode::tests::{columns, rows};

/// Written as the first, read as the second, into the third.
const LEAVES: &[(&str, &str)] = &[
    ("\"boolean\"", "\"boolean\""),
    ("\"int\"", "\"int\""),
    ("\"int\"", "\"long\""),
    ("\"int\"", "\"float\""),
    ("\"int\"", "\"double\""),
    ("\"long\"", "\"long\""),
    ("\"long\"", "\"float\""),
    ("\"long\"", "\"double\""),
    ("\"float\"", "\"float\""),
    ("\"float\"", "\"double\""),
    ("\"double\"", "\"double\""),
    ("\"string\"", "\"string\""),
    ("\"string\"", "\"bytes\""),
    ("\"bytes\"", "\"bytes\""),
    (
        r#"{"type": "long", "logicalType": "timestamp-micros"}"#,
        r#"{"type": "long", "logicalType": "timestamp-micros"}"#,
    ),
    (r#"{"type": "int", "logicalType": "date"}"#, r#"{"type": "int", "logicalType": "date"}"#),
];

#[derive(Debug, Clone)]
enum Type {
    Leaf(usize),
    Nullable(usize),
    List(Box<Type>),
    Map(Box<Type>),
    /// Each with whether the writer has it, and whether the reader wants it.
    Record(Vec<(Type, bool, bool)>),
}

fn types() -> impl Strategy<Value = Type> {
    let leaf = (0..LEAVES.len()).prop_map(Type::Leaf);
    // Of a union, apache-avro promotes nothing.
    let same =
        (0..LEAVES.len()).prop_filter("the same type", |at| LEAVES[*at].0 == LEAVES[*at].1).prop_map(Type::Nullable);
    prop_oneof![leaf, same].prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Type::List(Box::new(one))),
            inner.clone().prop_map(|one| Type::Map(Box::new(one))),
            record(inner),
        ]
    })
}

fn record(inner: impl Strategy<Value = Type>) -> impl Strategy<Value = Type> {
    proptest::collection::vec((inner, any::<bool>(), any::<bool>()), 0..4).prop_map(|mut fields| {
        // At least one column: a struct without any cannot be declared.
        fields.push((Type::Leaf(1), true, true));
        Type::Record(fields)
    })
}

impl Type {
    fn avro(&self, writes: bool, names: &mut usize) -> String {
        let leaf = |at: &usize| if writes { LEAVES[*at].0 } else { LEAVES[*at].1 };
        match self {
            Self::Leaf(at) => leaf(at).to_string(),
            Self::Nullable(at) => format!("[\"null\", {}]", leaf(at)),
            Self::List(item) => format!(r#"{{"type": "array", "items": {}}}"#, item.avro(writes, names)),
            Self::Map(value) => format!(r#"{{"type": "map", "values": {}}}"#, value.avro(writes, names)),
            Self::Record(fields) => {
                *names += 1;
                let name = format!("R{names}");
                let each = fields.iter().enumerate().filter_map(|(at, (inner, written, read))| {
                    // Names have to be counted alike on both sides.
                    let inner = inner.avro(writes, names);
                    match (writes, written, read) {
                        (true, false, _) | (false, _, false) => None,
                        (true, true, _) | (false, true, true) => {
                            Some(format!(r#"{{"name": "f{at}", "type": {inner}}}"#))
                        }
                        (false, false, true) => {
                            // A union is not directly within a union.
                            let either = if inner.starts_with('[') { inner } else { format!("[\"null\", {inner}]") };
                            Some(format!(r#"{{"name": "f{at}", "type": {either}, "default": null}}"#))
                        }
                    }
                });
                let each: Vec<String> = each.collect();
                format!(r#"{{"type": "record", "name": "{name}", "fields": [{}]}}"#, each.join(","))
            }
        }
    }

    fn arrow(&self) -> DataType {
        match self {
            Self::Leaf(at) | Self::Nullable(at) => match LEAVES[*at].1 {
                "\"boolean\"" => DataType::Boolean,
                "\"int\"" => DataType::Int32,
                "\"long\"" => DataType::Int64,
                "\"float\"" => DataType::Float32,
                "\"double\"" => DataType::Float64,
                "\"string\"" => DataType::Utf8View,
                "\"bytes\"" => DataType::Binary,
                logical if logical.contains("date") => DataType::Date32,
                _ => DataType::Timestamp(TimeUnit::Microsecond, None),
            },
            Self::List(item) => list(item.arrow()),
            Self::Map(value) => map(value.arrow()),
            Self::Record(_) => {
                let columns = self.columns();
                object(&columns.iter().map(|(name, data_type)| (name.as_str(), data_type.clone())).collect::<Vec<_>>())
            }
        }
    }

    fn columns(&self) -> Vec<(String, DataType)> {
        let Self::Record(fields) = self else { return vec![] };
        let each = fields.iter().enumerate().filter(|(_, (_, _, read))| *read);
        each.map(|(at, (inner, ..))| (format!("f{at}"), inner.arrow())).collect()
    }

    /// A value of the writer's type; `words` are its chance.
    fn value(&self, words: &mut impl Iterator<Item = u64>) -> Value {
        let word = words.next().unwrap_or(0);
        match self {
            Self::Leaf(at) => match LEAVES[*at].0 {
                "\"boolean\"" => Value::Boolean(word % 2 == 1),
                "\"int\"" => Value::Int(word as i32),
                "\"long\"" => Value::Long(word as i64),
                "\"float\"" => Value::Float(f32::from_bits(word as u32)),
                "\"double\"" => Value::Double(f64::from_bits(word)),
                "\"string\"" => Value::String("é".repeat((word % 9) as usize)),
                "\"bytes\"" => Value::Bytes(word.to_be_bytes()[..(word % 9) as usize].to_vec()),
                logical if logical.contains("date") => Value::Date(word as i32),
                _ => Value::TimestampMicros(word as i64),
            },
            Self::Nullable(_) if word.is_multiple_of(3) => Value::Union(0, Box::new(Value::Null)),
            Self::Nullable(at) => Value::Union(1, Box::new(Self::Leaf(*at).value(words))),
            Self::List(item) => Value::Array((0..word % 4).map(|_| item.value(words)).collect()),
            Self::Map(value) => Value::Map((0..word % 4).map(|at| (format!("k{at}"), value.value(words))).collect()),
            Self::Record(fields) => {
                let written = fields.iter().enumerate().filter(|(_, (_, written, _))| *written);
                Value::Record(written.map(|(at, (inner, ..))| (format!("f{at}"), inner.value(words))).collect())
            }
        }
    }
}

/// One text for a value, whoever has it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Union(_, inner) => shown(inner),
        Value::Boolean(value) => format!("{value}"),
        Value::Int(value) | Value::Date(value) => format!("{value}"),
        Value::Long(value) | Value::TimestampMicros(value) => format!("{value}"),
        Value::Float(value) => float(f64::from(*value)),
        Value::Double(value) => float(*value),
        Value::String(value) => format!("{value:?}"),
        Value::Bytes(value) => format!("{value:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(",")),
        Value::Map(entries) => {
            let mut each: Vec<String> = entries.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            each.sort();
            format!("{{{}}}", each.join(","))
        }
        Value::Record(fields) => {
            let each: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect();
            format!("({})", each.join(","))
        }
        other => panic!("{other:?}"),
    }
}

/// To the last bit, but that one NaN is as good as another.
fn float(value: f64) -> String {
    if value.is_nan() { "NaN".into() } else { format!("{:x}", value.to_bits()) }
}

fn cell(array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return "null".into();
    }
    match array.data_type() {
        DataType::Boolean => format!("{}", array.as_boolean().value(row)),
        DataType::Int32 => format!("{}", array.as_primitive::<Int32Type>().value(row)),
        DataType::Date32 => format!("{}", array.as_primitive::<Date32Type>().value(row)),
        DataType::Int64 => format!("{}", array.as_primitive::<Int64Type>().value(row)),
        DataType::Timestamp(..) => format!("{}", array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Float32 => float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8View => format!("{:?}", array.as_string_view().value(row)),
        DataType::Binary => format!("{:?}", array.as_binary::<i32>().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            format!("[{}]", (0..items.len()).map(|at| cell(&items, at)).collect::<Vec<_>>().join(","))
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let keys = entries.column(0).as_string::<i32>();
            let each = (0..entries.len()).map(|at| format!("{}:{}", keys.value(at), cell(entries.column(1), at)));
            let mut each: Vec<String> = each.collect();
            each.sort();
            format!("{{{}}}", each.join(","))
        }
        DataType::Struct(columns) => {
            let of = array.as_struct();
            let each = columns.iter().enumerate();
            let each = each.map(|(at, column)| format!("{}={}", column.name(), cell(of.column(at), row)));
            format!("({})", each.collect::<Vec<_>>().join(","))
        }
        other => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_apache_avro_wrote_is_resolved_as_it_resolves_it(
        table in record(types()),
        words in proptest::collection::vec(any::<u64>(), 1..40),
    ) {
        let (writer, reader) = (table.avro(true, &mut 0), table.avro(false, &mut 0));
        let columns = table.columns();
        let columns = fields(&columns.iter().map(|(name, t)| (name.as_str(), t.clone())).collect::<Vec<_>>());
        let value = table.value(&mut words.iter().copied().cycle());
        let payload = framed(&writer, value);
        let (oracle_writer, oracle_reader) = (Oracle::parse_str(&writer).unwrap(), Oracle::parse_str(&reader).unwrap());
        let expected = from_avro_datum(&oracle_writer, &mut &payload[5..], Some(&oracle_reader)).unwrap();
        for reader in [None, Some(Schema::parse(&reader, &[]).unwrap())] {
            let known = known(1, &writer, &[], reader.as_ref(), &columns);
            let mut decoder = JsonDecoder::try_new(&columns).unwrap();
            for _ in 0..2 {
                if let Err(reason) = push(&mut decoder, &payload, Some(&known)) {
                    return Err(TestCaseError::fail(format!("{reason}\n{writer}\n{payload:?}")));
                }
            }
            let batch = RecordBatch::try_new(Arc::new(Columns::new(columns.clone())), decoder.finish().unwrap()).unwrap();
            let names = batch.schema();
            for row in 0..2 {
                let each = batch.columns().iter().zip(names.fields());
                let each = each.map(|(array, field)| format!("{}={}", field.name(), cell(array, row)));
                prop_assert_eq!(format!("({})", each.collect::<Vec<_>>().join(",")), shown(&expected), "{}", writer);
            }
        }
    }

    #[test]
    fn any_bytes_are_one_row_and_leave_the_others_whole(
        table in record(types()),
        words in proptest::collection::vec(any::<u64>(), 1..20),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        noise in any::<Vec<u8>>(),
    ) {
        let writer = table.avro(true, &mut 0);
        let columns = table.columns();
        let columns = fields(&columns.iter().map(|(name, t)| (name.as_str(), t.clone())).collect::<Vec<_>>());
        let good = framed(&writer, table.value(&mut words.iter().copied().cycle()));
        let mut bad = good.clone();
        for (at, byte) in &changes {
            let at = 5 + at.index(bad.len());
            if let Some(place) = bad.get_mut(at) {
                *place = *byte;
            }
        }
        let known = known(1, &writer, &[], None, &columns);
        let mut decoder = JsonDecoder::try_new(&columns).unwrap();
        let mut alone = JsonDecoder::try_new(&columns).unwrap();
        push(&mut alone, &good, Some(&known)).unwrap();
        let alone = alone.finish().unwrap();
        let noise = [&[0, 0, 0, 0, 1], &noise[..]].concat();
        for payload in [&good, &bad, &good, &noise, &good] {
            if let Err(reason) = push(&mut decoder, payload, Some(&known)) {
                prop_assert!(reason.chars().count() < 300 && !reason.contains('\n'), "{}", reason);
            }
        }
        for (array, alone) in decoder.finish().unwrap().iter().zip(&alone) {
            prop_assert_eq!(array.len(), 5);
            for row in [0, 2, 4] {
                prop_assert_eq!(cell(array, row), cell(alone, 0));
            }
        }
    }

    #[test]
    fn what_is_encoded_is_read_back_by_us_and_by_apache_avro(rows in rows()) {
        // What the long of Avro, and a name of it, can hold.
        let kept = |(name, array): &(&'static str, ArrayRef)| {
            !name.contains(' ') && !["millis", "unsigned", "text"].contains(name) && !array.is_empty()
        };
        let kept: Vec<_> = columns(&rows).into_iter().filter(kept).collect();
        prop_assume!(!kept.is_empty());
        let batch = RecordBatch::try_from_iter_with_nullable(kept.into_iter().map(|(name, array)| (name, array, true)));
        let batch = batch.unwrap();
        let schema = batch.schema();
        let text = table::schema_of("user events", schema.fields()).unwrap();
        let encoder = Encoder::try_new(&Schema::parse(&text, &[]).unwrap(), schema.fields()).unwrap();
        let encoded = encoder.encode(7, &batch).unwrap();
        prop_assert!(encoded.refused.is_empty());
        let oracle = Oracle::parse_str(&text).unwrap();
        let known = known(7, &text, &[], None, schema.fields());
        let mut decoder = JsonDecoder::try_new(schema.fields()).unwrap();
        for payload in encoded.rows.iter() {
            prop_assert_eq!(frame_id(payload), Some(7));
            let mut rest = &payload[5..];
            from_avro_datum(&oracle, &mut rest, None).unwrap();
            prop_assert!(rest.is_empty());
            if let Err(reason) = push(&mut decoder, payload, Some(&known)) {
                return Err(TestCaseError::fail(reason));
            }
        }
        let decoded = RecordBatch::try_new(Arc::clone(&schema), decoder.finish().unwrap());
        prop_assert_eq!(&decoded.unwrap(), &batch);
    }
}
