//! Runs the statements of a text one after the other: `-c`, `-f` and each line of the prompt.

use std::io::Write;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::dialect::dialect_from_str;
use futures::{StreamExt, TryStreamExt};

use super::copy;
use super::gate::read_only;
use super::output::{Format, Written, write_batches};
use crate::sql::explain::{own, plain};
use crate::sql::syntax::{hinted, unreadable};
use crate::sql::text::tokenize;
use crate::sql::words::place_of_literal;
use crate::sql::{Files, Place, explain};
use crate::{Error, Result};

/// Record batches that wait to be printed.
const BATCHES_AHEAD: usize = 2;

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub format: Format,
    /// Rows of each query that are shown; see [`write_batches`] for the default.
    pub rows_max: Option<usize>,
    /// Statements that change something are run too.
    pub allow_writes: bool,
    /// Say on stderr how many rows there were, and how long they took.
    pub timing: bool,
}

/// Parses all statements first, and refuses all if one is refused; then runs them, each to its end. Returns whether
/// the reader of the output went away. `name` is what errors call the text: "-c", a file.
///
/// # Errors
/// A statement does not parse, may not run, cannot be planned, or fails. Those before it have run.
pub async fn execute(
    context: &SessionContext,
    name: &str,
    sql: &str,
    settings: Settings,
    out: &mut dyn Write,
) -> Result<bool> {
    let files = Files::verbatim(name, sql);
    let statements = parse(context, &files, sql)?;
    if !settings.allow_writes {
        let refused = statements.iter().filter_map(|statement| read_only(statement).err());
        if let Some(error) = Error::all(refused.collect()) {
            return Err(error);
        }
    }
    let places = files.statements(0);
    for (number, statement) in statements.into_iter().enumerate() {
        let begin = Instant::now();
        let place = places.get(number).copied().unwrap_or_else(|| files.place(0, 0..0));
        let text = Text { files: &files, place };
        let written = run(context, text, statement, settings, out).await?;
        if written.closed {
            return Ok(true);
        }
        note(written, settings, begin)?;
    }
    Ok(false)
}

/// All rows of one query of our own.
///
/// # Errors
/// It cannot be planned, or fails.
pub async fn query(context: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>> {
    let rows = context.sql_with_options(sql, only_reads()).await.map_err(failed)?;
    rows.collect().await.map_err(failed)
}

fn only_reads() -> SQLOptions {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false)
}

/// # Errors
/// The text is no SQL.
fn parse(context: &SessionContext, files: &Files, sql: &str) -> Result<Vec<Statement>> {
    let state = context.state();
    let options = &state.config().options().sql_parser;
    let dialect = dialect_from_str(options.dialect)
        .ok_or_else(|| Error::internal(format!("no SQL dialect {}, only {}", options.dialect, Dialect::available())))?;
    let parsed = DFParserBuilder::new(sql)
        .with_dialect(dialect.as_ref())
        .with_recursion_limit(options.recursion_limit.get())
        .build()
        .and_then(|mut parser| parser.parse_statements());
    match parsed {
        Ok(statements) => Ok(statements.into()),
        Err(error) => {
            let (tokens, ended) = tokenize(sql);
            let tokens: Vec<_> = tokens.into_iter().map(|(token, _)| token).collect();
            let explained = explained(context, Text { files, place: files.place(0, 0..0) }, &error);
            if explained.message().ends_with("found \\") {
                let hint = "a command as \\d stands alone: on a line of the prompt, or in a -c of its own";
                return Err(explained.hint(hint));
            }
            Err(match ended {
                Some(ended) => explained.with_hint(unreadable(&ended, &tokens).1),
                None => hinted(files, explained, &tokens, &error),
            })
        }
    }
}

/// What a statement was read from, and where it begins there.
#[derive(Clone, Copy)]
struct Text<'f> {
    files: &'f Files,
    place: Place,
}

/// At the place in the text that the error names; else at the statement's beginning.
fn explained(context: &SessionContext, text: Text, error: &DataFusionError) -> Error {
    Error::all(explain(text.files, error, &text.place, Some(&context.state())))
        .unwrap_or_else(|| Error::user("the statement cannot be planned").cause(plain(error)))
}

/// Of a query whose physical plan is made: what is wrong with its text is told as such.
fn unplanned(context: &SessionContext, text: Text, error: DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::NotImplemented(_) => {
            explained(context, text, &error)
        }
        _ => failed(error),
    }
}

/// Of a query that runs: our own error, if that is what stopped it.
pub(super) fn failed(error: DataFusionError) -> Error {
    match own(error) {
        Ok(error) => error,
        Err(error) => Error::user("the query failed").cause(plain(&error)),
    }
}

async fn run(
    context: &SessionContext,
    text: Text<'_>,
    statement: Statement,
    settings: Settings,
    out: &mut dyn Write,
) -> Result<Written> {
    let plan = context.state().statement_to_plan(statement).await;
    let plan = plan.map_err(|error| explained(context, text, &error))?;
    // EXPLAIN without ANALYZE shows the plan of any statement and runs none.
    if !settings.allow_writes && !matches!(plan, LogicalPlan::Explain(_)) {
        let verified = only_reads().verify_plan(&plan);
        verified.map_err(|cause| Error::user("this session only reads").cause(plain(&cause)))?;
    }
    let unplanned = |error| unplanned(context, text, error);
    let (plan, copy) = match copy::target(&plan)? {
        None => (plan, None),
        Some(target) => {
            let begun = copy::begin(plan, &target, context).await.map_err(|error| {
                let place = place_of_literal(text.files, &text.place, &target).unwrap_or(text.place);
                error.snippet(text.files.snippet(&place))
            });
            begun.map(|(plan, copy)| (plan, Some(copy)))?
        }
    };
    let rows = context.execute_logical_plan(plan).await.map_err(unplanned)?;
    let stream = on_a_task(rows.execute_stream().await.map_err(unplanned)?);
    let Some(copy) = copy else { return write_batches(out, stream, settings.format, settings.rows_max).await };
    // How many rows there were is told when they are where they should be.
    let schema = stream.schema();
    match stream.try_collect::<Vec<_>>().await {
        Ok(rows) => {
            copy.finish()?;
            write_batches(out, stream_of(rows, schema)?, settings.format, settings.rows_max).await
        }
        Err(error) => Err(copy.failure().unwrap_or_else(|| failed(error))),
    }
}

/// Rows that are there already.
///
/// # Errors
/// They are not of the schema.
pub(super) fn stream_of(rows: Vec<RecordBatch>, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
    Ok(Box::pin(MemoryStream::try_new(rows, schema, None)?))
}

/// A join can compute for minutes without a pause: on a task of its own it keeps nobody from dropping it (Ctrl-C), and
/// it ends at its next pause.
fn on_a_task(mut stream: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let mut builder = RecordBatchReceiverStream::builder(stream.schema(), BATCHES_AHEAD);
    let batches = builder.tx();
    builder.spawn(async move {
        while let Some(batch) = stream.next().await {
            if batches.send(batch).await.is_err() {
                break; // enough rows
            }
        }
        Ok(())
    });
    builder.build()
}

fn note(written: Written, settings: Settings, begin: Instant) -> Result<()> {
    let mut text = String::new();
    if written.more {
        text = format!("only the first {} rows are shown; add LIMIT, or ask for CSV or JSON\n", written.rows);
    }
    if settings.timing {
        let plural = if written.rows == 1 { "" } else { "s" };
        text += &format!("{} row{plural}, {:.3} s\n", written.rows, begin.elapsed().as_secs_f64());
    }
    std::io::stderr()
        .write_all(text.as_bytes())
        .map_err(|cause| Error::external("could not write to stderr").cause(cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READS: Settings = Settings { format: Format::Csv, rows_max: None, allow_writes: false, timing: false };

    async fn run(context: &SessionContext, sql: &str, settings: Settings) -> Result<String> {
        let mut out = vec![];
        execute(context, "-c", sql, settings, &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn statements_in_order() {
        let context = SessionContext::new();
        assert_eq!(run(&context, "SELECT 1 AS a; SELECT 2 AS b;", READS).await.unwrap(), "a\n1\nb\n2\n");
        assert_eq!(run(&context, " ; -- nothing\n", READS).await.unwrap(), "");
        let error = run(&context, "SELECT 1 AS a; SELEKT 1", READS).await.unwrap_err().to_string();
        assert!(error.contains("-c:1:16") && error.contains("hint: did you mean SELECT?"), "{error}");
        let error = run(&context, "SELECT 'a", READS).await.unwrap_err().to_string();
        assert!(error.contains("-c:1:8") && error.contains("hint: close it with '"), "{error}");
        let error = run(&context, "SELECT 1; \\d t", READS).await.unwrap_err().to_string();
        assert!(error.contains("-c:1:11") && error.contains("hint: a command as \\d stands alone"), "{error}");
        let error = run(&context, "SELECT * FROM missing", READS).await.unwrap_err();
        assert_eq!(error.fault(), crate::Fault::User);
        assert!(error.to_string().contains("-c:1:15"), "{error}");
    }

    #[tokio::test]
    async fn what_is_found_late_is_told_at_its_place_too() {
        let settings = crate::sql::settings::defaults().unwrap();
        let values = crate::sql::functions::BatchValues::Fixed { watermark: None };
        let context = crate::sql::session::session(Default::default(), &settings, values).unwrap();
        let views = "CREATE TABLE t AS SELECT TIMESTAMP '2026-01-01' AS at;
            CREATE VIEW w AS SELECT window_start, count(*) AS n FROM TUMBLE(t, at, INTERVAL '1 minute')
            GROUP BY window_start, window_end";
        run(&context, views, Settings { allow_writes: true, ..READS }).await.unwrap();
        let error = run(&context, "SELECT 1;\nSELECT * FROM LATE(w)", READS).await.unwrap_err();
        insta::assert_snapshot!(error.to_string(), @r"
        'LATE' has a meaning only inside a pipeline
          -c:2:15
           2 | SELECT * FROM LATE(w)
             |               ^^^^
        hint: read it in an INSERT INTO … SELECT of the files
        ");
        let error = run(&context, "SELECT at FROM t;\nSELECT upper(at, 1) FROM t", READS).await.unwrap_err();
        assert!(error.to_string().contains("-c:2:8"), "{error}");
    }

    #[tokio::test]
    async fn nothing_runs_if_one_is_refused() {
        let context = SessionContext::new();
        let mut out = vec![];
        let sql = "SELECT 1; CREATE VIEW v AS SELECT 1; DROP TABLE t";
        let error = execute(&context, "-c", sql, READS, &mut out).await.unwrap_err().to_string();
        assert!(error.contains("CREATE is not a query") && error.contains("DROP is not a query"), "{error}");
        assert!(out.is_empty());
        let writes = Settings { allow_writes: true, ..READS };
        run(&context, "CREATE TABLE t AS SELECT 1 AS a", writes).await.unwrap();
        assert_eq!(run(&context, "INSERT INTO t VALUES (2)", writes).await.unwrap(), "count\n1\n");
        assert_eq!(run(&context, "SELECT count(*) AS n FROM t", READS).await.unwrap(), "n\n2\n");
        assert!(run(&context, "EXPLAIN INSERT INTO t VALUES (2)", READS).await.unwrap().contains("logical_plan"));
        assert!(run(&context, "EXPLAIN ANALYZE INSERT INTO t VALUES (2)", READS).await.is_err());
        assert!(run(&context, "EXPLAIN ANALYZE SELECT * FROM t", READS).await.unwrap().contains("Plan with Metrics"));
        assert_eq!(run(&context, "SELECT count(*) AS n FROM t", READS).await.unwrap(), "n\n2\n");
    }
}
