//! `FROM TUMBLE(relation, time, size)`, `FROM HOP(relation, time, slide, size)` and `FROM LATE(view)`.
//!
//! The planner hook returns a marker node that meets no optimizer rule: a batch session lowers it to its plain meaning
//! with [`LowerWindowTvf`] (an analyzer rule), the streaming engine cuts the aggregate above it out of the plan
//! (`sql::windowed`). Polymorphic table functions of SQL:2016, as in Flink and RisingWave: windows begin at multiples
//! of the slide since 1970-01-01 UTC, `window_start` is inclusive, `window_end` exclusive.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::CatalogProviderList;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{
    Column, DFSchemaRef, DataFusionError, Diagnostic, Result, ScalarValue, Span, plan_datafusion_err, plan_err,
};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{
    Expr, ExprSchemable, Extension, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNodeCore, cast, lit, when,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, FunctionArg, FunctionArgExpr, ObjectName, TableFactor};
use futures::FutureExt;

use super::functions::{AHEAD_LIMIT, WATERMARK_BEFORE, placeholder, timestamp_type};
use super::insert::sql_name;
use super::window_bin::{in_units, window_bin};

pub const WINDOW_START: &str = "window_start";
pub const WINDOW_END: &str = "window_end";
pub const LATE_REASON: &str = "_late_reason";
/// Event time of a row on its way into a pane.
pub const PANE_TIME: &str = "__time";

/// A window of a HOP is made of so many slides at most: each open window is merged from that many panes.
const PANES_MAX: i64 = 10_000;

/// A hundred years: bounds stay far within 64 bits, in nanoseconds too.
pub const SIZE_MAX: i64 = 36_525 * 86_400_000_000;

/// The marker: every row of `input`, plus the bounds of its window(s).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WindowTvf {
    pub input: LogicalPlan,
    pub time: Expr,
    /// µs; equal to `size` for TUMBLE.
    pub slide: i64,
    /// µs.
    pub size: i64,
    /// `LATE(view)`: only pairs of row and window that the watermark (or the clock) keeps apart, with the reason.
    pub late: bool,
    schema: DFSchemaRef,
}

impl WindowTvf {
    fn try_new(input: LogicalPlan, time: Expr, slide: i64, size: i64, late: bool) -> Result<Self> {
        let shift = |micros: i64| window_bin(time.clone(), slide, lit(micros));
        let bounds = with_window(input.clone(), input.schema(), shift(0), shift(size))?;
        let plan = if late { with_reason(bounds, lit("late"))? } else { bounds };
        let schema = Arc::clone(plan.schema());
        Ok(Self { input, time, slide, size, late, schema })
    }

    /// The same rows as `LATE` shows them.
    pub fn as_late(&self) -> Result<Self> {
        Self::try_new(self.input.clone(), self.time.clone(), self.slide, self.size, true)
    }

    /// Each row once, in the pane (of length `slide`) that holds it; rows without a time are in none.
    pub fn panes(&self) -> Result<LogicalPlan> {
        let input = LogicalPlanBuilder::from(self.input.clone()).filter(self.time.clone().is_not_null())?.build()?;
        let mut columns: Vec<Expr> = self.input.schema().columns().into_iter().map(Expr::Column).collect();
        let (start, end) = (self.bin(lit(0_i64)), self.bin(lit(self.slide)));
        columns.extend([start.alias(WINDOW_START), end.alias(WINDOW_END), self.time.clone().alias(PANE_TIME)]);
        LogicalPlanBuilder::from(input).project(columns)?.build()
    }

    /// Each row once per window: the plain batch meaning, for ad-hoc SQL, backtests and tests.
    pub fn expanded(&self) -> Result<LogicalPlan> {
        self.expand(LogicalPlanBuilder::from(self.input.clone()).filter(self.time.clone().is_not_null())?.build()?)
    }

    fn expand(&self, input: LogicalPlan) -> Result<LogicalPlan> {
        if self.slide == self.size {
            return with_window(input, self.input.schema(), self.bin(lit(0_i64)), self.bin(lit(self.size)));
        }
        let ends = (1..=self.size / self.slide).map(|k| vec![lit(k * self.slide - self.size), lit(k * self.slide)]);
        let ends = LogicalPlanBuilder::values(ends.collect())?.alias("__hop")?.build()?;
        let shift = |column: &str| self.bin(Expr::Column(Column::new(Some("__hop"), column)));
        let crossed = LogicalPlanBuilder::from(input).cross_join(ends)?.build()?;
        with_window(crossed, self.input.schema(), shift("column1"), shift("column2"))
    }

    /// The start of the pane that holds a row, moved by so many µs.
    fn bin(&self, shift: Expr) -> Expr {
        window_bin(self.time.clone(), self.slide, shift)
    }

    /// The pairs that `LATE` shows, by `$watermark_before` and `$ahead_limit`. Rows are expanded only after those that
    /// can be in no pair are gone.
    pub fn late_pairs(&self) -> Result<LogicalPlan> {
        let time_type = self.time.get_type(self.input.schema())?;
        let instant = |id| cast(placeholder(id, timestamp_type()), time_type.clone());
        let ahead = || self.time.clone().gt(instant(AHEAD_LIMIT));
        let earliest_end = self.bin(lit(self.slide));
        let candidates = LogicalPlanBuilder::from(self.input.clone())
            .filter(self.time.clone().is_not_null().and(ahead().or(earliest_end.lt_eq(instant(WATERMARK_BEFORE)))))?
            .build()?;
        let end = Expr::Column(Column::from_name(WINDOW_END));
        let pairs = LogicalPlanBuilder::from(self.expand(candidates)?)
            .filter(ahead().or(end.lt_eq(instant(WATERMARK_BEFORE))))?
            .build()?;
        with_reason(pairs, when(ahead(), lit("ahead")).otherwise(lit("late"))?)
    }
}

fn with_reason(plan: LogicalPlan, reason: Expr) -> Result<LogicalPlan> {
    let mut columns: Vec<Expr> = plan.schema().columns().into_iter().map(Expr::Column).collect();
    columns.push(reason.alias(LATE_REASON));
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

pub fn interval(micros: i64) -> Expr {
    lit(ScalarValue::new_interval_mdn(0, 0, micros * 1_000))
}

/// The columns `keep` of `input`, then the bounds of the window.
fn with_window(input: LogicalPlan, keep: &DFSchemaRef, start: Expr, end: Expr) -> Result<LogicalPlan> {
    let mut columns: Vec<Expr> = keep.columns().into_iter().map(Expr::Column).collect();
    columns.extend([start.alias(WINDOW_START), end.alias(WINDOW_END)]);
    LogicalPlanBuilder::from(input).project(columns)?.build()
}

impl PartialOrd for WindowTvf {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self.size, self.slide).partial_cmp(&(other.size, other.slide))
    }
}

impl UserDefinedLogicalNodeCore for WindowTvf {
    fn name(&self) -> &str {
        "WindowTvf"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.time.clone()]
    }

    fn fmt_for_explain(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "WindowTvf: {} slide={}µs size={}µs late={}", self.time, self.slide, self.size, self.late)
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        Self::try_new(inputs.swap_remove(0), exprs.swap_remove(0), self.slide, self.size, self.late)
    }
}

/// DataFusion loads the tables of a statement before planning, and does not see a name inside function arguments: so
/// the planner looks such a name up itself, in the session's own catalog list (in memory: it answers at once).
#[derive(Debug)]
pub struct WindowTvfPlanner(pub Arc<dyn CatalogProviderList>);

impl RelationPlanner for WindowTvfPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::Table { name, args: Some(args), alias, .. } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let function = name.to_string().to_ascii_lowercase();
        let (wanted, usage) = match function.as_str() {
            "tumble" => (3, "TUMBLE(relation, time column, INTERVAL size)"),
            "hop" => (4, "HOP(relation, time column, INTERVAL slide, INTERVAL size)"),
            "late" => (1, "LATE(windowed view)"),
            _ => return Ok(RelationPlanning::Original(Box::new(relation))),
        };
        if args.args.len() != wanted {
            let found = args.args.len();
            let error = plan_datafusion_err!("{function} takes {wanted} argument(s), found {found}. Write {usage}");
            return Err(at(name, error));
        }
        let plan = self.call(&function, &relation, &args.args, context).map_err(|error| at(name, error))?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}

/// An error of how the function is used, at its name.
fn at(function: &ObjectName, error: DataFusionError) -> DataFusionError {
    let ident = function.0.first().and_then(|part| part.as_ident());
    match (error, ident.and_then(|ident| Span::try_from_sqlparser_span(ident.span))) {
        (DataFusionError::Plan(message), Some(span)) => {
            let diagnostic = Diagnostic::new_error(message.clone(), Some(span));
            DataFusionError::Plan(message).with_diagnostic(diagnostic)
        }
        (error, _) => error,
    }
}

impl WindowTvfPlanner {
    fn call(
        &self,
        function: &str,
        relation: &TableFactor,
        args: &[FunctionArg],
        context: &mut dyn RelationPlannerContext,
    ) -> Result<LogicalPlan> {
        let args: Vec<SqlExpr> = args.iter().map(|arg| plain(function, arg)).collect::<Result<_>>()?;
        let table = match args.first() {
            Some(SqlExpr::Identifier(part)) => ObjectName::from(vec![part.clone()]),
            Some(SqlExpr::CompoundIdentifier(parts)) => ObjectName::from(parts.clone()),
            _ => {
                return plan_err!("{function}: its first argument is not the name of a relation. Make it a view first");
            }
        };
        let input = self.scan(relation.clone(), table.clone(), context)?;
        match function {
            "late" => late_of(&table, input),
            _ => window(function, input, &args, context),
        }
    }

    fn scan(
        &self,
        mut factor: TableFactor,
        table: ObjectName,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<LogicalPlan> {
        if let TableFactor::Table { name, args, alias, .. } = &mut factor {
            (*name, *args, *alias) = (table.clone(), None, None); // TUMBLE(x, …)'s own table factor becomes the factor x
        }
        let error = match context.plan(factor) {
            Ok(plan) => return Ok(plan), // a common table expression, or a table the statement names elsewhere too
            Err(error) => error,
        };
        let defaults = &context.context_provider().options().catalog;
        let (catalog, schema) = (defaults.default_catalog.clone(), defaults.default_schema.clone());
        let reference = context.object_name_to_table_reference(table)?;
        let full = reference.clone().resolve(&catalog, &schema);
        let found = self.0.catalog(&full.catalog).and_then(|c| c.schema(&full.schema));
        match found.and_then(|schema| schema.table(&full.table).now_or_never()).transpose()?.flatten() {
            Some(table) => LogicalPlanBuilder::scan(reference, provider_as_source(table), None)?.build(),
            None => Err(error),
        }
    }
}

fn plain(function: &str, arg: &FunctionArg) -> Result<SqlExpr> {
    match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Ok(e.clone()),
        other => plan_err!("{function}: unexpected argument {other}"),
    }
}

fn window(
    function: &str,
    input: LogicalPlan,
    args: &[SqlExpr],
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    if let Some(clash) = [WINDOW_START, WINDOW_END].iter().find(|n| input.schema().has_column_with_unqualified_name(n))
    {
        return plan_err!("{function}: the input already has a column {clash}. Select it under another name first");
    }
    let time = context.sql_to_expr(args[1].clone(), input.schema())?;
    let Expr::Column(column) = &time else {
        return plan_err!("{function}: {time} is not a column of the input. Compute it in a view first");
    };
    let data_type = input.schema().qualified_field_from_column(column)?.1.data_type();
    let DataType::Timestamp(unit, _) = *data_type else {
        return plan_err!(
            "{function}: column {} is {}, not TIMESTAMP. Cast it in a view first",
            column.name,
            sql_name(data_type)
        );
    };
    let mut micros = |arg: &SqlExpr| match context.sql_to_expr(arg.clone(), input.schema())? {
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(i)), _) if i.months == 0 && i.nanoseconds % 1_000 == 0 => {
            Ok(i64::from(i.days).saturating_mul(86_400_000_000).saturating_add(i.nanoseconds / 1_000))
        }
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(_)), _) => {
            plan_err!("{function}: {arg} has no fixed length in whole microseconds. Months and years vary; use days")
        }
        other => plan_err!("{function}: {other} is not an interval, such as INTERVAL '1 minute'"),
    };
    let (slide, size) = (micros(&args[2])?, micros(&args[args.len() - 1])?);
    if slide <= 0 || size <= 0 || size > SIZE_MAX || size % slide != 0 || size / slide > PANES_MAX {
        return plan_err!(
            "{function}: the size must be a positive multiple of the slide, of {PANES_MAX} slides and 100 years at most"
        );
    }
    if in_units(slide, unit).is_none() {
        return plan_err!("{function}: {} is finer than column {}", &args[2], column.name);
    }
    let node = Arc::new(WindowTvf::try_new(input, time, slide, size, false)?);
    Ok(LogicalPlan::Extension(Extension { node }))
}

/// `LATE(view)`: the input of the view's windowed aggregate, with the pairs of row and window that it missed.
fn late_of(view: &ObjectName, plan: LogicalPlan) -> Result<LogicalPlan> {
    let inlined = plan.transform_up(|node| match &node {
        LogicalPlan::TableScan(scan) => match scan.source.get_logical_plan() {
            Some(inner) => Ok(Transformed::yes(inner.into_owned())),
            None => Ok(Transformed::no(node)),
        },
        _ => Ok(Transformed::no(node)),
    })?;
    let mut found = None;
    inlined.data.apply(|node| {
        if let LogicalPlan::Aggregate(aggregate) = node
            && reaches_window_tvf(&aggregate.input)
        {
            found = Some(aggregate.input.as_ref().clone());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let Some(input) = found else {
        return plan_err!("late: {view} is not a windowed view. It takes an aggregate over TUMBLE or HOP");
    };
    let marked = input.transform_up(|node| match as_window_tvf(&node) {
        Some(tvf) => Ok(Transformed::yes(LogicalPlan::Extension(Extension { node: Arc::new(tvf.as_late()?) }))),
        None => Ok(Transformed::no(node)),
    })?;
    carry(marked.data, LATE_REASON)
}

/// Lets a column that the plan's leaves now have pass through the projections above them.
pub fn carry(plan: LogicalPlan, column: &str) -> Result<LogicalPlan> {
    let carried = plan.transform_up(|node| {
        if as_window_tvf(&node).is_some() || node.inputs().is_empty() {
            return Ok(Transformed::no(node));
        }
        if let LogicalPlan::Projection(p) = &node {
            let has = |schema: &DFSchemaRef| schema.has_column_with_unqualified_name(column);
            if has(p.input.schema()) && !has(&p.schema) {
                let mut columns = p.expr.clone();
                columns.push(Expr::Column(Column::from_name(column)));
                let plan = LogicalPlanBuilder::from(p.input.as_ref().clone()).project(columns)?.build()?;
                return Ok(Transformed::yes(plan));
            }
            return Ok(Transformed::no(node));
        }
        // The schema of an alias is kept in the node: make it anew.
        let inputs = node.inputs().into_iter().cloned().collect();
        let exprs = node.expressions();
        Ok(Transformed::yes(node.with_new_exprs(exprs, inputs)?))
    })?;
    Ok(carried.data)
}

/// Only row-wise nodes may stand between the aggregate and its TUMBLE/HOP.
pub fn reaches_window_tvf(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Projection(p) => reaches_window_tvf(&p.input),
        LogicalPlan::Filter(f) => reaches_window_tvf(&f.input),
        LogicalPlan::SubqueryAlias(a) => reaches_window_tvf(&a.input),
        other => as_window_tvf(other).is_some_and(|tvf| !tvf.late),
    }
}

/// Gives a batch session the plain meaning of the marker.
#[derive(Debug)]
pub struct LowerWindowTvf;

impl AnalyzerRule for LowerWindowTvf {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        let lower = |node| match as_window_tvf(&node) {
            Some(tvf) if tvf.late => plan_err!(
                "'LATE' has a meaning only inside a pipeline. Read it in an INSERT INTO … SELECT of the files"
            ),
            Some(tvf) => Ok(Transformed::yes(tvf.expanded()?)),
            None => Ok(Transformed::no(node)),
        };
        Ok(plan.transform_up_with_subqueries(lower)?.data)
    }

    fn name(&self) -> &str {
        "lower_window_tvf"
    }
}

pub fn as_window_tvf(plan: &LogicalPlan) -> Option<&WindowTvf> {
    let LogicalPlan::Extension(Extension { node }) = plan else { return None };
    node.as_any().downcast_ref()
}
