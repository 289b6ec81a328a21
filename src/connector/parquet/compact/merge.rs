//! The rows of some files, one after the other, as one file. Of the rows as many are in memory as a row group has, encoded.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use super::super::sink::writer_options;
use super::super::{FileFormat, Table};
use super::like;
use super::plan::{Group, footer, same_columns};
use crate::point::point;
use crate::{Error, Result};

/// Rows read at a time.
const ROWS: usize = 8_192;

/// Rows by which columns are judged.
const SAMPLE: usize = 4 * ROWS;

/// On disk when it returns; its size.
///
/// # Errors
/// A file cannot be read, or the merged one not be written; it has other rows or columns than they.
pub(super) fn merge(table: &Table, folder: &Path, group: &Group, to: &Path) -> Result<u64> {
    let failed =
        |cause: &dyn std::fmt::Display| table.failed("merge files of").at(folder.display().to_string()).cause(cause);
    write(table.format, folder, group, to).map_err(|e| failed(&e))?;
    let (schema, rows) = footer(to).map_err(|e| failed(&e))?;
    if rows != group.rows || !same_columns(&schema, &group.schema) {
        let error = format!("{} rows of {} files became {rows}, or other columns", group.rows, group.files.len());
        return Err(Error::internal(format!("files of table {} were merged wrongly", table.definition.name))
            .at(folder.display().to_string())
            .cause(error)
            .hint("nothing was changed"));
    }
    point!("compact::after_merge");
    fs::metadata(to).map(|metadata| metadata.len()).map_err(|e| failed(&e))
}

fn write(format: FileFormat, folder: &Path, group: &Group, to: &Path) -> Result<(), ParquetError> {
    let mut file = Some(OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?);
    let mut writer: Option<ArrowWriter<File>> = None;
    let (mut head, mut head_rows): (Vec<RecordBatch>, usize) = (vec![], 0);
    for found in &group.files {
        let source = File::open(folder.join(found.name.format()))?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let rows = ParquetRecordBatchReaderBuilder::try_new_with_options(source, options)?.with_batch_size(ROWS);
        for batch in rows.build()? {
            let batch = batch?;
            match &mut writer {
                Some(writer) => writer.write(&batch)?,
                None => {
                    head_rows += batch.num_rows();
                    head.push(batch);
                    if head_rows >= SAMPLE {
                        writer = begin(format, &mut file, &mut head)?;
                    }
                }
            }
        }
    }
    if writer.is_none() {
        writer = begin(format, &mut file, &mut head)?;
    }
    let Some(mut writer) = writer else { return Err(ParquetError::General("the files have no rows".into())) };
    writer.finish()?;
    writer.inner().sync_all()?;
    if let Some(newest) = group.files.last() {
        like(&fs::metadata(folder.join(newest.name.format()))?, to)?;
    }
    Ok(())
}

/// `None`: there is no row.
fn begin(
    format: FileFormat,
    file: &mut Option<File>,
    head: &mut Vec<RecordBatch>,
) -> Result<Option<ArrowWriter<File>>, ParquetError> {
    let (Some(first), Some(file)) = (head.first(), file.take()) else { return Ok(None) };
    let mut writer = ArrowWriter::try_new_with_options(file, first.schema(), writer_options(format, head)?)?;
    for batch in head.drain(..) {
        writer.write(&batch)?;
    }
    Ok(Some(writer))
}
