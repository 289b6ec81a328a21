#!/usr/bin/env python3
"""Makes sample_events.jsonl and users.csv, the same bytes every time: python3 data/make_samples.py

`random.Random(1).random()` is the only source of chance: its values are the same in every version of Python.
"""
import json
import random
from datetime import datetime, timedelta
from pathlib import Path

HERE = Path(__file__).parent
CHANCE = random.Random(1)
START = datetime(2026, 1, 1)
ACTIONS = ["view", "click", "search", "add_to_cart", "remove_from_cart", "purchase", "login", "logout"]
DEVICES = ["mobile", "desktop", "tablet", "smart_tv", "wearable", "other"]
PLACES = ["Hanoi", "Ho Chi Minh City", "Da Nang", "Hue", "Can Tho", "Nha Trang", "other"]
SEGMENTS = ["new", "loyal", "promo_hunter", "high_value", "other"]
SPAMMERS = [10, 123, 455, 789, 999]  # they click far more than anybody else: the anomalies to be found
FIRST = ["An", "Binh", "Chi", "Dung", "Giang", "Hoa", "Khanh", "Lan", "Minh", "Ngoc"]
LAST = ["Nguyen", "Tran", "Le", "Pham", "Hoang", "Vu", "Dang", "Bui", "Do", "Ngo"]
REGIONS = ["north", "central", "south"]


def below(n):
    return int(CHANCE.random() * n)


def pick(values):
    return values[below(len(values))]


def event(number):
    spam = CHANCE.random() < 0.4
    moment = START + timedelta(milliseconds=100 * number)
    return {
        "user_id": pick(SPAMMERS) if spam else 1 + below(1000),
        "product_id": 1000 + below(1000),
        "action": "click" if spam else pick(ACTIONS),
        "timestamp": moment.isoformat(timespec="milliseconds"),
        "device_id": f"device_{10000 + below(90000)}",
        "device_type": pick(DEVICES),
        "location": pick(PLACES),
        "user_segment": "promo_hunter" if spam else pick(SEGMENTS),
        "ip_address": ".".join(str(below(256)) for _ in range(4)),
    }


def changed(**fields):
    return lambda e: json.dumps({**e, **fields})


def without(*names):
    return lambda e: json.dumps({k: v for k, v in e.items() if k not in names})


# One of each every 430 events or so: the table of data/README.md lists them in this order.
BAD = [
    # They do not decode.
    lambda e: "not json at all {{{",
    lambda e: json.dumps(e)[:60],
    lambda e: json.dumps([e]),
    lambda e: "",
    lambda e: "null",
    lambda e: json.dumps(e) + ' {"user_id": 1}',
    changed(user_id="forty-two"),
    changed(user_id=1.5),
    changed(user_id=9223372036854775808),
    changed(timestamp="yesterday at noon"),
    changed(timestamp="2026-02-30T00:00:00"),
    changed(user_id={"id": 7}),
    lambda e: json.dumps(e)[:-1] + ', "user_id": 7}',
    lambda e: json.dumps({**e, "product_id": float("nan")}),
    lambda e: json.dumps(e)[:-1] + ', "extra": ' + "[" * 200 + "]" * 200 + "}",
    lambda e: json.dumps(e).encode().replace(b'"action": "', b'"action": "\xff'),
    # They decode, and break one rule.
    without("user_id"),
    changed(user_id=0),
    changed(user_id=-7),
    without("action"),
    changed(action=None),
    changed(action="teleport"),
    without("timestamp"),
    without("device_id"),
    # They break several.
    changed(user_id=-1, action="teleport"),
    without("user_id", "action", "timestamp", "device_id"),
    lambda e: "{}",
]

lines, previous = [], None
for number in range(1000):
    fine = event(number)
    if number % 16 == 13:  # 62 of them: each kind at least twice
        lines.append(BAD[number // 16 % len(BAD)](fine))
    elif number % 250 == 100:  # 4 of them: the event before, produced again
        lines.append(json.dumps(previous))
    else:
        lines.append(json.dumps(fine))
        previous = fine
records = [line if isinstance(line, bytes) else line.encode() for line in lines]
(HERE / "sample_events.jsonl").write_bytes(b"".join(record + b"\n" for record in records))

with (HERE / "users.csv").open("w", encoding="utf-8", newline="\n") as users:
    users.write("user_id,name,email,region,created_at\n")
    for user in range(1, 1001):
        name = f"{pick(FIRST)} {pick(LAST)}"
        email = f"{name.lower().replace(' ', '.')}.{user}@example.com"
        created = datetime(2024, 1, 1) + timedelta(minutes=below(2 * 365 * 24 * 60))
        users.write(f"{user},{name},{email},{pick(REGIONS)},{created.isoformat()}\n")
