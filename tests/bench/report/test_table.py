"""Cells of tables."""

from __future__ import annotations

import pytest

from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.report import table
from tests.bench import made


def test_a_difference_has_the_rate_of_the_difference() -> None:
    case = AttentionCase("append", Shape(16, 4096))
    for beyond, shown in (
        ([1e-4, 2e-4, 3e-4], f"{case.work(None).bytes / 2e-4 / 1e6:.3g} MB/s"),
        ([-2e-4, -1e-4, 1e-4], ""),
    ):
        assert table.rate(made.row(case, "ours cpu, append", 1.0, beyond=beyond)) == shown


@pytest.mark.parametrize(
    ("share", "shown"), [(None, ""), (0.873, "87"), (1.0, "100"), (0.0471, "4.7"), (2.34e-4, "0.023")]
)
def test_small_shares_are_not_shown_as_nothing(share: float | None, shown: str) -> None:
    assert table.percent(share) == shown
