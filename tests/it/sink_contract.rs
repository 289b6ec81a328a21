//! The contract of [`Sink`], one suite that every sink passes: the same batch again leaves the same result, whoever was
//! interrupted in between.
//!
//! ```text
//! a clause of the contract × a subject: memory (with transactions and without), SQLite, Parquet and Delta (on disk and S3),
//!                               PostgreSQL, Kafka (JSON and Avro), Elasticsearch; and most of them once more out of an outbox
//! ```
//!
//! Clauses for all subjects stand in the macro below, those for some beside the subject's name: a clause that says nothing
//! of a system is no test of it.
//!
//! A [`Rig`] is one system with the batches that it should hold; what it does hold is read back by another reader than
//! the engine's. Interruptions are seeded: POUNDLOCK_SEED repeats them.

mod interrupt;
mod rig;
mod subjects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use poundlock::connector::{Sink, WriteRequest};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::setting;
use interrupt::Interruption;
use rig::{Batch, Keyed, Newest, Rig, Row, Subject, assert_same, insist, mixed, row};
use subjects::{Delta, DeltaOnS3, Elasticsearch, Kafka, Memory, Outboxed, Parquet, ParquetOnS3, Postgres, Sqlite};

async fn the_same_batch_again_changes_nothing<S: Subject>() {
    let mut rig = Rig::<S>::new();
    let (mut sink, newest) = rig.start().await;
    assert_eq!(newest, None);
    for number in 0..3 {
        let batch = mixed(&rig.system, number, 50);
        assert!(!sink.holds(number).await.unwrap());
        let expected = rig.expect(&batch);
        let first = sink.write(&batch.request()).await.unwrap();
        expected.check(&first);
        assert!(!first.already);
        rig.check();
        // In the same process, then in the next ones.
        assert_same(&sink.write(&batch.request()).await.unwrap(), &first);
        rig.check();
        for _ in 0..2 {
            assert!(sink.holds(number).await.unwrap() && !sink.holds(number + 1).await.unwrap());
            (sink, _) = rig.start().await;
            assert_same(&sink.write(&batch.request()).await.unwrap(), &first);
            rig.check();
        }
    }
    // An older batch, after newer ones.
    let report = sink.write(&mixed(&rig.system, 1, 50).request()).await.unwrap();
    assert_eq!(report.refusals.len(), rig.system.impossible().len());
    rig.check();
}

async fn an_older_start_writes_nothing_more<S: Subject>() {
    const { assert!(S::FENCES, "the system itself keeps older starts out") }
    let mut rig = Rig::<S>::new();
    let (mut old, _) = rig.start().await;
    let batch = mixed(&rig.system, 0, 10);
    rig.expect(&batch);
    old.write(&batch.request()).await.unwrap();
    let (mut new, _) = rig.start().await;
    let next = mixed(&rig.system, 1, 10);
    for _ in 0..3 {
        let error = refused_for_good(old.as_mut(), &next.request()).await;
        assert!(error.contains("fenced"), "{error}");
        rig.check();
    }
    let error = rig.system.sink().open(&rig.identity(1)).await.unwrap_err().to_string();
    assert!(error.contains("fenced by epoch 2"), "{error}");
    // The newer one is not disturbed by all that.
    assert!(!new.holds(1).await.unwrap());
    let expected = rig.expect(&next);
    expected.check(&new.write(&next.request()).await.unwrap());
    rig.check();
}

/// A lost connection may be found first; the next attempt must then tell why.
async fn refused_for_good(sink: &mut dyn Sink, request: &WriteRequest) -> String {
    for _ in 0..5 {
        match sink.write(request).await {
            Ok(report) => panic!("an older start wrote: {report:?}"),
            Err(error) if error.is_retryable() => {}
            Err(error) => return error.to_string(),
        }
    }
    panic!("an older start was not fenced in five attempts");
}

/// Where the checkpoint alone fences (Parquet), a late writer can only put the bytes that are there already.
async fn an_older_start_writes_the_same_files<S: Subject>() {
    const { assert!(!S::FENCES, "the system itself does not keep older starts out") }
    let mut rig = Rig::<S>::new();
    let (mut old, _) = rig.start().await;
    let batch = mixed(&rig.system, 0, 10);
    rig.expect(&batch);
    let (mut new, _) = rig.start().await;
    let first = new.write(&batch.request()).await.unwrap();
    assert_same(&old.write(&batch.request()).await.unwrap(), &first);
    rig.check();
}

async fn two_waves_empty_inserts_and_batches_without_rows<S: Subject>() {
    let mut rig = Rig::<S>::new();
    let (mut sink, _) = rig.start().await;
    let (plain, letters) = (Arc::clone(&rig.system.tables().plain), Arc::clone(&rig.system.tables().letters));
    let batches = [
        Batch::new(0, vec![(&plain, vec![row(1, "a"), row(2, "b")])]),
        Batch::dead_letters(0, vec![(&letters, vec![row(1, "letter")])]),
        // An INSERT without rows beside one with rows, two INSERTs into one table.
        Batch::new(1, vec![(&plain, vec![]), (&plain, vec![row(3, "c")]), (&plain, vec![row(3, "c")])]),
        Batch::dead_letters(1, vec![(&letters, vec![])]),
        // None at all.
        Batch::new(2, vec![]),
        Batch::dead_letters(2, vec![]),
        // Rows only in the second wave.
        Batch::new(3, vec![(&plain, vec![])]),
        Batch::dead_letters(3, vec![(&letters, vec![row(2, "letter")])]),
        Batch::new(4, vec![(&plain, vec![row(4, "d")])]),
    ];
    for batch in &batches {
        let expected = rig.expect(batch);
        let first = sink.write(&batch.request()).await.unwrap();
        expected.check(&first);
        assert_same(&sink.write(&batch.request()).await.unwrap(), &first);
        rig.check();
    }
    // Batch 4 waits for its dead letters.
    let newest;
    (sink, newest) = rig.start().await;
    let expected = match S::NEWEST {
        Newest::Whole => Some(3),
        Newest::Begun => Some(4),
        Newest::Unknown => None,
    };
    assert_eq!(newest, expected);
    assert!(sink.holds(4).await.unwrap() && !sink.holds(5).await.unwrap());
    let rest = Batch::dead_letters(4, vec![(&letters, vec![row(3, "letter")])]);
    let expected = rig.expect(&rest);
    expected.check(&sink.write(&rest.request()).await.unwrap());
    rig.check();
    let newest;
    (sink, newest) = rig.start().await;
    assert_eq!(newest, (S::NEWEST != Newest::Unknown).then_some(4));
    for batch in batches.iter().chain([&rest]) {
        sink.write(&batch.request()).await.unwrap();
    }
    rig.check();
}

async fn keyed_tables_keep_one_row_a_key<S: Subject>() {
    let mut rig = Rig::<S>::new();
    let Keyed { updated, kept } = rig.system.tables().keyed.as_ref().expect("tables with keys");
    let (updated, kept) = (Arc::clone(updated), Arc::clone(kept));
    let (mut sink, _) = rig.start().await;
    let rows = [
        vec![row(1, "a"), row(2, "b"), row(1, "c"), row(1, "d")],
        vec![row(2, "e"), (3, None, "p".into()), row(2, "f")],
        vec![(1, None, "p".into()), row(4, "g")],
    ];
    let mut batches = vec![];
    for (number, rows) in rows.into_iter().enumerate() {
        let batch = Batch::new(number as u64, vec![(&updated, rows.clone()), (&kept, rows)]);
        let expected = rig.expect(&batch);
        expected.check(&sink.write(&batch.request()).await.unwrap());
        rig.check();
        batches.push(batch);
    }
    let of = |table: &str| rig.model[table].iter().map(|row| (row.0, row.1.as_deref())).collect::<BTreeMap<_, _>>();
    let last_wins = BTreeMap::from([(1, None), (2, Some("f")), (3, None), (4, Some("g"))]);
    let first_stays = BTreeMap::from([(1, Some("a")), (2, Some("b")), (3, None), (4, Some("g"))]);
    assert_eq!((of(&updated.name), of(&kept.name)), (last_wins, first_stays));
    // An older batch does not bring its values back.
    (sink, _) = rig.start().await;
    for batch in &batches {
        sink.write(&batch.request()).await.unwrap();
        rig.check();
    }
}

async fn a_row_that_cannot_be_held_is_refused_and_its_neighbours_are_written<S: Subject>() {
    let mut rig = Rig::<S>::new();
    let (mut sink, _) = rig.start().await;
    let strict = Arc::clone(&rig.system.tables().strict);
    let impossible: Vec<Row> = rig.system.impossible().into_iter().map(|(row, _)| row).collect();
    let good: Vec<Row> = (0..40).map(|id| row(id, "good")).collect();
    // Alone; first and last; every other one; twice.
    let mut every_other = vec![];
    good.iter().enumerate().for_each(|(i, row)| {
        every_other.extend([row.clone(), impossible[i % impossible.len()].clone()]);
    });
    let all = [
        impossible.clone(),
        [&impossible[..], &good[..], &impossible[..]].concat(),
        every_other,
        [&impossible[..], &impossible[..]].concat(),
    ];
    for (number, rows) in all.into_iter().enumerate() {
        let batch = Batch::new(number as u64, vec![(&strict, good.clone()), (&strict, rows)]);
        let expected = rig.expect(&batch);
        let first = sink.write(&batch.request()).await.unwrap();
        expected.check(&first);
        rig.check();
        assert_same(&sink.write(&batch.request()).await.unwrap(), &first);
        (sink, _) = rig.start().await;
        assert_same(&sink.write(&batch.request()).await.unwrap(), &first);
        rig.check();
    }
}

async fn a_write_dropped_midway_and_repeated_is_there_once<S: Subject>() {
    const ROUNDS: u64 = 30;
    let seed = setting("POUNDLOCK_SEED", 1);
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let mut rig = Rig::<S>::new();
    let (mut sink, _) = rig.start().await;
    let mut took = Duration::MAX;
    let (mut dropped, mut failed, mut restarts) = (0, 0, 0);
    for number in 0..ROUNDS {
        let batch = mixed(&rig.system, number, 1_500);
        let request = batch.request();
        // The first ones are not disturbed: they say how long a write takes.
        for attempt in 0..if number < 3 { 0 } else { chance.random_range(1..=4) } {
            let moment = took.mul_f64(chance.random_range(0.0..1.0));
            // The first attempts of all rounds together meet every await point in turn; time hits what is in between.
            let interruption = match attempt {
                0 if number % 2 == 0 => Interruption::Polls(number as usize / 2 - 1),
                _ if chance.random_bool(0.3) && rig.system.trouble(moment) => Interruption::After(took * 10),
                _ if chance.random_bool(0.3) => Interruption::Polls(1 << chance.random_range(0..6)),
                _ => Interruption::After(moment),
            };
            match interruption.of(sink.write(&request)).await {
                None => dropped += 1,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    assert!(error.is_retryable(), "POUNDLOCK_SEED={seed}, batch {number}: {error}");
                    failed += 1;
                }
            }
            if chance.random_bool(0.25) {
                // What the older process still does in the background is fenced, or writes the same files.
                (sink, _) = rig.start().await;
                restarts += 1;
                if S::FENCES && !insist(async || sink.holds(number).await).await {
                    rig.check(); // so the plan might be superseded
                }
            }
        }
        let began = Instant::now();
        let report = insist(async || sink.write(&request).await).await;
        if !report.already {
            took = took.min(began.elapsed());
        }
        let expected = rig.expect(&batch);
        expected.check(&report);
        rig.check();
    }
    println!("{dropped} writes dropped, {failed} failed, {restarts} restarts; one takes {took:?}");
    assert!(dropped + failed >= ROUNDS / 4, "{dropped} + {failed} interruptions prove nothing");
}

async fn a_takeover_during_a_write_leaves_the_batch_once<S: Subject>() {
    const ROUNDS: u64 = 12;
    let mut chance = ChaCha8Rng::seed_from_u64(setting("POUNDLOCK_SEED", 1));
    let mut rig = Rig::<S>::new();
    let (mut sink, _) = rig.start().await;
    let mut took = Duration::from_millis(10);
    let mut before_the_fence = 0;
    for number in 0..ROUNDS {
        let batch = mixed(&rig.system, number, 1_500);
        let request = batch.request();
        let mut old = sink;
        // A takeover takes longer than a write: it begins earlier as often as later.
        let (pause, head_start) =
            (took.mul_f64(chance.random_range(0.0..2.0)), took.mul_f64(chance.random_range(0.0..1.0)));
        let written = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            old.write(&request).await
        });
        tokio::time::sleep(head_start).await;
        (sink, _) = rig.start().await;
        let held = sink.holds(number).await.unwrap();
        if S::FENCES && !held {
            rig.check();
        }
        let began = Instant::now();
        let report = insist(async || sink.write(&batch.request()).await).await;
        if !report.already {
            took = began.elapsed();
        }
        let expected = rig.expect(&batch);
        expected.check(&report);
        match written.await.unwrap() {
            Ok(report) => {
                expected.check(&report);
                assert!(held || !S::FENCES, "batch {number} came after the takeover");
                before_the_fence += 1;
            }
            Err(error) => assert!(!held || error.is_retryable() || error.to_string().contains("fenced"), "{error}"),
        }
        rig.check();
    }
    println!("{before_the_fence} of {ROUNDS} writes came before the takeover; one takes {took:?}");
}

/// The suite for one subject: the clauses that every sink keeps, and those named. Services make it `#[ignore]`d.
macro_rules! contract {
    ($name:ident, $subject:ident $(<$flag:literal>)?, [$($also:ident)*] $(, $ignore:meta)?) => {
        contract!(@all $name, [crate::sink_contract::$subject $(::<$flag>)?], [$($ignore)?]:
            the_same_batch_again_changes_nothing
            two_waves_empty_inserts_and_batches_without_rows
            a_row_that_cannot_be_held_is_refused_and_its_neighbours_are_written
            a_write_dropped_midway_and_repeated_is_there_once
            a_takeover_during_a_write_leaves_the_batch_once
            $($also)*
        );
    };
    (@all $name:ident, $subject:tt, $ignore:tt: $($clause:ident)*) => {
        mod $name {
            $(contract!(@test $clause, $subject, $ignore);)*
        }
    };
    (@test $clause:ident, [$subject:ty], [$($ignore:meta)?]) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $(#[$ignore])?
        async fn $clause() {
            super::$clause::<$subject>().await;
        }
    };
}

contract!(memory, Memory<true>, [an_older_start_writes_nothing_more]);
contract!(memory_without_transactions, Memory<false>, [an_older_start_writes_nothing_more]);
contract!(sqlite, Sqlite, [an_older_start_writes_nothing_more keyed_tables_keep_one_row_a_key]);
contract!(parquet, Parquet, [an_older_start_writes_the_same_files]);
contract!(parquet_on_s3, ParquetOnS3, [an_older_start_writes_nothing_more], ignore = "needs S3: make test");
contract!(delta, Delta, [an_older_start_writes_nothing_more]);
contract!(delta_on_s3, DeltaOnS3, [an_older_start_writes_nothing_more], ignore = "needs S3: make test");
contract!(
    postgres,
    Postgres,
    [an_older_start_writes_nothing_more keyed_tables_keep_one_row_a_key],
    ignore = "needs PostgreSQL: make test"
);
contract!(kafka, Kafka<false>, [an_older_start_writes_nothing_more], ignore = "needs Kafka: make test");
contract!(
    kafka_avro,
    Kafka<true>,
    [an_older_start_writes_nothing_more],
    ignore = "needs Kafka and a schema registry: make test"
);
contract!(
    elasticsearch,
    Elasticsearch,
    [an_older_start_writes_nothing_more keyed_tables_keep_one_row_a_key],
    ignore = "needs Elasticsearch: make test"
);

// The same systems, written to out of an outbox.
type OutboxedMemory = Outboxed<Memory<true>>;
type OutboxedSqlite = Outboxed<Sqlite>;
type OutboxedPostgres = Outboxed<Postgres>;
type OutboxedKafka = Outboxed<Kafka<false>>;
type OutboxedElasticsearch = Outboxed<Elasticsearch>;

contract!(outboxed_memory, OutboxedMemory, [an_older_start_writes_nothing_more]);
contract!(outboxed_sqlite, OutboxedSqlite, [an_older_start_writes_nothing_more keyed_tables_keep_one_row_a_key]);
contract!(
    outboxed_postgres,
    OutboxedPostgres,
    [an_older_start_writes_nothing_more keyed_tables_keep_one_row_a_key],
    ignore = "needs PostgreSQL: make test"
);
contract!(outboxed_kafka, OutboxedKafka, [an_older_start_writes_nothing_more], ignore = "needs Kafka: make test");
contract!(
    outboxed_elasticsearch,
    OutboxedElasticsearch,
    [an_older_start_writes_nothing_more keyed_tables_keep_one_row_a_key],
    ignore = "needs Elasticsearch: make test"
);
