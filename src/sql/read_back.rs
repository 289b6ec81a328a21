//! Tables that the program writes and reads as well: how an INSERT may look at what it wrote in earlier windows.
//!
//! ```sql
//! INSERT INTO db.history
//! SELECT w.window_start, w.n, avg(past.n)
//! FROM w LEFT JOIN db.history AS past ON past.window_start < w.window_start
//! WHERE w.window_end <= current_watermark() GROUP BY w.window_start, w.n;
//! ```
//!
//! What such a query finds must not depend on how the batches were cut. So every INSERT that reads or writes the table
//! sees closed windows, and is run for one window after the other, each upon the rows of those before it (`pipeline::run`);
//! and a window reads only rows of earlier windows, which the join says: a column of the key that every INSERT fills
//! with a bound of its window is before that bound of the window that reads.
//!
//! That a replay finds the same rows does not rest on this: what was read is in the checkpoint (`pipeline::read_back`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, Result};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Join, LogicalPlan, Operator};

use super::bound::Bound;
use super::by_window::{across_windows, bounds_of};
use super::functions::timestamp_type;
use super::lineage::{Scans, keeps_left, scans};
use super::pinned::{PinnedKind, PinnedTable};
use super::program::{Insert, ReadBackSpec, Turn};
use super::windowed::{Rows, Windows};
use crate::connector::{self, TableDefinition};

/// What a row that is read back has to fulfil: `column operator bound of the window`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    column: String,
    operator: Operator,
    bound: Bound,
}

/// One look of an INSERT at a table of its own program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    table: String,
    conditions: Vec<Condition>,
}

/// Why an INSERT cannot be run, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Position among the INSERTs.
    pub insert: usize,
    pub message: String,
    pub hint: String,
}

/// Marks the INSERTs that read or write tables which are read back, and points them at windows that come in turn.
///
/// # Errors
/// DataFusion's. What the user has to mend is in the second list.
pub fn take_turns(
    inserts: &mut [Insert],
    windows: &mut Windows,
    tables: &BTreeMap<String, (Arc<TableDefinition>, Arc<PinnedTable>)>,
) -> Result<(Vec<ReadBackSpec>, Vec<Refusal>)> {
    let read: Vec<Scans> = inserts.iter().map(|insert| scans(&insert.plan)).collect::<Result<_>>()?;
    let names: BTreeSet<String> = read.iter().flat_map(|read| read.sinks.iter().cloned()).collect();
    let (mut specs, mut refusals) = (vec![], vec![]);
    for name in &names {
        let Some((table, pinned)) = tables.get(name) else { continue };
        let readers = (0..inserts.len()).filter(|i| read[*i].sinks.contains(name));
        let part: BTreeSet<usize> =
            readers.chain((0..inserts.len()).filter(|i| inserts[*i].table.name == *name)).collect();
        let found = Group { table, inserts, windows, read: &read, part: &part }.check()?;
        match found {
            Ok((turn, since)) => {
                part.iter().for_each(|i| inserts[*i].turn = Some(turn.clone()));
                specs.push(ReadBackSpec { table: Arc::clone(table), pinned: Arc::clone(pinned), turn, since });
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() && !specs.is_empty() {
        for insert in inserts.iter_mut().filter(|insert| insert.turn.is_some()) {
            (insert.plan, insert.rows) = windows.demand_in_turn(insert.plan.clone())?;
        }
        windows.forget_unread(inserts.iter().map(|insert| &insert.plan))?;
    }
    Ok((specs, refusals))
}

/// All INSERTs that read or write one table.
struct Group<'a> {
    table: &'a Arc<TableDefinition>,
    inserts: &'a [Insert],
    windows: &'a Windows,
    read: &'a [Scans],
    part: &'a BTreeSet<usize>,
}

type Checked = std::result::Result<(Turn, Option<(String, i64)>), Refusal>;

impl Group<'_> {
    fn check(&self) -> Result<Checked> {
        let name = &self.table.name;
        let refusal =
            |insert: usize, message: String, hint: &str| Ok(Err(Refusal { insert, message, hint: hint.to_string() }));
        let written = format!("table {name} is written by this program");
        let reads = |insert: &usize| self.read[*insert].sinks.contains(name);
        let Some(reader) = self.part.iter().copied().find(&reads) else { return refusal(0, written, "") };
        if !connector::is_read_back(self.table) {
            let message = format!(
                "{written}, and of those only a table STORED AS DATABASE can be read back, without a role of dead_letters or an outbox"
            );
            return refusal(reader, message, "read it with `poundlock sql`, or in a program of its own");
        }
        let mut turns = BTreeSet::new();
        // Said of a reader where there is one to blame.
        let readers = self.part.iter().copied().filter(&reads);
        for insert in readers.chain(self.part.iter().copied().filter(|insert| !reads(insert))) {
            let (of, read) = (&self.inserts[insert], &self.read[insert]);
            let why = match reads(&insert) {
                true => written.clone(),
                false => format!("table {name} is read by the INSERT at {}", self.inserts[reader].place),
            };
            if read.views.is_empty() || !read.sources.is_empty() {
                let message = format!("{why}: what a row finds in it would depend on how the batches were cut");
                return refusal(insert, message, READ_IT);
            }
            if of.rows != BTreeSet::from([Rows::Closed]) {
                let message = format!("{why}, so only closed windows can go with it");
                return refusal(insert, message, "add WHERE window_end <= current_watermark()");
            }
            if across_windows(&of.plan).is_some() {
                let message = format!("{why}, so what goes with it must keep to one window at a time");
                return refusal(insert, message, "put window_start into its GROUP BY, PARTITION BY or ON");
            }
            let views = read.views.iter().map(|view| &self.windows.views[*view]);
            turns.extend(views.map(|view| (self.windows.stores[view.store].source.clone(), view.size)));
        }
        let Some((source, size)) = turns.pop_first().filter(|_| turns.is_empty()) else {
            let message = format!("{written} and read: all windows that go with it must be of one size and one source");
            return refusal(reader, message, "keep the windows of another size in a table of their own");
        };
        let mut looks = vec![];
        for insert in self.part.iter().copied().filter(reads) {
            let Some(found) = looks_at(&self.inserts[insert].plan, self.table)? else {
                let message = format!("{written}: a window can only look at it by a join with its own row");
                return refusal(insert, message, READ_IT);
            };
            if !found.iter().all(|look| look.conditions.iter().any(|condition| self.excludes(condition, size))) {
                let message = format!("{written}, and nothing keeps a window from reading its own rows");
                return refusal(insert, message, READ_IT);
            }
            looks.extend(found);
        }
        Ok(Ok((Turn { source, size }, self.since(&looks, size))))
    }

    /// Whether no row of the window itself, or of one after it, fulfils the condition.
    fn excludes(&self, condition: &Condition, size: i64) -> bool {
        let Some(asked) = condition.bound.shift(size) else { return false };
        let writers = self.part.iter().map(|i| &self.inserts[*i]).filter(|insert| insert.table.name == self.table.name);
        let column = self.table.schema.index_of(&condition.column).ok();
        let is_key = self.table.primary_key.contains(&condition.column);
        let mut filled = writers.map(|insert| {
            let columns = insert.plan.schema().columns();
            let column = columns.get(column?)?;
            let bounds = bounds_of(&insert.plan);
            bounds.into_iter().find(|(known, _)| known == column).and_then(|(_, bound)| bound.shift(size))
        });
        is_key
            && filled.all(|filled| match condition.operator {
                Operator::Lt => filled.is_some_and(|filled| filled >= asked),
                Operator::LtEq => filled.is_some_and(|filled| filled > asked),
                _ => false,
            })
    }

    /// How far back all looks go: the column, and how it stands to the watermark before the batch. A window that closes
    /// ends after that watermark.
    fn since(&self, looks: &[Look], size: i64) -> Option<(String, i64)> {
        let of_look = |look: &Look| -> BTreeMap<String, i64> {
            let lower = look.conditions.iter().filter(|c| matches!(c.operator, Operator::Gt | Operator::GtEq));
            let moved = lower.filter_map(|c| Some((c.column.clone(), c.bound.shift(size)?.checked_sub(size)?)));
            let is_plain = |column: &str| {
                self.table.schema.field_with_name(column).is_ok_and(|field| *field.data_type() == timestamp_type())
            };
            moved.filter(|(column, _)| is_plain(column)).collect()
        };
        let all: Vec<BTreeMap<String, i64>> = looks.iter().map(of_look).collect();
        let first = all.first()?;
        first.keys().find_map(|column| {
            let moved: Option<Vec<i64>> = all.iter().map(|look| look.get(column).copied()).collect();
            Some((column.clone(), moved?.into_iter().min()?))
        })
    }
}

const READ_IT: &str = "JOIN it with a windowed view ON own.window_start < view.window_start, with window_start in its PRIMARY \
                       KEY, WHERE window_end <= current_watermark()";

/// Every look at the table in a plan; `None` if there is one that is no join of a windowed view with its rows.
fn looks_at(plan: &LogicalPlan, table: &TableDefinition) -> Result<Option<Vec<Look>>> {
    let (mut looks, mut seen) = (vec![], 0);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && PinnedTable::of(scan) == Some(PinnedKind::Sink(table.name.clone()))
        {
            seen += 1;
        }
        if let LogicalPlan::Join(join) = node {
            looks.extend(look(join, table)?);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok((looks.len() == seen).then_some(looks))
}

/// Of a join whose one side is the table's rows; the other must keep its rows as they are.
fn look(join: &Join, table: &TableDefinition) -> Result<Option<Look>> {
    for (own, view, kind) in
        [(&join.right, &join.left, join.join_type), (&join.left, &join.right, join.join_type.swap())]
    {
        let Some(columns) = own_columns(own, &table.name) else { continue };
        if !keeps_left(kind) || scans(view)?.views.is_empty() {
            return Ok(None);
        }
        let bounds = bounds_of(view);
        let of_own = |expr: &Expr| match expr {
            Expr::Column(column) => columns.iter().find(|(known, _)| known == column).map(|(_, name)| name.clone()),
            _ => None,
        };
        let of_view = |expr: &Expr| {
            Bound::of(expr, &|column| bounds.iter().find(|(known, _)| known == column).map(|(_, bound)| bound.clone()))
        };
        let mut conditions = vec![];
        for conjunct in join.filter.iter().flat_map(split_conjunction) {
            let Expr::BinaryExpr(test) = conjunct else { continue };
            if let (Some(column), Some(bound)) = (of_own(&test.left), of_view(&test.right)) {
                conditions.push(Condition { column, operator: test.op, bound });
            } else if let (Some(bound), Some(column)) = (of_view(&test.left), of_own(&test.right))
                && let Some(operator) = test.op.swap()
            {
                conditions.push(Condition { column, operator, bound });
            }
        }
        return Ok(Some(Look { table: table.name.clone(), conditions }));
    }
    Ok(None)
}

/// The columns of a plan that are columns of the table, if its rows are the table's one by one.
fn own_columns(plan: &LogicalPlan, table: &str) -> Option<Vec<(Column, String)>> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let is_own = PinnedTable::of(scan) == Some(PinnedKind::Sink(table.to_string())) && scan.fetch.is_none();
            is_own.then(|| plan.schema().columns().into_iter().map(|c| (c.clone(), c.name)).collect())
        }
        LogicalPlan::Filter(filter) => own_columns(&filter.input, table),
        LogicalPlan::SubqueryAlias(alias) => {
            let below = own_columns(&alias.input, table)?;
            let columns = alias.input.schema().columns().into_iter().zip(alias.schema.columns());
            let named = columns.filter_map(|(inner, outer)| Some((outer, named(&inner, &below)?)));
            Some(named.collect())
        }
        LogicalPlan::Projection(projection) => {
            let below = own_columns(&projection.input, table)?;
            let columns = projection.expr.iter().zip(projection.schema.columns());
            let named = columns.filter_map(|(expr, outer)| match unaliased(expr) {
                Expr::Column(inner) => Some((outer, named(inner, &below)?)),
                _ => None,
            });
            Some(named.collect())
        }
        _ => None,
    }
}

fn named(column: &Column, known: &[(Column, String)]) -> Option<String> {
    known.iter().find(|(known, _)| known == column).map(|(_, name)| name.clone())
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}
