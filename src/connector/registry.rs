//! Which connector a table belongs to: the one list of what `STORED AS` can be.

use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::catalog::Session;
use uuid::Uuid;

use super::database::{self, DatabaseTable, OnConflict};
use super::delta::{self, DeltaSink};
use super::elasticsearch::{ElasticsearchSink, ElasticsearchTable, OpType};
use super::kafka::{self, KafkaSink, KafkaSourceTable, KafkaTable};
use super::parquet::{self, ParquetSink, Visible};
use super::{BoundedTable, Delivery, Sink, SourceTable, TableDefinition, file};
use crate::{Error, Part, Result};

/// Kinds of tables that take rows.
const WRITTEN: &[&str] = &["DATABASE", "KAFKA", "PARQUET", "DELTA", "ELASTICSEARCH"];

/// Checks a table's location and options without connecting to anything.
///
/// # Errors
/// An option is missing, not understood, or not known.
pub fn check(table: &Arc<TableDefinition>) -> Result<()> {
    match table.stored_as.as_str() {
        "KAFKA" if table.unbounded => KafkaTable::try_new(Arc::clone(table))?.check_as_source(),
        "KAFKA" => KafkaTable::try_new(Arc::clone(table)).map(drop),
        "DATABASE" => DatabaseTable::new(Arc::clone(table)).map(drop),
        "PARQUET" => ParquetSink::for_tables(std::slice::from_ref(table)).map(drop),
        "DELTA" => DeltaSink::for_tables(std::slice::from_ref(table)).map(drop),
        "ELASTICSEARCH" => ElasticsearchTable::try_new(Arc::clone(table)).map(drop),
        _ => file::check(table),
    }
}

/// Whether a row written again under its key replaces the older one: what an open window may be written to.
pub fn is_keyed(table: &Arc<TableDefinition>) -> bool {
    match table.stored_as.as_str() {
        "DATABASE" => {
            DatabaseTable::new(Arc::clone(table)).is_ok_and(|table| table.on_conflict() == OnConflict::Update)
        }
        "ELASTICSEARCH" => {
            ElasticsearchTable::try_new(Arc::clone(table)).is_ok_and(|table| table.op_type == OpType::Index)
        }
        _ => false,
    }
}

/// Whether its rows can be had back.
pub fn is_readable(table: &TableDefinition) -> bool {
    table.stored_as != "ELASTICSEARCH"
}

/// The same table, read where it is written and not from a replica.
pub fn primary(table: &TableDefinition) -> TableDefinition {
    let mut primary = table.clone();
    primary.options.remove("replica");
    primary
}

/// Whether a program that writes it may read it as well: what a batch wrote can be read as soon as it is committed.
pub fn is_read_back(table: &TableDefinition) -> bool {
    let later = table.options.get("delivery").is_some_and(|delivery| delivery != "required");
    table.stored_as == "DATABASE" && !later && !table.is_dead_letters()
}

/// Whether the table is a folder of files, every one of them its own. Readers take what is there of a batch for whole as soon as
/// the batch is committed, here or elsewhere, so a batch that has begun here cannot be committed without this table.
pub fn is_lake(table: &TableDefinition) -> bool {
    matches!(table.stored_as.as_str(), "PARQUET" | "DELTA")
}

/// The sinks of the tables that are written, one for each system. Nothing is opened yet.
///
/// # Errors
/// As [`check`]; a kind of table that cannot be written.
pub fn sinks(tables: &[Arc<TableDefinition>]) -> Result<Vec<Box<dyn Sink>>> {
    let of = |kind: &str| tables.iter().filter(|t| t.stored_as == kind).cloned().collect::<Vec<_>>();
    let mut sinks = database::sinks(&of("DATABASE"))?;
    let boxed = |sink| Box::new(sink) as Box<dyn Sink>;
    sinks.extend(KafkaSink::for_tables(of("KAFKA"))?.into_iter().map(boxed));
    sinks.extend(ParquetSink::for_tables(&of("PARQUET"))?.into_iter().map(|sink| Box::new(sink) as Box<dyn Sink>));
    sinks.extend(DeltaSink::for_tables(&of("DELTA"))?.map(|sink| Box::new(sink) as Box<dyn Sink>));
    parquet::folders_of_their_own(tables)?;
    let of_elasticsearch = ElasticsearchSink::for_tables(of("ELASTICSEARCH"))?;
    sinks.extend(of_elasticsearch.into_iter().map(|sink| Box::new(sink) as Box<dyn Sink>));
    match tables.iter().find(|t| !WRITTEN.contains(&t.stored_as.as_str())) {
        Some(table) => {
            let error =
                Error::user(format!("table {} is STORED AS {}, which is only read", table.name, table.stored_as));
            Err(error
                .at(table.place.clone())
                .about(Part::StoredAs)
                .hint("write to PARQUET, DELTA, DATABASE, KAFKA or ELASTICSEARCH"))
        }
        None => sinks.iter().try_for_each(|sink| same_delivery(sink.as_ref(), tables)).map(|()| sinks),
    }
}

/// Whether batches wait for a sink of [`sinks`]: all its tables say the same.
pub fn delivery(sink: &dyn Sink, tables: &[Arc<TableDefinition>]) -> Delivery {
    let own = sink.tables();
    let is_outbox = tables.iter().any(|table| own.contains(&table.name) && table.delivery() == Delivery::Outbox);
    if is_outbox { Delivery::Outbox } else { Delivery::Required }
}

/// A system takes the rows of a batch together, and knows of one last batch: it cannot be ahead with some of its tables.
fn same_delivery(sink: &dyn Sink, tables: &[Arc<TableDefinition>]) -> Result<()> {
    let own = sink.tables();
    let of = |delivery| tables.iter().find(|table| own.contains(&table.name) && table.delivery() == delivery);
    let (Some(required), Some(outbox)) = (of(Delivery::Required), of(Delivery::Outbox)) else { return Ok(()) };
    let error =
        format!("tables {} and {} are of one system, which only one has an outbox for", required.name, outbox.name);
    let hint = match outbox.stored_as.as_str() {
        "DATABASE" => {
            "give both the same 'delivery'; or, in PostgreSQL, the table with the outbox 'transaction' 'own': then it is a sink by itself"
        }
        _ => "give all tables of one cluster the same 'delivery'",
    };
    Err(Error::user(error).at(outbox.place.clone()).about(Part::OptionValue("delivery".into())).hint(hint))
}

/// # Errors
/// As [`check`]; a kind of table that is not unbounded.
pub fn source(table: &Arc<TableDefinition>) -> Result<Box<dyn SourceTable>> {
    match table.stored_as.as_str() {
        "KAFKA" => Ok(Box::new(KafkaSourceTable::try_new(Arc::clone(table))?)),
        other => Err(Error::user(format!("table {} is STORED AS {other}, which has an end", table.name))),
    }
}

/// The same table, read for the bytes of its records alone, `_raw`: nothing is decoded, nor asked for.
///
/// # Errors
/// As [`source`].
pub fn raw_source(table: &TableDefinition) -> Result<Box<dyn SourceTable>> {
    let mut own = table.clone();
    let raw = own.schema.fields().iter().filter(|field| field.name() == "_raw").cloned();
    own.schema = Arc::new(Schema::new(raw.collect::<Vec<_>>()));
    // They name columns, and have no effect on a source.
    own.options.retain(|name, _| name != "key" && name != "headers");
    source(&Arc::new(own))
}

/// The table as it is now, to its end. `pipeline` is the pipeline that writes it, with its last committed batch: of its
/// Parquet files only those that are committed count.
///
/// # Errors
/// As [`check`]; the folder cannot be listed.
pub async fn bounded(
    table: &Arc<TableDefinition>,
    session: &dyn Session,
    pipeline: Option<(Uuid, Option<u64>)>,
) -> Result<BoundedTable> {
    match table.stored_as.as_str() {
        "KAFKA" => kafka::bounded_table(Arc::clone(table)),
        "DATABASE" => database::provider(table),
        "ELASTICSEARCH" => {
            let error = format!("table {} is STORED AS ELASTICSEARCH, which is only written", table.name);
            let error = Error::user(error).at(table.place.clone()).about(Part::StoredAs);
            Err(error.hint("ask Elasticsearch itself: POST /<index>/_search"))
        }
        "PARQUET" => {
            let visible = match pipeline {
                Some((pipeline, last)) => Visible::Committed { pipeline, last },
                None => Visible::All,
            };
            parquet::provider(table, visible, session).await
        }
        "DELTA" => delta::provider(table, session).await,
        _ => file::provider(table, session).await,
    }
}
