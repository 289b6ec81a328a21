//! Names that a statement which failed may have declared: what reads them cannot be judged.
//!
//! All errors of all files are told at once. But of a view that does not parse it would be no second mistake that each
//! of its readers finds no such table. So its name is *in doubt*: a statement that reads it is not planned, and what
//! that one declares is in doubt in turn.
//!
//! Which names a text declares that is no SQL is a guess, and errs towards silence: a name too many hides an error until
//! the next run, one too few tells of a mistake that nobody made.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Query, Statement as SqlStatement, TableFactor, Visit,
    Visitor,
};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan, Word};

use super::nearest;
use super::statement::{Name, Parsed, normalize};

/// A declaration begins with one of these, misspelled perhaps.
const BEGINNINGS: &[&str] = &["CREATE", "UNBOUNDED", "EXTERNAL", "TABLE", "VIEW", "SCHEMA"];

#[derive(Debug, Clone, Default)]
pub struct Doubt {
    names: BTreeSet<Name>,
    /// A whole file could not be read.
    anything: bool,
}

impl Doubt {
    pub fn add(&mut self, name: Name) {
        self.names.insert(name);
    }

    pub fn add_anything(&mut self) {
        self.anything = true;
    }

    /// What a statement that does not parse may have declared.
    pub fn add_declared(&mut self, tokens: &[TokenWithSpan]) {
        self.names.extend(declared(tokens));
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.anything
    }

    /// Whether a table or view of this name may be what a failed statement declared; `known`: there is one.
    pub fn covers(&self, name: &Name, known: bool) -> bool {
        self.names.contains(name) || (self.anything && !known)
    }

    pub fn covers_schema(&self, schema: &str) -> bool {
        // A name of one part: it was not known what is declared.
        self.covers(&Name { schema: "public".into(), table: schema.to_string() }, false)
    }

    /// Whether the query of a view or INSERT reads a name in doubt.
    pub fn covers_any_of(&self, parsed: &Parsed, is_known: impl Fn(&Name) -> bool) -> bool {
        let query = match parsed {
            Parsed::Statement(statement) => match statement.as_ref() {
                SqlStatement::CreateView(view) => Some(&view.query),
                SqlStatement::Insert(insert) => insert.source.as_ref(),
                _ => None,
            },
            _ => None,
        };
        let mut reader = Reader { covers: |name: &Name| self.covers(name, is_known(name)), named: BTreeSet::new() };
        query.is_some_and(|query| query.visit(&mut reader).is_break())
    }
}

/// Breaks at the first relation that is covered.
struct Reader<F> {
    covers: F,
    /// Common table expressions.
    named: BTreeSet<String>,
}

impl<F: Fn(&Name) -> bool> Reader<F> {
    fn look(&self, relation: &ObjectName) -> ControlFlow<()> {
        match Name::resolve(relation) {
            Ok(name) if relation.0.len() == 1 && self.named.contains(&name.table) => ControlFlow::Continue(()),
            Ok(name) if (self.covers)(&name) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl<F: Fn(&Name) -> bool> Visitor for Reader<F> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let named = query.with.iter().flat_map(|with| &with.cte_tables);
        self.named.extend(named.map(|table| normalize(&table.alias.name)));
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { name, args, .. } = factor else { return ControlFlow::Continue(()) };
        // What TUMBLE, HOP and LATE read is their first argument.
        match args.as_ref().map(|args: &ast::TableFunctionArgs| args.args.first()) {
            None => self.look(name),
            Some(Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(part))))) => {
                self.look(&ObjectName::from(vec![part.clone()]))
            }
            Some(Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::CompoundIdentifier(parts))))) => {
                self.look(&ObjectName::from(parts.clone()))
            }
            Some(_) => ControlFlow::Continue(()),
        }
    }
}

/// The names between the beginning of each declaration (a lost `;` leaves several in one statement) and its columns or
/// its query.
fn declared(tokens: &[TokenWithSpan]) -> Vec<Name> {
    let mut names = vec![];
    let mut declaring = false;
    let mut parts: Vec<String> = vec![];
    let mut joined = false;
    for (position, token) in tokens.iter().enumerate() {
        let is_next_part = std::mem::take(&mut joined);
        match &token.token {
            Token::Word(word) if begins(word, position) => {
                names.extend(name(&mut parts));
                declaring = true;
            }
            Token::Word(word) if declaring && !matches!(word.keyword, Keyword::AS | Keyword::SELECT) => {
                if !is_next_part {
                    names.extend(name(&mut parts));
                }
                let ident = Ident { value: word.value.clone(), quote_style: word.quote_style, span: token.span };
                parts.push(normalize(&ident));
            }
            Token::Period => joined = true,
            _ => {
                names.extend(name(&mut parts));
                declaring = false;
            }
        }
    }
    names.extend(name(&mut parts));
    names
}

fn begins(word: &Word, position: usize) -> bool {
    word.keyword == Keyword::CREATE || (position == 0 && nearest(&word.value, BEGINNINGS.iter().copied()).is_some())
}

fn name(parts: &mut Vec<String>) -> Option<Name> {
    match std::mem::take(parts).as_slice() {
        [table] => Some(Name { schema: "public".into(), table: table.clone() }),
        [schema, table] => Some(Name { schema: schema.clone(), table: table.clone() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use sqlparser::dialect::GenericDialect;
    use sqlparser::tokenizer::Tokenizer;

    use super::*;
    use crate::sql::statement::{Kind, parse};
    use crate::sql::text::Files;

    fn doubt(failed: &str) -> Doubt {
        let tokens = Tokenizer::new(&GenericDialect {}, failed).tokenize_with_location().unwrap();
        let tokens: Vec<_> = tokens.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect();
        let mut doubt = Doubt::default();
        doubt.add_declared(&tokens);
        doubt
    }

    fn of(name: &str) -> Name {
        let (schema, table) = name.split_once('.').unwrap_or(("public", name));
        Name { schema: schema.into(), table: table.into() }
    }

    #[test]
    fn a_broken_declaration_puts_its_name_in_doubt() {
        for (failed, declared) in [
            ("CREATE UNBOUNDED EXTERNAL TABLE kafka.Events (id BIGINT,, x INT) STORED AS KAFKA", "kafka.events"),
            ("CREATE EXTERNAL TABEL db.\"Out\" (id BIGINT)", "db.Out"),
            ("CREAT VIEW valid AS SELECT 1", "valid"),
            ("VIEW valid AS SELECT 1", "valid"),
            ("CREATE VIEW valid SELECT * FROM events", "valid"),
            ("CREATE OR REPLACE VIEW valid AS SELECT 1", "valid"),
            ("INSERT INTO out SELECT 1 CREATE VIEW valid AS SELECT 1", "valid"),
        ] {
            let doubt = doubt(failed);
            assert!(doubt.covers(&of(declared), true), "{failed}: {doubt:?}");
            assert!(!doubt.covers(&of("events"), false) && !doubt.covers(&of("out"), false), "{failed}: {doubt:?}");
        }
        assert!(doubt("CREATE SHEMA db").covers_schema("db"));
        for failed in ["INSERT INTO out SELEKT * FROM events", "SELECT 1 FROM events", "SET a.b = now()", "DROP VIEW v"]
        {
            assert!(doubt(failed).is_empty(), "{failed}");
        }
    }

    #[test]
    fn a_query_is_in_doubt_if_any_relation_of_it_is() {
        let reads = |doubt: &Doubt, query: &str, known: &[&str]| {
            let files = Files::verbatim("a.sql", &format!("CREATE VIEW seen AS {query}"));
            let (statements, errors) = parse(&files).into_parts();
            let [super::super::Statement { kind: Kind::CreateView { statement, .. }, .. }] = statements.as_slice()
            else {
                panic!("{errors:?}")
            };
            doubt.covers_any_of(statement, |name| known.iter().any(|known| of(known) == *name))
        };
        let events = doubt("CREATE VIEW events AS");
        for query in [
            "SELECT 1 FROM a JOIN Events ON true",
            "SELECT 1 FROM a WHERE x IN (SELECT y FROM public.events)",
            "SELECT count(*) FROM TUMBLE(events, ts, INTERVAL '1 minute')",
            "WITH b AS (SELECT * FROM LATE(public.events)) SELECT * FROM b",
        ] {
            assert!(reads(&events, query, &["a", "events"]), "{query}");
        }
        assert!(!reads(&events, "SELECT events.x, 'events' FROM db.events AS events", &[]));
        let mut anything = Doubt::default();
        anything.add_anything();
        let query = "WITH c AS (SELECT * FROM TUMBLE(a, ts, INTERVAL '1 minute')) SELECT * FROM c";
        assert!(reads(&anything, query, &[]) && !reads(&anything, query, &["a"]));
    }
}
