//! `data/sample_events.jsonl` is what data/README.md says it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use poundlock::format::json::JsonDecoder;

/// What each kind of record that does not decode is refused for.
const REASONS: &[&str] = &[
    "not JSON: expected a value (byte 0)",
    "ends too early",
    "the payload is a list",
    "empty payload",
    "the payload is null",
    "after",
    "\"forty-two\" is not an integer",
    "1.5 is not an integer",
    "9223372036854775808",
    "\"yesterday at noon\" is not a timestamp",
    "\"2026-02-30T00:00:00\" is not a timestamp",
    "an object is not an integer",
    "given twice",
    "not JSON: expected a value",
    "nested",
    "not UTF-8",
];

#[test]
fn the_sample_has_every_kind_of_bad_record() {
    let field = |name, data_type| -> FieldRef { Arc::new(Field::new(name, data_type, true)) };
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let columns = [
        field("user_id", DataType::Int64),
        field("product_id", DataType::Int64),
        field("action", DataType::Utf8View),
        field("timestamp", time),
        field("device_id", DataType::Utf8View),
    ];
    let mut decoder = JsonDecoder::try_new(&columns).unwrap();
    let sample = include_bytes!("../../data/sample_events.jsonl");
    let records: Vec<&[u8]> = sample.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n').collect();
    assert_eq!(records.len(), 1_000);
    let refused: Vec<String> = records.iter().filter_map(|record| decoder.push(Some(record)).err()).collect();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in &refused {
        let kind = REASONS.iter().find(|kind| reason.contains(**kind)).copied();
        *times.entry(kind.unwrap_or(reason)).or_default() += 1;
    }
    assert!(REASONS.iter().all(|kind| matches!(times.get(kind), Some(2 | 3))), "{times:#?}\n{refused:#?}");
}
