//! What is wrong with the files is shown at the word that is wrong, with what may be meant.

use super::check::refusal;
use super::harness::{append, plan};

/// Two columns of one name are as good as any where columns go by position.
#[tokio::test]
async fn columns_of_one_name_are_taken_by_position() {
    let pairs = append("pairs", "a BIGINT, b BIGINT");
    for select in ["id, id", "id + 1, id + 1", "e.id, e.id", "DISTINCT id, id", "v AS id, id", "max(v), max(v)"] {
        let insert = format!("INSERT INTO kafka.pairs SELECT {select} FROM kafka.events e;");
        plan(&pairs, &insert).await.unwrap_or_else(|error| panic!("{select}: {error}"));
    }
    let twice = plan(&pairs, "INSERT INTO kafka.pairs SELECT id AS x, id + 1 AS x FROM kafka.events;").await;
    let twice = twice.map(drop).unwrap_err().to_string();
    assert!(twice.starts_with("columns 1 and 2 of the SELECT have the same name, 'x'\n"), "{twice}");
    assert!(twice.contains("hint: name one of them with AS"), "{twice}");
}

#[tokio::test]
async fn an_error_stands_at_its_word() {
    let shown = refusal(
        "CREATE EXTERNAL TABLE a (k VARCHAR, n BIGNT) STORED AS PARQUET LOCATION 'a';
CREATE EXTERNAL TABLE b (k VARCHAR) STORED AS PARQUET LOCATION 'b' OPTIONS ('watermark.dely' '1 second');
CREATE EXTERNAL TABLE c (k VARCHAR) STORED AS DATABASE LOCATION 'mysql://x';
CREATE EXTERNAL TABLE d (k VARCHAR) STORED AS DATABASE LOCATION 'sqlite:x' OPTIONS ('timeout' 'soon', 'refresh' '1 minute');
CREATE EXTERNAL TABLE e (k VARCHAR) STORED AS DATABASE LOCATION 'sqlite:x' OPTIONS ('refresh' 'often');
CREATE UNBOUNDED EXTERNAL TABLE f (k VARCHAR, t VARCHAR) STORED AS KAFKA LOCATION 'f'
  OPTIONS ('brokers' 'x:1', 'watermark.column' 't');
CREATE UNBOUNDED EXTERNAL TABLE g (_offset INT) STORED AS KAFKA LOCATION 'g' OPTIONS ('format' 'json');
INSERT INTO db.count SELECT * FROM kafka.events;
INSERT INTO kafka.lines (k, m) SELECT k, id FROM kafka.events;
INSERT INTO kafka.lines SELECT k, k AS text FROM kafka.events;
INSERT INTO kafka.lines SELECT k, abs(id, 1) FROM kafka.events;
INSERT INTO kafka.lines SELECT k, id FROM HOP(kafka.events, ts, INTERVAL '1 minute');",
    );
    insta::assert_snapshot!(shown.await, @r#"
    type 'BIGNT' is not supported
      queries.sql:1:39
       1 | CREATE EXTERNAL TABLE a (k VARCHAR, n BIGNT) STORED AS PARQUET LOCATION 'a';
         |                                       ^^^^^
    hint: did you mean BIGINT? There are: BIGINT, INT, INTEGER, SMALLINT, TINYINT, DOUBLE, REAL, DECIMAL, BOOLEAN, VARCHAR, TEXT, STRING, BYTEA, DATE, TIMESTAMP, TIMESTAMPTZ, JSON, UUID, ARRAY, STRUCT, MAP

    error: option 'watermark.dely' of table public.b is not an option of this table
      queries.sql:2:77
       2 | CREATE EXTERNAL TABLE b (k VARCHAR) STORED AS PARQUET LOCATION 'b' OPTIONS ('watermark.dely' '1 second');
         |                                                                             ^^^^^^^^^^^^^^^^
    hint: did you mean 'watermark.delay'? it has: compression, delivery, max_bytes, max_rows_per_row_group, refresh, role, s3.access_key_id, s3.allow_http, s3.ca_file, s3.endpoint, s3.region, s3.secret_access_key, s3.session_token, s3.virtual_hosted_style, watermark.column, watermark.delay, watermark.idle, watermark.max_ahead

    error: location "mysql://x" of table public.c is not the address of a database
      queries.sql:3:65
       3 | CREATE EXTERNAL TABLE c (k VARCHAR) STORED AS DATABASE LOCATION 'mysql://x';
         |                                                                 ^^^^^^^^^^^
    hint: write 'postgres://user:password@host:5432/database' or 'sqlite:path/to/file.db'

    error: option 'timeout' of table public.d is "soon", not a duration
      queries.sql:4:95
       4 | … LOCATION 'sqlite:x' OPTIONS ('timeout' 'soon', 'refresh' '1 minute');
         |                                          ^^^^^^
    hint: for example '30 seconds'

    error: option 'refresh' is "often", not a duration
      queries.sql:5:95
       5 | CREATE EXTERNAL TABLE e (k VARCHAR) STORED AS DATABASE LOCATION 'sqlite:x' OPTIONS ('refresh' 'often');
         |                                                                                               ^^^^^^^
    hint: for example '1 minute'

    error: watermark column t is VARCHAR, not TIMESTAMP
      queries.sql:6:49
       6 | CREATE UNBOUNDED EXTERNAL TABLE f (k VARCHAR, t VARCHAR) STORED AS KAFKA LOCATION 'f'
         |                                                 ^^^^^^^
    hint: declare it as TIMESTAMP or TIMESTAMPTZ

    error: option 'brokers' of table public.g is missing or empty
      queries.sql:8:78
       8 | CREATE UNBOUNDED EXTERNAL TABLE g (_offset INT) STORED AS KAFKA LOCATION 'g' OPTIONS ('format' 'json');
         |                                                                              ^^^^^^^
    hint: add OPTIONS ('brokers' 'localhost:9092')

    error: table db.count is not declared
      queries.sql:9:13
       9 | INSERT INTO db.count SELECT * FROM kafka.events;
         |             ^^^^^^^^
    hint: did you mean db.counts?

    error: table kafka.lines has no column m
      queries.sql:10:29
       10 | INSERT INTO kafka.lines (k, m) SELECT k, id FROM kafka.events;
          |                             ^
    hint: it has: k, n

    error: column n of kafka.lines is BIGINT, the SELECT gives VARCHAR
      queries.sql:11:35
       11 | INSERT INTO kafka.lines SELECT k, k AS text FROM kafka.events;
          |                                   ^^^^^^^^^
    hint: CAST(text AS BIGINT)

    error: function 'abs' expects 1 arguments but received 2
      queries.sql:12:35
       12 | INSERT INTO kafka.lines SELECT k, abs(id, 1) FROM kafka.events;
          |                                   ^^^
    hint: no function matches the given name and argument types 'abs(Int64, Int64)'. You might need to add explicit type casts. Candidate functions: abs(Numeric(1))

    error: hop takes 4 argument(s), found 3
      queries.sql:13:43
       13 | INSERT INTO kafka.lines SELECT k, id FROM HOP(kafka.events, ts, INTERVAL '1 minute');
          |                                           ^^^
    hint: write HOP(relation, time column, INTERVAL slide, INTERVAL size)
    "#);
}

/// What is known when all files have been read is told at its word as well.
#[tokio::test]
async fn tables_that_cannot_be_written_are_shown_where_they_are_declared() {
    let shown = refusal(
        "CREATE SCHEMA lake;
CREATE EXTERNAL TABLE lake.c (k VARCHAR) STORED AS CSV LOCATION 'c.csv';
INSERT INTO lake.c SELECT k FROM kafka.events;",
    );
    let shown = shown.await;
    assert!(shown.contains("queries.sql:2:52") && shown.contains("^^^\nhint: write to PARQUET"), "{shown}");
}
