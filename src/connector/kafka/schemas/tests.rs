use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::datatypes::{DataType, Field};
use object_store::memory::InMemory;
use object_store::path::Path;

use super::fake::FakeRegistry;
use super::refused::STEPS_MAX;
use super::*;
use crate::connector::kafka::values::SubjectStrategy;

const SCHEMA: &str = r#"{\"type\": \"record\", \"name\": \"R\", \"fields\": [{\"name\": \"a\", \"type\": \"int\"}]}"#;

/// Knows ids below 100.
fn answer(request: &str) -> (u16, String) {
    match request.strip_prefix("GET /schemas/ids/").and_then(|id| id.parse::<u32>().ok()) {
        Some(id) if id < 100 => (200, format!("{{\"schema\": \"{SCHEMA}\"}}")),
        Some(_) => (404, r#"{"error_code": 40403, "message": "not found"}"#.into()),
        None => (200, r#"{"id": 55}"#.into()),
    }
}

fn avro(registry: &FakeRegistry) -> Arc<AvroOptions> {
    Arc::new(AvroOptions::of(registry.options(), SubjectStrategy::Topic))
}

fn kept() -> Kept {
    Kept::new(Arc::new(InMemory::new()), Path::from("kept"))
}

fn open(registry: &FakeRegistry, kept: &Kept) -> Schemas {
    let columns = [Arc::new(Field::new("a", DataType::Int64, true))];
    Schemas::open("events", "kafka.events", &columns, avro(registry), Some(kept.clone())).unwrap()
}

fn payload(id: u32) -> Vec<u8> {
    [&[0], id.to_be_bytes().as_slice(), &[2]].concat()
}

fn unsettled(schemas: &Schemas, id: u32, offset: i64) -> bool {
    schemas.unsettled(Some(&payload(id)), 0, offset, &mut None).is_some()
}

fn is_known(schemas: &Schemas, id: u32, offset: i64) -> bool {
    schemas.judge(0).of(&payload(id), offset).is_some_and(Result::is_ok)
}

const GO_ON: &dyn Fn() -> bool = &|| false;

#[test]
fn a_schema_is_asked_for_once_and_kept() {
    let registry = FakeRegistry::start(answer);
    let kept = kept();
    let schemas = open(&registry, &kept);
    assert!(unsettled(&schemas, 7, 1));
    schemas.settle(7, GO_ON).unwrap();
    assert!(!unsettled(&schemas, 7, 2) && is_known(&schemas, 7, 2));
    assert_eq!(registry.requests(), ["GET /schemas/ids/7"]);
    // Another start while the registry is away.
    registry.answers(|_| (503, String::new()));
    let again = open(&registry, &kept);
    again.settle(7, GO_ON).unwrap();
    assert!(is_known(&again, 7, 3));
    assert_eq!(registry.requests().len(), 1);
}

#[test]
fn what_is_no_frame_is_never_asked_for() {
    let schemas = open(&FakeRegistry::start(|request| panic!("{request}")), &kept());
    for payload in [None, Some(b"{}".as_slice()), Some(b"\0\0"), Some(b"")] {
        assert_eq!(schemas.unsettled(payload, 0, 1, &mut None), None);
    }
}

#[test]
fn a_record_once_refused_for_its_id_is_refused_again_though_it_is_registered_since() {
    let registry = FakeRegistry::start(answer);
    let kept = kept();
    let schemas = open(&registry, &kept);
    schemas.settle(200, GO_ON).unwrap();
    assert!(!unsettled(&schemas, 200, 11), "asked a moment ago");
    assert!(!is_known(&schemas, 200, 10));
    schemas.persist().unwrap();
    // Now it is registered; a start after a crash replays offset 10.
    registry.answers(|_| (200, format!("{{\"schema\": \"{SCHEMA}\"}}")));
    let again = open(&registry, &kept);
    assert!(!unsettled(&again, 200, 10) && !is_known(&again, 200, 10));
    assert!(unsettled(&again, 200, 11));
    again.settle(200, GO_ON).unwrap();
    assert!(!is_known(&again, 200, 10) && is_known(&again, 200, 11));
    let mut judge = again.judge(0);
    assert!(judge.of(&payload(200), 10).is_none() && judge.of(&payload(200), 11).is_some());
    assert!(judge.of(&payload(200), 9).is_none());
    // Of another partition nothing was decided.
    assert!(again.judge(1).of(&payload(200), 3).is_some());
}

#[test]
fn a_new_id_is_waited_for_a_little() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let registry = FakeRegistry::start(move |_| match counter.fetch_add(1, Ordering::SeqCst) {
        0 => (404, r#"{"error_code": 40403, "message": "not yet"}"#.into()),
        _ => (200, format!("{{\"schema\": \"{SCHEMA}\"}}")),
    });
    let schemas = open(&registry, &kept());
    schemas.settle(7, GO_ON).unwrap();
    assert!(is_known(&schemas, 7, 0) && asked.load(Ordering::SeqCst) == 2);
}

#[test]
fn a_registry_that_is_away_is_waited_for_and_a_stop_is_heard() {
    let registry = FakeRegistry::start(|_| (503, String::new()));
    let schemas = Arc::new(open(&registry, &kept()));
    let waiting = Arc::clone(&schemas);
    let thread = std::thread::spawn(move || waiting.settle(7, GO_ON));
    while registry.requests().len() < 2 {
        std::thread::yield_now();
    }
    registry.answers(answer);
    thread.join().unwrap().unwrap();
    assert!(is_known(&schemas, 7, 0));

    registry.answers(|_| (503, String::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let (waiting, stopping) = (Arc::clone(&schemas), Arc::clone(&stop));
    let before = registry.requests().len();
    let thread = std::thread::spawn(move || waiting.settle(8, &|| stopping.load(Ordering::SeqCst)));
    while registry.requests().len() == before {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::SeqCst);
    thread.join().unwrap().unwrap();
    assert!(!is_known(&schemas, 8, 0));
}

#[test]
fn a_wrong_address_ends_the_source_at_once() {
    let schemas = open(&FakeRegistry::start(|_| (404, "nothing here".into())), &kept());
    let error = schemas.settle(7, GO_ON).unwrap_err();
    assert_eq!(error.fault(), crate::Fault::User);
}

/// A pipeline that runs is not stopped by a gateway's page while a new id is asked for, nor by credentials that are changed.
#[test]
fn what_a_registry_never_says_is_waited_for_once_it_has_answered() {
    let registry = FakeRegistry::start(answer);
    let schemas = Arc::new(open(&registry, &kept()));
    schemas.settle(7, GO_ON).unwrap();
    for (number, (status, body)) in
        [(404, "<html>"), (401, ""), (403, ""), (200, "<html>"), (200, "[]"), (302, "")].into_iter().enumerate()
    {
        registry.answers(move |_| (status, body.to_string()));
        let (waiting, id) = (Arc::clone(&schemas), 8 + number as u32);
        let before = registry.requests().len();
        let thread = std::thread::spawn(move || waiting.settle(id, GO_ON));
        while registry.requests().len() < before + 2 {
            assert!(!thread.is_finished(), "{status} {body}: {:?}", thread.join());
            std::thread::yield_now();
        }
        registry.answers(answer);
        thread.join().unwrap().unwrap();
        assert!(is_known(&schemas, id, 0));
    }
    // Of what is kept the same holds; and a start that knows nothing yet ends with the error at once.
    registry.answers(|_| (401, String::new()));
    let error = open(&registry, &kept()).settle(7, GO_ON).unwrap_err();
    assert!(error.to_string().contains("refuses the credentials"), "{error}");
}

fn refers(to: u32) -> (u16, String) {
    let one = format!(r#"{{"name": "B", "subject": "b{to}", "version": 1}}"#);
    (200, format!("{{\"schema\": \"{SCHEMA}\", \"references\": [{one}]}}"))
}

fn reason(schemas: &Schemas, id: u32, offset: i64) -> Option<String> {
    schemas.judge(0).of(&payload(id), offset)?.as_ref().err().cloned()
}

#[test]
fn what_is_wrong_with_one_schema_refuses_its_records_and_is_asked_for_again() {
    // A reference that was deleted, before anything else was asked: not even then it stops the source.
    let registry = FakeRegistry::start(|request| match request {
        "GET /schemas/ids/7" => refers(1),
        _ => (404, r#"{"error_code": 40401, "message": "Subject not found."}"#.into()),
    });
    let kept = kept();
    let schemas = open(&registry, &kept);
    schemas.settle(7, GO_ON).unwrap();
    let why = "schema 7 is not usable: it refers to version 1 of \"b1\", which is missing: Subject not found.";
    assert_eq!(reason(&schemas, 7, 10).as_deref(), Some(why));
    assert!(!unsettled(&schemas, 7, 11), "asked a moment ago");
    // Later another is missing.
    registry.answers(|request| match request {
        "GET /schemas/ids/7" => refers(2),
        _ => (404, r#"{"error_code": 40401, "message": "gone"}"#.into()),
    });
    schemas.settle(7, GO_ON).unwrap();
    assert!(reason(&schemas, 7, 20).unwrap().contains("\"b2\""));
    // And a schema that nobody knows, then one of the ids has become usable.
    schemas.settle(200, GO_ON).unwrap();
    assert_eq!((is_known(&schemas, 200, 21), reason(&schemas, 200, 21)), (false, None));
    schemas.persist().unwrap();
    registry.answers(answer);
    // A replay refuses them with the same words; what is behind them decodes.
    let again = open(&registry, &kept);
    assert!(!unsettled(&again, 7, 20) && unsettled(&again, 7, 22));
    again.settle(7, GO_ON).unwrap();
    assert_eq!(reason(&again, 7, 10).as_deref(), Some(why));
    assert!(reason(&again, 7, 20).unwrap().contains("\"b2\""));
    assert!(is_known(&again, 7, 22));
    assert!(!unsettled(&again, 200, 21) && again.judge(0).of(&payload(200), 21).is_none());
}

#[test]
fn what_an_older_release_has_noted_is_read() {
    let kept = kept();
    kept.put(&["unknown", "kafka.events"], br#"{"unknown": {"200": {"0": 10}}}"#.to_vec()).unwrap();
    let schemas = open(&FakeRegistry::start(answer), &kept);
    assert!(!unsettled(&schemas, 200, 10) && unsettled(&schemas, 200, 11));
}

#[test]
fn reasons_that_change_all_the_time_are_noted_up_to_a_limit() {
    let mut refused = Refused::default();
    for offset in 0..20 {
        refused.reason = Some(format!("reason {offset}"));
        refused.refuse(0, offset);
    }
    assert_eq!((refused.until[&0].len(), refused.last(0)), (STEPS_MAX, Some(19)));
    let again: Vec<_> = [0, 6, 7, 19].map(|offset| refused.refuse(0, offset).0.unwrap()).into();
    assert_eq!(again, ["reason 0", "reason 6", "reason 7", "reason 7"]);
}

#[test]
fn a_schema_too_many_refuses_its_records() {
    let registry = FakeRegistry::start(answer);
    let schemas = open(&registry, &kept());
    let known: Arc<Known> = Arc::new(Err("none".into()));
    lock(&schemas.state).known = (1_000..1_000 + KNOWN_MAX as u32).map(|id| (id, Arc::clone(&known))).collect();
    schemas.settle(7, GO_ON).unwrap();
    let why = reason(&schemas, 7, 0).unwrap();
    assert_eq!(why, "schema 7 is not usable: topic \"events\" has more than 10000 schemas");
    assert!(registry.requests().is_empty());
}

#[test]
fn a_schema_that_is_not_avro_refuses_its_records() {
    let registry = FakeRegistry::start(|_| (200, r#"{"schema": "x", "schemaType": "PROTOBUF"}"#.into()));
    let schemas = open(&registry, &kept());
    schemas.settle(7, GO_ON).unwrap();
    let mut judge = schemas.judge(0);
    let known = judge.of(&payload(7), 0).unwrap();
    assert_eq!(known.as_ref().unwrap_err(), "schema 7 is PROTOBUF, not Avro");
}

#[test]
fn the_ids_of_chance_are_forgotten_at_a_limit() {
    let schemas = open(&FakeRegistry::start(answer), &kept());
    for offset in 0..(UNKNOWN_MAX as i64 + 1) {
        assert!(!is_known(&schemas, 1_000 + offset as u32, offset));
    }
    let left = lock(&schemas.state).refused.len();
    assert!(left > 0 && left <= UNKNOWN_MAX / 2 + 1, "{left}");
}

/// A young partition has small offsets: its note is not the oldest for that.
#[test]
fn a_note_that_was_just_made_is_not_the_one_that_is_forgotten() {
    let schemas = open(&FakeRegistry::start(answer), &kept());
    for number in 0..(2 * UNKNOWN_MAX as i64) {
        let id = 1_000 + number as u32;
        let partition = (number % 2) as i32;
        let offset = if partition == 0 { 1_000_000 + number } else { number };
        assert!(schemas.judge(partition).of(&payload(id), offset).is_none());
        assert_eq!(lock(&schemas.state).refused[&id].last(partition), Some(offset));
    }
    assert!(lock(&schemas.state).refused.len() <= UNKNOWN_MAX);
}

#[test]
fn the_id_of_a_sink_is_kept_for_a_start_without_the_registry() {
    let registry = FakeRegistry::start(answer);
    let (avro, kept) = (avro(&registry), kept());
    assert_eq!(sink_id(&avro, "events-value", "{}", Some(&kept)).unwrap(), 55);
    registry.answers(|_| (503, String::new()));
    assert_eq!(sink_id(&avro, "events-value", "{}", Some(&kept)).unwrap(), 55);
    assert!(sink_id(&avro, "events-value", "{ }", Some(&kept)).unwrap_err().is_retryable());
    assert!(sink_id(&avro, "events-value", "{}", None).is_err());
    registry.answers(|_| (409, r#"{"message": "no"}"#.into()));
    assert!(!sink_id(&avro, "events-value", "{}", Some(&kept)).unwrap_err().is_retryable());
}

#[test]
fn json_and_avro_on_one_topic_are_rows_in_the_order_of_their_offsets() {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    use crate::connector::kafka::options::tests::definition;
    use crate::connector::kafka::rows::{Decoders, Packer, Record};

    let registry = FakeRegistry::start(answer);
    let columns = [("a", DataType::Int64), ("_error", DataType::Utf8View)];
    let options = [("brokers", "b"), ("format", "auto"), ("schema.registry.url", registry.url.as_str())];
    let mut table = KafkaTable::try_new(definition(&columns, "events", &options)).unwrap();
    table.kept = Some(kept());
    let decoders = Decoders::of(&table).unwrap();
    let schemas = decoders.schemas().unwrap();
    let mut packer = Packer::new(decoders.layout(), 0);
    let payloads: [Option<&[u8]>; 7] = [
        Some(b"\0\0\0\0\x07\x02"), // 1
        Some(b"{\"a\": 2}"),
        Some(b"\0\0\0\0\xc8\x06"), // A schema that nobody knows.
        Some(b"\0\0"),
        None,
        Some(b""),
        Some(b"\0\0\0\0\x08\x0e"), // 7
    ];
    for (offset, payload) in payloads.into_iter().enumerate() {
        let record = Record { offset: offset as i64, payload, key: None, timestamp: None };
        if let Some(id) = schemas.unsettled(payload, 0, record.offset, &mut None) {
            schemas.settle(id, GO_ON).unwrap();
        }
        packer.push(&record);
    }
    let rows = packer.finish().take(&decoders).unwrap().chunk.rows;
    let values: Vec<_> = rows["a"].as_primitive::<Int64Type>().iter().collect();
    assert_eq!(values, [Some(1), Some(2), None, None, None, None, Some(7)]);
    let errors: Vec<_> = rows["_error"].as_string_view().iter().map(|error| error.unwrap_or("")).collect();
    assert!(errors[2].contains("schema 200 is not in the registry") && errors[3].contains("2 bytes are too few"));
    assert_eq!((errors[0], errors[4], errors[5]), ("", "no payload (tombstone)", "empty payload"));
    // Noted before the rows were seen: another start refuses offset 2 again.
    let noted = Schemas::of(&table, &[]).unwrap().unwrap();
    assert!(noted.unsettled(payloads[2], 0, 2, &mut None).is_none());
    assert!(noted.unsettled(payloads[2], 0, 3, &mut None).is_some());
}
