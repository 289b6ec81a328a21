//! Reading a table's `OPTIONS (…)` and LOCATION: typed, complete (a key nobody knows is an error), without secrets in messages.

use std::time::Duration;

use super::TableDefinition;
use crate::sql::nearest;
use crate::{Error, Part, Result};

/// Name and meaning of an option, as docs/reference.md has it; a name that ends in `*` stands for all that begin so.
pub type OptionDoc = (&'static str, &'static str);

/// Options that belong to the engine, whatever the connector.
pub const ENGINE_OPTIONS: &[OptionDoc] = &[
    (
        "role",
        "`dead_letters`: the one table that also receives what the engine has to refuse; `valid`: marks the table \
              whose rows count as valid, for metrics of a later release",
    ),
    (
        "refresh",
        "dimension: how often it is read again, as `1 minute`; without it once, at the start. At most every 100 ms",
    ),
    (
        "max_bytes",
        "dimension: how much memory its rows may take; default 256 MiB. More is an error at the start; at a refresh the last \
         rows are kept",
    ),
    ("watermark.column", "source: the TIMESTAMP column that is the event time; without it there are no windows"),
    ("watermark.delay", "source: how late an event may be; default 0"),
    (
        "watermark.idle",
        "source: a partition that is read to its end and quiet for so long holds the watermark back no \
                        longer; default 60 seconds",
    ),
    (
        "watermark.max_ahead",
        "source: an event so far ahead of the clock moves no watermark and enters no window; \
                             default 1 hour",
    ),
    (
        "delivery",
        "sink: `required` (default), each batch waits until it is there; `outbox`: the rows of a batch wait in the checkpoint and are \
         delivered in the background, so that a system that is away stops nothing. The same for all tables of one system. Not for \
         PARQUET, nor for dead letters",
    ),
];

/// Reads the options of a table; [`OptionReader::finish`] refuses what is in no list.
pub struct OptionReader<'t> {
    table: &'t TableDefinition,
    own: &'static [OptionDoc],
    /// Of what the table lies on.
    more: &'static [OptionDoc],
}

impl<'t> OptionReader<'t> {
    /// `own` are the connector's options: all that will be asked for.
    pub fn new(table: &'t TableDefinition, own: &'static [OptionDoc]) -> Self {
        Self { table, own, more: &[] }
    }

    /// Options beside the connector's own, which another reads: of the storage, say.
    pub fn and(self, more: &'static [OptionDoc]) -> Self {
        Self { more, ..self }
    }

    fn known(&self) -> impl Iterator<Item = &'static str> {
        self.own.iter().chain(self.more).chain(ENGINE_OPTIONS).map(|(name, _)| *name)
    }

    fn is_known(&self, key: &str) -> bool {
        self.known().any(|name| name.strip_suffix('*').map_or(name == key, |prefix| key.starts_with(prefix)))
    }

    pub fn text(&mut self, key: &str) -> Option<&'t str> {
        debug_assert!(self.is_known(key), "option {key} is in no list");
        self.table.options.get(key).map(String::as_str)
    }

    /// # Errors
    /// The option is missing or empty.
    pub fn required(&mut self, key: &str, example: &str) -> Result<&'t str> {
        match self.text(key) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(match self.misspelled(key) {
                Some(wrong) => self.unknown(wrong).hint(format!("did you mean '{key}'?")),
                None => self.error(key, "is missing or empty").hint(format!("add OPTIONS ('{key}' '{example}')")),
            }),
        }
    }

    /// An option that nobody knows and that is nearly this one.
    fn misspelled(&self, key: &str) -> Option<&'t str> {
        let unknown = self.table.options.keys().map(String::as_str).filter(|key| !self.is_known(key));
        nearest(key, unknown)
    }

    /// One of a fixed list of words, compared without case.
    pub fn word(&mut self, key: &str, allowed: &[&'static str], default: &'static str) -> Result<&'static str> {
        let Some(value) = self.text(key) else { return Ok(default) };
        match allowed.iter().find(|w| w.eq_ignore_ascii_case(value)) {
            Some(word) => Ok(word),
            None => {
                let error = self.error(key, &format!("is {value:?}, not one of {}", allowed.join(", ")));
                let near = nearest(value, allowed.iter().copied());
                Err(error.with_hint(near.map(|near| format!("did you mean '{near}'?"))))
            }
        }
    }

    pub fn duration(&mut self, key: &str, default: Duration) -> Result<Duration> {
        let Some(value) = self.text(key) else { return Ok(default) };
        let wrong = || self.error(key, &format!("is {value:?}, not a duration")).hint("for example '30 seconds'");
        duration(value).ok_or_else(wrong)
    }

    pub fn number(&mut self, key: &str, default: u64) -> Result<u64> {
        let Some(value) = self.text(key) else { return Ok(default) };
        let wrong = || self.error(key, &format!("is {value:?}, not a whole number")).hint("for example '100_000'");
        value.replace('_', "").parse().map_err(|_| wrong())
    }

    /// Every option below a prefix (`kafka.`), without it.
    pub fn below(&mut self, prefix: &str) -> Vec<(String, String)> {
        let below = self.table.options.iter().filter(|(key, _)| key.starts_with(prefix));
        below.map(|(key, value)| (key[prefix.len()..].to_string(), value.clone())).collect()
    }

    /// # Errors
    /// An option that nobody knows.
    pub fn finish(self) -> Result<()> {
        let Some(key) = self.table.options.keys().find(|key| !self.is_known(key)) else { return Ok(()) };
        let mut known: Vec<&str> = self.known().collect();
        known.sort_unstable();
        let near = nearest(key, known.iter().copied().filter(|name| !name.ends_with('*')));
        let near = near.map_or_else(String::new, |near| format!("did you mean '{near}'? "));
        Err(self.unknown(key).hint(format!("{near}it has: {}", known.join(", "))))
    }

    fn unknown(&self, key: &str) -> Error {
        self.error(key, "is not an option of this table").about(Part::Option(key.to_string()))
    }

    /// An error about the value of one option of this table.
    pub fn error(&self, key: &str, what: &str) -> Error {
        let error = Error::user(format!("option '{key}' of table {} {what}", self.table.name));
        error.at(self.table.place.clone()).about(Part::OptionValue(key.into()))
    }
}

/// "500ms", "5s", "5 seconds", "1 minute", "2 hours": what humantime reads, and nothing without a unit.
pub fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok()
}

/// Parameters of an address that are no secret. All others are hidden: a misspelled one may be a password.
const SHOWN: [&str; 14] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "load_balance_hosts",
    "port",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// An address fit to be printed: the password of a URL and the values of parameters that may be secret become `***`.
pub fn redact(address: &str) -> String {
    let mut text = address.to_string();
    // One that lacks its scheme is refused, and must not be shown by the refusal either.
    let rest = text.find("://").map_or(0, |scheme| scheme + 3);
    // Up to the last '@': a password that should have been escaped may hold a '/' or an '@' of its own.
    if let Some(at) = text[rest..].rfind('@').map(|i| rest + i)
        && let Some(colon) = text[rest..at].find(':').map(|i| rest + i)
    {
        text.replace_range(colon + 1..at, "***");
    }
    if let Some(query) = text.find('?') {
        let hidden = |parameter: &str| match parameter.split_once('=') {
            Some((name, _)) if !SHOWN.contains(&name) => format!("{name}=***"),
            _ => parameter.to_string(),
        };
        let parameters: Vec<String> = text[query + 1..].split('&').map(hidden).collect();
        text.replace_range(query + 1.., &parameters.join("&"));
    }
    for secret in ["password=", "secret=", "token=", "key="] {
        let mut from = 0;
        while let Some(found) = text[from..].to_ascii_lowercase().find(secret) {
            let begin = from + found + secret.len();
            let end = text[begin..].find(['&', ' ', ';']).map_or(text.len(), |i| begin + i);
            text.replace_range(begin..end, "***");
            from = begin + 3;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_is_wrong_says_what_may_be_meant() {
        const OWN: &[OptionDoc] = &[("format", ""), ("kafka.*", "")];
        let shown = |key: &str, value: &str| {
            let table = TableDefinition {
                name: "db.t".into(),
                schema: arrow::datatypes::Schema::empty().into(),
                primary_key: vec![],
                unbounded: false,
                stored_as: "KAFKA".into(),
                location: "x".into(),
                partition_columns: vec![],
                options: [(key.to_string(), value.to_string())].into(),
                place: "a.sql:1:1".into(),
            };
            let mut options = OptionReader::new(&table, OWN);
            let read = options.word("format", &["json", "avro"], "json").map(drop).and_then(|()| options.finish());
            read.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert!(
            shown("watermark.dely", "1s").contains("\nhint: did you mean 'watermark.delay'? it has: delivery, format")
        );
        assert!(shown("something_else", "1s").contains("\nhint: it has: delivery, format"));
        assert!(
            shown("format", "jsn").contains("not one of json, avro\n  where: a.sql:1:1\nhint: did you mean 'json'?")
        );
        assert_eq!(shown("kafka.any", "x"), "");
    }

    #[test]
    fn no_password_is_printed() {
        assert_eq!(
            redact("postgres://me:s3cret@host:5432/db?sslmode=require"),
            "postgres://me:***@host:5432/db?sslmode=require"
        );
        assert_eq!(redact("postgres://me:a@b:c@host/db"), "postgres://me:***@host/db");
        assert_eq!(redact("postgres://me:a@b/c#d@host/db"), "postgres://me:***@host/db");
        assert_eq!(redact("host=h password=abc dbname=x"), "host=h password=*** dbname=x");
        assert_eq!(redact("postgres://host/db?user=u&password=p"), "postgres://host/db?user=u&password=***");
        assert_eq!(
            redact("postgres://h/d?sslmode=prefer&passwort=p&x"),
            "postgres://h/d?sslmode=prefer&passwort=***&x"
        );
        assert_eq!(redact("127.0.0.1:9092"), "127.0.0.1:9092");
        assert_eq!(redact("elastic:s3cret@host:9200"), "elastic:***@host:9200");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5 seconds"), Some(Duration::from_secs(5)));
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("5"), None);
    }
}
