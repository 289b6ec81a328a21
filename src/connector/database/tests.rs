//! What both databases promise, held against both. PostgreSQL's own matters are in `postgres/tests.rs`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use datafusion::prelude::SessionContext;
use uuid::Uuid;

use super::*;
use crate::connector::{Identity, InsertReport, InsertRows, Wave, WriteRequest};

/// `name type, …` with the types of these tests; `key` is the PRIMARY KEY.
pub(super) fn definition(name: &str, location: &str, columns: &[(&str, DataType)], key: &[&str]) -> TableDefinition {
    let fields: Vec<Field> = columns.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect();
    TableDefinition {
        name: format!("db.{name}"),
        schema: Arc::new(Schema::new(fields)),
        primary_key: key.iter().map(ToString::to_string).collect(),
        unbounded: false,
        stored_as: "DATABASE".into(),
        location: location.into(),
        partition_columns: vec![],
        options: BTreeMap::new(),
        place: "queries/00_tables.sql:1:1".into(),
    }
}

pub(super) fn with(mut definition: TableDefinition, option: &str, value: &str) -> TableDefinition {
    definition.options.insert(option.into(), value.into());
    definition
}

pub(super) fn identity(epoch: u64) -> Identity {
    Identity { name: "test".into(), uuid: Uuid::from_u128(7), epoch, takes_over: false }
}

/// A hash that follows from the rows, as the pipeline's does.
pub(super) fn insert(number: usize, table: &Arc<TableDefinition>, columns: Vec<ArrayRef>) -> InsertRows {
    let batch = RecordBatch::try_new(table.schema.clone(), columns).unwrap();
    let hash = format!("{batch:?}");
    InsertRows {
        insert: number,
        table: table.clone(),
        rows: vec![batch],
        hash: blake3::hash(hash.as_bytes()).to_string(),
    }
}

pub(super) fn request(batch: u64, inserts: Vec<InsertRows>) -> WriteRequest {
    let ranges = [(0, crate::connector::OffsetRange { from: 10, to: 20 })].into();
    WriteRequest {
        batch,
        wave: Wave::Rows,
        planned_at: 1_700_000_000_000_000,
        offsets: [("kafka.events".into(), ranges)].into(),
        inserts,
    }
}

pub(super) fn ints(values: &[Option<i64>]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

pub(super) fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringViewArray::from(values.to_vec()))
}

pub(super) fn account(written: u64, conflict: u64, refused: u64) -> InsertReport {
    InsertReport { written, conflict, refused }
}

/// The answer of ad-hoc SQL over the table, as text.
pub(super) async fn select(table: &Arc<TableDefinition>, sql: &str) -> String {
    let context = SessionContext::new();
    context.register_table("t", provider(table).unwrap()).unwrap();
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string()
}

/// `(id, text)` of every row by id.
pub(super) async fn rows(table: &Arc<TableDefinition>) -> Vec<(i64, Option<String>)> {
    let context = SessionContext::new();
    context.register_table("t", provider(table).unwrap()).unwrap();
    let batches = context.sql("SELECT id, v FROM t ORDER BY id, v").await.unwrap().collect().await.unwrap();
    let row = |b: &RecordBatch, i: usize| {
        let text = b.column(1).as_string_view();
        (b.column(0).as_primitive::<Int64Type>().value(i), text.is_valid(i).then(|| text.value(i).to_string()))
    };
    batches.iter().flat_map(|b| (0..b.num_rows()).map(move |i| row(b, i))).collect()
}

pub(super) const ID_V: &[(&str, DataType)] = &[("id", DataType::Int64), ("v", DataType::Utf8View)];

/// The three tables of [`contract`].
pub(super) fn contract_tables(location: &str) -> [Arc<TableDefinition>; 3] {
    let plain = definition("plain", location, ID_V, &[]);
    let update = definition("updated", location, ID_V, &["id"]);
    let nothing = with(definition("kept", location, ID_V, &["id"]), "on_conflict", "nothing");
    [plain, update, nothing].map(Arc::new)
}

/// Write, write again, come back, be fenced: for every database.
pub(super) async fn contract(location: &str) {
    let tables = contract_tables(location);
    let [plain, update, nothing] = &tables;
    let mut first = sinks(&tables).unwrap().pop().unwrap();
    assert_eq!(first.open(&identity(1)).await.unwrap(), None);
    let values = || {
        let ids = ints(&[Some(1), Some(2), Some(1)]);
        vec![ids, texts(&[Some("a"), None, Some("c")])]
    };
    let batch =
        |n| request(n, vec![insert(0, plain, values()), insert(1, update, values()), insert(2, nothing, values())]);
    let report = first.write(&batch(1)).await.unwrap();
    assert_eq!(report.inserts, [(0, account(3, 0, 0)), (1, account(2, 1, 0)), (2, account(2, 1, 0))].into());
    assert!(!report.already && report.refusals.is_empty());
    // The same again: skipped, with the same report.
    let again = first.write(&batch(1)).await.unwrap();
    assert!(again.already);
    assert_eq!(again.inserts, report.inserts);
    assert_eq!(rows(plain).await.len(), 3);
    assert_eq!(rows(update).await, [(1, Some("c".into())), (2, None)]);
    assert_eq!(rows(nothing).await, [(1, Some("a".into())), (2, None)]);
    // Other rows under the same number are a defect, and nothing is written.
    let other = request(1, vec![insert(0, plain, vec![ints(&[Some(9)]), texts(&[None])])]);
    let error = first.write(&other).await.unwrap_err();
    assert!(error.message().contains("replay differs") && error.fault() == crate::Fault::Internal, "{error}");
    // The next batch meets keys of the first.
    let values = || vec![ints(&[Some(2), Some(3)]), texts(&[Some("b"), Some("d")])];
    let report =
        first.write(&request(2, vec![insert(1, update, values()), insert(2, nothing, values())])).await.unwrap();
    assert_eq!(report.inserts, [(1, account(2, 0, 0)), (2, account(1, 1, 0))].into());
    assert_eq!(rows(update).await, [(1, Some("c".into())), (2, Some("b".into())), (3, Some("d".into()))]);
    assert_eq!(rows(nothing).await, [(1, Some("a".into())), (2, None), (3, Some("d".into()))]);
    assert!(first.holds(2).await.unwrap() && !first.holds(3).await.unwrap());
    // A batch without rows leaves its record too.
    let none = || vec![ints(&[]), texts(&[])];
    let report = first.write(&request(3, vec![insert(0, plain, none()), insert(1, update, none())])).await.unwrap();
    assert_eq!(report.inserts, [(0, account(0, 0, 0)), (1, account(0, 0, 0))].into());
    // A second start takes over; the first one is out, for good.
    let mut second = sinks(&tables).unwrap().pop().unwrap();
    assert_eq!(second.open(&identity(2)).await.unwrap(), Some(3));
    for _ in 0..2 {
        let error = refused_until_fenced(first.as_mut(), &batch(4)).await;
        assert!(error.message().contains("fenced by epoch 2") && !error.is_retryable(), "{error}");
    }
    let error = sinks(&tables).unwrap().pop().unwrap().open(&identity(1)).await.unwrap_err();
    assert!(error.message().contains("fenced by epoch 2"), "{error}");
    assert!(!second.holds(4).await.unwrap());
    assert!(second.write(&batch(2)).await.is_err(), "batch 2 had other rows");
    assert!(second.write(&batch(1)).await.unwrap().already);
    // Another checkpoint of the same name has to be told so, and then this one is out.
    let stranger = Identity { uuid: Uuid::from_u128(8), ..identity(1) };
    let mut third = sinks(&tables).unwrap().pop().unwrap();
    let error = third.open(&stranger).await.unwrap_err();
    assert!(error.message().contains("has written to") && error.to_string().contains("--take-over"), "{error}");
    assert_eq!(error.fault(), crate::Fault::User);
    assert!(second.write(&batch(1)).await.unwrap().already, "a start that was refused fences nobody");
    assert_eq!(third.open(&Identity { takes_over: true, ..stranger.clone() }).await.unwrap(), None);
    third.write(&batch(0)).await.unwrap();
    let error = refused_until_fenced(second.as_mut(), &batch(4)).await;
    assert!(error.message().contains("fenced by epoch 3"), "{error}");
    assert!(sinks(&tables).unwrap().pop().unwrap().open(&identity(3)).await.is_err());
    assert_eq!(third.open(&Identity { epoch: 2, ..stranger.clone() }).await.unwrap(), Some(0));
    // Back to the first, at once: it has the name again, and the other one is out and has to be told.
    let mut back = sinks(&tables).unwrap().pop().unwrap();
    assert_eq!(back.open(&Identity { takes_over: true, ..identity(3) }).await.unwrap(), Some(3));
    let error = refused_until_fenced(third.as_mut(), &batch(1)).await;
    assert!(error.message().contains("fenced"), "{error}");
    assert!(sinks(&tables).unwrap().pop().unwrap().open(&Identity { epoch: 3, ..stranger.clone() }).await.is_err());
    assert!(back.write(&batch(1)).await.unwrap().already);
    // One that has written nothing is no loss.
    let mut empty = sinks(&tables).unwrap().pop().unwrap();
    let unwritten = Identity { name: "unwritten".into(), uuid: Uuid::from_u128(9), ..identity(1) };
    empty.open(&unwritten).await.unwrap();
    empty.open(&Identity { uuid: Uuid::from_u128(10), ..unwritten }).await.unwrap();
}

/// The error of a write, once trouble that passes (a connection that the takeover ended) has passed.
async fn refused_until_fenced(sink: &mut dyn Sink, request: &WriteRequest) -> Error {
    for _ in 0..5 {
        let error = sink.write(request).await.unwrap_err();
        if !error.is_retryable() {
            return error;
        }
    }
    panic!("still retryable");
}

fn sqlite() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let location = format!("sqlite:{}/sub/test.db", folder.path().display());
    (folder, location)
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let (_folder, location) = sqlite();
    contract(&location).await;
}

#[tokio::test]
async fn a_batch_with_dead_letters_is_whole_after_its_second_wave() {
    let (_folder, location) = sqlite();
    let rows_table = Arc::new(definition("plain", &location, ID_V, &[]));
    let dead = Arc::new(with(definition("dead", &location, ID_V, &[]), "role", "dead_letters"));
    let mut sink = sinks(&[rows_table.clone(), dead.clone()]).unwrap().pop().unwrap();
    sink.open(&identity(1)).await.unwrap();
    let values = || vec![ints(&[Some(1)]), texts(&[None])];
    sink.write(&request(1, vec![insert(0, &rows_table, values())])).await.unwrap();
    assert_eq!(sink.open(&identity(2)).await.unwrap(), None);
    assert!(sink.holds(1).await.unwrap());
    let second = WriteRequest { wave: Wave::DeadLetters, ..request(1, vec![insert(1, &dead, values())]) };
    sink.write(&second).await.unwrap();
    assert_eq!(sink.open(&identity(3)).await.unwrap(), Some(1));
    assert!(sink.write(&second).await.unwrap().already);
}

#[tokio::test]
async fn sqlite_says_how_many_rows_there_are_if_they_are_few() {
    let (_folder, location) = sqlite();
    let table = Arc::new(definition("plain", &location, ID_V, &[]));
    let mut sink = sinks(std::slice::from_ref(&table)).unwrap().pop().unwrap();
    sink.open(&identity(1)).await.unwrap();
    let asked = || {
        let table = DatabaseTable::new(table.clone()).unwrap();
        let Place::Sqlite(path) = &table.place else { panic!("not SQLite") };
        sqlite::estimated_rows(&table, path).unwrap()
    };
    assert_eq!(asked(), Some(0));
    let many: Vec<Option<i64>> = (0..100_000).map(Some).collect();
    let write = |batch, ids: &[Option<i64>]| {
        request(batch, vec![insert(0, &table, vec![ints(ids), texts(&vec![None; ids.len()])])])
    };
    // Large values of a key are no number of rows.
    sink.write(&write(1, &[Some(i64::MAX), Some(1)])).await.unwrap();
    assert_eq!(asked(), Some(2));
    sink.write(&write(2, &many)).await.unwrap();
    assert_eq!(asked(), None);
}

#[tokio::test]
async fn sqlite_refuses_a_row_and_keeps_the_others() {
    let (_folder, location) = sqlite();
    let table = Arc::new(with(definition("kept", &location, ID_V, &["id"]), "on_conflict", "nothing"));
    let doubles = Arc::new(definition("doubles", &location, &[("x", DataType::Float64)], &[]));
    let mut sink = sinks(&[table.clone(), doubles.clone()]).unwrap().pop().unwrap();
    sink.open(&identity(1)).await.unwrap();
    let nan: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![1.0, f64::NAN]));
    let values = vec![ints(&[Some(1), None, Some(3)]), texts(&[Some("a"), Some("b"), Some("c")])];
    let report =
        sink.write(&request(1, vec![insert(0, &table, values), insert(1, &doubles, vec![nan])])).await.unwrap();
    assert_eq!(report.inserts, [(0, account(2, 0, 1)), (1, account(1, 0, 1))].into());
    assert_eq!(report.refusals.iter().map(|r| (r.insert, r.row)).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    assert!(report.refusals[0].error.contains("NOT NULL"), "{}", report.refusals[0].error);
    let nulls = vec![None; REFUSED_MAX + 1];
    let many = insert(0, &table, vec![ints(&nulls), texts(&vec![None; REFUSED_MAX + 1])]);
    let error = sink.write(&request(2, vec![many])).await.unwrap_err();
    assert!(error.message().contains("refuses more than 1000 rows"), "{error}");
    assert!(!sink.holds(2).await.unwrap());
    // It goes on after an error.
    let values = vec![ints(&[Some(7)]), texts(&[None])];
    assert_eq!(sink.write(&request(2, vec![insert(0, &table, values)])).await.unwrap().inserts[&0], account(1, 0, 0));
}

#[tokio::test]
async fn sqlite_values_come_back_as_they_went() {
    let (_folder, location) = sqlite();
    let time = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
    let columns = [
        ("b", DataType::Boolean),
        ("i", DataType::Int32),
        ("f", DataType::Float32),
        ("d", DataType::Decimal128(38, 4)),
        ("t", time(None)),
        ("z", time(Some("UTC"))),
        ("day", DataType::Date32),
        ("bytes", DataType::Binary),
        ("list", DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true)))),
    ];
    let table = Arc::new(definition("all_types", &location, &columns, &[]));
    let list = arrow::array::ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
    let micros = vec![Some(-1), None];
    let values: Vec<ArrayRef> = vec![
        Arc::new(arrow::array::BooleanArray::from(vec![Some(true), None])),
        Arc::new(arrow::array::Int32Array::from(vec![Some(i32::MIN), None])),
        Arc::new(arrow::array::Float32Array::from(vec![Some(1.5), None])),
        Arc::new(
            arrow::array::Decimal128Array::from(vec![Some(-i128::from(u64::MAX)), None])
                .with_precision_and_scale(38, 4)
                .unwrap(),
        ),
        Arc::new(TimestampMicrosecondArray::from(micros.clone())),
        Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")),
        Arc::new(arrow::array::Date32Array::from(vec![Some(-1), None])),
        Arc::new(arrow::array::BinaryArray::from_opt_vec(vec![Some(&b"\0\xff"[..]), None])),
        Arc::new(list),
    ];
    let mut sink = sinks(std::slice::from_ref(&table)).unwrap().pop().unwrap();
    sink.open(&identity(1)).await.unwrap();
    let written = insert(0, &table, values);
    assert_eq!(sink.write(&request(1, vec![written.clone()])).await.unwrap().inserts[&0], account(2, 0, 0));
    let context = SessionContext::new();
    context.register_table("t", provider(&table).unwrap()).unwrap();
    let read = context.sql("SELECT * FROM t").await.unwrap().collect().await.unwrap();
    assert_eq!(read, written.rows);
    assert!(select(&table, "SELECT count(*) AS n FROM t WHERE i < 5").await.contains("| 1 |"));
    let stored = rusqlite::Connection::open(location.strip_prefix("sqlite:").unwrap()).unwrap();
    let text: String = stored
        .query_row("SELECT d || ' ' || t || ' ' || z || ' ' || day || list FROM all_types LIMIT 1", [], |r| r.get(0))
        .unwrap();
    let time = "1969-12-31 23:59:59.999999";
    assert_eq!(text, format!("-1844674407370955.1615 {time} {time}+00:00 1969-12-31[1,null]"));
}

#[tokio::test]
async fn sqlite_says_what_does_not_fit() {
    let (folder, location) = sqlite();
    let missing = Arc::new(definition("plain", &location, ID_V, &[]));
    let context = SessionContext::new();
    context.register_table("t", provider(&missing).unwrap()).unwrap();
    let error = context.sql("SELECT * FROM t").await.unwrap().collect().await.unwrap_err();
    assert!(error.to_string().contains("could not open the database"), "{error}");
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let file = rusqlite::Connection::open(location.strip_prefix("sqlite:").unwrap()).unwrap();
    file.execute_batch("CREATE TABLE plain (id BIGINT); CREATE TABLE updated (id BIGINT, v TEXT)").unwrap();
    let tables = contract_tables(&location);
    let error = sinks(&tables).unwrap().pop().unwrap().open(&identity(1)).await.unwrap_err().to_string();
    assert!(
        error.contains("column \"v\" is declared VARCHAR and is not there")
            && error.contains("does not match any PRIMARY KEY"),
        "{error}"
    );
}

#[test]
fn locations_and_options_are_checked_before_anything_is_opened() {
    let error = |d: TableDefinition| DatabaseTable::new(Arc::new(d)).unwrap_err().to_string();
    let plain = |location: &str| definition("plain", location, ID_V, &[]);
    assert!(error(plain("mysql://h/d")).contains("is not the address of a database"));
    assert!(error(plain("")).contains("is not the address of a database"));
    assert!(error(plain("sqlite:")).contains("is not the address of a database"));
    let wrong = error(plain("postgres://me:s3cret@h/d?sslmode=maybe"));
    assert!(wrong.contains("sslmode \"maybe\"") && wrong.contains("me:***@h") && !wrong.contains("s3cret"), "{wrong}");
    assert!(error(plain("postgres://me:s3cret@h/d?nonsense=1")).contains("unknown option"));
    assert!(error(with(plain("sqlite:x"), "on_conflict", "update")).contains("has no key"));
    assert!(error(with(plain("sqlite:x"), "on_conflict", "ignore")).contains("not one of nothing, update"));
    assert!(error(with(plain("sqlite:x"), "batch_size", "1")).contains("is not an option"));
    let table = DatabaseTable::new(Arc::new(with(plain("sqlite:x"), "table", "s.T"))).unwrap();
    assert_eq!(table.target, (Some("s".into()), "T".into()));
    assert_eq!(table.on_conflict, OnConflict::Refuse);
    let keyed = DatabaseTable::new(Arc::new(definition("k", "sqlite:x", ID_V, &["id"]))).unwrap();
    assert_eq!(keyed.on_conflict, OnConflict::Update);
}

#[test]
fn one_sink_for_each_database() {
    let table = |name: &str, location: &str| Arc::new(definition(name, location, ID_V, &[]));
    let a = "postgres://me:pw@one/db";
    let sinks_of = |tables: &[Arc<TableDefinition>]| {
        sinks(tables).map(|s| s.iter().map(|s| s.name().to_string()).collect::<Vec<_>>())
    };
    let names = sinks_of(&[table("x", a), table("y", a), table("z", "postgres://me:pw@two:6000/db")]).unwrap();
    assert_eq!(names, ["postgres-one-5432-db", "postgres-two-6000-db"]);
    // Two records of one batch in one database would hide each other.
    let error = sinks_of(&[table("x", a), table("y", "postgresql://you@one:5432/db")]).unwrap_err().to_string();
    assert!(error.contains("db.x and db.y name one database by two locations"), "{error}");
}
