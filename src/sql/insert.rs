//! `INSERT INTO table [(columns)] SELECT …`: the query's columns against the table's, by position, without silent casts.
//!
//! DataFusion itself would cast anything castable, and fail on the first row that does not fit. Here a type that could
//! lose or refuse a value is an error before the first record: only casts that keep every value are made unasked.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};
use sqlparser::ast::{Expr as SqlExpr, Ident, Insert, Select, SelectItem, SetExpr, Spanned, Statement as SqlStatement};

use super::explain::plain;
use super::nearest;
use super::place::Place;
use super::statement::{Parsed, normalize};
use super::text::Files;
use crate::connector::TableDefinition;

/// What is wrong with an INSERT, and what to do.
#[derive(Debug)]
pub struct Problem {
    pub message: String,
    pub hint: String,
    pub about: About,
}

/// What of an INSERT a problem is about; columns count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Whole,
    /// Of `INSERT INTO t (…)`.
    Named(usize),
    /// Of the SELECT.
    Selected(usize),
}

impl Problem {
    fn new(about: About, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), about }
    }
}

fn insert_of(parsed: &Parsed) -> Option<&Insert> {
    let Parsed::Statement(statement) = parsed else { return None };
    let SqlStatement::Insert(insert) = statement.as_ref() else { return None };
    Some(insert)
}

/// Where that stands; `None` if it cannot be told, as with columns of a `*`.
pub fn place_of(files: &Files, parsed: &Parsed, about: About) -> Option<Place> {
    let insert = insert_of(parsed)?;
    let span = match about {
        About::Whole => return None,
        About::Named(column) => insert.columns.get(column)?.span(),
        About::Selected(column) => {
            let items = &first_select(&insert.source.as_ref()?.body)?.projection;
            let is_one =
                |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
            if !items.get(..column)?.iter().all(is_one) {
                return None;
            }
            items.get(column).filter(|item| is_one(item))?.span()
        }
    };
    files.place_of_span((span.start.line, span.start.column), (span.end.line, span.end.column))
}

fn first_select(body: &SetExpr) -> Option<&Select> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::Query(query) => first_select(&query.body),
        SetExpr::SetOperation { left, .. } => first_select(left),
        _ => None,
    }
}

/// Columns go by position, so two of one name are as good as any; but a plan cannot have them. So an expression that has
/// no alias, and the name of another column, gets a name that nothing in the query can mean. An alias of the user's stays:
/// GROUP BY or ORDER BY may mean it.
fn name_apart(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => {
            let given = |item: &SelectItem| match item {
                SelectItem::ExprWithAlias { alias, .. } => Some(normalize(alias)),
                _ => None,
            };
            let mut names: BTreeSet<String> = select.projection.iter().filter_map(given).collect();
            for (position, item) in select.projection.iter_mut().enumerate() {
                let SelectItem::UnnamedExpr(expr) = item else { continue };
                let name = match without_casts(expr) {
                    SqlExpr::Identifier(ident) => normalize(ident),
                    SqlExpr::CompoundIdentifier(idents) => idents.last().map(normalize).unwrap_or_default(),
                    other => other.to_string().to_lowercase(),
                };
                if !names.insert(name.clone()) {
                    let alias = Ident::with_quote('"', format!("column {}", position + 1));
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
            }
        }
        SetExpr::Query(query) => name_apart(&mut query.body),
        SetExpr::SetOperation { left, right, .. } => {
            name_apart(left);
            name_apart(right);
        }
        _ => {}
    }
}

/// A plan names a cast by what is cast.
fn without_casts(mut expr: &SqlExpr) -> &SqlExpr {
    while let SqlExpr::Cast { expr: inner, .. } | SqlExpr::Nested(inner) = expr {
        expr = inner;
    }
    expr
}

/// The query of an INSERT, and the columns it names (none: all).
pub fn parts(parsed: &Parsed) -> Result<(Parsed, Vec<String>), String> {
    let Some(insert) = insert_of(parsed) else { return Err("this is no INSERT".into()) };
    let Some(source) = &insert.source else { return Err("INSERT needs a SELECT".into()) };
    let mut columns = Vec::new();
    for column in &insert.columns {
        match column.0.as_slice() {
            [part] => columns.push(part.as_ident().map(normalize).ok_or("a column must be a plain name")?),
            _ => return Err(format!("column {column} must be a plain name")),
        }
    }
    let mut query = source.clone();
    name_apart(&mut query.body);
    let query = SqlStatement::Query(query);
    Ok((Parsed::Statement(Box::new(query)), columns))
}

/// Projects a query's columns onto the table's: names, order and types. Columns that are not named are NULL.
pub fn into_table(plan: LogicalPlan, columns: &[String], table: &TableDefinition) -> Result<LogicalPlan, Problem> {
    let names: Vec<String> = match columns.is_empty() {
        true => table.schema.fields().iter().map(|f| f.name().clone()).collect(),
        false => columns.to_vec(),
    };
    let known = || table.schema.fields().iter().map(|f| f.name().as_str());
    for (i, name) in names.iter().enumerate() {
        if table.schema.index_of(name).is_err() {
            let hint = nearest(name, known()).map(|near| format!("did you mean {near}?"));
            let message = format!("table {} has no column {name}", table.name);
            let hint = hint.unwrap_or_else(|| format!("it has: {}", known().collect::<Vec<_>>().join(", ")));
            return Err(Problem::new(About::Named(i), message, hint));
        }
        if names[..i].contains(name) {
            return Err(Problem::new(
                About::Named(i),
                format!("column {name} is named twice"),
                "leave one of them out",
            ));
        }
    }
    let given = plan.schema().fields().len();
    if given != names.len() {
        let message = format!("table {} takes {} columns here, the SELECT gives {given}", table.name, names.len());
        return Err(Problem::new(About::Whole, message, format!("in order: {}", names.join(", "))));
    }
    let mut exprs = Vec::with_capacity(table.schema.fields().len());
    for field in table.schema.fields() {
        let Some(position) = names.iter().position(|name| name == field.name()) else {
            let null = ScalarValue::try_from(field.data_type()).unwrap_or(ScalarValue::Null);
            exprs.push(lit(null).alias(field.name()));
            continue;
        };
        let (qualifier, found) = plan.schema().qualified_field(position);
        let column = Expr::Column((qualifier, found).into());
        if !fits(found.data_type(), field.data_type()) {
            let message = format!(
                "column {} of {} is {}, the SELECT gives {}",
                field.name(),
                table.name,
                sql_name(field.data_type()),
                sql_name(found.data_type())
            );
            // What is no name is the engine's rendering of an expression.
            let is_name = found.name().chars().all(|c| c.is_alphanumeric() || c == '_');
            let value = if is_name { found.name() } else { "…" };
            let hint = format!("CAST({value} AS {})", sql_name(field.data_type()));
            return Err(Problem::new(About::Selected(position), message, hint));
        }
        let same = found.data_type() == field.data_type();
        let expr = if same { column } else { cast(column, field.data_type().clone()) };
        exprs.push(expr.alias(field.name()));
    }
    let built = LogicalPlanBuilder::from(plan).project(exprs).and_then(LogicalPlanBuilder::build);
    built.map_err(|e| Problem::new(About::Whole, plain(&e), ""))
}

/// Whether every value of one type is a value of the other.
pub fn fits(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Date64, Decimal128, Dictionary, Float32, Float64, Int8, Int16, Int32, Int64,
        LargeBinary, LargeList, LargeUtf8, List, Null, Struct, Timestamp, UInt8, UInt16, UInt32, Utf8, Utf8View,
    };
    let text = |t: &DataType| matches!(t, Utf8 | LargeUtf8 | Utf8View);
    let bytes = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView);
    let width = |t: &DataType| match t {
        Int8 => Some(1),
        UInt8 | Int16 => Some(2),
        UInt16 | Int32 => Some(4),
        UInt32 | Int64 => Some(8),
        _ => None,
    };
    match (from, to) {
        _ if from == to => true,
        (Null, _) => true,
        (Dictionary(_, value), _) => fits(value, to),
        _ if text(from) && text(to) => true,
        _ if bytes(from) && bytes(to) => true,
        (Int8 | Int16 | Int32 | UInt8 | UInt16 | UInt32, Int16 | Int32 | Int64) => width(from) <= width(to),
        (Float32 | Int8 | Int16 | Int32 | UInt8 | UInt16 | UInt32, Float64) => true,
        (Decimal128(p, s), Decimal128(q, t)) => {
            s <= t && i16::from(*p) - i16::from(*s) <= i16::from(*q) - i16::from(*t)
        }
        (Int8 | Int16 | Int32 | Int64, Decimal128(q, t)) => {
            let digits = match from {
                Int8 => 3,
                Int16 => 5,
                Int32 => 10,
                _ => 19,
            };
            digits <= i16::from(*q) - i16::from(*t)
        }
        (Date64, Date32) => true,
        (Timestamp(from, a), Timestamp(to, b)) => a == b && rank(*from) <= rank(*to),
        (List(a) | LargeList(a), List(b) | LargeList(b)) => fits(a.data_type(), b.data_type()),
        (Struct(a), Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| a.name() == b.name() && fits(a.data_type(), b.data_type()))
        }
        _ => false,
    }
}

fn rank(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    }
}

/// The type as the user would write it.
pub fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTEA".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Timestamp(TimeUnit::Microsecond, None) => "TIMESTAMP".into(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "TIMESTAMPTZ".into(),
        DataType::Timestamp(TimeUnit::Nanosecond, None) => "TIMESTAMP in nanoseconds".into(),
        DataType::Decimal128(p, s) => format!("DECIMAL({p}, {s})"),
        DataType::List(item) => format!("{}[]", sql_name(item.data_type())),
        DataType::Map(entry, _) => match entry.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                format!("MAP(VARCHAR, {})", sql_name(fields[1].data_type()))
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::parser::DFParser;

    fn query(sql: &str) -> String {
        let statements = DFParser::parse_sql(&format!("INSERT INTO t {sql}")).unwrap();
        parts(&statements[0]).unwrap().0.to_string()
    }

    #[test]
    fn columns_of_one_name_are_named_apart() {
        for (sql, expected) in [
            ("SELECT a, b FROM s", "SELECT a, b FROM s"),
            ("SELECT a, a FROM s ORDER BY a", "SELECT a, a AS \"column 2\" FROM s ORDER BY a"),
            (
                "SELECT a, CAST(s.a AS DATE), (a)::INT FROM s",
                "SELECT a, CAST(s.a AS DATE) AS \"column 2\", (a)::INT AS \"column 3\" FROM s",
            ),
            ("SELECT a + 1, s.b, A + 1 FROM s", "SELECT a + 1, s.b, A + 1 AS \"column 3\" FROM s"),
            ("SELECT s.a, 1 AS a FROM s", "SELECT s.a AS \"column 1\", 1 AS a FROM s"),
            ("SELECT 1 AS a, 2 AS a", "SELECT 1 AS a, 2 AS a"),
            (
                "SELECT a, a FROM s UNION ALL (SELECT 1, 1)",
                "SELECT a, a AS \"column 2\" FROM s UNION ALL (SELECT 1, 1 AS \"column 2\")",
            ),
        ] {
            assert_eq!(query(sql), expected, "{sql}");
        }
    }

    #[test]
    fn only_casts_that_keep_every_value_are_silent() {
        use DataType::{Decimal128, Float64, Int32, Int64, Null, UInt64, Utf8, Utf8View};
        let timestamp = |unit| DataType::Timestamp(unit, None);
        for (from, to) in [
            (Int32, Int64),
            (Utf8, Utf8View),
            (Null, Int64),
            (Int32, Float64),
            (Int64, Decimal128(19, 0)),
            (Decimal128(10, 2), Decimal128(12, 3)),
            (timestamp(TimeUnit::Millisecond), timestamp(TimeUnit::Microsecond)),
        ] {
            assert!(fits(&from, &to), "{from} into {to}");
        }
        for (from, to) in [
            (Int64, Int32),
            (UInt64, Int64),
            (Utf8, Int64),
            (Int64, Utf8View),
            (Int64, Float64),
            (Decimal128(12, 2), Decimal128(12, 3)),
            (timestamp(TimeUnit::Nanosecond), timestamp(TimeUnit::Microsecond)),
            (timestamp(TimeUnit::Microsecond), DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        ] {
            assert!(!fits(&from, &to), "{from} into {to}");
        }
    }
}
