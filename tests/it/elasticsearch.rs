//! The sink of Elasticsearch on a real server: templates, dates in the names of indices, dead letters; and over TLS, with a user
//! or an API key, through a proxy that looks at both, for the server of the tests has neither.

pub mod proxy;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Date32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use poundlock::Fault;
use poundlock::connector::elasticsearch::options::Connection;
use poundlock::connector::elasticsearch::template;
use poundlock::connector::{Identity, InsertRows, Sink, TableDefinition, Wave, WriteRequest, sinks};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::cli::{poundlock, text};
use crate::harness::{Elasticsearch, Feeder, World};
use crate::outbox::servers::Own;
use crate::recovery::contents::messages;
use crate::recovery::project::{Project, Servers};
use proxy::{Certificates, Proxy};

/// `user:password`, and `id:api_key`; the headers that they are sent in.
const USER: &str = "me:correct-horse";
const KEY: &str = "key-1:battery-staple";
const HEADERS: [&str; 2] = ["Basic bWU6Y29ycmVjdC1ob3JzZQ==", "ApiKey a2V5LTE6YmF0dGVyeS1zdGFwbGU="];

fn unique(name: &str) -> String {
    format!("it-{name}-{}", Uuid::new_v4())
}

/// Columns `id BIGINT, day DATE`.
fn table(url: &str, options: &[(&str, &str)]) -> Arc<TableDefinition> {
    let fields = vec![Field::new("id", DataType::Int64, true), Field::new("day", DataType::Date32, true)];
    Arc::new(TableDefinition {
        name: "es.days".into(),
        schema: Arc::new(Schema::new(fields)),
        primary_key: vec!["id".into(), "day".into()],
        unbounded: false,
        stored_as: "ELASTICSEARCH".into(),
        location: url.into(),
        partition_columns: vec![],
        options: options.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect(),
        place: "a.sql:1:1".into(),
    })
}

fn request(table: &Arc<TableDefinition>, batch: u64, rows: &[(i64, i32)]) -> WriteRequest {
    let ids: Int64Array = rows.iter().map(|(id, _)| *id).collect::<Vec<_>>().into();
    let days: Date32Array = rows.iter().map(|(_, day)| *day).collect::<Vec<_>>().into();
    let rows = RecordBatch::try_new(Arc::clone(&table.schema), vec![Arc::new(ids), Arc::new(days)]).unwrap();
    let insert = InsertRows { insert: 0, table: Arc::clone(table), rows: vec![rows], hash: String::new() };
    WriteRequest { batch, wave: Wave::Rows, planned_at: 0, offsets: BTreeMap::new(), inserts: vec![insert] }
}

async fn open(table: &Arc<TableDefinition>) -> poundlock::Result<Box<dyn Sink>> {
    let mut sink = sinks(std::slice::from_ref(table)).unwrap().remove(0);
    sink.open(&Identity { name: unique("pipeline"), uuid: Uuid::new_v4(), epoch: 1, takes_over: false }).await?;
    Ok(sink)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Elasticsearch: make test"]
async fn documents_go_to_the_index_of_their_day() {
    let server = Elasticsearch::of_environment();
    let prefix = unique("days");
    let table = table(&server.url, &[("index", &format!("{prefix}-{{day|yyyy.MM.dd}}"))]);
    let mut sink = open(&table).await.unwrap();
    let report = sink.write(&request(&table, 0, &[(1, 19_753), (2, 19_754), (3, 19_753)])).await.unwrap();
    assert_eq!(report.inserts[&0].written, 3);
    let ids = |index: &str| {
        let documents = server.documents(&format!("{prefix}-{index}"));
        let mut ids: Vec<String> = documents.into_iter().map(|(id, _)| id).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids("2024.01.31"), ["1|2024-01-31", "3|2024-01-31"]);
    assert_eq!(ids("2024.02.01"), ["2|2024-02-01"]);
    server.delete(&format!("{prefix}-2024.01.31,{prefix}-2024.02.01"));
}

/// What a batch of long ago sends late does not replace what is newer; and what was deleted in between is no conflict.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Elasticsearch: make test"]
async fn an_older_batch_never_replaces_a_newer_one() {
    let server = Elasticsearch::of_environment();
    let index = unique("versions");
    let keyed = Arc::new(TableDefinition {
        primary_key: vec!["id".into()],
        ..Arc::unwrap_or_clone(table(&server.url, &[("index", &index)]))
    });
    let mut sink = open(&keyed).await.unwrap();
    sink.write(&request(&keyed, 3, &[(1, 10), (2, 10)])).await.unwrap();
    sink.write(&request(&keyed, 4, &[(1, 20)])).await.unwrap();
    let report = sink.write(&request(&keyed, 3, &[(1, 10), (2, 10)])).await.unwrap();
    assert_eq!((report.inserts[&0].written, report.inserts[&0].conflict), (1, 1));
    let mut documents = server.documents(&index);
    documents.sort_by_key(|(id, _)| id.clone());
    let day = |day: &str, id: i64| (id.to_string(), json!({ "id": id, "day": day }));
    assert_eq!(documents, [day("1970-01-21", 1), day("1970-01-11", 2)]);
    server.delete(&index);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Elasticsearch: make test"]
async fn an_alias_that_names_no_index_to_write_to_stops_and_makes_no_dead_letters() {
    let server = Elasticsearch::of_environment();
    let alias = unique("alias");
    for index in ["a", "b"] {
        let aliases = json!({ alias.as_str(): {} });
        server.put(&format!("{alias}-{index}"), &json!({ "aliases": aliases }));
    }
    let table = table(&server.url, &[("index", &alias)]);
    let error = open(&table).await.unwrap().write(&request(&table, 0, &[(1, 19_753)])).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("no write index is defined for alias"), "{error}");
    server.delete(&format!("{alias}-a,{alias}-b"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Elasticsearch: make test"]
async fn templates_are_applied_once_and_again_when_they_change() {
    let server = Elasticsearch::of_environment();
    let name = unique("template");
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::parse(&server.url, None, None).unwrap();
    let write = |file: &str, body: Value| {
        fs::write(folder.path().join(format!("{file}.json")), body.to_string()).unwrap();
    };
    let template = |types: &[(&str, &str)]| {
        let properties: Value = types.iter().map(|(field, of)| (field.to_string(), json!({ "type": of }))).collect();
        let mappings = json!({ "properties": properties });
        let component = format!("{name}-z");
        json!({ "index_patterns": [format!("{name}-*")], "priority": 500, "composed_of": [component],
                "template": { "mappings": mappings } })
    };
    let types = |index: &str| -> Value {
        let (_, mapping) = server.request("GET", &format!("{index}/_mapping"), None);
        let properties = mapping[index]["mappings"]["properties"].as_object().unwrap().clone();
        properties.into_iter().map(|(field, of)| (field, of["type"].clone())).collect::<serde_json::Map<_, _>>().into()
    };
    let apply = async || template::apply(&connection, folder.path()).await;
    assert!(template::apply(&connection, &folder.path().join("nowhere")).await.unwrap().is_empty());
    // The component is later by its name, and must be there first.
    write(&name, template(&[("id", "keyword")]));
    write(&format!("{name}-z"), json!({ "template": { "settings": { "number_of_shards": 1 } } }));
    assert_eq!(apply().await.unwrap(), [format!("{name}-z"), name.clone()]);
    assert!(apply().await.unwrap().is_empty());
    let first = format!("{name}-1");
    server.put(&first, &json!({}));
    assert_eq!(types(&first), json!({ "id": "keyword" }));
    // The index that is there gets the new field too; a type that has changed is for indices to come.
    write(&name, template(&[("id", "keyword"), ("more", "long")]));
    assert_eq!(apply().await.unwrap(), [&*name]);
    assert_eq!(types(&first), json!({ "id": "keyword", "more": "long" }));
    write(&name, template(&[("id", "long")]));
    assert_eq!(apply().await.unwrap(), [&*name]);
    assert_eq!(types(&first), json!({ "id": "keyword", "more": "long" }));
    let second = format!("{name}-2");
    server.put(&second, &json!({}));
    assert_eq!(types(&second), json!({ "id": "long" }));

    write(&name, json!({ "index_patterns": [format!("{name}-*")], "tmplate": {} }));
    let error = apply().await.unwrap_err();
    assert!(error.fault() == Fault::User && error.to_string().contains("tmplate"), "{error}");
    assert!(error.to_string().contains(&format!("{name}.json")), "{error}");
    for (text, says) in [("{", "it is not JSON"), ("[]", "it is not an object"), ("{}", "neither \"index_patterns\"")] {
        fs::write(folder.path().join(format!("{name}.json")), text).unwrap();
        assert!(apply().await.unwrap_err().to_string().contains(says));
    }
    server.delete(&format!("{first},{second}"));
    server.request("DELETE", &format!("_index_template/{name}"), None);
    server.request("DELETE", &format!("_component_template/{name}-z"), None);
}

#[test]
#[ignore = "needs Elasticsearch: make test"]
fn a_document_that_does_not_fit_the_mapping_is_a_dead_letter_with_its_reason() {
    let project = Project::new(Servers::Embedded).with_elasticsearch();
    let server = project.elasticsearch.clone().unwrap();
    let index = format!("{}_copies", project.name);
    server.put(&index, &json!({ "mappings": { "dynamic": false, "properties": { "id": { "type": "byte" } } } }));
    let event = |id: i64| format!("{{\"id\":{id},\"k\":\"a\",\"n\":1,\"ts\":\"2024-01-01T00:00:00\"}}");
    project.produce(project.topic("EVENTS"), 0, [1, 1_000, 2].map(event));
    project.run(&[]);
    let mut ids: Vec<i64> =
        server.documents(&index).iter().map(|(_, document)| document["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    let dead: Vec<Value> =
        messages(&project, project.topic("DEAD")).iter().map(|letter| serde_json::from_str(letter).unwrap()).collect();
    assert_eq!(dead.len(), 1, "{dead:?}");
    let error = dead[0]["error"].as_str().unwrap();
    assert!(
        error.starts_with("document_parsing_exception: ") && error.contains("field [id] of type [byte]"),
        "{error}"
    );
    assert_eq!(dead[0]["stage"], "sink");
    // The other sinks have the row.
    assert_eq!(project.ids("shares"), [1, 2, 1_000]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Elasticsearch: make test"]
async fn over_tls_with_a_user_and_with_an_api_key() {
    let server = Elasticsearch::of_environment();
    let certificates = Certificates::make();
    let proxy = Proxy::start(&certificates, &server.url, &HEADERS);
    let index = unique("secured");
    let ca = certificates.path("ca.pem");
    let (user, password) = USER.split_once(':').unwrap();
    let ways: [(&str, Vec<(&str, &str)>); 3] = [
        (&proxy.url(), vec![("username", user), ("password", password)]),
        (&proxy.url().replace("https://", &format!("https://{USER}@")), vec![]),
        (&proxy.url(), vec![("api_key", KEY)]),
    ];
    for (batch, (url, mut options)) in ways.into_iter().enumerate() {
        options.extend([("index", index.as_str()), ("ca_file", &ca)]);
        let table = table(url, &options);
        let mut sink = open(&table).await.unwrap();
        let report = sink.write(&request(&table, 0, &[(batch as i64, 0)])).await.unwrap();
        assert_eq!(report.inserts[&0].written, 1);
    }
    assert_eq!(server.documents(&index).len(), 3);
    server.delete(&index);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Elasticsearch: make test"]
async fn a_wrong_certificate_and_a_wrong_key_are_told_as_such() {
    let server = Elasticsearch::of_environment();
    let certificates = Certificates::make();
    let proxy = Proxy::start(&certificates, &server.url, &HEADERS);
    let [ca, other] = ["ca.pem", "other-ca.pem"].map(|file| certificates.path(file));
    let cases = [
        // A CA that has signed nothing; the name of another host; no CA at all; a wrong key; none.
        (proxy.url(), vec![("api_key", KEY), ("ca_file", other.as_str())], "certificate"),
        (proxy.url().replace("127.0.0.1", "localhost"), vec![("api_key", KEY), ("ca_file", &ca)], "certificate"),
        (proxy.url(), vec![("api_key", KEY)], "certificate"),
        (proxy.url(), vec![("api_key", "key-1:wrong-secret"), ("ca_file", &ca)], "status 401"),
        (proxy.url(), vec![("ca_file", &ca)], "status 401"),
    ];
    for (url, options, says) in cases {
        let error = open(&table(&url, &options)).await.err().expect("it is refused");
        assert!(error.fault() == Fault::User && !error.is_retryable(), "{error}");
        let shown = error.to_string();
        assert!(shown.contains(says) && shown.contains("hint: "), "{shown}");
        assert!(!shown.contains("battery") && !shown.contains("wrong-secret"), "{shown}");
    }
}

/// A server of its own: in that of the other tests the template is there already.
#[test]
#[ignore = "needs Kafka, PostgreSQL and Elasticsearch: make test"]
fn run_applies_the_shipped_template_before_the_first_document() {
    let server = Own::elasticsearch();
    let mut world = World::new("templates");
    world.elasticsearch = server.client();
    world.index = "user_event_logs".into();
    let (from, to) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations"), world.folder.join("migrations"));
    fs::create_dir_all(to.join("elasticsearch")).unwrap();
    for folder in ["", "elasticsearch"] {
        for file in fs::read_dir(from.join(folder)).unwrap().map(Result::unwrap) {
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), to.join(folder).join(file.file_name())).unwrap();
            }
        }
    }
    Feeder::feed(&world, 5, 2_000);
    world.run(&["--until-caught-up", "--close-windows"]).succeed(Duration::from_secs(180));
    assert!(!world.elasticsearch.documents(&world.index).is_empty());
    let (_, mapping) = world.elasticsearch.request("GET", "user_event_logs/_mapping", None);
    let shipped = fs::read_to_string(from.join("elasticsearch/user_event_logs.json")).unwrap();
    let shipped: Value = serde_json::from_str(&shipped).unwrap();
    // Without it a text would be `text`, with a field `keyword` below it.
    assert_eq!(mapping["user_event_logs"]["mappings"], shipped["template"]["mappings"]);
}

#[test]
#[ignore = "needs Elasticsearch: make test"]
fn migrate_applies_templates_over_tls() {
    let server = Elasticsearch::of_environment();
    let certificates = Certificates::make();
    let proxy = Proxy::start(&certificates, &server.url, &HEADERS);
    let folder = TempDir::new().unwrap();
    let name = unique("migrate");
    fs::create_dir_all(folder.path().join("migrations/elasticsearch")).unwrap();
    let body = json!({ "index_patterns": [format!("{name}-*")], "priority": 501 }).to_string();
    fs::write(folder.path().join(format!("migrations/elasticsearch/{name}.json")), body).unwrap();
    let migrate = |folder: &Path| {
        let mut command = poundlock(folder, &["migrate", "--database-url", "sqlite:x.db", "--es-url", &proxy.url()]);
        command.env("ES_API_KEY", KEY).env("ES_CA_FILE", certificates.path("ca.pem"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, log) = migrate(folder.path());
    assert_eq!(out, format!("applied template {name}\n"));
    assert!(!log.contains("battery"), "{log}");
    assert!(migrate(folder.path()).0.contains("nothing to apply"));
    assert_eq!(server.request("DELETE", &format!("_index_template/{name}"), None).0, 200);
}
