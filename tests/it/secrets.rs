//! No secret is left anywhere: planted in every place that takes one, they are looked for in all that a run leaves, be it the log
//! in full, errors of starts that fail, what `check` and `sql` print, or anything that is stored.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::cli::poundlock;
use crate::elasticsearch::proxy::{Certificates, Proxy};
use crate::harness::{Elasticsearch, create_topics, psql, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

const DATABASE: &str = "database-planted-0f3b";
const ELASTICSEARCH: &str = "es-planted-51e9";
const REGISTRY: &str = "registry-planted-77a2";
const WRONG: &str = "wrong-planted-c4d8";
/// `me:` and the first, `reg:` and the second.
const BASIC_OF_ELASTICSEARCH: &str = "Basic bWU6ZXMtcGxhbnRlZC01MWU5";
const BASIC_OF_REGISTRY: &str = "Basic cmVnOnJlZ2lzdHJ5LXBsYW50ZWQtNzdhMg==";

const QUERIES: &str = "
SET poundlock.name = '${NAME}';
CREATE SCHEMA db;
CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, text VARCHAR, _error VARCHAR, _raw BYTEA) STORED AS KAFKA LOCATION '${NAME}' OPTIONS (KAFKA, 'format' 'auto');
CREATE EXTERNAL TABLE copy (id BIGINT, text VARCHAR) STORED AS KAFKA LOCATION '${NAME}-copy' OPTIONS (KAFKA, 'format' 'avro');
CREATE EXTERNAL TABLE dead (error VARCHAR, stage VARCHAR, sink VARCHAR, raw BYTEA, row_json VARCHAR)
STORED AS KAFKA LOCATION '${NAME}-dead' OPTIONS (KAFKA, 'role' 'dead_letters');
CREATE EXTERNAL TABLE db.rows (id BIGINT, text VARCHAR) STORED AS DATABASE LOCATION '${DATABASE_URL}';
CREATE EXTERNAL TABLE lake (id BIGINT) STORED AS PARQUET LOCATION 'lake';
CREATE EXTERNAL TABLE documents (id BIGINT, PRIMARY KEY (id)) STORED AS ELASTICSEARCH LOCATION '${ES_URL}'
OPTIONS ('index' '${NAME}', 'username' 'me', 'password' '${ES_PASSWORD}', 'ca_file' '${CA}');
CREATE VIEW valid AS SELECT id, text FROM events WHERE _error IS NULL;
INSERT INTO dead (error, stage, raw) SELECT _error, 'validation', _raw FROM events WHERE _error IS NOT NULL;
INSERT INTO copy SELECT id, text FROM valid;
INSERT INTO db.rows SELECT id, text FROM valid;
INSERT INTO lake SELECT id FROM valid;
INSERT INTO documents SELECT id FROM valid;
";

const KAFKA: &str = "'brokers' '${KAFKA_TLS_BROKERS}', 'kafka.security.protocol' 'sasl_ssl', 'kafka.ssl.ca.location' '${KAFKA_TLS_CA}',
  'kafka.sasl.mechanism' 'SCRAM-SHA-512', 'kafka.sasl.username' 'poundlock', 'kafka.sasl.password' '${file:kafka-password}',
  'schema.registry.url' '${REGISTRY_URL}', 'schema.registry.user' 'reg', 'schema.registry.password' '${REGISTRY_PASSWORD}',
  'schema.registry.ca' '${CA}', 'schema.registry.timeout' '20 seconds'";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
}

struct Planted {
    name: String,
    folder: TempDir,
    certificates: Certificates,
    environment: Vec<(&'static str, String)>,
    server: Elasticsearch,
}

impl Planted {
    fn new() -> Self {
        let name = format!("secrets-{}", uuid::Uuid::new_v4().simple());
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("queries")).unwrap();
        fs::write(folder.path().join("queries/all.sql"), QUERIES.replace("KAFKA,", &format!("{KAFKA},"))).unwrap();
        fs::write(folder.path().join("kafka-password"), variable("KAFKA_TLS_PASSWORD")).unwrap();
        let brokers = variable("KAFKA_BROKERS");
        create_topics(&brokers, &[(&name, 1), (&format!("{name}-copy"), 1), (&format!("{name}-dead"), 1)], &[]);
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        // A row for all; one that does not decode; one that the database cannot hold.
        for payload in ["{\"id\":1,\"text\":\"a\"}", "no JSON", "{\"id\":2,\"text\":\"nul \\u0000\"}"] {
            let record: BaseRecord<str, str> = BaseRecord::to(&name).payload(payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();

        let server_url = variable("DATABASE_URL");
        let role = name.replace('-', "_");
        psql(&server_url, &format!("CREATE ROLE {role} LOGIN PASSWORD '{DATABASE}'"));
        psql(&server_url, &format!("CREATE DATABASE {role} OWNER {role}"));
        let place = server_url.rsplit_once('@').unwrap().1.rsplit_once('/').unwrap().0.to_string();
        let root = variable("DATABASE_ROOT_CERT");
        let database = format!("postgres://{role}:{DATABASE}@{place}/{role}?sslmode=verify-full&sslrootcert={root}");

        let (server, certificates) = (Elasticsearch::of_environment(), Certificates::make());
        let search = Proxy::start(&certificates, &server.url, &[BASIC_OF_ELASTICSEARCH]);
        let registry = variable("SCHEMA_REGISTRY_URL");
        let (host, path) = registry.trim_start_matches("http://").split_once('/').unwrap();
        let registry = Proxy::start(&certificates, host, &[BASIC_OF_REGISTRY]);
        let environment = vec![
            ("NAME", name.clone()),
            ("DATABASE_URL", database),
            ("ES_URL", search.url()),
            ("ES_PASSWORD", ELASTICSEARCH.to_string()),
            ("REGISTRY_URL", format!("{}/{path}", registry.url())),
            ("REGISTRY_PASSWORD", REGISTRY.to_string()),
            ("CA", certificates.path("ca.pem")),
            ("KAFKA_TLS_BROKERS", variable("KAFKA_TLS_BROKERS")),
            ("KAFKA_TLS_CA", variable("KAFKA_TLS_CA")),
        ];
        let planted = Self { name, folder, certificates, environment, server };
        psql(&planted.of("DATABASE_URL"), "CREATE TABLE rows (id bigint, text text)");
        planted
    }

    fn of(&self, name: &str) -> String {
        self.environment.iter().find(|(known, _)| *known == name).unwrap().1.clone()
    }

    /// Exit code, and all that it printed.
    fn output(&self, arguments: &[&str], other: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command: Command = poundlock(self.folder.path(), arguments);
        command.envs(self.environment.iter().cloned()).envs(other.iter().copied());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    }

    fn has_none(&self, what: &str, text: &str) {
        if let Some(found) = Self::secret(text) {
            panic!("{what} shows {found}");
        }
    }

    /// A secret in a text, with what stands before it.
    fn secret(text: &str) -> Option<String> {
        let kafka = variable("KAFKA_TLS_PASSWORD");
        let basic = [BASIC_OF_ELASTICSEARCH, BASIC_OF_REGISTRY].map(|header| header.trim_start_matches("Basic "));
        let secrets = [DATABASE, ELASTICSEARCH, REGISTRY, WRONG, &kafka, basic[0], basic[1]];
        let (at, secret) = secrets.iter().find_map(|secret| Some((text.find(secret)?, secret)))?;
        let from = (0..=at.saturating_sub(200)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        Some(format!("{secret}: …{}", &text[from..at + secret.len()]))
    }

    /// Everything in a topic, with keys and headers.
    fn messages(&self, topic: &str) -> (usize, String) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", variable("KAFKA_BROKERS")).set("group.id", "a test");
        let consumer: BaseConsumer = config.set("enable.partition.eof", "true").create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        let (mut count, mut text) = (0, String::new());
        loop {
            match wait_for("a message or the end", PATIENCE, || consumer.poll(Duration::from_millis(100))) {
                Err(KafkaError::PartitionEOF(_)) => return (count, text),
                Err(error) => panic!("{error}"),
                Ok(message) => {
                    count += 1;
                    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                    let parts = headers.filter_map(|header| header.value).chain(message.payload()).chain(message.key());
                    parts.for_each(|part| text += &String::from_utf8_lossy(part));
                }
            }
        }
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let role = self.name.replace('-', "_");
        psql(&variable("DATABASE_URL"), &format!("DROP DATABASE {role} WITH (FORCE)"));
        psql(&variable("DATABASE_URL"), &format!("DROP ROLE {role}"));
        self.server.delete(&self.name);
    }
}

#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and a schema registry: make test"]
fn no_secret_is_left_anywhere() {
    let planted = Planted::new();
    let trace = [("POUNDLOCK_LOG", "trace")];
    // All of it works, with these secrets and over TLS.
    let (code, log) = planted.output(&["run", "--until-caught-up"], &trace);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("TRACE"), "the log is the whole log");
    planted.has_none("the log", &log);
    assert_eq!(psql(&planted.of("DATABASE_URL"), "SELECT id FROM rows").trim(), "1");
    assert_eq!(planted.server.documents(&planted.name).len(), 2);

    // What it prints of itself.
    for arguments in [
        &["check"][..],
        &["check", "--format", "json"],
        &[
            "sql",
            "-c",
            "SHOW TABLES; SELECT * FROM information_schema.tables; SELECT * FROM information_schema.columns",
        ],
        &["sql", "-c", "SELECT * FROM information_schema.df_settings; SELECT * FROM information_schema.views"],
        &["sql", "-c", "EXPLAIN ANALYZE SELECT * FROM db.rows; EXPLAIN VERBOSE SELECT * FROM events; DESCRIBE db.rows"],
        &["sql", "-c", "SHOW CREATE TABLE db.rows"],
        &["sql", "-c", "SELECT * FROM documents"],
        &["sql", "-c", "SELECT * FROM copy"],
    ] {
        let (_, text) = planted.output(arguments, &trace);
        assert!(!text.is_empty(), "{arguments:?}");
        planted.has_none(&format!("{arguments:?}"), &text);
    }

    // What it stored: checkpoint with plans and programs, the lake, the database with its records, topics, documents.
    let mut files = 0;
    for entry in WalkDir::new(planted.folder.path()).into_iter().map(Result::unwrap) {
        if entry.file_type().is_file() && entry.file_name() != "kafka-password" {
            files += 1;
            let bytes = fs::read(entry.path()).unwrap();
            planted.has_none(&entry.path().display().to_string(), &String::from_utf8_lossy(&bytes));
        }
    }
    assert!(files > 8 && Path::new(&planted.folder.path().join("checkpoint")).is_dir(), "{files} files");
    let url = planted.of("DATABASE_URL");
    let tables =
        psql(&url, "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('poundlock', 'public')");
    assert!(tables.lines().count() >= 3, "{tables}");
    for table in tables.lines() {
        planted.has_none(table, &psql(&url, &format!("SELECT t::text FROM {table} t")));
    }
    let (dead, letters) = planted.messages(&format!("{}-dead", planted.name));
    assert_eq!(dead, 2, "{letters}");
    planted.has_none("the dead letters", &letters);
    planted.has_none("the copy", &planted.messages(&format!("{}-copy", planted.name)).1);
    let documents = planted.server.documents("poundlock-pipelines");
    assert!(!documents.is_empty());
    planted.has_none("the marks", &format!("{documents:?}"));
}

/// (environment, what the error says)
type Fault = (Vec<(&'static str, String)>, &'static str);

#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and a schema registry: make test"]
fn nor_in_an_error_of_a_start_that_fails() {
    let planted = Planted::new();
    let [database, search, registry] = ["DATABASE_URL", "ES_URL", "REGISTRY_URL"].map(|name| planted.of(name));
    let with_user = |url: &str, user: &str| url.replace("https://", &format!("https://{user}:{WRONG}@"));
    let other = planted.certificates.path("other-ca.pem");
    let root = variable("DATABASE_ROOT_CERT");
    let of_database = |url: String, says| (vec![("DATABASE_URL", url)], says);
    let faults: Vec<Fault> = vec![
        of_database(database.replace(DATABASE, WRONG), "password authentication failed"),
        of_database(database.replace("127.0.0.1:", "127.0.0.1:1"), "invalid value for option `port`"),
        of_database(database.replace(&root, &other), "certificate"),
        of_database(database.replace("postgres://", "postgress://"), "not the address of a database"),
        of_database(database.replace("verify-full", "verify-all"), "sslmode"),
        of_database(format!("{database}&passwort={WRONG}"), "unknown option `passwort`"),
        (vec![("ES_PASSWORD", WRONG.into())], "status 401"),
        (vec![("ES_URL", search.replace("https", "htps"))], "neither with http:// nor with https://"),
        (vec![("ES_URL", with_user(&search, "me"))], "is given beside the user"),
        (vec![("REGISTRY_PASSWORD", WRONG.into())], "401"),
        (vec![("REGISTRY_URL", registry.replace("127.0.0.1", "localhost"))], "certificate"),
        (vec![("REGISTRY_URL", with_user(&registry, "reg").replace("https", "htps"))], "does not begin with http"),
        (vec![("CA", other.clone())], "certificate"),
    ];
    let mut wrong = vec![];
    for (environment, says) in &faults {
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (code, text) =
            planted.output(&["run", "--until-caught-up"], &[&environment[..], &[("POUNDLOCK_LOG", "trace")]].concat());
        wrong.extend(Planted::secret(&text).map(|found| format!("{environment:?} shows {found}")));
        let error = text.split_once("error: ").map_or("", |(_, error)| error);
        if code != Some(2) || !error.contains(says) || !error.contains("hint: ") {
            wrong.push(format!("{environment:?}: exit code {code:?}, {says:?} in\n{error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));

    // Nobody answers there: told after half a minute, as a mistake in the files is at once.
    let nobody = database.replace("127.0.0.1", "127.0.0.9");
    let (_, text) = planted.output(&["migrate", "--dir", "."], &[("DATABASE_URL", &nobody)]);
    planted.has_none("migrate", &text);
    fs::write(planted.folder.path().join("kafka-password"), WRONG).unwrap();
    let (code, text) = planted.output(&["run", "--until-caught-up"], &[("POUNDLOCK_LOG", "trace")]);
    assert!(code == Some(2) && text.contains("uthentication failed"), "{text}");
    planted.has_none("a wrong password of Kafka", &text);
    // An option and a type that nobody knows, in a statement that has a secret.
    for (from, to) in [
        ("'kafka.sasl.username'", "'kafka.sasl.usrname'"),
        ("id BIGINT, text VARCHAR)", "id BIGNT, text VARCHAR)"),
        ("'username' 'me'", "'usernme' 'me'"),
        ("STORED AS DATABASE LOCATION", "STORED AS DATABASE LOKATION"),
    ] {
        let sql = QUERIES.replace("KAFKA,", &format!("{KAFKA},"));
        assert!(sql.contains(from), "{from}");
        fs::write(planted.folder.path().join("queries/all.sql"), sql.replace(from, to)).unwrap();
        for verb in [&["check"][..], &["run", "--until-caught-up"]] {
            let (code, text) = planted.output(verb, &[]);
            assert!(code != Some(0) && text.contains("queries/all.sql:"), "{to}: {text}");
            planted.has_none(to, &text);
        }
    }
}
