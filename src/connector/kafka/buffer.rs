//! Decoded rows between the reader thread and the cuts, by partition: pure bookkeeping, no I/O, no clock.
//!
//! ```text
//! partition 0   start ─▶ [chunk][chunk][rows being built] ◀─ next      a cut takes from the left
//! ```
//!
//! A cut works on the buffer directly, under its lock: nothing is handed over, so a dropped future cannot lose rows.
//!
//! Invariants: the rows of a partition lie in offset order without overlap; every chunk but the last of a cut has its
//! full size, counted from the beginning of that cut (see `rows`). To keep the second one, rows that were read beyond
//! the end of an exact cut are not kept but read again (`Partition::resetting`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::rows::{Held, Record, RowBuilder, RowLayout};
use crate::connector::{Cut, Loss, OffsetRange, Ranges};
use crate::{Error, Result};

pub struct Partition {
    builder: RowBuilder,
    chunks: VecDeque<Held>,
    /// Where the next cut begins.
    pub start: i64,
    /// The next offset to read: one past the last row.
    pub next: i64,
    /// The log has been read up to here, rows or not: control records and compaction leave gaps.
    pub reached: i64,
    /// The end of the log when it was last asked.
    pub known_end: i64,
    /// Nothing follows the last row, as far as the broker has said.
    pub at_end: bool,
    /// The reader has to fetch again from `next`; what comes until it has is stale.
    pub resetting: bool,
}

impl Partition {
    fn is_drained(&self) -> bool {
        self.chunks.is_empty() && self.builder.len() == 0
    }
}

/// All partitions of one source.
pub struct Buffer {
    layout: Arc<RowLayout>,
    pub partitions: BTreeMap<i32, Partition>,
    /// Rows and bytes of payload that wait.
    pub rows: usize,
    pub bytes: usize,
    /// Bytes of memory that finished chunks hold.
    chunk_memory: usize,
    limit: usize,
    /// Ranges that an exact cut waits for.
    pub target: Option<Ranges>,
    /// Not yet told in a cut.
    losses: Vec<Loss>,
    /// The partition that the last cut took from last, so that small cuts take turns.
    turn: i32,
    failure: Option<Error>,
    failed: bool,
}

impl Buffer {
    pub fn new(layout: RowLayout, limit: usize) -> Self {
        Self {
            layout: Arc::new(layout),
            partitions: BTreeMap::new(),
            rows: 0,
            bytes: 0,
            chunk_memory: 0,
            limit,
            target: None,
            losses: vec![],
            turn: i32::MIN,
            failure: None,
            failed: false,
        }
    }

    /// `start` is where the first cut begins, `next` where reading does: later, if retention took the difference.
    pub fn add_partition(&mut self, partition: i32, start: i64, next: i64, known_end: i64) -> Result<()> {
        let builder = RowBuilder::try_new(&self.layout, partition)?;
        let at_end = next >= known_end;
        let chunks = VecDeque::new();
        let state = Partition { builder, chunks, start, next, reached: next, known_end, at_end, resetting: false };
        self.partitions.insert(partition, state);
        Ok(())
    }

    /// Appends a record; one that was there already or is stale is passed over.
    pub fn push(&mut self, partition: i32, record: &Record) -> Result<()> {
        let Some(state) = self.partitions.get_mut(&partition) else { return Ok(()) };
        if state.resetting || record.offset < state.next {
            return Ok(());
        }
        let bytes = state.builder.bytes();
        state.builder.push(record);
        state.next = record.offset + 1;
        state.reached = state.next;
        state.at_end = false;
        self.rows += 1;
        self.bytes += state.builder.bytes() - bytes;
        if state.builder.is_full() {
            let held = state.builder.finish()?;
            self.chunk_memory += held.memory;
            state.chunks.push_back(held);
        }
        Ok(())
    }

    /// The broker says that nothing follows the last record it gave. What was the end when we last asked has then been
    /// read, whether the last offsets before it carried rows or not.
    pub fn end_of_log(&mut self, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&partition).filter(|state| !state.resetting) {
            state.at_end = true;
            state.reached = state.reached.max(state.known_end);
        }
    }

    /// The records before `low` are gone: goes on there. The caller has decided that this is allowed.
    pub fn skip_lost(&mut self, partition: i32, low: i64) {
        if let Some(state) = self.partitions.get_mut(&partition).filter(|state| state.next < low) {
            let (from, counted) = (state.next, (low - state.next) as u64);
            self.losses.push(Loss { partition, from, to: low, counted });
            state.next = low;
            state.reached = state.reached.max(low);
            state.resetting = true;
        }
    }

    pub fn is_full(&self) -> bool {
        let building: usize = self.partitions.values().map(|state| state.builder.memory()).sum();
        self.chunk_memory + building >= self.limit
    }

    /// The first error counts: later ones follow from it.
    pub fn fail(&mut self, error: Error) {
        if !self.failed {
            self.failure = Some(error);
            self.failed = true;
        }
    }

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// What has been read is whole, but a reader that cannot go on must be heard now.
    pub fn check(&mut self) -> Result<()> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        if self.failed {
            return Err(Error::external("the Kafka reader has stopped").hint("its first error says why"));
        }
        Ok(())
    }

    /// Takes whole chunks, from each partition in turn, until one of the limits is reached.
    pub fn take_available(&mut self, rows: usize, bytes: usize) -> Result<Cut> {
        let mut taken: BTreeMap<i32, Vec<Held>> = BTreeMap::new();
        let (mut taken_rows, mut taken_bytes) = (0, 0);
        // Ring order, beginning after the partition that was served last.
        let split = self.turn;
        let after = self.partitions.keys().copied().filter(|p| *p > split);
        let ring: Vec<i32> = after.chain(self.partitions.keys().copied().filter(|p| *p <= split)).collect();
        'rounds: loop {
            let mut progress = false;
            for partition in &ring {
                if !taken.is_empty() && (taken_rows >= rows || taken_bytes >= bytes) {
                    break 'rounds;
                }
                if let Some(held) = self.pop(*partition)? {
                    taken_rows += held.chunk.offsets.len();
                    taken_bytes += held.chunk.bytes;
                    taken.entry(*partition).or_default().push(held);
                    self.turn = *partition;
                    progress = true;
                }
            }
            if !progress {
                break;
            }
        }
        let mut cut = Cut { losses: std::mem::take(&mut self.losses), ..Cut::default() };
        for (partition, state) in &mut self.partitions {
            let chunks = taken.remove(partition).unwrap_or_default();
            let mut to = chunks.last().map_or(state.start, |held| held.last_offset() + 1);
            if state.is_drained() && !state.resetting {
                // Behind the last row there may be markers of transactions, or nothing any more.
                to = to.max(state.reached);
                state.next = state.next.max(to);
            }
            cut.ranges.insert(*partition, OffsetRange { from: state.start, to });
            if state.at_end && state.is_drained() {
                cut.at_end.insert(*partition);
            }
            state.start = to;
            cut.chunks.extend(chunks.into_iter().map(|held| held.chunk));
        }
        Ok(cut)
    }

    /// The oldest chunk of a partition; if there is none, what is being built.
    fn pop(&mut self, partition: i32) -> Result<Option<Held>> {
        let Some(state) = self.partitions.get_mut(&partition) else { return Ok(None) };
        let held = match state.chunks.pop_front() {
            Some(held) => {
                self.chunk_memory -= held.memory;
                held
            }
            None if state.builder.len() > 0 => state.builder.finish()?,
            None => return Ok(None),
        };
        self.rows -= held.chunk.offsets.len();
        self.bytes -= held.chunk.bytes;
        Ok(Some(held))
    }

    /// # Errors
    /// The ranges do not begin where the source stands, or name a partition that the topic does not have.
    pub fn check_ranges(&self, ranges: &Ranges) -> Result<()> {
        for (partition, range) in ranges {
            let Some(state) = self.partitions.get(partition) else {
                return Err(Error::external(format!("partition {partition} of the planned batch is not in the topic"))
                    .hint("was the topic deleted and made again with fewer partitions?"));
            };
            if range.from != state.start || range.to < range.from {
                return Err(Error::internal("an exact cut does not begin where the source stands").at(format!(
                    "partition {partition}, offsets {}..{}, source at {}",
                    range.from, range.to, state.start
                )));
            }
        }
        Ok(())
    }

    /// Whether a partition has been read as far as an exact cut wants it.
    pub fn has_reached(&self, partition: i32, to: i64) -> bool {
        self.partitions.get(&partition).is_some_and(|state| !state.resetting && state.reached >= to)
            || self.partitions.get(&partition).is_some_and(|state| state.start >= to)
    }

    /// Takes exactly these ranges, if they have been read; partitions not named give nothing.
    pub fn take_exactly(&mut self, ranges: &Ranges) -> Result<Option<Cut>> {
        if !ranges.iter().all(|(partition, range)| self.has_reached(*partition, range.to)) {
            return Ok(None);
        }
        let mut cut = Cut::default();
        for loss in std::mem::take(&mut self.losses) {
            // What was lost beyond the end is of the next cut.
            let (now, later) = match ranges.get(&loss.partition) {
                Some(range) => loss.split(range.to),
                None => (None, Some(loss)),
            };
            cut.losses.extend(now);
            self.losses.extend(later);
        }
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        for partition in partitions {
            let to = ranges.get(&partition).map(|range| range.to);
            if let Some(to) = to {
                self.take_before(partition, to, &mut cut)?;
            }
            let Some(state) = self.partitions.get_mut(&partition) else { continue };
            let to = to.unwrap_or(state.start);
            cut.ranges.insert(partition, OffsetRange { from: state.start, to });
            state.start = to;
            state.next = state.next.max(to);
            state.reached = state.reached.max(to);
            if state.at_end && state.is_drained() {
                cut.at_end.insert(partition);
            }
        }
        Ok(Some(cut))
    }

    /// Moves the rows before `to` into the cut. If that splits a chunk, what was read beyond it is dropped, to be read
    /// again: the chunks of the next cut are counted from `to`.
    fn take_before(&mut self, partition: i32, to: i64, cut: &mut Cut) -> Result<()> {
        loop {
            let Some(state) = self.partitions.get(&partition) else { return Ok(()) };
            let first = state.chunks.front().map(Held::first_offset).or_else(|| state.builder.first_offset());
            if first.is_none_or(|first| first >= to) {
                return Ok(());
            }
            let Some(held) = self.pop(partition)? else { return Ok(()) };
            if held.last_offset() < to {
                cut.chunks.push(held.chunk);
                continue;
            }
            cut.chunks.extend(held.before(to)?);
            while self.pop(partition)?.is_some() {}
            if let Some(state) = self.partitions.get_mut(&partition) {
                state.next = to;
                state.reached = to;
                state.at_end = false;
                state.resetting = true;
            }
            return Ok(());
        }
    }

    /// Records between the last cut and the end of the log, given what the broker last said of the ends.
    pub fn lag(&self, ends: &BTreeMap<i32, i64>) -> u64 {
        let behind = self.partitions.iter().map(|(partition, state)| {
            if state.at_end && state.is_drained() {
                return 0;
            }
            let end = ends.get(partition).copied().unwrap_or(0).max(state.known_end).max(state.next);
            u64::try_from(end - state.start).unwrap_or(0)
        });
        behind.sum()
    }
}

#[cfg(test)]
mod tests;
