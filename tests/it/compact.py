"""Reads a folder of Parquet files again and again while its partitions are merged: each row once, at any moment.

compact.py TABLE STOP: until there is a file STOP, counts the rows of TABLE with DuckDB, by the two patterns that people write.
A file that was listed may be gone when it is opened: such a read fails, and is counted. Ids are 0, 1, 2 …, each in one row. The
last line says how many reads there were. Ends with 1 if a read saw something else.
"""

import json
import pathlib
import sys

import duckdb

table, stop = sys.argv[1], pathlib.Path(sys.argv[2])
seen = {f"{table}/*/*.parquet": 0, f"{table}/**/*.parquet": 0}
reads = failed = 0
last = False
while not last:
    # What there is when it is told to stop is read once more.
    last = stop.exists()
    for files in seen:
        connection = duckdb.connect(config={"threads": 1})
        query = "SELECT count(*), count(DISTINCT id), count(DISTINCT day) FROM read_parquet(?, hive_partitioning = true)"
        try:
            rows, distinct, days = connection.execute(query, [files]).fetchone()
        except duckdb.IOException as error:
            if last or "No such file" not in str(error) and "No files found" not in str(error):
                sys.exit(str(error))
            failed += 1
            continue
        if rows != distinct or rows < seen[files]:
            sys.exit(f"{files}: {rows} rows, {distinct} ids, {days} days; before there were {seen[files]}")
        seen[files] = rows
        reads += 1
print(json.dumps({"reads": reads, "failed": failed, "rows": seen}))
