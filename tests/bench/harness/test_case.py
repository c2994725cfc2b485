"""Verdicts on contenders, and who is chosen by name."""

from __future__ import annotations

import pytest
import torch

from bench.harness.case import Contender, judge
from bench.harness.settings import Settings

CPU = torch.device("cpu")


class Case:
    """One whose check comes to what it was told."""

    task, name, fields = "task", "case", {"size": 1}

    def __init__(self, outcome):
        self.outcome = outcome

    def wrong(self, contender, device):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (None, "right", ""),
        ("off by 1", "wrong", "off by 1"),
        (RuntimeError("no kernel for this\nand a long tail"), "failed", "RuntimeError: no kernel for this"),
        (AssertionError(), "failed", "AssertionError: "),
    ],
)
def test_a_verdict_is_a_row(outcome, status, reason):
    contender = Contender(name="a", version="1", ours=True, storage="int8")
    row = judge(Case(outcome), contender, CPU)
    assert (row.status, row.reason) == (status, reason)
    assert (row.task, row.case, row.fields) == ("task", "case", {"size": 1})
    assert (row.contender, row.version, row.ours, row.like_for_like, row.storage) == ("a", "1", True, False, "int8")


def test_an_unavailable_contender_is_not_even_asked():
    contender = Contender(name="a", version="1", unavailable=lambda case, device: "not here")
    row = judge(Case(AssertionError("asked")), contender, CPU)
    assert (row.status, row.reason) == ("unavailable", "not here")


def test_contenders_are_chosen_by_parts_of_their_names_or_those_on_request_left_out():
    listed = [Contender(name=name, version="1", on_request=name == "slow b") for name in ("fast a", "slow a", "slow b")]
    assert [each.name for each in Settings(CPU).chosen(listed)] == ["fast a", "slow a"]
    assert [each.name for each in Settings(CPU, contenders=("b", "fast")).chosen(listed)] == ["fast a", "slow b"]
