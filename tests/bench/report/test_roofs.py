"""Roofs: the best of all runs of a machine, and what share of it a row reaches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.harness import results
from bench.harness.results import FOLDER
from bench.harness.roof import Roof
from bench.report import table
from bench.report.roofs import roofs, share
from tests.bench import made

CASE = AttentionCase("forward", Shape(512, 1024))
RUN = replace(made.RUN, roof={"flops": {"fp32": 1e11}, "read": 2e10})


def test_a_machine_has_one_roof_the_best_of_all_its_runs() -> None:
    better = replace(RUN, command="roof", roof={"flops": {"fp32": 3e11, "bf16": 5e11}, "read": 1e10})
    machine = roofs([RUN, better, replace(RUN, threads=2)])
    assert machine["cpu", 1] == Roof({"fp32": 3e11, "bf16": 5e11}, 2e10)
    assert machine["cpu", 2] == Roof({"fp32": 1e11}, 2e10)
    row = made.row(CASE, "ours cpu", 0.01)
    assert share(RUN, row, machine) == pytest.approx(CASE.work(None).flops / 3e11 / 0.01)


def test_nothing_exceeds_its_roof_who_beats_it_raises_it() -> None:
    seconds = CASE.work(None).flops / 2e11
    run = replace(RUN, rows=[made.row(CASE, "ours cpu", seconds), made.row(CASE, "peer", 2 * seconds)])
    machine = roofs([run])
    assert [share(run, row, machine) for row in run.rows] == pytest.approx([1.0, 0.5])


def test_only_what_is_all_of_the_time_has_a_share() -> None:
    hot = made.row(replace(CASE, hot=True), "ours cpu", 1e-9)
    difference = made.row(CASE, "ours cpu", 1e-9, beyond=[1e-9] * 3)
    others = made.row(CASE, "ours cpu", 1e-9, work={})
    run = replace(RUN, rows=[hot, difference, others])
    machine = roofs([run])
    assert machine["cpu", 1] == Roof({"fp32": 1e11}, 2e10)
    assert [share(run, row, machine) for row in run.rows] == [None] * 3


@pytest.mark.parametrize("folder", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_table_of_the_committed_results_shows_more_than_a_roof_or_nothing_at_all(folder) -> None:
    runs = results.load_machine(folder.glob("*.jsonl"))
    machine = roofs(runs)
    for run in runs:
        for row in run.rows:
            if row.status == "timed":
                _, _, _, _, rate, percent, _ = table.cells(run, row, None, machine)
                assert not rate.startswith("0 ")
                assert percent == "" or 0 < float(percent) <= 100
