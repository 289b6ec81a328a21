//! One chunk into Elasticsearch, until every document of it is written, in conflict or refused.
//!
//! ```text
//! the whole request   429, 5xx, no answer ─▶ all of it again, after a pause
//!                     413, 400            ─▶ in two halves; a document alone is refused
//! a document of it    429, 5xx            ─▶ again, with the others of its kind, after a pause
//!                     400                 ─▶ refused, with the reason
//!                     404, 403, …         ─▶ an error: it is not the document's fault, so no dead letter
//! ```
//!
//! What fails again and again is an error that may pass: the pipeline waits longer, and writes the batch once more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use elasticsearch::http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chunk::{Action, Chunk, Item};
use super::client::{Body, Client, Reason};
use crate::connector::background::blocking;
use crate::connector::{InsertReport, Refusal};
use crate::error::reason_text;
use crate::{Error, Result};

/// Requests of which no document came through, one after the other, before the pipeline's own patience counts.
const ATTEMPTS_MAX: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Documents that one request asks to see, and bytes of ours that it compares them with: those that are there are about as
/// long. One that is larger is asked for alone.
const LOOK_ROWS_MAX: usize = 500;
const LOOK_BYTES_MAX: usize = 5 << 20;

/// Of a bulk request, only this is wanted back.
const WANTED: &str = "errors,items.*.status,items.*.error";

/// What became of the rows of a chunk, by INSERT.
#[derive(Debug, Default)]
pub struct Outcome {
    pub inserts: BTreeMap<usize, InsertReport>,
    pub refusals: Vec<Refusal>,
}

impl Outcome {
    pub fn add(&mut self, other: Self) {
        for (insert, of) in other.inserts {
            let sum = self.inserts.entry(insert).or_default();
            sum.written += of.written;
            sum.conflict += of.conflict;
            sum.refused += of.refused;
        }
        self.refusals.extend(other.refusals);
    }

    fn of(&mut self, item: &Item) -> &mut InsertReport {
        self.inserts.entry(item.insert).or_default()
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.inserts.entry(refusal.insert).or_default().refused += 1;
        self.refusals.push(refusal);
    }

    fn refuse_item(&mut self, item: &Item, why: &str) {
        self.refuse(Refusal { insert: item.insert, row: item.row, error: reason_text(why) });
    }
}

#[derive(Debug, Deserialize)]
struct Items {
    #[serde(default)]
    items: Vec<BTreeMap<String, Status>>,
}

#[derive(Debug, Deserialize)]
struct Status {
    status: u16,
    error: Option<Reason>,
}

/// What one document's status says.
enum Fate {
    Written,
    Conflict,
    Again(String),
    Refused(String),
    /// Something else is wrong, which the document is not to pay for.
    Wrong(Error),
}

/// Errors that Elasticsearch gives the status 400 or 404 and that are none of the document.
const NOT_OF_DOCUMENTS: [&str; 4] = [
    "index_closed_exception",
    "index_not_found_exception",
    "invalid_index_name_exception",
    "validation_exception", // no shard may be added to the cluster
];

/// The same of those that have the type `illegal_argument_exception`, as a wrong value of a document has: by how the reason begins.
const NOT_OF_DOCUMENTS_REASONS: [&str; 2] =
    ["no write index is defined for alias", "only write ops with an op_type of create are allowed in data streams"];

fn is_of_index(error: &Reason) -> bool {
    let reason = error.reason.as_deref().unwrap_or_default();
    NOT_OF_DOCUMENTS.contains(&error.kind.as_str())
        || NOT_OF_DOCUMENTS_REASONS.iter().any(|wrong| reason.starts_with(wrong))
}

fn fate(status: Status, item: &Item) -> Fate {
    let error = status.error.unwrap_or_default();
    let wrong = |error: Error| Fate::Wrong(error.at(format!("index {:?}", item.index)));
    match status.status {
        200..=299 => Fate::Written,
        409 if item.action == Action::CreateOwn => Fate::Written,
        409 => Fate::Conflict,
        408 | 429 | 500..=599 => Fate::Again(error.to_string()),
        // An index that is closed to writes for a while (a snapshot is restored, an operator moves it).
        403 if error.kind == "cluster_block_exception" => Fate::Again(error.to_string()),
        _ if is_of_index(&error) => {
            let hint = "mend the index in Elasticsearch, or 'op_type' of the table, and start again: the batch is finished then";
            wrong(Error::user("Elasticsearch takes no documents there").cause(error).hint(hint))
        }
        400 | 413 | 422 => Fate::Refused(error.to_string()),
        403 => {
            let hint = "grant the user or the API key the privilege";
            wrong(Error::user("Elasticsearch does not let us write there").cause(error).hint(hint))
        }
        other => wrong(Error::external(format!("Elasticsearch gave a document the status {other}")).cause(error)),
    }
}

/// # Errors
/// Documents are not taken, again and again (retryable), or for a reason that is not theirs; the client's.
pub async fn write(client: &Client, chunk: Chunk) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for (insert, superseded) in &chunk.superseded {
        outcome.inserts.entry(*insert).or_default().conflict += superseded;
    }
    for refusal in &chunk.refusals {
        outcome.refuse(refusal.clone());
    }
    let chunk = Arc::new(chunk);
    // Each group is sent by itself; halving makes two of one.
    let mut groups: Vec<Vec<usize>> = vec![];
    if !chunk.items.is_empty() {
        groups.push((0..chunk.items.len()).collect());
    }
    let (mut attempt, mut pause) = (1, PAUSE_FIRST);
    let mut conflicts = vec![];
    while let Some(group) = groups.pop() {
        let error = match send(client, &chunk, &group).await {
            Ok(Sent::Answered(items)) => {
                let mut again = vec![];
                let mut why = String::new();
                for (position, status) in group.iter().zip(items) {
                    let item = &chunk.items[*position];
                    match fate(status, item) {
                        Fate::Written => outcome.of(item).written += 1,
                        Fate::Conflict => conflicts.push(*position),
                        Fate::Refused(why) => outcome.refuse_item(item, &why),
                        Fate::Wrong(error) => return Err(error),
                        Fate::Again(reason) => {
                            again.push(*position);
                            why = reason;
                        }
                    }
                }
                let (many, of) = (again.len(), group.len());
                if many < of {
                    (attempt, pause) = (1, PAUSE_FIRST);
                }
                if again.is_empty() {
                    continue;
                }
                groups.push(again);
                let error = format!("{many} of {of} documents were not taken at {}", client.connection());
                Error::external(error).cause(why).retryable()
            }
            Ok(Sent::Refused(why)) => {
                if let [one] = group[..] {
                    outcome.refuse_item(&chunk.items[one], &why);
                } else {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second.to_vec(), first.to_vec()]);
                }
                continue;
            }
            Err(error) if error.is_retryable() => {
                groups.push(group);
                error
            }
            Err(error) => return Err(error),
        };
        if attempt >= ATTEMPTS_MAX {
            return Err(error);
        }
        tracing::debug!(attempt, "a bulk request is sent again: {}", error.line());
        // Up to half as long again, so that the requests of several processes do not come together.
        tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
        attempt += 1;
        pause *= 2;
    }
    settle(client, &chunk, &conflicts, &mut outcome).await?;
    Ok(outcome)
}

enum Sent {
    /// One status for each document, in order.
    Answered(Vec<Status>),
    /// The request as a whole, for what is in it.
    Refused(String),
}

async fn send(client: &Client, chunk: &Arc<Chunk>, group: &[usize]) -> Result<Sent> {
    let (lines, items, gzip) = (Arc::clone(chunk), group.to_vec(), client.connection().gzip);
    let body = blocking(move || Body::lines(lines.lines(&items), gzip)).await?;
    // Elasticsearch should give up first: it can say why.
    let patience = format!("{}ms", client.connection().timeout.as_millis() / 2);
    let query = [("filter_path", WANTED), ("timeout", &patience)];
    let what = format!("write {} documents", group.len());
    let answer = client.send(Method::Post, "/_bulk", &query, Some(body), &what).await?;
    // Of a proxy's 400 no document is to blame; its 413 is as good as Elasticsearch's.
    if answer.status == 413 || (answer.status == 400 && !answer.error().kind.is_empty()) {
        return Ok(Sent::Refused(format!("{} (status {})", answer.reason(), answer.status)));
    }
    let unread = |why: String| Error::external(format!("could not {what} at {}", client.connection())).cause(why);
    if !answer.is_success() {
        return Err(client.refused(&answer, &what));
    }
    let items: Items = answer.json().map_err(|error| unread(format!("its answer cannot be read: {error}")))?;
    let statuses: Vec<Status> = items.items.into_iter().filter_map(|item| item.into_values().next()).collect();
    if statuses.len() != group.len() {
        return Err(unread(format!("it answered for {}", statuses.len())).retryable());
    }
    Ok(Sent::Answered(statuses))
}

/// A document that was to be created and was there: of an earlier batch, so in conflict; or this very one, written by an
/// attempt whose answer was lost. For the accounts only: it stays as it is.
async fn settle(client: &Client, chunk: &Chunk, conflicts: &[usize], outcome: &mut Outcome) -> Result<()> {
    let (by_key, newer): (Vec<usize>, Vec<usize>) =
        conflicts.iter().copied().partition(|item| chunk.items[*item].action == Action::CreateByKey);
    for item in newer {
        outcome.of(&chunk.items[item]).conflict += 1;
    }
    for group in looks(chunk, &by_key) {
        look(client, chunk, group, outcome).await?;
    }
    Ok(())
}

/// In requests of a bounded size.
fn looks<'i>(chunk: &Chunk, items: &'i [usize]) -> Vec<&'i [usize]> {
    let (mut groups, mut rest) = (vec![], items);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |item: &&usize| {
            bytes += chunk.document(&chunk.items[**item]).len();
            bytes <= LOOK_BYTES_MAX
        };
        let many = rest.iter().take(LOOK_ROWS_MAX).take_while(fits).count().max(1);
        let (group, others) = rest.split_at(many);
        groups.push(group);
        rest = others;
    }
    groups
}

async fn look(client: &Client, chunk: &Chunk, by_key: &[usize], outcome: &mut Outcome) -> Result<()> {
    let items = by_key.iter().map(|item| &chunk.items[*item]);
    let wanted: Vec<Value> = items.clone().map(|item| json!({ "_index": *item.index, "_id": item.id })).collect();
    let body = Body::json(&json!({ "docs": wanted }));
    let query = [("filter_path", "docs._source,docs.found,docs.error.type")];
    let what = "read documents that were there";
    let answer = client.send(Method::Post, "/_mget", &query, Some(body), what).await?;
    if !answer.is_success() {
        return Err(client.refused(&answer, what));
    }
    let found: Value = answer.json().map_err(|error| {
        let unread = format!("could not {what} at {}", client.connection());
        Error::external(unread).cause(format!("its answer cannot be read: {error}")).retryable()
    })?;
    for (position, item) in items.enumerate() {
        let ours: Option<Value> = serde_json::from_slice(chunk.document(item)).ok();
        // What cannot be looked at, an alias of several indices say, is taken to be another's.
        let is_ours = ours.is_some_and(|ours| found["docs"][position]["_source"] == ours);
        match is_ours {
            true => outcome.of(item).written += 1,
            false => outcome.of(item).conflict += 1,
        }
    }
    Ok(())
}
