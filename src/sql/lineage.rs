//! What a plan reads, and whether its rows come one by one: from this follows what may be kept, resent or refused.
//!
//! All questions are asked of plans, not of the SQL: a view, a common table expression or an alias changes nothing.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

use super::functions::is_of_batch;
use super::pinned::{PinnedKind, PinnedTable};
use super::window_tvf::as_window_tvf;

/// What a plan reads.
#[derive(Debug, Default)]
pub struct Scans {
    pub sources: BTreeSet<String>,
    pub dimensions: BTreeSet<String>,
    pub sinks: BTreeSet<String>,
    /// By number in [`super::windowed::Windows`].
    pub views: BTreeSet<usize>,
    /// A windowed view, or `TUMBLE`, `HOP` or `LATE`.
    pub windowed: bool,
}

impl Scans {
    fn is_stream(&self) -> bool {
        !self.sources.is_empty() || self.windowed
    }
}

pub fn scans(plan: &LogicalPlan) -> Result<Scans> {
    let mut found = Scans::default();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            match PinnedTable::of(scan) {
                Some(PinnedKind::Source(name) | PinnedKind::Part(name)) => found.sources.insert(name),
                Some(PinnedKind::Dimension(name)) => found.dimensions.insert(name),
                Some(PinnedKind::Sink(name)) => found.sinks.insert(name),
                Some(PinnedKind::Windowed { view, .. }) => found.views.insert(view),
                None => false,
            };
        }
        found.windowed |= as_window_tvf(node).is_some();
        Ok(TreeNodeRecursion::Continue)
    })?;
    found.windowed |= !found.views.is_empty();
    Ok(found)
}

/// Whether each row that comes out depends on one row of the stream that goes in (and on dimensions).
pub fn row_wise(plan: &LogicalPlan) -> bool {
    let mut row_wise = true;
    let visited = plan.apply(|node| {
        use LogicalPlan::{Aggregate, Distinct, Join, Limit, RecursiveQuery, Sort, TableScan, Union, Window};
        row_wise &= match node {
            Aggregate(_) | Distinct(_) | Limit(_) | Window(_) | RecursiveQuery(_) => !is_stream(node),
            // A branch without a stream would give its rows again in every batch.
            Union(union) => {
                let streams = union.inputs.iter().filter(|input| is_stream(input)).count();
                streams == 0 || streams == union.inputs.len()
            }
            Sort(sort) => sort.fetch.is_none() || !is_stream(node),
            TableScan(scan) => scan.fetch.is_none() || !is_stream(node),
            Join(join) => match (is_stream(&join.left), is_stream(&join.right)) {
                (true, true) => false,
                (true, false) => keeps_left(join.join_type),
                (false, true) => keeps_left(join.join_type.swap()),
                (false, false) => true,
            },
            _ => true,
        };
        // Not optimized yet: a stream in IN (SELECT …) or EXISTS is a join in disguise.
        node.apply_subqueries(|subquery| {
            row_wise &= !is_stream(subquery);
            Ok(TreeNodeRecursion::Continue)
        })
    });
    visited.is_ok() && row_wise
}

/// Whether every row of such a join comes of one row of its left side.
pub fn keeps_left(join: JoinType) -> bool {
    matches!(join, JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark)
}

fn is_stream(plan: &LogicalPlan) -> bool {
    scans(plan).is_ok_and(|scans| scans.is_stream())
}

/// Whether the rows also come out in the order they went in. A join may turn them round, a union mixes its branches.
pub fn in_order(plan: &LogicalPlan) -> bool {
    use LogicalPlan::{Filter, Projection, SubqueryAlias, TableScan};
    match plan {
        TableScan(_) => true,
        Projection(_) | Filter(_) | SubqueryAlias(_) => plan.inputs().into_iter().all(in_order),
        _ => false,
    }
}

/// Whether a placeholder of the batch occurs anywhere.
pub fn uses(plan: &LogicalPlan, placeholder: &str) -> Result<bool> {
    any_expression(plan, |expr| is_placeholder(expr, placeholder)).map(|found| found.is_some())
}

pub fn is_placeholder(expr: &Expr, id: &str) -> bool {
    matches!(expr, Expr::Placeholder(placeholder) if placeholder.id == id)
}

/// The first function in a plan whose value no replay could give again.
pub fn unrepeatable(plan: &LogicalPlan) -> Result<Option<String>> {
    let found = any_expression(plan, |expr| match expr {
        Expr::ScalarFunction(f) => f.func.signature().volatility == Volatility::Volatile && !is_of_batch(f.func.name()),
        _ => false,
    })?;
    Ok(found.map(|expr| match expr {
        Expr::ScalarFunction(f) => f.func.name().to_string(),
        other => other.to_string(),
    }))
}

/// The first expression anywhere in a plan that is wanted.
pub fn any_expression(plan: &LogicalPlan, wanted: impl Fn(&Expr) -> bool) -> Result<Option<Expr>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if wanted(expr) {
                    found = Some(expr.clone());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}
