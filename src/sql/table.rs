//! `CREATE [UNBOUNDED] EXTERNAL TABLE` as a [`TableDefinition`], with every error at its column.
//!
//! NOT NULL is kept where the system of the table enforces it: a DATABASE. A record of a source that does not decode has
//! NULL in all its columns, and nobody checks a file; so there it is refused rather than promised in vain.
//!
//! Options are taken from the syntax tree: planning would prefix some keys with `format.`. An empty LOCATION is allowed:
//! it turns the table off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::sql::parser::CreateExternalTable;
use sqlparser::ast::{ColumnDef, ColumnOption, Expr, Ident, TableConstraint, Value};

use super::explain::{explain, nearest};
use super::place::Place;
use super::statement::{Name, Refused, normalize};
use super::text::Files;
use super::types::column_field;
use super::words::{place_of, place_of_quoted};
use crate::connector::TableDefinition;
use crate::{Error, Part, Result};

const STORED_AS: &[&str] = &["KAFKA", "DATABASE", "PARQUET", "DELTA", "ELASTICSEARCH", "CSV", "JSON"];
const COLUMNS_MAX: usize = 1_000;

/// A declaration that parses; its types and options are looked at by [`define`].
#[derive(Debug, Clone)]
pub struct UnresolvedTable {
    pub name: Name,
    pub place: Place,
    statement: CreateExternalTable,
}

impl UnresolvedTable {
    pub(super) fn new(statement: CreateExternalTable, place: Place) -> Result<Self, Refused> {
        Ok(Self { name: Name::resolve(&statement.name)?, place, statement })
    }
}

/// # Errors
/// All that is wrong with the declaration, as one error.
pub fn define(files: &Files, table: &UnresolvedTable) -> Result<TableDefinition> {
    let mut check = Check { files, table, errors: vec![] };
    check.clauses();
    let stored_as = table.statement.file_type.to_uppercase();
    let fields = check.columns(&stored_as);
    let primary_key = check.primary_key(&fields);
    let partition_columns = check.partition_columns(&fields);
    let options = check.options();
    let definition = TableDefinition {
        name: table.name.to_string(),
        schema: Arc::new(Schema::new(fields)),
        primary_key,
        unbounded: table.statement.unbounded,
        stored_as,
        location: table.statement.locations.first().cloned().unwrap_or_default(),
        partition_columns,
        options,
        place: files.label(&table.place),
    };
    match Error::all(check.errors) {
        None => Ok(definition),
        Some(error) => Err(error),
    }
}

struct Check<'a> {
    files: &'a Files,
    table: &'a UnresolvedTable,
    errors: Vec<Error>,
}

impl Check<'_> {
    fn say(&mut self, place: Place, message: impl AsRef<str>, hint: impl AsRef<str>) {
        let error = self.files.error_at(&place, message);
        self.errors.push(error.with_hint(Some(hint.as_ref()).filter(|hint| !hint.is_empty())));
    }

    /// At the name that the message quotes, else at the statement.
    fn say_here(&mut self, message: impl AsRef<str>, hint: impl AsRef<str>) {
        let place = place_of_quoted(self.files, &self.table.place, message.as_ref());
        self.say(place.unwrap_or(self.table.place), message, hint);
    }

    fn say_of(&mut self, part: &Part, message: impl AsRef<str>, hint: impl AsRef<str>) {
        self.say(self.part(part), message, hint);
    }

    fn part(&self, part: &Part) -> Place {
        place_of(self.files, &self.table.place, part).unwrap_or(self.table.place)
    }

    fn place(&self, ident: &Ident) -> Place {
        let (start, end) = (ident.span.start, ident.span.end);
        let place = self.files.place_of_span((start.line, start.column), (end.line, end.column));
        place.unwrap_or(self.table.place)
    }

    fn clauses(&mut self) {
        let table = self.table;
        let statement = &table.statement;
        if statement.or_replace || statement.if_not_exists || statement.temporary {
            self.say_here(
                "a table is declared once: OR REPLACE, IF NOT EXISTS and TEMPORARY have no meaning here",
                "write CREATE EXTERNAL TABLE name (…)",
            );
        }
        if !statement.order_exprs.is_empty() {
            self.say_here("WITH ORDER is not supported", "sort in the query that reads the table");
        }
        if statement.locations.len() > 1 {
            self.say_here("a table has one LOCATION", "declare two tables and join them with UNION ALL in a view");
        }
        let stored_as = statement.file_type.to_uppercase();
        if !STORED_AS.contains(&stored_as.as_str()) {
            let near = match stored_as.as_str() {
                "POSTGRES" | "POSTGRESQL" | "SQLITE" => Some("DATABASE"),
                "NDJSON" => Some("JSON"),
                "ES" | "ELASTIC" | "OPENSEARCH" => Some("ELASTICSEARCH"),
                _ => nearest(&stored_as, STORED_AS.iter().copied()),
            };
            let known = format!("there are: {}", STORED_AS.join(", "));
            let hint = match near {
                Some(near) => format!("did you mean STORED AS {near}? {known}"),
                None => known,
            };
            self.say_of(&Part::StoredAs, format!("tables cannot be stored as {stored_as}"), hint);
        } else if statement.unbounded && stored_as != "KAFKA" {
            self.say_of(
                &Part::StoredAs,
                format!("only a table STORED AS KAFKA can be unbounded, not {stored_as}"),
                "leave out UNBOUNDED: the table is read to its end",
            );
        }
        if !statement.table_partition_cols.is_empty()
            && matches!(stored_as.as_str(), "KAFKA" | "DATABASE" | "ELASTICSEARCH")
        {
            self.say_here(format!("a table STORED AS {stored_as} has no PARTITIONED BY"), "leave it out");
        }
    }

    fn columns(&mut self, stored_as: &str) -> Vec<Field> {
        let table = self.table;
        let columns = &table.statement.columns;
        if columns.is_empty() {
            self.say_here("the table has no columns", "list its columns with their types: (user_id BIGINT, …)");
        }
        if columns.len() > COLUMNS_MAX {
            self.say_here(
                format!("the table has {} columns, more than {COLUMNS_MAX}", columns.len()),
                "keep what is rarely asked for in one column, as JSON",
            );
            return vec![];
        }
        let mut names = BTreeSet::new();
        let mut fields = vec![];
        for column in columns {
            let place = self.place(&column.name);
            if !names.insert(normalize(&column.name)) {
                self.say(
                    place,
                    format!("column '{}' is declared twice", normalize(&column.name)),
                    "leave one of them out",
                );
            }
            match column_field(column) {
                Ok(field) => fields.push(field),
                Err(error) => {
                    let place = self.part(&Part::Type(normalize(&column.name)));
                    let mut found = explain(self.files, &error, &place, None);
                    self.errors.append(&mut found);
                    // So that a key on this column is not reported as well.
                    fields.push(Field::new(normalize(&column.name), arrow::datatypes::DataType::Null, true));
                }
            }
            self.column_options(column, place, stored_as);
        }
        fields
    }

    fn column_options(&mut self, column: &ColumnDef, place: Place, stored_as: &str) {
        for option in &column.options {
            match &option.option {
                ColumnOption::Null | ColumnOption::Comment(_) | ColumnOption::PrimaryKey(_) => {}
                ColumnOption::NotNull if stored_as == "DATABASE" => {}
                ColumnOption::NotNull if stored_as == "KAFKA" => self.say(
                    place,
                    "a column of a Kafka table cannot be NOT NULL: a record that does not decode has NULL in all of them",
                    "leave out NOT NULL, and test IS NULL in a view",
                ),
                ColumnOption::NotNull => self.say(
                    place,
                    "NOT NULL is kept by a database only: nobody checks it elsewhere",
                    "leave out NOT NULL, and test IS NULL in a view",
                ),
                other => self.say(
                    place,
                    format!("a column has a name, a type, perhaps NOT NULL or PRIMARY KEY, but not {other}"),
                    "compute the value in the SELECT, or leave it to the database (migrations/)",
                ),
            }
        }
    }

    fn primary_key(&mut self, fields: &[Field]) -> Vec<String> {
        let table = self.table;
        let statement = &table.statement;
        let mut key: Vec<(String, Place)> = vec![];
        let mut keys = 0;
        for column in &statement.columns {
            if column.options.iter().any(|o| matches!(o.option, ColumnOption::PrimaryKey(_))) {
                key.push((normalize(&column.name), self.place(&column.name)));
                keys += 1;
            }
        }
        for constraint in &statement.constraints {
            let TableConstraint::PrimaryKey(primary) = constraint else {
                self.say_here(
                    format!("a table has a PRIMARY KEY at most, but not {constraint}"),
                    "other constraints belong in the database (migrations/)",
                );
                continue;
            };
            keys += 1;
            for column in &primary.columns {
                match &column.column.expr {
                    Expr::Identifier(ident) => key.push((normalize(ident), self.place(ident))),
                    other => self.say_here(
                        format!("the primary key has {other}, which is not a column"),
                        "name columns: PRIMARY KEY (a, b)",
                    ),
                }
            }
        }
        if keys > 1 {
            self.say_here("the table has two primary keys", "name all columns of the key in one PRIMARY KEY (…)");
        }
        let mut seen = BTreeSet::new();
        for (name, place) in &key {
            if !fields.iter().any(|field| field.name() == name) {
                self.say(
                    *place,
                    format!("column '{name}' of the primary key is not declared"),
                    near_column(name, fields),
                );
            } else if !seen.insert(name) {
                self.say(*place, format!("column '{name}' is in the primary key twice"), "leave one of them out");
            }
        }
        key.into_iter().map(|(name, _)| name).collect()
    }

    fn partition_columns(&mut self, fields: &[Field]) -> Vec<String> {
        let table = self.table;
        let names: Vec<String> = table.statement.table_partition_cols.iter().map(|name| unquoted(name)).collect();
        let mut seen = BTreeSet::new();
        for name in &names {
            if !fields.iter().any(|field| field.name() == name) {
                self.say_here(format!("partition column '{name}' is not declared"), near_column(name, fields));
            } else if !seen.insert(name) {
                self.say_here(format!("column '{name}' is in PARTITIONED BY twice"), "leave one of them out");
            }
        }
        if !names.is_empty() && names.len() >= fields.len() {
            self.say_here("a table needs a column that is not in PARTITIONED BY", "declare what its files hold");
        }
        names
    }

    fn options(&mut self) -> BTreeMap<String, String> {
        let table = self.table;
        let mut options = BTreeMap::new();
        for (key, value) in &table.statement.options {
            let key = key.to_lowercase();
            let value = match value {
                Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => text.clone(),
                Value::EscapedStringLiteral(text) | Value::Number(text, _) => text.clone(),
                other => other.to_string(),
            };
            if options.insert(key.clone(), value).is_some() {
                self.say_of(
                    &Part::Option(key.clone()),
                    format!("option '{key}' is given twice"),
                    "leave one of them out",
                );
            }
        }
        options
    }
}

fn near_column(name: &str, fields: &[Field]) -> String {
    let near = nearest(name, fields.iter().map(|field| field.name().as_str()));
    near.map_or_else(String::new, |near| format!("did you mean {near}?"))
}

/// DFParser keeps the names in PARTITIONED BY as SQL text.
fn unquoted(name: &str) -> String {
    let quoted = name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    quoted.map_or_else(|| name.to_lowercase(), |inner| inner.replace("\"\"", "\""))
}

#[cfg(test)]
mod tests;
