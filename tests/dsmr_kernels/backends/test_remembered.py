"""Calls like the last one on a ring: examined once, then repeated with new addresses. No one may see a difference."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from dsmr_kernels import MemoryStack, Retention, RingMemory, recurrent_attention
from dsmr_kernels.backends.cpu import library
from dsmr_kernels.backends.remembered import Remembered

pytestmark = pytest.mark.skipif(library.absence() is not None, reason=str(library.absence()))
HEADS, KV_HEADS, DIM = 4, 2, 24


def segment(tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v of two lanes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, tokens, heads, DIM, generator=generator).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def stack_of(horizon: int = 6, max_segment: int = 3, **options: object) -> MemoryStack:
    """Two lanes, one layer."""
    return MemoryStack([horizon], 2, KV_HEADS, DIM, max_segment, **options)


def repeats(ring: RingMemory) -> bool:
    """Would a plain call like the last one be repeated?"""
    return Remembered.of(ring).repeat is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", [None, "int8", "float8_e4m3"])
def test_a_repeated_call_gives_the_bytes_of_one_that_was_examined(dtype: torch.dtype, storage: str | None) -> None:
    """Through several turns of the ring, with prompts between single tokens, against a ring that forgets every call."""
    stack, forgetful = (stack_of(dtype=dtype, storage=storage) for _ in range(2))
    for step, tokens in enumerate((1, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1, 2, 2, 1)):
        q, k, v = segment(tokens, step, dtype)
        Remembered.of(forgetful[0]).examined(None)
        got, want = (recurrent_attention(q, k, v, s[0], impl="cpu") for s in (stack, forgetful))
        assert torch.equal(got, want)
        assert repeats(stack[0])
        for s in (stack, forgetful):
            s.advance(tokens)
        assert all(map(torch.equal, stack.state_dict().values(), forgetful.state_dict().values()))


@pytest.mark.parametrize("options", [{"retention": Retention(2, "random")}, {}])
def test_whatever_a_signature_holds_may_change_and_change_back(options: dict[str, object]) -> None:
    stack, forgetful = stack_of(**options), stack_of(**options)
    ways = product((1, 2), (None, 0.5), (0.0, 3.0), (True, False), (False, True), (None, "cpu", "eager"))
    for seed, (tokens, scale, softcap, append, transposed, impl) in enumerate(ways):
        q, k, v = segment(tokens, seed)
        if transposed:
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        Remembered.of(forgetful[0]).examined(None)
        for _ in range(2):
            got, want = (
                recurrent_attention(q, k, v, s[0], scale=scale, softcap=softcap, append=append, impl=impl)
                for s in (stack, forgetful)
            )
            assert torch.equal(got, want)
        assert repeats(stack[0]) is (impl != "eager")


def test_ragged_lanes_slopes_and_a_wanted_lse_are_never_left_out() -> None:
    q, k, v = segment(2, 0)
    stack = stack_of()
    for options in (
        {"segment_len": torch.tensor([2, 1])},
        {"segment_start": torch.tensor([[0, 1], [0, 0]])},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0])},
        {"return_lse": True},
    ):
        plain = recurrent_attention(q, k, v, stack[0])
        assert repeats(stack[0])
        got, want = (recurrent_attention(q, k, v, s[0], **options) for s in (stack, copy.deepcopy(stack)))
        if options.get("return_lse"):
            assert all(map(torch.equal, got, want))
            assert torch.equal(got[0], plain)
        else:
            assert torch.equal(got, want)
            assert not torch.equal(got, plain)


def test_gradients_are_wanted_after_calls_without() -> None:
    q, k, v = segment(2, 0)
    stack = stack_of()
    for _ in range(2):
        without = recurrent_attention(q, k, v, stack[0])
    assert repeats(stack[0])
    assert not without.requires_grad
    out = recurrent_attention(q.clone().requires_grad_(), k, v, stack[0])
    assert out.requires_grad
    assert torch.equal(out, without)
    with torch.no_grad():
        assert not recurrent_attention(q.clone().requires_grad_(), k, v, stack[0]).requires_grad


def test_autograd_notices_what_a_repeated_call_writes() -> None:
    q, k, v = segment(1, 0)
    stack = stack_of()
    recurrent_attention(q, k, v, stack[0])
    assert repeats(stack[0])
    versions = []
    for append in (True, True, False, False):
        recurrent_attention(q, k, v, stack[0], append=append)
        versions.append(stack[0].k._version)
    assert [after - before for before, after in pairwise(versions)] == [1, 0, 0]


def test_errors_come_as_from_any_call() -> None:
    stack = stack_of(max_segment=3)
    q, k, v = segment(2, 0)
    recurrent_attention(q, k, v, stack[0])
    stack.advance(2, segment_size=3)
    assert repeats(stack[0])
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    with pytest.raises(ValueError, match="lane 0 is at token 2 of its open segment: expected at most 1 more, got 2"):
        recurrent_attention(q, k, v, stack[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    for wrong in (q.to("meta"), q.double(), q[:, :, :3], q.tolist()):
        with pytest.raises((TypeError, ValueError), match=r"^[qkv]|^k, v"):
            recurrent_attention(wrong, k, v, stack[0])


def test_a_ring_whose_clock_moved_on_is_refused() -> None:
    q, k, v = segment(1, 0)
    stack = stack_of()
    old = stack[0]
    recurrent_attention(q, k, v, old)
    assert repeats(old)
    recurrent_attention(q.requires_grad_(), k, v, old)
    stack.advance(1)
    with pytest.raises(RuntimeError, match="clock has moved on"), torch.no_grad():
        recurrent_attention(q, k, v, old)


def test_storage_that_moves_is_followed() -> None:
    stack = stack_of()
    for step in range(6):
        q, k, v = segment(1, step)
        known = copy.deepcopy(stack)
        for tensor in (*stack[0].state, stack[0].horizon, stack.clock.state):
            tensor.set_(tensor.clone())
        got, want = (recurrent_attention(q, k, v, s[0]) for s in (stack, known))
        assert torch.equal(got, want)
        stack.advance(1)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda ring: pickle.loads(pickle.dumps(ring))])
def test_copies_of_a_ring_remember_nothing(copied: type) -> None:
    q, k, v = segment(1, 0)
    ring = stack_of()[0]
    want = recurrent_attention(q, k, v, ring)
    other = copied(ring)
    assert repeats(ring)
    assert not repeats(other)
    assert torch.equal(recurrent_attention(q, k, v, other), want)


def test_threads_of_python_repeat_calls_on_one_ring() -> None:
    stack = stack_of(horizon=2000)
    given = [segment(1, seed) for seed in range(50)]
    alone = [recurrent_attention(*x, stack[0], append=False) for x in given]
    assert repeats(stack[0])
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(recurrent_attention, *x, stack[0], append=False) for x in given]
    assert all(torch.equal(want, got.result()) for want, got in zip(alone, together, strict=True))
