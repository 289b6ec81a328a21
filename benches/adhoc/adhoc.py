"""Ad-hoc SQL over the Parquet files that the engine itself wrote, beside DuckDB on the same files, query by query in turn.

Both as they are shipped, without a setting. The answers must be the same. One JSON line a query on stdout, a table on stderr.
"""
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import project
from bench import origin, prepare
from expected import START
from measure import Failed, family, interruptible, say
from measure import number as whole_number
from ours import RAW, start
from report import number, show
from trial import Wrong

HERE = Path(__file__).resolve().parent
# Some days of events, so that the lake has some folders: 50 M rows are six days.
EVENT_RATE = 100
ROUNDS = 3

# Name, and the text: {lake} is the table. The first five are those of docs/guide.md and README.md.
QUERIES = {
    "days": "SELECT event_date, count(*) AS events, count(DISTINCT user_id) AS users FROM {lake} GROUP BY event_date ORDER BY event_date",
    "actions": "SELECT action, count(*) FROM {lake} GROUP BY action ORDER BY 2 DESC",
    "windows": """SELECT window_start, user_id, count(*) AS events FROM TUMBLE({lake}, "timestamp", INTERVAL '1 minute')
                  GROUP BY window_start, window_end, user_id ORDER BY events DESC, window_start, user_id LIMIT 10""",
    "join": "SELECT u.region, count(*) AS purchases FROM {lake} e JOIN {users} u ON u.user_id = e.user_id WHERE action = 'purchase' GROUP BY u.region ORDER BY u.region",
    "partitions": 'SELECT "partition", min("offset"), max("offset"), count(*) FROM {lake} GROUP BY "partition" ORDER BY "partition"',
    "point by offset": 'SELECT * FROM {lake} WHERE "partition" = 2 AND "offset" = {middle}',
    "point by user": """SELECT count(*), min("timestamp"), max("timestamp") FROM {lake} WHERE user_id = 77""",
    "range of time": """SELECT count(*), min(user_id), max("offset") FROM {lake} WHERE event_date = '2025-01-01' AND "timestamp" BETWEEN '2025-01-01 01:00:00' AND '2025-01-01 02:00:00'""",
    "group by two": "SELECT location, device_type, count(*), avg(user_id) FROM {lake} GROUP BY location, device_type ORDER BY 1, 2",
    "group by many": "SELECT device_id, count(*) AS events FROM {lake} GROUP BY device_id ORDER BY events DESC, device_id LIMIT 10",
    "top of time": 'SELECT "timestamp", user_id, action FROM {lake} ORDER BY "timestamp" DESC LIMIT 10',
    "text": "SELECT count(*) FROM {lake} WHERE location LIKE '%City' AND ip_address LIKE '10.%'",
    "first rows": "SELECT * FROM {lake} LIMIT 10",
}
# Written otherwise in DuckDB.
DUCKDB = {
    "windows": """SELECT time_bucket(INTERVAL '1 minute', "timestamp") AS window_start, user_id, count(*) AS events FROM {lake}
                  GROUP BY ALL ORDER BY events DESC, window_start, user_id LIMIT 10""",
}
# Any ten rows will do.
UNORDERED = {"first rows"}
FIRST_MS = 100


def main():
    rows = whole_number("BENCH_ROWS", 50_000_000)
    asked = os.environ.get("CASES", "").split(",") if os.environ.get("CASES") else list(QUERIES)
    if missing := [name for name in asked if name not in QUERIES]:
        raise SystemExit(f"error: no query {', '.join(missing)}; there are, with commas between: {', '.join(QUERIES)}")
    bench = prepare(with_topic=False)
    trial = filled(bench, rows)
    sizes = [file.stat().st_size for file in (trial.lake / "user_events").rglob("*.parquet")]
    lake = {"files": len(sizes), "lake_mb": round(sum(sizes) / 1e6, 1)}
    peer = DuckDb(trial)
    results, failures = [], 0
    for name in asked:
        say(f"{name} …")
        try:
            line = {"case": f"adhoc {name}", "rows": rows, **lake, **compare(trial, peer, name, rows), **origin(bench, 0)}
        except (Failed, Wrong) as error:
            failures += 1
            say(f"error: {name}: {error}")
            continue
        results.append(line)
        print(json.dumps(line), flush=True)
        with (bench.work / "adhoc.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    peer.close()
    table(results)
    return 1 if failures else 0


def filled(bench, rows):
    """The lake of a run of `raw` over so many events; kept for the next time, as it takes minutes."""
    trial = bench.trial("adhoc", id=f"adhoc-default-{rows}")
    bench.servers.reset_database(trial.users)
    done = trial.folder / "done"
    if done.exists():
        return trial
    if trial.folder.exists():
        say("an earlier run did not fill the lake to its end: it is made anew …")
        shutil.rmtree(trial.folder)
    trial.folder.mkdir(parents=True)
    topic, trial.dead_letters = (f"{name}-{os.getpid()}" for name in (trial.id, trial.dead_letters))
    say(f"{rows:,} events …")
    bench.servers.create_topic(trial.dead_letters)
    bench.servers.generate(topic, rows, "--start", START, "--event-rate", str(EVENT_RATE))
    say("into the lake …")
    # No limits of a batch but those that are shipped.
    run = start(bench, trial, project.build(trial.folder / "queries", RAW), topic, "--until-caught-up")
    run.finish()
    trial.check("rows in the lake", bench.servers.count_lake(trial.lake), rows - bench.servers.count_topic(trial.dead_letters))
    done.touch()
    return trial


class DuckDb:
    """One process for all queries, as a user has it; it answers one query a line."""

    def __init__(self, trial):
        python = os.environ.get("POUNDLOCK_PYTHON", str(Path.home() / ".cache/poundlock/venv/bin/python"))
        self.process = subprocess.Popen([python, str(HERE / "duck.py"), str(trial.lake / "user_events"), str(trial.users)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, query):
        self.process.stdin.write(json.dumps(query) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("error: DuckDB ended")
        return json.loads(line)

    def cpu(self):
        return sum(member.cpu for member in family(self.process.pid).values())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(trial, peer, name, rows):
    """ROUNDS times in turn. Both as at a prompt: by a program that has answered the query before (of DuckDB's first round that is not
    so). Of ours also by a program that has just started, and that of the whole program."""

    def text(query, lake, users):
        return query.replace("{lake}", lake).replace("{users}", users).replace("{middle}", str(rows // 8))

    ours, theirs = text(QUERIES[name], "lake.user_events", "db.users"), text(DUCKDB.get(name, QUERIES[name]), "lake", "users")
    took = {figure: [] for figure in ("query_ms", "first_ms", "program_ms", "cpu_ms", "duckdb_ms", "duckdb_cpu_ms")}
    for _ in range(ROUNDS):
        answer, (first_ms,), program_ms, cpu_once_ms = trial.ask(ours)
        _, (_, query_ms), _, cpu_twice_ms = trial.ask(f"{ours}; {ours}")
        before = peer.cpu()
        reply = peer.ask(theirs)
        measured = (query_ms, first_ms, program_ms, cpu_twice_ms - cpu_once_ms, reply["ms"], (peer.cpu() - before) * 1e3)
        for values, value in zip(took.values(), measured):
            values.append(value)
        answer, wanted = ([[plain(cell) for cell in row] for row in found] for found in (answer, reply["rows"]))
        if not (len(answer) == len(wanted) if name in UNORDERED else answer == wanted):
            raise Wrong(f"DuckDB answers otherwise\nours   {answer[:3]}\nDuckDB {wanted[:3]}")
    return {figure: round(statistics.median(values), 1) for figure, values in took.items()}


def plain(cell):
    """The same value in both dialects of text."""
    if cell is None:
        return ""
    text = str(cell).replace("T", " ", 1) if str(cell)[:2] == "20" else str(cell)
    try:
        return f"{float(text):.6g}" if "." in text else text
    except ValueError:
        return text.rstrip("0").rstrip(".") if ":" in text and "." in text else text


def table(results):
    if not results:
        return
    say("")
    faster = within = 0
    rows = [["query", "ours ms", "DuckDB ms", "ours / DuckDB", "ours CPU ms", "DuckDB CPU ms", "just started, ms", "program ms"]]
    for line in results:
        ratio = line["query_ms"] / line["duckdb_ms"]
        faster += ratio < 1
        within += ratio <= 1.5
        rows.append([line["case"].removeprefix("adhoc "), *(number(line[figure]) for figure in ("query_ms", "duckdb_ms")),
                     f"{ratio:.2f}", *(number(line[figure]) for figure in ("cpu_ms", "duckdb_cpu_ms", "first_ms", "program_ms"))])
    show(rows)
    say(f"{results[0]['files']:,} files of {results[0]['lake_mb'] / results[0]['files']:.1f} MB, as a backlog leaves them with the limits of a batch "
        f"that are shipped; {os.cpu_count()} cores")
    say(f"within 1.5 times of DuckDB: {within} of {len(results)} (target: all); faster: {faster} (target: half)")
    for line in results:
        if line["case"] == "adhoc first rows":
            for figure, what in (("program_ms", "from the start of the program to its end"), ("first_ms", "by a program that has just started"),
                                 ("query_ms", "once more by the same program")):
                met = "met" if line[figure] <= FIRST_MS else "MISSED"
                say(f"ten rows {what}: {line[figure]:.0f} ms (target: {FIRST_MS} ms; {met})")


if __name__ == "__main__":
    interruptible(main)
