//! The shipped `queries/`.

use std::collections::BTreeMap;
use std::path::Path;

use super::harness::{Event, Sim, Step, append, event, keyed, step};
use crate::sql::substitute::Wanted;
use crate::sql::windowed::Rows;
use crate::sql::{Files, Program, parse, settings};

fn lookup(wanted: Wanted) -> Result<Option<String>, String> {
    Ok(match wanted {
        Wanted::Variable("DATABASE_URL") => Some("sqlite:/nowhere/test.db".into()),
        _ => None,
    })
}

async fn shipped(lookup: fn(Wanted) -> Result<Option<String>, String>) -> Program {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries");
    let files = Files::read(&folder, &lookup).unwrap();
    let script = parse(&files);
    let settings = settings::resolve(&BTreeMap::new(), &lookup, &files, &script.statements);
    let program = Program::plan(files, script, settings).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(program.warnings.is_empty(), "{:?}", program.warnings);
    program
}

/// With an address for it, three tables more; one of them is read back, a day and the hour itself before the watermark.
#[tokio::test]
async fn monitoring_takes_its_hours_in_turn() {
    let program = shipped(|wanted| match wanted {
        Wanted::Variable("MONITORING_URL") => lookup(Wanted::Variable("DATABASE_URL")),
        other => lookup(other),
    });
    let program = program.await;
    let seen = program.inserts.iter().filter(|insert| insert.table.name.starts_with("monitoring."));
    let seen: Vec<(&str, Vec<Rows>)> =
        seen.map(|insert| (&insert.table.name["monitoring.".len()..], insert.rows.iter().copied().collect())).collect();
    let expected = [
        ("hourly_metrics", vec![Rows::InTurn]),
        ("data_quality_checks", vec![Rows::Closed]),
        ("anomaly_detection_results", vec![Rows::Closed]),
        ("anomaly_detection_results", vec![Rows::InTurn]),
    ];
    assert_eq!(seen, expected);
    let [spec] = &program.read_back[..] else { panic!("one table") };
    let hours = |count: i64| count * 3_600_000_000;
    assert_eq!(spec.since, Some(("window_start".to_string(), -hours(25))));
    assert_eq!(program.windows.stores.len(), 3);
}

#[tokio::test]
async fn each_insert_sees_the_rows_it_needs() {
    let program = shipped(lookup).await;
    let seen: Vec<(&str, Vec<Rows>)> = program
        .inserts
        .iter()
        .map(|insert| (insert.table.name.as_str(), insert.rows.iter().copied().collect()))
        .collect();
    let expected = [
        ("kafka.dead_letter_topic", vec![]),
        ("db.user_events", vec![]),
        ("lake.user_events", vec![]),
        ("db.user_activity_summary", vec![Rows::Changed]),
        ("db.user_activity_summary", vec![Rows::Changed]),
        ("db.anomalous_events", vec![Rows::Closed]),
        ("kafka.anomaly_alerts", vec![Rows::Closed]),
    ];
    assert_eq!(seen, expected);
    assert!(program.inserts[..3].iter().all(|insert| insert.in_source_order));
    assert_eq!(program.windows.stores.len(), 1, "both sizes share their panes");
    let names: Vec<&str> = program.windows.views.iter().map(|view| view.name.as_str()).collect();
    assert_eq!(names, ["public.activity_5s", "public.activity_1min"]);
}

const ANOMALIES: &str = include_str!("../../../../queries/30_anomalies.sql");

const ACTIVITY: &str = "
CREATE VIEW activity_5s AS SELECT window_start, window_end, v AS user_id, count(*) AS event_count
FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, v;
CREATE VIEW activity_1min AS SELECT window_start, window_end, v AS user_id, count(*) AS event_count
FROM HOP(kafka.events, ts, INTERVAL '5 seconds', INTERVAL '1 minute') GROUP BY window_start, window_end, v;
";

#[tokio::test]
async fn without_a_deviation_there_is_no_anomaly_and_no_error() {
    let window = "user_id BIGINT, window_start TIMESTAMP, window_end TIMESTAMP, event_count BIGINT";
    let tables = keyed(
        "anomalous_events",
        &format!("{window}, mean DOUBLE, stddev DOUBLE, z_score DOUBLE, severity VARCHAR"),
        "user_id, window_start, window_end",
    ) + &append("anomaly_alerts", &format!("{window}, z_score DOUBLE, severity VARCHAR"));
    let of = |user: i64, seconds: i64, count: i64| (0..count).map(move |_| event(user, "k", seconds));
    // Each minutes from the others: three users alike; one user alone; twenty who do little, and one who does a lot.
    let mut events: Vec<Event> = (1..=3).flat_map(|user| of(user, 0, 10)).collect();
    events.extend(of(4, 600, 50));
    events.extend((10..30).flat_map(|user| of(user, 1_200, 1)).chain(of(99, 1_200, 30)));
    let mut sim = Sim::start(&tables, &format!("{ACTIVITY}{ANOMALIES}")).await;
    let done = sim.batch(&step(1_300, events)).await.unwrap();
    assert_eq!(done.rows(0).len(), 0, "the windows without a deviation are closed, the last ones open");
    let done = sim.batch(&Step { close: true, ..step(1_301, vec![]) }).await.unwrap();
    let (kept, of_each_batch) = sim.runner.plan_counts();
    assert_eq!((kept > 2, of_each_batch), (true, 0), "what a small batch costs: no plan is made anew");
    let found = done.rows(0);
    assert_eq!(found.len(), 13, "one window of 5 seconds, twelve of a minute: {found:?}");
    assert!(found.iter().all(|row| row[0] == "99" && row[7] == "medium"), "{found:?}");
    assert_eq!(done.rows(1).len(), 13);
}
