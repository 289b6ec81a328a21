"""Measures the cases in turn, then all of them again, RUNS times: neighbours disturb all alike. One JSON line a case.

The cases, the targets and how to read the figures: docs/performance.md.
"""
import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import report
from expected import EVENT_RATE, START, expected
from measure import Failed, interruptible, number, say
from ours import CASES as OURS
from servers import PARTITIONS, ROOT, Servers
from trial import Bench, Wrong

FLAGS = ("--partitions", str(PARTITIONS), "--start", START, "--event-rate", str(EVENT_RATE))


def main(which):
    cases = dict(OURS)
    names = list(OURS)
    if which == "peers":
        from peers.cases import CASES as PEERS, DEFAULT

        cases.update(PEERS)
        names = DEFAULT
    names = os.environ.get("CASES", "").split() or names
    if missing := [name for name in names if name not in cases]:
        raise SystemExit(f"error: no case {', '.join(missing)}; there are, with spaces between: {' '.join(cases)}")
    runs = number("RUNS", 1)
    bench = prepare()
    results = bench.work / "results.jsonl"
    lines, failures = [], 0
    for run in range(runs):
        for name in names:
            say(f"{name} …")
            try:
                figures = cases[name](bench)
            except (Failed, Wrong) as error:
                failures += 1
                say(f"error: {name}: {error}")
                continue
            line = {"case": name, **figures, **origin(bench, run)}
            lines.append(line)
            text = json.dumps(line)
            print(text, flush=True)
            with results.open("a") as file:
                file.write(text + "\n")
    report.table(lines)
    report.targets(lines)
    report.variants(lines)
    report.ratios(lines)
    say(f"\n{len(lines)} lines added to {results}")
    return 1 if failures else 0


def prepare(with_topic=True):
    """The servers, and the topic with its events and what is known of them. With BENCH_CHECK set this is the end: what was asked for can be
    measured, and no server had to start for it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or Path.home() / ".cache/poundlock/target")
    poundlock = os.environ.get("POUNDLOCK") or str(target / "release" / "poundlock")
    if not shutil.which(poundlock):
        raise SystemExit(f"error: no program {poundlock}\nhint: build it with cargo build --release, or set POUNDLOCK")
    events, seconds, rate = number("BENCH_EVENTS", 2_000_000), number("BENCH_SECONDS", 60), number("BENCH_RATE", 5_000)
    work = target / "bench"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: {error}\nhint: CARGO_TARGET_DIR says where results are kept") from None
    if os.environ.get("BENCH_CHECK"):
        sys.exit(0)
    servers = Servers(poundlock)
    return Bench(
        servers, poundlock, work,
        topic=topic_of(servers, events) if with_topic else None,
        expected=expected(events, work / f"expected-{events}.json") if with_topic else None,
        arguments=os.environ.get("BENCH_ARGS", "").split(),
        seconds=seconds,
        rate=rate,
    )


def topic_of(servers, events):
    """Servers that go on running from one bench to the next keep the topic; a note beside their data says which."""
    note = servers.data / "kafka" / f"bench-{events}"
    if not note.exists():
        topic = f"bench-{events}-{os.getpid()}"
        say(f"{events:,} events …")
        say(servers.generate(topic, events, *FLAGS).strip())
        # Read once: the broker's JVM has then compiled what serves the first case as it will serve the last.
        if (found := servers.count_topic(topic)) != events:
            raise SystemExit(f"error: topic {topic} has {found:,} records, not {events:,}")
        note.write_text(topic)
    return note.read_text()


def origin(bench, run):
    """What was measured, when: a figure without it is worth nothing later."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    profile = "debug" if "/debug/" in os.path.realpath(bench.poundlock) else "release"
    at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"run": run, "at": at, "commit": commit, "profile": profile, "cores": os.cpu_count()}


if __name__ == "__main__":
    interruptible(main, sys.argv[1])
