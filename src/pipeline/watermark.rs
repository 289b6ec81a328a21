//! The watermark of one source table: how far event time has come. Pure: time is passed in.
//!
//! Per partition: the highest event time so far, less the delay; over all partitions that are not idle: the minimum.
//! It never goes back. A partition that still has rows to be read but has shown no event time holds it.
//!
//! Whether a partition is idle depends on the clock, so it is decided once, at the cut, and written into the plan;
//! everything else follows from the plan and the rows, so a replay comes to the same watermark.

use std::collections::{BTreeMap, BTreeSet};

use crate::checkpoint::record::{PartitionCommit, SourceCommit, SourcePlan};
use crate::connector::Cut;
use crate::sql::program::WatermarkSpec;

#[derive(Debug, Clone)]
pub struct Watermark {
    spec: Option<WatermarkSpec>,
    /// µs.
    value: Option<i64>,
    partitions: BTreeMap<i32, Partition>,
}

#[derive(Debug, Clone, Default)]
struct Partition {
    max_event_time: Option<i64>,
    idle: bool,
    /// By the clock, µs: when rows were last seen, or the process started.
    rows_at: i64,
}

impl Watermark {
    /// Goes on from the last commit, or from nothing.
    pub fn new(spec: Option<WatermarkSpec>, last: Option<&SourceCommit>, now: i64) -> Self {
        let partition =
            |p: &PartitionCommit| Partition { max_event_time: p.max_event_time, idle: p.idle, rows_at: now };
        let partitions = last.iter().flat_map(|l| &l.partitions).map(|(id, p)| (*id, partition(p))).collect();
        Self { spec, value: last.and_then(|l| l.watermark), partitions }
    }

    /// µs; `None` before the first.
    pub fn value(&self) -> Option<i64> {
        self.value
    }

    /// Event times later than this are not believed in a batch planned at `planned_at`.
    pub fn ahead_limit(&self, planned_at: i64) -> i64 {
        self.spec.as_ref().map_or(i64::MAX, |spec| planned_at.saturating_add(spec.max_ahead))
    }

    /// The partitions that are not to be waited for: read to the end of the log and without rows, for the idle time or
    /// ever.
    pub fn idle(&self, cut: &Cut, now: i64) -> BTreeSet<i32> {
        let Some(spec) = &self.spec else { return BTreeSet::new() };
        let idle = |(id, range): (&i32, &crate::connector::OffsetRange)| {
            if range.from != range.to || !cut.at_end.contains(id) {
                return None;
            }
            let known = self.partitions.get(id);
            let never = known.is_none_or(|p| p.max_event_time.is_none());
            let quiet = known.is_some_and(|p| p.idle || now.saturating_sub(p.rows_at) >= spec.idle);
            (never || quiet).then_some(*id)
        };
        cut.ranges.iter().filter_map(idle).collect()
    }

    /// Takes in a batch: `maxima` are the highest believable event times of its rows, by partition.
    pub fn advance(&mut self, plan: &SourcePlan, maxima: &BTreeMap<i32, i64>, now: i64) {
        for (id, range) in &plan.ranges {
            let partition =
                self.partitions.entry(*id).or_insert_with(|| Partition { rows_at: now, ..Partition::default() });
            partition.max_event_time = partition.max_event_time.max(maxima.get(id).copied());
            partition.idle = plan.idle.contains(id);
            if range.from != range.to {
                partition.rows_at = now;
            }
        }
        let Some(spec) = &self.spec else { return };
        let mut active = self.partitions.values().filter(|p| !p.idle).peekable();
        if active.peek().is_none() {
            return; // all idle: it stays
        }
        let lowest: Option<i64> = active.try_fold(i64::MAX, |low, p| p.max_event_time.map(|max| low.min(max)));
        if let Some(lowest) = lowest {
            self.value = self.value.max(Some(lowest.saturating_sub(spec.delay)));
        }
    }

    /// Ends a bounded run: all windows up to `end` are closed.
    pub fn close(&mut self, end: i64) {
        self.value = self.value.max(Some(end));
    }

    /// Whether a batch without rows, with these partitions idle, would move the watermark.
    pub fn would_move(&self, plan: &SourcePlan, now: i64) -> bool {
        let mut next = self.clone();
        next.advance(plan, &BTreeMap::new(), now);
        next.value != self.value
    }

    /// What a commit keeps of each partition.
    pub fn partitions(&self) -> BTreeMap<i32, PartitionCommit> {
        let commit = |p: &Partition| PartitionCommit {
            max_event_time: p.max_event_time,
            idle: p.idle,
            ..PartitionCommit::default()
        };
        self.partitions.iter().map(|(id, p)| (*id, commit(p))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::OffsetRange;

    const SECOND: i64 = 1_000_000;

    fn watermark() -> Watermark {
        let spec = WatermarkSpec { column: 0, delay: 5 * SECOND, idle: 60 * SECOND, max_ahead: 3_600 * SECOND };
        Watermark::new(Some(spec), None, 0)
    }

    fn ranges(rows: &[(i32, i64)]) -> BTreeMap<i32, OffsetRange> {
        rows.iter().map(|(id, n)| (*id, OffsetRange { from: 0, to: *n })).collect()
    }

    fn plan(rows: &[(i32, i64)], idle: &[i32]) -> SourcePlan {
        SourcePlan { ranges: ranges(rows), idle: idle.iter().copied().collect(), ..SourcePlan::default() }
    }

    fn cut(rows: &[(i32, i64)], at_end: &[i32]) -> Cut {
        Cut { ranges: ranges(rows), at_end: at_end.iter().copied().collect(), ..Cut::default() }
    }

    #[test]
    fn it_is_the_minimum_over_partitions_and_never_goes_back() {
        let mut watermark = watermark();
        watermark.advance(&plan(&[(0, 1), (1, 1)], &[]), &[(0, 100 * SECOND), (1, 50 * SECOND)].into(), 0);
        assert_eq!(watermark.value(), Some(45 * SECOND));
        watermark.advance(&plan(&[(0, 1), (1, 1)], &[]), &[(0, 10 * SECOND), (1, 60 * SECOND)].into(), 0);
        assert_eq!(watermark.value(), Some(55 * SECOND));
        // A partition that is added later begins behind: its rows may be late, the watermark stays.
        watermark.advance(&plan(&[(0, 1), (1, 1), (2, 1)], &[]), &[(2, SECOND)].into(), 0);
        assert_eq!(watermark.value(), Some(55 * SECOND));
    }

    #[test]
    fn a_partition_with_rows_still_to_be_read_holds_it() {
        let mut watermark = watermark();
        let behind = cut(&[(0, 1), (1, 0)], &[0]);
        let idle = watermark.idle(&behind, 0);
        assert!(idle.is_empty());
        watermark.advance(&plan(&[(0, 1), (1, 0)], &[]), &[(0, 100 * SECOND)].into(), 0);
        assert_eq!(watermark.value(), None);
    }

    #[test]
    fn an_empty_partition_is_idle_at_once_a_quiet_one_after_its_time() {
        let mut watermark = watermark();
        let first = cut(&[(0, 1), (1, 0)], &[0, 1]);
        assert_eq!(watermark.idle(&first, 0), [1].into());
        watermark.advance(&plan(&[(0, 1), (1, 0)], &[1]), &[(0, 100 * SECOND)].into(), 0);
        assert_eq!(watermark.value(), Some(95 * SECOND));

        watermark.advance(&plan(&[(0, 0), (1, 1)], &[]), &[(1, 200 * SECOND)].into(), 10 * SECOND);
        assert_eq!(watermark.value(), Some(95 * SECOND), "partition 0 may still bring rows");
        let quiet = cut(&[(0, 0), (1, 0)], &[0, 1]);
        assert_eq!(watermark.idle(&quiet, 59 * SECOND), [].into());
        let idle = watermark.idle(&quiet, 61 * SECOND);
        assert_eq!(idle, [0].into());
        let quiet = SourcePlan { ranges: quiet.ranges, idle, ..SourcePlan::default() };
        assert!(watermark.would_move(&quiet, 61 * SECOND));
        watermark.advance(&quiet, &BTreeMap::new(), 61 * SECOND);
        assert_eq!(watermark.value(), Some(195 * SECOND));
    }

    #[test]
    fn when_all_are_idle_it_stays() {
        let mut watermark = watermark();
        watermark.advance(&plan(&[(0, 1)], &[]), &[(0, 100 * SECOND)].into(), 0);
        watermark.advance(&plan(&[(0, 0)], &[0]), &BTreeMap::new(), 100 * SECOND);
        assert_eq!(watermark.value(), Some(95 * SECOND));
    }

    #[test]
    fn it_goes_on_from_a_commit() {
        let mut before = watermark();
        before.advance(&plan(&[(0, 1), (1, 0)], &[1]), &[(0, 100 * SECOND)].into(), 0);
        let commit = SourceCommit {
            ranges: ranges(&[(0, 1), (1, 0)]),
            watermark: before.value(),
            partitions: before.partitions(),
            ..SourceCommit::default()
        };
        let mut after = Watermark::new(before.spec.clone(), Some(&commit), 0);
        for watermark in [&mut before, &mut after] {
            watermark.advance(&plan(&[(0, 1), (1, 0)], &[1]), &[(0, 130 * SECOND)].into(), 0);
        }
        assert_eq!((before.value(), after.value()), (Some(125 * SECOND), Some(125 * SECOND)));
    }
}
