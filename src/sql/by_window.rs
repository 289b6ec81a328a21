//! Whether the SQL over windowed views keeps to one window at a time.
//!
//! A batch shows the windows that changed or closed in it, each whole; views of one source whose windows have one size
//! show the same ones. So what is grouped, partitioned or joined by window is right; a total over windows, or a look at
//! the window before, sees only what this batch happens to show.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchemaRef};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};

use super::bound::{Bound, WatermarkTest, tell_one_window};
use super::functions::CURRENT_WATERMARK;
use super::lineage::{is_placeholder, scans};
use super::pinned::{PinnedKind, PinnedTable};

/// How SQL takes rows of several windows together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Across {
    /// Whatever windows they are of.
    Mixed,
    /// Each window with another one: bounds of different meaning, or windows of different sizes, are joined.
    Joined,
}

impl Across {
    /// What is to be said of it, and what to do instead.
    pub fn explain(self) -> (&'static str, &'static str) {
        match self {
            Self::Mixed => (
                "an aggregate, DISTINCT, OVER, LIMIT or join over windowed views that is not by window sees only the \
                 windows of one micro-batch",
                "put window_start into its GROUP BY, PARTITION BY or ON",
            ),
            Self::Joined => (
                "a join of each window with another one (window_end with window_start, or windows of different sizes) \
                 sees only the pairs that changed or closed in the same micro-batch",
                "join the same bound of windows of one size, as a.window_start = b.window_start; compare windows with \
                 each other in a query over the table that they are written to",
            ),
        }
    }
}

/// `None`: everything that takes several rows together takes only rows of one window.
pub fn across_windows(plan: &LogicalPlan) -> Option<Across> {
    let mut across = None;
    bounds(plan, &mut across);
    across
}

/// The columns of a plan that hold a bound of the row's window.
pub fn bounds_of(plan: &LogicalPlan) -> Vec<(Column, Bound)> {
    bounds(plan, &mut None)
}

/// The columns that hold a bound of the row's window.
type Bounds = Vec<(Column, Bound)>;

/// Of a plan. `across` is filled in at the first node that takes rows of several windows together.
fn bounds(plan: &LogicalPlan, across: &mut Option<Across>) -> Bounds {
    let of_input = |across: &mut Option<Across>| -> Bounds {
        plan.inputs().into_iter().flat_map(|input| bounds(input, across)).collect()
    };
    let unless = |kept: bool, windowed: &LogicalPlan, how: Across, across: &mut Option<Across>| {
        if !kept && is_windowed(windowed) {
            across.get_or_insert(how);
        }
    };
    match plan {
        LogicalPlan::TableScan(scan) => match PinnedTable::of(scan) {
            Some(PinnedKind::Windowed { closed, .. }) => {
                outputs(plan.schema(), plan.schema().columns().iter().map(|column| closed.bound(column)))
            }
            _ => vec![],
        },
        LogicalPlan::Projection(projection) => {
            let known = bounds(&projection.input, across);
            outputs(&projection.schema, projection.expr.iter().map(|expr| bound(expr, &known)))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let known = bounds(&alias.input, across);
            let columns = alias.input.schema().columns();
            outputs(&alias.schema, columns.iter().map(|column| of_column(column, &known)))
        }
        LogicalPlan::Union(union) => {
            let inputs: Vec<_> = union.inputs.iter().map(|input| (input, bounds(input, across))).collect();
            let in_all = |i: usize| {
                let mut of_inputs = inputs.iter().map(|(input, known)| of_column(&input.schema().columns()[i], known));
                let first = of_inputs.next()??;
                of_inputs.try_fold(first, |all, one| all.or(one?))
            };
            outputs(&union.schema, (0..union.schema.fields().len()).map(in_all))
        }
        LogicalPlan::Aggregate(aggregate) => {
            let known = bounds(&aggregate.input, across);
            let groups: Vec<Option<Bound>> = aggregate.group_expr.iter().map(|expr| bound(expr, &known)).collect();
            unless(is_one_window(groups.iter().flatten()), &aggregate.input, Across::Mixed, across);
            outputs(&aggregate.schema, groups.into_iter())
        }
        LogicalPlan::Window(window) => {
            let known = bounds(&window.input, across);
            let by_window = |expr| is_one_window(&of_all(partitions(expr), &known));
            unless(window.window_expr.iter().all(by_window), &window.input, Across::Mixed, across);
            known
        }
        LogicalPlan::Distinct(distinct) => {
            let known = of_input(across);
            let kept = match distinct {
                Distinct::All(_) => is_one_window(known.iter().map(|(_, bound)| bound)),
                Distinct::On(on) => is_one_window(&of_all(&on.on_expr, &known)),
            };
            unless(kept, plan, Across::Mixed, across);
            known
        }
        LogicalPlan::Join(join) => {
            let (left, right) = (bounds(&join.left, across), bounds(&join.right, across));
            let pairs = join.on.iter().filter_map(|(l, r)| Some((bound(l, &left)?, bound(r, &right)?)));
            let pairs: Vec<(Bound, Bound)> = pairs.collect();
            let how = if pairs.is_empty() { Across::Mixed } else { Across::Joined };
            let kept = tell_one_window(&pairs) || !is_windowed(&join.left);
            unless(kept, &join.right, how, across);
            let columns = join.schema.columns();
            left.into_iter().chain(right).filter(|(column, _)| columns.contains(column)).collect()
        }
        LogicalPlan::Limit(_) | LogicalPlan::RecursiveQuery(_) => {
            unless(false, plan, Across::Mixed, across);
            of_input(across)
        }
        LogicalPlan::Sort(sort) => {
            unless(sort.fetch.is_none(), plan, Across::Mixed, across);
            of_input(across)
        }
        _ => of_input(across),
    }
}

fn outputs(schema: &DFSchemaRef, bounds: impl Iterator<Item = Option<Bound>>) -> Bounds {
    schema.columns().into_iter().zip(bounds).filter_map(|(column, bound)| Some((column, bound?))).collect()
}

fn of_column(column: &Column, known: &[(Column, Bound)]) -> Option<Bound> {
    known.iter().find(|(known, _)| known == column).map(|(_, bound)| bound.clone())
}

fn of_all(exprs: &[Expr], known: &[(Column, Bound)]) -> Vec<Bound> {
    exprs.iter().filter_map(|expr| bound(expr, known)).collect()
}

/// Whether rows with the same values here are of one window.
fn is_one_window<'b>(bounds: impl IntoIterator<Item = &'b Bound>) -> bool {
    tell_one_window(&bounds.into_iter().map(|bound| (bound.clone(), bound.clone())).collect::<Vec<_>>())
}

fn bound(expr: &Expr, known: &[(Column, Bound)]) -> Option<Bound> {
    Bound::of(expr, &|column| of_column(column, known))
}

fn partitions(expr: &Expr) -> &[Expr] {
    match expr {
        Expr::Alias(alias) => partitions(&alias.expr),
        Expr::WindowFunction(function) => &function.params.partition_by,
        _ => &[],
    }
}

fn is_windowed(plan: &LogicalPlan) -> bool {
    scans(plan).is_ok_and(|scans| !scans.views.is_empty())
}

/// Whether a condition asks of the watermark what is not certain to be seen. That a window is closed, or still open,
/// changes only when it closes, and then it is shown.
pub fn odd_watermark_test(plan: &LogicalPlan) -> bool {
    let mut odd = false;
    let visited = plan.apply_with_subqueries(|node| {
        let predicate = match node {
            LogicalPlan::Filter(filter) => Some(&filter.predicate),
            LogicalPlan::Join(join) => join.filter.as_ref(),
            _ => None,
        };
        let asks = |e: &&Expr| e.exists(|e| Ok(is_placeholder(e, CURRENT_WATERMARK))).unwrap_or(true);
        let mut asking = predicate.into_iter().flat_map(split_conjunction).filter(asks).peekable();
        if asking.peek().is_some() {
            let known: Bounds = node.inputs().into_iter().flat_map(|input| bounds(input, &mut None)).collect();
            let is_known = |e: &Expr| WatermarkTest::of(e, &|column| of_column(column, &known)).is_some();
            odd |= !asking.all(is_known);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    odd || visited.is_err()
}
