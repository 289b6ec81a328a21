//! What of a dimension is read: as little as all queries together need, and never less.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};

use super::harness::{Sim, append, event, plan, step};

fn tables() -> String {
    append("o", "name VARCHAR")
        + "CREATE EXTERNAL TABLE db.users (
             k VARCHAR, name VARCHAR, region VARCHAR, level BIGINT, active BOOLEAN, at TIMESTAMPTZ, born DATE
           ) STORED AS DATABASE LOCATION 'sqlite:/nowhere/test.db';"
}

/// Columns, and the condition as text, of a program with an INSERT for each of these queries.
async fn needed(queries: &[&str]) -> (String, String) {
    let inserts: Vec<String> = queries.iter().map(|query| format!("INSERT INTO kafka.o {query};")).collect();
    needed_by(&inserts.join("\n")).await
}

async fn needed_by(statements: &str) -> (String, String) {
    let program = plan(&tables(), statements).await.unwrap_or_else(|error| panic!("{error}"));
    let dimension = &program.dimensions[0];
    let schema = dimension.read_schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let condition = dimension.needed.filter.as_ref().map(|filter| filter.human_display().to_string());
    (columns.join(" "), condition.unwrap_or_default())
}

#[tokio::test]
async fn columns_and_rows_that_no_query_needs_are_not_read() {
    let join = |rest: &str| format!("SELECT u.name FROM kafka.events e JOIN db.users u ON u.k = e.k {rest}");
    let left = |rest: &str| format!("SELECT u.name FROM kafka.events e LEFT JOIN db.users u ON u.k = e.k {rest}");
    for (query, columns, condition) in [
        (join(""), "k name", ""),
        (join("WHERE u.region = 'eu'"), "k name region", "region = eu"),
        (join("WHERE u.active AND u.level BETWEEN 3 AND 5"), "k name level active", "active AND level >= 3 AND level <= 5"),
        (join("WHERE u.region IS NULL OR u.level <> 7"), "k name region level", "region IS NULL OR level != 7"),
        (join("AND NOT u.active"), "k name active", "NOT active"),
        // Of a condition that is asked of both tables, or that may fail, or is another in each batch, nothing is known.
        (join("WHERE u.level > e.v"), "k name level", ""),
        (join("WHERE u.level = 1 AND upper(u.region) = 'EU'"), "k name region level", "level = 1"),
        (join("WHERE 100 / u.level > 1"), "k name level", ""),
        (join("WHERE u.at > now()"), "k name at", ""),
        (join("WHERE u.level = 1 OR u.at > now()"), "k name level at", ""),
        // Rows of the outer side come without a match, so a match must not be missed.
        (left("WHERE u.k IS NULL AND u.region IS NULL"), "k name region", ""),
        (left("AND u.region = 'eu'"), "k name region", "region = eu"),
        ("SELECT e.k FROM kafka.events e WHERE e.k IN (SELECT k FROM db.users WHERE level = 2)".into(), "k level", "level = 2"),
        ("SELECT e.k FROM kafka.events e WHERE NOT EXISTS (SELECT 1 FROM db.users u WHERE u.k = e.k AND u.level = 2)".into(),
         "k level", "level = 2"),
        ("SELECT e.k FROM kafka.events e WHERE e.v > (SELECT count(*) FROM db.users)".into(), "k", ""),
    ] {
        let found = needed(&[&query]).await;
        assert_eq!((found.0.as_str(), found.1.as_str()), (columns, condition), "{query}");
    }
}

#[tokio::test]
async fn one_copy_has_what_any_of_several_queries_needs() {
    let eu = "SELECT u.name FROM kafka.events e JOIN db.users u ON u.k = e.k WHERE u.region = 'eu'";
    let high = "SELECT e.k FROM kafka.events e JOIN db.users u ON u.k = e.k WHERE u.level > 3";
    let all = "SELECT e.k FROM kafka.events e JOIN db.users u ON u.k = e.k";
    assert_eq!(needed(&[eu, eu]).await, ("k name region".into(), "region = eu".into()));
    assert_eq!(needed(&[eu, high]).await, ("k name region level".into(), "region = eu OR level > 3".into()));
    assert_eq!(needed(&[eu, all]).await, ("k name region".into(), String::new()));
    // Twice in one query, and below a window.
    let both = "SELECT a.name FROM kafka.events e JOIN db.users a ON a.k = e.k AND a.region = 'eu'
                JOIN db.users b ON b.k = e.t AND b.level = 1";
    assert_eq!(needed(&[both]).await, ("k name region level".into(), "region = eu OR level = 1".into()));
    let windowed =
        "CREATE VIEW known AS SELECT e.ts, u.k FROM kafka.events e JOIN db.users u ON u.k = e.k WHERE u.level = 4;
        CREATE VIEW counted AS SELECT window_start, window_end, k, count(*) AS n
        FROM TUMBLE(known, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;
        INSERT INTO kafka.o SELECT k FROM counted WHERE window_end <= current_watermark();";
    let (columns, condition) = needed_by(windowed).await;
    assert_eq!((columns.as_str(), condition.as_str()), ("k level", "level = 4"));
}

/// Rows that lack the columns nobody reads are joined with like whole ones.
#[tokio::test]
async fn a_narrow_copy_is_joined_with() {
    let queries =
        "INSERT INTO kafka.o SELECT u.name FROM kafka.events e JOIN db.users u ON u.k = e.k WHERE u.level > 1;
                   INSERT INTO kafka.o SELECT u.k FROM kafka.events e JOIN db.users u ON u.k = e.k;";
    let mut sim = Sim::start(&tables(), queries).await;
    let dimension = &sim.program.dimensions[0];
    let texts = |texts: [&str; 3]| -> ArrayRef { Arc::new(StringViewArray::from_iter_values(texts)) };
    let levels: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let columns = vec![texts(["a", "b", "c"]), texts(["Ann", "Bob", "Cid"]), levels];
    dimension.pinned.pin(vec![RecordBatch::try_new(dimension.read_schema(), columns).unwrap()]);
    let done = sim.batch(&step(1, vec![event(1, "a", 1), event(2, "b", 1), event(3, "x", 1)])).await.unwrap();
    assert_eq!(done.rows(0), [["Bob"]]);
    assert_eq!(done.rows(1), [["a"], ["b"]]);
}
