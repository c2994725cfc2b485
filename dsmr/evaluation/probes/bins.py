"""Bins of what a probe found, by position, distance or index: means over the tokens of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsmr.evaluation.bootstrap import Interval, PieceSums
from dsmr.units import format_span


@dataclass(frozen=True)
class Bin:
    """Tokens from `start` to below `stop` (None: no end), counted as the probe says.

    `mean` in nats per token, with its 95 % interval over pieces (None: fewer than six pieces).
    """

    start: int
    stop: int | None
    tokens: int
    pieces: int
    mean: float
    interval: Interval | None

    @property
    def name(self) -> str:
        """Where it begins and ends, in words: 512-1k, or 32k+."""
        return format_span(self.start, self.stop)

    def to_dict(self, mean: str) -> dict[str, Any]:
        """Plain values for JSON, the mean by the name that the probe gives it."""
        values = dict(vars(self))
        return {mean: values.pop("mean"), **values}


def bins_with_tokens(sums: PieceSums, starts: Sequence[int], end: int | None) -> list[Bin]:
    """The bins of `sums`, which begin at `starts` and of which the last ends at `end`; empty ones are left out.

    The sums are of differences of NLLs, and what rounding alone leaves of one is shown as 0.
    """
    sums = sums.without_rounding
    rows = zip(
        starts,
        [*starts[1:], end],
        sums.tokens.tolist(),
        sums.pieces.tolist(),
        sums.mean.tolist(),
        sums.intervals(),
        strict=True,
    )
    return [each for each in (Bin(*row) for row in rows) if each.tokens]
