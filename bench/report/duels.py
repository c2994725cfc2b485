"""Duels: which of ours stands for us in a case, which peer is the best, and who is ahead by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.results import Row, Run


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
        return f"{self.ours.task} {self.ours.case}, {self.run.place}"


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
    return Duel(run, base, peer, tuple(peer.against[base.contender]))


def own_duel(run: Run, rows: Sequence[Row]) -> Duel | None:
    """Where there is no peer: the fastest of ours, as exact as the first of ours, against that; None if it is one."""
    alike = [row for row in rows if row.status == "timed" and row.ours and row.like_for_like]
    if len(alike) < 2:
        return None
    fastest = min(alike, key=lambda row: row.seconds[1])
    return Duel(run, fastest, alike[0], tuple(alike[0].against[fastest.contender])) if fastest is not alike[0] else None


def duels(runs: Sequence[Run]) -> list[Duel]:
    """Every duel of some runs, in their order."""
    found = [duel(run, rows) for run in runs for rows in grouped(run.rows).values()]
    return [one for one in found if one is not None]


def worst(all_duels: Sequence[Duel], count: int = 3) -> list[Duel]:
    """Those that we lose most clearly, or come closest to losing."""
    return sorted(all_duels, key=lambda one: one.lead[1])[:count]
