use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Float64Array, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray,
};
use arrow::datatypes::TimeUnit;
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::{SessionConfig, SessionContext};
use uuid::Uuid;

use super::*;
use crate::connector::{Identity, InsertRows, Sink, Wave, WriteReport, WriteRequest};

mod compact;
mod drift;

const PIPELINE: Uuid = Uuid::from_u128(0xabc);

fn schema() -> SchemaRef {
    let fields = vec![
        Field::new("day", DataType::Date32, true),
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8View, true),
        Field::new("region", DataType::Utf8View, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("at_utc", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("amount", DataType::Float64, true),
    ];
    Arc::new(Schema::new(fields))
}

fn definition(location: &str, partitions: &[&str]) -> TableDefinition {
    TableDefinition {
        name: "lake.events".into(),
        schema: schema(),
        primary_key: vec![],
        unbounded: false,
        stored_as: "PARQUET".into(),
        location: location.into(),
        partition_columns: partitions.iter().map(|p| p.to_string()).collect(),
        options: BTreeMap::new(),
        place: "00_tables.sql:3:1".into(),
    }
}

/// day (days since 1970), id, region; the rest follows from the id.
fn rows(of: &[(Option<i32>, i64, Option<&str>)]) -> RecordBatch {
    let times: Vec<_> = of.iter().map(|row| row.1 * 1_000_000 + 7).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(of.iter().map(|row| row.0).collect::<Date32Array>()),
        Arc::new(of.iter().map(|row| row.1).collect::<Int64Array>()),
        Arc::new(of.iter().map(|row| Some(format!("the name of number {}", row.1))).collect::<StringViewArray>()),
        Arc::new(of.iter().map(|row| row.2).collect::<StringViewArray>()),
        Arc::new(TimestampMicrosecondArray::from(times.clone())),
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
        Arc::new(of.iter().map(|row| Some(row.1 as f64 / 2.0)).collect::<Float64Array>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn insert(definition: &Arc<TableDefinition>, number: usize, rows: Vec<RecordBatch>) -> InsertRows {
    InsertRows { insert: number, table: Arc::clone(definition), rows, hash: String::new() }
}

async fn opened(definition: &Arc<TableDefinition>) -> ParquetSink {
    let mut sink = ParquetSink::for_tables(&[Arc::clone(definition)]).unwrap().remove(0);
    let identity = Identity { name: "p".into(), uuid: PIPELINE, epoch: 1, takes_over: false };
    assert_eq!(sink.open(&identity).await.unwrap(), None);
    sink
}

async fn write(sink: &mut ParquetSink, batch: u64, inserts: Vec<InsertRows>) -> Result<WriteReport> {
    sink.write(&WriteRequest { batch, wave: Wave::Rows, planned_at: 0, offsets: BTreeMap::new(), inserts }).await
}

fn committed(last: u64) -> Visible {
    Visible::Committed { pipeline: PIPELINE, last: Some(last) }
}

async fn query(definition: &Arc<TableDefinition>, visible: Visible, sql: &str) -> Result<String> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
    context.register_table("events", provider(definition, visible, &context.state()).await?)?;
    let rows = context.sql(sql).await?.collect().await?;
    Ok(pretty_format_batches(&rows)?.to_string())
}

/// The single value of a one-row, one-column result.
async fn value(definition: &Arc<TableDefinition>, visible: Visible, sql: &str) -> Result<String> {
    let text = query(definition, visible, sql).await?;
    Ok(text.lines().nth(3).unwrap_or_default().trim_matches(['|', ' ']).to_string())
}

fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let location = folder.path().join("lake/events").to_str().unwrap().to_string();
    (folder, location)
}

#[tokio::test]
async fn rows_come_back_with_the_declared_types() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&format!("file://{location}/"), &["day"]));
    let mut sink = opened(&definition).await;
    let batch = rows(&[(Some(1), 1, Some("eu")), (Some(0), 2, None), (None, 3, Some("us")), (Some(1), 4, None)]);
    let report = write(&mut sink, 7, vec![insert(&definition, 2, vec![batch])]).await.unwrap();
    assert_eq!(report.inserts[&2].written, 4);
    let name = |sequence| layout::FileName { pipeline: PIPELINE, batch: 7, sequence }.format();
    let files = [
        format!("day=__HIVE_DEFAULT_PARTITION__/{}", name(2000)),
        format!("day=1970-01-01/{}", name(2001)),
        format!("day=1970-01-02/{}", name(2002)),
    ];
    assert_eq!(report.files["lake.events"], files);
    let context = SessionContext::new();
    let table = provider(&definition, committed(7), &context.state()).await.unwrap();
    assert_eq!(table.schema(), definition.schema);
    context.register_table("events", table).unwrap();
    let read = context.sql("SELECT * FROM events ORDER BY id").await.unwrap().collect().await.unwrap();
    let read = arrow::compute::concat_batches(&read[0].schema(), &read).unwrap();
    let wanted = rows(&[(Some(1), 1, Some("eu")), (Some(0), 2, None), (None, 3, Some("us")), (Some(1), 4, None)]);
    assert_eq!(read.columns(), wanted.columns());
    for (sql, ids) in [
        ("SELECT string_agg(id::varchar, ',' ORDER BY id) FROM events WHERE day IS NULL", "3"),
        ("SELECT string_agg(id::varchar, ',' ORDER BY id) FROM events WHERE day = DATE '1970-01-02'", "1,4"),
        ("SELECT string_agg(id::varchar, ',' ORDER BY id) FROM events WHERE day IS NOT NULL AND region IS NULL", "2,4"),
        ("SELECT string_agg(id::varchar, ',' ORDER BY id) FROM events WHERE day < DATE '1970-01-02' OR id = 4", "2,4"),
        ("SELECT count(*) FROM events", "4"),
        ("SELECT max(day) FROM events", "1970-01-02"),
        ("SELECT count(day) FROM events", "3"),
        ("SELECT count(*) FROM (SELECT id FROM events LIMIT 2)", "2"),
    ] {
        assert_eq!(value(&definition, committed(7), sql).await.unwrap(), ids, "{sql}");
    }
}

#[tokio::test]
async fn a_replay_gives_the_same_bytes_however_the_rows_are_cut() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    let all: Vec<_> = (0..5_000).map(|id| (Some((id % 3) as i32), id, Some("region"))).collect();
    let mut sink = opened(&definition).await;
    let report = write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(&all)])]).await.unwrap();
    let read = |report: &WriteReport| -> Vec<Vec<u8>> {
        report.files["lake.events"].iter().map(|file| std::fs::read(format!("{location}/{file}")).unwrap()).collect()
    };
    let first = read(&report);
    std::fs::remove_file(format!("{location}/{}", report.files["lake.events"][1])).unwrap();
    let mut sink = opened(&definition).await;
    let cut = all.chunks(777).map(rows).collect();
    let again = write(&mut sink, 1, vec![insert(&definition, 0, cut)]).await.unwrap();
    assert_eq!(again, report);
    assert!(read(&again) == first);
    assert_eq!(value(&definition, committed(1), "SELECT count(*) FROM events").await.unwrap(), "5000");
}

/// How a column is encoded follows from all rows of the file, in whatever record batches they come.
#[test]
fn numbers_that_grow_are_packed_and_texts_that_repeat_have_a_dictionary() {
    use parquet::basic::Compression;
    use parquet::basic::Encoding::{DELTA_BINARY_PACKED, RLE_DICTIONARY};
    use parquet::file::reader::{FileReader, SerializedFileReader};

    let (_folder, location) = folder();
    let table = Table::new(&Arc::new(definition(&location, &[]))).unwrap();
    let of = |from: i64| (from..from + 2_000).map(|id| (Some(19_000), id, Some("north"))).collect::<Vec<_>>();
    let (file, _) = sink::encode(table.format, &[rows(&of(0)), rows(&of(2_000))]).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 4_000);
    let columns = reader.metadata().row_group(0).columns();
    let has = |name: &str, encoding| {
        let column = columns.iter().find(|column| column.column_path().string() == name).unwrap();
        column.encodings().any(|found| found == encoding)
    };
    let compressed = |name: &str| {
        let column = columns.iter().find(|column| column.column_path().string() == name).unwrap();
        column.compression() != Compression::UNCOMPRESSED
    };
    assert!(compressed("region") && compressed("name") && compressed("amount"));
    for name in ["id", "at", "at_utc", "day"] {
        assert!(!compressed(name), "{name}");
    }
    for name in ["id", "at", "at_utc"] {
        assert!(has(name, DELTA_BINARY_PACKED) && !has(name, RLE_DICTIONARY), "{name}");
    }
    for name in ["day", "region"] {
        assert!(has(name, RLE_DICTIONARY) && !has(name, DELTA_BINARY_PACKED), "{name}");
    }
    assert!(!has("amount", DELTA_BINARY_PACKED) && !has("name", RLE_DICTIONARY));
}

/// DataFusion writes `COPY … TO` with its own store: a file of the usual mode, not held in memory.
#[tokio::test]
async fn a_copy_out_of_the_lake_is_an_ordinary_file() {
    use std::os::unix::fs::PermissionsExt;

    let (folder, location) = folder();
    let definition = Arc::new(definition(&location, &[]));
    let mut sink = opened(&definition).await;
    write(&mut sink, 0, vec![insert(&definition, 0, vec![rows(&[(None, 1, None)])])]).await.unwrap();
    let context = SessionContext::new();
    let table = provider(&definition, committed(0), &context.state()).await.unwrap();
    context.register_table("events", table).unwrap();
    let copy = folder.path().join("copy.csv");
    let sql = format!("COPY (SELECT id FROM events) TO '{}'", copy.display());
    context.sql(&sql).await.unwrap().collect().await.unwrap();
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "id\n1\n");
    assert_ne!(
        std::fs::metadata(&copy).unwrap().permissions().mode() & 0o044,
        0,
        "readable for others, as umask lets it"
    );
}

#[tokio::test]
async fn only_committed_files_of_this_pipeline_are_read() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &[]));
    let mut sink = opened(&definition).await;
    for batch in 1..=3 {
        let rows = rows(&[(None, batch as i64, None)]);
        write(&mut sink, batch, vec![insert(&definition, 0, vec![rows.clone(), rows])]).await.unwrap();
    }
    let foreign = layout::FileName { pipeline: Uuid::from_u128(9), batch: 1, sequence: 0 }.format();
    std::fs::write(format!("{location}/{foreign}"), "half").unwrap();
    std::fs::write(format!("{location}/_SUCCESS"), "").unwrap();
    let count = "SELECT count(*) FROM events";
    assert_eq!(value(&definition, committed(2), count).await.unwrap(), "4");
    assert_eq!(value(&definition, committed(3), count).await.unwrap(), "6");
    let none = Visible::Committed { pipeline: PIPELINE, last: None };
    assert_eq!(value(&definition, none, count).await.unwrap(), "0");
    assert_eq!(query(&definition, none, "SELECT id, region FROM events").await.unwrap().lines().count(), 2);
    // As a table that is only read, it has a file that is none.
    let error = query(&definition, Visible::All, count).await.unwrap_err().to_string();
    assert!(error.contains(&foreign) && error.contains("cannot be read as Parquet"), "{error}");
}

#[tokio::test]
async fn holds_tells_of_any_part() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    let mut sink = opened(&definition).await;
    assert!(!sink.holds(1).await.unwrap());
    write(&mut sink, 5, vec![insert(&definition, 0, vec![rows(&[(Some(1), 1, None)])])]).await.unwrap();
    let mut sink = opened(&definition).await;
    for (batch, held) in [(4, false), (5, true), (6, false), (3, false)] {
        assert_eq!(sink.holds(batch).await.unwrap(), held, "batch {batch}");
    }
    write(&mut sink, 6, vec![insert(&definition, 0, vec![])]).await.unwrap();
    assert!(!sink.holds(6).await.unwrap());
    write(&mut sink, 6, vec![insert(&definition, 0, vec![rows(&[(Some(1), 1, None)])])]).await.unwrap();
    assert!(sink.holds(6).await.unwrap());
}

#[tokio::test]
async fn an_insert_without_rows_makes_no_file() {
    let (_folder, location) = folder();
    for partitions in [vec![], vec!["day"]] {
        let definition = Arc::new(definition(&location, &partitions));
        let mut sink = opened(&definition).await;
        let inserts = vec![insert(&definition, 0, vec![]), insert(&definition, 1, vec![rows(&[])])];
        let report = write(&mut sink, 1, inserts).await.unwrap();
        assert!(report.files.is_empty() && report.inserts.len() == 2);
        assert_eq!(std::fs::read_dir(&location).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn values_stay_in_their_folder_and_what_cannot_name_one_is_refused() {
    let (folder, location) = folder();
    let definition = Arc::new(definition(&location, &["region", "day"]));
    let mut sink = opened(&definition).await;
    let long = "x".repeat(300);
    let values = ["../../up", "a/b", "", ".", "50%25 off", "__HIVE_DEFAULT_PARTITION__", "späti", &long, "a=b?*#1"];
    let of: Vec<_> = values.iter().enumerate().map(|(id, v)| (Some(0), id as i64, Some(*v))).collect();
    let (first, second) = of.split_at(3);
    let report = write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(first), rows(second)])]).await.unwrap();
    let refused: Vec<_> = report.refusals.iter().map(|r| r.row).collect();
    assert_eq!(refused, [2, 5, 7]);
    assert_eq!((report.inserts[&0].written, report.inserts[&0].refused), (6, 3));
    assert!(report.refusals[0].error.contains("is an empty string"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(folder.path().join("lake")).unwrap().count(), 1);
    let sql = "SELECT string_agg(region, '|' ORDER BY id) FROM events";
    assert_eq!(value(&definition, committed(1), sql).await.unwrap(), "../../up|a/b|.|50%25 off|späti|a=b?*#1");
    assert_eq!(value(&definition, committed(1), "SELECT id FROM events WHERE region = 'a/b'").await.unwrap(), "1");
}

#[tokio::test]
async fn too_many_partitions_are_an_error_with_a_hint() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &["day"]));
    let mut sink = opened(&definition).await;
    let of: Vec<_> = (0..=partition::PARTITIONS_PER_INSERT).map(|day| (Some(day as i32), 0, None)).collect();
    let error = write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(&of)])]).await.unwrap_err();
    assert_eq!(error.fault(), crate::Fault::User);
    assert!(error.to_string().contains("more than 1000 partitions"), "{error}");
    assert!(!sink.holds(1).await.unwrap());
}

#[tokio::test]
async fn nulls_where_none_are_declared_do_not_lose_the_batch() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &[]));
    let mut sink = opened(&definition).await;
    let one = rows(&[(None, 1, None)]);
    let fields: Vec<_> = one.schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let mut columns = one.columns().to_vec();
    columns[1] = Arc::new(Int64Array::from(vec![None]));
    let one = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let report = write(&mut sink, 1, vec![insert(&definition, 0, vec![one])]).await.unwrap();
    assert_eq!(report.inserts[&0].written, 1);
}

#[tokio::test]
async fn a_column_that_older_files_lack_is_null() {
    let (_folder, location) = folder();
    let old = Arc::new(definition(&location, &["day"]));
    let mut sink = opened(&old).await;
    write(&mut sink, 1, vec![insert(&old, 0, vec![rows(&[(Some(1), 1, None)])])]).await.unwrap();
    let mut wider = definition(&location, &["day"]);
    let mut fields: Vec<_> = wider.schema.fields().iter().cloned().collect();
    fields.insert(2, Arc::new(Field::new("device", DataType::Utf8View, true)));
    wider.schema = Arc::new(Schema::new(fields));
    let wider = Arc::new(wider);
    let sql = "SELECT id FROM events WHERE device IS NULL AND region IS NULL";
    assert_eq!(value(&wider, committed(1), sql).await.unwrap(), "1");
    assert_eq!(value(&wider, committed(1), "SELECT count(device) FROM events").await.unwrap(), "0");
}

#[tokio::test]
async fn a_column_of_another_kind_names_the_file() {
    let (_folder, location) = folder();
    let old = Arc::new(definition(&location, &[]));
    let mut sink = opened(&old).await;
    write(&mut sink, 1, vec![insert(&old, 0, vec![rows(&[(Some(1), 1, None)])])]).await.unwrap();
    let mut other = definition(&location, &[]);
    other.schema = Arc::new(Schema::new(vec![
        Field::new("day", DataType::Boolean, true),
        Field::new("id", DataType::Int64, true),
    ]));
    let error = query(&Arc::new(other), committed(1), "SELECT * FROM events").await.unwrap_err().to_string();
    assert!(error.contains("\"day\" of table lake.events is BOOLEAN in its declaration and DATE in file /"), "{error}");
    assert!(error.contains("-000000.parquet"), "{error}");
}

#[tokio::test]
async fn a_file_outside_of_the_partitions_is_named() {
    let (_folder, location) = folder();
    let flat = Arc::new(definition(&location, &[]));
    let mut sink = opened(&flat).await;
    write(&mut sink, 1, vec![insert(&flat, 0, vec![rows(&[(Some(1), 1, None)])])]).await.unwrap();
    let error = query(&Arc::new(definition(&location, &["day"])), Visible::All, "SELECT 1").await.unwrap_err();
    assert!(error.message().contains("is in no partition"), "{error}");
    // One file may itself be a table.
    let file = std::fs::read_dir(&location).unwrap().next().unwrap().unwrap().path();
    let one = Arc::new(definition(file.to_str().unwrap(), &[]));
    assert_eq!(value(&one, Visible::All, "SELECT count(*) FROM events").await.unwrap(), "1");
    let missing = Arc::new(definition(&format!("{location}/none"), &[]));
    let error = query(&missing, Visible::All, "SELECT 1").await.unwrap_err();
    assert!(error.message().contains("has no folder"), "{error}");
}

#[tokio::test]
async fn filters_skip_files_and_row_groups() {
    let (_folder, location) = folder();
    let mut definition = definition(&location, &["day"]);
    definition.options.insert("max_rows_per_row_group".into(), "100".into());
    let definition = Arc::new(definition);
    let mut sink = opened(&definition).await;
    let of: Vec<_> = (0..1_000).map(|id| (Some((id / 500) as i32), id, None)).collect();
    write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(&of)])]).await.unwrap();
    let plan = query(
        &definition,
        committed(1),
        "EXPLAIN ANALYZE SELECT name FROM events WHERE day = DATE '1970-01-02' AND id = 777",
    );
    let plan = plan.await.unwrap();
    assert!(plan.contains("day=1970-01-02") && !plan.contains("day=1970-01-01"), "{plan}");
    assert!(plan.contains("row_groups_pruned_statistics=5 total → 1 matched"), "{plan}");
}

fn interval() -> Arc<Field> {
    Arc::new(Field::new("i", DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano), true))
}

#[test]
fn declarations_that_cannot_work() {
    let (_folder, location) = folder();
    let broken = |change: &dyn Fn(&mut TableDefinition)| {
        let mut definition = definition(&location, &[]);
        change(&mut definition);
        ParquetSink::for_tables(&[Arc::new(definition)]).unwrap_err().to_string()
    };
    for (change, part) in [
        (&(|d: &mut TableDefinition| d.unbounded = true) as &dyn Fn(&mut TableDefinition), "is UNBOUNDED"),
        (&|d| d.partition_columns = vec!["week".into()], "not a column"),
        (&|d| d.partition_columns = vec!["amount".into()], "cannot be partitioned by \"amount\""),
        (&|d| d.location = "gs://bucket/x".into(), "not a kind of storage yet"),
        (&|d| drop(d.options.insert("s3.colour".into(), "red".into())), "is not an option"),
        (&|d| drop(d.options.insert("compression".into(), "brotli".into())), "not one of zstd, lz4, snappy, none"),
        (&|d| drop(d.options.insert("max_rows_per_row_group".into(), "0".into())), "not a usable number"),
        (&|d| drop(d.options.insert("colour".into(), "red".into())), "is not an option"),
        (
            &|d| {
                d.schema = Arc::new(Schema::new(vec![Field::new("i", DataType::Struct(vec![interval()].into()), true)]))
            },
            "Parquet cannot hold",
        ),
    ] {
        let error = broken(change);
        assert!(error.contains(part) && error.contains("00_tables.sql:3:1"), "{error}");
    }
    let mut inner = definition(&format!("{location}/inner"), &[]);
    inner.name = "lake.inner".into();
    for kind in ["PARQUET", "DELTA"] {
        inner.stored_as = kind.into();
        let tables = [Arc::new(definition(&location, &[])), Arc::new(inner.clone())];
        let error = crate::connector::sinks(&tables).map(drop).unwrap_err();
        assert!(error.message().contains("share a folder"), "{error}");
    }
}

/// What a scan leaves to the plan shows as a filter above it.
#[tokio::test]
async fn a_filter_is_asked_while_reading_where_that_may_save_something() {
    let (_folder, location) = folder();
    let definition = Arc::new(definition(&location, &[]));
    let mut sink = opened(&definition).await;
    let of = [(Some(0), 1, Some("eu")), (Some(0), 2, Some("us"))];
    write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(&of)])]).await.unwrap();
    for (filter, found, is_asked) in [
        ("max(id) FROM events WHERE region = 'us'", "2", false),
        ("count(*) FROM events WHERE region = 'us'", "1", false),
        ("count(name) FROM events WHERE region = 'us'", "1", true),
        ("max(id) FROM events WHERE id < 2", "1", true),
        ("max(id) FROM events WHERE id < 2 AND region = 'eu'", "1", true),
    ] {
        assert_eq!(value(&definition, committed(1), &format!("SELECT {filter}")).await.unwrap(), found, "{filter}");
        let plan = query(&definition, committed(1), &format!("EXPLAIN SELECT {filter}")).await.unwrap();
        assert_eq!(!plan.contains("FilterExec"), is_asked, "{plan}");
    }
}

#[tokio::test]
async fn every_compression_is_read_back() {
    for compression in ["zstd", "lz4", "snappy", "none"] {
        let (_folder, location) = folder();
        let mut definition = definition(&location, &[]);
        definition.options.insert("compression".into(), compression.into());
        let definition = Arc::new(definition);
        let mut sink = opened(&definition).await;
        write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(&[(None, 41, None)])])]).await.unwrap();
        assert_eq!(value(&definition, committed(1), "SELECT name FROM events").await.unwrap(), "the name of number 41");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_an_error_at_open() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let location = folder.path().join("file/events");
    let definition = Arc::new(definition(location.to_str().unwrap(), &[]));
    let error = match ParquetSink::for_tables(&[definition]) {
        Err(error) => error,
        Ok(mut sinks) => {
            let identity = Identity { name: "p".into(), uuid: PIPELINE, epoch: 1, takes_over: false };
            sinks[0].open(&identity).await.unwrap_err()
        }
    };
    assert!(error.to_string().contains("file"), "{error}");
}

#[tokio::test]
async fn tables_in_memory_work_alike() {
    let store = format!("memory://{}/lake/events", Uuid::new_v4().simple());
    let definition = Arc::new(definition(&store, &["day"]));
    let mut sink = opened(&definition).await;
    write(&mut sink, 1, vec![insert(&definition, 0, vec![rows(&[(Some(1), 1, None)])])]).await.unwrap();
    assert_eq!(value(&definition, committed(1), "SELECT count(*) FROM events").await.unwrap(), "1");
}

/// Where there is no lock: see `mark`.
#[tokio::test]
async fn elsewhere_than_on_this_machine_only_the_newest_start_begins_a_batch() {
    let definition = definition(&format!("memory://{}/lake/events", Uuid::new_v4().simple()), &["day"]);
    let definition = Arc::new(definition);
    let of = |day: i32| vec![insert(&definition, 0, vec![rows(&[(Some(day), 1, None)])])];
    let start = async |epoch: u64| {
        let mut sink = ParquetSink::for_tables(&[Arc::clone(&definition)]).unwrap().remove(0);
        let identity = Identity { name: "p".into(), uuid: PIPELINE, epoch, takes_over: false };
        let newest = sink.open(&identity).await?;
        Ok::<_, Error>((sink, newest))
    };
    let (mut old, newest) = start(1).await.unwrap();
    assert_eq!(newest, None);
    write(&mut old, 1, of(1)).await.unwrap();
    let (mut new, newest) = start(2).await.unwrap();
    assert_eq!(newest, Some(1));
    // Begun before: written again as it was planned, by whomever.
    write(&mut old, 1, of(1)).await.unwrap();
    assert!(new.holds(1).await.unwrap() && !new.holds(2).await.unwrap());
    // Planned anew by the newer start: what the older one planned does not come, late or not.
    for _ in 0..2 {
        let error = write(&mut old, 2, of(7)).await.unwrap_err();
        assert!(error.message().starts_with("fenced by epoch 2") && !error.is_retryable(), "{error}");
        write(&mut new, 2, of(2)).await.unwrap();
    }
    let days = "SELECT string_agg(day::varchar, ' ' ORDER BY day) FROM events";
    assert_eq!(value(&definition, committed(2), days).await.unwrap(), "1970-01-02 1970-01-03");
    assert!(start(1).await.unwrap_err().message().starts_with("fenced by epoch 2"));
    // A batch without rows begins nothing.
    write(&mut new, 3, vec![insert(&definition, 0, vec![])]).await.unwrap();
    assert_eq!(start(3).await.unwrap().1, Some(2));
}

#[tokio::test]
async fn partitions_of_every_type_come_back() {
    use arrow::array::{BooleanArray, Decimal128Array, Int16Array};
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", Arc::new(Int16Array::from(vec![Some(-3), None, Some(7)]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("d", Arc::new(Decimal128Array::from(vec![-1250, 0, 7]).with_precision_and_scale(10, 2).unwrap())),
        ("t", Arc::new(TimestampMicrosecondArray::from(vec![-1, 0, 1_795_000_000_000_001]))),
        ("z", Arc::new(TimestampMicrosecondArray::from(vec![1_500_000, 0, 7]).with_timezone("UTC"))),
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ];
    let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let (_folder, location) = folder();
    let mut definition = definition(&location, &["n", "b", "d", "t", "z"]);
    definition.schema = rows.schema();
    let definition = Arc::new(definition);
    let mut sink = opened(&definition).await;
    let report = write(&mut sink, 1, vec![insert(&definition, 0, vec![rows.clone()])]).await.unwrap();
    assert_eq!(report.files["lake.events"].len(), 3);
    let context = SessionContext::new();
    let table = provider(&definition, committed(1), &context.state()).await.unwrap();
    let read = context.read_table(table).unwrap().sort_by(vec![datafusion::prelude::col("id")]).unwrap();
    let read = read.collect().await.unwrap();
    assert_eq!(arrow::compute::concat_batches(&read[0].schema(), &read).unwrap().columns(), rows.columns());
}
