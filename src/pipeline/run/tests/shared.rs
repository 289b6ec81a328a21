//! Conditions that queries share: the same rows, order and hashes as without.

use super::harness::*;
use crate::sql::shared::Shared;

fn tables() -> String {
    let columns = "id BIGINT, k VARCHAR, v BIGINT, t VARCHAR, ts TIMESTAMP";
    append("good", columns) + &append("best", columns) + &append("bad", columns) + &keyed("counts", COUNTS, "s, e, k")
}

const COUNTS: &str = "s TIMESTAMP, e TIMESTAMP, k VARCHAR, n BIGINT";

const QUERIES: &str = "
CREATE VIEW checked AS SELECT *, CASE WHEN k IS NULL THEN 'no k' WHEN 12 / v > 3 THEN 'small v' END AS reason FROM kafka.events;
CREATE VIEW good AS SELECT id, k, v, t, ts FROM checked WHERE reason IS NULL;
CREATE VIEW counts AS SELECT window_start AS s, window_end AS e, k, count(*) AS n
  FROM TUMBLE(good, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end, k;
INSERT INTO kafka.good SELECT * FROM good;
INSERT INTO kafka.best SELECT * FROM good WHERE id > 10;
INSERT INTO kafka.bad SELECT id, k, v, reason, ts FROM checked WHERE reason IS NOT NULL;
INSERT INTO db.counts SELECT * FROM counts;
";

async fn both() -> [Sim; 2] {
    let shared = Sim::start(&tables(), QUERIES).await;
    let mut plain = plan(&tables(), QUERIES).await.unwrap();
    plain.shared = Shared::default();
    [shared, Sim::of(&tables(), QUERIES, plain)]
}

fn events(count: i64, zeros: &[i64]) -> Vec<Event> {
    let made = (0..count).map(|id| Event {
        k: (id % 7 != 0).then(|| format!("a key that is not short {}", id % 3)),
        v: if zeros.contains(&id) { Some(0) } else { (id % 5 != 4).then_some(id % 5 + 1) },
        t: (id % 4 != 1).then(|| "text".to_string()),
        ..event(id, "", id / 4)
    });
    made.collect()
}

#[tokio::test]
async fn readers_of_one_condition_read_its_answer() {
    let program = plan(&tables(), QUERIES).await.unwrap();
    let text = |number| program.shared.plan(number).map_or_else(String::new, |plan| plan.display_indent().to_string());
    assert!(!text(0).contains("Filter") && !text(2).contains("Filter"), "{}\n{}", text(0), text(2));
    assert!(text(1).contains("Filter: kafka.events.id > Int64(10)\n"), "{}", text(1));
    assert!(
        text(4).contains("Filter: kafka.events.ts IS NOT NULL"),
        "the windowed view, after four INSERTs: {}",
        text(4)
    );
    assert_eq!(text(3), "", "reads the windowed view");
    assert!(program.inserts[0].plan.display_indent().to_string().contains("Filter"), "the plan itself stays");
}

#[tokio::test]
async fn rows_order_and_hashes_are_those_of_the_queries_as_written() {
    let [mut shared, mut plain] = both().await;
    for (seconds, count) in [(1, 40), (2, 0), (3, 1), (4, 500)] {
        let step = step(seconds, events(count, &[]));
        let (one, other) = (shared.batch(&step).await.unwrap(), plain.batch(&step).await.unwrap());
        assert_eq!(one.hashes(), other.hashes());
        (0..4).for_each(|insert| assert_eq!(one.rows(insert), other.rows(insert), "INSERT {insert}"));
        assert!(count < 40 || (0..4).all(|insert| !one.rows(insert).is_empty()));
    }
    assert_eq!(shared.state(), plain.state());
}

#[tokio::test]
async fn a_condition_that_fails_on_rows_refuses_those_alone() {
    let [mut shared, mut plain] = both().await;
    let step = step(1, events(40, &[3, 12]));
    let (one, other) = (shared.batch(&step).await.unwrap(), plain.batch(&step).await.unwrap());
    let refused = |done: &Done| done.outcome.refused.iter().map(|row| row.offset).collect::<Vec<_>>();
    assert_eq!(refused(&one), [3, 12]);
    assert_eq!((refused(&one), one.hashes()), (refused(&other), other.hashes()));
}
