//! Splits the rows of an INSERT by their partition columns.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Schema};
use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::{Table, layout};
use crate::connector::{InsertRows, Refusal};
use crate::{Error, Result};

/// More partitions in one batch make as many files, each with its fsync: a sign of a column with too many values.
pub(in crate::connector) const PARTITIONS_PER_INSERT: usize = 1_000;

/// The rows of one file.
#[derive(Debug)]
pub(in crate::connector) struct Part {
    /// `column=value/column=value`, empty where the table is not partitioned.
    pub folder: String,
    /// Of the partition columns, as text.
    pub values: Vec<Option<String>>,
    /// Without the partition columns; not empty, nor is one of them.
    pub rows: Vec<RecordBatch>,
}

/// Types whose values have one text each.
pub(in crate::connector) fn can_partition(data_type: &DataType) -> bool {
    use DataType::{Boolean, Date32, Decimal128, LargeUtf8, Timestamp, Utf8, Utf8View};
    data_type.is_integer()
        || matches!(data_type, Boolean | Date32 | Decimal128(..) | Timestamp(..) | Utf8 | LargeUtf8 | Utf8View)
}

/// In the order of the partition values (NULL first), which follows from the rows alone; within a part the rows keep
/// theirs. Rows whose value cannot name a folder are refused.
///
/// # Errors
/// Too many partitions.
pub(in crate::connector) fn split(table: &Table, insert: &InsertRows) -> Result<(Vec<Part>, Vec<Refusal>)> {
    if table.partition_columns.is_empty() {
        let rows: Vec<_> = insert.rows.iter().filter(|rows| rows.num_rows() > 0).cloned().collect();
        let parts = match rows.is_empty() {
            true => vec![],
            false => vec![Part { folder: String::new(), values: vec![], rows: file_rows(table, &rows)? }],
        };
        return Ok((parts, vec![]));
    }
    let fields = table.partition_columns.iter().map(|i| SortField::new(table.column_type(*i).clone()));
    let converter = RowConverter::new(fields.collect())?;
    // By partition value, the rows as (batch, positions in it).
    let mut groups: BTreeMap<OwnedRow, Group> = BTreeMap::new();
    let mut first_row = 0;
    for (number, batch) in insert.rows.iter().enumerate() {
        let columns: Vec<ArrayRef> = table.partition_columns.iter().map(|i| batch.column(*i).clone()).collect();
        let keys = converter.convert_columns(&columns)?;
        let mut from = 0;
        while from < batch.num_rows() {
            // Rows of one partition mostly come together: look up once per run.
            let key = keys.row(from);
            let to = (from..batch.num_rows()).find(|row| keys.row(*row) != key).unwrap_or(batch.num_rows());
            let owned = key.owned();
            if !groups.contains_key(&owned) && groups.len() == PARTITIONS_PER_INSERT {
                return Err(too_many(table));
            }
            let group = match groups.entry(owned) {
                std::collections::btree_map::Entry::Occupied(group) => group.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => place.insert(Group::new(table, &columns, from)?),
            };
            match group.batches.last_mut() {
                Some((last, rows)) if *last == number => rows.extend(from as u32..to as u32),
                _ => group.batches.push((number, (from as u32..to as u32).collect())),
            }
            if group.folder.is_err() {
                group.rows.extend(first_row + from..first_row + to);
            }
            from = to;
        }
        first_row += batch.num_rows();
    }
    let (mut parts, mut refusals) = (vec![], vec![]);
    for group in groups.into_values() {
        match group.folder {
            Ok(folder) => {
                let rows = group.batches.into_iter().map(|(number, rows)| {
                    let batch = &insert.rows[number];
                    if rows.len() == batch.num_rows() {
                        Ok(batch.clone())
                    } else {
                        take_record_batch(batch, &UInt32Array::from(rows))
                    }
                });
                let rows = rows.collect::<Result<Vec<_>, _>>()?;
                parts.push(Part { folder, values: group.values, rows: file_rows(table, &rows)? });
            }
            Err(error) => {
                let refused =
                    group.rows.into_iter().map(|row| Refusal { insert: insert.insert, row, error: error.clone() });
                refusals.extend(refused);
            }
        }
    }
    refusals.sort_unstable_by_key(|refusal| refusal.row);
    Ok((parts, refusals))
}

struct Group {
    /// Or why there can be none.
    folder: Result<String, String>,
    /// Text of each partition column.
    values: Vec<Option<String>>,
    batches: Vec<(usize, Vec<u32>)>,
    /// Positions among all rows; only of a group that is refused.
    rows: Vec<usize>,
}

impl Group {
    fn new(table: &Table, columns: &[ArrayRef], row: usize) -> Result<Self> {
        let (mut path, mut values) = (vec![], vec![]);
        for (column, index) in columns.iter().zip(&table.partition_columns) {
            let name = table.definition.schema.field(*index).name();
            let text = ArrayFormatter::try_new(column, &FormatOptions::new())?.value(row).try_to_string();
            let value = match column.is_null(row) {
                true => None,
                false => Some(text.as_deref().unwrap_or_default().to_string()),
            };
            let folder = layout::folder(name, value.as_deref());
            // Hive, Spark and DuckDB read an empty value as NULL or not at all.
            let refused = match value.as_deref() {
                // A day of the year 300,000, say.
                Some(_) if text.is_err() => Some("beyond what can be written as text".to_string()),
                Some("") => Some("an empty string".to_string()),
                Some(layout::NULL_VALUE) => Some("the name that stands for NULL".to_string()),
                _ if folder.len() > layout::NAME_LENGTH => {
                    Some(format!("{} bytes long as a folder's name", folder.len()))
                }
                _ => None,
            };
            if let Some(why) = refused {
                let error = format!("the value of partition column {name:?} is {why}, which cannot name a folder");
                return Ok(Self { folder: Err(error), values: vec![], batches: vec![], rows: vec![] });
            }
            path.push(folder);
            values.push(value);
        }
        Ok(Self { folder: Ok(path.join("/")), values, batches: vec![], rows: vec![] })
    }
}

/// All columns nullable, so that a NULL where none was declared is not lost with the whole batch. The record batches stay as
/// they are: how rows are cut into them follows from the plan, so a replay makes the same file.
fn file_rows(table: &Table, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>> {
    let first = &batches[0];
    let fields = table.file_columns.iter().map(|i| {
        let name = table.definition.schema.field(*i).name().clone();
        arrow::datatypes::Field::new(name, first.column(*i).data_type().clone(), true)
    });
    let schema = std::sync::Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let project = |batch: &RecordBatch| {
        let columns = table.file_columns.iter().map(|i| batch.column(*i).clone()).collect();
        RecordBatch::try_new(schema.clone(), columns)
    };
    Ok(batches.iter().map(project).collect::<Result<_, _>>()?)
}

fn too_many(table: &Table) -> Error {
    let columns = table.definition.partition_columns.join(", ");
    Error::user(format!(
        "one batch has rows for more than {PARTITIONS_PER_INSERT} partitions of table {}",
        table.definition.name
    ))
    .at(table.definition.place.clone())
    .cause(format!("each would be a file of its own; the table is partitioned by {columns}"))
    .hint("partition by a column with few values, as the date of an event")
}
