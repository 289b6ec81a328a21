//! What the engine cannot keep or promise is refused before the first record, at the user's line, with the reason.

use super::harness::{append, keyed, plan};

const COLUMNS: &str = "window_start TIMESTAMP, window_end TIMESTAMP, k VARCHAR, n BIGINT";

fn tables() -> String {
    keyed("counts", COLUMNS, "window_start, window_end, k")
        + &append("alerts", COLUMNS)
        + &append("lines", "k VARCHAR, n BIGINT")
        + &append("times", "t TIMESTAMPTZ")
        + &keyed("totals", "k VARCHAR, n BIGINT", "k")
        + "CREATE EXTERNAL TABLE db.users (k VARCHAR, name VARCHAR, PRIMARY KEY (k))
           STORED AS DATABASE LOCATION 'sqlite:/nowhere/test.db';
           CREATE UNBOUNDED EXTERNAL TABLE kafka.clockless (k VARCHAR, ts TIMESTAMP)
           STORED AS KAFKA LOCATION 'clockless' OPTIONS ('brokers' 'localhost:9092', 'format' 'json');
           CREATE UNBOUNDED EXTERNAL TABLE kafka.clicks (k VARCHAR, ts TIMESTAMP)
           STORED AS KAFKA LOCATION 'clicks' OPTIONS ('brokers' 'localhost:9092', 'format' 'json',
             'watermark.column' 'ts', 'watermark.delay' '1 second');\n"
}

const TUMBLING: &str = "CREATE VIEW w AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;\n";

pub(super) async fn refusal(queries: &str) -> String {
    match plan(&tables(), queries).await {
        Ok(program) => panic!("accepted: {queries}\n{:?}", program.warnings),
        Err(error) => error.to_string(),
    }
}

/// `line` is where the error must stand in queries.sql; `says` what must be in it.
async fn refuses(queries: &str, line: usize, says: &[&str]) {
    let error = refusal(queries).await;
    assert!(error.contains(&format!("queries.sql:{line}:")), "line {line}:\n{error}");
    assert_eq!(error.matches("queries.sql:").count(), 1, "one error:\n{error}");
    for part in says {
        assert!(error.contains(part), "{part:?} is not in:\n{error}");
    }
}

#[tokio::test]
async fn bounds_of_a_window_below_the_aggregate_of_a_hop() {
    let hop = "FROM HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '1 minute')";
    let insert = "INSERT INTO db.counts SELECT * FROM w;";
    for view in [
        format!(
            "SELECT window_start, window_end, k, count(*) AS n {hop}\nWHERE ts < window_end - INTERVAL '1 second' GROUP BY window_start, window_end, k"
        ),
        format!(
            "SELECT window_start, window_end, k, count(*) FILTER (WHERE ts > window_start + INTERVAL '1 second') AS n {hop}\nGROUP BY window_start, window_end, k"
        ),
        format!(
            "SELECT window_start, window_end, k, count(*) AS n\nFROM (SELECT *, window_end - ts AS rest {hop}) GROUP BY window_start, window_end, k"
        ),
        format!(
            "SELECT min(window_start) AS window_start, window_end, k, count(*) AS n {hop}\nGROUP BY window_end, k, date_trunc('minute', window_start), window_start"
        ),
    ] {
        refuses(&format!("\nCREATE VIEW w AS {view};\n{insert}"), 2, &["bounds of the window", "HAVING"]).await;
    }
    let allowed = format!(
        "CREATE VIEW w AS SELECT window_start, window_end, k, count(*) AS n {hop} GROUP BY window_start, window_end, k
         HAVING window_end > window_start; {insert}"
    );
    plan(&tables(), &allowed).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_once_in_the_view() {
    let insert = "INSERT INTO db.counts SELECT * FROM w; INSERT INTO db.counts SELECT * FROM w;";
    let view = |select: &str| format!("\nCREATE VIEW w AS {select};\n{insert}");
    let counts = "SELECT window_start, window_end, k, count(*) AS n FROM";
    let by = "GROUP BY window_start, window_end, k";
    refuses(
        &view(&format!("{counts} TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY GROUPING SETS ((window_start, window_end), (window_start, window_end, k))")),
        2,
        &["GROUPING SETS", "hint: make a view for each"],
    )
    .await;
    refuses(
        &view(&format!(
            "{counts} TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY ROLLUP (window_start, window_end, k)"
        )),
        2,
        &["ROLLUP"],
    )
    .await;
    refuses(
        &view(&format!("{counts} TUMBLE(kafka.clockless, ts, INTERVAL '5 seconds') {by}")),
        2,
        &["kafka.clockless has no watermark", "watermark.column"],
    )
    .await;
    refuses(
        &view(&format!(
            "{counts} TUMBLE(kafka.events, ts, INTERVAL '5 seconds') WHERE k IN (SELECT k FROM kafka.clicks) {by}"
        )),
        2,
        &["one unbounded table"],
    )
    .await;
    refuses(
        &view("SELECT window_end - INTERVAL '5 seconds' AS window_start, window_end, k, count(*) AS n FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY window_end, k"),
        2,
        &["must contain window_start"],
    )
    .await;
    refuses(
        &view(&format!("SELECT window_start, window_end, k, sum(CASE WHEN ts < now() THEN 1 END) AS n FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') {by}")),
        2,
        &["another value in each batch"],
    )
    .await;
    refuses(
        &view("SELECT date_bin(INTERVAL '1 month', ts) AS window_start, date_bin(INTERVAL '1 month', ts) AS window_end, k, count(*) AS n FROM kafka.events GROUP BY 1, 2, k"),
        2,
        &["fixed length"],
    )
    .await;
    refuses(
        &format!("{}SELECT * FROM w;\n{}", "CREATE VIEW w AS SELECT * FROM kafka.events;\nCREATE VIEW x AS ", "")
            .replace("SELECT * FROM w", &format!("{counts} TUMBLE(d, ts, INTERVAL '5 seconds') {by}"))
            .replace("CREATE VIEW x", "CREATE VIEW d AS SELECT DISTINCT k, ts FROM w; CREATE VIEW x"),
        2,
        &["DISTINCT"],
    )
    .await;
}

#[tokio::test]
async fn calls_of_tumble_and_hop_that_make_no_windows() {
    let call = |call: &str| {
        format!(
            "CREATE VIEW w AS SELECT window_start, count(*) AS n FROM\n{call} GROUP BY window_start; INSERT INTO kafka.lines SELECT 'x', 1 FROM kafka.events"
        )
    };
    for (from, says) in [
        ("TUMBLE(kafka.events, ts, INTERVAL '1 month')", "no fixed length"),
        ("TUMBLE(kafka.events, id, INTERVAL '1 minute')", "column id is BIGINT, not TIMESTAMP"),
        ("TUMBLE(kafka.events, ts)", "takes 3 argument"),
        ("TUMBLE(kafka.evnts, ts, INTERVAL '1 minute')", "not found"),
        ("TUMBLE(kafka.events, tz, INTERVAL '1 minute')", "tz"),
        ("TUMBLE((SELECT * FROM kafka.events), ts, INTERVAL '1 minute')", "make it a view"),
        ("HOP(kafka.events, ts, INTERVAL '7 seconds', INTERVAL '1 minute')", "multiple of the slide"),
        ("HOP(kafka.events, ts, INTERVAL '0 seconds', INTERVAL '1 minute')", "multiple of the slide"),
        ("TUMBLE(kafka.events, ts, 5)", "not an interval"),
        ("LATE(kafka.events)", "not a windowed view"),
    ] {
        let error = refusal(&call(from)).await;
        assert!(error.contains(says) && error.contains("queries.sql:"), "{from}: {error}");
    }
}

#[tokio::test]
async fn windows_over_windows_and_windows_not_aggregated() {
    let over = format!(
        "{TUMBLING}CREATE VIEW x AS SELECT window_start, window_end, count(*) AS n
FROM TUMBLE(w, window_start, INTERVAL '1 minute') GROUP BY window_start, window_end;\nINSERT INTO kafka.lines SELECT 'x', 1 FROM kafka.events"
    );
    refuses(&over, 4, &["already has a column window_start"]).await;
    let renamed = format!(
        "{TUMBLING}CREATE VIEW r AS SELECT window_start AS ts, n FROM w;
CREATE VIEW x AS SELECT window_start, window_end, 'x' AS k, sum(n) AS n FROM TUMBLE(r, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;
INSERT INTO db.counts SELECT * FROM x;"
    );
    refuses(&renamed, 4, &["other windowed view"]).await;
    let bare = "CREATE VIEW bins AS SELECT window_start, window_end, k, id FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds');
INSERT INTO kafka.alerts SELECT * FROM bins;";
    refuses(bare, 2, &["must be aggregated", "GROUP BY window_start"]).await;
}

#[tokio::test]
async fn open_windows_need_a_keyed_sink() {
    let open = format!("{TUMBLING}INSERT INTO kafka.alerts SELECT * FROM w;");
    refuses(&open, 3, &["only takes rows once", "hint: add WHERE window_end <= current_watermark()"]).await;
    // Not the condition that the state can answer.
    let later = format!("{TUMBLING}INSERT INTO kafka.alerts SELECT * FROM w WHERE window_end < current_watermark();");
    refuses(&later, 3, &["only takes rows once", "reach the windowed view"]).await;
    for condition in ["window_end <= current_watermark()", "current_watermark() >= window_end AND n > 1"] {
        let closed = format!("{TUMBLING}INSERT INTO kafka.alerts SELECT * FROM w WHERE {condition};");
        plan(&tables(), &closed).await.unwrap();
    }
}

#[tokio::test]
async fn aggregates_outside_windows() {
    let counted = "INSERT INTO db.totals\nSELECT k, count(*) FROM kafka.events GROUP BY k;";
    refuses(counted, 1, &["only the rows of one micro-batch", "overwrite rows by key", "TUMBLE or HOP"]).await;
    for query in [
        "SELECT k, count(*) FROM kafka.events GROUP BY k",
        "SELECT DISTINCT k, id FROM kafka.events",
        "SELECT k, id FROM kafka.events ORDER BY id LIMIT 3",
        "SELECT k, sum(id) OVER (PARTITION BY k) FROM kafka.events",
        "SELECT e.k, e.id FROM kafka.events e JOIN kafka.clicks c ON c.k = e.k",
        "SELECT k, id FROM kafka.events WHERE k IN (SELECT k FROM kafka.clicks)",
    ] {
        let program = plan(&tables(), &format!("INSERT INTO kafka.lines {query};")).await.unwrap();
        assert_eq!(program.warnings.len(), 1, "{query}");
        assert!(program.warnings[0].contains("queries.sql:1:1") && program.warnings[0].contains("one micro-batch"));
    }
    for query in [
        "SELECT u.name, e.id FROM kafka.events e LEFT JOIN db.users u ON u.k = e.k",
        "SELECT k, id FROM kafka.events WHERE k IN (SELECT k FROM db.users)",
        "SELECT e.k, e.id FROM kafka.events e JOIN (SELECT k, count(*) AS n FROM db.users GROUP BY k) u ON u.k = e.k",
        "SELECT k, id FROM kafka.events UNION ALL SELECT k, 1 FROM kafka.clicks",
    ] {
        let program = plan(&tables(), &format!("INSERT INTO kafka.lines {query};")).await.unwrap();
        assert!(program.warnings.is_empty(), "{query}: {:?}", program.warnings);
    }
}

#[tokio::test]
async fn what_no_replay_could_give_again() {
    refuses(
        "INSERT INTO kafka.lines SELECT k, id\nFROM kafka.events WHERE random() < 0.5;",
        2,
        &["random()", "replay"],
    )
    .await;
    refuses("INSERT INTO kafka.lines SELECT uuid(), id FROM kafka.events;", 1, &["uuid()"]).await;
    let below = "CREATE VIEW s AS SELECT *, random() AS r FROM kafka.events;
CREATE VIEW w AS SELECT window_start, window_end, k, count(*) FILTER (WHERE r < 0.5) AS n
FROM TUMBLE(s, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;
INSERT INTO db.counts SELECT * FROM w;";
    refuses(below, 4, &["random()"]).await;
}

#[tokio::test]
async fn types_and_tables_of_an_insert() {
    refuses(
        "INSERT INTO kafka.lines SELECT k, CAST(id AS DOUBLE) AS d\nFROM kafka.events;",
        1,
        &["column n of kafka.lines is BIGINT", "DOUBLE", "CAST("],
    )
    .await;
    refuses("INSERT INTO kafka.times SELECT ts FROM kafka.events;", 1, &["TIMESTAMPTZ", "TIMESTAMP"]).await;
    refuses("INSERT INTO kafka.lines SELECT k FROM kafka.events;", 1, &["takes 2 columns", "k, n"]).await;
    refuses("INSERT INTO kafka.lines (k, m) SELECT k, id FROM kafka.events;", 1, &["no column m"]).await;
    refuses(
        "INSERT INTO kafka.line SELECT k, id FROM kafka.events;",
        1,
        &["not declared", "did you mean kafka.lines?"],
    )
    .await;
    let own = "INSERT INTO db.totals SELECT k, id FROM kafka.events;\nINSERT INTO kafka.lines SELECT e.k, t.n FROM kafka.events e JOIN db.totals t ON t.k = e.k;";
    refuses(own, 2, &["db.totals is written by this program"]).await;
    let below = "INSERT INTO db.totals SELECT k, id FROM kafka.events;
CREATE VIEW j AS SELECT e.* FROM kafka.events e JOIN db.totals t ON t.k = e.k;
CREATE VIEW w AS SELECT window_start, window_end, k, count(*) AS n FROM TUMBLE(j, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;
INSERT INTO db.counts SELECT * FROM w;";
    refuses(below, 3, &["db.totals is written by this program"]).await;
    // It takes what the engine refuses, whether an INSERT writes to it or not: read again, that would have no end.
    let dead = "CREATE UNBOUNDED EXTERNAL TABLE kafka.dead (error VARCHAR) STORED AS KAFKA LOCATION 'dead'
        OPTIONS ('brokers' 'localhost:9092', 'role' 'dead_letters');
        INSERT INTO kafka.copies SELECT error FROM kafka.dead;";
    let tables = append("copies", "error VARCHAR");
    assert!(refusal(&format!("{tables}{dead}")).await.contains("kafka.dead is written by this program"));
}

#[tokio::test]
async fn several_streams() {
    let clicks = "CREATE VIEW c AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(kafka.clicks, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;\n";
    let joined = format!(
        "{TUMBLING}{clicks}INSERT INTO db.counts SELECT w.window_start, w.window_end, w.k, w.n FROM w JOIN c USING (window_start, window_end, k);"
    );
    refuses(&joined, 5, &["several unbounded tables", "by itself"]).await;
    let late =
        format!("{TUMBLING}INSERT INTO kafka.lines SELECT k, id FROM LATE(w) UNION ALL SELECT k, 1 FROM kafka.clicks;");
    refuses(&late, 3, &["LATE(view) cannot be read together"]).await;
}

#[tokio::test]
async fn watermark_columns() {
    for (column, says) in [("tz", "no column of kafka.more"), ("id", "watermark column id is BIGINT, not TIMESTAMP")] {
        let more = format!(
            "CREATE UNBOUNDED EXTERNAL TABLE kafka.more (id BIGINT, ts TIMESTAMP) STORED AS KAFKA LOCATION 'more'
             OPTIONS ('brokers' 'localhost:9092', 'format' 'json', 'watermark.column' '{column}');"
        );
        let error = plan(&(tables() + &more), "INSERT INTO kafka.lines SELECT 'x', id FROM kafka.events").await;
        let error = error.err().unwrap().to_string();
        assert!(error.contains(says) && error.contains("tables.sql:"), "{error}");
    }
}

/// Whole windows are shown: what does not keep to one window at a time is only of the batch.
#[tokio::test]
async fn sql_over_windowed_views_is_by_window() {
    let wide = "SELECT window_start, window_end, k, sum(n) OVER (PARTITION BY ";
    for (query, by_window) in [
        (format!("{wide}window_start) FROM w"), true),
        (format!("{wide}window_end, k) FROM (SELECT window_start, window_start + INTERVAL '5 seconds' AS window_end, k, n FROM w)"), true),
        ("SELECT window_start, window_end, 'all', sum(n) FROM w GROUP BY window_start, window_end".into(), true),
        ("SELECT DISTINCT window_start, window_end, k, n FROM w".into(), true),
        ("SELECT w.window_start, w.window_end, w.k, x.n FROM w JOIN w AS x ON w.window_start = x.window_start AND w.k < x.k".into(), true),
        ("SELECT window_start, window_end, k, max(n) OVER (PARTITION BY window_start) FROM (SELECT * FROM w UNION ALL SELECT * FROM w)".into(), true),
        (format!("{wide}k) FROM w"), false),
        ("SELECT min(window_start), max(window_end), k, sum(n) FROM w GROUP BY k".into(), false),
        ("SELECT window_start, window_end, k, n FROM w ORDER BY n LIMIT 3".into(), false),
        ("SELECT w.window_start, w.window_end, w.k, x.n FROM w JOIN w AS x ON w.k = x.k".into(), false),
        ("SELECT date_trunc('hour', window_start), TIMESTAMP '2026-01-01 00:00:00', k, sum(n) FROM w GROUP BY date_trunc('hour', window_start), k".into(), false),
    ] {
        let insert = format!("{TUMBLING}INSERT INTO db.counts {query};");
        match by_window {
            true => {
                let program = plan(&tables(), &insert).await.unwrap_or_else(|error| panic!("{query}: {error}"));
                assert!(program.warnings.is_empty(), "{query}: {:?}", program.warnings);
            }
            false => refuses(&insert, 3, &["not by window", "overwrite rows by key"]).await,
        }
    }
}

/// The window before, or one of another size, need not be shown in the batch that shows this one.
#[tokio::test]
async fn a_join_of_windows_keeps_to_one_window() {
    let hour = "CREATE VIEW h AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(kafka.events, ts, INTERVAL '1 hour') GROUP BY window_start, window_end, k;\n";
    let join =
        |on: &str| format!("SELECT w.window_start, w.window_end, w.k, x.n FROM w JOIN w AS x ON {on} AND w.k < x.k");
    let of_hour =
        |on: &str| format!("SELECT w.window_start, w.window_end, w.k, h.n FROM w JOIN h ON {on} AND w.k = h.k");
    for (query, by_window) in [
        (join("w.window_end = x.window_end"), true),
        (join("w.window_start + INTERVAL '5 seconds' = x.window_end"), true),
        (join("w.window_end = x.window_start"), false),
        (join("w.window_start = x.window_start - INTERVAL '5 seconds'"), false),
        (of_hour("w.window_start = h.window_start"), false),
        (of_hour("w.window_end = h.window_end"), false),
    ] {
        let sql = format!("{TUMBLING}{hour}INSERT INTO db.counts {query};");
        if by_window {
            let program = plan(&tables(), &sql).await.unwrap_or_else(|error| panic!("{query}: {error}"));
            assert!(program.warnings.is_empty(), "{query}: {:?}", program.warnings);
            continue;
        }
        refuses(&sql, 5, &["a join of each window with another one", "overwrite rows by key", "the same bound"]).await;
        // Rows that are only added are no longer right than the batch that added them: a warning.
        let closed =
            format!("{TUMBLING}{hour}INSERT INTO kafka.alerts {query} AND w.window_end <= current_watermark();");
        let program = plan(&tables(), &closed).await;
        match program {
            Ok(program) => {
                assert_eq!(program.warnings.len(), 1, "{query}: {:?}", program.warnings);
                assert!(program.warnings[0].contains("a join of each window with another one"));
            }
            Err(error) => assert!(error.to_string().contains("only takes rows once"), "{query}: {error}"),
        }
    }
    // Rows of windows of two sizes are not of one window because they begin together.
    let mixed = |by: &str| {
        let query = format!(
            "SELECT window_start, max(window_end), k, sum(n) FROM (SELECT * FROM w UNION ALL SELECT * FROM h) GROUP BY {by}, k"
        );
        format!("{TUMBLING}{hour}INSERT INTO db.counts {query};")
    };
    refuses(&mixed("window_start"), 5, &["not by window"]).await;
    plan(&tables(), &mixed("window_start, window_end")).await.unwrap();
}

/// A mistake is told once, whoever reads what it spoils.
#[tokio::test]
async fn what_follows_from_an_error_is_no_error() {
    let insert = "INSERT INTO kafka.lines SELECT k, n FROM b;";
    for (failed, says) in [
        ("CREATE VIEW a AS SELECT k, id AS n FROM kafka.events WHRE id > 0;\n", "found id"),
        ("CREATE VIEW a AS SELECT k, idd AS n FROM kafka.events;\n", "'idd' not found"),
        ("CREATE VIEW a AS SELECT k + 1 AS k, id AS n FROM kafka.clicks;\n", "'id' not found"),
        ("CREATE VIEW a AS SELECT k, id AS n FROM kafka.evnts;\n", "evnts' not found"),
        ("CREATE VIEW a AS SELECT k, id AS n FROM kafka.events, CREATE VIEW b AS SELECT k, n FROM a;\n", "CREATE"),
    ] {
        refuses(&format!("{failed}CREATE VIEW b AS SELECT k, n, x FROM a;\n{insert}"), 1, &[says]).await;
    }
}

#[tokio::test]
async fn a_condition_on_the_watermark_that_no_window_may_ever_meet() {
    for (condition, warnings) in [
        ("window_end < current_watermark()", 1),
        ("window_start <= current_watermark()", 1),
        ("window_end + INTERVAL '1 minute' <= current_watermark()", 1),
        ("window_end > current_watermark()", 0),
        ("window_end <= current_watermark()", 0),
    ] {
        let queries = format!("{TUMBLING}INSERT INTO db.counts SELECT * FROM w WHERE {condition}");
        assert_eq!(plan(&tables(), &queries).await.unwrap().warnings.len(), warnings, "{condition}");
    }
}

#[tokio::test]
async fn a_sink_that_is_off_leaves_no_state() {
    let off = "CREATE EXTERNAL TABLE db.off (window_start TIMESTAMP, n BIGINT, PRIMARY KEY (window_start))
               STORED AS DATABASE LOCATION '' OPTIONS ('on_conflict' 'update');";
    let queries = "INSERT INTO db.off SELECT window_start, count(*) FROM HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '1 minute') GROUP BY window_start, window_end;
                   INSERT INTO db.counts SELECT window_start, window_end, k, count(*) FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;";
    let program = plan(&format!("{}{off}", tables()), queries).await.unwrap();
    assert_eq!((program.windows.views.len(), program.windows.stores.len(), program.inserts.len()), (1, 1, 1));
    assert_eq!(program.windows.views[0].store, 0);
}

#[tokio::test]
async fn elasticsearch_takes_open_windows_where_a_later_document_replaces_and_gives_nothing_back() {
    let documents = |key: &str, options: &str| {
        format!(
            "CREATE EXTERNAL TABLE documents ({COLUMNS}{key}) STORED AS ELASTICSEARCH LOCATION 'http://nowhere:9200' {options};\n"
        )
    };
    let key = ", PRIMARY KEY (window_start, window_end, k)";
    let insert = format!("{TUMBLING}INSERT INTO documents SELECT * FROM w");
    let program = plan(&(tables() + &documents(key, "")), &insert).await.unwrap();
    assert_eq!(program.inserts.len(), 1);
    for once in [documents("", ""), documents(key, "OPTIONS ('op_type' 'create')")] {
        let error = plan(&(tables() + &once), &insert).await.err().unwrap().to_string();
        assert!(error.contains("table public.documents only takes rows once"), "{error}");
        plan(&(tables() + &once), &format!("{insert} WHERE window_end <= current_watermark()")).await.unwrap();
    }
    let read = "INSERT INTO kafka.lines SELECT e.k, d.n FROM kafka.events e JOIN documents d ON d.k = e.k";
    let error = plan(&(tables() + &documents(key, "")), read).await.err().unwrap().to_string();
    assert!(error.contains("table public.documents is STORED AS ELASTICSEARCH, which is only written"), "{error}");
}
