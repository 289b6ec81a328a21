//! A real Elasticsearch, asked by curl: nothing of the engine's client is between it and a test.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Documents of one page of a search.
const PAGE: usize = 10_000;

#[derive(Debug, Clone)]
pub struct Elasticsearch {
    pub url: String,
}

impl Elasticsearch {
    pub fn of_environment() -> Self {
        let url = std::env::var("ELASTICSEARCH_URL");
        Self { url: url.expect("ELASTICSEARCH_URL is not set: run this through `make test`") }
    }

    /// Status and answer.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut curl = Command::new("curl")
            .args(["-s", "-S", "-m", "60", "-X", method, "-H", "Content-Type: application/json", "--data-binary", "@-"])
            .args(["-w", "\n%{http_code}", &format!("{}/{path}", self.url)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is installed: see tests/services/prerequisites");
        let body = body.map(Value::to_string).unwrap_or_default();
        curl.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let output = curl.wait_with_output().unwrap();
        assert!(output.status.success(), "{method} {path}: {:?}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(answer).unwrap_or_default())
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.request(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    pub fn put(&self, path: &str, body: &Value) {
        self.ask("PUT", path, Some(body));
    }

    /// An index, if it is there.
    pub fn delete(&self, index: &str) {
        self.ask("DELETE", &format!("{index}?ignore_unavailable=true"), None);
    }

    /// `_id` and source of all documents of an index; none where there is no such index.
    pub fn documents(&self, index: &str) -> Vec<(String, Value)> {
        if self.request("POST", &format!("{index}/_refresh"), None).0 == 404 {
            return vec![];
        }
        let query = json!({ "size": PAGE, "sort": ["_doc"], "query": { "match_all": {} } });
        let mut page = self.ask("POST", &format!("{index}/_search?scroll=1m"), Some(&query));
        let mut documents = vec![];
        loop {
            let Value::Array(hits) = page["hits"]["hits"].take() else { panic!("{page}") };
            let count = hits.len();
            for mut hit in hits {
                documents.push((hit["_id"].as_str().unwrap().to_string(), hit["_source"].take()));
            }
            let scroll = json!({ "scroll_id": page["_scroll_id"] });
            if count < PAGE {
                self.ask("DELETE", "_search/scroll", Some(&scroll));
                return documents;
            }
            page = self.ask("POST", "_search/scroll?scroll=1m", Some(&scroll));
        }
    }
}
