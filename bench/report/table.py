"""Rows on a terminal: with rich where it is installed, else as aligned text."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from bench.harness import units
from bench.harness.results import Row, Run
from bench.report.duels import Roofs, base_of, grouped, roofs, share

HEADER = ("contender", "median", "20 % - 80 %", "x ours", "rate", "% of roof", "")


def cells(run: Run, row: Row, base: str | None, machine: Roofs) -> tuple[str, ...]:
    """One line of a table; `base` names the contender of ours that ratios refer to."""
    if row.status == "weighed":
        return (row.contender, units.size(row.peak_bytes or 0), "", "", "", "", "")
    if row.status != "timed":
        return (row.contender, row.status, "", "", "", "", row.reason)
    low, median, high = row.seconds
    ratio = row.against.get(base, []) if base else []
    notes = [] if row.like_for_like else ["not like for like"]
    if row.beyond:
        notes = [f"{row.beyond[1] * 1e6:+.3g} us beyond it"]
    return (
        row.contender,
        units.seconds(median),
        f"{units.seconds(low)} - {units.seconds(high)}",
        f"{ratio[1]:.2f}" if ratio else ("1" if row.contender == base else ""),
        rate(row),
        percent(share(run, row, machine)),
        ", ".join(notes),
    )


def percent(share: float | None) -> str:
    """`87`, `0.023`: two digits; empty for None."""
    return "" if share is None else f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"


def rate(row: Row) -> str:
    """Tokens/s for models, FLOP/s where arithmetic is the work, bytes/s where moving is; of the difference, if any."""
    if "tokens_per_second" in row.extra:
        return f"{row.extra['tokens_per_second'][1]:,.0f} tokens/s"
    if not row.work:
        return ""
    median = row.beyond[1] if row.beyond else row.seconds[1]
    if median <= 0:  # a difference that noise hides
        return ""
    flops, moved = row.work["flops"] / median, row.work["bytes"] / median
    return f"{units.decimal(flops)}FLOP/s" if flops > 8 * moved else f"{units.decimal(moved)}B/s"


def unavailable(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Contenders that could not run, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.status == "unavailable" and row.contender not in reasons.setdefault(row.reason, []):
            reasons[row.reason].append(row.contender)
    return reasons


def show(run: Run) -> None:
    """Print every case as a table."""
    print(f"{run.title}: {run.machine['cpu'] if run.device == 'cpu' else run.machine['gpu']}, commit {run.commit}")
    if run.others is not None and run.steal is not None:
        print(f"other processes took {run.others:.1%} of the cores' time, other machines {run.steal:.1%}")
    for (task, case), rows in grouped(run.rows).items():
        base, machine = base_of(rows), roofs([run])
        work = next((row.work for row in rows if row.work and row.storage is None), {})
        title = f"{task} {case}"
        if work:
            counted = [f"{work['flops'] / 1e9:.4g} GFLOP"] * (work["flops"] > 0)
            counted += [units.size(work["bytes"])] * (work["bytes"] > 0)
            title += ": " + ", ".join(counted or [f"{work['tokens']:,.0f} tokens"])
        name = base.contender if base else None
        _print(title, [cells(run, row, name, machine) for row in rows if row.status != "unavailable"])
    for reason, names in unavailable(run.rows).items():
        print(f"unavailable, {reason}: {'; '.join(names)}")


def _print(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    if importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for i, name in enumerate(HEADER):
            table.add_column(name, justify="right" if 0 < i < len(HEADER) - 1 else "left")
        for line in lines:
            table.add_row(*line)
        Console(width=150).print(table)
        return
    widths = [max(len(line[i]) for line in (HEADER, *lines)) for i in range(len(HEADER))]
    print(f"\n{title}")
    for line in (HEADER, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
