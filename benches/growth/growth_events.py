"""Events with knobs that `poundlock generate` does not have, as lines for kcat. Plain arithmetic instead of chance: what is
in a topic is known without counting. As a program, writes them to stdout: events.py COUNT KEYS BYTES DISORDER BAD RATE"""
import datetime
import sys

START = datetime.datetime(2025, 1, 1)
# Less than the watermark's delay in queries/: out of order, and not late.
DISORDER_US = 25_000_000
OPTIONAL = ',"product_id":1234,"device_type":"mobile","location":"Da Nang","user_segment":"loyal","ip_address":"10.20.30.40"'
NOTE = ',"note":""'


def is_bad(number, share):
    return number * 7919 % 1000 < share * 1000


def bad_count(count, share):
    """The pattern repeats after 1,000 events, as 7919 has no factor in common with it."""
    return count // 1000 * sum(is_bad(number, share) for number in range(1000)) + sum(is_bad(number, share) for number in range(count % 1000))


def tail(size):
    """So many bytes that end an event: the fields that may be missing if there is room, then one that the project does not
    declare, then blanks."""
    text = OPTIONAL if size > len(OPTIONAL) else ""
    if size > len(text) + len(NOTE):
        text += NOTE[:-1] + "x" * (size - len(text) - len(NOTE) - 1) + '"'
    return text.ljust(size - 1) + "}"


def lines(count, keys, size, disorder, bad, rate):
    """`size`: bytes an event, exactly; `disorder`: the share of events that come up to 25 s after younger ones; `bad`: the share
    that is not JSON; `rate`: events a second of event time."""
    width = len(str(keys))
    rest = tail(size - len(f'{{"user_id":{keys},"action":"view","timestamp":"2025-01-01T00:00:00.000000","device_id":"device_12345"'))
    second, prefix = None, ""
    for number in range(count):
        if bad and is_bad(number, bad):
            yield f"not json #{number}".ljust(size, ".") + "\n"
            continue
        micros = number * 1_000_000 // rate
        if disorder and number * 104_729 % 1000 < disorder * 1000:
            micros -= number * 65_537 % DISORDER_US
        whole = micros // 1_000_000
        if whole != second:
            second = whole
            prefix = (START + datetime.timedelta(seconds=whole)).isoformat()
        # Each key once before any comes again: the multiplier is prime, and no factor of a number of keys.
        key = 1 + number * 2_654_435_761 % keys
        yield (f'{{"user_id":{key:<{width}},"action":"view","timestamp":"{prefix}.{micros % 1_000_000:06d}",'
               f'"device_id":"device_{10000 + number % 90000}"{rest}\n')


def main(count, keys, size, disorder, bad, rate):
    batch = []
    for line in lines(int(count), int(keys), int(size), float(disorder), float(bad), int(rate)):
        batch.append(line)
        if len(batch) == 10_000:
            sys.stdout.write("".join(batch))
            batch.clear()
    sys.stdout.write("".join(batch))


if __name__ == "__main__":
    main(*sys.argv[1:])
