"""How cost grows: one axis at a time, all else as in axes.BASE. JSON lines on stdout; tables for docs/performance.md on stderr."""
import json
import os
import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import project
import tables
from axes import AXES, judge
from bench import origin, prepare
from expected import valid
from growth_events import bad_count
from history import history
from measure import Failed, interruptible, number, say
from ours import LIMIT_S, RAW, batches, lines, rows_committed, start
from trial import Wrong

HERE = Path(__file__).resolve().parent
BYTES_MAX = 2_000_000_000  # of one topic: fewer events where they are large


def main():
    asked = os.environ.get("CASES", "").split(",") if os.environ.get("CASES") else list(AXES)
    if missing := [name for name in asked if name not in {*AXES, "history"}]:
        raise SystemExit(f"error: no axis {', '.join(missing)}; there are, with commas between: {', '.join([*AXES, 'history'])}")
    events, events_max = number("BENCH_EVENTS", 1_000_000), number("BENCH_EVENTS_MAX", 20_000_000)
    bench = prepare(with_topic=False)
    results, failures = [], 0
    for name in asked:
        if name == "history":
            try:
                figures = history(bench)
                store(bench, name, [figures])
                tables.history(figures)
            except (Failed, Wrong) as error:
                failures += 1
                say(f"error: {name}: {error}")
            continue
        found = []
        for value, point in AXES[name].points.items():
            if point.least_events > events_max:
                say(f"{name} {value}: left out, it takes more than BENCH_EVENTS_MAX events")
                continue
            say(f"{name} {value} …")
            try:
                figures = measure(bench, point, events)
            except (Failed, Wrong) as error:
                failures += 1
                say(f"error: {name} {value}: {error}")
                continue
            found.append({"axis": name, "value": value, "bytes_per_event": point.size, **figures})
        judge(AXES[name], found)
        store(bench, name, found)
        results += found
    tables.axes(results)
    return 1 if failures else 0


def store(bench, name, found):
    for figures in found:
        line = json.dumps({"case": f"growth {name}", **figures, **origin(bench, 0)})
        print(line, flush=True)
        with (bench.work / "growth.jsonl").open("a") as file:
            file.write(line + "\n")


def measure(bench, point, events):
    if point.live:
        events = point.live * bench.seconds
    events = max(min(events, BYTES_MAX // point.size), point.least_events)
    with bench.trial("growth", users=point.dimension) as trial:
        topic = f"growth-{trial.id}" if point.live else filled(bench, point, events)
        queries = build(trial.folder / "queries", point)
        trial.more = {"WINDOW_SIZE": point.window, "WINDOW_SLIDE": point.slide}
        flags = point.flags or ("--trigger", "200ms")
        if point.live:
            figures = live(bench, trial, queries, topic, point, events, flags)
        else:
            run = start(bench, trial, queries, topic, "--until-caught-up", "--close-windows", *flags)
            figures = run.finish()
            figures.update(batches(run, events))
            bad = bad_count(events, point.bad)
            trial.check("records of all batches", figures["events"], events)
            trial.check("rows in the lake", bench.servers.count_lake(trial.lake / "user_events"), events - bad)
            trial.check("dead letters", bench.servers.count_topic(trial.dead_letters), bad)
            shares = sum(bench.servers.count_lake(folder) for folder in trial.lake.glob("share_*"))
            if point.dimension:
                joined = bench.servers.duckdb(f"SELECT sum(events) FROM read_parquet('{trial.lake}/by_region/*.parquet')")
                trial.check("events joined", int(joined), events - bad)
            trial.check("rows of all shares", shares, events - bad if point.inserts else 0)
            if bad < events:
                counted = bench.servers.duckdb(f"SELECT sum(event_count) FROM read_parquet('{trial.lake}/counted/*.parquet')")
                panes = seconds(point.window) // seconds(point.slide)
                trial.check("events counted in windows", int(counted), (events - bad) * panes)
    return figures


def seconds(text):
    number, unit = text.split()
    return int(number) * {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}[unit.rstrip("s")]


def live(bench, trial, queries, topic, point, events, flags):
    """The events come while it runs; only what comes after the first quarter counts."""
    bench.servers.create_topic(topic, point.partitions)
    run = start(bench, trial, queries, topic, *flags)
    try:
        run.wait_until(lambda said: lines(said, "pipeline is running"), LIMIT_S, "its start")
        bench.servers.generate(topic, events, "--rate", str(point.live))
        run.wait_until(lambda said: rows_committed(said) >= events, LIMIT_S, "the last batch")
        run.stop()
        figures = run.finish()
    finally:
        run.kill()
    figures.update(batches(run, events))
    # Windows are still open: which rows have left, the clock decides.
    good = valid(events)
    trial.check("records of all batches", figures["events"], events)
    trial.check("rows in the lake", bench.servers.count_lake(trial.lake / "user_events"), good)
    trial.check("dead letters", bench.servers.count_topic(trial.dead_letters), events - good)
    committed = lines(run.said, "committed")
    warm = len(committed) // 4
    rows = sum(fields["rows"] for _, fields in committed[warm + 1:])
    cpu = run.cpu_at(committed[-1][0]) - run.cpu_at(committed[warm][0])
    figures["engine_cpu_us_per_event_after_start"] = round(cpu / rows * 1e6, 3)
    figures["engine_cpu_ms_per_batch"] = round(cpu / (len(committed) - 1 - warm) * 1e3, 3)
    return figures


def filled(bench, point, events):
    """A topic of these events; points that differ in the project only share it while the servers run."""
    knobs = (events, point.keys, point.size, point.disorder, point.bad, point.event_rate)
    note = bench.servers.data / "kafka" / "-".join(str(knob) for knob in ("growth", *knobs, point.partitions))
    if note.exists():
        return note.read_text()
    topic = f"growth-{os.getpid()}-{time.monotonic_ns()}"
    bench.servers.create_topic(topic, point.partitions)
    produce = ["kcat", "-P", "-b", bench.servers.brokers, "-t", topic, "-z", "lz4", "-X", "enable.idempotence=true",
               "-X", "message.max.bytes=2000000"]
    make = [sys.executable, str(HERE / "growth_events.py"), *map(str, knobs)]
    bench.servers.run("bash", "-c", f"set -o pipefail; {shlex.join(make)} | {shlex.join(produce)}")
    note.write_text(topic)
    return topic


def build(folder, point):
    project.build(folder, RAW, more=(HERE / "windows", HERE / ("dimension" if point.dimension else "plain")))
    for number in range(point.inserts):
        # All of them together write every valid event once more, however many they are.
        (folder / f"60_share_{number}.sql").write_text(f"""
            CREATE EXTERNAL TABLE lake.share_{number} (user_id BIGINT, product_id BIGINT, action VARCHAR, "timestamp" TIMESTAMP)
            STORED AS PARQUET LOCATION '${{LAKE_URL}}/share_{number}';
            INSERT INTO lake.share_{number} SELECT user_id, product_id, action, "timestamp" FROM valid_events
            WHERE user_id % {point.inserts} = {number};""")
    return folder


if __name__ == "__main__":
    interruptible(main)
