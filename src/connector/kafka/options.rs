//! What a `STORED AS KAFKA` table says: its topic, its brokers, and its options, all checked when the files are loaded.
//!
//! A property of librdkafka passes through as `'kafka.NAME'`. Those that the exactly-once protocol stands on are
//! refused, and so is `plugin.library.paths`: SQL must not load code. Values may be secrets and are never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, FieldRef, TimeUnit};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

use super::client::Context;
use super::values::{AvroOptions, Format, check_reader, read_format};
use crate::connector::kept::Kept;
use crate::connector::{OptionDoc, OptionReader, StartingOffsets, TableDefinition};
use crate::{Error, Part, Result};

/// Of `STORED AS KAFKA`.
pub const OPTIONS: &[OptionDoc] = &[
    ("brokers", "required: `host:port`, several with commas"),
    (
        "format",
        "`json` (default); `avro`: framed with the id of its schema, as Confluent's clients do; source: `auto`, where a value \
         that begins with a zero byte is Avro and any other JSON",
    ),
    ("schema.registry.url", "Avro, required: `http://host:port` of the schema registry, several with commas"),
    ("schema.registry.user", "Avro: user of the registry"),
    ("schema.registry.password", "Avro: password of the user"),
    (
        "schema.registry.ca",
        "Avro: a file of certificates in PEM: who has signed the registry's must be one of these; default: those of the system",
    ),
    ("schema.registry.timeout", "Avro: of one request to the registry; default 5 seconds"),
    (
        "avro.schema",
        "Avro: a schema, as `${file:event.avsc}`. Source: the reader's, for aliases, defaults and the meaning of plain \
         numbers; sink: the one that is written. Default: what the columns make",
    ),
    (
        "schema.subject.strategy",
        "sink, Avro: where the schema is registered: `topic` (default: `<topic>-value`), `record` (the record's full name) or \
         `topic_record`",
    ),
    ("schema.register", "sink, Avro: `true` (default) registers the schema; `false`: it must be there"),
    (
        "starting_offsets",
        "source: where a first start begins: `earliest` (default), `latest`, a time (ISO 8601, UTC where \
                          it names no zone) or ms since 1970. A partition added later begins at its first record",
    ),
    (
        "on_data_loss",
        "source: records that retention removed before they were read: `stop` (default) or `continue`, with \
                      a warning and a count",
    ),
    ("partition.discovery", "source: how often the topic is asked for new partitions; default 10 seconds, at least 1"),
    ("key", "sink: the column whose text (or bytes) is the key of the message; it is in the value too"),
    ("headers", "sink: columns, with commas, that are sent as headers of their names too"),
    (
        "transactional",
        "sink: `true` (default), one transaction per batch; `false`: at-least-once, for a broker without \
                       transactions",
    ),
    ("kafka.*", "any property of librdkafka, as `kafka.security.protocol`, but for those that Poundlock sets itself"),
];

/// How often a topic is asked for new partitions.
const DISCOVERY: Duration = Duration::from_secs(10);

/// Properties that Poundlock sets itself, with what to use instead.
pub const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "use the option 'brokers'"),
    ("metadata.broker.list", "use the option 'brokers'"),
    ("group.id", "it is the name of the pipeline (SET poundlock.name)"),
    ("group.instance.id", "partitions are assigned from the checkpoint"),
    ("enable.auto.commit", "offsets are committed after each batch"),
    ("enable.auto.offset.store", "offsets are committed after each batch"),
    ("auto.offset.reset", "use the options 'starting_offsets' and 'on_data_loss'"),
    ("enable.partition.eof", "the engine needs it"),
    ("statistics.interval.ms", "the engine needs it"),
    ("transactional.id", "it is the name of the pipeline (SET poundlock.name)"),
    ("enable.idempotence", "use the option 'transactional'"),
    ("log.queue", "the engine needs it"),
    ("test.mock.num.brokers", "see `poundlock demo`"),
    ("plugin.library.paths", "SQL must not load code"),
    ("plugin.library.path", "SQL must not load code"),
];

/// A column that the engine fills, where it is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataColumn {
    /// Why the record did not decode; NULL if it did.
    Error,
    /// The bytes of the record's value; NULL for a tombstone.
    Raw,
    Topic,
    Partition,
    Offset,
    /// The record's own timestamp, in whole ms.
    Timestamp,
    Key,
}

impl MetadataColumn {
    pub const ALL: [Self; 7] =
        [Self::Error, Self::Raw, Self::Topic, Self::Partition, Self::Offset, Self::Timestamp, Self::Key];

    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "_error",
            Self::Raw => "_raw",
            Self::Topic => "_topic",
            Self::Partition => "_partition",
            Self::Offset => "_offset",
            Self::Timestamp => "_timestamp",
            Self::Key => "_key",
        }
    }

    /// The type to declare it with.
    pub fn sql_type(self) -> &'static str {
        match self {
            Self::Error | Self::Topic => "VARCHAR",
            Self::Raw => "BYTEA",
            Self::Partition => "INT",
            Self::Offset => "BIGINT",
            Self::Timestamp => "TIMESTAMP",
            Self::Key => "BYTEA or VARCHAR",
        }
    }

    fn fits(self, data_type: &DataType) -> bool {
        match self {
            Self::Error | Self::Topic => *data_type == DataType::Utf8View,
            Self::Raw => *data_type == DataType::Binary,
            Self::Partition => *data_type == DataType::Int32,
            Self::Offset => *data_type == DataType::Int64,
            Self::Timestamp => matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, _)),
            Self::Key => matches!(data_type, DataType::Binary | DataType::Utf8View),
        }
    }
}

/// A table of a Kafka topic, its options read and checked.
#[derive(Clone)]
pub struct KafkaTable {
    pub definition: Arc<TableDefinition>,
    pub topic: String,
    /// `host:port,host:port`.
    pub brokers: String,
    /// librdkafka's own, without the prefix `kafka.`; values may be secrets.
    pub properties: BTreeMap<String, String>,
    pub starting_offsets: StartingOffsets,
    /// Count records that retention removed before they were read, instead of stopping.
    pub continue_on_data_loss: bool,
    /// Sink: the column whose text is the key of the message.
    pub key: Option<usize>,
    /// Sink: columns whose text is sent as a header of that name too.
    pub headers: Vec<usize>,
    pub discovery: Duration,
    /// Sink: one transaction per batch; else at-least-once.
    pub transactional: bool,
    pub format: Format,
    /// Where 'format' is not JSON.
    pub avro: Option<Arc<AvroOptions>>,
    /// Where schemas are kept; `None` where there is no checkpoint.
    pub kept: Option<Kept>,
}

impl fmt::Debug for KafkaTable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "KafkaTable({}, topic {}, brokers {})", self.definition.name, self.topic, self.brokers)
    }
}

impl KafkaTable {
    /// # Errors
    /// Of the user: an option that is missing, wrong or not known; a topic's name that cannot be one.
    pub fn try_new(definition: Arc<TableDefinition>) -> Result<Self> {
        let topic = definition.location.clone();
        if topic.is_empty()
            || topic.len() > 249
            || !topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            return Err(Error::user(format!("LOCATION {topic:?} of table {} is not a topic's name", definition.name))
                .at(definition.place.clone())
                .about(Part::Location)
                .hint("up to 249 letters, digits, '.', '_' and '-', for example LOCATION 'user_events'"));
        }
        let mut options = OptionReader::new(&definition, OPTIONS);
        let brokers = options.required("brokers", "localhost:9092")?;
        let brokers = brokers.split(',').map(str::trim).filter(|b| !b.is_empty()).collect::<Vec<_>>().join(",");
        let (format, avro) = read_format(&mut options)?;
        let starting = options.text("starting_offsets").unwrap_or("earliest");
        let starting_offsets = parse_starting_offsets(starting).ok_or_else(|| {
            let what = format!("is {starting:?}, not earliest, latest, a time or ms since 1970");
            options.error("starting_offsets", &what).hint("for example '2026-01-31T08:00:00Z'")
        })?;
        let continue_on_data_loss = options.word("on_data_loss", &["stop", "continue"], "stop")? == "continue";
        let transactional = options.word("transactional", &["true", "false"], "true")? == "true";
        let discovery = options.duration("partition.discovery", DISCOVERY)?;
        if discovery < Duration::from_secs(1) {
            return Err(options.error("partition.discovery", "is below one second"));
        }
        let column = |options: &OptionReader, option: &str, name: &str| {
            definition.schema.index_of(name).map_err(|_| {
                let known: Vec<&str> = definition.schema.fields().iter().map(|f| f.name().as_str()).collect();
                options
                    .error(option, &format!("names column {name:?}, which the table does not have"))
                    .hint(format!("it has: {}", known.join(", ")))
            })
        };
        let key = options.text("key").map(|name| column(&options, "key", name.trim())).transpose()?;
        let headers = options.text("headers").unwrap_or_default();
        let headers = headers.split(',').map(str::trim).filter(|name| !name.is_empty());
        let headers = headers.map(|name| column(&options, "headers", name)).collect::<Result<Vec<_>>>()?;
        let properties: BTreeMap<String, String> = options.below("kafka.").into_iter().collect();
        for (name, instead) in RESERVED {
            if properties.contains_key(*name) {
                return Err(options.error(&format!("kafka.{name}"), "is set by Poundlock").hint(*instead));
            }
        }
        options.finish()?;
        let table = Self {
            topic,
            brokers,
            properties,
            starting_offsets,
            continue_on_data_loss,
            key,
            headers,
            discovery,
            transactional,
            format,
            avro,
            kept: None,
            definition,
        };
        table.client_config().create_native_config().map_err(|error| table.config_error(&error))?;
        Ok(table)
    }

    /// Checks what only a table that is read must keep.
    ///
    /// # Errors
    /// Of the user: a metadata column of another type, a column that is NOT NULL.
    pub fn check_as_source(&self) -> Result<()> {
        let table = &self.definition;
        let mut errors = vec![];
        for field in table.schema.fields() {
            let metadata = MetadataColumn::of(field.name());
            if let Some(column) = metadata.filter(|column| !column.fits(field.data_type())) {
                let message = format!("metadata column {} of table {} has the wrong type", column.name(), table.name);
                let error = Error::user(message).at(table.place.clone()).about(Part::Type(field.name().clone()));
                errors.push(error.hint(format!("declare it as {} {}", column.name(), column.sql_type())));
            } else if !field.is_nullable() {
                let message = format!("column {} of table {} is NOT NULL", field.name(), table.name);
                errors.push(
                    Error::user(message)
                        .at(table.place.clone())
                        .about(Part::Type(field.name().clone()))
                        .hint("a record that does not decode is a row of NULLs: leave NOT NULL out, and check in SQL"),
                );
            }
        }
        let is_data = |field: &&FieldRef| MetadataColumn::of(field.name()).is_none();
        let data: Vec<FieldRef> = table.schema.fields().iter().filter(is_data).cloned().collect();
        errors.extend(check_reader(self, &data).err());
        Error::all(errors).map_or(Ok(()), Err)
    }

    /// Brokers and the user's own properties: what every client of this table begins with.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("client.id", "poundlock").set_log_level(RDKafkaLogLevel::Warning);
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// The callbacks of a client of this table.
    pub(super) fn context(&self) -> Context {
        Context::new(&self.topic, &self.brokers)
    }

    /// An error of making a client, without the value of any property.
    pub fn config_error(&self, error: &KafkaError) -> Error {
        let table = &self.definition;
        let mut about = "brokers".to_string();
        let (message, cause) = match error {
            KafkaError::ClientConfig(_, reason, name, value) => {
                about = format!("kafka.{name}");
                let reason = if value.is_empty() { reason.clone() } else { reason.replace(value.as_str(), "***") };
                (format!("option 'kafka.{name}' of table {} is not accepted by librdkafka", table.name), reason)
            }
            KafkaError::ClientCreation(reason) => {
                let hide = |text: String, value: &String| match value.len() {
                    0..3 => text,
                    _ => text.replace(value.as_str(), "***"),
                };
                let reason = self.properties.values().fold(reason.clone(), hide);
                (format!("the options of table {} do not make a Kafka client", table.name), reason)
            }
            other => (format!("the options of table {} do not make a Kafka client", table.name), other.to_string()),
        };
        Error::user(message)
            .at(table.place.clone())
            .about(Part::OptionValue(about))
            .cause(cause)
            .hint("properties are listed in librdkafka's CONFIGURATION.md")
    }
}

/// `earliest`, `latest`, ms since 1970, or a date or time in ISO 8601 (UTC where it names no zone).
fn parse_starting_offsets(text: &str) -> Option<StartingOffsets> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("earliest") {
        return Some(StartingOffsets::Earliest);
    }
    if text.eq_ignore_ascii_case("latest") {
        return Some(StartingOffsets::Latest);
    }
    if let Ok(ms) = text.parse::<i64>() {
        return (ms >= 0).then_some(StartingOffsets::Timestamp(ms));
    }
    let zoned = DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis());
    let plain = || {
        let formats = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"];
        formats.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
    };
    let date = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|date| date.and_hms_opt(0, 0, 0));
    let ms = zoned.or_else(|| plain().or_else(date).map(|time| time.and_utc().timestamp_millis()))?;
    (ms >= 0).then_some(StartingOffsets::Timestamp(ms))
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::datatypes::{Field, Schema};

    use super::*;

    pub fn definition(columns: &[(&str, DataType)], location: &str, options: &[(&str, &str)]) -> Arc<TableDefinition> {
        let fields: Vec<Field> = columns.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect();
        Arc::new(TableDefinition {
            name: format!("kafka.{location}"),
            schema: Arc::new(Schema::new(fields)),
            primary_key: vec![],
            unbounded: true,
            stored_as: "KAFKA".into(),
            location: location.into(),
            partition_columns: vec![],
            options: options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            place: "queries/00_tables.sql:1:1".into(),
        })
    }

    fn table(options: &[(&str, &str)]) -> Result<KafkaTable> {
        let mut all = vec![("brokers", "b1:9092, b2:9092")];
        all.extend_from_slice(options);
        KafkaTable::try_new(definition(&[("id", DataType::Int64), ("name", DataType::Utf8View)], "events", &all))
    }

    #[test]
    fn options_have_their_defaults() {
        let table = table(&[("kafka.fetch.wait.max.ms", "10"), ("key", "id"), ("headers", "name")]).unwrap();
        assert_eq!(table.brokers, "b1:9092,b2:9092");
        assert_eq!(table.starting_offsets, StartingOffsets::Earliest);
        assert_eq!((table.key, table.headers.clone()), (Some(0), vec![1]));
        assert!(table.transactional && !table.continue_on_data_loss);
        assert_eq!(table.client_config().get("fetch.wait.max.ms"), Some("10"));
    }

    #[test]
    fn wrong_options_are_errors_of_the_user() {
        for (key, value, part) in [
            ("format", "avro", "'schema.registry.url' of table kafka.events is missing"),
            ("schema.registry.url", "localhost:8081", "does not begin with http"),
            ("starting_offsets", "yesterday", "not earliest"),
            ("on_data_loss", "maybe", "stop, continue"),
            ("key", "nothing", "does not have"),
            ("partition.discovery", "10", "duration"),
            ("broker", "x", "is not an option"),
            ("kafka.group.id", "x", "set by Poundlock"),
            ("kafka.plugin.library.paths", "/tmp/x.so", "set by Poundlock"),
            ("kafka.no.such.property", "x", "not accepted"),
        ] {
            let error = table(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(part), "{key}: {error}");
        }
        assert!(KafkaTable::try_new(definition(&[], "a topic", &[("brokers", "b")])).is_err());
    }

    #[test]
    fn a_secret_is_not_printed() {
        for name in ["kafka.message.max.bytes", "kafka.sasl.mechanism", "kafka.ssl.key.pem"] {
            let error = match table(&[(name, "hunter2-secret")]) {
                Err(error) => format!("{error} {error:?}"),
                Ok(table) => format!("{table:?}"),
            };
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn starting_offsets_are_read() {
        for (text, ms) in [
            ("1700000000000", 1_700_000_000_000),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500),
            ("2023-11-14 22:13:20", 1_700_000_000_000),
            ("2023-11-15", 1_700_006_400_000),
        ] {
            assert_eq!(parse_starting_offsets(text), Some(StartingOffsets::Timestamp(ms)), "{text}");
        }
        assert_eq!(parse_starting_offsets("Latest"), Some(StartingOffsets::Latest));
        assert_eq!(parse_starting_offsets("-5"), None);
    }

    #[test]
    fn metadata_columns_have_fixed_types() {
        let columns = [("_offset", DataType::Int32), ("_raw", DataType::Utf8View), ("_key", DataType::Binary)];
        let table = KafkaTable::try_new(definition(&columns, "events", &[("brokers", "b")])).unwrap();
        let error = table.check_as_source().unwrap_err().to_string();
        assert!(error.contains("_offset BIGINT") && error.contains("_raw BYTEA") && !error.contains("_key"), "{error}");
    }
}
