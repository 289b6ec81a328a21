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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Column, Result, internal_err, plan_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::SessionState;
use datafusion::logical_expr::logical_plan::Aggregate;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};

pub use super::paned::PaneDefinition;
use super::paned::Paned;
use super::pinned::{ClosedColumns, PinnedKind, PinnedTable};
use super::window_tvf::{WINDOW_END, WINDOW_START, as_window_tvf};

/// Which rows of a windowed view an INSERT is to see in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rows {
    /// Every row of every window that changed or closed in this batch.
    Whole,
    /// Of those, only rows that changed: enough where the SQL above is row-wise and the sink has a key.
    Changed,
    /// Every row of every window that closed in this batch.
    Closed,
    /// The same, one window after the other, the earliest first.
    InTurn,
}

/// One windowed view.
#[derive(Debug)]
pub struct View {
    /// The first view of the program that holds it; unique.
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

/// All windowed views of a program.
#[derive(Debug, Default)]
pub struct Windows {
    pub views: Vec<View>,
    pub stores: Vec<Arc<PaneDefinition>>,
    /// Unbounded table → the column its watermark is of.
    clocks: BTreeMap<String, String>,
    names: Vec<(Aggregate, String)>,
    /// Aggregates that cannot be kept, for reasons that were given where they were defined.
    refused: Vec<Aggregate>,
}

impl Windows {
    /// Makes a table with a watermark known, before any view over it.
    pub fn add_clock(&mut self, table: &str, column: &str) {
        self.clocks.insert(table.to_string(), column.to_string());
    }

    /// Takes in the analyzed plan of a view: its name, and whether its windowed aggregates can be kept, so that an error
    /// shows in the view and not in each of its readers.
    pub fn view(&mut self, analyzed: &LogicalPlan, name: &str, state: &SessionState) -> Result<()> {
        let mut first = Ok(());
        analyzed.apply_with_subqueries(|node| {
            let LogicalPlan::Aggregate(aggregate) = node else { return Ok(TreeNodeRecursion::Continue) };
            if self.refused.contains(aggregate) || self.names.iter().any(|(known, _)| known == aggregate) {
                return Ok(TreeNodeRecursion::Jump);
            }
            let kept = Paned::of(aggregate, &self.clocks).and_then(|paned| match paned {
                Some(paned) => paned.define(&self.clocks, state).map(drop),
                None => Ok(()),
            });
            if let Err(error) = kept {
                self.refused.push(aggregate.clone());
                first = std::mem::replace(&mut first, Ok(())).and(Err(error));
            }
            self.names.push((aggregate.clone(), name.to_string()));
            Ok(TreeNodeRecursion::Continue)
        })?;
        first
    }

    /// Whether a plan reads a view that [`Windows::view`] has refused.
    pub fn is_refused(&self, analyzed: &LogicalPlan) -> Result<bool> {
        let mut found = false;
        analyzed.apply_with_subqueries(|node| {
            found |= matches!(node, LogicalPlan::Aggregate(aggregate) if self.refused.contains(aggregate));
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        Ok(found)
    }

    /// Cuts every windowed aggregate out of an analyzed (not optimized) plan and lowers `LATE`. `name` is the INSERT; it
    /// names the windowed views that are in no view.
    pub fn cut(&mut self, plan: LogicalPlan, name: &str, state: &SessionState) -> Result<LogicalPlan> {
        let cut = plan.transform_down_with_subqueries(|node| {
            if let Some(tvf) = as_window_tvf(&node) {
                return match tvf.late {
                    true => Ok(Transformed::new(tvf.late_pairs()?, true, TreeNodeRecursion::Jump)),
                    false => plan_err!(
                        "rows of TUMBLE or HOP must be aggregated. GROUP BY {WINDOW_START}, {WINDOW_END}, … with only \
                         columns, WHERE and aliases between it and FROM"
                    ),
                };
            }
            let LogicalPlan::Aggregate(aggregate) = &node else { return Ok(Transformed::no(node)) };
            let Some(paned) = Paned::of(aggregate, &self.clocks)? else { return Ok(Transformed::no(node)) };
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
        let store = match self.stores.iter().position(|store| store.aggregate == paned.aggregate) {
            Some(store) => {
                self.widen(store, size)?;
                store
            }
            None => {
                let mut store = paned.define(&self.clocks, state)?;
                let print = store.fingerprint();
                store.twins = self.stores.iter().filter(|other| other.fingerprint() == print).count() as u64;
                self.stores.push(Arc::new(store));
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
        let first = self.names.iter().find(|(known, _)| known == aggregate).map_or(name, |(_, view)| view);
        let taken = |name: &str| self.views.iter().any(|view| view.name == name);
        let mut names = std::iter::once(first.to_string()).chain((2..).map(|n| format!("{first} ({n})")));
        self.views.push(View {
            name: names.find(|name| !taken(name)).unwrap_or_default(),
            store,
            size,
            demands: vec![],
            aggregate: aggregate.clone(),
            schema: Arc::new(Schema::new(fields)),
            closed,
        });
        Ok(number)
    }

    fn widen(&mut self, store: usize, size: i64) -> Result<()> {
        // Nobody else holds it while the program is being planned.
        let Some(store) = Arc::get_mut(&mut self.stores[store]) else { return internal_err!("a store is in use") };
        store.size_max = store.size_max.max(size);
        Ok(())
    }

    /// Forgets views that nobody reads (their sink is turned off) and stores that no view needs.
    pub fn prune(&mut self) -> Result<()> {
        self.views.retain(|view| !view.demands.is_empty());
        let used: BTreeSet<usize> = self.views.iter().map(|view| view.store).collect();
        let mut number = 0;
        self.stores.retain(|_| {
            number += 1;
            used.contains(&(number - 1))
        });
        for view in &mut self.views {
            view.store = used.range(..view.store).count();
        }
        for (store, definition) in self.stores.iter_mut().enumerate() {
            let Some(definition) = Arc::get_mut(definition) else { return internal_err!("a store is in use") };
            let sizes = self.views.iter().filter(|view| view.store == store).map(|view| view.size);
            definition.size_max = sizes.max().unwrap_or(definition.size_max);
        }
        Ok(())
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
    pub fn demand(&mut self, plan: LogicalPlan, open: Rows) -> Result<(LogicalPlan, BTreeSet<Rows>)> {
        self.point(plan, |only_closed| if only_closed { Rows::Closed } else { open })
    }

    /// The same for a plan that only asks for closed windows, and is to get them in turn.
    pub fn demand_in_turn(&mut self, plan: LogicalPlan) -> Result<(LogicalPlan, BTreeSet<Rows>)> {
        self.point(plan, |_| Rows::InTurn)
    }

    /// Drops demands that none of these plans makes any more.
    pub fn forget_unread<'p>(&mut self, plans: impl Iterator<Item = &'p LogicalPlan>) -> Result<()> {
        let mut read: Vec<Arc<dyn TableProvider>> = vec![];
        for plan in plans {
            plan.apply_with_subqueries(|node| {
                if let LogicalPlan::TableScan(scan) = node {
                    read.extend(source_as_provider(&scan.source));
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        let is_read = |table: &Arc<PinnedTable>| {
            read.iter().any(|other| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(table)))
        };
        for view in &mut self.views {
            view.demands.retain(|(_, table)| is_read(table));
        }
        Ok(())
    }

    fn point(&mut self, plan: LogicalPlan, wanted: impl Fn(bool) -> Rows) -> Result<(LogicalPlan, BTreeSet<Rows>)> {
        let mut seen = BTreeSet::new();
        let pointed = plan.transform_down_with_subqueries(|node| {
            let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
            let Some(PinnedKind::Windowed { view, closed }) = PinnedTable::of(&scan) else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let rows = wanted(scan.filters.iter().any(|filter| closed.is_closed_test(filter)));
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
}
