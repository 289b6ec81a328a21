//! Kafka over TLS with SASL, on the brokers' own secured listener: read and written, and told clearly where it fails.

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

/// A project that copies one topic to another, both over the secured listener.
fn project(topic: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("queries")).unwrap();
    let options = "OPTIONS ('brokers' '${KAFKA_TLS_BROKERS}', 'kafka.security.protocol' 'sasl_ssl',
         'kafka.ssl.ca.location' '${CA}', 'kafka.sasl.mechanism' 'PLAIN', 'kafka.sasl.username' 'poundlock',
         'kafka.sasl.password' '${PASSWORD}')";
    let sql = format!(
        "SET poundlock.name = '{topic}';
         CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION '{topic}' {options};
         CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS KAFKA LOCATION '{topic}-copy' {options};
         INSERT INTO copy SELECT id * 2 AS id FROM events;"
    );
    fs::write(folder.path().join("queries/all.sql"), sql).unwrap();
    folder
}

fn run(folder: &TempDir, ca: &str, password: &str) -> Program {
    let mut command: Command = poundlock(folder.path(), &["run", "--until-caught-up"]);
    command.env("KAFKA_TLS_BROKERS", variable("KAFKA_TLS_BROKERS")).env("CA", ca).env("PASSWORD", password);
    Program::start(command, folder.path().join("log"))
}

#[test]
#[ignore = "needs Kafka: make test"]
fn a_secured_topic_is_read_and_written() {
    let config = ClientConfig::new().set("bootstrap.servers", variable("KAFKA_BROKERS")).clone();
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
    let folder = project(&topic);
    let password = variable("KAFKA_TLS_PASSWORD");
    let log = run(&folder, &variable("KAFKA_TLS_CA"), &password).succeed(PATIENCE);
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
fn a_wrong_ca_and_a_wrong_password_are_told_as_such() {
    let (ca, other, password) =
        (variable("KAFKA_TLS_CA"), variable("KAFKA_TLS_OTHER_CA"), variable("KAFKA_TLS_PASSWORD"));
    let wrong = [(&other, password.as_str(), "certificate"), (&ca, "battery-staple", "uthentication failed")];
    let running = wrong.map(|(ca, password, says)| {
        let folder = project("secured-wrong");
        (run(&folder, ca, password), folder, password, says)
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
