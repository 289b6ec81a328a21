"""The axes: what is changed from one run to the next, and which of the runs do the same work an event, so that they can be judged.

A run is within 2× if its engine CPU an event is at most twice that of the cheapest of those that do the same work. Its memory is set
against the least of the same runs; larger batches, larger events and more keys are there on purpose, so what is beyond is told, with no verdict.
"""
from dataclasses import dataclass, replace

COST = "engine_cpu_us_per_event_after_start"
MEMORY = "peak_rss_mb"
TIMES_MAX = 2


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


@dataclass(frozen=True)
class Axis:
    points: dict  # value: Point
    note: str  # what is the same in all, what is not
    judged: tuple = ()  # values whose work an event is the same; empty: all
    by_byte: bool = False  # judged by the cost of a byte, against the first: it may not rise


def points(**values):
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
    "keys": Axis(
        # All events in one window, so that its state has every key.
        {keys: replace(BASE, keys=keys, event_rate=1_000_000, least_events=2 * keys, flags=("--memory", "8 GiB"))
         for keys in (10**3, 10**4, 10**5, 10**6, 10**7)},
        "All are judged, though many keys are more work: each has a row when the window closes, which from a million keys on is one for every "
        "two events, and counts that do not fit into the processor's cache."),
    "partitions": Axis(points(partitions=(1, 4, 16, 64)), "The same work: all are judged."),
    "rows a batch": Axis(
        {rows: batch_rows(rows) for rows in (10, 100, 1_000, 10_000, 100_000, 1_000_000)},
        "A batch has a cost of its own (two durable files, a plan, a transaction, a Parquet file for each table), which few rows share: judged from "
        "1,000 rows on, of fewer ms a batch are what counts. Up to 1,000 the events come while it runs, ten batches a second.",
        judged=(1_000, 10_000, 100_000, 1_000_000)),
    "bytes an event": Axis(
        points(size=(100, 230, 1_000, 10_000)),
        "More bytes are more work, and 100 of them hold four fields, not nine. So no event is judged, but a byte of large ones: in "
        "events of 10,000 it may cost at most twice what it costs in events of 1,000.",
        judged=(1_000, 10_000), by_byte=True),
    "window": Axis(
        # Of large ones several too: fewer events a second of event time.
        points(window=(sizes := ("1 second", "5 seconds", "1 minute", "1 hour", "1 day")), slide=sizes, event_rate=(10_000, 10_000, 10_000, 100, 10)),
        "All are judged, though short windows are more work: of 1 second there are a hundred, so one row leaves for every ten events. Hours and days "
        "have 100 and 10 events a second of event time, so that there are 3 and 2 of them."),
    "panes a window": Axis(
        {panes: replace(BASE, slide=f"{60 // panes} seconds") for panes in (1, 12, 60)},
        "All are judged, though an event counts in as many windows as there are panes, and so many times more rows leave: it is counted once, in its "
        "pane, and windows are put together from panes."),
    "disorder": Axis(
        points(disorder=(0.0, 0.1, 0.5, 1.0)),
        "The share of events that come up to 25 s after younger ones, which is within the watermark's delay: none is late. The same work: all are judged."),
    "bad": Axis(
        points(bad=(0.0, 0.01, 0.1, 0.5, 1.0)),
        "The share that is not JSON. All are judged, though a bad record takes another way: no fields, no window, no Parquet, but a dead letter with "
        "its bytes, in Kafka."),
    "INSERTs": Axis(
        points(inserts=(0, 1, 5, 10, 20)),
        "All that are added write each valid event once more, together: so those with any are judged. The rows written are the same, but each INSERT "
        "asks every row its own condition and has a file in every batch.",
        judged=(1, 5, 10, 20)),
    "dimension": Axis(
        points(dimension=(0, 10, 1_000, 100_000, 1_000_000)),
        "Rows of the table that every event, and every closed window, is joined with; it is read before the start. Those with a join are judged.",
        judged=(10, 1_000, 100_000, 1_000_000)),
}


def judge(axis, lines):
    """Adds to the figures of an axis `times` the cheapest, `within_2x` and `memory_times` the least; None where the work is another."""
    def cost(line):
        return line[COST] / line["bytes_per_event"] if axis.by_byte else line[COST]

    judged = [line for line in lines if not axis.judged or line["value"] in axis.judged]
    if len(judged) < len(axis.judged or axis.points):
        judged = []  # One has failed: it may be the cheapest.
    base = (cost(judged[0]) if axis.by_byte else min(map(cost, judged))) if judged else None
    least = min((line[MEMORY] for line in judged), default=None)
    for line in lines:
        line["memory_times"] = round(line[MEMORY] / least, 2) if line in judged else None
        times = cost(line) / base if line in judged else None
        line.update(times=times and round(times, 2), within_2x=None if times is None else times <= TIMES_MAX)
