"""The cases of Spark, Flink and the floors: the same topic, tables and checks as ours."""
import os
import shlex
import time
from pathlib import Path

from expected import records
from measure import Failed, Run
from ours import committed_after
from project import ALL
from servers import ROOT

HERE = ROOT / "benches" / "peers"
CACHE = Path(os.environ.get("BENCH_CACHE", Path.home() / ".cache/poundlock/peers"))
# What the jobs of the peers write; Flink's dead letters lack what it drops, and Spark scores what a batch happens to hold.
WRITTEN = {
    "raw": ("lake.user_events",),
    "windows": ("db.user_activity_summary",),
    "whole": ("lake.user_events", "db.user_events", "db.user_activity_summary"),
}
LIMIT_S = 1_800


def command(engine, mode, bench, trial, topic, *flags):
    return [
        str(CACHE / engine / "bin/python"), str(HERE / f"{engine}_job.py"), mode, "--brokers", bench.servers.brokers,
        "--topic", topic, "--dead-letters", trial.dead_letters, "--alerts", trial.alerts, "--database", bench.servers.database_url,
        "--jars", str(CACHE / f"{engine}-jars"), "--work", str(trial.folder), *flags,
    ]


def measured(bench, trial, command):
    return Run(command, trial.log, trial.environment(bench.topic), bench.servers.pids)


def figures(run, events):
    """What Run knows, and what the job says of itself in its last line."""
    found = run.finish()
    if not run.said:
        raise Failed("it said nothing of itself", run)
    said = run.said[-1][1]
    start, end = said["first_batch_start_s"], said["last_batch_end_s"]
    cpu_start = run.cpu_at(start)
    found.update(
        events=events, events_per_s_after_start=round(events / (end - start)), events_per_s=round(events / run.wall),
        engine_cpu_start_s=round(cpu_start, 3), engine_cpu_us_per_event_after_start=round((run.cpu - cpu_start) / events * 1e6, 3),
        start_s=start, first_output_s=said.get("first_output_s"), batches=said.get("batches"),
    )
    return found


def throughput(engine, mode, slide=60):
    def case(bench):
        expected = bench.expected
        with bench.trial(f"{engine}-{mode}") as trial:
            run = measured(bench, trial, command(engine, mode, bench, trial, bench.topic, "--slide", str(slide)))
            found = figures(run, expected["events"])
            # Both take text that is not UTF-8, or a number in quotes, for valid where we do not.
            slack = expected["kinds"].get("not UTF-8", 0) + expected["kinds"].get("user_id is text", 0)
            trial.check_tables(WRITTEN[mode], "1min" if slide == 60 else "1min-hop", expected, slack)
        return found

    return case


def latency(engine):
    """As ours, after some events to get the JVM going."""

    def case(bench):
        with bench.trial(f"{engine}-latency") as trial:
            topic, first, warm = f"live-{trial.id}", 2_000, min(10, bench.seconds // 3)
            count = bench.rate * (bench.seconds + warm)
            bench.servers.generate(topic, first, "--rate", "2000", "--seed", "7")
            run = measured(bench, trial, command(engine, "whole", bench, trial, topic, "--live"))
            try:
                wait_for_rows(bench, run, 1)
                began = time.time()
                bench.servers.generate(topic, count, "--rate", str(bench.rate))
                valid = sum(kind is None for _, kind in [*records(first, seed=7), *records(count)])
                wait_for_rows(bench, run, valid)
                run.stop()
                found = run.finish()
            finally:
                run.kill()
            found.update(committed_after(bench, began + warm), rate=bench.rate)
        return found

    return case


def wait_for_rows(bench, run, count):
    deadline = time.monotonic() + LIMIT_S
    while int(bench.servers.sql("SELECT count(*) FROM user_events")[0]) < count:
        if run.process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"it did not write {count} rows", run)
        time.sleep(1)


def kcat(bench):
    """librdkafka alone: reads the topic and throws it away. Its start is part of it."""
    consume = ["kcat", "-C", "-e", "-q", "-b", bench.servers.brokers, "-t", bench.topic, "-o", "beginning", "-f", ".",
               "-X", "fetch.message.max.bytes=4194304"]
    with bench.trial("kcat") as trial:
        run = measured(bench, trial, ["bash", "-c", f"printf '{{\"events\": %d}}\\n' \"$({shlex.join(consume)} | wc -c)\""])
        found = run.finish()
        events = run.said[-1][1]["events"]
        trial.check("records", events, bench.expected["events"])
    found.update(events=events, events_per_s_after_start=round(events / run.wall),
                 engine_cpu_us_per_event_after_start=round(run.cpu / events * 1e6, 3))
    return found


def duckdb(what):
    def case(bench):
        file = bench.work / f"{bench.topic}.ndjson"
        if not file.exists():
            dump = ["kcat", "-C", "-e", "-q", "-b", bench.servers.brokers, "-t", bench.topic, "-o", "beginning"]
            bench.servers.run("bash", "-c", f"{shlex.join(dump)} > {shlex.quote(str(file))}")
        python = os.environ.get("POUNDLOCK_PYTHON", str(Path.home() / ".cache/poundlock/venv/bin/python"))
        with bench.trial("duckdb") as trial:
            run = measured(bench, trial, [python, str(HERE / "floors.py"), what, str(file)])
            return figures(run, bench.expected["events"])

    return case


CASES = {
    "kcat": kcat,
    **{f"duckdb-{what}": duckdb(what) for what in ("decode", "windows", "parquet")},
    **{f"{engine}-{mode}": throughput(engine, mode) for engine in ("spark", "flink") for mode in WRITTEN},
    **{f"{engine}-{mode}-hop": throughput(engine, mode, 5) for engine in ("spark", "flink") for mode in ("windows", "whole")},
    **{f"{engine}-latency": latency(engine) for engine in ("spark", "flink")},
}
DEFAULT = [
    "kcat", "fetch", "duckdb-decode", "decode", "raw", "flink-raw", "spark-raw", "windows", "flink-windows", "spark-windows",
    "whole-tumble", "flink-whole", "spark-whole", "latency-1s", "flink-latency", "spark-latency", "start",
]
