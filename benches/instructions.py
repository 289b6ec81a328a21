"""How many instructions the whole shipped job takes an event, by callgrind, against a stored budget.

instructions.py: through `benches/run instructions`. Unlike time they hardly depend on the machine and its neighbours, so that a
slow change shows in one run. Kafka's and PostgreSQL's own are not in them. BLESS=1 stores what was counted as the new budget.
"""
import json
import os
import re
import shutil
import sys

import project
from bench import origin, prepare
from measure import interruptible, say
from ours import batches, start
from servers import ROOT

BUDGETS = ROOT / "benches" / "instructions.json"
EVENTS = 200_000
# What waits and polls differs from run to run: by 1.4 % in four of them, on a busy machine.
SLACK = 1.05


def main():
    if not shutil.which("valgrind"):
        raise SystemExit("error: no valgrind\nhint: apt-get install valgrind")
    os.environ.setdefault("BENCH_EVENTS", str(EVENTS))
    bench = prepare()
    bench.wrap = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    # Cut by rows: what comes in time is another thing under valgrind.
    flags = ("--until-caught-up", "--close-windows", "--max-rows-per-batch", "50000", "--buffer", "64 MB", "--trigger", "10s")
    with bench.trial("instructions") as trial:
        trial.more["MALLOC_ARENA_MAX"] = "2"  # it would else begin once more, through /proc, which is valgrind's own
        queries = project.build(trial.folder / "queries", project.ALL)
        run = start(bench, trial, queries, bench.topic, *flags)
        run.finish()
        figures = batches(run, bench.expected["events"])
        trial.check("records of all batches", figures["events"], bench.expected["events"])
        trial.check_tables(project.ALL, "1min-hop", bench.expected)
        counted = [int(n) for n in re.findall(r"Collected : (\d+)", trial.log.read_text(errors="replace"))]
    line = {"case": "instructions", "instructions_per_event": round(counted[-1] / figures["events"]), **origin(bench, 0)}
    line.update(events=figures["events"], batches=figures["batches"])
    print(json.dumps(line), flush=True)
    return judge(f"{line['profile']}, {figures['events']:,} events", line["instructions_per_event"])


def judge(of, counted):
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    if os.environ.get("BLESS"):
        budgets[of] = counted
        BUDGETS.write_text(json.dumps(budgets, indent=2, sort_keys=True) + "\n")
    budget = budgets.get(of)
    if budget is None:
        raise SystemExit(f"error: {BUDGETS.name} has no budget for {of!r}: {counted:,} instructions an event\nhint: store it with BLESS=1")
    say(f"{counted:,} instructions an event; {budget:,} is the budget for {of}: {counted / budget:.2f}×")
    if counted > budget * SLACK:
        say(f"error: more than {SLACK}× of its budget\nhint: find out why (make bench-flame); if it is worth it, BLESS=1 stores a new one")
        return 1
    return 0


if __name__ == "__main__":
    interruptible(main)
