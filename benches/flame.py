"""Where the CPU time of one case goes: `perf` beside it, its stacks as a flame graph, the costliest functions on stderr.

flame.py CASE: through `benches/run flame CASE`. Stacks are unwound from tables that every release build has; lines of the
source it has not. With DOCS set the drawing goes to docs/ too.
"""
import html
import os
import re
import subprocess
import sys
from collections import Counter

from bench import origin, prepare
from measure import interruptible, say
from ours import CASES
from servers import ROOT

WIDTH, ROW, CHARACTER = 1200, 17, 7  # px; no monospace font of 11 px is wider
LEAST, BYTES_MAX = 0.001, 400_000  # share of all samples that is still drawn: more, until the drawing is small enough
HASH = re.compile(r"::h[0-9a-f]{16}$")
# Frames that only call the next one: of the runtime, of threads, of closures, of what is polled.
WRAPPER = re.compile(
    r"^(_start|start_thread|clone3?|__clone\w*|__libc_start\w*|main|\?|\[unknown\]|std::(rt|sys|panic|panicking|thread)\b.*|__rust_\w+|tokio::.*"
    r"|<?(core|alloc|std|futures\w*|tracing)::(ops::function|panic|boxed|future|pin|task|stream|instrument|iter|thread)\b.*"
    r"|<.* as (core|futures\w*|tokio)::[^>]*>::(poll|poll_next|call_once|call_mut|call))$")
# Where the kernel begins: what it does then is one frame.
KERNEL = re.compile(r"^(asm_\w+|entry_SYSCALL\w+)$")
STYLE = """
text { fill: #1f2328 } .page { fill: #fff } .title { font-size: 14px }
.ours { fill: #a9cdf7 } .a { fill: #f8d3a2 } .b { fill: #f5c08f } .c { fill: #f2dd9e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 }
  .ours { fill: #1f4f87 } .a { fill: #6b4a20 } .b { fill: #74401c } .c { fill: #5c4c18 }
}
"""


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
    of = origin(bench, 0)
    title = f"poundlock {of['commit']}, {of['at'][:10]}, case {case}: share of CPU time by stack"
    drawings = [bench.work / f"flame-{case}.svg", *[ROOT / "docs" / f"flame-{case}.svg"] * bool(os.environ.get("DOCS"))]
    drawing = small(stacks, title)
    for svg in drawings:
        svg.write_text(drawing)
    recording.unlink()
    costliest(stacks)
    print(*drawings, sep="\n")


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


def small(stacks, title):
    """The drawing, without what only calls the next frame, and with as many of the thin stacks as its size allows."""
    plain = Counter()
    for (thread, *frames), samples in stacks.items():
        plain[thread, *telling(frames)] += samples
    least = LEAST
    while len(drawing := draw(plain, title, least)) > BYTES_MAX:
        least *= 1.5
    return drawing


def telling(frames):
    kept = []
    for frame in frames:
        name = short(frame)
        if not (WRAPPER.match(frame) or WRAPPER.match(name) or kept[-1:] == [name]):
            kept.append(name)
        if KERNEL.match(frame):
            break
    return kept


def short(name):
    """Without the types in its angle brackets, but for what a method is of: `<T as Trait<U>>::f` is `T::f`. A closure is its function."""
    name = re.sub(r"^<(.*?)(?: as .*)?>::(?=[^>]*$)", r"\1::", name)
    while (shorter := re.sub(r"(::)?<[^<>]*>|(::\{\{[\w.]+\}\})+$", "", name)) != name:
        name = shorter
    return name[:100]


def draw(stacks, title, least):
    total = sum(stacks.values())
    tree = {}
    for stack, samples in stacks.items():
        level = tree
        for name in stack:
            node = level.setdefault(name, [0, {}])
            node[0] += samples
            level = node[1]
    boxes, depth_max = [], 0
    waiting = [(tree, 0.0, 0)]
    while waiting:
        level, x, depth = waiting.pop()
        for name, (samples, below) in sorted(level.items()):
            share = samples / total
            if share >= least:
                boxes.append((x * WIDTH, depth, share * WIDTH, name, share))
                depth_max = max(depth_max, depth)
                waiting.append((below, x, depth + 1))
            x += share
    height = (depth_max + 1) * ROW + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
           f'<style>{STYLE}</style><rect class="page" width="100%" height="100%"/>',
           f'<text class="title" x="4" y="18">{html.escape(title)}, {total:,} samples</text>']
    for x, depth, width, name, share in boxes:
        y = height - (depth + 1) * ROW
        # The same function has the same colour everywhere.
        colour = "ours" if "poundlock" in name else "abc"[sum(name.encode()) % 3]
        room = int((width - 5) / CHARACTER)
        label = name if len(name) <= room else f"…{name[1 - room:]}" if room > 3 else ""
        text = f'<text x="2" y="12">{html.escape(label)}</text>' if label else ""
        # A drawing within the drawing cuts off what a wide font lets stand out.
        out.append(f'<svg x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}"><title>{html.escape(name)} {share:.1%}</title>'
                   f'<rect class="{colour}" width="100%" height="100%"/>{text}</svg>')
    return "\n".join([*out, "</svg>\n"])


if __name__ == "__main__":
    interruptible(main, sys.argv[1])
