//! Schemas of a registry that a test invents: of one that fits no column it is told once; ids that it does not know are noted before
//! anybody sees what became of their records, wherever the program stops.

use crate::harness::Answering;
use crate::recovery::points::points;
use crate::recovery::project::{Project, Servers, contains};

const QUERIES: &str = "
SET poundlock.name = '${NAME}';
SET poundlock.trigger = '20 ms';
CREATE SCHEMA kafka;
CREATE SCHEMA db;
CREATE UNBOUNDED EXTERNAL TABLE kafka.events (id BIGINT, k VARCHAR, _error VARCHAR, _offset BIGINT)
  STORED AS KAFKA LOCATION '${EVENTS}' OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'avro', 'schema.registry.url' '${REGISTRY}');
CREATE EXTERNAL TABLE db.rows (\"offset\" BIGINT, id BIGINT, k VARCHAR, error VARCHAR)
  STORED AS DATABASE LOCATION '${DATABASE_URL}';
INSERT INTO db.rows SELECT _offset, id, k, _error FROM kafka.events;
";

/// A record of one `long`, as the value of this field says.
fn schema(name: &str, field: &str) -> String {
    let schema =
        format!(r#"{{"type": "record", "name": "{name}", "fields": [{{"name": "{field}", "type": "long"}}]}}"#);
    serde_json::json!({ "schema": schema }).to_string()
}

fn payload(schema: u8, value: u8) -> Vec<u8> {
    vec![0, 0, 0, 0, schema, value * 2]
}

/// Knows these ids.
fn answer(known: &'static [u8]) -> impl Fn(&str) -> (u16, String) + Send + 'static {
    move |request| match known.iter().find(|id| request == format!("GET /schemas/ids/{id}")) {
        Some(9) => (200, schema("shop.Order", "amount")),
        Some(_) => (200, schema("Event", "id")),
        None => (404, r#"{"error_code": 40403, "message": "not found"}"#.into()),
    }
}

fn project(registry: &Answering) -> Project {
    let mut project = Project::new(Servers::Embedded);
    project.environment.insert("REGISTRY", registry.url.clone());
    project.write(QUERIES);
    project
}

fn produce(project: &Project, payloads: &[Vec<u8>]) {
    project.produce(project.topic("EVENTS"), 0, payloads);
}

/// Offset, id and reason of each row.
fn rows(project: &Project) -> Vec<String> {
    project.rows("SELECT \"offset\", coalesce(id, '-'), coalesce(error, '') FROM rows")
}

const NOT_KNOWN: &str = "schema 8 is not in the registry";

#[test]
fn a_schema_that_fits_no_column_is_told_once() {
    let registry = Answering::start(answer(&[7, 9]));
    let project = project(&registry);
    produce(&project, &[payload(7, 1), payload(9, 2), payload(9, 3), payload(7, 4)]);
    let log = project.run(&[]);
    let told = "schema 9 has no field of the name of a column";
    assert_eq!(log.matches(told).count(), 1, "{log}");
    contains(&log, &["record=\"shop.Order\"", "its fields are amount, the columns id, k", project.topic("EVENTS")]);
    assert!(!log.contains("schema 7"), "{log}");
    assert_eq!(rows(&project), ["0|1|", "1|-|", "2|-|", "3|4|"]);
}

#[test]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints: make test")]
fn stopped_where_an_unknown_id_is_noted_each_record_is_one_row_and_stays_what_it_was() {
    let records = [payload(7, 1), payload(8, 2), payload(7, 3)];
    let refused = ["0|1|".to_string(), format!("1|-|{NOT_KNOWN}"), "2|3|".into()];
    let found: Vec<String> = points().into_iter().filter(|point| point.starts_with("avro::")).collect();
    assert_eq!(found, ["avro::after_note", "avro::before_note"], "a new point wants its case here");
    for point in &found {
        let registry = Answering::start(answer(&[7]));
        let killed = project(&registry);
        produce(&killed, &records);
        assert!(killed.dies(&[], &format!("{point}=return(die)")), "{point} did not come by");
        assert!(killed.commits().is_empty(), "{point}: nobody may have seen the rows yet");
        // It is registered since: what was noted stays refused, what was not never was.
        registry.answers(answer(&[7, 8]));
        killed.run(&[]);
        let noted = point == "avro::after_note";
        let second = if noted { refused[1].clone() } else { "1|2|".into() };
        let mut expected = vec![refused[0].clone(), second, refused[2].clone()];
        assert_eq!(rows(&killed), expected, "{point}");
        produce(&killed, &[payload(8, 5)]);
        killed.run(&[]);
        expected.push("3|5|".into());
        assert_eq!(rows(&killed), expected, "{point}");

        let registry = Answering::start(answer(&[7]));
        let failing = project(&registry);
        produce(&failing, &records);
        let mut program = failing.start(&["--until-caught-up"], &format!("{point}=1*return"));
        if !program.wait(crate::recovery::project::LIMIT).success() {
            failing.run(&[]);
        }
        contains(&program.log(), &[&format!("fail point {point}")]);
        assert_eq!(rows(&failing), refused, "{point}");
    }
}
