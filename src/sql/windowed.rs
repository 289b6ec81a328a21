//! Windowed views: aggregates over `TUMBLE`, `HOP` or `date_bin`, cut out of the user's plans.
//!
//! ```text
//! … everything above plans as usual …            … everything above plans as usual …
//!   Aggregate [window_start, …, user_id]    ──▶     scan of a pinned table: rows of the view, from `state`
//!     Projection | Filter | Alias
//!       WindowTvf                           ──▶     PaneStore: the input down to the source, each row once, in its pane
//!         … valid_events …
//! ```
//!
//! The cut is made in the analyzed, not yet optimized plan, so no optimizer rule ever sees the aggregate. Equal
//! aggregates are one view; views that differ only in the size of their windows share one store of panes.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, Result, ScalarValue, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::logical_plan::Aggregate;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::physical_plan::aggregates::PhysicalGroupBy;

use super::pinned::{ClosedColumns, PinnedKind, PinnedTable};
use super::window_tvf::{PANE_TIME, WINDOW_END, WINDOW_START, WindowTvf, as_window_tvf, carry, reaches_window_tvf};

/// Which rows of a windowed view an INSERT is to see in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rows {
    /// Every row of every window that changed or closed in this batch.
    Whole,
    /// Of those, only rows that changed: enough where the SQL above is row-wise and the sink has a key.
    Changed,
    /// Every row of every window that closed in this batch.
    Closed,
}

/// One windowed view.
#[derive(Debug)]
pub struct View {
    /// The first view of the program that holds it.
    pub name: String,
    pub store: usize,
    /// µs.
    pub size: i64,
    /// What is asked of it, and where the rows are pinned.
    pub demands: Vec<(Rows, Arc<PinnedTable>)>,
    aggregate: Aggregate,
    schema: SchemaRef,
    closed: ClosedColumns,
}

impl View {
    /// The schema of its pinned rows: the columns of the aggregate, named by position.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

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
    paned: Aggregate,
}

impl PaneDefinition {
    /// Two programs may share state exactly if these are equal: what goes in, how it is aggregated, and by which
    /// version of DataFusion (whose inner format the state is).
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(datafusion::DATAFUSION_VERSION.as_bytes());
        hasher.update(&self.slide.to_le_bytes());
        hasher.update(&self.size_max.to_le_bytes());
        hasher.update(self.input.display_indent_schema().to_string().as_bytes());
        for expr in self.paned.group_expr.iter().chain(&self.paned.aggr_expr) {
            hasher.update(format!("|{expr}").as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_string()
    }
}

/// All windowed views of a program.
#[derive(Debug, Default)]
pub struct Windows {
    pub views: Vec<View>,
    pub stores: Vec<Arc<PaneDefinition>>,
    names: Vec<(Aggregate, String)>,
}

impl Windows {
    /// Cuts every windowed aggregate out of an analyzed (not optimized) plan and lowers `LATE`. `name` is the view that
    /// is being defined or the INSERT; it names the views that are new.
    pub fn cut(
        &mut self,
        plan: LogicalPlan,
        name: &str,
        time_columns: &BTreeSet<String>,
        state: &SessionState,
    ) -> Result<LogicalPlan> {
        let cut = plan.transform_down_with_subqueries(|node| {
            if let Some(tvf) = as_window_tvf(&node) {
                return match tvf.late {
                    true => Ok(Transformed::new(tvf.late_pairs()?, true, TreeNodeRecursion::Jump)),
                    false => plan_err!(
                        "rows of TUMBLE or HOP must be aggregated at once: GROUP BY window_start, window_end, … with \
                         only columns, WHERE and aliases in between"
                    ),
                };
            }
            let LogicalPlan::Aggregate(aggregate) = &node else { return Ok(Transformed::no(node)) };
            let Some(paned) = Paned::of(aggregate, time_columns)? else { return Ok(Transformed::no(node)) };
            let known = self.views.iter().position(|view| view.aggregate == *aggregate);
            let view = match known {
                Some(view) => view,
                None => self.define(aggregate, paned, name, state)?,
            };
            Ok(Transformed::new(self.scan(view)?, true, TreeNodeRecursion::Jump))
        })?;
        Ok(cut.data)
    }

    fn define(&mut self, aggregate: &Aggregate, paned: Paned, name: &str, state: &SessionState) -> Result<usize> {
        let number = self.views.len();
        let (size, start_column, end_column) = (paned.size, paned.start_column, paned.end_column);
        let store = match self.stores.iter().position(|store| store.paned == paned.aggregate) {
            Some(store) => {
                // Nobody else holds it while the program is being planned.
                if let Some(definition) = Arc::get_mut(&mut self.stores[store]) {
                    definition.size_max = definition.size_max.max(size);
                }
                store
            }
            None => {
                self.stores.push(Arc::new(paned.define(state)?));
                self.stores.len() - 1
            }
        };
        let fields = aggregate.schema.fields().iter().enumerate();
        let fields: Vec<Field> = fields.map(|(i, f)| f.as_ref().clone().with_name(format!("c{i}"))).collect();
        let closed = ClosedColumns {
            start: format!("c{start_column}"),
            end: end_column.map(|column| format!("c{column}")),
            size,
        };
        self.views.push(View {
            name: self.names.iter().find(|(known, _)| known == aggregate).map_or(name, |(_, view)| view).to_string(),
            store,
            size,
            demands: vec![],
            aggregate: aggregate.clone(),
            schema: Arc::new(Schema::new(fields)),
            closed,
        });
        Ok(number)
    }

    /// What stands in the plan in place of the aggregate. Which rows it reads is decided later, by [`Windows::demand`].
    fn scan(&self, number: usize) -> Result<LogicalPlan> {
        let view = &self.views[number];
        let kind = PinnedKind::Windowed { view: number, closed: view.closed.clone() };
        let provider: Arc<dyn TableProvider> = PinnedTable::new(kind, Arc::clone(&view.schema));
        let table = format!("__windowed_{number}");
        let columns = view.aggregate.schema.iter().enumerate().map(|(i, (qualifier, field))| {
            let column = Expr::Column(Column::new(Some(table.clone()), format!("c{i}")));
            column.alias_qualified(qualifier.cloned(), field.name())
        });
        let columns: Vec<Expr> = columns.collect();
        LogicalPlanBuilder::scan(table, provider_as_source(provider), None)?.project(columns)?.build()
    }

    /// Points every scan of a windowed view in an optimized plan at the rows it is to read: the closed windows where the
    /// plan asks for no others, else `open`. Tells what it found.
    pub fn demand(
        &mut self,
        plan: LogicalPlan,
        open: Rows,
    ) -> Result<(LogicalPlan, BTreeSet<Rows>)> {
        let mut seen = BTreeSet::new();
        let pointed = plan.transform_down_with_subqueries(|node| {
            let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
            let Some(PinnedKind::Windowed { view, closed }) = PinnedTable::of(&scan) else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let only_closed = scan.filters.iter().any(|filter| closed.is_closed_test(filter));
            let rows = if only_closed { Rows::Closed } else { open };
            seen.insert(rows);
            let view_ = &mut self.views[view];
            let table = match view_.demands.iter().find(|(known, _)| *known == rows) {
                Some((_, table)) => Arc::clone(table),
                None => {
                    let kind = PinnedKind::Windowed { view, closed };
                    let table = PinnedTable::new(kind, Arc::clone(&view_.schema));
                    view_.demands.push((rows, Arc::clone(&table)));
                    table
                }
            };
            scan.source = provider_as_source(table as Arc<dyn TableProvider>);
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        })?;
        Ok((pointed.data, seen))
    }

    /// Remembers which view of the program holds a windowed aggregate first, to name it by.
    pub fn name(&mut self, analyzed: &LogicalPlan, view: &str) -> Result<()> {
        analyzed.apply_with_subqueries(|node| {
            if let LogicalPlan::Aggregate(aggregate) = node {
                self.names.push((aggregate.clone(), view.to_string()));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(())
    }
}

/// The aggregate over panes that an aggregate over windows is kept as.
struct Paned {
    aggregate: Aggregate,
    slide: i64,
    size: i64,
    start_column: usize,
    end_column: Option<usize>,
}

/// A `date_bin` in GROUP BY becomes this column of the input.
const BIN: &str = "__bin";

impl Paned {
    /// `None` if the aggregate is no windowed one.
    fn of(aggregate: &Aggregate, time_columns: &BTreeSet<String>) -> Result<Option<Self>> {
        if reaches_window_tvf(&aggregate.input) {
            return Self::of_tvf(aggregate).map(Some);
        }
        Self::of_date_bin(aggregate, time_columns)
    }

    fn of_tvf(aggregate: &Aggregate) -> Result<Self> {
        let mut tvf: Option<WindowTvf> = None;
        let paned = aggregate.input.as_ref().clone().transform_down(|node| {
            let Some(found) = as_window_tvf(&node) else { return Ok(Transformed::no(node)) };
            tvf = Some(found.clone());
            Ok(Transformed::new(found.panes()?, true, TreeNodeRecursion::Jump))
        })?;
        let Some(tvf) = tvf else { return plan_err!("no TUMBLE or HOP below the aggregate") };
        refuse_bounds(aggregate, &tvf)?;
        let input = carry(paned.data, PANE_TIME)?;
        let bound = |name| aggregate.group_expr.iter().position(|e| matches!(e, Expr::Column(c) if c.name == name));
        let Some(start_column) = bound(WINDOW_START) else {
            return plan_err!("GROUP BY over TUMBLE or HOP must contain {WINDOW_START}");
        };
        Ok(Self {
            aggregate: Aggregate::try_new(
                Arc::new(input),
                aggregate.group_expr.clone(),
                aggregate.aggr_expr.clone(),
            )?,
            slide: tvf.slide,
            size: tvf.size,
            start_column,
            end_column: bound(WINDOW_END),
        })
    }

    /// `GROUP BY date_bin(INTERVAL '1 minute', event time)`, straight over the rows of one source.
    fn of_date_bin(aggregate: &Aggregate, time_columns: &BTreeSet<String>) -> Result<Option<Self>> {
        if scans(&aggregate.input)?.sources.is_empty() || !row_wise(&aggregate.input) {
            return Ok(None);
        }
        let found = aggregate.group_expr.iter().enumerate().find_map(|(i, expr)| {
            let Expr::ScalarFunction(function) = expr else { return None };
            let [Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(step)), _), time, ..] = function.args.as_slice()
            else {
                return None;
            };
            let Expr::Column(column) = time else { return None };
            (function.name() == "date_bin" && time_columns.contains(&column.name)).then(|| (i, *step, time.clone()))
        });
        let Some((start_column, step, time)) = found else { return Ok(None) };
        let size = i64::from(step.days) * 86_400_000_000 + step.nanoseconds / 1_000;
        if step.months != 0 || step.nanoseconds % 1_000 != 0 || size <= 0 {
            return plan_err!("date_bin over event time needs an interval of fixed length in whole microseconds");
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

    fn define(self, state: &SessionState) -> Result<PaneDefinition> {
        let Self { aggregate, slide, size, start_column, end_column } = self;
        let grouping_set = |e: &Expr| matches!(e, Expr::GroupingSet(_));
        if aggregate.group_expr.iter().any(grouping_set) {
            return plan_err!("GROUPING SETS, CUBE and ROLLUP over windows are not supported; use one view for each");
        }
        let found = scans(&aggregate.input)?;
        let source = match found.sources.iter().collect::<Vec<_>>().as_slice() {
            [one] => (*one).clone(),
            _ => return plan_err!("a windowed view must be over exactly one unbounded table"),
        };
        if found.windowed || !row_wise(&aggregate.input) {
            return plan_err!(
                "TUMBLE and HOP must be over the rows of an unbounded table; below them there may be no aggregate, \
                 DISTINCT, OVER, LIMIT, or another windowed view"
            );
        }
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
        for (i, expr) in aggregate.group_expr.iter().enumerate() {
            let physical = create_physical_expr(expr, &df_schema, props, &planning)?;
            groups.push((physical, aggregate.schema.field(i).name().clone()));
        }
        let lower = |e| {
            let builder = LoweredAggregateBuilder::new(e, &df_schema, &input_schema, props, &planning);
            builder.build().map(|lowered| (lowered.aggregate, lowered.filter))
        };
        let lowered: Vec<_> = aggregate.aggr_expr.iter().map(lower).collect::<Result<_>>()?;
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
            paned: aggregate,
        })
    }
}

/// A HOP is kept as panes, which do not know the bounds of the windows they will be merged into.
fn refuse_bounds(aggregate: &Aggregate, tvf: &WindowTvf) -> Result<()> {
    if tvf.slide == tvf.size {
        return Ok(());
    }
    let names = |e: &Expr| e.column_refs().iter().any(|c| [WINDOW_START, WINDOW_END].contains(&c.name.as_str()));
    let plain = |e: &Expr| matches!(e.clone().unalias(), Expr::Column(_));
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
            "a HOP shares its rows between windows, so nothing below its GROUP BY may use window_start or window_end; \
             found {expr}; move it above the aggregate (HAVING, or a WHERE over the view)"
        ),
    }
}

/// What a plan reads.
#[derive(Debug, Default)]
pub struct Scans {
    pub sources: BTreeSet<String>,
    pub dimensions: BTreeSet<String>,
    pub sinks: BTreeSet<String>,
    pub views: BTreeSet<usize>,
    pub windowed: bool,
}

pub fn scans(plan: &LogicalPlan) -> Result<Scans> {
    let mut found = Scans::default();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            match PinnedTable::of(scan) {
                Some(PinnedKind::Source(name)) => found.sources.insert(name),
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

/// Whether each row that comes out depends on one row of the one stream that goes in (and on dimensions).
pub fn row_wise(plan: &LogicalPlan) -> bool {
    let mut row_wise = true;
    let visited = plan.apply_with_subqueries(|node| {
        use LogicalPlan::{Aggregate, Distinct, Join, Limit, RecursiveQuery, Sort, Window};
        row_wise &= match node {
            Aggregate(_) | Distinct(_) | Limit(_) | Window(_) | RecursiveQuery(_) => false,
            Sort(sort) => sort.fetch.is_none(),
            Join(join) => match (is_stream(&join.left), is_stream(&join.right)) {
                (true, true) => false,
                (true, false) => !matches!(join.join_type, JoinType::Right | JoinType::Full | JoinType::RightAnti),
                (false, true) => !matches!(join.join_type, JoinType::Left | JoinType::Full | JoinType::LeftAnti),
                (false, false) => true,
            },
            _ => true,
        };
        Ok(TreeNodeRecursion::Continue)
    });
    visited.is_ok() && row_wise
}

fn is_stream(plan: &LogicalPlan) -> bool {
    scans(plan).is_ok_and(|s| !s.sources.is_empty() || !s.views.is_empty())
}
