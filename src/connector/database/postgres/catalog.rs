//! The table as the database has it, compared with its declaration: once, when a connection is opened.
//!
//! Declared and stored types must be the same kind of thing: an integer fits any integer column and `numeric` (the
//! value decides), text fits text, json, uuid and enums; text for a timestamp, or a float for an integer, is an error
//! that names both types. Nothing is cast silently, nothing rounded.

use arrow::datatypes::DataType;
use tokio_postgres::Client;

use super::copy::{Kind, Target};
use super::error::failure;
use crate::connector::database::column::supported;
use crate::connector::database::misfits::Misfits;
use crate::connector::database::{DatabaseTable, OnConflict, quoted};
use crate::sql::insert::sql_name;
use crate::{Error, Result};

/// What a sink or a reader needs to know of a table.
#[derive(Debug, Clone)]
pub(super) struct Described {
    /// `"schema"."name"`.
    pub name: String,
    /// By declared column.
    pub targets: Vec<Target>,
    /// The key's unique index takes two NULLs for equal (`NULLS NOT DISTINCT`).
    pub nulls_equal: bool,
}

struct StoredColumn {
    name: String,
    /// As SQL writes it, for messages.
    shown: String,
    /// Of the element, if `array_of`.
    type_name: String,
    kind: String,
    modifier: i32,
    array_of: Option<u32>,
    generated: bool,
}

const FIND_TABLE: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = $1::text AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND CASE WHEN $2::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = $2::text END";

// A domain counts as its base type; the server checks its constraints.
const FIND_COLUMNS: &str = "
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod),
           coalesce(e.typname, b.typname)::text, coalesce(e.typtype, b.typtype)::text,
           CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END,
           e.oid, a.attgenerated <> ''
    FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid
    JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
    LEFT JOIN pg_type e ON b.typcategory = 'A' AND e.oid = b.typelem
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum";

// Unique, whole, on plain columns and checked at once: what ON CONFLICT can use.
const FIND_KEYS: &str = "
    SELECT (SELECT array_agg(a.attname::text) FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])),
           coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false)
    FROM pg_index i
    WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL";

/// # Errors
/// Table or column missing, types that do not fit, no unique index for the key (user); the connection (external).
pub(super) async fn describe(client: &Client, table: &DatabaseTable, writing: bool) -> Result<Described> {
    let definition = table.definition();
    let doing = format!("could not look up table {} of the database", table.target_name());
    let failed = |e: tokio_postgres::Error| failure(&e, &doing);
    let (schema, name) = &table.target;
    let Some(found) = client.query_opt(FIND_TABLE, &[name, schema]).await.map_err(failed)? else {
        let message = format!("table {} is not in the database", table.target_name());
        return Err(Error::user(message).at(format!("{}, declared at {}", definition.name, definition.place)).hint(
            "create it (`poundlock migrate`; if its migration is applied already, with a new one), or name it with \
                 OPTIONS ('table' 'schema.name')",
        ));
    };
    let (oid, schema, name): (u32, String, String) = (found.get(0), found.get(1), found.get(2));
    let mut stored = vec![];
    for row in client.query(FIND_COLUMNS, &[&oid]).await.map_err(failed)? {
        stored.push(StoredColumn {
            name: row.get(0),
            shown: row.get(1),
            type_name: row.get(2),
            kind: row.get(3),
            modifier: row.get(4),
            array_of: row.get(5),
            generated: row.get(6),
        });
    }
    let full_name = format!("{}.{}", quoted(&schema), quoted(&name));
    let (mut targets, mut misfits) = (vec![], Misfits::default());
    for field in definition.schema.fields() {
        let (column, of) = (quoted(field.name()), field.data_type());
        match stored.iter().find(|s| s.name == *field.name()) {
            Some(stored) => match target(of, stored, writing) {
                Ok(target) => targets.push(target),
                Err(Misfit::Type) => {
                    let alter = |of| format!("ALTER COLUMN {column} TYPE {of} USING {column}::{of}");
                    let what = format!("column {column} is declared {} and is {} there", sql_name(of), stored.shown);
                    misfits.add(what, stored_as(of).map(alter));
                }
                Err(Misfit::Generated) => misfits.add(format!("column {column} is generated by the database"), None),
            },
            None => {
                let what = format!("column {column} is declared {} and is not there", sql_name(of));
                misfits.add(what, stored_as(of).map(|of| format!("ADD COLUMN {column} {of}")));
            }
        }
    }
    if let Some((cause, hint)) =
        misfits.told(&full_name, " or the table", "a new migration (migrations/V…__….sql, `poundlock migrate`)")
    {
        let message = format!("table {} does not fit its declaration", table.target_name());
        return Err(Error::user(message).at(definition.place.clone()).cause(cause).hint(hint));
    }
    let mut nulls_equal = false;
    if writing && table.on_conflict() != OnConflict::Refuse && !definition.primary_key.is_empty() {
        let mut wanted = definition.primary_key.clone();
        wanted.sort();
        let mut found = false;
        for row in client.query(FIND_KEYS, &[&oid]).await.map_err(failed)? {
            let mut columns: Vec<String> = row.get::<_, Option<_>>(0).unwrap_or_default();
            columns.sort();
            if columns == wanted {
                (found, nulls_equal) = (true, nulls_equal || row.get::<_, bool>(1));
            }
        }
        if !found {
            let message = format!("table {} has no unique index on the declared PRIMARY KEY", table.target_name());
            let key = definition.primary_key.join(", ");
            return Err(Error::user(message).at(definition.place.clone()).hint(format!(
                "add a PRIMARY KEY or UNIQUE constraint on ({key}) to it, not deferrable and not partial"
            )));
        }
    }
    Ok(Described { name: full_name, targets, nulls_equal })
}

enum Misfit {
    Type,
    Generated,
}

/// The type of a column that holds every value of a declared one; `None`: there is none.
fn stored_as(declared: &DataType) -> Option<String> {
    use DataType::*;
    let name = match declared {
        Boolean => "boolean",
        Int8 | UInt8 | Int16 => "smallint",
        UInt16 | Int32 => "integer",
        UInt32 | Int64 => "bigint",
        UInt64 => "numeric(20)",
        Float32 => "real",
        Float64 => "double precision",
        Decimal128(precision, scale) => return Some(format!("numeric({precision}, {scale})")),
        Utf8 | LargeUtf8 | Utf8View => "text",
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => "bytea",
        Timestamp(_, None) => "timestamp",
        Timestamp(_, Some(_)) => "timestamptz",
        Date32 => "date",
        Dictionary(_, value) => return stored_as(value),
        List(item) | LargeList(item) => return stored_as(item.data_type()).map(|item| format!("{item}[]")),
        _ => return None,
    };
    Some(name.into())
}

/// Pairs a declared type with a stored one.
fn target(declared: &DataType, stored: &StoredColumn, writing: bool) -> Result<Target, Misfit> {
    if writing && stored.generated {
        return Err(Misfit::Generated);
    }
    let element = match declared {
        DataType::List(item) | DataType::LargeList(item) if stored.array_of.is_some() => item.data_type(),
        DataType::Null => declared,
        _ if stored.array_of.is_some() => return Err(Misfit::Type),
        other => other,
    };
    let element = match element {
        DataType::Dictionary(_, value) => value.as_ref(),
        other => other,
    };
    if !supported(declared) {
        return Err(Misfit::Type);
    }
    let kind = kind(element, stored, writing).ok_or(Misfit::Type)?;
    Ok(Target { kind, array_of: stored.array_of })
}

fn kind(declared: &DataType, stored: &StoredColumn, writing: bool) -> Option<Kind> {
    use DataType::*;
    let integer = declared.is_integer();
    let text = matches!(declared, Utf8 | LargeUtf8 | Utf8View);
    let bytes = matches!(declared, Binary | LargeBinary | BinaryView | FixedSizeBinary(_));
    let any = *declared == Null;
    // varchar(n) and numeric(p, s) keep their lengths in the modifier, 4 too high; -1 is none.
    let modifier = (writing && stored.modifier >= 4).then(|| stored.modifier - 4);
    let kind = match stored.type_name.as_str() {
        "bool" if *declared == Boolean || any => Kind::Bool,
        "int2" if integer || any => Kind::Int2,
        "int4" if integer || any => Kind::Int4,
        "int8" if integer || any => Kind::Int8,
        "float4" if *declared == Float32 || any => Kind::Float4,
        "float8" if matches!(declared, Float32 | Float64) || any => Kind::Float8,
        "numeric" if integer || any => Kind::Numeric(numeric_end(modifier, 0)?),
        "numeric" => match declared {
            Decimal128(_, scale) => Kind::Numeric(numeric_end(modifier, i32::from(*scale))?),
            _ => return None,
        },
        "varchar" | "bpchar" if text || any => Kind::Text(modifier.and_then(|m| u32::try_from(m).ok())),
        "text" | "json" | "citext" | "name" if text || any => Kind::Text(None),
        "jsonb" if text || any => Kind::Jsonb,
        "uuid" if text || any || *declared == FixedSizeBinary(16) => Kind::Uuid,
        "bytea" if bytes || any => Kind::Bytea,
        "timestamp" if matches!(declared, Timestamp(_, None)) || any => Kind::Timestamp,
        "timestamptz" if matches!(declared, Timestamp(_, Some(_))) || any => Kind::TimestampTz,
        "date" if *declared == Date32 || any => Kind::Date,
        _ if stored.kind == "e" && (text || any) => Kind::Text(None),
        _ => return None,
    };
    Some(kind)
}

/// The first value of that scale that is too large for `numeric(precision, scale)`; `None` if it would be rounded.
#[allow(clippy::option_option)]
fn numeric_end(modifier: Option<i32>, scale: i32) -> Option<Option<u128>> {
    let Some(modifier) = modifier else { return Some(None) };
    let (precision, digits) = ((modifier >> 16) & 0xffff, ((modifier & 0x7ff) ^ 1024) - 1024);
    if digits < scale {
        return None;
    }
    let end = u32::try_from(precision - digits + scale).ok().and_then(|exponent| 10u128.checked_pow(exponent));
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an error suggests must not lead to the next error.
    #[test]
    fn the_type_that_is_suggested_fits() {
        let micros =
            |zone: Option<&str>| DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, zone.map(Into::into));
        for declared in [
            DataType::Boolean,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::UInt64,
            DataType::Float32,
            DataType::Float64,
            DataType::Decimal128(10, 2),
            DataType::Utf8View,
            DataType::Binary,
            DataType::Date32,
            micros(None),
            micros(Some("UTC")),
        ] {
            let shown = stored_as(&declared).unwrap();
            // As pg_type has them.
            let names = [
                ("boolean", "bool"),
                ("smallint", "int2"),
                ("integer", "int4"),
                ("bigint", "int8"),
                ("real", "float4"),
                ("double precision", "float8"),
                ("numeric(20)", "numeric"),
                ("numeric(10, 2)", "numeric"),
            ];
            let type_name = names.iter().find(|(name, _)| *name == shown).map_or(shown.as_str(), |(_, name)| name);
            let modifier = match shown.as_str() {
                "numeric(20)" => (20 << 16) + 4,
                "numeric(10, 2)" => ((10 << 16) | 2) + 4,
                _ => -1,
            };
            let stored = StoredColumn {
                name: "c".into(),
                type_name: type_name.into(),
                kind: "b".into(),
                modifier,
                array_of: None,
                generated: false,
                shown,
            };
            assert!(target(&declared, &stored, true).is_ok(), "{declared} as {}", stored.shown);
        }
        assert_eq!(stored_as(&DataType::new_list(DataType::Int64, true)).unwrap(), "bigint[]");
    }

    #[test]
    fn a_number_is_never_rounded_to_fit() {
        let modifier = |precision: i32, scale: i32| Some((precision << 16) | (scale & 0x7ff));
        assert_eq!(numeric_end(None, 9), Some(None));
        assert_eq!(numeric_end(modifier(10, 2), 2), Some(Some(10u128.pow(10))));
        assert_eq!(numeric_end(modifier(10, 2), 0), Some(Some(10u128.pow(8))));
        assert_eq!(numeric_end(modifier(10, 2), 4), None);
        assert_eq!(numeric_end(modifier(5, -3), 0), None);
    }
}
