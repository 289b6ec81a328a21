//! INSERTs that read what they wrote: the same rows however the batches are cut, and refused where that cannot be.

use std::collections::BTreeMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use proptest::prelude::*;

use super::check::refusal;
use super::harness::{Event, SECOND, Sim, Step, T0, append, event, keyed, plan, step, texts};

const VIEW: &str = "CREATE VIEW w AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(kafka.events, ts, INTERVAL '5 seconds') GROUP BY window_start, window_end, k;\n";

/// Each window with the events of up to a minute before it; a second INSERT looks at the first one's table.
const HISTORY: &str = "
INSERT INTO db.history
SELECT w.window_start, w.k, w.n, count(past.n), sum(past.n)
FROM w LEFT JOIN db.history AS past
  ON past.k = w.k AND past.window_start < w.window_start AND past.window_start >= w.window_start - INTERVAL '1 minute'
WHERE w.window_end <= current_watermark() GROUP BY w.window_start, w.k, w.n;
INSERT INTO kafka.more
SELECT w.window_start, w.k, past.n FROM w JOIN db.history AS past ON past.k = w.k AND past.window_start < w.window_start
  AND w.window_start - INTERVAL '10 seconds' <= past.window_start
WHERE w.window_end <= current_watermark() AND past.n > w.n;";

fn tables() -> String {
    keyed("history", "window_start TIMESTAMP, k VARCHAR, n BIGINT, windows BIGINT, events BIGINT", "window_start, k")
        + &append("more", "window_start TIMESTAMP, k VARCHAR, n BIGINT")
}

type Key = (i64, String);

/// What the first INSERT writes, less what it reads itself: counts by window and key.
fn counts(events: &[Event]) -> BTreeMap<Key, i64> {
    let mut counts = BTreeMap::new();
    for event in events {
        let window = event.ts.unwrap().div_euclid(5 * SECOND) * 5 * SECOND;
        *counts.entry((window, event.k.clone().unwrap())).or_default() += 1;
    }
    counts
}

/// Runs the events in these batches; the table of the program is a list of rows here. Returns what both INSERTs wrote.
async fn written(batches: &[Vec<Event>]) -> [Vec<Vec<String>>; 2] {
    let mut sim = Sim::start(&tables(), &format!("{VIEW}{HISTORY}")).await;
    let spec = sim.program.read_back[0].clone();
    assert_eq!(spec.since, Some(("window_start".to_string(), -65 * SECOND)));
    let (mut stored, mut written): (Vec<RecordBatch>, [Vec<Vec<String>>; 2]) = Default::default();
    for number in 0..=batches.len() {
        let last = number == batches.len();
        let events = if last { vec![] } else { batches[number].clone() };
        spec.pinned.pin(stored.clone());
        let step = Step { close: last, ..step(200 + number as i64, events) };
        let done = sim.batch(&step).await.unwrap();
        assert_eq!(*spec.pinned.pinned(), stored, "what the batch added is gone");
        for (all, insert) in written.iter_mut().zip(0..) {
            all.extend(done.rows(insert));
        }
        let declared =
            |rows: &RecordBatch| RecordBatch::try_new(spec.pinned.rows_schema(), rows.columns().to_vec()).unwrap();
        stored.extend(done.outcome.inserts[0].rows.iter().map(declared));
    }
    written.iter_mut().for_each(|rows| rows.sort());
    written
}

fn shown(micros: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
    time.format("%Y-%m-%dT%H:%M:%S").to_string()
}

/// By the definition, with nothing of the engine.
fn expected(events: &[Event]) -> [Vec<Vec<String>>; 2] {
    let counts = counts(events);
    let earlier = |window: i64, key: &str, back: i64| -> Vec<i64> {
        let past =
            counts.iter().filter(|((start, k), _)| k == key && *start < window && *start >= window - back * SECOND);
        past.map(|(_, n)| *n).collect()
    };
    let mut rows: [Vec<Vec<String>>; 2] = Default::default();
    for ((window, key), n) in &counts {
        let past = earlier(*window, key, 60);
        let sum = if past.is_empty() { "∅".to_string() } else { past.iter().sum::<i64>().to_string() };
        rows[0].push(vec![shown(*window), key.clone(), n.to_string(), past.len().to_string(), sum]);
        let more = earlier(*window, key, 10).into_iter().filter(|other| other > n);
        rows[1].extend(more.map(|other| vec![shown(*window), key.clone(), other.to_string()]));
    }
    rows.iter_mut().for_each(|rows| rows.sort());
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_window_finds_all_before_it_however_the_batches_are_cut(
        events in prop::collection::vec((0_usize..2, 0_i64..120), 1..80),
        sizes in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let mut events: Vec<Event> = events.into_iter().map(|(k, second)| event(1, ["a", "b"][k], second)).collect();
        // In order, so that none is late.
        events.sort_by_key(|event| event.ts);
        let mut batches = vec![];
        let mut sizes = sizes.into_iter().cycle();
        let mut rest = &events[..];
        while !rest.is_empty() {
            let (batch, more) = rest.split_at(sizes.next().unwrap().min(rest.len()));
            batches.push(batch.to_vec());
            rest = more;
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let found = runtime.block_on(written(&batches));
        prop_assert_eq!(found, expected(&events));
    }
}

/// What an earlier pipeline stored of the same windows is replaced, as its sink will do, and counts once.
#[tokio::test]
async fn a_row_that_is_there_already_counts_once() {
    let mut sim = Sim::start(&tables(), &format!("{VIEW}{HISTORY}")).await;
    let spec = sim.program.read_back[0].clone();
    let events: Vec<Event> = (0..20).map(|second| event(1, "a", second)).collect();
    let done = sim.batch(&Step { close: true, ..step(100, events.clone()) }).await.unwrap();
    let first = done.rows(0);
    assert_eq!(first.iter().map(|row| row[4].as_str()).collect::<Vec<_>>(), ["∅", "5", "10"]);
    let declared =
        |rows: &RecordBatch| RecordBatch::try_new(spec.pinned.rows_schema(), rows.columns().to_vec()).unwrap();
    let stored: Vec<RecordBatch> = done.outcome.inserts[0].rows.iter().map(declared).collect();
    let starts = stored[0].column(0).as_primitive::<TimestampMicrosecondType>();
    assert_eq!((starts.len(), starts.value(0)), (3, T0));
    let mut again = Sim::start(&tables(), &format!("{VIEW}{HISTORY}")).await;
    again.program.read_back[0].pinned.pin(stored);
    let done = again.batch(&Step { close: true, ..step(100, events) }).await.unwrap();
    assert_eq!(done.rows(0), first);
    assert!(texts(&done.outcome.inserts[1].rows).is_empty(), "all windows count alike");
}

/// As the sink does, which gets the rows of a window sorted.
#[tokio::test]
async fn of_two_rows_of_a_window_with_one_key_the_next_one_finds_the_last() {
    let table = keyed("last", "window_start TIMESTAMP, k VARCHAR, n BIGINT, other VARCHAR", "window_start");
    let insert = "INSERT INTO db.last SELECT w.window_start, w.k, count(past.k), max(past.k)
        FROM w LEFT JOIN db.last AS past ON past.window_start < w.window_start
        WHERE w.window_end <= current_watermark() GROUP BY w.window_start, w.k;";
    let mut sim = Sim::start(&table, &format!("{VIEW}{insert}")).await;
    // The last one closes the windows of the others.
    let events = vec![event(1, "b", 0), event(1, "a", 1), event(1, "b", 5), event(1, "a", 6), event(1, "a", 60)];
    let done = sim.batch(&step(100, events)).await.unwrap();
    let found: Vec<String> = done.rows(0).iter().map(|row| row[1..].join(" ")).collect();
    assert_eq!(found, ["a 0 ∅", "b 0 ∅", "a 1 b", "b 1 b"]);
}

#[tokio::test]
async fn what_looks_back_in_time_is_accepted() {
    let select = |rest: &str| {
        format!(
            "{VIEW}INSERT INTO db.history SELECT w.window_start, w.k, w.n, count(p.n), sum(p.n) {rest} GROUP BY w.window_start, w.k, w.n;"
        )
    };
    let closed = "w.window_end <= current_watermark()";
    for (rest, since) in [
        (format!("FROM w LEFT JOIN db.history p ON p.window_start < w.window_start WHERE {closed}"), None),
        (format!("FROM w JOIN db.history p ON w.window_start > p.window_start WHERE {closed}"), None),
        (format!("FROM db.history p RIGHT JOIN w ON p.window_start < w.window_start WHERE {closed}"), None),
        (format!("FROM w, db.history p WHERE p.window_start < w.window_start AND {closed}"), None),
        (format!("FROM w JOIN db.history p ON p.window_start <= w.window_start - INTERVAL '5 seconds' WHERE {closed}"), None),
        (
            format!("FROM w JOIN (SELECT window_start AS earlier, n FROM db.history WHERE n > 1) p ON p.earlier < w.window_start
                     AND p.earlier > w.window_start - INTERVAL '1 hour' WHERE {closed}"),
            Some(-3_605 * SECOND),
        ),
    ] {
        let program = plan(&tables(), &select(&rest)).await.unwrap_or_else(|error| panic!("{rest}: {error}"));
        let [spec] = &program.read_back[..] else { panic!("{rest}") };
        assert_eq!(spec.since.as_ref().map(|(_, moved)| *moved), since, "{rest}");
        assert!(program.inserts[0].turn.is_some() && program.warnings.is_empty(), "{rest}: {:?}", program.warnings);
    }
}

/// The error stands at the INSERT that is to be mended, and says how.
#[tokio::test]
async fn what_would_depend_on_how_the_batches_are_cut_is_refused() {
    let history = "window_start, k, n, windows, events";
    let tables = tables()
        + &keyed("other", "k VARCHAR, n BIGINT", "k")
        + &keyed("by_key", "window_start TIMESTAMP, k VARCHAR, n BIGINT, windows BIGINT, events BIGINT", "k");
    let more = "CREATE VIEW m AS SELECT window_start, window_end, k, count(*) AS n
FROM TUMBLE(kafka.events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, k;\n";
    let closed = "w.window_end <= current_watermark()";
    let read = "SELECT w.window_start, w.k, w.n, count(p.n), sum(p.n) FROM w LEFT JOIN db.history p ON";
    let by = "GROUP BY w.window_start, w.k, w.n";
    let good = format!("INSERT INTO db.history {read} p.window_start < w.window_start WHERE {closed} {by};\n");
    for (sql, line, says) in [
        // its own window
        (format!("INSERT INTO db.history {read} p.k = w.k WHERE {closed} {by};"), 7, "nothing keeps a window from reading its own rows"),
        (format!("INSERT INTO db.history {read} p.window_start <= w.window_start WHERE {closed} {by};"), 7, "its own rows"),
        (format!("INSERT INTO db.history {read} p.window_start < w.window_end WHERE {closed} {by};"), 7, "its own rows"),
        // open windows
        (format!("INSERT INTO db.history {read} p.window_start < w.window_start {by};"), 7, "only closed windows"),
        // no join of a window with its past
        (format!("INSERT INTO db.history SELECT w.window_start, w.k, w.n, x.n, x.n FROM w CROSS JOIN (SELECT max(n) AS n FROM db.history) x WHERE {closed};"), 7, "only look at it by a join"),
        (format!("INSERT INTO db.history {} {by};", read.replace("FROM w LEFT", "FROM (SELECT * FROM w WHERE window_end <= current_watermark()) w FULL").replace(" ON", " ON p.window_start < w.window_start")), 7, "only look at it by a join"),
        ("INSERT INTO db.other SELECT k, id FROM kafka.events;\nINSERT INTO kafka.more SELECT e.ts, e.k, o.n FROM kafka.events e JOIN db.other o ON o.k = e.k;".into(), 8, "how the batches were cut"),
        ("INSERT INTO db.other SELECT k, id FROM kafka.events;\nINSERT INTO kafka.more SELECT NULL, k, n FROM db.other;".into(), 8, "how the batches were cut"),
        // not in its key; filled with no bound; filled by another INSERT with other windows
        (format!("INSERT INTO db.by_key {} p.window_start < w.window_start WHERE {closed} {by};", read.replace("db.history", "db.by_key")), 7, "its own rows"),
        (format!("INSERT INTO db.history {} p.window_start < w.window_start WHERE {closed} {by};", read.replacen("w.window_start", "w.window_start - INTERVAL '5 seconds'", 1)), 7, "its own rows"),
        (format!("{good}INSERT INTO db.history SELECT window_start, k, n, 0, 0 FROM w;"), 8, "is read by the INSERT at queries.sql:7:1, so only closed windows"),
        (format!("{good}INSERT INTO db.history SELECT ts, k, id, 0, 0 FROM kafka.events;"), 8, "how the batches were cut"),
        (format!("{good}INSERT INTO db.history SELECT window_start, k, n, 0, 0 FROM m WHERE window_end <= current_watermark();"), 7, "of one size and one source"),
        // a topic has no place to look
        (format!("INSERT INTO kafka.more SELECT w.window_start, w.k, p.n FROM w JOIN kafka.more p ON p.window_start < w.window_start WHERE {closed};"), 7, "only a table STORED AS DATABASE"),
    ] {
        let error = match plan(&tables, &format!("{VIEW}{more}-- {history}\n\n{sql}")).await {
            Ok(_) => panic!("accepted: {sql}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(says) && error.contains(&format!("queries.sql:{line}:")), "{sql}\n{error}");
        assert!(error.contains("hint: ") && error.matches("queries.sql:").count() <= 2, "{sql}\n{error}");
    }
    assert!(
        refusal(
            "INSERT INTO db.users SELECT k, k FROM kafka.events; INSERT INTO kafka.lines SELECT u.k, 1 FROM db.users u;"
        )
        .await
        .contains("db.users is written")
    );
}
