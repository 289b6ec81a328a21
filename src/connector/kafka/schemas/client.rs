//! The little of a schema registry's REST API that is needed, over one HTTP client.
//!
//! Each call is one attempt at each address in turn; who calls decides whether to try again ([`Error::is_retryable`]).
//! Bodies have a limit, requests a time-out. Proxies of the environment are used, as Elasticsearch's and S3's clients do.
//! Credentials are in no error: addresses are printed through [`redact`], and taken out of reqwest's own errors.
//!
//! Source: Confluent, "Schema Registry API Reference"; the same API of Apicurio ("ccompat") and Karapace.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Certificate, Client, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::connector::http::segment;
use crate::connector::{background, redact};
use crate::error::causes;
use crate::{Error, Result};

/// Of one answer.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Schemas that one schema refers to, directly or not.
const REFERENCES_MAX: usize = 100;

/// Schemas of which each refers to the next.
const CHAIN_MAX: usize = 32;

/// Ids are an `int` of Java: about a larger one a registry says only that it cannot read the address.
const ID_MAX: u32 = i32::MAX as u32;

/// Characters of the registry's own words in an error.
const MESSAGE_MAX: usize = 400;

/// Of one request, unless told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(5);

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// How a registry is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Without a slash at the end; never empty. May hold credentials.
    pub urls: Vec<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    /// A file of PEM certificates that are trusted, and no others.
    pub ca: Option<PathBuf>,
    /// Of one request.
    pub timeout: Duration,
}

impl RegistryOptions {
    pub fn new(urls: Vec<String>) -> Self {
        Self { urls, user: None, password: None, ca: None, timeout: TIMEOUT }
    }

    /// For messages.
    pub fn address(&self) -> String {
        self.urls.iter().map(|url| redact(url)).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "RegistryOptions({})", self.address())
    }
}

/// Addresses, with commas.
///
/// # Errors
/// What is wrong with one, as the end of a sentence; without its password.
pub fn registry_urls(text: &str) -> Result<Vec<String>, String> {
    let urls = text.split(',').map(|url| url.trim().trim_end_matches('/').to_string());
    let urls: Vec<String> = urls.filter(|url| !url.is_empty()).collect();
    let usable = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
    match urls.iter().find(|url| !usable(url)) {
        _ if urls.is_empty() => Err("is empty".into()),
        Some(wrong) => Err(format!("is {:?}, which does not begin with http:// or https://", redact(wrong))),
        None => Ok(urls),
    }
}

/// A schema as the registry has it, with all that it refers to: what is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaText {
    pub schema: String,
    /// `AVRO`, `JSON`, `PROTOBUF`.
    pub kind: String,
    /// Texts, those that others refer to first.
    pub references: Vec<String>,
}

/// What a registry has under an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Schema(SchemaText),
    /// It does not know the id.
    Unknown,
    /// It has a schema that cannot be had whole: why, as the end of a sentence. That is wrong with this one alone.
    Unusable(String),
}

/// A client of one registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    options: RegistryOptions,
    client: Client,
}

enum Answer {
    Found(Value),
    /// 404, in the registry's own words.
    Missing(String),
    /// More than [`BODY_BYTES_MAX`].
    TooLong,
}

impl Registry {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// Of the user: the file of certificates cannot be read.
    pub fn try_new(options: &RegistryOptions) -> Result<Self> {
        let mut builder = Client::builder().timeout(options.timeout).connect_timeout(options.timeout);
        if let Some(ca) = &options.ca {
            let wrong = |cause: &dyn fmt::Display| {
                Error::user(format!("option 'schema.registry.ca' names {}, which is not usable", ca.display()))
                    .cause(cause)
                    .hint("a file of one or more certificates in PEM")
            };
            let pem = std::fs::read(ca).map_err(|error| wrong(&error))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))?;
            if certificates.is_empty() {
                return Err(wrong(&"it has no certificate"));
            }
            builder = builder.tls_built_in_root_certs(false);
            builder = certificates.into_iter().fold(builder, |builder, one| builder.add_root_certificate(one));
        }
        let client = builder.build();
        let client = client.map_err(|error| Error::external("could not make an HTTP client").cause(error))?;
        Ok(Self { options: options.clone(), client })
    }

    pub fn address(&self) -> String {
        self.options.address()
    }

    /// The schema of an id. Blocks.
    ///
    /// # Errors
    /// The registry does not answer (retryable), or not as a registry does.
    pub fn schema(&self, id: u32) -> Result<Found> {
        if id > ID_MAX {
            return Ok(Found::Unknown);
        }
        let registry = self.clone();
        background::wait(async move {
            match registry.ask(Method::GET, &format!("schemas/ids/{id}"), None).await? {
                Answer::Missing(_) => Ok(Found::Unknown),
                Answer::TooLong => Ok(Found::Unusable(too_long("the answer"))),
                Answer::Found(found) => {
                    let whole = registry.whole(&found).await;
                    whole.map_err(|error| error.at(format!("schema {id}, {}", registry.address())))
                }
            }
        })
    }

    /// The id of this schema under a subject, registered if it is not there yet. Blocks.
    ///
    /// # Errors
    /// The schema is not compatible with those of the subject (user); see [`Registry::schema`].
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32> {
        self.id_of(&format!("subjects/{}/versions", segment(subject)), subject, schema)
    }

    /// The id of this schema under a subject, where it must be registered already. Blocks.
    ///
    /// # Errors
    /// It is not registered (user); see [`Registry::schema`].
    pub fn find(&self, subject: &str, schema: &str) -> Result<u32> {
        self.id_of(&format!("subjects/{}", segment(subject)), subject, schema)
    }

    fn id_of(&self, path: &str, subject: &str, schema: &str) -> Result<u32> {
        let (registry, path, body) = (self.clone(), path.to_string(), json!({"schema": schema}));
        let answer = background::wait(async move { registry.ask(Method::POST, &path, Some(&body)).await });
        let at = format!("subject {subject:?}, schema registry {}", self.address());
        match answer.map_err(|error| error.at(at.clone()))? {
            Answer::Found(found) => number(&found, "id").ok_or_else(|| self.strange("an answer without an id").at(at)),
            Answer::TooLong => Err(self.strange(&too_long("it")).at(at)),
            Answer::Missing(message) => Err(Error::user("the schema is not registered")
                .at(at)
                .cause(message)
                .hint("register it, or leave out 'schema.register' 'false'")),
        }
    }

    /// With the schemas that it refers to, each asked for once, in an order in which all are known before they are used.
    async fn whole(&self, found: &Value) -> Result<Found> {
        let kind = found.get("schemaType").and_then(Value::as_str).unwrap_or("AVRO").to_string();
        let mut done: Vec<String> = vec![];
        let mut asked: BTreeSet<Reference> = BTreeSet::new();
        // Depth first: what is open refers to what comes after it.
        let mut open = vec![Open::of(None, found).ok_or_else(|| self.strange("an answer without a schema"))?];
        while let Some(last) = open.last_mut() {
            let Some(next) = last.wanted.next() else {
                done.extend(open.pop().map(|complete| complete.schema));
                continue;
            };
            let (subject, version) = &next;
            if open.iter().any(|one| one.reference.as_ref() == Some(&next)) {
                let why = format!("version {version} of {subject:?} refers to itself, through others or not");
                return Ok(Found::Unusable(why));
            }
            if !asked.insert(next.clone()) {
                continue;
            }
            if asked.len() > REFERENCES_MAX {
                return Ok(Found::Unusable(format!("it refers to more than {REFERENCES_MAX} others")));
            }
            if open.len() > CHAIN_MAX {
                let why =
                    format!("it refers to a schema that refers to another, and so on, more than {CHAIN_MAX} times");
                return Ok(Found::Unusable(why));
            }
            let path = format!("subjects/{}/versions/{version}", segment(subject));
            let other = match self.ask(Method::GET, &path, None).await? {
                Answer::Found(other) => other,
                Answer::Missing(said) => {
                    let why = format!("it refers to version {version} of {subject:?}, which is missing: {said}");
                    return Ok(Found::Unusable(why));
                }
                Answer::TooLong => {
                    return Ok(Found::Unusable(too_long(&format!("the answer for version {version} of {subject:?}"))));
                }
            };
            open.push(Open::of(Some(next), &other).ok_or_else(|| self.strange("an answer without a schema"))?);
        }
        let schema = done.pop().unwrap_or_default();
        Ok(Found::Schema(SchemaText { schema, kind, references: done }))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut away = None;
        for url in &self.options.urls {
            match self.ask_one(url, method.clone(), path, body).await {
                Err(error) if error.is_retryable() => away = Some(error),
                answer => return answer,
            }
        }
        Err(away.unwrap_or_else(|| Error::internal("a schema registry has no address")))
    }

    async fn ask_one(&self, url: &str, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let address = redact(url);
        let away = |cause: &dyn fmt::Display| {
            Error::external("the schema registry does not answer").at(address.clone()).cause(cause).retryable()
        };
        let mut request = self.client.request(method, format!("{url}/{path}")).header("accept", CONTENT_TYPE);
        if let Some(user) = &self.options.user {
            request = request.basic_auth(user, self.options.password.as_ref());
        }
        if let Some(body) = body {
            request = request.header("content-type", CONTENT_TYPE).body(body.to_string());
        }
        let response = request.send().await.map_err(|error| match causes(&error.without_url()) {
            cause if cause.contains("certificate") => Error::user("the schema registry's certificate is not trusted")
                .at(address.clone())
                .cause(cause)
                .hint("name its authority in OPTIONS ('schema.registry.ca' …)"),
            cause => away(&cause),
        })?;
        let status = response.status();
        let Some(bytes) = limited(response).await.map_err(|cause| away(&cause))? else {
            return match status {
                StatusCode::OK => Ok(Answer::TooLong),
                _ => Err(self.strange(&too_long(&format!("its answer {status}")))),
            };
        };
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        let said = || {
            let message = json.as_ref().and_then(|json| json.get("message")).and_then(Value::as_str);
            let message = message.map_or_else(|| format!("it answers {status}"), str::to_string);
            message.chars().take(MESSAGE_MAX).collect::<String>()
        };
        match status {
            StatusCode::OK | StatusCode::CREATED => {
                json.map(Answer::Found).ok_or_else(|| self.strange("an answer that is not JSON"))
            }
            // 40401 and above: the subject, version or schema is missing. 404 alone: the path is.
            StatusCode::NOT_FOUND if json.as_ref().and_then(|json| number(json, "error_code")) > Some(404) => {
                Ok(Answer::Missing(said()))
            }
            StatusCode::NOT_FOUND => Err(Error::user("there is no schema registry at this address")
                .at(address)
                .cause(said())
                .hint("option 'schema.registry.url' is the root of its API; Apicurio's ends in /apis/ccompat/v7")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::user("the schema registry refuses the credentials")
                    .at(address)
                    .cause(said())
                    .hint("check the options 'schema.registry.user' and 'schema.registry.password'"))
            }
            StatusCode::CONFLICT => Err(Error::user("the schema is not compatible with those that are registered")
                .at(address)
                .cause(said())
                .hint(
                    "change the columns so that the rule of the subject holds, or that rule, or take another subject",
                )),
            StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Error::user("the schema registry does not take the schema").at(address).cause(said()))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(away(&said())),
            status if status.is_server_error() => Err(away(&said())),
            _ => Err(self.strange(&said())),
        }
    }

    fn strange(&self, what: &str) -> Error {
        Error::external("the schema registry gives an answer that is not understood").at(self.address()).cause(what)
    }
}

/// The whole body; `None` if it has more than [`BODY_BYTES_MAX`].
async fn limited(mut response: reqwest::Response) -> Result<Option<Vec<u8>>, String> {
    let mut bytes = vec![];
    while let Some(chunk) = response.chunk().await.map_err(|error| causes(&error.without_url()))? {
        if bytes.len() + chunk.len() > BODY_BYTES_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

fn too_long(what: &str) -> String {
    format!("{what} has more than {BODY_BYTES_MAX} bytes")
}

/// Subject and version.
type Reference = (String, u32);

/// A schema whose references are not all known yet.
struct Open {
    /// `None`: the one that was asked for by its id.
    reference: Option<Reference>,
    schema: String,
    /// Not looked at yet.
    wanted: std::vec::IntoIter<Reference>,
}

impl Open {
    /// `None`: the answer has no schema.
    fn of(reference: Option<Reference>, answer: &Value) -> Option<Self> {
        let schema = answer.get("schema")?.as_str()?.to_string();
        Some(Self { reference, schema, wanted: references(answer).into_iter() })
    }
}

fn references(answer: &Value) -> Vec<Reference> {
    let list = answer.get("references").and_then(Value::as_array);
    let one = |reference: &Value| {
        let subject = reference.get("subject")?.as_str()?;
        Some((subject.to_string(), number(reference, "version")?))
    };
    list.into_iter().flatten().filter_map(one).collect()
}

fn number(value: &Value, key: &str) -> Option<u32> {
    value.get(key)?.as_u64()?.try_into().ok()
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
