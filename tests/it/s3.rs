//! Lake and checkpoint on S3: the same as on a disk, also with a server that goes away, answers that are lost, and a second
//! process that the kernel's lock does not keep out.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cli::text;
use crate::elasticsearch::proxy::Certificates;
use crate::harness::{Feeder, Program, Proxy, Way, World, wait_for};
use crate::judge::judge;
use crate::kill::first_batch;
use crate::recovery::contents::{self, assert_same};
use crate::recovery::project::{HISTORY, LATE, Project, QUERIES, Servers, contains};

const TO_THE_END: [&str; 2] = ["--until-caught-up", "--close-windows"];

#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and S3: make test"]
fn the_shipped_project_gives_on_s3_what_one_query_over_all_input_gives() {
    let world = World::on_s3("s3");
    Feeder::feed(&world, 1, 6_000);
    world.run(&TO_THE_END).succeed(Duration::from_secs(180));
    println!("{}", judge(&world));
    let count = count(&world);
    assert!(count > 4_000, "{count}");
    // Nothing is new; and what no commit lists is not read: a whole file of a batch that never was.
    let file = crate::pipeline::parquet_file(&world.lake());
    let name = file.file_name().unwrap().to_str().unwrap();
    let later = format!("{}-{:020}-000000.parquet", &name[..36], 1_000_000_000);
    fs::copy(&file, file.with_file_name(later)).unwrap();
    assert_eq!(self::count(&world), count);
    let log = world.run(&TO_THE_END).succeed(Duration::from_secs(60));
    let secret = std::env::var("AWS_SECRET_ACCESS_KEY").unwrap();
    assert!(!log.contains(&secret));
}

/// Rows of the lake, as `poundlock sql` counts them.
fn count(world: &World) -> u64 {
    let mut command = world.command(&["sql", "queries", "--format", "json", "-c"]);
    let output = command.arg("SELECT count(*) AS n, count(user_id) AS users FROM lake.user_events").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let row: serde_json::Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
    assert_eq!(row["n"], row["users"]);
    row["n"].as_u64().unwrap()
}

#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and S3: make test"]
fn of_two_processes_the_newer_goes_on_and_the_older_is_fenced() {
    let world = World::on_s3("s3_two");
    let feeder = Feeder::start(&world, 3, 1_000, 200_000);
    let queries = world.queries();
    let start = |number: usize| {
        let command = world.command(&["run", queries.to_str().unwrap(), "--trigger", "200ms"]);
        let mut program = Program::start(command, world.folder.join(format!("{number}.log")));
        first_batch(&mut program);
        program
    };
    let mut running = start(0);
    for number in 1..=4 {
        // Asleep in the middle of whatever it does, or awake.
        let sleeps = number % 2 == 0;
        if sleeps {
            running.signal("STOP");
        }
        let newer = start(number);
        if sleeps {
            running.signal("CONT");
        }
        let log = running.fails(Duration::from_secs(120));
        assert!(log.contains("fenced"), "{log}");
        running = newer;
    }
    running.interrupt();
    running.succeed(Duration::from_secs(60));
    feeder.stop();
    world.run(&TO_THE_END).succeed(Duration::from_secs(180));
    println!("{}", judge(&world));
}

#[test]
#[ignore = "needs Kafka, PostgreSQL, Elasticsearch and S3: make test"]
fn a_server_that_goes_away_is_waited_for_and_nothing_is_lost() {
    let mut world = World::on_s3("s3_away");
    let s3 = world.s3.as_mut().unwrap();
    let way = Proxy::start(&s3.endpoint);
    s3.endpoint = way.url();
    let feeder = Feeder::start(&world, 5, 1_500, 200_000);
    let mut program = world.run(&[]);
    first_batch(&mut program);
    let committed = |program: &Program| program.log().matches("INFO committed batch=").count();
    for how in [Way::Frozen, Way::Closed, Way::Frozen, Way::Closed] {
        way.set(how);
        let (told, sent) = (program.log().matches("trying again").count(), feeder.sent());
        wait_for("a while without the server", Duration::from_secs(60), || {
            program.must_live();
            let told = how == Way::Frozen || program.log().matches("trying again").count() > told + 2;
            (told && feeder.sent() > sent + 2_000).then_some(())
        });
        let before = committed(&program);
        way.set(Way::Open);
        wait_for("batches again", Duration::from_secs(90), || {
            program.must_live();
            (committed(&program) > before + 2).then_some(())
        });
    }
    program.interrupt();
    let log = program.succeed(Duration::from_secs(60));
    assert!(log.contains("could not") && log.contains("sink=\"checkpoint\""), "{log}");
    feeder.stop();
    world.run(&TO_THE_END).succeed(Duration::from_secs(180));
    println!("{}", judge(&world));
}

/// The server has done what it was asked, and nobody learns of it: what is there is known as one's own.
#[test]
#[ignore = "needs S3: make test"]
fn answers_that_are_lost_change_nothing() {
    let undisturbed = Project::new(Servers::Embedded).with_delta();
    let mut project = Project::new(Servers::Embedded).on_s3();
    for project in [&undisturbed, &project] {
        project.write(&format!("{QUERIES}{HISTORY}{LATE}"));
    }
    undisturbed.feed(0);
    undisturbed.run(&["--close-windows"]);
    let way = Proxy::start(&project.s3.as_ref().unwrap().endpoint);
    project.environment.insert("AWS_ENDPOINT_URL", way.url());
    let parts = [
        "/pipeline",
        "/epoch/",
        "/program/",
        "/plan/",
        "/_poundlock/",
        "/_delta_log/",
        ".parquet",
        "/refused/",
        "/commit/",
        "/state/",
    ];
    for part in parts.iter().chain(&parts) {
        way.lose_answer_to(part);
    }
    project.feed(0);
    project.run(&["--close-windows"]);
    let lost = way.lost();
    for part in parts {
        assert!(lost.iter().any(|line| line.contains(part)), "no answer to {part} was lost: {lost:#?}");
    }
    assert_same(&contents::of(&project), &contents::of(&undisturbed), "answers were lost");
}

#[test]
#[ignore = "needs S3: make test"]
fn what_cannot_work_is_told_with_what_helps() {
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = format!("http://{nowhere}");
    // Variables of the environment, and what is said then.
    type Case<'c> = (&'c [(&'static str, &'c str)], &'c [&'c str]);
    let cases: [Case; 7] = [
        (
            &[("CHECKPOINT_BASE", "s3://no-such-bucket/x")],
            &["checkpoint", "s3://no-such-bucket/x/", "NoSuchBucket", "make the bucket first"],
        ),
        (&[("LAKE", "s3://no-such-bucket/x")], &["table lake.events", "NoSuchBucket", "make the bucket first"]),
        (&[("AWS_SECRET_ACCESS_KEY", "wr0ng")], &["SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY is not that of"]),
        (&[("AWS_ACCESS_KEY_ID", "nobody")], &["is not known to that server: see AWS_ENDPOINT_URL"]),
        (&[("AWS_ALLOW_HTTP", "")], &["http is not allowed", "set AWS_ALLOW_HTTP=true"]),
        (&[("AWS_REGION", "mars-1")], &["AuthorizationHeaderMalformed", "AWS_REGION is the region of the bucket"]),
        (
            &[("AWS_ENDPOINT_URL", &nowhere)],
            &["Connection refused", "does the server run? AWS_ENDPOINT_URL says where"],
        ),
    ];
    let secret = std::env::var("AWS_SECRET_ACCESS_KEY").unwrap();
    std::thread::scope(|scope| {
        for (variables, parts) in cases {
            let secret = &secret;
            scope.spawn(move || {
                let mut project = Project::new(Servers::Embedded).on_s3();
                project.environment.extend(variables.iter().map(|(name, value)| (*name, (*value).to_string())));
                let log = format!("\n{}", project.refused(&[]));
                let (_, error) = log.split_once("\nerror: ").expect("an error as the last word");
                contains(error, parts);
                assert!(!log.contains(secret) && !log.contains("wr0ng") && !log.contains("StringToSign"), "{log}");
            });
        }
    });
}

/// A server of the test's own, killed when dropped.
pub struct Secured {
    server: Child,
    pub url: String,
}

impl Secured {
    /// With one bucket, and one user: id and secret of its key.
    pub fn start(certificates: &Certificates, folder: &Path, bucket: &str, (id, secret): (&str, &str)) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for name in [&format!("disk/{bucket}"), "sidecar"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let server = Command::new(std::env::var("S3_SERVER").expect("S3_SERVER: run this through `make test`"))
            .args(["--quiet", "--port", &format!("127.0.0.1:{port}")])
            .args(["--cert", &certificates.path("server.pem"), "--key", &certificates.path("server.key")])
            .args(["posix", "--sidecar"])
            .args([folder.join("sidecar"), folder.join("disk")])
            .env("ROOT_ACCESS_KEY", id)
            .env("ROOT_SECRET_KEY", secret)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let up = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        wait_for("the server with TLS", Duration::from_secs(30), up);
        Self { server, url: format!("https://127.0.0.1:{port}") }
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

#[test]
#[ignore = "needs S3: make test"]
fn a_server_is_known_by_the_authority_that_signed_its_certificate() {
    let (certificates, folder) = (Certificates::make(), tempfile::tempdir().unwrap());
    let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| std::env::var(name).unwrap());
    let server = Secured::start(&certificates, folder.path(), "lake", (&id, &secret));
    let read = |variables: &[(&str, &str)]| {
        fs::write(folder.path().join("disk/lake/users.csv"), "id,name\n1,Ann\n2,Bob\n").unwrap();
        let sql = "CREATE EXTERNAL TABLE users (id BIGINT, name VARCHAR) STORED AS CSV LOCATION 's3://lake/users.csv'
                   OPTIONS ('s3.ca_file' '${TRUSTED:-}')";
        let queries = folder.path().join("queries");
        fs::create_dir_all(&queries).unwrap();
        fs::write(queries.join("all.sql"), sql).unwrap();
        let mut command = crate::cli::poundlock(folder.path(), &["sql", "queries", "--format", "csv", "-c"]);
        command.arg("SELECT string_agg(name, '+' ORDER BY id) AS names FROM users");
        command.env("AWS_ENDPOINT_URL", &server.url).env("AWS_ALLOW_HTTP", "false").env("AWS_CA_BUNDLE", "");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        format!("{}{}", text(&output.stdout), text(&output.stderr))
    };
    let (ca, other) = (certificates.path("ca.pem"), certificates.path("other-ca.pem"));
    for trusted in [("AWS_CA_BUNDLE", ca.as_str()), ("TRUSTED", ca.as_str()), ("SSL_CERT_FILE", ca.as_str())] {
        contains(&read(&[trusted]), &["Ann+Bob"]);
    }
    // The last: with a file the authorities of the system do not count.
    let not_of_file = vec![("AWS_CA_BUNDLE", other.as_str()), ("SSL_CERT_FILE", ca.as_str())];
    for untrusted in [vec![], vec![("AWS_CA_BUNDLE", other.as_str())], not_of_file] {
        contains(&read(&untrusted), &["invalid peer certificate", "hint: name the certificate of who has signed"]);
    }
    contains(&read(&[("AWS_CA_BUNDLE", "/nowhere.pem")]), &["no certificates to trust", "/nowhere.pem"]);
    let odd = read(&[("AWS_CA_BUNDLE", ca.as_str()), ("AWS_POOL_IDLE_TIMEOUT", "1s")]);
    contains(&odd, &["does not go with a file of authorities", "AWS_POOL_IDLE_TIMEOUT has no effect there"]);
}
