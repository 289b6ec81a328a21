//! `poundlock demo` as a newcomer runs it, shortened; then what it says to try next.

use std::fs;
use std::path::Path;
use std::process::Command;

use rusqlite::Connection;

use crate::cli::{poundlock, text};

#[test]
fn the_demo_runs_twice_and_what_it_says_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["demo", "--for", "5s", "--dir", "my demo", "--rate", "500"];
    let first = demo(folder.path(), &arguments);
    assert!(folder.path().join("my demo/queries/00_tables.sql").exists(), "the shipped files, to be edited");
    check_results(folder.path(), &first);
    let (second, err) = output(&mut poundlock(folder.path(), &arguments));
    assert!(err.contains("removed what an earlier demo left in my demo"), "{err}");
    check_results(folder.path(), &second);
    for command in commands(&second) {
        // The second one is a demo of its own, with an edited threshold.
        let command = command.replace("--for 20s", "--for 3s");
        let (out, err) = output(Command::new("sh").args(["-c", &command]).current_dir(folder.path()));
        assert!(!out.is_empty(), "{command}\n{err}");
    }
    let edited = fs::read_to_string(folder.path().join("my demo/queries/30_anomalies.sql")).unwrap();
    assert!(edited.contains("z_score > 15 "), "the command has edited the threshold");
}

fn demo(folder: &Path, arguments: &[&str]) -> String {
    output(&mut poundlock(folder, arguments)).0
}

fn output(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
    (out, err)
}

fn check_results(folder: &Path, out: &str) {
    let dir = folder.join("my demo");
    let database = Connection::open(dir.join("demo.db")).unwrap();
    let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let users = "SELECT count(*) FROM users WHERE name IS NOT NULL AND created_at LIKE '20__-__-__ %'";
    assert_eq!(count(users), 1_000);
    let events = count("SELECT count(*) FROM user_events");
    let dead = fs::read_to_string(dir.join("dead_letters.jsonl")).unwrap();
    let dead: Vec<serde_json::Value> = dead.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // 500 a second for 5 s; the generator may have begun late on a busy machine.
    let total = events + dead.len() as i64;
    assert!((250..=2_600).contains(&total) && !dead.is_empty(), "{total} events, {} dead letters", dead.len());
    assert!(dead.iter().all(|letter| letter["dq_reason"].is_string() && letter["topic"] == "user_events"));
    // All windows are closed at the end: each event is in one window of 5 seconds, and in twelve of a minute.
    let size = "unixepoch(window_end) - unixepoch(window_start)";
    assert_eq!(count(&format!("SELECT sum(event_count) FROM user_activity_summary WHERE {size} = 5")), events);
    assert_eq!(count(&format!("SELECT sum(event_count) FROM user_activity_summary WHERE {size} = 60")), 12 * events);
    assert!(count("SELECT count(*) FROM user_activity_summary WHERE name IS NULL") == 0, "every user is known");
    let anomalies = count("SELECT count(*) FROM anomalous_events");
    assert!(anomalies > 0);
    assert_eq!(count("SELECT count(*) FROM anomalous_events WHERE user_id NOT IN (10, 455, 789, 123, 999)"), 0);
    for part in ["what it found", "dead letters", "anomalies", "alerts", "at-least-once", "try next"] {
        assert!(out.contains(part), "{part} is missing:\n{out}");
    }
    assert!(out.contains("user ") && out.contains("of severity "), "{out}");
}

/// The lines of "try next" that are commands, continued lines joined.
fn commands(out: &str) -> Vec<String> {
    let (_, next) = out.split_once("try next\n").unwrap();
    let next = next.replace("\\\n", " ");
    let commands: Vec<String> =
        next.lines().filter(|line| line.starts_with("    ")).map(|line| line.trim().to_string()).collect();
    assert_eq!(commands.len(), 3, "{out}");
    commands
}
