//! What a demo found, asked of the tables it wrote, as a reader would: by SQL.
//!
//! This is the one place that knows what the shipped files are about. Where other files are run, the questions that they
//! have no table for are left out.

use std::path::Path;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;

use super::place::{Place, quoted};
use crate::cli::sql::catalog::Catalog;
use crate::cli::sql::execute::query;
use crate::{Error, Result};

/// What was counted while it ran.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    pub rows: u64,
    pub dead_letters: u64,
    pub late: u64,
    pub batches: u64,
    /// While events were generated.
    pub elapsed: Duration,
}

const VALID: &str = "SELECT count(*) FROM lake.user_events";
const DISTINCT: &str = "SELECT count(*) FROM db.user_events";
/// Without the value and its place in the record, which set each apart.
const REASONS: &str = "SELECT regexp_replace(coalesce(dq_reason, error), ' \\(byte [0-9]+\\)|\"[^\"]*\" ', '', 'g') AS reason, \
                       count(*) AS records FROM kafka.dead_letter_topic GROUP BY reason ORDER BY records DESC, reason \
                       LIMIT 10";
const WINDOWS: &str = "SELECT (CAST(window_end AS BIGINT) - CAST(window_start AS BIGINT)) / 1000000 AS size, \
                       count(DISTINCT window_start) AS windows, count(*) AS counts \
                       FROM db.user_activity_summary GROUP BY size ORDER BY size";
const SEVERITIES: &str = "SELECT severity, count(*) AS anomalies FROM db.anomalous_events \
                          GROUP BY severity ORDER BY anomalies DESC, severity";
const EXAMPLES: &str = "SELECT user_id, date_trunc('second', window_start), date_trunc('second', window_end), event_count, \
                        round(mean, 1), round(z_score, 1), severity \
                        FROM db.anomalous_events ORDER BY z_score DESC, window_start, user_id LIMIT 5";
/// Where monitoring is on.
const CHECKS: &str = "SELECT check_name, count(*) FILTER (WHERE status = 'failed') AS failed, count(*) AS minutes \
                      FROM monitoring.data_quality_checks GROUP BY check_name ORDER BY check_name";
const ALERTS: &str = "SELECT count(*) FROM kafka.anomaly_alerts";
/// What is put into a file, since the topic ends with the broker.
pub const DEAD_LETTERS: &str = "SELECT * FROM kafka.dead_letter_topic ORDER BY \"partition\", \"offset\"";

/// The findings, ready to be printed.
pub async fn findings(catalog: &Catalog, counted: Counted) -> String {
    let mut out = String::from("\nwhat it found\n");
    let seconds = counted.elapsed.as_secs_f64().max(0.001);
    let rate = counted.rows as f64 / seconds;
    let mut line = |name: &str, text: String| out += &format!("  {name:<13} {text}\n");
    line(
        "events",
        format!(
            "{} in {seconds:.0} s and {} micro-batches: {rate:.0} a second",
            number(counted.rows),
            number(counted.batches)
        ),
    );
    if let Some(valid) = one(catalog, VALID).await {
        let kept = one(catalog, DISTINCT).await.unwrap_or_default();
        line("valid", format!("{valid} in the lake, {kept} different ones in the database"));
    }
    line("late", format!("{} pairs of an event and a window that was closed before it came", number(counted.late)));
    line("dead letters", number(counted.dead_letters));
    for row in rows(catalog, REASONS).await {
        line("", format!("{:>7}  {}", row[1], row[0]));
    }
    for row in rows(catalog, WINDOWS).await {
        line("windows", format!("{} of {} seconds, with {} counts of users", row[1], row[0], row[2]));
    }
    for row in rows(catalog, SEVERITIES).await {
        line("anomalies", format!("{} of severity {}", row[1], row[0]));
    }
    for row in rows(catalog, EXAMPLES).await {
        let [user, start, end, count, mean, z, severity] = &row[..] else { continue };
        let (start, end) = (time(start), time(end));
        line("", format!("user {user:>4}  {start} to {end}  {count} events, the mean is {mean}: z {z}, {severity}"));
    }
    let checks: Vec<String> =
        rows(catalog, CHECKS).await.iter().map(|row| format!("{} {} of {}", row[0], row[1], row[2])).collect();
    if !checks.is_empty() {
        line("quality", format!("minutes that fail a check: {}", checks.join(", ")));
    }
    if let Some(alerts) = one(catalog, ALERTS).await {
        line("alerts", format!("{alerts} in topic anomaly_alerts"));
    }
    out
}

/// Where the files are, and what to try next: commands that work when pasted, of files that are not the shipped ones too.
pub fn next_steps(place: &Place, queries: &Path, program: &str) -> String {
    let text = |name: &str| std::fs::read_to_string(queries.join(name)).unwrap_or_default(); // not there: not shipped
    let has_lake = text("00_tables.sql").contains("lake.user_events");
    let has_threshold = text("30_anomalies.sql").contains(THRESHOLD);
    let (program, queries) = (quoted(program), quoted(&queries.display().to_string()));
    let dir = quoted(&place.dir().display().to_string());
    let path = |path: std::path::PathBuf| quoted(&path.display().to_string());
    let database = quoted(&format!("sqlite:{}", place.database().display()));
    let mut out = String::from("\nwhere it is\n");
    for (what, path) in [
        ("database", place.database()),
        ("lake", place.lake()),
        ("checkpoint", place.checkpoint()),
        ("dead letters", place.dead_letters()),
    ] {
        out += &format!("  {what:<13} {}\n", path.display());
    }
    let (lake, checkpoint, dead_letters) = (path(place.lake()), path(place.checkpoint()), path(place.dead_letters()));
    out += "\ntry next\n";
    let sql =
        format!("DATABASE_URL={database} LAKE_URL={lake} CHECKPOINT_BASE={checkpoint} \\\n    {program} sql {queries}");
    let mut step = |what: &str, command: String| out += &format!("  {what}:\n    {command}\n");
    match has_lake {
        true => step(
            "ask the lake in SQL (without -c there is a prompt)",
            format!("{sql} -c 'SELECT action, count(*) AS events FROM lake.user_events GROUP BY action'"),
        ),
        false => step("see the tables (without -c there is a prompt)", format!("{sql} -c 'SHOW TABLES'")),
    }
    if has_threshold {
        step(
            "be less easily alarmed, and see other severities (undo: the .bak file is as it was)",
            format!(
                "sed -i.bak 's/{THRESHOLD}/z_score > 15 /' {queries}/30_anomalies.sql && {program} demo {queries} --dir {dir} --for 20s"
            ),
        );
    }
    step("read dead letters: why, and the bytes as they came", format!("head -n 3 {dead_letters}"));
    out
}

/// What the command that edits a threshold looks for.
const THRESHOLD: &str = "z_score > 5 ";

/// What a demo is not.
pub const CAVEAT: &str = "\n\
    This broker lives in the process and has no real transactions, so alerts and dead letters are at-least-once here;\n\
    the database and the lake are exactly-once as ever. Generator, broker and engine share your processor, and this may\n\
    be a build for quick compiling: its speed says nothing of a release on a real Kafka.\n";

/// Cells as text; nothing if the question has no table here.
async fn rows(catalog: &Catalog, sql: &str) -> Vec<Vec<String>> {
    match query(&catalog.context, sql).await.and_then(|batches| cells(&batches)) {
        Ok(rows) => rows,
        Err(error) => {
            tracing::debug!(sql, "not answered: {}", error.line());
            vec![]
        }
    }
}

async fn one(catalog: &Catalog, sql: &str) -> Option<String> {
    let text = rows(catalog, sql).await.into_iter().next()?.into_iter().next()?;
    Some(text.parse().map_or(text, number))
}

fn cells(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>> {
    let mut rows = vec![];
    for batch in batches {
        for row in 0..batch.num_rows() {
            let cells = batch.columns().iter().map(|column| array_value_to_string(column, row).map_err(Error::from));
            rows.push(cells.collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(rows)
}

/// `2026-01-31T08:00:05` → `08:00:05`.
fn time(timestamp: &str) -> &str {
    timestamp.split_once('T').map_or(timestamp, |(_, time)| time)
}

/// 1234567 → `1,234,567`.
fn number(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_and_name_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (place, _) = Place::prepare(&folder.path().join("my demo")).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries");
        let text = next_steps(&place, &shipped, "target/debug/poundlock");
        assert!(text.contains("DATABASE_URL='sqlite:") && text.contains("my demo/demo.db'"), "{text}");
        assert!(text.contains("sed -i.bak") && text.contains("FROM lake.user_events"), "{text}");
        let text = next_steps(&place, folder.path(), "poundlock");
        assert!(text.contains("SHOW TABLES") && !text.contains("sed") && !text.contains("user_events"), "{text}");
    }

    #[test]
    fn times_and_numbers() {
        assert_eq!(time("2026-01-31T08:00:05"), "08:00:05");
        assert_eq!(number(1_234_567), "1,234,567");
    }
}
