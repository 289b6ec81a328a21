use super::*;
use crate::sql::statement::{Kind, parse};
use crate::sql::types::MicrosecondTypes;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use std::sync::Arc;

fn context() -> SessionContext {
    let config = SessionConfig::new().set_bool("datafusion.sql_parser.collect_spans", true);
    let state = SessionStateBuilder::new().with_default_features().with_config(config);
    SessionContext::new_with_state(state.with_type_planner(Arc::new(MicrosecondTypes)).build())
}

/// Plans and optimizes the statements in order, as a program does; all errors, as shown.
async fn planned(sources: &[(&str, &str)]) -> String {
    let sources = sources.iter().map(|(name, text)| ((*name).to_string(), (*text).to_string())).collect();
    let files = Files::from_stored(sources, &|_| Ok(Some("${secret} value".into())));
    let context = context();
    context.sql("CREATE TABLE events (window_start TIMESTAMP, user_id BIGINT, name VARCHAR)").await.unwrap();
    let (statements, mut errors) = parse(&files).into_parts();
    for statement in statements {
        let (Kind::CreateView { statement: parsed, .. } | Kind::Insert { statement: parsed, .. }) = statement.kind
        else {
            panic!()
        };
        let planned = match context.state().statement_to_plan(parsed).await {
            Ok(plan) => {
                context.execute_logical_plan(plan).await.and_then(|frame| frame.into_optimized_plan()).map(|_| ())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = planned {
            errors.append(&mut explain(&files, &error, &statement.place, Some(&context.state())));
        }
    }
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

async fn one(source: &str) -> String {
    planned(&[("a.sql", source)]).await
}

/// Place, message and hint, on one line each.
async fn short(sources: &[&str]) -> String {
    let mut lines = vec![];
    for source in sources {
        let shown = one(source).await;
        let part = |begin: &str| shown.lines().find_map(|line| line.strip_prefix(begin)).unwrap_or("").to_string();
        let first = shown.lines().next().unwrap_or("no error");
        lines.push(format!("{} {first} | {}", part("  a.sql:"), part("hint: ")).trim_end().to_string());
    }
    lines.join("\n")
}

#[tokio::test]
async fn a_statement_may_have_several_errors() {
    let shown = one("CREATE VIEW v AS\nSELECT '${A}', windw_start, nam\nFROM events").await;
    insta::assert_snapshot!(shown, @r"
    column 'windw_start' not found
      a.sql:2:16
       2 | SELECT '${A}', windw_start, nam
         |                ^^^^^^^^^^^
    hint: did you mean events.window_start?

    column 'nam' not found
      a.sql:2:29
       2 | SELECT '${A}', windw_start, nam
         |                             ^^^
    hint: did you mean events.name?
    ");
}

#[tokio::test]
async fn near_misses_become_hints() {
    let shown = short(&[
        "CREATE VIEW v AS SELECT * FROM evnts",
        "CREATE VIEW v AS SELECT * FROM kafka.events",
        "CREATE VIEW v AS SELECT cuont(*) FROM events",
        "CREATE VIEW v AS SELECT something_else(name) FROM events",
        "CREATE VIEW v AS SELECT e.user_idd FROM events e",
        "INSERT INTO events (usr_id) SELECT 1",
    ]);
    insta::assert_snapshot!(shown.await, @r"
    1:32 table 'evnts' not found | did you mean events?
    1:32 table 'kafka.events' not found |
    1:25 invalid function 'cuont' | did you mean count?
    1:25 invalid function 'something_else' |
    1:25 column 'user_idd' not found in 'e' | did you mean e.user_id?
    1:21 column 'usr_id' not found | did you mean 'user_id'? Valid fields are window_start, user_id, name
    ");
}

#[tokio::test]
async fn what_the_statement_tells_becomes_a_hint() {
    let shown = short(&[
        "CREATE VIEW v AS SELECT 1 FROM events WHERE name = purchase",
        "CREATE VIEW v AS SELECT 1 FROM events WHERE name = \"purchase\"",
        "CREATE VIEW v AS SELECT 1 FROM events WHERE name LIKE purchase",
        "CREATE VIEW v AS SELECT 1 FROM events WHERE name IN (purchase, cart)",
        "CREATE VIEW v AS SELECT 1 FROM events WHERE name = nmae",
        "CREATE VIEW v AS SELECT purchase FROM events",
        "CREATE VIEW v AS SELECT sum(user_id) OVER ww FROM events",
        "CREATE VIEW v AS SELECT sum(user_id) OVER ww FROM events WINDOW w AS (PARTITION BY name)",
    ]);
    insta::assert_snapshot!(shown.await, @r"
    1:52 column 'purchase' not found | if it is a text, write it in single quotes: 'purchase'
    1:52 column 'purchase' not found | if it is a text, write it in single quotes: 'purchase'
    1:55 column 'purchase' not found | if it is a text, write it in single quotes: 'purchase'
    1:54 column 'purchase' not found | if it is a text, write it in single quotes: 'purchase'
    1:52 column 'nmae' not found | did you mean events.name?
    1:25 column 'purchase' not found |
    1:43 window 'ww' is not defined | define it behind FROM and WHERE: WINDOW ww AS (PARTITION BY …); or write OVER (…)
    1:43 window 'ww' is not defined | did you mean w?
    ");
    let key = "type 'KEY' is not supported. Did you mean PRIMARY KEY (…)?";
    assert_eq!(reworded("Unsupported SQL type KEY(a)"), key);
}

#[tokio::test]
async fn errors_of_every_kind_are_shown() {
    let shown = short(&[
        "CREATE VIEW v AS SELECT user_id, name, count(*) FROM events GROUP BY user_id",
        "CREATE VIEW v AS SELECT 1 UNION SELECT 1, 2",
        "CREATE VIEW v AS SELECT upper(1, 2) FROM events",
        "CREATE VIEW v AS SELECT user_id + true FROM events",
        "CREATE VIEW v AS SELECT 1 FROM events a JOIN events b ON a.user_id = b.user_id WHERE name = 'x'",
        "CREATE VIEW v AS SELECT * FROM events WHERE name",
        "CREATE VIEW v AS SELECT CAST(name AS TIMESTAMP(9)) FROM events",
        "INSERT INTO events SELECT 1",
        "CREATE VIEW v AS SELECT 1 AS a, 2 AS a FROM events",
        "CREATE VIEW v AS SELECT (SELECT user_id, name FROM events)",
        "INSERT INTO events (user_id) SELECT CAST('x' AS INT) FROM events",
        "CREATE VIEW v AS\n SELECT nested.field.x FROM events",
    ]);
    insta::assert_snapshot!(shown.await, @r"
    1:34 'events.name' must appear in GROUP BY clause because it's not an aggregate expression | either add 'events.name' to GROUP BY clause, or use an aggregate function like ANY_VALUE(events.name)
    1:18 UNION queries have different number of columns | SELECT 1 has 1 fields; SELECT 1, 2 has 2 fields
    1:25 function 'upper' expects 1 arguments but received 2 | no function matches the given name and argument types 'upper(Int64, Int64)'. You might need to add explicit type casts. Candidate functions: upper(String)
    1:25 expressions have incompatible types | user_id has type Int64; the other side has type Boolean
    1:86 column 'name' is ambiguous | did you mean a.name or b.name?
    1:45 cannot create filter with non-boolean predicate 'events.name' returning Utf8View |
    1:38 type 'TIMESTAMP(9)' is finer than a microsecond | use TIMESTAMP or TIMESTAMP(6)
    1:1 column count doesn't match insert query |
    1:1 columns 1 and 2 of the SELECT have the same name, 'a' | name one of them with AS
    1:1 too many columns | select only one column in the subquery
    1:42 cannot cast string 'x' to value of Int32 type |
    2:9 column 'x' not found in 'nested.field' |
    ");
}

/// DataFusion wraps an error in what it was doing, by the names of its rules.
#[tokio::test]
async fn no_name_of_the_inside_gets_through() {
    let context = context();
    context.sql("CREATE TABLE events (user_id BIGINT, name VARCHAR)").await.unwrap();
    let mut shown = vec![];
    for sql in [
        "SELECT * FROM events WHERE name",
        "SELECT CAST('x' AS INT) FROM events",
        "SELECT upper(1, 2) FROM events",
        "SELECT user_id FROM events WHERE user_id IN (SELECT user_id, name FROM events)",
        "SELECT sum(name) FROM events",
        "SELECT 1 / 0",
        "SELECT name + INTERVAL '1 day' FROM events",
        "SELECT * FROM events LIMIT 'x'",
        "SELECT CAST(name AS BIGNT) FROM events",
        "SELECT *, name FROM events",
        "SELECT * FROM TUMBEL(events, 1)",
        "SELECT user_id FROM events a JOIN events b ON a.name = b.user_idd",
    ] {
        let planned = match context.sql(sql).await {
            Ok(frame) => frame.collect().await.map(drop),
            Err(error) => Err(error),
        };
        let error = planned.expect_err(sql);
        let wrapped = error.context("type_coercion").context("Optimizer rule 'simplify_expressions' failed");
        let whole = plain(&wrapped);
        for inside in
            ["rule", "type_coercion", "simplify", "caused by", "rror: ", "Error during planning", "datafusion"]
        {
            assert!(!whole.contains(inside), "{sql}: {whole}");
        }
        shown.push(whole);
    }
    insta::assert_snapshot!(shown.join("\n"), @r"
    cannot create filter with non-boolean predicate 'events.name' returning Utf8View
    cannot cast string 'x' to value of Int32 type
    function 'upper' expects 1 arguments but received 2. No function matches the given name and argument types 'upper(Int64, Int64)'. You might need to add explicit type casts.
    	Candidate functions:
    	upper(String)
    too many columns! The subquery should only return one column: events.user_id, events.name
    function 'sum' failed to match any signature. No function matches the given name and argument types 'sum(Utf8View)'. You might need to add explicit type casts.
    	Candidate functions:
    	sum(Decimal)
    	sum(UInt64)
    	sum(Int64)
    	sum(Float64)
    	sum(Duration)
    	sum(Interval)
    divide by zero error
    cannot coerce arithmetic expression Utf8View + Interval(MonthDayNano) to valid types
    expected LIMIT to be an integer or null, but got Utf8
    type 'BIGNT' is not supported. Did you mean BIGINT? There are: BIGINT, INT, INTEGER, SMALLINT, TINYINT, DOUBLE, REAL, DECIMAL, BOOLEAN, VARCHAR, TEXT, STRING, BYTEA, DATE, TIMESTAMP, TIMESTAMPTZ, JSON, UUID, ARRAY, STRUCT, MAP
    columns 2 and 3 of the SELECT have the same name, 'name'. Name one of them with AS
    table function 'TUMBEL' not found. Did you mean TUMBLE?
    column 'user_idd' not found. Did you mean 'b.user_id'?
    Valid fields are a.user_id, a.name, b.user_id, b.name
    ");
}

#[tokio::test]
async fn an_error_is_in_the_file_that_it_came_from() {
    // Line 1 of the second file, though line 1 of the first is longer.
    let shown = planned(&[
        ("a.sql", "CREATE VIEW v AS SELECT user_id AS long_enough_to_hold_any_column FROM events"),
        ("b.sql", "CREATE VIEW w AS SELECT user_id FROM v;\nCREATE VIEW x AS SELECT y FROM v"),
    ])
    .await;
    assert!(shown.contains("b.sql:1:25") && shown.contains("b.sql:2:25"), "{shown}");
}

#[tokio::test]
async fn casts_are_microseconds() {
    let context = context();
    let frame =
        context.sql("SELECT CAST('2026-01-01' AS TIMESTAMP), TIMESTAMP '2026-01-02', '2026-01-03'::TIMESTAMPTZ").await;
    let types: Vec<_> = frame.unwrap().schema().fields().iter().map(|field| field.data_type().clone()).collect();
    let plain = DataType::Timestamp(TimeUnit::Microsecond, None);
    assert_eq!(types, [plain.clone(), plain, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))]);
}

#[test]
fn the_nearest_is_near() {
    assert_eq!(nearest("triger", ["trigger", "name"]), Some("trigger"));
    assert_eq!(nearest("KAFKAA", ["KAFKA", "CSV"]), Some("KAFKA"));
    assert_eq!(nearest("entirely", ["trigger", "name"]), None);
    assert_eq!(nearest("m", ["k", "n"]), None);
}
