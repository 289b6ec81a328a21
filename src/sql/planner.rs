//! One statement after another into what a program is made of. Errors are kept, each with its place, and the next
//! statement is judged all the same; but not by what a failed one would have declared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::prelude::SessionContext;

use super::by_window::{across_windows, odd_watermark_test};
use super::doubt::Doubt;
use super::explain::plain;
use super::functions::{CURRENT_WATERMARK, WATERMARK_BEFORE};
use super::insert;
use super::lineage::{Scans, in_order, row_wise, scans, unrepeatable, uses};
use super::needed::Needed;
use super::pinned::{PinnedKind, PinnedTable};
use super::program::{DimensionSpec, Insert, ReadBackSpec, SourceSpec};
use super::read_back::take_turns;
use super::session::{create_schema, schema_of};
use super::statement::{Kind, Name, Parsed, Statement};
use super::windowed::{Rows, Windows};
use super::words::{place_of, place_of_quoted};
use super::{Files, Place, define, engine_options, explain};
use crate::connector::{self, TableDefinition};
use crate::{Error, Part, Result};

/// What is known after some statements.
pub(super) struct Planner<'a> {
    files: &'a Files,
    context: SessionContext,
    /// See [`super::Program::targets`].
    pub targets: BTreeSet<String>,
    pub tables: BTreeMap<String, Arc<TableDefinition>>,
    pub sources: Vec<SourceSpec>,
    pub dimensions: Vec<DimensionSpec>,
    pub read_back: Vec<ReadBackSpec>,
    /// Where rows of the tables that are written would be read.
    written: BTreeMap<String, (Arc<TableDefinition>, Arc<PinnedTable>)>,
    /// Of the INSERTs that are accepted.
    places: Vec<Place>,
    pub inserts: Vec<Insert>,
    /// INSERTs seen so far.
    pub numbers: usize,
    pub dead_letters: Option<Arc<TableDefinition>>,
    pub windows: Windows,
    pub warnings: Vec<String>,
    pub off: BTreeSet<String>,
    /// Those of no statement first, then in the order of the files.
    pub errors: Vec<(Option<Place>, Error)>,
    /// Names that a failed statement may have declared.
    pub doubt: Doubt,
}

impl<'a> Planner<'a> {
    pub fn new(files: &'a Files, statements: &[Statement], context: SessionContext) -> Self {
        let target = |statement: &Statement| match &statement.kind {
            Kind::Insert { target, .. } => Some(target.to_string()),
            _ => None,
        };
        Self {
            files,
            context,
            targets: statements.iter().filter_map(target).collect(),
            tables: BTreeMap::new(),
            sources: vec![],
            dimensions: vec![],
            read_back: vec![],
            written: BTreeMap::new(),
            places: vec![],
            inserts: vec![],
            numbers: 0,
            dead_letters: None,
            windows: Windows::default(),
            warnings: vec![],
            off: BTreeSet::new(),
            errors: vec![],
            doubt: Doubt::default(),
        }
    }

    /// Takes a statement in; what is wrong with it is added to the errors.
    pub async fn statement(&mut self, statement: &Statement) {
        let taken = self.take(statement).await;
        self.numbers += usize::from(matches!(statement.kind, Kind::Insert { .. }));
        if let Err(error) = taken {
            self.errors.push((Some(statement.place), error));
        }
    }

    async fn take(&mut self, statement: &Statement) -> Result<()> {
        let place = &statement.place;
        match &statement.kind {
            Kind::Set { .. } => Ok(()), // read by settings
            Kind::CreateSchema { name, .. } => create_schema(&self.context, name),
            Kind::CreateTable(table) => {
                let done = define(self.files, table).and_then(|definition| self.table(definition, &table.name, place));
                done.inspect_err(|_| self.doubt.add(table.name.clone()))
            }
            Kind::CreateView { name, statement: parsed } if self.is_in_doubt(parsed) => {
                self.doubt.add(name.clone());
                Ok(())
            }
            Kind::CreateView { name, statement: parsed } => self.view(name, parsed, place).await,
            Kind::Insert { statement: parsed, .. } if self.is_in_doubt(parsed) => Ok(()),
            Kind::Insert { target, statement: parsed } => self.insert(target, parsed, place).await,
        }
    }

    /// Whether a query reads what a failed statement may have declared.
    fn is_in_doubt(&self, parsed: &Parsed) -> bool {
        let schema = |name: &Name| schema_of(&self.context, &name.schema).ok().flatten();
        let is_known = |name: &Name| schema(name).is_some_and(|schema| schema.table_exist(&name.table));
        self.doubt.covers_any_of(parsed, is_known)
    }

    /// At the name that the message quotes, else at the place.
    fn error(&self, place: &Place, message: impl AsRef<str>) -> Error {
        let quoted = place_of_quoted(self.files, place, message.as_ref());
        self.files.error_at(&quoted.unwrap_or(*place), message)
    }

    fn part(&self, place: &Place, part: &Part) -> Place {
        place_of(self.files, place, part).unwrap_or(*place)
    }

    fn explain(&self, error: &DataFusionError, place: &Place) -> Error {
        let errors = explain(self.files, error, place, Some(&self.context.state()));
        Error::all(errors).unwrap_or_else(|| Error::internal("a statement failed").cause(plain(error)))
    }

    fn register(&mut self, name: &Name, table: Arc<dyn TableProvider>, place: &Place) -> Result<()> {
        if schema_of(&self.context, &name.schema)?.is_none() {
            if !self.doubt.covers_schema(&name.schema) {
                let error =
                    self.error(&self.part(place, &Part::Name), format!("schema {} does not exist", name.schema));
                self.errors.push((Some(*place), error.hint(format!("put CREATE SCHEMA {}; before it", name.schema))));
            }
            // Said once; what is in it is judged all the same.
            create_schema(&self.context, &name.schema)?;
        }
        if let Some(schema) = schema_of(&self.context, &name.schema)? {
            schema.register_table(name.table.clone(), table)?;
        }
        Ok(())
    }

    fn table(&mut self, definition: TableDefinition, name: &Name, place: &Place) -> Result<()> {
        let definition = Arc::new(definition);
        let written = self.targets.contains(&definition.name) || definition.is_dead_letters();
        let key = definition.name.clone();
        let kind = match (written, definition.unbounded) {
            (false, true) => PinnedKind::Source(key.clone()),
            (false, false) => PinnedKind::Dimension(key.clone()),
            (true, _) => PinnedKind::Sink(key.clone()),
        };
        let pinned = PinnedTable::new(kind, Arc::clone(&definition.schema));
        self.register(name, Arc::clone(&pinned) as _, place)?;
        if written {
            self.written.insert(key.clone(), (Arc::clone(&definition), Arc::clone(&pinned)));
        }
        if definition.location.is_empty() {
            self.off.insert(key.clone());
        } else if let Err(error) = connector::check(&definition) {
            self.errors.push((Some(*place), self.files.locate(error)));
            // What an INSERT into it may do cannot be judged: no errors that only follow from this one.
            self.off.insert(key.clone());
        }
        let files = self.files;
        let located = |error: Error| files.locate(error);
        engine_options::check(&definition).map_err(located)?;
        if definition.is_dead_letters() {
            self.targets.insert(key.clone());
            if let Some(other) = &self.dead_letters {
                let error = format!("{} already has the role dead_letters; there can be one", other.name);
                let error = Error::user(error).at(definition.place.clone()).about(Part::Option("role".into()));
                return Err(located(error.hint("leave it out of one of them")));
            }
            if !self.off.contains(&key) {
                self.dead_letters = Some(Arc::clone(&definition));
            }
        }
        if definition.unbounded && !written {
            let watermark = engine_options::watermark(&definition).map_err(located)?;
            if let Some(watermark) = &watermark {
                self.windows.add_clock(&key, definition.schema.field(watermark.column).name());
            }
            let table = Arc::clone(&definition);
            self.sources.push(SourceSpec { table, pinned, watermark });
        } else if !written {
            let refresh = engine_options::refresh(&definition).map_err(located)?;
            let bytes_max = engine_options::bytes_max(&definition).map_err(located)?;
            let (table, needed) = (Arc::clone(&definition), Needed::default());
            self.dimensions.push(DimensionSpec { table, pinned, refresh, bytes_max, needed });
        }
        self.tables.insert(key, definition);
        Ok(())
    }

    async fn view(&mut self, name: &Name, parsed: &Parsed, place: &Place) -> Result<()> {
        let analyzed = self.analyzed(name, parsed, place).await;
        let analyzed = analyzed.inspect_err(|_| self.doubt.add(name.clone()))?;
        let kept = self.windows.view(&analyzed, &name.to_string(), &self.context.state());
        kept.map_err(|e| self.explain(&e, place))
    }

    /// Types are checked now, so that an error shows in the view and not in each of its readers.
    async fn analyzed(&mut self, name: &Name, parsed: &Parsed, place: &Place) -> Result<LogicalPlan> {
        let state = self.context.state();
        let plan = state.statement_to_plan(parsed.clone()).await.map_err(|e| self.explain(&e, place))?;
        let LogicalPlan::Ddl(DdlStatement::CreateView(view)) = plan else {
            return Err(self.error(place, "this is no view"));
        };
        let input = view.input.as_ref().clone();
        self.register(name, Arc::new(ViewTable::new(input.clone(), view.definition)), place)?;
        let analyzed = state.analyzer().execute_and_check(input, state.config_options(), |_, _| {});
        analyzed.map_err(|e| self.explain(&e, place))
    }

    async fn insert(&mut self, target: &Name, parsed: &Parsed, place: &Place) -> Result<()> {
        let state = self.context.state();
        let (query, columns) = insert::parts(parsed).map_err(|e| self.error(place, e))?;
        let plan = state.statement_to_plan(query).await.map_err(|e| self.explain(&e, place));
        let Some(table) = self.tables.get(&target.to_string()).cloned() else {
            if self.doubt.covers(target, false) {
                return plan.map(drop);
            }
            let error = self.error(&self.part(place, &Part::Name), format!("table {target} is not declared"));
            let near = super::nearest(&target.to_string(), self.tables.keys().map(String::as_str));
            let error = match near {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error.hint("CREATE EXTERNAL TABLE before you INSERT INTO it"),
            };
            self.errors.push((Some(*place), error));
            return plan.map(drop);
        };
        let plan = insert::into_table(plan?, &columns, &table).map_err(|problem| {
            let place = insert::place_of(self.files, parsed, problem.about).unwrap_or(*place);
            let error = self.files.error_at(&place, problem.message);
            error.with_hint(Some(problem.hint).filter(|hint| !hint.is_empty()))
        })?;
        let explained = |e: DataFusionError| self.explain(&e, place);
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {}).map_err(explained)?;
        if let Some(function) = unrepeatable(&plan).map_err(explained)? {
            let error = format!("{function}() gives another value each time, so a replay of a batch would differ");
            let called = place_of_quoted(self.files, place, &format!("'{function}'")).unwrap_or(*place);
            return Err(self.error(&called, error).hint("take it from the record, or derive it from its offset"));
        }
        if self.windows.is_refused(&plan).map_err(explained)? {
            return Ok(()); // said where the view is defined
        }
        let label = format!("INSERT at {}", self.files.label(place));
        let cut = self.windows.cut(plan, &label, &state);
        let plan = cut.map_err(|e| self.explain(&e, place))?;
        let plan = state.optimize(&plan).map_err(|e| self.explain(&e, place))?;
        if self.off.contains(&table.name) {
            return Ok(());
        }
        self.accept(plan, table, place)
    }

    /// What the optimized plan reads decides how it is run, and whether its sink can take it.
    fn accept(&mut self, plan: LogicalPlan, table: Arc<TableDefinition>, place: &Place) -> Result<()> {
        let explained = |this: &Self, e: DataFusionError| this.explain(&e, place);
        let read = scans(&plan).map_err(|e| explained(self, e))?;
        let sources = self.sources_of(&plan, &read, place)?;
        if sources.iter().chain(&read.sinks).any(|table| self.off.contains(table)) {
            return Ok(()); // nothing comes of it
        }
        let keyed = connector::is_keyed(&table);
        let row_wise = row_wise(&plan);
        let in_watermark = uses(&plan, CURRENT_WATERMARK).map_err(|e| explained(self, e))?;
        let open = if keyed && row_wise && !in_watermark { Rows::Changed } else { Rows::Whole };
        let (plan, rows) = self.windows.demand(plan, open).map_err(|e| explained(self, e))?;
        self.per_batch(&plan, &read, row_wise, &table, place)?;
        if in_watermark && rows.iter().any(|rows| *rows != Rows::Closed) && odd_watermark_test(&plan) {
            self.warnings.push(format!(
                "{}: a window is shown when it changes and when it closes, so rows may never pass a WHERE that asks \
                 anything of current_watermark() but window_end <= current_watermark()",
                self.files.label(place)
            ));
        }
        if rows.iter().any(|rows| *rows != Rows::Closed) && !keyed {
            let error = format!(
                "table {} only takes rows once, but the rows of an open window change from batch to batch",
                table.name
            );
            let hint = match in_watermark {
                false => "add WHERE window_end <= current_watermark(), or start + INTERVAL '…' <= … for a date_bin",
                true => {
                    "WHERE window_end <= current_watermark() must reach the windowed view itself: put window_end \
                         into the PARTITION BY, GROUP BY and joins that stand between"
                }
            };
            return Err(self.error(place, error).hint(hint));
        }
        let alone = row_wise && read.views.is_empty() && read.sources.len() == 1;
        let row_wise_over = if alone { read.sources.first().cloned() } else { None };
        let in_source_order = alone && in_order(&plan);
        self.places.push(*place);
        let place = self.files.label(place);
        let (number, turn) = (self.numbers, None);
        self.inserts.push(Insert { number, table, place, plan, sources, row_wise_over, in_source_order, rows, turn });
        Ok(())
    }

    /// What is computed over the rows of one batch only is a warning; into a table with a key, an error.
    fn per_batch(
        &mut self,
        plan: &LogicalPlan,
        read: &Scans,
        row_wise: bool,
        table: &TableDefinition,
        place: &Place,
    ) -> Result<()> {
        let (message, hint) = if !read.sources.is_empty() && !row_wise {
            (
                "an aggregate, DISTINCT, OVER, LIMIT or join of streams outside a windowed view sees only the rows of \
                 one micro-batch",
                "aggregate over TUMBLE or HOP, so that it is kept from batch to batch",
            )
        } else if !read.views.is_empty()
            && !row_wise
            && let Some(across) = across_windows(plan)
        {
            across.explain()
        } else {
            return Ok(());
        };
        if !table.primary_key.is_empty() {
            return Err(self.error(place, format!("{message}, and would overwrite rows by key")).hint(hint));
        }
        self.warnings.push(format!("{}: {message}; {hint}", self.files.label(place)));
        Ok(())
    }

    /// The sources that an INSERT reads, its windowed views included.
    fn sources_of(&self, plan: &LogicalPlan, read: &Scans, place: &Place) -> Result<BTreeSet<String>> {
        let of_view = |view: &usize| self.windows.stores[self.windows.views[*view].store].source.clone();
        let of_views: BTreeSet<String> = read.views.iter().map(of_view).collect();
        if of_views.len() > 1 {
            let error = "windowed views of several unbounded tables cannot be read together: their windows close at \
                         different times";
            return Err(self.error(place, error).hint("INSERT from each by itself"));
        }
        let sources: BTreeSet<String> = read.sources.union(&of_views).cloned().collect();
        if sources.is_empty() && read.sinks.is_empty() {
            let error = "the SELECT reads no unbounded table, so its rows would be written again in every batch";
            return Err(self.error(place, error).hint("read a stream, or do it once with `psql` or another tool"));
        }
        if sources.len() > 1 && uses(plan, WATERMARK_BEFORE).map_err(|e| self.explain(&e, place))? {
            let error = "LATE(view) cannot be read together with another unbounded table";
            return Err(self.error(place, error).hint("INSERT from each by itself"));
        }
        Ok(sources)
    }

    /// Whether the tables that are written can be, and together.
    fn check_sinks(&mut self) {
        let written = self.inserts.iter().map(|insert| &insert.table).chain(&self.dead_letters);
        let written: BTreeMap<&str, _> = written.map(|table| (table.name.as_str(), Arc::clone(table))).collect();
        let written: Vec<_> = written.into_values().collect();
        if let Err(error) = connector::sinks(&written) {
            let place = error.location().and_then(|label| self.files.statement_at(label));
            self.errors.push((place, self.files.locate(error)));
        }
    }

    /// Whether the tables that are joined with can be.
    fn check_dimensions(&mut self) {
        let stores = self.windows.stores.iter().map(|store| &store.input);
        let read = self.inserts.iter().map(|insert| &insert.plan).chain(stores).filter_map(|plan| scans(plan).ok());
        let read: BTreeSet<String> = read.flat_map(|found| found.dimensions).collect();
        for dimension in self.dimensions.iter().filter(|dimension| read.contains(&dimension.table.name)) {
            let table = &dimension.table;
            if !connector::is_readable(table) {
                let error = format!("table {} is STORED AS {}, which is only written", table.name, table.stored_as);
                let error = Error::user(error).at(table.place.clone()).about(Part::StoredAs);
                let error = error.hint("read what the rows came from");
                let place = error.location().and_then(|label| self.files.statement_at(label));
                self.errors.push((place, self.files.locate(error)));
            }
        }
    }

    /// Finds the tables that are read back, and whether they can be.
    fn take_turns(&mut self) -> Result<()> {
        let (read_back, refusals) = take_turns(&mut self.inserts, &mut self.windows, &self.written)?;
        self.read_back = read_back;
        for refusal in refusals {
            let place = self.places[refusal.insert];
            let error = self.error(&place, refusal.message).hint(refusal.hint);
            self.errors.push((Some(place), error));
        }
        Ok(())
    }

    /// Only what some INSERT reads is opened.
    ///
    /// # Errors
    /// All that were found.
    pub fn finish(&mut self) -> Result<()> {
        self.check_sinks();
        self.check_dimensions();
        self.take_turns()?;
        self.errors.sort_by_key(|(place, _)| *place); // stable: as found, within a statement
        if let Some(error) = Error::all(self.errors.drain(..).map(|(_, error)| error).collect()) {
            return Err(error);
        }
        if !self.doubt.is_empty() {
            return Err(Error::internal("a statement was left out, and no error says why"));
        }
        if self.numbers == 0 {
            let error = Error::user("the files have no INSERT INTO, so there is nothing to run");
            return Err(error.hint("INSERT INTO table SELECT … FROM source"));
        }
        if self.inserts.is_empty() {
            let off: Vec<&str> = self.off.iter().map(String::as_str).collect();
            let error = Error::user(format!("all INSERTs are off, for the addresses of {} are empty", off.join(", ")));
            return Err(error.hint("give a table that is read and one that is written their addresses"));
        }
        self.windows.prune()?;
        let read: BTreeSet<String> = self.inserts.iter().flat_map(|insert| insert.sources.iter().cloned()).collect();
        self.sources.retain(|source| read.contains(&source.table.name));
        let mut used = BTreeSet::new();
        let stores = self.windows.stores.iter().map(|store| &store.input);
        for plan in self.inserts.iter().map(|insert| &insert.plan).chain(stores) {
            if let Ok(found) = scans(plan) {
                used.extend(found.dimensions);
            }
        }
        self.dimensions.retain(|dimension| used.contains(&dimension.table.name));
        Ok(())
    }
}
