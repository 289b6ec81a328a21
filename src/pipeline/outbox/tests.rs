//! An outbox between a pipeline that is played by the test and a sink in memory that fails where it is told to.

use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::Int64Type;

use super::deliver::{Opening, Prepare};
use super::entry::Refused;
use super::entry::tests::table;
use super::*;
use crate::checkpoint::status::Circuit;
use crate::checkpoint::{Commit, Plan};
use crate::connector::InsertRows;
use crate::connector::memory::{FailAt, Memory};

const LIMIT: Duration = Duration::from_secs(20);

/// A checkpoint in memory, with what was refused.
struct World {
    base: String,
    checkpoint: Checkpoint,
    refused: Arc<Mutex<BTreeSet<String>>>,
    table: Arc<TableDefinition>,
    system: Memory,
}

impl World {
    async fn new() -> Self {
        let base = format!("memory://outbox-{}", uuid::Uuid::new_v4());
        let checkpoint = Checkpoint::open(&base, "p").await.unwrap();
        Self { base, checkpoint, refused: Arc::default(), table: table("db.one"), system: Memory::new() }
    }

    fn outbox(&self, limit: u64) -> Outbox {
        Outbox::new("memory", [Arc::clone(&self.table)], limit, &self.checkpoint, &self.refused)
    }

    fn opening(&self) -> Opening {
        let prepare: Prepare = Arc::new(|_| Box::pin(async { Ok(()) }));
        Opening { identity: self.checkpoint.identity().clone(), prepare, at_least: None }
    }

    fn delivers(&self, outbox: &Outbox) -> tokio::task::JoinHandle<()> {
        tokio::spawn(outbox.clone().deliver(Box::new(self.system.sink()), self.opening()))
    }

    fn request(&self, batch: u64, ids: std::ops::Range<i64>) -> WriteRequest {
        let texts = StringViewArray::from_iter_values(ids.clone().map(|id| format!("text {id}")));
        let ids = Int64Array::from_iter_values(ids);
        let rows = RecordBatch::try_new(Arc::clone(&self.table.schema), vec![Arc::new(ids), Arc::new(texts)]).unwrap();
        let rows = if rows.num_rows() == 0 { vec![] } else { vec![rows] };
        let insert = InsertRows { insert: 0, table: Arc::clone(&self.table), rows, hash: format!("{batch}") };
        let offsets = BTreeMap::new();
        WriteRequest { batch, wave: Wave::Rows, planned_at: batch as i64, offsets, inserts: vec![insert] }
    }

    /// Plans, hands over and commits a batch, as the loop does.
    async fn batch(&self, outbox: &Outbox, batch: u64, ids: std::ops::Range<i64>) {
        hand_over(outbox, &self.request(batch, ids)).await.unwrap();
        self.commit(batch).await;
        outbox.committed(BatchPlan { batch, planned_at: batch as i64 });
    }

    async fn commit(&self, number: u64) {
        let epoch = self.checkpoint.identity().epoch;
        let plan = Plan {
            number,
            epoch,
            planned_at: number as i64,
            sources: BTreeMap::new(),
            program: "p".into(),
            dimensions: BTreeMap::new(),
            dimensions_read_at: BTreeMap::new(),
            partitions: 1,
            close_windows: false,
            limits: None,
            off: None,
            outbox_refused: vec![],
        };
        self.checkpoint.plan(&plan).await.unwrap();
        let commit = Commit {
            number,
            epoch,
            planned_at: number as i64,
            program: "p".into(),
            sources: BTreeMap::new(),
            inserts: BTreeMap::new(),
            views: BTreeMap::new(),
            files: BTreeMap::new(),
            dimensions: BTreeMap::new(),
            outbox_refused: vec![],
        };
        self.checkpoint.commit(&commit, bytes::Bytes::new()).await.unwrap();
    }

    fn ids(&self) -> Vec<i64> {
        let rows = self.system.table("db.one");
        rows.iter().flat_map(|rows| rows["id"].as_primitive::<Int64Type>().values().to_vec()).collect()
    }

    fn outboxes(&self, outbox: &Outbox) -> Outboxes {
        Outboxes::new(vec![outbox.clone()], Arc::clone(&self.refused))
    }
}

async fn hand_over(outbox: &Outbox, request: &WriteRequest) -> Result<WriteReport> {
    let guarantee = Guarantee { level: "exactly-once", how: String::new() };
    outbox.handing_over(guarantee).write(request).await
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LIMIT, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn batches_arrive_in_order_and_only_when_they_are_committed() {
    let world = World::new().await;
    let outbox = world.outbox(1 << 20);
    let _task = world.delivers(&outbox);
    for batch in 0..3 {
        let from = batch as i64 * 10;
        world.batch(&outbox, batch, from..from + 10).await;
    }
    let report = hand_over(&outbox, &world.request(3, 30..40)).await.unwrap();
    assert!(report.handed_over && report.inserts.is_empty());
    until("three batches", || world.ids().len() == 30).await;
    assert_eq!(world.system.batches(), [0, 1, 2]);
    assert_eq!(world.checkpoint.outbox().await.unwrap().len(), 1, "the one that is not committed");
    assert_eq!(outbox.status().batches, 0);
    world.commit(3).await;
    outbox.committed(BatchPlan { batch: 3, planned_at: 3 });
    until("the fourth batch", || world.ids().len() == 40).await;
    assert_eq!(world.ids(), (0..40).collect::<Vec<_>>());
    let outboxes = world.outboxes(&outbox);
    assert!(outboxes.drained(&CancellationToken::new()).await.unwrap());
    assert!(world.checkpoint.outbox().await.unwrap().is_empty());
    assert_eq!(outbox.status().delivered, Some(3));
}

#[tokio::test]
async fn a_batch_without_rows_leaves_nothing_and_the_same_again_is_there_once() {
    let world = World::new().await;
    let outbox = world.outbox(1 << 20);
    hand_over(&outbox, &world.request(0, 0..0)).await.unwrap();
    assert!(world.checkpoint.outbox().await.unwrap().is_empty());
    for _ in 0..3 {
        hand_over(&outbox, &world.request(0, 0..5)).await.unwrap();
    }
    assert_eq!(outbox.state().bytes, BLOCK_BYTES);
    world.commit(0).await;
    outbox.committed(BatchPlan { batch: 0, planned_at: 0 });
    let _task = world.delivers(&outbox);
    until("the batch", || world.ids().len() == 5 && outbox.status().batches == 0).await;
    assert_eq!((world.system.writes(), outbox.state().bytes), (1, 0));
}

#[tokio::test]
async fn a_sink_that_fails_is_tried_on_and_has_every_batch_once() {
    for at in [FailAt::BeforeWrite, FailAt::Midway, FailAt::AfterWrite] {
        let world = World::new().await;
        let outbox = world.outbox(1 << 20);
        world.system.fail_once(at);
        let _task = world.delivers(&outbox);
        world.batch(&outbox, 0, 0..10).await;
        world.batch(&outbox, 1, 10..20).await;
        until("both batches", || outbox.status().batches == 0).await;
        assert_eq!(world.ids(), (0..20).collect::<Vec<_>>(), "{at:?}");
    }
}

/// It is told when it waits and goes on when there is room: nothing is lost either way.
#[tokio::test]
async fn a_full_outbox_makes_the_pipeline_wait_until_there_is_room() {
    let world = World::new().await;
    let outbox = world.outbox(2 * BLOCK_BYTES);
    // Nobody delivers yet, so nothing is waited for: room could not come.
    for batch in 0..3 {
        world.batch(&outbox, batch, batch as i64 * 10..batch as i64 * 10 + 10).await;
    }
    outbox.state().is_delivered = true;
    let waiting = {
        let (outbox, request) = (outbox.clone(), world.request(3, 30..40));
        tokio::spawn(async move { hand_over(&outbox, &request).await })
    };
    until("the pipeline to wait", || outbox.status().full).await;
    assert!(!waiting.is_finished() && world.checkpoint.outbox().await.unwrap().len() == 3);
    let _task = world.delivers(&outbox);
    assert!(waiting.await.unwrap().unwrap().handed_over);
    assert!(!outbox.status().full);
    world.commit(3).await;
    outbox.committed(BatchPlan { batch: 3, planned_at: 3 });
    until("all batches", || world.ids().len() == 40).await;
}

#[tokio::test]
async fn a_batch_larger_than_the_outbox_is_taken_alone() {
    let world = World::new().await;
    let outbox = world.outbox(1_000);
    outbox.state().is_delivered = true;
    hand_over(&outbox, &world.request(0, 0..5_000)).await.unwrap();
    assert!(outbox.state().bytes > 20_000);
}

#[tokio::test]
async fn who_waits_for_room_and_is_told_to_stop_says_why_it_waited() {
    let world = World::new().await;
    let outbox = world.outbox(1_000);
    world.batch(&outbox, 0, 0..10).await;
    outbox.state().is_delivered = true;
    let stop = CancellationToken::new();
    outbox.stop_with(stop.clone());
    let request = world.request(1, 0..10);
    let waiting = hand_over(&outbox, &request);
    stop.cancel();
    let error = waiting.await.unwrap_err().to_string();
    assert!(
        error.contains("the outbox of sink memory is full") && error.contains("the next start finishes"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_refused_is_kept_until_a_plan_lists_it() {
    let world = World::new().await;
    world.system.refuse(|insert, row| {
        let id = insert.rows.iter().flat_map(|rows| rows["id"].as_primitive::<Int64Type>().values().to_vec()).nth(row);
        (id? % 4 == 1).then(|| format!("{} is refused", id.unwrap_or_default()))
    });
    let outbox = world.outbox(1 << 20);
    let _task = world.delivers(&outbox);
    world.batch(&outbox, 0, 0..10).await;
    world.batch(&outbox, 1, 10..12).await;
    world.batch(&outbox, 2, 12..13).await;
    until("all batches", || outbox.status().batches == 0).await;
    assert_eq!(world.ids(), [0, 2, 3, 4, 6, 7, 8, 10, 11, 12]);
    let outboxes = world.outboxes(&outbox);
    let names = outboxes.refused();
    assert_eq!(names, world.checkpoint.outbox_refused().await.unwrap());
    assert_eq!(names.len(), 1);
    let (refused, payload) = world.checkpoint.read_outbox_refused::<Refused>(&names[0]).await.unwrap();
    assert_eq!(
        (refused.batch, &refused.inserts[0].errors[..]),
        (0, &["1 is refused".into(), "5 is refused".into(), "9 is refused".into()][..])
    );
    let rows = entry::sections(&payload).unwrap();
    assert_eq!(rows[0][0]["id"].as_primitive::<Int64Type>().values(), &[1, 5, 9]);
    outboxes.listed(&names);
    assert!(outboxes.refused().is_empty());
}

/// A process that another one has replaced, however late it notices.
#[tokio::test]
async fn an_older_start_delivers_nothing_and_says_so() {
    let world = World::new().await;
    let outbox = world.outbox(1 << 20);
    world.batch(&outbox, 0, 0..10).await;
    let _newer = Checkpoint::open(&world.base, "p").await.unwrap();
    let _task = world.delivers(&outbox);
    let error = world.outboxes(&outbox).failure().await;
    assert_eq!(error.message(), "fenced by epoch 2");
    assert!(world.ids().is_empty());
    assert_eq!(outbox.status().batches, 1);
    // Who would wait for room is not left waiting.
    outbox.state().bytes = u64::MAX / 2;
    let error = hand_over(&outbox, &world.request(1, 0..1)).await.unwrap_err();
    assert!(error.message().contains("delivery to sink memory has ended"), "{error}");
}

#[tokio::test]
async fn a_sink_that_lost_or_never_had_what_was_delivered_stops_the_pipeline() {
    for (at_least, says) in [(Some(7), "has no batch, batch 7 was delivered"), (None, "")] {
        let world = World::new().await;
        let outbox = world.outbox(1 << 20);
        let opening = Opening { at_least, ..world.opening() };
        let mut sink = world.system.sink();
        match outbox.open(&mut sink, &opening).await {
            Ok(()) => assert_eq!(at_least, None),
            Err(error) => assert!(error.message().contains(says), "{error}"),
        }
    }
    // It has batches that the checkpoint does not know: that was set back.
    let world = World::new().await;
    let mut sink = world.system.sink();
    sink.open(world.checkpoint.identity()).await.unwrap();
    for batch in 0..5 {
        sink.write(&world.request(batch, 0..1)).await.unwrap();
    }
    let error = world.outbox(1 << 20).open(&mut sink, &world.opening()).await.unwrap_err();
    assert!(error.message().contains("the checkpoint has committed nothing"), "{error}");
}

#[tokio::test]
async fn what_somebody_can_mend_in_the_sink_stops_nothing() {
    for (of_user, words) in [(true, "no such table"), (false, "wrong password")] {
        let world = World::new().await;
        let outbox = world.outbox(1 << 20);
        let mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let prepare: Prepare = {
            let mended = Arc::clone(&mended);
            Arc::new(move |_| {
                let mended = mended.load(std::sync::atomic::Ordering::Relaxed);
                Box::pin(async move {
                    if mended { Ok(()) } else { Err(if of_user { Error::user(words) } else { Error::external(words) }) }
                })
            })
        };
        let opening = Opening { prepare, ..world.opening() };
        let _task = tokio::spawn(outbox.clone().deliver(Box::new(world.system.sink()), opening));
        world.batch(&outbox, 0, 0..10).await;
        until("the circuit to open", || outbox.breaker().view().circuit == Circuit::Open).await;
        assert_eq!(outbox.breaker().view().error.as_deref(), Some(words));
        mended.store(true, std::sync::atomic::Ordering::Relaxed);
        // Draining tries at once, not after the pause.
        assert!(world.outboxes(&outbox).drained(&CancellationToken::new()).await.unwrap());
        assert_eq!((world.ids().len(), outbox.breaker().view().circuit), (10, Circuit::Closed));
    }
}

#[tokio::test]
async fn draining_ends_when_nothing_is_delivered_for_a_while_and_sooner_when_told_to_stop() {
    let world = World::new().await;
    let outbox = world.outbox(1 << 20);
    world.batch(&outbox, 0, 0..10).await; // and nobody delivers
    let outboxes = world.outboxes(&outbox);
    let (short, long) = (Duration::from_millis(200), Duration::from_secs(600));
    let stop = CancellationToken::new();
    let began = Instant::now();
    assert!(!outboxes.drained_within(&stop, short, long).await.unwrap());
    assert!(began.elapsed() >= short);
    let told = {
        let stop = stop.clone();
        tokio::spawn(async move { stop.cancel() })
    };
    assert!(!outboxes.drained_within(&stop, long, short).await.unwrap());
    told.await.unwrap();
    assert_eq!(outboxes.left(), ["1 batches (10 rows) for sink memory"]);
}
