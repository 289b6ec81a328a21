//! The scanner and the decoder against serde_json, over random texts.

use arrow::datatypes::DataType;
use proptest::prelude::*;

use super::tests::{fields, list, map, object, row};
use super::*;

/// JSON-like text: mostly tokens in a random order, so that many are nearly right.
fn jsonish() -> impl Strategy<Value = String> {
    // Repeated where wanted more often.
    let tokens = [
        "{",
        "{",
        "{",
        "}",
        "}",
        "}",
        "[",
        "[",
        "]",
        "]",
        ":",
        ":",
        ":",
        ":",
        ",",
        ",",
        ",",
        ",",
        "\"a\"",
        "\"a\"",
        "\"a\"",
        "\"c\"",
        "\"c\"",
        "1",
        "1",
        "-0.5e+3",
        "null",
        "true",
        "false",
        " ",
        "\n",
        "\"\\u00e9\\n\"",
        "\"",
        "\\",
        "\\u12",
        "0",
        ".",
        "e",
        "-",
        "é",
        "\t",
        "\u{1}",
        "nul",
    ];
    let token = proptest::sample::select(tokens.to_vec());
    proptest::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

/// A whole JSON value, printed with or without white space.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<i32>().prop_map(|v| (f64::from(v) / 8.0).into()), // serde_json reads longer fractions inexactly
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::btree_map("[a-d]|\\PC{0,3}", inner, 0..5)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let values = value().prop_map(|value| value.to_string().into_bytes());
    prop_oneof![jsonish().prop_map(String::into_bytes), any::<Vec<u8>>(), values]
}

fn accepts(text: &str) -> bool {
    let mut scan = Scanner::new(text, 0);
    scan.skip_value().and_then(|()| scan.end()).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn accepts_what_serde_json_accepts(text in prop_oneof![jsonish(), any::<String>()]) {
        let expected = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        prop_assert_eq!(accepts(&text), expected, "{}", text);
    }

    #[test]
    fn reads_what_serde_json_wrote(values in proptest::collection::btree_map("[a-e]", value(), 0..6), pretty: bool) {
        let columns: Vec<_> = ["a", "b", "c", "d"].map(|name| (name, DataType::Utf8View)).into();
        let object: serde_json::Map<_, _> = values.clone().into_iter().collect();
        let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
        let cells = row(&columns, text.unwrap().as_bytes()).unwrap();
        for ((name, _), cell) in columns.iter().zip(cells) {
            match values.get(*name) {
                None | Some(serde_json::Value::Null) => prop_assert_eq!(cell, "NULL"),
                Some(serde_json::Value::String(text)) => prop_assert_eq!(&cell, text),
                Some(value) => prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&cell).unwrap(), value),
            }
        }
    }

    #[test]
    fn any_payload_is_one_row(payloads in proptest::collection::vec(payload(), 0..8)) {
        let columns = fields(&[
            ("a", list(object(&[("a", DataType::Int64), ("c", DataType::Utf8View)]))),
            ("c", map(list(DataType::Float64))),
            ("b", DataType::Utf8View),
        ]);
        let mut decoder = JsonDecoder::try_new(&columns).unwrap();
        for payload in &payloads {
            if let Err(reason) = decoder.push(Some(payload)) {
                prop_assert!(reason.chars().count() < 300 && !reason.contains('\n'), "{}", reason);
            }
        }
        prop_assert_eq!(decoder.len(), payloads.len());
        for array in decoder.finish().unwrap() {
            prop_assert_eq!(array.len(), payloads.len());
        }
    }
}
