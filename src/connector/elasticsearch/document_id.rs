//! The `_id` of a document: the values of the PRIMARY KEY as text, or the place of the row in its batch.
//!
//! ```text
//! PRIMARY KEY (topic, partition, offset)     user_events|3|48210
//! none                                       <UUID of the checkpoint>-<batch>-<INSERT>-<row>
//! ```
//!
//! Different keys have different texts: `|` and `\` in a value are written `\|` and `\\`. A text that Elasticsearch does not take,
//! an empty one or one of more than 512 bytes, becomes `\e`, or `\h` with its hash: no other text can be one of these.

use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, StringViewArray};
use arrow::datatypes::{DataType, FieldRef};

use crate::Result;
use crate::format::json_encode::encode_values;

/// Of Elasticsearch.
const ID_BYTES_MAX: usize = 512;

/// The ids of the rows of one record batch.
pub enum Ids {
    Key(Vec<(String, Text)>),
    /// What stands before the number of the row.
    Numbered(String),
}

/// A column of the key.
pub enum Text {
    View(StringViewArray),
    /// As in the document, strings with their quotes.
    Json(StringArray),
}

impl Ids {
    /// From these columns, with their fields.
    ///
    /// # Errors
    /// A type that has no text.
    pub fn of_key<'c>(columns: impl Iterator<Item = (&'c FieldRef, &'c ArrayRef)>) -> Result<Self> {
        let texts = columns.map(|(field, array)| {
            let text = match array.data_type() {
                DataType::Utf8View => Text::View(array.as_string_view().clone()),
                _ => Text::Json(encode_values(field, array)?),
            };
            Ok((field.name().clone(), text))
        });
        Ok(Self::Key(texts.collect::<Result<_>>()?))
    }

    /// Puts the id of a row into `out`. `row` is its position here, `number` that in its INSERT.
    ///
    /// # Errors
    /// Why it has none: a value is missing, as in any key.
    pub fn write(&self, row: usize, number: usize, out: &mut String) -> Result<(), String> {
        out.clear();
        match self {
            Self::Numbered(prefix) => {
                out.push_str(prefix);
                write!(out, "{number}").map_err(|_| "a number has no text".to_string())
            }
            Self::Key(columns) => {
                for (position, (name, text)) in columns.iter().enumerate() {
                    if position > 0 {
                        out.push('|');
                    }
                    push(out, text.get(row).ok_or_else(|| format!("column {name} of the key is NULL"))?);
                }
                if out.is_empty() {
                    out.push_str("\\e");
                } else if out.len() > ID_BYTES_MAX {
                    *out = format!("\\h{}", blake3::hash(out.as_bytes()));
                }
                Ok(())
            }
        }
    }
}

impl Text {
    /// `None`: NULL, or a number that JSON does not have.
    fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::View(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Json(array) => {
                let text = array.is_valid(row).then(|| array.value(row)).filter(|text| *text != "null")?;
                Some(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text))
            }
        }
    }
}

fn push(out: &mut String, value: &str) {
    for piece in value.split_inclusive(['|', '\\']) {
        match piece.strip_suffix(['|', '\\']) {
            Some(before) => {
                out.push_str(before);
                out.push('\\');
                out.push_str(&piece[before.len()..]);
            }
            None => out.push_str(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::Field;
    use proptest::prelude::*;

    use super::*;

    fn ids(columns: Vec<ArrayRef>) -> Vec<Result<String, String>> {
        let fields = columns.iter().enumerate();
        let fields: Vec<FieldRef> =
            fields.map(|(n, c)| Arc::new(Field::new(format!("c{n}"), c.data_type().clone(), true))).collect();
        let ids = Ids::of_key(fields.iter().zip(&columns)).unwrap();
        let mut id = String::new();
        (0..columns[0].len()).map(|row| ids.write(row, row, &mut id).map(|()| id.clone())).collect()
    }

    fn text(values: &[&str]) -> ArrayRef {
        Arc::new(StringViewArray::from_iter_values(values))
    }

    #[test]
    fn the_key_is_the_id() {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1_706_696_430_000_000]));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![-7]));
        let id = ids(vec![text(&["a|b\\c \"é\""]), times, numbers]);
        assert_eq!(id, [Ok("a\\|b\\\\c \"é\"|2024-01-31T10:20:30.000000|-7".to_string())]);
    }

    #[test]
    fn a_key_that_no_id_can_be_has_another_that_no_key_has() {
        let long = "x".repeat(513);
        let found = ids(vec![text(&["", "\\e", &long, &"x".repeat(512)])]);
        let found: Vec<String> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found[..2], ["\\e", "\\\\e"]);
        assert!(found[2].starts_with("\\h") && found[2].len() == 66, "{}", found[2]);
        assert_eq!(found[3].len(), 512);
    }

    #[test]
    fn a_row_without_its_key_has_none() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        assert_eq!(ids(vec![numbers]), [Ok("1".into()), Err("column c0 of the key is NULL".into())]);
        let numbers: ArrayRef = Arc::new(Float64Array::from(vec![0.5, f64::NAN]));
        assert_eq!(ids(vec![numbers]), [Ok("0.5".into()), Err("column c0 of the key is NULL".into())]);
    }

    #[test]
    fn without_a_key_it_is_the_place_in_the_batch() {
        let mut id = "left over".to_string();
        Ids::Numbered("u-5-2-".into()).write(3, 103, &mut id).unwrap();
        assert_eq!(id, "u-5-2-103");
    }

    proptest! {
        #[test]
        fn different_keys_have_different_ids(
            keys in proptest::collection::vec(("[a|\\\\eh]{0,4}", "[a|\\\\eh]{0,4}"), 2..40)
        ) {
            let (one, two): (Vec<&str>, Vec<&str>) = keys.iter().map(|(one, two)| (one.as_str(), two.as_str())).unzip();
            let mut known = BTreeMap::new();
            for (id, key) in ids(vec![text(&one), text(&two)]).into_iter().zip(&keys) {
                let other = known.entry(id.unwrap()).or_insert(key);
                prop_assert_eq!(*other, key);
            }
        }
    }
}
