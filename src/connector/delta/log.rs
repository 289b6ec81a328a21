//! The log of one table: what it says, and entries put on top of it.
//!
//! ```text
//! open(E)    read the log; a higher epoch of this pipeline: fenced. Else an entry: txn (UUID-epoch, E)
//! commit     entry V+1 = put if absent ─▶ there already? read it and what follows, look at each, and try behind them
//! ```
//!
//! What is looked at in entries of others: a newer start of this pipeline (we are fenced), the batch that is to be
//! written (it is in), files that were to be replaced (the merge is given up), another schema (the table is opened anew). All else,
//! files that others add or remove, does not concern rows that are only added.
//!
//! So one entry costs one put, however large the table is, and an entry stands only on entries that were read. One thing must
//! be ruled out: that the entry at V+1 was removed as superfluous, so that its place looked free. Entries are removed only
//! after a checkpoint of a later one is named in `_last_checkpoint`, whoever removes them and whatever the clocks say. So that is
//! read after each put: if it names an entry as late as ours, nobody may ever see ours, and the log is read anew.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use deltalake_core::kernel::transaction::{CommitData, TransactionError};
use deltalake_core::kernel::{Action, Add, LogicalFileView, Metadata, Remove, Transaction, Version};
use deltalake_core::logstore::{CommitOrBytes, LogStoreRef, StorageConfig, default_logstore, get_actions};
use deltalake_core::protocol::DeltaOperation;
use deltalake_core::table::state::DeltaTableState;
use deltalake_core::{DeltaTable as LoadedTable, DeltaTableError};
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use reqwest::Url;
use serde_json::{Value, json};
use uuid::Uuid;

use super::options::Maintenance;
use super::writer::{Shape, Writer};
use super::{failed, schema};
use crate::checkpoint::durable::create_folders;
use crate::checkpoint::trouble::explained;
use crate::connector::Identity;
use crate::connector::background::blocking;
use crate::connector::parquet::Table;
use crate::{Error, Result};

/// Times that an entry's place is taken by others before it is tried later.
const RACES_MAX: u32 = 50;

/// Where a table and its log are. Every path of it goes through our own storage, which fsyncs.
pub fn store_of(table: &Table) -> Result<LogStoreRef> {
    let location = &table.location;
    let url = match &location.local {
        Some(folder) => Url::from_directory_path(folder).ok(),
        None => Url::parse(location.url.as_str()).ok().and_then(|mut url| {
            url.path_segments_mut().ok()?.pop_if_empty().extend(location.path.parts()).push("");
            Some(url)
        }),
    };
    let url = url.ok_or_else(|| table.failed("find").cause("its LOCATION is no URL"))?;
    let within: Arc<dyn ObjectStore> = Arc::new(PrefixStore::new(Arc::clone(&location.store), location.path.clone()));
    Ok(default_logstore(within, Arc::clone(&location.store), &url, &StorageConfig::default()))
}

/// As it is now; `None`: there is no log.
pub async fn load(table: &Table, store: &LogStoreRef) -> Result<Option<DeltaTableState>> {
    // To deltalake a missing folder is an error, and a loud one.
    if table.location.local.as_ref().is_some_and(|folder| !folder.is_dir()) {
        return Ok(None);
    }
    let mut loaded = LoadedTable::new(Arc::clone(store));
    match loaded.load().await {
        Ok(()) => {}
        Err(DeltaTableError::NotATable(_)) => return Ok(None),
        Err(error) => return Err(failed(table, "read the log of", &error).retryable()),
    }
    loaded.snapshot().cloned().map(Some).map_err(|error| failed(table, "read the log of", &error))
}

/// The files that count.
pub fn files(table: &Table, state: &DeltaTableState) -> Result<Vec<LogicalFileView>> {
    let listed = state.snapshot().try_log_data().map_err(|error| failed(table, "read the log of", &error))?;
    Ok(listed.iter().collect())
}

/// A table's log, as far as this start has looked.
#[derive(Debug, Clone)]
pub struct Log {
    table: Arc<Table>,
    store: LogStoreRef,
    writer: Writer,
    /// The newest entry that was looked at.
    version: Version,
    /// The newest batch of this pipeline.
    batch: Option<u64>,
    shape: Shape,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    /// The batch was in already.
    Already,
    /// A file that was to be replaced is gone.
    Overtaken,
}

/// What became of an attempt to put an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    Done,
    /// The place is taken.
    Taken,
    /// It is there, and a checkpoint too that is as late: see the module's documentation.
    Doubtful,
}

/// Files that are to be replaced, and by which.
struct Merge {
    removed: BTreeSet<String>,
    added: String,
}

/// What entries mean for a merge; what is later in the list counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Nothing,
    /// A file that was to be replaced was removed.
    Gone,
    /// It is in.
    Ours,
}

impl Log {
    /// Makes the table if there is none, fits its log to the declaration, and keeps older starts out.
    ///
    /// # Errors
    /// See [`schema::compare`]; a newer start is there (external); another checkpoint of the same name wrote here, and we were
    /// not told to take over (user); the storage's.
    pub async fn open(table: &Arc<Table>, maintenance: &Maintenance, identity: &Identity) -> Result<Self> {
        let store = store_of(table)?;
        let writer = Writer::new(identity);
        let mut told = false;
        for _ in 0..RACES_MAX {
            let Some(state) = load(table, &store).await? else {
                if create(table, maintenance, &store, &writer).await? {
                    tracing::info!(table = table.definition.name, "made the Delta table");
                }
                continue;
            };
            let transaction = async |app: String| {
                let found = state.transaction_version(store.as_ref(), app).await;
                found.map_err(|error| failed(table, "read the log of", &error).retryable())
            };
            let epoch = transaction(writer.epochs()).await?;
            if let Some(newer) = epoch.filter(|epoch| *epoch > signed(writer.epoch)) {
                return Err(writer.fenced(newer, table));
            }
            let batch = transaction(writer.batches()).await?.and_then(|batch| u64::try_from(batch).ok());
            let mut log = Self {
                table: Arc::clone(table),
                store: Arc::clone(&store),
                writer: writer.clone(),
                version: state.version(),
                batch,
                shape: Shape::of(state.metadata(), &writer)?,
            };
            let mut change = schema::compare(table, maintenance, state.protocol(), state.metadata(), &state.schema())?;
            let owner = state.metadata().configuration().get(&writer.property()).cloned();
            let ours = writer.pipeline.to_string();
            if owner.as_ref() != Some(&ours) {
                if let Some(other) = owner.filter(|_| !told) {
                    identity.succeed(&other, &format!("table {}", table.definition.name))?;
                    told = true;
                }
                let metadata = change.metadata.take().unwrap_or_else(|| state.metadata().clone());
                change.metadata = Some(with_property(metadata, &writer.property(), &ours)?);
            }
            if epoch == Some(signed(writer.epoch)) && change.metadata.is_none() {
                return Ok(log);
            }
            if let Some(metadata) = &change.metadata {
                log.shape = Shape::of(metadata, &writer)?;
            }
            let mut actions: Vec<Action> = change.protocol.map(Into::into).into_iter().collect();
            actions.extend(change.metadata.map(Action::from));
            let properties = HashMap::from([("poundlock.epoch".to_string(), writer.epoch.to_string())]);
            let started = DeltaOperation::SetTableProperties { properties };
            let entry = entry(table, actions, started, vec![writer.epoch_transaction()], Value::Null)?;
            // Only where the log was read: what others have put meanwhile must be compared too.
            if log.put(entry).await? == Put::Done {
                for column in &change.added {
                    tracing::info!(table = table.definition.name, column, "added to the Delta table");
                }
                for (property, value) in &change.properties {
                    tracing::info!(table = table.definition.name, property, value, "set a property of the Delta table");
                }
                for column in &change.absent {
                    tracing::warn!(
                        table = table.definition.name,
                        column,
                        "is in the Delta table and not declared: it gets NULL"
                    );
                }
                return Ok(log);
            }
        }
        Err(table.failed("open").cause("its log changes all the time").retryable())
    }

    pub fn store(&self) -> &LogStoreRef {
        &self.store
    }

    /// The newest batch of this pipeline that is in.
    pub fn batch(&self) -> Option<u64> {
        self.batch
    }

    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Stands on a state that was just read. `false`: a newer start is there, and this one's time is over.
    ///
    /// # Errors
    /// The storage's.
    pub async fn stand_on(&mut self, state: &DeltaTableState) -> Result<bool> {
        let epoch = state.transaction_version(self.store.as_ref(), self.writer.epochs()).await;
        let epoch = epoch.map_err(|error| failed(&self.table, "read the log of", &error).retryable())?;
        self.version = state.version();
        Ok(epoch <= Some(signed(self.writer.epoch)))
    }

    /// The entry that `_last_checkpoint` names, if there is one: of those before it any may be gone.
    ///
    /// # Errors
    /// The storage's.
    pub async fn last_checkpoint(&self) -> Result<Option<Version>> {
        let path = self.store.log_path().clone().join("_last_checkpoint");
        let failed = |e: object_store::Error| explained(self.table.failed("read the log of"), &e);
        let found = match self.store.object_store(None).get(&path).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(failed)?.bytes().await.map_err(failed)?,
        };
        let said: Value = serde_json::from_slice(&found).unwrap_or_default();
        match said["version"].as_u64() {
            Some(version) => Ok(Some(version)),
            None => {
                Err(self.table.failed("read the log of").cause("its _last_checkpoint names no version").retryable())
            }
        }
    }

    /// Puts the files of a batch into the table, with the batch's number.
    ///
    /// # Errors
    /// A newer start is there (external); the table's schema has changed (external, retryable: it is to be opened anew);
    /// the storage's.
    pub async fn add(&mut self, batch: u64, files: Vec<Action>, rows: u64) -> Result<Outcome> {
        let operation = DeltaOperation::StreamingUpdate {
            output_mode: deltalake_core::protocol::OutputMode::Append,
            query_id: self.writer.pipeline.to_string(),
            epoch_id: signed(batch),
        };
        let metrics = json!({ "numAddedFiles": files.len(), "numOutputRows": rows });
        let transaction = Transaction::new(self.writer.batches(), signed(batch));
        let entry = entry(&self.table, files, operation, vec![transaction], metrics)?;
        self.commit(entry, Some(batch), None).await
    }

    /// Replaces files by one with the same rows.
    ///
    /// # Errors
    /// As [`Log::add`].
    pub async fn replace(&mut self, removed: Vec<Remove>, added: Add, target_size: u64) -> Result<Outcome> {
        let merge =
            Merge { removed: removed.iter().map(|file| file.path.clone()).collect(), added: added.path.clone() };
        let metrics = json!({ "numRemovedFiles": removed.len(), "numAddedFiles": 1 });
        let operation = DeltaOperation::Optimize { predicate: None, target_size: signed(target_size) };
        let actions = removed.into_iter().map(Action::from).chain([added.into()]).collect();
        let entry = entry(&self.table, actions, operation, vec![], metrics)?;
        self.commit(entry, None, Some(&merge)).await
    }

    async fn commit(&mut self, entry: CommitOrBytes, batch: Option<u64>, merge: Option<&Merge>) -> Result<Outcome> {
        for _ in 0..RACES_MAX {
            if batch.is_some() && self.batch >= batch {
                return Ok(Outcome::Already);
            }
            match self.put(entry.clone()).await? {
                Put::Done => {
                    self.batch = batch.or(self.batch);
                    return Ok(Outcome::Committed);
                }
                Put::Taken => {}
                // Whether it is seen says the log, read anew.
                Put::Doubtful if batch.is_some() => {
                    self.read_anew().await?;
                    match self.batch >= batch {
                        true => return Ok(Outcome::Committed),
                        false => continue,
                    }
                }
                Put::Doubtful => {
                    return Err(self.table.failed("write to").cause("its log has gone on meanwhile").retryable());
                }
            }
            match self.look(merge).await? {
                Seen::Nothing => {}
                Seen::Ours => return Ok(Outcome::Committed),
                Seen::Gone => return Ok(Outcome::Overtaken),
            }
        }
        Err(self.table.failed("write to").cause("its log changes all the time").retryable())
    }

    async fn read_anew(&mut self) -> Result<()> {
        let Some(state) = load(&self.table, &self.store).await? else {
            return Err(self.table.failed("write to").cause("its log is gone").retryable());
        };
        if Shape::of(state.metadata(), &self.writer)? != self.shape {
            return Err(self.changed());
        }
        if !self.stand_on(&state).await? {
            return Err(self.table.failed("write to").cause("a newer start is there").retryable());
        }
        let batch = state.transaction_version(self.store.as_ref(), self.writer.batches()).await;
        let batch = batch.map_err(|error| failed(&self.table, "read the log of", &error).retryable())?;
        self.batch = batch.and_then(|batch| u64::try_from(batch).ok());
        Ok(())
    }

    fn changed(&self) -> Error {
        let cause = "another program has changed its schema, or who writes it";
        self.table.failed("write to").cause(cause).retryable()
    }

    async fn put(&mut self, entry: CommitOrBytes) -> Result<Put> {
        let version = self.version + 1;
        match self.store.write_commit_entry(version, entry, Uuid::nil()).await {
            // See the module's documentation.
            Ok(()) if self.last_checkpoint().await? >= Some(version) => Ok(Put::Doubtful),
            Ok(()) => {
                self.version = version;
                Ok(Put::Done)
            }
            Err(TransactionError::VersionAlreadyExists(_)) => Ok(Put::Taken),
            Err(error) => Err(failed(&self.table, "write the log of", &error.into())),
        }
    }

    /// Reads the entries that were put meanwhile, and what they mean for a merge.
    async fn look(&mut self, merge: Option<&Merge>) -> Result<Seen> {
        let mut seen = Seen::Nothing;
        loop {
            let version = self.version + 1;
            let failed = |error| failed(&self.table, "read the log of", &error);
            let Some(bytes) = self.store.read_commit_entry(version).await.map_err(|e| failed(e).retryable())? else {
                return Ok(seen);
            };
            let actions = get_actions(version, &bytes).map_err(failed)?;
            // A newer start may have changed the schema, too: that it is newer says more.
            let transactions = actions.iter().filter_map(|action| match action {
                Action::Txn(transaction) => Some(transaction),
                _ => None,
            });
            for transaction in transactions {
                if transaction.app_id == self.writer.epochs() && transaction.version > signed(self.writer.epoch) {
                    return Err(self.writer.fenced(transaction.version, &self.table));
                }
                if transaction.app_id == self.writer.batches() {
                    self.batch = self.batch.max(u64::try_from(transaction.version).ok());
                }
            }
            for action in &actions {
                match (action, merge) {
                    (Action::Metadata(metadata), _) if Shape::of(metadata, &self.writer)? == self.shape => {}
                    (Action::Metadata(_) | Action::Protocol(_), _) => return Err(self.changed()),
                    // A put that was tried again below us finds its own entry.
                    (Action::Add(add), Some(merge)) if add.path == merge.added => seen = Seen::Ours,
                    (Action::Remove(remove), Some(merge)) if merge.removed.contains(&remove.path) => {
                        seen = seen.max(Seen::Gone);
                    }
                    _ => {}
                }
            }
            self.version = version;
        }
    }
}

/// The first entry. `false`: somebody else has made the table.
async fn create(table: &Table, maintenance: &Maintenance, store: &LogStoreRef, writer: &Writer) -> Result<bool> {
    if let Some(folder) = table.location.local.clone() {
        let made = blocking(move || Ok(create_folders(&folder))).await?;
        made.map_err(|e| table.failed("make").cause(e).hint("let the pipeline's user write there"))?;
    }
    empty(table).await?;
    let (protocol, metadata) = schema::created(table, maintenance)?;
    let metadata = with_property(metadata, &writer.property(), &writer.pipeline.to_string())?;
    let operation = DeltaOperation::Create {
        mode: deltalake_core::protocol::SaveMode::ErrorIfExists,
        location: store.root_url().clone(),
        protocol: protocol.clone(),
        metadata: metadata.clone(),
    };
    let transactions = vec![writer.epoch_transaction()];
    let entry = entry(table, vec![protocol.into(), metadata.into()], operation, transactions, Value::Null)?;
    match store.write_commit_entry(0, entry, Uuid::nil()).await {
        Ok(()) => Ok(true),
        Err(TransactionError::VersionAlreadyExists(_)) => Ok(false),
        Err(error) => Err(failed(table, "make", &error.into())),
    }
}

/// # Errors
/// There are files that a new log would not count (user).
async fn empty(table: &Table) -> Result<()> {
    use futures::TryStreamExt;
    let mut listing = table.location.store.list(Some(&table.location.path));
    while let Some(object) = listing.try_next().await.map_err(|e| explained(table.failed("list"), &e))? {
        if object.location.as_ref().ends_with(".parquet") {
            return Err(Error::user(format!("the folder of table {} has Parquet files and no Delta log", table.definition.name))
                .at(table.definition.place.clone())
                .about(crate::Part::Location)
                .cause(format!("the first is {}", table.location.describe(&object.location)))
                .hint("give the table a folder of its own; to take the rows along, INSERT them from a table STORED AS PARQUET"));
        }
    }
    Ok(())
}

fn entry(
    table: &Table,
    actions: Vec<Action>,
    operation: DeltaOperation,
    transactions: Vec<Transaction>,
    metrics: Value,
) -> Result<CommitOrBytes> {
    let append = matches!(operation, DeltaOperation::StreamingUpdate { .. });
    let mut about = HashMap::from([("isBlindAppend".to_string(), append.into())]);
    about.insert("writer".into(), concat!("poundlock ", env!("CARGO_PKG_VERSION")).into());
    if !metrics.is_null() {
        about.insert("operationMetrics".into(), metrics);
    }
    let data = CommitData::new(actions, operation, about, transactions);
    let bytes = data.get_bytes().map_err(|error| failed(table, "write the log of", &error.into()))?;
    Ok(CommitOrBytes::LogBytes(bytes))
}

fn with_property(metadata: Metadata, key: &str, value: &str) -> Result<Metadata> {
    let internal = |e: serde_json::Error| Error::internal("the metadata of a Delta table").cause(e);
    let mut json = serde_json::to_value(&metadata).map_err(internal)?;
    json["configuration"][key] = value.into();
    serde_json::from_value(json).map_err(internal)
}

/// Delta counts with signs.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// ms since 1970, UTC.
pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}
