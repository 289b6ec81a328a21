//! Where a test can stop the program: with an error, or dead on the line as by `kill -9`.
//!
//! Points are there only in builds with the feature `failpoints`, as `make test` makes them; in others a point is
//! nothing. Which of them act says the environment of a process, so that tests beside each other do not stop each other:
//!
//! ```text
//! FAILPOINTS='checkpoint::after_plan=1*off->return(die)'     dead at the second plan
//! FAILPOINTS='parquet::before_put=1*return'                  the first file is not written, once
//! ```
//!
//! `tests/it/recovery/points.rs` reads the names from the source and stops at every one of them.

/// `point!("part::where")` returns from a function whose error is ours; with a second argument, a closure makes it the
/// function's own.
macro_rules! point {
    ($name:literal) => {
        fail::fail_point!($name, |action| Err($crate::point::stop($name, action.as_deref())))
    };
    ($name:literal, $error:expr) => {
        fail::fail_point!($name, |action| Err($error($crate::point::stop($name, action.as_deref()))))
    };
}
pub(crate) use point;

/// What a test puts in the place of a value; nothing in a normal build.
pub(crate) fn value(point: &str) -> Option<String> {
    #[cfg(feature = "failpoints")]
    return fail::eval(point, |value| value).flatten();
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = point;
        None
    }
}

/// The error of a point, unless the process is to die there.
#[cfg(feature = "failpoints")]
pub(crate) fn stop(point: &str, action: Option<&str>) -> crate::Error {
    if action == Some("die") {
        use rustix::process::{Signal, getpid, kill_process};
        if let Err(error) = kill_process(getpid(), Signal::KILL) {
            return crate::Error::internal("a process could not kill itself").cause(error);
        }
        loop {
            std::thread::park(); // The kernel ends this thread with the others.
        }
    }
    crate::Error::external(format!("fail point {point}")).retryable()
}
