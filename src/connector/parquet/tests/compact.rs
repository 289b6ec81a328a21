//! Partitions merged, as readers and replays find them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::super::compact::staging::Staging;
use super::super::compact::{Compaction, Report, Which};
use super::super::layout::FileName;
use super::*;

/// All partitions are closed.
fn which(last: u64) -> Which {
    let quiet_since = SystemTime::now() + Duration::from_secs(60);
    Which { pipeline: PIPELINE, last, asked: Instant::now(), quiet_since, target_size: 128 << 20 }
}

fn run(definition: &Arc<TableDefinition>, which: &Which) -> Report {
    let table = Compaction::of(definition).unwrap();
    let partitions = table.partitions().unwrap();
    let planned = table.plan(which, &partitions, &|| ()).unwrap();
    let report = table.run(which, &partitions, &|| ()).unwrap();
    assert_eq!((planned.merged, planned.before), (report.merged, report.before), "as it was planned");
    assert_eq!((planned.after.files, planned.open, planned.whole), (report.after.files, report.open, report.whole));
    report
}

/// A row a file, in batches from `first` on: ids are batches, days go round.
async fn written(definition: &Arc<TableDefinition>, batches: std::ops::Range<u64>, days: i32) {
    let mut sink = opened(definition).await;
    for batch in batches {
        let rows = rows(&[(Some(batch as i32 % days), batch as i64, Some("eu"))]);
        write(&mut sink, batch, vec![insert(definition, 0, vec![rows])]).await.unwrap();
    }
}

/// Files of a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn name(batch: u64, sequence: usize) -> String {
    FileName { pipeline: PIPELINE, batch, sequence }.format()
}

const ALL: &str = "SELECT string_agg(day::varchar || ' ' || id::varchar || name || region || at::varchar || amount::varchar, ';' ORDER BY id) FROM events";

#[tokio::test]
async fn small_files_become_one_of_a_new_name_in_the_order_of_batches() {
    let (folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    written(&definition, 0..40, 2).await;
    let before = value(&definition, committed(39), ALL).await.unwrap();
    let report = run(&definition, &which(39));
    assert_eq!((report.merged, report.before.files, report.after.files), (2, 40, 2));
    assert!(report.after.bytes > 0 && report.after.bytes < report.before.bytes);
    let day = PathBuf::from(&location).join("day=1970-01-01");
    assert_eq!(names(&day), [name(38, 1_000_000_000)], "of no batch's file, so nobody has listed it before");
    assert_eq!(value(&definition, committed(39), ALL).await.unwrap(), before);
    let in_order = "SELECT string_agg(id::varchar, ',') FROM (SELECT id FROM events WHERE day = DATE '1970-01-01')";
    let wanted: Vec<String> = (0..40).step_by(2).map(|id| id.to_string()).collect();
    assert_eq!(value(&definition, committed(39), in_order).await.unwrap(), wanted.join(","));
    assert_eq!(names(folder.path().join("lake").as_path()), ["events"], "nothing is left beside it");

    // Again there is nothing to do; with more rows, old and new are merged under a name that is new again.
    let again = run(&definition, &which(39));
    assert_eq!((again.merged, again.whole), (0, 2));
    written(&definition, 40..42, 2).await;
    written(&definition, 42..43, 3).await;
    assert_eq!(run(&definition, &which(42)).merged, 2);
    assert_eq!(names(&day), [name(42, 1_000_000_000)]);
    let other = PathBuf::from(&location).join("day=1970-01-02");
    assert_eq!(names(&other), [name(41, 1_000_000_000)]);
    assert_eq!(value(&definition, committed(42), "SELECT count(*) FROM events").await.unwrap(), "43");
    // Its newest file may be the one that was merged: it gets another name all the same.
    fs::copy(other.join(name(41, 1_000_000_000)), other.join(name(1, 0))).unwrap();
    assert_eq!(run(&definition, &which(42)).merged, 1);
    assert_eq!(names(&other), [name(41, 2_000_000_000)]);
}

/// Replays are of batches after the last committed one: they find their files as they have left them, and no others.
#[tokio::test]
async fn files_of_others_and_of_uncommitted_batches_stay_and_a_replay_finds_them() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    written(&definition, 0..6, 1).await;
    let day = PathBuf::from(&location).join("day=1970-01-01");
    let foreign = FileName { pipeline: Uuid::from_u128(9), batch: 1, sequence: 0 }.format();
    for other in ["part-0.parquet", &foreign, "_SUCCESS"] {
        fs::copy(day.join(name(0, 0)), day.join(other)).unwrap();
    }
    fs::write(day.join(format!("{}#77", name(3, 0))), "torn").unwrap();
    let inodes =
        |names: &[&str]| -> Vec<u64> { names.iter().map(|name| fs::metadata(day.join(name)).unwrap().ino()).collect() };
    let uncommitted = name(5, 0);
    let stay = ["part-0.parquet", &foreign, "_SUCCESS", &uncommitted];
    let before = inodes(&stay);
    let report = run(&definition, &which(4));
    assert_eq!((report.before.files, report.after.files), (5, 1));
    assert_eq!(inodes(&stay), before);
    let mut wanted: Vec<String> = stay.map(str::to_string).to_vec();
    wanted.push(name(4, 1_000_000_000));
    wanted.sort();
    assert_eq!(names(&day), wanted);
    let mut sink = opened(&definition).await;
    assert!(sink.holds(5).await.unwrap() && !sink.holds(6).await.unwrap());
    write(&mut sink, 5, vec![insert(&definition, 0, vec![rows(&[(Some(0), 5, None)])])]).await.unwrap();
    assert_eq!(names(&day), wanted);
    assert_eq!(value(&definition, committed(5), "SELECT sum(id) FROM events").await.unwrap(), "15");
}

#[tokio::test]
async fn what_is_open_large_or_alone_stays_as_it_is() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    written(&definition, 0..4, 2).await;
    written(&definition, 4..5, 5).await;
    let files = || -> BTreeSet<(PathBuf, u64)> {
        let days = names(Path::new(&location)).into_iter().map(|day| PathBuf::from(&location).join(day));
        days.flat_map(|day| names(&day).into_iter().map(move |name| day.join(name)))
            .map(|file| (file.clone(), fs::metadata(file).unwrap().ino()))
            .collect()
    };
    let before = files();
    let open = Which { quiet_since: SystemTime::now() - Duration::from_secs(60), ..which(4) };
    assert_eq!(run(&definition, &open).open, 3);
    let large = Which { target_size: 10, ..which(4) };
    assert_eq!(run(&definition, &large).whole, 3);
    assert_eq!(run(&definition, &which(0)).whole, 3, "one committed file");
    let day = PathBuf::from(&location).join("day=1970-01-01");
    fs::create_dir(day.join("mine")).unwrap();
    let unfit = run(&definition, &Which { last: 4, ..which(4) });
    assert_eq!((unfit.skipped.len(), unfit.merged, unfit.whole), (1, 1, 1));
    assert!(unfit.skipped[0].1.contains("a folder in it: mine"), "{unfit:?}");
    fs::remove_dir(day.join("mine")).unwrap();
    assert_eq!(files().intersection(&before).count(), 3);
    fs::write(day.join(name(2, 0)), "damaged").unwrap();
    let unfit = run(&definition, &which(4));
    assert!(unfit.skipped[0].1.contains(&name(2, 0)), "{unfit:?}");
}

#[tokio::test]
async fn a_merged_file_is_no_larger_than_was_said() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    written(&definition, 0..10, 1).await;
    let day = PathBuf::from(&location).join("day=1970-01-01");
    let one = fs::metadata(day.join(name(3, 0))).unwrap().len();
    run(&definition, &Which { target_size: one * 7 / 2, ..which(9) });
    let merged: Vec<String> = [2, 5, 8].map(|batch| name(batch, 1_000_000_000)).to_vec();
    assert_eq!(names(&day), [merged, vec![name(9, 0)]].concat());
    assert_eq!(value(&definition, committed(9), "SELECT sum(id) FROM events").await.unwrap(), "45");
    assert_eq!(value(&definition, committed(5), "SELECT sum(id) FROM events").await.unwrap(), "15");
}

/// A column that is declared no longer is still in the files.
#[tokio::test]
async fn files_of_other_columns_are_merged_by_themselves() {
    let (_folder, location) = folder();
    let new = Arc::new(definition(&location, &["day"]));
    let mut fields: Vec<Arc<Field>> = schema().fields().to_vec();
    let more = Arc::new(Field::new("more", DataType::Int64, true));
    fields.push(Arc::clone(&more));
    let old = TableDefinition { schema: Arc::new(Schema::new(fields)), ..definition(&location, &["day"]) };
    let old = Arc::new(old);
    for batch in 0..8u64 {
        let new_rows = rows(&[(Some(0), batch as i64, None)]);
        let (of, rows) = match batch % 2 {
            0 => (&new, new_rows),
            _ => {
                let more: ArrayRef = Arc::new(Int64Array::from(vec![batch as i64]));
                let columns = [new_rows.columns(), &[more]].concat();
                (&old, RecordBatch::try_new(Arc::clone(&old.schema), columns).unwrap())
            }
        };
        write(&mut opened(of).await, batch, vec![insert(of, 0, vec![rows])]).await.unwrap();
    }
    run(&new, &which(7));
    let day = PathBuf::from(&location).join("day=1970-01-01");
    assert_eq!(names(&day), [name(6, 1_000_000_000), name(7, 1_000_000_000)]);
    assert_eq!(value(&old, committed(7), "SELECT sum(more) FROM events").await.unwrap(), "16");
    assert_eq!(value(&new, committed(7), "SELECT sum(id) FROM events").await.unwrap(), "28");
}

/// Folders two levels deep; enough rows that the writer judges the columns by a part of them.
#[tokio::test]
async fn many_rows_keep_every_value() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day", "region"]));
    let mut sink = opened(&definition).await;
    for batch in 0..4 {
        let rows: Vec<_> =
            (0..15_000).map(|n| (Some(0), batch * 15_000 + n, [None, Some("e/u")][n as usize % 2])).collect();
        let rows = super::rows(&rows);
        write(&mut sink, batch as u64, vec![insert(&definition, 0, vec![rows])]).await.unwrap();
    }
    let sums = "SELECT sum(id) || ' ' || count(distinct name) || ' ' || sum(amount) || ' ' || max(at) || ' ' || max(at_utc) || ' ' || count(region) FROM events";
    let before = value(&definition, committed(3), sums).await.unwrap();
    assert_eq!(run(&definition, &which(3)).after.files, 2);
    assert_eq!(value(&definition, committed(3), sums).await.unwrap(), before);
    assert!(before.contains(" 60000 "), "{before}");
}

#[tokio::test]
async fn one_process_at_a_time() {
    let (folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    written(&definition, 0..2, 1).await;
    let held = Staging::take(Path::new(&location)).unwrap().unwrap();
    assert!(Staging::take(Path::new(&location)).unwrap().is_none());
    let table = Compaction::of(&definition).unwrap();
    let error = table.run(&which(1), &table.partitions().unwrap(), &|| ()).unwrap_err().to_string();
    assert!(error.contains("another process merges its files"), "{error}");
    // Nor does a start of the pipeline touch what is in use.
    opened(&definition).await;
    assert!(held.folder().exists());
    held.release().unwrap();
    assert_eq!(names(&folder.path().join("lake")), ["events"]);
    assert_eq!(run(&definition, &which(1)).merged, 1);
}

/// As by a program that keeps a month.
#[tokio::test]
async fn a_partition_that_is_gone_is_left() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    written(&definition, 0..4, 2).await;
    let table = Compaction::of(&definition).unwrap();
    let partitions = table.partitions().unwrap();
    fs::remove_dir_all(PathBuf::from(&location).join("day=1970-01-01")).unwrap();
    let report = table.run(&which(3), &partitions, &|| ()).unwrap();
    assert_eq!((report.merged, report.skipped.len()), (1, 1));
    assert!(report.skipped[0].1.contains("removed meanwhile"), "{report:?}");
}

#[tokio::test]
async fn tables_that_cannot_be_merged_say_why() {
    let refused = |definition: TableDefinition| Compaction::of(&Arc::new(definition)).unwrap_err().to_string();
    let error = refused(definition("/x/events", &[]));
    assert!(error.contains("no PARTITIONED BY") && error.contains("STORED AS DELTA"), "{error}");
    let error = refused(definition("memory://m/events", &["day"]));
    assert!(error.contains("not on a local disk") && error.contains("STORED AS DELTA"), "{error}");
    let error = refused(TableDefinition { stored_as: "DELTA".into(), ..definition("/x/events", &["day"]) });
    assert!(error.contains("nothing is to be done"), "{error}");
    let (_folder, location) = folder();
    assert!(Compaction::of(&Arc::new(definition(&location, &["day"]))).unwrap().partitions().unwrap().is_empty());
}
