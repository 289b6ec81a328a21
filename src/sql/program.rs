//! The user's files as one program: every INSERT planned once, to be run batch after batch.
//!
//! The catalog of a program holds only pinned tables (`sql::pinned`), so planning connects to nothing: `check` and
//! `run` plan alike. All errors of all files are found in one go, each at its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::by_window::{across_windows, odd_watermark_test};
use super::doubt::Doubt;
use super::functions::{BatchValues, CURRENT_WATERMARK, WATERMARK_BEFORE};
use super::insert;
use super::lineage::{Scans, in_order, row_wise, scans, unrepeatable, uses};
use super::pinned::{PinnedKind, PinnedTable};
use super::session::{create_schema, schema_of, session};
use super::settings::{self, Settings, configure};
use super::shared::Shared;
use super::statement::{Kind, Name, Parsed, Script, Statement};
use super::windowed::{Rows, Windows};
use super::{Files, Place, define, engine_options, explain};
use crate::connector::{self, TableDefinition};
use crate::{Error, Result};

/// An unbounded table that some INSERT reads.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    pub table: Arc<TableDefinition>,
    pub pinned: Arc<PinnedTable>,
    /// `None`: the table has no event time, so no watermark.
    pub watermark: Option<WatermarkSpec>,
}

/// `OPTIONS ('watermark.…')`; all in µs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatermarkSpec {
    /// Position among the table's columns.
    pub column: usize,
    pub delay: i64,
    pub idle: i64,
    pub max_ahead: i64,
}

/// A bounded table that some INSERT reads.
#[derive(Debug, Clone)]
pub struct DimensionSpec {
    pub table: Arc<TableDefinition>,
    pub pinned: Arc<PinnedTable>,
    /// `None`: read once, at the start.
    pub refresh: Option<Duration>,
}

/// One `INSERT INTO … SELECT`.
#[derive(Debug)]
pub struct Insert {
    pub table: Arc<TableDefinition>,
    /// `queries/20_windows.sql:12:1`
    pub place: String,
    /// Optimized; its columns are those of the table, in order and type. Bound and run once a batch.
    pub plan: LogicalPlan,
    /// The watermark in scope is the minimum over these.
    pub sources: BTreeSet<String>,
    /// Each row comes of one row of this source, and of nothing else: a row that fails can be told from its neighbours.
    pub row_wise_over: Option<String>,
    /// The rows are those of the source, in its order: they need not be sorted to be numbered.
    pub in_source_order: bool,
    /// What it sees of windowed views; empty without any.
    pub rows: BTreeSet<Rows>,
}

/// All that the files say.
pub struct Program {
    pub files: Files,
    pub settings: Settings,
    /// Every table that is declared, by name.
    pub tables: BTreeMap<String, Arc<TableDefinition>>,
    pub sources: Vec<SourceSpec>,
    pub dimensions: Vec<DimensionSpec>,
    pub inserts: Vec<Insert>,
    /// The table with `'role' 'dead_letters'`.
    pub dead_letters: Option<Arc<TableDefinition>>,
    pub windows: Windows,
    /// The plans of all INSERTs, then the inputs of all windowed views, over the conditions that they have in common.
    pub shared: Shared,
    pub warnings: Vec<String>,
    /// Tables whose address is empty: nothing is written to them or read from them.
    pub off: BTreeSet<String>,
    /// blake3 of the stored text, hex.
    pub hash: String,
    context: SessionContext,
}

impl Program {
    /// Plans everything; connects to nothing.
    ///
    /// # Errors
    /// All errors of all files, as one: those of parsing and of the settings among them.
    pub async fn plan(files: Files, script: Script, settings: Result<Settings>) -> Result<Self> {
        let Script { statements, errors, doubt } = script;
        let mut errors: Vec<_> = errors.into_iter().map(|(place, error)| (Some(place), error)).collect();
        let settings = settings.or_else(|error| {
            errors.push((None, error));
            settings::defaults() // to judge the statements by; nothing is run with them
        })?;
        let config = configure(SessionConfig::new(), &files, &statements).unwrap_or_else(|error| {
            errors.push((None, error));
            SessionConfig::new()
        });
        let context = session(config, &settings, BatchValues::Placeholders)?;
        let mut planner = Planner { errors, doubt, ..Planner::new(&files, &statements, context.clone()) };
        for statement in &statements {
            if let Err(error) = planner.statement(statement).await {
                planner.errors.push((Some(statement.place), error));
            }
        }
        planner.finish()?;
        let Planner { tables, sources, dimensions, inserts, dead_letters, windows, warnings, off, .. } = planner;
        let mut hasher = blake3::Hasher::new();
        for (name, text) in files.stored() {
            hasher.update(name.as_bytes()).update(b"\0").update(text.as_bytes()).update(b"\0");
        }
        let hash = hasher.finalize().to_hex()[..32].to_string();
        let inputs = windows.stores.iter().map(|store| &store.input);
        let plans: Vec<&LogicalPlan> = inserts.iter().map(|insert| &insert.plan).chain(inputs).collect();
        let shared = Shared::find(&plans, &context.state()).unwrap_or_else(|error| {
            tracing::warn!("queries share no conditions: {error}");
            Shared::default()
        });
        Ok(Self {
            files,
            settings,
            tables,
            sources,
            dimensions,
            inserts,
            dead_letters,
            windows,
            shared,
            warnings,
            off,
            hash,
            context,
        })
    }

    /// The plan of an INSERT as it is run: over shared rows or as it was written.
    pub fn insert_plan(&self, insert: usize, shared: bool) -> &LogicalPlan {
        let plan = self.shared.plan(insert).filter(|_| shared);
        plan.unwrap_or(&self.inserts[insert].plan)
    }

    /// The input of a store of window state, likewise.
    pub fn store_input(&self, store: usize, shared: bool) -> &LogicalPlan {
        let plan = self.shared.plan(self.inserts.len() + store).filter(|_| shared);
        plan.unwrap_or(&self.windows.stores[store].input)
    }

    /// A fresh state of the session: what physical planning and running need.
    pub fn state(&self) -> SessionState {
        self.context.state()
    }

    /// The tables that are written, each once: targets of INSERTs, and the dead letters.
    pub fn written(&self) -> Vec<Arc<TableDefinition>> {
        let mut written = BTreeMap::new();
        for table in self.inserts.iter().map(|insert| &insert.table).chain(&self.dead_letters) {
            written.insert(table.name.clone(), Arc::clone(table));
        }
        written.into_values().collect()
    }
}

struct Planner<'a> {
    files: &'a Files,
    context: SessionContext,
    targets: BTreeSet<String>,
    tables: BTreeMap<String, Arc<TableDefinition>>,
    pinned: BTreeMap<String, Arc<PinnedTable>>,
    sources: Vec<SourceSpec>,
    dimensions: Vec<DimensionSpec>,
    inserts: Vec<Insert>,
    dead_letters: Option<Arc<TableDefinition>>,
    windows: Windows,
    warnings: Vec<String>,
    off: BTreeSet<String>,
    /// Those of no statement first, then in the order of the files.
    errors: Vec<(Option<Place>, Error)>,
    doubt: Doubt,
}

impl<'a> Planner<'a> {
    fn new(files: &'a Files, statements: &[Statement], context: SessionContext) -> Self {
        let target = |statement: &Statement| match &statement.kind {
            Kind::Insert { target, .. } => Some(target.to_string()),
            _ => None,
        };
        Self {
            files,
            context,
            targets: statements.iter().filter_map(target).collect(),
            tables: BTreeMap::new(),
            pinned: BTreeMap::new(),
            sources: vec![],
            dimensions: vec![],
            inserts: vec![],
            dead_letters: None,
            windows: Windows::default(),
            warnings: vec![],
            off: BTreeSet::new(),
            errors: vec![],
            doubt: Doubt::default(),
        }
    }

    async fn statement(&mut self, statement: &Statement) -> Result<()> {
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

    fn error(&self, place: &Place, message: impl AsRef<str>) -> Error {
        self.files.error_at(place, message)
    }

    fn explain(&self, error: &DataFusionError, place: &Place) -> Error {
        let errors = explain(self.files, error, place, Some(&self.context.state()));
        Error::all(errors).unwrap_or_else(|| Error::internal("a statement failed").cause(error))
    }

    fn register(&mut self, name: &Name, table: Arc<dyn TableProvider>, place: &Place) -> Result<()> {
        if schema_of(&self.context, &name.schema)?.is_none() {
            if !self.doubt.covers_schema(&name.schema) {
                let error = self.error(place, format!("schema {} does not exist", name.schema));
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
        let written = self.targets.contains(&definition.name);
        let key = definition.name.clone();
        let kind = match (written, definition.unbounded) {
            (false, true) => PinnedKind::Source(key.clone()),
            (false, false) => PinnedKind::Dimension(key.clone()),
            (true, _) => PinnedKind::Sink(key.clone()),
        };
        let pinned = PinnedTable::new(kind, Arc::clone(&definition.schema));
        self.register(name, Arc::clone(&pinned) as _, place)?;
        if definition.location.is_empty() {
            self.off.insert(key.clone());
        } else if let Err(error) = connector::check(&definition) {
            self.errors.push((Some(*place), error.snippet(self.files.snippet(place))));
            // What an INSERT into it may do cannot be judged: no errors that only follow from this one.
            self.off.insert(key.clone());
        }
        engine_options::check(&definition).map_err(|e| self.error(place, e))?;
        if definition.options.get("role").is_some_and(|role| role == "dead_letters") {
            if let Some(other) = &self.dead_letters {
                let error = format!("{} already has the role dead_letters; there can be one", other.name);
                return Err(self.error(place, error));
            }
            if !self.off.contains(&key) {
                self.dead_letters = Some(Arc::clone(&definition));
            }
        }
        if definition.unbounded && !written {
            let watermark = engine_options::watermark(&definition).map_err(|e| self.error(place, e))?;
            if let Some(watermark) = &watermark {
                self.windows.add_clock(&key, definition.schema.field(watermark.column).name());
            }
            let (table, pinned) = (Arc::clone(&definition), Arc::clone(&pinned));
            self.sources.push(SourceSpec { table, pinned, watermark });
        } else if !written {
            let refresh = engine_options::refresh(&definition).map_err(|e| self.error(place, e))?;
            let (table, pinned) = (Arc::clone(&definition), Arc::clone(&pinned));
            self.dimensions.push(DimensionSpec { table, pinned, refresh });
        }
        self.pinned.insert(key.clone(), pinned);
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
            let error = self.error(place, format!("table {target} is not declared"));
            let near = super::nearest(&target.to_string(), self.tables.keys().map(String::as_str));
            let error = match near {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error.hint("CREATE EXTERNAL TABLE before you INSERT INTO it"),
            };
            self.errors.push((Some(*place), error));
            return plan.map(drop);
        };
        let plan = insert::into_table(plan?, &columns, &table).map_err(|problem| {
            let error = self.error(place, problem.message);
            if problem.hint.is_empty() { error } else { error.hint(problem.hint) }
        })?;
        let explained = |e: DataFusionError| self.explain(&e, place);
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {}).map_err(explained)?;
        if let Some(function) = unrepeatable(&plan).map_err(explained)? {
            let error = format!("{function}() gives another value each time, so a replay of a batch would differ");
            return Err(self.error(place, error).hint("take it from the record, or derive it from its offset"));
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
        if let Some(own) = read.sinks.first() {
            let error = format!("table {own} is written by this program, so an INSERT cannot read it yet");
            return Err(self.error(place, error).hint("read it with `poundlock sql`, or in a program of its own"));
        }
        let sources = self.sources_of(&plan, &read, place)?;
        if sources.iter().any(|source| self.off.contains(source)) {
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
        let place = self.files.label(place);
        self.inserts.push(Insert { table, place, plan, sources, row_wise_over, in_source_order, rows });
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

    /// Only what some INSERT reads is opened.
    ///
    /// # Errors
    /// All that were found.
    fn finish(&mut self) -> Result<()> {
        self.errors.sort_by_key(|(place, _)| *place); // stable: as found, within a statement
        if let Some(error) = Error::all(self.errors.drain(..).map(|(_, error)| error).collect()) {
            return Err(error);
        }
        if !self.doubt.is_empty() {
            return Err(Error::internal("a statement was left out, and no error says why"));
        }
        if self.inserts.is_empty() {
            let error = Error::user("the files have no INSERT INTO, so there is nothing to run");
            return Err(error.hint("INSERT INTO table SELECT … FROM source"));
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
