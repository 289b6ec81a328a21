//! Plans, commits, state and blobs of one pipeline, on object storage.
pub mod record;
