//! Tables of a database: written exactly once, read as dimensions and by ad-hoc SQL.
//!
//! ```text
//! rows of all INSERTs ──▶ [one transaction: rows of every table + the batch record] ──▶ PostgreSQL or SQLite
//! ```
//!
//! The LOCATION's scheme says which: `postgres://…` (or `postgresql://…`) or `sqlite:PATH`. All tables of one database
//! are one sink, so that one transaction takes them together, but for those that want their own. Two LOCATIONs of one
//! database that differ in more than their tables are refused: each would keep a batch record, and the second would
//! find the first's and skip its rows.
//!
//! Invariant: the batch record (pipeline, batch, wave) is in the database if and only if the batch's rows are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{BoundedTable, OptionDoc, OptionReader, Sink, TableDefinition, redact};
use crate::{Error, Part, Result};

pub mod migrate;
pub mod postgres;
pub mod sqlite;

mod builder;
mod column;
mod filter;
mod ledger;
mod misfits;
mod replica;
mod scan;

use postgres::Address;

/// Rows of one INSERT that a database may refuse in one batch before the batch is given up: beyond it something is
/// wrong with the table or the SQL, not with the rows.
pub const REFUSED_MAX: usize = 1_000;

/// What happens to a row whose key is in the table already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// The database refuses the row.
    Refuse,
    /// The row that is there stays; of two rows of one batch the first stays.
    Nothing,
    /// The new row replaces it; of two rows of one batch the last stays.
    Update,
}

#[derive(Debug, Clone)]
enum Place {
    Postgres(Box<Address>),
    Sqlite(std::path::PathBuf),
}

/// Of `STORED AS DATABASE`.
pub const OPTIONS: &[OptionDoc] = &[
    (
        "table",
        "its name in the database, `name` or `schema.name`, exactly as stored there; default: the last part of the \
               declared name, found by `search_path`",
    ),
    (
        "on_conflict",
        "`nothing` or `update`, by the PRIMARY KEY; default: `update` with a PRIMARY KEY, else a row that is \
                     there already is refused",
    ),
    (
        "transaction",
        "`shared` (default): the rows of a batch are committed together with those of the other tables of the database; `own`: in \
         a transaction beside it, over a second connection, so that the server works on both at once and neither waits for the \
         other. Exactly once either way. Not for a table whose foreign key refers to rows of the same batch in another, or is referred to. \
         SQLite, with its one writer, always shares",
    ),
    (
        "replica",
        "PostgreSQL: the address of a read replica, `postgres://…`. Dimensions and `poundlock sql` read there; LOCATION is read \
         while it does not answer, with a warning. Empty: none",
    ),
    ("connect_timeout", "default 10 seconds"),
    (
        "timeout",
        "of writing one batch, and of one statement; default 5 minutes. SQLite waits for another writer for \
                 `connect_timeout`",
    ),
];

/// A declared table with `STORED AS DATABASE`, its LOCATION and options read (see [`OPTIONS`]).
#[derive(Debug, Clone)]
pub struct DatabaseTable {
    definition: Arc<TableDefinition>,
    place: Place,
    /// Where it is rather read; only of PostgreSQL.
    replica: Option<Box<Address>>,
    /// `(schema, name)` in the database.
    target: (Option<String>, String),
    on_conflict: OnConflict,
    own_transaction: bool,
    connect_timeout: Duration,
    timeout: Duration,
}

impl DatabaseTable {
    /// Reads the definition; connects nowhere. A table that is only read needs no key.
    ///
    /// # Errors
    /// LOCATION or an option is not understood (user).
    pub fn new(definition: Arc<TableDefinition>) -> Result<Self> {
        let mut options = OptionReader::new(&definition, OPTIONS);
        let name = options.text("table").filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| definition.name.rsplit('.').next().unwrap_or(&definition.name));
        let target = match name.split_once('.') {
            Some((schema, name)) => (Some(schema.to_string()), name.to_string()),
            None => (None, name.to_string()),
        };
        let keyed = !definition.primary_key.is_empty();
        let on_conflict = match options.word("on_conflict", &["nothing", "update"], "")? {
            "nothing" => OnConflict::Nothing,
            "update" if !keyed => {
                let error = options.error("on_conflict", "is 'update', but the table has no key");
                return Err(error.hint("declare PRIMARY KEY (…): it says which rows are the same"));
            }
            "" if !keyed => OnConflict::Refuse,
            _ => OnConflict::Update,
        };
        let own_transaction = options.word("transaction", &["shared", "own"], "shared")? == "own";
        let connect_timeout = options.duration("connect_timeout", Duration::from_secs(10))?;
        let timeout = options.duration("timeout", Duration::from_secs(300))?;
        let place = place(&definition)?;
        let replica = replica(&mut options, &place)?;
        options.finish()?;
        Ok(Self { definition, place, replica, target, on_conflict, own_transaction, connect_timeout, timeout })
    }

    pub fn definition(&self) -> &Arc<TableDefinition> {
        &self.definition
    }

    pub fn on_conflict(&self) -> OnConflict {
        self.on_conflict
    }

    /// The table as DataFusion reads it: projection, limit and simple filters go to the database.
    pub fn provider(&self) -> BoundedTable {
        Arc::new(scan::DatabaseProvider::new(self.clone()))
    }

    fn has_own_transaction(&self) -> bool {
        self.own_transaction && matches!(self.place, Place::Postgres(_))
    }

    fn is_dead_letters(&self) -> bool {
        self.definition.is_dead_letters()
    }

    /// The table's name in the database, as messages show it.
    fn target_name(&self) -> String {
        match &self.target {
            (Some(schema), name) => format!("{schema}.{name}"),
            (None, name) => name.clone(),
        }
    }
}

fn place(definition: &TableDefinition) -> Result<Place> {
    let location = definition.location.trim();
    if location.starts_with("postgres://") || location.starts_with("postgresql://") {
        let wrong = |e: Error| e.at(definition.place.clone()).about(Part::Location);
        return Ok(Place::Postgres(Box::new(Address::parse(location).map_err(wrong)?)));
    }
    if let Some(path) = location.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.is_empty() {
            return Ok(Place::Sqlite(path.into()));
        }
    }
    let message =
        format!("location {:?} of table {} is not the address of a database", redact(location), definition.name);
    let hint = "write 'postgres://user:password@host:5432/database' or 'sqlite:path/to/file.db'";
    Err(Error::user(message).at(definition.place.clone()).about(Part::Location).hint(hint))
}

fn replica(options: &mut OptionReader, place: &Place) -> Result<Option<Box<Address>>> {
    let Some(url) = options.text("replica").map(str::trim).filter(|url| !url.is_empty()) else { return Ok(None) };
    if matches!(place, Place::Sqlite(_)) {
        return Err(options.error("replica", "is for PostgreSQL").hint("leave it out: SQLite has no replicas"));
    }
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        let error = options.error("replica", &format!("is {:?}, not the address of a database", redact(url)));
        return Err(error.hint("write 'postgres://user:password@host:5432/database'"));
    }
    let parsed = Address::parse(url);
    let wrong = |e: Error| options.error("replica", "is not understood").cause(e.line());
    Ok(Some(Box::new(parsed.map_err(wrong)?)))
}

/// The table as DataFusion reads it; see [`DatabaseTable::provider`].
///
/// # Errors
/// LOCATION or an option is not understood (user).
pub fn provider(definition: &Arc<TableDefinition>) -> Result<BoundedTable> {
    Ok(DatabaseTable::new(definition.clone())?.provider())
}

/// One sink for each database that these tables are in, and for each table with transactions of its own. Give it the
/// tables that are written to, each once.
///
/// # Errors
/// LOCATION or an option is not understood; two tables name one database by different addresses (user).
pub fn sinks(tables: &[Arc<TableDefinition>]) -> Result<Vec<Box<dyn Sink>>> {
    let mut databases: BTreeMap<String, Vec<DatabaseTable>> = BTreeMap::new();
    for definition in tables {
        let table = DatabaseTable::new(definition.clone())?;
        let database = databases.entry(sink_name(&table.place)).or_default();
        if let Some(other) = database.first()
            && other.definition.location.trim() != table.definition.location.trim()
        {
            let (one, two) = (&other.definition, &table.definition);
            let message = format!("tables {} and {} name one database by two locations", one.name, two.name);
            let hint = "write the same LOCATION in both: the rows of a batch go into one transaction; \
                        another schema is chosen by OPTIONS ('table' 'schema.name')";
            return Err(Error::user(message).at(two.place.clone()).about(Part::Location).hint(hint));
        }
        database.push(table);
    }
    let mut groups: BTreeMap<String, Vec<DatabaseTable>> = BTreeMap::new();
    for (name, tables) in databases {
        let twice = |table: &&DatabaseTable| {
            table.has_own_transaction() && tables.iter().filter(|other| other.target == table.target).count() > 1
        };
        if let Some(table) = tables.iter().find(twice) {
            let error =
                format!("table {} of the database is declared twice and has its own transactions", table.target_name());
            let error =
                Error::user(error).at(table.definition.place.clone()).about(Part::OptionValue("transaction".into()));
            return Err(error.hint("let it share, so that the order of the INSERTs is kept"));
        }
        for table in tables {
            let own = table.has_own_transaction().then(|| file_name(&format!("{name}-{}", table.definition.name)));
            groups.entry(own.unwrap_or_else(|| name.clone())).or_default().push(table);
        }
    }
    let sinks = groups.into_iter().map(|(name, tables)| match tables[0].place.clone() {
        Place::Postgres(address) => Box::new(postgres::PostgresSink::new(name, *address, tables)) as Box<dyn Sink>,
        Place::Sqlite(path) => Box::new(sqlite::SqliteSink::new(name, path, tables)),
    });
    Ok(sinks.collect())
}

/// The same for every way to write one database's address, as far as text can tell.
fn sink_name(place: &Place) -> String {
    let text = match place {
        Place::Postgres(address) => format!("postgres-{}", address.server()),
        Place::Sqlite(path) => {
            let absolute = path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone());
            format!("sqlite-{}", absolute.display())
        }
    };
    file_name(&text)
}

fn file_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect()
}

/// Quotes a name for either database.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn quoted_list<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
