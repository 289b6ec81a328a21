//! The user's files as one program: every INSERT planned once, to be run batch after batch.
//!
//! The catalog of a program holds only pinned tables (`sql::pinned`), so planning connects to nothing: `check` and
//! `run` plan alike. All errors of all files are found in one go, each at its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::Files;
use super::functions::BatchValues;
use super::needed::{Needed, needed};
use super::pinned::PinnedTable;
use super::planner::Planner;
use super::session::session;
use super::settings::{self, Settings, configure};
use super::shared::Shared;
use super::statement::Script;
use super::windowed::{Rows, Windows};
use crate::Result;
use crate::connector::TableDefinition;

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
    /// Its rows may take so much memory.
    pub bytes_max: usize,
    /// What is read of it.
    pub needed: Needed,
}

impl DimensionSpec {
    /// All columns of a table, read once, of the rows that meet a condition.
    ///
    /// # Errors
    /// Of the user: an option of the table.
    pub fn whole(table: Arc<TableDefinition>, pinned: Arc<PinnedTable>, filter: Option<Expr>) -> Result<Self> {
        let bytes_max = super::engine_options::bytes_max(&table)?;
        let needed = Needed { columns: (0..table.schema.fields().len()).collect(), filter };
        Ok(Self { table, pinned, refresh: None, bytes_max, needed })
    }

    /// The declared columns that are read.
    pub fn read_schema(&self) -> SchemaRef {
        let fields = self.needed.columns.iter().map(|column| Arc::clone(&self.table.schema.fields()[*column]));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

/// A table that the program writes and some INSERT reads: see [`super::read_back`].
#[derive(Debug, Clone)]
pub struct ReadBackSpec {
    pub table: Arc<TableDefinition>,
    pub pinned: Arc<PinnedTable>,
    /// Of all INSERTs that read or write it.
    pub turn: Turn,
    /// No reader asks for rows whose value in this column is before the watermark before the batch, moved by so many µs.
    pub since: Option<(String, i64)>,
}

/// Which windows are taken one after the other, the earliest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    pub source: String,
    /// µs.
    pub size: i64,
}

/// One `INSERT INTO … SELECT`.
#[derive(Debug)]
pub struct Insert {
    /// Among all INSERTs of the files, from 0, those that are off included: it is in the names of files and messages, and
    /// must not change when another table is turned off.
    pub number: usize,
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
    /// It is run for one window after the other; `None`: for all of a batch at once.
    pub turn: Option<Turn>,
}

/// All that the files say.
pub struct Program {
    pub files: Files,
    pub settings: Settings,
    /// Every table that is declared, by name.
    pub tables: BTreeMap<String, Arc<TableDefinition>>,
    pub sources: Vec<SourceSpec>,
    pub dimensions: Vec<DimensionSpec>,
    pub read_back: Vec<ReadBackSpec>,
    pub inserts: Vec<Insert>,
    /// INSERTs in the files, those that are off included.
    pub numbers: usize,
    /// The tables that INSERTs write to, those that are off included.
    pub targets: BTreeSet<String>,
    /// The table with `'role' 'dead_letters'`.
    pub dead_letters: Option<Arc<TableDefinition>>,
    pub windows: Windows,
    /// The plans of all INSERTs, then the inputs of all windowed views, over the conditions that they have in common.
    pub shared: Shared,
    pub warnings: Vec<String>,
    /// Tables whose address is empty: nothing is written to them or read from them.
    pub off: BTreeSet<String>,
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
        let mut planner = Planner::new(&files, &statements, context.clone());
        (planner.errors, planner.doubt) = (errors, doubt);
        for statement in &statements {
            planner.statement(statement).await;
        }
        planner.finish()?;
        let Planner { tables, targets, sources, mut dimensions, read_back, inserts, numbers, .. } = planner;
        let Planner { dead_letters, windows, warnings, off, .. } = planner;
        let inputs = windows.stores.iter().map(|store| &store.input);
        let plans: Vec<&LogicalPlan> = inserts.iter().map(|insert| &insert.plan).chain(inputs).collect();
        let shared = Shared::find(&plans, &context.state()).unwrap_or_else(|error| {
            tracing::warn!("queries share no conditions: {error}");
            Shared::default()
        });
        for dimension in &mut dimensions {
            let read = plans.iter().copied().chain(shared.plans());
            dimension.needed = needed(&dimension.table.name, &dimension.table.schema, read)?;
        }
        Ok(Self {
            files,
            settings,
            tables,
            sources,
            dimensions,
            read_back,
            inserts,
            numbers,
            targets,
            dead_letters,
            windows,
            shared,
            warnings,
            off,
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
