//! Partitions of a plain Parquet table merged while it is written and read, and killed in it: each row once, at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::cli::{poundlock, text};
use crate::delta::{Reader, python};
use crate::harness::{Program, setting, wait_for};
use crate::recovery::contents;
use crate::recovery::points::points;
use crate::recovery::project::{LIMIT, PARTITIONS, Project, Servers, contains};

const QUERIES: &str = "
SET poundlock.name = '${NAME}';
SET poundlock.trigger = '20 ms';
SET poundlock.max_rows_per_batch = '1';
CREATE SCHEMA kafka;
CREATE SCHEMA lake;
CREATE UNBOUNDED EXTERNAL TABLE kafka.events (id BIGINT, k VARCHAR, day VARCHAR)
  STORED AS KAFKA LOCATION '${EVENTS}' OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'json');
CREATE EXTERNAL TABLE lake.days (id BIGINT, k VARCHAR) STORED AS PARQUET LOCATION 'lake/days' PARTITIONED BY (day DATE);
CREATE EXTERNAL TABLE lake.heap (id BIGINT) STORED AS PARQUET LOCATION 'lake/heap';
CREATE EXTERNAL TABLE lake.log (id BIGINT) STORED AS DELTA LOCATION 'lake/log' PARTITIONED BY (day DATE);
INSERT INTO lake.days SELECT id, k, CAST(day AS DATE) FROM kafka.events;
INSERT INTO lake.heap SELECT id FROM kafka.events WHERE id < 3;
INSERT INTO lake.log SELECT id, CAST(day AS DATE) FROM kafka.events WHERE id < 3;
";

const DAYS: i64 = 5;

/// Events that are fed in one go.
const AT_ONCE: i64 = 30;

/// Without the tables that cannot be merged.
fn project() -> Project {
    let project = Project::new(Servers::Embedded);
    let only = QUERIES.lines().filter(|line| !line.contains("lake.heap") && !line.contains("lake.log"));
    project.write(&only.collect::<Vec<_>>().join("\n"));
    project
}

/// Ids from `first` on.
fn feed(project: &Project, first: i64, count: i64, day: fn(i64) -> i64) {
    for partition in 0..PARTITIONS {
        let ids = (first..first + count).filter(|id| id % i64::from(PARTITIONS) == i64::from(partition));
        let events = ids.map(|id| format!("{{\"id\":{id},\"k\":\"k{}\",\"day\":\"2026-11-{:02}\"}}", id % 7, day(id)));
        project.produce(project.topic("EVENTS"), partition, events);
    }
}

/// Some of each day.
fn all_days(id: i64) -> i64 {
    1 + id / 3 % DAYS
}

/// Of a day that goes on and on; now and then some late rows of an earlier one.
fn late_days(id: i64) -> i64 {
    let block = id / AT_ONCE;
    if block % 8 == 0 && id % 3 == 0 { 1 + block / 8 % DAYS } else { DAYS + 1 }
}

/// As [`contents::parquet`] has them.
fn expected(ids: i64, day: fn(i64) -> i64) -> Vec<String> {
    contents::sorted((0..ids).map(|id| format!("{id}|k{}|day=2026-11-{:02}", id % 7, day(id))))
}

fn found(project: &Project) -> Vec<String> {
    contents::parquet(&project.path("lake/days"), &["id", "k"])
}

/// What is in the folders of the partitions.
fn names(table: &Path) -> BTreeSet<PathBuf> {
    let days = fs::read_dir(table).unwrap().map(|day| day.unwrap().path()).filter(|path| path.is_dir());
    days.flat_map(|day| fs::read_dir(day).unwrap().map(|file| file.unwrap().path())).collect()
}

fn files(project: &Project) -> Vec<PathBuf> {
    let names = names(&project.path("lake/days")).into_iter();
    names.filter(|file| file.extension().is_some_and(|extension| extension == "parquet")).collect()
}

/// What lies in the lake for a second, of an earlier day, has been there for long. How many days are closed and have something to
/// merge.
fn grow_old(project: &Project) -> usize {
    let (now, second) = (SystemTime::now(), Duration::from_secs(1));
    let mut days: BTreeMap<PathBuf, (usize, bool)> = BTreeMap::new();
    for path in files(project).into_iter().filter(|path| !path.to_str().unwrap().contains("2026-11-06")) {
        let file = File::open(&path).unwrap();
        let age = now.duration_since(file.metadata().unwrap().modified().unwrap()).unwrap_or_default();
        let day = days.entry(path.parent().unwrap().to_path_buf()).or_insert((0, true));
        day.0 += 1;
        match age > second {
            true => file.set_modified(now - Duration::from_secs(86_400)).unwrap(),
            false => day.1 = false,
        }
    }
    days.values().filter(|(files, closed)| *closed && *files >= 3).count()
}

/// All of it, at once: nobody reads.
fn be_old(project: &Project) {
    let long_ago = SystemTime::now() - Duration::from_secs(86_400);
    files(project).iter().for_each(|path| File::open(path).unwrap().set_modified(long_ago).unwrap());
}

fn compact(project: &Project, points: &str) -> Program {
    let mut command = poundlock(project.folder.path(), &["compact"]);
    command.envs(&project.environment).env("FAILPOINTS", points);
    Program::start(command, project.path("log"))
}

fn ask(project: &Project, arguments: &[&str]) -> (Output, String, String) {
    let output = poundlock(project.folder.path(), arguments).envs(&project.environment).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

#[test]
fn small_files_become_few_and_what_cannot_be_merged_is_said() {
    let project = Project::new(Servers::Embedded);
    project.write(QUERIES);
    let (output, _, err) = ask(&project, &["compact"]);
    assert_eq!(output.status.code(), Some(2));
    contains(&err, &["has no checkpoint in \"checkpoint\"", "hint: it says which files are of committed batches"]);
    for stage in 0..6 {
        feed(&project, stage * AT_ONCE, AT_ONCE, all_days);
        project.run(&[]);
    }
    let before = files(&project).len();
    assert!(before >= 60, "{before} files");

    let (output, out, err) = ask(&project, &["compact"]);
    assert!(output.status.success(), "{err}");
    contains(
        &out,
        &[
            "lake.days: nothing to merge; 5 still written\n",
            "skipped: the files of table lake.heap cannot be merged",
            "no PARTITIONED BY",
            "STORED AS DELTA",
        ],
    );
    assert!(!out.contains("lake.log"), "{out}");
    for (table, why) in
        [("lake.heap", "no PARTITIONED BY"), ("lake.log", "STORED AS DELTA"), ("lake.dys", "did you mean lake.days?")]
    {
        let (output, _, err) = ask(&project, &["compact", "queries", table]);
        assert!(output.status.code() == Some(2) && err.contains(why), "{err}");
    }
    let (output, _, err) = ask(&project, &["compact", "lake.days"]);
    assert!(output.status.code() == Some(2) && err.contains("it comes before the tables"), "{err}");
    be_old(&project);
    let (_, out, _) = ask(&project, &["compact", "queries", "lake.days", "--dry-run"]);
    contains(&out, &[&format!("lake.days: would merge 5 partitions, {before} files into 5, ")]);
    assert_eq!(files(&project).len(), before);
    let (output, out, err) = ask(&project, &["compact", "queries", "lake.days"]);
    assert!(output.status.success(), "{err}");
    contains(&out, &[&format!("lake.days: merged 5 partitions, {before} files into 5, ")]);
    assert_eq!(files(&project).len(), 5);
    assert_eq!(found(&project), expected(180, all_days));
    let (_, out, _) =
        ask(&project, &["sql", "--format", "csv", "-c", "SELECT count(*), count(DISTINCT id) FROM lake.days"]);
    contains(&out, &["180,180"]);
    let beside: BTreeSet<String> = fs::read_dir(project.path("lake"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(beside, ["days", "heap", "log"].map(String::from).into());
    let (_, out, _) = ask(&project, &["compact", "--quiet-for", "10s"]);
    contains(&out, &["lake.days: nothing to merge; 5 still written\n"]);
}

/// Repaired by the next `compact`, or by the next start of the pipeline: in turn.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn killed_at_any_point_it_leaves_each_row_once() {
    let project = project();
    let points: Vec<String> = points().into_iter().filter(|point| point.starts_with("compact::")).collect();
    assert!(points.len() >= 6, "{points:?}");
    let mut fed = 0;
    let mut more = || {
        (0..2).for_each(|_| {
            feed(&project, fed, AT_ONCE, all_days);
            project.run(&[]);
            fed += AT_ONCE;
        });
        be_old(&project);
        fed
    };
    for (n, point) in points.iter().enumerate() {
        for passed in [0, 3] {
            let fed = more();
            assert!(
                compact(&project, &format!("{point}={passed}*off->return(die)")).dies(LIMIT),
                "{point} did not come by"
            );
            assert_eq!(found(&project), expected(fed, all_days), "dead at {point}");
            match (n + passed) % 2 {
                0 => drop(project.run(&[])),
                _ => drop(compact(&project, "").succeed(LIMIT)),
            }
            assert!(!project.path("lake/_poundlock_compact_days").exists(), "{point}");
            assert_eq!(found(&project), expected(fed, all_days), "repaired after {point}");
        }
        // Killed in the repair, if that comes by there.
        more();
        assert!(compact(&project, "compact::after_exchange=1*off->return(die)").dies(LIMIT));
        compact(&project, &format!("{point}=return(die)")).dies(LIMIT);
        let fed = more();
        let said = compact(&project, &format!("{point}=2*off->1*return")).fails(LIMIT);
        contains(&said, &[&format!("fail point {point}")]);
        assert_eq!(found(&project), expected(fed, all_days), "failed at {point}");
    }
    let fed = more();
    compact(&project, "").succeed(LIMIT);
    assert_eq!((files(&project).len(), found(&project)), (DAYS as usize, expected(fed, all_days)));
    assert!(!project.path("lake/_poundlock_compact_days").exists());
}

/// The pipeline runs all the while; rows of every day come in all the time, late ones among them. Some merges are killed.
#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn readers_see_each_row_once_at_any_moment_while_partitions_are_merged() {
    let (rounds, seed) = (5 + setting("POUNDLOCK_KILLS", 20) / 10, setting("POUNDLOCK_SEED", 1));
    println!("{rounds} rounds, POUNDLOCK_SEED={seed}");
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let points: Vec<String> = points().into_iter().filter(|point| point.starts_with("compact::")).collect();
    let project = project();
    let (fed, done) = (AtomicI64::new(0), AtomicBool::new(false));
    let more = || feed(&project, fed.fetch_add(AT_ONCE, Ordering::Relaxed), AT_ONCE, late_days);
    more();
    project.run(&[]);
    let said = project.path("reads");
    let (table, stop) = (project.path("lake/days"), project.path("stop"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/compact.py");
    let file = File::create(&said).unwrap();
    let mut command = Command::new(python());
    command.arg(script).args([&table, &stop]).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut duckdb = Reader(command.spawn().unwrap_or_else(|e| panic!("{e}; tests/services/prerequisites makes it")));
    let mut program = project.start(&[], "");

    let (mut merged, mut late) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                more();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let own = scope.spawn(|| {
            let (mut reads, mut rows) = ([0, 0], 0);
            while !done.load(Ordering::Relaxed) {
                match own_read(&project) {
                    Some(found) => {
                        assert!(found >= rows, "{found} rows, after {rows}");
                        rows = found;
                        reads[0] += 1;
                    }
                    None => reads[1] += 1,
                }
            }
            reads
        });
        // What fails in here must end the others too.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut round = 0;
            // Which rows come between listing and exchange is up to the machine: so many rounds until some have.
            while round < rounds || (late < 2 && round < 5 * rounds) {
                program.must_live();
                wait_for("closed days", LIMIT, || (grow_old(&project) >= 2).then_some(()));
                let before = names(&table);
                // Rows come in between listing and exchange, and while the exchange has the folder.
                let slow = "compact::after_merge=sleep(500);compact::before_exchange=sleep(50)";
                let (point, off) = (&points[chance.random_range(0..points.len())], chance.random_range(0..2));
                let points = if round % 2 == 0 { slow.to_string() } else { format!("{point}={off}*off->return(die)") };
                let died = compact(&project, &points).dies(LIMIT);
                let after = names(&table);
                merged += before.difference(&after).count();
                late += after.difference(&before).filter(|file| is_late(file)).count();
                round += 1;
                println!("round {round}: {} files, then {}; {points}, died: {died}", before.len(), after.len());
            }
        }));
        done.store(true, Ordering::Relaxed);
        let reads = own.join().unwrap();
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
        println!(
            "own reads: {} answered, {} met an exchange; {merged} files merged, {late} came beside them",
            reads[0], reads[1]
        );
        assert!(reads[0] >= 10 && reads[1] < reads[0] && merged as u64 >= 2 * rounds && late >= 2);
    });
    program.interrupt();
    program.succeed(LIMIT);
    project.run(&[]);
    fs::write(&stop, "").unwrap();
    let ended = wait_for("DuckDB's end", LIMIT, || duckdb.0.try_wait().unwrap());
    let out = fs::read_to_string(&said).unwrap();
    assert!(ended.success(), "{out}");
    println!("DuckDB: {out}");
    let reads: Value = serde_json::from_str(out.trim()).unwrap();
    let fed = fed.load(Ordering::Relaxed);
    for glob in reads["rows"].as_object().unwrap().values() {
        assert_eq!(glob.as_i64(), Some(fed));
    }
    assert!(reads["reads"].as_u64() > Some(50) && reads["failed"].as_u64() < reads["reads"].as_u64(), "{out}");
    assert_eq!(found(&project), expected(fed, late_days));
    be_old(&project);
    compact(&project, "").succeed(LIMIT);
    assert_eq!((found(&project), files(&project).len()), (expected(fed, late_days), DAYS as usize + 1));
}

/// Of an earlier day, and as a batch has written it.
fn is_late(file: &Path) -> bool {
    let text = file.to_str().unwrap();
    let sequence = text.rsplit_once('-').unwrap().1.trim_end_matches(".parquet");
    sequence.len() == 6 && !text.contains("2026-11-06")
}

/// By `poundlock sql`, another process; `None`: a file that it had listed was merged before it read it.
fn own_read(project: &Project) -> Option<i64> {
    let query = "SELECT count(*) AS n, count(DISTINCT id) AS d FROM lake.days";
    let (output, out, err) = ask(project, &["sql", "--format", "csv", "-c", query]);
    if !output.status.success() {
        assert!(err.contains("No such file") || err.contains("not found"), "{err}");
        return None;
    }
    let line = out.lines().nth(1).unwrap_or_else(|| panic!("{out}{err}"));
    let (rows, distinct) = line.split_once(',').unwrap();
    assert_eq!(rows, distinct, "each row once");
    Some(rows.parse().unwrap())
}
