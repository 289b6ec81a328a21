//! The mark of a pipeline in a cluster: which batch has begun there last, and which start of the pipeline may begin the next.
//!
//! ```text
//! index poundlock-pipelines, _id = poundlock.name:   { uuid, epoch, generation, batch }
//!
//! open(E)     a higher epoch of the same checkpoint: fenced. Else epoch = E
//! begin(N)    batch = N, before the first document of N is sent
//! ```
//!
//! Each change asks for the document to be as it was read (`if_seq_no`, `if_primary_term`), so of two starts the older one
//! fails, and begins nothing: what the newer one has found in the mark stays true.
//!
//! A document's version is (generation, batch): batches of another checkpoint count from 0 again, and must still replace what the
//! one before it has written. The generation is raised whenever another checkpoint takes over.

use elasticsearch::http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Answer, Body, Client};
use crate::connector::Identity;
use crate::connector::http::segment;
use crate::{Error, Result};

/// Where the marks are.
pub const INDEX: &str = "poundlock-pipelines";

/// Times that the mark is read anew because another has changed it: by then two starts quarrel.
const RACES_MAX: u32 = 10;

/// Batches of one generation: a thousand a second for 30 years. The rest of a version's 63 bits counts generations.
const BATCH_BITS: u32 = 40;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    uuid: Uuid,
    epoch: u64,
    generation: u64,
    /// The last one that has begun, in this checkpoint.
    batch: Option<u64>,
}

/// As it was last read or written by this start.
#[derive(Debug)]
pub struct Mark {
    document: Document,
    seq_no: i64,
    primary_term: i64,
}

impl Mark {
    /// Makes this start the one that may write.
    ///
    /// # Errors
    /// A newer start is there (external); another checkpoint of the same name, and we were not told to take over (user); the
    /// client's.
    pub async fn take(client: &Client, identity: &Identity, sink: &str) -> Result<Self> {
        let mut told = false;
        for _ in 0..RACES_MAX {
            let found = read(client, &identity.name).await?;
            let mut next = Document { uuid: identity.uuid, epoch: identity.epoch, generation: 0, batch: None };
            match &found {
                None => {}
                Some(Self { document, .. }) if document.uuid == identity.uuid => {
                    if document.epoch > identity.epoch {
                        return Err(fenced(document, identity));
                    }
                    (next.generation, next.batch) = (document.generation, document.batch);
                }
                Some(Self { document, .. }) => {
                    if !told {
                        identity.succeed(&document.uuid.to_string(), sink)?;
                        told = true;
                    }
                    next.generation = document.generation + 1;
                }
            }
            if let Some(mark) = write(client, &identity.name, found.as_ref(), next).await? {
                return Ok(mark);
            }
        }
        Err(quarrel(client))
    }

    /// The last batch that has begun.
    pub fn batch(&self) -> Option<u64> {
        self.document.batch
    }

    /// The version of documents of a batch: higher for a later one, and for those of a checkpoint that has taken over.
    pub fn version(&self, batch: u64) -> u64 {
        (self.document.generation << BATCH_BITS) | (batch & ((1 << BATCH_BITS) - 1))
    }

    /// Reads it again.
    ///
    /// # Errors
    /// A newer start is there (external); the client's.
    pub async fn refresh(&mut self, client: &Client, identity: &Identity) -> Result<()> {
        let Some(found) = read(client, &identity.name).await? else {
            let error = format!("the mark of pipeline {:?} in index {INDEX} is gone", identity.name);
            return Err(Error::external(error).hint("start again: it is made anew"));
        };
        if found.document.uuid != identity.uuid || found.document.epoch > identity.epoch {
            return Err(fenced(&found.document, identity));
        }
        *self = found;
        Ok(())
    }

    /// Notes that a batch begins. `true`: it had begun before, or a later one.
    ///
    /// # Errors
    /// As [`Mark::refresh`].
    pub async fn begin(&mut self, client: &Client, identity: &Identity, batch: u64) -> Result<bool> {
        for _ in 0..RACES_MAX {
            if self.document.batch >= Some(batch) {
                return Ok(true);
            }
            let next = Document { batch: Some(batch), ..self.document.clone() };
            if let Some(mark) = write(client, &identity.name, Some(self), next).await? {
                *self = mark;
                return Ok(false);
            }
            // Our own write may have come through after all, though we gave it up.
            self.refresh(client, identity).await?;
        }
        Err(quarrel(client))
    }
}

fn fenced(by: &Document, identity: &Identity) -> Error {
    let by = match by.uuid == identity.uuid {
        true => format!("epoch {}", by.epoch),
        false => format!("checkpoint {}", by.uuid),
    };
    Error::external(format!("fenced by {by}: a newer start of pipeline {:?} writes to Elasticsearch", identity.name))
        .hint("another process runs this pipeline (poundlock.name); only one may")
}

fn quarrel(client: &Client) -> Error {
    let error = format!("the mark of the pipeline in index {INDEX} at {} changes all the time", client.connection());
    Error::external(error).retryable().hint("does another process run a pipeline of this name?")
}

async fn read(client: &Client, name: &str) -> Result<Option<Mark>> {
    let what = format!("read the pipeline's mark in index {INDEX}");
    let path = format!("/{INDEX}/_doc/{}", segment(name));
    // As of now, refreshed or not: a search would not see it yet.
    let answer = client.send(Method::Get, &path, &[("realtime", "true")], None, &what).await?;
    if answer.status == 404 {
        return missing(client, &answer, &what).map(|()| None);
    }
    mark(client, &answer, &what, |body| Document::deserialize(&body["_source"]).ok()).map(Some)
}

/// The document, or its index, is not there yet. Other servers say 404 too.
fn missing(client: &Client, answer: &Answer, what: &str) -> Result<()> {
    let body: Value = answer.json().unwrap_or_default();
    match body["found"] == false || answer.error().kind == "index_not_found_exception" {
        true => Ok(()),
        false => {
            let hint = "LOCATION must be the address of an Elasticsearch";
            Err(Error::user(client.refused(answer, what).line()).hint(hint))
        }
    }
}

fn mark(client: &Client, answer: &Answer, what: &str, document: impl Fn(&Value) -> Option<Document>) -> Result<Mark> {
    let read = || {
        let body: Value = answer.json().ok()?;
        let (seq_no, primary_term) = (body["_seq_no"].as_i64()?, body["_primary_term"].as_i64()?);
        Some(Mark { document: document(&body)?, seq_no, primary_term })
    };
    match read() {
        Some(mark) if answer.is_success() => Ok(mark),
        _ => Err(client.refused(answer, what)),
    }
}

/// `None`: it is not any more as it was found.
async fn write(client: &Client, name: &str, found: Option<&Mark>, next: Document) -> Result<Option<Mark>> {
    let what = format!("write the pipeline's mark in index {INDEX}");
    let name = segment(name);
    let body = Some(Body::json(&json!(next)));
    let answer = match found {
        Some(found) => {
            let (seq_no, term) = (found.seq_no.to_string(), found.primary_term.to_string());
            let query = [("if_seq_no", seq_no.as_str()), ("if_primary_term", &term)];
            client.send(Method::Put, &format!("/{INDEX}/_doc/{name}"), &query, body, &what).await?
        }
        None => {
            make_index(client).await?;
            client.send(Method::Put, &format!("/{INDEX}/_create/{name}"), &[], body, &what).await?
        }
    };
    match answer.status {
        409 => Ok(None),
        _ => mark(client, &answer, &what, |_| Some(next.clone())).map(Some),
    }
}

async fn make_index(client: &Client) -> Result<()> {
    let what = format!("create index {INDEX}");
    let body = json!({
        // A copy where there is a second node to have it.
        "settings": { "number_of_shards": 1, "auto_expand_replicas": "0-1" },
        "mappings": {
            "dynamic": false,
            "properties": {
                "uuid": { "type": "keyword" },
                "epoch": { "type": "long" },
                "generation": { "type": "long" },
                "batch": { "type": "long" },
            },
        },
    });
    let answer = client.send(Method::Put, &format!("/{INDEX}"), &[], Some(Body::json(&body)), &what).await?;
    match answer.is_success() || answer.error().kind == "resource_already_exists_exception" {
        true => Ok(()),
        false => Err(client.refused(&answer, &what)),
    }
}
