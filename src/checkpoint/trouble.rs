//! What an error of storage means for who meets it: whether it may pass, why it came, what to do next.
//!
//! A server repeats the request that it refuses, a session token among it: of what it says only code and message are shown.

use std::error::Error as _;
use std::io::{Error as IoError, ErrorKind};

use object_store::Error as StoreError;

use crate::Error;
use crate::error::causes;

/// An answer that is none of S3's may be a whole page.
const CAUSE_CHARACTERS: usize = 400;

/// Codes of S3 that come again however often one asks, and what helps.
const FOR_GOOD: [(&[&str], &str); 8] = [
    (
        &["NoSuchBucket", "InvalidBucketName"],
        "make the bucket first, or correct its name; AWS_ENDPOINT_URL says which server is asked",
    ),
    // The second is versitygw's.
    (
        &["InvalidAccessKeyId", "XAdminUserNotFound"],
        "AWS_ACCESS_KEY_ID is not known to that server: see AWS_ENDPOINT_URL",
    ),
    (&["SignatureDoesNotMatch"], "AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID"),
    (
        &["ExpiredToken", "InvalidToken", "TokenRefreshRequired"],
        "get a new AWS_SESSION_TOKEN with its key, and start again",
    ),
    (&["AccessDenied", "AllAccessDisabled", "AccountProblem"], "let the key read, write, list and delete there"),
    (
        &["PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegion"],
        "AWS_REGION is the region of the bucket",
    ),
    (&["RequestTimeTooSkewed"], "set this machine's clock"),
    (
        &["NotImplemented", "MethodNotAllowed"],
        "the server lacks a part of S3's protocol that is needed: see docs/reference.md",
    ),
];

/// The error with its cause, whether it may pass, and a hint where there is one.
pub fn explained(error: Error, of: &StoreError) -> Error {
    let text = causes(of);
    let error = error.cause(cause(of));
    if let Some(code) = element(&text, "Code")
        && let Some((_, hint)) = FOR_GOOD.iter().find(|(codes, _)| codes.contains(&code))
    {
        return error.hint(*hint);
    }
    match of {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            return error.hint("let the pipeline's user, or its key, read, write, list and delete there");
        }
        _ if text.contains("without LOCATION") => return error.hint("AWS_REGION is the region of the bucket"),
        // Whatever is wrong with it, trying again mends nothing.
        _ if text.contains("invalid peer certificate") => {
            let hint =
                "name the certificate of who has signed the server's: AWS_CA_BUNDLE, or 's3.ca_file' of the table";
            return error.hint(hint);
        }
        _ if text.contains("169.254.169.254") => {
            let hint = "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role";
            return error.hint(hint);
        }
        _ => {}
    }
    match io_kind(of) {
        Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory) => {
            error.hint("let the pipeline's user write there")
        }
        Some(ErrorKind::ConnectionRefused) => {
            error.retryable().hint("does the server run? AWS_ENDPOINT_URL says where")
        }
        _ => error.retryable(),
    }
}

/// Why, on one line, fit to be printed.
pub fn cause(of: &StoreError) -> String {
    let text = causes(of);
    match (element(&text, "Code"), element(&text, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {}", message.replace("&#34;", "\"").replace("&quot;", "\"")),
        (Some(code), None) => code.to_string(),
        _ => {
            let text = text.split_once("<?xml").map_or(text.as_str(), |(before, _)| before);
            text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CAUSE_CHARACTERS).collect()
        }
    }
}

/// Whether "not found" is said of more than the object: of its bucket, say.
pub(super) fn is_of_more(of: &StoreError) -> bool {
    let text = causes(of);
    matches!(of, StoreError::NotFound { .. })
        && element(&text, "Code").is_some_and(|code| !["NoSuchKey", "NotFound", "NoSuchVersion"].contains(&code))
}

fn io_kind(of: &StoreError) -> Option<ErrorKind> {
    let mut source = of.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<IoError>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

/// Of the answer of a server.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content.trim()).filter(|content| !content.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> StoreError {
        StoreError::Generic {
            store: "S3",
            source: format!("Server returned non-2xx status code: 403 Forbidden: {body}").into(),
        }
    }

    #[test]
    fn of_an_answer_only_code_and_message_are_shown() {
        let body = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>They do not match.</Message>\
                    <CanonicalRequest>PUT /x x-amz-security-token:s3cret</CanonicalRequest></Error>";
        let error = explained(Error::external("could not write"), &answer(body));
        assert!(!error.is_retryable());
        let shown = error.to_string();
        assert!(
            shown.contains("cause: SignatureDoesNotMatch: They do not match.\nhint: AWS_SECRET_ACCESS_KEY"),
            "{shown}"
        );
        assert!(!shown.contains("s3cret"), "{shown}");
        let other = answer("<?xml version=\"1.0\"?><Error><What>s3cret</What></Error>");
        assert!(!cause(&other).contains("s3cret"), "{}", cause(&other));
    }

    #[test]
    fn a_bucket_that_is_missing_is_not_an_object_that_is() {
        for (code, is) in [("NoSuchKey", false), ("NoSuchBucket", true)] {
            let source = format!("<Error><Code>{code}</Code></Error>").into();
            assert_eq!(is_of_more(&StoreError::NotFound { path: "x".into(), source }), is, "{code}");
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_comes_again() {
        for code in ["SlowDown", "InternalError", "RequestTimeout", "NoSuchUpload", "OperationAborted"] {
            let error = answer(&format!("<Error><Code>{code}</Code><Message>x</Message></Error>"));
            assert!(explained(Error::external("x"), &error).is_retryable(), "{code}");
        }
        for code in FOR_GOOD.iter().flat_map(|(codes, _)| *codes) {
            let error = explained(Error::external("x"), &answer(&format!("<Error><Code>{code}</Code></Error>")));
            assert!(!error.is_retryable() && error.to_string().contains("hint: "), "{code}");
        }
        let refused = IoError::new(ErrorKind::ConnectionRefused, "tcp connect error");
        let error = explained(Error::external("x"), &StoreError::Generic { store: "S3", source: Box::new(refused) });
        assert!(error.is_retryable() && error.to_string().contains("does the server run"), "{error}");
        let read_only = IoError::new(ErrorKind::ReadOnlyFilesystem, "x");
        assert!(
            !explained(Error::external("x"), &StoreError::Generic { store: "Durable", source: Box::new(read_only) })
                .is_retryable()
        );
    }
}
