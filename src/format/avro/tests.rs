//! Each rule of resolution by name; values are written by apache-avro.

use std::sync::Arc;

use apache_avro::types::Value;
use apache_avro::{Decimal, Schema as Oracle, to_avro_datum};
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Schema as Columns, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::*;
use crate::format::json::tests::{fields, list, map, object};

const ID: u32 = 258;

pub(super) fn framed(schema: &str, value: Value) -> Vec<u8> {
    let schema = Oracle::parse_str(schema).unwrap();
    let mut payload = vec![0, 0, 0, 1, 2];
    payload.extend(to_avro_datum(&schema, value).unwrap());
    payload
}

/// The cells of one payload as text (`NULL` for none), or the reason; between two rows that do not decode, which have to stay.
fn read(
    payload: &[u8],
    schema: &str,
    reader: Option<&str>,
    columns: &[(&str, DataType)],
) -> Result<Vec<String>, String> {
    let columns = fields(columns);
    let reader = reader.map(|text| Schema::parse(text, &[]).unwrap());
    let known = known(ID, schema, &[], reader.as_ref(), &columns);
    let mut decoder = JsonDecoder::try_new(&columns).unwrap();
    push(&mut decoder, b"\0\0", Some(&known)).unwrap_err();
    let outcome = push(&mut decoder, payload, Some(&known));
    push(&mut decoder, b"", Some(&known)).unwrap_err();
    let batch = RecordBatch::try_new(Arc::new(Columns::new(columns)), decoder.finish().unwrap()).unwrap();
    assert_eq!(batch.num_rows(), 3);
    let cells = batch.columns().iter().map(|array| {
        assert!(array.is_null(0) && array.is_null(2));
        let options = FormatOptions::new().with_null("NULL");
        ArrayFormatter::try_new(array, &options).unwrap().value(1).to_string()
    });
    let cells: Vec<String> = cells.collect();
    if outcome.is_err() {
        assert!(batch.columns().iter().all(|array| array.is_null(1)), "{cells:?}");
    }
    outcome.map(|()| cells)
}

fn record(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(n, t)| format!(r#"{{"name": "{n}", "type": {t}}}"#)).collect();
    format!(r#"{{"type": "record", "name": "R", "fields": [{}]}}"#, fields.join(","))
}

fn values(values: &[(&str, Value)]) -> Value {
    Value::Record(values.iter().map(|(name, value)| ((*name).to_string(), value.clone())).collect())
}

/// One field `c` of this type and value into a column `c`.
fn cell(avro: &str, value: Value, data_type: DataType) -> Result<String, String> {
    let schema = record(&[("c", avro)]);
    let payload = framed(&schema, values(&[("c", value)]));
    read(&payload, &schema, None, &[("c", data_type)]).map(|mut cells| cells.remove(0))
}

fn ok(avro: &str, value: Value, data_type: DataType) -> String {
    cell(avro, value, data_type).unwrap()
}

fn micros(zone: Option<&str>) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into))
}

#[test]
fn fields_are_matched_by_name_in_any_order() {
    let schema = record(&[("b", "\"string\""), ("a", "\"long\"")]);
    let payload = framed(&schema, values(&[("b", Value::String("x".into())), ("a", Value::Long(-7))]));
    let columns = [("a", DataType::Int64), ("b", DataType::Utf8View)];
    assert_eq!(read(&payload, &schema, None, &columns).unwrap(), ["-7", "x"]);
}

#[test]
fn an_added_column_is_null_and_a_removed_field_is_passed_over() {
    let schema = record(&[("gone", "\"string\""), ("a", "\"int\"")]);
    let payload = framed(&schema, values(&[("gone", Value::String("x".into())), ("a", Value::Int(3))]));
    let columns = [("new", DataType::Utf8View), ("a", DataType::Int32), ("newer", list(DataType::Int64))];
    assert_eq!(read(&payload, &schema, None, &columns).unwrap(), ["NULL", "3", "NULL"]);
}

#[test]
fn an_added_field_has_the_readers_default() {
    let writer = record(&[("a", "\"int\"")]);
    let reader = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"},
        {"name": "b", "type": "string", "default": "ü"}, {"name": "c", "type": ["null", "long"], "default": null},
        {"name": "d", "type": {"type": "array", "items": "int"}, "default": [1, -2]},
        {"name": "e", "type": {"type": "record", "name": "E", "fields": [{"name": "x", "type": "int"},
            {"name": "y", "type": "bytes", "default": "\u00ff"}]}, "default": {"x": 5}},
        {"name": "f", "type": {"type": "map", "values": "double"}, "default": {"k": 1.5}},
        {"name": "g", "type": ["null", "int"], "default": 9}]}"#;
    let columns = [
        ("a", DataType::Int64),
        ("b", DataType::Utf8View),
        ("c", DataType::Int64),
        ("d", list(DataType::Int32)),
        ("e", object(&[("x", DataType::Int32), ("y", DataType::Binary)])),
        ("f", map(DataType::Float64)),
        ("g", DataType::Int32),
    ];
    let payload = framed(&writer, values(&[("a", Value::Int(3))]));
    let cells = read(&payload, &writer, Some(reader), &columns).unwrap();
    assert_eq!(cells, ["3", "ü", "NULL", "[1, -2]", "{x: 5, y: ff}", "{k: 1.5}", "9"]);
}

#[test]
fn an_added_field_without_a_default_is_refused() {
    let (writer, reader) = (record(&[]), record(&[("b", "\"string\"")]));
    let reason = read(&framed(&writer, values(&[])), &writer, Some(&reader), &[("b", DataType::Utf8View)]);
    assert_eq!(
        reason.unwrap_err(),
        "schema 258: b: the record has no such field, and avro.schema no default for it (byte 5)"
    );
}

#[test]
fn numbers_are_promoted() {
    assert_eq!(ok("\"int\"", Value::Int(-5), DataType::Int64), "-5");
    assert_eq!(ok("\"int\"", Value::Int(5), DataType::Float32), "5.0");
    assert_eq!(ok("\"int\"", Value::Int(i32::MAX), DataType::Float64), "2147483647.0");
    assert_eq!(ok("\"long\"", Value::Long(1 << 53), DataType::Float64), "9007199254740992.0");
    assert_eq!(ok("\"long\"", Value::Long(3), DataType::Float32), "3.0");
    assert_eq!(ok("\"float\"", Value::Float(1.5), DataType::Float64), "1.5");
    assert_eq!(ok("\"long\"", Value::Long(i64::MIN), DataType::Int64), "-9223372036854775808");
}

#[test]
fn strings_and_bytes_become_each_other() {
    assert_eq!(ok("\"string\"", Value::String("é".into()), DataType::Binary), "c3a9");
    assert_eq!(ok("\"bytes\"", Value::Bytes("é".into()), DataType::Utf8View), "é");
    let reason = cell("\"bytes\"", Value::Bytes(vec![0xff]), DataType::Utf8View).unwrap_err();
    assert_eq!(reason, "c: not UTF-8 (byte 5)");
}

#[test]
fn what_is_no_promotion_is_refused_with_the_type_to_declare() {
    let reason = |avro: &str, value, data_type| cell(avro, value, data_type).unwrap_err();
    assert_eq!(
        reason("\"long\"", Value::Long(1), DataType::Int32),
        "schema 258: c: long does not fit INT: declare it BIGINT (byte 5)"
    );
    let string = || Value::String("12".into());
    assert!(reason("\"string\"", string(), DataType::Int64).contains("string does not fit BIGINT: declare it VARCHAR"));
    assert!(reason("\"double\"", Value::Double(1.0), DataType::Float32).contains("double does not fit REAL"));
    assert!(reason("\"long\"", Value::Long(1), micros(None)).contains("give its unit in avro.schema"));
    assert!(reason("\"boolean\"", Value::Boolean(true), DataType::Utf8View).contains("declare it BOOLEAN"));
    assert!(reason("\"string\"", string(), object(&[("a", DataType::Int64)])).contains("declare it VARCHAR"));
}

#[test]
fn narrow_columns_take_an_int_that_fits() {
    assert_eq!(ok("\"int\"", Value::Int(127), DataType::Int8), "127");
    assert_eq!(ok("\"long\"", Value::Long(i64::MAX), DataType::UInt64), "9223372036854775807");
    let reason = cell("\"int\"", Value::Int(128), DataType::Int8).unwrap_err();
    assert_eq!(reason, "c: 128 is not between -128 and 127 (byte 5)");
    assert!(cell("\"long\"", Value::Long(-1), DataType::UInt64).is_err());
}

#[test]
fn logical_types_of_time() {
    let of = |logical: &str| format!(r#"{{"type": "long", "logicalType": "{logical}"}}"#);
    let at = "2023-11-14T22:13:20.123";
    let millis = 1_700_000_000_123;
    for (logical, value) in [
        ("timestamp-millis", Value::TimestampMillis(millis)),
        ("timestamp-micros", Value::TimestampMicros(millis * 1_000)),
        ("timestamp-nanos", Value::TimestampNanos(millis * 1_000_000 + 999)),
        ("local-timestamp-millis", Value::LocalTimestampMillis(millis)),
        ("local-timestamp-micros", Value::LocalTimestampMicros(millis * 1_000)),
    ] {
        assert_eq!(ok(&of(logical), value.clone(), micros(None)), at, "{logical}");
        assert_eq!(ok(&of(logical), value, micros(Some("UTC"))), format!("{at}Z"), "{logical}");
    }
    let reason = cell(&of("timestamp-millis"), Value::TimestampMillis(i64::MAX), micros(None)).unwrap_err();
    assert!(reason.contains("beyond what a timestamp can count"), "{reason}");
    let date = r#"{"type": "int", "logicalType": "date"}"#;
    assert_eq!(ok(date, Value::Date(-1), DataType::Date32), "1969-12-31");
    // The type below it.
    assert_eq!(ok(date, Value::Date(5), DataType::Int32), "5");
    assert_eq!(ok(&of("timestamp-millis"), Value::TimestampMillis(5), DataType::Int64), "5");
    let time = r#"{"type": "int", "logicalType": "time-millis"}"#;
    assert_eq!(ok(time, Value::TimeMillis(5), DataType::Int32), "5");
}

#[test]
fn decimals_keep_every_digit() {
    let decimal = |precision, scale| {
        format!(r#"{{"type": "bytes", "logicalType": "decimal", "precision": {precision}, "scale": {scale}}}"#)
    };
    let value = |unscaled: i128| Value::Decimal(Decimal::from(unscaled.to_be_bytes()));
    assert_eq!(ok(&decimal(38, 2), value(-1_234), DataType::Decimal128(38, 2)), "-12.34");
    assert_eq!(ok(&decimal(10, 2), value(1_234), DataType::Decimal128(12, 4)), "12.3400");
    assert_eq!(ok(&decimal(38, 0), value(10_i128.pow(38) - 1), DataType::Decimal128(38, 0)), "9".repeat(38));
    let reason = cell(&decimal(10, 2), value(123_456), DataType::Decimal128(4, 2)).unwrap_err();
    assert_eq!(reason, "c: the decimal does not fit into DECIMAL(4, 2) (byte 5)");
    let reason = cell(&decimal(10, 3), value(1), DataType::Decimal128(10, 2)).unwrap_err();
    assert!(reason.contains("decimal(10, 3) does not fit DECIMAL(10, 2)"), "{reason}");
    let fixed = r#"{"type": "fixed", "name": "F", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 1}"#;
    let bytes = Value::Fixed(3, vec![0xff, 0xff, 0xf6]);
    assert_eq!(ok(fixed, bytes, DataType::Decimal128(6, 1)), "-1.0");
    // Of other writers: more bytes than needed.
    let schema = record(&[("c", &decimal(38, 0))]);
    let mut payload = vec![0, 0, 0, 1, 2, 40];
    payload.extend([[0xff_u8; 19].as_slice(), &[0xfe]].concat());
    assert_eq!(read(&payload, &schema, None, &[("c", DataType::Decimal128(38, 0))]).unwrap(), ["-2"]);
    payload[6] = 0x80;
    assert!(read(&payload, &schema, None, &[("c", DataType::Decimal128(38, 0))]).is_err());
}

#[test]
fn uuids_are_text() {
    let text = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    let uuid = uuid::Uuid::parse_str(text).unwrap();
    assert_eq!(ok(r#"{"type": "string", "logicalType": "uuid"}"#, Value::Uuid(uuid), DataType::Utf8View), text);
    let schema = record(&[("c", r#"{"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}"#)]);
    let payload = [&[0, 0, 0, 1, 2], uuid.as_bytes().as_slice()].concat();
    assert_eq!(read(&payload, &schema, None, &[("c", DataType::Utf8View)]).unwrap(), [text]);
    assert_eq!(read(&payload, &schema, None, &[("c", DataType::Binary)]).unwrap(), [text.replace('-', "")]);
}

#[test]
fn unions_are_read_branch_by_branch() {
    let avro = r#"["null", "long", "string"]"#;
    let branch = |number, value| Value::Union(number, Box::new(value));
    assert_eq!(ok(avro, branch(0, Value::Null), DataType::Int64), "NULL");
    assert_eq!(ok(avro, branch(1, Value::Long(5)), DataType::Int64), "5");
    let reason = cell(avro, branch(2, Value::String("x".into())), DataType::Int64).unwrap_err();
    assert_eq!(reason, "c: string does not fit BIGINT: declare it VARCHAR (byte 6)");
    // The null need not come first, and there may be none, or nothing else.
    assert_eq!(ok(r#"["int", "null"]"#, branch(1, Value::Null), DataType::Int64), "NULL");
    assert_eq!(ok(r#"["int", "long"]"#, branch(0, Value::Int(1)), DataType::Int64), "1");
    assert_eq!(ok("\"null\"", Value::Null, DataType::Utf8View), "NULL");
}

#[test]
fn of_a_readers_union_the_first_branch_that_matches_counts() {
    let writer = record(&[("c", r#"["int", "string"]"#)]);
    let reader = record(&[("c", r#"["null", "long", "string"]"#)]);
    let int = framed(&writer, values(&[("c", Value::Union(0, Box::new(Value::Int(5))))]));
    let text = framed(&writer, values(&[("c", Value::Union(1, Box::new(Value::String("x".into()))))]));
    let columns = [("c", DataType::Int64)];
    assert_eq!(read(&int, &writer, Some(&reader), &columns).unwrap(), ["5"]);
    assert!(read(&text, &writer, Some(&reader), &columns).unwrap_err().contains("string does not fit BIGINT"));
    let narrow = record(&[("c", r#"["null", "string"]"#)]);
    let reason = read(&int, &writer, Some(&narrow), &[("c", DataType::Utf8View)]).unwrap_err();
    assert_eq!(reason, "c: int is in no branch of avro.schema (byte 6)");
}

#[test]
fn records_enums_arrays_and_maps_are_nested() {
    let avro = r#"{"type": "array", "items": {"type": "record", "name": "Item", "fields": [
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "extra", "type": {"type": "map", "values": ["null", "int"]}}, {"name": "more", "type": "Kind"}]}}"#;
    let item = values(&[
        ("kind", Value::Enum(1, "B".into())),
        ("extra", Value::Map([("k".to_string(), Value::Union(1, Box::new(Value::Int(7))))].into())),
        ("more", Value::Enum(0, "A".into())),
    ]);
    let columns =
        object(&[("extra", map(DataType::Int64)), ("kind", DataType::Utf8View), ("none", DataType::Utf8View)]);
    let cells = ok(avro, Value::Array(vec![item.clone(), item]), list(columns));
    assert_eq!(cells, "[{extra: {k: 7}, kind: B, none: NULL}, {extra: {k: 7}, kind: B, none: NULL}]");
    assert_eq!(ok(avro, Value::Array(vec![]), list(object(&[("kind", DataType::Utf8View)]))), "[]");
}

#[test]
fn a_symbol_that_the_reader_lacks_becomes_its_default() {
    let writer = record(&[("c", r#"{"type": "enum", "name": "K", "symbols": ["A", "B"]}"#)]);
    let with = record(&[("c", r#"{"type": "enum", "name": "K", "symbols": ["A", "X"], "default": "X"}"#)]);
    let without = record(&[("c", r#"{"type": "enum", "name": "K", "symbols": ["A"]}"#)]);
    let payload = framed(&writer, values(&[("c", Value::Enum(1, "B".into()))]));
    let columns = [("c", DataType::Utf8View)];
    assert_eq!(read(&payload, &writer, Some(&with), &columns).unwrap(), ["X"]);
    assert_eq!(
        read(&payload, &writer, Some(&without), &columns).unwrap_err(),
        "c: a symbol that avro.schema does not have (byte 5)"
    );
    assert_eq!(read(&payload, &writer, None, &columns).unwrap(), ["B"]);
}

#[test]
fn aliases_of_the_reader_name_fields_and_types() {
    let writer = r#"{"type": "record", "name": "old.R", "fields": [{"name": "was", "type": "int"}]}"#;
    let reader = r#"{"type": "record", "name": "S", "aliases": ["old.R"], "fields": [
        {"name": "is", "aliases": ["once", "was"], "type": "long"}]}"#;
    let payload = framed(writer, values(&[("was", Value::Int(4))]));
    let columns = [("is", DataType::Int64)];
    assert_eq!(read(&payload, writer, Some(reader), &columns).unwrap(), ["4"]);
    let other = reader.replace("old.R", "old.Q");
    let reason = read(&payload, writer, Some(&other), &columns).unwrap_err();
    assert_eq!(reason, "schema 258: record R is not S nor one of its aliases in avro.schema (byte 5)");
}

#[test]
fn a_fixed_matches_by_name_and_size() {
    let fixed =
        |name: &str, size| record(&[("c", &format!(r#"{{"type": "fixed", "name": "{name}", "size": {size}}}"#))]);
    let writer = fixed("F", 2);
    let payload = framed(&writer, values(&[("c", Value::Fixed(2, vec![1, 2]))]));
    let columns = [("c", DataType::Binary)];
    assert_eq!(read(&payload, &writer, Some(&fixed("F", 2)), &columns).unwrap(), ["0102"]);
    assert!(read(&payload, &writer, Some(&fixed("F", 3)), &columns).is_err());
    assert!(read(&payload, &writer, Some(&fixed("G", 2)), &columns).is_err());
}

#[test]
fn a_plain_long_means_what_the_reader_says() {
    let writer = record(&[("c", "\"long\"")]);
    let reader = record(&[("c", r#"{"type": "long", "logicalType": "timestamp-millis"}"#)]);
    let payload = framed(&writer, values(&[("c", Value::Long(5))]));
    assert_eq!(read(&payload, &writer, Some(&reader), &[("c", micros(None))]).unwrap(), ["1970-01-01T00:00:00.005"]);
}

#[test]
fn blocks_with_their_size_are_read_and_passed_over() {
    let schema = record(&[("a", r#"{"type": "array", "items": "int"}"#), ("b", "\"int\"")]);
    // Two items in 2 bytes, one item, the end; then 7.
    let payload = [0, 0, 0, 1, 2, 3, 4, 2, 4, 2, 6, 0, 14];
    let columns = [("a", list(DataType::Int32)), ("b", DataType::Int32)];
    assert_eq!(read(&payload, &schema, None, &columns).unwrap(), ["[1, 2, 3]", "7"]);
    assert_eq!(read(&payload, &schema, None, &columns[1..]).unwrap(), ["7"]);
}

#[test]
fn a_record_that_contains_itself_is_passed_over() {
    let schema = r#"{"type": "record", "name": "N", "fields": [{"name": "next", "type": ["null", "N"]}, {"name": "a", "type": "int"}]}"#;
    let payload = [0, 0, 0, 1, 2, 2, 2, 0, 2, 4, 6];
    assert_eq!(read(&payload, schema, None, &[("a", DataType::Int32)]).unwrap(), ["3"]);
    let columns = [("next", object(&[("a", DataType::Int32)])), ("a", DataType::Int32)];
    assert_eq!(read(&payload, schema, None, &columns).unwrap(), ["{a: 2}", "3"]);
    let deep = [&[0, 0, 0, 1, 2], [2; 1_000].as_slice()].concat();
    assert!(read(&deep, schema, None, &[("a", DataType::Int32)]).unwrap_err().contains("nested deeper than 128"));
}

/// Each type is that of a field of the next: nested in no text, and as deep as a schema has types.
#[test]
fn a_chain_of_types_may_be_longer_than_a_stack_is_deep() {
    const CHAIN: usize = 3_000;
    let link = |number: usize| match number {
        0 => r#"{"type": "record", "name": "R0", "fields": []}"#.to_string(),
        _ => format!(
            r#"{{"type": "record", "name": "R{number}", "fields": [{{"name": "x", "type": ["null", "R{}"]}}]}}"#,
            number - 1
        ),
    };
    let references: Vec<String> = (0..CHAIN).map(link).collect();
    let schema = record(&[("last", &format!("[\"null\", \"R{}\"]", CHAIN - 1)), ("a", "\"int\"")]);
    let work = move || {
        let columns = fields(&[("a", DataType::Int32)]);
        let known = known(ID, &schema, &references, None, &columns);
        let mut decoder = JsonDecoder::try_new(&columns).unwrap();
        // Two links of it, then 3; all of it, and more than is passed over.
        push(&mut decoder, &[0, 0, 0, 1, 2, 2, 2, 0, 6], Some(&known)).unwrap();
        let all = [&[0, 0, 0, 1, 2], [2; CHAIN].as_slice(), &[6]].concat();
        push(&mut decoder, &all, Some(&known)).unwrap_err()
    };
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap();
    assert!(thread.join().unwrap().contains("nested deeper than 128"));
}

#[test]
fn a_union_of_records_is_one_table() {
    let schema = r#"[{"type": "record", "name": "A", "fields": [{"name": "a", "type": "int"}]}, "string",
        {"type": "record", "name": "B", "fields": [{"name": "b", "type": "int"}, {"name": "a", "type": "int"}]}]"#;
    let columns = [("a", DataType::Int32)];
    assert_eq!(read(&[0, 0, 0, 1, 2, 0, 6], schema, None, &columns).unwrap(), ["3"]);
    assert_eq!(read(&[0, 0, 0, 1, 2, 4, 6, 8], schema, None, &columns).unwrap(), ["4"]);
    let reason = read(&[0, 0, 0, 1, 2, 2, 0], schema, None, &columns).unwrap_err();
    assert_eq!(reason, "schema 258: its records are string, not a record with fields (byte 6)");
}

#[test]
fn what_is_not_framed_or_of_an_unknown_schema_is_a_row_with_its_reason() {
    let columns = fields(&[("a", DataType::Int64)]);
    let mut decoder = JsonDecoder::try_new(&columns).unwrap();
    let mut reason = |payload: &[u8]| push(&mut decoder, payload, None).unwrap_err();
    assert_eq!(reason(b"{}"), "not Avro: begins with byte 123, not 0 and the id of a schema (byte 0)");
    assert_eq!(reason(&[0, 1, 2]), "not Avro: 3 bytes are too few for the id of a schema (byte 0)");
    assert_eq!(reason(&[0, 0, 0, 0, 9, 1]), "schema 9 is not in the registry");
    assert_eq!(reason(b""), "empty payload");
    assert_eq!(decoder.len(), 4);
    let unusable = known(9, "{", &[], None, &columns);
    assert!(push(&mut decoder, &[0, 0, 0, 0, 9], Some(&unusable)).unwrap_err().starts_with("schema 9 is not usable: "));
}

#[test]
fn a_payload_that_ends_too_early_or_too_late_is_refused() {
    let schema = record(&[
        ("a", "\"long\""),
        ("s", "\"string\""),
        ("d", "\"double\""),
        ("l", r#"{"type": "array", "items": "int"}"#),
    ]);
    let value = values(&[
        ("a", Value::Long(1 << 40)),
        ("s", Value::String("abc".into())),
        ("d", Value::Double(1.5)),
        ("l", Value::Array(vec![Value::Int(1), Value::Int(300)])),
    ]);
    let whole = framed(&schema, value);
    let columns =
        [("a", DataType::Int64), ("s", DataType::Utf8View), ("d", DataType::Float64), ("l", list(DataType::Int64))];
    for end in 5..whole.len() {
        for columns in [&columns[..], &columns[..1], &columns[3..]] {
            let reason = read(&whole[..end], &schema, None, columns).unwrap_err();
            assert!(reason.contains("not Avro by its schema: "), "{end}: {reason}");
        }
    }
    let longer = [&whole[..], &[1, 2]].concat();
    let reason = read(&longer, &schema, None, &columns).unwrap_err();
    assert_eq!(reason, format!("not Avro by its schema: 2 bytes follow the record (byte {})", whole.len()));
}

#[test]
fn lengths_counts_and_branches_that_cannot_be_are_refused() {
    let schema = |avro: &str| record(&[("c", avro)]);
    let reason = |avro: &str, body: &[u8], data_type| {
        let payload = [&[0, 0, 0, 1, 2], body].concat();
        read(&payload, &schema(avro), None, &[("c", data_type)]).unwrap_err()
    };
    let huge = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert!(
        reason("\"string\"", &huge, DataType::Utf8View)
            .contains("a length of 9223372036854775807, and 0 bytes are left")
    );
    assert!(reason("\"string\"", &[1], DataType::Utf8View).contains("a length of -1"));
    assert!(reason("\"long\"", &[0xff; 11], DataType::Int64).contains("a number of more than 64 bits"));
    assert!(reason("\"int\"", &huge, DataType::Int32).contains("an int of more than 32 bits"));
    assert!(reason("\"boolean\"", &[2], DataType::Boolean).contains("2 is no boolean"));
    assert!(reason(r#"["null", "int"]"#, &[4], DataType::Int32).contains("branch 2 of a union of 2"));
    assert!(
        reason(r#"{"type": "enum", "name": "E", "symbols": ["A"]}"#, &[2], DataType::Utf8View)
            .contains("symbol 1 of an enum of 1")
    );
    let array = r#"{"type": "array", "items": "int"}"#;
    assert!(reason(array, &huge, list(DataType::Int32)).contains("items, and 0 bytes are left"));
    let nulls = r#"{"type": "array", "items": "null"}"#;
    assert!(reason(nulls, &huge, list(DataType::Int32)).contains("more than 10000 items without a value"));
    let map_of = r#"{"type": "map", "values": "int"}"#;
    let twice = [4, 2, b'k', 2, 2, b'k', 4, 0];
    assert_eq!(reason(map_of, &twice, map(DataType::Int32)), "c[\"k\"]: given twice (byte 5)");
}
