//! Tables that are turned off and on again, by an empty address, between batches and in the middle of one.

use std::collections::BTreeSet;

use super::contents::messages;
use super::project::{Project, QUERIES, Servers, contains};

fn event(id: i64) -> String {
    format!("{{\"id\":{id},\"k\":\"a\",\"n\":1,\"ts\":\"2024-01-01T00:00:00\"}}")
}

const TWO_SOURCES: &str = "
SET poundlock.name = '${NAME}';
SET poundlock.trigger = '20 ms';
CREATE SCHEMA kafka;
CREATE SCHEMA db;
CREATE UNBOUNDED EXTERNAL TABLE kafka.a (id BIGINT) STORED AS KAFKA LOCATION '${EVENTS}' OPTIONS ('brokers' '${KAFKA_BROKER}');
CREATE UNBOUNDED EXTERNAL TABLE kafka.b (id BIGINT) STORED AS KAFKA LOCATION '${B}' OPTIONS ('brokers' '${KAFKA_BROKER}');
CREATE EXTERNAL TABLE db.a (id BIGINT) STORED AS DATABASE LOCATION '${DATABASE_URL}';
CREATE EXTERNAL TABLE db.b (id BIGINT) STORED AS DATABASE LOCATION '${DATABASE_URL}';
INSERT INTO db.b SELECT id FROM kafka.b;
INSERT INTO db.a SELECT id FROM kafka.a;
";

/// Puts so many more ids into both topics; which, is counted.
fn both(project: &Project, ids: std::ops::Range<i64>) {
    for topic in [project.topic("EVENTS"), &format!("{}_other", project.name)] {
        project.produce(topic, 0, ids.clone().map(|id| format!("{{\"id\":{id}}}")));
    }
}

fn two_sources() -> (Project, String) {
    let mut project = Project::new(Servers::Embedded);
    let b = format!("{}_other", project.name);
    project.environment.insert("B", b.clone());
    project.write(TWO_SOURCES);
    both(&project, 0..10);
    (project, b)
}

#[test]
fn a_source_that_was_off_for_some_batches_goes_on_where_it_was() {
    let (mut project, b) = two_sources();
    project.run(&[]);
    project.environment.insert("B", String::new());
    for stage in 1..4 {
        both(&project, stage * 10..stage * 10 + 10);
        contains(&project.run(&[]), &["is off: its address is empty"]);
    }
    assert_eq!(project.ids("b"), (0..10).collect::<Vec<_>>());
    project.environment.insert("B", b);
    both(&project, 40..50);
    project.run(&[]);
    for table in ["a", "b"] {
        assert_eq!(project.ids(table), (0..50).collect::<Vec<_>>(), "table {table}");
    }
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_table_is_not_turned_off_in_the_middle_of_a_batch() {
    // No sink has anything of the batch: it is planned anew without the table, which later goes on where it was.
    let (mut project, b) = two_sources();
    assert!(project.dies(&[], "checkpoint::after_plan=return(die)"));
    project.environment.insert("B", String::new());
    contains(&project.run(&[]), &["tables were turned on or off and no sink holds the batch: it is planned anew"]);
    assert_eq!((project.ids("a").len(), project.ids("b").len()), (10, 0));
    project.environment.insert("B", b);
    project.run(&[]);
    assert_eq!((project.ids("a").len(), project.ids("b").len()), (10, 10));

    let (mut project, b) = two_sources();
    assert!(project.dies(&[], "sqlite::after_commit=return(die)"));
    project.environment.insert("B", String::new());
    let error = project.refused(&[]);
    contains(&error, &["table kafka.b was turned on or off in the middle of a batch", "addresses as they were"]);
    project.environment.insert("B", b);
    project.run(&[]);
    project.environment.insert("B", String::new());
    project.run(&[]);
    assert_eq!((project.ids("a").len(), project.ids("b").len()), (10, 10));
}

/// A sink that is turned off cannot be asked what it holds, and may be turned off because it is dead.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_sink_that_is_turned_off_in_the_middle_of_a_batch_has_nothing_twice() {
    let mut project = Project::new(Servers::Embedded);
    project.produce(project.topic("EVENTS"), 0, (0..10).map(event));
    // The copies are out, the database has nothing.
    assert!(project.dies(&[], "sqlite::before_write=return;kafka::after_commit=return(die)"));
    let copies = |project: &Project| messages(project, &format!("{}_copies", project.name)).len();
    let planned = project.recovery().pending.remove(0).sources["kafka.events"].ranges[&0];
    let held = copies(&project);
    assert_eq!(held as i64, planned.to - planned.from);
    let topic = project.environment.insert("COPIES", String::new()).unwrap();
    project.produce(project.topic("EVENTS"), 0, (10..20).map(event));
    // Lower limits would cut it smaller, if no sink held it.
    let log = project.run(&["--max-bytes-per-batch", "1 KiB"]);
    contains(&log, &["kafka.copies (off, so it cannot be asked)", "finished as it was planned", "replaying a batch"]);
    assert_eq!(project.commits()[0].sources["kafka.events"].ranges[&0], planned);
    assert_eq!(project.ids("shares"), (0..20).collect::<Vec<_>>());
    assert_eq!(copies(&project), held);
    project.environment.insert("COPIES", topic);
    project.produce(project.topic("EVENTS"), 0, (20..30).map(event));
    project.run(&[]);
    assert_eq!(project.ids("shares"), (0..30).collect::<Vec<_>>());
    assert_eq!(copies(&project), held + 10, "those it was turned off for are not made up for, and none comes twice");
}

/// A source that only the sink read which is off now would begin where the batch did, when it is on again.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn nor_is_the_only_reader_of_a_source() {
    // On a busy machine the first batch may have the rows of one source alone.
    let of_both = (0..20).find_map(|_| {
        let (mut project, _) = two_sources();
        project.write(&TWO_SOURCES.replacen("LOCATION '${DATABASE_URL}'", "LOCATION '${FIRST_URL}'", 1));
        let url = project.environment["DATABASE_URL"].clone();
        project.environment.insert("FIRST_URL", url.clone());
        assert!(project.dies(&[], "sqlite::after_commit=return(die)"));
        (project.ids("a").len() == 10 && project.ids("b").len() == 10).then_some((project, url))
    });
    let (mut project, url) = of_both.expect("a batch of both sources");
    project.environment.insert("FIRST_URL", String::new());
    contains(&project.refused(&[]), &["was turned on or off in the middle of a batch", "addresses as they were"]);
    project.environment.insert("FIRST_URL", url);
    project.run(&[]);
    assert_eq!((project.ids("a").len(), project.ids("b").len()), (10, 10));
}

/// The database has the rows of both tables; its record is of both.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn one_table_of_a_database_is_turned_off_and_the_others_go_on() {
    let mut project = Project::new(Servers::Embedded);
    let closed = QUERIES.find("CREATE EXTERNAL TABLE db.closed").unwrap();
    let (before, after) = QUERIES.split_at(closed);
    project.write(&format!("{before}{}", after.replacen("${DATABASE_URL}", "${CLOSED_URL}", 1)));
    let url = project.environment["DATABASE_URL"].clone();
    project.environment.insert("CLOSED_URL", url);
    project.feed(0);
    assert!(project.dies(&[], "sqlite::after_commit=return(die)"));
    project.environment.insert("CLOSED_URL", String::new());
    contains(&project.run(&[]), &["db.closed (off, so it cannot be asked)", "finished as it was planned"]);
    let all = project.ids("shares");
    let different: BTreeSet<i64> = all.iter().copied().collect();
    assert_eq!(all.len(), different.len());
}
