//! Tables that a pipeline joins with: files and a database, read again while it runs, away, too large, behind.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{poundlock, text};
use crate::harness::{Program, Proxy, Way, psql, wait_for};
use crate::recovery::project::{LIMIT, Project, Servers, contains};

/// Events with a key, and a table in SQLite for what they were joined with.
const EVENTS: &str = "
SET poundlock.name = '${NAME}';
SET poundlock.trigger = '20 ms';
CREATE SCHEMA kafka;
CREATE SCHEMA db;
CREATE UNBOUNDED EXTERNAL TABLE kafka.events (id BIGINT, k VARCHAR) STORED AS KAFKA LOCATION '${EVENTS}'
  OPTIONS ('brokers' '${KAFKA_BROKER}', 'format' 'json');
CREATE EXTERNAL TABLE db.named (id BIGINT, name VARCHAR) STORED AS DATABASE LOCATION '${SQLITE}';
";

fn project(dimensions: &str) -> Project {
    let mut project = Project::new(Servers::Embedded);
    let sqlite = project.environment["DATABASE_URL"].clone();
    project.environment.insert("SQLITE", sqlite);
    project.write(&format!("{EVENTS}{dimensions}"));
    project
}

fn produce(project: &Project, id: i64) {
    project.produce(project.topic("EVENTS"), 0, [format!("{{\"id\":{id},\"k\":\"a\"}}")]);
}

fn named(project: &Project) -> Vec<String> {
    project.rows("SELECT id, name FROM named")
}

/// Whole at once, as whoever changes such a file should.
fn replace(path: &Path, content: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, content).unwrap();
    fs::rename(aside, path).unwrap();
}

fn says(program: &mut Program, line: &str) {
    wait_for(&format!("the line {line:?}"), LIMIT, || {
        program.must_live();
        program.log().contains(line).then_some(())
    });
}

/// A run that has made its tables.
fn start(project: &Project) -> Program {
    let mut program = project.start(&[], "");
    says(&mut program, "pipeline is running");
    program
}

/// Events until one is joined with such a name.
fn comes(project: &Project, program: &mut Program, id: &mut i64, name: &str) {
    wait_for(&format!("an event with {name}"), LIMIT, || {
        program.must_live();
        *id += 1;
        produce(project, *id);
        named(project).iter().any(|row| row.ends_with(&format!("|{name}"))).then_some(())
    });
}

/// What `poundlock sql` prints, and what it says.
fn ask(project: &Project, arguments: &[&str], sql: &str) -> (String, String) {
    let arguments = [&["sql", "queries", "--format", "csv"][..], arguments, &["-c", sql]].concat();
    let output = poundlock(project.folder.path(), &arguments).envs(&project.environment).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn files_of_every_kind_are_joined_with_and_read_again() {
    let project = project(
        "
CREATE EXTERNAL TABLE of_csv (rank INT, k VARCHAR, name VARCHAR) STORED AS CSV LOCATION 'names.csv' OPTIONS ('refresh' '100 ms');
CREATE EXTERNAL TABLE of_json (k VARCHAR, name VARCHAR) STORED AS JSON LOCATION 'json/' OPTIONS ('refresh' '100 ms');
CREATE EXTERNAL TABLE of_parquet (k VARCHAR, name VARCHAR) STORED AS PARQUET LOCATION 'parquet/' OPTIONS ('refresh' '100 ms');
INSERT INTO db.named SELECT id, concat_ws('+', c.name, j.name, p.name) FROM kafka.events e
  JOIN of_csv c ON c.k = e.k JOIN of_json j ON j.k = e.k JOIN of_parquet p ON p.k = e.k;
",
    );
    fs::create_dir(project.path("json")).unwrap();
    fs::create_dir(project.path("parquet")).unwrap();
    let csv = |name: &str| replace(&project.path("names.csv"), &format!("rank,k,name\n1,b,x\n2,a,{name}\n"));
    let json = |name: &str| {
        replace(&project.path("json/names.json"), &format!("{{\"k\":\"a\",\"name\":\"{name}\",\"more\":1}}\n"))
    };
    let parquet = |name: &str| {
        ask(
            &project,
            &["--allow-writes"],
            &format!("COPY (SELECT 'a' AS k, '{name}' AS name, 7 AS more) TO 'aside.parquet'"),
        );
        fs::rename(project.path("aside.parquet"), project.path("parquet/names.parquet")).unwrap();
    };
    csv("c1");
    json("j1");
    parquet("p1");
    let mut program = start(&project);
    let mut id = 0;
    comes(&project, &mut program, &mut id, "c1+j1+p1");
    csv("c2");
    comes(&project, &mut program, &mut id, "c2+j1+p1");
    json("j2");
    comes(&project, &mut program, &mut id, "c2+j2+p1");
    parquet("p2");
    comes(&project, &mut program, &mut id, "c2+j2+p2");
    program.interrupt();
    program.succeed(LIMIT);
    project.run(&[]);
    assert_eq!(named(&project).len() as i64, id, "each event once");

    // What it was joined with stands in the commit of each batch: of_csv had two versions.
    let commits = project.commits();
    let pinned = commits.iter().map(|commit| &commit.dimensions["public.of_csv"]);
    let mut versions: Vec<&str> = pinned.clone().map(|pinned| pinned.version.as_str()).collect();
    versions.dedup();
    assert_eq!(versions.len(), 2);
    assert!(pinned.zip(&commits).all(|(pinned, commit)| pinned.read_at > 0 && pinned.read_at <= commit.planned_at));
    // And `status` tells it of the last one.
    let (last, status) = (commits.last().unwrap(), crate::outbox::status(&project));
    let told = status["dimensions"].as_array().unwrap();
    let names: Vec<&str> = told.iter().map(|told| told["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["public.of_csv", "public.of_json", "public.of_parquet"]);
    for told in told {
        let read_at = last.dimensions[told["name"].as_str().unwrap()].read_at;
        assert_eq!(
            (&told["read_at"], &told["age_s"]),
            (&read_at.into(), &((last.planned_at - read_at) / 1_000_000).into())
        );
    }
}

const NAMED: &str = "
CREATE EXTERNAL TABLE names (k VARCHAR, name VARCHAR) STORED AS CSV LOCATION 'names.csv'
  OPTIONS ('refresh' '100 ms', 'max_bytes' '4 KiB');
INSERT INTO db.named SELECT id, name FROM kafka.events e JOIN names n ON n.k = e.k;
";

#[test]
fn a_dimension_that_cannot_be_read_keeps_its_last_rows_and_says_so_once() {
    let project = project(NAMED);
    let file = project.path("names.csv");
    let count = |program: &Program, what: &str| program.log().matches(what).count();
    replace(&file, "k,name\na,first\n");
    let mut program = start(&project);
    let mut id = 0;
    comes(&project, &mut program, &mut id, "first");

    fs::remove_file(&file).unwrap();
    says(&mut program, "dimension keeps its last rows");
    // Until some more refreshes have failed.
    wait_for("a batch that joins with an old copy", LIMIT, || {
        program.must_live();
        id += 1;
        produce(&project, id);
        let last = project.commits().pop()?;
        (last.planned_at - last.dimensions["public.names"].read_at > 1_000_000).then_some(())
    });
    says(&mut program, "stale=\"public.names ");
    assert!(named(&project).iter().all(|row| row.ends_with("|first")));
    assert_eq!(count(&program, "dimension keeps its last rows"), 1);
    contains(&program.log(), &["table public.names has no file"]);

    replace(&file, "k,name\na,second\n");
    comes(&project, &mut program, &mut id, "second");
    says(&mut program, "dimension is read again");
    assert_eq!(count(&program, "dimension is read again"), 1);

    replace(&file, &format!("k,name\na,{}\n", "x".repeat(8_000)));
    says(&mut program, "what is read of table public.names takes more than 4 KiB");
    produce(&project, id + 1);
    let last = format!("{}|second", id + 1);
    wait_for("the event", LIMIT, || named(&project).contains(&last).then_some(()));
    assert_eq!(named(&project).len() as i64, id + 1, "each event once: {:#?}", named(&project));
    assert!(named(&project).iter().all(|row| row.len() < 20), "the last rows");
    program.interrupt();
    program.succeed(LIMIT);
}

#[test]
fn a_dimension_that_is_too_large_or_away_is_an_error_at_the_start() {
    let project = project(NAMED);
    fs::write(project.path("names.csv"), format!("k,name\na,{}\n", "x".repeat(8_000))).unwrap();
    let refused = project.refused(&[]);
    contains(&refused, &["what is read of table public.names takes more than 4 KiB", "'max_bytes'", "all.sql:10:1"]);
    // Of a column that no query reads nothing is held.
    project.write(&format!("{EVENTS}{}", NAMED.replace("SELECT id, name", "SELECT id, n.k")));
    produce(&project, 1);
    project.run(&[]);
    assert_eq!(named(&project), ["1|a"]);
    fs::remove_file(project.path("names.csv")).unwrap();
    contains(&project.refused(&[]), &["table public.names has no file"]);
}

/// A database of PostgreSQL's for one test.
struct Database {
    url: String,
    server: String,
    name: String,
}

impl Database {
    fn new(project: &mut Project) -> Self {
        let server = variable("DATABASE_URL");
        let name = project.name.clone();
        psql(&server, &format!("CREATE DATABASE {name}"));
        let url = of_server(&server, &name);
        project.environment.insert("POSTGRES", url.clone());
        Self { url, server, name }
    }

    fn sql(&self, statement: &str) -> String {
        psql(&self.url, statement).trim().to_string()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        psql(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
}

fn of_server(url: &str, database: &str) -> String {
    format!("{}/{database}", url.rsplit_once('/').expect("an address ends with /database").0)
}

/// Holds a table locked until it is dropped.
struct Locked(Child);

impl Locked {
    fn new(database: &Database, table: &str) -> Self {
        let statements = format!("LOCK TABLE {table}; SELECT pg_sleep(600)"); // one transaction
        let mut psql = Command::new("psql");
        psql.args([&database.url, "-X", "-q", "-c", &statements]);
        psql.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()); // it is ended from outside
        let locked = Self(psql.spawn().unwrap());
        wait_for("the lock", LIMIT, || {
            let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = ";
            (database.sql(&format!("{held}'{table}'::regclass")) == "1").then_some(())
        });
        locked
    }

    fn release(mut self, database: &Database) {
        database
            .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LOCK TABLE%pg_sleep(600)'");
        self.0.wait().unwrap();
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Two INSERTs read the same table: what the server is asked is what they need together.
#[test]
#[ignore = "needs PostgreSQL: make test"]
fn only_needed_columns_and_rows_are_asked_of_the_server() {
    let mut project = project(
        "
CREATE EXTERNAL TABLE db.users (k VARCHAR, name VARCHAR, region VARCHAR, level INT, active BOOLEAN, born DATE)
  STORED AS DATABASE LOCATION '${POSTGRES}';
INSERT INTO db.named SELECT id, u.name FROM kafka.events e JOIN db.users u ON u.k = e.k WHERE u.region = 'eu' AND u.active;
INSERT INTO db.named SELECT id, u.name FROM kafka.events e JOIN db.users u ON u.k = e.k
  WHERE u.level BETWEEN 3 AND 5 AND upper(u.name) LIKE 'A%' AND u.level <= e.id;
",
    );
    let database = Database::new(&mut project);
    database.sql(
        "CREATE TABLE users (k text, name text, region text, level int, active boolean, born date);
         INSERT INTO users VALUES ('a', 'Ann', 'eu', 9, true, NULL), ('a', 'Ada', 'us', 4, false, NULL),
           ('a', 'Bob', 'us', 4, false, NULL), ('a', 'Amy', 'eu', 9, false, NULL);
         ANALYZE users",
    );
    produce(&project, 7);
    let locked = Locked::new(&database, "users");
    let mut program = project.start(&["--until-caught-up"], "");
    let asked = wait_for("the statement that waits for the lock", LIMIT, || {
        program.must_live();
        let asked = database.sql(
            "SELECT query FROM pg_stat_activity
             WHERE application_name = 'poundlock' AND wait_event_type = 'Lock' AND datname = current_database()",
        );
        (!asked.is_empty()).then_some(asked)
    });
    locked.release(&database);
    program.succeed(LIMIT);
    assert_eq!(named(&project), ["7|Ada", "7|Ann"]);
    let (columns, conditions) = asked.split_once(" WHERE ").unwrap_or_else(|| panic!("all rows: {asked}"));
    for (column, is_read) in
        [("k", true), ("name", true), ("region", true), ("level", true), ("active", true), ("born", false)]
    {
        assert_eq!(columns.contains(&format!("\"{column}\"")), is_read, "{asked}");
    }
    contains(
        conditions,
        &["\"region\"::text = 'eu'", "\"active\" = true", " OR ", "\"level\" >= (3)", "\"level\" <= (5)"],
    );
}

/// Lets a replica replay again, whatever happens.
struct Paused<'a>(&'a str);

impl<'a> Paused<'a> {
    fn new(replica: &'a str) -> Self {
        psql(replica, "SELECT pg_wal_replay_pause()");
        let paused = Self(replica);
        wait_for("the replica to pause", LIMIT, || {
            (psql(replica, "SELECT pg_get_wal_replay_pause_state()").trim() == "paused").then_some(())
        });
        paused
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        psql(self.0, "SELECT pg_wal_replay_resume()");
    }
}

/// The only test that reads the replica, since it holds it up.
#[test]
#[ignore = "needs PostgreSQL with a replica: make test"]
fn a_replica_is_read_and_the_primary_where_it_does_not_answer() {
    let dimension = "
CREATE EXTERNAL TABLE db.users (k VARCHAR, name VARCHAR) STORED AS DATABASE LOCATION '${POSTGRES}'
  OPTIONS ('replica' '${REPLICA}', 'refresh' '100 ms');
CREATE EXTERNAL TABLE db.zones (k VARCHAR) STORED AS DATABASE LOCATION '${POSTGRES}' OPTIONS ('replica' '${REPLICA}');
INSERT INTO db.named SELECT id, name FROM kafka.events e JOIN db.users u ON u.k = e.k;
";
    let mut project = project(dimension);
    let database = Database::new(&mut project);
    let replica = of_server(&variable("DATABASE_REPLICA_URL"), &database.name);
    project.environment.insert("REPLICA", replica.clone());
    let server = variable("DATABASE_REPLICA_URL");
    database.sql("CREATE TABLE users (k text, name text); INSERT INTO users VALUES ('a', 'first')");
    wait_for("the replica", LIMIT, || {
        let known = format!("SELECT count(*) FROM pg_database WHERE datname = '{}'", database.name);
        let table = "SELECT to_regclass('users') IS NOT NULL";
        (psql(&server, &known).trim() == "1" && psql(&replica, table).trim() == "t").then_some(())
    });
    wait_for("its row", LIMIT, || (psql(&replica, "SELECT name FROM users").trim() == "first").then_some(()));

    // It is the replica that is read: what it has not replayed is not seen.
    let paused = Paused::new(&server);
    database.sql("UPDATE users SET name = 'second'; CREATE TABLE zones (k text); INSERT INTO zones VALUES ('north')");
    let mut program = start(&project);
    let mut id = 0;
    comes(&project, &mut program, &mut id, "first");
    assert_eq!(ask(&project, &[], "SELECT name FROM db.users").0, "name\nfirst\n");
    // A migration that it has not replayed either is no error.
    let (rows, said) = ask(&project, &[], "SELECT k FROM db.zones");
    assert_eq!(rows, "k\nnorth\n");
    contains(&said, &["the replica cannot be read, the primary is read instead", "table zones is not in the database"]);
    drop(paused);
    comes(&project, &mut program, &mut id, "second");
    program.interrupt();
    let log = program.succeed(LIMIT);
    assert!(!log.contains("the replica cannot be read"), "{log}");

    // One that is away: said once, however often the dimension is read.
    project.environment.insert("REPLICA", "postgres://postgres:hidden@127.0.0.1:1/away".into());
    let mut program = start(&project);
    says(&mut program, "the replica cannot be read, the primary is read instead");
    database.sql("UPDATE users SET name = 'third'");
    comes(&project, &mut program, &mut id, "third");
    program.interrupt();
    let log = program.succeed(LIMIT);
    assert_eq!(log.matches("the replica cannot be read").count(), 1, "{log}");
    assert!(!log.contains("hidden"), "{log}");
}

const USERS: &str = "
CREATE EXTERNAL TABLE db.users (k VARCHAR, name VARCHAR) STORED AS DATABASE LOCATION '${POSTGRES}'
  OPTIONS ('replica' '${REPLICA:-}', 'refresh' '100 ms', 'connect_timeout' '1 second', 'timeout' '1 second');
INSERT INTO db.named SELECT id, name FROM kafka.events e JOIN db.users u ON u.k = e.k;
";

/// Its first rows are those of the replica: half of one and half of another are nobody's.
#[test]
#[ignore = "needs PostgreSQL with a replica: make test"]
fn of_a_replica_that_fails_after_its_first_rows_none_count() {
    let mut project = project(USERS);
    let database = Database::new(&mut project);
    let replica = of_server(&variable("DATABASE_REPLICA_URL"), &database.name);
    // Ten thousand rows on the way, then an error, where it is a replica that is asked.
    database.sql(
        "CREATE TABLE people (k text, name text); INSERT INTO people VALUES ('a', 'first');
         CREATE FUNCTION fails(n int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
           IF n > 10000 AND pg_is_in_recovery() THEN RAISE EXCEPTION 'of the replica' USING ERRCODE = 'XX001'; END IF;
           RETURN 'b';
         END $$;
         CREATE VIEW users AS
         SELECT k, CASE WHEN pg_is_in_recovery() THEN 'of a replica' ELSE name END AS name FROM people
         UNION ALL SELECT fails(n), '' FROM generate_series(1, 20000) n",
    );
    let known = format!("SELECT count(*) FROM pg_database WHERE datname = '{}'", database.name);
    wait_for("the replica", LIMIT, || {
        let server = variable("DATABASE_REPLICA_URL");
        let view = "SELECT to_regclass('users') IS NOT NULL";
        (psql(&server, &known).trim() == "1" && psql(&replica, view).trim() == "t").then_some(())
    });
    project.environment.insert("REPLICA", replica);
    let failed = "the replica cannot be read, the primary is read instead";
    // At a start: read again, of the primary.
    let mut program = start(&project);
    contains(&program.log(), &[failed, "of the replica", "could not read the dimension, trying again"]);
    let mut id = 0;
    comes(&project, &mut program, &mut id, "first");
    database.sql("UPDATE people SET name = 'second'");
    comes(&project, &mut program, &mut id, "second");
    program.interrupt();
    program.succeed(LIMIT);
    assert!(named(&project).iter().all(|row| !row.ends_with("of a replica")), "{:?}", named(&project));
}

/// What a server that hangs does before it does.
#[derive(Debug, Clone, Copy)]
enum Hangs {
    /// It takes connections.
    AtOnce,
    /// It lets everybody in.
    AfterLogIn,
    /// It answers the first statement.
    AfterAStatement,
}

/// Takes connections on a port of its own; its address. It ends with the test's process.
fn hanging(hangs: Hangs) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = vec![];
        for mut client in listener.incoming().flatten() {
            let answer = |client: &mut TcpStream, bytes: &[u8]| client.write_all(bytes).is_ok();
            // A message of a client: but for the first one, a letter; its length; the rest.
            let read = |client: &mut TcpStream, letter: usize| {
                let mut head = vec![0; letter + 4];
                client.read_exact(&mut head).unwrap();
                let length = u32::from_be_bytes(head[letter..].try_into().unwrap()) as usize;
                client.read_exact(&mut vec![0; length - 4]).unwrap();
            };
            const READY: &[u8] = b"Z\0\0\0\x05I";
            if !matches!(hangs, Hangs::AtOnce) {
                read(&mut client, 0);
                answer(&mut client, &[b"R\0\0\0\x08\0\0\0\0", READY].concat());
            }
            if matches!(hangs, Hangs::AfterAStatement) {
                read(&mut client, 1);
                answer(&mut client, &[b"C\0\0\0\x08SET\0", READY].concat());
            }
            held.push(client);
        }
    });
    format!("postgres://postgres@127.0.0.1:{port}/hangs")
}

#[test]
fn a_server_that_hangs_is_an_error_at_a_start() {
    std::thread::scope(|scope| {
        for (hangs, says) in
            [(Hangs::AtOnce, "in time"), (Hangs::AfterLogIn, "in time"), (Hangs::AfterAStatement, "no answer from")]
        {
            scope.spawn(move || {
                let mut project = project(USERS);
                project.environment.insert("POSTGRES", hanging(hangs));
                let began = Instant::now();
                let log = project.refused(&[]);
                let (_, error) = log.rsplit_once("\nerror: ").unwrap();
                contains(error, &[says, "127.0.0.1"]);
                contains(&log, &["could not read the dimension, trying again"]);
                assert!(began.elapsed() < Duration::from_secs(50), "{hangs:?}: {:?}", began.elapsed());
            });
        }
    });
}

#[test]
#[ignore = "needs PostgreSQL: make test"]
fn a_server_that_hangs_leaves_the_last_rows_and_a_replica_that_does_the_primary() {
    let mut project = project(USERS);
    let database = Database::new(&mut project);
    database.sql("CREATE TABLE users (k text, name text); INSERT INTO users VALUES ('a', 'first')");
    let (user, rest) = database.url.split_once('@').unwrap();
    let (place, name) = rest.split_once('/').unwrap();
    let way = Proxy::start(place);
    let through = way.url().replace("http://", &format!("{user}@"));
    project.environment.insert("POSTGRES", format!("{through}/{name}"));
    let mut program = start(&project);
    let mut id = 0;
    comes(&project, &mut program, &mut id, "first");
    way.set(Way::Frozen);
    says(&mut program, "dimension keeps its last rows");
    let last = id;
    wait_for("events that are joined with the last rows", LIMIT, || {
        program.must_live();
        id += 1;
        produce(&project, id);
        (named(&project).len() as i64 > last + 5).then_some(())
    });
    assert!(named(&project).iter().all(|row| row.ends_with("|first")));
    database.sql("UPDATE users SET name = 'second'");
    way.set(Way::Open);
    comes(&project, &mut program, &mut id, "second");
    says(&mut program, "dimension is read again");
    assert_eq!(program.log().matches("dimension keeps its last rows").count(), 1, "{}", program.log());
    program.interrupt();
    program.succeed(LIMIT);

    for hangs in [Hangs::AtOnce, Hangs::AfterLogIn, Hangs::AfterAStatement] {
        project.environment.insert("REPLICA", hanging(hangs));
        let mut program = start(&project);
        contains(&program.log(), &["the replica cannot be read, the primary is read instead"]);
        let name = format!("{hangs:?}");
        database.sql(&format!("UPDATE users SET name = '{name}'"));
        comes(&project, &mut program, &mut id, &name);
        program.interrupt();
        program.succeed(LIMIT);
    }
}

#[test]
fn a_replica_is_of_postgres_and_has_an_address() {
    let check = |location: &str, replica: &str| {
        let folder = tempfile::tempdir().unwrap();
        let table = format!(
            "CREATE EXTERNAL TABLE users (k VARCHAR) STORED AS DATABASE LOCATION '{location}' OPTIONS ('replica' '${{REPLICA}}');"
        );
        let sql = format!(
            "{EVENTS}{table} INSERT INTO db.named SELECT id, e.k FROM kafka.events e JOIN users u ON u.k = e.k;"
        );
        fs::create_dir(folder.path().join("queries")).unwrap();
        fs::write(folder.path().join("queries/all.sql"), sql).unwrap();
        let mut command = poundlock(folder.path(), &["check"]);
        command.env("REPLICA", replica);
        for (name, value) in [("NAME", "n"), ("EVENTS", "e"), ("KAFKA_BROKER", "localhost:1"), ("SQLITE", "sqlite:x")] {
            command.env(name, value);
        }
        let output = command.output().unwrap();
        (output.status.success(), text(&output.stderr))
    };
    assert!(check("postgres://host/db", "").0, "none");
    assert!(check("postgres://host/db", "postgres://other/db").0);
    let (_, said) = check("sqlite:x", "postgres://other/db");
    contains(&said, &["option 'replica' of table public.users is for PostgreSQL", "all.sql:9"]);
    let (_, said) = check("postgres://host/db", "mysql://me:hidden@other/db");
    contains(&said, &["not the address of a database", "mysql://me:***@other/db"]);
    assert!(!said.contains("hidden"), "{said}");
}
