"""Wrong results are found: in outputs, in gradients, in what the memory holds."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from bench.attention import check
from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import Prepared, differentiated, torch_contender
from bench.attention.contenders.sdpa import attend, concatenated
from bench.attention.shapes import Shape
from bench.harness.case import judge

CPU = torch.device("cpu")


def verdict(prepare, case=None):
    contender = torch_contender("under test", "forward", "training", "decode", "append", prepare=prepare)
    row = judge(case or AttentionCase("forward", Shape(5, 7, "fp32", 2, 2, 16)), contender, CPU)
    return row.status, row.reason


def right(case, inputs):
    mask = case.shape.visible(CPU)
    return Prepared(differentiated(case, inputs, lambda: attend(inputs.q, *concatenated(inputs), mask)))


def test_a_right_one_passes():
    assert verdict(right) == ("right", "")


def test_nan_is_wrong():
    def prepare(case, inputs):
        return Prepared(lambda: torch.full_like(inputs.q, math.nan))

    assert verdict(prepare)[0] == "wrong"


def test_a_result_of_another_type_or_shape_is_wrong():
    assert verdict(lambda case, inputs: Prepared(lambda: right(case, inputs).step().double()))[0] == "wrong"
    assert verdict(lambda case, inputs: Prepared(lambda: right(case, inputs).step()[:, :1]))[0] == "wrong"


def test_a_wrong_gradient_is_wrong():
    def prepare(case, inputs):
        step = right(case, inputs).step

        def off():
            o, dq, dk, dv = step()
            return o, dq, dk * 1.001, dv

        return Prepared(off)

    status, reason = verdict(prepare, AttentionCase("training", Shape(5, 7, "fp32", 2, 2, 16)))
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

    assert verdict(right, case) == ("right", "")
    assert verdict(spoiled, case)[0] == "wrong"


def test_missing_gradients_are_wrong():
    def prepare(case, inputs):
        step = right(case, inputs).step
        return Prepared(lambda: step()[0])

    assert verdict(prepare, AttentionCase("training", Shape(5, 7, "fp32", 2, 2, 16)))[0] == "wrong"


def test_a_cache_that_forgets_to_append_is_wrong():
    def prepare(case, inputs):
        return replace(right(case, inputs), memory=lambda: (inputs.past_k, inputs.past_v))

    status, reason = verdict(prepare, AttentionCase("decode", Shape(1, 7, "fp32", 2, 2, 16)))
    assert status == "wrong"
    assert "newest 7" in reason
