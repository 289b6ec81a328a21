"""Does a batch cost the same when many have gone before, and a start, and a query? First with as many real batches as minutes give, then
over a lake as a week leaves it.

A week at a trigger of a second is 604,800 batches. What they leave in the checkpoint and in our tables of the database is bounded: some
thousand batches fill it (src/checkpoint/retain.rs, src/connector/database/ledger.rs). Files of the lake are not: those of a week are
links to a real one, under names that earlier batches could have given, 86,400 in the folder of each day.
"""
import datetime
import os
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import project
from expected import valid
from measure import number, say
from ours import LIMIT_S, batches, lines, rows_committed, start

RATE = 500
MANY_S = 360  # for the real batches, if they are not there before
STEP_S = 20  # of events; then what is kept is counted
WARM_S = 120  # windows close by then, and records are removed
STAND_S = 6
ROUNDS = 3
DAY, DAYS = 86_400, 7
LINKED = 900_000  # sequence in the names of linked files: no INSERT has it
LINKS_MAX = 50_000  # of one file: ext4 takes 65,000
STEPS = ("run_ms", "write_ms", "commit_ms")
TABLES = ("batches", "pipelines", "writers")
GIVEN = ("rows_a_batch", "lake_files")  # what is done to it, not what it does


def history(bench):
    wanted = number("BENCH_BATCHES", 30_000)
    linked = number("BENCH_FILES", DAY * DAYS)
    with bench.trial("history") as trial:
        aged = Aged(bench, trial)
        say("history: new …")
        stands = {"new": aged.stand()}
        say("history: many batches …")
        figures = aged.many(wanted)
        stands[f"after {figures['batches']:,} batches"] = aged.stand()
        say("history: a week of files …")
        aged.link(linked)
        stands[f"with {linked:,} files"] = aged.stand()
        aged.check()
    _, before, after = stands.values()
    return {**figures, "late_times": compare(figures["early"], figures["late"]), "stands": stands, "week_times": compare(before, after)}


class Aged:
    """The shipped project over a topic that goes on growing, and what has come into it."""

    def __init__(self, bench, trial):
        self.bench, self.trial, self.topic = bench, trial, f"history-{trial.id}"
        bench.servers.create_topic(self.topic)
        self.queries = project.build(trial.folder / "queries")
        self.events = self.valid = 0

    def start(self, *flags):
        run = start(self.bench, self.trial, self.queries, self.topic, "--trigger", "10ms", *flags)
        try:
            run.wait_until(lambda said: lines(said, "pipeline is running"), LIMIT_S, "its start")
        except BaseException:
            run.kill()
            raise
        return run

    def generate(self, seconds):
        count = seconds * RATE
        self.bench.servers.generate(self.topic, count, "--rate", str(RATE))
        self.events, self.valid = self.events + count, self.valid + valid(count)

    def many(self, wanted):
        """As many batches as it can cut; what the early and the late ones cost, and what was kept then."""
        before, run, seen = self.events, self.start(), []
        began = time.time()
        try:
            while len(lines(run.said, "committed")) < wanted and time.time() - began < MANY_S:
                self.generate(STEP_S)
                seen.append((time.time() - run.began, self.kept()))
            events = self.events - before
            run.wait_until(lambda said: rows_committed(said) >= events, LIMIT_S, "the last batch")
            run.stop()
            figures = run.finish()
        finally:
            run.kill()
        figures.update(batches(run, events))
        committed = lines(run.said, "committed")
        # A run that is shorter than it should be is judged all the same.
        warm = min(WARM_S, committed[-1][0] / 4)
        first = next(number for number, (at, _) in enumerate(committed) if at >= warm)
        tenth = max(len(committed) // 10, 2)
        early, late = committed[first:first + tenth], committed[-tenth:]
        figures["early"] = {**cost(run, early), **next(kept for at, kept in seen if at >= warm)}
        figures["late"] = {**cost(run, late), **seen[-1][1]}
        return figures

    def stand(self):
        """Medians: a start after a clean end, its batches, killed within one; a start after that, to a clean end; ten rows of the lake."""
        rounds = [self.round() for _ in range(ROUNDS)]
        medians = {name: round(statistics.median(figures[name] for figures in rounds), 2) for name in rounds[0]}
        return {**medians, **self.kept(), "lake_files": sum(1 for _ in self.files())}

    def round(self):
        run = self.start()
        with ThreadPoolExecutor(1) as pool:
            generated = pool.submit(self.generate, STAND_S)
            try:
                run.wait_until(lambda said: rows_committed(said) >= RATE * (STAND_S - 1), LIMIT_S, "most of its batches")
            finally:
                run.kill()
            generated.result()
        run.accepted = (-9,)
        run.finish()
        committed = lines(run.said, "committed")
        # A batch in hand that was planned under higher limits is planned anew if no sink holds it: the lake is asked, too.
        again = self.start("--until-caught-up", "--max-rows-per-batch", "400000")
        again.finish()
        _, (query_ms,), program_ms, _ = self.trial.ask("SELECT * FROM lake.user_events LIMIT 10")
        (started, _), *_ = lines(run.said, "pipeline is running")
        (restarted, _), *_ = lines(again.said, "pipeline is running")
        return {"start_s": started, "restart_s": restarted, **cost(run, committed[len(committed) // 2:]),
                "limit_10_query_ms": query_ms, "limit_10_program_ms": program_ms}

    def files(self):
        return (self.trial.lake / "user_events").rglob("*.parquet")

    def kept(self):
        """What is kept of the batches that have gone."""
        found = {"checkpoint_files": 0, "checkpoint_kb": 0, "snapshot_kb": 0}
        for file in (self.trial.folder / "checkpoint").rglob("*"):
            try:
                size = file.stat().st_size / 1e3 if file.is_file() else None
            except FileNotFoundError:  # It was removed meanwhile.
                continue
            if size is not None:
                found["checkpoint_files"] += 1
                found["checkpoint_kb"] += size
                if file.parent.name == "state":
                    found["snapshot_kb"] = max(found["snapshot_kb"], size)
        counts = self.bench.servers.sql("SELECT " + ", ".join(f"(SELECT count(*) FROM poundlock.{table})" for table in TABLES))
        found = {name: round(value) for name, value in found.items()}
        return {**found, **{f"rows_of_{table}": int(count) for table, count in zip(TABLES, counts)}}

    def link(self, count):
        """`count` files more, in the folders of seven days, the last of them the one that is written to."""
        real = next(iter(self.files()))
        newest = max(int(re.match(r".{36}-(\d{20})-", file.name)[1]) for file in self.files())
        today = datetime.datetime.now(datetime.timezone.utc).date()
        for number in range(count):
            if number % LINKS_MAX == 0:
                original = self.trial.folder / f"original-{number}"
                original.write_bytes(real.read_bytes())
            if number % -(-count // DAYS) == 0:
                day = today - datetime.timedelta(days=DAYS - 1 - number * DAYS // count)
                folder = self.trial.lake / "user_events" / f"event_date={day}"
                folder.mkdir(exist_ok=True)
            batch, sequence = number % (newest + 1), LINKED + number // (newest + 1)
            os.link(original, folder / f"{real.name[:36]}-{batch:020}-{sequence:06}.parquet")
        os.sync()

    def check(self):
        """All that came, through every start and kill."""
        real = [file for file in self.files() if int(file.stem.rpartition("-")[2]) < LINKED]
        self.trial.check("rows in the lake", self.bench.servers.count_rows(real), self.valid)
        self.trial.check_sinks(self.events, self.valid)


def cost(run, part):
    """Of a batch: mean ms of each step, engine CPU, rows."""
    (began, _), (ended, _) = part[0], part[-1]
    steps = {step: statistics.fmean(fields[step] for _, fields in part) for step in STEPS}
    cpu_ms = (run.cpu_at(ended) - run.cpu_at(began)) / (len(part) - 1) * 1e3
    means = {"cpu_ms": cpu_ms, **steps, "rows_a_batch": statistics.fmean(fields["rows"] for _, fields in part)}
    return {name: round(mean, 2) for name, mean in means.items()}


def compare(before, after):
    """How many times more it has become, of all that should stay as it is."""
    return {name: round(after[name] / before[name], 2) for name in before if name not in GIVEN and before[name] > 0}
