"""Every bad argument of `recurrent_attention` is named, with what was expected and what came."""

from __future__ import annotations

import math

import pytest
import torch

from dsmr_kernels import MemoryStack, Retention, recurrent_attention


def arguments(**changes) -> dict:
    stack = MemoryStack([6], lanes=2, kv_heads=2, head_dim=8, max_segment=8)
    call = {
        "q": torch.zeros(2, 5, 4, 8),
        "k": torch.zeros(2, 5, 2, 8),
        "v": torch.zeros(2, 5, 2, 8),
        "memory": stack[0],
    }
    return call | changes


def transposed(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape[:2], shape[3], shape[2]).transpose(2, 3)


CASES = [
    ({"q": [1.0]}, TypeError, "q: expected a tensor, got list"),
    ({"q": torch.zeros(2, 5, 8)}, ValueError, r"q: expected 4 dimensions .* got shape \[2, 5, 8\]"),
    ({"q": torch.zeros(2, 5, 4, 8, dtype=torch.int32)}, TypeError, "q: expected one of"),
    ({"k": torch.zeros(2, 5, 2, 8).double()}, TypeError, "k: expected q's type torch.float32, got torch.float64"),
    ({"k": torch.zeros(2, 4, 2, 8)}, ValueError, r"k, v: expected the shape \[2, 5, Hkv, 8\]"),
    ({"v": torch.zeros(2, 5, 1, 8)}, ValueError, "k, v: expected the shape"),
    (
        {"q": torch.zeros(2, 5, 3, 8)},
        ValueError,
        "q: expected a number of heads divisible by the 2 KV heads of k, got 3",
    ),
    ({"q": transposed(2, 5, 4, 8)}, ValueError, "q: expected a contiguous last dimension"),
    ({"v": torch.zeros(2, 5, 2, 8, device="meta")}, ValueError, "v: expected q's device cpu, got meta"),
    ({"q": torch.zeros(2, 0, 4, 8), "k": torch.zeros(2, 0, 2, 8), "v": torch.zeros(2, 0, 2, 8)}, ValueError, "T >= 1"),
    (
        {"q": torch.zeros(2, 9, 4, 8), "k": torch.zeros(2, 9, 2, 8), "v": torch.zeros(2, 9, 2, 8)},
        ValueError,
        "q: expected T <= max_segment=8, the ring's slack, got 9",
    ),
    (
        {"memory": MemoryStack([6], 3, 2, 8, 8)[0]},
        ValueError,
        "memory: expected B, Hkv, D of k = 2, 2, 8, got a ring of 3, 2, 8",
    ),
    ({"memory": MemoryStack([6], 2, 2, 8, 8, torch.float16)[0]}, TypeError, "memory: expected a ring of q's type"),
    ({"memory": MemoryStack([6], 2, 2, 8, 8)}, TypeError, "memory: expected a RingMemory, .* got MemoryStack"),
    ({"memory": MemoryStack([6], 2, 2, 8, 8, device="meta")[0]}, ValueError, "memory: expected q's device cpu"),
    ({"window": "sentence"}, ValueError, "window: expected 'segment' or 'token', got 'sentence'"),
    ({"window": "token", "memory": None}, ValueError, "window: 'token' needs a memory"),
    (
        {"window": "token", "memory": MemoryStack([6], 2, 2, 8, 8, retention=Retention(2))[0]},
        ValueError,
        "window: 'token' needs a ring that keeps every token",
    ),
    (
        {"segment_start": torch.zeros(2, 5)},
        TypeError,
        "segment_start: expected an int64 or int32 tensor, got torch.float32",
    ),
    ({"segment_start": torch.zeros(2, 4, dtype=torch.int64)}, ValueError, r"segment_start: expected \[2, 5\]"),
    ({"segment_start": torch.tensor([[0, 2, 2, 2, 2]] * 2)}, ValueError, "segment_start: expected non-decreasing rows"),
    ({"segment_start": torch.tensor([[0, 1, 0, 0, 0]] * 2)}, ValueError, "segment_start: expected non-decreasing rows"),
    ({"segment_len": [5, 5]}, TypeError, "segment_len: expected an int64 or int32 tensor, got list"),
    ({"segment_len": torch.tensor([5, 6])}, ValueError, r"segment_len: expected values from 0 to T=5, got \[5, 6\]"),
    (
        {"alibi_slopes": torch.zeros(4, dtype=torch.int64)},
        TypeError,
        "alibi_slopes: expected a float tensor, got torch.int64",
    ),
    ({"alibi_slopes": torch.zeros(3)}, ValueError, r"alibi_slopes: expected \[4\] on cpu"),
    ({"alibi_slopes": torch.tensor([0.0, math.nan, 0, 0])}, ValueError, "alibi_slopes: expected finite numbers"),
    ({"alibi_slopes": torch.zeros(4, requires_grad=True)}, ValueError, "alibi_slopes: expected constants"),
    ({"scale": math.nan}, ValueError, "scale, softcap: expected finite numbers"),
    ({"softcap": -1.0}, ValueError, "scale, softcap: expected finite numbers and softcap >= 0"),
    ({"softcap": None}, TypeError, "softcap: expected a number, got NoneType"),
    ({"scale": "0.5"}, TypeError, "scale: expected a number, got str"),
    ({"append": None}, TypeError, "append: expected a bool, got NoneType"),
    ({"impl": "abacus"}, ValueError, "impl: expected None or one of .* got 'abacus'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CASES, ids=[message[:40] for _, _, message in CASES])
def test_bad_arguments_are_named(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recurrent_attention(**arguments(**changes))


@pytest.mark.parametrize(("changes", "error", "message"), CASES, ids=[message[:40] for _, _, message in CASES])
def test_a_ring_that_served_a_good_call_refuses_a_bad_one(changes: dict, error: type[Exception], message: str) -> None:
    good = arguments()
    recurrent_attention(**good)
    with pytest.raises(error, match=message):
        recurrent_attention(**good | changes)


def test_a_call_across_the_end_of_an_open_segment_is_refused(impl: str) -> None:
    stack = MemoryStack([6], lanes=2, kv_heads=2, head_dim=8, max_segment=8)
    recurrent_attention(**arguments(memory=stack[0], impl=impl))
    stack.advance(5, segment_size=8)
    with pytest.raises(ValueError, match=r"lane 0 is at token 5 of its open segment: expected at most 3 more, got 5"):
        recurrent_attention(**arguments(memory=stack[0], impl=impl))


def test_slopes_that_became_bad_are_noticed() -> None:
    q, k, v = (torch.randn(1, 4, 2, 8) for _ in range(3))
    slopes = torch.tensor([0.5, 0.25])
    for _ in range(2):
        recurrent_attention(q, k, v, alibi_slopes=slopes)
    slopes[1] = math.inf
    with pytest.raises(ValueError, match="alibi_slopes: expected finite numbers"):
        recurrent_attention(q, k, v, alibi_slopes=slopes)
