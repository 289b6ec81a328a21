"""For people, on stderr: the figures as a table, the targets beside them, the peers as ratios. Medians of all runs."""
import statistics

from measure import say

COLUMNS = (
    ("events_per_s_after_start", "events/s"), ("engine_cpu_us_per_event_after_start", "engine µs/event"),
    ("engine_cpu_s", "engine s"), ("kafka_cpu_s", "kafka s"), ("postgres_cpu_s", "postgres s"), ("peak_rss_mb", "RSS MB"),
    ("peak_pss_mb", "PSS MB"), ("start_s", "start s"), ("first_output_s", "first s"), ("batches", "batches"),
    ("p50_ms", "p50 ms"), ("p99_ms", "p99 ms"), ("load", "load"), ("cpu_pressure", "pressure"),
)

# Case, figure, whether it must be at least or at most so much.
TARGETS = (
    ("raw", "events_per_s_after_start", ">=", 400_000),
    ("windows", "events_per_s_after_start", ">=", 500_000),
    ("whole", "events_per_s_after_start", ">=", 150_000),
    ("whole", "engine_cpu_us_per_event_after_start", "<=", 4),
    ("whole", "peak_rss_mb", "<=", 300),
    ("whole-tumble", "events_per_s_after_start", ">=", 150_000),
    ("whole-tumble", "engine_cpu_us_per_event_after_start", "<=", 4),
    ("whole-tumble", "peak_rss_mb", "<=", 300),
    ("start", "first_output_s", "<=", 2),
    ("latency-1s", "p50_ms", "<=", 650),
    ("latency-1s", "p99_ms", "<=", 1_200),
    ("latency-100ms", "p50_ms", "<=", 120),
    ("latency-100ms", "p99_ms", "<=", 300),
    ("small", "engine_cpu_ms_per_batch", "<=", 20),
)

# The same work: ours, the peers'. Where theirs differs is said in docs/performance.md.
PEERS = (
    ("fetch", "kcat", ""), ("decode", "duckdb-decode", ""),
    ("raw", "flink-raw", "spark-raw"), ("windows", "flink-windows", "spark-windows"),
    ("windows-hop", "flink-windows-hop", "spark-windows-hop"),
    ("whole-tumble", "flink-whole", "spark-whole"), ("whole", "flink-whole-hop", "spark-whole-hop"),
    ("latency-1s", "flink-latency", "spark-latency"),
)
# The same in another way, and how much of the rate must be left, if that is said.
VARIANTS = (("raw", "raw-outbox", 0.9), ("whole", "whole-outbox", 0.9), ("raw", "raw-delta", None), ("whole", "whole-delta", None))
# Figure, and whether more is better.
RATIOS = (
    ("events_per_s_after_start", True), ("engine_cpu_us_per_event_after_start", False), ("peak_pss_mb", False),
    ("first_output_s", False), ("p50_ms", False), ("p99_ms", False),
)


def values(lines, case, figure):
    return [line[figure] for line in lines if line["case"] == case and line.get(figure) is not None]


def number(value):
    if value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def measured(lines, case, figure):
    """The median, and how far the runs lie apart."""
    found = values(lines, case, figure)
    if not found:
        return "–"
    middle = number(statistics.median(found))
    return middle if len(found) == 1 else f"{middle} ({number(min(found))}–{number(max(found))})"


def show(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip())


def table(lines):
    cases = list(dict.fromkeys(line["case"] for line in lines))
    columns = [(figure, title) for figure, title in COLUMNS if any(values(lines, case, figure) for case in cases)]
    if cases:
        say("")
        show([["case", *(title for _, title in columns)]] + [
            [case, *(measured(lines, case, figure) for figure, _ in columns)] for case in cases])


def targets(lines):
    rows = []
    for case, figure, relation, target in TARGETS:
        if found := values(lines, case, figure):
            middle = statistics.median(found)
            met = middle >= target if relation == ">=" else middle <= target
            words = "at least" if relation == ">=" else "at most"
            rows.append([case, figure, measured(lines, case, figure), f"{words} {number(target)}", "met" if met else "MISSED"])
    if rows:
        say("")
        show([["case", "figure", "measured", "target", ""], *rows])


def variants(lines):
    rows, rate = [], "events_per_s_after_start"
    for base, case, target in VARIANTS:
        before, after = values(lines, base, rate), values(lines, case, rate)
        if before and after:
            share = statistics.median(after) / statistics.median(before)
            verdict = ("", "") if target is None else (f"at least {target}", "met" if share >= target else "MISSED")
            rows.append([case, base, f"{share:.2f} of its rate", *verdict])
    if rows:
        say("")
        show([["case", "beside", "measured", "target", ""], *rows])


def ratios(lines):
    rows = []
    for ours, *peers in PEERS:
        for figure, more_is_better in RATIOS:
            mine = values(lines, ours, figure)
            cells, any_peer = [], False
            for peer in peers:
                theirs = values(lines, peer, figure)
                if mine and theirs:
                    any_peer = True
                    a, b = statistics.median(mine), statistics.median(theirs)
                    better = a / b if more_is_better else b / a
                    cells.append(f"{peer} {number(b)}: {better:.1f}×")
                else:
                    cells.append("–")
            if any_peer:
                rows.append([ours, figure, measured(lines, ours, figure), *cells])
    if rows:
        say("\nHow many times better than the peers (below 1: worse)")
        show([["case", "figure", "ours", "", ""], *rows])
