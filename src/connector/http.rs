//! What the HTTP clients have in common.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// RFC 3986: all but unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, RESERVED).to_string()
}

/// An error with its causes, on one line; what a cause only repeats is left out.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_of_the_path() {
        assert_eq!(segment("events-2026.01_~x"), "events-2026.01_~x");
        assert_eq!(segment("a/b?c=ü%"), "a%2Fb%3Fc%3D%C3%BC%25");
    }

    #[test]
    fn a_cause_that_is_only_repeated_is_told_once() {
        let inner = std::io::Error::other("connection refused");
        assert_eq!(causes(&std::io::Error::other(inner)), "connection refused");
    }
}
