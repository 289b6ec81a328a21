use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::{Value, json};
use uuid::Uuid;

use super::options::Credentials;
use super::*;
use crate::connector::{Identity, InsertReport, InsertRows, Sink, TableDefinition, Wave, WriteReport, WriteRequest};
use crate::{Error, Fault};

mod stub;

use stub::{Lines, Reply, Stub, statuses};

/// Columns `id BIGINT, text VARCHAR`.
fn table(name: &str, url: &str, key: &[&str], options: &[(&str, &str)]) -> Arc<TableDefinition> {
    let fields = vec![Field::new("id", DataType::Int64, true), Field::new("text", DataType::Utf8View, true)];
    Arc::new(TableDefinition {
        name: format!("es.{name}"),
        schema: Arc::new(Schema::new(fields)),
        primary_key: key.iter().map(ToString::to_string).collect(),
        unbounded: false,
        stored_as: "ELASTICSEARCH".into(),
        location: url.into(),
        partition_columns: vec![],
        options: options.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect(),
        place: "a.sql:1:1".into(),
    })
}

fn identity(checkpoint: u128, epoch: u64) -> Identity {
    Identity { name: "a pipeline".into(), uuid: Uuid::from_u128(checkpoint), epoch, takes_over: false }
}

async fn open(table: &Arc<TableDefinition>) -> ElasticsearchSink {
    let mut sinks = ElasticsearchSink::for_tables([Arc::clone(table)]).unwrap();
    sinks[0].open(&identity(7, 1)).await.unwrap();
    sinks.remove(0)
}

/// Rows `(id, text)` of INSERT 2; an id below 0 is NULL.
fn request(table: &Arc<TableDefinition>, batch: u64, rows: &[(i64, &str)]) -> WriteRequest {
    let ids: Int64Array = rows.iter().map(|(id, _)| (*id >= 0).then_some(*id)).collect();
    let texts = StringViewArray::from_iter_values(rows.iter().map(|(_, text)| *text));
    let rows = RecordBatch::try_new(Arc::clone(&table.schema), vec![Arc::new(ids), Arc::new(texts)]).unwrap();
    let insert = InsertRows { insert: 2, table: Arc::clone(table), rows: vec![rows], hash: String::new() };
    WriteRequest { batch, wave: Wave::Rows, planned_at: 0, offsets: BTreeMap::new(), inserts: vec![insert] }
}

fn many(count: i64) -> Vec<(i64, &'static str)> {
    (0..count).map(|id| (id, "some text")).collect()
}

fn accounts(report: &WriteReport) -> (u64, u64, u64) {
    let InsertReport { written, conflict, refused } = report.inserts[&2];
    (written, conflict, refused)
}

fn ids(lines: &Lines) -> Vec<&str> {
    lines.iter().map(|(what, _)| what.as_object().unwrap().values().next().unwrap()["_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_document_has_the_id_of_its_key_and_the_version_of_its_batch() {
    let stub = Stub::willing().await;
    let table = table("logs", &stub.url(), &["text", "id"], &[]);
    let mut sink = open(&table).await;
    let report = sink.write(&request(&table, 5, &[(1, "a"), (2, "a|b"), (-1, "c"), (1, "a")])).await.unwrap();
    assert_eq!(accounts(&report), (2, 1, 1));
    assert_eq!((report.refusals[0].row, report.refusals[0].error.as_str()), (2, "column id of the key is NULL"));
    let index =
        |id: &str| json!({ "index": { "_index": "logs", "_id": id, "version": 5, "version_type": "external_gte" } });
    let bulks = stub.bulks();
    assert_eq!(bulks.len(), 1);
    // Of two rows with one key the last one.
    let expected =
        [(index("a\\|b|2"), json!({ "id": 2, "text": "a|b" })), (index("a|1"), json!({ "id": 1, "text": "a" }))];
    assert_eq!(bulks[0], expected);
    assert_eq!(stub.seen()[0].headers["content-encoding"], "gzip");
    assert!(stub.seen()[0].line.contains("filter_path=errors%2Citems.*.status%2Citems.*.error&timeout=30000ms"));
}

#[tokio::test]
async fn without_a_key_it_has_the_id_of_its_place_and_is_created() {
    let stub = Stub::start(|_, lines| statuses(&[201, 409][..lines.len()])).await;
    let table = table("logs", &stub.url(), &[], &[("index", "other"), ("compression", "none")]);
    let report = open(&table).await.write(&request(&table, 5, &[(1, "a"), (1, "a")])).await.unwrap();
    // The second one can only be its own: an answer was lost.
    assert_eq!(accounts(&report), (2, 0, 0));
    let create =
        |row: usize| json!({ "create": { "_index": "other", "_id": format!("{}-5-2-{row}", Uuid::from_u128(7)) } });
    let document = json!({ "id": 1, "text": "a" });
    assert_eq!(stub.bulks()[0], [(create(0), document.clone()), (create(1), document)]);
    assert!(!stub.seen()[0].headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn only_documents_that_were_not_taken_are_sent_again() {
    let stub = Stub::start(|number, _| match number {
        0 => statuses(&[201, 429, 201, 503]),
        1 => statuses(&[429, 201]),
        _ => statuses(&[201]),
    })
    .await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    let report = open(&table).await.write(&request(&table, 1, &many(4))).await.unwrap();
    assert_eq!(accounts(&report), (4, 0, 0));
    let bulks = stub.bulks();
    assert_eq!(bulks.iter().map(ids).collect::<Vec<_>>(), [vec!["0", "1", "2", "3"], vec!["1", "3"], vec!["1"]]);
}

#[tokio::test]
async fn a_document_that_is_refused_leaves_its_neighbours() {
    let stub = Stub::start(|_, _| statuses(&[201, 400, 201])).await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    let report = open(&table).await.write(&request(&table, 1, &many(3))).await.unwrap();
    assert_eq!(accounts(&report), (2, 0, 1));
    let refusal = &report.refusals[0];
    assert_eq!(
        (refusal.insert, refusal.row, refusal.error.as_str()),
        (2, 1, "kind_400: reason 400; what is behind it")
    );
}

#[tokio::test]
async fn a_request_that_is_too_large_is_halved_until_a_document_is_alone() {
    let stub = Stub::start(|_, lines| match lines.iter().any(|(_, document)| document["id"] == 3) {
        true => Reply::Text(413, "<html>too large</html>"),
        false => statuses(&vec![201; lines.len()]),
    })
    .await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    let report = open(&table).await.write(&request(&table, 1, &many(8))).await.unwrap();
    assert_eq!(accounts(&report), (7, 0, 1));
    assert_eq!((report.refusals[0].row, report.refusals[0].error.as_str()), (3, "<html>too large</html> (status 413)"));
    assert_eq!(stub.bulks().len(), 7);
}

#[tokio::test]
async fn a_busy_server_is_asked_again_a_few_times() {
    let stub = Stub::start(|_, _| {
        Reply::Json(429, json!({ "error": { "type": "es_rejected", "reason": "the queue is full" } }))
    })
    .await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    let mut sink = open(&table).await;
    let error = sink.write(&request(&table, 1, &many(2))).await.unwrap_err();
    assert!(
        error.is_retryable() && error.to_string().contains("cause: es_rejected: the queue is full (status 429)"),
        "{error}"
    );
    assert!(error.to_string().contains("where: batch 1, sink elasticsearch-127.0.0.1-"), "{error}");
    assert_eq!(stub.bulks().len(), 5);
    assert!(sink.holds(1).await.unwrap(), "something of it may have come in");
}

/// The server is busy: who comes back at once keeps it so. A slow machine only makes the pauses longer.
#[tokio::test]
async fn the_pauses_between_requests_that_were_not_taken_double() {
    let stub = Stub::start(|_, _| statuses(&[429])).await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    open(&table).await.write(&request(&table, 1, &many(1))).await.unwrap_err();
    let seen = stub.seen();
    let bulks: Vec<_> = seen.iter().filter(|seen| seen.line.starts_with("POST /_bulk")).collect();
    let pauses: Vec<_> = bulks.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert_eq!(pauses.len(), 4);
    for (pause, least) in pauses.iter().zip([100, 200, 400, 800]) {
        assert!(pause.as_millis() >= least, "{pauses:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_silent_or_away_may_come_back() {
    let stub = Stub::start(|_, _| Reply::Silence).await;
    let table = table("logs", &stub.url(), &["id"], &[("timeout", "1 second")]);
    let error = open(&table).await.write(&request(&table, 1, &many(2))).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("no answer within 1s"), "{error}");

    let away = super::tests::table("logs", "http://127.0.0.1:1", &["id"], &[]);
    let mut sinks = ElasticsearchSink::for_tables([away]).unwrap();
    let error = sinks[0].open(&identity(7, 1)).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn what_is_no_documents_fault_makes_no_dead_letter() {
    let wrong = |status: u16, kind: &'static str| {
        let error = json!({ "type": kind, "reason": "so it is" });
        move |_: usize, _: &Lines| {
            Reply::Json(200, json!({ "items": [{ "index": { "status": status, "error": error } }] }))
        }
    };
    for (status, kind) in [
        (404, "index_not_found_exception"),
        (400, "index_closed_exception"),
        (403, "security_exception"),
        (400, "validation_exception"),
    ] {
        let stub = Stub::start(wrong(status, kind)).await;
        let table = table("logs", &stub.url(), &["id"], &[]);
        let error = open(&table).await.write(&request(&table, 1, &many(1))).await.unwrap_err();
        assert!(!error.is_retryable() && error.fault() == Fault::User, "{error}");
        assert!(error.to_string().contains(&format!("cause: {kind}: so it is")), "{error}");
    }
    // An index that is closed to writes is mended by whoever has closed it.
    let stub = Stub::start(wrong(403, "cluster_block_exception")).await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    assert!(open(&table).await.write(&request(&table, 1, &many(1))).await.unwrap_err().is_retryable());
}

#[tokio::test]
async fn more_refusals_than_a_table_can_mean_stop_the_batch() {
    let stub = Stub::start(|_, lines| statuses(&vec![400; lines.len()])).await;
    let table = table("logs", &stub.url(), &["id"], &[("bulk.rows", "300")]);
    let error = open(&table).await.write(&request(&table, 1, &many(2_000))).await.unwrap_err();
    assert!(error.fault() == Fault::User && !error.is_retryable(), "{error}");
    assert!(error.to_string().contains("more than 1000 rows of one batch for table es.logs were refused"), "{error}");
}

#[tokio::test]
async fn a_document_that_is_there_is_in_conflict_unless_it_is_the_same() {
    let stub = Stub::start(|_, _| statuses(&[409, 409, 201])).await;
    let newer = table("logs", &stub.url(), &["id"], &[]);
    let report = open(&newer).await.write(&request(&newer, 1, &many(3))).await.unwrap();
    assert_eq!(accounts(&report), (1, 2, 0));
    let created = table("logs", &stub.url(), &["id"], &[("op_type", "create")]);
    stub.put("0", json!({ "text": "some text", "id": 0 }));
    stub.put("1", json!({ "text": "another's", "id": 1 }));
    let report = open(&created)
        .await
        .write(&request(&created, 2, &[(0, "some text"), (1, "ours"), (1, "later"), (2, "x")]))
        .await;
    assert_eq!(accounts(&report.unwrap()), (2, 2, 0));
    assert_eq!(stub.bulks()[1][1].1["text"], "ours", "the first of two rows with one key");
}

/// Answers are as long as the documents are, so there must not be too many in one.
#[tokio::test]
async fn what_is_there_is_looked_at_in_requests_of_a_bounded_size() {
    let looks = async |rows: &[(i64, &str)]| {
        let stub = Stub::start(|_, lines| statuses(&vec![409; lines.len()])).await;
        let options = [("op_type", "create"), ("bulk.rows", "100000"), ("bulk.bytes", "90000000")];
        let table = table("logs", &stub.url(), &["id"], &options);
        // Every other one is ours: each answer must be held against its own document.
        for (id, text) in rows.iter().filter(|(id, _)| id % 2 == 0) {
            stub.put(&id.to_string(), json!({ "id": id, "text": text }));
        }
        let report = open(&table).await.write(&request(&table, 1, rows)).await.unwrap();
        let half = rows.len() as u64 / 2;
        assert_eq!(accounts(&report), (half, half, 0));
        let seen = stub.seen();
        let looks = seen.iter().filter(|seen| seen.line.starts_with("POST /_mget"));
        let docs =
            |seen: &stub::Seen| serde_json::from_str::<Value>(&seen.body).unwrap()["docs"].as_array().unwrap().len();
        looks.map(docs).collect::<Vec<usize>>()
    };
    assert_eq!(looks(&many(1_100)).await, [500, 500, 100]);
    let (long, longer) = ("x".repeat(2 << 20), "y".repeat(6 << 20));
    let rows = [(0, long.as_str()), (1, &long), (2, &long), (3, &longer), (4, "z"), (5, "z")];
    assert_eq!(looks(&rows).await, [2, 1, 1, 2]);
}

#[tokio::test]
async fn chunks_have_so_many_rows_and_bytes_and_few_are_on_their_way() {
    let stub = Stub::willing().await;
    let table = table("logs", &stub.url(), &[], &[("bulk.rows", "100"), ("bulk.in_flight", "3")]);
    let mut batch = request(&table, 1, &many(950));
    let insert = batch.inserts[0].clone();
    // In pieces, and of two INSERTs.
    batch.inserts[0].rows = vec![insert.rows[0].slice(0, 333), insert.rows[0].slice(333, 617)];
    batch.inserts.push(InsertRows { insert: 5, ..insert });
    let report = open(&table).await.write(&batch).await.unwrap();
    assert_eq!((report.inserts[&2].written, report.inserts[&5].written), (950, 950));
    let mut sent: Vec<String> =
        stub.bulks().iter().flat_map(|lines| ids(lines).into_iter().map(str::to_string).collect::<Vec<_>>()).collect();
    sent.sort();
    sent.dedup();
    assert_eq!((sent.len(), stub.bulks().len()), (1_900, 19));
    assert!(stub.bulks().iter().all(|lines| lines.len() <= 100));
    assert!((2..=3).contains(&stub.peak()), "{} at once", stub.peak());

    let stub = Stub::willing().await;
    let table = super::tests::table("logs", &stub.url(), &["id"], &[("bulk.bytes", "1000")]);
    let large = "x".repeat(3_000);
    let mut rows = many(20);
    rows.insert(10, (100, &large));
    let report = open(&table).await.write(&request(&table, 1, &rows)).await.unwrap();
    assert_eq!(accounts(&report), (21, 0, 0));
    let sizes: Vec<usize> = stub.seen().iter().map(|seen| seen.body.len()).collect();
    assert!(sizes.len() > 3 && sizes.iter().filter(|size| **size > 1_000).count() == 1, "{sizes:?}");
}

#[tokio::test]
async fn an_idle_batch_asks_nothing_of_the_server() {
    let table = table("logs", "http://127.0.0.1:1", &[], &[]);
    let mut sinks = ElasticsearchSink::for_tables([Arc::clone(&table)]).unwrap();
    assert_eq!(accounts(&sinks[0].write(&request(&table, 1, &[])).await.unwrap()), (0, 0, 0));
}

#[tokio::test]
async fn the_mark_tells_which_batch_has_begun_and_which_start_may_write() {
    let stub = Stub::willing().await;
    let table = table("logs", &stub.url(), &["id"], &[]);
    let sink = || ElasticsearchSink::for_tables([Arc::clone(&table)]).unwrap().remove(0);
    let (mut first, mut second) = (sink(), sink());
    assert_eq!(first.open(&identity(7, 1)).await.unwrap(), None);
    assert!(!first.holds(0).await.unwrap());
    assert!(!first.write(&request(&table, 4, &many(1))).await.unwrap().already);
    assert!(first.write(&request(&table, 4, &many(1))).await.unwrap().already);
    assert!(first.holds(4).await.unwrap() && !first.holds(5).await.unwrap());
    assert_eq!(second.open(&identity(7, 2)).await.unwrap(), Some(4));
    for _ in 0..2 {
        let error = first.write(&request(&table, 5, &many(1))).await.unwrap_err();
        assert!(!error.is_retryable() && error.message().starts_with("fenced by epoch 2"), "{error}");
    }
    assert!(first.open(&identity(7, 1)).await.unwrap_err().message().starts_with("fenced by epoch 2"));
    assert!(!second.holds(5).await.unwrap());

    // Another checkpoint counts from 0, and its documents are newer all the same.
    let mut other = sink();
    let error = other.open(&identity(8, 1)).await.unwrap_err();
    assert!(error.fault() == Fault::User && error.to_string().contains("--take-over"), "{error}");
    let takes_over = Identity { takes_over: true, ..identity(8, 1) };
    assert_eq!(other.open(&takes_over).await.unwrap(), None);
    other.write(&request(&table, 0, &many(1))).await.unwrap();
    let version = stub.bulks().last().unwrap()[0].0["index"]["version"].clone();
    assert_eq!(version, json!(1_u64 << 40));
    let error = second.write(&request(&table, 5, &many(1))).await.unwrap_err();
    assert!(error.message().starts_with("fenced by checkpoint"), "{error}");
}

#[tokio::test]
async fn who_we_are_is_in_a_header_and_in_no_message() {
    let stub = Stub::start(|_, _| {
        Reply::Json(401, json!({ "error": { "type": "security_exception", "reason": "who is this?" } }))
    })
    .await;
    let with_user = stub.url().replace("http://", "http://me:s3cr%40t@");
    let (none, url): (&[(&str, &str)], String) = (&[], stub.url());
    let cases = [
        (&with_user, none, "Basic bWU6czNjckB0"),
        (&url, &[("username", "me"), ("password", "s3cr@t"), ("api_key", "")], "Basic bWU6czNjckB0"),
        (&url, &[("api_key", "czNjckB0OmtleQ==")], "ApiKey czNjckB0OmtleQ=="),
        (&url, &[("api_key", "s3cr@t:key")], "ApiKey czNjckB0OmtleQ=="),
    ];
    for (url, options, header) in cases {
        let table = table("logs", url, &[], options);
        let mut sink = open(&table).await;
        let error = sink.write(&request(&table, 1, &many(1))).await.unwrap_err();
        assert!(error.fault() == Fault::User && error.to_string().contains("who is this? (status 401)"), "{error}");
        assert_eq!(stub.seen().last().unwrap().headers["authorization"], header);
        let shown = format!("{error}{:?}{}{}", sink_of(&table).connection, sink.name(), sink.guarantee().how);
        assert!(!shown.contains("s3cr") && !shown.contains("czNj"), "{shown}");
    }
}

fn sink_of(table: &Arc<TableDefinition>) -> ElasticsearchTable {
    ElasticsearchTable::try_new(Arc::clone(table)).unwrap()
}

#[test]
fn one_cluster_is_one_sink() {
    let tables = [
        table("one", "http://b:9200,http://a:9200", &[], &[]),
        table("two", "http://a:9200/, http://b:9200", &[], &[]),
        table("three", "https://c", &[], &[]),
    ];
    // The order of the nodes is who is asked first, so it must be the same.
    let error = ElasticsearchSink::for_tables(tables.clone()).err().unwrap().to_string();
    assert!(error.contains("tables es.one and es.two write to one Elasticsearch in different ways"), "{error}");
    let sinks = ElasticsearchSink::for_tables([tables[0].clone(), tables[2].clone()]).unwrap();
    assert_eq!(
        sinks.iter().map(|sink| sink.name()).collect::<Vec<_>>(),
        ["elasticsearch-a-9200", "elasticsearch-c-443"]
    );
    assert_eq!(sinks[0].guarantee().level, "exactly-once");
    let differ = [table("one", "http://a:1", &[], &[]), table("two", "http://a:1", &[], &[("bulk.rows", "5")])];
    assert!(ElasticsearchSink::for_tables(differ).err().unwrap().to_string().contains("in different ways"));
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let wrong = |url: &str, key: &[&str], options: &[(&str, &str)]| -> String {
        let error: Error = ElasticsearchTable::try_new(table("Logs", url, key, options)).err().unwrap();
        assert_eq!(error.fault(), Fault::User);
        error.to_string()
    };
    let url = "http://localhost:9200";
    for (text, found) in [
        ("a name has no upper-case letters", wrong(url, &[], &[])),
        ("declare PRIMARY KEY", wrong(url, &[], &[("index", "a"), ("op_type", "index")])),
        ("not one of index, create", wrong(url, &["id"], &[("index", "a"), ("op_type", "update")])),
        ("is 0, not from 1 to 100000", wrong(url, &[], &[("index", "a"), ("bulk.rows", "0")])),
        ("has no 'password' beside it", wrong(url, &[], &[("index", "a"), ("username", "me")])),
        ("give one of them", wrong("http://u:p@h", &[], &[("index", "a"), ("api_key", "k")])),
        ("give one of them", wrong("http://u:p@h", &[], &[("index", "a"), ("username", "v"), ("password", "q")])),
        ("no header can have", wrong(url, &[], &[("index", "a"), ("api_key", "a\nb")])),
        ("different users", wrong("http://u:p@h,http://v:p@g", &[], &[("index", "a")])),
        ("begins neither with http://", wrong("es://me:s3cret@h", &[], &[("index", "a")])),
        ("it has parameters", wrong("http://h?password=s3cret", &[], &[("index", "a")])),
        ("is not an option of this table", wrong(url, &[], &[("index", "a"), ("indx", "b")])),
        ("is shorter than a second", wrong(url, &[], &[("index", "a"), ("timeout", "10ms")])),
    ] {
        assert!(
            found.contains(text) && found.contains("where: a.sql:1:1") && !found.contains("s3cret"),
            "{text}: {found}"
        );
    }
    let table = ElasticsearchTable::try_new(table("logs", "https://u:p%2Fw@h/es,https://g", &["id"], &[])).unwrap();
    assert_eq!(table.connection.to_string(), "Elasticsearch at https://h/es,https://g");
    assert_eq!(table.connection.credentials, Credentials::Basic { user: "u".into(), password: "p/w".into() });
    assert_eq!((table.op_type, table.connection.gzip, table.connection.bulk.rows), (OpType::Index, true, 2_000));
}

#[test]
fn a_date_in_the_index_must_be_of_the_key() {
    let of = |key: &[&str]| {
        let mut definition = Arc::unwrap_or_clone(table("logs", "http://h", key, &[("index", "logs-{day|yyyy}")]));
        let fields = vec![Field::new("id", DataType::Int64, true), Field::new("day", DataType::Date32, true)];
        definition.schema = Arc::new(Schema::new(fields));
        ElasticsearchTable::try_new(Arc::new(definition)).map(drop)
    };
    assert!(of(&["id"]).unwrap_err().to_string().contains("add day to the PRIMARY KEY"));
    of(&["id", "day"]).unwrap();
    of(&[]).unwrap();
}

#[tokio::test]
async fn a_server_that_is_no_elasticsearch_is_told() {
    // Its 404 says nothing of a document.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut connection, _)) = listener.accept().await {
            assert!(connection.read(&mut [0; 4_096]).await.unwrap() > 0);
            let page = "HTTP/1.1 404 No\r\ncontent-type: text/html\r\ncontent-length: 11\r\n\r\n<p>Nope</p>";
            connection.write_all(page.as_bytes()).await.ok();
        }
    });
    let mut sinks = ElasticsearchSink::for_tables([table("logs", &format!("http://{address}"), &[], &[])]).unwrap();
    let error = sinks[0].open(&identity(7, 1)).await.unwrap_err();
    assert!(error.to_string().contains("<p>Nope</p> (status 404)"), "{error}");
    assert!(error.to_string().contains("LOCATION must be the address of an Elasticsearch"), "{error}");
}

#[test]
fn a_document_of_many_lines_is_one_line() {
    // A line break in a value would begin another action.
    let table = table("logs", "http://h", &["text"], &[]);
    let recipe = chunk::Recipe {
        tables: Arc::new([("es.logs".to_string(), sink_of(&table))].into()),
        request: Arc::new(request(&table, 1, &[(1, "a\n{\"delete\":{\"_index\":\"logs\",\"_id\":\"x\"}}\n")])),
        uuid: Uuid::nil(),
        version: 0,
        limits: options::BulkLimits { rows: 10, bytes: 1_000, in_flight: 1 },
    };
    let mut chunks = chunk::Chunks::new(recipe).unwrap();
    let chunk = chunks.next().unwrap().unwrap();
    let lines = String::from_utf8(chunk.lines(&[0])).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let what: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(what["index"]["_id"], "a\n{\"delete\":{\"_index\":\"logs\",\"_id\":\"x\"}}\n");
    assert!(chunks.next().unwrap().is_none());
}
