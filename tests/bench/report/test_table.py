"""Cells of tables."""

from __future__ import annotations

import pytest

from bench.harness.results import Row
from bench.report import table


def test_a_difference_has_the_rate_of_the_difference() -> None:
    row = Row("append", "case", {}, "ours cpu, append", "1", True, True, "timed", seconds=[1.0, 1.0, 1.0])
    row.work, row.beyond = {"flops": 0, "bytes": 3e4, "tokens": 16}, [1e-4, 2e-4, 3e-4]
    assert table.rate(row) == "150 MB/s"
    row.beyond = [-2e-4, -1e-4, 1e-4]
    assert table.rate(row) == ""


@pytest.mark.parametrize(
    ("share", "shown"), [(None, ""), (0.873, "87"), (1.0, "100"), (0.0471, "4.7"), (2.34e-4, "0.023")]
)
def test_small_shares_are_not_shown_as_nothing(share: float | None, shown: str) -> None:
    assert table.percent(share) == shown
