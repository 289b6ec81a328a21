"""The job in Spark Structured Streaming, as a careful user would write it: each query parses once, Arrow batches go into
COPY in the workers, windows by COPY and an upsert. Prints its times as one JSON line."""
import datetime
import glob
import json
import os
import sys
import time

import job

arguments = job.arguments("Spark", cores="2", memory="2g", max_offsets=500_000)
stop = job.Stop()
os.environ.update(PYSPARK_PYTHON=sys.executable, PYSPARK_DRIVER_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")

import psycopg
import pyarrow
import pyarrow.csv
from confluent_kafka import Producer
from pyspark.sql import SparkSession, functions

PARQUET = f"{arguments.work}/lake"
SCHEMA = ("user_id long, product_id long, action string, timestamp timestamp, device_id string, "
          "device_type string, location string, user_segment string, ip_address string")
FOR_WINDOWS = "user_id long, action string, timestamp timestamp, device_id string"
COPY = "COPY user_events ({}) FROM STDIN (FORMAT csv)".format(", ".join(f'"{column}"' for column in job.COLUMNS))
WATERMARK = "30 seconds"

spark = (
    SparkSession.builder.appName("bench").master(f"local[{arguments.cores}]")
    .config("spark.jars", ",".join(sorted(glob.glob(f"{arguments.jars}/*.jar"))))
    .config("spark.driver.memory", arguments.memory)
    .config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    .config("spark.local.dir", f"{arguments.work}/local")
    .config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
    .config("spark.sql.session.timeZone", "UTC")
    # The default of 200 is for clusters.
    .config("spark.sql.shuffle.partitions", 2)
    .config("spark.sql.parquet.compression.codec", "snappy")
    .config("spark.sql.execution.arrow.pyspark.enabled", "true")
    .config("spark.sql.execution.arrow.maxRecordsPerBatch", 50_000)
    # It pushes the filter below from_json, and so parses each record again for every condition: 79 µs an event, not 56.
    .config("spark.sql.optimizer.excludedRules", "org.apache.spark.sql.catalyst.optimizer.PushDownPredicates")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("WARN")


def source(schema):
    """The topic: `value` as text, `event` as parsed."""
    reader = (
        spark.readStream.format("kafka").option("kafka.bootstrap.servers", arguments.brokers)
        .option("subscribe", arguments.topic).option("startingOffsets", "earliest")
    )
    if not arguments.live:
        reader = reader.option("maxOffsetsPerTrigger", arguments.max_offsets)
    text = reader.load().selectExpr("CAST(value AS STRING) AS value")
    return text.select("value", functions.from_json("value", schema).alias("event"))


def copy_events(batches):
    """In a worker: one COPY a task. Not exactly once: a batch that is repeated hits the key."""
    rows = 0
    with psycopg.connect(arguments.database) as connection, connection.cursor() as cursor, cursor.copy(COPY) as copy:
        for batch in batches:
            out = pyarrow.BufferOutputStream()
            pyarrow.csv.write_csv(pyarrow.Table.from_batches([batch]), out, pyarrow.csv.WriteOptions(include_header=False))
            copy.write(out.getvalue().to_pybytes())
            rows += batch.num_rows
    yield pyarrow.RecordBatch.from_pydict({"rows": [rows]})


def write_events(frame, _):
    frame = frame.persist()
    is_valid = functions.expr(f"coalesce({job.VALID}, false)")
    flagged = frame.select("value", "event.*").withColumn("is_valid", is_valid)
    valid = flagged.where("is_valid").select(*job.COLUMNS)
    valid.write.mode("append").parquet(PARQUET)
    if arguments.mode == "whole":
        text = functions.date_format("timestamp", "yyyy-MM-dd HH:mm:ss.SSSSSS").alias("timestamp")
        rows = valid.select(*[text if column == "timestamp" else column for column in job.COLUMNS])
        rows.mapInArrow(copy_events, "rows long").collect()
    reason = functions.expr("""concat_ws('; ', CASE WHEN user_id IS NULL THEN 'user_id is missing' END,
        CASE WHEN action IS NULL THEN 'action is missing' END, CASE WHEN timestamp IS NULL THEN 'timestamp is missing' END)""")
    (
        flagged.where("NOT is_valid").select(functions.to_json(functions.struct(reason.alias("dq_reason"), "value")).alias("value"))
        .write.format("kafka").option("kafka.bootstrap.servers", arguments.brokers).option("topic", arguments.dead_letters).save()
    )
    frame.unpersist()


def write_windows(frame, _):
    """The windows that changed. The population of a z-score is what of its window changed in this batch."""
    rows = frame.select(functions.col("window.start").alias("start"), functions.col("window.end").alias("end"), "user_id", "event_count")
    if users is not None:
        rows = rows.join(functions.broadcast(users), "user_id", "left")
    rows = rows.toPandas()
    if rows.empty:
        return
    counts = rows.groupby("start")["event_count"]
    rows["mean"] = counts.transform("mean")
    rows["stddev"] = counts.transform(lambda values: values.std(ddof=0))
    rows["z_score"] = ((rows.event_count - rows["mean"]) / rows["stddev"].where(rows["stddev"] > 0)).fillna(0.0)
    summary = ["start", "end", "user_id", "event_count"] + (["name", "region"] if users is not None else [])
    names = ", ".join({"start": "window_start", "end": "window_end"}.get(column, column) for column in summary)
    with psycopg.connect(arguments.database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE changed (LIKE user_activity_summary) ON COMMIT DROP")
        with cursor.copy(f"COPY changed ({names}) FROM STDIN") as copy:
            for row in rows[summary].itertuples(index=False):
                copy.write_row(tuple(row))
        cursor.execute("""INSERT INTO user_activity_summary SELECT * FROM changed
            ON CONFLICT (window_start, window_end, user_id) DO UPDATE SET event_count = excluded.event_count""")
        if arguments.mode == "whole":
            write_anomalies(rows[(rows.event_count > job.COUNT_MIN) & (rows.z_score >= job.Z_MIN)], cursor)


def write_anomalies(rows, cursor):
    anomalies = [
        (row.user_id, row.start.to_pydatetime(), row.end.to_pydatetime(), row.event_count, row.z_score, row.mean, row.stddev,
         "high" if row.z_score > 5 else "medium" if row.z_score > 3 else "low")
        for row in rows.itertuples()
    ]
    cursor.executemany("""INSERT INTO anomalous_events (user_id, window_start, window_end, event_count, z_score, mean, stddev, severity)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""", anomalies)
    for user_id, start, end, count, z_score, _, _, severity in anomalies:
        alert = {"user_id": user_id, "window_start": str(start), "window_end": str(end), "event_count": count,
                 "z_score": z_score, "severity": severity}
        producer.produce(arguments.alerts, json.dumps(alert))
    producer.flush(10)


producer = Producer({"bootstrap.servers": arguments.brokers, "compression.type": "snappy", "linger.ms": 20})
users = None
if arguments.mode == "whole":
    with psycopg.connect(arguments.database) as connection:
        known = connection.execute("SELECT user_id, name, region FROM users").fetchall()
    users = spark.createDataFrame(known, "user_id long, name string, region string").cache()

queries = {}


def start(name, frame, function, mode="append"):
    writer = frame.writeStream.queryName(name).outputMode(mode).option("checkpointLocation", f"{arguments.work}/checkpoint/{name}")
    writer = writer.foreachBatch(function)
    queries[name] = (writer.trigger(processingTime="1 second") if arguments.live else writer.trigger(availableNow=True)).start()


if arguments.mode != "windows":
    start("events", source(SCHEMA), write_events)
if arguments.mode != "raw":
    # These need four fields only.
    valid = source(FOR_WINDOWS).select("event.*").where(job.VALID)
    for name, size, slide in (("5s", 5, 5), ("1min", 60, arguments.slide)):
        windows = functions.window("timestamp", f"{size} seconds", f"{slide} seconds")
        counts = valid.withWatermark("timestamp", WATERMARK).groupBy(windows, "user_id").agg(functions.count("*").alias("event_count"))
        start(name, counts, write_windows, "update")

batches = {}


def look():
    """Of each batch with rows, by query and number: begin, end, rows."""
    for name, query in queries.items():
        for progress in query.recentProgress:
            if progress["numInputRows"]:
                began = datetime.datetime.fromisoformat(progress["timestamp"].replace("Z", "+00:00")).timestamp() - job.BEGAN
                took = progress["durationMs"].get("triggerExecution", 0) / 1000
                batches[name, progress["batchId"]] = (began, began + took, progress["numInputRows"])


while any(query.isActive for query in queries.values()) and not stop.asked:
    time.sleep(0.2)
    look()
for query in queries.values():
    if stop.asked:
        query.stop()
    if query.exception():
        sys.exit(f"error: query {query.name}: {query.exception()}")
look()
job.tell(
    events=max(sum(rows for (of, _), (_, _, rows) in batches.items() if of == name) for name in queries),
    batches=len(batches),
    first_batch_start_s=min(began for began, _, _ in batches.values()),
    first_output_s=min(ended for _, ended, _ in batches.values()),
    last_batch_end_s=max(ended for _, ended, _ in batches.values()),
)
spark.stop()
