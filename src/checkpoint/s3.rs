//! S3, and servers that speak its protocol, as the storage of a lake or of a checkpoint.
//!
//! ```text
//! s3://bucket/path, AWS_… of the environment, 's3.…' of the table ─▶ Bucket ─▶ one put, or parts if it is large
//! ```
//!
//! Names and their meaning are those of AWS's own tools, as object_store has them; variables that are set and empty are taken
//! for not set, as compose files leave them. What cannot work is an error before anything is asked.
//!
//! Invariants: an object is there whole or not at all: parts count when the upload is completed. A put that failed leaves
//! nothing but parts that nobody sees; they are removed at once, or, after a kill, by a lifecycle rule of the bucket.
//!
//! Failure: a request is tried again a few times within [`REQUEST_LIMIT`], if it may be repeated; the caller goes on
//! from there. A put if absent whose answer is lost is not repeated here: who asked reads what is there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result as StoreResult, RetryConfig,
};

use super::trouble::{cause, is_of_more};
use super::trust::TrustOnly;
use crate::connector::{OptionDoc, redact};
use crate::point::point;
use crate::{Error, Result};

/// Of a table whose LOCATION is on S3.
pub const OPTIONS: &[OptionDoc] = &[
    (
        "s3.endpoint",
        "address of a server that speaks S3's protocol; default `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, else Amazon's own",
    ),
    ("s3.region", "default `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`"),
    (
        "s3.access_key_id",
        "default `AWS_ACCESS_KEY_ID`; without any key: web identity, container or instance role, as AWS's tools look for them",
    ),
    ("s3.secret_access_key", "default `AWS_SECRET_ACCESS_KEY`"),
    ("s3.session_token", "default `AWS_SESSION_TOKEN`"),
    (
        "s3.allow_http",
        "`true` or `false`: whether an endpoint may begin with `http://`; default `AWS_ALLOW_HTTP`, else `false`",
    ),
    (
        "s3.virtual_hosted_style",
        "`true` or `false`: the bucket in the host's name, not in the path; default `AWS_VIRTUAL_HOSTED_STYLE_REQUEST`, else `false`",
    ),
    (
        "s3.ca_file",
        "PEM file of the authorities that may have signed the server's certificate, and no others; default `AWS_CA_BUNDLE`, else those of the system",
    ),
];

/// A request that is not answered for so long has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// More attempts are the caller's, who tells of them.
const RETRIES_MAX: usize = 3;

/// What is larger goes in parts: each is a request of its own, tried again by itself.
const PART_BYTES: usize = 8 << 20;
const PARTS_AT_A_TIME: usize = 4;

/// The first that is set counts.
const ENDPOINTS: [&str; 3] = ["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"];

/// A bucket whose large objects are put in parts.
pub(super) struct Bucket {
    inner: AmazonS3,
    name: String,
}

impl Bucket {
    /// `own`: options of the table, of which those of [`OPTIONS`] count. Nothing is asked yet.
    ///
    /// # Errors
    /// What is configured cannot work (user).
    pub fn open(name: &str, own: &BTreeMap<String, String>) -> Result<Arc<Self>> {
        /// Those in use: to make one reads all certificates of the system.
        static CLIENTS: LazyLock<Mutex<HashMap<blake3::Hash, Weak<Bucket>>>> = LazyLock::new(Mutex::default);
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let settings = settings(variables, own);
        // Connections belong to the runtime that made them: tests have one each.
        let runtime = tokio::runtime::Handle::try_current().map(|runtime| runtime.id()).ok();
        let key = blake3::hash(format!("{runtime:?} {name} {settings:?}").as_bytes());
        let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        let client = Arc::new(Self::configured(name, settings)?);
        clients.retain(|_, client| client.strong_count() > 0);
        clients.insert(key, Arc::downgrade(&client));
        Ok(client)
    }

    fn configured(name: &str, mut settings: BTreeMap<String, String>) -> Result<Self> {
        let failed = |what: &str| Error::user(format!("bucket {name:?} of S3 cannot be used: {what}"));
        let mut client = ClientOptions::new().with_timeout(REQUEST_LIMIT).with_connect_timeout(CONNECT_LIMIT);
        let mut trust = None;
        if let Some(file) = settings.remove("aws_ca_bundle") {
            let unusable = |e: &dyn fmt::Display| {
                let hint = "AWS_CA_BUNDLE, or 's3.ca_file', is a file in PEM";
                failed("there are no certificates to trust").cause(format!("{file}: {e}")).hint(hint)
            };
            let pem = std::fs::read(&file).map_err(|e| unusable(&e))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(&e))?;
            if certificates.is_empty() {
                return Err(unusable(&"it holds none"));
            }
            trust = Some(TrustOnly(certificates));
        }
        let is_true = |name: &str| settings.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = ENDPOINTS.iter().find_map(|name| settings.get(*name)).cloned();
        if let Some(endpoint) = &endpoint {
            let cause = format!("the endpoint is {:?}", redact(endpoint));
            if endpoint.starts_with("http://") && !is_true("aws_allow_http") {
                let hint = "set AWS_ALLOW_HTTP=true, or 's3.allow_http' 'true', where the network can be trusted with rows and \
                            signatures; else take https://";
                return Err(failed("http is not allowed").cause(cause).hint(hint));
            }
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                let hint = "AWS_ENDPOINT_URL, or 's3.endpoint', begins with https:// or http://";
                return Err(failed("the endpoint has no scheme").cause(cause).hint(hint));
            }
            let host = endpoint.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
            if host.contains('@') {
                // S3 has no use for them, and they would be in the errors of each request.
                let hint = "who we are say AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or 's3.access_key_id' and 's3.secret_access_key'";
                return Err(failed("the endpoint has a user").cause(cause).hint(hint));
            }
        }
        let endpoint = match is_true("aws_virtual_hosted_style_request") {
            true => endpoint.map(|endpoint| hosted(&endpoint, name)),
            false => endpoint,
        };
        let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
        let retry = RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: REQUEST_LIMIT };
        let mut builder = AmazonS3Builder::new().with_retry(retry);
        for (name, value) in settings.iter().filter(|(name, _)| !ENDPOINTS.contains(&name.as_str())) {
            match name.parse() {
                Ok(AmazonS3ConfigKey::Client(key)) if trust.is_some() && !TrustOnly::honours(key) => {
                    let cause = format!("{} has no effect there", name.to_ascii_uppercase());
                    let hint = "leave it out, or add the authority to those of the system";
                    return Err(failed("a setting does not go with a file of authorities").cause(cause).hint(hint));
                }
                Ok(AmazonS3ConfigKey::Client(key)) => client = client.with_config(key, value),
                Ok(key) => builder = builder.with_config(key, value),
                // Of AWS's other tools.
                Err(_) => {}
            }
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(trust) = trust {
            builder = builder.with_http_connector(trust);
        }
        let built = builder.with_bucket_name(name).with_client_options(client).build();
        let inner = built.map_err(|e| {
            let hint = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together; docs/reference.md lists the variables";
            failed("its settings do not fit").cause(e).hint(hint)
        })?;
        Ok(Self { inner, name: name.to_string() })
    }

    /// Parts are on their way side by side. One that fails takes the others with it.
    async fn put_in_parts(&self, to: &Path, payload: &PutPayload) -> StoreResult<PutResult> {
        let mut upload = self.inner.put_multipart(to).await?;
        let parts: Vec<_> = parts(payload).into_iter().map(|part| upload.put_part(part.into())).collect();
        let sent = futures::stream::iter(parts).buffer_unordered(PARTS_AT_A_TIME).try_collect::<()>().await;
        let error = match sent {
            Ok(()) => match upload.complete().await {
                Ok(put) => return Ok(put),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if let Err(left) = upload.abort().await {
            tracing::warn!(object = %to, "parts of an upload that failed are left in bucket {}: {}", self.name, cause(&left));
        }
        Err(error)
    }
}

/// Names in lower case, as object_store knows them; what is empty is not set.
fn settings(
    variables: impl Iterator<Item = (String, String)>,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let of_aws = variables.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
    let mut settings: BTreeMap<String, String> =
        of_aws.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let own = |option: &str| own.get(option).filter(|value| !value.is_empty());
    if own("s3.access_key_id").is_some() {
        // A token is of one key.
        settings.remove("aws_session_token");
    }
    for (option, name) in [
        ("s3.endpoint", ENDPOINTS[0]),
        ("s3.region", "aws_region"),
        ("s3.access_key_id", "aws_access_key_id"),
        ("s3.secret_access_key", "aws_secret_access_key"),
        ("s3.session_token", "aws_session_token"),
        ("s3.allow_http", "aws_allow_http"),
        ("s3.virtual_hosted_style", "aws_virtual_hosted_style_request"),
        ("s3.ca_file", "aws_ca_bundle"),
    ] {
        if let Some(value) = own(option) {
            settings.insert(name.to_string(), value.clone());
        }
    }
    settings
}

/// Tells clients of one bucket apart that reach it in different ways; empty where only the environment says how.
pub(super) fn distinction(own: &BTreeMap<String, String>) -> String {
    // What is not secret is enough.
    let told = ["s3.endpoint", "s3.region", "s3.access_key_id"].map(|option| own.get(option).filter(|v| !v.is_empty()));
    match told.iter().all(Option::is_none) {
        true => String::new(),
        false => format!("-{}", &blake3::hash(format!("{told:?}").as_bytes()).to_hex()[..12]),
    }
}

/// The endpoint with the bucket in its host's name, where it is not there yet.
fn hosted(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !host.starts_with(&format!("{bucket}.")) => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_string(),
    }
}

/// Of equal size but for the last, as some servers ask for it.
fn parts(payload: &PutPayload) -> Vec<Bytes> {
    let (mut parts, mut part) = (vec![], BytesMut::new());
    for chunk in payload {
        let mut rest = chunk.clone();
        while !rest.is_empty() {
            let taken = rest.split_to(rest.len().min(PART_BYTES - part.len()));
            if part.is_empty() && taken.len() == PART_BYTES {
                parts.push(taken); // the usual case: nothing is copied
                continue;
            }
            part.extend_from_slice(&taken);
            if part.len() == PART_BYTES {
                parts.push(part.split().freeze());
            }
        }
    }
    if !part.is_empty() {
        parts.push(part.freeze());
    }
    parts
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "bucket {}", self.name)
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    /// One that is put if absent goes in one piece: whether it was absent is asked at its end.
    async fn put_opts(&self, to: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        point!("s3::before_put", |error| generic(&error));
        let put = match options.mode {
            PutMode::Overwrite if payload.content_length() > 2 * PART_BYTES => self.put_in_parts(to, &payload).await,
            _ => self.inner.put_opts(to, payload, options).await,
        };
        // As if the answer were lost.
        point!("s3::after_put", |error| generic(&error));
        put
    }

    async fn put_multipart_opts(&self, to: &Path, o: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(to, o).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await.map_err(|e| match is_of_more(&e) {
            // Else it would be taken for an object that is not there yet.
            true => object_store::Error::Generic { store: "S3", source: Box::new(e) },
            false => e,
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(feature = "failpoints")]
fn generic(error: &Error) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: error.line().into() }
}

#[cfg(test)]
#[path = "s3/tests.rs"]
mod tests;
