"""The judge: recomputes with DuckDB, from the input topic alone, what every sink must hold, and compares row for row.

    judge.py DUMP LAKE TOPIC        DUMP: the folder that judge.rs fills; LAKE: LAKE_URL of the run; TOPIC: the input's name

It shares no code with the engine. What it says of a record follows from the documents: data/README.md, queries/*.sql,
the SQL of the windows as SQL:2016 defines them. It ends with status 1 if anything is lost, doubled, changed or made up.
A record of a kind that it does not define stops it: it never guesses.
"""
import json
import sys
from base64 import b64decode
from datetime import datetime
from pathlib import Path

import duckdb

DUMP, LAKE, TOPIC = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
EVENT = {
    "user_id": "BIGINT", "product_id": "BIGINT", "action": "VARCHAR", "timestamp": "TIMESTAMP", "device_id": "VARCHAR",
    "device_type": "VARCHAR", "location": "VARCHAR", "user_segment": "VARCHAR", "ip_address": "VARCHAR",
}
ORIGIN = {"topic": "VARCHAR", "partition": "INTEGER", "offset": "BIGINT"}
KEY = '(user_id, "timestamp", action, device_id)'
NUL = "\N{SYMBOL FOR NULL}"  # stands for U+0000, which DuckDB's JSON reader does not take
failures = []


# ── What one record is ───────────────────────────────────────────────────────────────────────────────────────────────

class DoesNotDecode(Exception):
    pass


def not_json(constant):
    raise DoesNotDecode(f"{constant} is not JSON")


def decode(payload):
    """The fields of EVENT, or DoesNotDecode."""
    if payload is None:
        raise DoesNotDecode("tombstone")
    try:
        record = json.loads(payload.decode("utf-8"), parse_constant=not_json)
    except ValueError as error:
        raise DoesNotDecode(str(error)) from None
    if not isinstance(record, dict):
        raise DoesNotDecode("not an object")
    return {field: value(field, type_, record.get(field)) for field, type_ in EVENT.items()}


def value(field, type_, found):
    if found is None:
        return None
    if type_ == "BIGINT":
        if isinstance(found, int) and not isinstance(found, bool) and -(2**63) <= found < 2**63:
            return found
        if isinstance(found, (int, float)) or found == "forty-two":
            raise DoesNotDecode(f"{field}: not a BIGINT")
    elif type_ == "TIMESTAMP" and isinstance(found, str):
        try:
            datetime.strptime(found, "%Y-%m-%dT%H:%M:%S.%f")
            return found
        except ValueError:
            raise DoesNotDecode(f"{field}: not a time") from None
    elif type_ == "VARCHAR" and isinstance(found, str):
        return found.replace("\0", NUL)
    elif type_ == "VARCHAR" and isinstance(found, dict):
        return json.dumps(found)  # as text; only its being no action counts
    raise SystemExit(f"judge: {field}: {found!r} is not defined here")


# ── Tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────

db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")


def lines(name):
    # split at \n alone: splitlines would also split at other characters, which JSON leaves as they are
    return [json.loads(line) for line in (DUMP / name).read_text("utf-8").split("\n") if line]


def unhex(text):
    return None if text is None else bytes.fromhex(text)


def table(name, columns, rows=None):
    """A table of these columns from rows, or from the dumped file of that name."""
    path = DUMP / f"{name}.jsonl"
    if rows is not None:
        path = DUMP / f"{name}.judged.jsonl"
        with path.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    declared = ", ".join(f'"{column}" {type_}' for column, type_ in columns.items())
    db.execute(f'CREATE TABLE "{name}" ({declared})')
    if path.stat().st_size:
        types = "{" + ", ".join(f"'{column}': '{type_}'" for column, type_ in columns.items()) + "}"
        db.execute(f"INSERT INTO \"{name}\" SELECT * FROM read_json('{path}', format='newline_delimited', columns={types}, maximum_object_size=33554432)")


def count(sql):
    return db.execute(f"SELECT count(*) FROM ({sql})").fetchone()[0]


def expect(what, fine, detail=""):
    print(f"  {'ok' if fine else 'WRONG':5} {what}")
    if not fine:
        failures.append(what)
        if detail:
            print("        " + str(detail).replace("\n", "\n        "))


def same(what, expected, found):
    """Both queries have the same rows, each as often."""
    missing, surplus = f"({expected}) EXCEPT ALL ({found})", f"({found}) EXCEPT ALL ({expected})"
    lost, extra = count(missing), count(surplus)
    detail = ""
    if lost or extra:
        show = lambda sql: "\n".join(map(str, db.execute(f"SELECT * FROM ({sql}) ORDER BY ALL LIMIT 5").fetchall()))
        detail = f"{lost} missing:\n{show(missing)}\n{extra} surplus:\n{show(surplus)}"
    expect(f"{what}: {count(found)} rows", not lost and not extra, detail)


def none(what, sql):
    rows = db.execute(f"SELECT * FROM ({sql}) LIMIT 5").fetchall()
    expect(what, not rows, f"{count(sql)} rows, such as\n" + "\n".join(map(str, rows)) if rows else "")


# ── The input, and what must become of it ────────────────────────────────────────────────────────────────────────────

payloads, decoded = {}, []
for record in lines("input.jsonl"):
    place, payload = (record["partition"], record["offset"]), unhex(record["value"])
    assert place not in payloads, place
    payloads[place] = payload
    try:
        fields, undecodable = decode(payload), False
    except DoesNotDecode:
        fields, undecodable = dict.fromkeys(EVENT), True
    decoded.append({**fields, "topic": TOPIC, "partition": place[0], "offset": place[1], "undecodable": undecodable,
                    "arrived": None if record["timestamp"] is None else record["timestamp"] * 1000})
table("input", {**EVENT, **ORIGIN, "undecodable": "BOOLEAN", "arrived": "BIGINT"}, decoded)
table("users", {"user_id": "BIGINT", "name": "VARCHAR", "region": "VARCHAR"})

db.execute(f"""
CREATE VIEW checked AS SELECT *, nullif(concat_ws('; ',
  CASE WHEN user_id IS NULL THEN 'user_id is missing' WHEN user_id <= 0 THEN 'user_id is not positive' END,
  CASE WHEN action IS NULL THEN 'action is missing'
       WHEN action NOT IN ('view', 'click', 'search', 'add_to_cart', 'remove_from_cart', 'purchase', 'login', 'logout')
       THEN 'action is not one of ours' END,
  CASE WHEN "timestamp" IS NULL THEN 'timestamp is missing' END,
  CASE WHEN device_id IS NULL THEN 'device_id is missing' END), '') AS broken
FROM input;
CREATE VIEW valid AS SELECT {', '.join(f'"{c}"' for c in (*EVENT, *ORIGIN))} FROM checked WHERE NOT undecodable AND broken IS NULL;
-- PostgreSQL's text cannot hold U+0000.
CREATE VIEW refused AS SELECT * FROM valid WHERE contains(location, '{NUL}');

CREATE TABLE activity AS
SELECT bucket AS window_start, bucket + INTERVAL 5 SECOND AS window_end, user_id, count(*) AS event_count
FROM (SELECT *, time_bucket(INTERVAL 5 SECOND, "timestamp") AS bucket FROM valid) GROUP BY ALL
UNION ALL
SELECT bucket - slide * INTERVAL 5 SECOND AS window_start, window_start + INTERVAL 60 SECOND AS window_end, user_id, count(*)
FROM (SELECT *, time_bucket(INTERVAL 5 SECOND, "timestamp") AS bucket FROM valid), range(12) AS slides(slide) GROUP BY ALL;

CREATE VIEW summary AS SELECT a.*, u.name, u.region FROM activity a LEFT JOIN users u USING (user_id);

CREATE TABLE scored AS
WITH population AS (
  SELECT *, round(avg(event_count) OVER w, 6) AS mean, round(stddev_pop(event_count) OVER w, 6) AS stddev
  FROM activity WINDOW w AS (PARTITION BY window_start, window_end))
SELECT *, round((event_count - mean) / nullif(stddev, 0), 4) AS z_score FROM population;

CREATE TABLE anomalies AS
SELECT user_id, window_start, window_end, event_count, mean, stddev, z_score,
       CASE WHEN z_score > 5 THEN 'high' WHEN z_score > 3 THEN 'medium' ELSE 'low' END AS severity
FROM scored WHERE event_count > 5 AND z_score >= 2.0;
""")
kinds = dict(db.execute("SELECT severity, count(*) FROM anomalies GROUP BY ALL").fetchall())
print(f"input: {len(payloads)} records, {count('FROM valid')} valid; {count('FROM activity')} counts; anomalies: {kinds}")
expect("there are anomalies of a severity that alerts", kinds.get("medium", 0) + kinds.get("high", 0) > 0)

# ── Dead letters ─────────────────────────────────────────────────────────────────────────────────────────────────────

LETTER = {"dq_reason": "VARCHAR", "error": "VARCHAR", "stage": "VARCHAR", "sink": "VARCHAR", **ORIGIN}
letters, wrong_bytes, wrong_text = [], [], []
for record in lines("dead_letters.jsonl"):
    letter = json.loads(unhex(record["value"]))
    letters.append({column: letter.get(column) for column in LETTER})
    place = (letter.get("partition"), letter.get("offset"))
    if letter.get("stage") != "validation":
        continue
    payload = payloads.get(place)
    raw = None if letter.get("raw") is None else b64decode(letter["raw"], validate=True)
    if raw != payload:
        wrong_bytes.append((place, payload, raw))
    try:
        text = None if payload is None else payload.decode("utf-8")
    except ValueError:
        text = None
    if letter.get("payload") != text:
        wrong_text.append((place, text, letter.get("payload")))
table("letters", LETTER, letters)

print("dead letters")
same("one for each invalid record, and no other",
     'SELECT topic, "partition", "offset" FROM checked WHERE undecodable OR broken IS NOT NULL',
     "SELECT topic, \"partition\", \"offset\" FROM letters WHERE stage = 'validation'")
none("with all the rules that it breaks",
     """SELECT c."partition", c."offset", c.broken, l.dq_reason FROM checked c JOIN letters l USING ("partition", "offset")
        WHERE l.stage = 'validation' AND NOT c.undecodable AND (l.dq_reason IS DISTINCT FROM c.broken OR l.error IS NOT NULL)""")
none("with why it did not decode, and nothing else",
     """SELECT c."partition", c."offset", l.dq_reason, l.error FROM checked c JOIN letters l USING ("partition", "offset")
        WHERE l.stage = 'validation' AND c.undecodable AND (l.error IS NULL OR l.error = '' OR l.dq_reason <> l.error)""")
expect("with the bytes of the record", not wrong_bytes, wrong_bytes[:3])
expect("with its text", not wrong_text, wrong_text[:3])
same("one for each row that the database refuses",
     'SELECT topic, "partition", "offset" FROM refused',
     "SELECT topic, \"partition\", \"offset\" FROM letters WHERE stage IS DISTINCT FROM 'validation'")
none("which says what refused it and why",
     "FROM letters WHERE stage IS DISTINCT FROM 'validation' AND (stage IS NULL OR sink IS NULL OR error IS NULL)")

# ── Raw tables ───────────────────────────────────────────────────────────────────────────────────────────────────────

table("user_events", {**EVENT, **ORIGIN})
columns = ", ".join(f'"{column}"' for column in (*EVENT, *ORIGIN))
files = sorted(LAKE.glob("user_events/**/*.parquet"))
if files:
    db.execute(f"CREATE VIEW lake AS SELECT * REPLACE (replace(location, chr(0), '{NUL}') AS location) "
               f"FROM read_parquet('{LAKE}/user_events/**/*.parquet', hive_partitioning=true)")
else:
    db.execute("CREATE VIEW lake AS SELECT *, DATE '2000-01-01' AS event_date FROM valid LIMIT 0")
print("raw events")
same(f"the lake, {len(files)} files", f"SELECT {columns} FROM valid", f"SELECT {columns} FROM lake")
none("in the folder of their day", 'FROM lake WHERE CAST(event_date AS DATE) <> CAST("timestamp" AS DATE)')
none("the database: each row is the record at its offset", f"SELECT {columns} FROM user_events EXCEPT ALL SELECT {columns} FROM valid")
none("no event twice", f"SELECT {KEY} FROM user_events GROUP BY ALL HAVING count(*) > 1")
same("every event", f"SELECT DISTINCT {KEY} FROM (FROM valid EXCEPT ALL FROM refused)", f"SELECT {KEY} FROM user_events")
none("each offset in exactly one of: database, skipped by its key, dead letters",
     f"""SELECT i."partition", i."offset", (u."offset" IS NOT NULL) AS kept, letters.n AS letters, v.twin FROM input i
         LEFT JOIN user_events u ON (u."partition", u."offset") = (i."partition", i."offset")
         LEFT JOIN (SELECT "partition", "offset", count(*) AS n FROM letters GROUP BY ALL) letters
           ON (letters."partition", letters."offset") = (i."partition", i."offset")
         LEFT JOIN (SELECT "partition", "offset", {KEY} IN (SELECT {KEY} FROM user_events) AS twin FROM valid) v
           ON (v."partition", v."offset") = (i."partition", i."offset")
         WHERE CASE WHEN u."offset" IS NOT NULL OR letters.n IS NOT NULL
               THEN (u."offset" IS NOT NULL)::INT + coalesce(letters.n, 0) <> 1 ELSE v.twin IS NOT TRUE END""")

# ── Windows, anomalies, alerts ───────────────────────────────────────────────────────────────────────────────────────

WINDOW = {"user_id": "BIGINT", "window_start": "TIMESTAMP", "window_end": "TIMESTAMP", "event_count": "BIGINT"}
table("user_activity_summary", {**WINDOW, "name": "VARCHAR", "region": "VARCHAR"})
table("anomalous_events", {**WINDOW, "mean": "DOUBLE", "stddev": "DOUBLE", "z_score": "DOUBLE", "severity": "VARCHAR"})
alerts, wrong_keys = [], []
for record in lines("alerts.jsonl"):
    alert = json.loads(unhex(record["value"]))
    alerts.append(alert)
    if unhex(record["key"]) != str(alert["user_id"]).encode():
        wrong_keys.append((record["key"], alert["user_id"]))
table("alerts", {**WINDOW, "z_score": "DOUBLE", "severity": "VARCHAR"}, alerts)

print("windows")
named = "SELECT window_start, window_end, user_id, event_count, name, region FROM"
same("counts", f"{named} summary", f"{named} user_activity_summary")
judged = "SELECT user_id, window_start, window_end, event_count, severity FROM"
same("anomalies", f"{judged} anomalies", f"{judged} anomalous_events")
none("with their mean, deviation and score",
     """SELECT a.*, f.mean, f.stddev, f.z_score FROM anomalies a JOIN anomalous_events f USING (user_id, window_start, window_end)
        WHERE NOT (abs(a.mean - f.mean) < 2e-6 AND abs(a.stddev - f.stddev) < 2e-6 AND abs(a.z_score - f.z_score) < 2e-4)""")
same("alerts", f"{judged} anomalies WHERE severity IN ('medium', 'high')", f"{judged} alerts")
expect("keyed by user", not wrong_keys, wrong_keys[:5])

# ── Monitoring ───────────────────────────────────────────────────────────────────────────────────────────────────────

ACTIONS = {"views": "view", "clicks": "click", "searches": "search", "adds_to_cart": "add_to_cart",
           "removes_from_cart": "remove_from_cart", "purchases": "purchase", "logins": "login", "logouts": "logout"}
BOUNDS = {"window_start": "TIMESTAMP", "window_end": "TIMESTAMP"}
COUNTS = {**BOUNDS, "events": "BIGINT", "users": "BIGINT", **dict.fromkeys(ACTIONS, "BIGINT"), "invalid": "BIGINT"}
SCORE = {"mean": "DOUBLE", "stddev": "DOUBLE", "z_score": "DOUBLE"}
table("hourly_metrics", {**COUNTS, "invalid_rate": "DOUBLE", "hours_before": "BIGINT", **SCORE})
table("data_quality_checks", {"check_name": "VARCHAR", **BOUNDS, "rows_checked": "BIGINT", "rows_failed": "BIGINT",
                              "failed_ratio": "DOUBLE", "status": "VARCHAR", "threshold": "DOUBLE"})
table("anomaly_detection_results", {"metric": "VARCHAR", "subject": "VARCHAR", **BOUNDS, "value": "DOUBLE", **SCORE,
                                    "method": "VARCHAR", "severity": "VARCHAR"})
table("user_activity", {"user_id": "BIGINT", "name": "VARCHAR", "region": "VARCHAR", "hour": "TIMESTAMP", "event_count": "BIGINT",
                        "active_from": "TIMESTAMP", "active_until": "TIMESTAMP"})
db.execute(f"""
-- A record without a time of its own counts when Kafka got it.
CREATE TABLE timed AS SELECT *, undecodable OR broken IS NOT NULL AS invalid, make_timestamp(arrived) AS came,
                             coalesce("timestamp", make_timestamp(arrived)) AS moment FROM checked;

CREATE TABLE hours AS
SELECT window_start, window_start + INTERVAL 1 HOUR AS window_end, count(*) FILTER (NOT invalid) AS events,
       count(DISTINCT user_id) FILTER (NOT invalid) AS users,
       {", ".join(f"count(*) FILTER (NOT invalid AND action = '{action}') AS {column}" for column, action in ACTIONS.items())},
       count(*) FILTER (invalid) AS invalid
FROM (SELECT *, date_trunc('hour', moment) AS window_start FROM timed) GROUP BY window_start;

CREATE TABLE scored_hours AS
SELECT h.*, h.invalid / (h.events + h.invalid) AS invalid_rate, past.*, round((h.events - past.mean) / nullif(past.stddev, 0), 4) AS z_score
FROM hours h, LATERAL (SELECT count(*) AS hours_before, round(avg(p.events), 6) AS mean, round(stddev_pop(p.events), 6) AS stddev
                       FROM hours p WHERE p.window_start < h.window_start AND p.window_start >= h.window_start - INTERVAL 24 HOUR) past;

CREATE TABLE minutes AS
SELECT window_start, window_start + INTERVAL 1 MINUTE AS window_end, count(*) AS records, count(*) FILTER (NOT undecodable) AS decoded,
       count(*) FILTER (NOT undecodable AND (user_id IS NULL OR action IS NULL OR "timestamp" IS NULL OR device_id IS NULL)) AS incomplete,
       count(*) FILTER (invalid) AS invalid, count(*) FILTER (NOT invalid) AS events,
       count(*) FILTER (NOT invalid AND came - "timestamp" > INTERVAL 60 SECOND) AS delayed,
       count(DISTINCT {KEY}) FILTER (NOT invalid) AS different
FROM (SELECT *, date_trunc('minute', moment) AS window_start FROM timed) GROUP BY window_start;

CREATE TABLE quality AS
SELECT *, CASE WHEN rows_checked = 0 THEN 0 ELSE round(rows_failed / rows_checked, 6) END AS failed_ratio
FROM (SELECT 'completeness' AS check_name, window_start, window_end, decoded AS rows_checked, incomplete AS rows_failed, 0.01::DOUBLE AS threshold FROM minutes
      UNION ALL SELECT 'validity', window_start, window_end, records, invalid, 0.05 FROM minutes
      UNION ALL SELECT 'uniqueness', window_start, window_end, events, events - different, 0.01 FROM minutes
      UNION ALL SELECT 'timeliness', window_start, window_end, events, delayed, 0.05 FROM minutes
      UNION ALL SELECT 'volume', window_start, window_end, greatest(events, 1), greatest(1 - events, 0), 0.0 FROM minutes);
""")
print("monitoring")
numbers = ", ".join([*COUNTS, "hours_before"])
same("hours", f"SELECT {numbers} FROM scored_hours", f"SELECT {numbers} FROM hourly_metrics")
none("with the score of each among the 24 before it",
     """SELECT h.*, f.mean, f.stddev, f.z_score, f.invalid_rate FROM scored_hours h JOIN hourly_metrics f USING (window_start)
        WHERE abs(h.invalid_rate - f.invalid_rate) > 2e-6 OR (h.mean IS NULL) <> (f.mean IS NULL) OR abs(h.mean - f.mean) > 2e-6
           OR (h.stddev IS NULL) <> (f.stddev IS NULL) OR abs(h.stddev - f.stddev) > 2e-6
           OR (h.z_score IS NULL) <> (f.z_score IS NULL) OR abs(h.z_score - f.z_score) > 2e-4""")
of_check = "check_name, window_start, window_end, rows_checked, rows_failed, threshold"
same("checks", f"SELECT {of_check}, CASE WHEN failed_ratio > threshold THEN 'failed' ELSE 'passed' END FROM quality",
     f"SELECT {of_check}, status FROM data_quality_checks")
none("with their ratio", """SELECT * FROM quality q JOIN data_quality_checks f USING (check_name, window_start)
     WHERE abs(q.failed_ratio - f.failed_ratio) > 2e-6""")
of_anomaly = "metric, subject, window_start, window_end, value, method, severity"
db.execute("""CREATE TABLE all_anomalies AS
SELECT 'events_per_user' AS metric, user_id::VARCHAR AS subject, window_start, window_end, event_count::DOUBLE AS value, mean, stddev, z_score,
       'population' AS method, severity FROM anomalies
UNION ALL SELECT 'events_per_hour', 'all', window_start, window_end, events, mean, stddev, z_score, 'history',
       CASE WHEN abs(z_score) > 5 THEN 'high' WHEN abs(z_score) > 3 THEN 'medium' ELSE 'low' END
FROM scored_hours WHERE abs(z_score) >= 2.0 AND hours_before >= 6""")
same("all anomalies", f"SELECT {of_anomaly} FROM all_anomalies", f"SELECT {of_anomaly} FROM anomaly_detection_results")
none("with their mean, their deviation, their score",
     """SELECT * FROM all_anomalies a JOIN anomaly_detection_results f USING (metric, subject, window_start, window_end)
        WHERE NOT (abs(a.mean - f.mean) < 2e-6 AND abs(a.stddev - f.stddev) < 2e-6 AND abs(a.z_score - f.z_score) < 2e-4)""")
same("the activity of each user by hour",
     """SELECT v.user_id, any_value(u.name), any_value(u.region), date_trunc('hour', "timestamp") AS hour, count(*),
        min(time_bucket(INTERVAL 5 SECOND, "timestamp")), max(time_bucket(INTERVAL 5 SECOND, "timestamp")) + INTERVAL 5 SECOND
        FROM valid v LEFT JOIN users u USING (user_id) GROUP BY v.user_id, hour""",
     "SELECT user_id, name, region, hour, event_count, active_from, active_until FROM user_activity")
in_hours = count("FROM all_anomalies WHERE metric = 'events_per_hour'")
failing = dict(db.execute("SELECT check_name, count(*) FILTER (failed_ratio > threshold) FROM quality GROUP BY ALL ORDER BY 1").fetchall())
print(f"        {count('FROM hours')} hours, {in_hours} of them anomalies; failed checks: {failing}")

# ── Elasticsearch ────────────────────────────────────────────────────────────────────────────────────────────────────

documents = {"anomaly": [], "summary": []}
wrong_ids = []
for document in lines("documents.jsonl"):
    source = document["source"]
    documents[source["type"]].append(source)
    key = [source["type"], source["window_start"], source["window_end"]] + ([str(source["user_id"])] if "user_id" in source else [])
    if document["id"] != "|".join(key):
        wrong_ids.append((document["id"], key))
table("anomaly_documents", {**WINDOW, "mean": "DOUBLE", "stddev": "DOUBLE", "z_score": "DOUBLE", "severity": "VARCHAR"}, documents["anomaly"])
SUMMARY = {"window_start": "TIMESTAMP", "window_end": "TIMESTAMP", "users": "BIGINT", "events": "BIGINT", "anomalies": "BIGINT"}
table("summary_documents", {**SUMMARY, "mean": "DOUBLE", "stddev": "DOUBLE", "threshold": "DOUBLE"}, documents["summary"])
db.execute("""CREATE VIEW summaries AS
SELECT window_start, window_end, count(*) AS users, sum(event_count)::BIGINT AS events,
       count(*) FILTER (WHERE event_count > 5 AND z_score >= 2.0) AS anomalies, any_value(mean) AS mean, any_value(stddev) AS stddev
FROM scored GROUP BY ALL""")

print("Elasticsearch")
expect("_id is the key", not wrong_ids, wrong_ids[:5])
same("a document for each anomaly", f"{judged} anomalies", f"{judged} anomaly_documents")
none("the same as in the database", "FROM anomaly_documents EXCEPT SELECT * FROM anomalous_events")
summed = "SELECT window_start, window_end, users, events, anomalies FROM"
same("a summary of each window", f"{summed} summaries", f"{summed} summary_documents")
none("with its mean, deviation and threshold",
     """SELECT s.*, d.mean, d.stddev, d.threshold FROM summaries s JOIN summary_documents d USING (window_start, window_end)
        WHERE NOT (abs(s.mean - d.mean) < 2e-6 AND abs(s.stddev - d.stddev) < 2e-6 AND d.threshold = 2.0)""")

# ── Kafka ────────────────────────────────────────────────────────────────────────────────────────────────────────────

print("Kafka")
for topic in ("dead_letters", "alerts"):
    ids = [record["headers"].get("poundlock-id") for record in lines(f"{topic}.jsonl")]
    expect(f"{topic}: every record has its own poundlock-id", None not in ids and len(ids) == len(set(ids)),
           f"{ids.count(None)} without, {len(ids) - len(set(ids))} repeated")
behind = [p for p in json.loads((DUMP / "group.json").read_text()) if p["end"] > 0 and p["committed"] != p["end"]]
expect("the group's offsets are the ends of the partitions", not behind, behind)

if failures:
    print(f"{len(failures)} WRONG: " + "; ".join(failures), file=sys.stderr)
    sys.exit(1)
print("all as it must be")
