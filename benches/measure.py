"""One command, measured: CPU and memory of all its processes, the CPU of the servers beside it, what it said and when.

CPU time is what to compare: on a shared machine wall time says more of the neighbours. A program tells when its start is
over, by a line of its log or of its output; `cpu_at` then splits what went before from the rest.
"""
import json
import os
import signal
import subprocess
import sys
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_S = 0.25
# PSS is summed up by the kernel page by page, under a lock that the program wants too: rarely.
SAMPLES_PER_PSS = 4


def number(name, default):
    """A variable of the environment that is a whole number, perhaps with `_` in it."""
    text = os.environ.get(name) or str(default)
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise SystemExit(f"error: {name} is {text!r}, not a whole number") from None


def interruptible(main, *arguments):
    """Runs a bench and ends the program: after Ctrl-C or SIGTERM without a traceback, and with what it started ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(*arguments))
    except KeyboardInterrupt:
        say("interrupted: the lines above are complete, what was being measured is lost")
        sys.exit(130)


def say(text):
    """Progress: stdout is for the figures."""
    print(text, file=sys.stderr, flush=True)


class Stat:
    """/proc/PID/stat; CPU in seconds, that of ended and waited-for children apart."""

    def __init__(self, pid):
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(") ")[2].split()
        self.parent = int(fields[1])
        self.cpu = (int(fields[11]) + int(fields[12])) / TICKS
        self.children_cpu = (int(fields[13]) + int(fields[14])) / TICKS
        self.born = fields[19]
        self.rss = int(fields[21]) * PAGE


def stat(pid):
    try:
        return Stat(pid)
    except OSError:
        return None


def family(pid):
    """A process and all that descend from it, as {pid: Stat}."""
    children, stats = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := stat(entry)):
            stats[int(entry)] = found
            children.setdefault(found.parent, []).append(int(entry))
    members, waiting = {}, [pid]
    while waiting:
        member = waiting.pop()
        if member in stats:
            members[member] = stats[member]
            waiting += children.get(member, [])
    return members


def server_cpu(pid):
    """Of a server with all its processes, ended ones too. It must wait for its children, as PostgreSQL does."""
    return sum(member.cpu + member.children_cpu for member in family(pid).values())


def pss(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except OSError:  # It has ended, or the kernel does not let us.
        return 0


def machine_cpu():
    """Seconds that all processors together were busy; what the host took away is not in it."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, *_ = (int(ticks) for ticks in file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / TICKS


def pressure():
    """Seconds in which some task waited for a processor; None where the kernel does not count it."""
    try:
        with open("/proc/pressure/cpu") as file:
            return int(file.readline().rpartition("total=")[2]) / 1e6
    except OSError:
        return None


class Run:
    """A command that runs and is watched. Its output goes to a log; lines of it that are JSON objects are kept in `said`,
    as (seconds since the start, object)."""

    def __init__(self, command, log, env, servers=None, accepted=(0,)):
        self.accepted = accepted  # statuses that are no failure
        self.servers = servers or {}
        self.servers_before = {name: server_cpu(pid) for name, pid in self.servers.items()}
        self.machine_before, self.pressure_before, self.load_before = machine_cpu(), pressure(), os.getloadavg()[0]
        self.said, self.cpu_series, self.peak_rss, self.peak_pss = [], [], 0, 0
        self.by_process, self.changed, self.over = {}, threading.Condition(), threading.Event()
        self.command, self.log, self.gone = command, log, False
        self.began = time.time()
        # Peers count their own seconds from here.
        env = dict(env, BENCH_T0=repr(self.began))
        # A group of its own: Ctrl-C is for us, who then stop it.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self.read, self.watch)]
        for thread in self.threads:
            thread.start()

    def read(self):
        with open(self.log, "wb") as log:
            for line in self.process.stdout:
                at = time.time() - self.began
                log.write(line)
                log.flush()
                if not line.startswith(b"{"):
                    continue
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue
                self.sample()
                with self.changed:
                    self.said.append((at, fields))
                    self.changed.notify_all()

    def watch(self):
        samples = 0
        while not self.over.is_set():
            members = self.sample()
            if samples % SAMPLES_PER_PSS == 0:
                self.peak_pss = max(self.peak_pss, sum(pss(pid) for pid in members))
            samples += 1
            self.over.wait(INTERVAL_S)

    def sample(self):
        members = family(self.process.pid)
        with self.changed:
            for pid, found in members.items():
                self.by_process[pid, found.born] = found.cpu
            self.cpu_series.append((time.time() - self.began, sum(self.by_process.values())))
            self.peak_rss = max(self.peak_rss, sum(found.rss for found in members.values()))
        return members

    def cpu_at(self, seconds):
        """CPU that all its processes had used by then."""
        with self.changed:
            return max((cpu for at, cpu in self.cpu_series if at <= seconds + 0.02), default=0.0)

    def wait_until(self, condition, limit_s, what):
        """Waits for something it says: `condition` gets `said`."""
        deadline = time.monotonic() + limit_s
        with self.changed:
            while not condition(self.said):
                left = deadline - time.monotonic()
                if self.process.poll() is not None:
                    raise Failed(f"it ended before {what}", self)
                if left <= 0:
                    raise Failed(f"no {what} within {limit_s} s", self)
                self.changed.wait(min(left, 0.5))

    def stop(self):
        """As a user does with Ctrl-C; it finishes what it has in hand."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        """It and its children, those too that outlive it: they are a group of their own."""
        if self.gone:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.gone = True

    def finish(self):
        """Waits for its end and returns the figures that do not depend on what it does."""
        try:
            _, status, usage = os.wait4(self.process.pid, 0)
        finally:
            self.kill()
        self.gone = True
        wall = time.time() - self.began
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.over.set()
        for thread in self.threads:
            thread.join()
        if self.process.returncode not in self.accepted:
            raise Failed(f"it ended with status {self.process.returncode}", self)
        # The kernel's own account is exact, but knows only of children that were waited for.
        self.cpu = max(sum(self.by_process.values()), usage.ru_utime + usage.ru_stime)
        self.wall = wall
        servers = {name: server_cpu(pid) - self.servers_before[name] for name, pid in self.servers.items()}
        others = machine_cpu() - self.machine_before - self.cpu - sum(servers.values())
        waited = pressure()
        return {
            "wall_s": round(wall, 3),
            "engine_cpu_s": round(self.cpu, 3),
            **{f"{name}_cpu_s": round(cpu, 2) for name, cpu in servers.items()},
            "others_cpu_s": round(max(others, 0.0), 2),
            "peak_rss_mb": round(max(self.peak_rss, usage.ru_maxrss * 1024) / 1e6, 1),
            "peak_pss_mb": round(self.peak_pss / 1e6, 1),
            "load": round(self.load_before, 2),
            "cpu_pressure": None if waited is None else round((waited - self.pressure_before) / wall, 3),
        }


class Failed(Exception):
    """A command that did not do what it should; shows the end of its log."""

    def __init__(self, what, run):
        with open(run.log, errors="replace") as file:
            tail = "".join(file.readlines()[-12:])
        super().__init__(f"{what}: {' '.join(run.command)}\n{tail}    the whole log: {run.log}")
