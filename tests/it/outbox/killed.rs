//! Real servers behind an outbox, killed by pid before a start and in the middle: an Elasticsearch, a PostgreSQL, a Kafka. The other sinks
//! go on, and each row is there once when they are back.

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::servers::Own;
use super::{of_outbox, produce, says, status, told};
use crate::harness::{Program, create_topics, psql, wait_for};
use crate::recovery::contents::messages;
use crate::recovery::project::{LIMIT, Project, QUERIES, Servers, contains};

/// With an outbox for Elasticsearch, in the project of the recovery tests.
fn with_outbox_for_elasticsearch(project: &Project) {
    let queries = QUERIES.replace("'bulk.rows' '3'", "'bulk.rows' '3', 'timeout' '2 seconds', 'delivery' 'outbox'");
    project.write(&queries);
}

fn document_ids(server: &Own, index: &str) -> Vec<i64> {
    let documents = server.client().documents(index);
    let mut ids: Vec<i64> = documents.iter().map(|(_, document)| document["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// A real server, killed for a while: the others go on, and all documents are there once when it is back.
#[test]
#[ignore = "needs Elasticsearch: make test"]
fn elasticsearch_is_killed_and_nothing_stops() {
    let server = Own::elasticsearch();
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("ES_URL", server.url());
    with_outbox_for_elasticsearch(&project);
    let index = format!("{}_copies", project.name);
    let mapping = json!({ "mappings": { "dynamic": false, "properties": { "id": { "type": "short" } } } });
    server.client().put(&index, &mapping);
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    let goes_on = |program: &mut Program, to: i64| {
        wait_for("the required sinks", LIMIT, || {
            program.must_live();
            (project.ids("shares").len() as i64 == to && project.lake().len() as i64 == to).then_some(())
        });
    };
    produce(&project, 0..50);
    goes_on(&mut program, 50);
    wait_for("the first documents", LIMIT, || (document_ids(&server, &index).len() == 50).then_some(()));

    server.kill();
    for stage in 1..5 {
        produce(&project, stage * 50..stage * 50 + 50);
        goes_on(&mut program, stage * 50 + 50);
    }
    let sink = told(&project, "open");
    assert!(sink["error"].as_str().unwrap().contains("127.0.0.1"), "{sink:#}");
    program.kill();
    // A start while it is dead.
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    produce(&project, 250..299);
    // The mapping has no room for it.
    produce(&project, 100_000..100_001);
    goes_on(&mut program, 300);
    told(&project, "open");

    server.start_again();
    says(&mut program, "circuit closed");
    let expected: Vec<i64> = (0..299).collect();
    wait_for("all documents", LIMIT, || {
        program.must_live();
        (document_ids(&server, &index) == expected).then_some(())
    });
    let dead = wait_for("the dead letter", LIMIT, || {
        program.must_live();
        messages(&project, project.topic("DEAD")).pop()
    });
    contains(&dead, &["document_parsing_exception", "\"sink\":\"es.copies\""]);
    told(&project, "closed");
    // Killed while it delivers what has come meanwhile.
    server.kill();
    produce(&project, 300..400);
    goes_on(&mut program, 400);
    server.start_again();
    wait_for("some more documents", LIMIT, || (document_ids(&server, &index).len() > 299).then_some(()));
    program.kill();
    project.run(&["--close-windows"]);
    let expected: Vec<i64> = (0..299).chain(300..400).collect();
    assert_eq!(document_ids(&server, &index), expected);
    // The counts of windows, brought up to date out of the outbox: the newest stays.
    let counts = server.client().documents(&format!("{}_counts", project.name));
    let total: i64 = counts.iter().map(|(_, document)| document["n"].as_i64().unwrap()).sum();
    assert_eq!(total, 400);
    assert_eq!(messages(&project, project.topic("DEAD")).len(), 1);
}

/// A required sink makes its batch wait: it is told for what, and nothing is skipped.
#[test]
#[ignore = "needs Elasticsearch: make test"]
fn a_required_sink_that_dies_is_waited_for_and_told() {
    let server = Own::elasticsearch();
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("ES_URL", server.url());
    project.write(&QUERIES.replace("'bulk.rows' '3'", "'bulk.rows' '3', 'timeout' '2 seconds'"));
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    server.kill();
    produce(&project, 0..20);
    let sink = wait_for("its circuit to open", LIMIT, || {
        program.must_live();
        let status = status(&project);
        let sinks = status["sinks"].as_array().unwrap().clone();
        sinks.into_iter().find(|sink| sink["circuit"] == "open" || sink["circuit"] == "half_open")
    });
    assert!(sink["delivery"] == "required" && sink["name"].as_str().unwrap().starts_with("elasticsearch"), "{sink:#}");
    contains(&program.log(), &["circuit open, could not write; its batch waits, and with it all that follow"]);
    server.start_again();
    says(&mut program, "circuit closed");
    let index = format!("{}_copies", project.name);
    wait_for("all documents", LIMIT, || (document_ids(&server, &index).len() == 20).then_some(()));
    program.interrupt();
    program.succeed(LIMIT);
    assert_eq!(project.ids("shares"), (0..20).collect::<Vec<_>>());
}

/// The required sinks have so many rows.
fn goes_on(project: &Project, program: &mut Program, to: i64) {
    wait_for("the required sinks", LIMIT, || {
        program.must_live();
        (project.ids("shares").len() as i64 == to && project.lake().len() as i64 == to).then_some(())
    });
}

/// The log, or the status, tells that the server is away. One attempt to reach brokers takes half a minute, and it takes five to open
/// a circuit.
fn told_away(project: &Project, program: &mut Program, server: &Own) {
    match server.is_kafka() {
        true => says(program, "waiting for the Kafka brokers"),
        false => drop(told(project, "open")),
    }
}

/// The same of its return.
fn told_back(program: &mut Program, server: &Own) {
    if !server.is_kafka() {
        says(program, "circuit closed");
    }
}

/// What a table with an outbox, in a server that is killed, goes through: dead at the first start, in the middle of deliveries and at a
/// later start, the process killed too; then back. `ids`: what is in the server now, each as often as it is there.
fn dies_and_comes_back(project: &Project, server: &Own, ids: impl Fn() -> Vec<i64>) {
    let expected = |to: i64| (0..to).collect::<Vec<_>>();
    let all_there = |program: &mut Program, to: i64| {
        wait_for("all rows in the server", 2 * LIMIT, || {
            program.must_live();
            (ids().len() as i64 >= to).then_some(())
        });
        assert_eq!(ids(), expected(to));
    };
    // Each batch has some rows only, so that there are many.
    let few = ["--max-rows-per-batch", "20"];
    // Dead at the first start of all.
    server.kill();
    let mut program = project.start(&few, "");
    says(&mut program, "pipeline is running");
    produce(project, 0..50);
    goes_on(project, &mut program, 50);
    told_away(project, &mut program, server);
    server.start_again();
    told_back(&mut program, server);
    all_there(&mut program, 50);

    // In the middle of what it is given.
    produce(project, 50..400);
    wait_for("some more rows", LIMIT, || (ids().len() > 50).then_some(()));
    server.kill();
    produce(project, 400..500);
    goes_on(project, &mut program, 500);
    let sink = match server.is_kafka() {
        true => of_outbox(&status(project)),
        false => told(project, "open"),
    };
    assert!(sink["outbox"]["batches"].as_u64().unwrap() > 0, "{sink:#}");
    program.kill();

    // Dead at a start, which goes on as well.
    let mut program = project.start(&few, "");
    says(&mut program, "pipeline is running");
    produce(project, 500..600);
    goes_on(project, &mut program, 600);
    told_away(project, &mut program, server);

    server.start_again();
    told_back(&mut program, server);
    all_there(&mut program, 600);
    produce(project, 600..650);
    goes_on(project, &mut program, 650);
    all_there(&mut program, 650);
    told(project, "closed");

    // The process killed while it delivers what has come meanwhile.
    server.kill();
    produce(project, 650..1_000);
    goes_on(project, &mut program, 1_000);
    server.start_again();
    wait_for("some more rows", 2 * LIMIT, || (ids().len() > 650).then_some(()));
    program.kill();
    project.run(&[]);
    assert_eq!(ids(), expected(1_000));
    assert_eq!(project.ids("shares"), expected(1_000));
    assert_eq!(of_outbox(&status(project))["outbox"]["batches"], 0);
}

#[test]
#[ignore = "needs PostgreSQL: make test"]
fn postgresql_is_killed_and_nothing_stops() {
    let server = Own::postgres();
    psql(&server.url(), "CREATE TABLE copies (id bigint, share bigint)");
    let mut project = super::project();
    // A server that is killed is away a moment later; a short time-out lets the circuit open soon.
    project.environment.insert("LATE_URL", server.url());
    project.write(&format!("{QUERIES}{}", super::LATE.replace("100 ms", "3 seconds")));
    let psql_ids = || {
        // It may be on its way up or down.
        let output = std::process::Command::new("psql")
            .args([&server.url(), "-X", "-q", "-A", "-t", "-c", "SELECT id FROM copies ORDER BY id"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|id| id.parse().unwrap()).collect()
    };
    dies_and_comes_back(&project, &server, psql_ids);
}

/// A topic of another cluster than the source's.
const ELSEWHERE: &str = "
CREATE EXTERNAL TABLE kafka.elsewhere (id BIGINT, share BIGINT) STORED AS KAFKA LOCATION 'elsewhere'
  OPTIONS ('brokers' '${ELSEWHERE}', 'delivery' 'outbox');
INSERT INTO kafka.elsewhere SELECT id, share FROM valid;
";

#[test]
#[ignore = "needs Kafka: make test"]
fn kafka_is_killed_and_nothing_stops() {
    let server = Own::kafka();
    create_topics(&server.address(), &[("elsewhere", 1)], &[]);
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("ELSEWHERE", server.address());
    project.write(&format!("{QUERIES}{ELSEWHERE}"));
    dies_and_comes_back(&project, &server, || committed_ids(&server.address(), "elsewhere"));
}

/// Of what is committed in the only partition of a topic; as far as the broker answers.
fn committed_ids(brokers: &str, topic: &str) -> Vec<i64> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "a test").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.set("log_level", "0").create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    let mut ids = vec![];
    let began = std::time::Instant::now();
    while began.elapsed() < LIMIT / 4 {
        match consumer.poll(std::time::Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let row: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                ids.push(row["id"].as_i64().unwrap());
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(_)) | None => {}
        }
    }
    ids.sort_unstable();
    ids
}
