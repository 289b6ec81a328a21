//! A system that is written to out of an outbox: what arrives, and is refused, must be what arrives without one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use poundlock::Result;
use poundlock::checkpoint::{BatchPlan, Checkpoint};
use poundlock::connector::{Guarantee, Identity, Sink, TableDefinition, Wave, WriteReport, WriteRequest};
use poundlock::pipeline::outbox::Outbox;
use uuid::Uuid;

use crate::sink_contract::rig::{Newest, Row, Subject, Tables};

pub struct Outboxed<S> {
    system: S,
    /// Of a checkpoint in memory, which all starts share.
    base: String,
}

impl<S: Subject> Subject for Outboxed<S> {
    const FENCES: bool = S::FENCES;
    const NEWEST: Newest = S::NEWEST;

    fn fresh() -> Self {
        Self { system: S::fresh(), base: format!("memory://contract-{}", Uuid::new_v4()) }
    }

    fn tables(&self) -> &Tables {
        self.system.tables()
    }

    fn sink(&self) -> Box<dyn Sink> {
        let (sink, base) = (self.system.sink(), self.base.clone());
        let tables = self.system.tables().all();
        Box::new(OutboxedSink { sink, base, tables, checkpoint: None })
    }

    fn rows(&self, table: &TableDefinition) -> Vec<Row> {
        self.system.rows(table)
    }

    fn impossible(&self) -> Vec<(Row, &'static str)> {
        self.system.impossible()
    }

    fn trouble(&self, after: Duration) -> bool {
        // Deliveries are tried again by themselves: a write waits for it.
        self.system.trouble(after);
        false
    }
}

/// Hands over, plays the commit, delivers.
struct OutboxedSink {
    sink: Box<dyn Sink>,
    base: String,
    tables: Vec<Arc<TableDefinition>>,
    checkpoint: Option<Checkpoint>,
}

#[async_trait]
impl Sink for OutboxedSink {
    fn name(&self) -> &str {
        self.sink.name()
    }

    fn guarantee(&self) -> Guarantee {
        self.sink.guarantee()
    }

    fn tables(&self) -> Vec<String> {
        self.sink.tables()
    }

    fn records_every_batch(&self) -> bool {
        self.sink.records_every_batch()
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        let newest = self.sink.open(identity).await?;
        self.checkpoint = Some(Checkpoint::open(&self.base, "contract").await?);
        Ok(newest)
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        self.sink.holds(batch).await
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        // Dead letters have no outbox.
        if request.wave == Wave::DeadLetters || request.inserts.iter().all(|insert| insert.row_count() == 0) {
            return self.sink.write(request).await;
        }
        let checkpoint = self.checkpoint.as_ref().expect("it is open");
        let refused = Arc::new(Mutex::new(BTreeSet::new()));
        let outbox = Outbox::new(self.sink.name(), self.tables.clone(), 1 << 30, checkpoint, &refused);
        let handed = outbox.handing_over(self.sink.guarantee()).write(request).await?;
        assert!(handed.handed_over);
        outbox.committed(BatchPlan { batch: request.batch, planned_at: request.planned_at });
        let waiting = outbox.next().expect("it was handed over");
        let report = outbox.deliver_one(self.sink.as_mut(), &waiting).await?;
        assert!(outbox.next().is_none());
        let names = refused.lock().unwrap().len();
        assert_eq!(names, usize::from(!report.refusals.is_empty()));
        Ok(report)
    }
}
