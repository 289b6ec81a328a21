//! Rows that a query cannot compute with leave everything; errors that no row is to blame for stop the pipeline.

use super::harness::{Event, Sim, append, assert_same, event, keyed, step};

fn tables() -> String {
    append("parsed", "id BIGINT, n BIGINT")
        + &append("raw", "id BIGINT")
        + &keyed("sums", "window_start TIMESTAMP, n BIGINT", "window_start")
}

const QUERIES: &str = "
INSERT INTO kafka.parsed SELECT id, CAST(t AS BIGINT) FROM kafka.events;
INSERT INTO kafka.raw SELECT id FROM kafka.events;
CREATE VIEW w AS SELECT window_start, window_end, sum(100 / v) AS n FROM TUMBLE(kafka.events, ts, INTERVAL '1 minute')
GROUP BY window_start, window_end;
INSERT INTO db.sums SELECT window_start, n FROM w;";

fn good(id: i64) -> Event {
    Event { t: Some(id.to_string()), v: Some(50), ..event(id, "a", 1) }
}

#[tokio::test]
async fn one_row_of_ten_thousand_leaves_every_insert_and_the_state() {
    let mut sim = Sim::start(&tables(), QUERIES).await;
    let mut events: Vec<Event> = (0..10_000).map(good).collect();
    events[4_321].t = Some("four".into());
    let done = sim.batch(&step(1, events.clone())).await.unwrap();
    let refused = &done.outcome.refused;
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].source.as_str(), refused[0].partition, refused[0].offset), ("kafka.events", 0, 4_321));
    assert_eq!(refused[0].row.num_rows(), 1);
    assert!(refused[0].error.contains("four"), "{}", refused[0].error);
    assert_eq!((done.rows(0).len(), done.rows(1).len()), (9_999, 9_999));
    assert_eq!(done.rows(2)[0][1], (9_999 * 2).to_string());

    // As if it had never been there.
    let mut other = Sim::start(&tables(), QUERIES).await;
    events.remove(4_321);
    let expected = other.batch(&step(1, events)).await.unwrap();
    assert_eq!(done.hashes(), expected.hashes());
}

#[tokio::test]
async fn several_rows_of_several_queries() {
    let mut sim = Sim::start(&tables(), QUERIES).await;
    let mut events: Vec<Event> = (0..300).map(good).collect();
    for (at, text) in [(0, "x"), (99, "99999999999999999999"), (100, ""), (299, "1.5")] {
        events[at].t = Some(text.into());
    }
    events[50].v = Some(0);
    events[99].v = Some(0);
    let done = sim.batch(&step(1, events)).await.unwrap();
    let offsets: Vec<i64> = done.outcome.refused.iter().map(|row| row.offset).collect();
    assert_eq!(offsets, [0, 50, 99, 100, 299]);
    assert_eq!((done.rows(0).len(), done.rows(1).len()), (295, 295));
    assert_eq!(done.rows(2)[0][1], (295 * 2).to_string());
    // The state is right, too.
    let done = sim.batch(&step(2, vec![good(300)])).await.unwrap();
    assert_eq!(done.rows(2)[0][1], (296 * 2).to_string());
}

#[tokio::test]
async fn too_many_rows_are_a_fault_of_the_query() {
    let mut sim = Sim::start(&tables(), QUERIES).await;
    let events = (0..1_001).map(|id| Event { t: Some("x".into()), ..good(id) }).collect();
    let error = sim.batch(&step(1, events)).await.unwrap_err().to_string();
    for part in ["queries.sql:2:1", "kafka.events partition 0", "more than 1000 rows", "batch 0"] {
        assert!(error.contains(part), "{part:?} is not in:\n{error}");
    }
}

#[tokio::test]
async fn an_error_above_a_windowed_view_blames_no_row() {
    let queries = "CREATE VIEW w AS SELECT window_start, window_end, count(*) AS n
        FROM TUMBLE(kafka.events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;
        INSERT INTO db.sums SELECT window_start, 10 / (n - 3) FROM w;";
    let mut sim = Sim::start(&tables(), queries).await;
    sim.batch(&step(1, vec![good(0), good(1)])).await.unwrap();
    let state = sim.state();
    let error = sim.batch(&step(2, vec![good(2)])).await.unwrap_err().to_string();
    assert!(error.contains("queries.sql:3:9") && error.to_lowercase().contains("divide by zero"), "{error}");
    assert_eq!(state, sim.state());
    // Nothing of it stays: the same rows with others go through.
    let done = sim.batch(&step(2, vec![good(2), good(3)])).await.unwrap();
    assert_same(vec![done.rows(0)[0][1..].to_vec()], vec![vec!["10".into()]], "after the error");
}
