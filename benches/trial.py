"""One run of one case: fresh tables, fresh topics, a folder of its own; afterwards the results are counted."""
import csv
import io
import itertools
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from servers import ROOT, USERS, Servers

numbers = itertools.count()


class Wrong(Exception):
    """The output of a case is not what the events demand."""


@dataclass
class Bench:
    """What all cases share."""

    servers: Servers
    poundlock: str
    work: Path
    topic: str  # of `expected['events']` events
    expected: dict
    arguments: list  # more flags for `poundlock run`
    seconds: int  # of a case at a steady rate
    rate: int  # events per second of the latency cases
    wrap: list = field(default_factory=list)  # `poundlock run` is run under this: perf, valgrind

    def trial(self, name, users=USERS, id=None):
        return Trial(self, name, users, id or f"{name}-{os.getpid()}-{next(numbers)}")


class Trial:
    """A folder, two output topics and an empty database; the folder goes when all went well."""

    def __init__(self, bench, name, users, id):
        self.bench, self.name, self.users = bench, name, users
        self.folder = bench.work / id
        self.lake, self.log = self.folder / "lake", self.folder / "log"
        self.dead_letters, self.alerts = f"dead-letters-{id}", f"alerts-{id}"
        self.id, self.more = id, {}  # more: of the environment

    def __enter__(self):
        self.folder.mkdir(parents=True)
        (self.folder / "migrations").symlink_to(ROOT / "migrations")
        self.bench.servers.reset_database(self.users)
        for topic in (self.dead_letters, self.alerts):
            self.bench.servers.create_topic(topic)
        return self

    def __exit__(self, error, *_):
        if error is None:
            shutil.rmtree(self.folder)

    def environment(self, topic):
        return dict(
            os.environ, KAFKA_BROKER=self.bench.servers.brokers, DATABASE_URL=self.bench.servers.database_url,
            KAFKA_TOPIC=topic, KAFKA_DLQ_TOPIC=self.dead_letters, KAFKA_ALERT_TOPIC=self.alerts, MONITORING_URL="",
            LAKE_URL=str(self.lake), CHECKPOINT_BASE=str(self.folder / "checkpoint"),
            **self.more,
        )

    def ask(self, query, *flags):
        """A query by `poundlock sql`: (rows, ms of each statement as it tells them, ms of the program, CPU ms of the program)."""
        command = [self.bench.poundlock, "sql", str(self.folder / "queries"), "--name", self.id, "--format", "csv", "--timing", *flags, "-c", query]
        began, before = time.monotonic(), os.times()
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment("none"))
        program_ms, after = (time.monotonic() - began) * 1e3, os.times()
        if done.returncode != 0:
            raise Wrong(f"{' '.join(command)}\n{done.stderr}")
        query_ms = [float(seconds) * 1e3 for seconds in re.findall(r"rows?, ([\d.]+) s$", done.stderr, re.MULTILINE)]
        cpu_ms = (after.children_user - before.children_user + after.children_system - before.children_system) * 1e3
        return list(csv.reader(io.StringIO(done.stdout)))[1:], query_ms, program_ms, cpu_ms

    def check(self, what, found, wanted, slack=0):
        """`slack`: how many more there may be where a peer takes for valid what we do not."""
        if not wanted <= found <= wanted + slack:
            raise Wrong(f"{self.name}: {what}: {found:,} instead of {wanted:,}; what it wrote is left in {self.folder}")

    def check_open(self, events, valid):
        """Every output of the shipped project while windows are open."""
        self.check("rows in the lake", self.bench.servers.count_lake(self.lake), valid)
        self.check_sinks(events, valid)

    def check_sinks(self, events, valid):
        """All but the lake. Which windows are open, and who stands out in those that are closed, is up to the clock; but an event
        counts in one window of 5 s and in twelve of a minute."""
        servers = self.bench.servers
        self.check("dead letters", servers.count_topic(self.dead_letters), events - valid)
        rows, = servers.sql("SELECT count(*) FROM user_events")
        self.check("rows of user_events", int(rows), valid)
        counted, = servers.sql("SELECT coalesce(sum(event_count), 0) FROM user_activity_summary")
        self.check("events counted in windows", int(counted), valid * 13)

    def check_tables(self, keep, long_window, expected, slack=0):
        """Every output of a run of the shipped project, or of some of its INSERTs, with all windows closed."""
        servers, windows = self.bench.servers, (expected["5s"], expected[long_window])
        total = {field: sum(window[field] for window in windows) for field in windows[0]}
        if "lake.user_events" in keep:
            self.check("rows in the lake", servers.count_lake(self.lake), expected["valid"], slack)
        if "kafka.dead_letter_topic" in keep:
            self.check("dead letters", servers.count_topic(self.dead_letters), expected["invalid"])
        if "db.user_events" in keep:
            rows, = servers.sql("SELECT count(*) FROM user_events")
            self.check("rows of user_events", int(rows), expected["valid"], slack)
        if "db.user_activity_summary" in keep:
            rows, events = servers.sql("SELECT count(*), coalesce(sum(event_count), 0) FROM user_activity_summary")
            self.check("rows of user_activity_summary", int(rows), total["rows"], slack)
            self.check("events counted in windows", int(events), total["events"], slack * 13)
        if "db.anomalous_events" in keep:
            rows, = servers.sql("SELECT count(*) FROM anomalous_events")
            self.check("anomalies", int(rows), total["anomalies"])
        if "kafka.anomaly_alerts" in keep:
            self.check("alerts", servers.count_topic(self.alerts), total["alerts"])
