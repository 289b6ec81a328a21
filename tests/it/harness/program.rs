//! The real binary as a child process: started, watched through its log, killed without warning.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::wait_for;

const SIGKILL: i32 = 9;

/// Killed when dropped, so that a failed test leaves no process.
pub struct Program {
    child: Child,
    what: String,
    log: PathBuf,
    /// Where this start begins in the log, which all starts of a test share.
    log_begin: u64,
}

impl Program {
    /// Output and errors go to the end of the log.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let what = format!("{command:?}");
        let what =
            what.rsplit_once("poundlock\"").map_or(what.clone(), |(_, arguments)| format!("poundlock{arguments}"));
        let mut file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        writeln!(file, "--- {what}").unwrap();
        let log_begin = file.metadata().unwrap().len();
        let (out, err) = (file.try_clone().unwrap(), file);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().expect("the binary starts");
        Self { child, what, log, log_begin }
    }

    /// What this start has logged so far.
    pub fn log(&self) -> String {
        let mut file = File::open(&self.log).unwrap();
        file.seek(SeekFrom::Start(self.log_begin)).unwrap();
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Panics, with the end of the log, if the process has ended by itself.
    pub fn must_live(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended by itself: {status}\n{}", self.what, self.log_end());
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    pub fn kill(mut self) {
        self.must_live();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it is dead at its fail point. `false`: it ran to its end and succeeded.
    pub fn dies(mut self, limit: Duration) -> bool {
        let status = self.wait(limit);
        let died = status.signal() == Some(SIGKILL);
        assert!(died || status.success(), "{} neither died nor succeeded: {status}\n{}", self.what, self.log_end());
        died
    }

    /// Waits for exit code 2; what it said.
    pub fn fails(mut self, limit: Duration) -> String {
        let status = self.wait(limit);
        assert_eq!(status.code(), Some(2), "{}: {status}\n{}", self.what, self.log_end());
        self.log()
    }

    /// As Ctrl-C does.
    pub fn interrupt(&mut self) {
        self.signal("INT");
    }

    pub fn signal(&mut self, name: &str) {
        self.must_live();
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.what);
        wait_for(&what, limit, || self.child.try_wait().unwrap())
    }

    /// Waits for the end, which must be exit code 0.
    pub fn succeed(mut self, limit: Duration) -> String {
        let status = self.wait(limit);
        assert!(status.success(), "{} failed: {status}\n{}", self.what, self.log_end());
        self.log()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to kill, and nothing to say.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
