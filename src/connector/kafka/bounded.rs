//! A topic as a bounded table, for ad-hoc SQL: what is in it when the query begins, chunk by chunk as it comes.
//!
//! All columns are decoded whatever the query asks for: whether a record decodes depends on every one of them.
//! A query that stops early (LIMIT) drops the stream, and with it the reader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream::try_unfold;

use super::options::KafkaTable;
use super::rows::{CHUNK_ROWS, head};
use super::source::{KafkaSource, KafkaSourceTable};
use crate::Result;
use crate::connector::{BoundedTable, CutLimit, Source, StartingOffsets, TableDefinition};

/// Decoded rows that wait for the query.
const BUFFER_BYTES: usize = 16 << 20;

/// Group of ad-hoc reads; nothing is ever committed to it.
const GROUP: &str = "poundlock-sql";

/// The topic's records from the first to the last that is there when a query begins.
///
/// # Errors
/// Of the user: options or columns that cannot be. Nothing is connected to until a query runs.
pub fn bounded_table(definition: Arc<TableDefinition>) -> Result<BoundedTable> {
    let schema = Arc::clone(&definition.schema);
    let mut table = KafkaSourceTable::try_new(definition)?.table().clone();
    table.starting_offsets = StartingOffsets::Earliest;
    Ok(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(Topic { table })])?))
}

#[derive(Debug)]
struct Topic {
    table: KafkaTable,
}

impl PartitionStream for Topic {
    fn schema(&self) -> &SchemaRef {
        &self.table.definition.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = try_unfold(Reading::NotYet(self.table.clone()), |reading| async {
            reading.next().await.map_err(|error| DataFusionError::External(Box::new(error)))
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(self.schema()), Box::pin(rows)))
    }
}

enum Reading {
    NotYet(KafkaTable),
    Open {
        source: KafkaSource,
        ready: VecDeque<RecordBatch>,
        /// Partitions that are still to be read, and how far.
        ends: BTreeMap<i32, i64>,
    },
}

impl Reading {
    async fn next(self) -> Result<Option<(RecordBatch, Self)>> {
        let (source, mut ready, mut ends) = match self {
            Self::Open { source, ready, ends } => (source, ready, ends),
            Self::NotYet(table) => {
                let source = KafkaSource::open(&table, GROUP, &BTreeMap::new(), BUFFER_BYTES).await?;
                let source = source.without_waiting_on_drop();
                let ends = source.end_at_start();
                (source, VecDeque::new(), ends)
            }
        };
        loop {
            if let Some(rows) = ready.pop_front() {
                return Ok(Some((rows, Self::Open { source, ready, ends })));
            }
            if ends.is_empty() {
                return Ok(None);
            }
            source.chunk_or_end().await;
            let cut = source.cut(&CutLimit::Available { rows: 4 * CHUNK_ROWS, bytes: BUFFER_BYTES }).await?;
            for chunk in cut.chunks {
                let Some(end) = ends.get(&chunk.partition) else { continue };
                let rows = chunk.offsets.partition_point(|offset| offset < end);
                if rows == chunk.offsets.len() {
                    ready.push_back(chunk.rows);
                } else if rows > 0 {
                    ready.push_back(head(&chunk.rows, rows)?);
                }
            }
            // "End of log" was said after the ends were asked for: it is at least as far.
            ends.retain(|partition, end| {
                let read = cut.ranges.get(partition).is_some_and(|range| range.to >= *end);
                !read && !cut.at_end.contains(partition)
            });
        }
    }
}
