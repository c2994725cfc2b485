"""What rows say together: which of ours stands for us, the best peer, who is ahead by how much, and the roofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.machine import Peaks
from bench.harness.results import Row, Run

Roofs = dict[tuple[str, int], Peaks]
"""The best that a machine was seen to do, by device and number of threads."""


@dataclass(frozen=True)
class Duel:
    """Ours against the best peer that computes the same thing; `lead` = peer's time / ours: 20 %, median, 80 %."""

    run: Run
    ours: Row
    peer: Row
    lead: tuple[float, float, float]

    @property
    def name(self) -> str:
        """`training B1-..., 2 threads`."""
        threads = f", {self.run.threads} thread{'s' * (self.run.threads > 1)}" if self.run.device == "cpu" else ""
        return f"{self.ours.task} {self.ours.case}{threads}"


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (task, case), in their order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.case), []).append(row)
    return groups


def base_of(rows: Sequence[Row]) -> Row | None:
    """Who stands for us: the first of ours that serves the case, the one that `impl=None` picks."""
    return next((row for row in rows if row.status == "timed" and row.ours and row.like_for_like), None)


def duel(run: Run, rows: Sequence[Row]) -> Duel | None:
    """The duel of one case's rows, or None where one side is missing."""
    base = base_of(rows)
    peers = [row for row in rows if row.status == "timed" and not row.ours and row.like_for_like]
    if base is None or not peers or run.command in ("append", "overhead"):  # those report differences, not times
        return None
    peer = min(peers, key=lambda row: row.against[base.contender][1])
    low, median, high = peer.against[base.contender]
    return Duel(run, base, peer, (low, median, high))


def duels(runs: Sequence[Run]) -> list[Duel]:
    """Every duel of some runs, in their order."""
    found = [duel(run, rows) for run in runs for rows in grouped(run.rows).values()]
    return [one for one in found if one is not None]


def worst(all_duels: Sequence[Duel], count: int = 3) -> list[Duel]:
    """Those that we lose most clearly, or come closest to losing."""
    return sorted(all_duels, key=lambda one: one.lead[1])[:count]


def roofs(runs: Sequence[Run]) -> Roofs:
    """The best of what one machine's runs measured at first (see `bench.harness.roof`) and of what anybody reached."""
    found: Roofs = {}
    for run in runs:
        flops, read = dict(run.peaks["flops"]), run.peaks["read"]
        for row in filter(_has_a_roof, run.rows):
            dtype, median = row.fields["dtype"], row.seconds[1]
            flops[dtype] = max(flops[dtype], row.work["flops"] / median)
            read = max(read, row.work["bytes"] / median)
        before = found.get((run.device, run.threads), Peaks({}, 0.0))
        best = {dtype: max(rate, before.flops.get(dtype, 0.0)) for dtype, rate in flops.items()}
        found[run.device, run.threads] = Peaks(best, max(read, before.read))
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
