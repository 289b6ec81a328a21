//! Whether the SQL over windowed views keeps to one window at a time.
//!
//! A batch shows the windows that changed or closed in it, each whole. So what is grouped, partitioned or joined by
//! window is right; a total over windows, or a look at the window before, sees only what this batch happens to show.

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchemaRef};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, Operator};

use super::functions::CURRENT_WATERMARK;
use super::lineage::{is_placeholder, scans};
use super::pinned::{PinnedKind, PinnedTable};

/// Whether everything that takes several rows together takes only rows of one window.
pub fn by_window(plan: &LogicalPlan) -> bool {
    let mut by_window = true;
    bounds(plan, &mut by_window);
    by_window
}

/// The columns of a plan that hold a bound of the row's window.
fn bounds(plan: &LogicalPlan, by_window: &mut bool) -> Vec<Column> {
    let of_input = |by_window: &mut bool| -> Vec<Column> {
        plan.inputs().into_iter().flat_map(|input| bounds(input, by_window)).collect()
    };
    match plan {
        LogicalPlan::TableScan(scan) => match PinnedTable::of(scan) {
            Some(PinnedKind::Windowed { closed, .. }) => {
                let is_bound = |c: &Column| c.name == closed.start || Some(&c.name) == closed.end.as_ref();
                plan.schema().columns().into_iter().filter(is_bound).collect()
            }
            _ => vec![],
        },
        LogicalPlan::Projection(projection) => {
            let known = bounds(&projection.input, by_window);
            outputs(&projection.schema, projection.expr.iter().map(|expr| is_bound(expr, &known)))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let known = bounds(&alias.input, by_window);
            let columns = alias.input.schema().columns();
            outputs(&alias.schema, columns.iter().map(|column| known.contains(column)))
        }
        LogicalPlan::Union(union) => {
            let inputs: Vec<_> = union.inputs.iter().map(|input| (input, bounds(input, by_window))).collect();
            let in_all = |i: usize| inputs.iter().all(|(input, known)| known.contains(&input.schema().columns()[i]));
            outputs(&union.schema, (0..union.schema.fields().len()).map(in_all))
        }
        LogicalPlan::Aggregate(aggregate) => {
            let known = bounds(&aggregate.input, by_window);
            let groups: Vec<bool> = aggregate.group_expr.iter().map(|expr| is_bound(expr, &known)).collect();
            *by_window &= groups.contains(&true) || !is_windowed(&aggregate.input);
            outputs(&aggregate.schema, groups.into_iter())
        }
        LogicalPlan::Window(window) => {
            let known = bounds(&window.input, by_window);
            *by_window &= window.window_expr.iter().all(|expr| partitions(expr).iter().any(|e| is_bound(e, &known)))
                || !is_windowed(&window.input);
            known
        }
        LogicalPlan::Distinct(distinct) => {
            let known = of_input(by_window);
            let kept = match distinct {
                Distinct::All(_) => !known.is_empty(),
                Distinct::On(on) => on.on_expr.iter().any(|expr| is_bound(expr, &known)),
            };
            *by_window &= kept || !is_windowed(plan);
            known
        }
        LogicalPlan::Join(join) => {
            let (left, right) = (bounds(&join.left, by_window), bounds(&join.right, by_window));
            let joined = join.on.iter().any(|(l, r)| is_bound(l, &left) && is_bound(r, &right));
            *by_window &= joined || !is_windowed(&join.left) || !is_windowed(&join.right);
            let columns = join.schema.columns();
            left.into_iter().chain(right).filter(|column| columns.contains(column)).collect()
        }
        LogicalPlan::Limit(_) | LogicalPlan::RecursiveQuery(_) => {
            *by_window &= !is_windowed(plan);
            of_input(by_window)
        }
        LogicalPlan::Sort(sort) => {
            *by_window &= sort.fetch.is_none() || !is_windowed(plan);
            of_input(by_window)
        }
        _ => of_input(by_window),
    }
}

fn outputs(schema: &DFSchemaRef, bounds: impl Iterator<Item = bool>) -> Vec<Column> {
    schema.columns().into_iter().zip(bounds).filter(|(_, bound)| *bound).map(|(column, _)| column).collect()
}

/// A bound as it is, or moved by a constant.
fn is_bound(expr: &Expr, known: &[Column]) -> bool {
    match expr {
        Expr::Column(column) => known.contains(column),
        Expr::Alias(alias) => is_bound(&alias.expr, known),
        // A day holds many windows: only a cast that keeps them apart.
        Expr::Cast(cast) => matches!(cast.field.data_type(), DataType::Timestamp(..)) && is_bound(&cast.expr, known),
        Expr::BinaryExpr(e) if matches!(e.op, Operator::Plus | Operator::Minus) => {
            is_bound(&e.left, known) && matches!(e.right.as_ref(), Expr::Literal(..))
        }
        _ => false,
    }
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

/// Whether a condition asks of the watermark what is not certain to be seen: `window_end <= current_watermark()` and
/// its opposite change only when a window closes, and then the window is shown.
pub fn odd_watermark_test(plan: &LogicalPlan) -> bool {
    let mut odd = false;
    let visited = plan.apply_with_subqueries(|node| {
        let predicate = match node {
            LogicalPlan::Filter(filter) => Some(&filter.predicate),
            LogicalPlan::Join(join) => join.filter.as_ref(),
            _ => None,
        };
        for condition in predicate.into_iter().flat_map(split_conjunction) {
            let asks = condition.exists(|e| Ok(is_placeholder(e, CURRENT_WATERMARK))).unwrap_or(true);
            odd |= asks && !is_closed_test(condition);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    odd || visited.is_err()
}

fn is_closed_test(condition: &Expr) -> bool {
    let Expr::BinaryExpr(test) = condition else { return false };
    let (end, watermark) = match test.op {
        Operator::LtEq | Operator::Gt => (&test.left, &test.right),
        Operator::GtEq | Operator::Lt => (&test.right, &test.left),
        _ => return false,
    };
    fn is(expr: &Expr, wanted: fn(&Expr) -> bool) -> bool {
        match expr {
            Expr::Cast(cast) => matches!(cast.field.data_type(), DataType::Timestamp(..)) && is(&cast.expr, wanted),
            other => wanted(other),
        }
    }
    is(end, |e| matches!(e, Expr::Column(_))) && is(watermark, |e| is_placeholder(e, CURRENT_WATERMARK))
}
