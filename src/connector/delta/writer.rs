//! Who writes into a table: its names in the log, and what of the table it stands on.

use deltalake_core::kernel::{Metadata, Transaction};
use uuid::Uuid;

use super::log::signed;
use crate::connector::Identity;
use crate::connector::parquet::Table;
use crate::{Error, Result};

/// Which start of which pipeline writes.
#[derive(Debug, Clone)]
pub struct Writer {
    pub pipeline: Uuid,
    pub epoch: u64,
    name: String,
}

impl Writer {
    pub fn new(identity: &Identity) -> Self {
        Self { pipeline: identity.uuid, epoch: identity.epoch, name: identity.name.clone() }
    }

    /// The application whose transactions are batches.
    pub fn batches(&self) -> String {
        format!("poundlock-{}", self.pipeline)
    }

    /// The application whose transactions are starts.
    pub fn epochs(&self) -> String {
        format!("poundlock-{}-epoch", self.pipeline)
    }

    /// Without a moment: a transaction that has one may be forgotten some day.
    pub fn epoch_transaction(&self) -> Transaction {
        Transaction::new(self.epochs(), signed(self.epoch))
    }

    /// The property that says which checkpoint writes by this name.
    pub fn property(&self) -> String {
        format!("poundlock.pipeline.{}", self.name)
    }

    pub fn fenced(&self, by: i64, table: &Table) -> Error {
        let error = format!(
            "fenced by epoch {by}: a newer start of pipeline {:?} writes to {}",
            self.name, table.definition.name
        );
        Error::external(error).hint("another process runs this pipeline (poundlock.name); only one may")
    }
}

/// What of a table's metadata concerns who writes it; all else may change under a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    columns: String,
    partition_columns: Vec<String>,
    /// UUID of the checkpoint whose pipeline writes by our name.
    owner: Option<String>,
}

impl Shape {
    pub fn of(metadata: &Metadata, writer: &Writer) -> Result<Self> {
        let internal = |e| Error::internal("the metadata of a Delta table").cause(e);
        let json = serde_json::to_value(metadata).map_err(internal)?;
        Ok(Self {
            columns: json["schemaString"].as_str().unwrap_or_default().into(),
            partition_columns: metadata.partition_columns().to_vec(),
            owner: metadata.configuration().get(&writer.property()).cloned(),
        })
    }
}
