use std::sync::Arc;

use super::*;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};

pub(in crate::format) fn fields(columns: &[(&str, DataType)]) -> Vec<FieldRef> {
    columns.iter().map(|(name, data_type)| Arc::new(Field::new(*name, data_type.clone(), true))).collect()
}

fn micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

pub(in crate::format) fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

pub(in crate::format) fn object(columns: &[(&str, DataType)]) -> DataType {
    DataType::Struct(fields(columns).into_iter().collect())
}

pub(in crate::format) fn map(value: DataType) -> DataType {
    let entries = vec![Field::new("key", DataType::Utf8, false), Field::new("value", value, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries.into()), false)), false)
}

/// What the one column `c` holds for the JSON value, as text (`NULL` for none), or the reason.
fn cell(data_type: &DataType, value: &str) -> Result<String, String> {
    row(&[("c", data_type.clone())], format!("{{\"c\":{value}}}").as_bytes()).map(|mut cells| cells.remove(0))
}

/// Pushes the payload between two good rows of `{}`, which have to stay.
pub(super) fn row(columns: &[(&str, DataType)], payload: &[u8]) -> Result<Vec<String>, String> {
    let columns = fields(columns);
    let mut decoder = JsonDecoder::try_new(&columns).unwrap();
    decoder.push(Some(b"{}")).unwrap();
    let outcome = decoder.push(Some(payload));
    decoder.push(Some(b"{}")).unwrap();
    assert_eq!(decoder.len(), 3);
    let arrays = decoder.finish().unwrap();
    assert_eq!(decoder.len(), 0);
    let schema = Arc::new(Schema::new(columns));
    let batch = RecordBatch::try_new(schema, arrays).unwrap();
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

fn reason(payload: &[u8]) -> String {
    row(&[("id", DataType::Int64), ("name", DataType::Utf8View)], payload).unwrap_err()
}

#[test]
fn not_json() {
    assert_eq!(reason(b"hello"), "not JSON: expected a value (byte 0)");
    assert_eq!(reason(b"  \n"), "not JSON: the payload ends too early (byte 3)");
    assert_eq!(reason(b"{'id': 1}"), "not JSON: expected a key in double quotes (byte 1)");
    assert_eq!(reason(b"{\"id\" 1}"), "not JSON: expected ':' (byte 6)");
    assert_eq!(reason(b"{\"id\": 1 \"name\": 2}"), "not JSON: expected ',' or '}' (byte 9)");
    assert_eq!(reason(b"{\"id\": 1,}"), "not JSON: expected a key in double quotes (byte 9)");
    assert_eq!(reason(b"{,}"), "not JSON: expected a key in double quotes (byte 1)");
    assert_eq!(reason(b"{\"x\": [1 2]}"), "not JSON: expected ',' or ']' (byte 9)");
    assert_eq!(reason(b"{\"id\": NaN}"), "not JSON: expected a value (byte 7)");
    assert_eq!(reason(b"{\"id\": nul!}"), "not JSON: expected a value (byte 7)");
    assert_eq!(reason(b"{\"id\": -}"), "not JSON: expected a digit (byte 8)");
    assert_eq!(reason(b"{\"id\": 01}"), "not JSON: expected ',' or '}' (byte 8)");
    assert_eq!(reason(b"{\"name\": \"a\nb\"}"), "not JSON: a control character in a string (byte 11)");
    assert_eq!(reason(b"{\"name\": \"\\x\"}"), "not JSON: an escape that JSON does not have (byte 11)");
    assert_eq!(reason(b"{\"x\": \"\\u12g4\"}"), "not JSON: expected four hexadecimal digits after \\u (byte 11)");
    assert_eq!(reason(b"{} {}"), "not JSON: more follows after the object (byte 3)");
    assert_eq!(
        reason(b"\0\0\0\0\x2a{}"),
        "not JSON: begins with a zero byte, as records framed by a schema registry do (byte 0)"
    );
}

#[test]
fn truncated_anywhere() {
    let payload = br#"{"id": -1.0e1, "name": "a\u00e9", "x": [true, false, null, {"y": {}}]} "#;
    row(&[("id", DataType::Int64), ("name", DataType::Utf8View)], payload).unwrap();
    for cut in 1..payload.len() - 1 {
        let reason = reason(&payload[..cut]);
        assert!(reason.starts_with("not JSON: the payload ends too early"), "{cut}: {reason}");
    }
}

#[test]
fn not_an_object() {
    assert_eq!(reason(b"[1]"), "not an object: the payload is a list (byte 0)");
    assert_eq!(reason(b" \"x\""), "not an object: the payload is a string (byte 1)");
    assert_eq!(reason(b"17"), "not an object: the payload is a number (byte 0)");
    assert_eq!(reason(b"true"), "not an object: the payload is true or false (byte 0)");
    assert_eq!(reason(b"null"), "not an object: the payload is null (byte 0)");
}

#[test]
fn invalid_utf8() {
    assert_eq!(reason(b"{\"name\": \"a\xffb\"}"), "not UTF-8 (byte 11)");
    assert_eq!(reason(b"{\"unknown\": \"\xed\xa0\x80\"}"), "not UTF-8 (byte 13)");
    assert_eq!(reason(b"{\"name\": \"a\xc3"), "not UTF-8 (byte 11)");
    assert_eq!(reason(b"\xff\xfe{\0}\0"), "not UTF-8 (byte 0)");
}

#[test]
fn byte_order_mark_is_skipped() {
    let columns = [("id", DataType::Int64)];
    assert_eq!(row(&columns, b"\xef\xbb\xbf{\"id\":1}").unwrap(), ["1"]);
    assert_eq!(row(&columns, b"\xef\xbb\xbf{\"id\":x}").unwrap_err(), "not JSON: expected a value (byte 9)");
}

#[test]
fn duplicate_keys() {
    assert_eq!(reason(b"{\"id\":1,\"id\":1}"), "id: given twice (byte 8)");
    assert_eq!(reason(b"{\"id\":null,\"name\":\"\",\"id\":1}"), "id: given twice (byte 21)");
    assert_eq!(reason(b"{\"id\":1,\"\\u0069d\":1}"), "id: given twice (byte 8)");
    assert_eq!(row(&[("id", DataType::Int64)], b"{\"x\":1,\"x\":2,\"id\":3}").unwrap(), ["3"]);
    let nested = object(&[("a", DataType::Int64)]);
    assert_eq!(cell(&nested, r#"{"a":1,"a":2}"#).unwrap_err(), "c.a: given twice (byte 12)");
    assert_eq!(cell(&map(DataType::Int64), r#"{"a":1,"b":1,"a":2}"#).unwrap_err(), "c[\"a\"]: given twice (byte 6)");
    assert!(cell(&map(DataType::Int64), r#"{"a longer key":1,"b":1,"a l\u006fnger key":2}"#).is_err());
}

#[test]
fn unknown_missing_and_null() {
    let columns = [("id", DataType::Int64), ("name", DataType::Utf8View)];
    let payload = br#"{"ID":1,"x":{"id":[2,{}]},"name":"a","y":"\ud800","id ":1}"#;
    assert_eq!(row(&columns, payload).unwrap(), ["NULL", "a"]);
    assert_eq!(row(&columns, b"{}").unwrap(), ["NULL", "NULL"]);
    assert_eq!(row(&columns, b"{\"name\":null,\"id\":null}").unwrap(), ["NULL", "NULL"]);
    assert_eq!(row(&columns, b"{\"name\":\"\"}").unwrap(), ["NULL", ""]);
}

#[test]
fn empty_payload_and_tombstone() {
    let mut decoder = JsonDecoder::try_new(&fields(&[("id", DataType::Int64)])).unwrap();
    assert!(decoder.is_empty());
    assert_eq!(decoder.push(Some(b"")).unwrap_err(), "empty payload");
    assert_eq!(decoder.push(None).unwrap_err(), "no payload (tombstone)");
    decoder.push(Some(b"{\"id\":1}")).unwrap();
    let arrays = decoder.finish().unwrap();
    assert_eq!((arrays[0].len(), arrays[0].null_count()), (3, 2));
    assert_eq!(decoder.finish().unwrap()[0].len(), 0);
}

#[test]
fn integers() {
    let cases = [
        (DataType::Int64, "-9223372036854775808", Ok("-9223372036854775808")),
        (DataType::Int64, "9223372036854775808", Err("is not between -9223372036854775808 and 9223372036854775807")),
        (DataType::Int64, "1.0", Ok("1")),
        (DataType::Int64, "1e3", Ok("1000")),
        (DataType::Int64, "-0.0", Ok("0")),
        (DataType::Int64, "1.5", Err("is not an integer")),
        (DataType::Int64, "\"12\"", Ok("12")),
        (DataType::Int64, "\"\\u0031\"", Ok("1")),
        (DataType::Int64, "\"abc\"", Err("is not an integer")),
        (DataType::Int64, "\"\"", Err("is not an integer")),
        (DataType::Int64, "\" 1\"", Err("is not an integer")),
        (DataType::Int64, "\"012\"", Err("is not an integer")),
        (DataType::Int64, "true", Err("is not an integer")),
        (DataType::Int8, "-128", Ok("-128")),
        (DataType::Int8, "128", Err("is not between -128 and 127")),
        (DataType::Int16, "32767", Ok("32767")),
        (DataType::Int16, "1e400", Err("is not between -32768 and 32767")),
        (DataType::Int32, "-2147483648", Ok("-2147483648")),
        (DataType::Int32, "2147483648", Err("is not between -2147483648 and 2147483647")),
        (DataType::UInt8, "255", Ok("255")),
        (DataType::UInt8, "-1", Err("is not between 0 and 255")),
        (DataType::UInt16, "65535", Ok("65535")),
        (DataType::UInt32, "4294967295", Ok("4294967295")),
        (DataType::UInt64, "18446744073709551615", Ok("18446744073709551615")),
        (DataType::UInt64, "18446744073709551616", Err("is not between 0 and 18446744073709551615")),
    ];
    check(&cases);
    assert_eq!(cell(&DataType::Int64, "[1]").unwrap_err(), "c: a list is not an integer (byte 5)");
    assert_eq!(cell(&DataType::Int64, "{}").unwrap_err(), "c: an object is not an integer (byte 5)");
}

/// A refusal has to read `c: <value> <what> (byte 5)`.
fn check(cases: &[(DataType, &str, Result<&str, &str>)]) {
    for (data_type, value, expected) in cases {
        let expected = match expected {
            Ok(text) => Ok((*text).to_string()),
            Err(what) => Err(format!("c: {value} {what} (byte 5)")),
        };
        assert_eq!(cell(data_type, value), expected, "{value} into {data_type}");
    }
}

#[test]
fn decimals_are_exact() {
    let money = DataType::Decimal128(10, 2);
    check(&[
        (money.clone(), "12.3", Ok("12.30")),
        (money.clone(), "\"12.30\"", Ok("12.30")),
        (money.clone(), "12.300000", Ok("12.30")),
        (money.clone(), "-0.07", Ok("-0.07")),
        (money.clone(), "1.5e3", Ok("1500.00")),
        (money.clone(), "99999999.99", Ok("99999999.99")),
        (money.clone(), "100000000", Err("does not fit into DECIMAL(10, 2)")),
        (money.clone(), "1e99", Err("does not fit into DECIMAL(10, 2)")),
        (money.clone(), "1.005", Err("has more than 2 decimal places")),
        (money.clone(), "\"1,5\"", Err("is not a number")),
        (money.clone(), "\"NaN\"", Err("is not a number")),
        (money, "false", Err("is not a number")),
        (
            DataType::Decimal128(38, 0),
            "99999999999999999999999999999999999999",
            Ok("99999999999999999999999999999999999999"),
        ),
        (
            DataType::Decimal128(38, 18),
            "9007199254740993.000000000000000001",
            Ok("9007199254740993.000000000000000001"),
        ),
    ]);
}

#[test]
fn floats_and_booleans() {
    check(&[
        (DataType::Float64, "1", Ok("1.0")),
        (DataType::Float64, "-1.5e-3", Ok("-0.0015")),
        (DataType::Float64, "0.1", Ok("0.1")),
        (DataType::Float64, "9007199254740993", Ok("9007199254740992.0")),
        (DataType::Float64, "\"2.5\"", Ok("2.5")),
        (DataType::Float64, "\"NaN\"", Ok("NaN")),
        (DataType::Float64, "\"-Infinity\"", Ok("-inf")),
        (DataType::Float64, "\"inf\"", Err("is not a number")),
        (DataType::Float64, "1e-999", Ok("0.0")),
        (DataType::Float64, "1e999", Err("is too large for a float of 64 bits")),
        (DataType::Float32, "1e39", Err("is too large for a float of 32 bits")),
        (DataType::Float32, "0.1", Ok("0.1")),
        (DataType::Float64, "true", Err("is not a number")),
        (DataType::Boolean, "true", Ok("true")),
        (DataType::Boolean, "\"false\"", Ok("false")),
        (DataType::Boolean, "1", Err("is not true or false")),
        (DataType::Boolean, "\"yes\"", Err("is not true or false")),
    ]);
}

#[test]
fn text_of_anything() {
    for data_type in [DataType::Utf8View, DataType::Utf8, DataType::LargeUtf8] {
        for (value, expected) in [
            ("\"\"", ""),
            ("\"exactly 12 b\"", "exactly 12 b"),
            ("\"13 bytes long\"", "13 bytes long"),
            (r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00""#, "\"\\/\u{8}\u{c}\n\r\té😀"),
            ("\"\\u0000\"", "\0"),
            ("\"é😀\"", "é😀"),
            ("1.50", "1.50"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("-1E+2", "-1E+2"),
            ("true", "true"),
            ("[1, {\"a\" : \"\\n\"} ]", "[1, {\"a\" : \"\\n\"} ]"),
            ("{\"a\":1.0}", "{\"a\":1.0}"),
            ("null", "NULL"),
        ] {
            assert_eq!(cell(&data_type, value).as_deref(), Ok(expected), "{value}");
        }
    }
    let half = "c: half of a surrogate pair is no character";
    assert_eq!(cell(&DataType::Utf8View, r#""ab\ud83d""#).unwrap_err(), format!("{half} (byte 8)"));
    assert_eq!(cell(&DataType::Utf8View, r#""\ud83d\u0041""#).unwrap_err(), format!("{half} (byte 6)"));
    assert_eq!(cell(&DataType::Utf8View, r#""\ude00\ud83d""#).unwrap_err(), format!("{half} (byte 6)"));
    assert_eq!(cell(&DataType::Int64, r#""\ude00""#).unwrap_err(), format!("{half} (byte 6)"));
}

#[test]
fn binary_is_base64() {
    for data_type in [DataType::Binary, DataType::BinaryView, DataType::LargeBinary] {
        check(&[
            (data_type.clone(), "\"aGVsbG8=\"", Ok("68656c6c6f")),
            (data_type.clone(), "\"\"", Ok("")),
            (data_type.clone(), "\"aGVsbG8gaGVsbG8gaGVsbG8\\u003d\"", Ok("68656c6c6f2068656c6c6f2068656c6c6f")),
            (data_type.clone(), "\"hello\"", Err("is not base64")),
            (data_type.clone(), "1", Err("is not base64")),
        ]);
    }
}

#[test]
fn timestamps() {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let nanos = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let out_of_years = Err("is not between the years 1 and 9999 in milliseconds since 1970");
    check(&[
        (micros(), "\"2024-01-31T10:20:30\"", Ok("2024-01-31T10:20:30")),
        (micros(), "\"2024-01-31T10:20:30.123456789Z\"", Ok("2024-01-31T10:20:30.123456")),
        (micros(), "\"2024-01-31 10:20:30+02:00\"", Ok("2024-01-31T08:20:30")),
        (micros(), "\"2024-01-31\"", Ok("2024-01-31T00:00:00")),
        (micros(), "1706696430123", Ok("2024-01-31T10:20:30.123")),
        (micros(), "-1", Ok("1969-12-31T23:59:59.999")),
        (micros(), "1706696430123.0", Ok("2024-01-31T10:20:30.123")),
        (micros(), "1706696430.123", Err("is not a whole number of milliseconds")),
        (micros(), "1706696430123456", out_of_years),
        (micros(), "1e30", out_of_years),
        (micros(), "\"1706696430123\"", Err("is not a timestamp")),
        (micros(), "\"yesterday\"", Err("is not a timestamp")),
        (micros(), "\"\"", Err("is not a timestamp")),
        (micros(), "\"2024-02-30T00:00:00\"", Err("is not a timestamp")),
        (micros(), "true", Err("is not a timestamp")),
        (utc.clone(), "\"2024-01-31T10:20:30\"", Ok("2024-01-31T10:20:30Z")),
        (utc, "\"2024-01-31T10:20:30-01:00\"", Ok("2024-01-31T11:20:30Z")),
        (nanos.clone(), "\"2024-01-31T10:20:30.123456789\"", Ok("2024-01-31T10:20:30.123456789")),
        (nanos.clone(), "\"2300-01-01\"", Err("is beyond what nanoseconds can count")),
        (nanos, "10413792000000", Err("is beyond what nanoseconds can count")),
        (DataType::Timestamp(TimeUnit::Second, None), "1706696430999", Ok("2024-01-31T10:20:30")),
        (DataType::Timestamp(TimeUnit::Millisecond, None), "\"2024-01-31T10:20:30.9\"", Ok("2024-01-31T10:20:30.900")),
        (DataType::Date32, "\"2024-01-31\"", Ok("2024-01-31")),
        (DataType::Date32, "19753", Ok("2024-01-31")),
        (DataType::Date32, "1706696430123", Err("is not between the years 1 and 9999 in days since 1970")),
        (DataType::Date32, "\"2024-01-31T10:20:30\"", Err("is not a date")),
        (DataType::Date32, "1.5", Err("is not a date")),
    ]);
}

#[test]
fn nested_values() {
    let inner = object(&[("a", DataType::Int64), ("b", list(DataType::Utf8View))]);
    assert_eq!(cell(&inner, r#"{"b":["x",null,1],"z":0,"a":7}"#).as_deref(), Ok("{a: 7, b: [x, NULL, 1]}"));
    assert_eq!(cell(&inner, "{}").as_deref(), Ok("{a: NULL, b: NULL}"));
    assert_eq!(cell(&inner, "null").as_deref(), Ok("NULL"));
    assert_eq!(cell(&inner, "[]").unwrap_err(), "c: a list is not an object (byte 5)");
    assert_eq!(cell(&inner, "\"{}\"").unwrap_err(), "c: \"{}\" is not an object (byte 5)");
    assert_eq!(cell(&inner, r#"{"a":"x"}"#).unwrap_err(), "c.a: \"x\" is not an integer (byte 10)");

    let lists = list(list(DataType::Int32));
    assert_eq!(cell(&lists, "[[1,2],[],null,[null]]").as_deref(), Ok("[[1, 2], [], NULL, [NULL]]"));
    assert_eq!(cell(&lists, "[]").as_deref(), Ok("[]"));
    assert_eq!(cell(&lists, "[[1],[2,\"x\"]]").unwrap_err(), "c[1][1]: \"x\" is not an integer (byte 13)");
    assert_eq!(cell(&lists, "{}").unwrap_err(), "c: an object is not a list (byte 5)");

    let orders = list(object(&[("price", DataType::Decimal128(4, 1)), ("tags", map(DataType::Boolean))]));
    let value = r#"[{"price":1.5,"tags":{"new":true,"":null}},null,{}]"#;
    let shown = "[{price: 1.5, tags: {new: true, : NULL}}, NULL, {price: NULL, tags: NULL}]";
    assert_eq!(cell(&orders, value).as_deref(), Ok(shown));
    let value = r#"[{"tags":{"new":true,"old":3}}]"#;
    assert_eq!(cell(&orders, value).unwrap_err(), "c[0].tags[\"old\"]: 3 is not true or false (byte 32)");
}

#[test]
fn a_refused_row_leaves_nothing_behind() {
    let columns = fields(&[
        ("long", DataType::Utf8View),
        ("rows", list(object(&[("text", DataType::Utf8View), ("tags", map(DataType::Utf8View))]))),
        ("id", DataType::Int64),
    ]);
    let good = br#"{"long":"a text of more than 12 bytes","rows":[
        {"text":"another one, also long","tags":{"a long key of a map":"b"}}],"id":1}"#;
    let bad = br#"{"long":"a text of a row that is bad","rows":[
        {"text":"a text in a bad row","tags":{"of a bad row too":"of a bad row as well"}}],"id":"x"}"#;
    let half =
        br#"{"long":"a text of a row that is bad","rows":[{"text":"a text in a bad row","tags":{"of a bad row too":"#;
    let (mut mixed, mut pure) = (JsonDecoder::try_new(&columns).unwrap(), JsonDecoder::try_new(&columns).unwrap());
    for _ in 0..3 {
        mixed.push(Some(good)).unwrap();
        pure.push(Some(good)).unwrap();
        for wrong in [bad.as_slice(), half.as_slice()] {
            mixed.push(Some(wrong)).unwrap_err();
            pure.push(Some(b"")).unwrap_err();
        }
    }
    let (mixed, pure) = (mixed.finish().unwrap(), pure.finish().unwrap());
    assert_eq!(mixed, pure);
    let bytes = |array: &ArrayRef| array.as_string_view().data_buffers().iter().map(|b| b.len()).sum::<usize>();
    assert_eq!(bytes(&mixed[0]), 3 * 28, "only the good rows' texts");
}

#[test]
fn nesting_has_a_limit() {
    let columns = [("text", DataType::Utf8View)];
    for key in ["text", "unknown"] {
        let payload = |depth: usize| format!("{{\"{key}\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        row(&columns, payload(127).as_bytes()).unwrap();
        let reason = row(&columns, payload(128).as_bytes()).unwrap_err();
        assert!(reason.starts_with("not JSON: nested deeper than 128 levels"), "{reason}");
        row(&columns, payload(1_000_000).as_bytes()).unwrap_err();
        row(&columns, format!("{{\"{key}\":{}", "{\"a\":".repeat(1_000_000)).as_bytes()).unwrap_err();
    }
}

#[test]
fn ten_megabytes() {
    let columns = [("text", DataType::Utf8View), ("id", DataType::Int64)];
    let text = "0123456789".repeat(1 << 20);
    let payload = format!("{{\"text\":\"{text}\",\"id\":1,\"x\":[{}0]}}", "0,".repeat(1 << 20));
    let cells = row(&columns, payload.as_bytes()).unwrap();
    assert!(cells[0] == text && cells[1] == "1");
    let reason = row(&columns, format!("{{\"id\":\"{text}\"}}").as_bytes()).unwrap_err();
    assert_eq!(reason, format!("id: \"{}… is not an integer (byte 6)", &text[..59]));
    let digits = row(&columns, format!("{{\"id\":1{text}}}").as_bytes()).unwrap_err();
    assert!(digits.len() < 200, "{digits}");
}

#[test]
fn a_reason_is_short_whatever_the_path() {
    let mut deep = DataType::Int64;
    for _ in 0..100 {
        deep = object(&[("a_rather_long_name_of_a_field", deep)]);
    }
    let value = format!("{}true{}", "{\"a_rather_long_name_of_a_field\":".repeat(100), "}".repeat(100));
    let reason = cell(&deep, &value).unwrap_err();
    assert!(reason.len() < 200 && reason.contains("true is not an integer (byte "), "{reason}");
    let key = "k".repeat(10_000);
    let reason = cell(&map(DataType::Int64), &format!("{{\"{key}\":true}}")).unwrap_err();
    assert!(reason.len() < 200, "{reason}");
}

#[test]
fn any_order_of_keys() {
    let names: Vec<String> = (0..40).map(|i| format!("column_{i}")).collect();
    let columns: Vec<_> = names.iter().map(|name| (name.as_str(), DataType::Int64)).collect();
    let mut decoder = JsonDecoder::try_new(&fields(&columns)).unwrap();
    for row in 0..500_usize {
        // Another order, other missing and other unknown keys in every row.
        let keys = (0..60).map(|i| (i * (2 * row + 1) + row) % 64).filter(|i| i % 7 != row % 7);
        let values: Vec<String> = keys.map(|i| format!("\"column_{i}\":{}", i * 1_000 + row)).collect();
        decoder.push(Some(format!("{{{}}}", values.join(",")).as_bytes())).unwrap();
    }
    for (i, array) in decoder.finish().unwrap().iter().enumerate() {
        let array = array.as_primitive::<arrow::datatypes::Int64Type>();
        assert!(array.null_count() < 150);
        for (row, value) in array.iter().enumerate() {
            assert!(value.is_none_or(|value| value == (i * 1_000 + row) as i64));
        }
    }
}

#[test]
fn types_that_json_cannot_fill() {
    let not_null = DataType::List(Arc::new(Field::new("item", DataType::Int64, false)));
    for data_type in
        [DataType::Null, DataType::Duration(TimeUnit::Second), list(DataType::Date64), not_null, object(&[])]
    {
        let error = JsonDecoder::try_new(&fields(&[("c", data_type)])).err().unwrap();
        assert!(error.message().contains("which JSON payloads cannot fill"), "{error}");
    }
}
