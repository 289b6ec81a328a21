"""Where the CPU time of one case goes: `perf` beside it, its stacks as a flame graph, the costliest functions on stderr.

flame.py CASE: through `benches/run flame CASE`. Stacks are unwound from tables that every release build has; lines of the
source it has not.
"""
import html
import re
import subprocess
import sys
from collections import Counter

from bench import prepare
from measure import say
from ours import CASES

WIDTH, ROW, LEAST = 1600, 17, 0.001  # px, px, share of all samples that is still drawn
HASH = re.compile(r"::h[0-9a-f]{16}$")


def main(case):
    if case not in CASES:
        raise SystemExit(f"error: no case {case}; there are: {' '.join(CASES)}")
    bench = prepare()
    recording = bench.work / f"flame-{case}.perf"
    bench.wrap = ["perf", "record", "-q", "-F", "199", "--call-graph", "dwarf,16384", "-o", str(recording), "--"]
    CASES[case](bench)
    stacks = fold(recording)
    # For other tools: one line a stack, frames by ';', then its samples.
    folded = bench.work / f"flame-{case}.folded"
    folded.write_text("".join(f"{';'.join(stack)} {samples}\n" for stack, samples in stacks.items()))
    svg = bench.work / f"flame-{case}.svg"
    svg.write_text(draw(stacks, f"poundlock, case {case}: share of CPU time by stack"))
    recording.unlink()
    costliest(stacks)
    say(f"\n{svg}")
    print(svg)


def fold(recording):
    """{(thread, outermost function, …, innermost): samples}."""
    script = ["perf", "script", "-i", str(recording), "--no-inline", "-F", "comm,ip,sym"]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
    stacks, thread, frames = Counter(), None, []
    for line in process.stdout:
        if not line.strip():
            if thread:
                stacks[thread, *reversed(frames)] += 1
            thread, frames = None, []
        elif line[0] not in " \t":
            thread = re.sub(r"[-:]?\d+$", "", line.strip())
        else:
            _, _, name = line.strip().partition(" ")
            frames.append(HASH.sub("", name) or "?")
    if process.wait() != 0:
        raise SystemExit(f"error: perf could not read {recording}")
    return stacks


def costliest(stacks):
    """Functions by the time in themselves, and by the time in all that they call."""
    total, own, whole = sum(stacks.values()), Counter(), Counter()
    for stack, samples in stacks.items():
        own[stack[-1]] += samples
        for name in set(stack[1:]):
            whole[name] += samples
    for title, counts in (("in the function itself", own), ("with all it calls, of our own", Counter(
            {name: samples for name, samples in whole.items() if "poundlock" in name}))):
        say(f"\n{title}")
        for name, samples in counts.most_common(25):
            say(f"{samples / total:6.1%}  {name[:140]}")


def draw(stacks, title):
    total = sum(stacks.values())
    tree = {}
    for stack, samples in stacks.items():
        level = tree
        for name in stack:
            node = level.setdefault(name, [0, {}])
            node[0] += samples
            level = node[1]
    rectangles, depth_max = [], 0
    waiting = [(tree, 0.0, 0)]
    while waiting:
        level, x, depth = waiting.pop()
        depth_max = max(depth_max, depth)
        for name, (samples, below) in sorted(level.items()):
            share = samples / total
            if share >= LEAST:
                rectangles.append((x * WIDTH, depth, share * WIDTH, name, share))
                waiting.append((below, x, depth + 1))
            x += share
    height = (depth_max + 2) * ROW + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="monospace" font-size="11">',
           f'<rect width="100%" height="100%" fill="#fff"/><text x="8" y="18" font-size="14">{html.escape(title)}, {total:,} samples</text>']
    for x, depth, width, name, share in rectangles:
        y = height - (depth + 1) * ROW
        # The same function has the same colour everywhere; ours are blue.
        hue = 210 if "poundlock" in name else 20 + hash_of(name) % 40
        label = html.escape(name if len(name) * 6.7 < width else name[-int(width / 6.7):] if width > 40 else "")
        out.append(f'<g><title>{html.escape(name)} {share:.2%}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" '
                   f'fill="hsl({hue},70%,{70 + hash_of(name) % 12}%)"/><text x="{x + 2:.1f}" y="{y + 12}">{label}</text></g>')
    return "\n".join([*out, "</svg>\n"])


def hash_of(name):
    """The same in every run, other than Python's own."""
    return sum(name.encode()) * 31 % 97


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
