"""The cases of Poundlock itself. Each is a function of a Bench that returns the figures of one run, or fails."""
import json
import statistics
import time

import project
from expected import valid
from measure import Run, say
from servers import PARTITIONS, ROOT

PROJECTS = ROOT / "benches" / "projects"
RAW = ("kafka.dead_letter_topic", "lake.user_events")
WINDOWS = ("db.user_activity_summary",)
# For whatever has to be there in the end; a debug build on a busy machine is slow.
LIMIT_S = 900


# The floors write one row a batch; by their project: table, what is summed up, what that must be.
FLOORS = {
    "fetch": ("fetched", "events", lambda expected: expected["events"]),
    "decode": ("decoded", "events - undecodable", lambda expected: expected["events"] - expected["undecodable"]),
}


def throughput(keep=(), tumble=False, floor=None, more=None, variant=None, accepted=(0,)):
    """All events of the topic, as fast as they can be had, then every window closed. `more`: another folder of statements;
    `variant`: see project.VARIANTS."""

    def case(bench):
        with bench.trial("run") as trial:
            folders = [PROJECTS / folder for folder in (floor, more) if folder]
            queries = project.build(trial.folder / "queries", keep, tumble, folders, variant)
            run = start(bench, trial, queries, bench.topic, "--until-caught-up", "--close-windows", accepted=accepted)
            figures = run.finish()
            figures.update(batches(run, bench.expected["events"]))
            trial.check("records of all batches", figures["events"], bench.expected["events"])
            trial.check_tables(keep, "1min" if tumble else "1min-hop", bench.expected)
            if floor:
                table, summed, wanted = FLOORS[floor]
                found = bench.servers.duckdb(f"SELECT sum({summed}) FROM read_parquet('{trial.lake}/{table}/*.parquet')")
                trial.check(f"sum of lake.{table}", int(found), wanted(bench.expected))
        return figures

    return case


def start(bench, trial, queries, topic, *flags, accepted=(0,)):
    """`poundlock run`, with its log as JSON: a line when it has started, and one a batch."""
    command = [bench.poundlock, "run", str(queries), "--name", trial.id, "--log-format", "json", *flags, *bench.arguments]
    # Under another program, which ends by the signal that ended ours.
    accepted = (*accepted, -15) if bench.wrap else accepted
    return Run([*bench.wrap, *command], trial.log, trial.environment(topic), bench.servers.pids, accepted)


def lines(said, message):
    return [(at, fields) for at, fields in said if fields.get("message") == message]


def rows_committed(said):
    return sum(fields["rows"] for _, fields in lines(said, "committed"))


def batches(run, events):
    """What the log says: when it stood, when the first rows were durable in every sink, what each step took."""
    (running, _), *_ = lines(run.said, "pipeline is running")
    committed = lines(run.said, "committed")
    end, cpu_start = committed[-1][0], run.cpu_at(running)
    rows = rows_committed(run.said)
    steps = {step: sum(fields[step] for _, fields in committed) for step in ("wait_ms", "run_ms", "write_ms", "commit_ms")}
    return {
        "events": rows,
        "events_per_s_after_start": round(events / (end - running)),
        "events_per_s": round(events / run.wall),
        "engine_cpu_start_s": round(cpu_start, 3),
        "engine_cpu_us_per_event_after_start": round((run.cpu - cpu_start) / events * 1e6, 3),
        "start_s": round(running, 3),
        "first_output_s": round(next(at for at, fields in committed if fields["rows"]), 3),
        "batches": len(committed),
        "rows_per_batch": round(rows / len(committed)),
        **steps,
    }


def steady(bench, trial, topic, trigger, rate, count):
    """The whole shipped project while `count` events come at a steady rate; returns the ended run, its figures, and when
    the events began to come."""
    bench.servers.create_topic(topic)
    queries = project.build(trial.folder / "queries")
    run = start(bench, trial, queries, topic, "--trigger", trigger)
    try:
        run.wait_until(lambda said: lines(said, "pipeline is running"), LIMIT_S, "its start")
        began = time.time()
        bench.servers.generate(topic, count, "--rate", str(rate))
        run.wait_until(lambda said: rows_committed(said) >= count, LIMIT_S, "the last batch")
        run.stop()
        figures = run.finish()
    finally:
        run.kill()
    figures.update(batches(run, count))
    trial.check("records of all batches", figures["events"], count)
    trial.check_open(count, valid(count))
    return run, figures, began


def latency(trigger):
    """From the moment an event was produced, which is its timestamp, to its row's commit in PostgreSQL."""

    def case(bench):
        with bench.trial("latency") as trial:
            warm = min(10, bench.seconds // 3)
            count = bench.rate * (bench.seconds + warm)
            _, figures, began = steady(bench, trial, f"live-{trial.id}", trigger, bench.rate, count)
            figures.update(committed_after(bench, began + warm), trigger=trigger, rate=bench.rate)
        return figures

    return case


def committed_after(bench, since):
    """Nothing polls the database: it keeps the time of each commit. Events from before `since` (s since 1970) are left out."""
    names = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "rows_measured")
    values = bench.servers.sql(f"""
        WITH latency AS (
          SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - "timestamp" AT TIME ZONE 'UTC')::float8 * 1000 AS ms
          FROM user_events WHERE "timestamp" AT TIME ZONE 'UTC' >= to_timestamp({since}))
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.9) WITHIN GROUP (ORDER BY ms),
               percentile_cont(0.99) WITHIN GROUP (ORDER BY ms), max(ms), count(*) FROM latency""")
    return {name: round(float(value)) for name, value in zip(names, values)}


def small(bench):
    """Ten rows a batch: what a batch costs, whatever is in it. The first batches warm up."""
    with bench.trial("small") as trial:
        trigger_ms, rows = 100, 10
        rate = rows * 1000 // trigger_ms
        run, figures, _ = steady(bench, trial, f"small-{trial.id}", f"{trigger_ms}ms", rate, rate * bench.seconds)
        committed = lines(run.said, "committed")
        warm = len(committed) // 4
        (began, _), (ended, _) = committed[warm], committed[-1]
        cpu = run.cpu_at(ended) - run.cpu_at(began)
        figures["engine_cpu_ms_per_batch"] = round(cpu / (len(committed) - 1 - warm) * 1000, 2)
        if not rows / 2 <= figures["rows_per_batch"] <= rows * 2:
            say(f"small: {figures['rows_per_batch']} rows a batch, {rows} were wanted: the machine does not keep up")
    return figures


def starts(bench):
    """From nothing to the first batch in every sink; the median of three."""
    several = []
    for _ in range(3):
        with bench.trial("start") as trial:
            run = start(bench, trial, project.build(trial.folder / "queries"), bench.topic, "--once")
            figures = run.finish()
            events = rows_committed(run.said)
            figures.update(batches(run, events))
            ends = read_to(bench)
            trial.check("records of the batch", events, sum(ends.values()))
            trial.check_open(events, valid(bench.expected["events"], ends))
            several.append(figures)
    several.sort(key=lambda figures: figures["first_output_s"])
    middle = several[1]
    middle["start_s"] = statistics.median(figures["start_s"] for figures in several)
    for rate in ("events_per_s", "events_per_s_after_start", "engine_cpu_us_per_event_after_start"):
        middle.pop(rate)  # One batch says nothing of rates.
    return middle


def read_to(bench):
    """Up to where the last batch has read the topic: {partition: offset}."""
    offsets, = bench.servers.sql("SELECT offsets FROM poundlock.batches ORDER BY batch DESC LIMIT 1")
    ranges, = json.loads(offsets).values()
    return {partition: ranges.get(str(partition), {"to": 0})["to"] for partition in range(PARTITIONS)}


CASES = {
    "fetch": throughput(floor="fetch"),
    "decode": throughput(floor="decode"),
    "raw": throughput(RAW),
    # Every valid event is handed over too, to a sink that is dead: status 2 says that it waits. Beside `raw`.
    "raw-outbox": throughput(RAW, more="outbox", accepted=(2,)),
    # The same into a Delta table, whose files are merged meanwhile. Beside `raw`.
    "raw-delta": throughput(RAW, variant="delta"),
    "windows": throughput(WINDOWS, tumble=True),
    "windows-hop": throughput(WINDOWS),
    "whole-tumble": throughput(project.ALL, tumble=True),
    "whole": throughput(project.ALL),
    # The same rows, those of user_events through the checkpoint. Beside `whole`.
    "whole-outbox": throughput(project.ALL, variant="outbox"),
    "whole-delta": throughput(project.ALL, variant="delta"),
    "latency-1s": latency("1s"),
    "latency-100ms": latency("100ms"),
    "small": small,
    "start": starts,
}
