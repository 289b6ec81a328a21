//! What the queries need of a dimension: which columns, and of which rows.
//!
//! ```text
//! INSERT a   … ⨝ scan users [user_id, region]  region = 'eu'        ┐   SELECT user_id, region, segment FROM users
//! INSERT b   … ⨝ scan users [user_id, segment] segment IS NOT NULL  ┘   WHERE region = 'eu' OR segment IS NOT NULL
//! ```
//!
//! One copy serves them all, so it has what any of them reads. Asked of the optimized plans: there a condition has
//! come down to the scan it is about, and a column that nobody wants is gone. Each query checks its own conditions again.
//!
//! Only comparisons of columns and literals are taken: they mean the same in every batch, and fail on no row.

use std::collections::BTreeSet;

use arrow::datatypes::Schema;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::utils::{conjunction, disjunction};
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, TableScan};

use super::pinned::{PinnedKind, PinnedTable};

/// What is read of a bounded table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needed {
    /// Positions among the declared columns, in their order; at least one.
    pub columns: Vec<usize>,
    /// Over columns without a qualifier; `None`: any row may be asked for.
    pub filter: Option<Expr>,
}

/// What optimized plans read of the dimension of this name, all together.
///
/// # Errors
/// DataFusion's, while it walks through a plan.
pub fn needed<'p>(
    dimension: &str,
    declared: &Schema,
    plans: impl IntoIterator<Item = &'p LogicalPlan>,
) -> Result<Needed> {
    let (mut columns, mut filters, mut any_row) = (BTreeSet::new(), Vec::<Expr>::new(), false);
    for plan in plans {
        plan.apply_with_subqueries(|node| {
            let LogicalPlan::TableScan(scan) = node else { return Ok(TreeNodeRecursion::Continue) };
            if !matches!(PinnedTable::of(scan), Some(PinnedKind::Dimension(name)) if name == dimension) {
                return Ok(TreeNodeRecursion::Continue);
            }
            match &scan.projection {
                Some(projection) => columns.extend(projection.iter().copied()),
                None => columns.extend(0..declared.fields().len()),
            }
            match filter_of(scan)? {
                Some(filter) if filters.contains(&filter) => {}
                Some(filter) => filters.push(filter),
                None => any_row = true,
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    // How many rows there are can only be told of rows that have a column.
    if columns.is_empty() {
        columns.insert(0);
    }
    let filter = disjunction(filters).filter(|_| !any_row);
    Ok(Needed { columns: columns.into_iter().collect(), filter })
}

/// What every row that a scan gives must meet.
fn filter_of(scan: &TableScan) -> Result<Option<Expr>> {
    let lasting = scan.filters.iter().filter(|filter| is_lasting(filter)).cloned();
    let unqualified = lasting.map(|filter| {
        let unqualified = filter.transform(|expr| match expr {
            Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
            other => Ok(Transformed::no(other)),
        })?;
        Ok(unqualified.data)
    });
    Ok(conjunction(unqualified.collect::<Result<Vec<_>>>()?))
}

/// Whether it is true of the same rows in every batch, and can be asked of any row.
fn is_lasting(filter: &Expr) -> bool {
    let other = filter.exists(|expr| {
        let known = match expr {
            Expr::BinaryExpr(BinaryExpr { op, .. }) => compares(*op),
            Expr::Column(_) | Expr::Literal(..) | Expr::Not(_) | Expr::IsNull(_) | Expr::IsNotNull(_) => true,
            Expr::IsTrue(_) | Expr::IsFalse(_) | Expr::IsNotTrue(_) | Expr::IsNotFalse(_) => true,
            Expr::InList(_) | Expr::Between(_) | Expr::Like(_) => true,
            _ => false,
        };
        Ok(!known)
    });
    !other.unwrap_or(true)
}

fn compares(op: Operator) -> bool {
    use Operator::{And, Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq, Or};
    matches!(op, And | Or | Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}
