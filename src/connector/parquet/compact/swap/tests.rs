use tempfile::TempDir;
use uuid::Uuid;

use super::*;

fn name(batch: u64) -> FileName {
    FileName { pipeline: Uuid::from_u128(1), batch, sequence: 0 }
}

/// A partition of three files, of which the first two are to become one, and `other`.
struct Case {
    folder: TempDir,
    staged: Staged,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (live, hidden) = (folder.path().join("live"), folder.path().join("hidden"));
        fs::create_dir(&live).unwrap();
        for batch in 0..3 {
            fs::write(live.join(name(batch).format()), format!("{batch}")).unwrap();
        }
        fs::write(live.join("other"), "other").unwrap();
        let mut staged = Staged::begin(&live, &hidden).unwrap();
        let merged = FileName { sequence: 9, ..name(1) };
        fs::write(staged.path(&merged), "0 1").unwrap();
        staged.replaces(merged, &[0, 1].map(|batch| Found { name: name(batch), size: 1 }));
        Self { folder, staged }
    }

    fn live(&self, name: &str) -> PathBuf {
        self.folder.path().join("live").join(name)
    }

    fn hidden(&self, name: &str) -> PathBuf {
        self.folder.path().join("hidden").join(name)
    }

    fn repaired(&self) -> bool {
        Staged::repair(&self.folder.path().join("live"), &self.folder.path().join("hidden")).unwrap()
    }
}

/// What is in the files of a folder, sorted.
fn contents(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let data = files.filter(|file| file.file_name() != MANIFEST);
    let mut texts: Vec<String> = data.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
    texts.sort();
    texts
}

const BEFORE: [&str; 4] = ["0", "1", "2", "other"];
const AFTER: [&str; 3] = ["0 1", "2", "other"];

#[test]
fn the_folders_are_exchanged_and_what_was_is_deleted() {
    let mut case = Case::new();
    assert_eq!(contents(&case.live("")), BEFORE);
    assert_eq!(case.staged.swap().unwrap(), None);
    assert_eq!(
        (contents(&case.live("")), contents(&case.hidden(""))),
        (AFTER.map(String::from).to_vec(), BEFORE.map(String::from).to_vec())
    );
    let (live, hidden) = (case.live(""), case.hidden(""));
    case.staged.finish().unwrap();
    assert_eq!(contents(&live), AFTER);
    assert!(!hidden.exists() && !live.join(MANIFEST).exists());
}

#[test]
fn what_is_put_meanwhile_is_kept_and_what_is_removed_stays_away() {
    let mut case = Case::new();
    assert!(case.staged.link().unwrap().is_ok());
    fs::write(case.live("late"), "late").unwrap();
    fs::remove_file(case.live("other")).unwrap();
    // As a replay does.
    fs::write(case.live("aside"), "2 again").unwrap();
    fs::rename(case.live("aside"), case.live(&name(2).format())).unwrap();
    assert_eq!(case.staged.swap().unwrap(), None);
    assert_eq!(contents(&case.live("")), ["0 1", "2 again", "late"]);
    // In the moment of the exchange, by a program that does not hold the folder; and a file that is removed after it.
    fs::write(case.hidden("raced"), "raced").unwrap();
    fs::remove_file(case.live("late")).unwrap();
    let live = case.live("");
    case.staged.finish().unwrap();
    assert_eq!(contents(&live), ["0 1", "2 again", "raced"]);
}

#[test]
fn a_partition_that_has_changed_is_left_alone() {
    let spoil: [fn(&Case); 3] = [
        |case| fs::remove_file(case.live(&name(0).format())).unwrap(),
        |case| fs::create_dir(case.live("folder")).unwrap(),
        |case| fs::write(case.live(&FileName { sequence: 9, ..name(1) }.format()), "x").unwrap(),
    ];
    for (spoil, why) in spoil.iter().zip(["was removed", "a folder in it: folder", "there is a file"]) {
        let mut case = Case::new();
        spoil(&case);
        let said = case.staged.swap().unwrap().unwrap();
        assert!(said.contains(why), "{said}");
        let hidden = case.hidden("");
        case.staged.abandon().unwrap();
        assert!(!hidden.exists());
    }
    let mut case = Case::new();
    let put = held::shared(&case.live("")).unwrap();
    assert!(case.staged.swap().unwrap().unwrap().contains("all the time"));
    drop(put);
    assert_eq!(contents(&case.live("")), BEFORE);
}

#[test]
fn a_kill_at_any_step_is_repaired() {
    // Before the exchange, with and without files; a mark alone.
    let case = Case::new();
    assert!(case.repaired());
    assert_eq!(contents(&case.live("")), BEFORE);
    assert!(!case.hidden("").exists());
    // Right after it; with some of it deleted; with all of it deleted; without the manifest.
    for deleted in 0..=5 {
        let mut case = Case::new();
        assert_eq!(case.staged.swap().unwrap(), None);
        let old = ["other".to_string(), name(0).format(), name(1).format(), name(2).format()];
        old.iter().take(deleted).for_each(|name| fs::remove_file(case.hidden(name)).unwrap());
        if deleted == 5 {
            fs::remove_file(case.live(MANIFEST)).unwrap();
        }
        assert!(case.repaired());
        assert_eq!(contents(&case.live("")), AFTER);
        assert!(!case.hidden("").exists() && !case.live(MANIFEST).exists());
    }
    // What cannot be told is left.
    let mut case = Case::new();
    assert_eq!(case.staged.swap().unwrap(), None);
    fs::remove_file(case.live(MANIFEST)).unwrap();
    assert!(!case.repaired());
    assert_eq!(contents(&case.hidden("")), BEFORE);
}

/// A torn manifest is one of a folder that was not exchanged.
#[test]
fn a_manifest_is_read_only_after_the_exchange() {
    let case = Case::new();
    fs::write(case.hidden(MANIFEST), "{\"repl").unwrap();
    assert!(case.repaired());
    assert_eq!(contents(&case.live("")), BEFORE);
}

#[test]
fn a_folder_of_another_file_system_is_told() {
    let case = Case::new();
    let error = case.staged.unable(Errno::XDEV).to_string();
    assert!(error.contains("on one file system"), "{error}");
    let error = case.staged.unable(Errno::INVAL).to_string();
    assert!(error.contains("cannot exchange two folders") && error.contains("STORED AS DELTA"), "{error}");
}
