//! Conditions of a query that the database can check for us.
//!
//! Every pushed condition is checked again by DataFusion (`Inexact`), so it may let too many rows through but never too
//! few. Hence no floats (PostgreSQL holds -0.0 = 0.0, Arrow does not), and no order of text (collations).

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::quoted;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

/// The condition in the database's SQL, or one that is true of more rows; `None` if there is none to be pushed.
pub(super) fn condition(expr: &Expr, schema: &SchemaRef, dialect: Dialect) -> Option<String> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            match (condition(left, schema, dialect), condition(right, schema, dialect)) {
                (Some(left), Some(right)) => Some(format!("({left} AND {right})")),
                (one, other) => one.or(other),
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let (left, right) = (condition(left, schema, dialect)?, condition(right, schema, dialect)?);
            Some(format!("({left} OR {right})"))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (left.as_ref(), right.as_ref()) {
            (Expr::Column(column), Expr::Literal(value, _)) => comparison(column, *op, value, schema, dialect),
            (Expr::Literal(value, _), Expr::Column(column)) => comparison(column, op.swap()?, value, schema, dialect),
            _ => None,
        },
        Expr::InList(InList { expr, list, negated: false }) => {
            let Expr::Column(column) = expr.as_ref() else { return None };
            let values = list.iter().map(|value| match value {
                Expr::Literal(value, _) => comparison(column, Operator::Eq, value, schema, dialect),
                _ => None,
            });
            let values = values.collect::<Option<Vec<_>>>().filter(|values| !values.is_empty())?;
            Some(format!("({})", values.join(" OR ")))
        }
        Expr::IsNull(column) => Some(format!("{} IS NULL", declared(column, schema)?.0)),
        Expr::IsNotNull(column) => Some(format!("{} IS NOT NULL", declared(column, schema)?.0)),
        Expr::Column(_) => flag(expr, true, schema, dialect),
        Expr::Not(column) => flag(column, false, schema, dialect),
        _ => None,
    }
}

/// The column's name in quotes, and its type.
fn declared<'s>(expr: &Expr, schema: &'s SchemaRef) -> Option<(String, &'s DataType)> {
    let Expr::Column(column) = expr else { return None };
    Some((quoted(&column.name), schema.field_with_name(&column.name).ok()?.data_type()))
}

/// A column of type BOOLEAN, by itself or under NOT.
fn flag(expr: &Expr, value: bool, schema: &SchemaRef, dialect: Dialect) -> Option<String> {
    let (name, declared) = declared(expr, schema)?;
    let value = match dialect {
        _ if *declared != DataType::Boolean => return None,
        Dialect::Postgres => value.to_string(),
        Dialect::Sqlite => i32::from(value).to_string(),
    };
    Some(format!("{name} = {value}"))
}

fn comparison(
    column: &Column,
    op: Operator,
    value: &ScalarValue,
    schema: &SchemaRef,
    dialect: Dialect,
) -> Option<String> {
    let op = match op {
        Operator::Eq => "=",
        Operator::NotEq => "<>",
        Operator::Lt => "<",
        Operator::LtEq => "<=",
        Operator::Gt => ">",
        Operator::GtEq => ">=",
        _ => return None,
    };
    let declared = schema.field_with_name(&column.name).ok()?.data_type();
    let name = quoted(&column.name);
    if let Some(text) = text(value) {
        if op != "=" || !is_text(declared) || text.contains('\0') {
            return None;
        }
        // The cast makes a uuid, enum or json comparable, and is nothing for text.
        let name = if dialect == Dialect::Postgres { format!("{name}::text") } else { name };
        return Some(format!("{name} = '{}'", text.replace('\'', "''")));
    }
    if *declared != value.data_type() {
        return None;
    }
    Some(format!("{name} {op} {}", literal(value, dialect)?))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn text(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text) => text.as_deref(),
        _ => None,
    }
}

fn literal(value: &ScalarValue, dialect: Dialect) -> Option<String> {
    use ScalarValue::*;
    if value.is_null() {
        return None;
    }
    match value {
        Int8(_) | Int16(_) | Int32(_) | Int64(_) | UInt8(_) | UInt16(_) | UInt32(_) => Some(format!("({value})")),
        Boolean(Some(value)) if dialect == Dialect::Postgres => Some(value.to_string()),
        // SQLite keeps times and decimals as text, in whatever form others wrote it.
        TimestampMicrosecond(Some(micros), zone) if dialect == Dialect::Postgres => {
            let time = chrono::DateTime::from_timestamp_micros(*micros)?;
            let year = chrono::Datelike::year(&time);
            if !(1..=9999).contains(&year) {
                return None;
            }
            let (kind, zone) = if zone.is_some() { ("timestamptz", "+00") } else { ("timestamp", "") };
            Some(format!("{kind} '{}{zone}'", time.format("%Y-%m-%d %H:%M:%S%.6f")))
        }
        Date32(Some(days)) if dialect == Dialect::Postgres => Some(format!("(date '1970-01-01' + ({days}))")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, Schema, TimeUnit};
    use datafusion::prelude::{col, lit};

    use super::*;

    fn schema() -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Microsecond, None);
        let fields = [
            ("id", DataType::Int64),
            ("name", DataType::Utf8View),
            ("at", time),
            ("x", DataType::Float64),
            ("on", DataType::Boolean),
        ];
        Arc::new(Schema::new(fields.map(|(name, of)| Field::new(name, of, true)).to_vec()))
    }

    #[test]
    fn only_what_cannot_lose_rows_is_pushed() {
        let postgres = |e: Expr| condition(&e, &schema(), Dialect::Postgres);
        assert_eq!(postgres(col("id").gt(lit(5i64))).unwrap(), "\"id\" > (5)");
        assert_eq!(postgres(lit(-5i64).lt_eq(col("id"))).unwrap(), "\"id\" >= (-5)");
        assert_eq!(postgres(col("name").eq(lit("o'x"))).unwrap(), "\"name\"::text = 'o''x'");
        assert_eq!(postgres(col("name").lt(lit("a"))), None);
        assert_eq!(postgres(col("x").eq(lit(0.0))), None);
        assert_eq!(postgres(col("id").eq(lit("5"))), None);
        let at = ScalarValue::TimestampMicrosecond(Some(1_500_000), None);
        assert_eq!(postgres(col("at").lt(lit(at.clone()))).unwrap(), "\"at\" < timestamp '1970-01-01 00:00:01.500000'");
        assert_eq!(condition(&col("at").lt(lit(at)), &schema(), Dialect::Sqlite), None);
        assert_eq!(postgres(col("id").not_eq(lit(5i64))).unwrap(), "\"id\" <> (5)");
        assert_eq!(postgres(col("name").not_eq(lit("a"))), None, "a collation may take other texts for equal");
        assert_eq!(postgres(col("name").is_null()).unwrap(), "\"name\" IS NULL");
        assert_eq!(postgres(col("x").is_not_null()).unwrap(), "\"x\" IS NOT NULL");
        let either = col("name").eq(lit("a")).or(col("id").gt(lit(5i64)));
        assert_eq!(postgres(either).unwrap(), "(\"name\"::text = 'a' OR \"id\" > (5))");
        assert_eq!(postgres(col("name").eq(lit("a")).or(col("x").eq(lit(0.0)))), None, "rows of the other side count");
        assert_eq!(postgres(col("name").eq(lit("a")).and(col("x").eq(lit(0.0)))).unwrap(), "\"name\"::text = 'a'");
        let list = |negated| col("id").in_list(vec![lit(1i64), lit(2i64)], negated);
        assert_eq!(postgres(list(false)).unwrap(), "(\"id\" = (1) OR \"id\" = (2))");
        assert_eq!(postgres(list(true)), None);
        assert_eq!(postgres(col("id").in_list(vec![lit(1i64), col("id")], false)), None);
        assert_eq!(postgres(col("on")).unwrap(), "\"on\" = true");
        assert_eq!(postgres(Expr::Not(Box::new(col("on")))).unwrap(), "\"on\" = false");
        assert_eq!(condition(&col("on"), &schema(), Dialect::Sqlite).unwrap(), "\"on\" = 1");
        let both = col("id").eq(lit(1i64)).and(col("name").eq(lit("a")));
        assert_eq!(condition(&both, &schema(), Dialect::Sqlite).unwrap(), "(\"id\" = (1) AND \"name\" = 'a')");
    }
}
