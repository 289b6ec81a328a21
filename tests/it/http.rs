//! What all that is asked over HTTP has in common: whose certificates are trusted, and proxies of the environment.

use crate::elasticsearch::proxy::{Certificates, Proxy};
use crate::harness::Answering;
use crate::recovery::project::{Project, QUERIES, Servers, contains};

/// Of the proxy: in no log.
const PASSWORD: &str = "proxy-planted-9c27";

/// Writes Avro, so that a start asks the registry first.
const AVRO: &str = "
CREATE EXTERNAL TABLE kafka.avro (id BIGINT) STORED AS KAFKA LOCATION '${COPIES}' OPTIONS ('brokers' '${KAFKA_BROKER}',
  'transactional' '${TRANSACTIONS}', 'format' 'avro', 'schema.registry.url' '${REGISTRY}', 'schema.registry.ca' '${TRUSTED}');
INSERT INTO kafka.avro SELECT id FROM valid;
";

fn project(registry: &str, trusted: &str) -> Project {
    let mut project = Project::new(Servers::Embedded);
    let (begin, end) =
        (QUERIES.find("INSERT INTO kafka.copies").unwrap(), QUERIES.find("INSERT INTO kafka.dead").unwrap());
    project.environment.extend([("REGISTRY", registry.to_string()), ("TRUSTED", trusted.to_string())]);
    // One table a topic.
    let queries = format!("{}{}{AVRO}", &QUERIES[..begin], &QUERIES[end..]);
    let copies = queries.find("CREATE EXTERNAL TABLE kafka.copies").unwrap();
    let dead = queries.find("CREATE EXTERNAL TABLE kafka.dead").unwrap();
    project.write(&format!("{}{}", &queries[..copies], &queries[dead..]));
    project
}

/// A file of authorities is all that is trusted: whoever has a certificate of another is not the registry. S3: see there.
#[test]
fn with_a_file_of_authorities_a_registry_is_known_by_no_others() {
    let certificates = Certificates::make();
    let registry = Answering::start(|_| (200, r#"{"id": 7}"#.into()));
    let proxy = Proxy::start(&certificates, &registry.url, &[""]);
    let [ca, other] = ["ca.pem", "other-ca.pem"].map(|file| certificates.path(file));
    for (of_system, trusted, is_known) in
        [(&ca, "", true), (&other, "", false), (&other, &ca, true), (&ca, &other, false)]
    {
        let mut project = project(&proxy.url(), trusted);
        if trusted.is_empty() {
            project.write(
                &std::fs::read_to_string(project.path("queries/all.sql"))
                    .unwrap()
                    .replace(", 'schema.registry.ca' '${TRUSTED}'", ""),
            );
        }
        // Where the system's authorities are.
        project.environment.insert("SSL_CERT_FILE", of_system.clone());
        match is_known {
            true => drop(project.run(&[])),
            false => {
                contains(&project.refused(&[]), &["the schema registry's certificate is not trusted", "UnknownIssuer"])
            }
        }
    }
}

#[test]
fn proxies_of_the_environment_are_asked_by_all_that_speak_http() {
    let proxy = Answering::start(|_| (403, "{}".into()));
    let through = proxy.url.replace("http://", &format!("http://me:{PASSWORD}@"));
    let start = |host: &str, no_proxy: &str| {
        let mut project = project("http://registry.invalid:8081", "");
        let queries = std::fs::read_to_string(project.path("queries/all.sql")).unwrap();
        let queries = queries.replace(", 'schema.registry.ca' '${TRUSTED}'", "");
        let without = queries[..queries.len() - AVRO.len() + ", 'schema.registry.ca' '${TRUSTED}'".len()].to_string();
        match host {
            "registry.invalid" => project.write(&queries),
            "search.invalid" => {
                project.environment.insert("ES_URL", "http://search.invalid:9200".into());
                project.write(&without);
            }
            _ => {
                let s3 = [
                    ("AWS_ENDPOINT_URL", "http://s3.invalid"),
                    ("AWS_ALLOW_HTTP", "true"),
                    ("AWS_ACCESS_KEY_ID", "a"),
                    ("AWS_SECRET_ACCESS_KEY", "b"),
                    ("AWS_SESSION_TOKEN", ""),
                    ("CHECKPOINT_BASE", "s3://bucket/checkpoint"),
                ];
                project.environment.extend(s3.map(|(name, value)| (name, value.to_string())));
                project.write(&without);
            }
        }
        let variables = [("HTTP_PROXY", through.as_str()), ("NO_PROXY", no_proxy), ("POUNDLOCK_LOG", "trace")];
        project.environment.extend(variables.map(|(name, value)| (name, value.to_string())));
        let mut program = project.start(&["--until-caught-up"], "");
        let code = program.wait(2 * crate::recovery::project::LIMIT).code();
        let log = program.log();
        assert!(code == Some(2) && log.contains("TRACE"), "{log}");
        assert!(!log.contains(PASSWORD), "the log shows the password of the proxy");
        log
    };
    for host in ["registry.invalid", "search.invalid", "s3.invalid"] {
        let before = proxy.requests().len();
        start(host, "");
        let asked = proxy.requests()[before..].to_vec();
        assert!(
            !asked.is_empty() && asked.iter().all(|line| line.contains(&format!(" http://{host}"))),
            "{host}: {asked:?}"
        );
    }
    // What NO_PROXY names is asked itself.
    let before = proxy.requests().len();
    start("s3.invalid", "s3.invalid");
    assert_eq!(proxy.requests().len(), before);
}
