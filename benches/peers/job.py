"""What the jobs of Spark and Flink share: their arguments, the events' columns and rules, how they tell their times."""
import argparse
import json
import os
import signal
import time

BEGAN = float(os.environ.get("BENCH_T0", time.time()))
COLUMNS = ("user_id", "product_id", "action", "timestamp", "device_id", "device_type", "location", "user_segment", "ip_address")
# As queries/10_validate.sql.
ACTIONS = ("view", "click", "search", "add_to_cart", "remove_from_cart", "purchase", "login", "logout")
VALID = "user_id > 0 AND action IN ({}) AND `timestamp` IS NOT NULL AND device_id IS NOT NULL".format(
    ", ".join(f"'{action}'" for action in ACTIONS))
COUNT_MIN, Z_MIN = 5, 2.0


def arguments(engine, **more):
    """`raw`: valid events to Parquet, the others to the dead letters. `windows`: counts per user in windows of 5 s and 1 min
    to PostgreSQL. `whole`: both, valid events to PostgreSQL too, z-scores, alerts."""
    parser = argparse.ArgumentParser(description=engine)
    parser.add_argument("mode", choices=("raw", "windows", "whole"))
    parser.add_argument("--slide", type=int, default=60, help="seconds; of the windows of 1 minute (60: they do not overlap)")
    parser.add_argument("--live", action="store_true", help="until SIGTERM; else to the end of the topic as it is at the start")
    for name in ("brokers", "topic", "dead-letters", "alerts", "database", "jars", "work"):
        parser.add_argument(f"--{name}", required=True)
    for name, value in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, type=type(value))
    return parser.parse_args()


def seconds():
    """Since the program was started, its interpreter included."""
    return time.time() - BEGAN


def tell(**figures):
    print(json.dumps({name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}), flush=True)


class Stop:
    """Set by SIGTERM."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, *_):
        self.asked = True
