//! librdkafka's in-process broker, for `poundlock demo` and for tests: real protocol on a real port, no service.
//!
//! Its limits (see the library's own `rdkafka_mock.h`): it drops records beyond 5 MB or about 100,000 a partition,
//! shows aborted transactions, and keeps no offsets sent in one; so the demo's sink is at-least-once on it, and its
//! generator is paced. Topics are made here: it has no admin interface.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::{Error, Result};

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Task = Box<dyn FnOnce(&Cluster) + Send>;

/// A running broker; stops when dropped.
#[derive(Debug)]
pub struct MockBroker {
    bootstrap: String,
    /// The cluster is not `Send`: it lives on a thread of its own.
    tasks: Option<SyncSender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl MockBroker {
    /// Starts one broker with these topics (name, number of partitions).
    pub fn start(topics: &[(&str, i32)]) -> Result<Self> {
        let failed = |what: String| Error::external("could not start the in-process Kafka broker").cause(what);
        let topics: Vec<(String, i32)> = topics.iter().map(|(name, n)| ((*name).to_string(), *n)).collect();
        let (ready, started) = sync_channel(1);
        let (tasks, todo) = sync_channel::<Task>(1);
        let run = move || {
            let made = MockCluster::new(1).and_then(|cluster| {
                topics.iter().try_for_each(|(name, partitions)| cluster.create_topic(name, *partitions, 1))?;
                Ok(cluster)
            });
            let (cluster, answer) = match made {
                Ok(cluster) => {
                    let bootstrap = cluster.bootstrap_servers();
                    (Some(cluster), Ok(bootstrap))
                }
                Err(error) => (None, Err(error.to_string())),
            };
            if ready.send(answer).is_ok()
                && let Some(cluster) = cluster
            {
                todo.iter().for_each(|task| task(&cluster));
            }
        };
        let thread = std::thread::Builder::new().name("kafka-mock".into()).spawn(run);
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        let bootstrap = started.recv().map_err(|error| failed(error.to_string()))?.map_err(failed)?;
        Ok(Self { bootstrap, tasks: Some(tasks), thread: Some(thread) })
    }

    /// `host:port`, for the option 'brokers'.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap
    }

    /// Runs a task on the cluster (errors to inject, a broker to take down) and waits for it.
    pub fn with<T: Send + 'static>(&self, task: impl FnOnce(&Cluster) -> T + Send + 'static) -> Result<T> {
        let (done, result) = sync_channel(1);
        let task: Task = Box::new(move |cluster| {
            // The receiver waits below: it cannot be gone.
            drop(done.send(task(cluster)));
        });
        let gone = || Error::internal("the thread of the in-process Kafka broker has ended");
        self.tasks.as_ref().ok_or_else(gone)?.send(task).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }
}

impl Drop for MockBroker {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of the in-process Kafka broker had panicked");
        }
    }
}
