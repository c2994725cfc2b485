"""Law 6: what is hidden from a query cannot reach it, wherever it lies: outputs, lse and gradients, in every type.

Something infinite or NaN is put in one place, and results are compared with those of a clean call. What may differ are
the rows that see this place and the gradients of the keys that such rows see; nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from dsmr_kernels import MemoryStack, Retention, recurrent_attention
from dsmr_kernels.storage import quantise
from tests.dsmr_kernels.history import random_normal, refusal
from tests.interpreter import INTERPRETED

LANES, HEADS, KV_HEADS, DIM, HORIZON = 2, 4, 2, 16, 11
COUNTS = (HEADS, KV_HEADS, KV_HEADS, HEADS)  # of q, k, v and the cotangent
EXACT = {str(dtype): (dtype, None) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
QUANTISED = {
    f"{name}-{dtype}": (dtype, name) for name in ("int8", "float8_e4m3") for dtype in (torch.float32, torch.bfloat16)
}
TYPES = {name.replace("torch.", ""): pair for name, pair in (EXACT | QUANTISED).items()}


@pytest.fixture(autouse=True)
def numpy_is_quiet() -> Iterator[None]:
    """Triton's interpreter computes with NumPy, which would warn of every infinity and NaN."""
    with np.errstate(all="ignore"):
        yield


@dataclass(frozen=True)
class Place:
    """A token of the segment or a slot of the ring, in a lane."""

    lane: int
    index: int
    in_ring: bool


class Scene:
    """A call in the middle of a stream: rings that wrap, and segments that hold borders of pieces and end early."""

    def __init__(self, tokens: int, dtype: torch.dtype, storage: str | None, window: str, stride: int) -> None:
        self.tokens, self.dtype, self.storage, self.window = tokens, dtype, storage, window
        self.retention = Retention(stride)
        generator = torch.Generator("cpu").manual_seed(tokens)
        self.inputs = [
            random_normal(generator, LANES, tokens, n, DIM).to(dtype) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)
        ]
        self.ring = [random_normal(generator, *self.stack()[0].k.shape) for _ in "kv"]
        self.start = torch.zeros(LANES, tokens, dtype=torch.int64)
        self.start[1, tokens // 2 :] = tokens // 2  # a piece begins there
        self.length = torch.tensor([tokens, max(1, tokens - 2)])

    def stack(self) -> MemoryStack:
        stack = MemoryStack(
            [HORIZON], LANES, KV_HEADS, DIM, self.tokens, self.dtype, storage=self.storage, retention=self.retention
        )
        stack.clock.state[0] = torch.tensor([45, 44])
        stack.clock.state[1] = torch.tensor([40, 7])
        return stack

    def filled(self) -> MemoryStack:
        stack = self.stack()
        ring = stack[0]
        for x, values, scales in ((self.ring[0], ring.k, ring.k_scale), (self.ring[1], ring.v, ring.v_scale)):
            if scales is None:
                values.copy_(x)
            else:
                for target, source in zip((values, scales), quantise(x, values.dtype), strict=True):
                    target.copy_(source)
        return stack

    def seen(self, place: Place) -> Tensor:
        """Which queries of the place's lane see it, `[T]`."""
        query = torch.arange(self.tokens)
        start, real = self.start[place.lane], query < self.length[place.lane]
        if not place.in_ring:
            key = place.index
            seen = real & (key <= query) & (key >= start) & (key < self.length[place.lane])
        else:
            stack = self.stack()
            position, length, phase = stack.clock.state[:, place.lane].tolist()
            slots = {
                slot: key
                for run in stack[0].geometry.visible(HORIZON, self.window, position, length, phase)
                for slot, key in zip(range(run.start, run.stop), run.positions, strict=True)
            }
            key = slots.get(place.index)
            seen = real & (start == 0) if key is not None else torch.zeros_like(real)
        return seen & (query - key < HORIZON) if self.window == "token" and key is not None else seen

    def places(self) -> list[Place]:
        """The first and last of everything, and what lies beside every border; all, if there are not many."""
        half, end = self.tokens // 2, int(self.length[1])
        tokens = {0, 1, half - 1, half, half + 1, end - 1, end, self.tokens - 1} & set(range(self.tokens))
        capacity = self.stack()[0].geometry.capacity
        slots = {0, 1, 2, capacity - 1} | {(44 - back) % capacity for back in (0, 1, 2, 7, 8, 11, 12)}
        if self.retention.stride > 1:
            slots = set(range(0, capacity, 3))
        lanes = range(LANES)
        return [
            *(Place(lane, i, False) for lane in lanes for i in sorted(tokens)),
            *(Place(lane, i, True) for lane in lanes for i in sorted(slots)),
        ]

    def results(self, impl: str, place: Place | None = None, what: str = "k", value: float = math.nan) -> list[Tensor]:
        """o, lse, dq, dk and dv; what is put in a place comes with a NaN cotangent for every row that sees it."""
        stack = self.filled()
        q, k, v, do = (x.clone() for x in self.inputs)
        if place is not None:
            do[place.lane, self.seen(place)] = math.nan
            for name, x, ring, scale in (
                ("k", k, stack[0].k, stack[0].k_scale),
                ("v", v, stack[0].v, stack[0].v_scale),
            ):
                if name not in what:
                    continue
                if not place.in_ring:
                    x[place.lane, place.index, 0, 3] = value
                elif scale is not None:
                    scale[place.lane, 0, place.index] = value
                else:
                    ring[place.lane, 0, place.index, 3] = value
            if not place.in_ring and place.index >= self.length[place.lane]:
                q[place.lane, place.index] = do[place.lane, place.index] = value
        q, k, v = (x.requires_grad_() for x in (q, k, v))
        o, lse = recurrent_attention(
            *(q, k, v, stack[0]),
            window=self.window,
            segment_start=self.start,
            segment_len=self.length,
            return_lse=True,
            impl=impl,
        )
        grads = torch.autograd.grad(o, (q, k, v), do)
        return [o.detach(), lse.detach().transpose(1, 2), *grads]

    def may_differ(self, place: Place) -> list[Tensor]:
        """`[B, T]` for each of the results."""
        rows = torch.zeros(LANES, self.tokens, dtype=torch.bool)
        rows[place.lane] = self.seen(place)
        keys = torch.zeros_like(rows)
        for i in range(self.tokens):
            keys[place.lane, i] = bool((self.seen(Place(place.lane, i, False)) & rows[place.lane]).any())
        return [rows, rows, rows, keys, keys]

    def check(self, impl: str, place: Place, clean: list[Tensor], what: str, value: float) -> None:
        poisoned = self.results(impl, place, what, value)
        for name, got, want, differ in zip(
            ("o", "lse", "dq", "dk", "dv"), poisoned, clean, self.may_differ(place), strict=True
        ):
            got, want = got[~differ].double(), want[~differ].double()
            assert torch.equal(got.isinf(), want.isinf()), f"{name}: {value} in {what} at {place}"
            got, want = (x.masked_fill(x.isinf(), 0) for x in (got, want))
            # The same sums, perhaps in another order: every term is rounded once more, and the result to its type.
            eps = torch.finfo(self.dtype).eps + 2 * (self.tokens + HORIZON) * 2**-24
            largest = float(want.abs().max()) if want.numel() else 0.0
            error = float((got - want).abs().max()) if want.numel() else 0.0
            assert error <= eps * largest, f"{name}: off by {error} for {value} in {what} at {place}"


def check(impl: str, kind: str, tokens: int, window: str, stride: int = 1) -> None:
    dtype, storage = TYPES[kind]
    if reason := refusal(impl, dtype):
        pytest.skip(reason)
    scene = Scene(tokens, dtype, storage, window, stride)
    clean = scene.results(impl)
    for i, place in enumerate(scene.places()[:: 9 if INTERPRETED else 1]):
        scene.check(impl, place, clean, "kv"[i % 2], (math.nan, math.inf, -math.inf)[i % 3])


@pytest.mark.parametrize("window", ["segment", "token"])
@pytest.mark.parametrize("tokens", [1, 2, 16, 33, 256] if not INTERPRETED else [1, 33])
@pytest.mark.parametrize("kind", TYPES)
def test_law_6_hidden_is_hidden(impl: str, kind: str, tokens: int, window: str) -> None:
    check(impl, kind, tokens, window)


@pytest.mark.parametrize("tokens", [2, 40])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8-float32"])
def test_law_6_hidden_is_hidden_under_retention(impl: str, kind: str, tokens: int) -> None:
    check(impl, kind, tokens, "segment", 3)
