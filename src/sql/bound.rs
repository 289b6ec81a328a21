//! The bounds of windows: which value in a plan over windowed views is the start or the end of which window, and what is
//! asked of it.
//!
//! One rule for all who ask: what may be pushed down to the window state (`sql::pinned`), what keeps to one window at a
//! time (`sql::by_window`).

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Expr, Operator};

use super::functions::CURRENT_WATERMARK;
use super::lineage::is_placeholder;

/// A value that is the start of a window, moved by a length that is fixed for windows of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Size of the window → how far from its start; µs. Several where views of different sizes are united.
    shifts: BTreeMap<i64, i64>,
}

impl Bound {
    pub fn start(size: i64) -> Self {
        Self { shifts: BTreeMap::from([(size, 0)]) }
    }

    pub fn end(size: i64) -> Self {
        Self { shifts: BTreeMap::from([(size, size)]) }
    }

    /// `of_column` knows the columns that `expr` is made of.
    pub fn of(expr: &Expr, of_column: &dyn Fn(&Column) -> Option<Self>) -> Option<Self> {
        match expr {
            Expr::Column(column) => of_column(column),
            Expr::Alias(alias) => Self::of(&alias.expr, of_column),
            // A day holds many windows: only a cast that keeps them apart.
            Expr::Cast(cast) if is_timestamp(cast.field.data_type()) => Self::of(&cast.expr, of_column),
            Expr::BinaryExpr(sum) => {
                let (bound, micros) = match sum.op {
                    Operator::Plus => match fixed(&sum.right) {
                        Some(micros) => (&sum.left, micros),
                        None => (&sum.right, fixed(&sum.left)?),
                    },
                    Operator::Minus => (&sum.left, fixed(&sum.right)?.checked_neg()?),
                    _ => return None,
                };
                let mut bound = Self::of(bound, of_column)?;
                for shift in bound.shifts.values_mut() {
                    *shift = shift.checked_add(micros)?;
                }
                Some(bound)
            }
            _ => None,
        }
    }

    /// Of a value that is either; `None`: then it would say nothing certain of windows of one size.
    pub fn or(mut self, other: Self) -> Option<Self> {
        for (size, shift) in other.shifts {
            if *self.shifts.entry(size).or_insert(shift) != shift {
                return None;
            }
        }
        Some(self)
    }

    /// How far from the start of a window of this size; `None`: it may be of a window of another size.
    pub fn shift(&self, size: i64) -> Option<i64> {
        self.shifts.get(&size).copied().filter(|_| self.shifts.len() == 1)
    }

    fn is_end(&self) -> bool {
        self.shifts.iter().all(|(size, shift)| size == shift)
    }

    fn sizes(&self) -> impl Iterator<Item = &i64> {
        self.shifts.keys()
    }
}

/// Whether two rows are of one window if each of these pairs, a value of the one and of the other, is equal. Of windows of
/// several sizes neither start nor end says enough, but both together do.
pub fn tell_one_window(pairs: &[(Bound, Bound)]) -> bool {
    // What belongs to windows of the same sizes is taken together: a row of a join has bounds of several windows.
    pairs.iter().any(|(left, right)| {
        let alike = |(l, r): &&(Bound, Bound)| l.sizes().eq(left.sizes()) && r.sizes().eq(right.sizes());
        let alike: Vec<&(Bound, Bound)> = pairs.iter().filter(alike).collect();
        left.sizes().all(|of_left| {
            right.sizes().all(|of_right| {
                // How far the starts are apart; more than one answer: it cannot be.
                let apart = |(l, r): &&(Bound, Bound)| i128::from(r.shifts[of_right]) - i128::from(l.shifts[of_left]);
                let apart: BTreeSet<i128> = alike.iter().map(apart).collect();
                apart.len() > 1 || (of_left == of_right && apart.contains(&0))
            })
        })
    })
}

/// What a condition asks of the watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatermarkTest {
    /// `window_end <= current_watermark()`, either way round, or `start + INTERVAL size` in place of the end.
    Closed,
    /// The opposite. Both change only when a window closes.
    Open,
}

impl WatermarkTest {
    /// `None`: the condition asks something else, or not of a window.
    pub fn of(condition: &Expr, of_column: &dyn Fn(&Column) -> Option<Bound>) -> Option<Self> {
        let Expr::BinaryExpr(test) = condition else { return None };
        let (end, watermark, test) = match test.op {
            Operator::LtEq => (&test.left, &test.right, Self::Closed),
            Operator::GtEq => (&test.right, &test.left, Self::Closed),
            Operator::Gt => (&test.left, &test.right, Self::Open),
            Operator::Lt => (&test.right, &test.left, Self::Open),
            _ => return None,
        };
        let asks = is_placeholder(uncast(watermark), CURRENT_WATERMARK) && Bound::of(end, of_column)?.is_end();
        asks.then_some(test)
    }
}

fn uncast(expr: &Expr) -> &Expr {
    match expr {
        Expr::Cast(cast) if is_timestamp(cast.field.data_type()) => uncast(&cast.expr),
        other => other,
    }
}

fn is_timestamp(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..))
}

/// The length of an interval in µs. Months vary: two windows moved by one may become the same.
fn fixed(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(i)), _) if i.months == 0 && i.nanoseconds % 1_000 == 0 => {
            i64::from(i.days).checked_mul(86_400_000_000)?.checked_add(i.nanoseconds / 1_000)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{cast, col, lit};

    use super::*;
    use crate::sql::functions::{placeholder, timestamp_type};
    use crate::sql::window_tvf::interval;

    const MINUTE: i64 = 60_000_000;

    fn of_column(column: &Column) -> Option<Bound> {
        match column.name.as_str() {
            "start" => Some(Bound::start(MINUTE)),
            "end" => Some(Bound::end(MINUTE)),
            _ => None,
        }
    }

    #[test]
    fn a_bound_may_be_moved_by_a_fixed_length() {
        let bound = |expr: Expr| Bound::of(&expr, &of_column);
        let nanoseconds = DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None);
        for end in [
            col("end"),
            col("start") + interval(MINUTE),
            interval(MINUTE) + col("start"),
            cast(col("end"), nanoseconds).alias("e"),
            col("end") + lit(ScalarValue::new_interval_mdn(0, 1, 0)) - interval(86_400_000_000),
        ] {
            assert_eq!(bound(end.clone()), Some(Bound::end(MINUTE)), "{end}");
        }
        assert_ne!(bound(col("start")), bound(col("end")));
        let month = lit(ScalarValue::new_interval_mdn(1, 0, 0));
        for none in [col("start") + month, cast(col("start"), DataType::Date32), col("other"), interval(1) - col("end")]
        {
            assert_eq!(bound(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn both_bounds_together_tell_windows_of_several_sizes_apart() {
        let of = |bound: fn(i64) -> Bound| bound(MINUTE).or(bound(5 * MINUTE)).unwrap();
        let itself = |bound: &Bound| (bound.clone(), bound.clone());
        let (start, end) = (of(Bound::start), of(Bound::end));
        assert!(!tell_one_window(&[itself(&start)]) && !tell_one_window(&[itself(&end)]) && !tell_one_window(&[]));
        assert!(tell_one_window(&[itself(&start), itself(&end)]));
        assert!(tell_one_window(&[itself(&start), itself(&Bound::end(MINUTE))]), "one of one size is enough");
        assert!(!tell_one_window(&[(start, end)]));
        assert!(!tell_one_window(&[(Bound::end(MINUTE), Bound::start(MINUTE))]));
        assert!(!tell_one_window(&[(Bound::start(MINUTE), Bound::start(5 * MINUTE))]));
        assert_eq!(Bound::start(MINUTE).or(Bound::end(MINUTE)), None);
    }

    #[test]
    fn only_the_end_of_a_window_tells_that_it_is_closed() {
        let watermark = || placeholder(CURRENT_WATERMARK, timestamp_type());
        let test = |expr: Expr| WatermarkTest::of(&expr, &of_column);
        for closed in [
            col("end").lt_eq(watermark()),
            watermark().gt_eq(col("end")),
            (col("start") + interval(MINUTE)).lt_eq(cast(watermark(), timestamp_type())),
        ] {
            assert_eq!(test(closed.clone()), Some(WatermarkTest::Closed), "{closed}");
        }
        assert_eq!(test(col("end").gt(watermark())), Some(WatermarkTest::Open));
        assert_eq!(test(watermark().lt(col("end"))), Some(WatermarkTest::Open));
        for odd in [
            col("end").lt(watermark()),
            col("start").lt_eq(watermark()),
            col("other").lt_eq(watermark()),
            (col("end") + interval(1)).lt_eq(watermark()),
            col("end").lt_eq(col("start")),
        ] {
            assert_eq!(test(odd.clone()), None, "{odd}");
        }
    }
}
