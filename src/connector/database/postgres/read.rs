//! Rows of a table, in the binary protocol, as record batches of the declared types.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::pin;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::DataType;
use futures::TryStreamExt;
use tokio::time::timeout;
use tokio_postgres::types::{FromSql, Type};

use super::catalog::describe;
use super::connect::{Address, connect};
use super::copy::{EPOCH_DAYS, EPOCH_MICROS};
use super::error::failure;
use crate::connector::database::builder::Builder;
use crate::connector::database::scan::{BATCH_ROWS, Query};
use crate::connector::database::{DatabaseTable, quoted};
use crate::{Error, Result};

/// Gives each record batch to `give` until it returns `false`.
///
/// The server's own time-out is of no use where the server hangs, or the way to it: so each answer, and each record batch, must come
/// within the time-out of a statement too.
///
/// # Errors
/// The table does not fit its declaration, a value its declared type (user); the server (external).
pub async fn read<F: Future<Output = bool>>(
    table: &DatabaseTable,
    address: &Address,
    query: &Query,
    mut give: impl FnMut(RecordBatch) -> F,
) -> Result<()> {
    let doing = format!("could not read table {}", table.target_name());
    let failed = |e: tokio_postgres::Error| failure(&e, &doing);
    let limit = table.timeout + table.connect_timeout;
    let silent = |_| {
        let silent = Error::external(doing.clone()).cause(format!("no answer from {address} within {limit:?}"));
        silent.retryable().hint("see OPTIONS ('timeout' …)")
    };
    let client = connect(address, table.connect_timeout, table.timeout).await?;
    let fields = query.schema.fields();
    let asked = async {
        client.batch_execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").await.map_err(failed)?;
        let described = describe(&client, table, false).await?;
        let columns: Vec<String> = fields.iter().map(|f| as_read(f.name(), f.data_type())).collect();
        // An empty list of columns is a row without columns, which PostgreSQL knows.
        let sql = format!("SELECT {} FROM {}{}", columns.join(", "), described.name, query.tail());
        let no_values: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];
        client.query_raw(&sql, no_values).await.map_err(failed)
    };
    let mut rows = pin!(timeout(limit, asked).await.map_err(silent)??);
    let mut builders = vec![];
    for field in fields {
        let builder = Builder::new(field.data_type());
        builders.push(
            builder
                .ok_or_else(|| Error::user(format!("column \"{}\" has a type that no database has", field.name())))?,
        );
    }
    loop {
        let mut count = 0;
        let filled = async {
            while count < BATCH_ROWS {
                let Some(row) = rows.try_next().await.map_err(failed)? else { return Ok(true) };
                for (index, builder) in builders.iter_mut().enumerate() {
                    let value: Option<Raw> = row.try_get(index).map_err(failed)?;
                    let put = match value {
                        Some(Raw(bytes)) => put(builder, bytes),
                        None => (builder.null(), Ok(())).1,
                    };
                    put.map_err(|why| {
                        Error::user(doing.clone()).cause(format!("column \"{}\": {why}", fields[index].name()))
                    })?;
                }
                count += 1;
            }
            Ok::<bool, Error>(false)
        };
        let is_end = timeout(limit, filled).await.map_err(silent)??;
        if count > 0 {
            let arrays = builders.iter_mut().zip(fields.iter()).map(|(b, f)| b.finish(f.data_type()));
            let arrays = arrays.collect::<std::result::Result<Vec<_>, _>>();
            let options = RecordBatchOptions::new().with_row_count(Some(count));
            let batch =
                arrays.and_then(|arrays| RecordBatch::try_new_with_options(query.schema.clone(), arrays, &options));
            let batch = batch.map_err(|e| Error::user(doing.clone()).cause(e))?;
            if !give(batch).await {
                return Ok(());
            }
        }
        if is_end {
            return Ok(());
        }
    }
}

// Of a table that was never analyzed (-1, before PostgreSQL 14: 0), by its size. A view or a partitioned table has no figure
// of its own.
const ESTIMATE: &str = "
    SELECT CASE WHEN c.reltuples > 0 THEN c.reltuples::bigint ELSE pg_relation_size(c.oid) / 100 END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = $1::text AND c.relkind IN ('r', 'm')
      AND CASE WHEN $2::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = $2::text END";

/// About how many rows a table has, as its statistics say; `None` where there are none.
///
/// # Errors
/// The server's.
pub async fn estimated_rows(table: &DatabaseTable, address: &Address) -> Result<Option<usize>> {
    let failed = |e: tokio_postgres::Error| failure(&e, &format!("could not look up table {}", table.target_name()));
    let client = connect(address, table.connect_timeout, table.timeout).await?;
    let (schema, name) = &table.target;
    let found = client.query_opt(ESTIMATE, &[name, schema]).await.map_err(failed)?;
    Ok(found.and_then(|row| usize::try_from(row.get::<_, i64>(0)).ok()))
}

/// The column in the form that [`put`] reads: the widest of its kind.
fn as_read(name: &str, declared: &DataType) -> String {
    use DataType::*;
    let name = quoted(name);
    let (element, array) = match declared {
        List(item) | LargeList(item) => (item.data_type(), "[]"),
        other => (other, ""),
    };
    match element {
        other if other.is_integer() => format!("{name}::bigint{array}"),
        Float32 | Float64 => format!("{name}::double precision{array}"),
        Decimal128(..) => format!("{name}::numeric{array}"),
        Utf8 | LargeUtf8 | Utf8View | Dictionary(..) => format!("{name}::text{array}"),
        _ => name, // a uuid travels as its 16 bytes
    }
}

/// The bytes of a value, whatever its type.
struct Raw<'r>(&'r [u8]);

impl<'r> FromSql<'r> for Raw<'r> {
    fn from_sql(_: &Type, raw: &'r [u8]) -> std::result::Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn put(builder: &mut Builder, bytes: &[u8]) -> std::result::Result<(), String> {
    match builder {
        Builder::Bool(b) => b.append_value(bytes == [1]),
        Builder::Int(b) => b.append_value(i64::from_be_bytes(exactly(bytes)?)),
        Builder::Float(b) => b.append_value(f64::from_be_bytes(exactly(bytes)?)),
        Builder::Decimal(b, scale) => b.append_value(numeric(bytes, *scale)?),
        Builder::Text(b) => b.append_value(std::str::from_utf8(bytes).map_err(|e| e.to_string())?),
        Builder::Bytes(b) => b.append_value(bytes),
        Builder::Timestamp(b) => {
            let since_2000 = i64::from_be_bytes(exactly(bytes)?);
            if since_2000 == i64::MAX || since_2000 == i64::MIN {
                return Err("an infinite timestamp is no point in time".into());
            }
            b.append_value(since_2000.checked_add(EPOCH_MICROS).ok_or("timestamp out of range")?);
        }
        Builder::Date(b) => {
            let since_2000 = i32::from_be_bytes(exactly(bytes)?);
            if since_2000 == i32::MAX || since_2000 == i32::MIN {
                return Err("an infinite date is no day".into());
            }
            b.append_value(since_2000.checked_add(EPOCH_DAYS).ok_or("date out of range")?);
        }
        Builder::List { items, .. } => {
            array(items, bytes)?;
            return builder.end_list();
        }
    }
    Ok(())
}

fn exactly<const N: usize>(bytes: &[u8]) -> std::result::Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes instead of {N}", bytes.len()))
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> std::result::Result<[u8; N], String> {
    let (front, rest) = bytes.split_first_chunk::<N>().ok_or("a value is cut short")?;
    *bytes = rest;
    Ok(*front)
}

fn array(items: &mut Builder, mut bytes: &[u8]) -> std::result::Result<(), String> {
    let dimensions = i32::from_be_bytes(take(&mut bytes)?);
    if dimensions > 1 {
        return Err(format!("an array of {dimensions} dimensions is no list"));
    }
    take::<8>(&mut bytes)?; // flag of NULLs, type
    if dimensions == 0 {
        return Ok(());
    }
    let count = i32::from_be_bytes(take(&mut bytes)?);
    take::<4>(&mut bytes)?; // lower bound
    for _ in 0..count {
        match usize::try_from(i32::from_be_bytes(take(&mut bytes)?)) {
            Ok(length) => {
                let (item, rest) = bytes.split_at_checked(length).ok_or("an array is cut short")?;
                put(items, item)?;
                bytes = rest;
            }
            Err(_) => items.null(),
        }
    }
    Ok(())
}

/// In units of the last of `scale` digits.
pub(super) fn numeric(mut bytes: &[u8], scale: u32) -> std::result::Result<i128, String> {
    let misfit = || format!("a number does not fit {scale} digits after the point");
    let [count, weight, sign, _shown] = [take(&mut bytes)?, take(&mut bytes)?, take(&mut bytes)?, take(&mut bytes)?];
    let (count, weight) = (i16::from_be_bytes(count), i32::from(i16::from_be_bytes(weight)));
    let negative = match u16::from_be_bytes(sign) {
        0 => false,
        0x4000 => true,
        _ => return Err("NaN or infinity is no decimal".into()),
    };
    let mut value: i128 = 0;
    for index in 0..i32::from(count) {
        let group = i128::from(u16::from_be_bytes(take(&mut bytes)?));
        // The group stands for group * 10^(4 * (weight - index)); we want units of 10^-scale.
        let exponent = 4 * (weight - index) + scale as i32;
        let part = match u32::try_from(exponent) {
            Ok(up) => 10i128.checked_pow(up).and_then(|unit| group.checked_mul(unit)).ok_or_else(misfit)?,
            Err(_) => {
                let unit = 10i128.checked_pow(exponent.unsigned_abs()).ok_or_else(misfit)?;
                if group % unit != 0 {
                    return Err(misfit());
                }
                group / unit
            }
        };
        value = value.checked_add(part).ok_or_else(misfit)?;
    }
    Ok(if negative { -value } else { value })
}
