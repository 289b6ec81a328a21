"""The least that the work can cost: DuckDB over the same records in a file, on one thread. floors.py decode|windows|parquet FILE"""
import sys

import duckdb

import job

what, file = sys.argv[1:]
COLUMNS = {
    "user_id": "BIGINT", "product_id": "BIGINT", "action": "VARCHAR", "timestamp": "TIMESTAMP", "device_id": "VARCHAR",
    "device_type": "VARCHAR", "location": "VARCHAR", "user_segment": "VARCHAR", "ip_address": "VARCHAR",
}
EVENTS = f"(SELECT * FROM read_json('{file}', format = 'newline_delimited', ignore_errors = true, columns = {COLUMNS}))"
VALID = job.VALID.replace("`", '"')
QUERIES = {
    "decode": f"SELECT count(*), {', '.join(f'count({column})' for column in job.COLUMNS)} FROM {EVENTS}",
    "windows": f"""SELECT count(*), sum(events) FROM (SELECT time_bucket(INTERVAL 5 SECOND, "timestamp") AS start, user_id, count(*) AS events
                   FROM {EVENTS} WHERE {VALID} GROUP BY ALL)""",
    "parquet": f"COPY (SELECT * FROM {EVENTS} WHERE {VALID}) TO '{file}.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)",
}
connection = duckdb.connect()
connection.execute("SET threads = 1")
began = job.seconds()
result = connection.execute(QUERIES[what]).fetchone()
job.tell(first_batch_start_s=began, last_batch_end_s=job.seconds(), result=str(result))
