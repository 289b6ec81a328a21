//! `LATE(view)`: one row for each window that an event came too late for, or too early.

use super::harness::{SECOND, Sim, T0, append, assert_same, event, keyed, step};

const TABLES: &str = "window_start TIMESTAMP, window_end TIMESTAMP, k VARCHAR, n BIGINT";

fn tables() -> String {
    keyed("counts", TABLES, "window_start, window_end, k")
        + &append("late", "id BIGINT, window_start TIMESTAMP, window_end TIMESTAMP, reason VARCHAR")
}

fn queries(from: &str, filter: &str) -> String {
    format!(
        "CREATE VIEW checked AS SELECT id, k, ts FROM kafka.events WHERE v IS NOT NULL;
         CREATE VIEW w AS SELECT window_start, window_end, k, count(*) AS n FROM {from} AS x {filter}
           GROUP BY window_start, window_end, k;
         CREATE VIEW missed AS SELECT l.id, window_start, window_end, _late_reason FROM LATE(w) AS l;
         INSERT INTO db.counts SELECT * FROM w;
         INSERT INTO kafka.late SELECT * FROM missed"
    )
}

fn at(seconds: i64) -> String {
    let second = |s: i64| format!("2026-01-01T00:{:02}:{:02}", s / 60, s % 60);
    if seconds >= 0 { second(seconds) } else { format!("2025-12-31T23:59:{:02}", 60 + seconds) }
}

#[tokio::test]
async fn a_late_event_is_counted_where_it_still_can_be() {
    let mut sim = Sim::start(
        &tables(),
        &queries("HOP(checked, ts, INTERVAL '5 seconds', INTERVAL '20 seconds')", "WHERE id <> 9"),
    )
    .await;
    sim.batch(&step(31, vec![event(1, "a", 31)])).await.unwrap(); // watermark 28
    let mut unwanted = event(4, "a", 1);
    unwanted.v = None;
    let mut ahead = event(3, "a", 0);
    ahead.ts = Some(T0 + (31 + 3_601) * SECOND);
    let done = sim.batch(&step(31, vec![event(2, "a", 12), ahead, unwanted, event(9, "a", 0)])).await.unwrap();
    // 12 is in the windows that end at 15, 20, 25 and 30.
    let ahead = |end: i64| {
        let text = |s: i64| format!("2026-01-01T01:{:02}:{:02}", s / 60, s % 60);
        vec!["3".into(), text(end - 20), text(end), "ahead".into()]
    };
    let mut late: Vec<Vec<String>> =
        [15, 20, 25].iter().map(|end| vec!["2".into(), at(end - 20), at(*end), "late".into()]).collect();
    // 1:00:32, in the windows that end at 1:00:35 … 1:00:50.
    late.extend([35, 40, 45, 50].map(ahead));
    assert_same(done.rows(1), late, "late");
    assert_same(done.rows(0), vec![vec![at(10), at(30), "a".into(), "1".into()]], "still open");
    let account = &done.outcome.views["public.w"];
    assert_eq!((account.late, account.ahead), (3, 4));
}

#[tokio::test]
async fn before_the_first_watermark_nothing_is_late() {
    let mut sim = Sim::start(&tables(), &queries("TUMBLE(checked, ts, INTERVAL '10 seconds')", "")).await;
    let done = sim.batch(&step(100, vec![event(1, "a", 90), event(2, "a", 1)])).await.unwrap();
    assert_eq!((done.before, done.after), (None, Some(T0 + 87 * SECOND)));
    assert!(done.rows(1).is_empty());
    assert_eq!(done.rows(0).len(), 2);
    let done = sim.batch(&step(100, vec![event(3, "a", 79), event(4, "a", 80)])).await.unwrap();
    assert_same(done.rows(1), vec![vec!["3".into(), at(70), at(80), "late".into()]], "late");
    assert_same(done.rows(0), vec![vec![at(80), at(90), "a".into(), "1".into()]], "in time");
}
