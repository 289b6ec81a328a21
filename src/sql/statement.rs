//! The statements of a project, each with its place; everything that a pipeline cannot hold is refused with a hint.
//!
//! Each statement is parsed by itself, from its own tokens, so that one error does not hide those behind it. The tokens
//! keep the lines of the file (see [`Files::first_line`]), and so do the errors of later planning.
//!
//! Declarations only: a file says what there is, so every name is made once, and nothing is replaced, altered or dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use datafusion::common::TableReference;
pub use datafusion::sql::parser::Statement as Parsed;
use sqlparser::ast::{self, Expr, Ident, ObjectName, SchemaName, SetExpr, TableObject, UnaryOperator, Value};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::doubt::Doubt;
use super::explain::explain;
use super::place::{Cursor, Place};
use super::syntax::{hinted, parse_tokens, unreadable};
use super::table::UnresolvedTable;
use super::text::{File, Files, tokenize};
use super::words::place_of;
use crate::{Error, Part};

const TOKENS_MAX: usize = 20_000;
/// A flat chain (`a OR b OR …`) is a tree as deep as it is long. Cloning or dropping one of 3,000 operators overflows a
/// thread's usual stack of 2 MB, and that aborts the process.
const CHAIN_MAX: usize = 1_000;
/// The frames of a UNION are so much larger: 700 of them overflow.
const UNION_WEIGHT: usize = 10;

#[derive(Debug, Clone)]
pub struct Statement {
    /// Its first line.
    pub place: Place,
    /// As the user wrote it, references unresolved: fit to be printed.
    pub text: String,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    CreateTable(Box<UnresolvedTable>),
    CreateSchema {
        name: String,
        if_not_exists: bool,
    },
    CreateView {
        name: Name,
        statement: Parsed,
    },
    Insert {
        target: Name,
        statement: Parsed,
    },
    /// The key in lower case, the value as text.
    Set {
        key: String,
        value: String,
    },
}

/// The name of a table or view: lower case unless quoted, in schema `public` unless it names one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub schema: String,
    pub table: String,
}

impl Name {
    pub fn reference(&self) -> TableReference {
        TableReference::partial(self.schema.clone(), self.table.clone())
    }

    /// # Errors
    /// The name has more than two parts, or a part that no `schema.table` text could tell apart.
    pub fn resolve(name: &ObjectName) -> Result<Self, Refused> {
        let parts: Option<Vec<&Ident>> = name.0.iter().map(|part| part.as_ident()).collect();
        let parts: Vec<String> = parts.unwrap_or_default().into_iter().map(normalize).collect();
        let name = match parts.as_slice() {
            [table] => Self { schema: "public".into(), table: table.clone() },
            [schema, table] => Self { schema: schema.clone(), table: table.clone() },
            _ => return refuse(format!("name {name} has more than two parts"), "write table or schema.table"),
        };
        for part in [&name.schema, &name.table] {
            if part.is_empty() || part.contains(|c: char| c == '.' || c.is_control()) {
                return refuse(format!("name {part:?} is empty, or has a dot or a control character in it"), "");
            }
        }
        if name.schema == "information_schema" {
            return refuse("schema information_schema belongs to the engine", "choose another schema");
        }
        Ok(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// As SQL resolves an identifier.
pub fn normalize(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// Why a statement is refused, and a hint (or none, if empty).
#[derive(Debug)]
pub struct Refused {
    pub message: String,
    pub hint: String,
}

fn refuse<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { message: message.into(), hint: hint.into() })
}

/// What the files say, as far as it can be read.
#[derive(Debug, Default)]
pub struct Script {
    /// In order; of two that make the same name, the first.
    pub statements: Vec<Statement>,
    /// Those of the references among them, in order.
    pub errors: Vec<(Place, Error)>,
    /// What the statements that failed may have declared.
    pub doubt: Doubt,
}

impl Script {
    pub fn into_parts(self) -> (Vec<Statement>, Vec<Error>) {
        (self.statements, self.errors.into_iter().map(|(_, error)| error).collect())
    }
}

/// Reads all statements of all files.
pub fn parse(files: &Files) -> Script {
    let mut script = Script { errors: files.errors(), ..Script::default() };
    for (i, file) in files.iter().enumerate() {
        for piece in pieces(files, i, file, &mut script) {
            let place = files.place(piece.file, piece.range.clone());
            if file.broken.iter().any(|at| piece.range.contains(at)) {
                script.doubt.add_declared(&piece.tokens); // a reference in it failed: said already
                continue;
            }
            match statement(files, &piece, place) {
                Ok(statement) => script.statements.push(statement),
                Err(found) => {
                    script.doubt.add_declared(&piece.tokens);
                    script.errors.extend(found.into_iter().map(|error| (place, error)));
                }
            }
        }
    }
    refuse_second_definitions(files, &mut script);
    script.errors.sort_by_key(|(place, _)| *place);
    script
}

/// One statement's tokens.
struct Piece {
    file: usize,
    /// In the file's text, without the `;`.
    range: Range<usize>,
    /// Where the statement ends: the `;`, or the last token.
    last: Range<usize>,
    tokens: Vec<TokenWithSpan>,
}

fn pieces(files: &Files, index: usize, file: &File, script: &mut Script) -> Vec<Piece> {
    if file.broken.first() == Some(&0) && file.text == file.source {
        script.doubt.add_anything();
        return vec![]; // its tokens were no tokens even before substitution: said already
    }
    let (tokens, ended) = tokenize(&file.text);
    if let Some(error) = ended {
        let at = Cursor::new(&file.text).advance(error.location.line, error.location.column);
        let place = files.place(index, at..at + 1);
        let (message, hint) = unreadable(&error, tokens.iter().map(|(token, _)| token));
        script.errors.push((place, files.error_at(&place, message).with_hint(hint)));
        script.doubt.add_anything();
        return vec![];
    }
    let mut pieces = vec![];
    let mut open: Option<Piece> = None;
    for (mut token, Range { start: begin, end }) in tokens {
        token.span.start.line += Files::first_line(index);
        token.span.end.line += Files::first_line(index);
        let ends = token.token == Token::SemiColon;
        if ends && open.is_none() {
            continue;
        }
        let piece =
            open.get_or_insert_with(|| Piece { file: index, range: begin..end, last: begin..end, tokens: vec![] });
        piece.last = begin..end;
        piece.tokens.push(token);
        if ends {
            pieces.extend(open.take());
        } else {
            piece.range.end = end;
        }
    }
    pieces.extend(open);
    pieces
}

fn statement(files: &Files, piece: &Piece, place: Place) -> Result<Statement, Vec<Error>> {
    if piece.tokens.len() > TOKENS_MAX {
        let long = format!("the statement has {} words and signs, more than {TOKENS_MAX}", piece.tokens.len());
        return Err(vec![files.error_at(&place, long).hint("split it into views")]);
    }
    if longest_chain(&piece.tokens) > CHAIN_MAX {
        let long =
            format!("the statement has a chain of more than {CHAIN_MAX} operators (a UNION counts as {UNION_WEIGHT})");
        return Err(vec![files.error_at(&place, long).hint("use IN (…), CASE, or a join with a table of the values")]);
    }
    let end = files.place(piece.file, piece.last.clone());
    let mut parsed = match parse_tokens(piece.tokens.clone()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let whole = error.to_string().contains("clause in CREATE EXTERNAL TABLE");
            let errors = explain(files, &error, if whole { &place } else { &end }, None);
            return Err(errors.into_iter().map(|shown| hinted(files, shown, &piece.tokens, &error)).collect());
        }
    };
    let kind = match parsed.pop_front() {
        Some(parsed) => classify(parsed, &place),
        None => refuse("the statement is empty", ""),
    };
    match kind {
        Ok(kind) => Ok(Statement { place, text: files.written(piece.file, piece.range.clone()).to_string(), kind }),
        Err(refused) => Err(vec![refused.error(files, &place)]),
    }
}

/// The most operators between two commas at one level of parentheses, or UNIONs and the like: never less than the depth
/// of the tree that they become.
fn longest_chain(tokens: &[TokenWithSpan]) -> usize {
    let (mut longest, mut unions) = (0, 0);
    let mut levels = vec![0];
    for token in tokens {
        match &token.token {
            Token::LParen => levels.push(0),
            Token::RParen if levels.len() > 1 => {
                levels.pop();
            }
            Token::Comma => *levels.last_mut().unwrap_or(&mut 0) = 0,
            Token::Word(word) => match word.keyword {
                Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS => unions += UNION_WEIGHT,
                Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::AT => {
                    *levels.last_mut().unwrap_or(&mut 0) += 1;
                }
                _ => {}
            },
            Token::Number(..) | Token::SingleQuotedString(_) | Token::Period => {}
            _ => *levels.last_mut().unwrap_or(&mut 0) += 1,
        }
        longest = longest.max(*levels.last().unwrap_or(&0)).max(unions);
    }
    longest
}

impl Refused {
    pub fn error(self, files: &Files, place: &Place) -> Error {
        let error = files.error_at(place, &self.message);
        if self.hint.is_empty() { error } else { error.hint(files.hide(&self.hint)) }
    }
}

fn classify(parsed: Parsed, place: &Place) -> Result<Kind, Refused> {
    let inner = match parsed {
        Parsed::CreateExternalTable(table) => {
            return Ok(Kind::CreateTable(Box::new(UnresolvedTable::new(table, *place)?)));
        }
        Parsed::CopyTo(_) => {
            return refuse(
                "COPY is not part of a pipeline",
                "INSERT INTO a table declared with CREATE EXTERNAL TABLE … STORED AS PARQUET",
            );
        }
        Parsed::Explain(_) => return by_hand("EXPLAIN"),
        Parsed::Reset(_) => return refuse("RESET is not part of a pipeline", "leave out the SET instead"),
        Parsed::Statement(inner) => inner,
    };
    match inner.as_ref() {
        ast::Statement::CreateView(view) => {
            let name = view_name(view)?;
            Ok(Kind::CreateView { name, statement: Parsed::Statement(inner) })
        }
        ast::Statement::Insert(insert) => {
            let target = insert_target(insert)?;
            Ok(Kind::Insert { target, statement: Parsed::Statement(inner) })
        }
        ast::Statement::CreateSchema { schema_name, if_not_exists, .. } => match schema_name {
            SchemaName::Simple(name) if name.0.len() == 1 => {
                let name = Name::resolve(name)?;
                Ok(Kind::CreateSchema { name: name.table, if_not_exists: *if_not_exists })
            }
            _ => refuse("a schema has a name of one part and nothing else", "write CREATE SCHEMA name"),
        },
        ast::Statement::Set(set) => setting(set),
        other => refused(other),
    }
}

fn view_name(view: &ast::CreateView) -> Result<Name, Refused> {
    if view.or_replace || view.or_alter || view.if_not_exists {
        return refuse(
            "a view is made once: OR REPLACE, OR ALTER and IF NOT EXISTS have no meaning here",
            "write CREATE VIEW name AS …; to change a view, change this statement",
        );
    }
    if view.temporary {
        return refuse("a view lives as long as the pipeline and cannot be temporary", "leave out TEMPORARY");
    }
    if view.materialized || view.to.is_some() {
        return refuse(
            "a view is not stored",
            "write CREATE VIEW, and INSERT INTO a table SELECT * FROM it; counts over TUMBLE or HOP are kept anyway",
        );
    }
    Name::resolve(&view.name)
}

fn insert_target(insert: &ast::Insert) -> Result<Name, Refused> {
    if insert.overwrite || insert.replace_into || insert.or.is_some() || insert.ignore {
        return refuse(
            "INSERT only adds rows: it has no OVERWRITE, REPLACE or IGNORE",
            "give the table a PRIMARY KEY and OPTIONS ('on_conflict' 'update') or 'nothing'",
        );
    }
    if insert.on.is_some() {
        return refuse(
            "ON CONFLICT belongs to the table, since every INSERT into it must agree",
            "give the table a PRIMARY KEY and OPTIONS ('on_conflict' 'update') or 'nothing'",
        );
    }
    if insert.returning.is_some() || insert.output.is_some() {
        return refuse("INSERT returns nothing in a pipeline", "leave out RETURNING");
    }
    let plain = insert.partitioned.is_none() && insert.after_columns.is_empty() && insert.assignments.is_empty();
    let (TableObject::TableName(table), true) = (&insert.table, plain && insert.table_alias.is_none()) else {
        return refuse(
            "INSERT names a table and perhaps its columns, nothing else",
            "INSERT INTO t (a, b) SELECT a, b FROM …",
        );
    };
    match insert.source.as_deref().map(|query| query.body.as_ref()) {
        None => return refuse("INSERT has no SELECT", "INSERT INTO t SELECT … FROM …"),
        Some(SetExpr::Values(_)) => {
            return refuse(
                "INSERT … VALUES would add the same rows in every batch",
                "SELECT from a source; rows that a table must have from the start belong in migrations/",
            );
        }
        Some(_) => {}
    }
    Name::resolve(table)
}

fn setting(set: &ast::Set) -> Result<Kind, Refused> {
    let ast::Set::SingleAssignment { scope: None, hivevar: false, variable, values } = set else {
        return refuse("SET takes one key and one value", "SET poundlock.trigger = '1 second'");
    };
    let key = variable.0.iter().filter_map(|part| part.as_ident()).map(|ident| ident.value.to_lowercase());
    let key = key.collect::<Vec<_>>().join(".");
    match values.as_slice() {
        [value] => literal(value),
        _ => None,
    }
    .map_or_else(
        || refuse(format!("the value of {key} is not a literal"), format!("SET {key} = 'value'")),
        |value| Ok(Kind::Set { key: key.clone(), value }),
    )
}

fn literal(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(ident) => Some(ident.value.clone()),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Some(format!("-{}", literal(expr)?)),
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => Some(text.clone()),
            Value::EscapedStringLiteral(text) | Value::Number(text, _) => Some(text.clone()),
            Value::Boolean(value) => Some(value.to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn by_hand<T>(what: &str) -> Result<T, Refused> {
    refuse(format!("{what} is not part of a pipeline"), "run it by hand with `poundlock sql`")
}

fn refused<T>(statement: &ast::Statement) -> Result<T, Refused> {
    use ast::Statement as S;
    match statement {
        S::Query(_) => refuse(
            "a SELECT alone goes nowhere",
            "name it with CREATE VIEW … AS, send it with INSERT INTO …, or run it by hand with `poundlock sql`",
        ),
        S::CreateTable(table) if table.query.is_some() => refuse(
            "CREATE TABLE … AS is not part of a pipeline",
            "write CREATE VIEW … AS; an INSERT INTO … stores rows",
        ),
        S::CreateTable(_) => refuse(
            "a table is kept by another system, so it is declared as external",
            "CREATE EXTERNAL TABLE … STORED AS DATABASE LOCATION '…'; what the database itself runs belongs in migrations/",
        ),
        S::Update(_) | S::Delete(_) | S::Merge(_) | S::Truncate(_) => refuse(
            "rows are added, or replaced by key, never updated or deleted",
            "INSERT INTO a table with a PRIMARY KEY and OPTIONS ('on_conflict' 'update')",
        ),
        S::Drop { .. } | S::AlterTable(_) | S::AlterView { .. } => refuse(
            "the files say what there is: nothing is dropped or altered",
            "change or remove the statement that creates it; a database's own tables change in migrations/",
        ),
        S::CreateFunction(_) | S::CreateMacro { .. } => {
            refuse("functions cannot be defined in SQL", "write the expression into a view")
        }
        other => {
            let text = other.to_string();
            by_hand(text.split([' ', ';', '(']).next().unwrap_or("this statement"))
        }
    }
}

/// A name is made once. Which of two definitions its readers mean is not known.
fn refuse_second_definitions(files: &Files, script: &mut Script) {
    let mut seen: BTreeMap<String, Place> = BTreeMap::new();
    let Script { statements, errors, doubt } = script;
    statements.retain(|statement| {
        let what = match &statement.kind {
            Kind::CreateTable(table) => format!("table or view {}", table.name),
            Kind::CreateView { name, .. } => format!("table or view {name}"),
            Kind::CreateSchema { name, if_not_exists: false } => format!("schema {name}"),
            Kind::Set { key, .. } => format!("setting {key}"),
            Kind::CreateSchema { .. } | Kind::Insert { .. } => return true,
        };
        let Some(first) = seen.get(&what) else {
            seen.insert(what, statement.place);
            return true;
        };
        let part = if matches!(statement.kind, Kind::Set { .. }) { Part::SettingKey } else { Part::Name };
        let place = place_of(files, &statement.place, &part).unwrap_or(statement.place);
        let error = files.error_at(&place, format!("{what} is defined twice"));
        errors.push((statement.place, error.hint(format!("the first one is at {}", files.label(first)))));
        match &statement.kind {
            Kind::CreateTable(table) => doubt.add(table.name.clone()),
            Kind::CreateView { name, .. } => doubt.add(name.clone()),
            Kind::CreateSchema { .. } | Kind::Insert { .. } | Kind::Set { .. } => {}
        }
        false
    });
}

#[cfg(test)]
mod tests;
