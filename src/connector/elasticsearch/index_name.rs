//! The name of the index that a document goes to: fixed, or with the date of one of its columns.
//!
//! The date is that of the row and not of the clock: a replay on another day must find the same index. (Elasticsearch's own
//! `<logs-{now/d}>` cannot do that.)

use std::borrow::Cow;
use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Date32Type, Schema, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, Timelike, Utc};

/// Of Elasticsearch.
const NAME_BYTES_MAX: usize = 255;

const MICROS_PER_DAY: i64 = 86_400_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexName {
    before: String,
    date: Option<Date>,
    after: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Date {
    column: usize,
    name: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Year,
    Month,
    Day,
    Hour,
}

impl IndexName {
    /// Reads `name`, or `name-{column|yyyy.MM.dd}`.
    ///
    /// # Errors
    /// What is wrong with it: no such column, not a date, a name that Elasticsearch does not take.
    pub fn parse(text: &str, schema: &Schema) -> Result<Self, String> {
        let Some((before, rest)) = text.split_once('{') else {
            check(text)?;
            return Ok(Self { before: text.into(), date: None, after: String::new() });
        };
        let (pattern, after) = rest.split_once('}').ok_or("a { has no }")?;
        let (column, format) =
            pattern.split_once('|').ok_or("between { and } stand a column, a |, and the form of a date")?;
        let position = schema.index_of(column).map_err(|_| format!("the table has no column {column}"))?;
        match schema.field(position).data_type() {
            DataType::Timestamp(TimeUnit::Microsecond, _) | DataType::Date32 => {}
            _ => return Err(format!("column {column} is neither a TIMESTAMP nor a DATE")),
        }
        let date = Date { column: position, name: column.into(), parts: parts(format)? };
        let name = Self { before: before.into(), date: Some(date), after: after.into() };
        check(&name.at(0)?)?;
        Ok(name)
    }

    /// The column whose date is in the name.
    pub fn column(&self) -> Option<usize> {
        self.date.as_ref().map(|date| date.column)
    }

    /// The names for the rows that have these columns.
    pub fn of<'n>(&'n self, columns: &[ArrayRef]) -> Names<'n> {
        let dates = self.date.as_ref().and_then(|date| columns.get(date.column)).cloned();
        Names { name: self, dates, last: None }
    }

    /// For a moment, in µs since 1970.
    fn at(&self, micros: i64) -> Result<String, String> {
        let Some(date) = &self.date else { return Ok(self.before.clone()) };
        let moment: Option<DateTime<Utc>> = DateTime::from_timestamp_micros(micros);
        let moment = moment.filter(|moment| (0..=9_999).contains(&moment.year()));
        let moment =
            moment.ok_or_else(|| format!("column {} names the index, and is not of the years 0 to 9999", date.name))?;
        let mut text = self.before.clone();
        for part in &date.parts {
            let written = match part {
                Part::Text(part) => write!(text, "{part}"),
                Part::Year => write!(text, "{:04}", moment.year()),
                Part::Month => write!(text, "{:02}", moment.month()),
                Part::Day => write!(text, "{:02}", moment.day()),
                Part::Hour => write!(text, "{:02}", moment.hour()),
            };
            written.map_err(|_| "a number has no text".to_string())?;
        }
        text.push_str(&self.after);
        Ok(text)
    }
}

/// See [`IndexName::of`].
pub struct Names<'n> {
    name: &'n IndexName,
    dates: Option<ArrayRef>,
    /// The hour that was asked for last, since 1970: neighbours mostly share it.
    last: Option<(i64, String)>,
}

impl Names<'_> {
    /// # Errors
    /// Why the row has none: the date is NULL, or of no year that can be written.
    pub fn name(&mut self, row: usize) -> Result<Cow<'_, str>, String> {
        let (Some(dates), Some(date)) = (&self.dates, &self.name.date) else {
            return Ok(Cow::Borrowed(&self.name.before));
        };
        if dates.is_null(row) {
            return Err(format!("column {} names the index, and is NULL", date.name));
        }
        let micros = match dates.data_type() {
            DataType::Date32 => i64::from(dates.as_primitive::<Date32Type>().value(row)) * MICROS_PER_DAY,
            _ => dates.as_primitive::<TimestampMicrosecondType>().value(row),
        };
        let hour = micros.div_euclid(MICROS_PER_DAY / 24);
        if self.last.as_ref().is_none_or(|(last, _)| *last != hour) {
            self.last = Some((hour, self.name.at(micros)?));
        }
        Ok(Cow::Borrowed(self.last.as_ref().map_or("", |(_, name)| name)))
    }
}

fn parts(format: &str) -> Result<Vec<Part>, String> {
    let (mut parts, mut rest) = (vec![], format);
    let known = [("yyyy", Part::Year), ("MM", Part::Month), ("dd", Part::Day), ("HH", Part::Hour)];
    while let Some(first) = rest.chars().next() {
        if let Some((letters, part)) = known.iter().find(|(letters, _)| rest.starts_with(letters)) {
            parts.push(part.clone());
            rest = &rest[letters.len()..];
        } else if first.is_ascii_alphabetic() {
            return Err(format!("{rest:?} begins with none of yyyy, MM, dd, HH"));
        } else {
            parts.push(Part::Text(first.into()));
            rest = &rest[first.len_utf8()..];
        }
    }
    match parts.iter().any(|part| !matches!(part, Part::Text(_))) {
        true => Ok(parts),
        false => Err("the form of the date has none of yyyy, MM, dd, HH".into()),
    }
}

/// By the rules of Elasticsearch for names of indices.
fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name is empty".into());
    }
    if name.starts_with(['-', '_', '+']) || name == "." || name == ".." {
        return Err("a name begins with none of - _ +, and is not . or ..".into());
    }
    if let Some(wrong) = name.chars().find(|c| "\\/*?\"<>| ,#:{}".contains(*c) || c.is_control()) {
        return Err(format!("a name cannot have {wrong:?}"));
    }
    if name.chars().any(char::is_uppercase) {
        return Err("a name has no upper-case letters".into());
    }
    match name.len() > NAME_BYTES_MAX {
        true => Err(format!("a name has at most {NAME_BYTES_MAX} bytes")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, TimestampMicrosecondArray};
    use arrow::datatypes::Field;

    use super::*;

    fn schema() -> Schema {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        Schema::new(vec![
            Field::new("time", time, true),
            Field::new("day", DataType::Date32, true),
            Field::new("text", DataType::Utf8View, true),
        ])
    }

    #[test]
    fn the_date_of_a_row_is_in_the_name() {
        let times = TimestampMicrosecondArray::from(vec![
            Some(1_706_696_430_000_000),
            Some(1_706_696_430_000_001),
            None,
            Some(-1),
            Some(i64::MAX),
        ]);
        let columns: Vec<ArrayRef> = vec![Arc::new(times), Arc::new(Date32Array::from(vec![19_753; 5]))];
        let names = |text: &str| {
            let name = IndexName::parse(text, &schema()).unwrap();
            let mut names = name.of(&columns);
            (0..5).map(|row| names.name(row).map_or_else(|why| why, Cow::into_owned)).collect::<Vec<_>>()
        };
        assert_eq!(names("logs"), ["logs"; 5]);
        assert_eq!(names("logs-{day|yyyy.MM.dd}"), ["logs-2024.01.31"; 5]);
        let by_hour = names("a-{time|yyyy-MM-dd-HH}-b");
        assert_eq!(by_hour[..2], ["a-2024-01-31-10-b", "a-2024-01-31-10-b"]);
        assert_eq!(by_hour[2], "column time names the index, and is NULL");
        assert_eq!(by_hour[3], "a-1969-12-31-23-b");
        assert_eq!(by_hour[4], "column time names the index, and is not of the years 0 to 9999");
    }

    #[test]
    fn what_is_wrong_with_a_name_is_told() {
        let wrong = |text: &str| IndexName::parse(text, &schema()).unwrap_err();
        assert_eq!(wrong("logs-{tme|yyyy}"), "the table has no column tme");
        assert_eq!(wrong("logs-{text|yyyy}"), "column text is neither a TIMESTAMP nor a DATE");
        assert_eq!(wrong("logs-{time}"), "between { and } stand a column, a |, and the form of a date");
        assert_eq!(wrong("logs-{time|yyyy"), "a { has no }");
        assert_eq!(wrong("logs-{time|yyyy.mm}"), "\"mm\" begins with none of yyyy, MM, dd, HH");
        assert_eq!(wrong("logs-{time|.}"), "the form of the date has none of yyyy, MM, dd, HH");
        assert_eq!(wrong("logs-{time|yyyy}-{time|MM}"), "a name cannot have '{'");
        assert_eq!(wrong("Logs"), "a name has no upper-case letters");
        assert_eq!(wrong("a,b"), "a name cannot have ','");
        assert_eq!(wrong("_all"), "a name begins with none of - _ +, and is not . or ..");
        assert_eq!(wrong(""), "the name is empty");
        assert_eq!(wrong(&"x".repeat(256)), "a name has at most 255 bytes");
    }
}
