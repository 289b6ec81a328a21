use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array, Int64Array,
};
use arrow::array::{RecordBatch, StringViewArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::{SessionConfig, SessionContext};
use serde_json::Value;
use tempfile::TempDir;

use super::log::Log;
use super::*;
use crate::connector::{Identity, InsertRows, Sink, Wave, WriteReport, WriteRequest};

const PIPELINE: Uuid = Uuid::from_u128(0xabc);

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("day", DataType::Date32, true),
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8View, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("at_utc", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("amount", DataType::Float64, true),
        Field::new("price", DataType::Decimal128(10, 2), true),
    ]))
}

fn definition(location: &Path, options: &[(&str, &str)]) -> TableDefinition {
    // Nothing happens by itself, unless a test wants it.
    let options = [&[("maintenance", "off")], options].concat();
    TableDefinition {
        name: "lake.events".into(),
        schema: schema(),
        primary_key: vec![],
        unbounded: false,
        stored_as: "DELTA".into(),
        location: location.to_str().unwrap().into(),
        partition_columns: vec!["day".into()],
        options: options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        place: "00_tables.sql:3:1".into(),
    }
}

/// Of ids, all of one day; what else there is follows from the id.
fn rows(day: Option<i32>, ids: std::ops::Range<i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    let times: Vec<i64> = ids.iter().map(|id| id * 1_000_000 + 7).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Date32Array::from(vec![day; ids.len()])),
        Arc::new(Int64Array::from(ids.clone())),
        Arc::new(StringViewArray::from_iter_values(ids.iter().map(|id| format!("the name of number {id}")))),
        Arc::new(TimestampMicrosecondArray::from(times.clone())),
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
        Arc::new(Float64Array::from_iter(ids.iter().map(|id| (id % 3 > 0).then_some(f64::NAN)))),
        Arc::new(
            Decimal128Array::from(ids.iter().map(|id| i128::from(id * 5)).collect::<Vec<_>>())
                .with_precision_and_scale(10, 2)
                .unwrap(),
        ),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn identity(epoch: u64) -> Identity {
    Identity { name: "p".into(), uuid: PIPELINE, epoch, takes_over: false }
}

async fn opened(definition: &Arc<TableDefinition>, epoch: u64) -> DeltaSink {
    let mut sink = DeltaSink::for_tables(std::slice::from_ref(definition)).unwrap().unwrap();
    sink.open(&identity(epoch)).await.unwrap();
    sink
}

async fn open(definition: TableDefinition) -> Result<Option<u64>> {
    let mut sink = DeltaSink::for_tables(&[Arc::new(definition)])?.unwrap();
    sink.open(&identity(100)).await
}

async fn write(
    sink: &mut DeltaSink,
    table: &Arc<TableDefinition>,
    batch: u64,
    rows: Vec<RecordBatch>,
) -> Result<WriteReport> {
    let insert = InsertRows { insert: 0, table: Arc::clone(table), rows, hash: String::new() };
    let (wave, offsets) = (Wave::Rows, BTreeMap::new());
    sink.write(&WriteRequest { batch, wave, planned_at: 0, offsets, inserts: vec![insert] }).await
}

async fn query(definition: &TableDefinition, sql: &str) -> Result<String> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    let table = provider(&Arc::new(definition.clone()), &context.state()).await?;
    context.register_table("events", table)?;
    Ok(pretty_format_batches(&context.sql(sql).await?.collect().await?)?.to_string())
}

async fn number(definition: &TableDefinition, sql: &str) -> i64 {
    let context = SessionContext::new();
    let table = provider(&Arc::new(definition.clone()), &context.state()).await.unwrap();
    context.register_table("events", table).unwrap();
    let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
    rows[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// Actions of the log, in order.
fn actions(table: &Path) -> Vec<Value> {
    let mut actions = vec![];
    for version in 0.. {
        let Ok(text) = std::fs::read_to_string(table.join(format!("_delta_log/{version:020}.json"))) else { break };
        actions.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    actions
}

fn files(table: &Path) -> usize {
    walkdir::WalkDir::new(table)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| {
            path.extension().is_some_and(|end| end == "parquet") && !path.to_str().unwrap().contains("_delta_log")
        })
        .count()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn rows_come_back_and_files_are_left_out_by_the_log() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[]));
    let mut sink = opened(&definition, 1).await;
    for batch in 0..5 {
        let ids = batch * 100..batch * 100 + 100;
        let report = write(&mut sink, &definition, batch as u64, vec![rows(Some(batch as i32), ids)]).await.unwrap();
        assert_eq!(report.inserts[&0].written, 100);
        assert!(!report.already);
    }
    write(&mut sink, &definition, 5, vec![rows(None, 500..600)]).await.unwrap();
    let all = "SELECT count(*), count(DISTINCT id), min(id), max(id), count(day), min(at), max(at_utc) FROM events";
    let all = query(&definition, all).await.unwrap();
    assert!(all.contains("| 600      | 600                       | 0              | 599            | 500  "), "{all}");
    assert!(all.contains("1970-01-01T00:00:00.000007") && all.contains("1970-01-01T00:09:59.000007Z"), "{all}");
    // By partition; by bounds of the log, before a file is opened; a value that is no bound of any file.
    for (condition, files, count) in [
        ("day = DATE '1970-01-03'", 1, 100),
        ("day IS NULL", 1, 100),
        ("id BETWEEN 150 AND 160", 1, 11),
        ("at > TIMESTAMP '1970-01-01T00:09:00'", 1, 60),
        ("price = 2.5", 1, 1),
        ("name = 'the name of number 77'", 1, 1),
        ("id > 1000", 0, 0),
        ("amount > 5", 6, 400), // NaN is above all numbers, and no bound tells of it
    ] {
        let count_of = format!("SELECT count(*) FROM events WHERE {condition}");
        assert_eq!(number(&definition, &count_of).await, count, "{condition}");
        let plan = query(&definition, &format!("EXPLAIN SELECT * FROM events WHERE {condition}")).await.unwrap();
        let scanned = plan.matches(".parquet").count();
        assert_eq!(scanned, files, "{condition}\n{plan}");
    }
}

#[tokio::test]
async fn the_log_has_the_batch_its_start_and_what_is_in_its_files() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[]));
    let mut sink = opened(&definition, 7).await;
    write(&mut sink, &definition, 41, vec![rows(Some(1), 10..20)]).await.unwrap();
    write(&mut sink, &definition, 42, vec![]).await.unwrap();
    let actions = actions(folder.path());
    let of = |kind: &str| actions.iter().filter_map(|action| action.get(kind)).collect::<Vec<_>>();
    let transactions: Vec<_> =
        of("txn").iter().map(|txn| (txn["appId"].as_str().unwrap(), txn["version"].as_i64().unwrap())).collect();
    let application = format!("poundlock-{PIPELINE}");
    // A batch without rows leaves nothing.
    assert_eq!(transactions, [(&*format!("{application}-epoch"), 7), (&*application, 41)]);
    let protocol = of("protocol")[0];
    assert_eq!((&protocol["minReaderVersion"], &protocol["minWriterVersion"]), (&3.into(), &7.into()));
    let properties = &of("metaData")[0]["configuration"];
    assert_eq!(properties["poundlock.pipeline.p"], PIPELINE.to_string());
    assert_eq!(properties["delta.deletedFileRetentionDuration"], "interval 7200 seconds");
    let add = of("add")[0];
    assert_eq!(add["partitionValues"]["day"], "1970-01-02");
    let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
    assert_eq!(stats["numRecords"], 10);
    assert_eq!((&stats["minValues"]["id"], &stats["maxValues"]["id"]), (&10.into(), &19.into()));
    assert_eq!(
        (&stats["minValues"]["price"], &stats["maxValues"]["price"]),
        (&serde_json::json!(0.5), &serde_json::json!(0.95))
    );
    assert_eq!(stats["maxValues"]["at_utc"], "1970-01-01T00:00:19.000007Z");
    assert_eq!(stats["maxValues"]["at"], "1970-01-01T00:00:19.000007");
    assert_eq!(stats["nullCount"]["amount"], 3);
    assert!(stats["maxValues"].get("amount").is_none() && stats["maxValues"].get("day").is_none(), "{stats}");
    let info = of("commitInfo").pop().unwrap();
    assert_eq!((&info["operation"], &info["isBlindAppend"]), (&"STREAMING UPDATE".into(), &true.into()));
}

#[tokio::test]
async fn a_column_is_added_a_missing_one_is_null_and_another_type_is_refused() {
    let folder = TempDir::new().unwrap();
    let first = definition(folder.path(), &[]);
    let without = |definition: &TableDefinition, column: &str| {
        let fields = definition.schema.fields().iter().filter(|field| field.name() != column).cloned();
        TableDefinition { schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())), ..definition.clone() }
    };
    let of = |definition: &TableDefinition, rows: &RecordBatch| {
        let columns: Vec<usize> =
            definition.schema.fields().iter().map(|f| rows.schema().index_of(f.name()).unwrap()).collect();
        rows.project(&columns).unwrap()
    };
    // Without a time that has no zone the plainest protocol will do; with it, it is raised.
    let narrow = Arc::new(without(&without(&first, "at"), "name"));
    let mut sink = opened(&narrow, 1).await;
    write(&mut sink, &narrow, 0, vec![of(&narrow, &rows(Some(0), 0..10))]).await.unwrap();
    let wide = Arc::new(first.clone());
    let mut sink = opened(&wide, 2).await;
    write(&mut sink, &wide, 1, vec![rows(Some(0), 10..20)]).await.unwrap();
    let mut sink = opened(&narrow, 3).await;
    write(&mut sink, &narrow, 2, vec![of(&narrow, &rows(Some(0), 20..30))]).await.unwrap();
    assert_eq!(number(&wide, "SELECT count(*) FROM events").await, 30);
    assert_eq!(number(&wide, "SELECT count(name) FROM events").await, 10);
    assert_eq!(number(&wide, "SELECT count(*) FROM events WHERE at IS NULL").await, 20);
    let protocols: Vec<i64> =
        actions(folder.path()).iter().filter_map(|a| a["protocol"]["minWriterVersion"].as_i64()).collect();
    assert_eq!(protocols, [2, 7]);

    let mut other = first.clone();
    let fields = first.schema.fields().iter().map(|field| match field.name().as_str() {
        "price" => Arc::new(Field::new("price", DataType::Float64, true)),
        "id" => Arc::new(Field::new("id", DataType::Utf8View, true)),
        _ => Arc::clone(field),
    });
    other.schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let error = open(other.clone()).await.unwrap_err().to_string();
    for part in [
        "column \"id\" of table lake.events",
        "BIGINT in the log, VARCHAR in its declaration",
        "00_tables.sql:3:1",
        "column \"price\"",
        "DECIMAL(10, 2) in the log, DOUBLE",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let error = query(&other, "SELECT 1").await.unwrap_err().to_string();
    assert!(error.contains("BIGINT in the log"), "{error}");
    let error = open(TableDefinition { partition_columns: vec![], ..first }).await.unwrap_err().to_string();
    assert!(error.contains("by [\"day\"] in its log, by [] in its declaration"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_a_delta_table_is_refused() {
    let folder = TempDir::new().unwrap();
    let broken = |change: &dyn Fn(&mut TableDefinition)| {
        let mut definition = definition(folder.path(), &[]);
        change(&mut definition);
        DeltaSink::for_tables(&[Arc::new(definition)]).unwrap_err().to_string()
    };
    let typed = |of: DataType| {
        move |d: &mut TableDefinition| {
            let fields = [schema().fields().to_vec(), vec![Arc::new(Field::new("odd", of.clone(), true))]].concat();
            d.schema = Arc::new(Schema::new(fields));
        }
    };
    for (change, part) in [
        (
            &(|d: &mut TableDefinition| d.unbounded = true) as &dyn Fn(&mut TableDefinition),
            "Delta tables are read to their end",
        ),
        (
            &|d: &mut TableDefinition| {
                let fields = [schema().fields().to_vec(), vec![Arc::new(Field::new("a b", DataType::Int64, true))]];
                d.schema = Arc::new(Schema::new(fields.concat()));
            },
            "column \"a b\" of table lake.events has a name that Delta does not know",
        ),
        (&typed(DataType::UInt64), "the type of \"odd\" is UInt64"),
        (&typed(DataType::Time64(TimeUnit::Microsecond)), "a column that Delta cannot hold"),
        (&|d| drop(d.options.insert("optimize.interval".into(), "1 ms".into())), "shorter than 10 ms"),
        (&|d| drop(d.options.insert("vacuum.retention".into(), "0s".into())), "shorter than a second"),
        (&|d| drop(d.options.insert("optimize.min_files".into(), "1".into())), "not between 2 and 1000"),
        (&|d| drop(d.options.insert("optimise.interval".into(), "1 s".into())), "did you mean 'optimize.interval'?"),
    ] {
        let error = broken(change);
        assert!(error.contains(part) && error.contains("00_tables.sql:3:1"), "{error}");
    }
    std::fs::write(folder.path().join("x.parquet"), "").unwrap();
    let error = open(definition(folder.path(), &[])).await.unwrap_err().to_string();
    assert!(error.contains("has Parquet files and no Delta log") && error.contains("x.parquet"), "{error}");
    let error = query(&definition(folder.path(), &[]), "SELECT 1").await.unwrap_err().to_string();
    assert!(error.contains("has no Delta log"), "{error}");
}

#[tokio::test]
async fn what_others_demand_of_a_writer_is_not_ignored() {
    for (action, part) in [
        (r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":4}}"#, "version 4 of the protocol"),
        (
            r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["timestampNtz","deletionVectors"],"writerFeatures":["timestampNtz","deletionVectors"]}}"#,
            "the features deletionVectors",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let mut table = definition(folder.path(), &[]);
        // Version 4 has no times without a zone.
        table.schema = Arc::new(table.schema.project(&[0, 1, 2, 4]).unwrap());
        opened(&Arc::new(table.clone()), 1).await;
        std::fs::write(folder.path().join(format!("_delta_log/{:020}.json", 1)), action).unwrap();
        let error = open(table).await.unwrap_err().to_string();
        assert!(error.contains("demands more of a writer") && error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn another_checkpoint_must_be_told_to_take_over() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[]));
    let mut old = opened(&definition, 1).await;
    write(&mut old, &definition, 9, vec![rows(Some(0), 0..10)]).await.unwrap();
    let mut sink = DeltaSink::for_tables(std::slice::from_ref(&definition)).unwrap().unwrap();
    let mut other = Identity { uuid: Uuid::from_u128(2), ..identity(1) };
    let error = sink.open(&other).await.unwrap_err().to_string();
    assert!(error.contains("has written to table lake.events by the name \"p\""), "{error}");
    other.takes_over = true;
    assert_eq!(sink.open(&other).await.unwrap(), None);
    write(&mut sink, &definition, 0, vec![rows(Some(0), 10..20)]).await.unwrap();
    // The older one is told, and stops.
    let error = write(&mut old, &definition, 10, vec![rows(Some(0), 20..30)]).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = write(&mut old, &definition, 10, vec![rows(Some(0), 20..30)]).await.unwrap_err();
    assert!(!error.is_retryable() && error.message().contains("has written to"), "{error}");
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 20);
}

#[tokio::test]
async fn a_change_by_another_program_is_read_and_gone_along_with() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[]));
    let mut sink = opened(&definition, 1).await;
    write(&mut sink, &definition, 0, vec![rows(Some(0), 0..10)]).await.unwrap();
    // Somebody sets a property: that does not concern us. Then adds a column: that may.
    let metadata = actions(folder.path()).into_iter().find(|action| action.get("metaData").is_some()).unwrap();
    let mut changed = metadata.clone();
    changed["metaData"]["configuration"]["their.own"] = "yes".into();
    std::fs::write(folder.path().join(format!("_delta_log/{:020}.json", 2)), changed.to_string()).unwrap();
    write(&mut sink, &definition, 1, vec![rows(Some(0), 10..20)]).await.unwrap();
    let mut columns: Value = serde_json::from_str(metadata["metaData"]["schemaString"].as_str().unwrap()).unwrap();
    let more = serde_json::json!({ "name": "theirs", "type": "long", "nullable": true, "metadata": {} });
    columns["fields"].as_array_mut().unwrap().push(more);
    changed["metaData"]["schemaString"] = columns.to_string().into();
    std::fs::write(folder.path().join(format!("_delta_log/{:020}.json", 4)), changed.to_string()).unwrap();
    let error = write(&mut sink, &definition, 2, vec![rows(Some(0), 20..30)]).await.unwrap_err();
    assert!(error.is_retryable() && error.line().contains("another program has changed"), "{error}");
    write(&mut sink, &definition, 2, vec![rows(Some(0), 20..30)]).await.unwrap();
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 30);
}

/// Entries of the log that are gone leave places that look free.
#[tokio::test]
async fn an_entry_before_a_checkpoint_is_no_entry_and_the_batch_is_written_again() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[]));
    let mut sink = opened(&definition, 1).await;
    write(&mut sink, &definition, 0, vec![rows(Some(0), 0..10)]).await.unwrap();
    // While this process sleeps, another pipeline writes, a checkpoint is written, and what is before it is removed.
    let mut other = DeltaSink::for_tables(std::slice::from_ref(&definition)).unwrap().unwrap();
    other.open(&Identity { name: "q".into(), uuid: Uuid::from_u128(2), epoch: 1, takes_over: false }).await.unwrap();
    for batch in 0..3 {
        write(&mut other, &definition, batch, vec![rows(Some(0), 100..110)]).await.unwrap();
    }
    let delta = DeltaTable::new(&definition).unwrap();
    let store = log::store_of(&delta.table).unwrap();
    let newest = log::load(&delta.table, &store).await.unwrap().unwrap().version();
    let mut loaded = deltalake_core::DeltaTable::new(store);
    loaded.load().await.unwrap();
    deltalake_core::protocol::checkpoints::create_checkpoint(&loaded, None).await.unwrap();
    for version in 0..newest {
        std::fs::remove_file(folder.path().join(format!("_delta_log/{version:020}.json"))).unwrap();
    }
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 40);
    assert!(!write(&mut sink, &definition, 1, vec![rows(Some(0), 10..20)]).await.unwrap().already);
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 50);
    let first_place = folder.path().join(format!("_delta_log/{:020}.json", 2));
    assert!(first_place.exists(), "it looked free");
    // Where a checkpoint has just caught up with the entry that is put, the entry is seen as it is.
    write(&mut sink, &definition, 2, vec![rows(Some(0), 20..30)]).await.unwrap();
    assert_eq!(number(&definition, "SELECT count(DISTINCT id) FROM events").await, 40);
}

#[tokio::test]
async fn a_table_of_others_keeps_its_properties_but_for_what_the_options_say() {
    let folder = TempDir::new().unwrap();
    let made = Arc::new(definition(folder.path(), &[("log.retention", "30 days"), ("vacuum.retention", "7 days")]));
    opened(&made, 1).await;
    let terms = async |options: &[(&str, &str)]| {
        let definition = Arc::new(definition(folder.path(), options));
        let delta = DeltaTable::new(&definition).unwrap();
        opened(&definition, 2).await;
        let state = log::load(&delta.table, &log::store_of(&delta.table).unwrap()).await.unwrap().unwrap();
        delta.maintenance.terms(&state)
    };
    let day = Duration::from_secs(86_400);
    let on = ("maintenance", "on");
    for options in [&[] as &[(&str, &str)], &[on]] {
        let terms = terms(options).await;
        assert_eq!((terms.log_retention, terms.retention, terms.checkpoint_interval), (Some(30 * day), 7 * day, 100));
    }
    let said = terms(&[on, ("log.retention", "1 day")]).await;
    assert_eq!((said.log_retention, said.retention), (Some(day), 7 * day));
    assert_eq!(terms(&[]).await.log_retention, Some(day), "it is a property of the table now");
}

#[tokio::test]
async fn values_that_have_no_text_are_refused_as_a_partition_and_have_no_bounds() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[]));
    let mut sink = opened(&definition, 1).await;
    let report = write(&mut sink, &definition, 0, vec![rows(Some(i32::MAX), 0..2), rows(Some(0), 2..4)]).await.unwrap();
    assert_eq!(report.refusals.len(), 2);
    assert!(report.refusals[0].error.contains("beyond what can be written as text"), "{report:?}");
    let mut late = rows(Some(0), 4..6);
    let mut columns = late.columns().to_vec();
    columns[3] = Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX, 0]));
    late = RecordBatch::try_new(late.schema(), columns).unwrap();
    write(&mut sink, &definition, 1, vec![late]).await.unwrap();
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 4);
    assert_eq!(number(&definition, "SELECT count(*) FROM events WHERE id >= 4").await, 2);
}

#[tokio::test]
async fn columns_that_differ_in_case_alone_are_not_taken_for_missing() {
    let folder = TempDir::new().unwrap();
    let first = definition(folder.path(), &[]);
    opened(&Arc::new(first.clone()), 1).await;
    let fields = first.schema.fields().iter().map(|field| match field.name().as_str() {
        "name" => Arc::new(Field::new("Name", DataType::Utf8View, true)),
        _ => Arc::clone(field),
    });
    let other = TableDefinition { schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())), ..first };
    for error in [open(other.clone()).await.unwrap_err(), query(&other, "SELECT 1").await.unwrap_err()] {
        assert!(error.to_string().contains("column \"Name\" of table lake.events is \"name\" in its log"), "{error}");
    }
}

#[tokio::test]
async fn partitions_of_every_type_come_back() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", Arc::new(Int16Array::from(vec![Some(-3), None, Some(7)]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("d", Arc::new(Decimal128Array::from(vec![-1250, 0, 7]).with_precision_and_scale(10, 2).unwrap())),
        ("t", Arc::new(TimestampMicrosecondArray::from(vec![-1, 0, 1_795_000_000_000_001]))),
        ("z", Arc::new(TimestampMicrosecondArray::from(vec![1_500_000, 0, 7]).with_timezone("UTC"))),
        ("s", Arc::new(StringViewArray::from(vec![Some("a/b c%20=ü"), Some("#?*"), None]))),
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let folder = TempDir::new().unwrap();
    let mut definition = definition(folder.path(), &[]);
    definition.schema = rows.schema();
    definition.partition_columns = ["n", "b", "d", "t", "z", "s"].map(str::to_string).to_vec();
    let definition = Arc::new(definition);
    let mut sink = opened(&definition, 1).await;
    write(&mut sink, &definition, 1, vec![rows.clone()]).await.unwrap();
    let context = SessionContext::new();
    let table = provider(&definition, &context.state()).await.unwrap();
    let read = context.read_table(table).unwrap().sort_by(vec![datafusion::prelude::col("id")]).unwrap();
    let read = read.collect().await.unwrap();
    assert_eq!(arrow::compute::concat_batches(&read[0].schema(), &read).unwrap().columns(), rows.columns());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_are_merged_and_the_old_ones_deleted_while_rows_come_in() {
    let folder = TempDir::new().unwrap();
    let options = [
        ("maintenance", "on"),
        ("optimize.interval", "10 ms"),
        ("optimize.min_files", "4"),
        ("vacuum.retention", "3 seconds"),
        ("log.retention", "3 seconds"),
        ("checkpoint.interval", "10"),
    ];
    let definition = Arc::new(definition(folder.path(), &options));
    let mut sink = opened(&definition, 1).await;
    for batch in 0..100_i64 {
        write(&mut sink, &definition, batch as u64, vec![rows(Some((batch % 2) as i32), batch * 10..batch * 10 + 10)])
            .await
            .unwrap();
        if batch % 10 == 9 {
            let n = (batch + 1) * 10;
            assert_eq!(number(&definition, "SELECT count(*) FROM events").await, n);
            assert_eq!(number(&definition, "SELECT count(DISTINCT id) FROM events").await, n);
        }
    }
    until("few files are left", async || files(folder.path()) < 20).await;
    assert_eq!(number(&definition, "SELECT count(DISTINCT id) FROM events").await, 1_000);
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 1_000);
    let (log, mut batch) = (folder.path().join("_delta_log"), 100);
    until("a checkpoint has made the first entry superfluous", async || {
        write(&mut sink, &definition, batch as u64, vec![rows(Some(0), batch * 10..batch * 10 + 10)]).await.unwrap();
        batch += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
        log.join("_last_checkpoint").exists() && !log.join(format!("{:020}.json", 0)).exists()
    })
    .await;
    assert_eq!(number(&definition, "SELECT count(DISTINCT id) FROM events").await, batch * 10);
    // Another start reads what is left of the log.
    drop(sink);
    let mut next = opened(&definition, 2).await;
    assert!(next.holds(batch as u64 - 1).await.unwrap() && !next.holds(batch as u64).await.unwrap());
    write(&mut next, &definition, batch as u64, vec![rows(Some(0), batch * 10..batch * 10 + 10)]).await.unwrap();
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, batch * 10 + 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_an_earlier_start_never_added_are_deleted_and_no_others() {
    let folder = TempDir::new().unwrap();
    let options = [("maintenance", "on"), ("optimize.interval", "10 ms")];
    let definition = Arc::new(definition(folder.path(), &options));
    let mut sink = opened(&definition, 1).await;
    write(&mut sink, &definition, 0, vec![rows(Some(0), 0..10)]).await.unwrap();
    write(&mut sink, &definition, 1, vec![rows(None, 0..10)]).await.unwrap();
    drop(sink);
    // One that is removed, and perhaps still read.
    let mut removed =
        actions(folder.path()).into_iter().filter_map(|action| action["add"]["path"].as_str().map(str::to_string));
    let removed = removed.next_back().unwrap();
    let version = actions(folder.path()).iter().filter(|action| action.get("commitInfo").is_some()).count();
    let remove =
        serde_json::json!({ "remove": { "path": removed, "dataChange": true, "deletionTimestamp": log::now_ms() } });
    std::fs::write(folder.path().join(format!("_delta_log/{version:020}.json")), remove.to_string()).unwrap();
    let removed = folder.path().join(removed);
    assert!(removed.exists());
    let day = folder.path().join("day=1970-01-01");
    let [lost, merged, ours, theirs] = [
        file_name(PIPELINE, 1, "00000000000000000001-000000"),
        file_name(PIPELINE, 1, "merged-0123"),
        file_name(PIPELINE, 2, "00000000000000000001-000000"),
        file_name(Uuid::from_u128(3), 1, "00000000000000000001-000000"),
    ]
    .map(|name| day.join(name));
    for file in [&lost, &merged, &ours, &theirs] {
        std::fs::write(file, "x").unwrap();
    }
    let _next = opened(&definition, 2).await;
    until("they are gone", async || !lost.exists() && !merged.exists()).await;
    assert!(ours.exists() && theirs.exists() && removed.exists());
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 10);
}

#[tokio::test]
async fn two_that_merge_the_same_files_do_not_both_replace_them() {
    let folder = TempDir::new().unwrap();
    let definition = Arc::new(definition(folder.path(), &[("optimize.min_files", "2")]));
    let mut sink = opened(&definition, 1).await;
    for batch in 0..4 {
        write(&mut sink, &definition, batch as u64, vec![rows(Some(0), batch * 10..batch * 10 + 10)]).await.unwrap();
    }
    let delta = DeltaTable::new(&definition).unwrap();
    let mut one = Log::open(&delta.table, &delta.maintenance, &identity(1)).await.unwrap();
    let mut two = one.clone();
    let state = log::load(&delta.table, one.store()).await.unwrap().unwrap();
    let never = tokio_util::sync::CancellationToken::new();
    merge::all(&delta, &mut one, &state, &never).await.unwrap();
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 40);
    // From the state of before.
    merge::all(&delta, &mut two, &state, &never).await.unwrap();
    assert_eq!(number(&definition, "SELECT count(*) FROM events").await, 40);
    assert_eq!(files(folder.path()), 5, "the second merged file is deleted again");
    // An older start merges nothing more.
    let mut old = one.clone();
    opened(&definition, 2).await;
    let state = log::load(&delta.table, one.store()).await.unwrap().unwrap();
    assert!(!old.stand_on(&state).await.unwrap());
}
