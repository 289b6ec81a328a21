//! An Elasticsearch of a test's own, beside that of the others: it may be killed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::harness::Elasticsearch;

pub struct OwnElasticsearch {
    folder: TempDir,
    ports: [u16; 2],
}

fn services() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/services")
}

impl OwnElasticsearch {
    pub fn start() -> Self {
        // Both held until both are drawn, so that they differ.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        let mut server = Self { folder: TempDir::new().unwrap(), ports };
        server.start_again();
        server
    }

    fn services(&self, arguments: &[&str]) {
        let output = Command::new(services())
            .args(arguments)
            .env("SERVICES_DATA", self.folder.path())
            .env("ELASTICSEARCH_PORT", self.ports[0].to_string())
            .env("ELASTICSEARCH_TRANSPORT_PORT", self.ports[1].to_string())
            .env("ELASTICSEARCH_HEAP", "256m")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    pub fn client(&self) -> Elasticsearch {
        Elasticsearch { url: self.url() }
    }

    /// SIGKILL, by its pid.
    pub fn kill(&mut self) {
        self.services(&["kill", "elasticsearch", "node"]);
    }

    /// With the data that it had.
    pub fn start_again(&mut self) {
        self.services(&["up", "elasticsearch"]);
        let health = "_cluster/health?wait_for_status=yellow&timeout=50s";
        let (status, answer) = self.client().request("GET", health, None);
        assert_eq!((status, &answer["timed_out"]), (200, &false.into()), "{answer}");
    }
}

impl Drop for OwnElasticsearch {
    fn drop(&mut self) {
        let down =
            Command::new(services()).args(["wipe", "elasticsearch"]).env("SERVICES_DATA", self.folder.path()).output();
        // A test that has failed already says more.
        if let Err(error) = down {
            eprintln!("an Elasticsearch in {} was not stopped: {error}", self.folder.path().display());
        }
    }
}
