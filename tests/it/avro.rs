//! Avro on a real Kafka with a real schema registry: read beside JSON, written, refused before the batch, and with the
//! registry away.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, from_avro_datum, to_avro_datum};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::poundlock;
use crate::harness::{Program, create_topics, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
}

/// One request to the registry, by curl: not our own client.
pub fn ask(method: &str, path: &str, body: &Value) -> Value {
    let url = format!("{}/{path}", variable("SCHEMA_REGISTRY_URL"));
    let kind = "Content-Type: application/vnd.schemaregistry.v1+json";
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "20", "-X", method, "-H", kind]);
    if !body.is_null() {
        command.args(["-d", &body.to_string()]);
    }
    let output = command.arg(url).output().expect("curl is installed: see tests/services/prerequisites");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn register(subject: &str, schema: &str) -> u32 {
    let answer = ask("POST", &format!("subjects/{subject}/versions"), &json!({"schema": schema}));
    answer["id"].as_u64().unwrap_or_else(|| panic!("{answer}")).try_into().unwrap()
}

/// A topic and its copy, and a project that reads the one and writes the other.
struct World {
    topic: String,
    copy: String,
    folder: TempDir,
    producer: BaseProducer,
}

impl World {
    /// `sql`: what is done, with `TOPIC`, `COPY` and `ACCESS` (brokers and registry) to be filled in.
    fn new(sql: &str) -> Self {
        let topic = format!("avro-{}", uuid::Uuid::new_v4());
        let copy = format!("{topic}-copy");
        create_topics(&variable("KAFKA_BROKERS"), &[(&topic, 2), (&copy, 1)], &[]);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("queries")).unwrap();
        let producer = ClientConfig::new().set("bootstrap.servers", variable("KAFKA_BROKERS")).create().unwrap();
        let world = Self { topic, copy, folder, producer };
        world.write(sql);
        world
    }

    /// Puts other SQL in the place of what is there: see [`World::new`].
    fn write(&self, sql: &str) {
        let options = "'brokers' '${KAFKA_BROKERS}', 'schema.registry.url' '${SCHEMA_REGISTRY_URL}'";
        let sql = sql.replace("TOPIC", &self.topic).replace("COPY", &self.copy).replace("ACCESS", options);
        let text = format!("SET poundlock.name = '{}';\n{sql}", self.topic);
        fs::write(self.folder.path().join("queries/all.sql"), text).unwrap();
    }

    fn send(&self, payloads: impl IntoIterator<Item = Vec<u8>>) {
        for payload in payloads {
            let record: BaseRecord<str, [u8]> = BaseRecord::to(&self.topic).payload(&payload);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        self.producer.flush(PATIENCE).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = poundlock(self.folder.path(), arguments);
        for name in ["KAFKA_BROKERS", "SCHEMA_REGISTRY_URL"] {
            command.env(name, variable(name));
        }
        command
    }

    fn start(&self, command: Command) -> Program {
        Program::start(command, self.folder.path().join("log"))
    }

    fn run(&self, arguments: &[&str]) -> Program {
        self.start(self.command(&[&["run"], arguments].concat()))
    }

    /// The values of the copy that are committed now.
    fn copied(&self) -> Vec<Vec<u8>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", variable("KAFKA_BROKERS")).set("group.id", &self.copy);
        let consumer: BaseConsumer = config.set("enable.partition.eof", "true").create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(&self.copy, 0, Offset::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        let mut values = vec![];
        loop {
            match wait_for("a message or the end", PATIENCE, || consumer.poll(Duration::from_millis(100))) {
                Ok(message) => values.push(message.payload().unwrap_or_default().to_vec()),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return values,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until so many are there.
    fn copies(&self, count: usize) -> Vec<Vec<u8>> {
        wait_for("the rows in the copy", PATIENCE, || Some(self.copied()).filter(|values| values.len() >= count))
    }

    /// What `poundlock sql` prints for a query, CSV without its header.
    fn sql(&self, query: &str) -> String {
        let output = self.command(&["sql", "--format", "csv", "-c", query]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_once('\n').unwrap().1.trim().to_string()
    }
}

const FIRST: &str = r#"{"type": "record", "name": "event", "fields": [{"name": "id", "type": "int"}]}"#;
const SECOND: &str = r#"{"type": "record", "name": "event", "fields": [{"name": "id", "type": "long"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}, "default": 0},
    {"name": "tags", "type": {"type": "map", "values": "string"}, "default": {}},
    {"name": "kind", "type": {"type": "enum", "name": "kind", "symbols": ["A", "B"]}, "default": "A"}]}"#;

fn framed(id: u32, schema: &str, value: Avro) -> Vec<u8> {
    let datum = to_avro_datum(&Schema::parse_str(schema).unwrap(), value).unwrap();
    [&[0], id.to_be_bytes().as_slice(), &datum].concat()
}

fn first(id: u32, value: i32) -> Vec<u8> {
    framed(id, FIRST, Avro::Record(vec![("id".into(), Avro::Int(value))]))
}

fn second(id: u32, value: i64) -> Vec<u8> {
    let fields = vec![
        ("id".into(), Avro::Long(value)),
        ("at".into(), Avro::TimestampMillis(1_700_000_000_000)),
        ("tags".into(), Avro::Map([("k".to_string(), Avro::String("v".into()))].into())),
        ("kind".into(), Avro::Enum(1, "B".into())),
    ];
    framed(id, SECOND, Avro::Record(fields))
}

const COPYING: &str = "
    CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT, at TIMESTAMPTZ, kind VARCHAR, tags MAP(VARCHAR, VARCHAR), _error VARCHAR)
    STORED AS KAFKA LOCATION 'TOPIC' OPTIONS (ACCESS, 'format' 'auto');
    CREATE EXTERNAL TABLE copy (id BIGINT, at TIMESTAMPTZ, kind VARCHAR, error VARCHAR, tags MAP(VARCHAR, VARCHAR))
    STORED AS KAFKA LOCATION 'COPY' OPTIONS (ACCESS, 'format' 'avro');
    INSERT INTO copy SELECT id, at, kind, _error, tags FROM events;";

#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn avro_of_several_schemas_and_json_on_one_topic_become_rows_and_are_written_as_avro() {
    let world = World::new(COPYING);
    let subject = format!("{}-value", world.topic);
    let one = register(&subject, FIRST);
    let two = register(&subject, SECOND);
    let bad = vec![vec![0, 0], [&[0], 0x7fff_0000_u32.to_be_bytes().as_slice(), &[2]].concat(), b"no json".to_vec()];
    let cut_off = second(two, 4)[..8].to_vec();
    world.send([first(one, 1), b"{\"id\": 2}".to_vec(), second(two, 3), cut_off].into_iter().chain(bad));
    world.run(&["--until-caught-up"]).succeed(PATIENCE);
    // The schema of the copy is registered, and other readers understand it.
    let version = ask("GET", &format!("subjects/{}-value/versions/latest", world.copy), &Value::Null);
    let schema = Schema::parse_str(version["schema"].as_str().unwrap()).unwrap();
    let mut rows: Vec<(String, String)> = vec![];
    for value in world.copied() {
        assert_eq!(value[..5], [&[0], (version["id"].as_u64().unwrap() as u32).to_be_bytes().as_slice()].concat());
        let Avro::Record(fields) = from_avro_datum(&schema, &mut &value[5..], None).unwrap() else { panic!() };
        let shown = |at: usize| match &fields[at].1 {
            Avro::Union(_, inner) => format!("{inner:?}"),
            other => format!("{other:?}"),
        };
        rows.push((format!("{} {} {}", shown(0), shown(1), shown(2)), shown(3)));
    }
    rows.sort();
    let (good, bad): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, error)| error == "Null");
    let good: Vec<String> = good.into_iter().map(|(row, _)| row).collect();
    let at = "TimestampMicros(1700000000000000)";
    assert_eq!(good, ["Long(1) Null Null", "Long(2) Null Null", &format!("Long(3) {at} String(\"B\")")]);
    let reasons = bad.iter().map(|(_, error)| error.as_str()).collect::<Vec<_>>().join("\n");
    for part in [
        "not JSON: ",
        "not Avro by its schema: it ends too early (byte ",
        "not Avro: 2 bytes are too few for the id of a schema",
        "schema 2147418112 is not in the registry",
    ] {
        assert!(reasons.contains(part), "{part:?} is not in {reasons}");
    }
    assert_eq!(bad.len(), 4);
    assert!(bad.iter().all(|(row, _)| row == "Null Null Null"), "{bad:?}");
    // At the prompt, what the pipeline wrote is read back.
    assert_eq!(world.sql("SELECT count(*), count(id), sum(id), count(error) FROM copy"), "7,3,6,4");
    assert_eq!(world.sql("SELECT id, tags['k'] FROM copy WHERE tags IS NOT NULL"), "3,v");
}

#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn a_schema_that_is_not_compatible_is_told_before_anything_is_written() {
    let world = World::new(COPYING);
    register(
        &format!("{}-value", world.copy),
        r#"{"type": "record", "name": "copy", "fields": [{"name": "id", "type": "string"}]}"#,
    );
    world.send([b"{\"id\": 2}".to_vec()]);
    let mut program = world.run(&["--until-caught-up"]);
    let status = program.wait(PATIENCE);
    let log = program.log();
    assert_eq!(status.code(), Some(2), "{log}");
    for part in
        ["the schema is not compatible with those that are registered", "table public.copy", "hint: change the columns"]
    {
        assert!(log.contains(part), "{part:?} is not in\n{log}");
    }
    assert!(world.copied().is_empty());
}

/// With 'schema.register' 'false' nothing is registered, and what is there is taken.
#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn the_subject_is_that_of_the_strategy_and_is_made_only_where_that_is_wanted() {
    for strategy in ["topic", "record", "topic_record"] {
        let name = format!("r{}", uuid::Uuid::new_v4().simple());
        let schema = json!({"type": "record", "name": name, "namespace": "it.avro",
            "fields": [{"name": "id", "type": ["null", "long"], "default": null}]});
        let sql = |registers: bool| {
            format!(
                "CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION 'TOPIC' OPTIONS (ACCESS, 'format' 'json');
                 CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS KAFKA LOCATION 'COPY' OPTIONS (ACCESS, 'format' 'avro',
                   'avro.schema' '{schema}', 'schema.subject.strategy' '{strategy}', 'schema.register' '{registers}');
                 INSERT INTO copy SELECT id FROM events;"
            )
        };
        let world = World::new(&sql(false));
        let subject = match strategy {
            "topic" => format!("{}-value", world.copy),
            "record" => format!("it.avro.{name}"),
            _ => format!("{}-it.avro.{name}", world.copy),
        };
        world.send([b"{\"id\": 1}".to_vec()]);
        let error = world.run(&["--until-caught-up"]).fails(PATIENCE);
        for part in ["the schema is not registered", &format!("subject {subject:?}"), "hint: register it"] {
            assert!(error.contains(part), "{strategy}: {part:?} is not in\n{error}");
        }
        let latest = || ask("GET", &format!("subjects/{subject}/versions/latest"), &Value::Null);
        assert_eq!(latest()["error_code"], 40401, "{strategy}: nothing was registered");

        world.write(&sql(true));
        world.run(&["--until-caught-up"]).succeed(PATIENCE);
        let id = latest()["id"].as_u64().unwrap_or_else(|| panic!("{strategy}: {}", latest())) as u32;
        world.write(&sql(false));
        world.send([b"{\"id\": 2}".to_vec()]);
        world.run(&["--until-caught-up"]).succeed(PATIENCE);
        let copied = world.copies(2);
        assert!(copied.iter().all(|value| value[..5] == [&[0], id.to_be_bytes().as_slice()].concat()), "{copied:?}");
    }
}

/// A schema whose references have no end within reason: its records are bad rows, though they come first, and the others go on.
#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn one_schema_that_cannot_be_had_whole_stops_nothing() {
    const CHAIN: u32 = 35;
    let world = World::new(COPYING);
    let mut long = 0;
    for number in 0..CHAIN {
        let mut fields = vec![json!({"name": "id", "type": "int"})];
        let mut references = vec![];
        if number > 0 {
            let before = format!("it.r{}", number - 1);
            fields.push(json!({"name": "more", "type": ["null", before], "default": null}));
            references
                .push(json!({"name": before, "subject": format!("{}-{}", world.topic, number - 1), "version": 1}));
        }
        let schema = json!({"type": "record", "name": format!("r{number}"), "namespace": "it", "fields": fields});
        let body = json!({"schema": schema.to_string(), "references": references});
        let answer = ask("POST", &format!("subjects/{}-{number}/versions", world.topic), &body);
        long = answer["id"].as_u64().unwrap_or_else(|| panic!("{answer}")) as u32;
    }
    let good = register(&format!("{}-value", world.topic), FIRST);
    let of_long = [&[0], long.to_be_bytes().as_slice(), &[2, 0]].concat();
    let beyond = [&[0], u32::MAX.to_be_bytes().as_slice(), &[2]].concat();
    world.send([of_long, beyond, first(good, 1)]);
    world.run(&["--until-caught-up"]).succeed(PATIENCE);
    assert_eq!(world.sql("SELECT count(*), sum(id) FROM copy WHERE error IS NULL"), "1,1");
    let errors = world.sql("SELECT error FROM copy WHERE error IS NOT NULL ORDER BY error");
    for part in [
        "schema 4294967295 is not in the registry",
        &format!("schema {long} is not usable: it refers to a schema that refers to another, and so on"),
    ] {
        assert!(errors.contains(part), "{part:?} is not in {errors}");
    }
}

#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn generated_avro_is_read_row_by_row() {
    let world = World::new(
        "CREATE UNBOUNDED EXTERNAL TABLE events (user_id BIGINT, \"timestamp\" TIMESTAMP, ip_address VARCHAR, _error VARCHAR)
         STORED AS KAFKA LOCATION 'TOPIC' OPTIONS (ACCESS, 'format' 'avro');",
    );
    let mut command = world.command(&["generate", "--format", "avro", "--rate", "0", "--count", "2000"]);
    command.args(["--invalid-share", "0.1", "--topic", &world.topic, "--brokers", &variable("KAFKA_BROKERS")]);
    world.start(command).succeed(PATIENCE);
    let counts = world.sql("SELECT count(*), count(_error) > 80, count(user_id) + count(_error) < 2000, count(DISTINCT \"timestamp\") > 1000 FROM events");
    assert_eq!(counts, "2000,true,true,true");
}

/// Hands connections on to the registry, unless it is told that the registry is away.
struct Proxy {
    url: String,
    away: Arc<AtomicBool>,
}

impl Proxy {
    fn start() -> Self {
        let real = variable("SCHEMA_REGISTRY_URL");
        let (host, path) = real.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let (host, away) = (host.to_string(), Arc::new(AtomicBool::new(false)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{path}", listener.local_addr().unwrap());
        let is_away = Arc::clone(&away);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (host, away) = (host.clone(), Arc::clone(&is_away));
                // A connection that is dropped is a registry that is away.
                if !away.load(Ordering::SeqCst) {
                    std::thread::spawn(move || hand_on(client, &host, &away));
                }
            }
        });
        Self { url, away }
    }

    fn is_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

/// Until either side closes, or the registry is away.
fn hand_on(mut client: TcpStream, host: &str, away: &AtomicBool) {
    let mut server = TcpStream::connect(host).unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    }
    let mut bytes = [0; 8192];
    while !away.load(Ordering::SeqCst) {
        for turn in [true, false] {
            let (from, to) = if turn { (&mut client, &mut server) } else { (&mut server, &mut client) };
            match from.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) if to.write_all(&bytes[..count]).is_err() => return,
                Err(error) if ![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => return,
                _ => {}
            }
        }
    }
}

#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn a_registry_that_is_away_stops_neither_a_warm_pipeline_nor_a_warm_start() {
    let world = World::new(COPYING);
    let proxy = Proxy::start();
    let one = register(&format!("{}-value", world.topic), FIRST);
    let two = register(&format!("{}-value", world.topic), SECOND);
    let run = |more: &[&str]| {
        let mut command = world.command(&[&["run", "--trigger", "100ms"], more].concat());
        command.env("SCHEMA_REGISTRY_URL", &proxy.url);
        world.start(command)
    };
    let mut program = run(&[]);
    world.send((0..10).map(|value| first(one, value)));
    world.copies(10);
    proxy.is_away(true);
    world.send((10..20).map(|value| first(one, value)));
    world.copies(20);
    // One with a schema that is not known yet is waited for, not refused.
    world.send((20..30).map(|value| second(two, value)));
    wait_for("a line about the registry", PATIENCE, || {
        program.must_live();
        program.log().contains("reading waits for the schema registry").then_some(())
    });
    proxy.is_away(false);
    world.copies(30);
    proxy.is_away(true);
    program.kill();
    // What is in the checkpoint is enough to start, to read both schemas and to write.
    world.send((30..40).flat_map(|value| [first(one, value), second(two, value.into())]));
    let log = run(&["--until-caught-up"]).succeed(PATIENCE);
    assert!(log.contains("the id it gave before is taken"), "{log}");
    let copied = world.copied();
    assert_eq!(copied.len(), 50);
}

#[test]
#[ignore = "needs Kafka and a schema registry: make test"]
fn a_registry_that_is_away_at_a_first_start_is_told_and_waited_for_half_a_minute() {
    let sql = COPYING.replace("'format' 'avro'", "'format' 'json'");
    let world = World::new(&sql);
    let proxy = Proxy::start();
    proxy.is_away(true);
    let one = register(&format!("{}-value", world.topic), FIRST);
    world.send([first(one, 1)]);
    let mut command = world.command(&["run", "--until-caught-up"]);
    command.env("SCHEMA_REGISTRY_URL", proxy.url.replace("http://", "http://me:hunter2-secret@"));
    let mut program = world.start(command);
    let began = Instant::now();
    wait_for("a line about the registry", PATIENCE, || {
        program.log().contains("reading waits for the schema registry").then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(20));
    let status = program.wait(PATIENCE);
    let log = program.log();
    assert_eq!(status.code(), Some(2), "{log}");
    for part in ["error: the schema registry does not answer", "hint: nothing is lost"] {
        assert!(log.contains(part), "{part:?} is not in\n{log}");
    }
    assert!(!log.contains("hunter2"), "{log}");
    assert!(world.copied().is_empty());
}
