//! CSV and JSON files as tables: dimensions and samples, read-only, with the schema that is declared.
//!
//! CSV columns are taken by position, as everywhere in DataFusion; so where a file has a header its names must be the
//! declared ones, in order: a swapped column is an error and not wrong data. JSON is one object per line, by name.

use std::io::Cursor;
use std::sync::Arc;

use arrow::csv::reader::Format;
use datafusion::catalog::Session;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt};

use super::{BoundedTable, OptionDoc, OptionReader, TableDefinition, redact};
use crate::checkpoint::trouble::explained;
use crate::checkpoint::{Location, s3};
use crate::{Error, Result};

/// Of `STORED AS CSV`.
pub const CSV_OPTIONS: &[OptionDoc] = &[
    ("header", "`true` (default): the first line has the declared names, in their order; `false`: there is none"),
    ("delimiter", "one ASCII character, or `\\t`; default `,`"),
    ("quote", "one ASCII character; default `\"`"),
    ("newlines_in_values", "`true` or `false` (default): whether a quoted value may go over several lines"),
];

/// Of `STORED AS JSON`: it has none of its own.
pub const JSON_OPTIONS: &[OptionDoc] = &[];

/// A header is within so many bytes.
const HEADER_BYTES: u64 = 64 * 1024;

/// A table of files, its options read and checked.
struct FileTable {
    location: Location,
    /// `None`: JSON.
    csv: Option<Csv>,
}

#[derive(Clone, Copy)]
struct Csv {
    header: bool,
    delimiter: u8,
    quote: u8,
    newlines_in_values: bool,
}

impl FileTable {
    fn try_new(definition: &TableDefinition) -> Result<Self> {
        let wrong = |what: String| Error::user(what).at(definition.place.clone());
        let location = Location::of_table(definition)?;
        if !definition.partition_columns.is_empty() {
            return Err(wrong(format!("table {} cannot be partitioned: only Parquet tables can", definition.name)));
        }
        let (csv, options) = match definition.stored_as.as_str() {
            "CSV" => {
                let mut options = OptionReader::new(definition, CSV_OPTIONS).and(s3::OPTIONS);
                let csv = Csv {
                    header: options.word("header", &["true", "false"], "true")? == "true",
                    delimiter: byte(&mut options, "delimiter", b',')?,
                    quote: byte(&mut options, "quote", b'"')?,
                    newlines_in_values: options.word("newlines_in_values", &["true", "false"], "false")? == "true",
                };
                (Some(csv), options)
            }
            "JSON" => (None, OptionReader::new(definition, JSON_OPTIONS).and(s3::OPTIONS)),
            other => {
                let error = format!("table {} is stored as {other}, which is no file format here", definition.name);
                return Err(wrong(error));
            }
        };
        options.finish()?;
        Ok(Self { location, csv })
    }

    /// What the names of its files end in.
    fn extension(&self) -> &'static str {
        if self.csv.is_some() { ".csv" } else { ".json" }
    }

    fn format(&self, session: &dyn Session) -> Arc<dyn FileFormat> {
        let Some(csv) = self.csv else { return Arc::new(JsonFormat::default()) };
        let format = CsvFormat::default()
            .with_options(session.default_table_options().csv)
            .with_has_header(csv.header)
            .with_delimiter(csv.delimiter)
            .with_quote(csv.quote)
            .with_newlines_in_values(csv.newlines_in_values);
        Arc::new(format)
    }

    /// How the header is read; `None`: there is none.
    fn header(&self) -> Option<Format> {
        let csv = self.csv.filter(|csv| csv.header)?;
        Some(Format::default().with_header(true).with_delimiter(csv.delimiter).with_quote(csv.quote))
    }
}

/// Checks location and options; opens no file.
///
/// # Errors
/// An option that is not known or not understood; a location that cannot be one.
pub fn check(definition: &TableDefinition) -> Result<()> {
    FileTable::try_new(definition).map(drop)
}

/// LOCATION is a file, or a folder of files that end in `.csv` or `.json`.
///
/// # Errors
/// As [`check`]; there is no file; a header is not as it should be.
pub async fn provider(definition: &Arc<TableDefinition>, session: &dyn Session) -> Result<BoundedTable> {
    let table = FileTable::try_new(definition)?;
    let (location, extension) = (&table.location, table.extension());
    session.runtime_env().register_object_store(location.url.as_ref(), Arc::clone(&location.store));
    let (files, folder) = list(definition, location, extension).await?;
    if let Some(header) = &table.header() {
        for file in &files {
            check_header(definition, location, file, header).await?;
        }
    }
    let url = listing_url(location, folder)?;
    let listing = ListingOptions::new(table.format(session)).with_file_extension(if folder { extension } else { "" });
    let config = ListingTableConfig::new(url).with_listing_options(listing).with_schema(Arc::clone(&definition.schema));
    Ok(Arc::new(ListingTable::try_new(config)?))
}

fn byte(options: &mut OptionReader, key: &str, default: u8) -> Result<u8> {
    match options.text(key) {
        None => Ok(default),
        Some("\\t") => Ok(b'\t'),
        Some(text) => match text.as_bytes() {
            [one] => Ok(*one),
            _ => Err(options.error(key, "is not one ASCII character").hint("for example ';', or '\\t' for a tab")),
        },
    }
}

/// The files, and whether LOCATION is a folder.
async fn list(definition: &TableDefinition, location: &Location, extension: &str) -> Result<(Vec<ObjectMeta>, bool)> {
    let address = redact(&definition.location);
    let is_folder = location.local.as_ref().is_some_and(|local| local.is_dir());
    if !is_folder && let Ok(file) = location.store.head(&location.path).await {
        return Ok((vec![file], false));
    }
    let failed =
        |e| explained(Error::external(format!("could not list table {}", definition.name)).at(address.clone()), &e);
    let listing = location.store.list(Some(&location.path)).map_err(failed);
    let files: Vec<_> = listing
        .try_filter(|file| std::future::ready(file.location.as_ref().ends_with(extension)))
        .try_collect()
        .await?;
    if files.is_empty() {
        return Err(Error::user(format!("table {} has no file", definition.name))
            .at(definition.place.clone())
            .cause(format!("LOCATION '{address}' is neither a file nor a folder with files that end in {extension}"))
            .hint("a path is relative to the folder that poundlock was started in"));
    }
    Ok((files, true))
}

async fn check_header(
    definition: &TableDefinition,
    location: &Location,
    file: &ObjectMeta,
    format: &Format,
) -> Result<()> {
    let shown = location.describe(&file.location);
    let failed = |e: &dyn std::fmt::Display| Error::external(format!("could not read file {shown}")).cause(e);
    let end = file.size.min(HEADER_BYTES);
    // An empty range is an error in object stores; an empty file is a table without rows.
    if end == 0 {
        return Ok(());
    }
    let bytes = location.store.get_range(&file.location, 0..end).await;
    let bytes = bytes.map_err(|e| explained(Error::external(format!("could not read file {shown}")), &e))?;
    let (found, _) = format.infer_schema(Cursor::new(bytes), Some(0)).map_err(|e| failed(&e))?;
    let found: Vec<&str> = found.fields().iter().map(|f| f.name().trim_start_matches('\u{feff}').trim()).collect();
    let declared: Vec<&str> = definition.schema.fields().iter().map(|f| f.name().as_str()).collect();
    let same = found.len() == declared.len() && found.iter().zip(&declared).all(|(a, b)| a.eq_ignore_ascii_case(b));
    if same {
        return Ok(());
    }
    Err(Error::user(format!("the header of {shown} is not what table {} declares", definition.name))
        .at(definition.place.clone())
        .cause(format!("the file has {}; declared are {}", found.join(", "), declared.join(", ")))
        .hint("columns are taken in order: declare them as in the file, or set 'header' 'false' if its first line is data"))
}

/// Built from segments, so that characters which mean something in a URL or a glob mean nothing.
fn listing_url(location: &Location, folder: bool) -> Result<ListingTableUrl> {
    let mut url = ListingTableUrl::parse(location.url.as_str())?.get_url().clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(location.path.parts());
        if folder {
            segments.push("");
        }
    }
    Ok(ListingTableUrl::try_new(url, None)?)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::prelude::SessionContext;

    use super::*;

    fn table(stored_as: &str, location: &str, options: &[(&str, &str)]) -> Arc<TableDefinition> {
        let fields = vec![Field::new("id", DataType::Int64, true), Field::new("name", DataType::Utf8View, true)];
        Arc::new(TableDefinition {
            name: "public.users".into(),
            schema: Arc::new(Schema::new(fields)),
            primary_key: vec!["id".into()],
            unbounded: false,
            stored_as: stored_as.into(),
            location: location.into(),
            partition_columns: vec![],
            options: options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            place: "00_tables.sql:1:1".into(),
        })
    }

    async fn names(definition: &Arc<TableDefinition>) -> Result<String> {
        let context = SessionContext::new();
        let table = provider(definition, &context.state()).await?;
        context.register_table("users", table)?;
        let rows = context.sql("SELECT string_agg(name, ',' ORDER BY id) AS names FROM users").await?.collect().await?;
        let text = arrow::util::display::array_value_to_string(rows[0].column(0), 0)?;
        Ok(text)
    }

    #[tokio::test]
    async fn csv_with_and_without_a_header() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("us*ers #1%20.csv");
        let path = file.to_str().unwrap();
        std::fs::write(&file, "id,name\n1,Ann\n2,\"Bob, jr\"\n").unwrap();
        assert_eq!(names(&table("CSV", path, &[])).await.unwrap(), "Ann,Bob, jr");
        std::fs::write(&file, "1;Ann\n2;Bob\n").unwrap();
        let options = [("header", "false"), ("delimiter", ";")];
        assert_eq!(names(&table("CSV", path, &options)).await.unwrap(), "Ann,Bob");
        assert_eq!(names(&table("CSV", folder.path().to_str().unwrap(), &options)).await.unwrap(), "Ann,Bob");
    }

    #[tokio::test]
    async fn a_header_of_other_columns_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.csv");
        std::fs::write(&file, "name,id\nAnn,1\n").unwrap();
        let error = names(&table("CSV", file.to_str().unwrap(), &[])).await.unwrap_err().to_string();
        assert!(error.contains("the file has name, id; declared are id, name"), "{error}");
    }

    #[tokio::test]
    async fn json_lines() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("a.json"),
            "{\"name\":\"Ann\",\"id\":1}\n{\"id\":2,\"name\":\"Bob\",\"x\":0}\n",
        )
        .unwrap();
        assert_eq!(names(&table("JSON", folder.path().to_str().unwrap(), &[])).await.unwrap(), "Ann,Bob");
    }

    #[tokio::test]
    async fn a_missing_file_and_an_unknown_option_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.csv");
        let error = names(&table("CSV", path.to_str().unwrap(), &[])).await.unwrap_err();
        assert_eq!(error.message(), "table public.users has no file");
        let error = names(&table("JSON", path.to_str().unwrap(), &[("header", "true")])).await.unwrap_err();
        assert!(error.message().contains("'header'"), "{error}");
    }
}
