//! Reading: what is asked of the server, and what is known before.

use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::prelude::SessionContext;

use super::database;
use crate::connector::database::postgres::{Address, estimated_rows};
use crate::connector::database::tests::*;
use crate::connector::database::{DatabaseTable, provider};

/// So that a join builds its table of the smaller side.
#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_plan_is_told_about_how_many_rows_there_are() {
    let (url, client) = database().await;
    let create = "CREATE TABLE t AS SELECT i::bigint AS id, 'v' || i AS v FROM generate_series(1, 20000) i";
    client.batch_execute(create).await.unwrap();
    let asked = async |name: &str| {
        let table = DatabaseTable::new(Arc::new(definition(name, &url, ID_V, &[]))).unwrap();
        estimated_rows(&table, &Address::parse(&url).unwrap()).await.unwrap()
    };
    let by_size = asked("t").await.unwrap();
    assert!((2_000..200_000).contains(&by_size), "{by_size}");
    client
        .batch_execute("ANALYZE t; CREATE VIEW seen AS SELECT * FROM t; CREATE TABLE none (id bigint)")
        .await
        .unwrap();
    assert_eq!((asked("t").await, asked("seen").await, asked("none").await), (Some(20_000), None, Some(0)));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn reading_sends_conditions_and_limits_to_the_server() {
    let (url, client) = database().await;
    client
        .batch_execute(
            "CREATE TABLE t AS SELECT i::int AS id, 'v' || i AS v, timestamp '2026-01-01' + i * interval '1 minute' AS at
             FROM generate_series(1, 20000) i",
        )
        .await
        .unwrap();
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let table = Arc::new(definition("t", &url, &[ID_V, &[("at", time)]].concat(), &["id"]));
    assert!(select(&table, "SELECT count(*) AS n, sum(id) AS s FROM t").await.contains("| 20000 | 200010000 |"));
    assert!(select(&table, "SELECT count(*) AS n FROM t").await.contains("| 20000 |"));
    let sql = "SELECT v FROM t WHERE id > 19990 AND at <= '2026-01-14T21:12:00' AND v = 'v19992' AND v LIKE '%2'";
    let found = select(&table, sql).await;
    assert!(found.contains("| v19992 |"), "{found}");
    let plan = select(&table, &format!("EXPLAIN {sql}")).await;
    assert!(
        plan.contains("\"id\" > (19990)")
            && plan.contains("\"v\"::text = 'v19992'")
            && plan.contains("timestamp '2026-01-14"),
        "{plan}"
    );
    assert!(select(&table, "EXPLAIN SELECT id FROM t LIMIT 3").await.contains("LIMIT 3"));
    assert_eq!(select(&table, "SELECT id FROM t LIMIT 3").await.lines().count(), 7);
    let wrong = Arc::new(definition("t", &url, &[("v", DataType::Int64)], &[]));
    let context = SessionContext::new();
    context.register_table("t", provider(&wrong).unwrap()).unwrap();
    let error = context.sql("SELECT v FROM t").await.unwrap().collect().await.unwrap_err().to_string();
    assert!(error.contains("column \"v\" is declared BIGINT and is text there"), "{error}");
}
