//! Physical plans, kept from batch to batch: what one costs to make does not depend on the rows.
//!
//! A physical plan has no placeholders. Where the logical one has a value of the batch (its moment, a watermark), the
//! kept one has a function without arguments that reads it from a [`Cell`]; the cell is filled before each run. It is
//! `Volatile`, so that no rule folds it into the plan.
//!
//! Some expressions are computed while the plan is made, or ask for literals: lists behind IN, VALUES, arguments of
//! aggregates and of functions over windows. A plan with a value of the batch there is made anew for each, with literals.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{ScalarValue, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::{Placeholder, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;

use super::refused::Part;
use crate::state::panes::Params;

/// What a plan is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Of {
    pub part: Part,
    /// Over the shared rows, or as it was written.
    pub shared: bool,
    /// `target_partitions` of its session.
    pub partitions: usize,
}

#[derive(Debug, Default)]
pub(super) struct Plans(Mutex<BTreeMap<Of, Kept>>);

#[derive(Debug, Clone)]
enum Kept {
    Plan { plan: Arc<dyn ExecutionPlan>, values: Arc<Cell> },
    OfEachBatch,
}

impl Plans {
    /// A plan that can be run once, over what is pinned then and with these values. The last one that was got for the
    /// same must have ended: they share the values.
    ///
    /// # Errors
    /// DataFusion's.
    pub async fn get(
        &self,
        of: Of,
        plan: &LogicalPlan,
        params: Params,
        state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let kept = lock(&self.0).get(&of).cloned();
        match kept {
            Some(Kept::Plan { plan, values }) => {
                values.fill(params);
                return reset_plan_states(plan);
            }
            None if can_be_kept(plan)? => {}
            Some(Kept::OfEachBatch) | None => {
                lock(&self.0).insert(of, Kept::OfEachBatch);
                let bound = plan.clone().with_param_values(params)?;
                return state.query_planner().create_physical_plan(&bound, state).await;
            }
        }
        let values = Arc::new(Cell::default());
        values.fill(params);
        let bound = bind(plan.clone(), &values)?;
        let plan = state.query_planner().create_physical_plan(&bound, state).await?;
        lock(&self.0).insert(of, Kept::Plan { plan: Arc::clone(&plan), values });
        Ok(plan)
    }
}

#[cfg(test)]
impl Plans {
    /// How many are kept, and how many are made for each batch.
    pub fn counts(&self) -> (usize, usize) {
        let plans = lock(&self.0);
        let kept = plans.values().filter(|plan| matches!(plan, Kept::Plan { .. })).count();
        (kept, plans.len() - kept)
    }
}

/// The values of a run.
#[derive(Debug, Default)]
struct Cell(Mutex<Params>);

impl Cell {
    fn fill(&self, params: Params) {
        *lock(&self.0) = params;
    }

    fn get(&self, name: &str) -> Option<ScalarValue> {
        lock(&self.0).iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether all values of the batch stand where they are asked for row by row.
fn can_be_kept(plan: &LogicalPlan) -> Result<bool> {
    let mut can = true;
    plan.apply_with_subqueries(|node| {
        // A scan's filters are answered by the state of the windows: they come into no physical plan.
        let row_by_row = matches!(
            node,
            LogicalPlan::Filter(_) | LogicalPlan::Projection(_) | LogicalPlan::Join(_) | LogicalPlan::TableScan(_)
        );
        node.apply_expressions(|expr| {
            can &= !has_placeholder(expr)? || (row_by_row && !asks_for_literals(expr)?);
            Ok(if can { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })
    })?;
    Ok(can)
}

fn has_placeholder(expr: &Expr) -> Result<bool> {
    expr.exists(|expr| Ok(matches!(expr, Expr::Placeholder(_))))
}

/// Whether a placeholder stands below something that is not asked row by row.
fn asks_for_literals(expr: &Expr) -> Result<bool> {
    expr.exists(|expr| match expr {
        Expr::InList(_) | Expr::WindowFunction(_) | Expr::AggregateFunction(_) | Expr::Like(_) | Expr::SimilarTo(_) => {
            has_placeholder(expr)
        }
        _ => Ok(false),
    })
}

/// The plan with [`ValueOfBatch`] in the place of each placeholder.
fn bind(plan: LogicalPlan, values: &Arc<Cell>) -> Result<LogicalPlan> {
    let bound = plan.transform_up_with_subqueries(|plan| {
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            // A projection's columns are known by the names that they had.
            let name = names.save(&expr);
            let bound = expr.transform_up(|expr| match &expr {
                Expr::Placeholder(Placeholder { id, .. }) => {
                    let function = ValueOfBatch::try_new(id.trim_start_matches('$'), values)?;
                    let function = Arc::new(ScalarUDF::new_from_impl(function));
                    Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![]))))
                }
                _ => Ok(Transformed::no(expr)),
            })?;
            Ok(bound.update_data(|expr| name.restore(expr)))
        })
    })?;
    Ok(bound.data)
}

#[derive(Debug)]
struct ValueOfBatch {
    name: String,
    data_type: DataType,
    signature: Signature,
    values: Arc<Cell>,
}

impl ValueOfBatch {
    fn try_new(name: &str, values: &Arc<Cell>) -> Result<Self> {
        let value = values.get(name).ok_or_else(|| internal_datafusion_err!("a batch has no value {name}"))?;
        let signature = Signature::nullary(Volatility::Volatile);
        Ok(Self { name: name.to_string(), data_type: value.data_type(), signature, values: Arc::clone(values) })
    }
}

impl PartialEq for ValueOfBatch {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.values, &other.values)
    }
}

impl Eq for ValueOfBatch {}

impl Hash for ValueOfBatch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for ValueOfBatch {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let value = self.values.get(&self.name);
        value.map(ColumnarValue::Scalar).ok_or_else(|| internal_datafusion_err!("a batch has no value {}", self.name))
    }
}
