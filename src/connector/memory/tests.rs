use arrow::array::Int64Array;
use arrow::datatypes::{DataType, Field, Schema};
use uuid::Uuid;

use super::*;
use crate::connector::TableDefinition;

fn insert(number: usize, table: &str, values: Vec<i64>) -> InsertRows {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
    let hash = format!("{values:?}");
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(values))]).unwrap();
    let table = Arc::new(TableDefinition {
        name: table.into(),
        schema,
        primary_key: vec![],
        unbounded: false,
        stored_as: "MEMORY".into(),
        location: String::new(),
        partition_columns: vec![],
        options: BTreeMap::new(),
        place: String::new(),
    });
    InsertRows { insert: number, table, rows: vec![rows], hash }
}

fn request(batch: u64, inserts: Vec<InsertRows>) -> WriteRequest {
    WriteRequest { batch, wave: Wave::Rows, planned_at: 0, offsets: BTreeMap::new(), inserts }
}

fn identity(epoch: u64) -> Identity {
    Identity { name: "p".into(), uuid: Uuid::nil(), epoch, takes_over: false }
}

#[tokio::test]
async fn the_same_batch_again_leaves_one_result_wherever_it_failed() {
    for memory in [Memory::new(), Memory::without_transactions()] {
        for (batch, at) in [(1, FailAt::BeforeWrite), (2, FailAt::Midway), (3, FailAt::AfterWrite)] {
            let mut sink = memory.sink();
            sink.open(&identity(batch)).await.unwrap();
            let request = request(batch, vec![insert(0, "a", vec![1, 2]), insert(1, "b", vec![3])]);
            memory.fail_once(at);
            assert!(sink.write(&request).await.unwrap_err().is_retryable());
            let part = at == FailAt::AfterWrite || (at == FailAt::Midway && memory.state().not_transactional);
            assert_eq!(sink.holds(batch).await.unwrap(), part);
            // A restart.
            let mut sink = memory.sink();
            let whole = (at == FailAt::AfterWrite).then_some(batch).or((batch > 1).then(|| batch - 1));
            assert_eq!(sink.open(&identity(batch)).await.unwrap(), whole);
            let report = sink.write(&request).await.unwrap();
            assert_eq!(report.already, at == FailAt::AfterWrite);
            assert_eq!(report.inserts[&0].written, 2);
            assert_eq!((memory.row_count("a") as u64, memory.row_count("b") as u64), (2 * batch, batch));
        }
        assert_eq!(memory.batches(), [1, 2, 3]);
    }
}

#[tokio::test]
async fn other_rows_for_a_batch_and_lower_epochs_are_refused() {
    let memory = Memory::new();
    let (mut old, mut new) = (memory.sink(), memory.sink());
    old.open(&identity(1)).await.unwrap();
    old.write(&request(1, vec![insert(0, "a", vec![1])])).await.unwrap();
    assert!(old.write(&request(1, vec![insert(0, "a", vec![2])])).await.is_err());
    new.open(&identity(2)).await.unwrap();
    let error = old.write(&request(2, vec![])).await.unwrap_err();
    assert_eq!(error.message(), "fenced by epoch 2");
    assert!(memory.sink().open(&identity(1)).await.is_err());
}

#[tokio::test]
async fn refused_rows_are_reported_and_left_out() {
    let memory = Memory::new();
    memory.refuse(|_, row| (row == 1).then(|| "too odd".to_string()));
    let mut sink = memory.sink();
    sink.open(&identity(1)).await.unwrap();
    let report = sink.write(&request(1, vec![insert(4, "a", vec![1, 2, 3])])).await.unwrap();
    assert_eq!(report.refusals, [Refusal { insert: 4, row: 1, error: "too odd".into() }]);
    assert_eq!((report.inserts[&4].written, report.inserts[&4].refused), (2, 1));
    assert_eq!(memory.row_count("a"), 2);
}
