//! The columns of a table as Delta has them, and what its log demands of a writer and a reader.
//!
//! A column that is declared and not in the log is added to it. One that is in the log and not declared gets NULLs. One type
//! for another is an error that names both: files are never rewritten for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use deltalake_core::kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use deltalake_core::kernel::{Metadata, Protocol, StructType};
use serde_json::{Value, json};

use super::options::Maintenance;
use crate::connector::nullable;
use crate::connector::parquet::Table;
use crate::sql::insert::sql_name;
use crate::{Error, Part, Result};

/// Features of the protocol that ask nothing of a writer that only adds files and merges them.
const WRITES: &[&str] = &["appendOnly", "invariants", "timestampNtz"];
/// Of a reader: files, partition values and columns are as the plain protocol has them.
const READS: &[&str] = &["timestampNtz", "vacuumProtocolCheck", "v2Checkpoint"];

/// What Delta takes in no name of a column.
const FORBIDDEN: [char; 10] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

/// The declared columns, each of which may be NULL.
///
/// # Errors
/// Delta has no such type (user).
pub fn of(table: &Table) -> Result<StructType> {
    let definition = &table.definition;
    let declared = nullable(&definition.schema);
    for field in declared.fields() {
        if field.name().contains(FORBIDDEN) {
            let error =
                format!("column {:?} of table {} has a name that Delta does not know", field.name(), definition.name);
            let cause = "without column mapping there are no spaces, nor any of ,;{}()=, in names";
            return Err(Error::user(error).at(definition.place.clone()).cause(cause).hint("give it another name"));
        }
        let of_column = Schema::new(vec![field.as_ref().clone()]);
        let converted = (&of_column).try_into_kernel().and_then(|of: StructType| (&of).try_into_arrow());
        let converted: Result<Schema, _> = converted;
        let fits = converted.as_ref().is_ok_and(|back| same_type(back.field(0).data_type(), field.data_type()));
        if !fits {
            let error = Error::user(format!("table {} has a column that Delta cannot hold", definition.name));
            return Err(error.at(definition.place.clone()).about(Part::Type(field.name().clone())).cause(format!(
                "the type of {:?} is {}",
                field.name(),
                field.data_type()
            )));
        }
    }
    let internal = |e| Error::internal(format!("the columns of table {}", definition.name)).cause(e);
    declared.as_ref().try_into_kernel().map_err(internal)
}

/// Views, lengths and the names of what is inside lists and maps aside.
pub fn same_type(one: &DataType, two: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, LargeBinary, LargeList, LargeUtf8, List, ListView, Map, Struct, Utf8, Utf8View,
    };
    match (one, two) {
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        (List(a) | LargeList(a) | ListView(a), List(b) | LargeList(b) | ListView(b)) => {
            same_type(a.data_type(), b.data_type())
        }
        (Struct(a), Struct(b)) => {
            let same = |(a, b): (&arrow::datatypes::FieldRef, &arrow::datatypes::FieldRef)| {
                a.name() == b.name() && same_type(a.data_type(), b.data_type())
            };
            a.len() == b.len() && a.iter().zip(b).all(same)
        }
        (Map(a, _), Map(b, _)) => match (a.data_type(), b.data_type()) {
            (Struct(a), Struct(b)) => a.iter().zip(b).all(|(a, b)| same_type(a.data_type(), b.data_type())),
            _ => false,
        },
        (one, two) => one == two,
    }
}

/// Of a table that is to be made.
pub fn created(table: &Table, maintenance: &Maintenance) -> Result<(Protocol, Metadata)> {
    let schema = of(table)?;
    let mut configuration = serde_json::Map::new();
    for (key, value) in maintenance.of_new_table() {
        configuration.insert(key.into(), value.into());
    }
    let metadata = json!({
        "id": uuid::Uuid::new_v4().to_string(),
        "name": table.definition.name,
        "format": { "provider": "parquet", "options": {} },
        "schemaString": text(&schema)?,
        "partitionColumns": table.definition.partition_columns,
        "configuration": configuration,
        "createdTime": chrono::Utc::now().timestamp_millis(),
    });
    Ok((protocol(needs_ntz(&table.definition.schema), &[])?, of_json(metadata)?))
}

/// What a start changes of a table that is there.
#[derive(Debug, Default)]
pub struct Change {
    pub protocol: Option<Protocol>,
    pub metadata: Option<Metadata>,
    /// Columns that are declared and were not in the log.
    pub added: Vec<String>,
    /// Columns of the log that are not declared: NULL in what we write.
    pub absent: Vec<String>,
    /// That say something else now.
    pub properties: Vec<(&'static str, String)>,
}

/// Compares the declaration with the log.
///
/// # Errors
/// Of the user: a column of another type, other partition columns, a column that may not be NULL and is not declared; the log
/// demands what we do not do.
pub fn compare(
    table: &Table,
    maintenance: &Maintenance,
    protocol_now: &Protocol,
    metadata: &Metadata,
    logged: &StructType,
) -> Result<Change> {
    let definition = &table.definition;
    let wrong = |what: String| Error::user(what).at(definition.place.clone());
    writable(table, protocol_now, metadata, logged)?;
    same_partitions(table, metadata)?;
    let there = schema_of(logged)?;
    let (mut change, mut errors) = (Change::default(), vec![]);
    for declared in definition.schema.fields() {
        let name = declared.name();
        match there.fields().iter().find(|field| field.name().eq_ignore_ascii_case(name)) {
            None => change.added.push(name.clone()),
            Some(found) if found.name() != name => errors.push(other_case(table, name, found.name())),
            Some(found) if !same_type(found.data_type(), declared.data_type()) => {
                errors.push(other_type(table, declared, found));
            }
            Some(found) if !found.is_nullable() => errors.push(
                wrong(format!("column {name:?} of table {} is NOT NULL in its log", definition.name))
                    .cause("rows with NULL could not be written")
                    .hint("drop the constraint there"),
            ),
            Some(_) => {}
        }
    }
    for found in there.fields() {
        if definition.schema.index_of(found.name()).is_err() {
            match found.is_nullable() {
                true => change.absent.push(found.name().clone()),
                false => errors.push(
                    wrong(format!(
                        "column {:?} of table {} is NOT NULL in its log, and not declared",
                        found.name(),
                        definition.name
                    ))
                    .hint("declare it, or drop the constraint there"),
                ),
            }
        }
    }
    if let Some(error) = Error::all(errors) {
        return Err(error);
    }
    let properties = maintenance.of_old_table().into_iter();
    change.properties = properties.filter(|(key, value)| metadata.configuration().get(*key) != Some(value)).collect();
    if !change.added.is_empty() || !change.properties.is_empty() {
        let mut json = to_json(metadata)?;
        for (key, value) in &change.properties {
            json["configuration"][*key] = value.as_str().into();
        }
        if !change.added.is_empty() {
            let mut fields = to_json(logged)?;
            let declared = to_json(&of(table)?)?;
            let added = declared["fields"].as_array().into_iter().flatten();
            let added = added.filter(|field| change.added.iter().any(|name| field["name"] == **name)).cloned();
            if let Some(fields) = fields["fields"].as_array_mut() {
                fields.extend(added);
            }
            json["schemaString"] = text(&fields)?.into();
            let names = features(protocol_now, "writerFeatures")?;
            if needs_ntz(&definition.schema) && !names.contains("timestampNtz") {
                change.protocol = Some(protocol(true, &names.iter().map(String::as_str).collect::<Vec<_>>())?);
            }
        }
        change.metadata = Some(of_json(json)?);
    }
    Ok(change)
}

fn writable(table: &Table, protocol: &Protocol, metadata: &Metadata, logged: &StructType) -> Result<()> {
    let demands = to_json(protocol)?;
    let version = demands["minWriterVersion"].as_i64().unwrap_or(i64::MAX);
    let names = features(protocol, "writerFeatures")?;
    let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| !WRITES.contains(name)).collect();
    let cause = match version {
        // Invariants are the one thing of version 2 that a writer would have to check.
        ..=2 | 7 if text(&logged)?.contains("delta.invariants") => "a column of it has an invariant".to_string(),
        ..=2 => return not_mapped(table, metadata),
        7 if unknown.is_empty() => return not_mapped(table, metadata),
        7 => format!("it has the features {}", unknown.join(", ")),
        _ => format!("its writers must know version {version} of the protocol"),
    };
    let error = format!("Delta table {} demands more of a writer than poundlock does", table.definition.name);
    let hint = format!("poundlock writes version 2 of the protocol, and the features {}", WRITES.join(", "));
    Err(Error::user(error).at(table.definition.place.clone()).cause(cause).hint(hint))
}

/// # Errors
/// The log demands what we do not do (user).
pub fn readable(table: &Table, protocol: &Protocol, metadata: &Metadata) -> Result<()> {
    let version = to_json(protocol)?["minReaderVersion"].as_i64().unwrap_or(i64::MAX);
    let names = features(protocol, "readerFeatures")?;
    // Whether a file has a deletion vector, or columns another name, is looked at where it matters.
    let known = |name: &&str| READS.contains(name) || ["deletionVectors", "columnMapping"].contains(name);
    let unknown: Vec<&str> = names.iter().map(String::as_str).filter(|name| !known(name)).collect();
    let cause = match version {
        ..=3 if unknown.is_empty() => return not_mapped(table, metadata),
        ..=3 => format!("it has the features {}", unknown.join(", ")),
        _ => format!("its readers must know version {version} of the protocol"),
    };
    let error = format!("Delta table {} demands more of a reader than poundlock does", table.definition.name);
    Err(Error::user(error).at(table.definition.place.clone()).cause(cause))
}

/// Whether a reader may take the log's columns for the declared ones. One that is not in the log is NULL.
///
/// # Errors
/// A column of another type, other partition columns (user).
pub fn fits(table: &Table, metadata: &Metadata, logged: &StructType) -> Result<()> {
    let (declared, there) = (&table.definition, schema_of(logged)?);
    same_partitions(table, metadata)?;
    let errors = declared.schema.fields().iter().filter_map(|field| {
        let found = there.fields().iter().find(|found| found.name().eq_ignore_ascii_case(field.name()))?;
        match () {
            () if found.name() != field.name() => Some(other_case(table, field.name(), found.name())),
            () => (!same_type(found.data_type(), field.data_type())).then(|| other_type(table, field, found)),
        }
    });
    Error::all(errors.collect()).map_or(Ok(()), Err)
}

fn schema_of(logged: &StructType) -> Result<Schema> {
    let internal = |e| Error::external("the schema of a Delta table cannot be read").cause(e);
    logged.try_into_arrow().map_err(internal)
}

fn same_partitions(table: &Table, metadata: &Metadata) -> Result<()> {
    let (there, declared) = (metadata.partition_columns(), &table.definition.partition_columns);
    if there == declared {
        return Ok(());
    }
    Err(Error::user(format!("table {} is partitioned otherwise than declared", table.definition.name))
        .at(table.definition.place.clone())
        .cause(format!("by {there:?} in its log, by {declared:?} in its declaration"))
        .hint(
            "the partition columns of a Delta table cannot change: declare them as they are, or give another LOCATION",
        ))
}

fn other_case(table: &Table, declared: &str, found: &str) -> Error {
    Error::user(format!("column {declared:?} of table {} is {found:?} in its log", table.definition.name))
        .at(table.definition.place.clone())
        .hint("Delta tells no two names apart by their case: declare it as it is there, in double quotes")
}

fn other_type(table: &Table, declared: &Field, found: &Field) -> Error {
    let (name, of) = (declared.name(), &table.definition);
    Error::user(format!("column {name:?} of table {} is of another type in its log", of.name))
        .at(of.place.clone())
        .about(Part::Type(name.clone()))
        .cause(format!(
            "{} in the log, {} in its declaration",
            sql_name(found.data_type()),
            sql_name(declared.data_type())
        ))
        .hint("declare it as it is there, or cast under another name")
}

fn not_mapped(table: &Table, metadata: &Metadata) -> Result<()> {
    match metadata.configuration().get("delta.columnMapping.mode").map(String::as_str) {
        None | Some("none") => Ok(()),
        Some(mode) => {
            Err(Error::user(format!("Delta table {} has other names for columns in its files", table.definition.name))
                .at(table.definition.place.clone())
                .cause(format!("delta.columnMapping.mode is {mode:?}, which poundlock does not know")))
        }
    }
}

fn features(protocol: &Protocol, of: &str) -> Result<BTreeSet<String>> {
    let json = to_json(protocol)?;
    let names = json[of].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(names.map(str::to_string).collect())
}

/// The plainest protocol that fits, with features that are there already.
fn protocol(ntz: bool, features: &[&str]) -> Result<Protocol> {
    if !ntz {
        return of_json(json!({ "minReaderVersion": 1, "minWriterVersion": 2 }));
    }
    // What version 2 stands for must be named from version 7 on.
    let mut writer: BTreeSet<&str> = ["appendOnly", "invariants", "timestampNtz"].into();
    writer.extend(features);
    of_json(json!({
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": ["timestampNtz"],
        "writerFeatures": writer,
    }))
}

fn needs_ntz(schema: &Schema) -> bool {
    fn holds(data_type: &DataType) -> bool {
        match data_type {
            DataType::Timestamp(_, zone) => zone.is_none(),
            DataType::Struct(fields) => fields.iter().any(|field| holds(field.data_type())),
            DataType::List(field) | DataType::LargeList(field) | DataType::Map(field, _) => holds(field.data_type()),
            _ => false,
        }
    }
    schema.fields().iter().any(|field| holds(field.data_type()))
}

fn to_json(of: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(of).map_err(|e| Error::internal("an action of a Delta log").cause(e))
}

fn of_json<T: serde::de::DeserializeOwned>(json: Value) -> Result<T> {
    serde_json::from_value(json).map_err(|e| Error::internal("an action of a Delta log").cause(e))
}

fn text(of: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(of).map_err(|e| Error::internal("an action of a Delta log").cause(e))
}

/// The columns of the log that are in the files, as Arrow has them.
pub fn of_files(logged: &StructType, partition_columns: &[String]) -> Result<Arc<Schema>> {
    let all = schema_of(logged)?;
    let fields = all.fields().iter().filter(|field| !partition_columns.contains(field.name()));
    Ok(nullable(&Schema::new(fields.cloned().collect::<Vec<_>>())))
}
