"""Roofs: what a machine can do at best, and what share of it a row reaches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.harness import results, roof
from bench.harness.results import FOLDER, Row, Run
from bench.report import duels as summary
from bench.report import table

CASE = AttentionCase("forward", Shape(512, 1024))
RUN = Run("attention", "cpu", 1, {}, "a", {}, "abc", {"flops": {"fp32": 1e11}, "read": 2e10}, False)


def timed(seconds: float, case: AttentionCase = CASE, contender: str = "ours cpu") -> Row:
    row = Row(case.task, case.name, case.fields, contender, "1", True, True, "timed", seconds=[seconds] * 3)
    row.work = case.work(None)._asdict()
    return row


def test_the_program_measures_this_machine() -> None:
    rates = roof.measure(threads=1, seconds=0.1, cache_bytes=2**20)
    assert set(rates) == {"fp32", "bf16", "read"}
    assert rates["bf16"] >= rates["fp32"] > rates["read"] / 4 > 0  # a float read costs more than an addition to it


def test_without_a_compiler_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    roof._program.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="expected a compiler"):
        roof.measure(1, 0.1, 2**20)


def test_a_machine_has_one_roof_the_best_of_all_its_runs() -> None:
    better = replace(RUN, command="roof", peaks={"flops": {"fp32": 3e11, "bf16": 5e11}, "read": 1e10})
    roofs = summary.roofs([RUN, better, replace(RUN, threads=2)])
    assert roofs["cpu", 1] == summary.Peaks({"fp32": 3e11, "bf16": 5e11}, 2e10)
    assert roofs["cpu", 2] == summary.Peaks({"fp32": 1e11}, 2e10)
    (row,) = [timed(0.01)]
    assert summary.share(RUN, row, roofs) == pytest.approx(CASE.work(None).flops / 3e11 / 0.01)


def test_nothing_exceeds_its_roof_who_beats_it_raises_it() -> None:
    seconds = CASE.work(None).flops / 2e11
    run = replace(RUN, rows=[timed(seconds), timed(2 * seconds, contender="peer")])
    roofs = summary.roofs([run])
    assert [summary.share(run, row, roofs) for row in run.rows] == pytest.approx([1.0, 0.5])


def test_only_what_is_all_of_the_time_has_a_share() -> None:
    hot = timed(1e-9, replace(CASE, hot=True))
    difference, others = timed(1e-9), timed(1e-9)
    difference.beyond, others.work = [1e-9] * 3, {}
    run = replace(RUN, rows=[hot, difference, others])
    roofs = summary.roofs([run])
    assert roofs["cpu", 1] == summary.Peaks({"fp32": 1e11}, 2e10)
    assert [summary.share(run, row, roofs) for row in run.rows] == [None] * 3


def test_a_difference_has_the_rate_of_the_difference() -> None:
    row = timed(1.0, AttentionCase("append", Shape(16, 4096)), "ours cpu, append")
    row.beyond = [1e-4, 2e-4, 3e-4]
    assert table.rate(row) == f"{row.work['bytes'] / 2e-4 / 1e6:.3g} MB/s"
    row.beyond = [-2e-4, -1e-4, 1e-4]
    assert table.rate(row) == ""


@pytest.mark.parametrize(
    ("share", "shown"), [(None, ""), (0.873, "87"), (1.0, "100"), (0.0471, "4.7"), (2.34e-4, "0.023")]
)
def test_small_shares_are_not_shown_as_nothing(share: float | None, shown: str) -> None:
    assert table.percent(share) == shown


@pytest.mark.parametrize("folder", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_table_of_the_committed_results_shows_more_than_a_roof_or_nothing_at_all(folder) -> None:
    runs = results.load_machine(folder.glob("*.jsonl"))
    roofs = summary.roofs(runs)
    for run in runs:
        for row in run.rows:
            if row.status == "timed":
                _, _, _, _, rate, percent, _ = table.cells(run, row, None, roofs)
                assert not rate.startswith("0 ")
                assert percent == "" or 0 < float(percent) <= 100
