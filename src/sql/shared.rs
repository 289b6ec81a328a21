//! Conditions that several queries ask of one source, answered once a batch.
//!
//! ```text
//! INSERT a   … Filter(valid) ─ scan source            … scan [rows that are valid] ─┐
//! INSERT b   … Filter(valid) ─ scan source     ──▶    … scan [rows that are valid] ─┤ one evaluation, one copy
//! windows    … Filter(valid, ts) ─ scan source        … Filter(ts) ─ scan [     ″ ] ─┤
//! INSERT c   … Filter(not valid) ─ scan source        … scan [the others]          ─┘
//! ```
//!
//! DataFusion plans each INSERT by itself, so a view of valid rows with three readers is three evaluations of all its
//! rules and three copies of its rows: most of the SQL's cost in a pipeline like the shipped one.
//!
//! Only an optimization: the plans of [`super::Program`] stay as they are, say what is read and refused, and are what is
//! run where a condition fails on some row. Rows and their order are the same either way, and so is what is computed of
//! them, but for an aggregate of floating-point numbers over one batch alone, which depends on how the rows were cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{filter, not, prep_null_mask_filter};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result, exec_err, internal_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, TableScan};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::pinned::{PinnedKind, PinnedTable};

/// The shared conditions of a program, and its queries over them.
#[derive(Debug, Default)]
pub struct Shared {
    splits: Vec<Split>,
    /// By number of the plan; those that share nothing are absent.
    plans: BTreeMap<usize, LogicalPlan>,
}

/// One condition over the rows of one source.
#[derive(Debug)]
struct Split {
    source: String,
    condition: Arc<dyn PhysicalExpr>,
    /// The rows for which it is true, and those for which it is false, where some query reads them.
    sides: [Option<Side>; 2],
}

#[derive(Debug)]
struct Side {
    /// Positions in the source's schema of the columns that some reader wants.
    columns: Vec<usize>,
    table: Arc<PinnedTable>,
}

/// A filter straight over a source.
#[derive(Debug)]
struct Site {
    plan: usize,
    /// Its number in the plan, in the order of a walk from the top.
    filter: usize,
    /// Whether it wants the rows that meet the condition, or the others.
    met: bool,
    /// Of the source.
    columns: Vec<usize>,
}

/// A condition, and every filter that asks for it.
#[derive(Debug)]
struct Candidate {
    source: String,
    condition: Expr,
    qualified: DFSchema,
    sites: Vec<Site>,
}

/// What stands in place of a site's filter and scan.
struct Replacement {
    condition: Expr,
    met: bool,
    columns: Vec<usize>,
    table: Arc<PinnedTable>,
}

impl Shared {
    /// `plans` are optimized; the number of one is its place among them.
    pub fn find(plans: &[&LogicalPlan], state: &SessionState) -> Result<Self> {
        let mut shared = Self::default();
        let mut replaced: BTreeMap<(usize, usize), Replacement> = BTreeMap::new();
        for Candidate { source, condition, qualified, mut sites } in candidates(plans)? {
            sites.retain(|site| !replaced.contains_key(&(site.plan, site.filter)));
            if sites.len() < 2 {
                continue;
            }
            let [met, unmet] = [true, false].map(|met| side(&source, qualified.inner(), &sites, met));
            for site in sites {
                let Some(side) = (if site.met { &met } else { &unmet }) else { return internal_err!("no such side") };
                let (columns, table) = (side.columns.clone(), Arc::clone(&side.table));
                let replacement = Replacement { condition: condition.clone(), met: site.met, columns, table };
                replaced.insert((site.plan, site.filter), replacement);
            }
            let planning = PhysicalPlanningContext::default();
            let condition = create_physical_expr(&condition, &qualified, state.execution_props(), &planning)?;
            shared.splits.push(Split { source, condition, sides: [met, unmet] });
        }
        for (number, plan) in plans.iter().enumerate() {
            if replaced.keys().any(|(plan, _)| *plan == number) {
                shared.plans.insert(number, rewrite(plan, number, &replaced)?);
            }
        }
        Ok(shared)
    }

    /// The plan of this number over the shared rows; `None` if it shares nothing.
    pub fn plan(&self, number: usize) -> Option<&LogicalPlan> {
        self.plans.get(&number)
    }

    /// All that share something.
    pub fn plans(&self) -> impl Iterator<Item = &LogicalPlan> {
        self.plans.values()
    }

    /// Answers all conditions for the rows of a batch, which `rows` gives by source.
    ///
    /// # Errors
    /// A condition fails on some row: then the plans have to be run as they were written, which tells whose row it is.
    pub fn pin(&self, rows: impl Fn(&str) -> Arc<Vec<RecordBatch>>) -> Result<()> {
        for split in &self.splits {
            let [met, unmet] = &split.sides;
            let (mut of_met, mut of_unmet) = (vec![], vec![]);
            for batch in rows(&split.source).iter() {
                let mask = split.condition.evaluate(batch)?.into_array(batch.num_rows())?;
                let Some(mask) = mask.as_boolean_opt() else { return exec_err!("a condition is not true or false") };
                let mask = if mask.nulls().is_some() { prep_null_mask_filter(mask) } else { mask.clone() };
                if let Some(side) = met {
                    of_met.extend(side.take(batch, &mask)?);
                }
                if let Some(side) = unmet {
                    of_unmet.extend(side.take(batch, &not(&mask)?)?);
                }
            }
            met.iter().for_each(|side| side.table.pin(std::mem::take(&mut of_met)));
            unmet.iter().for_each(|side| side.table.pin(std::mem::take(&mut of_unmet)));
        }
        Ok(())
    }

    pub fn unpin(&self) {
        self.splits.iter().flat_map(|split| split.sides.iter().flatten()).for_each(|side| side.table.pin(vec![]));
    }
}

impl Side {
    /// The rows of one side; `None` if there are none. All of them are not copied.
    fn take(&self, batch: &RecordBatch, mask: &BooleanArray) -> Result<Option<RecordBatch>> {
        let rows = mask.true_count();
        if rows == 0 {
            return Ok(None);
        }
        let columns = self.columns.iter().map(|column| batch.column(*column));
        let columns = match rows == batch.num_rows() {
            true => columns.map(Arc::clone).collect(),
            false => columns.map(|column| filter(column, mask)).collect::<std::result::Result<_, _>>()?,
        };
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Some(RecordBatch::try_new_with_options(self.table.rows_schema(), columns, &options)?))
    }
}

/// One side of a condition, with the columns that its readers want; `None` without readers.
fn side(source: &str, schema: &SchemaRef, sites: &[Site], met: bool) -> Option<Side> {
    let mut columns: Vec<usize> = sites.iter().filter(|site| site.met == met).flat_map(|s| s.columns.clone()).collect();
    columns.sort_unstable();
    columns.dedup();
    if !sites.iter().any(|site| site.met == met) {
        return None;
    }
    let schema = schema.project(&columns).ok()?;
    Some(Side { columns, table: PinnedTable::new(PinnedKind::Part(source.into()), Arc::new(schema)) })
}

/// All conditions that are asked somewhere and could be answered before, the largest first.
fn candidates(plans: &[&LogicalPlan]) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = vec![];
    for (plan, root) in plans.iter().enumerate() {
        let mut filters = 0;
        root.apply(|node| {
            let Some((filter, scan, source)) = filter_of_source(node) else { return Ok(TreeNodeRecursion::Continue) };
            filters += 1;
            let schema = scan.source.schema();
            let columns = scan.projection.clone().unwrap_or_else(|| (0..schema.fields().len()).collect());
            for conjunct in split_conjunction(&filter.predicate) {
                if depends_on_more(conjunct)? {
                    continue;
                }
                let (condition, met) = canonical(conjunct);
                let site = Site { plan, filter: filters - 1, met, columns: columns.clone() };
                match found.iter_mut().find(|known| known.source == source && known.condition == condition) {
                    Some(known) => known.sites.push(site),
                    None => {
                        let qualified = DFSchema::try_from_qualified_schema(scan.table_name.clone(), &schema)?;
                        let source = source.clone();
                        found.push(Candidate { source, condition, qualified, sites: vec![site] });
                    }
                }
            }
            Ok(TreeNodeRecursion::Jump)
        })?;
    }
    let nodes = |expr: &Expr| {
        let mut nodes = 0_usize;
        let counted = expr.apply(|_| {
            nodes += 1;
            Ok(TreeNodeRecursion::Continue)
        });
        counted.map_or(0, |_| nodes)
    };
    // Stable: of two that are as large, the first of the program.
    found.sort_by_key(|candidate| std::cmp::Reverse(nodes(&candidate.condition)));
    Ok(found)
}

/// `x IS NOT NULL` is asked as `x IS NULL`, which is never NULL itself: its other side.
fn canonical(conjunct: &Expr) -> (Expr, bool) {
    match conjunct {
        Expr::IsNotNull(inner) => (Expr::IsNull(inner.clone()), false),
        other => (other.clone(), true),
    }
}

/// Whether a condition is one of more than the row: of the batch's values, or of other rows.
fn depends_on_more(condition: &Expr) -> Result<bool> {
    condition.exists(|expr| {
        Ok(match expr {
            Expr::Placeholder(_)
            | Expr::OuterReferenceColumn(..)
            | Expr::Exists(_)
            | Expr::InSubquery(_)
            | Expr::ScalarSubquery(_) => true,
            other => other.is_volatile_node(),
        })
    })
}

/// A filter whose input is a source itself, and the source's name.
fn filter_of_source(node: &LogicalPlan) -> Option<(&Filter, &TableScan, String)> {
    let LogicalPlan::Filter(filter) = node else { return None };
    let LogicalPlan::TableScan(scan) = filter.input.as_ref() else { return None };
    match PinnedTable::of(scan) {
        Some(PinnedKind::Source(name)) if scan.filters.is_empty() && scan.fetch.is_none() => Some((filter, scan, name)),
        _ => None,
    }
}

fn rewrite(plan: &LogicalPlan, number: usize, replaced: &BTreeMap<(usize, usize), Replacement>) -> Result<LogicalPlan> {
    let mut filters = 0;
    let rewritten = plan.clone().transform_down(|node| {
        let Some((filter, scan, _)) = filter_of_source(&node) else { return Ok(Transformed::no(node)) };
        filters += 1;
        let Some(replacement) = replaced.get(&(number, filters - 1)) else { return Ok(Transformed::no(node)) };
        let wanted = scan.projection.clone().unwrap_or_else(|| (0..scan.source.schema().fields().len()).collect());
        let place = |column: &usize| replacement.columns.binary_search(column).ok();
        let Some(projection) = wanted.iter().map(place).collect::<Option<Vec<usize>>>() else {
            return internal_err!("a column is not kept");
        };
        let mut scan = scan.clone();
        (scan.source, scan.projection) = (provider_as_source(Arc::clone(&replacement.table) as _), Some(projection));
        let rows = LogicalPlan::TableScan(scan);
        let known = (replacement.condition.clone(), replacement.met);
        let rest = split_conjunction(&filter.predicate).into_iter().filter(|conjunct| canonical(conjunct) != known);
        let node = match conjunction(rest.cloned()) {
            Some(rest) => LogicalPlan::Filter(Filter::try_new(rest, Arc::new(rows))?),
            None => rows,
        };
        Ok(Transformed::new(node, true, TreeNodeRecursion::Jump))
    })?;
    Ok(rewritten.data)
}
