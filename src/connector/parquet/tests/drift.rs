//! Files of several versions of one table, read as one.

use arrow::array::{Float32Array, Int32Array};

use super::*;

fn declared(location: &str, partitions: &[&str], fields: &[(&str, DataType)]) -> Arc<TableDefinition> {
    let fields: Vec<_> = fields.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect();
    Arc::new(TableDefinition { schema: Arc::new(Schema::new(fields)), ..definition(location, partitions) })
}

async fn written(definition: &Arc<TableDefinition>, batch: u64, columns: Vec<ArrayRef>) {
    let rows = RecordBatch::try_new(Arc::clone(&definition.schema), columns).unwrap();
    write(&mut opened(definition).await, batch, vec![insert(definition, 0, vec![rows])]).await.unwrap();
}

fn texts(of: &[&str]) -> ArrayRef {
    Arc::new(StringViewArray::from_iter_values(of))
}

/// A column of numbers that became wider, one that is new, one that is gone; the older file has larger and smaller values.
#[tokio::test]
async fn versions_of_a_table_are_one_table() {
    let (_folder, location) = folder();
    let old = [("id", DataType::Int32), ("x", DataType::Float32), ("gone", DataType::Utf8View)];
    let old = declared(&location, &[], &old);
    let ids: ArrayRef = Arc::new(Int32Array::from(vec![Some(7), Some(1_000), None]));
    let xs: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 2.5, -1.0]));
    written(&old, 1, vec![ids, xs, texts(&["a", "b", "c"])]).await;
    let new = [("day", DataType::Date32), ("id", DataType::Int64), ("x", DataType::Float64)];
    let new = declared(&location, &[], &new);
    let days: ArrayRef = Arc::new(Date32Array::from(vec![1, 2]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![5, 1 << 40]));
    let xs: ArrayRef = Arc::new(Float64Array::from(vec![0.25, 1e300]));
    written(&new, 2, vec![days, ids, xs]).await;
    for (sql, wanted) in [
        ("SELECT string_agg(coalesce(id::varchar, '-'), ',' ORDER BY id) FROM events", "5,7,1000,1099511627776,-"),
        // Of minima and maxima that the files keep, each in its own type.
        ("SELECT min(id) FROM events", "5"),
        ("SELECT max(id) FROM events", "1099511627776"),
        ("SELECT min(x) FROM events", "-1.0"),
        ("SELECT max(x) FROM events", "1e300"),
        ("SELECT count(*) FROM events WHERE id >= 1000", "2"),
        ("SELECT count(*) FROM events WHERE id > 1000", "1"),
        ("SELECT count(*) FROM events WHERE id = 7", "1"),
        ("SELECT count(*) FROM events WHERE id > 1000000000000", "1"),
        ("SELECT count(*) FROM events WHERE id IS NULL", "1"),
        ("SELECT sum(id) FROM events", "1099511628788"),
        ("SELECT count(*) FROM events WHERE x < 0.5", "2"),
        ("SELECT count(day) FROM events", "2"),
        ("SELECT count(*) FROM events WHERE day IS NULL AND x = 2.5", "1"),
        ("SELECT count(*) FROM events", "5"),
    ] {
        assert_eq!(value(&new, committed(2), sql).await.unwrap(), wanted, "{sql}");
        assert_eq!(value(&new, Visible::All, sql).await.unwrap(), wanted, "{sql}");
    }
    // The older declaration meets a value that it has no place for.
    let error = query(&old, committed(2), "SELECT id FROM events").await.unwrap_err();
    let error = Error::external("").cause(error).to_string();
    assert!(error.contains("\"id\" of table lake.events is INT in its declaration and BIGINT in file /"), "{error}");
}

#[tokio::test]
async fn a_column_that_may_not_be_null_must_be_in_every_file() {
    let (_folder, location) = folder();
    let old = declared(&location, &[], &[("id", DataType::Int64)]);
    written(&old, 1, vec![Arc::new(Int64Array::from(vec![1]))]).await;
    let mut new = TableDefinition::clone(&declared(&location, &[], &[("id", DataType::Int64)]));
    let fields = [Field::new("id", DataType::Int64, true), Field::new("region", DataType::Utf8View, false)];
    new.schema = Arc::new(Schema::new(fields.to_vec()));
    let error = query(&Arc::new(new), committed(1), "SELECT * FROM events").await.unwrap_err().to_string();
    assert!(
        error.contains("\"region\" of table lake.events is VARCHAR NOT NULL in its declaration and not in"),
        "{error}"
    );
}

/// Nobody could read a folder with both, so the first batch is not written either.
#[tokio::test]
async fn partitions_of_a_table_with_files_stay_as_they_are() {
    let (_folder, location) = folder();
    let columns = [("day", DataType::Date32), ("region", DataType::Utf8View), ("id", DataType::Int64)];
    let of = |partitions: &[&str]| declared(&location, partitions, &columns);
    let row = || -> Vec<ArrayRef> {
        vec![Arc::new(Date32Array::from(vec![1])), texts(&["eu"]), Arc::new(Int64Array::from(vec![1]))]
    };
    let identity = Identity { name: "p".into(), uuid: PIPELINE, epoch: 1, takes_over: false };
    let open = async |partitions: &[&str]| {
        ParquetSink::for_tables(&[of(partitions)]).unwrap().remove(0).open(&identity).await.map(drop)
    };
    for partitions in [&[][..], &["day"], &["day", "region"]] {
        open(partitions).await.unwrap();
    }
    written(&of(&["day"]), 1, row()).await;
    open(&["day"]).await.unwrap();
    for (partitions, shown) in [(&[][..], "nothing"), (&["region"], "region"), (&["day", "region"], "day, region")] {
        let error = open(partitions).await.unwrap_err().to_string();
        assert!(error.contains(&format!("is partitioned by day; declared is {shown}")), "{error}");
        assert!(error.contains("table lake.events lie in other partitions"), "{error}");
    }
    // Another checkpoint's files are none of ours: it must be told to write beside them.
    let mut other = Identity { uuid: Uuid::from_u128(5), ..identity.clone() };
    let mut sink = ParquetSink::for_tables(&[of(&[])]).unwrap().remove(0);
    let error = sink.open(&other).await.unwrap_err().to_string();
    assert!(error.contains(&format!("has files of checkpoint {PIPELINE}, and none of this one")), "{error}");
    other.takes_over = true;
    sink.open(&other).await.unwrap();
}
