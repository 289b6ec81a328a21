//! The shipped `queries/`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::sql::substitute::Wanted;
use crate::sql::windowed::Rows;
use crate::sql::{Files, Program, parse, settings};

fn lookup(wanted: Wanted) -> Result<Option<String>, String> {
    Ok(match wanted {
        Wanted::Variable("DATABASE_URL") => Some("sqlite:/nowhere/test.db".into()),
        _ => None,
    })
}

#[tokio::test]
async fn each_insert_sees_the_rows_it_needs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("queries");
    let files = Files::read(&folder, &lookup).unwrap();
    let script = parse(&files);
    let settings = settings::resolve(&BTreeMap::new(), &lookup, &files, &script.statements);
    let program = Program::plan(files, script, settings).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(program.warnings.is_empty(), "{:?}", program.warnings);
    let seen: Vec<(&str, Vec<Rows>)> = program
        .inserts
        .iter()
        .map(|insert| (insert.table.name.as_str(), insert.rows.iter().copied().collect()))
        .collect();
    let expected = [
        ("kafka.dead_letter_topic", vec![]),
        ("db.user_events", vec![]),
        ("lake.user_events", vec![]),
        ("db.user_activity_summary", vec![Rows::Changed]),
        ("db.user_activity_summary", vec![Rows::Changed]),
        ("db.anomalous_events", vec![Rows::Closed]),
        ("kafka.anomaly_alerts", vec![Rows::Closed]),
    ];
    assert_eq!(seen, expected);
    assert!(program.inserts[..3].iter().all(|insert| insert.in_source_order));
    assert_eq!(program.windows.stores.len(), 1, "both sizes share their panes");
    let names: Vec<&str> = program.windows.views.iter().map(|view| view.name.as_str()).collect();
    assert_eq!(names, ["public.activity_5s", "public.activity_1min"]);
}
