"""Tables: a row's cells, on a terminal and as Markdown."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence

from bench.harness import units
from bench.harness.results import Row, Run
from bench.report.duels import base_of, grouped
from bench.report.roofs import Roofs, roofs, share

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


def compared(run: Run, machine: Roofs) -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """The cells of every case, by its task and name; who is unavailable is left out."""
    found = {}
    for case, rows in grouped(run.rows).items():
        base = base_of(rows)
        name = base.contender if base else None
        found[case] = [cells(run, row, name, machine) for row in rows if row.status != "unavailable"]
    return found


def disturbance(run: Run) -> list[str]:
    """The sentence about others' share of the machine, where the system tells."""
    if run.others is None or run.steal is None:
        return []
    return [f"Other processes took {run.others:.1%} of the cores' time, other machines {run.steal:.1%}."]


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], left: int | None = None) -> list[str]:
    """A Markdown table, its columns but the first `left` (None: all) aligned at the right.

    Ours, because `python -m bench gpu` writes it where nothing but PyTorch is installed.
    """
    rule = "".join("---|" if left is None or i < left else "---:|" for i in range(len(header)))
    return [f"| {' | '.join(header)} |", f"|{rule}", *(f"| {' | '.join(line)} |" for line in lines)]


def show(run: Run) -> None:
    """Print every case as a table."""
    print(f"{run.title}: {run.machine['cpu'] if run.device == 'cpu' else run.machine['gpu']}, commit {run.commit}")
    print(*disturbance(run), sep="\n")
    for (task, case), lines in compared(run, roofs([run])).items():
        rows = grouped(run.rows)[task, case]
        work = next((row.work for row in rows if row.work and row.storage is None), {})
        title = f"{task} {case}"
        if work:
            counted = [f"{work['flops'] / 1e9:.4g} GFLOP"] * (work["flops"] > 0)
            counted += [units.size(work["bytes"])] * (work["bytes"] > 0)
            title += ": " + ", ".join(counted or [f"{work['tokens']:,.0f} tokens"])
        _print(title, lines)
    for reason, names in unavailable(run.rows).items():
        print(f"unavailable, {reason}: {'; '.join(names)}")


def _print(title: str, lines: Sequence[tuple[str, ...]]) -> None:
    """With rich where it is installed; a GPU that was rented for ten minutes has PyTorch and nothing else."""
    if not importlib.util.find_spec("rich"):
        print("", title, *markdown(HEADER, lines), sep="\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="right" if 0 < i < len(HEADER) - 1 else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=150).print(table)
