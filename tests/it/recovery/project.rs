//! A small project of its own for each test, with every kind of sink, on servers of its own or on those of `make test`.
//!
//! ```text
//! events ─▶ valid ─▶ db.shares, lake.events, kafka.copies          and bad records, rows that a query refuses, rows that
//!             └────▶ counted (10 s) ─▶ db.counts, db.closed        a sink refuses ─▶ kafka.dead
//!                                      and es.copies, es.counts, where there is Elasticsearch,
//!                                      lake.merged, where there is Delta
//! ```
//!
//! Nothing has a key but `counts`, so whatever is written twice is seen twice. Batches are as small as they can be: one
//! chunk of one partition.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use poundlock::checkpoint::{Checkpoint, Commit, Recovery};
use poundlock::connector::kafka::mock::MockBroker;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use super::contents;
use crate::cli::poundlock;
use crate::harness::{Elasticsearch, Program, S3, create_topics, psql};

/// Of the input topic.
pub const PARTITIONS: i32 = 4;

/// Where a project's Delta table is, if it has one.
const DELTA: &str = "delta/merged";

/// Of one partition in one [`Project::feed`].
const EVENTS: i64 = 12;

/// How long any one start may take on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const QUERIES: &str = r#"
SET poundlock.name = '${NAME}';
SET poundlock.trigger = '20 ms';
SET poundlock.max_rows_per_batch = '1';
SET poundlock.snapshot_interval = '1';
CREATE SCHEMA kafka;
CREATE SCHEMA db;
CREATE SCHEMA lake;
CREATE UNBOUNDED EXTERNAL TABLE kafka.events (
  id BIGINT, k VARCHAR, n BIGINT, ts TIMESTAMP, _error VARCHAR, _raw BYTEA, _partition INT, _offset BIGINT
) STORED AS KAFKA LOCATION '${EVENTS}' OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'json',
  'starting_offsets' '${STARTING_OFFSETS:-earliest}',
  'watermark.column' 'ts', 'watermark.delay' '5 seconds', 'watermark.idle' '1 day');
CREATE EXTERNAL TABLE db.shares (id BIGINT, k VARCHAR, share BIGINT, "partition" INT, "offset" BIGINT)
  STORED AS DATABASE LOCATION '${DATABASE_URL}';
CREATE EXTERNAL TABLE db.counts (window_start TIMESTAMP, k VARCHAR, n BIGINT, PRIMARY KEY (window_start, k))
  STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('on_conflict' 'update');
CREATE EXTERNAL TABLE db.closed (window_start TIMESTAMP, k VARCHAR, n BIGINT)
  STORED AS DATABASE LOCATION '${DATABASE_URL}';
CREATE EXTERNAL TABLE lake.events (id BIGINT, share BIGINT)
  STORED AS PARQUET LOCATION '${LAKE:-lake}/events' PARTITIONED BY (k VARCHAR);
CREATE EXTERNAL TABLE lake.merged (id BIGINT, share BIGINT)
  STORED AS DELTA LOCATION '${DELTA}' PARTITIONED BY (k VARCHAR)
  OPTIONS ('optimize.interval' '20 ms', 'optimize.min_files' '2', 'checkpoint.interval' '5');
CREATE EXTERNAL TABLE kafka.copies (id BIGINT, share BIGINT) STORED AS KAFKA LOCATION '${COPIES}'
  OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'json', 'transactional' '${TRANSACTIONS}');
CREATE EXTERNAL TABLE kafka.dead (
  error VARCHAR, stage VARCHAR, sink VARCHAR, raw BYTEA, row_json VARCHAR, "partition" INT, "offset" BIGINT
) STORED AS KAFKA LOCATION '${DEAD}' OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'json', 'role' 'dead_letters',
  'transactional' '${TRANSACTIONS}');

CREATE VIEW valid AS
SELECT id, k, 100 / n AS share, ts, _partition AS "partition", _offset AS "offset" FROM kafka.events WHERE _error IS NULL;
INSERT INTO db.shares SELECT id, k, share, "partition", "offset" FROM valid;
INSERT INTO lake.events SELECT id, share, k FROM valid;
INSERT INTO lake.merged SELECT id, share, k FROM valid WHERE k <> '';
INSERT INTO kafka.copies SELECT id, share FROM valid;
INSERT INTO kafka.dead (error, stage, raw, "partition", "offset")
SELECT _error, 'validation', _raw, _partition, _offset FROM kafka.events WHERE _error IS NOT NULL;

CREATE VIEW counted AS
SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(valid, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end, k;
INSERT INTO db.counts SELECT window_start, k, n FROM counted;
INSERT INTO db.closed SELECT window_start, k, n FROM counted WHERE window_end <= current_watermark();

CREATE SCHEMA es;
CREATE EXTERNAL TABLE es.copies (id BIGINT, share BIGINT)
  STORED AS ELASTICSEARCH LOCATION '${ES_URL}' OPTIONS ('index' '${NAME}_copies', 'bulk.rows' '3');
CREATE EXTERNAL TABLE es.counts (window_start TIMESTAMP, k VARCHAR, n BIGINT, PRIMARY KEY (window_start, k))
  STORED AS ELASTICSEARCH LOCATION '${ES_URL}' OPTIONS ('index' '${NAME}_counts', 'bulk.rows' '3');
INSERT INTO es.copies SELECT id, share FROM valid;
INSERT INTO es.counts SELECT window_start, k, n FROM counted;
"#;

/// A table that is read back: each window with those up to a minute before it.
pub const HISTORY: &str = "
CREATE EXTERNAL TABLE db.history (window_start TIMESTAMP, n BIGINT, windows BIGINT, events BIGINT, PRIMARY KEY (window_start))
  STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('on_conflict' 'update');
CREATE VIEW totals AS
SELECT window_start, window_end, count(*) AS n
FROM TUMBLE(valid, ts, INTERVAL '10 seconds') GROUP BY window_start, window_end;
INSERT INTO db.history
SELECT t.window_start, t.n, count(past.n), sum(past.n)
FROM totals t LEFT JOIN db.history past
  ON past.window_start < t.window_start AND past.window_start >= t.window_start - INTERVAL '1 minute'
WHERE t.window_end <= current_watermark() GROUP BY t.window_start, t.n;
";

/// A second database, with an outbox, which refuses the rows that the lake refuses too.
pub const LATE: &str = "
CREATE SCHEMA late;
CREATE EXTERNAL TABLE late.copies (id BIGINT, k VARCHAR NOT NULL) STORED AS DATABASE LOCATION 'sqlite:late'
  OPTIONS ('delivery' 'outbox');
INSERT INTO late.copies SELECT id, nullif(k, '') FROM valid;
";

/// The same tables in PostgreSQL.
const MIGRATION: &str = r#"
CREATE TABLE shares (id bigint, k text, share bigint, "partition" int, "offset" bigint);
CREATE TABLE counts (window_start timestamp, k text, n bigint, PRIMARY KEY (window_start, k));
CREATE TABLE closed (window_start timestamp, k text, n bigint);
CREATE TABLE history (window_start timestamp PRIMARY KEY, n bigint, windows bigint, events bigint);
"#;

/// What a project runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    /// librdkafka's broker in the process of the test, and SQLite. It has no transactions: Kafka is written at least once.
    Embedded,
    /// Kafka and PostgreSQL of the environment.
    Real,
}

pub struct Project {
    pub folder: TempDir,
    pub name: String,
    /// `${…}` of the files.
    pub environment: BTreeMap<&'static str, String>,
    pub servers: Servers,
    /// Where it writes documents too; without it those tables are off.
    pub elasticsearch: Option<Elasticsearch>,
    /// Where lake and checkpoint are, if not in the folder.
    pub s3: Option<S3>,
    _broker: Option<MockBroker>,
    /// Of a database that is to be removed.
    server_url: Option<String>,
}

impl Project {
    pub fn new(servers: Servers) -> Self {
        let folder = TempDir::new().unwrap();
        let unique = folder.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_lowercase();
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() % 1_000_000_000;
        let name = format!("recovery_{}_{micros}", unique.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
        let topic = |kind: &str| format!("{name}_{kind}");
        let mut environment =
            BTreeMap::from([("NAME", name.clone()), ("ES_URL", String::new()), ("DELTA", String::new())]);
        for (variable, kind) in [("EVENTS", "events"), ("COPIES", "copies"), ("DEAD", "dead")] {
            environment.insert(variable, topic(kind));
        }
        let topics = [
            (&*topic("events"), PARTITIONS),
            (&topic("copies"), 1),
            (&topic("dead"), 1),
            (&topic("other"), PARTITIONS),
        ];
        let (mut broker, mut server_url) = (None, None);
        match servers {
            Servers::Embedded => {
                let started = MockBroker::start(&topics).unwrap();
                environment.insert("KAFKA_BROKER", started.bootstrap_servers().to_string());
                environment.insert("TRANSACTIONS", "false".into());
                environment.insert("DATABASE_URL", format!("sqlite:{}", folder.path().join("db").display()));
                broker = Some(started);
            }
            Servers::Real => {
                let [brokers, url] = ["KAFKA_BROKERS", "DATABASE_URL"].map(|name| {
                    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
                });
                create_topics(&brokers, &topics, &[]);
                psql(&url, &format!("CREATE DATABASE {name}"));
                let own = format!("{}/{name}", url.rsplit_once('/').expect("DATABASE_URL ends with /database").0);
                psql(&own, MIGRATION);
                environment.insert("KAFKA_BROKER", brokers);
                environment.insert("TRANSACTIONS", "true".into());
                environment.insert("DATABASE_URL", own);
                server_url = Some(url);
            }
        }
        let project =
            Self { folder, name, environment, servers, elasticsearch: None, s3: None, _broker: broker, server_url };
        fs::create_dir(project.path("queries")).unwrap();
        project.write(QUERIES);
        project
    }

    /// Of the environment.
    pub fn with_elasticsearch(mut self) -> Self {
        let server = Elasticsearch::of_environment();
        self.environment.insert("ES_URL", server.url.clone());
        self.elasticsearch = Some(server);
        self
    }

    pub fn with_delta(mut self) -> Self {
        self.environment.insert("DELTA", DELTA.into());
        self
    }

    /// With lake and checkpoint on S3.
    pub fn on_s3(mut self) -> Self {
        let s3 = S3::of_environment();
        for (variable, of) in [("LAKE", "lake"), ("DELTA", DELTA), ("CHECKPOINT_BASE", "checkpoint")] {
            self.environment.insert(variable, s3.url(&format!("{}/{of}", self.name)));
        }
        self.s3 = Some(s3);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts other SQL in the place of what is there.
    pub fn write(&self, queries: &str) {
        fs::write(self.path("queries/all.sql"), queries).unwrap();
    }

    /// A topic that the project's environment names.
    pub fn topic(&self, variable: &str) -> &str {
        &self.environment[variable]
    }

    /// All are in the topic when it returns.
    pub fn produce(&self, topic: &str, partition: i32, payloads: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.topic("KAFKA_BROKER")).set("linger.ms", "0");
        // Sent again on a busy machine, an event would be there twice.
        config.set("enable.idempotence", "true");
        let producer: BaseProducer = config.create().unwrap();
        for payload in payloads {
            let record: BaseRecord<str, [u8]> = BaseRecord::to(topic).partition(partition).payload(payload.as_ref());
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
        assert_eq!(producer.in_flight_count(), 0);
    }

    /// The events of a stage, from 0: 40 seconds of event time in every partition, in order, so that none is late however
    /// the batches are cut. One in 12 is broken and one is refused by the lake; in the last partition, one is refused by a query.
    pub fn feed(&self, stage: i64) {
        for partition in 0..PARTITIONS {
            let events = (0..EVENTS).map(|number| event(stage, partition, number));
            self.produce(self.topic("EVENTS"), partition, events);
        }
    }

    /// Starts `poundlock run`. `points`: what FAILPOINTS is to be.
    pub fn start(&self, arguments: &[&str], points: &str) -> Program {
        let mut command = poundlock(self.folder.path(), &[&["run"], arguments].concat());
        command.envs(&self.environment).env("FAILPOINTS", points);
        Program::start(command, self.path("log"))
    }

    /// Runs to the end of what is there, undisturbed; what it logged.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.start(&[&["--until-caught-up"], arguments].concat(), "").succeed(LIMIT)
    }

    /// Runs to the end of what is there, or dies before at a point. `false`: it did not die.
    pub fn dies(&self, arguments: &[&str], points: &str) -> bool {
        self.start(&[&["--until-caught-up"], arguments].concat(), points).dies(LIMIT)
    }

    /// A start that must be refused; what it said.
    pub fn refused(&self, arguments: &[&str]) -> String {
        self.start(&[&["--until-caught-up"], arguments].concat(), "").fails(LIMIT)
    }

    /// Rows of a table in the database, columns joined by '|', sorted.
    pub fn rows(&self, query: &str) -> Vec<String> {
        match self.servers {
            Servers::Embedded => contents::sqlite(&self.path("db"), query),
            Servers::Real => contents::sorted(psql(self.topic("DATABASE_URL"), query).lines().map(str::to_string)),
        }
    }

    /// Ids of a table, in order.
    pub fn ids(&self, table: &str) -> Vec<i64> {
        let rows = self.rows(&format!("SELECT id FROM {table}"));
        let mut ids: Vec<i64> = rows.iter().map(|id| id.parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    }

    /// What recovery finds in the checkpoint now.
    pub fn recovery(&self) -> Recovery {
        blocking(async { self.checkpoint().await.recover().await.unwrap() })
    }

    /// All commits, in order.
    pub fn commits(&self) -> Vec<Commit> {
        blocking(async {
            let checkpoint = self.checkpoint().await;
            let mut commits = vec![];
            for number in checkpoint.commits().await.unwrap() {
                commits.push(checkpoint.read_commit(number).await.unwrap().unwrap().0);
            }
            commits
        })
    }

    async fn checkpoint(&self) -> Checkpoint {
        let local = || self.path("checkpoint").to_str().unwrap().to_string();
        let url = self.environment.get("CHECKPOINT_BASE").cloned().unwrap_or_else(local);
        Checkpoint::read_only(&url, &self.name).await.unwrap().expect("there is a checkpoint")
    }

    pub fn lake(&self) -> Vec<String> {
        contents::parquet(&self.stored("lake"), &["id", "share"])
    }

    pub fn merged(&self) -> Vec<String> {
        contents::delta_rows(&self.stored(DELTA), &["id", "share"])
    }

    /// The folder of what is on disk or on S3.
    fn stored(&self, path: &str) -> PathBuf {
        match &self.s3 {
            Some(s3) => s3.folder(&format!("{}/{path}", self.name)),
            None => self.path(path),
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the log of {}:\n{}", self.name, lines[lines.len().saturating_sub(80)..].join("\n"));
        }
        if let Some(url) = &self.server_url {
            psql(url, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
        if let Some(server) = &self.elasticsearch {
            server.delete(&format!("{0}_copies,{0}_counts", self.name));
        }
        self.s3.iter().for_each(|s3| s3.delete(&self.name));
    }
}

fn event(stage: i64, partition: i32, number: i64) -> String {
    let id = stage * 1_000 + i64::from(partition) * 100 + number;
    if number == 5 {
        return format!("{{\"id\":{id},");
    }
    let second = stage * 40 + number * 3;
    let (minute, second) = (second / 60, second % 60);
    let k = if number == 7 { "" } else { ["a", "b", "c"][(number % 3) as usize] };
    let n = if (partition, number) == (PARTITIONS - 1, 9) { 0 } else { 1 + number % 4 };
    format!("{{\"id\":{id},\"k\":\"{k}\",\"n\":{n},\"ts\":\"2024-01-01T00:{minute:02}:{second:02}\"}}")
}

pub fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// Runs to the end what only reads.
pub fn blocking<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
