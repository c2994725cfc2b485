"""What the models' results come to, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.harness import units
from bench.harness.results import Row, Run

PAPER = (
    "The paper (arXiv 2602.19816), against its full horizon with multi-head attention: two-scale 0.41 x peak memory "
    "and about 1.36 x tokens/s; 2 KV heads 0.29 to 0.36 x and 1.18 x. It differs in size (inferred: horizons of up to "
    "32,768 tokens, tens of millions of parameters, 8 heads), in hardware (a GPU) and in its attention: compare "
    "directions, not digits. Peak memory here counts weights, gradients, the optimiser's moments, activations and the "
    "recurrent state: the shorter the horizons, the less the state matters in it."
)

REAL_TIME = (
    "Real time is 42 tokens/s for each listener: recorded piano music on average; 160 keep up with its densest moments."
)


def lines(run: Run) -> list[str]:
    """Tables and notes of a run of one of the models' commands."""
    return SUMMARIES[run.command]([row for row in run.rows if row.status == "timed"])


def markdown(header: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """A table; all columns but the first two are numbers."""
    rule = ["---"] * 2 + ["---:"] * (len(header) - 2)
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *cells)]


def train(rows: Sequence[Row]) -> list[str]:
    """By schedule and attention, with the ratios that the paper reports."""
    header = ("schedule", "attention", "tokens/s", "x full", "peak memory", "x full", "recurrent state", "x full")
    made = []
    for size, group in _by(rows, lambda row: f"{row.fields['size']}, lanes: {row.fields['lanes']}").items():
        cells = [
            (
                row.fields["schedule"],
                row.contender,
                spread(row.extra["tokens_per_second"]),
                _ratio(row, "tokens_per_second"),
                units.size(row.peak_bytes or 0),
                _ratio(row, "peak_bytes"),
                units.size(row.extra["state_bytes"]),
                _ratio(row, "state_bytes"),
            )
            for row in group
        ]
        made += [f"Training, {size}, segments of {group[0].fields['segment']} tokens", "", *markdown(header, cells), ""]
    return [*made, PAPER]


def spread(quantiles: Sequence[float], digits: int = 0) -> str:
    """`1,234 (1,200 - 1,250)`: the median, and the 20 % and 80 % quantiles."""
    low, median, high = (f"{x:,.{digits}f}" for x in quantiles)
    return f"{median} ({low} - {high})"


def _ratio(row: Row, name: str) -> str:
    """Against the full schedule with the same attention."""
    against = row.extra.get("against_full", {}).get(name)
    if against is None:
        return "1"
    return f"{against[1] if isinstance(against, list) else against:.2f}"


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def generate(rows: Sequence[Row]) -> list[str]:
    """By model, lanes and engine; then what a process holds while music goes on."""
    header = ("model, listeners", "engine", "tokens/s", "x real time", "50 %", "95 %", "99 %", "recurrent state")
    cells = [
        (
            f"{row.fields['size']}, {row.fields['lanes']}",
            row.contender,
            spread(row.extra["tokens_per_second"]),
            f"{row.extra['real_time_factor']:.1f}",
            *(units.seconds(at) if (at := row.extra["latency"].get(p)) else "" for p in ("50", "95", "99")),
            units.size(row.extra["state_bytes"]),
        )
        for row in rows
        if row.fields["full"]
    ]
    made = ["Generation with full memories; latencies of a step, which makes a token for every listener", ""]
    made += [*markdown(header, cells), "", REAL_TIME, ""]
    for row in rows:
        if not row.fields["full"]:
            held = ", ".join(f"{tokens:,}: {units.size(size or 0)}" for tokens, size in row.extra["resident"])
            made.append(
                f"Held by the process after so many tokens, {row.fields['size']}, {row.contender} (the longest ring is "
                f"full after {row.extra['full_after']:,} and goes round): {held}"
            )
    return made


def prepare(rows: Sequence[Row]) -> list[str]:
    """Pieces and tokens a second of every kind of work."""
    cells = [
        (row.case, row.contender, spread(row.extra["pieces_per_second"], 1), spread(row.extra["tokens_per_second"]))
        for row in rows
    ]
    header = ("work", "on", "pieces/s", "tokens/s")
    started = "Processes are started anew each time, as `dsmr prepare` does; their start counts."
    return ["Corpus preparation, of music that the built-in pianist plays", "", *markdown(header, cells), "", started]


SUMMARIES = {"train": train, "generate": generate, "prepare": prepare}
