"""Reads a Delta table again and again while it is written, merged and cleaned: each row once, at any moment.

delta.py TABLE STOP: until there is a file STOP, reads TABLE
  - with DuckDB, over the files that the JSON of the log counts (read here, with nothing of Delta's);
  - with the deltalake package, over the files that it says, and by its own engine.
Ids are 0, 1, 2 …, each in one row. The last line says how many reads there were. Ends with 1 if a read saw something else.
"""

import json
import pathlib
import sys
from urllib.parse import unquote

import duckdb
from deltalake import DeltaTable, QueryBuilder

table, stop = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])


def by_json():
    files, version = {}, 0
    while True:
        try:
            text = (table / "_delta_log" / f"{version:020}.json").read_text()
        except FileNotFoundError:
            return [str(table / path) for path in files]
        for line in text.splitlines():
            action = json.loads(line)
            if "add" in action:
                files[unquote(action["add"]["path"])] = True
            if "remove" in action:
                del files[unquote(action["remove"]["path"])]
        version += 1


def counted(files):
    if not files:
        return (0, 0, None)
    connection = duckdb.connect(config={"threads": 1})
    return connection.execute("SELECT count(*), count(DISTINCT id), max(id) FROM read_parquet(?)", [files]).fetchone()


def deltalake_files():
    return counted([path.removeprefix("file://") for path in DeltaTable(str(table)).file_uris()])


def deltalake_engine():
    query = "SELECT count(*) AS n, count(DISTINCT id) AS d, max(id) AS m FROM t"
    rows = QueryBuilder().register("t", DeltaTable(str(table))).execute(query).read_all()
    return tuple(rows.column(name)[0].as_py() for name in ("n", "d", "m"))


readers = {"DuckDB": lambda: counted(by_json()), "deltalake's files": deltalake_files, "deltalake": deltalake_engine}
seen = dict.fromkeys(readers, 0)
reads = dict.fromkeys(readers, 0)
grown = dict.fromkeys(readers, 0)
last = False
while not last:
    # What there is when it is told to stop is read once more.
    last = stop.exists()
    if not (table / "_delta_log" / f"{0:020}.json").exists():
        continue
    for name, read in readers.items():
        rows, distinct, highest = read()
        if rows != distinct or rows < seen[name]:
            sys.exit(f"{name}: {rows} rows, {distinct} ids, the highest {highest}; before there were {seen[name]}")
        grown[name] += rows > seen[name]
        seen[name] = rows
        reads[name] += 1
print(json.dumps({"reads": reads, "grown": grown, "rows": seen}))

