"""Every contender that this machine can run is right, and one that is wrong is never timed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bench import runner
from bench.attention import check
from bench.attention.contenders import contender as contenders
from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import Contender, Prepared, differentiated
from bench.attention.contenders.sdpa import attend, concatenated
from bench.attention.shapes import Shape
from bench.harness import measure

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
    listed = [c for c in contenders.registry(CPU) if case.task in c.tasks and "Flex" not in c.name]
    judged = {c.name: runner.judge(case, c, CPU) for c in listed if c.name != "broken on purpose"}
    assert not {name: v for name, v in judged.items() if v[0] not in ("right", "unavailable")}
    assert sum(status == "right" for status, _ in judged.values()) >= (2 if case.task != "overhead" else 3)


@pytest.mark.parametrize("task", ["forward", "training", "decode"])
def test_the_contender_that_is_broken_on_purpose_is_refused(task):
    case = AttentionCase(task, Shape(1 if task == "decode" else 5, 7, "fp32", 2, 4, 16))
    rows = runner.time_case(case, runner.Settings(CPU, contenders=("broken",), limits=measure.QUICK), 2**20)
    assert [(row.contender, row.status, row.seconds) for row in rows] == [("broken on purpose", "wrong", [])]
    assert "off by" in rows[0].reason


def judge(prepare, case=None, **options):
    tasks = frozenset({"forward", "training", "decode", "append"})
    contender = Contender("under test", tasks, "any", prepare, **options)
    return runner.judge(case or AttentionCase("forward", Shape(5, 7, "fp32", 2, 2, 16)), contender, CPU)


def right(case, inputs):
    mask = case.shape.visible(CPU)
    return Prepared(differentiated(case, inputs, lambda: attend(inputs.q, *concatenated(inputs), mask)))


def test_a_right_one_passes():
    assert judge(right) == ("right", "")


def test_nan_is_wrong():
    def prepare(case, inputs):
        return Prepared(lambda: torch.full_like(inputs.q, math.nan))

    assert judge(prepare)[0] == "wrong"


def test_a_result_of_another_type_or_shape_is_wrong():
    assert judge(lambda case, inputs: Prepared(lambda: right(case, inputs).step().double()))[0] == "wrong"
    assert judge(lambda case, inputs: Prepared(lambda: right(case, inputs).step()[:, :1]))[0] == "wrong"


def test_a_wrong_gradient_is_wrong():
    def prepare(case, inputs):
        step = right(case, inputs).step

        def off():
            o, dq, dk, dv = step()
            return o, dq, dk * 1.001, dv

        return Prepared(off)

    status, reason = judge(prepare, AttentionCase("training", Shape(5, 7, "fp32", 2, 2, 16)))
    assert status == "wrong"
    assert reason.startswith("dk")


def test_of_a_large_case_the_last_head_of_the_last_lane_is_looked_at():
    shape = Shape(64, 8192, "fp32", 4, 4, 8, lanes=3)
    case = AttentionCase("forward", shape)
    assert shape.lanes * shape.heads * sum(shape.pairs()) > check.LARGE

    def spoiled(case, inputs):
        step = right(case, inputs).step

        def off():
            o = step().clone()
            o[-1, -1, -1, -1] += 1
            return o

        return Prepared(off)

    assert judge(right, case) == ("right", "")
    assert judge(spoiled, case)[0] == "wrong"


def test_missing_gradients_are_wrong():
    def prepare(case, inputs):
        step = right(case, inputs).step
        return Prepared(lambda: step()[0])

    assert judge(prepare, AttentionCase("training", Shape(5, 7, "fp32", 2, 2, 16)))[0] == "wrong"


def test_a_cache_that_forgets_to_append_is_wrong():
    def prepare(case, inputs):
        return replace(right(case, inputs), memory=lambda: (inputs.past_k, inputs.past_v))

    status, reason = judge(prepare, AttentionCase("decode", Shape(1, 7, "fp32", 2, 2, 16)))
    assert status == "wrong"
    assert "newest 7" in reason


def test_an_error_is_reported_as_a_failure_with_its_message():
    def prepare(case, inputs):
        raise RuntimeError("no kernel for this\nand a long tail")

    assert judge(prepare) == ("failed", "RuntimeError: no kernel for this")


def test_an_unavailable_contender_is_not_even_prepared():
    def prepare(case, inputs):
        raise AssertionError

    assert judge(prepare, unavailable=lambda case, device: "not here") == ("unavailable", "not here")


def test_every_contender_that_keeps_memory_shows_it():
    """But those that only serve to be subtracted."""
    listed = contenders.registry(CPU)
    subtracted = {contender.minus for contender in listed}
    case = AttentionCase("append", Shape(3, 8, "fp32", 2, 2, 16))
    for contender in listed:
        if "append" in contender.tasks and contender.name not in subtracted:
            assert contender.prepare(case, case.inputs(CPU, 1)[0]).memory is not None, contender.name


def test_names_are_unique_and_subtracted_ones_exist():
    listed = contenders.registry(CPU)
    names = [contender.name for contender in listed]
    assert len(set(names)) == len(names)
    assert {contender.minus for contender in listed} - {None} <= set(names)


def test_a_row_carries_ratios_differences_and_its_work():
    case = AttentionCase("append", Shape(3, 8, "fp32", 2, 2, 16))
    rows = {row.contender: row for row in runner.time_case(case, runner.Settings(CPU, limits=measure.QUICK), 2**16)}
    ours, without = rows["ours eager, append"], rows["ours eager, append=False"]
    assert ours.status == without.status == "timed"
    assert len(ours.beyond) == 3
    assert not without.beyond
    assert not without.work  # its time is that of an attention call
    assert {"ours eager, append", "ours eager, append=False"} <= rows["torch.cat"].against.keys()
    assert rows["torch.cat"].work == case.work(None)._asdict()
