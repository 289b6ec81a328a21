use std::fs;
use std::path::Path as FilePath;
use std::time::Duration;

use super::super::execute::{Settings, execute};
use super::super::output::Format;
use super::*;

const WRITES: Settings = Settings { format: Format::Csv, rows_max: None, allow_writes: true, timing: false };

async fn run(sql: &str) -> Result<String> {
    let mut out = vec![];
    let context = SessionContext::new();
    let run = execute(&context, "-c", sql, WRITES, &mut out);
    // What tries for ever is no answer.
    tokio::time::timeout(Duration::from_secs(60), run).await.expect("it hangs")?;
    Ok(String::from_utf8(out).unwrap())
}

async fn refused(sql: &str) -> String {
    run(sql).await.expect_err(sql).to_string()
}

fn names(folder: &FilePath) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_copy_is_in_its_place_when_its_rows_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    for name in ["a.csv", "a.json", "a.parquet", "new/folder/a b#1%20é.csv"] {
        let sql = format!("COPY (SELECT value FROM generate_series(1, 20000)) TO '{at}/{name}'");
        assert_eq!(run(&sql).await.unwrap(), "count\n20000\n", "{name}");
        assert!(folder.path().join(name).is_file(), "{name}");
    }
    assert_eq!(names(folder.path()), ["a.csv", "a.json", "a.parquet", "new"]);
    assert_eq!(names(&folder.path().join("new/folder")), ["a b#1%20é.csv"]);
    assert_eq!(fs::read_to_string(folder.path().join("a.csv")).unwrap().lines().count(), 20_001);
    // Into a folder: by its slash, or because it is one; and by the values of a column.
    run(&format!("COPY (SELECT 1 AS a) TO '{at}/some/' STORED AS CSV")).await.unwrap();
    run(&format!("COPY (SELECT 2 AS a) TO '{at}/some' STORED AS CSV")).await.unwrap();
    assert_eq!(names(&folder.path().join("some")).len(), 2);
    run(&format!("COPY (SELECT 1 AS a, 'x' AS b) TO '{at}/parts/' STORED AS PARQUET PARTITIONED BY (b)"))
        .await
        .unwrap();
    assert_eq!(names(&folder.path().join("parts")), ["b=x"]);
}

#[tokio::test]
async fn a_copy_replaces_the_file_that_was_there_and_not_the_link_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    fs::write(folder.path().join("real.csv"), "older").unwrap();
    std::os::unix::fs::symlink("real.csv", folder.path().join("link.csv")).unwrap();
    run(&format!("COPY (SELECT 1 AS a) TO '{at}/link.csv'")).await.unwrap();
    assert!(folder.path().join("link.csv").is_symlink());
    assert_eq!(fs::read_to_string(folder.path().join("real.csv")).unwrap(), "a\n1\n");
}

#[tokio::test]
async fn of_a_query_that_fails_nothing_stays_and_what_was_there_does() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    for format in ["csv", "json", "parquet"] {
        let path = folder.path().join(format!("a.{format}"));
        fs::write(&path, "older").unwrap();
        // Far in, so that files have begun.
        let rows = "SELECT value, repeat('x', 100) AS text, 1 / (value - 290000) AS n FROM generate_series(1, 300000)";
        let error = refused(&format!("COPY ({rows}) TO '{at}/a.{format}'")).await;
        assert!(error.to_lowercase().contains("divide by zero"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "older");
    }
    assert_eq!(names(folder.path()), ["a.csv", "a.json", "a.parquet"]);
}

#[tokio::test]
async fn of_a_query_that_is_cancelled_nothing_stays() {
    let folder = tempfile::tempdir().unwrap();
    let sql =
        format!("COPY (SELECT value FROM generate_series(1, 100000000000)) TO '{}/a.csv'", folder.path().display());
    let context = SessionContext::new();
    let mut out = vec![];
    let begun = async {
        for _ in 0..6_000 {
            if !names(folder.path()).is_empty() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    };
    tokio::select! {
        done = execute(&context, "-c", &sql, WRITES, &mut out) => panic!("it ended: {done:?}"),
        begun = begun => assert!(begun, "no file in a minute"),
    }
    assert!(names(folder.path()).is_empty());
    // What still runs of it ends at its next pause, and makes none.
    let none = Aside::default();
    none.state().is_over = true;
    let location = Path::from_absolute_path(folder.path().join("b.csv")).unwrap();
    assert!(none.put_opts(&location, "x".into(), PutOptions::default()).await.is_err());
    assert!(names(folder.path()).is_empty());
}

#[tokio::test]
async fn a_place_that_takes_no_file_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    fs::write(folder.path().join("file"), "").unwrap();
    for (target, cause) in [
        ("/proc/x.csv", "No such file"),
        ("/proc/new/x.csv", "No such file"),
        ("/dev/null", "there is something that is no file"),
    ] {
        let error = refused(&format!("COPY (SELECT 1) TO '{target}' STORED AS CSV")).await;
        assert!(error.starts_with(&format!("could not write '{target}'\n")) && error.contains(cause), "{error}");
        assert!(
            error.contains("-c:1:20") && error.contains("hint: COPY … TO a folder where files can be made"),
            "{error}"
        );
    }
    let error = refused(&format!("COPY (SELECT 1) TO '{at}/file/x.csv'")).await;
    assert!(error.contains("x.csv\" is not a usable path") && error.contains("cause: Not a directory"), "{error}");
    let error = refused(&format!("COPY (SELECT 1) TO '{at}/*.csv'")).await;
    assert!(error.contains("has no *, ? or [ in its name"), "{error}");
    let error = refused("COPY (SELECT 1) TO 's3://bucket/x.csv'").await;
    assert!(error.starts_with("COPY … TO writes files of this machine only, not 's3://bucket/x.csv'\n"), "{error}");
    assert_eq!(names(folder.path()), ["file"]);
}

/// `/dev/full` stands for the disk.
#[tokio::test]
async fn a_full_disk_is_told_with_what_to_do() {
    let copy = Copy { target: "a.csv".into(), aside: Aside::default() };
    let file = File::options().write(true).open("/dev/full").unwrap();
    let mut upload = Upload { aside: copy.aside.clone(), file: Arc::new(file), offset: 0 };
    upload.put_part("x".into()).await.unwrap_err();
    assert_eq!(
        copy.failure().unwrap().to_string(),
        "could not write 'a.csv'\n  cause: No space left on device (os error 28)\nhint: make room there, or COPY … TO \
         another disk; nothing of this one was kept"
    );
}

#[tokio::test]
async fn a_target_without_a_format_says_how_to_name_one() {
    let error = refused("COPY (SELECT 1) TO 'somewhere'").await;
    insta::assert_snapshot!(error, @r"
    the target of COPY has no suffix that says its format
      -c:1:1
       1 | COPY (SELECT 1) TO 'somewhere'
         | ^^^^
    hint: end it with .parquet, .csv or .json, or add STORED AS PARQUET, CSV or JSON
    ");
    let error = refused("COPY (SELECT 1) TO 'somewhere.txt'").await;
    insta::assert_snapshot!(error, @r"
    the target of COPY has the suffix .txt, which says no format
      -c:1:1
       1 | COPY (SELECT 1) TO 'somewhere.txt'
         | ^^^^
    hint: end it with .parquet, .csv or .json, or add STORED AS PARQUET, CSV or JSON
    ");
}

#[tokio::test]
async fn explain_writes_nothing_and_explain_analyze_all() {
    let folder = tempfile::tempdir().unwrap();
    let copy = format!("COPY (SELECT 1 AS a) TO '{}/a.csv'", folder.path().display());
    run(&format!("EXPLAIN {copy}")).await.unwrap();
    assert!(names(folder.path()).is_empty());
    assert!(run(&format!("EXPLAIN ANALYZE {copy}")).await.unwrap().contains("Plan with Metrics"));
    assert_eq!(names(folder.path()), ["a.csv"]);
}
