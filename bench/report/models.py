"""Whole models' results as Markdown: tables of training, generation and preparation, and what to think of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from bench.harness import units
from bench.harness.results import Row, Run
from bench.harness.units import spread
from bench.report.table import markdown

PAPER = (
    "The paper (arXiv 2602.19816) compares with its full horizon under multi-head attention: two-scale takes 0.41 x "
    "the peak memory at about 1.36 x the tokens/s, 2 KV heads 0.29 to 0.36 x at 1.18 x. It differs in size (inferred: "
    "horizons of up to 32,768 tokens, tens of millions of parameters, 8 heads), in hardware (a GPU) and in its "
    "attention: compare directions, not digits. Peak memory here counts weights, gradients, the optimiser's moments, "
    "activations and the recurrent state. The shorter the horizons, the less the state matters."
)

REAL_TIME = (
    "Real time is 42 tokens/s per listener, the average of recorded piano music; its densest moments need 160 tokens/s."
)


def lines(run: Run) -> list[str]:
    """Tables and notes of a run of one of the models' commands."""
    return SUMMARIES[run.command]([row for row in run.rows if row.status == "timed"])


def train(rows: Sequence[Row]) -> list[str]:
    """By schedule and attention, with the ratios that the paper reports."""
    header = ("schedule", "attention", "tokens/s", "x full", "peak memory", "x full", "recurrent state", "x full")
    made = []
    for (size, lanes, segment), group in groupby(rows, lambda row: itemgetter("size", "lanes", "segment")(row.fields)):
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
        title = f"Training `{size}`, {units.counted(lanes, 'lane')}, segments of {segment} tokens."
        made += [title, "", *markdown(header, cells, left=2), ""]
    return [*made, PAPER]


def _ratio(row: Row, name: str) -> str:
    """Against the full schedule with the same attention."""
    against = row.extra.get("against_full", {}).get(name)
    if against is None:
        return "1"
    return f"{against[1] if isinstance(against, list) else against:.2f}"


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
    made = ["Generation with full memories. A step makes one token per listener."]
    made += ["50 %, 95 % and 99 % of the steps took no longer than shown.", ""]
    made += [*markdown(header, cells, left=2), "", REAL_TIME]
    watched = [row for row in rows if not row.fields["full"]]
    if watched:
        full = units.counted(watched[0].extra["full_after"], "token")
        header = ("engine", *(units.counted(tokens, "token") for tokens, _ in watched[0].extra["resident"]))
        cells = [(row.contender, *(units.size(size or 0) for _, size in row.extra["resident"])) for row in watched]
        made += [
            "",
            f"Memory of the process that plays `{watched[0].fields['size']}`. The longest ring is full after {full}.",
            "",
            *markdown(header, cells, left=1),
        ]
    return made


def prepare(rows: Sequence[Row]) -> list[str]:
    """Pieces and tokens a second of every kind of work."""
    cells = [
        (
            row.case,
            row.contender,
            spread(row.extra["pieces_per_second"], digits=1),
            spread(row.extra["tokens_per_second"]),
        )
        for row in rows
    ]
    header = ("work", "on", "pieces/s", "tokens/s")
    music = "Corpus preparation, of music that the built-in pianist plays."
    started = "As in `dsmr prepare`, processes start anew each time, and their start counts."
    return [music, "", *markdown(header, cells, left=2), "", started]


SUMMARIES = {"train": train, "generate": generate, "prepare": prepare}
