//! Names: of files by batch, and of Hive's `column=value` folders.
//!
//! Source: Hive `FileUtils.escapePathName`, Spark `ExternalCatalogUtils` (the same characters).

use std::borrow::Cow;

use uuid::Uuid;

/// NULL, in a folder's name.
pub(in crate::connector) const NULL_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";

/// The longest name of a folder that file systems take, in bytes.
pub(in crate::connector) const NAME_LENGTH: usize = 255;

const UUID_LENGTH: usize = 36;

/// `<uuid>-<batch, 20 digits>-<sequence, 6 digits or more>.parquet`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::connector) struct FileName {
    pub pipeline: Uuid,
    pub batch: u64,
    pub sequence: usize,
}

impl FileName {
    pub fn format(&self) -> String {
        format!("{}-{:020}-{:06}.parquet", self.pipeline, self.batch, self.sequence)
    }

    /// `None`: not a name that a pipeline gives.
    pub fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".parquet")?;
        let pipeline = stem.get(..UUID_LENGTH)?;
        let (batch, sequence) = stem.get(UUID_LENGTH..)?.strip_prefix('-')?.split_once('-')?;
        let parsed =
            Self { pipeline: pipeline.parse().ok()?, batch: batch.parse().ok()?, sequence: sequence.parse().ok()? };
        (parsed.format() == name).then_some(parsed)
    }
}

/// `column=value`, safe as one folder's name whatever the value.
pub(in crate::connector) fn folder(column: &str, value: Option<&str>) -> String {
    format!("{}={}", escape(column), value.map_or(Cow::Borrowed(NULL_VALUE), escape))
}

/// The column and its value, `None` for NULL.
pub(in crate::connector) fn parse_folder(folder: &str) -> Option<(String, Option<String>)> {
    let (column, value) = folder.split_once('=')?;
    let value = if value == NULL_VALUE { None } else { Some(unescape(value)) };
    Some((unescape(column), value))
}

fn is_escaped(c: char) -> bool {
    c.is_ascii_control() || "\"#%'*/:=?\\{[]^".contains(c)
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_escaped(c) {
            true => escaped.push_str(&format!("%{:02X}", c as u32)),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// What is no escape stays as it is, as Hive has it.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())).map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_files() {
        let name = FileName { pipeline: Uuid::from_u128(1), batch: 7, sequence: 3_002 };
        assert_eq!(name.format(), "00000000-0000-0000-0000-000000000001-00000000000000000007-003002.parquet");
        assert_eq!(FileName::parse(&name.format()), Some(name));
        let wide = FileName { sequence: 12_345_678, ..name };
        assert_eq!(FileName::parse(&wide.format()), Some(wide));
        for foreign in [
            "part-0000.parquet",
            "x.parquet",
            "",
            &name.format().replace("0000007", "007"),
            &format!("{}.tmp", name.format()),
        ] {
            assert_eq!(FileName::parse(foreign), None);
        }
    }

    #[test]
    fn a_value_cannot_leave_its_folder() {
        assert_eq!(folder("day", Some("../../etc")), "day=..%2F..%2Fetc");
        assert_eq!(folder("a/b", Some("x=y z")), "a%2Fb=x%3Dy z");
        assert_eq!(folder("day", None), "day=__HIVE_DEFAULT_PARTITION__");
        assert_eq!(parse_folder("day=__HIVE_DEFAULT_PARTITION__"), Some(("day".into(), None)));
        assert_eq!(parse_folder("day=100%"), Some(("day".into(), Some("100%".into()))));
        assert_eq!(parse_folder("day"), None);
    }

    proptest! {
        #[test]
        fn every_value_comes_back(value in "\\PC*|[\\x00-\\x7f]*", column in "[^=]+") {
            let name = folder(&column, Some(&value));
            prop_assert!(!name.contains('/') && !name.contains('\0'));
            if value != NULL_VALUE {
                prop_assert_eq!(parse_folder(&name), Some((column, Some(value))));
            }
        }
    }
}
