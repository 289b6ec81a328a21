//! A real S3 server, and its own view of what it holds: an object is a file in the folder of its bucket, so nothing of the engine's
//! client is between it and a test.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use super::wait_for;

#[derive(Debug, Clone)]
pub struct S3 {
    bucket: String,
    /// Of the bucket, on the server's disk.
    folder: PathBuf,
    pub endpoint: String,
}

impl S3 {
    pub fn of_environment() -> Self {
        let [bucket, folder, endpoint] = ["S3_BUCKET", "S3_FOLDER", "AWS_ENDPOINT_URL"].map(|name| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this through `make test`"))
        });
        Self { bucket, folder: folder.into(), endpoint }
    }

    pub fn url(&self, path: &str) -> String {
        format!("s3://{}/{path}", self.bucket)
    }

    /// What is below a path. There is none before the first object.
    pub fn folder(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// What goes on in the background of a sink may put something there a moment after the sink is gone.
    pub fn delete(&self, path: &str) {
        wait_for("an empty folder", Duration::from_secs(30), || match std::fs::remove_dir_all(self.folder(path)) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => None,
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{path}: {error}"),
            _ => Some(()),
        });
    }
}
