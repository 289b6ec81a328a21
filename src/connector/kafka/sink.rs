//! The tables of one Kafka cluster as a sink: each wave of a batch is one transaction.
//!
//! A row is a message: all columns as a JSON object, or as an Avro record by a schema that is registered (or found) when the
//! sink is opened, before any batch is written; the key from the column that option 'key' names, and the header
//! `poundlock-id` = checkpoint's UUID, batch, when that was planned (for it may be planned anew, with other rows), INSERT and
//! row number, by which a reader can tell repeated messages apart where there are no transactions ('transactional' 'false').
//!
//! A message that the topic is too small for is refused, by its size alone, so that a replay refuses the same rows. How
//! a batch is recognised as written: see `producer`.
//!
//! Failure: what may pass is retryable and drops the producer; the next call connects anew. Being fenced by a newer
//! start is final.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use arrow::array::{Array, BinaryArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use super::client::lock;
use super::options::KafkaTable;
use super::producer::{Cluster, Messages, Session};
use super::schemas::sink_id;
use super::values::AvroTable;
use crate::connector::background::blocking;
use crate::connector::{
    Guarantee, Identity, InsertReport, InsertRows, Kept, Refusal, Sink, TableDefinition, Wave, WriteReport,
    WriteRequest, nullable,
};
use crate::format::avro::encode::AvroRows;
use crate::format::json_encode::encode_rows;
use crate::{Error, Result};

/// Name of the header that identifies a message.
pub const ID_HEADER: &str = "poundlock-id";

/// Messages between two looks at their acknowledgements.
const BREATH: usize = 1_000;

/// Times that a sink asks the markers who is newer. Two pipelines of one name would else fence each other for ever.
const FENCED_MAX: u32 = 3;

/// See the module's documentation.
pub struct KafkaSink {
    name: String,
    cluster: Arc<Cluster>,
    /// By table: those whose values are Avro.
    avro: Arc<BTreeMap<String, AvroTable>>,
    /// Of their schemas; complete once the sink is open.
    ids: Arc<BTreeMap<String, u32>>,
    kept: Option<Kept>,
    identity: Option<Identity>,
    /// No session before `open`, and after an error: then the next call connects. A call whose future was dropped goes
    /// on in the background and holds the lock; the next one waits for it: two producers would fence each other.
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    session: Option<Session>,
    /// How often a producer of ours was fenced.
    fenced: u32,
    was_connected: bool,
}

impl KafkaSink {
    /// The sinks of a program's KAFKA tables: one per cluster, told apart by their brokers.
    ///
    /// # Errors
    /// Of the user: options or types that cannot be; tables of one cluster with different properties, which would need
    /// several producers and so several transactions.
    pub fn for_tables(definitions: impl IntoIterator<Item = Arc<TableDefinition>>) -> Result<Vec<Self>> {
        let mut clusters: BTreeMap<String, Cluster> = BTreeMap::new();
        let mut avro: BTreeMap<String, AvroTable> = BTreeMap::new();
        let mut errors = vec![];
        for definition in definitions {
            match KafkaTable::try_new(definition).and_then(|table| check(&table).map(|avro| (table, avro))) {
                Err(error) => errors.push(error),
                Ok((table, own)) => {
                    avro.extend(own.map(|own| (table.definition.name.clone(), own)));
                    let mut brokers: Vec<&str> = table.brokers.split(',').collect();
                    brokers.sort_unstable();
                    let cluster = clusters
                        .entry(brokers.join(","))
                        .or_insert_with(|| Cluster { tables: BTreeMap::new(), transactional: table.transactional });
                    let differs = |other: &&KafkaTable| {
                        other.properties != table.properties || other.transactional != table.transactional
                    };
                    if let Some(other) = cluster.tables.values().find(differs) {
                        let names = format!("tables {} and {}", other.definition.name, table.definition.name);
                        errors.push(
                            Error::user(format!("{names} write to one Kafka cluster with different options"))
                                .at(table.definition.place.clone())
                                .hint("'transactional' and every 'kafka.…' must be the same: they share a transaction"),
                        );
                    }
                    cluster.tables.insert(table.definition.name.clone(), table);
                }
            }
        }
        errors.extend(same_cluster_twice(&clusters));
        if let Some(error) = Error::all(errors) {
            return Err(error);
        }
        let sink = |(brokers, cluster): (String, Cluster)| {
            let first = brokers.split(',').next().unwrap_or_default();
            let name: String =
                first.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
            let own = cluster.tables.keys().filter_map(|table| Some((table.clone(), avro.remove(table)?))).collect();
            Self {
                name: format!("kafka-{name}"),
                cluster: Arc::new(cluster),
                avro: Arc::new(own),
                ids: Arc::default(),
                kept: None,
                identity: None,
                held: Arc::default(),
            }
        };
        Ok(clusters.into_iter().map(sink).collect())
    }

    /// Runs blocking work on the session, connecting first if there is none. A session comes back only from success.
    async fn with_session<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Session, &Cluster, &Identity) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let identity = self.identity.clone();
        let identity = identity.ok_or_else(|| Error::internal("a Kafka sink is used before it was opened"))?;
        let (held, cluster) = (Arc::clone(&self.held), Arc::clone(&self.cluster));
        let work = move || {
            let mut held = lock(&held);
            let mut session = match held.session.take() {
                Some(session) => session,
                None => Session::connect(&cluster, &identity, held.fenced > 0, !held.was_connected)?,
            };
            held.was_connected = true;
            match work(&mut session, &cluster, &identity) {
                Ok(result) => {
                    held.session = Some(session);
                    Ok(result)
                }
                Err(error) => {
                    let fenced = session.is_fenced();
                    session.abandon();
                    held.fenced += u32::from(fenced);
                    // The next call asks the markers who is newer: it may be an older start, about to give up.
                    if fenced && held.fenced <= FENCED_MAX { Err(error.retryable()) } else { Err(error) }
                }
            }
        };
        blocking(work).await
    }
}

/// Two lists of brokers that share one are one cluster, whose producers would fence each other.
fn same_cluster_twice(clusters: &BTreeMap<String, Cluster>) -> Option<Error> {
    let mut known: BTreeMap<&str, &Cluster> = BTreeMap::new();
    for (brokers, cluster) in clusters {
        for broker in brokers.split(',') {
            let Some(other) = known.insert(broker, cluster) else { continue };
            let (one, two) = (other.tables.values().next()?, cluster.tables.values().next()?);
            let names = format!("tables {} and {}", one.definition.name, two.definition.name);
            let error = Error::user(format!("{names} name {broker} in different lists of brokers"));
            let error = error.at(two.definition.place.clone());
            return Some(error.hint("give all tables of one cluster the same 'brokers': they share a transaction"));
        }
    }
    None
}

/// What only a table that is written must keep: every type has a form in JSON or Avro, key and headers one as text.
fn check(table: &KafkaTable) -> Result<Option<AvroTable>> {
    let schema = &table.definition.schema;
    for column in table.key.iter().chain(&table.headers) {
        let field = schema.field(*column);
        if !can_cast_types(field.data_type(), &DataType::Utf8) {
            let message = format!("column {} of table {} has no form as text", field.name(), table.definition.name);
            return Err(Error::user(message)
                .at(table.definition.place.clone())
                .hint("the key and the headers of a message are text or bytes"));
        }
    }
    if let Some(avro) = AvroTable::of(table)? {
        avro.check(table)?;
        return Ok(Some(avro));
    }
    let columns: Vec<usize> = (0..schema.fields().len()).collect();
    encode_rows(&RecordBatch::new_empty(Arc::clone(schema)), &columns).map(|_| None).map_err(|error| {
        Error::user(format!("table {} cannot be written as JSON", table.definition.name))
            .at(table.definition.place.clone())
            .cause(error.line())
    })
}

#[async_trait]
impl Sink for KafkaSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn keep_in(&mut self, kept: Kept) {
        self.kept = Some(kept);
    }

    fn tables(&self) -> Vec<String> {
        self.cluster.tables.values().map(|table| table.definition.name.clone()).collect()
    }

    fn guarantee(&self) -> Guarantee {
        if self.cluster.transactional {
            let how = "one transaction per batch, for readers with isolation.level=read_committed; a batch is \
                recognised by an offset in the group <name>.sink, which the brokers forget after \
                offsets.retention.minutes (7 days)";
            return Guarantee { level: "exactly-once", how: how.into() };
        }
        let how = format!(
            "no transactions ('transactional' 'false'): a batch that was interrupted is written again, \
            with the same header {ID_HEADER}"
        );
        Guarantee { level: "at-least-once", how }
    }

    async fn open(&mut self, identity: &Identity) -> Result<Option<u64>> {
        self.identity = Some(identity.clone());
        let (held, avro, kept) = (Arc::clone(&self.held), Arc::clone(&self.avro), self.kept.clone());
        let ids = blocking(move || {
            *lock(&held) = Held::default();
            // One that is not compatible is told before anything is written.
            let id = |(table, own): (&String, &AvroTable)| {
                let id = sink_id(&own.options, &own.subject, &own.text, kept.as_ref());
                Ok((table.clone(), id.map_err(|error| error.of_table(table))?))
            };
            avro.iter().map(id).collect::<Result<BTreeMap<_, _>>>()
        });
        self.ids = Arc::new(ids.await?);
        // Dead letters are written last: if those of a batch are in, its rows are.
        self.with_session(|session, _, _| Ok(session.newest(Wave::Rows).max(session.newest(Wave::DeadLetters)))).await
    }

    async fn holds(&mut self, batch: u64) -> Result<bool> {
        let newest = |session: &mut Session, _: &Cluster, _: &Identity| {
            Ok(session.newest(Wave::Rows).max(session.newest(Wave::DeadLetters)))
        };
        Ok(self.with_session(newest).await?.is_some_and(|newest| newest >= batch))
    }

    async fn write(&mut self, request: &WriteRequest) -> Result<WriteReport> {
        if request.inserts.iter().all(|insert| insert.row_count() == 0) {
            // Nothing to repeat, so no marker: an idle batch costs no transaction.
            let inserts = request.inserts.iter().map(|insert| (insert.insert, InsertReport::default()));
            return Ok(WriteReport { inserts: inserts.collect(), ..WriteReport::default() });
        }
        let request = request.clone();
        let place = format!("batch {}, sink {}", request.batch, self.name);
        let avro = AvroTables { tables: Arc::clone(&self.avro), ids: Arc::clone(&self.ids) };
        let written =
            self.with_session(move |session, cluster, identity| write(session, cluster, identity, &avro, &request));
        written.await.map_err(|error| error.at(place))
    }
}

/// The tables whose values are Avro, and the ids of their schemas.
struct AvroTables {
    tables: Arc<BTreeMap<String, AvroTable>>,
    ids: Arc<BTreeMap<String, u32>>,
}

impl AvroTables {
    /// The values of a table's rows, as its format has them.
    fn encode(&self, table: &str, batch: &RecordBatch) -> Result<AvroRows> {
        let Some(avro) = self.tables.get(table) else {
            let columns: Vec<usize> = (0..batch.num_columns()).collect();
            return Ok(AvroRows { rows: encode_rows(batch, &columns)?, refused: BTreeMap::new() });
        };
        let id = self.ids.get(table).ok_or_else(|| Error::internal("a Kafka sink is used before it was opened"))?;
        avro.encoder.encode(*id, batch)
    }
}

fn write(
    session: &mut Session,
    cluster: &Cluster,
    identity: &Identity,
    avro: &AvroTables,
    request: &WriteRequest,
) -> Result<WriteReport> {
    let already = session.newest(request.wave).is_some_and(|newest| newest >= request.batch);
    let mut report = WriteReport { already, ..WriteReport::default() };
    let mut writer = Writer { identity, avro, request, limits: BTreeMap::new(), sent: 0 };
    for table in cluster.tables.values() {
        writer.limits.insert(table.topic.clone(), session.limit(&table.topic));
    }
    if already {
        // Which rows were refused follows from their values and sizes.
        writer.all(cluster, None, &mut report)?;
    } else {
        session.write(request.batch, request.wave, |messages| writer.all(cluster, Some(messages), &mut report))?;
    }
    Ok(report)
}

/// Makes the messages of one request.
struct Writer<'r> {
    identity: &'r Identity,
    avro: &'r AvroTables,
    request: &'r WriteRequest,
    limits: BTreeMap<String, usize>,
    sent: usize,
}

impl Writer<'_> {
    /// Sends every row, or, without an outbox, only measures.
    fn all(&mut self, cluster: &Cluster, mut outbox: Option<&mut Messages>, report: &mut WriteReport) -> Result<()> {
        for insert in &self.request.inserts {
            let table = cluster
                .tables
                .get(&insert.table.name)
                .ok_or_else(|| Error::internal(format!("table {} is not of this Kafka sink", insert.table.name)))?;
            let refused_before = report.refusals.len();
            let mut row = 0;
            for batch in &insert.rows {
                self.batch(table, insert, batch, row, outbox.as_deref_mut(), &mut report.refusals)?;
                row += batch.num_rows();
            }
            let refused = (report.refusals.len() - refused_before) as u64;
            report.inserts.insert(insert.insert, InsertReport { written: row as u64 - refused, conflict: 0, refused });
        }
        Ok(())
    }

    fn batch(
        &mut self,
        table: &KafkaTable,
        insert: &InsertRows,
        batch: &RecordBatch,
        first_row: usize,
        mut outbox: Option<&mut Messages>,
        refusals: &mut Vec<Refusal>,
    ) -> Result<()> {
        let AvroRows { rows: values, refused } = self.avro.encode(&table.definition.name, batch)?;
        let keys = table.key.map(|column| Texts::of(batch.column(column))).transpose()?;
        let schema = &table.definition.schema;
        let header = |column: &usize| Ok((schema.field(*column).name().as_str(), Texts::of(batch.column(*column))?));
        let headers: Vec<(&str, Texts)> = table.headers.iter().map(header).collect::<Result<_>>()?;
        let limit = self.limits.get(&table.topic).copied().unwrap_or(usize::MAX);
        let is_dead_letters = table.definition.is_dead_letters();
        let request = self.request;
        let mut id = format!("{}-{}-{}-{}-", self.identity.uuid, request.batch, request.planned_at, insert.insert);
        let prefix = id.len();
        for (index, value) in values.iter().enumerate() {
            let row = first_row + index;
            if let Some(reason) = refused.get(&index) {
                refusals.push(Refusal { insert: insert.insert, row, error: reason.clone() });
                continue;
            }
            id.truncate(prefix);
            write!(id, "{row}").map_err(|error| Error::internal("a number has no text").cause(error))?;
            let key = keys.as_ref().and_then(|keys| keys.get(index));
            let header_bytes = headers.iter().map(|(name, texts)| name.len() + texts.get(index).map_or(0, <[u8]>::len));
            let beside = key.map_or(0, <[u8]>::len) + id.len() + header_bytes.sum::<usize>();
            let short = match is_dead_letters && value.len() + beside > limit {
                true => Some(self.without_bulk(table, batch, index)?),
                false => None,
            };
            if let Some(reason) = short.as_ref().and_then(|short| short.refused.get(&0)) {
                let error = format!(
                    "the message is larger than topic {:?} takes, and without its bytes: {reason}",
                    table.topic
                );
                refusals.push(Refusal { insert: insert.insert, row, error });
                continue;
            }
            let value = short.as_ref().map_or(value, |short| short.rows.row(0));
            let size = value.len() + beside;
            let mut fits = size <= limit;
            if fits && let Some(outbox) = &mut outbox {
                let mut list = OwnedHeaders::new_with_capacity(1 + headers.len());
                list = list.insert(Header { key: ID_HEADER, value: Some(id.as_bytes()) });
                for (name, texts) in &headers {
                    list = list.insert(Header { key: name, value: texts.get(index) });
                }
                let mut message = BaseRecord::to(&table.topic).payload(value).headers(list);
                message.key = key;
                // ms: a replay's message is the same to the last byte.
                message.timestamp = Some(self.request.planned_at / 1_000);
                fits = outbox.send(message)?;
                self.sent += 1;
                if self.sent.is_multiple_of(BREATH) {
                    outbox.breathe();
                }
            }
            if !fits {
                let error = format!("the message has {size} bytes, topic {:?} takes {limit}", table.topic);
                refusals.push(Refusal { insert: insert.insert, row, error });
            }
        }
        Ok(())
    }

    /// A dead letter that the topic cannot take whole, without what makes it large: its place in the source tells where the
    /// bytes are. Better than a pipeline that stops for ever because a bad record is a big one.
    fn without_bulk(&self, table: &KafkaTable, batch: &RecordBatch, row: usize) -> Result<AvroRows> {
        let bulk = ["raw", "payload", "row_json", "error"];
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            match bulk.contains(&field.name().as_str()) {
                true => new_null_array(field.data_type(), 1),
                false => column.slice(row, 1),
            }
        });
        let short = RecordBatch::try_new(nullable(&schema), columns.collect())?;
        self.avro.encode(&table.definition.name, &short)
    }
}

/// A column as the text, or the bytes, of keys or headers.
enum Texts {
    Text(StringArray),
    Bytes(BinaryArray),
}

impl Texts {
    fn of(column: &Arc<dyn Array>) -> Result<Self> {
        let failed = || Error::internal("a key column has no form as text");
        if column.data_type() == &DataType::Binary {
            return Ok(Self::Bytes(column.as_any().downcast_ref::<BinaryArray>().ok_or_else(failed)?.clone()));
        }
        let text = cast(column, &DataType::Utf8)?;
        Ok(Self::Text(text.as_any().downcast_ref::<StringArray>().ok_or_else(failed)?.clone()))
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::Text(array) => array.is_valid(row).then(|| array.value(row).as_bytes()),
            Self::Bytes(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

#[cfg(test)]
mod tests;
