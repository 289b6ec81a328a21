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

    /// The schema of an id; `None` if the registry does not know it. Blocks.
    ///
    /// # Errors
    /// The registry does not answer (retryable), or not as a registry does.
    pub fn schema(&self, id: u32) -> Result<Option<SchemaText>> {
        let registry = self.clone();
        background::wait(async move {
            match registry.ask(Method::GET, &format!("schemas/ids/{id}"), None).await? {
                Answer::Missing(_) => Ok(None),
                Answer::Found(found) => {
                    let whole = registry.whole(&found).await;
                    whole.map(Some).map_err(|error| error.at(format!("schema {id}, {}", registry.address())))
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
            Answer::Missing(message) => Err(Error::user("the schema is not registered")
                .at(at)
                .cause(message)
                .hint("register it, or leave out 'schema.register' 'false'")),
        }
    }

    /// With the schemas that it refers to, each asked for once, in an order in which all are known before they are used.
    async fn whole(&self, found: &Value) -> Result<SchemaText> {
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
                return Err(
                    self.unusable(&format!("version {version} of {subject:?} refers to itself, through others or not"))
                );
            }
            if !asked.insert(next.clone()) {
                continue;
            }
            if asked.len() > REFERENCES_MAX {
                return Err(self.unusable(&format!("it refers to more than {REFERENCES_MAX} others")));
            }
            if open.len() > CHAIN_MAX {
                let cause =
                    format!("it refers to a schema that refers to another, and so on, more than {CHAIN_MAX} times");
                return Err(self.unusable(&cause));
            }
            let path = format!("subjects/{}/versions/{version}", segment(subject));
            let Answer::Found(other) = self.ask(Method::GET, &path, None).await? else {
                return Err(self.strange(&format!("a reference to version {version} of {subject:?}, which is missing")));
            };
            open.push(Open::of(Some(next), &other).ok_or_else(|| self.strange("an answer without a schema"))?);
        }
        let schema = done.pop().unwrap_or_default();
        Ok(SchemaText { schema, kind, references: done })
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
        let bytes = limited(response).await.map_err(|cause| away(&cause))?;
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

    fn unusable(&self, why: &str) -> Error {
        Error::user("the references of a schema cannot be followed")
            .at(self.address())
            .cause(why)
            .hint("register the schema with fewer references, or with the types written out, and have its records sent with that")
    }

    fn strange(&self, what: &str) -> Error {
        Error::external("the schema registry gives an answer that is not understood").at(self.address()).cause(what)
    }
}

async fn limited(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut bytes = vec![];
    while let Some(chunk) = response.chunk().await.map_err(|error| causes(&error.without_url()))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > BODY_BYTES_MAX {
            return Err(format!("its answer has more than {BODY_BYTES_MAX} bytes"));
        }
    }
    Ok(bytes)
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
