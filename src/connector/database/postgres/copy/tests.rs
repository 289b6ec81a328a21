use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Decimal128Array, Int64Array, StringArray, TimestampMicrosecondArray};
use proptest::prelude::*;

use super::*;

fn columns(arrays: &[ArrayRef]) -> Vec<Column> {
    arrays.iter().map(|a| Column::new(a).unwrap()).collect()
}

fn one(array: ArrayRef, kind: Kind) -> Result<Vec<u8>, String> {
    let mut out = BytesMut::from(&b"x"[..]);
    match put_row(&mut out, &columns(&[array]), &[Target { kind, array_of: None }], 0, None) {
        Ok(()) => Ok(out[7..].to_vec()), // after x, count and length
        Err((0, why)) => {
            assert_eq!(&out[..], b"x", "a refused row must leave nothing behind");
            Err(why)
        }
        Err(_) => unreachable!(),
    }
}

fn int(value: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value]))
}

fn text(value: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

#[test]
fn values_that_do_not_fit_refuse_their_row() {
    assert_eq!(one(int(32_767), Kind::Int2), Ok(vec![0x7f, 0xff]));
    assert_eq!(one(int(32_768), Kind::Int2), Err("32768 is out of range".into()));
    assert_eq!(one(int(1 << 31), Kind::Int4), Err("2147483648 is out of range".into()));
    assert!(one(text("a\0b"), Kind::Text(None)).unwrap_err().contains("NUL"));
    assert!(one(text("äöü"), Kind::Text(Some(2))).unwrap_err().contains("longer than 2"));
    assert_eq!(one(text("äö  "), Kind::Text(Some(2))).unwrap(), "äö  ".as_bytes());
    assert!(one(text("1-2-3"), Kind::Uuid).unwrap_err().contains("no UUID"));
    assert_eq!(one(text("{}"), Kind::Jsonb).unwrap(), b"\x01{}");
    for value in [i64::MIN, EPOCH_MICROS + TIMESTAMPS.start - 1] {
        let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![value]));
        assert!(one(time, Kind::Timestamp).is_err(), "{value}");
    }
    assert_eq!(one(int(100), Kind::Numeric(Some(100))), Err("number has more digits than the column".into()));
}

/// What the groups of a numeric say, in units of the last of `scale` digits.
fn value(bytes: &[u8], scale: u32) -> String {
    let word = |i: usize| i16::from_be_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    let (count, weight, sign, shown) = (word(0), word(1), word(2), word(3));
    assert_eq!(shown as u32, scale);
    let mut digits = String::new();
    let lowest = -(scale.div_ceil(4) as i16);
    for position in (lowest..=weight.max(0)).rev() {
        let index = weight - position;
        let group = if (0..count).contains(&index) { word(4 + index as usize) } else { 0 };
        digits.push_str(&format!("{group:04}"));
    }
    let cut = digits.len() - (scale.div_ceil(4) * 4 - scale) as usize;
    let digits = digits[..cut].trim_start_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    format!("{}{digits}", if sign == 0x4000 { "-" } else { "" })
}

proptest! {
    #[test]
    fn decimals_are_exact(v in any::<i128>(), shift in 0u32..127, scale in 0i8..=38) {
        let v = (v >> shift) % 10i128.pow(38);
        let array = Decimal128Array::from(vec![v]).with_precision_and_scale(38, scale).unwrap();
        let bytes = one(Arc::new(array), Kind::Numeric(None)).unwrap();
        prop_assert_eq!(value(&bytes, scale as u32), v.to_string());
        let read = super::super::read::numeric(&bytes, scale as u32);
        prop_assert_eq!(read, Ok(v));
    }
}

#[test]
fn an_array_carries_its_dimension_and_nulls() {
    let list = arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
        Some(vec![]),
        Some(vec![Some(1), None]),
    ]);
    let column = columns(&[Arc::new(list) as ArrayRef]);
    let target = [Target { kind: Kind::Int4, array_of: Some(23) }];
    let mut out = BytesMut::new();
    put_row(&mut out, &column, &target, 0, None).unwrap();
    assert_eq!(&out[..], [0, 1, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]);
    out.clear();
    put_row(&mut out, &column, &target, 1, Some(5)).unwrap();
    assert_eq!(out[..14], [0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(out[14..18], 32u32.to_be_bytes());
    assert_eq!(out[18..34], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2]);
    assert_eq!(out[34..], [0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
}

/// Dictionaries and narrow types are unpacked per batch and give the same bytes.
#[test]
fn every_form_of_a_column_is_read() {
    let words = StringArray::from(vec!["a", "b", "a"]);
    let dictionary = arrow::compute::cast(
        &words,
        &arrow::datatypes::DataType::Dictionary(
            Box::new(arrow::datatypes::DataType::Int8),
            Box::new(arrow::datatypes::DataType::Utf8),
        ),
    )
    .unwrap();
    let narrow = arrow::compute::cast(&Int64Array::from(vec![1, 2, 3]), &arrow::datatypes::DataType::Int16).unwrap();
    let encode = |arrays: &[ArrayRef]| {
        let (columns, mut out) = (columns(arrays), BytesMut::new());
        let targets = [Kind::Text(None), Kind::Int8].map(|kind| Target { kind, array_of: None });
        (1..3).for_each(|row| put_row(&mut out, &columns, &targets, row, None).unwrap());
        out
    };
    let wide: [ArrayRef; 2] = [Arc::new(words), Arc::new(Int64Array::from(vec![1, 2, 3]))];
    assert_eq!(encode(&[dictionary, narrow]), encode(&wide));
    // A slice begins at its own row 0.
    let sliced = wide.map(|a| a.slice(1, 2));
    let first = Column::new(&sliced[1]).unwrap();
    assert!(matches!(first.values, Values::Int(v) if v[0] == 2));
    assert_eq!(sliced[0].as_string::<i32>().value(0), "b");
}
