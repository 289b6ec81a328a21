-- What this pipeline reads and writes. The files of this folder are read in the order of their names; together they are
-- the whole pipeline: change a line, start `poundlock run` again, and the logic has changed. (Where the change is below a
-- window, its kept counts do not fit any more: the start says so, and --reset-state begins its open windows anew.)
--
-- ${NAME:-default} is an environment variable. ${NAME} without a default must be set. `poundlock check` reads these
-- files, connects to nothing, and prints what each INSERT promises.

SET poundlock.name       = 'user-activity';                        -- names the consumer group and the transactions
SET poundlock.trigger    = '${PROCESSING_TRIGGER:-1 second}';      -- how often a micro-batch is cut
SET poundlock.checkpoint = '${CHECKPOINT_BASE:-checkpoint}';       -- where its progress and window state are kept

CREATE SCHEMA kafka;
CREATE SCHEMA db;
CREATE SCHEMA lake;
CREATE SCHEMA es;
CREATE SCHEMA monitoring;

-- ── Kafka ──────────────────────────────────────────────────────────────────────────────────────────────────────────

-- The input. The columns are the fields of the JSON object; data/README.md says what each one means. Those that begin
-- with "_" are filled by the engine. A record that does not decode is a row too: its fields are NULL, _error says why,
-- and _raw holds its bytes.
CREATE UNBOUNDED EXTERNAL TABLE kafka.user_events (
  user_id      BIGINT,
  product_id   BIGINT,
  action       VARCHAR,
  "timestamp"  TIMESTAMP,
  device_id    VARCHAR,
  device_type  VARCHAR,
  location     VARCHAR,
  user_segment VARCHAR,
  ip_address   VARCHAR,
  _error       VARCHAR,
  _raw         BYTEA,
  _topic       VARCHAR,
  _partition   INT,
  _offset      BIGINT,
  _timestamp   TIMESTAMP                -- when Kafka got it
)
STORED AS KAFKA LOCATION '${KAFKA_TOPIC:-user_events}'
OPTIONS (
  'brokers' '${KAFKA_BROKER:-localhost:9092}',
  'format' '${KAFKA_FORMAT:-json}',       -- json, avro, or auto where both come on the topic
  'schema.registry.url' '${SCHEMA_REGISTRY_URL:-http://localhost:8081}',     -- only asked where there is Avro
  'schema.registry.user' '${SCHEMA_REGISTRY_USER:-}', 'schema.registry.password' '${SCHEMA_REGISTRY_PASSWORD:-}',
  'schema.registry.ca' '${SCHEMA_REGISTRY_CA:-}',
  'watermark.column' 'timestamp',
  'watermark.delay' '30 seconds'        -- how late an event may be and still be counted in its window
);

-- Invalid records, with every reason. "role" makes it the place of what the engine itself has to refuse as well (a
-- value that PostgreSQL cannot hold, say): it fills the columns of these names, NULL where there is nothing to tell.
CREATE EXTERNAL TABLE kafka.dead_letter_topic (
  dq_reason   VARCHAR,       -- all rules that failed, joined by '; '; of a row that a query or a sink refused, what it said
  error       VARCHAR,       -- why the record did not decode, or the same of a refused row
  stage       VARCHAR,       -- 'validation' for the rows of 10_validate.sql
  sink        VARCHAR,       -- the sink that refused it
  raw         BYTEA,         -- the bytes of the record (base64 in JSON)
  payload     VARCHAR,       -- the same for human eyes; NULL if they are not UTF-8, and where the engine refused
  row_json    VARCHAR,       -- the row that a query or a sink refused
  topic       VARCHAR,
  "partition" INT,
  "offset"    BIGINT,
  batch       BIGINT
)
STORED AS KAFKA LOCATION '${KAFKA_DLQ_TOPIC:-dead_letter_topic}'
OPTIONS ('brokers' '${KAFKA_BROKER:-localhost:9092}', 'format' 'json', 'role' 'dead_letters',
         'transactional' '${KAFKA_TRANSACTIONS:-true}');   -- false: at-least-once, for a broker without transactions

CREATE EXTERNAL TABLE kafka.anomaly_alerts (
  user_id      BIGINT,
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  event_count  BIGINT,
  z_score      DOUBLE,
  severity     VARCHAR
)
STORED AS KAFKA LOCATION '${KAFKA_ALERT_TOPIC:-anomaly_alerts}'
OPTIONS ('brokers' '${KAFKA_BROKER:-localhost:9092}', 'format' 'json', 'key' 'user_id',
         'transactional' '${KAFKA_TRANSACTIONS:-true}');

-- ── The database: postgres://user:password@host/database, or sqlite:FILE ───────────────────────────────────────────

-- Who the users are: a dimension, read again every minute; from a replica, where there is one.
CREATE EXTERNAL TABLE db.users (
  user_id    BIGINT,
  name       VARCHAR,
  email      VARCHAR,
  region     VARCHAR,
  created_at TIMESTAMPTZ,
  PRIMARY KEY (user_id)
)
STORED AS DATABASE LOCATION '${DATABASE_URL}'
OPTIONS ('refresh' '1 minute', 'replica' '${DATABASE_REPLICA_URL:-}');

-- Every valid event once: the same event produced twice (same user, time, action and device) is stored once.
CREATE EXTERNAL TABLE db.user_events (
  user_id      BIGINT,
  product_id   BIGINT,
  action       VARCHAR,
  "timestamp"  TIMESTAMP,
  device_id    VARCHAR,
  device_type  VARCHAR,
  location     VARCHAR,
  user_segment VARCHAR,
  ip_address   VARCHAR,
  topic        VARCHAR,
  "partition"  INT,
  "offset"     BIGINT,
  PRIMARY KEY (user_id, "timestamp", action, device_id)
)
STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS (
  'on_conflict' 'nothing',
  'transaction' 'own',                  -- beside that of the counts: PostgreSQL works on both at once
  'role' 'valid'
);

-- The counts per user and window, brought up to date while the window is open.
CREATE EXTERNAL TABLE db.user_activity_summary (
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  user_id      BIGINT,
  event_count  BIGINT,
  name         VARCHAR,
  region       VARCHAR,
  PRIMARY KEY (window_start, window_end, user_id)
)
STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('on_conflict' 'update');

CREATE EXTERNAL TABLE db.anomalous_events (
  user_id      BIGINT,
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  event_count  BIGINT,
  mean         DOUBLE,
  stddev       DOUBLE,
  z_score      DOUBLE,
  severity     VARCHAR,
  PRIMARY KEY (user_id, window_start, window_end)
)
STORED AS DATABASE LOCATION '${DATABASE_URL}' OPTIONS ('on_conflict' 'nothing');

-- ── Elasticsearch: off as long as ES_URL is not set, for a table whose LOCATION is empty is off ─────────────────────────

-- Both are documents of one index, told apart by their type; migrations/elasticsearch has its mapping. A document's _id is the
-- PRIMARY KEY, so that it is the same one when its batch is written again. They are delivered out of an outbox: when Elasticsearch
-- is dead, its documents wait in the checkpoint, and nothing else does. `poundlock status` tells how many.
CREATE EXTERNAL TABLE es.anomalies (
  "type"       VARCHAR,
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  user_id      BIGINT,
  event_count  BIGINT,
  mean         DOUBLE,
  stddev       DOUBLE,
  z_score      DOUBLE,
  severity     VARCHAR,
  PRIMARY KEY ("type", window_start, window_end, user_id)
)
STORED AS ELASTICSEARCH LOCATION '${ES_URL:-}'
OPTIONS ('index' '${ES_INDEX:-user_event_logs}', 'op_type' 'create', 'delivery' 'outbox', 'bulk.rows' '${ES_BULK_CHUNK:-2000}',
         'api_key' '${ES_API_KEY:-}', 'ca_file' '${ES_CA_FILE:-}');

CREATE EXTERNAL TABLE es.summaries (
  "type"       VARCHAR,
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  users        BIGINT,
  events       BIGINT,
  mean         DOUBLE,
  stddev       DOUBLE,
  threshold    DOUBLE,       -- the z-score from which a user is an anomaly, as it was then
  anomalies    BIGINT,
  PRIMARY KEY ("type", window_start, window_end)
)
STORED AS ELASTICSEARCH LOCATION '${ES_URL:-}'
OPTIONS ('index' '${ES_INDEX:-user_event_logs}', 'op_type' 'create', 'delivery' 'outbox', 'bulk.rows' '${ES_BULK_CHUNK:-2000}',
         'api_key' '${ES_API_KEY:-}', 'ca_file' '${ES_CA_FILE:-}');

-- ── Monitoring: off as long as MONITORING_URL is not set ───────────────────────────────────────────────────────────────

-- The address of a database that has the tables of migrations/, most often the same: MONITORING_URL="$DATABASE_URL"

-- One row for each hour. 50_monitoring.sql also reads it, to compare an hour with those before it.
CREATE EXTERNAL TABLE monitoring.hourly_metrics (
  window_start      TIMESTAMP,
  window_end        TIMESTAMP,
  events            BIGINT,       -- valid ones
  users             BIGINT,       -- who did something
  views             BIGINT,
  clicks            BIGINT,
  searches          BIGINT,
  adds_to_cart      BIGINT,
  removes_from_cart BIGINT,
  purchases         BIGINT,
  logins            BIGINT,
  logouts           BIGINT,
  invalid           BIGINT,
  invalid_rate      DOUBLE,       -- of all records of the hour
  hours_before      BIGINT,       -- of the 24 before it, those that have events
  mean              DOUBLE,       -- of their events
  stddev            DOUBLE,
  z_score           DOUBLE,
  PRIMARY KEY (window_start)
)
STORED AS DATABASE LOCATION '${MONITORING_URL:-}' OPTIONS ('on_conflict' 'update');

-- Five checks of each minute.
CREATE EXTERNAL TABLE monitoring.data_quality_checks (
  check_name   VARCHAR,           -- completeness, validity, uniqueness, timeliness, volume
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  rows_checked BIGINT,
  rows_failed  BIGINT,
  failed_ratio DOUBLE,
  status       VARCHAR,           -- passed, failed
  threshold    DOUBLE,            -- a larger ratio fails
  PRIMARY KEY (check_name, window_start, window_end)
)
STORED AS DATABASE LOCATION '${MONITORING_URL:-}' OPTIONS ('on_conflict' 'update');

-- What is far from usual: users within their window, hours within the day before them.
CREATE EXTERNAL TABLE monitoring.anomaly_detection_results (
  metric       VARCHAR,           -- events_per_user, events_per_hour
  subject      VARCHAR,           -- the user, or 'all'
  window_start TIMESTAMP,
  window_end   TIMESTAMP,
  value        DOUBLE,
  mean         DOUBLE,
  stddev       DOUBLE,
  z_score      DOUBLE,
  method       VARCHAR,           -- what it is compared with: population, history
  severity     VARCHAR,
  PRIMARY KEY (metric, subject, window_start, window_end)
)
STORED AS DATABASE LOCATION '${MONITORING_URL:-}' OPTIONS ('on_conflict' 'update');

-- ── The lake: Parquet files in a folder, one folder a day ──────────────────────────────────────────────────────────

-- Every valid event, repeated ones included, for ad-hoc SQL: poundlock sql -c 'SELECT count(*) FROM lake.user_events'
CREATE EXTERNAL TABLE lake.user_events (
  user_id      BIGINT,
  product_id   BIGINT,
  action       VARCHAR,
  "timestamp"  TIMESTAMP,
  device_id    VARCHAR,
  device_type  VARCHAR,
  location     VARCHAR,
  user_segment VARCHAR,
  ip_address   VARCHAR,
  topic        VARCHAR,
  "partition"  INT,
  "offset"     BIGINT
)
STORED AS PARQUET LOCATION '${LAKE_URL:-lake}/user_events'
PARTITIONED BY (event_date DATE);
