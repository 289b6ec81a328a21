//! Fills the dimension tables of a fresh database with the samples of `data/`, through the database's own sink.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::csv::ReaderBuilder;
use uuid::Uuid;

use crate::connector::{self, Identity, InsertRows, TableDefinition, Wave, WriteRequest};
use crate::sql::Program;
use crate::{Error, Result};

/// Table in the database → its rows, as CSV with a header.
const SAMPLES: [(&str, &str); 1] = [("users", include_str!("../../../data/users.csv"))];

/// Makes and fills every dimension in a database that there is a sample of.
///
/// # Errors
/// The sample does not fit the declared columns; the database cannot be written.
pub async fn fill(program: &Program) -> Result<()> {
    for dimension in program.dimensions.iter().filter(|dimension| dimension.table.stored_as == "DATABASE") {
        let name = dimension.table.name.rsplit('.').next().unwrap_or_default();
        if let Some((_, csv)) = SAMPLES.iter().find(|(sample, _)| *sample == name) {
            write(&dimension.table, csv).await?;
        }
    }
    Ok(())
}

async fn write(table: &Arc<TableDefinition>, csv: &str) -> Result<()> {
    let failed =
        |e: &dyn std::fmt::Display| Error::user(format!("table {} does not take the sample", table.name)).cause(e);
    let reader = ReaderBuilder::new(Arc::clone(&table.schema)).with_header(true).build(csv.as_bytes());
    let rows = reader.and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>).map_err(|e| failed(&e))?;
    let rows = InsertRows { insert: 0, table: Arc::clone(table), rows, hash: String::new() };
    let request =
        WriteRequest { batch: 0, wave: Wave::Rows, planned_at: 0, offsets: BTreeMap::new(), inserts: vec![rows] };
    let identity =
        Identity { name: format!("sample of {}", table.name), uuid: Uuid::new_v4(), epoch: 1, takes_over: false };
    for mut sink in connector::sinks(std::slice::from_ref(table))? {
        sink.open(&identity).await?;
        let report = sink.write(&request).await?;
        if let Some(refusal) = report.refusals.first() {
            return Err(failed(&refusal.error));
        }
    }
    Ok(())
}
