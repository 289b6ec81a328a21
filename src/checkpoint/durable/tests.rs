use std::os::unix::fs::PermissionsExt;

use futures::TryStreamExt;
use object_store::ObjectStoreExt;

use super::*;

fn local(folder: &FilePath, name: &str) -> (Arc<dyn ObjectStore>, Path) {
    let location = Location::parse(folder.join(name).to_str().unwrap()).unwrap();
    (location.store, location.path)
}

#[tokio::test]
async fn what_is_put_is_read_and_nothing_is_left_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = local(folder.path(), "a/b/c d%20é");
    store.put(&path, "one".into()).await.unwrap();
    store.put(&path, "two".into()).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "two");
    let inside = folder.path().join("a/b");
    let names: Vec<_> = std::fs::read_dir(&inside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["c d%20é"]);
    assert_eq!(std::fs::metadata(inside.join("c d%20é")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&inside).unwrap().permissions().mode() & 0o027, 0);
}

#[tokio::test]
async fn of_many_creators_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = local(folder.path(), "record");
    let puts = (0..20).map(|n| {
        let (store, path) = (Arc::clone(&store), path.clone());
        tokio::spawn(async move { (n, store.put_opts(&path, format!("{n}").into(), PutMode::Create.into()).await) })
    });
    let mut winner = None;
    for put in puts.collect::<Vec<_>>() {
        match put.await.unwrap() {
            (n, Ok(_)) => assert_eq!(winner.replace(n), None),
            (_, Err(e)) => assert!(matches!(e, object_store::Error::AlreadyExists { .. }), "{e}"),
        }
    }
    let content = store.get(&path).await.unwrap().bytes().await.unwrap();
    assert_eq!(content, winner.unwrap().to_string());
}

#[tokio::test]
async fn leftovers_are_invisible_and_swept_when_old() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = local(folder.path(), "record");
    store.put(&path, "kept".into()).await.unwrap();
    let (old, young) = (folder.path().join("record#1"), folder.path().join("record#2"));
    for aside in [&old, &young] {
        std::fs::write(aside, "torn").unwrap();
    }
    let long_ago = SystemTime::now() - LEFTOVER_AGE * 2;
    File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    let listed: Vec<_> = store.list(path.parent().as_ref()).try_collect().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(Durable::sweep(folder.path(), 0).unwrap(), 1);
    assert!(!old.exists() && young.exists());
    assert_eq!(Durable::sweep(&folder.path().join("missing"), 3).unwrap(), 0);
}

#[tokio::test]
async fn an_upload_in_parts_appears_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = local(folder.path(), "big");
    let mut upload = store.put_multipart(&path).await.unwrap();
    upload.put_part("first, ".into()).await.unwrap();
    assert!(store.head(&path).await.is_err());
    upload.put_part("second".into()).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first, second");
}

#[test]
fn addresses() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().canonicalize().unwrap();
    let text = base.to_str().unwrap();
    assert_eq!(Location::parse(&format!("{text}/x/../y/")).unwrap_err().fault(), crate::Fault::User);
    assert_eq!(Location::parse(&format!("{text}/x/")).unwrap().local, Some(base.join("x")));
    assert_eq!(Location::parse(&format!("file://{text}/a%20b")).unwrap().local, Some(base.join("a b")));
    assert!(Location::parse("relative/folder").unwrap().local.unwrap().is_absolute());
    for (address, part) in [
        ("gs://bucket/x", "not a kind of storage yet"),
        ("ftp://x", "not a kind"),
        ("file://x", "three slashes"),
        ("s3://", "no name of a bucket"),
        ("s3://key:s3cret@bucket/x", "key:***@bucket"),
    ] {
        let error = Location::parse(address).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let (store, path) = local(folder.path(), "record");
    let below = path.parent().unwrap().join("file").join("record");
    let error = store.put(&below, "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("file/record"), "{error}");
}

/// Where a folder cannot be though its parent is there, the answer may be "not found".
#[test]
fn a_folder_that_can_never_be_is_an_error_and_not_tried_for_ever() {
    create_folders(FilePath::new("/proc/poundlock/below")).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    create_folders(&folder.path().join("a/b/c")).unwrap();
    create_folders(&folder.path().join("a/b/c")).unwrap();
    assert!(folder.path().join("a/b/c").is_dir());
}

#[tokio::test]
async fn ranges_are_read_and_what_is_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = local(folder.path(), "record");
    store.put(&path, "0123456789".into()).await.unwrap();
    assert_eq!(store.get_ranges(&path, &[7..10, 0..2, 4..4]).await.unwrap(), ["789", "01", ""]);
    for (from, to) in [(5, 11), (20, 21), (0, u64::MAX)] {
        let error = store.get_ranges(&path, std::slice::from_ref(&(from..to))).await.unwrap_err().to_string();
        assert!(error.contains("record") && error.contains("ends before byte"), "{error}");
    }
    let (_, missing) = local(folder.path(), "missing");
    let error = store.get_ranges(&missing, std::slice::from_ref(&(0..1))).await.unwrap_err();
    assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_listing_has_all_files_below_and_none_that_is_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let (store, root) = local(folder.path(), "lake");
    let list = async || -> Vec<String> {
        let found: Vec<_> = store.list(Some(&root)).try_collect().await.unwrap();
        let mut names: Vec<_> =
            found.iter().map(|o| format!("{} {}", o.location.filename().unwrap(), o.size)).collect();
        names.sort();
        names
    };
    assert!(list().await.is_empty(), "a folder that is not there");
    for name in ["a", "day=1/b", "day=1/deep/c"] {
        store.put(&local(folder.path(), &format!("lake/{name}")).1, "xyz".into()).await.unwrap();
    }
    std::fs::write(folder.path().join("lake/day=1/b#123"), "half").unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("lake/broken")).unwrap();
    assert_eq!(list().await, ["a 3", "b 3", "c 3"]);
}

/// A listing that meets an exchange of folders is made anew: the files of the old one are gone, but there are others.
#[test]
fn a_listing_sees_one_state_of_a_folder() {
    let base = tempfile::tempdir().unwrap();
    let (live, other) = (base.path().join("live"), base.path().join("other"));
    for (folder, files) in [(&live, 3), (&other, 50)] {
        std::fs::create_dir(folder).unwrap();
        (0..files).for_each(|n| std::fs::write(folder.join(format!("{files}-{n}")), "x").unwrap());
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &live, rustix::fs::CWD, &other, flags).unwrap();
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let seen: Vec<_> = (0..500).map(|_| list(&live)).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for found in seen {
            let found = found.unwrap().len();
            assert!(found == 3 || found == 50, "{found}");
        }
    });
}

/// A put that meets an exchange of its folder waits for the new one.
#[test]
fn nothing_is_put_into_a_folder_that_is_being_exchanged() {
    let base = tempfile::tempdir().unwrap();
    let (live, other) = (base.path().join("live"), base.path().join("other"));
    std::fs::create_dir(&live).unwrap();
    let held = held::exclusive(&live, Duration::ZERO).unwrap().unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    let to = live.join("file");
    let writer = std::thread::spawn(move || {
        put(&to, &"x".into(), false).unwrap();
        done.send(()).unwrap();
    });
    assert!(is_done.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
    std::fs::rename(&live, &other).unwrap();
    std::fs::create_dir(&live).unwrap();
    drop(held);
    writer.join().unwrap();
    let count = |folder| std::fs::read_dir(folder).unwrap().count();
    assert_eq!((count(&live), count(&other)), (1, 0));
}
