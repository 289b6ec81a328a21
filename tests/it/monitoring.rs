//! The tables of `queries/50_monitoring.sql` over two days of events: hours with their score among those before them, read
//! back from the table itself; checks of quality that pass and fail; what dashboards ask for.

use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;

use crate::harness::{PARTITIONS, World, create_topics};
use crate::judge::{judge, verdict};

const ACTIONS: [&str; 8] =
    ["view", "click", "search", "add_to_cart", "remove_from_cart", "purchase", "login", "logout"];

/// Events of an hour: about as many in each, but for two without any, one with far more and one with nearly none.
fn events_of(hour: i64) -> i64 {
    match hour {
        12 | 13 => 0,
        30 => 600,
        35 => 5,
        _ => 60 + hour * 37 % 23,
    }
}

/// In order, and with Kafka's time, so that none is late however the batches are cut.
fn feed(world: &World, hours: std::ops::Range<i64>) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &world.brokers).set("linger.ms", "5").create().unwrap();
    let start = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
    for hour in hours {
        let count = events_of(hour);
        let mut before = String::new();
        for number in 0..count {
            let moment = start + TimeDelta::hours(hour) + TimeDelta::milliseconds(number * 3_600_000 / count);
            let mut event = json!({
                "user_id": number % 17 + 1,
                "action": ACTIONS[(number % 8) as usize],
                "timestamp": moment.format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
                "device_id": format!("device_{hour}_{number}"),
            });
            // Not at the same time of every hour, so that some minutes fail a check and others do not.
            let payload = match (number + hour) % 25 {
                7 => "no JSON {".to_string(),
                11 => without(&mut event, "user_id"),
                13 => without(&mut event, "timestamp"),
                17 if !before.is_empty() => before.clone(),
                _ => event.to_string(),
            };
            let delay = if (number + hour) % 11 == 0 { 90_000 } else { 2_000 };
            let record: BaseRecord<str, str> = BaseRecord::to(&world.events)
                .partition((number % i64::from(PARTITIONS - 1)) as i32)
                .timestamp(moment.timestamp_millis() + delay)
                .payload(&payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
            before = payload;
        }
        if hour == 20 {
            burst(&producer, world, start + TimeDelta::hours(hour) + TimeDelta::minutes(59) + TimeDelta::seconds(55));
        }
        producer.flush(Duration::from_secs(60)).unwrap();
    }
    assert_eq!(producer.in_flight_count(), 0);
}

/// Twenty users do something once within five seconds, one of them far more often.
fn burst(producer: &BaseProducer, world: &World, window: DateTime<chrono::Utc>) {
    for number in 0..50 {
        let moment = window + TimeDelta::milliseconds(number * 90);
        let event = json!({
            "user_id": if number < 20 { 100 + number } else { 10 },
            "action": "click",
            "timestamp": moment.format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
            "device_id": format!("burst_{number}"),
        });
        let payload = event.to_string();
        let record: BaseRecord<str, str> =
            BaseRecord::to(&world.events).partition(0).timestamp(moment.timestamp_millis()).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
}

fn without(event: &mut serde_json::Value, field: &str) -> String {
    event.as_object_mut().unwrap().remove(field);
    event.to_string()
}

#[test]
#[ignore = "needs Kafka, PostgreSQL and Elasticsearch: make test"]
fn two_days_of_hours_and_checks() {
    let mut world = World::new("monitoring");
    world.events = format!("{}_hours", world.events);
    // Kafka would remove records that are so old by their own time.
    create_topics(&world.brokers, &[(&world.events, PARTITIONS)], &[("retention.ms", "-1")]);
    // Many hours close in one batch here, and in several starts.
    for hours in [0..25, 25..31, 31..40] {
        feed(&world, hours.clone());
        let close =
            if hours.end == 40 { &["--until-caught-up", "--close-windows"][..] } else { &["--until-caught-up"] };
        world.run(close).succeed(Duration::from_secs(240));
    }
    println!("{}", judge(&world));

    let far =
        world.sql("SELECT count(*) FROM hourly_metrics WHERE hours_before >= 20 AND z_score > 5 AND events > 500");
    assert_eq!(far.trim(), "1", "the hour that stands out");
    let hours =
        "SELECT count(*) FROM anomaly_detection_results WHERE metric = 'events_per_hour' AND method = 'history'";
    assert_ne!(world.sql(hours).trim(), "0");
    for check in ["completeness", "validity", "uniqueness", "timeliness", "volume"] {
        let both = format!("SELECT count(DISTINCT status) FROM data_quality_checks WHERE check_name = '{check}'");
        assert_eq!(world.sql(&both).trim(), "2", "{check} passes and fails");
    }
    let queries = world.sql("SELECT replace(query, chr(10), ' ') FROM dashboard_metadata ORDER BY dashboard, position");
    assert!(queries.lines().count() >= 9, "{queries}");
    for query in queries.lines() {
        assert!(!world.sql(query).trim().is_empty(), "{query}");
    }
    let mut command = world.command(&["sql", "queries", "--format", "csv", "-c"]);
    let command = command.arg("SELECT max(hours_before) AS hours FROM monitoring.hourly_metrics");
    assert_eq!(crate::cli::text(&command.output().unwrap().stdout), "hours\n24\n");

    for (fault, finding) in [
        ("UPDATE hourly_metrics SET mean = mean + 1 WHERE hours_before = 24", "with the score of each"),
        ("DELETE FROM hourly_metrics WHERE hours_before = 10", "hours"),
        ("UPDATE data_quality_checks SET status = 'passed'", "checks"),
        ("DELETE FROM anomaly_detection_results WHERE metric = 'events_per_hour'", "all anomalies"),
    ] {
        world.sql(fault);
        let findings = verdict(&world).expect_err(fault);
        assert!(findings.contains(&format!("  WRONG {finding}")), "{fault}\n{findings}");
    }
}

/// Without its address nothing of it is there, and nothing costs anything.
#[test]
#[ignore = "needs Kafka, PostgreSQL and Elasticsearch: make test"]
fn it_is_off_until_it_has_an_address() {
    let world = World::new("unmonitored");
    let mut command = world.command(&["check", "queries", "--format", "json"]);
    let output = command.env_remove("MONITORING_URL").output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let off = report["off"].to_string();
    for table in ["hourly_metrics", "data_quality_checks", "anomaly_detection_results"] {
        assert!(off.contains(&format!("monitoring.{table}")), "{off}");
    }
    let views = report["windowed_views"].as_array().unwrap();
    assert_eq!(views.len(), 2, "the two of the counts: {views:?}");
    let output = world.command(&["check", "queries", "--format", "json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["read_back"][0]["table"], "monitoring.hourly_metrics", "{report}");
    assert_eq!(report["windowed_views"].as_array().unwrap().len(), 4);
}
