//! A table with `STORED AS ELASTICSEARCH`: its LOCATION and OPTIONS, read and checked; nothing is connected to.
//!
//! LOCATION is where the nodes are, `http://host:9200` or `https://…`, several with commas; requests go to them in turn. What is
//! said of the connection must be the same in all tables of a cluster.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use elasticsearch::http::Url;

use super::index_name::IndexName;
use crate::connector::{OptionDoc, OptionReader, TableDefinition, redact};
use crate::{Error, Part, Result};

/// Documents, and bytes, of one bulk request: Elastic's advice is to begin with some thousands and 5 to 15 MB.
const BULK_ROWS: u64 = 2_000;
const BULK_BYTES: u64 = 5 << 20;
/// More would queue up in the server before a second node has something to do.
const BULK_IN_FLIGHT: u64 = 2;
/// Beyond these a request only grows its share of memory, here and there (`http.max_content_length` is 100 MB).
const BULK_ROWS_MAX: u64 = 100_000;
const BULK_BYTES_MAX: u64 = 90 << 20;
const BULK_IN_FLIGHT_MAX: u64 = 32;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Of `STORED AS ELASTICSEARCH`.
pub const OPTIONS: &[OptionDoc] = &[
    (
        "index",
        "the index, alias or data stream that takes the documents. `{column|yyyy.MM.dd}` in it stands for the date of that column, in \
         UTC, of the letters `yyyy`, `MM`, `dd` and `HH`. Default: the last part of the declared name",
    ),
    (
        "op_type",
        "`index`, the default with a PRIMARY KEY: a document of an earlier batch is replaced; `create`, the default without: a \
         document that is there stays. A data stream takes `create` only",
    ),
    ("bulk.rows", "documents of one bulk request; default 2,000"),
    (
        "bulk.bytes",
        "bytes of one bulk request, before compression; default 5,242,880. A document that is larger goes alone",
    ),
    ("bulk.in_flight", "bulk requests on their way at once; default 2"),
    ("compression", "of bulk requests: `gzip` (default) or `none`"),
    ("timeout", "of one request; default 60 seconds"),
    ("username", "for basic authentication; LOCATION may have it too, as `https://user:password@host:9200`"),
    ("password", "for basic authentication"),
    ("api_key", "an API key, in place of a user: the value `encoded`, or `id:api_key`"),
    (
        "ca_file",
        "certificates in PEM that the server's may be signed by, beside those of the system and the well-known ones, which Elasticsearch's client library cannot leave out",
    ),
];

/// Whether a document replaces the one that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpType {
    /// It does, unless that one is of a later batch.
    Index,
    /// It does not.
    Create,
}

/// Who we say we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    None,
    Basic {
        user: String,
        password: String,
    },
    /// As in the header after `ApiKey`: base64 of `id:api_key`, or those two.
    ApiKey(String),
}

/// Secrets are not printed.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic(***)",
            Self::ApiKey(_) => "ApiKey(***)",
        })
    }
}

/// How a cluster is reached and written to: the same for all its tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Without user and password; never empty.
    pub nodes: Vec<Url>,
    pub credentials: Credentials,
    pub ca_file: Option<PathBuf>,
    /// Of one request.
    pub timeout: Duration,
    pub gzip: bool,
    pub bulk: BulkLimits,
}

/// Each at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkLimits {
    pub rows: usize,
    /// Before compression; one document may be larger.
    pub bytes: usize,
    pub in_flight: usize,
}

impl Connection {
    /// A connection with everything else as it is by default: what `poundlock migrate` has.
    ///
    /// # Errors
    /// Of the user: no URL, or not one of these.
    pub fn parse(location: &str, api_key: Option<&str>, ca_file: Option<PathBuf>) -> Result<Self> {
        let (nodes, of_url) = nodes(location)?;
        let credentials = match (of_url, api_key.filter(|key| !key.is_empty())) {
            (Some(_), Some(_)) => {
                return Err(Error::user("both a user and an API key are given").hint("give one of them"));
            }
            (Some((user, password)), None) => Credentials::Basic { user, password },
            (None, Some(key)) => Credentials::ApiKey(header_text(key).ok_or_else(|| {
                Error::user("the API key has characters that no header can have").hint("give the value `encoded`")
            })?),
            (None, None) => Credentials::None,
        };
        let bulk =
            BulkLimits { rows: BULK_ROWS as usize, bytes: BULK_BYTES as usize, in_flight: BULK_IN_FLIGHT as usize };
        Ok(Self { nodes, credentials, ca_file, timeout: TIMEOUT, gzip: true, bulk })
    }

    /// `host:port` of each node, in order: the same for a cluster however its address is written.
    pub fn cluster(&self) -> String {
        let mut nodes: Vec<String> = self.nodes.iter().map(host_and_port).collect();
        nodes.sort();
        nodes.join(",")
    }
}

/// As messages show it: without user and password.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let nodes: Vec<&str> = self.nodes.iter().map(|node| node.as_str().trim_end_matches('/')).collect();
        write!(f, "Elasticsearch at {}", nodes.join(","))
    }
}

fn host_and_port(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

/// A declared table, its LOCATION and options read (see [`OPTIONS`]).
#[derive(Debug, Clone)]
pub struct ElasticsearchTable {
    pub definition: Arc<TableDefinition>,
    pub connection: Connection,
    pub index: IndexName,
    pub op_type: OpType,
    /// Positions of the columns of the PRIMARY KEY, in its order; empty without one.
    pub key: Vec<usize>,
}

impl ElasticsearchTable {
    /// # Errors
    /// LOCATION or an option is not understood, or two do not go together (user).
    pub fn try_new(definition: Arc<TableDefinition>) -> Result<Self> {
        let mut options = OptionReader::new(&definition, OPTIONS);
        let key = definition.primary_key.iter().map(|name| definition.schema.index_of(name));
        let key = key.collect::<Result<Vec<usize>, _>>()?;
        let index = index(&mut options, &definition, &key)?;
        let default = if key.is_empty() { "create" } else { "index" };
        let op_type = match options.word("op_type", &["index", "create"], default)? {
            "index" if key.is_empty() => {
                let error = options.error("op_type", "is 'index', but the table has no key");
                return Err(error.hint("declare PRIMARY KEY (…): it says which documents are the same"));
            }
            "index" => OpType::Index,
            _ => OpType::Create,
        };
        let connection = connection(&mut options, &definition)?;
        options.finish()?;
        Ok(Self { connection, index, op_type, key, definition: Arc::clone(&definition) })
    }

    /// Whether the `_id` is the key of the user's, which an earlier batch may have had.
    pub fn is_keyed(&self) -> bool {
        !self.key.is_empty()
    }
}

fn index(options: &mut OptionReader, definition: &TableDefinition, key: &[usize]) -> Result<IndexName> {
    let given = options.text("index").filter(|name| !name.is_empty());
    let name = given.unwrap_or_else(|| definition.name.rsplit('.').next().unwrap_or(&definition.name));
    let index = IndexName::parse(name, &definition.schema).map_err(|why| {
        options.error("index", &format!("is {name:?}: {why}")).hint("for example 'logs', or 'logs-{time|yyyy.MM.dd}'")
    })?;
    match index.column() {
        // An _id is one of its index: of another day, the same key would be another document.
        Some(column) if !key.is_empty() && !key.contains(&column) => {
            let column = definition.schema.field(column).name();
            let error =
                options.error("index", &format!("has the date of column {column}, which is not in the PRIMARY KEY"));
            Err(error.hint(format!("add {column} to the PRIMARY KEY: a key is single within one index only")))
        }
        _ => Ok(index),
    }
}

fn connection(options: &mut OptionReader, definition: &TableDefinition) -> Result<Connection> {
    let of_location = |error: Error| error.at(definition.place.clone()).about(Part::Location);
    let (nodes, of_url) = nodes(&definition.location).map_err(of_location)?;
    // Empty is as good as not given: ${ES_API_KEY:-}.
    let mut text = |key: &str| options.text(key).filter(|value| !value.is_empty()).map(str::to_string);
    let (user, password, api_key) = (text("username"), text("password"), text("api_key"));
    let ca_file = text("ca_file").map(PathBuf::from);
    let credentials = match (of_url, user, password, api_key) {
        (None, None, None, None) => Credentials::None,
        (Some((user, password)), None, None, None) | (None, Some(user), Some(password), None) => {
            Credentials::Basic { user, password }
        }
        (None, None, None, Some(key)) => Credentials::ApiKey(header_text(&key).ok_or_else(|| {
            options.error("api_key", "has characters that no header can have").hint("give the value `encoded`")
        })?),
        (None, Some(_), None, None) => return Err(options.error("username", "has no 'password' beside it")),
        (None, None, Some(_), None) => return Err(options.error("password", "has no 'username' beside it")),
        (_, _, _, Some(_)) => {
            return Err(options.error("api_key", "is given beside a user").hint("give one of them"));
        }
        (Some(_), ..) => {
            return Err(options.error("username", "is given beside the user in LOCATION").hint("give one of them"));
        }
    };
    let mut number = |key: &str, default: u64, max: u64| {
        let value = options.number(key, default)?;
        match (1..=max).contains(&value) {
            true => Ok(usize::try_from(value).unwrap_or(usize::MAX)),
            false => Err(options.error(key, &format!("is {value}, not from 1 to {max}"))),
        }
    };
    let bulk = BulkLimits {
        rows: number("bulk.rows", BULK_ROWS, BULK_ROWS_MAX)?,
        bytes: number("bulk.bytes", BULK_BYTES, BULK_BYTES_MAX)?,
        in_flight: number("bulk.in_flight", BULK_IN_FLIGHT, BULK_IN_FLIGHT_MAX)?,
    };
    let timeout = options.duration("timeout", TIMEOUT)?;
    if timeout < Duration::from_secs(1) {
        return Err(options.error("timeout", "is shorter than a second"));
    }
    let gzip = options.word("compression", &["gzip", "none"], "gzip")? == "gzip";
    Ok(Connection { nodes, credentials, ca_file, timeout, gzip, bulk })
}

type User = (String, String);

/// The URLs of a LOCATION without their user, and the user: the same in all of them, or in one.
fn nodes(location: &str) -> Result<(Vec<Url>, Option<User>)> {
    let wrong = |why: &str| {
        let printed = redact(location);
        Error::user(format!("location {printed:?} is not the address of an Elasticsearch: {why}"))
            .hint("write 'https://host:9200', several with commas")
    };
    let (mut nodes, mut found): (Vec<Url>, Option<User>) = (vec![], None);
    for part in location.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let mut url = Url::parse(part).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("it begins neither with http:// nor with https://"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has parameters"));
        }
        let user = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
        if url.set_username("").is_err() || url.set_password(None).is_err() {
            return Err(wrong("its user cannot be read"));
        }
        match &found {
            _ if user == User::default() => {}
            Some(other) if *other != user => return Err(wrong("its nodes have different users")),
            _ => found = Some(user),
        }
        nodes.push(url);
    }
    if nodes.is_empty() {
        return Err(wrong("there is no host"));
    }
    Ok((nodes, found))
}

/// Of `%40` and the like.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (vec![], text.as_bytes());
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(code) if *first == b'%' => (bytes.push(code), rest = &tail[2..]).1,
            _ => (bytes.push(*first), rest = tail).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What may stand in a header; the client library would else end the process.
fn header_text(text: &str) -> Option<String> {
    text.bytes().all(|byte| byte.is_ascii_graphic()).then(|| text.to_string())
}
