"""The job in Flink SQL, in one JVM: Python only hands the SQL over. Prints its times as one JSON line."""
import glob
import os
import sys
import time
from urllib.parse import urlparse

import job

arguments = job.arguments("Flink", parallelism=2, memory="2g", checkpoint="5 s", flush_ms=1_000)
stop = job.Stop()
PACKAGES = ("java.lang", "java.lang.reflect", "java.net", "java.io", "java.nio", "java.text", "java.time", "java.util",
            "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks", "sun.nio.ch")
for folder in ("flink-log", "temporary"):
    os.makedirs(f"{arguments.work}/{folder}", exist_ok=True)
os.environ["FLINK_LOG_DIR"] = f"{arguments.work}/flink-log"
os.environ["FLINK_ENV_JAVA_OPTS"] = " ".join([
    f"-Xmx{arguments.memory}", f"-Djava.io.tmpdir={arguments.work}/temporary",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in PACKAGES), "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
])
# The connectors on the JVM's own class path: no class loader of their own.
os.environ["HADOOP_CLASSPATH"] = ":".join(sorted(glob.glob(f"{arguments.jars}/*.jar")))

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

configuration = Configuration()
for name, value in {
    "parallelism.default": str(arguments.parallelism),
    "execution.checkpointing.interval": arguments.checkpoint,
    "execution.checkpointing.dir": f"file://{arguments.work}/checkpoint",
    "pipeline.object-reuse": "true",
    "rest.address": "127.0.0.1", "rest.bind-address": "127.0.0.1", "rest.bind-port": "18700-18799",
    "table.local-time-zone": "UTC",
    # Windows are written once, when they close: nothing is to be taken back.
    "table.exec.sink.require-on-conflict": "false", "table.exec.sink.upsert-materialize": "NONE",
    "table.exec.source.idle-timeout": "5 s" if arguments.live else "0 s",
}.items():
    configuration.set_string(name, value)
tables = TableEnvironment.create(EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build())

EVENT = ("user_id BIGINT, product_id BIGINT, action STRING, `timestamp` TIMESTAMP(6), device_id STRING, device_type STRING, "
         "location STRING, user_segment STRING, ip_address STRING")
NAMES = ", ".join(f"`{column}`" for column in job.COLUMNS)
WINDOW = "window_start TIMESTAMP(3), window_end TIMESTAMP(3), user_id BIGINT, event_count BIGINT"
SCORE = "z_score DOUBLE, `mean` DOUBLE, stddev DOUBLE, severity STRING"
statements = tables.create_statement_set()


def kafka(name, columns, topic):
    tables.execute_sql(f"""CREATE TABLE {name} ({columns}) WITH ('connector' = 'kafka', 'topic' = '{topic}',
        'properties.bootstrap.servers' = '{arguments.brokers}', 'format' = 'json')""")


def database(name, columns, key=""):
    url = urlparse(arguments.database)
    tables.execute_sql(f"""CREATE TABLE {name} ({columns}{key}) WITH ('connector' = 'jdbc', 'table-name' = '{name}',
        'url' = 'jdbc:postgresql://{url.hostname}:{url.port}{url.path}?reWriteBatchedInserts=true',
        'username' = '{url.username}', 'password' = '{url.password}',
        'sink.buffer-flush.max-rows' = '5000', 'sink.buffer-flush.interval' = '{arguments.flush_ms} ms')""")


bounded = "" if arguments.live else ", 'scan.bounded.mode' = 'latest-offset'"
tables.execute_sql(f"""CREATE TABLE source ({EVENT}, event_time AS CAST(`timestamp` AS TIMESTAMP(3)),
    WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND) WITH ('connector' = 'kafka', 'topic' = '{arguments.topic}',
    'properties.bootstrap.servers' = '{arguments.brokers}', 'properties.group.id' = 'bench-flink',
    'scan.startup.mode' = 'earliest-offset'{bounded}, 'format' = 'json', 'json.ignore-parse-errors' = 'true',
    'json.timestamp-format.standard' = 'ISO-8601')""")

if arguments.mode != "windows":
    tables.execute_sql(f"""CREATE TABLE lake ({EVENT}) WITH ('connector' = 'filesystem', 'path' = 'file://{arguments.work}/lake',
        'format' = 'parquet', 'parquet.compression' = 'SNAPPY')""")
    statements.add_insert_sql(f"INSERT INTO lake SELECT {NAMES} FROM source WHERE {job.VALID}")
    # The JSON format cannot hand on a record that is not JSON: it is dropped. Only rows with a NULL come here.
    kafka("dead_letters", "dq_reason STRING, user_id BIGINT, product_id BIGINT, action STRING, device_id STRING", arguments.dead_letters)
    statements.add_insert_sql(f"""INSERT INTO dead_letters SELECT CASE WHEN user_id IS NULL THEN 'user_id is missing'
        WHEN action IS NULL THEN 'action is missing' ELSE 'timestamp is missing' END, user_id, product_id, action, device_id
        FROM source WHERE ({job.VALID}) IS NOT TRUE""")
if arguments.mode == "whole":
    database("user_events", EVENT)
    statements.add_insert_sql(f"INSERT INTO user_events SELECT {NAMES} FROM source WHERE {job.VALID}")
    database("anomalous_events", f"user_id BIGINT, {WINDOW.replace('user_id BIGINT, ', '')}, {SCORE}",
             ", PRIMARY KEY (user_id, window_start, window_end) NOT ENFORCED")
    kafka("alerts", f"{WINDOW}, {SCORE}", arguments.alerts)


def windows(name, table):
    """Counts per user; in the whole job also the z-score, as an aggregate of the windows, joined back window to window."""
    tables.execute_sql(f"""CREATE TEMPORARY VIEW {name} AS SELECT window_start, window_end, user_id, count(*) AS event_count
        FROM TABLE({table}) WHERE {job.VALID} GROUP BY window_start, window_end, user_id""")
    statements.add_insert_sql(f"INSERT INTO user_activity_summary SELECT window_start, window_end, user_id, event_count FROM {name}")
    if arguments.mode != "whole":
        return
    tables.execute_sql(f"""CREATE TEMPORARY VIEW {name}_population AS SELECT window_start, window_end,
        avg(CAST(event_count AS DOUBLE)) AS `mean`, stddev_pop(CAST(event_count AS DOUBLE)) AS stddev
        FROM {name} GROUP BY window_start, window_end""")
    tables.execute_sql(f"""CREATE TEMPORARY VIEW {name}_anomalies AS
        SELECT *, CASE WHEN z_score > 5 THEN 'high' WHEN z_score > 3 THEN 'medium' ELSE 'low' END AS severity
        FROM (SELECT w.user_id, w.window_start, w.window_end, w.event_count, (w.event_count - p.`mean`) / p.stddev AS z_score, p.`mean`, p.stddev
              FROM {name} w JOIN {name}_population p ON w.window_start = p.window_start AND w.window_end = p.window_end WHERE p.stddev > 0)
        WHERE z_score >= {job.Z_MIN} AND event_count > {job.COUNT_MIN}""")
    statements.add_insert_sql(f"""INSERT INTO anomalous_events
        SELECT user_id, window_start, window_end, event_count, z_score, `mean`, stddev, severity FROM {name}_anomalies""")
    statements.add_insert_sql(f"""INSERT INTO alerts
        SELECT window_start, window_end, user_id, event_count, z_score, `mean`, stddev, severity FROM {name}_anomalies
        WHERE severity <> 'low'""")


if arguments.mode != "raw":
    database("user_activity_summary", WINDOW, ", PRIMARY KEY (window_start, window_end, user_id) NOT ENFORCED")
    windows("windows_5s", "TUMBLE(TABLE source, DESCRIPTOR(event_time), INTERVAL '5' SECOND)")
    if arguments.slide == 60:
        windows("windows_1min", "TUMBLE(TABLE source, DESCRIPTOR(event_time), INTERVAL '60' SECOND)")
    else:
        windows("windows_1min", f"HOP(TABLE source, DESCRIPTOR(event_time), INTERVAL '{arguments.slide}' SECOND, INTERVAL '60' SECOND)")

client = statements.execute().get_job_client()
# The cluster goes away with its job: afterwards it cannot be asked any more.
result = client.get_job_execution_result()
running = first_output = None
while not result.done():
    now = job.seconds()
    if running is None and "RUNNING" in str(client.get_job_status().result()):
        running = now
    # A file that a checkpoint has made visible: what is being written begins with a dot.
    if first_output is None and any(os.path.getsize(file) for file in glob.glob(f"{arguments.work}/lake/[!._]*")):
        first_output = now
    if stop.asked:
        client.cancel().result()
        break
    time.sleep(0.1)
else:
    result.result()
job.tell(first_batch_start_s=running, first_output_s=first_output, last_batch_end_s=job.seconds())
sys.stdout.flush()
# The JVM's shutdown hooks wait for a cluster that is gone.
os._exit(0)
