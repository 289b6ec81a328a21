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
use crate::harness::{Elasticsearch, Program, create_topics, psql, wait_for};
use crate::recovery::{
    self,
    project::{Project, Servers},
};
use crate::s3::Secured;

const PATIENCE: Duration = Duration::from_secs(90);

const DATABASE: &str = "database-planted-0f3b";
const ELASTICSEARCH: &str = "es-planted-51e9";
const REGISTRY: &str = "registry-planted-77a2";
const API_KEY: &str = "key-1:api-key-planted-2d40";
const S3_OF_ENVIRONMENT: &str = "s3-env-planted-8b1e";
const S3_OF_OPTIONS: &str = "s3-own-planted-63fa";
const WRONG: &str = "wrong-planted-c4d8";
/// `me:` and the password, the API key, `reg:` and the password, as they are sent.
const BASIC_OF_ELASTICSEARCH: &str = "Basic bWU6ZXMtcGxhbnRlZC01MWU5";
const KEY_OF_ELASTICSEARCH: &str = "ApiKey a2V5LTE6YXBpLWtleS1wbGFudGVkLTJkNDA=";
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
OPTIONS ('index' '${NAME}', ES_USER, 'ca_file' '${CA}');
CREATE VIEW valid AS SELECT id, text FROM events WHERE _error IS NULL;
INSERT INTO dead (error, stage, raw) SELECT _error, 'validation', _raw FROM events WHERE _error IS NOT NULL;
INSERT INTO copy SELECT id, text FROM valid;
INSERT INTO db.rows SELECT id, text FROM valid;
INSERT INTO lake SELECT id FROM valid;
INSERT INTO documents SELECT id FROM valid;
";

/// How Elasticsearch is told who we are.
const BY_PASSWORD: &str = "'username' 'me', 'password' '${ES_PASSWORD}'";
const BY_KEY: &str = "'api_key' '${ES_API_KEY}'";

const KAFKA: &str = "'brokers' '${KAFKA_TLS_BROKERS}', 'kafka.security.protocol' 'sasl_ssl', 'kafka.ssl.ca.location' '${KAFKA_TLS_CA}',
  'kafka.sasl.mechanism' 'SCRAM-SHA-512', 'kafka.sasl.username' 'poundlock', 'kafka.sasl.password' '${file:kafka-password}',
  'schema.registry.url' '${REGISTRY_URL}', 'schema.registry.user' 'reg', 'schema.registry.password' '${REGISTRY_PASSWORD}',
  'schema.registry.ca' '${CA}', 'schema.registry.timeout' '20 seconds'";

/// Files that hold a secret.
const OF_FILES: [&str; 3] = ["kafka-password", "database-url", "es-password"];
const BY_FILE: &str = "'username' 'me', 'password' '${file:es-password}'";

fn queries(es_user: &str) -> String {
    QUERIES.replace("KAFKA,", &format!("{KAFKA},")).replace("ES_USER", es_user)
}

/// The first of these secrets in a text, with what stands before it.
fn found(text: &str, secrets: &[&str]) -> Option<String> {
    let (at, secret) = secrets.iter().find_map(|secret| Some((text.find(secret)?, secret)))?;
    let from = (0..=at.saturating_sub(200)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    Some(format!("{secret}: …{}", &text[from..at + secret.len()]))
}

/// All files below a folder but those of secrets; how many there are.
fn search(folder: &Path, secrets: &[&str]) -> usize {
    let files = WalkDir::new(folder).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file());
    let files = files.filter(|entry| !OF_FILES.iter().any(|name| entry.file_name() == *name));
    let look = |entry: walkdir::DirEntry| {
        let bytes = fs::read(entry.path()).unwrap();
        if let Some(found) = found(&String::from_utf8_lossy(&bytes), secrets) {
            panic!("{} shows {found}", entry.path().display());
        }
    };
    files.map(look).count()
}

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
        fs::write(folder.path().join("queries/all.sql"), queries(BY_PASSWORD)).unwrap();
        fs::write(folder.path().join("kafka-password"), variable("KAFKA_TLS_PASSWORD")).unwrap();
        fs::write(folder.path().join("es-password"), ELASTICSEARCH).unwrap();
        let brokers = variable("KAFKA_BROKERS");
        create_topics(&brokers, &[(&name, 1), (&format!("{name}-copy"), 1), (&format!("{name}-dead"), 1)], &[]);
        let server_url = variable("DATABASE_URL");
        let role = name.replace('-', "_");
        psql(&server_url, &format!("CREATE ROLE {role} LOGIN PASSWORD '{DATABASE}'"));
        psql(&server_url, &format!("CREATE DATABASE {role} OWNER {role}"));
        let place = server_url.rsplit_once('@').unwrap().1.rsplit_once('/').unwrap().0.to_string();
        let root = variable("DATABASE_ROOT_CERT");
        let database = format!("postgres://{role}:{DATABASE}@{place}/{role}?sslmode=verify-full&sslrootcert={root}");

        fs::write(folder.path().join("database-url"), &database).unwrap();
        let (server, certificates) = (Elasticsearch::of_environment(), Certificates::make());
        let search = Proxy::start(&certificates, &server.url, &[BASIC_OF_ELASTICSEARCH, KEY_OF_ELASTICSEARCH]);
        let registry = variable("SCHEMA_REGISTRY_URL");
        let (host, path) = registry.trim_start_matches("http://").split_once('/').unwrap();
        let registry = Proxy::start(&certificates, host, &[BASIC_OF_REGISTRY]);
        let environment = vec![
            ("NAME", name.clone()),
            ("DATABASE_URL", database),
            ("ES_URL", search.url()),
            ("ES_PASSWORD", ELASTICSEARCH.to_string()),
            ("ES_API_KEY", API_KEY.to_string()),
            ("REGISTRY_URL", format!("{}/{path}", registry.url())),
            ("REGISTRY_PASSWORD", REGISTRY.to_string()),
            ("CA", certificates.path("ca.pem")),
            ("KAFKA_TLS_BROKERS", variable("KAFKA_TLS_BROKERS")),
            ("KAFKA_TLS_CA", variable("KAFKA_TLS_CA")),
        ];
        let planted = Self { name, folder, certificates, environment, server };
        psql(&planted.of("DATABASE_URL"), "CREATE TABLE rows (id bigint, text text)");
        // A row for all; one that does not decode; one that the database cannot hold.
        planted.produce(&["{\"id\":1,\"text\":\"a\"}", "no JSON", "{\"id\":2,\"text\":\"nul \\u0000\"}"]);
        planted
    }

    fn produce(&self, payloads: &[&str]) {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", variable("KAFKA_BROKERS")).create().unwrap();
        for payload in payloads {
            let record: BaseRecord<str, str> = BaseRecord::to(&self.name).payload(payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }

    fn write(&self, queries: &str) {
        fs::write(self.folder.path().join("queries/all.sql"), queries).unwrap();
    }

    fn of(&self, name: &str) -> String {
        self.environment.iter().find(|(known, _)| *known == name).unwrap().1.clone()
    }

    fn command(&self, arguments: &[&str], other: &[(&str, &str)]) -> Command {
        let mut command: Command = poundlock(self.folder.path(), arguments);
        command.envs(self.environment.iter().cloned()).envs(other.iter().copied());
        command
    }

    /// Exit code, and all that it printed.
    fn output(&self, arguments: &[&str], other: &[(&str, &str)]) -> (Option<i32>, String) {
        let output = self.command(arguments, other).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    }

    fn has_none(&self, what: &str, text: &str) {
        if let Some(found) = Self::secret(text) {
            panic!("{what} shows {found}");
        }
    }

    fn secret(text: &str) -> Option<String> {
        found(text, &Self::secrets().iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// As they are given, and as they are sent.
    fn secrets() -> Vec<String> {
        let (_, key) = API_KEY.split_once(':').unwrap();
        let sent = [BASIC_OF_ELASTICSEARCH, KEY_OF_ELASTICSEARCH, BASIC_OF_REGISTRY];
        let sent = sent.map(|header| header.split_once(' ').unwrap().1);
        let given = [DATABASE, ELASTICSEARCH, key, REGISTRY, WRONG];
        let all = given.into_iter().chain(sent).map(str::to_string);
        all.chain([variable("KAFKA_TLS_PASSWORD")]).collect()
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

    // The same with a key for Elasticsearch.
    planted.write(&queries(BY_KEY));
    planted.produce(&["{\"id\":3,\"text\":\"c\"}"]);
    let (code, log) = planted.output(&["run", "--until-caught-up"], &trace);
    assert_eq!(code, Some(0), "{log}");
    planted.has_none("the log", &log);
    assert_eq!(planted.server.documents(&planted.name).len(), 3);

    // The same out of mounted files, with the other format of the log.
    let by_file = queries(BY_FILE).replace("LOCATION '${DATABASE_URL}'", "LOCATION '${file:database-url}'");
    planted.write(&by_file);
    planted.produce(&["{\"id\":4,\"text\":\"d\"}"]);
    let nothing = [("POUNDLOCK_LOG", "trace"), ("DATABASE_URL", ""), ("ES_PASSWORD", ""), ("ES_API_KEY", "")];
    let (code, log) = planted.output(&["--log-format", "json", "run", "--until-caught-up"], &nothing);
    assert!(code == Some(0) && log.contains("\"level\":\"TRACE\""), "{log}");
    planted.has_none("the log as JSON", &log);
    assert_eq!(planted.server.documents(&planted.name).len(), 4);
    assert_eq!(psql(&planted.of("DATABASE_URL"), "SELECT count(*) FROM rows").trim(), "3");

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
        &["status"],
        &["status", "--format", "json"],
    ] {
        let (_, text) = planted.output(arguments, &trace);
        assert!(!text.is_empty(), "{arguments:?}");
        planted.has_none(&format!("{arguments:?}"), &text);
    }

    // What it stored: checkpoint with plans and programs, the lake, the database with its records, topics, documents.
    let secrets = Planted::secrets();
    let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
    let files = search(planted.folder.path(), &secrets);
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
    let of_key = |key: String, says| (vec![("ES_API_KEY", key)], says);
    let faults_of_key = vec![
        of_key(format!("key-1:{WRONG}"), "status 401"),
        of_key(WRONG.into(), "status 401"),
        of_key(format!("key-1:{WRONG}\n"), "has characters that no header can have"),
        (vec![("ES_URL", with_user(&search, "me"))], "is given beside a user"),
    ];
    let faults = faults.into_iter().map(|fault| (BY_PASSWORD, fault));
    let faults = faults.chain(faults_of_key.into_iter().map(|fault| (BY_KEY, fault)));
    let mut wrong = vec![];
    for (es_user, (environment, says)) in faults {
        planted.write(&queries(es_user));
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
        ("'username' 'me', 'password'", "'api_kei'"),
        ("STORED AS DATABASE LOCATION", "STORED AS DATABASE LOKATION"),
    ] {
        let sql = queries(BY_PASSWORD);
        assert!(sql.contains(from), "{from}");
        planted.write(&sql.replace(from, to));
        for verb in [&["check"][..], &["run", "--until-caught-up"]] {
            let (code, text) = planted.output(verb, &[]);
            assert!(code != Some(0) && text.contains("queries/all.sql:"), "{to}: {text}");
            planted.has_none(to, &text);
        }
    }
}

/// What a sink with an outbox says last is in the file of the status, and `status` repeats it.
#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and a schema registry: make test"]
fn nor_in_the_status_of_a_sink_that_refuses_us() {
    let planted = Planted::new();
    let outbox =
        |es_user: &str| queries(es_user).replace("'index' '${NAME}'", "'index' '${NAME}', 'delivery' 'outbox'");
    let with_user = planted.of("ES_URL").replace("https://", &format!("https://me:{WRONG}@"));
    for (es_user, environment, says) in [
        (BY_PASSWORD, vec![("ES_PASSWORD", WRONG)], "status 401"),
        (BY_KEY, vec![("ES_API_KEY", WRONG)], "status 401"),
        ("'compression' 'gzip'", vec![("ES_URL", with_user.as_str())], "status 401"),
        // The right ones, sent to nobody.
        (BY_KEY, vec![("ES_URL", "https://127.0.0.1:1")], "refused"),
    ] {
        planted.write(&outbox(es_user));
        // What the start before has told.
        fs::remove_file(planted.folder.path().join(format!("checkpoint/{}/status", planted.name))).ok();
        let command = planted.command(&["run"], &[&environment[..], &[("POUNDLOCK_LOG", "trace")]].concat());
        // Not among what is looked through: a test's log begins with the command, secrets and all.
        let aside = tempfile::tempdir().unwrap();
        let mut program = Program::start(command, aside.path().join("log"));
        let told = wait_for("its circuit to open", PATIENCE, || {
            program.must_live();
            let (code, text) = planted.output(&["status", "--format", "json"], &environment);
            let status: serde_json::Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
            let sinks = status["sinks"].as_array()?.iter();
            let error = sinks.filter_map(|sink| sink["error"].as_str()).any(|error| error.contains(says));
            (code == Some(0) && error).then_some(text)
        });
        planted.has_none("the status", &told);
        let (_, text) = planted.output(&["status"], &environment);
        assert!(text.contains(says), "{text}");
        planted.has_none("the status in words", &text);
        planted.has_none("the log", &program.log());
        program.kill();
        let secrets = Planted::secrets();
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        assert!(search(planted.folder.path(), &secrets) > 5);
    }
}

/// `migrate` is told how to reach Elasticsearch by flags and environment, `generate` its brokers and the registry.
#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and a schema registry: make test"]
fn nor_by_the_verbs_that_stand_beside_the_run() {
    let planted = Planted::new();
    let templates = planted.folder.path().join("migrations/elasticsearch");
    fs::create_dir_all(&templates).unwrap();
    let template = format!("{{\"index_patterns\": [\"{}-*\"], \"priority\": 502}}", planted.name);
    fs::write(templates.join(format!("{}.json", planted.name)), template).unwrap();
    let (trace, ca) = (("POUNDLOCK_LOG", "trace"), planted.of("CA"));
    let search = planted.of("ES_URL");
    let [right, wrong] = [ELASTICSEARCH, WRONG].map(|user| search.replace("https://", &format!("https://me:{user}@")));
    let other = planted.certificates.path("other-ca.pem");
    for (environment, exit, says) in [
        (vec![("ES_URL", right.as_str()), ("ES_API_KEY", ""), ("ES_CA_FILE", &ca)], 0, "applied template"),
        (vec![("ES_CA_FILE", &ca)], 0, "nothing to apply"),
        (vec![("ES_URL", &wrong), ("ES_API_KEY", ""), ("ES_CA_FILE", &ca)], 2, "status 401"),
        (vec![("ES_API_KEY", WRONG), ("ES_CA_FILE", &ca)], 2, "status 401"),
        (vec![("ES_CA_FILE", &other)], 2, "certificate"),
        (vec![("ES_URL", &right), ("ES_CA_FILE", &ca)], 2, "both a user and an API key"),
    ] {
        let (code, text) = planted.output(&["migrate"], &[&environment[..], &[trace]].concat());
        assert!(code == Some(exit) && text.contains(says), "{environment:?}: {code:?} {text}");
        planted.has_none("migrate", &text);
    }
    planted.server.request("DELETE", &format!("_index_template/{}", planted.name), None);

    let brokers = planted.of("KAFKA_TLS_BROKERS");
    let password = variable("KAFKA_TLS_PASSWORD");
    let generate = |properties: &[String], environment: &[(&str, &str)]| {
        let secured = ["security.protocol=sasl_ssl", "sasl.mechanism=SCRAM-SHA-512", "sasl.username=poundlock"];
        let ca = format!("ssl.ca.location={}", planted.of("KAFKA_TLS_CA"));
        let mut arguments = vec!["generate", "--brokers", &brokers, "--topic", &planted.name, "--count", "10"];
        arguments.extend(["--format", "avro"]);
        for property in secured.into_iter().chain([ca.as_str()]).chain(properties.iter().map(String::as_str)) {
            arguments.extend(["--property", property]);
        }
        let (code, text) = planted.output(&arguments, &[environment, &[trace]].concat());
        planted.has_none("generate", &text);
        (code, text)
    };
    let (url, ca) = (planted.of("REGISTRY_URL"), planted.of("CA"));
    let registry = [
        ("SCHEMA_REGISTRY_URL", url.as_str()),
        ("SCHEMA_REGISTRY_USER", "reg"),
        ("SCHEMA_REGISTRY_PASSWORD", REGISTRY),
        ("SCHEMA_REGISTRY_CA", &ca),
    ];
    let right = [format!("sasl.password={password}")];
    let (code, text) = generate(&right, &registry);
    assert_eq!(code, Some(0), "{text}");
    let mut wrong = registry;
    wrong[2].1 = WRONG;
    let (code, text) = generate(&right, &wrong);
    assert!(code == Some(2) && text.contains("refuses the credentials"), "{text}");
    wrong = registry;
    wrong[3].1 = "";
    let (code, text) = generate(&right, &wrong);
    assert!(code == Some(2) && text.contains("certificate"), "{text}");
    let (code, text) = generate(&[format!("sasl.passwort={WRONG}")], &registry);
    assert!(code == Some(2) && text.contains("sasl.passwort"), "{text}");
}

/// Keys of the environment for the checkpoint, others in OPTIONS for the lake, each for a server of its own.
#[test]
#[ignore = "needs S3: make test"]
fn nor_are_the_keys_of_s3() {
    let (certificates, folders) = (Certificates::make(), [(); 2].map(|()| tempfile::tempdir().unwrap()));
    let of_environment = Secured::start(&certificates, folders[0].path(), "plans", ("env-id", S3_OF_ENVIRONMENT));
    let of_options = Secured::start(&certificates, folders[1].path(), "lake", ("own-id", S3_OF_OPTIONS));
    let secrets = [S3_OF_ENVIRONMENT, S3_OF_OPTIONS, WRONG];
    let has_none = |what: &str, text: &str| {
        if let Some(found) = found(text, &secrets) {
            panic!("{what} shows {found}");
        }
    };
    let mut project = Project::new(Servers::Embedded);
    let own = "PARTITIONED BY (k VARCHAR) OPTIONS ('s3.endpoint' '${LAKE_ENDPOINT}', 's3.access_key_id' 'own-id',
        's3.secret_access_key' '${LAKE_SECRET}', 's3.session_token' '${LAKE_TOKEN:-}')";
    let sql = recovery::project::QUERIES.replacen("PARTITIONED BY (k VARCHAR)", own, 1);
    project.write(&sql);
    project.environment.extend(
        [
            ("LAKE", "s3://lake"),
            ("CHECKPOINT_BASE", "s3://plans/checkpoint"),
            ("AWS_CA_BUNDLE", &certificates.path("ca.pem")),
            ("AWS_ACCESS_KEY_ID", "env-id"),
            ("AWS_SECRET_ACCESS_KEY", S3_OF_ENVIRONMENT),
            ("AWS_ENDPOINT_URL", &of_environment.url),
            ("AWS_ALLOW_HTTP", "false"),
            ("LAKE_ENDPOINT", &of_options.url),
            ("LAKE_SECRET", S3_OF_OPTIONS),
            ("POUNDLOCK_LOG", "trace"),
        ]
        .map(|(name, value)| (name, value.to_string())),
    );
    project.feed(0);
    let log = project.run(&[]);
    assert!(log.contains("TRACE"), "the log is the whole log");
    has_none("the log", &log);
    for arguments in [
        &["check"][..],
        &["status"],
        &["sql", "-c", "SELECT count(*) FROM lake.events; SHOW CREATE TABLE lake.events"],
        &["sql", "-c", "EXPLAIN VERBOSE SELECT * FROM lake.events; SELECT * FROM information_schema.df_settings"],
    ] {
        let output = crate::cli::poundlock(project.folder.path(), arguments).envs(&project.environment).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(!text.is_empty(), "{arguments:?}");
        has_none(&format!("{arguments:?}"), &text);
    }
    let stored = folders.each_ref().map(|folder| search(folder.path(), &secrets));
    assert!(stored.iter().all(|files| *files > 5), "{stored:?}");
    search(project.folder.path(), &secrets);

    // Errors of starts that fail.
    let nowhere = "https://127.0.0.1:1";
    for (name, value, says) in [
        ("AWS_SECRET_ACCESS_KEY", WRONG, "SignatureDoesNotMatch"),
        ("LAKE_SECRET", WRONG, "SignatureDoesNotMatch"),
        ("AWS_SECRET_ACCESS_KEY", "", "its settings do not fit"),
        ("LAKE_ENDPOINT", "http://127.0.0.1:1", "http is not allowed"),
        ("LAKE_ENDPOINT", nowhere, "Connection refused"),
        ("AWS_ENDPOINT_URL", &format!("https://me:{WRONG}@127.0.0.1:1"), "the endpoint has a user"),
        ("AWS_CA_BUNDLE", &certificates.path("other-ca.pem"), "certificate"),
    ] {
        let before = project.environment.insert(name, value.to_string()).unwrap();
        let log = project.refused(&[]);
        recovery::project::contains(log.rsplit_once("\nerror: ").unwrap().1, &[says, "hint: "]);
        has_none(&format!("{name}={value}"), &log);
        project.environment.insert(name, before);
    }
    // A token that such a server does not look at.
    project.environment.extend(["AWS_SESSION_TOKEN", "LAKE_TOKEN"].map(|name| (name, WRONG.to_string())));
    let mut program = project.start(&["--until-caught-up"], "");
    program.wait(PATIENCE);
    assert!(program.log().contains("TRACE"));
    has_none("a token", &program.log());
    project.write(&sql.replace("'s3.session_token'", "'s3.session_tokn'"));
    let log = project.refused(&[]);
    recovery::project::contains(&log, &["queries/all.sql:", "s3.session_token"]);
    has_none("an option that nobody knows", &log);
}
