//! Physical plans, kept from batch to batch: what one costs to make does not depend on the rows.
//!
//! A plan that a value of the batch stands in (its moment, a watermark) is made anew for each: a physical plan has no
//! placeholders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
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
    Plan(Arc<dyn ExecutionPlan>),
    /// None: it has values of the batch.
    OfEachBatch,
}

impl Plans {
    /// A plan that can be run once, over what is pinned then.
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
        let kept = self.kept().get(&of).cloned();
        match kept {
            Some(Kept::Plan(plan)) => return reset_plan_states(plan),
            Some(Kept::OfEachBatch) => {}
            None if plan.get_parameter_names()?.is_empty() => {
                let plan = state.query_planner().create_physical_plan(plan, state).await?;
                self.kept().insert(of, Kept::Plan(Arc::clone(&plan)));
                return Ok(plan);
            }
            None => drop(self.kept().insert(of, Kept::OfEachBatch)),
        }
        let bound = plan.clone().with_param_values(params)?;
        state.query_planner().create_physical_plan(&bound, state).await
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<Of, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
