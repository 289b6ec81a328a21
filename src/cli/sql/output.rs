//! Rows of a query as a table, CSV or JSON, written as they come.
//!
//! A table has to know all its rows to be laid out, so it is cut; CSV and JSON stream without a limit. What a terminal
//! would take for a command (control characters in the data) is replaced in a table, and only there.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::pretty::pretty_format_batches_with_schema;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;

use crate::format::json_encode::{encode_rows, encode_values};
use crate::{Error, Result};

/// Rows of a table unless the user asks for more: a few screens, and what can be laid out at once.
pub const TABLE_ROWS_MAX: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines and columns for the eye.
    Table,
    /// With a header line; nested values as JSON.
    Csv,
    /// One object per line.
    Json,
}

/// What became of a query's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub rows: usize,
    /// The query had more rows than the limit; they were not computed.
    pub more: bool,
    /// The reader of the output went away: no error, but no use to go on.
    pub closed: bool,
}

/// Writes at most `rows_max` rows (default: [`TABLE_ROWS_MAX`] for a table, all otherwise). Columns are printed even if
/// there is no row; a result without columns (of a statement that is no query) prints nothing.
///
/// # Errors
/// The query failed while it ran; the output cannot be written (but see [`Written::closed`]).
pub async fn write_batches(
    out: &mut dyn Write,
    stream: SendableRecordBatchStream,
    format: Format,
    rows_max: Option<usize>,
) -> Result<Written> {
    let rows_max = rows_max.unwrap_or(if format == Format::Table { TABLE_ROWS_MAX } else { usize::MAX });
    match write_rows(out, stream, format, rows_max).await {
        Err(Failure::Closed(rows)) => Ok(Written { rows, more: false, closed: true }),
        Err(Failure::Other(error)) => Err(error),
        Ok(written) => Ok(written),
    }
}

enum Failure {
    /// After so many rows.
    Closed(usize),
    Other(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

async fn write_rows(
    out: &mut dyn Write,
    mut stream: SendableRecordBatchStream,
    format: Format,
    rows_max: usize,
) -> Result<Written, Failure> {
    let schema = stream.schema();
    let mut written = Written::default();
    let mut table = vec![];
    if format == Format::Csv && !schema.fields().is_empty() {
        emit(out, &csv(&RecordBatch::new_empty(Arc::clone(&schema)), true)?, written.rows)?;
    }
    while let Some(batch) = stream.next().await {
        let mut batch = batch.map_err(super::execute::failed)?;
        let room = rows_max - written.rows;
        if batch.num_rows() > room {
            batch = batch.slice(0, room);
            written.more = true;
        }
        match format {
            Format::Csv => emit(out, &csv(&batch, false)?, written.rows)?,
            Format::Json => emit(out, &json(&batch)?, written.rows)?,
            Format::Table => table.push(batch.clone()),
        }
        written.rows += batch.num_rows();
        if written.more {
            break;
        }
    }
    if format == Format::Table && !schema.fields().is_empty() {
        emit(out, table_text(schema, &table)?.as_bytes(), 0)?;
    }
    match out.flush() {
        Err(error) => Err(failed(error, written.rows)),
        Ok(()) => Ok(written),
    }
}

fn emit(out: &mut dyn Write, bytes: &[u8], rows_before: usize) -> Result<(), Failure> {
    out.write_all(bytes).map_err(|error| failed(error, rows_before))
}

fn failed(error: io::Error, rows_before: usize) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::Closed(rows_before);
    }
    Failure::Other(Error::external("could not write the rows of the query").cause(error))
}

/// Lines drawn with `+-|`, with the final newline.
fn table_text(schema: SchemaRef, batches: &[RecordBatch]) -> Result<String> {
    let text = format!("{}\n", pretty_format_batches_with_schema(schema, batches)?);
    if text.chars().all(|c| c == '\n' || !c.is_control()) {
        return Ok(text);
    }
    Ok(text.chars().map(|c| if c == '\n' || !c.is_control() { c } else { '\u{fffd}' }).collect())
}

fn csv(batch: &RecordBatch, header: bool) -> Result<Vec<u8>> {
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) = batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| {
            if !field.data_type().is_nested() {
                return Ok((field.as_ref().clone(), Arc::clone(column)));
            }
            let texts: ArrayRef = Arc::new(encode_values(field, column)?);
            Ok((Field::new(field.name(), DataType::Utf8, true), texts))
        })
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    let mut text = vec![];
    if !fields.is_empty() {
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        WriterBuilder::new().with_header(header).build(&mut text).write(&batch)?;
    }
    Ok(text)
}

fn json(batch: &RecordBatch) -> Result<Vec<u8>> {
    let columns: Vec<usize> = (0..batch.num_columns()).collect();
    let mut text = vec![];
    if !columns.is_empty() {
        for row in encode_rows(batch, &columns)?.iter() {
            text.extend_from_slice(row);
            text.push(b'\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn written(sql: &str, format: Format, rows_max: Option<usize>) -> (String, Written) {
        let stream = SessionContext::new().sql(sql).await.unwrap().execute_stream().await.unwrap();
        let mut out = vec![];
        let written = write_batches(&mut out, stream, format, rows_max).await.unwrap();
        (String::from_utf8(out).unwrap(), written)
    }

    const TWO: &str = "SELECT * FROM (VALUES (1, 'a,\"b', [1, NULL]), (2, NULL, NULL)) t(id, name, list) ORDER BY id";

    #[tokio::test]
    async fn three_formats() {
        let (text, done) = written(TWO, Format::Csv, None).await;
        assert_eq!(text, "id,name,list\n1,\"a,\"\"b\",\"[1,null]\"\n2,,\n");
        assert_eq!(done, Written { rows: 2, ..Written::default() });
        let (text, _) = written(TWO, Format::Json, None).await;
        assert_eq!(text, "{\"id\":1,\"name\":\"a,\\\"b\",\"list\":[1,null]}\n{\"id\":2,\"name\":null,\"list\":null}\n");
        let (text, _) = written("SELECT 1 AS id, 'x' AS name", Format::Table, None).await;
        let line = "+----+------+\n";
        assert_eq!(text, format!("{line}| id | name |\n{line}| 1  | x    |\n{line}"));
    }

    #[tokio::test]
    async fn no_rows_still_have_columns() {
        let none = "SELECT 1 AS id, [1] AS list WHERE 1 = 0";
        assert_eq!(written(none, Format::Csv, None).await.0, "id,list\n");
        assert_eq!(written(none, Format::Json, None).await.0, "");
        assert!(written(none, Format::Table, None).await.0.contains("| id | list |"));
        for format in [Format::Csv, Format::Json, Format::Table] {
            assert_eq!(written("CREATE VIEW v AS SELECT 1", format, None).await, (String::new(), Written::default()));
        }
    }

    #[tokio::test]
    async fn limits() {
        let many = "SELECT value FROM generate_series(1, 30000) ORDER BY value";
        assert_eq!(written(many, Format::Json, None).await.1, Written { rows: 30_000, ..Written::default() });
        let (text, done) = written(many, Format::Table, None).await;
        assert_eq!((text.lines().count(), done.rows, done.more), (1_004, 1_000, true));
        let (text, done) = written(many, Format::Csv, Some(2)).await;
        assert_eq!((text.as_str(), done.rows, done.more), ("value\n1\n2\n", 2, true));
        let (_, done) = written("SELECT value FROM generate_series(1, 2)", Format::Csv, Some(2)).await;
        assert_eq!((done.rows, done.more), (2, false));
    }

    #[tokio::test]
    async fn a_table_sends_no_commands_to_the_terminal() {
        let (text, _) = written("SELECT chr(27) || '[2J' AS a, 'x' || chr(10) || 'y' AS b", Format::Table, None).await;
        assert!(!text.contains('\u{1b}') && text.contains("\u{fffd}[2J") && text.contains("| x "), "{text}");
    }

    #[tokio::test]
    async fn a_failing_query_is_the_users_error() {
        let sql = "SELECT 1 / (value - 3) FROM generate_series(1, 5)";
        let stream = SessionContext::new().sql(sql).await.unwrap().execute_stream().await.unwrap();
        let error = write_batches(&mut vec![], stream, Format::Csv, None).await.unwrap_err();
        assert_eq!(error.fault(), crate::Fault::User);
        assert!(error.line().to_lowercase().contains("divide by zero"), "{error}");
    }

    /// Takes so many bytes, then its reader has gone.
    struct Pipe(usize, io::ErrorKind);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(self.1.into());
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_closed_pipe_is_no_error() {
        for format in [Format::Csv, Format::Json, Format::Table] {
            let stream = || async { SessionContext::new().sql(TWO).await.unwrap().execute_stream().await.unwrap() };
            let mut pipe = Pipe(5, io::ErrorKind::BrokenPipe);
            assert!(write_batches(&mut pipe, stream().await, format, None).await.unwrap().closed);
            let mut full = Pipe(5, io::ErrorKind::StorageFull);
            assert!(write_batches(&mut full, stream().await, format, None).await.is_err());
        }
    }
}
