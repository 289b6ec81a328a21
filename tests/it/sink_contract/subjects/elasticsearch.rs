//! Indices of a real Elasticsearch, read back by searches.

use std::time::Duration;

use poundlock::connector::{Sink, TableDefinition};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{only, row_of, table, tables_settled_by};
use crate::harness::Elasticsearch as Server;
use crate::sink_contract::rig::{Newest, Row, Subject, Tables};

pub struct Elasticsearch {
    server: Server,
    /// What the names of its indices begin with.
    prefix: String,
    tables: Tables,
}

impl Subject for Elasticsearch {
    // By the mark: no batch begins after a newer start.
    const FENCES: bool = true;
    const NEWEST: Newest = Newest::Begun;

    fn fresh() -> Self {
        let server = Server::of_environment();
        let prefix = format!("contract-{}", Uuid::new_v4());
        let make = |name: &str, options: &[(&str, &str)]| {
            let index = format!("{prefix}-{name}");
            // Several requests a batch, of which some are on their way when it is interrupted.
            let options = [&[("index", index.as_str()), ("bulk.rows", "300")], options].concat();
            table(name, "ELASTICSEARCH", &server.url, &options)
        };
        let tables = tables_settled_by(make, Some([("op_type", "index"), ("op_type", "create")]));
        for table in tables.all() {
            let text = json!({ "type": "keyword" });
            let mappings = json!({ "properties": { "id": { "type": "long" }, "v": text, "part": text } });
            server.put(&table.options["index"], &json!({ "mappings": mappings }));
        }
        Self { server, prefix, tables }
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn sink(&self) -> Box<dyn Sink> {
        only(&self.tables)
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        self.server
            .documents(&table.options["index"])
            .iter()
            .map(|(_, document)| row_of(&document.to_string()))
            .collect()
    }

    /// A word of an index has at most 32,766 bytes.
    fn impossible(&self) -> Vec<(Row, &'static str)> {
        vec![((-1, Some("x".repeat(40_000)), "p".into()), "immense term")]
    }

    /// The index takes nothing for so long, as when the disk is full.
    fn trouble(&self, after: Duration) -> bool {
        let (server, index) = (self.server.clone(), self.tables.plain.options["index"].clone());
        std::thread::spawn(move || {
            let block = |on: Value| {
                server.put(&format!("{index}/_settings"), &json!({ "index.blocks.read_only_allow_delete": on }));
            };
            block(true.into());
            std::thread::sleep(after);
            block(Value::Null);
        });
        false // a write waits for it
    }
}

impl Drop for Elasticsearch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: indices {}-*", self.prefix);
            return;
        }
        for table in self.tables.all() {
            self.server.delete(&table.options["index"]);
        }
    }
}
