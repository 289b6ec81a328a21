//! A server that answers what a test wants: HTTP on a port of its own, with the mark's index in memory.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::super::mark;

#[derive(Debug, Clone)]
pub enum Reply {
    Json(u16, Value),
    Text(u16, &'static str),
    /// Never.
    Silence,
}

/// A line that says what to do, and the document.
pub type Lines = Vec<(Value, Value)>;

/// What is said to the so-many-th bulk request, from 0.
pub type Script = Arc<dyn Fn(usize, &Lines) -> Reply + Send + Sync>;

#[derive(Clone)]
pub struct Stub {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    script: Script,
    bulks: AtomicUsize,
    now: AtomicUsize,
    /// How many bulk requests were there at once, at most.
    peak: AtomicUsize,
    /// All requests but those for marks: method and path, headers by lower-case name, body.
    seen: Mutex<Vec<Seen>>,
    /// `_source` of documents that `_mget` finds, by `_id`.
    there: Mutex<BTreeMap<String, Value>>,
    marks: Mutex<BTreeMap<String, (i64, Value)>>,
}

#[derive(Debug, Clone)]
pub struct Seen {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub at: Instant,
}

impl Stub {
    pub async fn start(script: impl Fn(usize, &Lines) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Arc::new(script),
            bulks: AtomicUsize::new(0),
            now: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            seen: Mutex::default(),
            there: Mutex::default(),
            marks: Mutex::default(),
        });
        let stub = Self { address, state };
        let accepting = stub.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let stub = accepting.clone();
                tokio::spawn(async move { stub.serve(connection).await });
            }
        });
        stub
    }

    /// All documents are taken.
    pub async fn willing() -> Self {
        Self::start(|_, lines| statuses(&vec![201; lines.len()])).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The lines of each bulk request.
    pub fn bulks(&self) -> Vec<Lines> {
        self.seen().iter().filter(|seen| seen.line.starts_with("POST /_bulk")).map(|seen| lines(&seen.body)).collect()
    }

    pub fn peak(&self) -> usize {
        self.state.peak.load(Ordering::SeqCst)
    }

    pub fn put(&self, id: &str, source: Value) {
        self.state.there.lock().unwrap().insert(id.into(), source);
    }

    async fn serve(&self, connection: TcpStream) {
        let mut connection = BufReader::new(connection);
        while let Some(request) = read(&mut connection).await {
            let (status, body) = match self.answer(&request).await {
                Reply::Silence => std::future::pending().await,
                Reply::Json(status, body) => (status, body.to_string()),
                Reply::Text(status, text) => (status, text.to_string()),
            };
            let head = format!(
                "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            if connection.get_mut().write_all(format!("{head}{body}").as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, request: &Seen) -> Reply {
        let path = request.line.split(' ').nth(1).unwrap().to_string();
        if path.starts_with(&format!("/{}", mark::INDEX)) {
            return self.mark(request, &path);
        }
        self.state.seen.lock().unwrap().push(request.clone());
        if path.starts_with("/_mget") {
            return self.mget(request);
        }
        if !path.starts_with("/_bulk") {
            return Reply::Json(404, json!({}));
        }
        let number = self.state.bulks.fetch_add(1, Ordering::SeqCst);
        let now = self.state.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.state.peak.fetch_max(now, Ordering::SeqCst);
        // Long enough for others to come.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let reply = (self.state.script)(number, &lines(&request.body));
        self.state.now.fetch_sub(1, Ordering::SeqCst);
        reply
    }

    fn mget(&self, request: &Seen) -> Reply {
        let wanted: Value = serde_json::from_str(&request.body).unwrap();
        let there = self.state.there.lock().unwrap();
        let found = |doc: &Value| match there.get(doc["_id"].as_str().unwrap()) {
            Some(source) => json!({ "found": true, "_source": source }),
            None => json!({ "found": false }),
        };
        Reply::Json(200, json!({ "docs": wanted["docs"].as_array().unwrap().iter().map(found).collect::<Vec<_>>() }))
    }

    /// As Elasticsearch: a write that names another seq_no than the document has is a conflict.
    fn mark(&self, request: &Seen, path: &str) -> Reply {
        let mut marks = self.state.marks.lock().unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let name = path.rsplit('/').next().unwrap().to_string();
        if request.line.starts_with("GET") {
            return match marks.get(&name) {
                None => Reply::Json(404, json!({ "found": false })),
                Some((seq_no, source)) => {
                    Reply::Json(200, json!({ "found": true, "_seq_no": seq_no, "_primary_term": 1, "_source": source }))
                }
            };
        }
        if name == mark::INDEX {
            return Reply::Json(200, json!({ "acknowledged": true }));
        }
        let there = marks.get(&name).map(|(seq_no, _)| *seq_no);
        let wanted = query.split('&').find_map(|pair| pair.strip_prefix("if_seq_no=")?.parse().ok());
        if there != wanted {
            return Reply::Json(409, json!({ "error": { "type": "version_conflict_engine_exception" } }));
        }
        let next = there.map_or(0, |seq_no| seq_no + 1);
        marks.insert(name, (next, serde_json::from_str(&request.body).unwrap()));
        Reply::Json(201, json!({ "_seq_no": next, "_primary_term": 1 }))
    }
}

/// A bulk answer with these statuses; those that are no success with an error.
pub fn statuses(statuses: &[u16]) -> Reply {
    let item = |status: &u16| match status {
        200..=299 => json!({ "index": { "status": status } }),
        _ => {
            let (kind, reason) = (format!("kind_{status}"), format!("reason {status}"));
            let cause = json!({ "type": "inner", "reason": "what is behind it" });
            json!({ "index": { "status": status, "error": { "type": kind, "reason": reason, "caused_by": cause } } })
        }
    };
    Reply::Json(200, json!({ "items": statuses.iter().map(item).collect::<Vec<_>>() }))
}

fn lines(body: &str) -> Lines {
    let values: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    values.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

async fn read(connection: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut head = vec![];
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_string()),
        }
    }
    let headers = head[1..].iter().filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_string())).collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut bytes = vec![0; length];
    connection.read_exact(&mut bytes).await.ok()?;
    let mut body = String::new();
    match headers.get("content-encoding").map(String::as_str) {
        Some("gzip") => GzDecoder::new(&bytes[..]).read_to_string(&mut body).unwrap(),
        _ => Read::read_to_string(&mut bytes.as_slice(), &mut body).unwrap(),
    };
    Some(Seen { line: head[0].clone(), headers, body, at: Instant::now() })
}
