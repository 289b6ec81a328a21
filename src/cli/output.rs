//! What a verb prints: data on stdout, errors on stderr.
//!
//! A reader that has gone away (`poundlock sql … | head`) is no error: what is written after that is dropped, and
//! [`Out::closed`] says that there is no point in making more.

use std::io::{self, ErrorKind, Write};

use super::colour;

/// How a verb that reports tells what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// For people.
    Text,
    /// One object.
    Json,
}

/// A writer that takes a closed pipe for the end, not for an error.
#[derive(Debug)]
pub struct Out<W: Write> {
    inner: W,
    closed: bool,
}

impl Out<io::Stdout> {
    pub fn stdout() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> Out<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, closed: false }
    }

    /// Nobody reads any more.
    pub fn closed(&self) -> bool {
        self.closed
    }

    fn unless_closed<T>(&mut self, instead: T, write: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.closed {
            return Ok(instead);
        }
        match write(&mut self.inner) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(instead)
            }
            result => result,
        }
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_closed(bytes.len(), |inner| inner.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_closed((), Write::flush)
    }
}

/// Prints an error as the last word of the process. With stderr closed there is nobody left to tell.
pub fn print_error(error: &anyhow::Error) {
    let (on, off) = if colour() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    writeln!(io::stderr(), "{on}error:{off} {}", text(error)).unwrap_or_default();
}

/// Whether all that went wrong is that nobody reads our output any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == ErrorKind::BrokenPipe)
}

fn text(error: &anyhow::Error) -> String {
    match error.downcast_ref::<crate::Error>() {
        Some(error) => error.to_string(),
        None => {
            let causes: Vec<String> = error.chain().skip(1).map(|cause| format!("\n  cause: {cause}")).collect();
            format!("{error}{}", causes.concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    struct Pipe(usize);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(1) {
                Some(left) => {
                    self.0 = left;
                    Ok(bytes.len())
                }
                None => Err(ErrorKind::BrokenPipe.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_the_end_and_no_error() {
        let mut out = Out::new(Pipe(1));
        out.write_all(b"one").unwrap();
        assert!(!out.closed());
        out.write_all(b"two").unwrap();
        assert!(out.closed());
        out.write_all(b"three").unwrap();
        out.flush().unwrap();
        let raw = anyhow::Error::from(Pipe(0).write_all(b"x").unwrap_err()).context("cannot print");
        assert!(is_closed_pipe(&raw) && !is_closed_pipe(&anyhow::anyhow!("other")));
    }

    #[test]
    fn errors_are_told_with_their_causes() {
        let io = Err::<(), _>(io::Error::other("disk full")).context("could not write").unwrap_err();
        assert_eq!(text(&io), "could not write\n  cause: disk full");
        let ours = anyhow::Error::from(crate::Error::user("no").hint("yes"));
        assert_eq!(text(&ours), "no\nhint: yes");
    }
}
