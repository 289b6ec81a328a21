//! Servers of a test's own, beside those of the others: they may be killed, and started again with what they had.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{Elasticsearch, wait_for};

/// What `tests/services/services` knows of one: its name, its process, and the variables of its ports, the first of which clients use.
struct Kind {
    name: &'static str,
    process: &'static str,
    ports: &'static [&'static str],
}

/// Killed, and its data removed, when dropped.
pub struct Own {
    kind: &'static Kind,
    folder: TempDir,
    ports: Vec<u16>,
}

const ELASTICSEARCH: Kind =
    Kind { name: "elasticsearch", process: "node", ports: &["ELASTICSEARCH_PORT", "ELASTICSEARCH_TRANSPORT_PORT"] };
const POSTGRES: Kind =
    Kind { name: "postgres", process: "primary", ports: &["POSTGRES_PORT", "POSTGRES_REPLICA_PORT"] };
const KAFKA: Kind = Kind {
    name: "kafka",
    process: "broker1",
    ports: &["KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "KAFKA_TLS_PORT", "KAFKA_SSL_PORT"],
};

fn services() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/services")
}

impl Own {
    pub fn elasticsearch() -> Self {
        Self::start(&ELASTICSEARCH)
    }

    pub fn postgres() -> Self {
        Self::start(&POSTGRES)
    }

    pub fn kafka() -> Self {
        Self::start(&KAFKA)
    }

    fn start(kind: &'static Kind) -> Self {
        // All held until all are drawn, so that they differ.
        let free: Vec<TcpListener> = kind.ports.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = free.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(free);
        let folder = TempDir::new().unwrap();
        // PostgreSQL runs as a user of its own, who must be able to enter.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = Self { kind, folder, ports };
        server.start_again();
        server
    }

    fn services(&self, arguments: &[&str]) {
        let mut command = Command::new(services());
        command.args(arguments).env("SERVICES_DATA", self.folder.path());
        command.env("ELASTICSEARCH_HEAP", "256m").env("KAFKA_HEAP", "256m");
        command.envs(self.kind.ports.iter().zip(self.ports.iter().map(u16::to_string)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn is_kafka(&self) -> bool {
        self.kind.name == "kafka"
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    pub fn url(&self) -> String {
        match self.kind.name {
            "postgres" => format!("postgres://postgres:postgres@{}/postgres", self.address()),
            _ => format!("http://{}", self.address()),
        }
    }

    pub fn client(&self) -> Elasticsearch {
        Elasticsearch { url: self.url() }
    }

    /// SIGKILL, by its pid; returns when it is gone: PostgreSQL does not start beside one that is still there, be it dead.
    pub fn kill(&self) {
        let file = self.folder.path().join(format!("{}/run/{}.pid", self.kind.name, self.kind.process));
        let text = fs::read_to_string(file).unwrap();
        let process = Path::new("/proc").join(text.split(' ').next().unwrap());
        assert!(process.exists(), "{text}");
        self.services(&["kill", self.kind.name, self.kind.process]);
        wait_for("the end of the server", Duration::from_secs(30), || (!process.exists()).then_some(()));
    }

    /// With the data that it had; returns when it answers.
    pub fn start_again(&self) {
        self.services(&["up", self.kind.name]);
        if self.kind.name == "elasticsearch" {
            let health = "_cluster/health?wait_for_status=yellow&timeout=50s";
            let (status, answer) = self.client().request("GET", health, None);
            assert_eq!((status, &answer["timed_out"]), (200, &false.into()), "{answer}");
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let down =
            Command::new(services()).args(["wipe", self.kind.name]).env("SERVICES_DATA", self.folder.path()).output();
        // A test that has failed already says more.
        if let Err(error) = down {
            eprintln!("a server in {} was not stopped: {error}", self.folder.path().display());
        }
    }
}
