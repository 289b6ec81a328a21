//! Against a real PostgreSQL, each test in a database of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array,
    Int64Array, ListArray, StringViewArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, TimeUnit};
use datafusion::prelude::SessionContext;
use tokio_postgres::Client;

use super::{Address, connect};
use crate::connector::database::migrate::migrate;
use crate::connector::database::tests::*;
use crate::connector::database::{REFUSED_MAX, provider, sinks};
use crate::connector::{Sink, TableDefinition};
use crate::{Error, Fault};

mod own;

mod read;

const MINUTE: Duration = Duration::from_secs(60);

/// A new database and a connection to it.
async fn database() -> (String, Client) {
    let url = std::env::var("DATABASE_URL").expect("DATABASE_URL is the address of a server that may create databases");
    let admin = connect(&Address::parse(&url).unwrap(), MINUTE, MINUTE).await.unwrap();
    let name = format!("poundlock_test_{}", uuid::Uuid::new_v4().simple());
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let url = format!("{server}/{name}");
    let client = connect(&Address::parse(&url).unwrap(), MINUTE, MINUTE).await.unwrap();
    (url, client)
}

fn sink(tables: &[&Arc<TableDefinition>]) -> Box<dyn Sink> {
    let tables: Vec<_> = tables.iter().map(|t| (*t).clone()).collect();
    sinks(&tables).unwrap().pop().unwrap()
}

async fn text(client: &Client, sql: &str) -> String {
    client
        .query_one(&format!("SELECT ({sql})::text"), &[])
        .await
        .unwrap()
        .get::<_, Option<String>>(0)
        .unwrap_or_default()
}

async fn open_error(table: TableDefinition) -> Error {
    sink(&[&Arc::new(table)]).open(&identity(1)).await.unwrap_err()
}

const CONTRACT_TABLES: &str =
    "CREATE TABLE plain (id bigint, v text); CREATE TABLE updated (id bigint PRIMARY KEY, v text);
                               CREATE TABLE kept (id int UNIQUE, v varchar(10));";

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn postgres_keeps_the_contract() {
    let (url, client) = database().await;
    client.batch_execute(CONTRACT_TABLES).await.unwrap();
    contract(&url).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn every_type_goes_and_comes_back() {
    let (url, client) = database().await;
    client
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('calm', 'cross'); CREATE DOMAIN label AS varchar(8);
             CREATE TABLE all_types (b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(38, 6), ni numeric,
               t text, c varchar(5), p bpchar(3), j json, jb jsonb, u uuid, m mood, l label, y bytea, ts timestamp,
               tz timestamptz, d date, ai int8[], ants timestamp[], at text[], \"Odd \"\"name\" text, extra serial NOT NULL)",
        )
        .await
        .unwrap();
    let time = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
    let list = |of: DataType| DataType::List(Arc::new(Field::new_list_field(of, true)));
    let text = DataType::Utf8View;
    let columns = [
        ("b", DataType::Boolean),
        ("i2", DataType::Int64),
        ("i4", DataType::Int32),
        ("i8", DataType::Int64),
        ("f4", DataType::Float32),
        ("f8", DataType::Float64),
        ("n", DataType::Decimal128(38, 6)),
        ("ni", DataType::Int64),
        ("t", text.clone()),
        ("c", text.clone()),
        ("p", text.clone()),
        ("j", text.clone()),
        ("jb", text.clone()),
        ("u", text.clone()),
        ("m", text.clone()),
        ("l", text.clone()),
        ("y", DataType::Binary),
        ("ts", time(None)),
        ("tz", time(Some("UTC"))),
        ("d", DataType::Date32),
        ("ai", list(DataType::Int64)),
        ("ants", list(time(None))),
        ("at", list(DataType::Utf8View)),
        ("Odd \"name", text),
    ];
    let table = Arc::new(definition("all_types", &url, &columns, &[]));
    let words = |word: &str| Arc::new(StringViewArray::from(vec![Some(word), None])) as ArrayRef;
    let int = |v: i64| Arc::new(Int64Array::from(vec![Some(v), None])) as ArrayRef;
    let micros = vec![Some(-62_135_596_800_000_001), None];
    let times = arrow::array::ListArray::new(
        Arc::new(Field::new_list_field(time(None), true)),
        arrow::buffer::OffsetBuffer::from_lengths([2, 0]),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None])),
        Some(vec![true, false].into()),
    );
    let strings = arrow::array::ListArray::new(
        Arc::new(Field::new_list_field(DataType::Utf8View, true)),
        arrow::buffer::OffsetBuffer::from_lengths([0, 0]),
        Arc::new(StringViewArray::from(Vec::<&str>::new())),
        Some(vec![true, false].into()),
    );
    let lowest = -(10i128.pow(38) - 1);
    let values: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![Some(true), None])),
        int(-32_768),
        Arc::new(Int32Array::from(vec![Some(i32::MAX), None])),
        int(i64::MIN),
        Arc::new(Float32Array::from(vec![Some(-1.25), None])),
        Arc::new(Float64Array::from(vec![Some(f64::INFINITY), None])),
        Arc::new(Decimal128Array::from(vec![Some(lowest), None]).with_precision_and_scale(38, 6).unwrap()),
        int(1_000_000_000_000),
        words("naïve \t\n ✓"),
        words("äöüßé"),
        words("abc"),
        words("{\"a\": [1, null]}"),
        words("{\"a\": [1, null]}"),
        words("00112233-4455-6677-8899-aabbccddeeff"),
        words("cross"),
        words("label"),
        Arc::new(BinaryArray::from_opt_vec(vec![Some(&b"\0\xff"[..]), None])),
        Arc::new(TimestampMicrosecondArray::from(micros.clone())),
        Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")),
        Arc::new(Date32Array::from(vec![Some(-719_163), None])),
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(-1), None]), None])),
        Arc::new(times),
        Arc::new(strings),
        words("odd"),
    ];
    let mut sink = sink(&[&table]);
    sink.open(&identity(1)).await.unwrap();
    let written = insert(0, &table, values);
    assert_eq!(sink.write(&request(1, vec![written.clone()])).await.unwrap().inserts[&0], account(2, 0, 0));
    let context = SessionContext::new();
    context.register_table("t", provider(&table).unwrap()).unwrap();
    let read = context.sql("SELECT * FROM t").await.unwrap().collect().await.unwrap();
    for (index, (name, _)) in columns.iter().enumerate() {
        assert_eq!(read[0].column(index), written.rows[0].column(index), "{name}");
    }
    let said = "SELECT concat_ws(' ', n, ni, f8, ts, d, u, m, ants, extra) FROM all_types LIMIT 1";
    let said = client.query_one(said, &[]).await.unwrap().get::<_, String>(0);
    assert_eq!(
        said,
        "-99999999999999999999999999999999.999999 1000000000000 Infinity 0001-12-31 23:59:59.999999 BC 0001-12-31 BC \
         00112233-4455-6677-8899-aabbccddeeff cross {\"1970-01-01 00:00:00.000001\",NULL} 1"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn refused_rows_are_found_and_all_others_written() {
    let (url, client) = database().await;
    client
        .batch_execute(
            "CREATE TABLE checked (id int PRIMARY KEY, v json CHECK (v::text <> '13'), other text NOT NULL DEFAULT 'x');
             CREATE TABLE upserted (id int PRIMARY KEY, v text NOT NULL);
             CREATE TABLE small (id int2, v text)",
        )
        .await
        .unwrap();
    let checked = Arc::new(definition("checked", &url, ID_V, &[]));
    let upserted = Arc::new(definition("upserted", &url, ID_V, &["id"]));
    let small = Arc::new(definition("small", &url, ID_V, &[]));
    let mut sink = sink(&[&checked, &upserted, &small]);
    sink.open(&identity(1)).await.unwrap();
    // 1,000 rows: a JSON that is none, one that the CHECK refuses, a key twice, one out of range.
    let ids: Vec<Option<i64>> = (0..1000)
        .map(|i| {
            Some(if i == 500 {
                499
            } else if i == 900 {
                1 << 40
            } else {
                i
            })
        })
        .collect();
    let values: Vec<Option<&str>> = (0..1000)
        .map(|i| {
            Some(if i == 3 {
                "{"
            } else if i == 77 {
                "13"
            } else {
                "1"
            })
        })
        .collect();
    let first = insert(0, &checked, vec![ints(&ids), texts(&values)]);
    let nulls: Vec<Option<&str>> = (0..1000).map(|i| (i % 100 != 0).then_some("v")).collect();
    let second = insert(1, &upserted, vec![ints(&ids), texts(&nulls)]);
    let third = insert(2, &small, vec![ints(&ids), texts(&values)]);
    let report = sink.write(&request(1, vec![first, second, third])).await.unwrap();
    assert_eq!(report.inserts[&0], account(996, 0, 4));
    // 499 came twice; the second was NULL, hence refused, so the first stays. 900 is out of range and NULL: refused once.
    assert_eq!(report.inserts[&1], account(990, 0, 10));
    assert_eq!(report.inserts[&2], account(999, 0, 1));
    let refused: Vec<_> = report.refusals.iter().filter(|r| r.insert == 0).collect();
    assert_eq!(refused.iter().map(|r| r.row).collect::<Vec<_>>(), [3, 77, 500, 900]);
    let expected = ["22P02", "23514", "23505", "column \"id\": 1099511627776 is out of range"];
    for (refusal, expected) in refused.iter().zip(expected) {
        assert!(refusal.error.contains(expected), "{}", refusal.error);
    }
    assert_eq!(text(&client, "SELECT count(*) FROM checked").await, "996");
    assert_eq!(text(&client, "SELECT count(*) FROM upserted").await, "990");
    // Too many: nothing of the batch is there, and the sink goes on.
    let nulls = vec![None; REFUSED_MAX + 1];
    let ids: Vec<Option<i64>> = (0..=REFUSED_MAX as i64).map(Some).collect();
    let error = sink.write(&request(2, vec![insert(1, &upserted, vec![ints(&ids), texts(&nulls)])])).await.unwrap_err();
    assert!(error.message().contains("more than 1000 rows") && error.fault() == Fault::User, "{error}");
    assert!(!sink.holds(2).await.unwrap());
    let other = vec![insert(1, &upserted, vec![ints(&ids), texts(&nulls)])];
    let again = sink.write(&request(1, other)).await.unwrap_err();
    assert!(again.message().contains("replay differs"), "{again}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn collisions_are_settled_by_the_key_alone() {
    let (url, client) = database().await;
    client
        .batch_execute("CREATE TABLE events (id bigint, v text, name text UNIQUE, UNIQUE (id, v)); INSERT INTO events VALUES (1, 'a', 'first')")
        .await
        .unwrap();
    let columns = [ID_V, &[("name", DataType::Utf8View)]].concat();
    let table = definition("events", &url, &columns, &["id", "v"]);
    let nothing = Arc::new(with(table.clone(), "on_conflict", "nothing"));
    let values = || {
        let ids = ints(&[Some(1), Some(2), Some(2), Some(3), Some(3)]);
        let v = texts(&[Some("a"), Some("b"), Some("b"), None, None]);
        vec![ids, v, texts(&[Some("n1"), Some("n2"), Some("n3"), None, None])]
    };
    let mut kept = sink(&[&nothing]);
    kept.open(&identity(1)).await.unwrap();
    // (1, a) is there, (2, b) comes twice; a key with a NULL is no key. Then all through the temporary table at once.
    let report = kept.write(&request(1, vec![insert(0, &nothing, values())])).await.unwrap();
    assert_eq!(report.inserts[&0], account(3, 2, 0));
    assert_eq!(text(&client, "SELECT string_agg(name, ' ' ORDER BY id) FROM events").await, "first n2");
    // The name is another key: that is not ours to settle.
    let clash = vec![ints(&[Some(8), Some(9)]), texts(&[Some("x"), Some("y")]), texts(&[Some("n2"), Some("n9")])];
    let report = kept.write(&request(2, vec![insert(0, &nothing, clash)])).await.unwrap();
    assert_eq!(report.inserts[&0], account(1, 0, 1));
    assert!(report.refusals[0].error.contains("events_name_key"), "{}", report.refusals[0].error);
    // The last of two wins, and NULLs are still no key.
    let update = Arc::new(table);
    let mut updated = sink(&[&update]);
    updated.open(&identity(2)).await.unwrap();
    let report = updated.write(&request(3, vec![insert(0, &update, values())])).await.unwrap();
    assert_eq!(report.inserts[&0], account(4, 1, 0));
    assert_eq!(
        text(&client, "SELECT string_agg(name, ' ' ORDER BY id) FROM events WHERE v IS NOT NULL").await,
        "n1 n3 n9"
    );
    // Two INSERTs of one batch into one table: the second sees the first.
    let one = |number, name| insert(number, &update, vec![ints(&[Some(1)]), texts(&[Some("a")]), texts(&[Some(name)])]);
    updated.write(&request(4, vec![one(0, "x1"), one(1, "x2")])).await.unwrap();
    assert_eq!(text(&client, "SELECT name FROM events WHERE id = 1").await, "x2");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_process_that_slept_in_a_transaction_is_ended() {
    let (url, client) = database().await;
    client.batch_execute(CONTRACT_TABLES).await.unwrap();
    let tables = contract_tables(&url);
    let mut old = sink(&[&tables[0]]);
    old.open(&identity(1)).await.unwrap();
    let row = |n| request(n, vec![insert(0, &tables[0], vec![ints(&[Some(n as i64)]), texts(&[None])])]);
    // The old process is stopped while its transaction waits for a lock, holding the epoch row.
    client.batch_execute("BEGIN; LOCK TABLE plain IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waiting = row(1);
    let sleeper = tokio::spawn(async move {
        let outcome = old.write(&waiting).await;
        (old, outcome)
    });
    let watcher = connect(&Address::parse(&url).unwrap(), MINUTE, MINUTE).await.unwrap();
    while text(&watcher, "SELECT count(*) FROM pg_locks WHERE NOT granted").await == "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut new = sink(&[&tables[1]]);
    let opened = tokio::time::timeout(Duration::from_secs(20), new.open(&identity(2))).await;
    assert_eq!(opened.expect("the takeover must not wait for the sleeper").unwrap(), None);
    client.batch_execute("COMMIT").await.unwrap();
    let (mut old, outcome) = sleeper.await.unwrap();
    assert!(outcome.unwrap_err().is_retryable());
    let error = old.write(&row(1)).await.unwrap_err();
    assert!(error.message().contains("fenced by epoch 2"), "{error}");
    assert_eq!(text(&client, "SELECT count(*) FROM plain").await, "0");
    // A start takes the row of the one before: there are as many as parts, however many starts.
    assert_eq!(text(&client, "SELECT string_agg(epoch::text, ' ') FROM poundlock.writers").await, "2");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_lost_connection_is_made_anew_and_nothing_is_written_twice() {
    let (url, client) = database().await;
    client.batch_execute(CONTRACT_TABLES).await.unwrap();
    let tables = contract_tables(&url);
    let mut sink = sink(&[&tables[0]]);
    sink.open(&identity(1)).await.unwrap();
    let row = |n| request(n, vec![insert(0, &tables[0], vec![ints(&[Some(n as i64)]), texts(&[None])])]);
    for batch in 1..=3 {
        sink.write(&row(batch)).await.unwrap();
        let end = "SELECT count(pg_terminate_backend(pid)) FROM poundlock.writers";
        assert_eq!(text(&client, end).await, "1");
        // What the sink would do whose COMMIT was answered by silence.
        let again = match sink.write(&row(batch)).await {
            Err(error) if error.is_retryable() => sink.write(&row(batch)).await,
            other => other,
        };
        assert!(again.unwrap().already);
    }
    assert_eq!(text(&client, "SELECT count(*) FROM plain").await, "3");
    // A connection refused is trouble that may pass.
    let away = Arc::new(definition("plain", "postgres://me:s3cret@127.0.0.1:1/x", ID_V, &[]));
    let error = sinks(&[away]).unwrap().pop().unwrap().open(&identity(1)).await.unwrap_err();
    assert!(
        error.is_retryable() && error.fault() == Fault::External && !error.to_string().contains("s3cret"),
        "{error}"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_role_that_may_create_nothing_can_write() {
    let (url, client) = database().await;
    let role = format!("poundlock_role_{}", uuid::Uuid::new_v4().simple());
    let grants = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'pw'; {CONTRACT_TABLES} REVOKE CREATE ON SCHEMA public FROM PUBLIC;
         GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"
    );
    client.batch_execute(&grants).await.unwrap();
    let (_, host) = url.split_once('@').unwrap();
    let theirs = format!("postgres://{role}:pw@{host}");
    let tables = contract_tables(&theirs);
    let error = sinks(&tables).unwrap().pop().unwrap().open(&identity(1)).await.unwrap_err();
    assert!(error.fault() == Fault::User && error.to_string().contains("poundlock migrate"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    assert!(migrate(&url, folder.path()).await.unwrap().is_empty());
    let grants = format!(
        "GRANT USAGE ON SCHEMA poundlock TO {role}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA poundlock TO {role}"
    );
    client.batch_execute(&grants).await.unwrap();
    contract(&theirs).await;
    let wrong = definition("plain", &theirs.replace(":pw@", ":wrong@"), ID_V, &[]);
    let error = open_error(wrong).await;
    assert!(error.fault() == Fault::User && error.to_string().contains("check user and password"), "{error}");
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_table_that_does_not_fit_is_said_at_start() {
    let (url, client) = database().await;
    client
        .batch_execute("CREATE TABLE t (id text, v numeric(10, 2), n bigint, g int GENERATED ALWAYS AS (1) STORED, ts timestamptz)")
        .await
        .unwrap();
    let missing = open_error(definition("nowhere", &url, ID_V, &[])).await;
    assert!(missing.to_string().contains("table nowhere is not in the database"), "{missing}");
    let columns = [
        ("id", DataType::Int64),
        ("v", DataType::Decimal128(10, 4)),
        ("n", DataType::Float64),
        ("g", DataType::Int32),
        ("ts", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ("gone", DataType::Int32),
    ];
    let error = open_error(definition("t", &url, &columns, &[])).await.to_string();
    for part in [
        "column \"id\" is declared BIGINT and is text there",
        "\"v\" is declared DECIMAL(10, 4) and is numeric(10,2) there",
        "\"n\" is declared DOUBLE and is bigint there",
        "\"g\" is generated",
        "\"ts\" is declared TIMESTAMP and is timestamp with time zone there",
        "\"gone\" is declared INT and is not there",
        "where: queries/00_tables.sql:1:1",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    // What the hint says is what helps.
    let columns = [("id", DataType::Int64), ("gone", DataType::Int32)];
    let error = open_error(definition("t", &url, &columns, &[])).await.to_string();
    let (_, statements) = error.split_once("`poundlock migrate`): ").unwrap();
    assert_eq!(
        statements,
        "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"id\" TYPE bigint USING \"id\"::bigint; \
         ALTER TABLE \"public\".\"t\" ADD COLUMN \"gone\" integer;"
    );
    client.batch_execute(statements).await.unwrap();
    sink(&[&Arc::new(definition("t", &url, &columns, &[]))]).open(&identity(1)).await.unwrap();
    let keyed = open_error(definition("t", &url, &[("n", DataType::Int64)], &["n"])).await.to_string();
    assert!(keyed.contains("no unique index on the declared PRIMARY KEY"), "{keyed}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn migrations_are_applied_once_by_whoever_is_first() {
    let (url, client) = database().await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let (one, two) = tokio::join!(migrate(&url, &dir), migrate(&url, &dir));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!([one, two].concat(), ["V1__tables", "V2__monitoring"]);
    assert!(migrate(&url, &dir).await.unwrap().is_empty());
    let uncommented = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname <> 'refinery_schema_history'
                       AND relnamespace IN ('public'::regnamespace, 'poundlock'::regnamespace) AND obj_description(oid) IS NULL";
    assert_eq!(text(&client, uncommented).await, "0");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("V2__monitoring.sql"), folder.path().join("V2__monitoring.sql")).unwrap();
    std::fs::write(folder.path().join("V1__tables.sql"), "SELECT 1").unwrap();
    let changed = migrate(&url, folder.path()).await.unwrap_err().to_string();
    assert!(changed.contains("file V1__tables.sql was changed after it was applied"), "{changed}");
    assert!(changed.contains("a migration of its own: V3__tables.sql"), "{changed}");
    std::fs::copy(dir.join("V1__tables.sql"), folder.path().join("V1__tables.sql")).unwrap();
    std::fs::write(folder.path().join("V3__wrong.sql"), "CREATE TABLE x (a int); SELECT nonsense").unwrap();
    let wrong = migrate(&url, folder.path()).await.unwrap_err().to_string();
    assert!(wrong.contains("nonsense") && wrong.contains("V3__wrong"), "{wrong}");
    assert_eq!(text(&client, "SELECT to_regclass('x') IS NULL").await, "true");
    assert!(migrate(&url, Path::new("/nowhere")).await.unwrap_err().to_string().contains("/nowhere"));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn migrations_only_go_forward() {
    let (url, client) = database().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, sql: &str| std::fs::write(folder.path().join(name), sql).unwrap();
    let refused = async || migrate(&url, folder.path()).await.unwrap_err().to_string();
    write("V1__one.sql", "CREATE TABLE one (id bigint)");
    write("V3__three.sql", "CREATE TABLE three (id bigint)");
    assert_eq!(migrate(&url, folder.path()).await.unwrap(), ["V1__one", "V3__three"]);

    write("V2__two.sql", "CREATE TABLE two (id bigint)");
    let below = refused().await;
    assert!(below.contains("file V2__two.sql is new, and a migration with a higher number was applied"), "{below}");
    assert!(below.contains("rename it to V4__two.sql"), "{below}");
    std::fs::rename(folder.path().join("V2__two.sql"), folder.path().join("V4__two.sql")).unwrap();
    assert_eq!(migrate(&url, folder.path()).await.unwrap(), ["V4__two"]);

    std::fs::remove_file(folder.path().join("V3__three.sql")).unwrap();
    let gone = refused().await;
    assert!(gone.contains("V3__three was applied, and its file is gone"), "{gone}");
    write("V3__others.sql", "CREATE TABLE others (id bigint)");
    let other = refused().await;
    assert!(other.contains("file V3__others.sql has the number of V3__three, which was applied"), "{other}");
    assert!(other.contains("put V3__three.sql back, and rename the other: V5__others.sql"), "{other}");
    std::fs::remove_file(folder.path().join("V3__others.sql")).unwrap();
    write("V3__three.sql", "CREATE TABLE three (id bigint)");
    write("V5__a.sql", "SELECT 1");
    write("V5__b.sql", "SELECT 2");
    let twice = refused().await;
    assert!(twice.contains("files V5__a.sql and V5__b.sql have the same number"), "{twice}");
    assert_eq!(
        text(&client, "SELECT count(*) FROM refinery_schema_history").await,
        "3",
        "nothing was applied on the way"
    );
}

/// The server's certificate must be for 127.0.0.1, in the file DATABASE_ROOT_CERT.
#[tokio::test]
#[ignore = "needs PostgreSQL with TLS: DATABASE_URL, DATABASE_ROOT_CERT"]
async fn sslmode_says_what_is_checked() {
    let url = std::env::var("DATABASE_URL").unwrap();
    let root = std::env::var("DATABASE_ROOT_CERT").unwrap();
    let go = async |parameters: &str| {
        let client = connect(&Address::parse(&format!("{url}?{parameters}"))?, MINUTE, MINUTE).await?;
        Ok::<_, Error>(text(&client, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await)
    };
    assert_eq!(go("sslmode=disable").await.unwrap(), "false");
    assert_eq!(go("").await.unwrap(), "false", "over loopback, with a server that does not insist");
    assert_eq!(go("sslmode=require").await.unwrap(), "true");
    assert_eq!(go(&format!("sslmode=verify-full&sslrootcert={root}")).await.unwrap(), "true");
    // The system does not know who signed it.
    let unknown = go("sslmode=verify-full").await.unwrap_err();
    assert!(unknown.fault() == Fault::User && unknown.to_string().contains("sslrootcert"), "{unknown}");
    // Its certificate is for another host; only the host name is checked against it, wherever the server is.
    let named = |host: &str| url.replace("127.0.0.1", host);
    for (host, is_ours) in [("localhost", true), ("db.example", false)] {
        let address = format!("{}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={root}", named(host));
        let connected = connect(&Address::parse(&address).unwrap(), MINUTE, MINUTE).await;
        match connected {
            Ok(_) => assert!(is_ours, "{host}"),
            Err(error) => {
                let shown = error.to_string();
                assert!(!is_ours && error.fault() == Fault::User && !error.is_retryable(), "{host}: {shown}");
                assert!(shown.contains("certificate") && shown.contains("db.example"), "{shown}");
            }
        }
    }
    let absent = go("sslmode=require&sslrootcert=/nowhere.crt").await.unwrap_err();
    assert!(absent.to_string().contains("/nowhere.crt"), "{absent}");
}
