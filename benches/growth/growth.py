"""How cost grows: one axis at a time, all else as in BASE. JSON lines on stdout; tables for docs/performance.md on stderr.

Engine CPU per event is to stay within a factor of two wherever the work per event is the same.
"""
import contextlib
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import project
from bench import origin, prepare
from growth_events import bad_count
from measure import Failed, say
from ours import LIMIT_S, RAW, batches, lines, rows_committed, start
from trial import Wrong

HERE = Path(__file__).resolve().parent
BYTES_MAX = 2_000_000_000  # of one topic: fewer events where they are large


@dataclass(frozen=True)
class Point:
    """One run: what is in the topic, the project, how it is run."""

    keys: int = 1_000
    partitions: int = 4
    size: int = 230
    disorder: float = 0.0
    bad: float = 0.01
    event_rate: int = 10_000  # per second of event time
    least_events: int = 0
    window: str = "1 minute"
    slide: str = "1 minute"
    inserts: int = 0  # besides those of BASE, each of its share of the valid events
    dimension: int = 0  # rows; 0: no join
    flags: tuple = ()
    live: int = 0  # events a second; 0: all are there already


BASE = Point()


def axis(**values):
    """{value: Point} for one or more fields that are told by the first."""
    names = list(values)
    return {row[0]: replace(BASE, **dict(zip(names, row))) for row in zip(*values.values())}


def batch_rows(rows):
    """Small batches are cut by the clock, ten a second; large ones when they are full."""
    if rows <= 1_000:
        return replace(BASE, live=rows * 10, flags=("--trigger", "100ms"))
    limits = ("--max-rows-per-batch", str(rows), "--max-bytes-per-batch", "2 GB", "--buffer", "4 GB", "--memory", "4 GiB")
    return replace(BASE, least_events=2 * rows, flags=("--trigger", "10s", *limits))


AXES = {
    # All events in one window, so that its state has every key.
    "keys": {keys: replace(BASE, keys=keys, event_rate=1_000_000, least_events=2 * keys, flags=("--memory", "8 GiB"))
             for keys in (10**3, 10**4, 10**5, 10**6, 10**7)},
    "partitions": axis(partitions=(1, 4, 16, 64)),
    "rows a batch": {rows: batch_rows(rows) for rows in (10, 100, 1_000, 10_000, 100_000, 1_000_000)},
    "bytes an event": axis(size=(100, 230, 1_000, 10_000)),
    "window": axis(window=(sizes := ("1 second", "5 seconds", "1 minute", "1 hour", "1 day")), slide=sizes),
    "panes a window": {panes: replace(BASE, slide=f"{60 // panes} seconds") for panes in (1, 12, 60)},
    "disorder": axis(disorder=(0.0, 0.1, 0.5, 1.0)),
    "bad": axis(bad=(0.0, 0.01, 0.1, 0.5, 1.0)),
    "INSERTs": axis(inserts=(0, 1, 5, 10, 20)),
    "dimension": axis(dimension=(0, 10, 1_000, 100_000, 1_000_000)),
}


def main():
    asked = os.environ.get("CASES", "").split(",") if os.environ.get("CASES") else list(AXES)
    if missing := [name for name in asked if name not in {*AXES, "history"}]:
        raise SystemExit(f"error: no axis {', '.join(missing)}; there are, with commas between: {', '.join([*AXES, 'history'])}")
    events, events_max = (int(os.environ.get(name, value).replace("_", "")) for name, value in
                          (("BENCH_EVENTS", "1000000"), ("BENCH_EVENTS_MAX", "20000000")))
    bench = prepare(with_topic=False)
    results, failures = [], 0
    for name in asked:
        for value, point in AXES.get(name, {"": None}).items():
            if point and point.least_events > events_max:
                say(f"{name} {value}: left out, it takes more than BENCH_EVENTS_MAX events")
                continue
            say(f"{name} {value} …")
            try:
                figures = measure(bench, point, events) if point else history(bench)
            except (Failed, Wrong) as error:
                failures += 1
                say(f"error: {name} {value}: {error}")
                continue
            line = {"case": f"growth {name}", "axis": name, "value": value, **figures, **origin(bench, 0)}
            results.append(line)
            print(json.dumps(line), flush=True)
            with (bench.work / "growth.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    markdown(results)
    return 1 if failures else 0


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
            trial.check("rows in the lake", bench.servers.count_parquet(trial.lake / "user_events"), events - bad)
            trial.check("dead letters", bench.servers.count_topic(trial.dead_letters), bad)
            shares = sum(bench.servers.count_parquet(folder) for folder in trial.lake.glob("share_*"))
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


def history(bench):
    """Does a batch cost the same when many have gone before? The shipped project, as many small batches as it can cut."""
    wanted = int(os.environ.get("BENCH_BATCHES", "5000"))
    rate = 1_000
    with bench.trial("history") as trial:
        topic = f"history-{trial.id}"
        bench.servers.create_topic(topic)
        run = start(bench, trial, project.build(trial.folder / "queries"), topic, "--trigger", "10ms")
        with contextlib.ExitStack() as stack:
            stack.callback(run.kill)
            run.wait_until(lambda said: lines(said, "pipeline is running"), LIMIT_S, "its start")
            while len(lines(run.said, "committed")) < wanted:
                bench.servers.generate(topic, 30 * rate, "--rate", str(rate))
            run.stop()
            figures = run.finish()
        committed = lines(run.said, "committed")
        tenth = len(committed) // 10

        def cost(part):
            """Mean ms of each step, and engine CPU, of a batch."""
            (began, _), (ended, _) = part[0], part[-1]
            steps = {step: sum(fields[step] for _, fields in part) / len(part) for step in ("run_ms", "write_ms", "commit_ms")}
            return {**steps, "cpu_ms": (run.cpu_at(ended) - run.cpu_at(began)) / (len(part) - 1) * 1e3}

        # The first tenth warms up.
        early, late = cost(committed[tenth:2 * tenth]), cost(committed[-tenth:])
        figures.update({f"{step}_{when}": round(value, 2) for when, costs in (("early", early), ("late", late)) for step, value in costs.items()})
        figures.update(batches=len(committed), checkpoint_files=sum(1 for file in (trial.folder / "checkpoint").rglob("*") if file.is_file()))
    return figures


def markdown(results):
    for name in dict.fromkeys(line["axis"] for line in results):
        rows = [line for line in results if line["axis"] == name and "engine_cpu_us_per_event_after_start" in line]
        if not rows:
            continue
        cheapest = min(line["engine_cpu_us_per_event_after_start"] for line in rows)
        say(f"\n| {name} | events | engine µs an event | against the cheapest | events/s | RSS, MB | rows a batch |\n|---|---|---|---|---|---|---|")
        for line in rows:
            cost, value = line["engine_cpu_us_per_event_after_start"], line["value"]
            say(f"| {value if isinstance(value, str) else f'{value:,}'} | {line['events']:,} | {cost:.2f} | {cost / cheapest:.1f}× "
                f"| {line['events_per_s_after_start']:,} | {line['peak_rss_mb']:.0f} | {line['rows_per_batch']:,} |")


if __name__ == "__main__":
    sys.exit(main())
