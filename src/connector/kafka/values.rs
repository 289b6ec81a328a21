//! How the value of a message is written down: options 'format', 'avro.schema' and 'schema.…', and what a sink makes of them.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::FieldRef;

use super::options::KafkaTable;
use super::schemas::client::{RegistryOptions, TIMEOUT};
use super::schemas::registry_urls;
use crate::connector::OptionReader;
use crate::format::avro::schema::Kind;
use crate::format::avro::table::schema_of;
use crate::format::avro::{Encoder, Plan, Schema};
use crate::{Error, Part, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    /// Framed, as Confluent's clients do.
    Avro,
    /// Source: what begins with a zero byte is Avro, all else JSON.
    Auto,
}

/// Under which subject a sink registers its schema; Confluent's names of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectStrategy {
    /// TopicNameStrategy: `<topic>-value`.
    Topic,
    /// RecordNameStrategy: the record's full name.
    Record,
    /// TopicRecordNameStrategy: `<topic>-<the record's full name>`.
    TopicRecord,
}

impl SubjectStrategy {
    pub fn subject(self, topic: &str, record: &str) -> String {
        match self {
            Self::Topic => format!("{topic}-value"),
            Self::Record => record.to_string(),
            Self::TopicRecord => format!("{topic}-{record}"),
        }
    }
}

/// Of a table whose values are Avro, or may be.
pub struct AvroOptions {
    pub registry: RegistryOptions,
    /// 'avro.schema'. A source: the reader's schema; a sink: the one it writes.
    pub reader: Option<Schema>,
    text: Option<String>,
    pub strategy: SubjectStrategy,
    /// Sink: whether a schema that is not there yet is registered.
    pub registers: bool,
}

impl fmt::Debug for AvroOptions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "AvroOptions({:?}, {:?})", self.registry, self.strategy)
    }
}

impl AvroOptions {
    /// # Errors
    /// Of the user: an address that is missing or no URL, a schema that is none.
    fn read(options: &mut OptionReader<'_>) -> Result<Self> {
        let urls = options.required("schema.registry.url", "http://localhost:8081")?;
        let urls = registry_urls(urls).map_err(|what| {
            options.error("schema.registry.url", &what).hint("for example 'https://registry:8081', several with commas")
        })?;
        // Empty is as good as not given: ${SCHEMA_REGISTRY_USER:-}.
        let mut given = |key: &str| options.text(key).filter(|value| !value.is_empty()).map(str::to_string);
        let text = given("avro.schema");
        let (user, password) = (given("schema.registry.user"), given("schema.registry.password"));
        let ca = given("schema.registry.ca").map(Into::into);
        let reader = text.as_deref().map(|text| Schema::parse(text, &[])).transpose();
        let reader = reader.map_err(|reason| {
            options.error("avro.schema", "is not an Avro schema").cause(reason).hint("for example '${file:event.avsc}'")
        })?;
        let strategy = match options.word("schema.subject.strategy", &["topic", "record", "topic_record"], "topic")? {
            "record" => SubjectStrategy::Record,
            "topic_record" => SubjectStrategy::TopicRecord,
            _ => SubjectStrategy::Topic,
        };
        let registers = options.word("schema.register", &["true", "false"], "true")? == "true";
        let registry = RegistryOptions {
            urls,
            user,
            password,
            ca,
            timeout: options.duration("schema.registry.timeout", TIMEOUT)?,
        };
        Ok(Self { registry, reader, text, strategy, registers })
    }

    #[cfg(test)]
    pub fn of(registry: RegistryOptions, strategy: SubjectStrategy) -> Self {
        Self { registry, reader: None, text: None, strategy, registers: true }
    }

    /// Names a registry in the checkpoint, without its credentials: ids are of one registry.
    pub fn registry_key(&self) -> String {
        let plain = |url: &String| match url.rsplit_once('@') {
            Some((_, host)) => host.to_string(),
            None => url.split_once("://").map_or(url.clone(), |(_, rest)| rest.to_string()),
        };
        let urls: Vec<String> = self.registry.urls.iter().map(plain).collect();
        blake3::hash(urls.join(",").as_bytes()).to_hex()[..16].to_string()
    }
}

/// Options 'format', 'avro.…' and 'schema.…'. JSON may have those of Avro: they are without effect then, but checked.
///
/// # Errors
/// Of the user.
pub fn read_format(options: &mut OptionReader<'_>) -> Result<(Format, Option<Arc<AvroOptions>>)> {
    let format = match options.word("format", &["json", "avro", "auto"], "json")? {
        "avro" => Format::Avro,
        "auto" => Format::Auto,
        _ => Format::Json,
    };
    let has_registry = options.text("schema.registry.url").is_some_and(|url| !url.is_empty());
    let wanted = format != Format::Json || has_registry;
    Ok((format, if wanted { Some(Arc::new(AvroOptions::read(options)?)) } else { None }))
}

/// Whether the columns of a source fit its 'avro.schema'.
///
/// # Errors
/// Of the user.
pub fn check_reader(table: &KafkaTable, columns: &[FieldRef]) -> Result<()> {
    let Some(reader) = table.avro.as_ref().and_then(|avro| avro.reader.as_ref()) else { return Ok(()) };
    Plan::check_reader(reader, columns).map_err(|reason| {
        Error::user(format!("the columns of table {} do not fit its 'avro.schema'", table.definition.name))
            .at(table.definition.place.clone())
            .about(Part::OptionValue("avro.schema".into()))
            .cause(reason)
    })
}

/// What a sink of Avro writes, and where its schema belongs.
#[derive(Debug)]
pub struct AvroTable {
    pub encoder: Encoder,
    /// As it is registered.
    pub text: String,
    pub subject: String,
    pub options: Arc<AvroOptions>,
}

impl AvroTable {
    /// `None`: the table's values are JSON.
    ///
    /// # Errors
    /// Of the user: a column that has no form in Avro, or does not fit 'avro.schema'; format 'auto', which is for reading.
    pub fn of(table: &KafkaTable) -> Result<Option<Self>> {
        let definition = &table.definition;
        let place = |error: Error| error.at(definition.place.clone());
        let options = match (table.format, &table.avro) {
            (Format::Json, _) => return Ok(None),
            (Format::Avro, Some(options)) => Arc::clone(options),
            _ => {
                let message = format!("option 'format' of table {} is 'auto', which can only be read", definition.name);
                let error = Error::user(message).about(Part::OptionValue("format".into()));
                return Err(place(error).hint("write 'json' or 'avro'"));
            }
        };
        let columns = definition.schema.fields();
        let own = definition.name.rsplit('.').next().unwrap_or_default();
        let text = match &options.text {
            Some(text) => text.clone(),
            None => schema_of(own, columns).map_err(place)?,
        };
        let wrong = |reason| Error::internal("the schema of a table is none").cause(reason);
        let schema = Schema::parse(&text, &[]).map_err(wrong)?;
        let encoder = Encoder::try_new(&schema, columns).map_err(|error| {
            place(Error::user(format!("table {} cannot be written as Avro", definition.name)).cause(error.line()))
                .about(Part::OptionValue("avro.schema".into()))
        })?;
        let record = match &schema.node(schema.root()).kind {
            Kind::Record { name, .. } => name.full.clone(),
            _ => own.to_string(),
        };
        let subject = options.strategy.subject(&table.topic, &record);
        Ok(Some(Self { encoder, text, subject, options }))
    }

    /// Of no rows: whether the columns can be written at all.
    pub fn check(&self, table: &KafkaTable) -> Result<()> {
        self.encoder.encode(0, &RecordBatch::new_empty(Arc::clone(&table.definition.schema))).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;

    use super::super::options::tests::definition;
    use super::*;

    const SCHEMA: &str = r#"{"type": "record", "name": "a.b.Event", "fields": [{"name": "id", "type": "long"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "note", "type": "string", "default": "none"}]}"#;

    fn table(options: &[(&str, &str)]) -> Result<KafkaTable> {
        let mut all = vec![("brokers", "b"), ("format", "avro"), ("schema.registry.url", "http://u:p@r:1/, http://s")];
        all.extend_from_slice(options);
        KafkaTable::try_new(definition(&[("id", DataType::Int64), ("kind", DataType::Utf8View)], "events", &all))
    }

    #[test]
    fn subjects_follow_the_strategy() {
        let subject = |strategy| {
            let table = table(&[("avro.schema", SCHEMA), ("schema.subject.strategy", strategy)]).unwrap();
            AvroTable::of(&table).unwrap().unwrap().subject
        };
        assert_eq!(subject("topic"), "events-value");
        assert_eq!(subject("record"), "a.b.Event");
        assert_eq!(subject("topic_record"), "events-a.b.Event");
    }

    #[test]
    fn a_registry_is_the_same_whoever_asks_it() {
        let one = table(&[]).unwrap().avro.unwrap();
        assert_eq!(one.registry.urls, ["http://u:p@r:1", "http://s"]);
        let two = table(&[("schema.registry.url", "http://me:other@r:1,http://s")]).unwrap().avro.unwrap();
        assert_eq!(one.registry_key(), two.registry_key());
        assert!(!format!("{:?}", table(&[]).unwrap().avro).contains(":p@"));
    }

    #[test]
    fn what_is_empty_is_not_given() {
        let names = ["schema.registry.user", "schema.registry.password", "schema.registry.ca", "avro.schema"];
        let avro = table(&names.map(|name| (name, ""))).unwrap().avro.unwrap();
        assert_eq!(avro.registry, table(&[]).unwrap().avro.unwrap().registry);
        assert!(avro.registry.user.is_none() && avro.registry.ca.is_none() && avro.text.is_none());
    }

    #[test]
    fn a_schema_must_fit_the_columns_both_ways() {
        let says = |schema: &str| {
            let table = table(&[("avro.schema", schema)]).unwrap();
            let written = AvroTable::of(&table).err().map(|error| error.to_string()).unwrap_or_default();
            (table.check_as_source().err().map(|error| error.to_string()).unwrap_or_default(), written)
        };
        assert_eq!(says(SCHEMA), (String::new(), String::new()));
        let (read, written) = says(&SCHEMA.replace("\"long\"", "\"string\""));
        assert!(read.contains("id: string does not fit BIGINT"), "{read}");
        assert!(written.contains("id: BIGINT does not become string"), "{written}");
        let (read, written) = says(&SCHEMA.replace("\"id\"", "\"no\""));
        assert!(
            read.contains("it has no field \"id\"") && written.contains("column \"id\" has no field"),
            "{read} {written}"
        );
        let error = table(&[("avro.schema", "{")]).unwrap_err().to_string();
        assert!(error.contains("'avro.schema' of table kafka.events is not an Avro schema"), "{error}");
        assert!(
            AvroTable::of(&table(&[("format", "auto")]).unwrap()).unwrap_err().to_string().contains("only be read")
        );
    }

    #[test]
    fn a_value_that_the_schema_cannot_hold_refuses_its_row_alone() {
        use arrow::array::{Int64Array, StringViewArray};
        let table = table(&[("avro.schema", SCHEMA)]).unwrap();
        let ids = Int64Array::from(vec![Some(1), None, Some(-1)]);
        let kinds = StringViewArray::from(vec!["B", "A", "C"]);
        let schema = Arc::clone(&table.definition.schema);
        let batch = RecordBatch::try_new(schema, vec![Arc::new(ids), Arc::new(kinds)]).unwrap();
        let encoded = AvroTable::of(&table).unwrap().unwrap().encoder.encode(1, &batch).unwrap();
        assert_eq!(encoded.rows.row(0), [0, 0, 0, 0, 1, 2, 2, 8, b'n', b'o', b'n', b'e']);
        let refused: Vec<(usize, &str)> = encoded.refused.iter().map(|(row, why)| (*row, why.as_str())).collect();
        assert_eq!(
            refused,
            [(1, "id: it is NULL, and the schema has no null for it"), (2, "kind: \"C\" is no symbol of its enum")]
        );
        assert_eq!(encoded.rows.len(), 3);
    }
}
