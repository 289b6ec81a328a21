use super::*;
use crate::sql::statement::{Kind, parse};

fn define_first(source: &str) -> Result<TableDefinition> {
    let files = Files::from_stored(vec![("a.sql".into(), source.into())], &|_| Ok(None));
    let (statements, errors) = parse(&files).into_parts();
    if let Some(error) = Error::all(errors) {
        return Err(error);
    }
    let table = statements.iter().find_map(|statement| match &statement.kind {
        Kind::CreateTable(table) => Some(define(&files, table)),
        _ => None,
    });
    table.expect("no table")
}

#[test]
fn a_table_is_defined() {
    let table = define_first(
        "SET a.b = 1;
  CREATE UNBOUNDED EXTERNAL TABLE Kafka.\"Events\" (
    User_Id BIGINT, \"timestamp\" TIMESTAMP, tags VARCHAR[], _raw BYTEA, PRIMARY KEY (user_id, \"timestamp\")
  ) STORED AS kafka LOCATION '${TOPIC:-events}'
  OPTIONS ('Brokers' 'localhost:9092', watermark.delay '30 seconds', limit 5)",
    )
    .unwrap();
    assert_eq!(table.name, "kafka.Events");
    assert_eq!(table.place, "a.sql:2:3");
    assert_eq!(table.primary_key, ["user_id", "timestamp"]);
    assert_eq!((table.stored_as.as_str(), table.location.as_str(), table.unbounded), ("KAFKA", "events", true));
    let options: Vec<_> = table.options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(options, [("brokers", "localhost:9092"), ("limit", "5"), ("watermark.delay", "30 seconds")]);
    let columns: Vec<_> = table.schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    assert_eq!(columns, ["user_id Int64", "timestamp Timestamp(µs)", "tags List(Utf8View)", "_raw Binary"]);
    assert!(table.schema.fields().iter().all(|f| f.is_nullable()));
}

#[test]
fn partition_columns_may_be_named_or_declared() {
    let declared =
        "CREATE EXTERNAL TABLE t (a INT) STORED AS PARQUET LOCATION 'x' PARTITIONED BY (\"Day\" DATE, hour INT)";
    let table = define_first(declared).unwrap();
    assert_eq!(table.partition_columns, ["Day", "hour"]);
    assert_eq!(table.schema.fields().len(), 3);
    let named = "CREATE EXTERNAL TABLE t (a INT, \"Day\" DATE) STORED AS PARQUET LOCATION 'x' PARTITIONED BY (\"Day\")";
    assert_eq!(define_first(named).unwrap().partition_columns, ["Day"]);
}

#[test]
fn an_empty_location_is_kept() {
    let table = define_first("CREATE EXTERNAL TABLE t (a INT) STORED AS DATABASE LOCATION '${URL:-}'").unwrap();
    assert_eq!((table.location.as_str(), table.name.as_str()), ("", "public.t"));
}

#[test]
fn not_null_is_for_databases() {
    let of = |stored_as: &str| {
        define_first(&format!(
            "CREATE EXTERNAL TABLE t (a INT NOT NULL PRIMARY KEY) STORED AS {stored_as} LOCATION 'x'"
        ))
    };
    let table = of("DATABASE").unwrap();
    assert!(!table.schema.field(0).is_nullable());
    assert_eq!(table.primary_key, ["a"]);
    assert!(of("KAFKA").unwrap_err().message().contains("cannot be NOT NULL"));
    assert!(of("PARQUET").unwrap_err().message().contains("kept by a database only"));
}

#[test]
fn wrong_declarations_are_refused() {
    for (sql, message) in [
        ("t (a INT) STORED AS KAFKAA LOCATION 'x'", "did you mean STORED AS KAFKA?"),
        ("t (a INT) STORED AS POSTGRES LOCATION 'x'", "did you mean STORED AS DATABASE?"),
        (
            "t (a INT) STORED AS OPENSEARCH LOCATION 'x'",
            "did you mean STORED AS ELASTICSEARCH? there are: KAFKA, DATABASE, PARQUET, DELTA, ELASTICSEARCH, CSV, JSON",
        ),
        ("t STORED AS CSV LOCATION 'x'", "the table has no columns"),
        ("t () STORED AS CSV LOCATION 'x'", "the table has no columns"),
        ("t (a INT, A INT) STORED AS CSV LOCATION 'x'", "column 'a' is declared twice"),
        ("t (user_id INT, PRIMARY KEY (usr_id)) STORED AS CSV LOCATION 'x'", "did you mean user_id?"),
        ("t (a INT, PRIMARY KEY (a, a)) STORED AS CSV LOCATION 'x'", "in the primary key twice"),
        ("t (a INT PRIMARY KEY, PRIMARY KEY (a)) STORED AS CSV LOCATION 'x'", "two primary keys"),
        ("t (a INT, UNIQUE (a)) STORED AS CSV LOCATION 'x'", "a PRIMARY KEY at most"),
        ("t (a INT DEFAULT 1) STORED AS CSV LOCATION 'x'", "but not DEFAULT 1"),
        ("t (a INTERVAL) STORED AS CSV LOCATION 'x'", "cannot be stored"),
        ("t (a NONSENSE) STORED AS CSV LOCATION 'x'", "nonsense"),
        ("t (a INT) STORED AS CSV LOCATION ('x', 'y')", "one LOCATION"),
        ("t (a INT) STORED AS CSV LOCATION 'x' WITH ORDER (a)", "WITH ORDER"),
        ("t (a INT) STORED AS CSV LOCATION 'x' PARTITIONED BY (b)", "partition column 'b' is not declared"),
        ("t (a INT) STORED AS CSV LOCATION 'x' PARTITIONED BY (a)", "not in PARTITIONED BY"),
        ("t (a INT) STORED AS KAFKA LOCATION 'x' PARTITIONED BY (a)", "has no PARTITIONED BY"),
        ("t (a INT) STORED AS CSV LOCATION 'x' OPTIONS ('a' 'b', 'A' 'c')", "option 'a' is given twice"),
        ("IF NOT EXISTS t (a INT) STORED AS CSV LOCATION 'x'", "declared once"),
        ("a.b.c (a INT) STORED AS CSV LOCATION 'x'", "more than two parts"),
    ] {
        let shown = define_first(&format!("CREATE EXTERNAL TABLE {sql}")).unwrap_err().to_string();
        assert!(shown.to_lowercase().contains(&message.to_lowercase()), "{sql}: {shown}");
        assert!(shown.contains("a.sql:1:"), "{sql}: {shown}");
    }
    let unbounded = define_first("CREATE UNBOUNDED EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION 'x'").unwrap_err();
    assert!(unbounded.message().contains("only a table STORED AS KAFKA can be unbounded"));
}

#[test]
fn all_that_is_wrong_is_shown_at_its_column() {
    let error = define_first(
        "CREATE EXTERNAL TABLE t (
  a TIMESTAMP(9),
  b VARCHAR CHECK (b > 'x'),
  b INT
) STORED AS DATABASE LOCATION 'x'",
    )
    .unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r"
    type 'TIMESTAMP(9)' is finer than a microsecond
      a.sql:2:5
       2 |   a TIMESTAMP(9),
         |     ^^^^^^^^^
    hint: use TIMESTAMP or TIMESTAMP(6)

    error: a column has a name, a type, perhaps NOT NULL or PRIMARY KEY, but not CHECK (b > 'x')
      a.sql:3:3
       3 |   b VARCHAR CHECK (b > 'x'),
         |   ^
    hint: compute the value in the SELECT, or leave it to the database (migrations/)

    error: column 'b' is declared twice
      a.sql:4:3
       4 |   b INT
         |   ^
    hint: leave one of them out
    ");
}
