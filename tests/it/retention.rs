//! Records that retention removes before they are read: a pipeline that may go on without them says which.

use std::fs;
use std::time::Duration;

use futures::executor::block_on;
use poundlock::checkpoint::Checkpoint;
use poundlock::connector::Loss;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::cli::poundlock;
use crate::harness::Program;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs Kafka: make test"]
fn losses_stand_in_the_commit_by_partition() {
    let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS: run this through `make test`");
    let topic = format!("retention-{}", uuid::Uuid::new_v4());
    let config = ClientConfig::new().set("bootstrap.servers", &brokers).clone();
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let made = block_on(admin.create_topics([&NewTopic::new(&topic, 3, TopicReplication::Fixed(1))], &options));
    made.unwrap().remove(0).unwrap();
    let producer: BaseProducer = config.create().unwrap();
    let produce = |counts: [i64; 3]| {
        for (partition, count) in (0..).zip(counts) {
            for id in 0..count {
                let payload = format!("{{\"id\":{id}}}");
                let record: BaseRecord<str, str> = BaseRecord::to(&topic).partition(partition).payload(&payload);
                producer.send(record).map_err(|(error, _)| error).unwrap();
            }
        }
        producer.flush(PATIENCE).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("queries")).unwrap();
    let sql = format!(
        "SET poundlock.name = '{topic}';
         CREATE UNBOUNDED EXTERNAL TABLE events (id BIGINT) STORED AS KAFKA LOCATION '{topic}'
         OPTIONS ('brokers' '{brokers}', 'on_data_loss' 'continue');
         CREATE EXTERNAL TABLE copy (id BIGINT) STORED AS DATABASE LOCATION 'sqlite:out.db';
         INSERT INTO copy SELECT id FROM events;"
    );
    fs::write(folder.path().join("queries/all.sql"), sql).unwrap();
    let run = || {
        let command = poundlock(folder.path(), &["run", "--until-caught-up"]);
        Program::start(command, folder.path().join("log")).succeed(PATIENCE)
    };

    produce([10, 20, 5]);
    run();
    produce([10, 10, 10]);
    let mut removed = TopicPartitionList::new();
    for (partition, before) in [(0, 15), (1, 23), (2, 5)] {
        removed.add_partition_offset(&topic, partition, Offset::Offset(before)).unwrap();
    }
    block_on(admin.delete_records(&removed, &options)).unwrap();
    let log = run();
    assert_eq!(log.matches("records were removed before they were read").count(), 2, "{log}");

    let checkpoint = folder.path().join("checkpoint");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (losses, lost, rows) = runtime.block_on(async {
        let checkpoint = Checkpoint::read_only(checkpoint.to_str().unwrap(), &topic).await.unwrap().unwrap();
        let last = checkpoint.last_committed().await.unwrap().unwrap();
        let (mut losses, mut lost, mut rows) = (vec![], 0, 0);
        for number in 0..=last {
            let (commit, _) = checkpoint.read_commit(number).await.unwrap().unwrap();
            let source = &commit.sources["public.events"];
            assert_eq!(source.location, topic);
            losses.extend(source.losses.clone());
            lost += source.lost;
            rows += commit.inserts[&0].report.written;
        }
        (losses, lost, rows)
    });
    let loss = |partition, from, to, counted| Loss { partition, from, to, counted };
    assert_eq!((losses, lost), (vec![loss(0, 10, 15, 5), loss(1, 20, 23, 3)], 8));
    assert_eq!(rows, 35 + 30 - 8);
}
