//! Which statements the shell may run: those that only read, unless the user allows the others.
//!
//! A list of what is allowed, so that a statement that a later parser learns is refused until somebody has looked at
//! it. `execute` checks the plan once more, by what it does rather than by what it is called.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Query, SetExpr, Statement as SqlStatement, Visit, Visitor};

use crate::{Error, Result};

/// # Errors
/// The statement could change something: a table, a file, the session. `EXPLAIN` of such a statement only plans it and
/// is allowed; `EXPLAIN ANALYZE` would run it.
pub fn read_only(statement: &Statement) -> Result<()> {
    match statement {
        Statement::Statement(statement) => sql_read_only(statement),
        Statement::Explain(explain) if explain.options.analyze => read_only(&explain.statement),
        Statement::Explain(_) => Ok(()),
        Statement::CreateExternalTable(_) => Err(refused("CREATE EXTERNAL TABLE")),
        Statement::CopyTo(_) => Err(refused("COPY")),
        Statement::Reset(_) => Err(refused("RESET")),
    }
}

fn sql_read_only(statement: &SqlStatement) -> Result<()> {
    match statement {
        SqlStatement::Query(query) => match query.visit(&mut Writes) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(verb) => Err(refused(verb)),
        },
        SqlStatement::ExplainTable { .. }
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowCreate { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowVariable { .. }
        | SqlStatement::ShowVariables { .. }
        | SqlStatement::ShowSchemas { .. }
        | SqlStatement::ShowDatabases { .. }
        | SqlStatement::ShowViews { .. } => Ok(()),
        other => {
            let text = other.to_string();
            Err(refused(text.split_whitespace().next().unwrap_or("the statement")))
        }
    }
}

fn refused(verb: &str) -> Error {
    Error::user(format!("{verb} is not a query, and this session only reads")).hint(
        "the pipeline's tables are written by the pipeline only. --allow-writes is for statements that change this \
             session or write files: SET, CREATE VIEW, COPY … TO",
    )
}

/// Finds what writes inside a query: `WITH x AS (INSERT …) SELECT …`, `SELECT … INTO t`.
struct Writes;

impl Visitor for Writes {
    type Break = &'static str;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Self::Break> {
        body(&query.body)
    }
}

fn body(expression: &SetExpr) -> ControlFlow<&'static str> {
    match expression {
        SetExpr::Select(select) if select.into.is_some() => ControlFlow::Break("SELECT INTO"),
        // A nested query is visited by itself.
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) | SetExpr::Table(_) => ControlFlow::Continue(()),
        SetExpr::SetOperation { left, right, .. } => {
            body(left)?;
            body(right)
        }
        SetExpr::Insert(_) => ControlFlow::Break("INSERT"),
        SetExpr::Update(_) => ControlFlow::Break("UPDATE"),
        SetExpr::Delete(_) => ControlFlow::Break("DELETE"),
        SetExpr::Merge(_) => ControlFlow::Break("MERGE"),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParser;

    use super::*;

    fn gate(sql: &str) -> Result<()> {
        let statements = DFParser::parse_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(statements.len(), 1, "{sql}");
        read_only(&statements[0])
    }

    #[test]
    fn what_only_reads() {
        for sql in [
            "SELECT 1",
            "WITH a AS (SELECT 1) SELECT * FROM a UNION ALL (SELECT 2) ORDER BY 1 LIMIT 3",
            "VALUES (1), (2)",
            "SELECT 'DROP TABLE t; INSERT'",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT 1",
            "EXPLAIN INSERT INTO t SELECT 1",
            "DESCRIBE t",
            "SHOW TABLES",
            "SHOW COLUMNS FROM t",
            "SHOW ALL",
            "SHOW datafusion.execution.batch_size",
            "SHOW FUNCTIONS",
            "SHOW CREATE TABLE t",
        ] {
            assert!(gate(sql).is_ok(), "{sql}");
        }
    }

    #[test]
    fn what_could_change_something() {
        for (sql, verb) in [
            ("INSERT INTO t SELECT 1", "INSERT"),
            ("INSERT OVERWRITE t SELECT 1", "INSERT"),
            ("UPDATE t SET a = 1", "UPDATE"),
            ("DELETE FROM t", "DELETE"),
            ("TRUNCATE TABLE t", "TRUNCATE"),
            ("COPY t TO '/tmp/x.csv'", "COPY"),
            ("CREATE TABLE t AS SELECT 1", "CREATE"),
            ("CREATE VIEW v AS SELECT 1", "CREATE"),
            ("CREATE SCHEMA s", "CREATE"),
            ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", "CREATE EXTERNAL TABLE"),
            ("CREATE FUNCTION f() RETURNS INT RETURN 1", "CREATE"),
            ("DROP TABLE t", "DROP"),
            ("DROP VIEW v", "DROP"),
            ("ALTER TABLE t ADD COLUMN a INT", "ALTER"),
            ("SET datafusion.execution.batch_size = 1", "SET"),
            ("RESET datafusion.execution.batch_size", "RESET"),
            ("BEGIN", "BEGIN"),
            ("COMMIT", "COMMIT"),
            ("PREPARE p AS SELECT 1", "PREPARE"),
            ("EXECUTE p", "EXECUTE"),
            ("USE s", "USE"),
            ("EXPLAIN ANALYZE INSERT INTO t SELECT 1", "INSERT"),
            ("EXPLAIN ANALYZE COPY t TO '/tmp/x.csv'", "COPY"),
            ("SELECT 1 INTO t", "SELECT INTO"),
            ("SELECT * FROM (SELECT 1 INTO t)", "SELECT INTO"),
            ("SELECT 1 UNION ALL SELECT 2 INTO t", "SELECT INTO"),
            ("WITH a AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM a", "INSERT"),
            ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "INSERT"),
            ("WITH a AS (SELECT 1) DELETE FROM t", "DELETE"),
        ] {
            let error = gate(sql).err().unwrap_or_else(|| panic!("{sql} was let through"));
            assert_eq!(error.message(), format!("{verb} is not a query, and this session only reads"), "{sql}");
            assert!(error.to_string().contains("--allow-writes"));
        }
    }
}
