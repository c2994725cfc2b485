"""Races: who is wrong has no time, who is right has ratios, differences and its work."""

from __future__ import annotations

import pytest
import torch

from bench.attention import race
from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.harness import measure
from bench.harness.settings import Settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("task", ["forward", "training", "decode"])
def test_the_contender_that_is_broken_on_purpose_is_refused(task):
    case = AttentionCase(task, Shape(1 if task == "decode" else 5, 7, "fp32", 2, 4, 16))
    rows = race.time_case(case, Settings(CPU, contenders=("broken",), limits=measure.QUICK))
    assert [(row.contender, row.status, row.seconds) for row in rows] == [("broken on purpose", "wrong", [])]
    assert "off by" in rows[0].reason


def test_a_row_carries_ratios_differences_and_its_work():
    case = AttentionCase("append", Shape(3, 8, "fp32", 2, 2, 16))
    rows = {row.contender: row for row in race.time_case(case, Settings(CPU, limits=measure.QUICK))}
    ours, without = rows["ours eager, append"], rows["ours eager, append=False"]
    assert ours.status == without.status == "timed"
    assert len(ours.beyond) == 3
    assert not without.beyond
    assert not without.work  # its time is that of an attention call
    assert {"ours eager, append", "ours eager, append=False"} <= rows["torch.cat"].against.keys()
    assert rows["torch.cat"].work == case.work(None)._asdict()
