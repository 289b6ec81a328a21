//! Kafka over TLS, with SASL or a certificate of the client, on the brokers' own secured listeners: read and written, and told clearly where it fails.

use std::fs;
use std::process::Command;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use crate::cli::poundlock;
use crate::harness::{Program, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
}

/// How a client shows who it is.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// This mechanism of SASL, over TLS.
    Sasl(&'static str),
    /// A certificate of its own.
    Certificate,
}

impl Way {
    fn options(self) -> String {
        let (brokers, own) = match self {
            Self::Sasl(mechanism) => (
                "KAFKA_TLS_BROKERS",
                format!(
                    "'kafka.security.protocol' 'sasl_ssl', 'kafka.sasl.mechanism' '{mechanism}',
                     'kafka.sasl.username' 'poundlock', 'kafka.sasl.password' '${{PASSWORD}}'"
                ),
            ),
            Self::Certificate => (
                "KAFKA_SSL_BROKERS",
                "'kafka.security.protocol' 'ssl', 'kafka.ssl.certificate.location' '${KAFKA_SSL_CERTIFICATE}',
                 'kafka.ssl.key.location' '${KAFKA_SSL_KEY}'"
                    .to_string(),
            ),
        };
        format!("OPTIONS ('brokers' '${{{brokers}}}', 'kafka.ssl.ca.location' '${{CA}}', {own})")
    }
}

/// A project that copies one topic to another, both over a secured listener.
fn project(topic: &str, way: Way) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("queries")).unwrap();
    let options = way.options();
    let sql = format!(
        "SET poundlock.name = '{topic}';
         CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION '{topic}' {options};
         CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS KAFKA LOCATION '{topic}-copy' {options};
         INSERT INTO copy SELECT id * 2 AS id FROM events;"
    );
    fs::write(folder.path().join("queries/all.sql"), sql).unwrap();
    folder
}

fn run(folder: &TempDir, host: &str, ca: &str, password: &str) -> Program {
    let mut command: Command = poundlock(folder.path(), &["run", "--until-caught-up"]);
    for name in ["KAFKA_TLS_BROKERS", "KAFKA_SSL_BROKERS"] {
        command.env(name, variable(name).replace("127.0.0.1", host));
    }
    for name in ["KAFKA_SSL_CERTIFICATE", "KAFKA_SSL_KEY"] {
        command.env(name, variable(name));
    }
    command.env("CA", ca).env("PASSWORD", password);
    Program::start(command, folder.path().join("log"))
}

#[test]
#[ignore = "needs Kafka: make test"]
fn a_secured_topic_is_read_and_written() {
    let config = ClientConfig::new().set("bootstrap.servers", variable("KAFKA_BROKERS")).clone();
    for way in [Way::Sasl("PLAIN"), Way::Sasl("SCRAM-SHA-256"), Way::Sasl("SCRAM-SHA-512"), Way::Certificate] {
        println!("{way:?}");
        copies(&config, way);
    }
}

fn copies(config: &ClientConfig, way: Way) {
    let topic = format!("secured-{}", uuid::Uuid::new_v4());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let topics = [topic.clone(), format!("{topic}-copy")];
    let topics = topics.each_ref().map(|topic| NewTopic::new(topic, 1, TopicReplication::Fixed(1)));
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    block_on(admin.create_topics(&topics, &options)).unwrap().into_iter().for_each(|made| drop(made.unwrap()));
    // Put in and taken out by plain clients.
    let producer: BaseProducer = config.create().unwrap();
    for id in 0..100 {
        let payload = format!("{{\"id\":{id}}}");
        let record: BaseRecord<str, str> = BaseRecord::to(&topic).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let folder = project(&topic, way);
    let password = variable("KAFKA_TLS_PASSWORD");
    let log = run(&folder, "127.0.0.1", &variable("KAFKA_TLS_CA"), &password).succeed(PATIENCE);
    assert!(!log.contains(&password), "{log}");
    let consumer: BaseConsumer =
        config.clone().set("group.id", &topic).set("auto.offset.reset", "earliest").create().unwrap();
    consumer.subscribe(&[&format!("{topic}-copy")]).unwrap();
    let mut ids = vec![];
    while ids.len() < 100 {
        let message = wait_for("a message", PATIENCE, || consumer.poll(Duration::from_millis(100))).unwrap();
        let value: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        ids.push(value["id"].as_i64().unwrap());
    }
    assert_eq!(ids, (0..100).map(|id| id * 2).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs Kafka: make test"]
fn a_wrong_ca_host_or_password_is_told_as_such() {
    let (ca, other, password) =
        (variable("KAFKA_TLS_CA"), variable("KAFKA_TLS_OTHER_CA"), variable("KAFKA_TLS_PASSWORD"));
    let (plain, here) = (Way::Sasl("PLAIN"), "127.0.0.1");
    let wrong = [
        (plain, here, &other, password.as_str(), "certificate"),
        // The certificate is for the address alone.
        (plain, "localhost", &ca, password.as_str(), "certificate"),
        (plain, here, &ca, "battery-staple", "uthentication failed"),
        (Way::Sasl("SCRAM-SHA-256"), here, &ca, "battery-staple", "uthentication failed"),
        (Way::Sasl("SCRAM-SHA-512"), here, &ca, "battery-staple", "uthentication failed"),
        (Way::Certificate, here, &other, password.as_str(), "certificate"),
    ];
    let running = wrong.map(|(way, host, ca, password, says)| {
        let folder = project("secured-wrong", way);
        (run(&folder, host, ca, password), folder, password, says)
    });
    for (mut program, _folder, password, says) in running {
        let first = wait_for("a line that tells why", PATIENCE, || {
            program.log().lines().find(|line| line.contains("waiting for the Kafka brokers")).map(str::to_string)
        });
        assert!(first.contains(says), "{first}");
        let status = program.wait(PATIENCE);
        let log = program.log();
        assert_eq!(status.code(), Some(2), "{log}");
        let (_, error) = log.split_once("error: ").expect("an error as the last word");
        for part in ["no Kafka broker has answered", "where: ", "cause: ", says, "hint: check the table's options"] {
            assert!(error.contains(part), "{part:?} is not in\n{log}");
        }
        assert!(!log.contains(password), "{log}");
    }
}
