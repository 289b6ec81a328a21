//! What a run does when it is told to end, to log or to prepare in a certain way, and what its commits account for.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::project::{LIMIT, Project, QUERIES, Servers};
use crate::harness::{Program, psql, wait_for};

fn event(id: i64, ts: &str) -> String {
    format!("{{\"id\":{id},\"k\":\"a\",\"n\":1,\"ts\":\"{ts}\"}}")
}

const TS: &str = "2024-01-01T00:00:00";

fn says(program: &mut Program, line: &str) {
    wait_for(&format!("the line {line:?}"), LIMIT, || {
        program.must_live();
        program.log().contains(line).then_some(())
    });
}

/// One event in each partition, so one batch each.
fn four_batches() -> Project {
    let project = Project::new(Servers::Embedded);
    (0..4).for_each(|id| project.produce(project.topic("EVENTS"), id as i32, [event(id, TS)]));
    project
}

#[test]
fn once_takes_one_batch_and_the_next_goes_on_behind_it() {
    let project = four_batches();
    for batches in 1..=4 {
        project.start(&["--once"], "").succeed(LIMIT);
        let commits = project.commits();
        let filled = commits
            .iter()
            .filter(|commit| commit.sources["kafka.events"].partitions.values().any(|partition| partition.fetched > 0));
        assert_eq!(filled.count(), batches);
        assert_eq!(project.ids("shares").len(), batches);
    }
    assert_eq!(project.ids("shares"), [0, 1, 2, 3]);
}

/// A start whose first batch takes three seconds to write, when that has been planned.
fn in_the_first_batch(project: &Project, arguments: &[&str]) -> Program {
    let mut program = project.start(arguments, "turn::before_write=1*sleep(3000)");
    says(&mut program, "pipeline is running");
    wait_for("a plan", LIMIT, || (!project.recovery().pending.is_empty()).then_some(()));
    program
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_bounded_run_that_ctrl_c_ends_early_finishes_its_batch_and_its_exit_code_tells() {
    let project = four_batches();
    let mut program = in_the_first_batch(&project, &["--until-caught-up"]);
    program.interrupt();
    assert_eq!(program.wait(LIMIT).code(), Some(130), "{}", program.log());
    let log = program.log();
    assert!(log.contains("finishing the batch in hand") && log.contains("stopped before its end"), "{log}");
    assert!((1..4).contains(&project.ids("shares").len()), "{log}");
    project.run(&[]);
    assert_eq!(project.ids("shares"), [0, 1, 2, 3]);
}

/// It ends at the ends of the start, though the log has none.
#[test]
fn until_caught_up_ends_while_records_keep_coming() {
    let project = four_batches();
    let mut program = project.start(&["--until-caught-up"], "");
    let mut produced = 4;
    wait_for("the end of the run", LIMIT, || {
        let ended = program.has_ended();
        project.produce(project.topic("EVENTS"), 0, (produced..produced + 20).map(|id| event(id, TS)));
        produced += 20;
        ended.then_some(())
    });
    program.succeed(LIMIT);
    let ids = project.ids("shares");
    assert!(ids.starts_with(&[0, 1, 2, 3]) && (ids.len() as i64) < produced, "{} of {produced}", ids.len());
    project.run(&[]);
    assert_eq!(project.ids("shares"), (0..produced).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs Kafka and PostgreSQL: make test"]
fn a_first_start_may_begin_at_a_moment() {
    let mut project = Project::new(Servers::Real);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    project.produce(project.topic("EVENTS"), 0, (0..5).map(|id| event(id, TS)));
    let before = now();
    let moment = wait_for("the next moment", LIMIT, || Some(now()).filter(|now| *now > before + 5));
    project.produce(project.topic("EVENTS"), 0, (5..10).map(|id| event(id, TS)));
    project.environment.insert("STARTING_OFFSETS", moment.to_string());
    project.run(&[]);
    assert_eq!(project.ids("shares"), (5..10).collect::<Vec<_>>());
    // The others are empty, and have no record that is as young: they begin at their ends.
    project.produce(project.topic("EVENTS"), 1, [event(10, TS)]);
    project.run(&[]);
    assert_eq!(project.ids("shares"), (5..11).collect::<Vec<_>>());
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_second_ctrl_c_stops_at_once_and_loses_nothing() {
    let project = four_batches();
    let mut program = in_the_first_batch(&project, &[]);
    program.interrupt();
    says(&mut program, "finishing the batch in hand");
    program.interrupt();
    assert_eq!(program.wait(LIMIT).code(), Some(130), "{}", program.log());
    assert!(project.commits().is_empty() && !project.recovery().pending.is_empty());
    project.run(&[]);
    assert_eq!(project.ids("shares"), [0, 1, 2, 3]);
}

#[test]
fn the_log_as_json_is_an_object_a_line_with_the_numbers_of_each_batch() {
    let project = four_batches();
    let log = project.run(&["--log-format", "json"]);
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    let lines: Vec<serde_json::Value> = lines.collect();
    let committed: Vec<_> = lines.iter().filter(|line| line["message"] == "committed").collect();
    let number = |line: &serde_json::Value, name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name}: {line}"));
    assert_eq!(committed.iter().map(|line| number(line, "rows")).sum::<u64>(), 4);
    for line in committed {
        for name in ["batch", "invalid", "late", "wait_ms", "run_ms", "write_ms", "commit_ms", "lag"] {
            number(line, name);
        }
        assert!(line["timestamp"].is_string() && line["level"] == "INFO", "{line}");
    }
}

#[test]
#[ignore = "needs Kafka and PostgreSQL: make test"]
fn migrations_beside_the_files_are_applied_at_a_start_unless_it_is_told_not_to() {
    let project = Project::new(Servers::Real);
    fs::create_dir(project.path("migrations")).unwrap();
    fs::write(project.path("migrations/V1__more.sql"), "CREATE TABLE more (id bigint);").unwrap();
    let is_there = || psql(project.topic("DATABASE_URL"), "SELECT to_regclass('more') IS NOT NULL").trim() == "t";
    let log = project.run(&["--migrate", "false"]);
    assert!(!is_there() && !log.contains("applied"), "{log}");
    let log = project.run(&[]);
    assert!(is_there() && log.contains("applied") && log.contains("V1__more"), "{log}");
    let log = project.run(&[]);
    assert!(!log.contains("applied"), "once only: {log}");
}

/// An event joined with a CSV file that is read again ten times a second.
const NAMED: &str = "
CREATE EXTERNAL TABLE names (k VARCHAR, name VARCHAR) STORED AS CSV LOCATION 'names.csv' OPTIONS ('refresh' '100 ms');
CREATE EXTERNAL TABLE db.named (id BIGINT, name VARCHAR) STORED AS DATABASE LOCATION '${DATABASE_URL}';
INSERT INTO db.named SELECT id, name FROM valid JOIN names ON valid.k = names.k;
";

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn a_dimension_is_read_again_and_a_replay_joins_with_what_was_there_then() {
    let project = Project::new(Servers::Embedded);
    project.write(&format!("{QUERIES}{NAMED}"));
    let name = |name: &str| fs::write(project.path("names.csv"), format!("k,name\na,{name}\n")).unwrap();
    let named = || project.rows("SELECT id, name FROM named");
    let produce = |id: i64| project.produce(project.topic("EVENTS"), 0, [event(id, TS)]);
    name("first");
    produce(1);
    assert!(project.dies(&[], "sqlite::before_write=return(die)"));
    name("second");
    produce(2);
    project.run(&[]);
    assert_eq!(named(), ["1|first", "2|second"]);

    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    name("third");
    let mut id = 2;
    wait_for("an event with the new name", LIMIT, || {
        program.must_live();
        id += 1;
        produce(id);
        named().iter().any(|row| row.ends_with("|third")).then_some(())
    });
    program.interrupt();
    program.succeed(LIMIT);
}

#[test]
fn rows_that_are_late_or_ahead_and_partitions_that_are_idle_stand_in_the_commits() {
    let project = Project::new(Servers::Embedded);
    project.write(&QUERIES.replace("'watermark.idle' '1 day'", "'watermark.idle' '300 ms'"));
    let produce =
        |partition: i32, id: i64, ts: &str| project.produce(project.topic("EVENTS"), partition, [event(id, ts)]);
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    let mut waits = |what: &str, found: &dyn Fn(&poundlock::checkpoint::Commit) -> bool| {
        wait_for(what, LIMIT, || {
            program.must_live();
            project.commits().iter().any(found).then_some(())
        });
    };
    produce(0, 1, "2024-01-01T00:01:00");
    // The other three have nothing, so they hold the watermark back no longer than they are waited for.
    waits("a watermark without the idle partitions", &|commit| {
        let source = &commit.sources["kafka.events"];
        source.watermark.is_some() && source.partitions.iter().all(|(partition, of)| of.idle == (*partition != 0))
    });
    produce(0, 2, "2024-01-01T00:00:01");
    waits("a late row", &|commit| commit.views["public.counted"].late == 1);
    produce(0, 3, "2999-01-01T00:00:00");
    waits("a row ahead", &|commit| commit.views["public.counted"].ahead == 1);
    program.interrupt();
    program.succeed(LIMIT);
    assert_eq!(project.ids("shares"), [1, 2, 3], "only windows leave them out");
    assert_eq!(project.rows("SELECT n FROM counts"), ["1"]);
}
