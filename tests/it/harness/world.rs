//! What one test has to itself: topics, a database with migrated tables and the users of `data/`, an index, a copy of the shipped
//! `queries/` under a pipeline name of its own, folders for lake, checkpoint and dumps.
//!
//! After success all of it is removed; after a failure it stays, and the place is printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::{Elasticsearch, Program, S3};

/// Of the input topic. The feeder leaves the last one empty: it must hold back no watermark.
pub const PARTITIONS: i32 = 5;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub struct World {
    /// `poundlock.name` and consumer group; unique.
    pub name: String,
    pub brokers: String,
    /// Of this test's own database.
    pub database_url: String,
    server_url: String,
    pub events: String,
    pub dead_letters: String,
    pub alerts: String,
    pub elasticsearch: Elasticsearch,
    /// Of this test's own documents; the shipped template is for it too.
    pub index: String,
    pub folder: PathBuf,
    /// Where lake and checkpoint are, if not in the folder.
    pub s3: Option<S3>,
}

impl World {
    /// `test` goes into every name: lower-case letters and `_`.
    pub fn new(test: &str) -> Self {
        let [brokers, server_url] = ["KAFKA_BROKERS", "DATABASE_URL"].map(|name| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
        });
        let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() % 1_000_000_000_000;
        let name = format!("it_{test}_{unique}");
        let (server, _) = server_url.rsplit_once('/').expect("DATABASE_URL ends with /database");
        let world = Self {
            brokers,
            database_url: format!("{server}/{name}"),
            events: format!("{name}_events"),
            dead_letters: format!("{name}_dead"),
            alerts: format!("{name}_alerts"),
            elasticsearch: Elasticsearch::of_environment(),
            index: format!("user_event_logs-{name}"),
            folder: std::env::temp_dir().join(&name),
            s3: None,
            server_url,
            name,
        };
        fs::create_dir_all(world.folder.join("queries")).unwrap();
        world.copy_queries();
        world.create_topics();
        psql(&world.server_url, &format!("CREATE DATABASE {}", world.name));
        world.program(&["migrate", "--dir", &format!("{ROOT}/migrations")]).succeed(Duration::from_secs(60));
        world.sql(&format!("\\copy users FROM '{ROOT}/data/users.csv' CSV HEADER"));
        world
    }

    /// With lake and checkpoint on S3.
    pub fn on_s3(test: &str) -> Self {
        let mut world = Self::new(test);
        world.s3 = Some(S3::of_environment());
        world
    }

    /// A second pipeline of the same name on the same Kafka would be fenced.
    fn copy_queries(&self) {
        let mut renamed = 0;
        for file in fs::read_dir(format!("{ROOT}/queries")).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "sql") {
                let text = fs::read_to_string(&file).unwrap();
                renamed += text.matches("'user-activity'").count();
                let text = text.replace("'user-activity'", &format!("'{}'", self.name));
                fs::write(self.queries().join(file.file_name().unwrap()), text).unwrap();
            }
        }
        assert_eq!(renamed, 1, "queries/ set poundlock.name once");
    }

    fn create_topics(&self) {
        let topics = [(&*self.events, PARTITIONS), (&self.dead_letters, 2), (&self.alerts, 2)];
        create_topics(&self.brokers, &topics, &[]);
    }

    pub fn queries(&self) -> PathBuf {
        self.folder.join("queries")
    }

    /// The folder on a disk, be it a server's.
    pub fn lake(&self) -> PathBuf {
        match &self.s3 {
            Some(s3) => s3.folder(&format!("{}/lake", self.name)),
            None => self.folder.join("lake"),
        }
    }

    fn address(&self, of: &str) -> String {
        match &self.s3 {
            Some(s3) => s3.url(&format!("{}/{of}", self.name)),
            None => path(&self.folder.join(of)).to_string(),
        }
    }

    /// Starts `poundlock ARGUMENTS`, its output at the end of the log.
    pub fn program(&self, arguments: &[&str]) -> Program {
        Program::start(self.command(arguments), self.folder.join("poundlock.log"))
    }

    /// `poundlock ARGUMENTS` with this world's addresses in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Another build of the same program, a release say, can be put in its place.
        let binary = std::env::var("POUNDLOCK_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_poundlock").to_string());
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("KAFKA_BROKER", &self.brokers)
            .env("KAFKA_TOPIC", &self.events)
            .env("KAFKA_DLQ_TOPIC", &self.dead_letters)
            .env("KAFKA_ALERT_TOPIC", &self.alerts)
            .env("DATABASE_URL", &self.database_url)
            .env("LAKE_URL", self.address("lake"))
            .env("CHECKPOINT_BASE", self.address("checkpoint"))
            .env("MONITORING_URL", &self.database_url)
            .env("ES_URL", &self.elasticsearch.url)
            .env("ES_INDEX", &self.index)
            .env_remove("DATABASE_REPLICA_URL")
            .envs(self.s3.iter().map(|s3| ("AWS_ENDPOINT_URL", &s3.endpoint)))
            .env_remove("ES_API_KEY")
            .env_remove("ES_CA_FILE")
            .env_remove("ES_BULK_CHUNK")
            .env_remove("PROCESSING_TRIGGER")
            .env_remove("ANOMALY_THRESHOLD")
            .env_remove("Z_THRESHOLD");
        for setting in ["DELAY", "COMPLETENESS", "VALIDITY", "UNIQUENESS", "TIMELINESS", "MIN_EVENTS"] {
            command.env_remove(format!("DQ_{setting}"));
        }
        command
    }

    /// `poundlock run` over this world's queries, with a short trigger.
    pub fn run(&self, more: &[&str]) -> Program {
        let queries = self.queries();
        let arguments = ["run", path(&queries), "--trigger", "200ms"];
        self.program(&[&arguments[..], more].concat())
    }

    /// What psql prints for a statement in this test's database, one line a row, no decoration.
    pub fn sql(&self, statement: &str) -> String {
        psql(&self.database_url, statement)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for you: {}, database {} and index {}", self.folder.display(), self.name, self.index);
            return;
        }
        psql(&self.server_url, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        self.elasticsearch.delete(&self.index);
        self.s3.iter().for_each(|s3| s3.delete(&self.name));
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Topics (name, number of partitions), all with this configuration.
pub fn create_topics(brokers: &str, topics: &[(&str, i32)], config: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let topics = topics.iter().map(|(name, partitions)| {
        let topic = NewTopic::new(name, *partitions, TopicReplication::Fixed(1));
        config.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
    });
    let topics: Vec<NewTopic> = topics.collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for made in futures::executor::block_on(admin.create_topics(&topics, &options)).unwrap() {
        made.unwrap();
    }
}

/// What psql prints for a statement, one line a row, no decoration.
pub fn psql(url: &str, statement: &str) -> String {
    let output = Command::new("psql")
        .args([url, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement])
        .stdin(Stdio::null())
        .output()
        .expect("psql is installed: see tests/services/prerequisites");
    assert!(output.status.success(), "psql: {statement}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
