//! The parts of the engine by themselves, on one core, with no server: `make bench-parts`.
//!
//! Each takes the rows of one micro-batch of the shipped project: 65,536 events of the generator, in chunks as a source hands
//! them over. Wall time is noise on a shared machine: compare what criterion says within one sitting.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, Int32Array, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::FieldRef;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use poundlock::cli::environment::Environment;
use poundlock::cli::flags::SettingFlags;
use poundlock::cli::load::load_in;
use poundlock::connector::database::postgres::encoded_bytes;
use poundlock::connector::kafka::generator::avro::{AvroWriter, SCHEMA};
use poundlock::connector::kafka::generator::{Generator, GeneratorOptions};
use poundlock::connector::parquet::ParquetSink;
use poundlock::connector::{Chunk, Identity, InsertRows, Sink, Wave, WriteRequest};
use poundlock::format::avro;
use poundlock::format::json::JsonDecoder;
use poundlock::pipeline::run::{Batch, Runner, SourceBatch};
use poundlock::sql::Program;
use poundlock::state::PaneStore;
use poundlock::state::panes::COMPACT_AT;

const CHUNK: usize = 8_192;
const CHUNKS: usize = 8;
const ROWS: usize = CHUNK * CHUNKS;
/// 2026-01-01; µs.
const START: i64 = 1_767_225_600_000_000;
const SOURCE: &str = "kafka.user_events";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn program() -> Program {
    let set = [("DATABASE_URL", "postgres://localhost/bench"), ("LAKE_URL", "lake")];
    let environment = Environment::with(set.map(|(name, value)| (name, value.to_string())));
    load_in(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../queries")), &SettingFlags::default(), &environment)
        .await
        .unwrap()
}

/// Payloads, 100 µs of event time apart.
fn payloads() -> Vec<Vec<u8>> {
    let mut generator = Generator::new(&GeneratorOptions::default());
    let payload = |row: usize| {
        let mut out = vec![];
        generator.write(START + row as i64 * 100, &mut out);
        out
    };
    (0..ROWS).map(payload).collect()
}

/// The same events as Avro; all of schema 1.
fn avro_payloads() -> Vec<Vec<u8>> {
    let mut generator = Generator::new(&GeneratorOptions::default());
    let mut writer = AvroWriter::new(1);
    let payload = |row: usize| {
        let mut out = vec![];
        writer.write(&mut generator, START + row as i64 * 100, &mut out);
        out
    };
    (0..ROWS).map(payload).collect()
}

fn data_fields(program: &Program) -> Vec<FieldRef> {
    let fields = program.tables[SOURCE].schema.fields().iter();
    fields.filter(|field| !field.name().starts_with('_')).cloned().collect()
}

/// As a source hands them over.
fn chunks(program: &Program, payloads: &[Vec<u8>]) -> Vec<Chunk> {
    let schema = &program.tables[SOURCE].schema;
    let mut decoder = JsonDecoder::try_new(&data_fields(program)).unwrap();
    let chunk = |(number, part): (usize, &[Vec<u8>])| {
        let errors: StringViewArray = part.iter().map(|payload| decoder.push(Some(payload)).err()).collect();
        let mut data = decoder.finish().unwrap().into_iter();
        let offsets: Vec<i64> = (0..part.len()).map(|row| (number * CHUNK + row) as i64).collect();
        let column = |field: &FieldRef| match field.name().as_str() {
            "_error" => Arc::new(errors.clone()) as ArrayRef,
            "_raw" => Arc::new(BinaryArray::from_iter_values(part)),
            "_topic" => Arc::new(StringViewArray::from(vec!["user_events"; part.len()])),
            "_partition" => Arc::new(Int32Array::from(vec![0; part.len()])),
            "_offset" => Arc::new(Int64Array::from(offsets.clone())),
            _ => data.next().unwrap(),
        };
        let rows = RecordBatch::try_new(Arc::clone(schema), schema.fields().iter().map(column).collect()).unwrap();
        let undecodable = errors.len() - errors.null_count();
        Chunk { partition: 0, rows, offsets: offsets.into(), undecodable, bytes: part.iter().map(Vec::len).sum() }
    };
    payloads.chunks(CHUNK).enumerate().map(chunk).collect()
}

fn batch(chunks: Vec<Chunk>) -> Batch {
    let (before, after) = (Some(START - 30_000_000), Some(START - 23_000_000));
    let source = SourceBatch { chunks, before, after, ahead_limit: i64::MAX };
    Batch { number: 0, planned_at: START, partitions: 1, sources: [(SOURCE.to_string(), source)].into() }
}

fn runner(program: &Arc<Program>) -> Runner {
    let stores = program.windows.stores.iter().map(|definition| PaneStore::new(Arc::clone(definition), COMPACT_AT));
    Runner::new(Arc::clone(program), stores.collect())
}

fn rows_of<'r>(inserts: &'r [InsertRows], table: &str) -> &'r InsertRows {
    inserts.iter().find(|rows| rows.table.name == table).unwrap()
}

fn parts(criterion: &mut Criterion) {
    let runtime = runtime();
    criterion.bench_function("planning the shipped project", |b| {
        b.iter(|| black_box(runtime.block_on(program()).inserts.len()));
    });

    let program = Arc::new(runtime.block_on(program()));
    let payloads = payloads();
    let batch = batch(chunks(&program, &payloads));
    let mut group = criterion.benchmark_group("rows");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);

    let mut decoder = JsonDecoder::try_new(&data_fields(&program)).unwrap();
    group.bench_function("decode JSON", |b| {
        b.iter(|| {
            let refused = payloads.iter().filter(|payload| decoder.push(Some(payload)).is_err()).count();
            (refused, decoder.finish().unwrap().len())
        });
    });

    let known = avro::known(1, SCHEMA, &[], None, &data_fields(&program));
    let framed = avro_payloads();
    group.bench_function("decode Avro", |b| {
        b.iter(|| {
            let push = |payload: &&Vec<u8>| {
                let known = avro::frame_id(payload).filter(|id| *id == 1).map(|_| &known);
                avro::push(&mut decoder, payload, known).is_err()
            };
            let refused = framed.iter().filter(push).count();
            (refused, decoder.finish().unwrap().len())
        });
    });

    let steady = runner(&program);
    let outcome = runtime.block_on(steady.run(&batch)).unwrap();
    group.bench_function("all SQL of a batch", |b| {
        b.iter(|| runtime.block_on(steady.run(&batch)).unwrap().inserts.len());
    });

    let after = BTreeMap::from([(SOURCE.to_string(), Some(START - 23_000_000))]);
    group.bench_function("merge a batch into the windows' state", |b| {
        let full = || {
            let mut runner = runner(&program);
            for _ in 1..COMPACT_AT {
                runtime.block_on(runner.apply(outcome.deltas.clone(), &after)).unwrap();
            }
            runner
        };
        // The one that makes every pane's list so long that it is merged.
        b.iter_batched(
            full,
            |mut runner| runtime.block_on(runner.apply(outcome.deltas.clone(), &after)).unwrap(),
            BatchSize::PerIteration,
        );
    });

    let events = rows_of(&outcome.inserts, "db.user_events");
    group.bench_function("encode COPY", |b| {
        b.iter(|| events.rows.iter().map(|rows| encoded_bytes(rows).unwrap()).sum::<usize>());
    });

    let folder = tempfile::tempdir().unwrap();
    let lake = rows_of(&outcome.inserts, "lake.user_events");
    let mut table = lake.table.as_ref().clone();
    table.location = folder.path().display().to_string();
    let table = Arc::new(table);
    let mut sink = ParquetSink::for_tables(&[Arc::clone(&table)]).unwrap().remove(0);
    let identity = Identity { name: "bench".into(), uuid: uuid::Uuid::new_v4(), epoch: 1, takes_over: false };
    runtime.block_on(sink.open(&identity)).unwrap();
    let mut number = 0;
    group.bench_function("write Parquet", |b| {
        b.iter(|| {
            number += 1;
            let inserts = vec![InsertRows { table: Arc::clone(&table), ..lake.clone() }];
            let (wave, offsets) = (Wave::Rows, BTreeMap::new());
            let request = WriteRequest { batch: number, wave, planned_at: START, offsets, inserts };
            runtime.block_on(sink.write(&request)).unwrap().files.len()
        });
    });
    group.finish();
}

criterion_group!(benches, parts);
criterion_main!(benches);
