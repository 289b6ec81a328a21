//! Rows that a query cannot compute with: found by halving, and left out of everything.
//!
//! Only SQL that works row by row over one source can blame a row: the input of a windowed view, or an INSERT without
//! aggregates. There a part of a batch fails exactly if one of its rows fails alone. All else (an expression over a
//! windowed view, a batch's own aggregate) may fail for reasons that lie in other rows: that stops the pipeline.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use datafusion::error::DataFusionError;

use super::run::{Batch, REFUSED_MAX, RefusedRow, Runner};
use crate::connector::Chunk;
use crate::sql::explain::plain;
use crate::sql::session::QueryContext;
use crate::{Error, Result};

/// A part of a program that works row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The input of this store of window state.
    Store(usize),
    /// This INSERT.
    Insert(usize),
}

/// A failed query, and where it stands.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: DataFusionError,
    /// `None`: no single row is to blame.
    pub part: Option<Part>,
    pub place: String,
}

impl Failure {
    pub fn whole(error: DataFusionError, place: String) -> Self {
        Self { error, part: None, place }
    }

    pub fn internal(error: &tokio::task::JoinError) -> Self {
        Self::whole(DataFusionError::Internal(format!("a query task ended: {error}")), String::new())
    }

    /// The part whose rows may be to blame, by the kind of the error: a value that does not fit, not a missing resource.
    fn blames_rows(&self) -> Option<Part> {
        use arrow::error::ArrowError;
        let by_value = match self.error.find_root() {
            DataFusionError::ArrowError(error, _) => matches!(
                error.as_ref(),
                ArrowError::CastError(_)
                    | ArrowError::ParseError(_)
                    | ArrowError::ComputeError(_)
                    | ArrowError::DivideByZero
                    | ArrowError::ArithmeticOverflow(_)
                    | ArrowError::InvalidArgumentError(_)
            ),
            DataFusionError::Execution(_) => true,
            _ => false,
        };
        self.part.filter(|_| by_value)
    }
}

impl Runner {
    /// Takes every row out of the batch that the failed part refuses alone, at most `limit`.
    pub(super) async fn refuse(
        &self,
        batch: &mut Batch,
        failure: &Failure,
        limit: usize,
        context: &QueryContext,
    ) -> Result<Vec<RefusedRow>> {
        let Some(part) = failure.blames_rows() else { return Err(stopped(batch, failure)) };
        let mut refused = Vec::new();
        for (name, chunks) in batch.sources.clone().into_iter().map(|(name, source)| (name, source.chunks)) {
            let mut cleaned = Vec::with_capacity(chunks.len());
            for chunk in chunks {
                let mut keep = vec![true; chunk.rows.num_rows()];
                let mut parts = vec![(0, keep.len())];
                while let Some((from, to)) = parts.pop() {
                    let probe = only(batch, &name, slice(&chunk, from, to));
                    let Err(failure) = self.probe(part, &probe, context).await else { continue };
                    if failure.blames_rows().is_none() {
                        return Err(stopped(batch, &failure));
                    }
                    if to - from > 1 {
                        let middle = from + (to - from) / 2;
                        parts.extend([(middle, to), (from, middle)]);
                        continue;
                    }
                    if refused.len() == limit {
                        let error = stopped(batch, &failure);
                        return Err(error.hint(format!("more than {REFUSED_MAX} rows of one batch fail like this")));
                    }
                    keep[from] = false;
                    refused.push(RefusedRow {
                        source: name.clone(),
                        partition: chunk.partition,
                        offset: chunk.offsets[from],
                        row: chunk.rows.slice(from, 1),
                        error: plain(&failure.error),
                    });
                }
                cleaned.extend(without(&chunk, &keep)?);
            }
            if let Some(source) = batch.sources.get_mut(&name) {
                source.chunks = cleaned;
            }
        }
        Ok(refused)
    }

    async fn probe(&self, part: Part, batch: &Batch, context: &QueryContext) -> std::result::Result<(), Failure> {
        self.pin(batch);
        match part {
            Part::Store(number) => self.delta(number, batch, false).await.map(drop),
            Part::Insert(number) => {
                let rows = self.insert_rows(number, batch, false, &Arc::default()).collect(context).await;
                rows.map(drop).map_err(|error| self.failure_of_insert(error, number))
            }
        }
    }
}

pub(super) fn stopped(batch: &Batch, failure: &Failure) -> Error {
    let offsets = batch.sources.iter().flat_map(|(name, source)| {
        source.chunks.iter().map(move |chunk| {
            let (first, last) = (chunk.offsets.first(), chunk.offsets.last());
            let offset = |o: Option<&i64>| o.map_or_else(String::new, i64::to_string);
            format!("{name} partition {} offsets {}..={}", chunk.partition, offset(first), offset(last))
        })
    });
    let mut offsets: Vec<String> = offsets.take(4).collect();
    offsets.insert(0, format!("batch {}, {}", batch.number, failure.place));
    Error::user("a query failed; nothing of the batch was written")
        .at(offsets.join(", "))
        .cause(plain(&failure.error))
        .hint("change the SQL and start again: the batch is planned anew with the new text")
}

/// The batch with this chunk as its only rows.
fn only(batch: &Batch, source: &str, chunk: Chunk) -> Batch {
    let mut sources = batch.sources.clone();
    for (name, other) in &mut sources {
        other.chunks = if name == source { vec![chunk.clone()] } else { vec![] };
    }
    Batch { sources, ..*batch }
}

fn slice(chunk: &Chunk, from: usize, to: usize) -> Chunk {
    Chunk {
        partition: chunk.partition,
        rows: chunk.rows.slice(from, to - from),
        offsets: chunk.offsets.slice(from, to - from),
        undecodable: 0,
        bytes: 0,
    }
}

fn without(chunk: &Chunk, keep: &[bool]) -> Result<Option<Chunk>> {
    if keep.iter().all(|keep| *keep) {
        return Ok(Some(chunk.clone()));
    }
    let rows: RecordBatch = filter_record_batch(&chunk.rows, &BooleanArray::from(keep.to_vec()))?;
    let kept = chunk.offsets.iter().zip(keep).filter(|(_, keep)| **keep).map(|(offset, _)| *offset);
    let offsets: Vec<i64> = kept.collect();
    Ok((!offsets.is_empty()).then(|| Chunk { rows, offsets: offsets.into(), ..chunk.clone() }))
}
