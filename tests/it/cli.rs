//! The verbs that need no server, as a user calls them: output, errors and exit codes of the real binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub fn poundlock(folder: &Path, arguments: &[&str]) -> Command {
    // Another build of the same program, a release say, can be put in its place.
    let binary = std::env::var("POUNDLOCK_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_poundlock").to_string());
    let mut command = Command::new(binary);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    for name in ["DATABASE_URL", "KAFKA_BROKER", "KAFKA_TOPIC", "LAKE_URL", "CHECKPOINT_BASE", "POUNDLOCK_NAME"] {
        command.env_remove(name);
    }
    for name in
        ["DATABASE_REPLICA_URL", "ES_URL", "ES_INDEX", "ES_BULK_CHUNK", "ES_API_KEY", "ES_CA_FILE", "MONITORING_URL"]
    {
        command.env_remove(name);
    }
    for name in ["SCHEMA_REGISTRY_USER", "SCHEMA_REGISTRY_PASSWORD", "SCHEMA_REGISTRY_CA"] {
        command.env_remove(name);
    }
    for name in ["ANOMALY_THRESHOLD", "Z_THRESHOLD", "PROCESSING_TRIGGER", "POUNDLOCK_LOG", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder with `queries/` of these files.
fn project(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("queries")).unwrap();
    for (name, sql) in files {
        fs::write(folder.path().join("queries").join(name), sql).unwrap();
    }
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> (Output, String, String) {
    let output = poundlock(folder, arguments).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

const TABLES: &str = "
CREATE SCHEMA lake;
CREATE EXTERNAL TABLE lake.visits (id BIGINT, page VARCHAR) STORED AS CSV LOCATION 'visits.csv';
CREATE VIEW pages AS SELECT page, count(*) AS visits FROM lake.visits GROUP BY page;
";

#[test]
fn check_tells_what_the_shipped_files_do() {
    let mut command = poundlock(Path::new(env!("CARGO_MANIFEST_DIR")), &["check"]);
    let output = command.env("DATABASE_URL", "postgres://me:s3cret@db.example/shop").output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    insta::assert_snapshot!(out);
    assert!(!out.contains("s3cret") && !err.contains("s3cret"));

    let mut command = poundlock(Path::new(env!("CARGO_MANIFEST_DIR")), &["check", "--format", "json"]);
    let output = command.env("DATABASE_URL", "sqlite:x.db").output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["inserts"].as_array().unwrap().len(), 7);
    assert_eq!(report["name"], "user-activity");
}

/// Settings, references, syntax, names and types, in one go and in the order of the files; nothing that only follows from
/// another mistake.
#[test]
fn check_tells_all_errors_at_once() {
    let folder = project(&[
        (
            "00_tables.sql",
            "SET poundlock.triger = '1 second';\nSET datafusion.execution.batch_sze = 1;\nCREATE SCHEMA db;\n\
            CREATE EXTERNAL TABLE db.out (id BIGINT, PRIMARY KEY (id)) STORED AS DATABASE LOCATION '${NOWHERE_SET}';\n\
            CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, name VARCHAR) STORED AS KAFKA LOCATION 'events'\n\
            OPTIONS ('brokers' 'localhost:9092');\n\
            CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS PARQUET LOCATION 'copy';\n\
            CREATE EXTERNAL TABLE typo (id BIGNT) STORED AS PARQUET LOCATION 'typo';\n\
            CREATE EXTERNAL TABLE lake.copy (id BIGINT) STORED AS PARQUET LOCATION 'lake';\n",
        ),
        (
            "10_views.sql",
            "CREATE VIEW broken AS SELECT id FROM events WHRE id > 0;\n\
            CREATE VIEW over_broken AS SELECT id FROM broken;\n\
            CREATE VIEW misspelled AS SELECT nme FROM events;\n",
        ),
        (
            "20_inserts.sql",
            "INSERT INTO copy SELEKT 1;\n\
            INSERT INTO copy SELECT name FROM events;\n\
            INSERT INTO copy SELECT id FROM over_broken;\n\
            INSERT INTO copy SELECT nme FROM misspelled;\n\
            INSERT INTO db.out SELECT id FROM events;\n\
            INSERT INTO db.out SELECT ident FROM events;\n\
            INSERT INTO typo SELECT id FROM events;\n\
            INSERT INTO lake.copy SELECT name FROM events;\n\
            INSERT INTO cpoy SELECT id FROM evnts;\n",
        ),
    ]);
    let (output, out, err) = run(folder.path(), &["check"]);
    assert_eq!((output.status.code(), out.as_str()), (Some(1), ""));
    insta::assert_snapshot!(err);
    // `run` tells the same, as what it could not do.
    let (output, out, of_run) = run(folder.path(), &["run"]);
    assert_eq!((output.status.code(), out.as_str(), of_run), (Some(2), "", err));
}

/// What a file that is no SQL declares is anybody's guess: of the others only what does not depend on it is told.
#[test]
fn check_does_not_guess_what_an_unreadable_file_declares() {
    let folder = project(&[
        ("00_tables.sql", "CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS PARQUET LOCATION 'copy;\n"),
        (
            "10_copy.sql",
            "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION 'events'\n\
            OPTIONS ('brokers' 'localhost:9092');\n\
            INSERT INTO copy SELECT id FROM events;\nINSERT INTO copy SELECT nme FROM events;\n\
            INSERT INTO copy SELECT id FROM elsewhere;\n",
        ),
    ]);
    let (output, _, err) = run(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(err);
}

/// Of every connector, whether the table is used or not.
#[test]
fn check_knows_the_options_of_every_kind_of_table() {
    let tables: String = [
        ("KAFKA", "'brokers' 'b:9092', 'foramt' 'json'"),
        ("DATABASE", "'on_confict' 'update'"),
        ("ELASTICSEARCH", "'indx' 'logs'"),
        ("PARQUET", "'compresion' 'zstd'"),
        ("CSV", "'heder' 'true'"),
        ("CSV", "'delimiter' 'tab'"),
        ("JSON", "'header' 'true'"),
    ]
    .iter()
    .enumerate()
    .map(|(n, (kind, options))| {
        let location = match *kind {
            "DATABASE" => "sqlite:x",
            "ELASTICSEARCH" => "http://x",
            _ => "x",
        };
        format!("CREATE EXTERNAL TABLE t{n} (id BIGINT) STORED AS {kind} LOCATION '{location}' OPTIONS ({options});\n")
    })
    .collect();
    let folder = project(&[("00_tables.sql", &tables)]);
    let (output, out, err) = run(folder.path(), &["check"]);
    assert_eq!((output.status.code(), out.as_str()), (Some(1), ""));
    insta::assert_snapshot!(err);
}

#[test]
fn check_of_no_folder_is_an_answer_too() {
    let folder = tempfile::tempdir().unwrap();
    let (output, _, err) = run(folder.path(), &["check", "nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.starts_with("error: folder nowhere with the queries cannot be read\n"), "{err}");
}

#[test]
fn sql_answers_in_three_formats() {
    let folder = project(&[("all.sql", TABLES)]);
    fs::write(folder.path().join("visits.csv"), "id,page\n1,home\n2,home\n3,cart\n").unwrap();
    let query = "SELECT * FROM pages ORDER BY page";
    let (output, out, err) = run(folder.path(), &["sql", "-c", query]);
    assert!(output.status.success() && err.is_empty(), "{err}");
    let table = "+------+--------+\n| page | visits |\n+------+--------+\n| cart | 1      |\n| home | 2      |\n+------+--------+\n";
    assert_eq!(out, table);
    let (_, out, _) = run(folder.path(), &["sql", "-c", query, "--format", "csv", "--max-rows", "1"]);
    assert_eq!(out, "page,visits\ncart,1\n");
    let (_, out, _) = run(folder.path(), &["sql", "-c", "SELECT 1 AS a", "-c", query, "--format", "json"]);
    assert_eq!(out, "{\"a\":1}\n{\"page\":\"cart\",\"visits\":1}\n{\"page\":\"home\",\"visits\":2}\n");
    fs::write(folder.path().join("q.sql"), format!("{query};\nSELECT 2 AS b;")).unwrap();
    let (_, out, err) = run(folder.path(), &["sql", "-f", "q.sql", "--format", "csv", "--timing"]);
    assert_eq!(out, "page,visits\ncart,1\nhome,2\nb\n2\n");
    assert_eq!(err.lines().filter(|line| line.contains(" rows, ") || line.contains(" row, ")).count(), 2, "{err}");
}

#[test]
fn sql_carries_out_a_command_of_the_prompt() {
    let folder = project(&[("all.sql", TABLES)]);
    let (output, out, err) = run(folder.path(), &["sql", "--format", "csv", "-c", "\\d", "-c", "\\d lake.visits"]);
    assert!(output.status.success(), "{err}");
    assert_eq!(
        out,
        "schema,table,kind\nlake,visits,base\npublic,pages,view\ncolumn,type,nullable\nid,BIGINT,yes\npage,VARCHAR,yes\n"
    );
}

/// By Ctrl-C, and by who ends a service.
#[test]
fn a_copy_that_is_ended_leaves_no_file() {
    use rustix::process::{Pid, Signal, kill_process};

    for signal in [Signal::INT, Signal::TERM] {
        let folder = project(&[("all.sql", TABLES)]);
        let copy = "COPY (SELECT value FROM generate_series(1, 100000000000)) TO 'out/numbers.csv'";
        let mut child = poundlock(folder.path(), &["sql", "--allow-writes", "-c", copy]).spawn().unwrap();
        let out = folder.path().join("out");
        let files = || fs::read_dir(&out).map_or(0, |entries| entries.count());
        let limit = Instant::now() + Duration::from_secs(120);
        while files() == 0 {
            assert!(Instant::now() < limit && child.try_wait().unwrap().is_none(), "it writes no file");
            std::thread::sleep(Duration::from_millis(20));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal:?}");
        assert_eq!(files(), 0, "{signal:?}");
    }
}

/// However busy its threads are.
#[test]
fn a_query_that_never_looks_up_is_ended_too() {
    use rustix::process::{Pid, Signal, kill_process};

    let folder = project(&[("all.sql", TABLES)]);
    let pairs = "CREATE VIEW n AS SELECT value FROM generate_series(1, 1000000); \
                 SELECT count(*) FROM n a, n b WHERE a.value + b.value < 0";
    let mut child = poundlock(folder.path(), &["sql", "--allow-writes", "-c", pairs]).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let limit = Instant::now() + Duration::from_secs(120);
    // In the thick of it: it has used a second of processor time.
    let busy = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(11).unwrap().parse::<u64>().unwrap() > 100
    };
    while !busy() {
        assert!(Instant::now() < limit && child.try_wait().unwrap().is_none(), "it is over already");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(pid, Signal::INT).unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.code(), Some(130));
}

#[test]
fn sql_says_what_is_wrong_and_where() {
    let folder = project(&[("all.sql", TABLES)]);
    let (output, out, err) = run(folder.path(), &["sql", "-c", "SELECT pge FROM pages"]);
    assert_eq!((output.status.code(), out.as_str()), (Some(2), ""));
    insta::assert_snapshot!("misspelled_column", err);
    let (output, _, err) = run(folder.path(), &["sql", "-c", "SELECT * FROM pages"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!("missing_file", err);
    let (output, _, err) = run(folder.path(), &["sql", "-c", "DROP VIEW pages"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("this session only reads"), "{err}");
    let writes =
        ["sql", "--allow-writes", "--format", "csv", "-c", "CREATE VIEW one AS SELECT 1 AS a; SELECT a FROM one"];
    let (output, out, err) = run(folder.path(), &writes);
    assert!(output.status.success(), "{err}");
    assert_eq!(out, "a\n1\n");
}
