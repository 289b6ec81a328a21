//! Sinks with an outbox, end to end: dead ones stop nothing, and have everything once when they are back.
//!
//! ```text
//! events ─▶ db.shares, lake.events (required)
//!        └▶ late.copies (outbox)                      a file of SQLite that is locked: a dead database
//!           es.copies, late.copies, …                 real servers that are killed, by pid: outbox/killed.rs
//! ```

mod killed;
pub mod servers;

use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::cli::{poundlock, text};
use crate::harness::{Answering, Program, Proxy, Way, wait_for};
use crate::recovery::contents::{self, messages};
use crate::recovery::project::{LIMIT, Project, QUERIES, Servers, contains};

fn event(id: i64) -> String {
    format!("{{\"id\":{id},\"k\":\"a\",\"n\":1,\"ts\":\"2024-01-01T00:00:00\"}}")
}

/// A second database, with an outbox, beside what every project has.
const LATE: &str = "
CREATE SCHEMA late;
CREATE EXTERNAL TABLE late.copies (id BIGINT, share BIGINT) STORED AS DATABASE LOCATION '${LATE_URL}'
  OPTIONS ('delivery' 'outbox', 'connect_timeout' '100 ms');
INSERT INTO late.copies SELECT id, share FROM valid;
";

/// A project of which a second database can be locked.
fn project() -> Project {
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("LATE_URL", format!("sqlite:{}", project.path("late").display()));
    project.write(&format!("{QUERIES}{LATE}"));
    project
}

/// As long as it is held, nobody else reads or writes the file: the database does not answer.
struct Dead(Connection);

impl Dead {
    fn make(project: &Project) -> Self {
        let connection = Connection::open(project.path("late")).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
        Self(connection)
    }

    fn revive(self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

/// A copy of the second database, whole, whatever is in its log.
fn copy_database(project: &Project, from: &str, to: &str) {
    let to = project.path(to);
    for file in [to.clone(), format!("{}-wal", to.display()).into(), format!("{}-shm", to.display()).into()] {
        if file.exists() {
            std::fs::remove_file(file).unwrap();
        }
    }
    let connection = Connection::open(project.path(from)).unwrap();
    connection.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

fn copies(project: &Project) -> Vec<i64> {
    let rows = contents::sqlite(&project.path("late"), "SELECT id FROM copies");
    let mut ids: Vec<i64> = rows.iter().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// Rows that commits say were put into the outbox, and rows that were written without one.
fn handed_over(project: &Project) -> u64 {
    project.commits().iter().flat_map(|commit| commit.inserts.values()).filter_map(|of| of.outbox).sum()
}

fn directly(project: &Project) -> u64 {
    let commits = project.commits();
    let inserts = commits.iter().flat_map(|commit| commit.inserts.values());
    inserts.filter(|of| of.table == "late.copies").map(|of| of.report.written).sum()
}

fn produce(project: &Project, ids: std::ops::Range<i64>) {
    project.produce(project.topic("EVENTS"), 0, ids.map(event));
}

fn says(program: &mut Program, line: &str) {
    wait_for(&format!("the line {line:?}"), LIMIT, || {
        program.must_live();
        program.log().contains(line).then_some(())
    });
}

pub fn status(project: &Project) -> Value {
    let mut command = poundlock(project.folder.path(), &["status", "--format", "json"]);
    let output = command.envs(&project.environment).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_str(&text(&output.stdout)).unwrap()
}

fn of_outbox(status: &Value) -> Value {
    let sinks = status["sinks"].as_array().unwrap();
    sinks.iter().find(|sink| sink["delivery"] == "outbox").unwrap_or_else(|| panic!("{status:#}")).clone()
}

/// Polls until the sink with the outbox is told to be so.
fn told(project: &Project, circuit: &str) -> Value {
    wait_for(&format!("circuit {circuit}"), LIMIT, || {
        let sink = of_outbox(&status(project));
        // An attempt is made now and then.
        let found = if sink["circuit"] == "half_open" { "open" } else { sink["circuit"].as_str().unwrap() };
        (found == circuit).then_some(sink)
    })
}

#[test]
fn a_dead_sink_stops_nothing_and_has_everything_once_when_it_is_back() {
    let project = project();
    produce(&project, 0..10);
    project.run(&[]);
    assert_eq!(copies(&project), (0..10).collect::<Vec<_>>());

    let dead = Dead::make(&project);
    let mut program = project.start(&[], "");
    for stage in 1..6 {
        produce(&project, stage * 10..stage * 10 + 10);
        let expected: Vec<i64> = (0..stage * 10 + 10).collect();
        wait_for("the required sinks", LIMIT, || {
            program.must_live();
            (project.ids("shares") == expected && project.lake().len() == expected.len()).then_some(())
        });
    }
    let sink = told(&project, "open");
    assert!(sink["error"].as_str().unwrap().contains("locked"), "{sink:#}");
    assert!(sink["outbox"]["batches"].as_u64().unwrap() >= 5 && sink["outbox"]["rows"] == 50, "{sink:#}");
    assert!(sink["oldest_s"].is_u64() && sink["outbox"]["bytes"].as_u64().unwrap() > 1_000, "{sink:#}");
    let text = {
        let mut command = poundlock(project.folder.path(), &["status"]);
        crate::cli::text(&command.envs(&project.environment).output().unwrap().stdout)
    };
    contains(&text, &["running    process ", "committed  batch ", ": outbox, ", "batches wait: 50 rows"]);
    assert_eq!(program.log().matches("circuit open").count(), 1, "{}", program.log());

    // A start while it is dead goes on as well, and is killed as well.
    program.kill();
    let mut program = project.start(&[], "");
    says(&mut program, "batches wait in the outbox");
    produce(&project, 60..70);
    wait_for("the required sinks", LIMIT, || (project.ids("shares").len() == 70).then_some(()));
    program.kill();
    let mut program = project.start(&[], "");
    told(&project, "open");
    dead.revive();
    says(&mut program, "circuit closed");
    let expected: Vec<i64> = (0..70).collect();
    wait_for("all that waited", LIMIT, || {
        program.must_live();
        (copies(&project) == expected).then_some(())
    });
    let sink = told(&project, "closed");
    assert!(sink["error"].is_null(), "{sink:#}");
    program.interrupt();
    program.succeed(LIMIT);
    let status = status(&project);
    assert!(status["running"] == false && of_outbox(&status)["outbox"]["batches"] == 0, "{status:#}");
    assert!(project.commits().iter().flat_map(|commit| commit.inserts.values()).any(|of| of.outbox == Some(10)));
}

/// A server that takes connections and never answers: while the attempt lasts, the status says that one is made.
#[test]
fn an_attempt_that_takes_long_is_told_as_half_open_and_the_log_has_one_line_of_it() {
    let mut project = project();
    let server = Answering::start(|_| (200, "{}".into()));
    let way = Proxy::start(&server.url);
    way.set(Way::Closed);
    project.environment.insert("SILENT_URL", way.url());
    let silent = LATE.replace("late", "silent").replace("STORED AS DATABASE", "STORED AS ELASTICSEARCH");
    let silent =
        silent.replace("LATE_URL", "SILENT_URL").replace("'connect_timeout' '100 ms'", "'timeout' '4 seconds'");
    project.write(&format!("{QUERIES}{silent}"));
    project.environment.insert("POUNDLOCK_LOG", "poundlock=debug".into());
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    produce(&project, 0..10);
    told(&project, "open");
    says(&mut program, "circuit half-open: one attempt, and others until it answers");
    way.set(Way::Frozen);
    let half_open = || {
        wait_for("the status to tell of an attempt", LIMIT, || {
            Some(of_outbox(&status(&project))).filter(|sink| sink["circuit"] == "half_open")
        })
    };
    let sink = half_open();
    assert!(sink["error"].is_string() && sink["since"].is_i64(), "{sink:#}");
    // It fails, and is made again; each of them is in the log of debugging only.
    wait_for("the attempt to fail", LIMIT, || (of_outbox(&status(&project))["circuit"] == "open").then_some(()));
    half_open();
    program.must_live();
    let log = program.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("circuit half-open")).collect();
    assert!(lines.len() >= 2, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains(" INFO ")).count(), 1, "{lines:?}");
    // The others are not kept from their rows.
    assert_eq!(project.ids("shares"), (0..10).collect::<Vec<_>>());
    let text = {
        let mut command = poundlock(project.folder.path(), &["status"]);
        crate::cli::text(&command.envs(&project.environment).output().unwrap().stdout)
    };
    contains(&text, &[": outbox, "]);
    program.kill();
}

/// It is the checkpoint that does not take them: the target has nothing to do with it.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn rows_that_the_checkpoint_does_not_take_are_told_as_such() {
    let project = project();
    produce(&project, 0..10);
    let log = project.start(&["--until-caught-up"], "outbox::before_put=2*return").succeed(LIMIT);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("outbox::before_put")).collect();
    assert!(!lines.is_empty(), "{log}");
    for line in lines {
        contains(line, &["checkpoint", "could not put the rows for sink sqlite-", "into its outbox, trying again"]);
    }
    assert_eq!(copies(&project), (0..10).collect::<Vec<_>>());
}

#[test]
fn ctrl_c_does_not_wait_for_a_dead_sink_and_a_bounded_run_says_that_rows_still_wait() {
    let project = project();
    produce(&project, 0..10);
    project.run(&[]);
    let dead = Dead::make(&project);
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    produce(&project, 10..20);
    wait_for("the required sinks", LIMIT, || (project.ids("shares").len() == 20).then_some(()));
    program.interrupt();
    let log = program.succeed(LIMIT);
    contains(&log, &["in the outbox there are still", "The next start delivers them"]);
    // A minute without any progress.
    let error = project.start(&["--until-caught-up"], "").fails(2 * LIMIT);
    contains(
        &error,
        &["a sink does not take what waits for it", "(10 rows) for sink sqlite-", "the next start delivers them"],
    );
    dead.revive();
    project.run(&[]);
    assert_eq!(copies(&project), (0..20).collect::<Vec<_>>());
}

#[test]
fn a_full_outbox_makes_the_pipeline_wait_and_says_for_what() {
    let project = project();
    produce(&project, 0..1);
    project.run(&[]);
    let dead = Dead::make(&project);
    // Room for two batches, of 4 KiB at least each.
    let mut program = project.start(&["--outbox", "9 KB", "--max-rows-per-batch", "1"], "");
    says(&mut program, "pipeline is running");
    let mut produced = 1;
    wait_for("the pipeline to wait", LIMIT, || {
        program.must_live();
        produce(&project, produced..produced + 1);
        produced += 1;
        program.log().contains("the outbox is full: the pipeline waits for the sink").then_some(())
    });
    let stands = project.commits().len();
    let full = wait_for("the status to tell", LIMIT, || {
        let sink = of_outbox(&status(&project));
        (sink["outbox"]["full"] == true).then_some(sink)
    });
    assert!(full["outbox"]["batches"].as_u64().unwrap() <= 3, "{full:#}");
    assert_eq!(project.commits().len(), stands);
    // Told to stop, it does not wait; the next start finishes the batch.
    program.interrupt();
    let error = program.fails(LIMIT);
    contains(
        &error,
        &["the outbox of sink sqlite-", "is full", "cause: ", "locked", "the next start finishes the batch"],
    );
    let mut program = project.start(&["--outbox", "9 KB"], "");
    dead.revive();
    wait_for("all rows", LIMIT, || {
        program.must_live();
        (copies(&project) == (0..produced).collect::<Vec<_>>()).then_some(())
    });
    assert_eq!(project.ids("shares"), (0..produced).collect::<Vec<_>>());
    program.interrupt();
    program.succeed(LIMIT);
}

/// Rows that wait are not lost by a change of the files.
#[test]
fn tables_are_turned_off_and_changed_only_when_nothing_waits_for_them() {
    let mut project = project();
    produce(&project, 0..10);
    project.run(&[]);
    let waits = |project: &Project, ids: std::ops::Range<i64>| {
        let dead = Dead::make(project);
        let mut program = project.start(&[], "");
        says(&mut program, "pipeline is running");
        let all = ids.end as u64;
        produce(project, ids);
        wait_for("all commits", LIMIT, || (handed_over(project) + directly(project) == all).then_some(()));
        program.kill();
        dead.revive();
    };
    waits(&project, 10..20);
    let all = format!("{QUERIES}{LATE}");
    let refused = [
        (
            all.replace(
                "INSERT INTO late.copies",
                "INSERT INTO db.shares (id, share) SELECT id, share FROM valid WHERE id < 0; -- ",
            ),
            "table late.copies is off, or not written any more",
        ),
        (
            all.replace("late.copies (id BIGINT, share", "late.copies (id BIGINT, portion"),
            "table late.copies has other columns now",
        ),
    ];
    for (queries, why) in refused {
        project.write(&queries);
        contains(
            &project.refused(&[]),
            &["(10 rows) wait in the outbox of sink sqlite-", why, "run --until-caught-up"],
        );
    }
    project.write(&all);
    let url = project.environment.insert("LATE_URL", String::new()).unwrap();
    contains(&project.refused(&[]), &["table late.copies is off, or not written any more"]);
    assert_eq!(copies(&project).len(), 10);
    // Another address is where they are now.
    copy_database(&project, "late", "moved");
    project.environment.insert("LATE_URL", format!("sqlite:{}", project.path("moved").display()));
    project.run(&[]);
    assert_eq!(copies(&project).len(), 10);
    copy_database(&project, "moved", "late");
    project.environment.insert("LATE_URL", url);
    assert_eq!(copies(&project), (0..20).collect::<Vec<_>>());
    // Without an outbox the start delivers them itself; and back.
    waits(&project, 20..30);
    project.write(&all.replace("'delivery' 'outbox', ", ""));
    produce(&project, 30..40);
    contains(&project.run(&[]), &["delivering what waits in the outbox that the sink had"]);
    assert_eq!(copies(&project), (0..40).collect::<Vec<_>>());
    project.write(&all);
    produce(&project, 40..50);
    project.run(&[]);
    project.run(&[]);
    assert_eq!(copies(&project), (0..50).collect::<Vec<_>>());
}

/// It would go on from a state in which rows are missing for ever.
#[test]
fn a_database_that_was_set_back_behind_its_outbox_is_told() {
    let project = project();
    produce(&project, 0..10);
    project.run(&[]);
    copy_database(&project, "late", "earlier");
    produce(&project, 10..20);
    project.run(&[]);
    copy_database(&project, "earlier", "late");
    produce(&project, 20..30);
    contains(&project.refused(&[]), &["has only batch", "was delivered to it", "restore the database"]);
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn what_an_outbox_sink_refuses_is_a_dead_letter_of_a_later_batch_once() {
    let project = project();
    produce(&project, 0..4);
    project.run(&[]);
    let database = Connection::open(project.path("late")).unwrap();
    let trigger =
        "CREATE TRIGGER t BEFORE INSERT ON copies WHEN NEW.id % 10 = 7 BEGIN SELECT RAISE(ABORT, 'no sevens'); END";
    database.execute_batch(trigger).unwrap();
    drop(database);
    produce(&project, 4..20);
    // Dead when it has been noted, when its letters are written, and when they are committed.
    assert!(project.dies(&[], "outbox::after_refused=return(die)"));
    assert!(project.dies(&[], "write::before_dead_letters=return(die)"));
    assert!(project.dies(&[], "outbox::before_forget=return(die)"));
    project.run(&[]);
    assert_eq!(copies(&project), (0..20).filter(|id| id % 10 != 7).collect::<Vec<_>>());
    assert_eq!(project.ids("shares"), (0..20).collect::<Vec<_>>());
    let letters = messages(&project, project.topic("DEAD"));
    assert_eq!(letters.len(), 2, "{letters:#?}");
    let mut ids = BTreeSet::new();
    for letter in letters.iter().map(|letter| serde_json::from_str::<Value>(letter).unwrap()) {
        assert!(letter["error"].as_str().unwrap().contains("no sevens"), "{letter}");
        assert!(letter["stage"] == "sink" && letter["sink"] == "late.copies", "{letter}");
        let row: Value = serde_json::from_str(letter["row_json"].as_str().unwrap()).unwrap();
        ids.insert(row["id"].as_i64().unwrap());
    }
    assert_eq!(ids, [7, 17].into());
    project.run(&[]);
    assert_eq!(messages(&project, project.topic("DEAD")), letters);
}

/// The plan that lists it names no place; the next text does.
#[test]
fn a_row_that_an_outbox_sink_refuses_without_a_place_for_it_waits_for_one() {
    let project = project();
    let begin = QUERIES.find("CREATE EXTERNAL TABLE kafka.dead").unwrap();
    let insert = QUERIES.find("INSERT INTO kafka.dead").unwrap();
    let end = |from: usize| from + QUERIES[from..].find(";\n").unwrap() + 2;
    let without = format!("{}{}{}{LATE}", &QUERIES[..begin], &QUERIES[end(begin)..insert], &QUERIES[end(insert)..]);
    project.write(&without);
    produce(&project, 0..4);
    project.run(&[]);
    let database = Connection::open(project.path("late")).unwrap();
    let trigger =
        "CREATE TRIGGER t BEFORE INSERT ON copies WHEN NEW.id = 7 BEGIN SELECT RAISE(ABORT, 'no sevens'); END";
    database.execute_batch(trigger).unwrap();
    drop(database);
    produce(&project, 4..10);
    contains(&project.refused(&[]), &["a row was refused, and there is no table for dead letters", "no sevens"]);
    contains(&project.refused(&[]), &["a row was refused, and there is no table for dead letters"]);
    project.write(&format!("{QUERIES}{LATE}"));
    project.run(&[]);
    let dead = messages(&project, project.topic("DEAD"));
    assert_eq!(dead.len(), 1, "{dead:?}");
    contains(&dead[0], &["no sevens", "\"stage\":\"sink\""]);
    assert_eq!((project.ids("shares").len(), copies(&project).len()), (10, 9));
}

#[test]
fn check_says_what_cannot_have_an_outbox() {
    let sources = "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION 'e' OPTIONS ('brokers' 'b:9092');\n";
    let cases = [
        ("PARQUET LOCATION 'lake' OPTIONS ('delivery' 'outbox')", "the files of committed batches"),
        (
            "KAFKA LOCATION 't' OPTIONS ('brokers' 'b:9092', 'delivery' 'outbox', 'role' 'dead_letters')",
            "is for dead letters",
        ),
        ("KAFKA LOCATION 't' OPTIONS ('brokers' 'b:9092', 'delivery' 'outbx')", "did you mean 'outbox'?"),
    ];
    for (table, says) in cases {
        let project = Project::new(Servers::Embedded);
        project.write(&format!(
            "{sources}CREATE EXTERNAL TABLE t (id BIGINT) STORED AS {table};\nINSERT INTO t SELECT id FROM events;"
        ));
        let output = poundlock(project.folder.path(), &["check"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        contains(&text(&output.stderr), &[says]);
    }
    let project = Project::new(Servers::Embedded);
    let two = |one: &str, two: &str| {
        format!(
            "{sources}CREATE EXTERNAL TABLE a (id BIGINT) STORED AS DATABASE LOCATION 'postgres://me@h/d' OPTIONS ({one});\n
             CREATE EXTERNAL TABLE b (id BIGINT) STORED AS DATABASE LOCATION 'postgres://me@h/d' OPTIONS ({two});\n
             INSERT INTO a SELECT id FROM events; INSERT INTO b SELECT id FROM events;"
        )
    };
    project.write(&two("'delivery' 'required'", "'delivery' 'outbox'"));
    let output = poundlock(project.folder.path(), &["check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    contains(&text(&output.stderr), &["tables public.a and public.b are of one system", "'transaction' 'own'"]);
    project.write(&two("'delivery' 'required'", "'delivery' 'outbox', 'transaction' 'own'"));
    let output = poundlock(project.folder.path(), &["check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    contains(&text(&output.stdout), &["from an outbox, in the background"]);
}

#[test]
fn status_of_what_never_ran_says_so() {
    let project = Project::new(Servers::Embedded);
    let output = poundlock(project.folder.path(), &["status"]).envs(&project.environment).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    contains(&text(&output.stderr), &["has no checkpoint in", "has it run?"]);
}
