//! Windowed views together: what they share, and what the SQL above them sees.

use std::time::Instant;

use super::harness::{Event, SECOND, Sim, T0, append, assert_same, event, keyed, plan, step};
use super::oracle::Oracle;
use crate::sql::windowed::Rows;

const COUNTS: &str = "window_start TIMESTAMP, window_end TIMESTAMP, k VARCHAR, n BIGINT";

fn tables() -> String {
    keyed("counts", COUNTS, "window_start, window_end, k")
        + &append("closed", COUNTS)
        + &append("stamps", "id BIGINT, t TIMESTAMPTZ, d DATE")
        + &append("medians", "window_start TIMESTAMP, k VARCHAR, p DOUBLE, exact DOUBLE")
}

fn counts(from: &str) -> String {
    format!("SELECT window_start, window_end, k, count(*) AS n FROM {from} GROUP BY window_start, window_end, k")
}

#[tokio::test]
async fn views_over_the_same_input_share_their_panes() {
    let tumble = counts("TUMBLE(kafka.events, ts, INTERVAL '5 seconds')");
    let hop = counts("HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '1 minute')");
    let insert = |select: &str| format!("INSERT INTO db.counts {select};\n");
    let program = plan(&tables(), &(insert(&tumble) + &insert(&hop) + &insert(&tumble))).await.unwrap();
    assert_eq!((program.windows.views.len(), program.windows.stores.len()), (2, 1));
    assert_eq!(program.windows.stores[0].size_max, 60 * SECOND);

    let filtered = hop.replace("GROUP", "WHERE id > 1 GROUP");
    let summed = hop.replace("count(*)", "sum(id)");
    let program = plan(&tables(), &(insert(&tumble) + &insert(&filtered) + &insert(&summed))).await.unwrap();
    assert_eq!((program.windows.views.len(), program.windows.stores.len()), (3, 3));

    // Twins: the same input in another name. Each has state of its own under a key of its own.
    let views = "CREATE VIEW one AS SELECT * FROM kafka.events; CREATE VIEW two AS SELECT * FROM kafka.events;";
    let of = |view: &str| insert(&counts(&format!("TUMBLE({view}, ts, INTERVAL '5 seconds') AS x")));
    let program = plan(&tables(), &format!("{views}{}{}", of("one"), of("two"))).await.unwrap();
    let keys: Vec<String> = program.windows.stores.iter().map(|store| store.key()).collect();
    let mut unique = keys.clone();
    unique.dedup();
    assert_eq!(keys, unique);
}

/// Two views over different rows of one source: what changes in one must be seen with the other's part of the window.
#[tokio::test]
async fn views_of_one_source_show_the_same_windows() {
    let view = |name: &str, filter: &str| {
        format!(
            "CREATE VIEW {name} AS SELECT window_start, window_end, k, count(*) AS n
             FROM TUMBLE(kafka.events, ts, INTERVAL '10 seconds') WHERE {filter} GROUP BY window_start, window_end, k;"
        )
    };
    let queries = view("odd", "id % 2 = 1")
        + &view("even", "id % 2 = 0")
        + "INSERT INTO db.counts SELECT o.window_start, o.window_end, o.k, o.n * 100 + coalesce(e.n, 0)
           FROM odd o LEFT JOIN even e USING (window_start, window_end, k)";
    let mut sim = Sim::start(&tables(), &queries).await;
    let counts = |done: &super::harness::Done| done.rows(0).into_iter().map(|row| row[3].clone()).collect::<Vec<_>>();
    let done = sim.batch(&step(1, vec![event(1, "a", 1), event(3, "a", 1), event(2, "a", 2)])).await.unwrap();
    assert_eq!(counts(&done), ["201"]);
    let done = sim.batch(&step(2, vec![event(4, "a", 2)])).await.unwrap();
    assert_eq!(counts(&done), ["202"], "odd did not change, but the window did");
    let done = sim.batch(&step(2, vec![event(5, "a", 3)])).await.unwrap();
    assert_eq!(counts(&done), ["302"], "even did not change, but the window did");
}

#[tokio::test]
async fn a_tumble_and_a_hop_of_the_same_panes_show_each_their_windows() {
    let queries = format!(
        "INSERT INTO db.counts {}; INSERT INTO db.counts {};",
        counts("TUMBLE(kafka.events, ts, INTERVAL '5 seconds')"),
        counts("HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '15 seconds')")
    );
    let mut sim = Sim::start(&tables(), &queries).await;
    sim.batch(&step(1, vec![event(1, "a", 1), event(2, "b", 1)])).await.unwrap();
    let done = sim.batch(&step(6, vec![event(3, "a", 6)])).await.unwrap();
    let row = |from: &str, to: &str, n: &str| {
        let time = |s: &str| s.parse::<i32>().map_or(s.into(), |s| format!("2026-01-01T00:00:{s:02}"));
        vec![time(from), time(to), "a".into(), n.to_string()]
    };
    assert_same(done.rows(0), vec![row("5", "10", "1")], "tumble");
    let hop = vec![row("2025-12-31T23:59:55", "10", "2"), row("0", "15", "2"), row("5", "20", "1")];
    assert_same(done.rows(1), hop, "hop");
}

#[tokio::test]
async fn now_is_when_the_batch_was_planned() {
    let queries = "INSERT INTO kafka.stamps SELECT id, now(), current_date() FROM kafka.events WHERE ts < now();
                   INSERT INTO kafka.stamps SELECT id, current_timestamp, current_date FROM kafka.events";
    let mut sim = Sim::start(&tables(), queries).await;
    for (seconds, stamp, day) in
        [(10, "2026-01-01T00:00:10Z", "2026-01-01"), (86_420, "2026-01-02T00:00:20Z", "2026-01-02")]
    {
        let done =
            sim.batch(&step(seconds, vec![event(1, "a", seconds - 1), event(2, "a", seconds + 1)])).await.unwrap();
        let row = |id: &str| vec![id.to_string(), stamp.into(), day.into()];
        assert_same(done.rows(0), vec![row("1")], "now() in SELECT and WHERE");
        assert_same(done.rows(1), vec![row("1"), row("2")], "current_timestamp");
    }
}

/// Some expressions are computed when a plan is made, and a plan is kept from batch to batch.
#[tokio::test]
async fn now_is_of_the_batch_wherever_it_stands() {
    let day = |n: usize| format!("CAST(now() - INTERVAL '{n} days' AS DATE)");
    let days: Vec<String> = [9, 8, 7, 0].map(day).to_vec();
    let queries = format!(
        "INSERT INTO kafka.stamps SELECT id, now(), current_date() FROM kafka.events WHERE CAST(ts AS DATE) IN ({});
         INSERT INTO kafka.stamps SELECT id, at, current_date() FROM kafka.events CROSS JOIN (VALUES (now())) AS v (at);
         INSERT INTO kafka.stamps SELECT id, lag(CAST(ts AS TIMESTAMPTZ), 1, now()) OVER (ORDER BY id), current_date() FROM kafka.events;
         INSERT INTO kafka.stamps SELECT id, (SELECT now()), current_date() FROM kafka.events;
         INSERT INTO kafka.stamps SELECT id, CASE WHEN ts < now() THEN now() ELSE now() END, current_date() FROM kafka.events",
        days.join(", ")
    );
    let mut sim = Sim::start(&tables(), &queries).await;
    for (seconds, stamp, day) in
        [(10, "2026-01-01T00:00:10Z", "2026-01-01"), (86_420, "2026-01-02T00:00:20Z", "2026-01-02")]
    {
        let done = sim.batch(&step(seconds, vec![event(1, "a", seconds - 1)])).await.unwrap();
        for (insert, what) in ["IN", "VALUES", "OVER", "a subquery", "CASE"].into_iter().enumerate() {
            assert_same(done.rows(insert), vec![vec!["1".into(), stamp.into(), day.into()]], what);
        }
    }
    assert_eq!(sim.runner.plan_counts(), (3, 2), "VALUES and OVER are made of each batch");
}

#[tokio::test]
async fn a_date_bin_is_a_window() {
    let queries = "
        CREATE VIEW w AS SELECT date_bin(INTERVAL '10 seconds', ts) AS start, k, count(*) AS n FROM kafka.events GROUP BY start, k;
        INSERT INTO db.counts SELECT start, start + INTERVAL '10 seconds', k, n FROM w;
        INSERT INTO kafka.closed SELECT start, start + INTERVAL '10 seconds', k, n FROM w
          WHERE start + INTERVAL '10 seconds' <= current_watermark()";
    let mut sim = Sim::start(&tables(), queries).await;
    let rows: Vec<_> =
        sim.program.inserts.iter().map(|insert| insert.rows.iter().copied().collect::<Vec<_>>()).collect();
    assert_eq!(rows, [vec![Rows::Changed], vec![Rows::Closed]]);
    sim.batch(&step(5, vec![event(1, "a", 5)])).await.unwrap();
    let done = sim.batch(&step(9, vec![event(2, "a", 9)])).await.unwrap();
    let row = ["2026-01-01T00:00:00", "2026-01-01T00:00:10", "a", "2"].map(str::to_string).to_vec();
    assert_same(done.rows(0), vec![row.clone()], "open");
    assert!(done.rows(1).is_empty());
    let done = sim.batch(&step(13, vec![event(3, "b", 13)])).await.unwrap();
    assert_same(done.rows(1), vec![row], "closed");
}

#[tokio::test]
async fn changed_rows_join_a_dimension() {
    let users = "CREATE EXTERNAL TABLE db.users (k VARCHAR, name VARCHAR, PRIMARY KEY (k))
                 STORED AS DATABASE LOCATION 'sqlite:/nowhere/test.db';";
    let queries = format!(
        "CREATE VIEW w AS {};
         INSERT INTO db.counts SELECT w.window_start, w.window_end, coalesce(u.name, w.k), w.n FROM w LEFT JOIN db.users u ON u.k = w.k",
        counts("TUMBLE(kafka.events, ts, INTERVAL '5 seconds')")
    );
    let mut sim = Sim::start(&(tables() + users), &queries).await;
    assert_eq!(sim.program.inserts[0].rows, [Rows::Changed].into());
    let column = |texts: [&str; 2]| std::sync::Arc::new(arrow::array::StringViewArray::from_iter_values(texts)) as _;
    let schema = std::sync::Arc::clone(&sim.program.dimensions[0].table.schema);
    let rows = arrow::array::RecordBatch::try_new(schema, vec![column(["a", "b"]), column(["Ann", "Bob"])]).unwrap();
    sim.program.dimensions[0].pinned.pin(vec![rows]);
    let names = |done: super::harness::Done| done.rows(0).into_iter().map(|row| row[2].clone()).collect::<Vec<_>>();
    let done = sim.batch(&step(1, vec![event(1, "a", 1), event(2, "b", 1), event(3, "c", 1)])).await.unwrap();
    assert_eq!(names(done), ["Ann", "Bob", "c"]);
    let done = sim.batch(&step(2, vec![event(4, "b", 2)])).await.unwrap();
    assert_eq!(names(done), ["Bob"]);
}

/// Event time with a zone, in nanoseconds, computed; only the start of the window in GROUP BY.
#[tokio::test]
async fn event_time_of_other_types() {
    let tables = tables() + &keyed("zoned", "window_start TIMESTAMPTZ, n BIGINT", "window_start");
    let queries = "
        CREATE VIEW z AS SELECT id, CAST(ts AS TIMESTAMPTZ) AS tz, arrow_cast(ts, 'Timestamp(Nanosecond, None)') AS nanos FROM kafka.events;
        INSERT INTO db.zoned SELECT window_start, count(*) FROM HOP(z, tz, INTERVAL '5 seconds', INTERVAL '10 seconds') GROUP BY window_start;
        CREATE VIEW n AS SELECT window_start, window_end, count(*) AS n FROM TUMBLE(z, nanos, INTERVAL '5 seconds') GROUP BY window_start, window_end;
        INSERT INTO kafka.closed SELECT CAST(window_start AS TIMESTAMP), CAST(window_end AS TIMESTAMP), 'n', n FROM n WHERE window_end <= current_watermark();
        INSERT INTO kafka.closed SELECT CAST(window_start AS TIMESTAMP), CAST(window_end AS TIMESTAMP), _late_reason, id FROM LATE(n)";
    let mut sim = Sim::start(&tables, queries).await;
    let done = sim.batch(&step(1, vec![event(1, "a", 1), event(2, "a", 9)])).await.unwrap();
    let time = |s: &str| format!("2026-01-01T00:00:{s}");
    assert_same(
        done.rows(0),
        vec![
            vec!["2025-12-31T23:59:55Z".into(), "1".into()],
            vec![time("00Z"), "2".into()],
            vec![time("05Z"), "1".into()],
        ],
        "with a zone",
    );
    assert_same(done.rows(1), vec![vec![time("00"), time("05"), "n".into(), "1".into()]], "nanoseconds");
    let done = sim.batch(&step(1, vec![event(7, "a", 4)])).await.unwrap();
    assert_same(done.rows(2), vec![vec![time("00"), time("05"), "late".into(), "7".into()]], "late");
}

/// Lists and structs reach a sink as they are declared.
#[tokio::test]
async fn nested_values() {
    let tables = append("lists", "window_start TIMESTAMP, ids BIGINT[], names VARCHAR[]");
    let queries = "CREATE VIEW w AS SELECT window_start, window_end, array_agg(id ORDER BY id) AS ids, array_agg(DISTINCT k ORDER BY k) AS names
          FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end;
        INSERT INTO kafka.lists SELECT window_start, ids, names FROM w WHERE window_end <= current_watermark();
        INSERT INTO kafka.lists SELECT ts, [id, 1], [k] FROM kafka.events";
    let mut sim = Sim::start(&tables, queries).await;
    let events = vec![event(2, "a", 1), event(1, "b", 1), event(3, "a", 9)];
    let done = sim.batch(&step(1, events)).await.unwrap();
    assert_same(done.rows(0), vec![vec!["2026-01-01T00:00:00".into(), "[1, 2]".into(), "[a, b]".into()]], "aggregated");
    assert_eq!(done.rows(1)[0][1..], ["[2, 1]", "[a]"]);
}

#[tokio::test]
async fn state_that_does_not_fit_into_memory_is_an_error() {
    let queries = "SET poundlock.memory = '20 MB';
        CREATE VIEW w AS SELECT window_start, window_end, array_agg(t ORDER BY id) AS t FROM TUMBLE(kafka.events, ts, INTERVAL '1 hour')
          GROUP BY window_start, window_end;
        INSERT INTO kafka.closed SELECT window_start, window_end, t[1], 1 FROM w WHERE window_end <= current_watermark()";
    let mut sim = Sim::start(&tables(), queries).await;
    let text = "x".repeat(10_000);
    for batch in 0..40 {
        let events = (0..100).map(|id| Event { t: Some(text.clone()), ..event(batch * 100 + id, "a", 1) });
        if let Err(error) = sim.batch(&step(1, events.collect())).await {
            let error = error.to_string();
            assert!(
                batch > 5 && error.contains("does not fit into memory") && error.contains("poundlock.memory"),
                "{error}"
            );
            return;
        }
    }
    panic!("40 MB in 20 MB");
}

/// The batch meaning of TUMBLE and HOP, in an ad-hoc session, is the one that is kept.
#[tokio::test]
async fn an_adhoc_session_gives_the_same() {
    let events: Vec<Event> = (0..200).map(|id| event(id, ["a", "b"][id as usize % 2], id * 7 % 90)).collect();
    for from in ["TUMBLE(?, ts, INTERVAL '10 seconds')", "HOP(?, ts, INTERVAL '5 seconds', INTERVAL '20 seconds')"] {
        let queries = format!("INSERT INTO db.counts {}", counts(&from.replace('?', "kafka.events")));
        let mut sim = Sim::start(&tables(), &queries).await;
        let done = sim.batch(&step(100, events.clone())).await.unwrap();
        let plain = Oracle::plain(&events.iter().collect::<Vec<_>>());
        assert_same(done.rows(0), plain.rows(&counts(&from.replace('?', "events"))).await, from);
    }
}

#[tokio::test]
async fn approximate_percentiles_stay_within_their_error() {
    let queries = "CREATE VIEW w AS SELECT window_start, window_end, k, approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY f) AS p,
          median(f) AS exact FROM HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '10 seconds') GROUP BY window_start, window_end, k;
        INSERT INTO kafka.medians SELECT window_start, k, p, exact FROM w WHERE window_end <= current_watermark()";
    let mut sim = Sim::start(&tables(), queries).await;
    let mut rows = vec![];
    for batch in 0..10 {
        let events = (0..400).map(|i| {
            let f = ((batch * 400 + i) * 7_919 % 10_007) as f64;
            Event { f: Some(f), ..event(i, "a", batch * 2 + i % 3) }
        });
        rows.extend(sim.batch(&step(batch * 2, events.collect())).await.unwrap().rows(0));
    }
    assert!(rows.len() >= 2);
    for row in rows {
        let (p, exact): (f64, f64) = (row[2].parse().unwrap(), row[3].parse().unwrap());
        assert!((p - exact).abs() < 0.02 * 10_007.0, "{row:?}");
    }
}

/// What a batch costs with many keys in the windows of a HOP: printed, not judged (a dev build on a busy machine).
#[tokio::test]
async fn cost_of_a_batch_with_many_keys() {
    let hop = counts("HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '1 minute')");
    let changed = format!("INSERT INTO db.counts {hop}");
    let closed = format!(
        "CREATE VIEW w AS {hop}; INSERT INTO kafka.closed SELECT * FROM w WHERE window_end <= current_watermark()"
    );
    let whole = format!(
        "CREATE VIEW w AS {hop}; INSERT INTO db.counts SELECT window_start, window_end, k, sum(n) OVER (PARTITION BY window_start) FROM w"
    );
    for (name, queries) in [("changed rows", changed), ("closed windows", closed), ("whole windows", whole)] {
        let mut sim = Sim::start(&tables(), &queries).await;
        let (mut id, mut worst, mut total, mut rows) = (0_i64, 0, 0, 0);
        let batches = 15;
        for batch in 0..batches {
            let events = (0..1_000).map(|_| {
                id += 1;
                let key = (id * 7_919) % 5_000;
                Event {
                    k: Some(format!("user {key}")),
                    ts: Some(T0 + batch * 2 * SECOND + id % 1_000),
                    ..event(id, "", 0)
                }
            });
            let step = step(batch * 2, events.collect());
            let began = Instant::now();
            let done = sim.batch(&step).await.unwrap();
            let micros = began.elapsed().as_micros();
            rows += done.rows(0).len();
            (worst, total) = (worst.max(micros), total + micros);
        }
        let bytes: usize = sim.runner.stores().iter().map(|store| store.bytes()).sum();
        println!(
            "HOP(5 s, 1 min), 5,000 keys, 1,000 rows a batch, {name}: {} ms a batch, {} ms at worst, {} rows out, {bytes} B",
            total / 1_000 / batches as u128,
            worst / 1_000,
            rows
        );
    }
}
