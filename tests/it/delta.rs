//! A Delta table under readers that know nothing of the engine, while it is written, merged, cleaned and killed.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::cli::{poundlock, text};
use crate::harness::{delta, setting, wait_for};
use crate::kill::first_batch;
use crate::recovery::contents::delta_rows;
use crate::recovery::project::{PARTITIONS, Project, Servers};

const QUERIES: &str = "
SET poundlock.name = '${NAME}';
SET poundlock.trigger = '20 ms';
CREATE SCHEMA kafka;
CREATE SCHEMA lake;
CREATE UNBOUNDED EXTERNAL TABLE kafka.events (id BIGINT, k VARCHAR)
  STORED AS KAFKA LOCATION '${EVENTS}' OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'json');
CREATE EXTERNAL TABLE lake.merged (id BIGINT) STORED AS DELTA LOCATION 'merged' PARTITIONED BY (k VARCHAR)
  OPTIONS ('optimize.interval' '50 ms', 'optimize.min_files' '3', 'checkpoint.interval' '10', 'vacuum.retention' '30 seconds');
INSERT INTO lake.merged SELECT id, k FROM kafka.events;
";

/// In one go, to all partitions.
const AT_ONCE: i64 = 200;

/// Some of the merges are cut off.
#[test]
fn readers_see_each_row_once_at_any_moment_and_so_they_do_after_kills() {
    let (kills, seed) = (setting("POUNDLOCK_KILLS", 20) / 4, setting("POUNDLOCK_SEED", 1));
    println!("{kills} kills, POUNDLOCK_SEED={seed}");
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let project = Project::new(Servers::Embedded);
    project.write(QUERIES);
    let (table, stop) = (project.path("merged"), project.path("stop"));
    let (fed, done) = (AtomicI64::new(0), AtomicBool::new(false));
    let feed = || {
        let first = fed.fetch_add(AT_ONCE, Ordering::Relaxed);
        for partition in 0..PARTITIONS {
            let ids = (first..first + AT_ONCE).filter(|id| id % i64::from(PARTITIONS) == i64::from(partition));
            let events = ids.map(|id| format!("{{\"id\":{id},\"k\":\"{}\"}}", ["a", "b c", "ü/%"][(id % 3) as usize]));
            project.produce(project.topic("EVENTS"), partition, events);
        }
    };
    let python = python();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/delta.py");
    let said = project.path("reads");
    let file = fs::File::create(&said).unwrap();
    let mut reader = Command::new(&python);
    reader.arg(script).args([&table, &stop]).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let started = reader.spawn().unwrap_or_else(|e| panic!("{python}: {e}; tests/services/prerequisites makes it"));
    let mut reader = Reader(started);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                feed();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let own = scope.spawn(|| {
            let (mut reads, mut rows) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                if let Some(found) = own_read(&project) {
                    assert!(found >= rows, "{found} rows, after {rows}");
                    (reads, rows) = (reads + 1, found);
                }
            }
            reads
        });
        // What fails in here must end the others too.
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for kill in 0..kills {
                let merged = merges(&table);
                let mut program = project.start(&[], "");
                first_batch(&mut program);
                wait_for("merges", Duration::from_secs(60), || {
                    program.must_live();
                    (merges(&table) >= merged + 3).then_some(())
                });
                std::thread::sleep(Duration::from_millis(chance.random_range(0..400)));
                program.kill();
                println!("kill {kill}: {} merges, {} events", merges(&table), fed.load(Ordering::Relaxed));
            }
        }));
        done.store(true, Ordering::Relaxed);
        let reads = own.join().unwrap();
        if let Err(panic) = killed {
            std::panic::resume_unwind(panic);
        }
        println!("{reads} reads of our own");
        assert!(reads >= kills, "{reads} reads prove nothing");
    });
    project.run(&[]);
    fs::write(&stop, "").unwrap();
    let ended = wait_for("the readers' end", Duration::from_secs(120), || reader.0.try_wait().unwrap());
    let out = fs::read_to_string(&said).unwrap();
    assert!(ended.success(), "{out}");
    println!("{out}");
    let found: Value = serde_json::from_str(out.trim()).unwrap();
    let fed = fed.load(Ordering::Relaxed);
    for (reader, rows) in found["rows"].as_object().unwrap() {
        assert_eq!(rows.as_i64(), Some(fed), "{reader}");
        assert!(
            found["grown"][reader].as_u64() >= Some(kills),
            "{reader} saw it grow too seldom to prove anything: {out}"
        );
    }
    assert_eq!(own_read(&project), Some(fed));
    let mut expected: Vec<String> =
        (0..fed).map(|id| format!("{id}|{}", ["a", "b c", "ü/%"][(id % 3) as usize])).collect();
    expected.sort();
    assert_eq!(delta_rows(&table, &["id"]), expected);
    // What earlier starts have left is merged by later ones: of the many files that were written few count.
    let mut program = project.start(&[], "");
    wait_for("few files", Duration::from_secs(60), || {
        program.must_live();
        (delta::files(&table).len() * 3 < adds(&table)).then_some(())
    });
    program.kill();
    assert_eq!(delta_rows(&table, &["id"]), expected);
}

/// With DuckDB and the package of Delta.
pub fn python() -> String {
    let home = std::env::var("HOME").unwrap_or_default();
    std::env::var("POUNDLOCK_PYTHON").unwrap_or_else(|_| format!("{home}/.cache/poundlock/venv/bin/python"))
}

/// Ends with the test, however that ends.
pub struct Reader(pub Child);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// By `poundlock sql`, another process; `None`: there is no table yet.
fn own_read(project: &Project) -> Option<i64> {
    let query = "SELECT count(*) AS n, count(DISTINCT id) AS d FROM lake.merged";
    let mut command = poundlock(project.folder.path(), &["sql", "--format", "csv", "-c", query]);
    let output = command.envs(&project.environment).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if err.contains("has no Delta log") {
        return None;
    }
    assert!(output.status.success(), "{err}");
    let line = out.lines().nth(1).unwrap_or_else(|| panic!("{out}{err}"));
    let (rows, distinct) = line.split_once(',').unwrap();
    assert_eq!(rows, distinct, "each row once");
    Some(rows.parse().unwrap())
}

fn merges(table: &std::path::Path) -> usize {
    let entries = delta::entries(table);
    entries.iter().filter(|actions| actions.iter().any(|a| a["commitInfo"]["operation"] == "OPTIMIZE")).count()
}

fn adds(table: &std::path::Path) -> usize {
    delta::entries(table).iter().flatten().filter(|action| action.get("add").is_some()).count()
}
