"""What was measured as tables for docs/performance.md, and the verdict."""
from axes import AXES, COST, MEMORY, TIMES_MAX
from report import number
from measure import say

# A minute differs from the next by less on a quiet machine. What is kept of old batches has its full length when the early ones are
# measured, so any growth would be in what nobody has bounded, and that is 20 times longer at the end.
TREND_MAX = 1.25


def row(*cells):
    say(f"| {' | '.join(str(cell) for cell in cells)} |")


def head(*titles):
    say("")
    row(*titles)
    row(*["---"] * len(titles))


def axes(results):
    for name in dict.fromkeys(line["axis"] for line in results):
        lines = [line for line in results if line["axis"] == name]
        by_byte, live = AXES[name].by_byte, any("engine_cpu_ms_per_batch" in line for line in lines)
        head(name, "events", "engine µs an event", *["ns a byte"] * by_byte, *["ms a batch"] * live,
             "× a byte of the first judged" if by_byte else "× the cheapest judged", f"within {TIMES_MAX}×", "events/s", "RSS, MB", "× the least", "rows a batch")
        for line in lines:
            value = line["value"] if isinstance(line["value"], str) else f"{line['value']:,}"
            row(value, f"{line['events']:,}", f"{line[COST]:.2f}", *[f"{line[COST] * 1e3 / line['bytes_per_event']:.2f}"] * by_byte,
                *[line.get("engine_cpu_ms_per_batch", "")] * live, "" if line["times"] is None else f"{line['times']:.1f}",
                {None: "not judged", True: "yes", False: "**no**"}[line["within_2x"]],
                f"{line['events_per_s_after_start']:,}", f"{line[MEMORY]:.0f}",
                "" if line["memory_times"] is None else f"{line['memory_times']:.1f}", f"{line['rows_per_batch']:,}")
        say(f"\n{AXES[name].note}")
    judged = [line for line in results if line["within_2x"] is not None]
    beyond = [f"{line['axis']} {line['value']} ({line['times']:.1f}×)" for line in judged if not line["within_2x"]]
    if judged:
        say(f"\nwithin {TIMES_MAX}×: {len(judged) - len(beyond)} of {len(judged)}; beyond: {', '.join(beyond) or 'none'}; "
            f"{len(results) - len(judged)} do other work and are not judged")
        large = [f"{line['axis']} {line['value']} ({line['memory_times']:.1f}×)" for line in judged if line["memory_times"] > TIMES_MAX]
        say(f"memory beyond {TIMES_MAX}× the least of its axis: {', '.join(large) or 'none'}")


def history(figures):
    trend(f"{figures['batches']:,} batches", ["early", "late"], [figures["early"], figures["late"]], figures["late_times"])
    say("\nMeans of a tenth of the batches each: the early ones begin when windows close and old records are removed, two minutes after the start.")
    trend("a week", list(figures["stands"]), list(figures["stands"].values()), figures["week_times"])
    say("\nMedians of three. Judged is the last column against the one before; in the new project windows do not close yet. `start_s`: from the "
        "start of the program until it is running, after a clean end; `restart_s`: after a kill within a batch, with lower limits, so that every "
        "sink is asked for it. What a week adds to the tables that "
        "the project itself fills in the database is not in it.")
    times = {**figures["late_times"], **{f"{name} with a week's files": value for name, value in figures["week_times"].items()}}
    grows = [f"{name} ({value}×)" for name, value in times.items() if value > TREND_MAX]
    say(f"\nwithin {TREND_MAX}×: {len(times) - len(grows)} of {len(times)}; grows: {', '.join(grows) or 'nothing'}")


def trend(corner, titles, columns, times):
    head(corner, *titles, "times", f"within {TREND_MAX}×")
    for name in columns[-1]:
        judged = times.get(name)
        row(f"`{name}`", *(number(column[name]) for column in columns), "" if judged is None else judged,
            "" if judged is None else "yes" if judged <= TREND_MAX else "**no: it grows**")
