"""What a topic of `poundlock generate` holds: the generator once more, in another language, and its events counted.

So that a case is judged by something other than the engine: a fast run that is wrong fails. The order of the random
bits is that of src/connector/kafka/generator.rs.
"""
import json
import statistics
from collections import Counter, defaultdict

MASK = (1 << 64) - 1
SPAM_USERS = (10, 455, 789, 123, 999)
# What is wrong with a broken record, by its kind.
KINDS = ("not JSON", "empty", "no user_id", "user_id is text", "action is null", "timestamp is text", "not UTF-8", "cut off", "in a list")
UNDECODABLE = [kind for kind in KINDS if kind not in ("no user_id", "action is null")]
EVENT_RATE = 10_000  # per second of event time
START = "2025-01-01T00:00:00"  # a multiple of every window's slide since 1970


def random(state):
    """SplitMix64."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def records(count, seed=1, users=1_000, spam_share=0.4, invalid_share=0.01):
    """(user, None) of a valid record, (None, kind) of a broken one."""
    spam, invalid = int(spam_share * 2**32), int(invalid_share * 2**32)
    word = random(seed).__next__
    for _ in range(count):
        a, b, c = word(), word(), word()
        if (b & 0xFFFFFFFF) < invalid:
            kind = (c >> 40) % len(KINDS)
            if kind > 1:
                word()  # Of the address, which the first two kinds do not reach.
            yield None, KINDS[kind]
            continue
        word()
        wide = a >> 32
        yield (SPAM_USERS[wide % 5] if (a & 0xFFFFFFFF) < spam else 1 + wide % users), None


def valid(count, ends=None):
    """How many of the first `count` records are valid; `ends`, of those before these offsets: {partition: offset}."""
    found = 0
    for number, (_, kind) in enumerate(records(count)):
        # The generator takes the partitions in turn.
        if kind is None and (ends is None or number // len(ends) < ends[number % len(ends)]):
            found += 1
    return found


def sliding(panes, length):
    """Windows of `length` panes, a new one each pane, from the counts per pane and user."""
    windows = defaultdict(Counter)
    for pane, counts in panes.items():
        for window in range(pane - length + 1, pane + 1):
            windows[window].update(counts)
    return windows


def tumbling(panes, length):
    windows = defaultdict(Counter)
    for pane, counts in panes.items():
        windows[pane // length].update(counts)
    return windows


def z_scores(counts):
    """As queries/30_anomalies.sql, of the users that are at least 2 deviations above the mean."""
    mean = round(statistics.fmean(counts.values()), 6)
    deviation = round(statistics.pstdev(counts.values()), 6)
    scores = (round((count - mean) / deviation, 4) for count in counts.values() if deviation and count > 5)
    return [score for score in scores if score >= 2.0]


def summary(windows):
    scores = [score for counts in windows.values() for score in z_scores(counts)]
    return {
        "rows": sum(len(counts) for counts in windows.values()),
        "events": sum(counts.total() for counts in windows.values()),
        "anomalies": len(scores),
        "alerts": sum(score > 3 for score in scores),
    }


def expected(count, cache=None):
    """Counts of a topic made with START and EVENT_RATE: records by kind, and each windowed view."""
    if cache and cache.exists():
        return json.loads(cache.read_text())
    panes, broken = defaultdict(Counter), Counter()
    for number, (user, kind) in enumerate(records(count)):
        if kind:
            broken[kind] += 1
        else:
            panes[number // (5 * EVENT_RATE)][user] += 1
    found = {
        "events": count,
        "valid": count - broken.total(),
        "invalid": broken.total(),
        "undecodable": sum(broken[kind] for kind in UNDECODABLE),
        "kinds": dict(broken),
        "5s": summary(panes),
        "1min": summary(tumbling(panes, 12)),
        "1min-hop": summary(sliding(panes, 12)),
    }
    if cache:
        cache.write_text(json.dumps(found))
    return found
