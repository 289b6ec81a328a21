//! Rows between the reader thread and the cuts, by partition: pure bookkeeping, no I/O, no clock.
//!
//! ```text
//! partition 0   start ─▶ [chunk][chunk][records being packed] ◀─ next      a cut takes from the left
//! ```
//!
//! Chunks are decoded outside (see `rows`): what a cut takes is [`Taken`], and becomes a [`Cut`] without the buffer's lock.
//!
//! A cut works on the buffer directly, under its lock: nothing is handed over, so a dropped future cannot lose rows.
//!
//! Invariants: the rows of a partition lie in offset order without overlap; every chunk but the last of a cut has its
//! full size, counted from the beginning of that cut (see `rows`). To keep the second one, rows that were read beyond
//! the end of an exact cut are not kept but read again (`Partition::resetting`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::rows::{Decoders, Packer, Record, Slot};
use super::schemas::Schemas;
use crate::connector::{Chunk, Cut, Loss, OffsetRange, Ranges};
use crate::{Error, Result};

pub struct Partition {
    packer: Packer,
    chunks: VecDeque<Arc<Slot>>,
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
        self.chunks.is_empty() && self.packer.len() == 0
    }
}

/// All partitions of one source.
pub struct Buffer {
    decoders: Arc<Decoders>,
    /// Takes chunks to be decoded; `None` when the source is closed.
    packed: Option<Sender<Arc<Slot>>>,
    pub partitions: BTreeMap<i32, Partition>,
    /// Rows and bytes of payload that wait.
    pub rows: usize,
    pub bytes: usize,
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
    pub fn new(decoders: Arc<Decoders>, packed: Sender<Arc<Slot>>, limit: usize) -> Self {
        Self {
            decoders,
            packed: Some(packed),
            partitions: BTreeMap::new(),
            rows: 0,
            bytes: 0,
            limit,
            target: None,
            losses: vec![],
            turn: i32::MIN,
            failure: None,
            failed: false,
        }
    }

    /// `start` is where the first cut begins, `next` where reading does: later, if retention took the difference.
    pub fn add_partition(&mut self, partition: i32, start: i64, next: i64, known_end: i64) {
        let packer = Packer::new(self.decoders.layout(), partition);
        let at_end = next >= known_end;
        let chunks = VecDeque::new();
        let state = Partition { packer, chunks, start, next, reached: next, known_end, at_end, resetting: false };
        self.partitions.insert(partition, state);
    }

    /// Where values may be Avro.
    pub fn schemas(&self) -> Option<Arc<Schemas>> {
        self.decoders.schemas()
    }

    /// No more chunks will be decoded but by cuts: ends the threads that do it.
    pub fn close(&mut self) {
        self.packed = None;
    }

    /// Appends a record; one that was there already or is stale is passed over.
    pub fn push(&mut self, partition: i32, record: &Record) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        if state.resetting || record.offset < state.next {
            return;
        }
        let bytes = state.packer.bytes();
        state.packer.push(record);
        state.next = record.offset + 1;
        state.reached = state.next;
        state.at_end = false;
        self.rows += 1;
        self.bytes += state.packer.bytes() - bytes;
        if state.packer.is_full() {
            let slot = state.packer.finish();
            if let Some(packed) = &self.packed {
                // Without a thread that listens, the cut decodes it.
                drop(packed.send(Arc::clone(&slot)));
            }
            state.chunks.push_back(slot);
        }
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

    fn memory(&self) -> usize {
        let of =
            |state: &Partition| state.packer.memory() + state.chunks.iter().map(|slot| slot.memory()).sum::<usize>();
        self.partitions.values().map(of).sum()
    }

    pub fn is_full(&self) -> bool {
        self.memory() >= self.limit
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
    pub fn take_available(&mut self, rows: usize, bytes: usize) -> Taken {
        let mut taken: BTreeMap<i32, Vec<Arc<Slot>>> = BTreeMap::new();
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
                if let Some(slot) = self.pop(*partition) {
                    taken_rows += slot.rows;
                    taken_bytes += slot.bytes;
                    taken.entry(*partition).or_default().push(slot);
                    self.turn = *partition;
                    progress = true;
                }
            }
            if !progress {
                break;
            }
        }
        let mut cut = Cut { losses: std::mem::take(&mut self.losses), ..Cut::default() };
        let mut chunks = vec![];
        for (partition, state) in &mut self.partitions {
            let own = taken.remove(partition).unwrap_or_default();
            let mut to = own.last().map_or(state.start, |slot| slot.last + 1);
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
            chunks.extend(own.into_iter().map(TakenChunk::Slot));
        }
        Taken { cut, chunks, decoders: Arc::clone(&self.decoders) }
    }

    /// The oldest chunk of a partition; if there is none, what is being packed.
    fn pop(&mut self, partition: i32) -> Option<Arc<Slot>> {
        let state = self.partitions.get_mut(&partition)?;
        let slot = match state.chunks.pop_front() {
            Some(slot) => slot,
            None if state.packer.len() > 0 => state.packer.finish(),
            None => return None,
        };
        self.rows -= slot.rows;
        self.bytes -= slot.bytes;
        Some(slot)
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
    ///
    /// # Errors
    /// A chunk that is split does not decode.
    pub fn take_exactly(&mut self, ranges: &Ranges) -> Result<Option<Taken>> {
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
        let mut chunks = vec![];
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        for partition in partitions {
            let to = ranges.get(&partition).map(|range| range.to);
            if let Some(to) = to {
                self.take_before(partition, to, &mut chunks)?;
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
        Ok(Some(Taken { cut, chunks, decoders: Arc::clone(&self.decoders) }))
    }

    /// Moves the rows before `to` into the cut. If that splits a chunk, what was read beyond it is dropped, to be read
    /// again: the chunks of the next cut are counted from `to`.
    fn take_before(&mut self, partition: i32, to: i64, chunks: &mut Vec<TakenChunk>) -> Result<()> {
        loop {
            let Some(state) = self.partitions.get(&partition) else { return Ok(()) };
            let first = state.chunks.front().map(|slot| slot.first).or_else(|| state.packer.first_offset());
            if first.is_none_or(|first| first >= to) {
                return Ok(());
            }
            let Some(slot) = self.pop(partition) else { return Ok(()) };
            if slot.last < to {
                chunks.push(TakenChunk::Slot(slot));
                continue;
            }
            chunks.extend(slot.take(&self.decoders)?.before(to)?.map(TakenChunk::Part));
            while self.pop(partition).is_some() {}
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

/// What a cut has taken, perhaps not decoded yet.
pub struct Taken {
    cut: Cut,
    /// Of `cut`, in their order.
    chunks: Vec<TakenChunk>,
    decoders: Arc<Decoders>,
}

enum TakenChunk {
    Slot(Arc<Slot>),
    Part(Chunk),
}

impl Taken {
    /// # Errors
    /// A chunk does not decode (internal).
    pub fn decode(mut self) -> Result<Cut> {
        // From the end: the threads begin at the beginning.
        for chunk in self.chunks.iter().rev() {
            if let TakenChunk::Slot(slot) = chunk {
                slot.decode(&self.decoders)?;
            }
        }
        for chunk in self.chunks {
            self.cut.chunks.push(match chunk {
                TakenChunk::Slot(slot) => slot.take(&self.decoders)?.chunk,
                TakenChunk::Part(chunk) => chunk,
            });
        }
        Ok(self.cut)
    }
}

#[cfg(test)]
mod tests;
