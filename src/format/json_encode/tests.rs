use arrow::array::{
    ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Float32Array, Float64Array, Int8Array, Int64Array, ListArray, RecordBatch, StringArray, StringDictionaryBuilder,
    StringViewArray, StructArray, TimestampMicrosecondArray, TimestampMillisecondArray, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Field, Int32Type, Schema};
use proptest::prelude::*;

use super::*;
use crate::format::json::JsonDecoder;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn texts(batch: &RecordBatch, columns: &[usize]) -> Vec<String> {
    let rows = encode_rows(batch, columns).unwrap();
    assert_eq!(rows.len(), batch.num_rows());
    rows.iter().map(|row| String::from_utf8(row.to_vec()).unwrap()).collect()
}

fn one(array: impl Array + 'static) -> Vec<String> {
    let texts = texts(&batch(vec![("c", Arc::new(array))]), &[0]);
    texts.iter().map(|text| text.strip_prefix("{\"c\":").unwrap().strip_suffix('}').unwrap().to_string()).collect()
}

#[test]
fn forms_of_values() {
    assert_eq!(one(BooleanArray::from(vec![Some(true), None])), ["true", "null"]);
    assert_eq!(one(Int64Array::from(vec![i64::MIN])), ["-9223372036854775808"]);
    assert_eq!(one(UInt64Array::from(vec![u64::MAX])), ["18446744073709551615"]);
    assert_eq!(one(Float64Array::from(vec![1.0, 0.1, f64::NAN, f64::INFINITY])), ["1.0", "0.1", "null", "null"]);
    assert_eq!(one(Float32Array::from(vec![0.1])), ["0.1"]);
    let decimals = Decimal128Array::from(vec![Some(-7), Some(10_i128.pow(38) - 1), None]);
    let decimals = decimals.with_precision_and_scale(38, 2).unwrap();
    assert_eq!(one(decimals), ["-0.07", "999999999999999999999999999999999999.99", "null"]);
    assert_eq!(one(StringViewArray::from(vec!["a\"\\\n\u{1}é\u{7f}"])), ["\"a\\\"\\\\\\n\\u0001é\u{7f}\""]);
    assert_eq!(one(BinaryArray::from_vec(vec![b"hello", b""])), ["\"aGVsbG8=\"", "\"\""]);
    assert_eq!(one(BinaryViewArray::from_iter_values([b"\xff\xfe"])), ["\"//4=\""]);
    assert_eq!(one(FixedSizeBinaryArray::try_from_iter([b"abc"].into_iter()).unwrap()), ["\"YWJj\""]);
    assert_eq!(one(Date32Array::from(vec![19_753])), ["\"2024-01-31\""]);
    let micros = TimestampMicrosecondArray::from(vec![Some(1_706_696_430_000_000), Some(-1), None]);
    assert_eq!(one(micros.clone()), ["\"2024-01-31T10:20:30.000000\"", "\"1969-12-31T23:59:59.999999\"", "null"]);
    assert_eq!(one(micros.with_timezone("UTC"))[0], "\"2024-01-31T10:20:30.000000Z\"");
    assert_eq!(one(TimestampMillisecondArray::from(vec![1_706_696_430_123])), ["\"2024-01-31T10:20:30.123\""]);
    assert_eq!(one(TimestampMicrosecondArray::from(vec![i64::MAX])), ["\"+294247-01-10T04:00:54.775807\""]);
    let mut words = StringDictionaryBuilder::<Int32Type>::new();
    words.append_option(Some("a"));
    words.append_option(None::<&str>);
    assert_eq!(one(words.finish()), ["\"a\"", "null"]);
}

#[test]
fn nested_values_have_the_same_forms() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_opt_vec(vec![Some(b"a"), None]));
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, 1]).with_timezone("UTC"));
    let objects = StructArray::from(vec![
        (Arc::new(Field::new("b", DataType::Binary, true)), bytes),
        (Arc::new(Field::new("t", times.data_type().clone(), true)), times),
    ]);
    let item = Arc::new(Field::new("item", objects.data_type().clone(), true));
    let nulls = Some(NullBuffer::from(vec![true, false, true]));
    let lists = ListArray::new(item, OffsetBuffer::from_lengths([2, 0, 0]), Arc::new(objects), nulls);
    let first = r#"[{"b":"YQ==","t":"1970-01-01T00:00:00.000000Z"},{"b":null,"t":"1970-01-01T00:00:00.000001Z"}]"#;
    assert_eq!(one(lists), [first, "null", "[]"]);
}

#[test]
fn columns_as_asked_for() {
    let batch = batch(vec![
        ("a", Arc::new(Int64Array::from(vec![1, 2]))),
        ("the \"b\"", Arc::new(StringArray::from(vec![Some("x\ny"), None]))),
    ]);
    assert_eq!(texts(&batch, &[1, 0]), ["{\"the \\\"b\\\"\":\"x\\ny\",\"a\":1}", "{\"the \\\"b\\\"\":null,\"a\":2}"]);
    assert_eq!(texts(&batch, &[]), ["{}", "{}"]);
    assert_eq!(texts(&batch.slice(1, 1), &[0]), ["{\"a\":2}"]);
    assert!(texts(&batch.slice(0, 0), &[0]).is_empty());
    assert!(encode_rows(&batch, &[2]).is_err());
    let rows = encode_rows(&batch, &[0]).unwrap();
    assert_eq!((rows.row(1), rows.row(2)), (b"{\"a\":2}".as_slice(), b"".as_slice()));
}

#[derive(Debug, Clone)]
pub(in crate::format) struct Row {
    boolean: Option<bool>,
    tiny: Option<i8>,
    big: Option<i64>,
    unsigned: Option<u64>,
    single: Option<f32>,
    double: Option<f64>,
    decimal: Option<i128>,
    text: Option<String>,
    bytes: Option<Vec<u8>>,
    day: Option<i32>,
    micros: Option<i64>,
    list: Option<Vec<Option<String>>>,
}

pub(in crate::format) fn rows() -> impl Strategy<Value = Vec<Row>> {
    use proptest::option::of;
    let single = any::<f32>().prop_filter("JSON has no number for it", |v| v.is_finite());
    let double = any::<f64>().prop_filter("JSON has no number for it", |v| v.is_finite());
    let decimal = -(10_i128.pow(38) - 1)..10_i128.pow(38);
    let micros = time::DAYS_MIN * 86_400_000_000..time::DAYS_MAX * 86_400_000_000;
    let day = time::DAYS_MIN as i32..=time::DAYS_MAX as i32;
    let left = (
        any::<Option<bool>>(),
        any::<Option<i8>>(),
        any::<Option<i64>>(),
        any::<Option<u64>>(),
        of(single),
        of(double),
    );
    let list = of(proptest::collection::vec(any::<Option<String>>(), 0..4));
    let right = (of(decimal), any::<Option<String>>(), any::<Option<Vec<u8>>>(), of(day), of(micros), list);
    let row = (left, right).prop_map(|(l, r)| Row {
        boolean: l.0,
        tiny: l.1,
        big: l.2,
        unsigned: l.3,
        single: l.4,
        double: l.5,
        decimal: r.0,
        text: r.1,
        bytes: r.2,
        day: r.3,
        micros: r.4,
        list: r.5,
    });
    proptest::collection::vec(row, 0..8)
}

fn strings(rows: &[Row]) -> Vec<Option<&str>> {
    rows.iter().map(|r| r.text.as_deref()).collect()
}

/// Every type that the decoder fills, nested ones made of these.
pub(in crate::format) fn columns(rows: &[Row]) -> Vec<(&'static str, ArrayRef)> {
    macro_rules! column {
        ($array:ty, $field:ident) => {
            Arc::new(rows.iter().map(|r| r.$field.clone()).collect::<$array>()) as ArrayRef
        };
    }
    let micros = rows.iter().map(|r| r.micros).collect::<TimestampMicrosecondArray>();
    let millis = rows.iter().map(|r| r.micros.map(|t| t.div_euclid(1_000))).collect::<TimestampMillisecondArray>();
    let decimals = rows.iter().map(|r| r.decimal).collect::<Decimal128Array>();
    let lengths = rows.iter().map(|r| r.list.as_ref().map_or(0, Vec::len));
    let items: StringViewArray = rows.iter().flat_map(|r| r.list.clone().unwrap_or_default()).collect();
    let item = Arc::new(Field::new("item", DataType::Utf8View, true));
    let list_nulls = NullBuffer::from_iter(rows.iter().map(|r| r.list.is_some()));
    let list = ListArray::new(item, OffsetBuffer::from_lengths(lengths), Arc::new(items), Some(list_nulls));
    let list: ArrayRef = Arc::new(list);
    let big = column!(Int64Array, big);
    let fields = [Field::new("list", list.data_type().clone(), true), Field::new("big", DataType::Int64, true)];
    let nulls = NullBuffer::from_iter(rows.iter().map(|r| r.boolean.is_some()));
    // A NULL object has no fields: what the decoder gives.
    let masked =
        arrow::compute::nullif(&big, &arrow::compute::not(&BooleanArray::new(nulls.inner().clone(), None)).unwrap());
    let empty = StructArray::new(fields[1..].to_vec().into(), vec![masked.unwrap()], Some(nulls));
    vec![
        ("boolean", column!(BooleanArray, boolean)),
        ("tiny", column!(Int8Array, tiny)),
        ("big", big),
        ("unsigned", column!(UInt64Array, unsigned)),
        ("single", column!(Float32Array, single)),
        ("double", column!(Float64Array, double)),
        ("whole", Arc::new(decimals.clone().with_precision_and_scale(38, 0).unwrap())),
        ("decimal", Arc::new(decimals.with_precision_and_scale(38, 10).unwrap())),
        ("view", Arc::new(StringViewArray::from(strings(rows)))),
        ("text", Arc::new(StringArray::from(strings(rows)))),
        ("bytes", column!(BinaryArray, bytes)),
        ("bytes view", column!(BinaryViewArray, bytes)),
        ("day", column!(Date32Array, day)),
        ("micros", Arc::new(micros.clone())),
        ("micros utc", Arc::new(micros.with_timezone("UTC"))),
        ("millis", Arc::new(millis)),
        ("list", list),
        ("object", Arc::new(empty)),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(rows in rows()) {
        let batch = batch(columns(&rows));
        let all: Vec<usize> = (0..batch.num_columns()).collect();
        let encoded = encode_rows(&batch, &all).unwrap();
        let mut decoder = JsonDecoder::try_new(batch.schema().fields()).unwrap();
        for text in encoded.iter() {
            prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok());
            prop_assert!(!text.contains(&b'\n'));
            if let Err(reason) = decoder.push(Some(text)) {
                return Err(TestCaseError::fail(format!("{reason} in {}", String::from_utf8_lossy(text))));
            }
        }
        let schema = Arc::new(Schema::new(batch.schema().fields().clone()));
        let decoded = RecordBatch::try_new(schema, decoder.finish().unwrap());
        prop_assert_eq!(&decoded.unwrap(), &batch);
    }
}
