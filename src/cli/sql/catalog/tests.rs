use std::fs;

use arrow::array::{Int64Array, RecordBatch};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::Commit;
use crate::checkpoint::record::SourceCommit;
use crate::cli::sql::execute::{Settings, execute, query};
use crate::cli::sql::output::Format;
use crate::connector::{InsertRows, Wave, WriteRequest};

const FILES: &str = "
    SET poundlock.name = 'test';
    CREATE SCHEMA lake; CREATE SCHEMA db; CREATE SCHEMA kafka; CREATE SCHEMA off;
    CREATE UNBOUNDED EXTERNAL TABLE kafka.events (id BIGINT, at TIMESTAMP) STORED AS KAFKA LOCATION 'events'
      OPTIONS ('brokers' 'localhost:1', 'watermark.column' 'at');
    CREATE EXTERNAL TABLE lake.events (id BIGINT) STORED AS PARQUET LOCATION '${DIR}/lake/events';
    CREATE EXTERNAL TABLE lake.merged (id BIGINT) STORED AS DELTA LOCATION '${DIR}/lake/merged';
    CREATE EXTERNAL TABLE lake.given (id BIGINT) STORED AS CSV LOCATION '${DIR}/given.csv';
    CREATE EXTERNAL TABLE db.users (id BIGINT, PRIMARY KEY (id)) STORED AS DATABASE LOCATION 'postgres://me@localhost:1/x';
    CREATE EXTERNAL TABLE off.events (id BIGINT) STORED AS PARQUET LOCATION '';
    CREATE EXTERNAL TABLE db.unset (id BIGINT) STORED AS DATABASE LOCATION '${POUNDLOCK_NOT_SET_ANYWHERE}';
    CREATE VIEW even AS SELECT * FROM lake.events WHERE id % 2 = 0;
    CREATE VIEW per_minute AS SELECT window_start, count(*) AS n
      FROM TUMBLE(kafka.events, at, INTERVAL '1 minute') GROUP BY window_start, window_end;
    INSERT INTO lake.events SELECT id FROM kafka.events;
    INSERT INTO lake.merged SELECT id FROM kafka.events;
    INSERT INTO db.nothing SELECT nothing FROM nowhere;";

struct World {
    folder: TempDir,
    environment: Environment,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().display().to_string();
        fs::create_dir(folder.path().join("queries")).unwrap();
        fs::write(folder.path().join("queries/all.sql"), FILES).unwrap();
        fs::write(folder.path().join("given.csv"), "id\n5\n6\n").unwrap();
        let checkpoint = folder.path().join("checkpoint").display().to_string();
        let environment = Environment::with([("DIR", dir), ("CHECKPOINT_BASE", checkpoint)]);
        Self { folder, environment }
    }

    async fn open(&self) -> Catalog {
        let queries = self.folder.path().join("queries");
        Catalog::open(&queries, &SettingFlags::default(), &self.environment).await.unwrap()
    }

    async fn checkpoint(&self) -> Checkpoint {
        let base = self.folder.path().join("checkpoint");
        Checkpoint::open(base.to_str().unwrap(), "test").await.unwrap()
    }

    /// Writes the Parquet file of a batch, without a commit.
    async fn write(&self, checkpoint: &Checkpoint, batch: u64, ids: Vec<i64>) {
        let catalog = self.open().await;
        let provider = catalog.context.table_provider("lake.events").await.unwrap();
        let schema = provider.schema();
        let table = Arc::new(TableDefinition {
            name: "lake.events".into(),
            schema: Arc::clone(&schema),
            primary_key: vec![],
            unbounded: false,
            stored_as: "PARQUET".into(),
            location: self.folder.path().join("lake/events").display().to_string(),
            partition_columns: vec![],
            options: BTreeMap::new(),
            place: String::new(),
        });
        let rows = vec![RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(ids))]).unwrap()];
        let inserts = vec![InsertRows { insert: 0, table: Arc::clone(&table), rows, hash: String::new() }];
        let request = WriteRequest { batch, wave: Wave::Rows, planned_at: 0, offsets: BTreeMap::new(), inserts };
        let mut sinks = connector::sinks(&[table]).unwrap();
        sinks[0].open(checkpoint.identity()).await.unwrap();
        sinks[0].write(&request).await.unwrap();
    }
}

async fn commit(checkpoint: &Checkpoint, number: u64, watermark: i64) {
    let source = SourceCommit { watermark: Some(watermark), ..SourceCommit::default() };
    let commit = Commit {
        number,
        epoch: checkpoint.identity().epoch,
        planned_at: 0,
        program: String::new(),
        sources: [("kafka.events".to_string(), source)].into(),
        inserts: BTreeMap::new(),
        views: BTreeMap::new(),
        files: BTreeMap::new(),
        dimensions: BTreeMap::new(),
        outbox_refused: vec![],
    };
    checkpoint.commit(&commit, bytes::Bytes::new()).await.unwrap();
}

async fn count(catalog: &Catalog, sql: &str) -> Result<i64> {
    let rows = query(&catalog.context, sql).await?;
    Ok(rows[0].column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0))
}

#[tokio::test]
async fn only_committed_batches_are_seen_and_new_ones_at_once() {
    let world = World::new();
    let catalog = world.open().await;
    let all = "SELECT count(*) FROM lake.events";
    assert_eq!(count(&catalog, all).await.unwrap(), 0, "no checkpoint, so nothing is committed");
    let checkpoint = world.checkpoint().await;
    world.write(&checkpoint, 0, vec![1, 2, 3]).await;
    assert_eq!(count(&catalog, all).await.unwrap(), 0);
    commit(&checkpoint, 0, 60_000_000).await;
    assert_eq!(count(&catalog, all).await.unwrap(), 3, "a session that is open sees it");
    world.write(&checkpoint, 1, vec![4, 6]).await;
    assert_eq!(count(&catalog, "SELECT count(*) FROM even").await.unwrap(), 1);
    commit(&checkpoint, 1, 120_000_000).await;
    assert_eq!(count(&catalog, "SELECT count(*) FROM even a JOIN even b USING (id)").await.unwrap(), 3);
    assert_eq!(count(&catalog, "SELECT count(*) FROM lake.events WHERE id > 2 LIMIT 10").await.unwrap(), 3);
    let watermark = "SELECT count(*) FROM (VALUES (1)) WHERE current_watermark() = TIMESTAMP '1970-01-01T00:02:00'";
    assert_eq!(count(&world.open().await, watermark).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_wrong_or_down_is_the_trouble_of_those_who_query_it() {
    let world = World::new();
    let catalog = world.open().await;
    let left_out: Vec<String> = catalog.left_out.iter().map(ToString::to_string).collect();
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    assert!(left_out[0].contains("POUNDLOCK_NOT_SET_ANYWHERE is not set"), "{left_out:?}");
    assert_eq!(count(&catalog, "SELECT sum(id) FROM lake.given").await.unwrap(), 11);
    let down = query(&catalog.context, "SELECT * FROM db.users").await.unwrap_err();
    assert_eq!(down.fault(), crate::Fault::External, "{down}");
    let off = query(&catalog.context, "SELECT * FROM off.events").await.unwrap_err();
    assert_eq!(off.message(), "table off.events is off: its LOCATION is empty");
    let explained = query(&catalog.context, "EXPLAIN SELECT * FROM per_minute").await.unwrap();
    assert!(explained.iter().map(RecordBatch::num_rows).sum::<usize>() > 0);
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named_whole() {
    let world = World::new();
    let definition = |location: String| TableDefinition {
        name: "lake.events".into(),
        schema: arrow::datatypes::Schema::empty().into(),
        primary_key: vec![],
        unbounded: false,
        stored_as: "PARQUET".into(),
        location,
        partition_columns: vec![],
        options: BTreeMap::new(),
        place: String::new(),
    };
    let missing = missing_folder(&definition("no/such/lake".into())).unwrap();
    assert_eq!(Path::new(&missing), std::env::current_dir().unwrap().canonicalize().unwrap().join("no/such/lake"));
    assert_eq!(missing_folder(&definition(world.folder.path().display().to_string())), None);
    assert_eq!(missing_folder(&definition("memory://x".into())), None);
    let table = world.open().await.context.table_provider("lake.events").await.unwrap();
    let declared = table.downcast_ref::<DeclaredTable>().unwrap();
    assert_eq!(declared.location, "'${DIR}/lake/events'");
}

#[tokio::test]
async fn declared_tables_are_not_written() {
    let world = World::new();
    let catalog = world.open().await;
    for table in ["lake.events", "lake.given", "db.users", "kafka.events"] {
        let context = &catalog.context;
        let columns = if table == "kafka.events" { "1, NULL" } else { "1" };
        let insert = context.sql(&format!("INSERT INTO {table} SELECT {columns}")).await.unwrap();
        let error = crate::cli::sql::execute::failed(insert.collect().await.unwrap_err());
        assert_eq!(error.message(), format!("table {table} is only read here"), "{error}");
    }
}

/// What is in the folder of a table is counted by commits.
#[tokio::test]
async fn no_copy_goes_into_a_folder_that_the_pipeline_writes() {
    let world = World::new();
    let catalog = world.open().await;
    let dir = world.folder.path().display().to_string();
    let settings = Settings { format: Format::Csv, rows_max: None, allow_writes: true, timing: false };
    let copy = async |target: &str| {
        let sql = format!("SELECT 1;\nCOPY (SELECT 1 AS id) TO '{target}' STORED AS PARQUET");
        let mut out = vec![];
        execute(&catalog.context, "-c", &sql, settings, &mut out).await
    };
    fs::create_dir(world.folder.path().join("elsewhere")).unwrap();
    for target in ["lake/events", "lake/events/", "lake/events/day=1/x.parquet", "elsewhere/../lake/events/x.parquet"] {
        let error = copy(&format!("{dir}/{target}")).await.unwrap_err().to_string();
        assert!(error.contains("would write into the folder of table lake.events, "), "{error}");
        assert!(error.contains("-c:2:26") && error.contains("hint: the pipeline writes that table"), "{error}");
    }
    let error = copy(&format!("{dir}/lake/merged/x.parquet")).await.unwrap_err().to_string();
    assert!(error.contains("would write into the folder of table lake.merged, "), "{error}");
    assert!(!world.folder.path().join("lake").exists());
    for target in ["lake/events.parquet", "lake/", "elsewhere/"] {
        copy(&format!("{dir}/{target}")).await.unwrap();
    }
}
