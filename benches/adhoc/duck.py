"""DuckDB, one query a line of stdin as JSON, one answer a line of stdout: its rows and how long they took."""
import json
import sys
import time

import duckdb

lake, users = sys.argv[1:]
connection = duckdb.connect()
connection.execute(f"CREATE VIEW lake AS SELECT * FROM read_parquet('{lake}/**/*.parquet', hive_partitioning = true)")
connection.execute(f"""CREATE TABLE users AS SELECT n AS user_id, (['north', 'central', 'south'])[1 + n % 3] AS region
                       FROM range(1, {users} + 1) t(n)""")
for line in sys.stdin:
    began = time.monotonic()
    rows = connection.execute(json.loads(line)).fetchall()
    ms = (time.monotonic() - began) * 1e3
    print(json.dumps({"ms": ms, "rows": [[None if cell is None else str(cell) for cell in row] for row in rows]}), flush=True)
