"""Every contender that this machine can run is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.attention.cases import AttentionCase
from bench.attention.contenders.registry import registry
from bench.attention.shapes import Shape
from bench.harness.case import judge

CPU = torch.device("cpu")
SEGMENTS = [
    Shape(5, 7, "fp32", 2, 4, 16),
    Shape(33, 0, "fp32", 2, 2, 16),
    Shape(12, 20, "bf16", 3, 3, 8, lanes=2),
    Shape(6, 4, "fp32", 1, 2, 16, lanes=2, window="token"),
]
CASES = [
    *(AttentionCase(task, shape) for shape in SEGMENTS for task in ("forward", "training")),
    *(AttentionCase("decode", replace(shape, tokens=1)) for shape in SEGMENTS if shape.horizon),
    *(AttentionCase("append", shape) for shape in SEGMENTS if shape.window == "segment" and shape.horizon >= 7),
    AttentionCase("overhead", Shape(1, 16, "fp32", 2, 2, 16), hot=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task}-{case.name}")
def test_every_contender_is_right(case):
    listed = [c for c in registry(CPU) if case.task in c.tasks and "Flex" not in c.name]
    judged = {c.name: judge(case, c, CPU) for c in listed if c.name != "broken on purpose"}
    assert not {name: row.reason for name, row in judged.items() if row.status not in ("right", "unavailable")}
    assert sum(row.status == "right" for row in judged.values()) >= (2 if case.task != "overhead" else 3)


def test_every_contender_that_keeps_memory_shows_it():
    """But those that only serve to be subtracted."""
    listed = registry(CPU)
    subtracted = {contender.minus for contender in listed}
    case = AttentionCase("append", Shape(3, 8, "fp32", 2, 2, 16))
    for contender in listed:
        if "append" in contender.tasks and contender.name not in subtracted:
            assert contender.prepare(case, case.inputs(CPU, 1)[0]).memory is not None, contender.name


def test_names_are_unique_and_subtracted_ones_exist():
    listed = registry(CPU)
    names = [contender.name for contender in listed]
    assert len(set(names)) == len(names)
    assert {contender.minus for contender in listed} - {None} <= set(names)
