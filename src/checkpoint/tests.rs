use std::collections::BTreeMap;

use super::record::{SourceCommit, SourcePlan};
use super::*;
use crate::connector::{OffsetRange, Refusal};

fn plan(number: u64, epoch: u64) -> Plan {
    plan_from(number, epoch, number as i64 * 10, number as i64 * 10 + 10)
}

fn plan_from(number: u64, epoch: u64, from: i64, to: i64) -> Plan {
    let ranges = BTreeMap::from([(0, OffsetRange { from, to })]);
    Plan {
        number,
        epoch,
        planned_at: number as i64,
        sources: BTreeMap::from([("kafka.t".to_string(), SourcePlan { ranges, ..Default::default() })]),
        program: "p".into(),
        dimensions: BTreeMap::new(),
        dimensions_read_at: BTreeMap::new(),
        partitions: 1,
        close_windows: false,
        limits: None,
        off: None,
        outbox_refused: vec![],
    }
}

fn commit_of(plan: &Plan, epoch: u64) -> Commit {
    let sources = plan
        .sources
        .iter()
        .map(|(table, source)| (table.clone(), SourceCommit { ranges: source.ranges.clone(), ..Default::default() }));
    Commit {
        number: plan.number,
        epoch,
        planned_at: plan.planned_at,
        program: plan.program.clone(),
        sources: sources.collect(),
        inserts: BTreeMap::new(),
        views: BTreeMap::new(),
        files: BTreeMap::new(),
        dimensions: BTreeMap::new(),
        outbox_refused: vec![],
    }
}

fn delta(number: u64) -> Bytes {
    format!("delta {number}").into()
}

async fn run(checkpoint: &Checkpoint, numbers: std::ops::RangeInclusive<u64>) {
    let epoch = checkpoint.identity().epoch;
    for number in numbers {
        let plan = plan(number, epoch);
        checkpoint.plan(&plan).await.unwrap();
        checkpoint.commit(&commit_of(&plan, epoch), delta(number)).await.unwrap();
    }
}

fn numbers<T>(of: &[(u64, T)]) -> Vec<u64> {
    of.iter().map(|(number, _)| *number).collect()
}

/// A store of its own for each test, so that two openings share it without a lock.
fn memory() -> String {
    format!("memory://{}", Uuid::new_v4().simple())
}

fn s3() -> String {
    let bucket = std::env::var("S3_BUCKET").expect("S3_BUCKET: run this through `make test`");
    format!("s3://{bucket}/unit-{}", Uuid::new_v4().simple())
}

fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().join("checkpoints").to_str().unwrap().to_string();
    (folder, url)
}

/// Tests of what two openings share without a lock: each runs on both kinds of storage.
macro_rules! without_a_lock {
    ($($name:ident)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::memory).await;
            })*
        }
        mod on_s3 {
            $(#[tokio::test]
            #[ignore = "needs S3: make test"]
            async fn $name() {
                super::$name(super::s3).await;
            })*
        }
    };
}

without_a_lock! {
    recovery_begins_at_the_newest_snapshot
    a_large_payload_comes_back
    a_missing_plan_is_an_error
    the_newest_epoch_wins
    of_racing_starts_each_has_its_own_epoch
    the_same_again_is_fine_and_something_else_is_not
    a_commit_of_a_lower_epoch_is_adopted_if_it_says_the_same
    a_commit_of_a_higher_epoch_fences
    a_plan_behind_a_superseded_one_is_void
    a_plan_that_continues_a_lost_one_is_void
    refusals_stand_as_they_were_first_stored
    blobs_are_what_their_name_says
    without_two_snapshots_nothing_is_removed
    what_an_older_start_does_meanwhile_is_seen
}

#[tokio::test]
async fn a_new_checkpoint_is_empty_and_keeps_its_identity() {
    let (_folder, url) = folder();
    assert!(Checkpoint::read_only(&url, "p").await.unwrap().is_none());
    let first = Checkpoint::open(&url, "p").await.unwrap();
    let recovery = first.recover().await.unwrap();
    assert!(recovery.last.is_none() && recovery.snapshot.is_none() && recovery.pending.is_empty());
    let identity = first.identity().clone();
    assert_eq!(identity.epoch, 1);
    drop(first);
    let second = Checkpoint::open(&url, "p").await.unwrap();
    assert_eq!((second.identity().uuid, second.identity().epoch), (identity.uuid, 2));
    let look = Checkpoint::read_only(&url, "p").await.unwrap().unwrap();
    assert_eq!(look.identity(), second.identity());
    assert_eq!(look.ensure_newest().await.unwrap_err().fault(), crate::Fault::Internal);
}

#[tokio::test]
async fn a_second_process_is_refused_by_name() {
    let (_folder, url) = folder();
    let first = Checkpoint::open(&url, "p").await.unwrap();
    let error = Checkpoint::open(&url, "p").await.unwrap_err().to_string();
    assert!(error.contains("is in use") && error.contains(&format!("process {}", std::process::id())), "{error}");
    Checkpoint::open(&url, "other").await.unwrap();
    let clone = first.clone();
    drop(first);
    assert!(Checkpoint::open(&url, "p").await.is_err());
    drop(clone);
    Checkpoint::open(&url, "p").await.unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named_with_what_decides_it() {
    let (_folder, url) = folder();
    std::fs::create_dir(&url).unwrap();
    std::fs::write(format!("{url}/in_the_way"), "").unwrap();
    let error = Checkpoint::open(&url, "in_the_way").await.unwrap_err().to_string();
    assert!(
        error.starts_with("could not make the folder /") && error.contains("in_the_way of the checkpoint"),
        "{error}"
    );
    assert!(error.contains("hint: --checkpoint or CHECKPOINT_BASE says where it is"), "{error}");
    let error = Checkpoint::open(&format!("{url}/in_the_way/deeper"), "p").await.unwrap_err().to_string();
    assert!(error.contains("is not a usable path") && error.contains("CHECKPOINT_BASE"), "{error}");
}

#[tokio::test]
async fn names_are_folder_names() {
    for name in ["", "..", "a/b", ".hidden", "a b", &"x".repeat(101)] {
        let error = Checkpoint::open(&memory(), name).await.unwrap_err();
        assert!(error.message().starts_with("poundlock.name is"), "{error}");
    }
}

#[tokio::test]
async fn recovery_without_a_snapshot_gives_all_deltas() {
    let (_folder, url) = folder();
    let checkpoint = Checkpoint::open(&url, "p").await.unwrap();
    run(&checkpoint, 1..=3).await;
    checkpoint.plan(&plan(4, 1)).await.unwrap();
    checkpoint.plan(&plan(5, 1)).await.unwrap();
    drop(checkpoint);
    let checkpoint = Checkpoint::open(&url, "p").await.unwrap();
    let recovery = checkpoint.recover().await.unwrap();
    assert_eq!(recovery.last.unwrap().number, 3);
    assert_eq!(recovery.deltas, [(1, delta(1)), (2, delta(2)), (3, delta(3))]);
    assert_eq!(recovery.pending, [plan(4, 1), plan(5, 1)]);
    assert_eq!(checkpoint.last_committed().await.unwrap(), Some(3));
}

async fn recovery_begins_at_the_newest_snapshot(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    run(&checkpoint, 0..=2).await;
    checkpoint.snapshot(0, "zero".into()).await.unwrap();
    assert_eq!(numbers(&checkpoint.recover().await.unwrap().deltas), [1, 2]);
    checkpoint.snapshot(2, "two".into()).await.unwrap();
    let recovery = checkpoint.recover().await.unwrap();
    assert_eq!(recovery.snapshot, Some((2, "two".into())));
    assert_eq!((recovery.last.unwrap().number, recovery.deltas.len()), (2, 0));
    run(&checkpoint, 3..=5).await;
    let recovery = checkpoint.recover().await.unwrap();
    assert_eq!(numbers(&recovery.deltas), [3, 4, 5]);
    // A state is of a committed batch; a reset replaces it.
    assert!(checkpoint.snapshot(6, Bytes::new()).await.is_err());
    checkpoint.snapshot(5, "five".into()).await.unwrap();
    checkpoint.snapshot(5, Bytes::new()).await.unwrap();
    assert_eq!(checkpoint.recover().await.unwrap().snapshot, Some((5, Bytes::new())));
}

async fn a_large_payload_comes_back(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    let plan = plan(1, 1);
    let large = Bytes::from(vec![7; LARGE_PAYLOAD + 1]);
    checkpoint.plan(&plan).await.unwrap();
    checkpoint.commit(&commit_of(&plan, 1), large.clone()).await.unwrap();
    assert_eq!(checkpoint.read_commit(1).await.unwrap().unwrap(), (commit_of(&plan, 1), large));
    assert!(checkpoint.read_commit(2).await.unwrap().is_none());
}

#[tokio::test]
async fn a_hole_is_an_error() {
    let (_folder, url) = folder();
    let checkpoint = Checkpoint::open(&url, "p").await.unwrap();
    run(&checkpoint, 1..=4).await;
    let late = plan(9, 1);
    assert!(
        checkpoint
            .commit(&commit_of(&late, 1), Bytes::new())
            .await
            .unwrap_err()
            .message()
            .contains("the last committed batch is 4")
    );
    for missing in [1, 3] {
        let file = format!("{url}/p/commit/{missing:020}");
        let aside = format!("{url}/aside");
        std::fs::rename(&file, &aside).unwrap();
        let error = checkpoint.recover().await.unwrap_err();
        assert!(error.message().contains("is missing"), "{error}");
        if missing == 3 {
            assert!(error.message().contains(&format!("commit/{missing:020}")), "{error}");
        }
        std::fs::rename(&aside, &file).unwrap();
    }
    checkpoint.snapshot(4, Bytes::new()).await.unwrap();
    std::fs::remove_file(format!("{url}/p/commit/{:020}", 4)).unwrap();
    assert!(checkpoint.recover().await.unwrap_err().message().contains("is missing"));
}

async fn a_missing_plan_is_an_error(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    run(&checkpoint, 1..=1).await;
    checkpoint.plan(&plan(3, 1)).await.unwrap();
    let error = checkpoint.recover().await.unwrap_err();
    assert!(error.to_string().contains("batch 3 is planned"), "{error}");
}

#[tokio::test]
async fn torn_and_foreign_files_are_named() {
    let (_folder, url) = folder();
    let checkpoint = Checkpoint::open(&url, "p").await.unwrap();
    run(&checkpoint, 1..=2).await;
    checkpoint.plan(&plan(3, 1)).await.unwrap();
    checkpoint.snapshot(1, "state".into()).await.unwrap();
    let paths = [format!("commit/{:020}", 2), format!("plan/{:020}-{:020}", 3, 1), format!("state/{:020}", 1)];
    for path in paths {
        let file = format!("{url}/p/{path}");
        let whole = std::fs::read(&file).unwrap();
        for (bytes, what) in [
            (whole[..whole.len() / 2].to_vec(), "is truncated"),
            (vec![], "is truncated"),
            ([&whole[..whole.len() - 1], b"x"].concat(), "is damaged"),
            (b"#!/bin/sh".to_vec(), "is not a record of poundlock"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let error = checkpoint.recover().await.unwrap_err();
            assert!(error.message().contains(&path) && error.message().contains(what), "{error}");
        }
        std::fs::write(&file, whole).unwrap();
    }
    checkpoint.recover().await.unwrap();
    for foreign in ["commit/notes.txt", "plan/1", "state/7", "epoch/x"] {
        let file = format!("{url}/p/{foreign}");
        std::fs::write(&file, "x").unwrap();
        let error = match foreign.starts_with("epoch") {
            true => Checkpoint::read_only(&url, "p").await.map(|_| ()).unwrap_err(),
            false => checkpoint.recover().await.map(|_| ()).unwrap_err(),
        };
        assert!(error.message().contains(foreign) && error.message().contains("none of poundlock's"), "{error}");
        std::fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn another_pipelines_checkpoint_is_refused() {
    let (_folder, url) = folder();
    run(&Checkpoint::open(&url, "a").await.unwrap(), 1..=2).await;
    run(&Checkpoint::open(&url, "b").await.unwrap(), 1..=1).await;
    // A renamed checkpoint.
    std::fs::rename(format!("{url}/a"), format!("{url}/c")).unwrap();
    let error = Checkpoint::open(&url, "c").await.unwrap_err();
    assert!(error.message().contains("is of another pipeline"), "{error}");
    // A commit of one in the folder of the other.
    let file = format!("commit/{:020}", 2);
    std::fs::copy(format!("{url}/c/{file}"), format!("{url}/b/{file}")).unwrap();
    let error = Checkpoint::open(&url, "b").await.unwrap().recover().await.unwrap_err();
    assert!(error.message().contains("belongs to another pipeline"), "{error}");
    // The file that says who it is, lost.
    std::fs::remove_file(format!("{url}/b/pipeline")).unwrap();
    let error = Checkpoint::open(&url, "b").await.unwrap_err();
    assert!(error.message().contains("has no file \"pipeline\""), "{error}");
}

async fn the_newest_epoch_wins(storage: fn() -> String) {
    let url = storage();
    let old = Checkpoint::open(&url, "p").await.unwrap();
    run(&old, 1..=1).await;
    old.plan(&plan(2, 1)).await.unwrap();
    let new = Checkpoint::open(&url, "p").await.unwrap();
    for error in [
        old.plan(&plan(3, 1)).await.unwrap_err(),
        old.commit(&commit_of(&plan(2, 1), 1), delta(2)).await.unwrap_err(),
        old.snapshot(1, Bytes::new()).await.unwrap_err(),
        old.retain().await.unwrap_err(),
        old.put_refused(BatchPlan { batch: 2, planned_at: 5 }, "es", &[]).await.unwrap_err(),
        old.ensure_newest().await.unwrap_err(),
    ] {
        assert_eq!(error.message(), "fenced by epoch 2");
        assert!(!error.is_retryable());
    }
    let recovery = new.recover().await.unwrap();
    assert_eq!(recovery.pending, [plan(2, 1)]);
    new.commit(&commit_of(&recovery.pending[0], 2), delta(2)).await.unwrap();
    let third = Checkpoint::open(&url, "p").await.unwrap();
    assert_eq!(third.identity().epoch, 3);
    assert_eq!(old.ensure_newest().await.unwrap_err().message(), "fenced by epoch 3");
}

async fn of_racing_starts_each_has_its_own_epoch(storage: fn() -> String) {
    let url = &storage();
    let start = async || {
        for _ in 0..20 {
            match Checkpoint::open(url, "p").await {
                Ok(opened) => return opened,
                // Of many at the same time a server may refuse some, as it may be away: a start tries again.
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        panic!("twenty attempts in vain");
    };
    let opened = futures::future::join_all((0..8).map(|_| start())).await;
    let epochs: std::collections::BTreeSet<_> = opened.iter().map(|c| c.identity().epoch).collect();
    assert_eq!(epochs.len(), 8, "{epochs:?}");
    assert!(opened.iter().all(|c| c.identity().uuid == opened[0].identity().uuid));
}

async fn the_same_again_is_fine_and_something_else_is_not(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    let one = plan(1, 1);
    checkpoint.plan(&one).await.unwrap();
    checkpoint.plan(&one).await.unwrap();
    let error = checkpoint.plan(&plan_from(1, 1, 0, 5)).await.unwrap_err();
    assert!(error.message().contains("planned twice"), "{error}");
    assert!(checkpoint.plan(&plan(1, 7)).await.unwrap_err().message().contains("epoch 7"));
    let commit = commit_of(&one, 1);
    checkpoint.commit(&commit, delta(1)).await.unwrap();
    checkpoint.commit(&commit, delta(1)).await.unwrap();
    let error = checkpoint.commit(&commit, delta(9)).await.unwrap_err();
    assert!(error.message().contains("with another result"), "{error}");
}

/// Writes as a process does that has not noticed yet that it is fenced.
async fn behind_the_fence<T: Serialize>(checkpoint: &Checkpoint, key: &str, record: &T, payload: Bytes) {
    let bytes = checkpoint.0.encode(key, record, payload).await.unwrap();
    assert!(checkpoint.0.put_new(key, bytes).await.unwrap());
}

async fn a_commit_of_a_lower_epoch_is_adopted_if_it_says_the_same(storage: fn() -> String) {
    let url = storage();
    let old = Checkpoint::open(&url, "p").await.unwrap();
    old.plan(&plan(1, 1)).await.unwrap();
    let new = Checkpoint::open(&url, "p").await.unwrap();
    new.recover().await.unwrap();
    behind_the_fence(&old, &log::commit_key(1), &commit_of(&plan(1, 1), 1), delta(1)).await;
    let other = new.commit(&commit_of(&plan_from(1, 2, 0, 5), 2), delta(1)).await.unwrap_err();
    assert!(other.message().contains("with another result"), "{other}");
    new.commit(&commit_of(&plan(1, 1), 2), delta(1)).await.unwrap();
    assert_eq!(new.recover().await.unwrap().last.unwrap().epoch, 1);
}

async fn a_commit_of_a_higher_epoch_fences(storage: fn() -> String) {
    let url = storage();
    let old = Checkpoint::open(&url, "p").await.unwrap();
    old.plan(&plan(1, 1)).await.unwrap();
    behind_the_fence(&old, &log::commit_key(1), &commit_of(&plan(1, 1), 2), delta(1)).await;
    let error = old.commit(&commit_of(&plan(1, 1), 1), delta(1)).await.unwrap_err();
    assert_eq!(error.message(), "fenced by epoch 2");
}

async fn a_plan_behind_a_superseded_one_is_void(storage: fn() -> String) {
    let url = storage();
    let first = Checkpoint::open(&url, "p").await.unwrap();
    run(&first, 1..=1).await;
    first.plan(&plan(2, 1)).await.unwrap();
    first.plan(&plan(3, 1)).await.unwrap();
    let second = Checkpoint::open(&url, "p").await.unwrap();
    assert_eq!(second.recover().await.unwrap().pending.len(), 2);
    let smaller = plan_from(2, 2, 20, 25);
    second.plan(&smaller).await.unwrap();
    assert_eq!(second.recover().await.unwrap().pending, std::slice::from_ref(&smaller));
    second.commit(&commit_of(&smaller, 2), delta(2)).await.unwrap();
    let third = Checkpoint::open(&url, "p").await.unwrap();
    assert_eq!(third.recover().await.unwrap().pending, []);
    // An adopted plan, in contrast, leaves its successor valid.
    let url = storage();
    let first = Checkpoint::open(&url, "p").await.unwrap();
    first.plan(&plan(1, 1)).await.unwrap();
    first.plan(&plan(2, 1)).await.unwrap();
    let second = Checkpoint::open(&url, "p").await.unwrap();
    second.commit(&commit_of(&plan(1, 1), 2), delta(1)).await.unwrap();
    assert_eq!(second.recover().await.unwrap().pending, [plan(2, 1)]);
}

async fn a_plan_that_continues_a_lost_one_is_void(storage: fn() -> String) {
    let url = storage();
    let old = Checkpoint::open(&url, "p").await.unwrap();
    run(&old, 1..=1).await;
    old.plan(&plan(2, 1)).await.unwrap();
    let new = Checkpoint::open(&url, "p").await.unwrap();
    new.plan(&plan_from(2, 2, 20, 25)).await.unwrap();
    new.plan(&plan_from(3, 2, 25, 30)).await.unwrap();
    behind_the_fence(&old, &log::commit_key(2), &commit_of(&plan(2, 1), 1), delta(2)).await;
    let third = Checkpoint::open(&url, "p").await.unwrap();
    assert_eq!(third.recover().await.unwrap().pending, []);
    third.plan(&plan(3, 3)).await.unwrap();
    let fourth = Checkpoint::open(&url, "p").await.unwrap();
    assert_eq!(fourth.recover().await.unwrap().pending, [plan(3, 3)]);
}

async fn what_an_older_start_does_meanwhile_is_seen(storage: fn() -> String) {
    let url = storage();
    let old = Checkpoint::open(&url, "p").await.unwrap();
    let new = Checkpoint::open(&url, "p").await.unwrap();
    let found = new.recover().await.unwrap();
    assert!(!new.has_moved_on(&found, found.newest()).await.unwrap());
    behind_the_fence(&old, &log::plan_key(1, 1), &plan(1, 1), Bytes::new()).await;
    assert!(new.has_moved_on(&found, found.newest()).await.unwrap());
    let found = new.recover().await.unwrap();
    assert_eq!(found.newest(), Some(1));
    assert!(!new.has_moved_on(&found, found.newest()).await.unwrap());
    behind_the_fence(&old, &log::commit_key(1), &commit_of(&plan(1, 1), 1), delta(1)).await;
    assert!(new.has_moved_on(&found, found.newest()).await.unwrap());
    let found = new.recover().await.unwrap();
    assert!(!new.has_moved_on(&found, found.newest()).await.unwrap());
}

#[test]
fn plans_of_versions_before_are_read() {
    let plan = r#"{"number":7,"epoch":2,"planned_at":0,"program":"p","dimensions":{},"partitions":1,
        "sources":{"kafka.t":{"ranges":{"0":{"from":70,"to":80}},"idle":[],"lost":0}}}"#;
    let read: Plan = serde_json::from_str(plan).unwrap();
    assert_eq!(read, Plan { planned_at: 0, ..plan_from(7, 2, 70, 80) });
    assert!(read.limits.is_none() && read.off.is_none(), "not noted, which is not the same as none");
}

async fn refusals_stand_as_they_were_first_stored(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    assert_eq!(checkpoint.get_refused(BatchPlan { batch: 1, planned_at: 5 }, "es").await.unwrap(), None);
    let first = vec![Refusal { insert: 0, row: 3, error: "no such field".into() }];
    assert_eq!(checkpoint.put_refused(BatchPlan { batch: 1, planned_at: 5 }, "es", &first).await.unwrap(), first);
    assert_eq!(checkpoint.put_refused(BatchPlan { batch: 1, planned_at: 5 }, "es", &[]).await.unwrap(), first);
    assert_eq!(checkpoint.get_refused(BatchPlan { batch: 1, planned_at: 5 }, "es").await.unwrap(), Some(first));
    // Planned anew, the batch has other rows.
    let anew = BatchPlan { batch: 1, planned_at: 6 };
    assert_eq!(checkpoint.get_refused(anew, "es").await.unwrap(), None);
    assert_eq!(checkpoint.put_refused(anew, "es", &[]).await.unwrap(), []);
    assert!(checkpoint.put_refused(BatchPlan { batch: 1, planned_at: 5 }, "../x", &[]).await.is_err());
}

async fn blobs_are_what_their_name_says(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    let hash = checkpoint.put_blob(Blob::Program, "SELECT 1".into()).await.unwrap();
    assert_eq!(checkpoint.put_blob(Blob::Program, "SELECT 1".into()).await.unwrap(), hash);
    assert_eq!(checkpoint.get_blob(Blob::Program, &hash).await.unwrap(), "SELECT 1");
    assert!(checkpoint.get_blob(Blob::Dimension, &hash).await.unwrap_err().message().contains("is missing"));
}

#[tokio::test]
async fn retention_keeps_two_snapshots_a_thousand_commits_and_the_blobs_they_need() {
    let url = memory();
    let checkpoint = Checkpoint::open(&url, "p").await.unwrap();
    checkpoint.recover().await.unwrap();
    let old = checkpoint.put_blob(Blob::Program, "old".into()).await.unwrap();
    let kept = checkpoint.put_blob(Blob::Dimension, "kept".into()).await.unwrap();
    let newest = COMMITS_KEPT + 300;
    for number in 1..=newest {
        let mut plan = plan(number, 1);
        plan.program = if number <= 100 { old.clone() } else { "other".into() };
        plan.dimensions = BTreeMap::from([("d".into(), kept.clone())]);
        checkpoint.plan(&plan).await.unwrap();
        checkpoint.commit(&commit_of(&plan, 1), Bytes::new()).await.unwrap();
        if number % 100 == 0 {
            checkpoint.snapshot(number, Bytes::new()).await.unwrap();
            assert_eq!(checkpoint.commits().await.unwrap()[0], 1.max(number.saturating_sub(100 + COMMITS_KEPT) + 1));
            checkpoint.retain().await.unwrap();
        }
        if number == 100 || number == 1_000 {
            assert!(checkpoint.get_blob(Blob::Program, &old).await.is_ok());
        }
    }
    let commits = checkpoint.commits().await.unwrap();
    assert_eq!((commits[0], commits.len() as u64), (newest + 1 - COMMITS_KEPT, COMMITS_KEPT));
    assert!(checkpoint.get_blob(Blob::Program, &old).await.is_err());
    assert_eq!(checkpoint.get_blob(Blob::Dimension, &kept).await.unwrap(), "kept");
    assert_eq!(checkpoint.0.list("state", None).await.unwrap().len(), SNAPSHOTS_KEPT);
    assert_eq!(checkpoint.0.list("plan", None).await.unwrap().len() as u64, COMMITS_KEPT);
    assert_eq!(checkpoint.retain().await.unwrap(), 0);
    let recovery = Checkpoint::open(&url, "p").await.unwrap().recover().await.unwrap();
    assert_eq!(recovery.last.unwrap().number, newest);
}

async fn without_two_snapshots_nothing_is_removed(storage: fn() -> String) {
    let checkpoint = Checkpoint::open(&storage(), "p").await.unwrap();
    run(&checkpoint, 1..=20).await;
    checkpoint.snapshot(20, Bytes::new()).await.unwrap();
    assert_eq!(checkpoint.retain().await.unwrap(), 0);
    assert_eq!(checkpoint.commits().await.unwrap().len(), 20);
}

#[tokio::test]
async fn the_older_snapshot_does_if_the_newest_is_lost() {
    let (_folder, url) = folder();
    let checkpoint = Checkpoint::open(&url, "p").await.unwrap();
    run(&checkpoint, 1..=4).await;
    checkpoint.snapshot(2, "two".into()).await.unwrap();
    checkpoint.snapshot(4, "four".into()).await.unwrap();
    checkpoint.retain().await.unwrap();
    std::fs::remove_file(format!("{url}/p/state/{:020}", 4)).unwrap();
    let recovery = checkpoint.recover().await.unwrap();
    assert_eq!(recovery.snapshot, Some((2, "two".into())));
    assert_eq!(numbers(&recovery.deltas), [3, 4]);
}
