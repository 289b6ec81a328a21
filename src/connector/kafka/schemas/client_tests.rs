use super::super::fake::FakeRegistry;
use super::*;

fn client(registry: &FakeRegistry) -> Registry {
    Registry::try_new(&registry.options()).unwrap()
}

fn schema(registry: &FakeRegistry) -> SchemaText {
    match client(registry).schema(7).unwrap() {
        Found::Schema(text) => text,
        other => panic!("{other:?}"),
    }
}

fn unusable(registry: &FakeRegistry) -> String {
    match client(registry).schema(7).unwrap() {
        Found::Unusable(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_schema_comes_with_all_that_it_refers_to_in_order() {
    let registry = FakeRegistry::start(|request| {
        let answer = match request {
            "GET /schemas/ids/7" => {
                r#"{"schema": "A", "references": [{"name": "B", "subject": "s/b", "version": 1}, {"name": "C", "subject": "c", "version": 2}]}"#
            }
            "GET /subjects/s%2Fb/versions/1" => {
                r#"{"schema": "B", "id": 3, "references": [{"name": "C", "subject": "c", "version": 2}]}"#
            }
            "GET /subjects/c/versions/2" => r#"{"schema": "C", "id": 4}"#,
            other => panic!("{other}"),
        };
        (200, answer.to_string())
    });
    let text = schema(&registry);
    assert_eq!((text.schema.as_str(), text.kind.as_str()), ("A", "AVRO"));
    assert_eq!(text.references, ["C", "B"]);
}

/// Two ways to one schema: it is asked for once, and comes before both that need it.
#[test]
fn what_several_refer_to_is_asked_for_once() {
    let refers = |to: &[&str]| {
        let one = |name: &&str| format!(r#"{{"name": "{name}", "subject": "{name}", "version": 1}}"#);
        to.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let registry = FakeRegistry::start(move |request| {
        let (name, to): (_, &[&str]) = match request {
            "GET /schemas/ids/7" => ("A", &["B", "C", "D"]),
            "GET /subjects/B/versions/1" => ("B", &["D"]),
            "GET /subjects/C/versions/1" => ("C", &["D", "B"]),
            "GET /subjects/D/versions/1" => ("D", &[]),
            other => panic!("{other}"),
        };
        (200, format!(r#"{{"schema": "{name}", "references": [{}]}}"#, refers(to)))
    });
    let text = schema(&registry);
    assert_eq!((text.schema.as_str(), text.references.join("")), ("A", "DBC".to_string()));
    assert_eq!(registry.requests().len(), 4, "{:?}", registry.requests());
}

#[test]
fn references_that_have_no_end_are_told_as_such() {
    let number = |request: &str| -> u32 {
        let path = request.trim_start_matches("GET /schemas/ids/").trim_start_matches("GET /subjects/");
        path.trim_end_matches("/versions/1").parse().unwrap()
    };
    let refers = |to: &[u32]| {
        let one = |number: &u32| format!(r#"{{"name": "x", "subject": "{number}", "version": 1}}"#);
        let list = to.iter().map(one).collect::<Vec<_>>().join(", ");
        (200, format!(r#"{{"schema": "s", "references": [{list}]}}"#))
    };
    let registry = FakeRegistry::start(move |request| refers(&[number(request) + 1]));
    let says = |part: &str, requests: std::ops::RangeInclusive<usize>| {
        let before = registry.requests().len();
        let why = unusable(&registry);
        assert!(why.contains(part), "{part:?} is not in {why}");
        let asked = registry.requests().len() - before;
        assert!(requests.contains(&asked), "{asked}");
    };
    says("and so on, more than 32 times", 33..=33);
    registry.answers(move |request| refers(&[(number(request) + 1) % 10]));
    says("version 1 of \"8\" refers to itself", 10..=11);
    registry.answers(move |request| match number(request) {
        7 => refers(&(100..250).collect::<Vec<_>>()),
        _ => refers(&[]),
    });
    says("it refers to more than 100 others", 101..=101);
}

#[test]
fn what_a_registry_answers_decides_what_is_done() {
    let registry = FakeRegistry::start(|_| (404, r#"{"error_code": 40403, "message": "Schema 7 not found."}"#.into()));
    assert_eq!(client(&registry).schema(7).unwrap(), Found::Unknown);
    let says = |status: u16, body: &'static str| {
        registry.answers(move |_| (status, body.to_string()));
        let error = client(&registry).schema(7).unwrap_err();
        (error.fault(), error.is_retryable(), error.to_string())
    };
    use crate::Fault::{External, User};
    let (fault, retry, text) = says(404, r#"{"error_code": 404, "message": "HTTP 404 Not Found"}"#);
    assert!(fault == User && !retry && text.contains("no schema registry at this address"), "{text}");
    let (fault, retry, text) = says(401, "");
    assert!(fault == User && !retry && text.contains("refuses the credentials"), "{text}");
    let (fault, retry, text) = says(503, r#"{"message": "try later"}"#);
    assert!(fault == External && retry && text.contains("cause: try later"), "{text}");
    let (fault, retry, text) = says(200, "<html>");
    assert!(fault == External && !retry && text.contains("not JSON"), "{text}");
    let (_, _, text) = says(409, r#"{"message": "field a has gone", "error_code": 409}"#);
    assert!(text.contains("not compatible") && text.contains("cause: field a has gone"), "{text}");
}

#[test]
fn the_next_address_is_asked_where_one_does_not_answer() {
    let registry = FakeRegistry::start(|_| (200, r#"{"id": 12}"#.into()));
    // Nobody listens at the port of discard.
    let urls = vec!["http://127.0.0.1:9".to_string(), registry.url.clone()];
    let client = Registry::try_new(&RegistryOptions::new(urls)).unwrap();
    assert_eq!(client.register("a topic-value", "{}").unwrap(), 12);
    assert_eq!(registry.requests(), [r#"POST /subjects/a%20topic-value/versions {"schema":"{}"}"#]);
    let nobody = Registry::try_new(&RegistryOptions::new(vec!["http://127.0.0.1:9".into()])).unwrap();
    assert!(nobody.schema(1).unwrap_err().is_retryable());
}

#[test]
fn credentials_are_sent_and_never_printed() {
    let registry = FakeRegistry::start(|_| (500, String::new()));
    let url = registry.url.replace("http://", "http://me:hunter2-secret@");
    let inside = RegistryOptions::new(vec![url]);
    let beside =
        RegistryOptions { user: Some("me".into()), password: Some("hunter2-secret".into()), ..registry.options() };
    for options in [inside, beside] {
        let error = Registry::try_new(&options).unwrap().schema(1).unwrap_err();
        let printed = format!("{error} {error:?} {options:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
    }
    let requests = registry.requests();
    assert!(requests.iter().all(|request| request.ends_with(" Basic bWU6aHVudGVyMi1zZWNyZXQ=")), "{requests:?}");
}

#[test]
fn a_body_that_is_too_long_is_not_read_to_its_end() {
    let registry = FakeRegistry::start(|_| (200, "x".repeat(BODY_BYTES_MAX + 1)));
    assert_eq!(unusable(&registry), "the answer has more than 4194304 bytes");
    registry.answers(|_| (403, "x".repeat(BODY_BYTES_MAX + 1)));
    let error = client(&registry).schema(1).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("more than 4194304 bytes"), "{error}");
}

#[test]
fn a_reference_that_is_missing_is_wrong_with_that_schema_alone() {
    let registry = FakeRegistry::start(|request| match request {
        "GET /schemas/ids/7" => {
            (200, r#"{"schema": "A", "references": [{"name": "B", "subject": "b", "version": 1}]}"#.into())
        }
        _ => (404, r#"{"error_code": 40402, "message": "Version 1 not found."}"#.into()),
    });
    assert_eq!(unusable(&registry), "it refers to version 1 of \"b\", which is missing: Version 1 not found.");
}

/// A registry cannot read it as a number, and answers as if nothing was there: garbage that looks framed has such ids.
#[test]
fn an_id_that_is_no_int_of_java_is_not_asked_for() {
    let registry = FakeRegistry::start(|request| panic!("{request}"));
    for id in [u32::MAX, ID_MAX + 1] {
        assert_eq!(client(&registry).schema(id).unwrap(), Found::Unknown);
    }
}

#[test]
fn a_file_of_certificates_must_be_one() {
    let options = |ca: &str| RegistryOptions { ca: Some(ca.into()), ..RegistryOptions::new(vec!["https://x".into()]) };
    assert!(Registry::try_new(&options("/no/such/file")).unwrap_err().to_string().contains("schema.registry.ca"));
    assert!(Registry::try_new(&options("Cargo.toml")).unwrap_err().to_string().contains("no certificate"));
}
