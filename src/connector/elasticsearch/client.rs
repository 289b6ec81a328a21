//! One cluster's HTTP client: sends a request, and says of what comes back whether it may pass by itself and whose fault it is.
//!
//! ```text
//! no answer, a connection lost, 408, 429, 5xx     external, to be tried again
//! 401, 403, a certificate that is not accepted    the user's
//! 400, 404, 409, 413                              the caller knows what it means
//! ```
//!
//! Each request goes to the next node of the list, so whoever tries again asks another one. No message has user, password or
//! key: they are in no URL of the transport, only in a header.

use std::fmt;
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use elasticsearch::auth;
use elasticsearch::cert::{Certificate, CertificateValidation};
use elasticsearch::http::Method;
use elasticsearch::http::headers::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use elasticsearch::http::transport::{MultiNodeConnectionPool, Transport, TransportBuilder};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::Value;

use super::options::{Connection, Credentials};
use crate::error::causes;
use crate::{Error, Result};

/// Characters of an answer that is no JSON, a proxy's page say, that are repeated.
const PAGE_CHARS_MAX: usize = 200;

/// Errors within errors of Elasticsearch that are told, and characters of each: one quotes the value at length, the next one
/// says what was wrong with it.
const CAUSES_MAX: usize = 3;
const CAUSE_CHARS_MAX: usize = 200;

/// Bytes of one answer that tells its length; one that does not is bounded by the time-out alone, for the client library gives
/// bodies whole. The longest wanted is that of a bulk request, with an error for each document.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// See the module's documentation.
pub struct Client {
    transport: Transport,
    connection: Connection,
}

/// The transport would print user and password.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Client").field("connection", &self.connection).finish_non_exhaustive()
    }
}

/// A request that Elasticsearch has answered.
#[derive(Debug)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    pub body: Bytes,
}

/// What Elasticsearch says that was wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Reason {
    #[serde(rename = "type")]
    pub kind: String,
    pub reason: Option<String>,
    caused_by: Option<Box<Reason>>,
}

impl Client {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// Of the user: the file of certificates cannot be read.
    pub fn new(connection: &Connection) -> Result<Self> {
        let pool = MultiNodeConnectionPool::round_robin(connection.nodes.clone(), None);
        let mut builder = TransportBuilder::new(pool).timeout(connection.timeout);
        match &connection.credentials {
            Credentials::None => {}
            Credentials::Basic { user, password } => {
                builder = builder.auth(auth::Credentials::Basic(user.clone(), password.clone()));
            }
            Credentials::ApiKey(key) => {
                builder = builder.auth(match key.split_once(':') {
                    Some((id, key)) => auth::Credentials::ApiKey(id.into(), key.into()),
                    None => auth::Credentials::EncodedApiKey(key.clone()),
                });
            }
        }
        if connection.nodes.iter().any(|node| node.scheme() == "https")
            && let Some(roots) = roots(connection.ca_file.as_deref())?
        {
            builder = builder.cert_validation(CertificateValidation::Full(roots));
        }
        let built = builder.build();
        let transport =
            built.map_err(|error| Error::internal("could not set up an HTTP client").cause(causes(&error)))?;
        Ok(Self { transport, connection: connection.clone() })
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a request; `what` it does goes into the error. `query`: pairs of name and value. JSON, or lines of it.
    ///
    /// # Errors
    /// See the module's documentation.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Body>,
        what: &str,
    ) -> Result<Answer> {
        let mut headers = HeaderMap::new();
        if body.as_ref().is_some_and(|body| body.gzip) {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let body = body.map(|body| body.bytes);
        let lost = |error: elasticsearch::Error| self.no_answer(&error, what);
        let response = self.transport.send(method, path, headers, Some(query), body, None).await.map_err(lost)?;
        if let Some(bytes) = response.content_length().filter(|bytes| *bytes > ANSWER_BYTES_MAX) {
            let cause = format!("its answer has {bytes} bytes, more than {ANSWER_BYTES_MAX}");
            return Err(Error::external(format!("could not {what} at {}", self.connection)).cause(cause));
        }
        let status = response.status_code().as_u16();
        let answer = Answer { status, body: response.bytes().await.map_err(lost)? };
        match answer.status {
            200..=299 | 400 | 404 | 409 | 413 => Ok(answer),
            _ => Err(self.refused(&answer, what)),
        }
    }

    fn no_answer(&self, error: &elasticsearch::Error, what: &str) -> Error {
        let cause = causes(error);
        let message = format!("could not {what} at {}", self.connection);
        // Whatever is wrong with a certificate, trying again mends nothing.
        if cause.contains("certificate") {
            let hint = "name the certificate of who has signed it: OPTIONS ('ca_file' '…')";
            return Error::user(message).cause(cause).hint(hint);
        }
        if error.is_timeout() {
            let error = Error::external(message).cause(format!("no answer within {:?}", self.connection.timeout));
            return error.retryable();
        }
        Error::external(message).cause(cause).retryable()
    }

    /// The error for an answer that is none of those wanted.
    pub fn refused(&self, answer: &Answer, what: &str) -> Error {
        let message = format!("could not {what} at {}", self.connection);
        let cause = format!("{} (status {})", answer.reason(), answer.status);
        match answer.status {
            401 => Error::user(message)
                .cause(cause)
                .hint("check user and password, or the API key, of the table's options"),
            403 => Error::user(message).cause(cause).hint("grant the user or the API key the privilege"),
            408 | 429 | 500..=599 => Error::external(message).cause(cause).retryable(),
            _ => Error::external(message).cause(cause),
        }
    }
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.body)
    }

    /// What the error is, in Elasticsearch's words.
    pub fn error(&self) -> Reason {
        let body: Value = self.json().unwrap_or_default();
        Reason::deserialize(&body["error"]).unwrap_or_default()
    }

    /// The same on one line; of what is not from Elasticsearch the beginning.
    pub fn reason(&self) -> String {
        let error = self.error();
        if error != Reason::default() {
            return error.to_string();
        }
        let text: String = String::from_utf8_lossy(&self.body).chars().take(PAGE_CHARS_MAX).collect();
        let text: Vec<&str> = text.split_whitespace().collect();
        if text.is_empty() { "an empty answer".into() } else { text.join(" ") }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (mut error, mut said) = (self, String::new());
        for _ in 0..CAUSES_MAX {
            let whole = error.reason.as_deref().unwrap_or_default();
            let mut reason: String = whole.chars().take(CAUSE_CHARS_MAX).collect();
            // A cause often repeats what is around it.
            let repeats = said.contains(&reason);
            if reason.len() < whole.len() {
                reason.push('…');
            }
            if said.is_empty() {
                said = if error.kind.is_empty() { reason } else { format!("{}: {reason}", error.kind) };
            } else if !repeats {
                said = format!("{said}; {reason}");
            }
            match &error.caused_by {
                Some(cause) => error = cause,
                None => break,
            }
        }
        f.write_str(&said.replace(['\n', '\r'], " "))
    }
}

/// What a request sends.
#[derive(Debug)]
pub struct Body {
    bytes: Bytes,
    gzip: bool,
}

impl Body {
    pub fn json(value: &Value) -> Self {
        Self { bytes: value.to_string().into(), gzip: false }
    }

    /// Compressed, if asked for: the client library would do it on a thread that serves others.
    ///
    /// # Errors
    /// Memory.
    pub fn lines(bytes: Vec<u8>, gzip: bool) -> Result<Self> {
        if !gzip {
            return Ok(Self { bytes: bytes.into(), gzip });
        }
        // The fastest level has most of the gain.
        let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        let compressed = encoder.write_all(&bytes).and_then(|()| encoder.finish());
        let failed = |error| Error::internal("a request could not be compressed").cause(error);
        Ok(Self { bytes: compressed.map_err(failed)?.into(), gzip })
    }
}

/// The certificates to trust beside those of the system and the well-known ones: those of the file, else those of the system once
/// more. The client library has no way to leave the others out.
fn roots(file: Option<&Path>) -> Result<Option<Certificate>> {
    if let Some(file) = file {
        let unreadable =
            |cause: String| Error::user(format!("could not read the certificates in {}", file.display())).cause(cause);
        let pem = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
        return Certificate::from_pem(&pem).map(Some).map_err(|error| unreadable(causes(&error)));
    }
    let mut roots: Option<Certificate> = None;
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One that cannot be read vouches for nothing.
        let Ok(certificate) = Certificate::from_der(&certificate) else { continue };
        match &mut roots {
            Some(roots) => roots.append(certificate),
            None => roots = Some(certificate),
        }
    }
    Ok(roots)
}
