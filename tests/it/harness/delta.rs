//! A Delta table as its log's JSON has it, with nothing of the engine's: entry after entry, files added and removed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Every entry that there is, in order; checkpoints are not looked at, so no entry may have been cleaned away.
pub fn entries(table: &Path) -> Vec<Vec<Value>> {
    let mut entries = vec![];
    loop {
        let path = table.join(format!("_delta_log/{:020}.json", entries.len()));
        let Ok(text) = fs::read_to_string(&path) else { return entries };
        entries.push(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    }
}

/// The files that count, each with its partition values.
pub fn files(table: &Path) -> BTreeMap<PathBuf, BTreeMap<String, Option<String>>> {
    let mut files = BTreeMap::new();
    for action in entries(table).into_iter().flatten() {
        if let Some(path) = action["add"]["path"].as_str() {
            let values = action["add"]["partitionValues"].as_object().unwrap();
            let values = values.iter().map(|(name, value)| (name.clone(), value.as_str().map(str::to_string)));
            let added = files.insert(table.join(decoded(path)), values.collect());
            assert!(added.is_none(), "{path} was added twice");
        }
        if let Some(path) = action["remove"]["path"].as_str() {
            let removed = files.remove(&table.join(decoded(path)));
            assert!(removed.is_some(), "{path} was removed, and is not there");
        }
    }
    files
}

/// Of `%20` and the like.
fn decoded(path: &str) -> String {
    let (mut bytes, mut rest) = (vec![], path.as_bytes());
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(code) if *first == b'%' => (bytes.push(code), rest = &tail[2..]).1,
            _ => (bytes.push(*first), rest = tail).1,
        }
    }
    String::from_utf8(bytes).unwrap()
}
