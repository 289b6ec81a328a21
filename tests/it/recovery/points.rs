//! Stopped at every fail point of the source, in every way, the program ends up with what it writes undisturbed.
//!
//! Each point has a project of its own: killed there when it comes by the second time, killed there in the start that
//! recovers, then stopped there by an error; more events come in between. Then it runs to the end, and all tables, files
//! and topics are compared with those of a run that was never stopped.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::contents::{self, Contents, assert_same};
use super::project::{HISTORY, LATE, LIMIT, Project, QUERIES, Servers};

/// Starts of one project wait for the disk and for servers: more of them at a time than there are cores.
const AT_A_TIME: usize = 4;

/// Points of the storage below all else: they come by many times in one batch, so these times are tried too.
const BELOW: [(&str, &[usize]); 5] = [
    ("durable::before_write", &[3, 7, 13]),
    ("durable::before_place", &[4, 9]),
    ("durable::after_place", &[5, 11]),
    ("s3::before_put", &[2, 3, 5, 7, 13]),
    ("s3::after_put", &[2, 3, 4, 6, 8, 9, 11]),
];

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn stopped_at_any_point_it_leaves_what_it_leaves_undisturbed() {
    // The embedded broker has no transactions; Avro's are stopped at where there is a registry, in schemas.rs; `compact` is another
    // process, and has tests of its own.
    let absent = ["postgres::", "elasticsearch::", "s3::", "kafka::before_commit", "avro::", "compact::"];
    compare(On { servers: Servers::Embedded, s3: false }, |point| {
        !absent.iter().any(|absent| point.starts_with(absent))
    });
}

#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and the feature failpoints: make test"]
fn and_so_it_does_with_transactions_of_kafka_and_postgresql_and_with_elasticsearch() {
    let theirs = [
        "postgres::",
        "kafka::",
        "elasticsearch::",
        "write::",
        "checkpoint::before_commit",
        "checkpoint::after_commit",
    ];
    compare(On { servers: Servers::Real, s3: false }, |point| theirs.iter().any(|theirs| point.starts_with(theirs)));
}

/// After each put its answer is lost too: what is there is known as one's own.
#[test]
#[ignore = "needs S3 and the feature failpoints: make test"]
fn and_so_it_does_with_lake_and_checkpoint_on_s3() {
    let theirs = ["s3::", "checkpoint::", "parquet::", "delta::"];
    compare(On { servers: Servers::Embedded, s3: true }, |point| theirs.iter().any(|theirs| point.starts_with(theirs)));
}

/// What the projects run on.
#[derive(Debug, Clone, Copy)]
struct On {
    servers: Servers,
    s3: bool,
}

fn compare(on: On, wanted: impl Fn(&str) -> bool) {
    let undisturbed = project(on);
    (0..STAGES).for_each(|stage| undisturbed.feed(stage));
    undisturbed.run(&["--close-windows"]);
    let expected = contents::of(&undisturbed);
    let seen = ["db.shares", "db.counts", "db.closed", "late.copies", "lake.events", "kafka.copies", "kafka.dead"];
    let more: &[&str] = match on {
        On { servers: Servers::Real, .. } => &["es.copies", "es.counts"],
        On { servers: Servers::Embedded, .. } => &["lake.merged"],
    };
    let history = &expected["db.history"];
    assert!(
        history.len() > 10 && history.iter().any(|row| row.contains("|6|")),
        "windows that see others: {history:#?}"
    );
    let mut seen = seen.iter().chain(more);
    assert!(seen.all(|table| expected[table].len() > 20), "{expected:#?}");

    let points: Vec<String> = points().into_iter().filter(|point| wanted(point)).collect();
    let mut cases: Vec<(String, usize)> = points.iter().map(|point| (point.clone(), 0)).collect();
    for (point, times) in BELOW {
        cases.extend(times.iter().filter(|_| wanted(point)).map(|passed| (point.to_string(), *passed)));
    }
    println!("{} points, {} cases", points.len(), cases.len());
    let cases = Mutex::new(cases.into_iter());
    let next = || cases.lock().unwrap_or_else(|broken| broken.into_inner()).next();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some((point, passed)) = next() {
                    stopped_at(on, &point, passed, &expected);
                }
            });
        }
    });
}

fn project(on: On) -> Project {
    let project = Project::new(on.servers);
    project.write(&format!("{QUERIES}{HISTORY}{LATE}"));
    match on {
        On { servers: Servers::Real, .. } => project.with_elasticsearch(),
        On { s3: false, .. } => project.with_delta(),
        On { s3: true, .. } => project.on_s3(),
    }
}

/// Of [`Project::feed`].
const STAGES: i64 = 3;

fn stopped_at(on: On, point: &str, passed: usize, expected: &Contents) {
    let project = project(on);
    let at = |passed: usize, action: &str| match passed {
        0 => format!("{point}={action}"),
        _ => format!("{point}={passed}*off->{action}"),
    };
    project.feed(0);
    let in_a_later_batch = project.dies(&[], &at(passed + 1, "return(die)"));
    project.feed(1);
    let in_the_replay = project.dies(&[], &at(passed, "return(die)"));
    assert!(in_a_later_batch || in_the_replay, "{point} did not come by {passed} times");
    project.feed(2);
    let mut failing = project.start(&["--until-caught-up", "--close-windows"], &at(passed, "1*return"));
    if !failing.wait(LIMIT).success() {
        project.run(&["--close-windows"]);
    }
    assert!(failing.log().contains(&format!("fail point {point}")), "nothing failed at {point}:\n{}", failing.log());
    assert_same(&contents::of(&project), expected, point);
}

/// The names of all fail points of the source, so that a new one is tried without being listed.
pub fn points() -> BTreeSet<String> {
    let mut points = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let found = code.filter_map(|line| line.split_once("point!(\"")?.1.split_once('"'));
                points.extend(found.map(|(name, _)| name.to_string()));
            }
        }
    }
    assert!(points.len() > 20, "{points:?}");
    points
}
