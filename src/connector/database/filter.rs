//! Conditions of a query that the database can check for us.
//!
//! Every pushed condition is checked again by DataFusion (`Inexact`), so it may let too many rows through but never too
//! few. Hence no floats (PostgreSQL holds -0.0 = 0.0, Arrow does not), and no order of text (collations).

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};

use super::quoted;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

/// The condition in the database's SQL; `None` if it cannot be pushed.
pub(super) fn condition(expr: &Expr, schema: &SchemaRef, dialect: Dialect) -> Option<String> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = expr else { return None };
    if *op == Operator::And {
        let (left, right) = (condition(left, schema, dialect)?, condition(right, schema, dialect)?);
        return Some(format!("({left} AND {right})"));
    }
    let (column, op, value) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    let op = match op {
        Operator::Eq => "=",
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
        let fields = [("id", DataType::Int64), ("name", DataType::Utf8View), ("at", time), ("x", DataType::Float64)];
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
        let both = col("id").eq(lit(1i64)).and(col("name").eq(lit("a")));
        assert_eq!(condition(&both, &schema(), Dialect::Sqlite).unwrap(), "(\"id\" = (1) AND \"name\" = 'a')");
    }
}
