//! Until branch `json` lands: its decoder and encoder, in their simplest form.
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};

use crate::{Error, Result};

pub struct JsonDecoder {
    schema: SchemaRef,
    rows: Vec<serde_json::Value>,
}

impl JsonDecoder {
    pub fn try_new(data: &[FieldRef]) -> Result<Self> {
        Ok(Self { schema: Arc::new(Schema::new(data.to_vec())), rows: vec![] })
    }

    pub fn push(&mut self, payload: Option<&[u8]>) -> std::result::Result<(), String> {
        let row = match payload {
            None => Ok(serde_json::json!({})),
            Some(payload) => serde_json::from_slice(payload).map_err(|e| e.to_string()),
        };
        let (row, result) = match row {
            Ok(row @ serde_json::Value::Object(_)) => (row, Ok(())),
            Ok(_) => (serde_json::json!({}), Err("not an object".to_string())),
            Err(reason) => (serde_json::json!({}), Err(reason)),
        };
        self.rows.push(row);
        result
    }

    pub fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        let rows = std::mem::take(&mut self.rows);
        let columns = self.schema.fields().iter().map(|field| match field.data_type() {
            DataType::Int64 => {
                Ok(Arc::new(rows.iter().map(|r| r[field.name()].as_i64()).collect::<Int64Array>()) as ArrayRef)
            }
            DataType::Utf8View => {
                Ok(Arc::new(rows.iter().map(|r| r[field.name()].as_str()).collect::<StringViewArray>()) as ArrayRef)
            }
            other => Err(Error::internal(format!("stand-in: {other}"))),
        });
        columns.collect()
    }
}

pub struct EncodedRows(Vec<Vec<u8>>);

impl EncodedRows {
    pub fn row(&self, row: usize) -> &[u8] {
        &self.0[row]
    }
}

pub fn encode_rows(batch: &RecordBatch, _columns: &[usize]) -> Result<EncodedRows> {
    let mut bytes = vec![];
    let mut writer = arrow::json::LineDelimitedWriter::new(&mut bytes);
    writer.write(batch)?;
    writer.finish()?;
    Ok(EncodedRows(bytes.split(|b| *b == b'\n').take(batch.num_rows()).map(<[u8]>::to_vec).collect()))
}
