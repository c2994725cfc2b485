"""Roofs of one machine, and the share of them that a row reaches."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness.results import Row, Run
from bench.harness.roof import Roof

Roofs = dict[tuple[str, int], Roof]
"""The best that a machine was seen to do, by device and number of threads."""


def roofs(runs: Sequence[Run]) -> Roofs:
    """The best of what one machine's runs measured at first (see `bench.harness.roof`) and of what anybody reached."""
    found: Roofs = {}
    for run in runs:
        flops, read = dict(run.roof["flops"]), run.roof["read"]
        for row in filter(_has_a_roof, run.rows):
            dtype, median = row.fields["dtype"], row.seconds[1]
            flops[dtype] = max(flops[dtype], row.work["flops"] / median)
            read = max(read, row.work["bytes"] / median)
        before = found.get((run.device, run.threads), Roof({}, 0.0))
        best = {dtype: max(rate, before.flops.get(dtype, 0.0)) for dtype, rate in flops.items()}
        found[run.device, run.threads] = Roof(best, max(read, before.read))
    return found


def share(run: Run, row: Row, machine: Roofs) -> float | None:
    """The least time that the row's work needs under its machine's roof / its median; None where nothing bounds it."""
    if not _has_a_roof(row):
        return None
    roof = machine[run.device, run.threads]
    return max(row.work["flops"] / roof.flops[row.fields["dtype"]], row.work["bytes"] / roof.read) / row.seconds[1]


def _has_a_roof(row: Row) -> bool:
    """Work that is counted, all in the time that was measured, and not over what lies in a cache."""
    counted = row.work.get("flops", 0) + row.work.get("bytes", 0) > 0
    return row.status == "timed" and counted and not row.beyond and not row.fields.get("hot") and "dtype" in row.fields
