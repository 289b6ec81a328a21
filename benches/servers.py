"""Kafka and PostgreSQL of a run, as tests/services/with started them, and what every case does with them."""
import os
import subprocess
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("POUNDLOCK_PYTHON", str(Path.home() / ".cache/poundlock/venv/bin/python"))
PARTITIONS = 4
USERS = 1_000


class Trouble(SystemExit):
    """What a bench needs does not work: no case can go on."""

    def __init__(self, what):
        super().__init__(f"error: {what}")


class Servers:
    def __init__(self, poundlock):
        self.poundlock = poundlock
        try:
            self.brokers, self.database_url = os.environ["KAFKA_BROKERS"], os.environ["DATABASE_URL"]
            self.data = Path(os.environ["SERVICES_DATA"])
        except KeyError as missing:
            raise SystemExit(f"error: {missing} is not set: start this through benches/run") from None
        self.pids = {
            name: int((self.data / service / "run" / f"{process}.pid").read_text().split()[0])
            for name, service, process in (("kafka", "kafka", "broker1"), ("postgres", "postgres", "primary"))
        }

    def run(self, *command, input=None, **environment):
        """A program that prepares or checks; returns (stdout, stderr)."""
        env = dict(os.environ, KAFKA_BROKER=self.brokers, **environment)
        done = subprocess.run(command, input=input, capture_output=True, text=True, env=env)
        if done.returncode != 0:
            gone = "".join(f"\nthe server {name} (pid {pid}) has ended: see {self.data / name}/log" for name, pid in self.pids.items()
                           if not Path(f"/proc/{pid}").exists())
            raise Trouble(f"{' '.join(command)}\n{done.stdout}{done.stderr}{gone}")
        return done.stdout, done.stderr

    def sql(self, text):
        """One row of PostgreSQL, as a list of texts."""
        out, _ = self.run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.database_url, "-c", text)
        return out.strip().split("|")

    def reset_database(self, users):
        """The tables of migrations/, empty, with a dimension; nothing left for the server to do."""
        self.sql("DROP SCHEMA IF EXISTS poundlock CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        self.run(self.poundlock, "migrate", "--dir", str(ROOT / "migrations"), "--database-url", self.database_url)
        self.sql(f"""INSERT INTO users SELECT n, 'user ' || n, 'user' || n || '@example.test',
                     (ARRAY['north', 'central', 'south'])[1 + n % 3], now() FROM generate_series(1, {users}) n""")
        self.sql("VACUUM ANALYZE users")
        self.sql("CHECKPOINT")

    def create_topic(self, topic, partitions=PARTITIONS):
        self.generate(topic, 0, "--partitions", str(partitions))

    def generate(self, topic, count, *flags):
        """`count` events, as fast as it can unless the flags say otherwise; returns what the generator says of them."""
        flags = flags if "--rate" in flags else ("--rate", "0", *flags)
        return self.run(self.poundlock, "generate", "--create-topic", "--topic", topic, "--count", str(count), *flags)[1]

    def count_topic(self, topic):
        """Records of a topic. Its offsets cannot be subtracted: the marks of transactions take some."""
        query = "SELECT count(*) FROM records"
        project = ROOT / "benches" / "projects" / "records"
        out, _ = self.run(self.poundlock, "sql", str(project), "--format", "csv", "-c", query, KAFKA_TOPIC=topic)
        return int(out.split()[1])

    def duckdb(self, query):
        """The one value of a query: Parquet is read by something other than the engine."""
        # On stdin: the names of a thousand files are longer than an argument may be.
        return self.run(PYTHON, "-c", "import duckdb, sys; print(duckdb.execute(sys.stdin.read()).fetchone()[0])", input=query)[0]

    def count_lake(self, folder):
        """Rows of all files below a folder; of a Delta table, of those that count by its log. Flink's have no suffix; what begins with a
        dot or underscore is none yet."""
        files = [file for file in Path(folder).rglob("*") if file.is_file() and file.name[0] not in "._"]
        for log in Path(folder).rglob("_delta_log"):
            uris = "import deltalake, sys; print(*deltalake.DeltaTable(sys.argv[1]).file_uris(), sep='\\n')"
            out, _ = self.run(PYTHON, "-c", uris, log.parent)
            files = [file for file in files if log.parent not in file.parents]
            files += [unquote(uri).removeprefix("file://") for uri in out.split("\n") if uri]
        return self.count_rows(files)

    def count_rows(self, files):
        files = [str(file) for file in files]
        return int(self.duckdb(f"SELECT count(*) FROM read_parquet({files})")) if files else 0
