use arrow::datatypes::DataType;
use proptest::prelude::*;

use super::super::options::KafkaTable;
use super::super::options::tests::definition;
use super::super::rows::{CHUNK_ROWS, RowLayout};
use super::*;

fn buffer(partitions: i32) -> Buffer {
    let columns = [("id", DataType::Int64), ("_offset", DataType::Int64)];
    let table = KafkaTable::try_new(definition(&columns, "events", &[("brokers", "b")])).unwrap();
    let decoders = Decoders::try_new(Arc::new(RowLayout::new(&table))).unwrap();
    // Nobody listens: the cuts decode.
    let mut buffer = Buffer::new(Arc::new(decoders), std::sync::mpsc::channel().0, 64 << 20);
    for partition in 0..partitions {
        buffer.add_partition(partition, 0, 0, 0);
    }
    buffer
}

fn available(buffer: &mut Buffer, rows: usize, bytes: usize) -> Cut {
    buffer.take_available(rows, bytes).decode().unwrap()
}

fn exactly(buffer: &mut Buffer, ranges: &Ranges) -> Option<Cut> {
    buffer.take_exactly(ranges).unwrap().map(|taken| taken.decode().unwrap())
}

fn push(buffer: &mut Buffer, partition: i32, offsets: impl IntoIterator<Item = i64>) {
    for offset in offsets {
        let payload = format!(r#"{{"id":{offset}}}"#);
        let record = Record { offset, payload: Some(payload.as_bytes()), key: None, timestamp: None };
        buffer.push(partition, &record);
    }
}

fn shape(cut: &Cut) -> Vec<(i32, usize)> {
    cut.chunks.iter().map(|chunk| (chunk.partition, chunk.offsets.len())).collect()
}

fn range(from: i64, to: i64) -> OffsetRange {
    OffsetRange { from, to }
}

#[test]
fn a_cut_takes_partitions_in_turn_and_lists_them_in_order() {
    let mut buffer = buffer(3);
    push(&mut buffer, 0, 0..20_000);
    push(&mut buffer, 1, 0..20_000);
    let cut = available(&mut buffer, CHUNK_ROWS + 1, usize::MAX);
    assert_eq!(shape(&cut), [(0, CHUNK_ROWS), (1, CHUNK_ROWS)]);
    assert_eq!(cut.ranges[&1], range(0, CHUNK_ROWS as i64));
    assert_eq!(cut.ranges[&2], range(0, 0));
    assert!(cut.at_end.contains(&2) && !cut.at_end.contains(&0));
    // A small cut goes on with the next partition, and takes what is being built only at the end.
    assert_eq!(shape(&available(&mut buffer, 1, 1)), [(0, CHUNK_ROWS)]);
    assert_eq!(shape(&available(&mut buffer, 1, 1)), [(1, CHUNK_ROWS)]);
    let rest = 20_000 - 2 * CHUNK_ROWS;
    assert_eq!(shape(&available(&mut buffer, usize::MAX, usize::MAX)), [(0, rest), (1, rest)]);
    assert_eq!((buffer.rows, buffer.bytes, buffer.memory()), (0, 0, 0));
    assert!(available(&mut buffer, 1, 1).chunks.is_empty());
}

#[test]
fn an_exact_cut_tells_the_losses_in_its_range_and_leaves_the_others_to_the_next() {
    let loss = |partition, from, to| Loss { partition, from, to, counted: (to - from) as u64 };
    let mut buffer = buffer(2);
    buffer.skip_lost(0, 30);
    buffer.skip_lost(1, 5);
    for partition in [0, 1] {
        buffer.partitions.get_mut(&partition).unwrap().resetting = false;
    }
    push(&mut buffer, 0, 30..40);
    push(&mut buffer, 1, 5..10);
    let cut = exactly(&mut buffer, &Ranges::from([(0, range(0, 20))])).unwrap();
    assert_eq!((cut.losses, cut.chunks.len()), (vec![loss(0, 0, 20)], 0));
    let cut = available(&mut buffer, usize::MAX, usize::MAX);
    assert_eq!(cut.losses, [loss(0, 20, 30), loss(1, 0, 5)]);
    assert_eq!((cut.ranges[&0], cut.ranges[&1]), (range(20, 40), range(0, 10)));
}

/// Behind the last row there is the marker of its transaction.
#[test]
fn a_cut_goes_on_to_the_end_of_the_log_and_can_be_made_again() {
    let filled = || {
        let mut buffer = buffer(1);
        buffer.partitions.get_mut(&0).unwrap().known_end = 11;
        push(&mut buffer, 0, 0..10);
        buffer
    };
    let mut live = filled();
    assert_eq!(available(&mut live, 1, 1).ranges[&0], range(0, 10), "the end is not known yet");
    let mut live = filled();
    live.end_of_log(0);
    let cut = available(&mut live, usize::MAX, usize::MAX);
    assert_eq!(cut.ranges[&0], range(0, 11));
    push(&mut live, 0, 11..12);
    assert_eq!(available(&mut live, usize::MAX, usize::MAX).ranges[&0], range(11, 12));
    let mut replay = filled();
    assert!(exactly(&mut replay, &cut.ranges).is_none());
    replay.end_of_log(0);
    let again = exactly(&mut replay, &cut.ranges).unwrap();
    assert_eq!((again.ranges, again.chunks[0].rows.clone()), (cut.ranges, cut.chunks[0].rows.clone()));
}

#[test]
fn losses_that_are_found_again_count_once() {
    let loss = |partition, from, to| Loss { partition, from, to, counted: (to - from) as u64 };
    assert_eq!(Loss::union([loss(0, 0, 10), loss(0, 0, 10)]), [loss(0, 0, 10)]);
    assert_eq!(Loss::union([loss(0, 5, 10), loss(1, 0, 3), loss(0, 0, 7)]), [loss(0, 0, 10), loss(1, 0, 3)]);
    assert_eq!(Loss::union([loss(0, 0, 2), loss(0, 4, 6)]), [loss(0, 0, 2), loss(0, 4, 6)]);
}

#[test]
fn an_exact_cut_splits_and_has_the_rest_read_again() {
    let mut buffer = buffer(1);
    push(&mut buffer, 0, 0..100);
    let ranges = Ranges::from([(0, range(0, 150))]);
    assert!(exactly(&mut buffer, &ranges).is_none());
    push(&mut buffer, 0, 100..20_000);
    let cut = exactly(&mut buffer, &ranges).unwrap();
    assert_eq!(shape(&cut), [(0, 150)]);
    let state = &buffer.partitions[&0];
    assert!(state.resetting && state.next == 150 && state.start == 150);
    assert_eq!((buffer.rows, buffer.bytes, buffer.memory()), (0, 0, 0));
    push(&mut buffer, 0, 20_000..20_100); // Stale: before the reader has gone back.
    assert_eq!(buffer.rows, 0);
}

#[test]
fn gaps_count_as_read_at_the_end_of_the_log() {
    let mut buffer = buffer(1);
    buffer.partitions.get_mut(&0).unwrap().known_end = 12; // Offsets 10 and 11 are control records.
    push(&mut buffer, 0, 0..10);
    let ranges = Ranges::from([(0, range(0, 12))]);
    assert!(exactly(&mut buffer, &ranges).is_none());
    buffer.end_of_log(0);
    let cut = exactly(&mut buffer, &ranges).unwrap();
    assert_eq!((cut.ranges[&0], cut.at_end.contains(&0)), (range(0, 12), true));
    assert!(!buffer.partitions[&0].resetting);
    push(&mut buffer, 0, [12]);
    assert_eq!(available(&mut buffer, 10, 1_000).ranges[&0], range(12, 13));
}

#[test]
fn ranges_must_begin_where_the_source_stands() {
    let buffer = buffer(1);
    assert!(buffer.check_ranges(&Ranges::from([(0, range(0, 5))])).is_ok());
    assert!(buffer.check_ranges(&Ranges::from([(0, range(1, 5))])).is_err());
    assert!(buffer.check_ranges(&Ranges::from([(7, range(0, 5))])).unwrap_err().to_string().contains("fewer"));
}

#[test]
fn lost_records_are_counted_once_and_the_ranges_stay_seamless() {
    let mut buffer = buffer(1);
    push(&mut buffer, 0, 0..5);
    buffer.skip_lost(0, 50);
    buffer.partitions.get_mut(&0).unwrap().resetting = false;
    push(&mut buffer, 0, 50..60);
    let cut = available(&mut buffer, 100, 100_000);
    assert_eq!(cut.losses, [Loss { partition: 0, from: 5, to: 50, counted: 45 }]);
    assert_eq!((cut.ranges[&0], cut.chunks[0].offsets.len()), (range(0, 60), 15));
    assert_eq!(available(&mut buffer, 1, 1).losses, []);
}

#[test]
fn a_failure_is_told_first() {
    let mut buffer = buffer(1);
    buffer.fail(Error::user("first"));
    buffer.fail(Error::user("second"));
    assert_eq!(buffer.check().unwrap_err().message(), "first");
    assert!(buffer.check().is_err());
}

proptest! {
    /// Whatever the cuts: no row is lost or comes twice, and a replay of each range gives the same chunks.
    #[test]
    fn a_replay_cuts_the_same_chunks(
        steps in prop::collection::vec((0..2i32, 1..12_000i64, 1..20_000usize), 1..12),
        gap in 1..4i64,
    ) {
        let mut live = buffer(2);
        let mut next = [0i64; 2];
        let mut log: [Vec<i64>; 2] = [vec![], vec![]];
        let mut cuts = vec![];
        for (partition, count, limit) in steps {
            let p = partition as usize;
            let offsets: Vec<i64> = (0..count).map(|i| next[p] + i * gap).collect();
            next[p] += count * gap;
            log[p].extend(&offsets);
            push(&mut live, partition, offsets);
            cuts.push(available(&mut live, limit, usize::MAX));
        }
        cuts.push(available(&mut live, usize::MAX, usize::MAX));

        let mut replay = buffer(2);
        for cut in &cuts {
            for (partition, offsets) in log.iter().enumerate() {
                let state = replay.partitions.get_mut(&(partition as i32)).unwrap();
                state.resetting = false;
                let from = state.next;
                push(&mut replay, partition as i32, offsets.iter().copied().filter(|o| *o >= from));
            }
            let again = exactly(&mut replay, &cut.ranges).unwrap();
            prop_assert_eq!(&again.ranges, &cut.ranges);
            prop_assert_eq!(again.chunks.len(), cut.chunks.len());
            for (a, b) in again.chunks.iter().zip(&cut.chunks) {
                prop_assert_eq!(&a.rows, &b.rows);
                prop_assert_eq!(&a.offsets, &b.offsets);
            }
        }
        for (partition, offsets) in log.iter().enumerate() {
            let seen: Vec<i64> = cuts.iter().flat_map(|c| &c.chunks).filter(|c| c.partition == partition as i32)
                .flat_map(|c| c.offsets.iter().copied()).collect();
            prop_assert_eq!(&seen, offsets);
        }
    }
}
