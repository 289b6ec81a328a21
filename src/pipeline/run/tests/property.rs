//! Random data, cuts, disorder, late rows, idle partitions and restarts: every INSERT equals the oracle, batch by batch.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::harness::{Done, Event, SECOND, Sim, Step, T0, append, assert_same, keyed};
use super::oracle::{Oracle, Pair, pairs, shown};

/// All give the same in any order of the rows and however often they are merged.
const AGGREGATES: &[&str] = &[
    "count(*)",
    "count(v)",
    "sum(v)",
    "avg(v)",
    "avg(f)",
    "sum(f)",
    "min(v)",
    "max(f)",
    "min(t)",
    "stddev(v)",
    "stddev_pop(f)",
    "var_pop(v)",
    "var_samp(f)",
    "approx_distinct(v)",
    "count(DISTINCT v)",
    "sum(DISTINCT v)",
    "count(DISTINCT t)",
    "array_to_string(array_agg(id ORDER BY id), ',')",
    "array_to_string(array_agg(DISTINCT v ORDER BY v), ',')",
    "string_agg(t, ',' ORDER BY id)",
    "first_value(v ORDER BY id)",
    "last_value(t ORDER BY id DESC)",
    "nth_value(v, 2 ORDER BY id)",
    "bool_and(b)",
    "bool_or(b)",
    "bit_xor(v)",
    "median(v)",
    "corr(v, f)",
    "count(*) FILTER (WHERE b)",
    "sum(v) FILTER (WHERE f > 1.0)",
    "sum(coalesce(v, 100))",
    "count(nullif(k, 'a'))",
    "max(v) - min(v) + count(*)",
    "sum(CASE WHEN b THEN 1 ELSE 0 END) * 100 / count(*)",
];

/// A small generator: the seed is all there is to know about a case.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as i64
    }

    fn chance(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }

    fn of<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len() as i64) as usize]
    }
}

struct Case {
    tables: String,
    queries: String,
    /// The view in the oracle, over `pairs`.
    view: String,
    slide: i64,
    size: i64,
    /// `date_bin` knows no time before 1677.
    binned: bool,
    /// No row with v = 3 is in the view, nor in LATE of it.
    filtered: bool,
}

/// INSERTs in order: changed rows, closed windows, whole windows, late pairs.
fn case(dice: &mut Dice) -> Case {
    let (slide, size) = [(5, 5), (10, 10), (5, 20), (4, 12), (7, 7), (2, 10)][dice.below(6) as usize];
    let binned = slide == size && dice.chance(40);
    let key = dice.of(&["k", "k, b", "", "coalesce(k, 'none')"]);
    let columns: Vec<String> = match key {
        "" => vec![],
        key if key.starts_with("coalesce") => vec![format!("{key} AS k0")],
        key => key.split(", ").enumerate().map(|(i, k)| format!("CAST({k} AS VARCHAR) AS k{i}")).collect(),
    };
    let names: Vec<String> = (0..columns.len()).map(|i| format!("k{i}")).collect();
    let count = 3 + dice.below(4);
    let aggregates: Vec<String> =
        (0..count).map(|i| format!("CAST({} AS VARCHAR) AS a{i}", dice.of(AGGREGATES))).collect();
    let filter = if dice.chance(30) { "WHERE v IS NULL OR v <> 3" } else { "" };
    let having = if dice.chance(30) { "HAVING count(*) > 1" } else { "" };
    let groups = |bounds: &str| match key {
        "" => bounds.to_string(),
        key => format!("{bounds}, {key}"),
    };
    let rest: Vec<&str> = columns.iter().chain(&aggregates).map(String::as_str).collect();
    let rest = rest.join(", ");
    let select = |bounds: &str, from: &str, by: &str| {
        format!("SELECT {bounds}, {rest} FROM {from} {filter} GROUP BY {} {having}", groups(by))
    };
    let view = select("window_start, window_end", "pairs", "window_start, window_end");
    let own = match (binned, slide == size) {
        (true, _) => {
            let bin = format!("date_bin(INTERVAL '{size} seconds', ts)");
            let bounds = format!("{bin} AS window_start, {bin} + INTERVAL '{size} seconds' AS window_end");
            select(&bounds, "kafka.events", &bin)
        }
        (false, true) => {
            let from = format!("TUMBLE(kafka.events, ts, INTERVAL '{size} seconds')");
            select("window_start, window_end", &from, "window_start, window_end")
        }
        (false, false) => {
            let from = format!("HOP(kafka.events, ts, INTERVAL '{slide} seconds', INTERVAL '{size} seconds')");
            select("window_start, window_end", &from, "window_end, window_start")
        }
    };
    let names_of = |more: &[String]| -> String {
        let names: Vec<&str> = names.iter().chain(more).map(String::as_str).collect();
        names.iter().map(|name| format!(", {name} VARCHAR")).collect()
    };
    let values: Vec<String> = (0..count).map(|i| format!("a{i}")).collect();
    let table = format!("window_start TIMESTAMP, window_end TIMESTAMP{}", names_of(&values));
    let keys = std::iter::once("window_start, window_end".to_string()).chain(names.clone()).collect::<Vec<_>>();
    let mut tables = keyed("changed", &table, &keys.join(", "));
    tables += &append("closed", &table);
    tables += &keyed("whole", &format!("{table}, n BIGINT"), &keys.join(", "));
    tables += &append("late", "id BIGINT, window_start TIMESTAMP, window_end TIMESTAMP, reason VARCHAR");
    let mut queries = format!(
        "SET poundlock.target_partitions = '{}';
         SET datafusion.execution.batch_size = '{}';
         CREATE VIEW w AS {own};
         INSERT INTO db.changed SELECT * FROM w;
         INSERT INTO kafka.closed SELECT * FROM w WHERE window_end <= current_watermark();
         INSERT INTO db.whole SELECT *, {WHOLE} FROM w;",
        [1, 1, 3][dice.below(3) as usize],
        [8_192, 8_192, 5][dice.below(3) as usize]
    );
    if !binned {
        queries += "INSERT INTO kafka.late SELECT id, window_start, window_end, _late_reason FROM LATE(w)";
    }
    let filtered = !filter.is_empty();
    Case { tables, queries, view, slide: slide * SECOND, size: size * SECOND, binned, filtered }
}

const WHOLE: &str = "count(*) OVER (PARTITION BY window_start, window_end) AS n";

fn events(dice: &mut Dice, ids: &mut i64, now: i64, ancient: bool) -> Vec<Event> {
    let count = if dice.chance(25) { 0 } else { dice.below(25) };
    let texts = ["x", "a text longer than twelve bytes", "", "another quite long text, longer than the first"];
    let mut events = vec![];
    for _ in 0..count {
        *ids += 1;
        let ts = match dice.below(100) {
            0..3 => None,
            3..6 => Some(now + 7_200 * SECOND),
            6..7 => Some(253_402_300_799 * SECOND),            // 9999
            7..8 if ancient => Some(-15_000_000_000 * SECOND), // 1494
            8..20 => Some(now - dice.below(60_000) * 1_000),
            // Whole seconds, so that a watermark falls on the end of a window.
            20..60 => Some((now - dice.below(8_000_000)) / SECOND * SECOND),
            _ => Some(now - dice.below(8_000_000)),
        };
        let k = (!dice.chance(10)).then(|| dice.of(&["a", "b", "c", "a key that is longer than twelve"]).to_string());
        events.push(Event {
            id: *ids,
            k,
            v: (!dice.chance(10)).then(|| dice.below(9)),
            f: (!dice.chance(10)).then(|| dice.below(20) as f64 / 4.0),
            b: (!dice.chance(10)).then(|| dice.chance(50)),
            t: (!dice.chance(10)).then(|| dice.of(&texts).to_string()),
            ts,
        });
    }
    events
}

async fn check(seed: u64) {
    let mut dice = Dice(seed);
    let case = case(&mut dice);
    let what = |what: &str, batch: usize| format!("seed {seed}, batch {batch}, {what}\n{}", case.queries);
    let compact_at = 2 + dice.below(4) as usize;
    let mut steady = Sim::start(&case.tables, &case.queries).await.compacting_at(compact_at);
    let mut shaken = Sim::start(&case.tables, &case.queries).await.compacting_at(compact_at);
    let partitions = 1 + dice.below(3) as i32;
    let batches = 3 + dice.below(8) as usize;
    let (mut now, mut ids, oracle) = (T0, 0, Oracle::new());
    let mut all: Vec<Pair> = vec![];
    let mut upserted: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
    let mut closed = vec![];
    for batch in 0..=batches {
        now += dice.below(9_000_000);
        let mut step = Step { planned_at: now, close: batch == batches, ..Step::default() };
        for partition in 0..partitions {
            let silent = batch == batches || (partition > 0 && dice.chance(40));
            let rows = if silent { vec![] } else { events(&mut dice, &mut ids, now, !case.binned) };
            if dice.chance(30) {
                step.behind.insert(partition);
            }
            step.rows.insert(partition, rows);
        }
        let done = steady.batch(&step).await.unwrap_or_else(|error| panic!("{}: {error}", what("failed", batch)));
        if dice.chance(30) {
            shaken.snapshot();
        }
        if dice.chance(40) {
            let planned_anew = dice.chance(30);
            shaken.restart(now, planned_anew).await;
        }
        // Whether a partition is idle depends on the clock: it is in the plan, so a replay takes it from there.
        step.idle = Some(done.idle.clone());
        let again = shaken.batch(&step).await.unwrap();
        assert_eq!((done.before, done.after), (again.before, again.after), "{}", what("watermark", batch));
        assert_eq!(done.hashes(), again.hashes(), "{}", what("restarted", batch));
        assert_eq!(steady.state(), shaken.state(), "{}", what("state after a restart", batch));

        let in_view = |pair: &Pair| !case.filtered || pair.event.v != Some(3);
        all.extend(pairs(&step, batch, &done, case.slide, case.size).into_iter().filter(in_view));
        let rows = |keep: &dyn Fn(&Pair) -> bool| -> Vec<&Pair> {
            all.iter().filter(|pair| pair.missed.is_none() && keep(pair)).collect()
        };
        let shown = shown(&all, batch, &done);
        oracle.set(&rows(&|pair| shown.contains(&pair.start)));
        let expected = oracle.rows(&format!("SELECT *, {WHOLE} FROM ({})", case.view)).await;
        assert_same(done.rows(2), expected, &what("whole windows", batch));

        check_closed(&done, &mut closed, &what("closed windows", batch));
        let keys = done.rows(0).into_iter().map(|row| (key(&row, &case), row));
        upserted.extend(keys);
        if !case.binned {
            let late = all.iter().filter(|pair| pair.batch == batch).filter_map(|pair| {
                let reason = pair.missed?;
                Some(vec![pair.event.id.to_string(), time(pair.start), time(pair.end), reason.to_string()])
            });
            let late: Vec<_> = late.collect();
            let count = |reason: &str| late.iter().filter(|row| row[3] == reason).count() as u64;
            let account = &done.outcome.views["public.w"];
            assert_eq!((account.late, account.ahead), (count("late"), count("ahead")), "{}", what("account", batch));
            assert_same(done.rows(3), late, &what("LATE", batch));
        }
    }
    let rows: Vec<&Pair> = all.iter().filter(|pair| pair.missed.is_none()).collect();
    oracle.set(&rows);
    let expected = oracle.rows(&case.view).await;
    assert_same(closed, expected.clone(), &what("closed windows", batches));
    assert_same(upserted.into_values().collect(), expected, &what("upserted rows", batches));
    assert!(steady.runner.stores().iter().all(|store| store.panes().is_empty()), "{}", what("panes left", batches));
}

fn check_closed(done: &Done, closed: &mut Vec<Vec<String>>, what: &str) {
    let new = done.rows(1);
    for row in &new {
        assert!(done.after.is_some_and(|after| row[1] <= time(after)), "{what}: {row:?} is not closed");
        assert!(!closed.iter().any(|old| old[..2] == row[..2]), "{what}: {row:?} comes again");
    }
    closed.extend(new);
}

fn key(row: &[String], case: &Case) -> Vec<String> {
    let values = case.view.matches(" AS a").count();
    row[..row.len() - values].to_vec()
}

/// As Arrow prints it.
fn time(micros: i64) -> String {
    let array = arrow::array::TimestampMicrosecondArray::from(vec![micros]);
    arrow::util::display::array_value_to_string(&array, 0).unwrap()
}

/// However slow the machine is.
const CASES_MIN: u64 = 20;

/// `POUNDLOCK_SEED` begins with the case of that number, `POUNDLOCK_SECONDS` looks for longer.
#[test]
fn every_insert_equals_one_query_over_all_rows() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let first: u64 = std::env::var("POUNDLOCK_SEED").map_or(0, |seed| seed.parse().unwrap());
    let seconds: u64 = std::env::var("POUNDLOCK_SECONDS").map_or(20, |seconds| seconds.parse().unwrap());
    let began = Instant::now();
    let mut seed = first;
    while seed < first + CASES_MIN || began.elapsed() < Duration::from_secs(seconds) {
        runtime.block_on(check(seed));
        seed += 1;
    }
    println!("{} cases", seed - first);
}
