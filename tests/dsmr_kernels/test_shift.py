"""Shifted keys: a piece is shifted as a whole, however it is cut, and a tail is memory like a ring."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.library import opcheck

from dsmr_kernels import MemoryStack, RingMemory, recurrent_attention, token_shift
from tests.dsmr_kernels.history import Plan, _borders, _calls, random_normal
from tests.dsmr_kernels.test_laws import RAGGED, plans
from tests.dsmr_kernels.test_replays import WAYS, every_way

DIM = 3
SHIFTS = [(1,), (0, 0, 1, 1), (2, 0, 5), (3, 1, 0, 1)]


def explicit(plan: Plan, k: list[Tensor], shifts: tuple[int, ...]) -> list[Tensor]:
    """Each lane's pieces, shifted as wholes `[N, Hkv, D]`."""
    results = []
    for lane, keys in enumerate(k):
        counts = torch.tensor([piece for piece, _ in plan.index(lane)]).bincount().tolist()
        moved = [
            torch.stack([F.pad(piece[:, h], (0, 0, s, 0))[: len(piece)] for h, s in enumerate(shifts)], 1)
            for piece in keys.split(counts)
        ]
        results.append(torch.cat(moved))
    return results


def run(plan: Plan, k: list[Tensor], do: list[Tensor], shifts: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Each lane's keys as the operator shifts them, and the gradients of `sum(keys * do)`, call by call."""
    stack = MemoryStack([4], plan.lanes, len(shifts), DIM, plan.longest, key_shift=shifts)
    stack[0].tail.fill_(math.nan)
    out, grads = ([torch.zeros_like(x) for x in k] for _ in range(2))
    done = [0] * plan.lanes
    for counts in plan.segments:
        for taken in _calls(counts, plan.steps):
            tokens = max(1, *taken)
            reset, start = _borders(plan, done, taken, tokens)
            stack.reset(torch.tensor(reset))
            fed, cotangent = torch.full((2, plan.lanes, tokens, len(shifts), DIM), math.nan)
            for b, (first, count) in enumerate(zip(done, taken, strict=True)):
                fed[b, :count], cotangent[b, :count] = (x[b][first : first + count] for x in (k, do))
            real = torch.arange(tokens) < torch.tensor(taken)[:, None]
            fed.requires_grad_()
            ragged = torch.tensor(start), torch.tensor(taken)
            given = {"segment_start": ragged[0], "segment_len": ragged[1] if min(taken) < tokens else None}
            shifted = token_shift(fed, stack[0], **given)
            (grad,) = torch.autograd.grad(shifted[real], fed, cotangent[real])
            for b, count in enumerate(taken):
                out[b][done[b] : done[b] + count] = shifted[b, :count].detach()
                grads[b][done[b] : done[b] + count] = grad[b, :count]
            stack.advance(tokens, *ragged, None if plan.steps is None else stack.max_segment)
            done = [d + t for d, t in zip(done, taken, strict=True)]
        if plan.steps is not None:
            stack.clock.phase.zero_()
    return out, grads


def check(plan: Plan, shifts: tuple[int, ...], seed: int = 0) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    k, do = ([random_normal(generator, plan.length(b), len(shifts), DIM) for b in range(plan.lanes)] for _ in range(2))
    out, grads = run(plan, k, do, shifts)
    for got, want in zip(out, explicit(plan, k, shifts), strict=True):
        assert torch.equal(got, want)
    for lane, got in enumerate(grads):
        assert torch.equal(got, expected_gradient(plan, lane, do[lane], shifts))


def expected_gradient(plan: Plan, lane: int, do: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """A key gets the gradient of the position it went to, if that is in its piece and its call."""
    index = plan.index(lane)
    calls = [count for counts in plan.segments for count in [c[lane] for c in _calls(counts, plan.steps)]]
    call = [number for number, count in enumerate(calls) for _ in range(count)]
    grad = torch.zeros_like(do)
    for token, (piece, _) in enumerate(index):
        for head, shift in enumerate(shifts):
            to = token + shift
            if to < len(index) and index[to][0] == piece and call[to] == call[token]:
                grad[token, head] = do[to, head]
    return grad


@pytest.mark.parametrize("shifts", SHIFTS, ids=str)
@pytest.mark.parametrize("steps", [None, 1, 3])
def test_cutting_changes_nothing(shifts: tuple[int, ...], steps: int | None) -> None:
    check(replace(RAGGED, steps=steps), shifts)


@settings(max_examples=60)
@given(plan=plans(), shifts=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any), seed=st.integers(0, 99))
def test_any_plan_is_shifted_as_a_whole(plan: Plan, shifts: list[int], seed: int) -> None:
    check(plan, tuple(shifts), seed)


def made(lanes: int = 2, tokens: int = 8, shifts: tuple[int, ...] = (0, 2), **options: object) -> MemoryStack:
    return MemoryStack([6], lanes, len(shifts), DIM, tokens, key_shift=shifts, **options)


def feed(stack: MemoryStack, seed: int, tokens: int = 8) -> Tensor:
    k = random_normal(torch.Generator("cpu").manual_seed(seed), stack.lanes, tokens, 2, DIM)
    shifted = token_shift(k.to(stack.dtype), stack[0])
    recurrent_attention(k.to(stack.dtype), shifted, k.to(stack.dtype), stack[0])
    stack.advance(tokens)
    return shifted


def test_other_lanes_do_not_notice_a_reset() -> None:
    stacks = [made(), made()]
    for stack in stacks:
        feed(stack, 0)
    stacks[1].reset([1])
    plain, anew = (feed(stack, 1) for stack in stacks)
    assert torch.equal(plain[0], anew[0])
    assert torch.equal(plain[1, 2:], anew[1, 2:])
    assert plain[1, :2, 1].all()
    assert not anew[1, :2, 1].any()


@pytest.mark.parametrize("storage", [None, "int8"])
@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack)), lambda stack: stack.to("cpu")],
    ids=["copied", "pickled", "moved"],
)
def test_a_copy_continues_exactly_and_alone(again: Callable[[MemoryStack], MemoryStack], storage: str | None) -> None:
    stack = made(storage=storage)
    feed(stack, 0)
    other = again(stack)
    feed(other, 2)
    feed(other, 3)
    loaded = made(storage=storage)
    loaded.load_state_dict(stack.state_dict())
    assert torch.equal(feed(stack, 1), feed(loaded, 1))
    assert torch.equal(stack[0].tail, loaded[0].tail)


def test_bytes_count_the_tail() -> None:
    plain, shifted = (MemoryStack([6], 3, 2, DIM, 8, storage="int8", key_shift=s) for s in (None, (2, 0)))
    assert shifted.bytes_per_lane - plain.bytes_per_lane == 1 * (2 + 8) * DIM * 4
    assert shifted[0].tail.dtype == torch.float32
    assert MemoryStack([6], 3, 2, DIM, 8, segments_in_flight=3, key_shift=(2, 0))[0].tail.shape == (3, 1, 26, DIM)


def test_no_shift_keeps_no_tail() -> None:
    for key_shift in (None, (0, 0), [0, 0]):
        stack = MemoryStack([6], 1, 2, DIM, 8, key_shift=key_shift)
        assert stack.key_shift is stack[0].tail is None
        assert stack.state_dict().keys() == MemoryStack([6], 1, 2, DIM, 8).state_dict().keys()


@pytest.mark.parametrize("key_shift", [(1,), (0, 1, 1), (0, -1), (0, 1025), (0, 1.0), (0, True), 1, "01"], ids=str)
def test_bad_shifts_are_refused(key_shift: object) -> None:
    with pytest.raises(ValueError, match="key_shift: expected"):
        MemoryStack([6], 1, 2, DIM, 8, key_shift=key_shift)


def test_a_state_of_other_shifts_is_refused() -> None:
    stack = made()
    for other in (made(shifts=(2, 0)), made(shifts=(0, 3)), MemoryStack([6], 2, 2, DIM, 8)):
        with pytest.raises(ValueError, match="state"):
            stack.load_state_dict(other.state_dict())
    state = made().state_dict()
    state["layers.0.tail_written"] = torch.tensor([0, 9])
    with pytest.raises(ValueError, match=r"tail_written.*expected numbers from 0 to position"):
        stack.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": torch.zeros(2, 9, 2, DIM)}, ValueError, "max_segment=8 tokens, got 9"),
        ({"k": torch.zeros(2, 0, 2, DIM)}, ValueError, "max_segment=8 tokens, got 0"),
        ({"k": torch.zeros(2, 4, 3, DIM)}, ValueError, r"k: expected \[2, 'T', 2, 3\]"),
        ({"k": torch.zeros(4, 2, DIM)}, ValueError, r"k: expected \[2, 'T', 2, 3\]"),
        ({"k": torch.zeros(2, 4, 2, DIM, dtype=torch.float64)}, TypeError, "k: expected a tensor of torch.float32"),
        ({"memory": made()}, TypeError, "memory: expected a RingMemory"),
        ({"memory": MemoryStack([6], 2, 2, DIM, 8)[0]}, ValueError, "memory: expected one of .* made with key_shift"),
        ({"segment_len": torch.tensor([5, 0])}, ValueError, "segment_len: expected values from 0 to T=4"),
        ({"segment_start": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "segment_start: expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_named(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        token_shift(**{"k": torch.zeros(2, 4, 2, DIM), "memory": made()[0], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tail": torch.zeros(2, 1, 9, DIM)}, "tail: expected"),
        ({"tail": torch.zeros(2, 2, 10, DIM)}, "tail: expected"),
        ({"tail": torch.zeros(2, 1, 10, DIM, dtype=torch.int8)}, "tail: expected one of"),
        ({"tail": None}, "tail, tail_written: expected both"),
        ({"key_shift": None}, "tail, tail_written: expected both"),
        ({"key_shift": (1, 1)}, "tail: expected"),
        ({"tail_written": torch.zeros(2)}, "tail_written: expected torch.int64"),
        ({"tail_written": torch.zeros(3, dtype=torch.int64)}, "tail_written: expected"),
        ({"tail": torch.zeros(2, 1, 1, DIM).expand(2, 1, 10, DIM)}, "memory of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_tails_are_refused(changes: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        replace(made()[0], **changes)


def test_a_ring_kept_across_advance_is_refused() -> None:
    stack = made()
    ring = stack[0]
    feed(stack, 0)
    with pytest.raises(RuntimeError, match="anew after each advance"):
        token_shift(torch.zeros(2, 8, 2, DIM), ring)


@pytest.mark.parametrize("made_in", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("used_in", [torch.enable_grad, torch.inference_mode])
def test_memory_made_without_gradients_serves_later(made_in: Callable, used_in: Callable) -> None:
    results = []
    for context in (torch.enable_grad, made_in):
        with context():
            stack = made()
            feed(stack, 0)
        with used_in():
            results.append(feed(stack, 1).clone())
    assert torch.equal(*results)


# What PyTorch does with the operator


@pytest.mark.parametrize("requires_grad", [False, True], ids=["nograd", "grad"])
@pytest.mark.parametrize("name", ["token_shift_", "token_shift_forward_"])
def test_opcheck(name: str, requires_grad: bool) -> None:
    stack = made()
    feed(stack, 0)
    k = torch.randn(2, 8, 2, DIM, requires_grad=requires_grad and name == "token_shift_")
    ring, start = stack[0], torch.tensor([[0] * 8, [0] * 3 + [3] * 5])
    operator = getattr(torch.ops.dsmr_kernels, name).default
    opcheck(operator, (k, ring.tail, ring.tail_written, ring.clock.state, start, torch.tensor([8, 6]), [0, 2]))


class Layer(nn.Module):
    """Attention with shifted keys."""

    HEADS, KV_HEADS, SIZE = 4, 2, 8

    def __init__(self, number: int) -> None:
        super().__init__()
        width = self.HEADS * self.SIZE
        generator = torch.Generator("cpu").manual_seed(number)
        self.weight = nn.Parameter(random_normal(generator, width, width * 2) / width**0.5)

    def forward(self, x: Tensor, ring: RingMemory) -> Tensor:
        q, k, v = (x @ self.weight).unflatten(-1, (-1, self.SIZE)).split([self.HEADS, self.KV_HEADS, self.KV_HEADS], 2)
        return x + recurrent_attention(q, token_shift(k, ring), v, ring).flatten(2)


class Run:
    """Two layers fed segment by segment, with gradients of all inputs and weights."""

    def __init__(self, way: str | None, in_flight: int = 1) -> None:
        self.layers = [Layer(number) for number in range(2)]
        self.ways = [WAYS[way](layer) if way else layer for layer in self.layers]
        self.stack = MemoryStack([5, 21], 2, 2, Layer.SIZE, 8, segments_in_flight=in_flight, key_shift=(0, 3))
        self.generator = torch.Generator("cpu").manual_seed(7)
        self.results: list[Tensor] = []

    def forward(self) -> Callable[[], None]:
        inputs = random_normal(self.generator, 2, 8, Layer.HEADS * Layer.SIZE).requires_grad_()
        x = inputs
        for layer, ring in zip(self.ways, self.stack, strict=True):
            x = layer(x, ring)
        self.stack.advance(8)
        return partial(self.backward, inputs, x)

    def backward(self, inputs: Tensor, out: Tensor) -> None:
        """No bit of the memory changes."""
        before = {name: x.clone() for name, x in self.stack.state_dict().items()}
        out.square().sum().backward()
        self.results += [out.detach(), inputs.grad]
        assert all(torch.equal(x, before[name]) for name, x in self.stack.state_dict().items())


@every_way
@pytest.mark.parametrize("in_flight", [1, 3])
def test_every_way_of_replaying_gives_the_plain_gradients(way: str, in_flight: int) -> None:
    runs = [Run(which, in_flight) for which in (None, way)]
    for each in runs:
        for _ in range(3):
            for backward in reversed([each.forward() for _ in range(in_flight)]):
                backward()
    plain, replayed = ([*each.results, *(layer.weight.grad for layer in each.layers)] for each in runs)
    assert all(map(torch.equal, plain, replayed))


class Shift(nn.Module):
    """No attention, so that the tail alone can tell that it was overwritten."""

    def forward(self, k: Tensor, ring: RingMemory) -> Tensor:
        return token_shift(k * 2, ring).sin()


@pytest.mark.parametrize("way", ["non-reentrant", "reentrant"])
@pytest.mark.parametrize(
    "overwrite",
    [lambda stack, _: feed(stack, 2), lambda stack, saved: stack.load_state_dict(saved)],
    ids=["appended", "loaded"],
)
def test_a_replay_over_an_overwritten_tail_raises(way: str, overwrite: Callable) -> None:
    stack = made()
    feed(stack, 0)
    saved = {name: x.clone() for name, x in stack.state_dict().items()}
    k = torch.randn(2, 8, 2, DIM, requires_grad=True)
    out = WAYS[way](Shift())(k, stack[0])
    stack.advance(8)
    overwrite(stack, saved)
    with pytest.raises(RuntimeError, match=r"shifted keys .*overwritten between forward and backward"):
        out.sum().backward()


def test_a_replay_after_the_clock_has_moved_raises() -> None:
    stack = made()
    k = torch.randn(2, 8, 2, DIM, requires_grad=True)
    out = torch.utils.checkpoint.checkpoint(lambda k: token_shift(k, stack[0]).sin(), k, use_reentrant=False)
    stack.advance(8)
    with pytest.raises(RuntimeError, match="clock has moved since the first pass"):
        out.sum().backward()
