//! Brokers that are away, as the user of the real binary sees it: at the start, and while it runs.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use poundlock::connector::kafka::mock::MockBroker;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;

use crate::cli::poundlock;
use crate::harness::{Program, wait_for};

const SQLITE: &str = "STORED AS DATABASE LOCATION 'sqlite:out.db'";

/// A project that copies topic `events` of these brokers.
fn project(brokers: &str, sink: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("queries")).unwrap();
    let sql = format!(
        "SET poundlock.name = 'copy';
         CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION 'events'
         OPTIONS ('brokers' '{brokers}');
         CREATE EXTERNAL TABLE copy (id BIGINT) {sink};
         INSERT INTO copy SELECT id FROM events;"
    );
    fs::write(folder.path().join("queries/all.sql"), sql).unwrap();
    folder
}

fn run(folder: &TempDir) -> Program {
    Program::start(poundlock(folder.path(), &["run", "--trigger", "100ms"]), folder.path().join("log"))
}

/// The first line of the log with these words.
fn line(program: &mut Program, words: &str, limit: Duration) -> String {
    wait_for(words, limit, || {
        program.must_live();
        program.log().lines().find(|line| line.contains(words)).map(str::to_string)
    })
}

#[test]
fn brokers_that_do_not_answer_at_the_start_are_told_soon_and_end_it() {
    // Bound and let go again: nobody listens there.
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let kafka = format!("STORED AS KAFKA LOCATION 'copy' OPTIONS ('brokers' '{nowhere}')");
    // The source waits; the sink, which is opened first, waits.
    let folders = [project(&nowhere, SQLITE), project(&nowhere, &kafka)];
    let mut programs = folders.each_ref().map(run);
    for program in &mut programs {
        let first = line(program, "waiting for the Kafka brokers", Duration::from_secs(15));
        let parts = [format!("brokers=\"{nowhere}\""), "attempt=1".into(), "Connection refused".into()];
        assert!(parts.iter().all(|part| first.contains(part)), "{first}");
    }
    for mut program in programs {
        let status = program.wait(Duration::from_secs(60));
        let log = program.log();
        assert_eq!(status.code(), Some(2), "{log}");
        let (told, error) = log.split_once("error: ").expect("an error as the last word");
        assert!(error.starts_with("no Kafka broker has answered within 30s\n"), "{log}");
        for part in
            ["\n  where: ", "brokers ", nowhere.as_str(), "\n  cause: ", "refused", "\nhint: does the broker run"]
        {
            assert!(error.contains(part), "{part:?} is not in\n{log}");
        }
        let waiting = told.lines().filter(|line| line.contains("waiting for the Kafka brokers")).count();
        assert!((3..=5).contains(&waiting) && told.lines().count() < waiting + 5, "{log}");
    }
}

#[test]
fn brokers_that_go_away_while_it_runs_are_missed_once_and_welcomed_back() {
    let broker = MockBroker::start(&[("events", 1)]).unwrap();
    let folder = project(broker.bootstrap_servers(), SQLITE);
    let mut program = run(&folder);
    line(&mut program, "pipeline is running", Duration::from_secs(60));
    let (patience, away, back) = (Duration::from_secs(30), "the Kafka brokers are away", "the Kafka brokers are back");
    broker.with(|cluster| cluster.broker_down(-1)).unwrap().unwrap();
    let told = line(&mut program, away, patience);
    assert!(told.contains("WARN") && told.contains(broker.bootstrap_servers()), "{told}");
    broker.with(|cluster| cluster.broker_up(-1)).unwrap().unwrap();
    let told = line(&mut program, back, patience);
    assert!(told.contains("INFO"), "{told}");

    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker.bootstrap_servers()).create().unwrap();
    let record: BaseRecord<str, str> = BaseRecord::to("events").partition(0).payload("{\"id\":1}");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(patience).unwrap();
    line(&mut program, "committed", patience);
    program.interrupt();
    let log = program.succeed(patience);
    assert_eq!((log.matches(away).count(), log.matches(back).count()), (1, 1), "{log}");
    assert!(!log.contains("librdkafka") && !log.contains("are down"), "{log}");
}
