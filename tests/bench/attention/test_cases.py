"""Cases: the work they stand for, and the list of each command."""

from __future__ import annotations

import pytest
import torch

from bench.attention import cases
from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape

CPU = torch.device("cpu")


def test_work_follows_the_formulas():
    tokens, horizon, heads, dim = 256, 1024, 8, 64
    forward = AttentionCase("forward", Shape(tokens, horizon)).work(None)
    assert forward.flops == 4 * heads * dim * (tokens * horizon + tokens * (tokens + 1) // 2)
    training = AttentionCase("training", Shape(tokens, horizon)).work(None)
    pairs = (2 + 3) * tokens * horizon + (2 + 5) * tokens * (tokens + 1) // 2
    assert training.flops == 2 * heads * dim * pairs
    assert AttentionCase("forward", Shape(tokens, horizon, lanes=3)).work(None).flops == 3 * forward.flops


def test_decode_reads_the_memory_in_the_storage_it_has():
    case = AttentionCase("decode", Shape(1, 4096, "bf16", 2, 8, 64))
    memory, int8 = 2 * 4096 * 2 * 64 * 2, 2 * 4096 * 2 * (64 + 4)
    assert memory < case.work(None).bytes < 1.01 * memory
    assert int8 < case.work("int8").bytes < 1.01 * int8


@pytest.mark.parametrize("command", cases.COMMANDS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_case_has_a_name_of_its_own(command, device, quick):
    listed = cases.cases(command, torch.device(device), quick)
    assert len({(case.task, case.name) for case in listed}) == len(listed) > 0
    assert all(case.work(None).bytes > 0 for case in listed)


def test_chosen_shapes_replace_the_list():
    listed = cases.cases("decode", CPU, False, ["T1-M32-fp32"])
    assert [case.name for case in listed] == ["B1-T1-H8-Hkv8-D64-M32-fp32-hot", "B1-T1-H8-Hkv8-D64-M32-fp32"][::-1]
