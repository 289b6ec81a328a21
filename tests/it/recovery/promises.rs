//! One test for each promise about a start: what is replayed, what is refused, what goes on where it was.

use std::collections::BTreeMap;

use super::contents::{self, messages};
use super::project::{LIMIT, Project, QUERIES, Servers, contains};
use crate::harness::{Program, wait_for};

fn event(id: i64) -> String {
    format!("{{\"id\":{id},\"k\":\"a\",\"n\":1,\"ts\":\"2024-01-01T00:00:00\"}}")
}

fn runs(program: &mut Program) {
    wait_for("the line that the pipeline is running", LIMIT, || {
        program.must_live();
        program.log().contains("pipeline is running").then_some(())
    });
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn starting_offsets_latest_count_once_even_if_nothing_was_committed() {
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("STARTING_OFFSETS", "latest".into());
    let topic = project.topic("EVENTS").to_string();
    project.produce(&topic, 0, (0..10).map(event));
    let mut program = project.start(&[], "checkpoint::before_commit=return(die)");
    runs(&mut program);
    assert!(program.dies(LIMIT));
    // Planned without a record, so that it is known where it begins.
    let planned = project.recovery().pending.remove(0);
    let range = planned.sources["kafka.events"].ranges[&0];
    assert_eq!((range.from, range.to), (10, 10));
    // `latest` would be the end of these now.
    project.produce(&topic, 0, (10..20).map(event));
    project.run(&[]);
    assert_eq!(project.commits()[0].sources["kafka.events"].ranges, planned.sources["kafka.events"].ranges);
    assert_eq!(project.ids("shares"), (10..20).collect::<Vec<_>>());
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_first_batch_that_is_planned_anew_begins_where_it_did() {
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("STARTING_OFFSETS", "latest".into());
    let topic = project.topic("EVENTS").to_string();
    project.produce(&topic, 0, (0..10).map(event));
    assert!(project.start(&[], "checkpoint::after_plan=return(die)").dies(LIMIT));
    project.produce(&topic, 0, (10..20).map(event));
    project.write(&format!("{QUERIES}-- another text\n"));
    contains(&project.run(&[]), &["no sink holds the batch: it is planned anew"]);
    assert_eq!(project.ids("shares"), (10..20).collect::<Vec<_>>());
}

#[test]
fn offsets_of_one_topic_are_not_used_for_another() {
    let mut project = Project::new(Servers::Embedded);
    let (topic, other) = (project.topic("EVENTS").to_string(), format!("{}_other", project.name));
    project.produce(&topic, 0, (0..5).map(event));
    project.produce(&other, 0, (5..50).map(event));
    project.run(&[]);
    project.environment.insert("EVENTS", other.clone());
    let error = project.refused(&[]);
    let reads = format!("table kafka.events reads topic {other:?}, the checkpoint has offsets of {topic:?}");
    contains(&error, &[&reads, "queries/all.sql:9:1", "another poundlock.name"]);
    // The same topic by another name would be read from its beginning once more.
    project.environment.insert("EVENTS", topic.clone());
    project.write(&QUERIES.replace("kafka.events", "kafka.happenings"));
    let error = project.refused(&[]);
    let known =
        format!("table kafka.happenings reads topic {topic:?}, which the checkpoint knows as table kafka.events");
    contains(&error, &[&known, "another poundlock.name"]);
    project.write(QUERIES);
    project.run(&[]);
    assert_eq!(project.ids("shares"), [0, 1, 2, 3, 4]);
}

/// Addresses are not in the program's text, so nothing but the plan tells which topic it is of.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn nor_are_offsets_that_are_only_planned() {
    let mut project = Project::new(Servers::Embedded);
    let (topic, other) = (project.topic("EVENTS").to_string(), format!("{}_other", project.name));
    project.produce(&topic, 0, (0..5).map(event));
    project.produce(&other, 0, (5..50).map(event));
    assert!(project.dies(&[], "checkpoint::after_plan=return(die)"));
    project.environment.insert("EVENTS", other);
    contains(&project.refused(&[]), &["table kafka.events reads topic", "the checkpoint has offsets of"]);
    project.environment.insert("EVENTS", topic);
    project.run(&[]);
    assert_eq!(project.ids("shares"), [0, 1, 2, 3, 4]);
}

/// With more than one partition rows come in any order and are sorted, with one they keep theirs: the database has the
/// hash of the order that it was given.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_replay_has_the_target_partitions_of_its_plan() {
    for (planned, now) in [("4", "1"), ("1", "4")] {
        let project = Project::new(Servers::Embedded);
        project.produce(project.topic("EVENTS"), 0, (0..20).rev().map(event));
        assert!(project.dies(&["--target-partitions", planned], "sqlite::after_commit=return(die)"));
        let log = project.run(&["--target-partitions", now]);
        contains(&log, &["replaying a batch"]);
        assert_eq!(project.ids("shares"), (0..20).collect::<Vec<_>>());
    }
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn changed_sql_goes_on_after_a_batch_that_is_half_written() {
    half_written(Servers::Embedded, "sqlite::before_write=return;parquet::after_write=return(die)");
}

/// With a producer and a connection for the old program, and others for the new one, under one name.
#[test]
#[ignore = "needs Kafka, PostgreSQL and the feature failpoints: make test"]
fn and_so_it_does_with_transactions_and_does_not_fence_itself() {
    let project = half_written(Servers::Real, "postgres::before_write=return;kafka::after_commit=return(die)");
    let shares = contents::sorted(project.rows("SELECT id, share FROM shares"));
    let copy = |message: String| {
        let copy: serde_json::Value = serde_json::from_str(&message).unwrap();
        format!("{}|{}", copy["id"], copy["share"])
    };
    let copies = contents::sorted(messages(&project, project.topic("COPIES")).into_iter().map(copy));
    assert_eq!(copies, shares);
}

fn half_written(servers: Servers, points: &str) -> Project {
    let project = Project::new(servers);
    let topic = project.topic("EVENTS").to_string();
    project.produce(&topic, 0, (0..10).map(event));
    assert!(project.dies(&[], points));
    assert!(project.commits().is_empty() && project.rows("SELECT * FROM shares").is_empty());
    let planned = project.recovery().pending.remove(0).sources["kafka.events"].ranges[&0];
    project.write(&QUERIES.replace(", share,", ", share + 1000,").replace("id, share FROM", "id, share + 1000 FROM"));
    project.produce(&topic, 0, (10..20).map(event));
    let log = project.run(&[]);
    contains(&log, &["finishing the batch under the SQL it was planned with"]);
    assert!(!log.contains("fenced"), "{log}");
    let share = |id: i64| if id < planned.to { 100 } else { 1_100 };
    let expected = contents::sorted((0..20).map(|id| format!("{id}|{}", share(id))));
    assert_eq!(contents::sorted(project.rows("SELECT id, share FROM shares")), expected);
    let lake = project.lake().into_iter().map(|row| row.trim_end_matches("|k=a").to_string());
    assert_eq!(contents::sorted(lake), expected);
    project
}

/// Plans a batch of all four partitions, 10 events in each, and dies at the points.
fn one_large_batch(points: &str) -> (Project, BTreeMap<i32, i64>) {
    let project = Project::new(Servers::Embedded);
    let mut program = project.start(&["--trigger", "1 hour", "--max-rows-per-batch", "40"], points);
    // The first cut, at once, finds nothing; the second comes when the 40 are there.
    runs(&mut program);
    for partition in 0..4 {
        let from = i64::from(partition) * 10;
        project.produce(project.topic("EVENTS"), partition, (from..from + 10).map(event));
    }
    assert!(program.dies(LIMIT));
    let planned = project.recovery().pending.remove(0);
    let ends: BTreeMap<i32, i64> =
        planned.sources["kafka.events"].ranges.iter().map(|(partition, range)| (*partition, range.to)).collect();
    assert_eq!(ends, (0..4).map(|partition| (partition, 10)).collect());
    (project, ends)
}

fn first_ends(project: &Project) -> BTreeMap<i32, i64> {
    project.commits()[0].sources["kafka.events"]
        .ranges
        .iter()
        .map(|(partition, range)| (*partition, range.to))
        .collect()
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_batch_that_no_sink_holds_is_planned_smaller_when_the_limits_are_lower() {
    let (project, ends) = one_large_batch("turn::before_write=return(die)");
    let log = project.run(&[]); // the files say one row
    contains(&log, &["the limits of a batch are lower and no sink holds the batch: it is planned anew"]);
    let first = first_ends(&project);
    assert_ne!(first, ends);
    assert_eq!(first.values().filter(|end| **end > 0).count(), 1, "one chunk of one partition: {first:?}");
    assert_eq!(project.ids("shares"), (0..40).collect::<Vec<_>>());

    // With the limits as they were, and with higher ones, it is replayed.
    for rows in ["40", "1000"] {
        let (project, ends) = one_large_batch("turn::before_write=return(die)");
        let log = project.run(&["--max-rows-per-batch", rows]);
        assert!(!log.contains("planned anew") && log.contains("replaying a batch"), "{log}");
        assert_eq!(first_ends(&project), ends);
        assert_eq!(project.ids("shares"), (0..40).collect::<Vec<_>>());
    }
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_batch_that_a_sink_holds_is_finished_as_it_was_planned() {
    let (project, ends) = one_large_batch("sqlite::before_write=return;parquet::after_write=return(die)");
    let log = project.run(&["--max-bytes-per-batch", "1 KiB"]);
    contains(&log, &["the limits of a batch are lower, but [\"parquet\"] hold the batch", "replaying a batch"]);
    assert_eq!(first_ends(&project), ends);
    assert_eq!(project.ids("shares"), (0..40).collect::<Vec<_>>());
    assert_eq!(project.lake().len(), 40);
}

/// Beside `counted` a second windowed view, with other aggregates and so with a state of its own.
const SECOND_VIEW: &str = "
CREATE EXTERNAL TABLE db.totals (window_start TIMESTAMP, n BIGINT, PRIMARY KEY (window_start))
  STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('on_conflict' 'update');
CREATE VIEW per_minute AS
SELECT window_start, window_end, count(id) AS n FROM TUMBLE(valid, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;
INSERT INTO db.totals SELECT window_start, n FROM per_minute;
";

/// The sum of a table's counts.
fn total(project: &Project, table: &str) -> i64 {
    project.rows(&format!("SELECT coalesce(sum(n), 0) FROM {table}"))[0].parse().unwrap()
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_reset_lasts_even_if_the_process_is_killed_before_its_next_commit() {
    let project = Project::new(Servers::Embedded);
    project.feed(0);
    project.run(&[]);
    let (closed, before) = (total(&project, "closed"), total(&project, "counts"));
    assert!(closed < before, "some windows are open");
    project.write(&QUERIES.replace("count(*) AS n", "count(id) AS n"));
    contains(&project.refused(&[]), &["windowed view public.counted is new, or its SQL has changed", "--reset-state"]);
    assert!(project.dies(&["--reset-state"], "turn::after_cut=return(die)"));
    project.feed(1);
    // Without the flag: the reset is done.
    project.run(&["--close-windows"]);
    let fresh = project.rows("SELECT id FROM shares WHERE id >= 1000").len() as i64;
    assert_eq!(total(&project, "closed"), closed + fresh, "what was open counts nothing of before");
}

#[test]
fn a_reset_empties_only_the_views_whose_state_does_not_fit() {
    let project = Project::new(Servers::Embedded);
    project.write(&format!("{QUERIES}{SECOND_VIEW}"));
    project.feed(0);
    project.run(&[]);
    let all = |project: &Project| project.rows("SELECT id FROM shares").len() as i64;
    let first = all(&project);
    assert_eq!((total(&project, "counts"), total(&project, "totals")), (first, first));

    // Changed: its minute, of which all is open, begins anew. The other view's windows go on, those of before included.
    project.write(&format!("{QUERIES}{}", SECOND_VIEW.replace("count(id)", "count(ts)")));
    let error = project.refused(&[]);
    contains(&error, &["windowed view public.per_minute is new, or its SQL has changed"]);
    assert!(!error.contains("counted"), "{error}");
    project.feed(1);
    contains(&project.run(&["--reset-state"]), &["the window state of public.per_minute was reset"]);
    let second = all(&project);
    assert_eq!(total(&project, "counts"), second);
    // Events of stage 1 begin 40 s after those of stage 0, so they are in the first two minutes.
    assert_eq!(total(&project, "totals"), second - first);
    contains(&project.run(&["--reset-state"]), &["no window state was reset"]);

    // New: the one that is there goes on.
    let third_view =
        SECOND_VIEW.replace("totals", "thirds").replace("per_minute", "in_minutes").replace("count(id)", "count(k)");
    project.write(&format!("{QUERIES}{}{third_view}", SECOND_VIEW.replace("count(id)", "count(ts)")));
    contains(&project.refused(&[]), &["windowed view public.in_minutes is new"]);
    project.feed(2);
    contains(&project.run(&["--reset-state=changed"]), &["the window state of public.in_minutes was reset"]);
    let third = all(&project);
    assert_eq!(total(&project, "counts"), third);
    assert_eq!(total(&project, "totals"), third - first);
    assert_eq!(total(&project, "thirds"), third - second);
}

/// What an upgrade of DataFusion does: the text is the same, the kept state does not fit.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_reset_with_a_batch_in_hand_plans_it_anew_unless_a_sink_holds_a_part() {
    for held in [false, true] {
        let project = Project::new(Servers::Embedded);
        project.feed(0);
        project.run(&[]);
        project.feed(1);
        let point = if held { "sqlite::after_commit=return(die)" } else { "turn::before_write=return(die)" };
        assert!(project.dies(&[], point));
        let upgraded = |arguments: &[&str]| {
            project.start(&[&["--until-caught-up"], arguments].concat(), "state::key=return(another version)")
        };
        let error = upgraded(&[]).fails(LIMIT);
        contains(&error, &["windowed view public.counted is new, or its SQL has changed", "--reset-state"]);
        if held {
            let error = upgraded(&["--reset-state"]).fails(LIMIT);
            contains(&error, &["planned on window state that does not fit any more", "start once with the files"]);
            project.run(&[]); // the version before
        }
        let log = upgraded(&["--reset-state"]).succeed(LIMIT);
        contains(&log, &["the window state of public.counted was reset"]);
        assert_eq!(log.contains("it is planned anew, on the state after the reset"), !held, "{log}");
        let expected = Project::new(Servers::Embedded);
        (0..2).for_each(|stage| expected.feed(stage));
        expected.run(&[]);
        let shares = "SELECT * FROM shares";
        assert_eq!(contents::sorted(project.rows(shares)), contents::sorted(expected.rows(shares)));
    }
}

#[test]
fn a_reset_of_all_empties_every_view() {
    let project = Project::new(Servers::Embedded);
    project.write(&format!("{QUERIES}{SECOND_VIEW}"));
    project.feed(0);
    project.run(&[]);
    let (closed, first) = (total(&project, "closed"), project.rows("SELECT id FROM shares").len() as i64);
    project.feed(1);
    let log = project.run(&["--reset-state=all", "--close-windows"]);
    contains(&log, &["the window state of public.counted, public.per_minute was reset"]);
    let fresh = project.rows("SELECT id FROM shares").len() as i64 - first;
    assert_eq!(total(&project, "closed"), closed + fresh);
}

/// [`QUERIES`] without their table for dead letters.
fn without_dead_letters() -> String {
    let (table, insert) =
        (QUERIES.find("CREATE EXTERNAL TABLE kafka.dead").unwrap(), QUERIES.find("INSERT INTO kafka.dead").unwrap());
    let end = |from: usize| from + QUERIES[from..].find(";\n").unwrap() + 2;
    format!("{}{}{}", &QUERIES[..table], &QUERIES[end(table)..insert], &QUERIES[end(insert)..])
}

const NO_PLACE: &[&str] = &["a row was refused, and there is no table for dead letters", "declare one with OPTIONS"];

#[test]
fn a_row_that_a_query_refuses_without_a_place_for_it_waits_for_one() {
    let project = Project::new(Servers::Embedded);
    project.write(&without_dead_letters());
    project.produce(
        project.topic("EVENTS"),
        0,
        (0..4).map(|id| event(id).replace("\"n\":1", if id == 2 { "\"n\":0" } else { "\"n\":1" })),
    );
    contains(&project.refused(&[]), NO_PLACE);
    contains(&project.refused(&[]), NO_PLACE);
    project.write(QUERIES);
    contains(&project.run(&[]), &["no sink holds the batch: it is planned anew"]);
    assert_eq!(project.ids("shares"), [0, 1, 3]);
    let dead = messages(&project, project.topic("DEAD"));
    assert_eq!(dead.len(), 1, "{dead:?}");
    contains(&dead[0], &["\"stage\":\"query\"", "\"offset\":2"]);
}

#[test]
fn a_row_that_a_sink_refuses_without_a_place_for_it_waits_for_one() {
    let project = Project::new(Servers::Embedded);
    project.write(&without_dead_letters());
    project.produce(project.topic("EVENTS"), 0, (0..2).map(event));
    project.run(&[]);
    let database = rusqlite::Connection::open(project.path("db")).unwrap();
    database
        .execute_batch(
            "CREATE TRIGGER t BEFORE INSERT ON shares WHEN NEW.id = 2 BEGIN SELECT RAISE(ABORT, 'no twos'); END",
        )
        .unwrap();
    drop(database);
    project.produce(project.topic("EVENTS"), 0, (2..4).map(event));
    contains(&project.refused(&[]), NO_PLACE);
    contains(&project.refused(&[]), NO_PLACE);
    // The database holds the batch by now: it is finished under its own SQL, its dead letter goes where the new one says.
    project.write(QUERIES);
    contains(&project.run(&[]), &["finishing the batch under the SQL it was planned with"]);
    assert_eq!(project.ids("shares"), [0, 1, 3]);
    let dead = messages(&project, project.topic("DEAD"));
    assert_eq!(dead.len(), 1, "{dead:?}");
    // {"id":2,"…: its record was read again.
    contains(&dead[0], &["\"stage\":\"sink\"", "no twos", "\"raw\":\"eyJpZCI6Miwi"]);
}
