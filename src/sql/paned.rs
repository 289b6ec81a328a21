//! An aggregate over windows as it is kept: over panes, with the same groups and the same aggregates.
//!
//! A TUMBLE's pane is its window; a HOP's is its slide, so that each row is kept once for all its windows. A `date_bin`
//! over event time in GROUP BY is a TUMBLE. What cannot be kept is refused here, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchemaRef, Result, ScalarValue, plan_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::logical_plan::Aggregate;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::physical_plan::aggregates::PhysicalGroupBy;

use super::functions::is_of_batch;
use super::lineage::{row_wise, scans};
use super::window_tvf::{
    PANE_TIME, SIZE_MAX, WINDOW_END, WINDOW_START, WindowTvf, as_window_tvf, carry, reaches_window_tvf,
};
use crate::point;

/// How the rows of a source become partial aggregates, pane by pane.
#[derive(Debug)]
pub struct PaneDefinition {
    /// µs; the length of a pane.
    pub slide: i64,
    /// µs; the longest window that is merged from these panes.
    pub size_max: i64,
    /// The source table below.
    pub source: String,
    /// Optimized plan of the aggregate's input: the columns the aggregate reads, pane bounds, and [`PANE_TIME`].
    pub input: LogicalPlan,
    pub input_schema: SchemaRef,
    pub group_by: Arc<PhysicalGroupBy>,
    pub aggregates: Vec<Arc<AggregateFunctionExpr>>,
    pub filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// Position among the columns of the input of the start of the pane, and of the event time.
    pub input_start: usize,
    pub input_time: usize,
    /// Positions among the group columns.
    pub start_column: usize,
    pub end_column: Option<usize>,
    pub key_columns: Vec<usize>,
    pub time_type: DataType,
    /// How many stores before this one have the same input and aggregates, so that each has a key of its own.
    pub(super) twins: u64,
    pub(super) aggregate: Aggregate,
}

impl PaneDefinition {
    /// Two programs may share state exactly if these are equal: what goes in, how it is aggregated, and by which
    /// version of DataFusion (whose inner format the state is).
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(datafusion::DATAFUSION_VERSION.as_bytes());
        hasher.update(point::value("state::key").unwrap_or_default().as_bytes());
        hasher.update(&self.slide.to_le_bytes());
        hasher.update(&self.size_max.to_le_bytes());
        hasher.update(&self.twins.to_le_bytes());
        hasher.update(self.fingerprint().as_bytes());
        hasher.finalize().to_hex()[..32].to_string()
    }

    pub(super) fn fingerprint(&self) -> String {
        let exprs = self.aggregate.group_expr.iter().chain(&self.aggregate.aggr_expr).map(|expr| format!("|{expr}"));
        format!("{}{}", self.input.display_indent_schema(), exprs.collect::<String>())
    }
}

/// The aggregate over panes that an aggregate over windows is kept as.
pub(super) struct Paned {
    pub aggregate: Aggregate,
    /// µs.
    pub slide: i64,
    /// µs.
    pub size: i64,
    pub start_column: usize,
    pub end_column: Option<usize>,
}

/// A `date_bin` in GROUP BY becomes this column of the input.
const BIN: &str = "__bin";

impl Paned {
    /// `None` if the aggregate is no windowed one.
    pub fn of(aggregate: &Aggregate, clocks: &BTreeMap<String, String>) -> Result<Option<Self>> {
        if reaches_window_tvf(&aggregate.input) {
            return Self::of_tvf(aggregate).map(Some);
        }
        Self::of_date_bin(aggregate, clocks)
    }

    fn of_tvf(aggregate: &Aggregate) -> Result<Self> {
        let mut tvf: Option<WindowTvf> = None;
        let paned = aggregate.input.as_ref().clone().transform_down(|node| {
            let Some(found) = as_window_tvf(&node) else { return Ok(Transformed::no(node)) };
            tvf = Some(found.clone());
            Ok(Transformed::new(found.panes()?, true, TreeNodeRecursion::Jump))
        })?;
        let Some(tvf) = tvf else { return plan_err!("no TUMBLE or HOP below the aggregate") };
        if aggregate.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_))) {
            return plan_err!("GROUPING SETS, CUBE and ROLLUP over windows are not supported. Make a view for each");
        }
        refuse_bounds(aggregate, &tvf)?;
        let input = carry(paned.data, PANE_TIME)?;
        let bound = |name| aggregate.group_expr.iter().position(|e| matches!(e, Expr::Column(c) if c.name == name));
        let Some(start_column) = bound(WINDOW_START) else {
            return plan_err!("GROUP BY over TUMBLE or HOP must contain {WINDOW_START} as it is");
        };
        Ok(Self {
            aggregate: Aggregate::try_new(Arc::new(input), aggregate.group_expr.clone(), aggregate.aggr_expr.clone())?,
            slide: tvf.slide,
            size: tvf.size,
            start_column,
            end_column: bound(WINDOW_END),
        })
    }

    /// `GROUP BY date_bin(INTERVAL '1 minute', event time)`, straight over the rows of one source.
    fn of_date_bin(aggregate: &Aggregate, clocks: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let read = scans(&aggregate.input)?;
        if read.windowed || !row_wise(&aggregate.input) {
            return Ok(None);
        }
        let is_clock = |column: &Column| read.sources.iter().any(|table| clocks.get(table) == Some(&column.name));
        let found = aggregate.group_expr.iter().enumerate().find_map(|(i, expr)| {
            let Expr::ScalarFunction(function) = unalias(expr) else { return None };
            let [Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(step)), _), time, ..] = function.args.as_slice()
            else {
                return None;
            };
            let Expr::Column(column) = time else { return None };
            (function.name() == "date_bin" && is_clock(column)).then(|| (i, *step, time.clone()))
        });
        let Some((start_column, step, time)) = found else { return Ok(None) };
        let size = i64::from(step.days).saturating_mul(86_400_000_000).saturating_add(step.nanoseconds / 1_000);
        if step.months != 0 || step.nanoseconds % 1_000 != 0 || size <= 0 || size > SIZE_MAX {
            return plan_err!(
                "date_bin over event time needs an interval of fixed length in whole microseconds. Months and years vary"
            );
        }
        let bin = aggregate.group_expr[start_column].clone();
        let input = LogicalPlanBuilder::from(aggregate.input.as_ref().clone()).filter(time.clone().is_not_null())?;
        let mut columns: Vec<Expr> = aggregate.input.schema().columns().into_iter().map(Expr::Column).collect();
        columns.extend([bin.alias(BIN), time.alias(PANE_TIME)]);
        let input = input.project(columns)?.build()?;
        let mut groups = aggregate.group_expr.clone();
        groups[start_column] = Expr::Column(Column::from_name(BIN));
        let aggregate = Aggregate::try_new(Arc::new(input), groups, aggregate.aggr_expr.clone())?;
        Ok(Some(Self { aggregate, slide: size, size, start_column, end_column: None }))
    }

    pub fn define(self, clocks: &BTreeMap<String, String>, state: &SessionState) -> Result<PaneDefinition> {
        let Self { aggregate, slide, size, start_column, end_column } = self;
        let source = source_below(&aggregate, clocks)?;
        // A projection of what the aggregate reads lets push-down work, while no rule ever sees the aggregate itself.
        let exprs = aggregate.group_expr.iter().chain(&aggregate.aggr_expr);
        let needed: BTreeSet<Column> = exprs.flat_map(|e| e.column_refs()).cloned().collect();
        let time = Column::from_name(PANE_TIME);
        let columns = needed.into_iter().chain([time]).map(Expr::Column);
        let plan = LogicalPlanBuilder::from(aggregate.input.as_ref().clone()).project(columns)?.build()?;
        let df_schema = Arc::clone(plan.schema());
        let input_schema: SchemaRef = Arc::clone(df_schema.inner());

        let planning = PhysicalPlanningContext::default();
        let props = state.execution_props();
        let mut groups = Vec::new();
        for (i, expr) in simplified(&aggregate.group_expr, &df_schema, state)?.iter().enumerate() {
            let physical = create_physical_expr(expr, &df_schema, props, &planning)?;
            groups.push((physical, aggregate.schema.field(i).name().clone()));
        }
        let lower = |e| {
            let builder = LoweredAggregateBuilder::new(e, &df_schema, &input_schema, props, &planning);
            builder.build().map(|lowered| (lowered.aggregate, lowered.filter))
        };
        let aggregates = simplified(&aggregate.aggr_expr, &df_schema, state)?;
        let lowered: Vec<_> = aggregates.iter().map(lower).collect::<Result<_>>()?;
        let (aggregates, filters) = lowered.into_iter().unzip();
        let Expr::Column(start) = &aggregate.group_expr[start_column] else {
            return plan_err!("{WINDOW_START} must be grouped by as it is");
        };
        let input_start = df_schema.index_of_column(start)?;
        let bounds = [Some(start_column), end_column];
        Ok(PaneDefinition {
            slide,
            size_max: size,
            source,
            input: state.optimize(&plan)?,
            input_start,
            input_time: input_schema.fields().len() - 1,
            time_type: input_schema.field(input_start).data_type().clone(),
            key_columns: (0..groups.len()).filter(|i| !bounds.contains(&Some(*i))).collect(),
            group_by: Arc::new(PhysicalGroupBy::new_single(groups)),
            input_schema,
            aggregates,
            filters,
            start_column,
            end_column,
            twins: 0,
            aggregate,
        })
    }
}

/// The one source below a windowed aggregate, if it can be kept at all.
fn source_below(aggregate: &Aggregate, clocks: &BTreeMap<String, String>) -> Result<String> {
    let found = scans(&aggregate.input)?;
    if found.windowed || !row_wise(&aggregate.input) {
        return plan_err!(
            "TUMBLE and HOP must be over the rows of one unbounded table. Below them there may be no aggregate, \
             DISTINCT, OVER, LIMIT, join of streams or other windowed view"
        );
    }
    if let Some(own) = found.sinks.first() {
        return plan_err!("table {own} is written by this program, so a windowed view cannot read it");
    }
    let mut sources = found.sources.into_iter();
    let (Some(source), None) = (sources.next(), sources.next()) else {
        return plan_err!("a windowed view must be over exactly one unbounded table");
    };
    if !clocks.contains_key(&source) {
        return plan_err!(
            "table {source} has no watermark, so its windows could never close. Add OPTIONS ('watermark.column' '…', \
             'watermark.delay' '…') to it"
        );
    }
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr) {
        let of_batch = |e: &Expr| Ok(matches!(e, Expr::ScalarFunction(f) if is_of_batch(f.func.name())));
        if expr.exists(of_batch)? {
            return plan_err!(
                "{expr} has another value in each batch, inside an aggregate that is kept from batch to batch. Select \
                 it as a column of the view below"
            );
        }
    }
    Ok(source)
}

/// What the optimizer would make of the arguments of aggregates and of group expressions: some functions (coalesce) can
/// only be run in that form. The aggregates themselves stay as they are.
fn simplified(exprs: &[Expr], schema: &DFSchemaRef, state: &SessionState) -> Result<Vec<Expr>> {
    let context = SimplifyContext::builder().with_schema(Arc::clone(schema));
    let simplifier = ExprSimplifier::new(context.with_config_options(Arc::clone(state.config_options())).build());
    let simplify = |e: Expr| simplifier.simplify(e).map(Transformed::yes);
    let simplified = exprs.iter().map(|expr| {
        let simplified = expr.clone().transform_down(|e| match e {
            Expr::Alias(_) => Ok(Transformed::no(e)),
            Expr::AggregateFunction(_) => {
                Ok(Transformed::new(e.map_children(simplify)?.data, true, TreeNodeRecursion::Jump))
            }
            other => Ok(Transformed::new(simplifier.simplify(other)?, true, TreeNodeRecursion::Jump)),
        })?;
        Ok(simplified.data)
    });
    simplified.collect()
}

fn unalias(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unalias(&alias.expr),
        other => other,
    }
}

/// A HOP is kept as panes, which do not know the bounds of the windows they will be merged into.
fn refuse_bounds(aggregate: &Aggregate, tvf: &WindowTvf) -> Result<()> {
    if tvf.slide == tvf.size {
        return Ok(());
    }
    let names = |e: &Expr| e.column_refs().iter().any(|c| [WINDOW_START, WINDOW_END].contains(&c.name.as_str()));
    let plain = |e: &Expr| matches!(unalias(e), Expr::Column(_));
    let mut used = aggregate.aggr_expr.iter().find(|e| names(e)).cloned();
    used = used.or_else(|| aggregate.group_expr.iter().find(|e| names(e) && !plain(e)).cloned());
    aggregate.input.apply(|node| {
        if as_window_tvf(node).is_some() {
            return Ok(TreeNodeRecursion::Stop);
        }
        let filter = matches!(node, LogicalPlan::Filter(_));
        used = used.take().or_else(|| node.expressions().into_iter().find(|e| names(e) && (filter || !plain(e))));
        Ok(TreeNodeRecursion::Continue)
    })?;
    match used {
        None => Ok(()),
        Some(expr) => plan_err!(
            "{expr} uses the bounds of the window below the GROUP BY of a HOP, which keeps each row once for all its \
             windows. Move it above the aggregate: HAVING, or WHERE over the view"
        ),
    }
}
