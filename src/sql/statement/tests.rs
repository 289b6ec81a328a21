use super::*;

fn files(sources: &[(&str, &str)]) -> Files {
    let sources = sources.iter().map(|(name, text)| ((*name).to_string(), (*text).to_string())).collect();
    Files::from_stored(sources, &|_| Ok(None))
}

fn parsed(source: &str) -> Vec<Statement> {
    let (statements, errors) = parse(&files(&[("a.sql", source)])).into_parts();
    assert!(errors.is_empty(), "{errors:?}");
    statements
}

/// All errors, as shown.
fn errors(source: &str) -> String {
    let (_, errors) = parse(&files(&[("a.sql", source)])).into_parts();
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

#[test]
fn statements_have_places_and_texts() {
    let statements = parsed(
        "-- a comment\nSET poundlock.trigger = '1 second';;\n\nCREATE SCHEMA IF NOT EXISTS Lake; CREATE VIEW v AS\nSELECT 1 -- ;\n;\
         INSERT INTO \"Db\".t (a) SELECT * FROM v",
    );
    let places: Vec<_> = statements.iter().map(|s| (s.place.line, s.place.column, s.place.len)).collect();
    assert_eq!(places, [(2, 1, 34), (4, 1, 32), (4, 35, 16), (6, 2, 38)]);
    assert_eq!(statements[2].text, "CREATE VIEW v AS\nSELECT 1");
    assert!(
        matches!(&statements[0].kind, Kind::Set { key, value } if key == "poundlock.trigger" && value == "1 second")
    );
    assert!(matches!(&statements[1].kind, Kind::CreateSchema { name, if_not_exists: true } if name == "lake"));
    assert!(matches!(&statements[2].kind, Kind::CreateView { name, .. } if name.to_string() == "public.v"));
    assert!(matches!(&statements[3].kind, Kind::Insert { target, .. } if target.to_string() == "Db.t"));
}

#[test]
fn settings_take_literals() {
    for (sql, expected) in [
        ("SET a.B = 'x'", "x"),
        ("SET a.b TO 5", "5"),
        ("SET a.b = -5", "-5"),
        ("SET a.b = true", "true"),
        ("SET a.b = word", "word"),
        ("SET a.b = 1.5", "1.5"),
    ] {
        let Kind::Set { key, value } = parsed(sql).remove(0).kind else { panic!("{sql}") };
        assert_eq!((key.as_str(), value.as_str()), ("a.b", expected), "{sql}");
    }
    assert!(errors("SET a.b = 1 + 1").contains("the value of a.b is not a literal"));
    assert!(errors("SET a.b = 1, 2").contains("the value of a.b is not a literal"));
    assert!(errors("SET TIME ZONE 'UTC'").contains("SET takes one key and one value"));
}

#[test]
fn every_other_statement_is_refused_with_a_hint() {
    for (sql, message) in [
        ("SELECT 1", "a SELECT alone goes nowhere"),
        ("VALUES (1)", "a SELECT alone goes nowhere"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "a SELECT alone goes nowhere"),
        ("COPY t TO 'x.parquet'", "COPY is not part"),
        ("DROP TABLE t", "nothing is dropped"),
        ("DROP VIEW v", "nothing is dropped"),
        ("ALTER TABLE t ADD COLUMN a INT", "nothing is dropped or altered"),
        ("UPDATE t SET a = 1", "never updated or deleted"),
        ("DELETE FROM t", "never updated or deleted"),
        ("TRUNCATE TABLE t", "never updated or deleted"),
        ("CREATE TABLE t AS SELECT 1", "CREATE TABLE … AS"),
        ("CREATE TABLE t (a INT)", "declared as external"),
        ("CREATE FUNCTION f() RETURNS INT RETURN 1", "functions cannot be defined"),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", "made once"),
        ("CREATE VIEW IF NOT EXISTS v AS SELECT 1", "made once"),
        ("CREATE TEMPORARY VIEW v AS SELECT 1", "cannot be temporary"),
        ("CREATE MATERIALIZED VIEW v AS SELECT 1", "a view is not stored"),
        ("INSERT INTO t VALUES (1)", "the same rows in every batch"),
        ("INSERT INTO t DEFAULT VALUES", "no SELECT"),
        ("INSERT OVERWRITE t SELECT 1", "only adds rows"),
        ("REPLACE INTO t SELECT 1", "only adds rows"),
        ("INSERT INTO t SELECT a FROM x ON CONFLICT DO NOTHING", "belongs to the table"),
        ("INSERT INTO t SELECT 1 RETURNING a", "returns nothing"),
        ("INSERT INTO a.b.c SELECT 1", "more than two parts"),
        ("CREATE VIEW a.b.c AS SELECT 1", "more than two parts"),
        ("CREATE VIEW \"a.b\" AS SELECT 1", "has a dot"),
        ("CREATE VIEW information_schema.v AS SELECT 1", "belongs to the engine"),
        ("CREATE SCHEMA a.b", "name of one part"),
        ("CREATE SCHEMA AUTHORIZATION x", "name of one part"),
        ("EXPLAIN SELECT 1", "EXPLAIN is not part"),
        ("SHOW TABLES", "SHOW is not part"),
        ("DESCRIBE t", "is not part"),
        ("BEGIN", "is not part"),
        ("RESET datafusion.execution.batch_size", "RESET is not part"),
        ("CREATE DATABASE d", "CREATE is not part"),
    ] {
        let shown = errors(sql);
        assert!(shown.contains(message), "{sql}: {shown}");
        assert!(shown.contains("a.sql:1:1"), "{sql}: {shown}");
        assert!(shown.contains("hint: ") || message.contains("dot"), "{sql}: {shown}");
    }
}

#[test]
fn all_errors_of_all_files_are_reported_at_once() {
    let files = files(&[
        (
            "a.sql",
            "CREATE VIEW v AS SELEC 1;\nCREATE VIEW w AS SELECT 1 FROM;\nDROP TABLE x;\nCREATE VIEW ok AS SELECT 1",
        ),
        ("b.sql", "SET a.b = '${NONE}';\nSELECT 'open"),
        ("c.sql", "SET a.b = '${NONE}';\nINSERT INTO t\n  SELECT a b c FROM v;"),
    ]);
    let (statements, errors) = parse(&files).into_parts();
    assert_eq!(statements.len(), 1);
    let shown = Error::all(errors).map(|e| e.to_string()).unwrap_or_default();
    insta::assert_snapshot!(shown, @r"
    expected SELECT, VALUES, or a subquery in the query body, found SELEC
      a.sql:1:18
       1 | CREATE VIEW v AS SELEC 1;
         |                  ^^^^^
    hint: did you mean SELECT?

    error: expected identifier, found the end of the statement
      a.sql:2:31
       2 | CREATE VIEW w AS SELECT 1 FROM;
         |                               ^

    error: the files say what there is: nothing is dropped or altered
      a.sql:3:1
       3 | DROP TABLE x;
         | ^^^^^^^^^^^^
    hint: change or remove the statement that creates it; a database's own tables change in migrations/

    error: unterminated string literal
      b.sql:2:8
       2 | SELECT 'open
         |        ^
    hint: close it with '; a quote within it is written ''

    error: environment variable NONE is not set
      c.sql:1:12
       1 | SET a.b = '${NONE}';
         |            ^^^^^^^
    hint: set it, or give it a default: ${NONE:-…}

    error: expected end of statement, found c
      c.sql:3:14
       3 |   SELECT a b c FROM v;
         |              ^
    hint: is a comma missing before c?
    ");
}

#[test]
fn a_name_is_defined_once() {
    let table = "CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION 'x'";
    let shown = errors(&format!(
        "{table};\nCREATE VIEW T AS SELECT 1; CREATE SCHEMA s; CREATE SCHEMA s; SET a.b = 1; SET A.b = 2"
    ));
    assert!(shown.contains("table or view public.t is defined twice"), "{shown}");
    assert!(shown.contains("hint: the first one is at a.sql:1:1"), "{shown}");
    assert!(shown.contains("schema s is defined twice"), "{shown}");
    assert!(shown.contains("setting a.b is defined twice"), "{shown}");
}

#[test]
fn a_misspelled_word_is_shown_where_it_is_and_not_where_the_parser_stopped() {
    insta::assert_snapshot!(errors("CREATE VIEW v AS SELECT a\n  FROM t WHRE a = 1"), @r"
    expected end of statement, found a
      a.sql:2:10
       2 |   FROM t WHRE a = 1
         |          ^^^^
    hint: did you mean WHERE?
    ");
    let files = Files::from_stored(vec![("a.sql".into(), "CREATE VIEW v AS SELECT a b '${file:/s}'".into())], &|_| {
        Ok(Some("hunter22".into()))
    });
    let shown = parse(&files).errors.remove(0).1.to_string();
    assert!(shown.contains("hint: is a comma missing before '${file:/s}'?") && !shown.contains("hunter22"), "{shown}");
}

#[test]
fn missing_clauses_are_shown_at_the_statement() {
    let shown = errors("SET a.b = 1;\nCREATE EXTERNAL TABLE t (a INT)\n LOCATION 'x'");
    insta::assert_snapshot!(shown, @r"
    missing STORED AS clause in CREATE EXTERNAL TABLE statement
      a.sql:2:1
       2 | CREATE EXTERNAL TABLE t (a INT)
         | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    hint: add STORED AS KAFKA, DATABASE, PARQUET, DELTA, ELASTICSEARCH, CSV or JSON
    ");
}

#[test]
fn a_monstrous_statement_is_refused() {
    let list = format!("CREATE VIEW v AS SELECT 1 IN (1{})", ", 1".repeat(TOKENS_MAX / 2));
    assert!(errors(&list).contains("more than 20000"));
    let chain = |n| format!("CREATE VIEW v AS SELECT f(a, 2{}), 3", " + f(1 * 2, 3)".repeat(n));
    assert!(errors(&chain(CHAIN_MAX + 1)).contains("a chain of more than 1000 operators"));
    let unions = |n| format!("CREATE VIEW v AS SELECT 1, 2{}", " UNION ALL SELECT 1, 2".repeat(n));
    assert!(errors(&unions(CHAIN_MAX / UNION_WEIGHT + 1)).contains("a chain of more than 1000 operators"));
    // As large as allowed: parsed, cloned, printed and dropped on a test's thread of 2 MB.
    for fits in [chain(CHAIN_MAX), unions(CHAIN_MAX / UNION_WEIGHT), list.replacen(", 1", "", TOKENS_MAX / 4)] {
        let statements = parsed(&fits);
        assert_eq!(statements.clone().len(), 1);
    }
    let deep = format!("CREATE VIEW v AS SELECT {}1{}", "(".repeat(200), ")".repeat(200));
    assert!(errors(&deep).contains("nested too deeply"), "{}", errors(&deep));
}

#[test]
fn the_shipped_constructs_parse() {
    let statements = parsed(
        "CREATE VIEW a AS SELECT window_start FROM TUMBLE(v, \"timestamp\", INTERVAL '5 seconds') GROUP BY window_start;
         CREATE VIEW b AS SELECT avg(x) OVER w FROM HOP(v, ts, INTERVAL '5' SECOND, INTERVAL '1 minute') WINDOW w AS (PARTITION BY y);
         CREATE UNBOUNDED EXTERNAL TABLE kafka.e (a BIGINT, _raw BYTEA, PRIMARY KEY (a)) STORED AS KAFKA LOCATION '${T:-e}'
           OPTIONS ('brokers' '${B:-localhost:9092}', watermark.delay '30 seconds');
         CREATE EXTERNAL TABLE lake.e (a BIGINT) STORED AS PARQUET LOCATION 'x' PARTITIONED BY (event_date DATE);
         INSERT INTO kafka.e (a) SELECT TRY_CAST(_raw AS VARCHAR) FROM LATE(a);",
    );
    assert_eq!(statements.len(), 5);
}
