//! What the engine itself has to refuse, as rows of the table with `'role' 'dead_letters'`.
//!
//! It fills, by name, those declared of: error, dq_reason (the same), stage ('query' or 'sink'), sink, raw, row_json, topic,
//! partition, offset, batch; NULL where there is none. A row that a sink refused knows its record only if its table says so:
//! columns `topic`, `partition`, `offset`, with or without a leading underscore.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Int64Type};

use super::run::RefusedRow;
use crate::connector::{InsertRows, Refusal, TableDefinition, nullable};
use crate::error::reason_text;
use crate::format::json_encode::encode_rows;
use crate::{Error, Result};

/// A row that was refused, and by whom.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    error: String,
    stage: &'static str,
    sink: Option<String>,
    row: RecordBatch,
    /// One value: the bytes of the record.
    raw: Option<ArrayRef>,
    topic: Option<String>,
    partition: Option<i64>,
    offset: Option<i64>,
    /// The batch that it is of, if that is an earlier one.
    batch: Option<u64>,
}

impl DeadLetter {
    pub fn of_query(refused: &RefusedRow, source: &TableDefinition) -> Self {
        Self {
            error: reason_text(&refused.error),
            stage: "query",
            sink: None,
            row: refused.row.clone(),
            raw: column(&refused.row, "raw").cloned(),
            topic: Some(source.location.clone()),
            partition: Some(i64::from(refused.partition)),
            offset: Some(refused.offset),
            batch: None,
        }
    }

    /// # Errors
    /// The sink named a row that the INSERT does not have.
    pub fn of_sink(refusal: &Refusal, insert: &InsertRows) -> Result<Self> {
        let mut position = refusal.row;
        for batch in &insert.rows {
            if position < batch.num_rows() {
                let row = batch.slice(position, 1);
                return Ok(Self::of_row(row, refusal.error.clone(), &insert.table.name));
            }
            position -= batch.num_rows();
        }
        Err(Error::internal(format!("a sink refused row {} of {}, which has fewer", refusal.row, insert.table.name)))
    }

    /// Of a table that has an outbox, which has told it when its batch was committed.
    pub fn of_outbox(row: RecordBatch, error: &str, table: &str, batch: u64) -> Self {
        Self { batch: Some(batch), ..Self::of_row(row, error.to_string(), table) }
    }

    fn of_row(row: RecordBatch, error: String, table: &str) -> Self {
        Self {
            raw: column(&row, "raw").cloned(),
            error,
            stage: "sink",
            sink: Some(table.to_string()),
            topic: text(&row, "topic"),
            partition: number(&row, "partition"),
            offset: number(&row, "offset"),
            batch: None,
            row,
        }
    }
}

impl DeadLetter {
    /// Where the row came from, as far as known.
    pub fn place(&self) -> String {
        let number = |n: Option<i64>| n.map_or_else(|| "?".to_string(), |n| n.to_string());
        let topic = self.topic.as_deref().unwrap_or("?");
        let from = format!("topic {topic}, partition {}, offset {}", number(self.partition), number(self.offset));
        self.sink.as_ref().map_or_else(|| from.clone(), |sink| format!("table {sink}, {from}"))
    }

    pub fn reason(&self) -> &str {
        &self.error
    }

    /// Topic, if it is known, partition and offset of the record whose bytes are missing here.
    pub fn wants_record(&self) -> Option<(Option<&str>, i64, i64)> {
        self.raw.is_none().then_some((self.topic.as_deref(), self.partition?, self.offset?))
    }

    /// With the bytes of its record, one value.
    pub fn set_raw(&mut self, raw: ArrayRef) {
        self.raw = Some(raw);
    }
}

fn column<'b>(row: &'b RecordBatch, name: &str) -> Option<&'b ArrayRef> {
    row.column_by_name(name).or_else(|| row.column_by_name(&format!("_{name}")))
}

fn text(row: &RecordBatch, name: &str) -> Option<String> {
    let texts = cast(column(row, name)?, &DataType::Utf8).ok()?;
    let texts = texts.as_string::<i32>();
    texts.is_valid(0).then(|| texts.value(0).to_string())
}

fn number(row: &RecordBatch, name: &str) -> Option<i64> {
    let numbers = cast(column(row, name)?, &DataType::Int64).ok()?;
    let numbers = numbers.as_primitive::<Int64Type>();
    numbers.is_valid(0).then(|| numbers.value(0))
}

/// The letters as rows of the table, in their order.
pub fn rows(letters: &[DeadLetter], batch: u64, table: &Arc<TableDefinition>) -> Result<Vec<RecordBatch>> {
    if letters.is_empty() {
        return Ok(vec![]);
    }
    let rows = letters.iter().map(|letter| {
        let batch = i64::try_from(letter.batch.unwrap_or(batch)).ok();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(table.schema.fields().len());
        for field in table.schema.fields() {
            columns.push(cell(letter, field, batch)?);
        }
        Ok(RecordBatch::try_new(nullable(&table.schema), columns)?)
    });
    let rows = rows.collect::<Result<Vec<_>>>()?;
    Ok(vec![concat_batches(&rows[0].schema(), &rows)?])
}

fn cell(letter: &DeadLetter, field: &Field, batch: Option<i64>) -> Result<ArrayRef> {
    let texts = |text: Option<&str>| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let numbers = |n: Option<i64>| Arc::new(arrow::array::Int64Array::from(vec![n])) as ArrayRef;
    let value = match field.name().as_str() {
        "error" | "dq_reason" => texts(Some(&letter.error)),
        "stage" => texts(Some(letter.stage)),
        "sink" => texts(letter.sink.as_deref()),
        "raw" => match &letter.raw {
            Some(raw) => Arc::clone(raw),
            None => return Ok(new_null_array(field.data_type(), 1)),
        },
        "row_json" => {
            let columns: Vec<usize> = (0..letter.row.num_columns()).collect();
            let encoded = encode_rows(&letter.row, &columns)?;
            // An escape that JSON has and jsonb has not.
            texts(Some(&String::from_utf8_lossy(encoded.row(0)).replace("\\u0000", "")))
        }
        "topic" => texts(letter.topic.as_deref()),
        "partition" => numbers(letter.partition),
        "offset" => numbers(letter.offset),
        "batch" => numbers(batch),
        _ => return Ok(new_null_array(field.data_type(), 1)),
    };
    let value = cast(&value, field.data_type())?;
    let is_text = matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if !is_text || field.name() != "raw" {
        return Ok(value);
    }
    // A database refuses its own dead letter else, and the batch is stuck for ever.
    let text = cast(&value, &DataType::Utf8)?;
    let text: StringArray = text.as_string::<i32>().iter().map(|text| Some(text?.replace('\0', ""))).collect();
    Ok(cast(&text, field.data_type())?)
}

#[cfg(test)]
mod tests {
    use arrow::array::BinaryArray;
    use arrow::datatypes::Schema;

    use super::*;

    /// What a database refuses of its own dead letters would stop a pipeline for ever.
    #[test]
    fn no_text_of_a_dead_letter_has_a_nul_or_no_end() {
        let column = |name: &str, of: DataType| Field::new(name, of, true);
        let table = |fields: Vec<Field>| TableDefinition {
            name: "db.dead".into(),
            schema: Arc::new(Schema::new(fields)),
            primary_key: vec![],
            unbounded: false,
            stored_as: "DATABASE".into(),
            location: "events".into(),
            partition_columns: vec![],
            options: [].into(),
            place: String::new(),
        };
        let (raw, text): (ArrayRef, ArrayRef) =
            (Arc::new(BinaryArray::from(vec![&b"a\0b"[..]])), Arc::new(StringArray::from(vec!["c\0d"])));
        let row = RecordBatch::try_from_iter([("_raw", raw), ("t", text)]).unwrap();
        let error = format!("cannot cast \"1\0{}\"", "x".repeat(10_000));
        let refused = RefusedRow { source: "kafka.events".into(), partition: 0, offset: 7, row, error };
        let letter = DeadLetter::of_query(&refused, &table(vec![]));
        let texts = ["error", "raw", "row_json"].map(|name| column(name, DataType::Utf8View)).to_vec();
        let rows = rows(&[letter], 1, &Arc::new(table(texts))).unwrap();
        for column in rows[0].columns() {
            let value = column.as_string_view().value(0);
            assert!(!value.contains('\0') && !value.contains("\\u0000") && value.len() <= 500, "{value}");
        }
        assert_eq!(rows[0]["raw"].as_string_view().value(0), "ab");
        assert!(rows[0]["row_json"].as_string_view().value(0).contains("\"t\":\"cd\""));
    }
}
