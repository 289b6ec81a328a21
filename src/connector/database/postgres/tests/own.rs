//! Tables with transactions of their own, and keys that the server takes for equal and we do not.

use super::*;

type Table = Arc<TableDefinition>;

/// `plain` has its own transactions, `updated` shares.
fn two_sinks(url: &str) -> (Table, Table, Box<dyn Sink>, Box<dyn Sink>) {
    let [plain, updated, _] = contract_tables(url);
    let plain = Arc::new(with(plain.as_ref().clone(), "transaction", "own"));
    let mut sinks = sinks(&[Arc::clone(&plain), Arc::clone(&updated)]).unwrap();
    assert_eq!(sinks.len(), 2);
    let own = sinks.pop().unwrap();
    let shared = sinks.pop().unwrap();
    assert_eq!((own.tables(), shared.tables()), (vec!["db.plain".to_string()], vec!["db.updated".to_string()]));
    assert_eq!(own.name(), format!("{}-db.plain", shared.name()));
    (plain, updated, own, shared)
}

fn row(batch: u64, table: &Table) -> crate::connector::WriteRequest {
    request(batch, vec![insert(0, table, vec![ints(&[Some(batch as i64)]), texts(&[None])])])
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_table_with_its_own_transactions_is_written_exactly_once_beside_the_others() {
    let (url, client) = database().await;
    client.batch_execute(CONTRACT_TABLES).await.unwrap();
    let (plain, updated, mut own, mut shared) = two_sinks(&url);
    let (one, two) = (identity(1), identity(1));
    let (one, two) = tokio::join!(own.open(&one), shared.open(&two));
    assert_eq!((one.unwrap(), two.unwrap()), (None, None));
    shared.write(&row(0, &updated)).await.unwrap();
    // Killed between the two: the batch is in hand, and the other part has nothing of it.
    let (_, _, mut own, mut shared) = two_sinks(&url);
    own.open(&identity(2)).await.unwrap();
    shared.open(&identity(2)).await.unwrap();
    assert!(own.holds(0).await.unwrap(), "a part of it is in the database");
    assert!(!own.write(&row(0, &plain)).await.unwrap().already);
    assert!(shared.write(&row(0, &updated)).await.unwrap().already);
    assert!(own.write(&row(0, &plain)).await.unwrap().already);
    // A connection that is made anew, while the other one is in a transaction, waits for nobody and ends nobody.
    client.batch_execute("BEGIN; LOCK TABLE updated IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let waiting = row(1, &updated);
    let writing = tokio::spawn(async move { (shared.write(&waiting).await, shared) });
    let watcher = connect(&Address::parse(&url).unwrap(), MINUTE, MINUTE).await.unwrap();
    while text(&watcher, "SELECT count(*) FROM pg_locks WHERE NOT granted").await == "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let end = "SELECT count(pg_terminate_backend(pid)) FROM poundlock.writers WHERE epoch = 2 AND part = 'db.plain'";
    assert_eq!(text(&watcher, end).await, "1");
    let written = async {
        match own.write(&row(1, &plain)).await {
            Err(error) if error.is_retryable() => own.write(&row(1, &plain)).await,
            other => other,
        }
    };
    let written = tokio::time::timeout(Duration::from_secs(20), written).await.expect("it must not wait");
    assert!(!written.unwrap().already);
    client.batch_execute("COMMIT").await.unwrap();
    let (report, mut shared) = writing.await.unwrap();
    assert!(!report.unwrap().already, "the other connection was left alone");
    // A newer start fences both.
    let (_, _, mut newer, mut newer_shared) = two_sinks(&url);
    assert_eq!(newer.open(&identity(3)).await.unwrap(), Some(1));
    assert_eq!(newer_shared.open(&identity(3)).await.unwrap(), Some(1));
    for (old, row) in [(&mut own, row(2, &plain)), (&mut shared, row(2, &updated))] {
        let error = match old.write(&row).await.unwrap_err() {
            error if error.is_retryable() => old.write(&row).await.unwrap_err(),
            error => error,
        };
        assert!(error.message().contains("fenced by epoch 3"), "{error}");
    }
    assert_eq!(
        text(&client, "SELECT (SELECT count(*) FROM plain) || ' ' || (SELECT count(*) FROM updated)").await,
        "2 2"
    );
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_table_may_get_its_own_transactions_and_give_them_back() {
    let (url, client) = database().await;
    client.batch_execute(CONTRACT_TABLES).await.unwrap();
    let [plain, updated, _] = contract_tables(&url);
    let mut both = sink(&[&plain, &updated]);
    both.open(&identity(1)).await.unwrap();
    let of_both = |n: i64| {
        let values = || vec![ints(&[Some(n)]), texts(&[None])];
        request(n as u64, vec![insert(0, &plain, values()), insert(1, &updated, values())])
    };
    both.write(&of_both(4)).await.unwrap();
    let (plain_own, _, mut own, mut shared) = two_sinks(&url);
    assert_eq!(own.open(&identity(2)).await.unwrap(), Some(4), "it stands where the others do");
    assert_eq!(shared.open(&identity(2)).await.unwrap(), Some(4));
    assert!(!own.write(&row(5, &plain_own)).await.unwrap().already);
    assert!(!shared.write(&row(5, &updated)).await.unwrap().already);
    let mut both = sink(&[&plain, &updated]);
    assert_eq!(both.open(&identity(3)).await.unwrap(), Some(5));
    assert!(!both.write(&of_both(6)).await.unwrap().already);
    let (_, _, mut own, _) = two_sinks(&url);
    assert_eq!(own.open(&identity(4)).await.unwrap(), Some(6), "what the others have had meanwhile is not missing");
    assert!(!own.write(&row(7, &plain_own)).await.unwrap().already);
    assert_eq!(text(&client, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM plain").await, "4 5 6 7");
    // Whose rows would come in which order, if one of two were not in the transaction of the other?
    let twice = sinks(&[Arc::clone(&plain_own), Arc::clone(&plain_own)]).err().expect("refused");
    assert!(twice.message().contains("declared twice"), "{twice}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn of_two_rows_with_keys_that_are_equal_to_the_server_the_last_stays() {
    let (url, client) = database().await;
    let setup = "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
                 CREATE TABLE names (name text COLLATE caseless PRIMARY KEY, v bigint)";
    client.batch_execute(setup).await.unwrap();
    let columns = [("name", DataType::Utf8View), ("v", DataType::Int64)];
    let table = Arc::new(definition("names", &url, &columns, &["name"]));
    let mut sink = sink(&[&table]);
    sink.open(&identity(1)).await.unwrap();
    let names = ["ann", "bob", "Ann", "cid"].map(Some);
    let rows = |first: i64| vec![texts(&names), ints(&[0, 1, 2, 3].map(|n| Some(first + n)))];
    let report = sink.write(&request(0, vec![insert(0, &table, rows(0))])).await.unwrap();
    assert_eq!(report.inserts[&0], account(3, 1, 0));
    let report = sink.write(&request(1, vec![insert(0, &table, rows(10))])).await.unwrap();
    assert_eq!(report.inserts[&0], account(3, 1, 0));
    let all = "SELECT string_agg(name || v, ' ' ORDER BY v) FROM names";
    assert_eq!(text(&client, all).await, "bob11 Ann12 cid13");
}

/// More than one block, keys that come again in the next one, and a row that is refused.
#[tokio::test]
#[ignore = "needs PostgreSQL: DATABASE_URL"]
async fn a_large_insert_goes_in_blocks_and_says_which_row_was_refused() {
    let (url, client) = database().await;
    client.batch_execute("CREATE TABLE updated (id bigint PRIMARY KEY CHECK (id <> 99999), v text)").await.unwrap();
    let [_, updated, _] = contract_tables(&url);
    let mut sink = sink(&[&updated]);
    sink.open(&identity(1)).await.unwrap();
    let count = 150_000_i64;
    let ids: Vec<Option<i64>> = (0..count).map(|n| Some((n * 7_919) % 100_000)).collect();
    let numbers: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let numbers: Vec<Option<&str>> = numbers.iter().map(|n| Some(n.as_str())).collect();
    let rows = insert(0, &updated, vec![ints(&ids), texts(&numbers)]);
    let report = sink.write(&request(0, vec![rows])).await.unwrap();
    let refused: Vec<usize> = report.refusals.iter().map(|refusal| refusal.row).collect();
    let expected: Vec<usize> = (0..count as usize).filter(|n| ids[*n] == Some(99_999)).collect();
    assert_eq!(refused, expected);
    let last_wins = "SELECT count(*) FROM updated WHERE v::bigint >= 50000 AND (v::bigint * 7919) % 100000 = id";
    assert_eq!(text(&client, last_wins).await, "99999");
}
