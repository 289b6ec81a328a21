//! The tables of one cluster as a sink. See the module above for how a batch comes in once.
//!
//! Failure: what may pass is retryable and leaves a part of the batch behind, which the next call writes again. Being fenced
//! by a newer start is final.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{TryStreamExt, try_unfold};

use super::bulk::{self, Outcome};
use super::chunk::{Chunks, Recipe};
use super::client::Client;
use super::mark::{INDEX, Mark};
use super::options::{Connection, ElasticsearchTable, OpType};
use crate::connector::background::blocking;
use crate::connector::{Guarantee, Identity, InsertReport, Refusal, Sink, TableDefinition, WriteReport, WriteRequest};
use crate::format::json_encode::encode_rows;
use crate::point::point;
use crate::{Error, Result};

/// Rows of one INSERT that may be refused in one batch before it is given up: beyond it something is wrong with the mapping
/// or the SQL, not with the rows.
const REFUSED_MAX: usize = 1_000;

/// See the module's documentation.
pub struct ElasticsearchSink {
    name: String,
    connection: Connection,
    /// By name.
    tables: Arc<BTreeMap<String, ElasticsearchTable>>,
    opened: Option<Opened>,
}

struct Opened {
    identity: Identity,
    client: Arc<Client>,
    mark: Mark,
}

impl ElasticsearchSink {
    /// The sinks of a program's ELASTICSEARCH tables: one per cluster, told apart by its nodes.
    ///
    /// # Errors
    /// Of the user: options or types that cannot be; tables of one cluster that are to be reached in different ways.
    pub fn for_tables(definitions: impl IntoIterator<Item = Arc<TableDefinition>>) -> Result<Vec<Self>> {
        let mut clusters: BTreeMap<String, BTreeMap<String, ElasticsearchTable>> = BTreeMap::new();
        let mut errors = vec![];
        for definition in definitions {
            match ElasticsearchTable::try_new(definition).and_then(|table| check(&table).map(|()| table)) {
                Err(error) => errors.push(error),
                Ok(table) => {
                    let tables = clusters.entry(table.connection.cluster()).or_default();
                    if let Some(other) = tables.values().find(|other| other.connection != table.connection) {
                        errors.push(different(other, &table));
                    }
                    tables.insert(table.definition.name.clone(), table);
                }
            }
        }
        if let Some(error) = Error::all(errors) {
            return Err(error);
        }
        let sink = |(cluster, tables): (String, BTreeMap<String, ElasticsearchTable>)| {
            let first = cluster.split(',').next().unwrap_or_default();
            let name: String =
                first.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
            let connection = tables.values().next()?.connection.clone();
            Some(Self { name: format!("elasticsearch-{name}"), connection, tables: Arc::new(tables), opened: None })
        };
        Ok(clusters.into_iter().filter_map(sink).collect())
    }

    fn opened(&mut self) -> Result<&mut Opened> {
        self.opened.as_mut().ok_or_else(|| Error::internal("an Elasticsearch sink is used before it was opened"))
    }

    async fn write_rows(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        let (tables, limits) = (Arc::clone(&self.tables), self.connection.bulk);
        let Opened { identity, client, mark } = self.opened()?;
        let already = mark.begin(client, identity, request.batch).await?;
        point!("elasticsearch::after_mark");
        let (uuid, version) = (identity.uuid, mark.version(request.batch));
        let recipe = Recipe { tables, request: Arc::new(request.clone()), uuid, version, limits };
        let chunks = blocking(move || Chunks::new(recipe)).await?;
        // Made one by one, as requests are done: what waits is never more than those on their way.
        let chunks = try_unfold(chunks, |mut chunks| blocking(move || Ok(chunks.next()?.map(|chunk| (chunk, chunks)))));
        let requests = chunks.map_ok(|chunk| {
            let client = Arc::clone(client);
            async move {
                let outcome = bulk::write(&client, chunk).await?;
                point!("elasticsearch::after_bulk");
                Ok(outcome)
            }
        });
        let mut outcomes = std::pin::pin!(requests.try_buffer_unordered(limits.in_flight));
        let mut sum = Outcome::default();
        while let Some(outcome) = outcomes.try_next().await? {
            sum.add(outcome);
            few_refused(request, &sum)?;
        }
        point!("elasticsearch::after_write");
        Ok(report(request, sum, already))
    }
}

/// What the connection of two tables must have in common: they share it, and the limits of what is on its way.
fn different(one: &ElasticsearchTable, two: &ElasticsearchTable) -> Error {
    let names = format!("tables {} and {}", one.definition.name, two.definition.name);
    Error::user(format!("{names} write to one Elasticsearch in different ways"))
        .at(two.definition.place.clone())
        .hint("LOCATION, user or key, 'ca_file', 'timeout', 'compression' and every 'bulk.…' must be the same")
}

/// Every type has a form in JSON.
fn check(table: &ElasticsearchTable) -> Result<()> {
    let schema = &table.definition.schema;
    let columns: Vec<usize> = (0..schema.fields().len()).collect();
    let empty = arrow::array::RecordBatch::new_empty(Arc::clone(schema));
    encode_rows(&empty, &columns).map(drop).map_err(|error| {
        Error::user(format!("table {} cannot be written as JSON", table.definition.name))
            .at(table.definition.place.clone())
            .cause(error.line())
    })
}

fn few_refused(request: &WriteRequest, sum: &Outcome) -> Result<()> {
    let over = |of: &InsertReport| of.refused > REFUSED_MAX as u64;
    let Some(insert) = request.inserts.iter().find(|rows| sum.inserts.get(&rows.insert).is_some_and(over)) else {
        return Ok(());
    };
    let first = sum.refusals.iter().find(|refusal| refusal.insert == insert.insert);
    let error = format!("more than {REFUSED_MAX} rows of one batch for table {} were refused", insert.table.name);
    Err(Error::user(error)
        .cause(first.map_or("", |refusal| refusal.error.as_str()))
        .hint("something is wrong with the mapping of the index, or with the SELECT that fills it"))
}

fn report(request: &WriteRequest, sum: Outcome, already: bool) -> WriteReport {
    let Outcome { inserts, mut refusals } = sum;
    refusals.sort_by_key(|refusal: &Refusal| (refusal.insert, refusal.row));
    let of = |rows: usize| inserts.get(&rows).copied().unwrap_or_default();
    let inserts = request.inserts.iter().map(|rows| (rows.insert, of(rows.insert))).collect();
    WriteReport { inserts, refusals, already, ..WriteReport::default() }
}

/// How each cluster of these tables is reached, once: to apply templates there.
///
/// # Errors
/// As [`ElasticsearchSink::for_tables`].
pub fn connections(definitions: impl IntoIterator<Item = Arc<TableDefinition>>) -> Result<Vec<Connection>> {
    let ours = definitions.into_iter().filter(|table| table.stored_as == "ELASTICSEARCH");
    Ok(ElasticsearchSink::for_tables(ours)?.into_iter().map(|sink| sink.connection).collect())
}

#[async_trait]
impl Sink for ElasticsearchSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn tables(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    fn guarantee(&self) -> Guarantee {
        let replaces = self.tables.values().any(|table| table.op_type == OpType::Index);
        let by_key = if replaces { "; of two batches with one key the later one stays" } else { "" };
        let how = format!(
            "a document has the same _id however often its batch is written, from the PRIMARY KEY or from its place in the \
             batch{by_key}. Documents can be searched one by one, from a moment before their batch is committed"
        );
        Guarantee { level: "exactly-once", how }
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        self.opened = None;
        let client = Arc::new(Client::new(&self.connection)?);
        let mark = Mark::take(&client, identity, &self.connection.to_string()).await?;
        let newest = mark.batch();
        tracing::debug!(sink = self.name, newest, "index {INDEX} has the mark of the pipeline");
        self.opened = Some(Opened { identity: identity.clone(), client, mark });
        Ok(newest)
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        let Opened { identity, client, mark } = self.opened()?;
        mark.refresh(client, identity).await?;
        Ok(mark.batch() >= Some(batch))
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        if request.inserts.iter().all(|insert| insert.row_count() == 0) {
            // Nothing that could be seen, so no mark: an idle batch asks nothing of the server.
            return Ok(report(request, Outcome::default(), false));
        }
        let place = format!("batch {}, sink {}", request.batch, self.name);
        self.write_rows(request).await.map_err(|error| error.at(place))
    }
}
