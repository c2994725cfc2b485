"""Decoding over int8 memory, which some machines multiply as bytes: hostile sizes, any count, what is no number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsmr_kernels import MemoryStack, recurrent_attention
from dsmr_kernels.backends.cpu import library

pytestmark = pytest.mark.skipif(library.absence() is not None, reason=str(library.absence()))
EPS = torch.finfo(torch.float32).eps
AVAILABLE = library.load().available if library.absence() is None else ("scalar",)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    native = library.load()
    before = native.isa
    native.use(name)
    try:
        yield
    finally:
        native.use(before)


@dataclass(frozen=True)
class Case:
    """One new token after `slots` visible ones, in a ring that holds exactly those and may have wrapped."""

    slots: int = 130
    heads: tuple[int, int] = (4, 1)
    dim: int = 64
    turn: int = 0  # how far the ring has wrapped
    size: float = 1.0  # of the queries; key scales make up for it
    value_size: float = 1.0
    peak: bool = False  # one element of each query is 10,000 times the others
    peaked: bool = False  # one key far above the others
    zero_row: bool = False
    softcap: float = 0.0
    alibi: bool = False
    seed: int = 0

    def stack(self, dtype: torch.dtype, storage: str | None) -> MemoryStack:
        stack = MemoryStack([self.slots], 1, self.heads[1], self.dim, 1, dtype, storage=storage)
        stack.clock.state.copy_(torch.tensor([[self.slots + self.turn], [self.slots], [0]]))
        return stack

    def options(self) -> dict:
        chosen: dict = {"scale": self.dim**-0.5, "softcap": self.softcap}
        if self.alibi:
            chosen["alibi_slopes"] = torch.linspace(0, 0.1, self.heads[0])
        return chosen


def fill(case: Case) -> tuple[MemoryStack, tuple[Tensor, Tensor, Tensor]]:
    """An int8 ring of any bytes and scales, and q, k and v of a new token."""
    generator = torch.Generator().manual_seed(case.seed)
    stack = case.stack(torch.float32, "int8")
    ring = stack[0]
    for data, scale, size in ((ring.k, ring.k_scale, 0.01 / case.size), (ring.v, ring.v_scale, case.value_size / 127)):
        data.copy_(torch.randint(-128, 128, data.shape, generator=generator))
        scale.copy_(size * torch.rand(scale.shape, generator=generator))
    if case.peaked:
        ring.k_scale[..., case.seed % ring.k.shape[2]] *= 30
    heads, kv_heads = case.heads
    q, k, v = (torch.randn(1, 1, n, case.dim, generator=generator) for n in (heads, kv_heads, kv_heads))
    if case.peak:
        q[..., case.seed % case.dim] *= 1e4
        q *= 1e-4
    if case.zero_row:
        q[:, :, -1] = 0
    return stack, (q * case.size, k / case.size, v * case.value_size)


def attend(stack: MemoryStack, given: tuple[Tensor, ...], case: Case, impl: str) -> tuple[Tensor, Tensor]:
    q, k, v = given
    return recurrent_attention(q, k, v, stack[0], return_lse=True, impl=impl, **case.options())


def exact_ring(case: Case, stack: MemoryStack) -> MemoryStack:
    exact = case.stack(torch.float64, None)
    for name in ("k", "v"):
        values, scales = getattr(stack[0], name).double(), getattr(stack[0], f"{name}_scale").double()
        getattr(exact[0], name).copy_(values * scales[..., None])
    return exact


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 2))
    return Case(
        slots=draw(st.integers(1, 130)),
        heads=(kv_heads * draw(st.integers(1, 8)), kv_heads),
        dim=draw(st.sampled_from([64, 64, 128, 256, 32, 96])),
        turn=draw(st.integers(0, 130)),
        size=draw(st.sampled_from([1.0, 1e-30, 1e30, 1e-20, 1e20, 1e-33])),
        value_size=draw(st.sampled_from([1.0, 1e-36, 1e-20, 1e20, 1e30])),
        peak=draw(st.booleans()),
        peaked=draw(st.booleans()),
        zero_row=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 0.0, 5.0])),
        alibi=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


@settings(max_examples=200, deadline=None)
@given(case=cases(), isa=st.sampled_from(AVAILABLE))
def test_decoding_int8_memory_computes_the_definition(case: Case, isa: str) -> None:
    """Against float64. The bound counts roundings, each of half an eps, where nothing cancels:

    - a logit: the query's element to 3 eps of the row's largest (roundings of a quotient and a product, half a unit),
      four integers to floats, five sums, four factors: together 8 eps of scale x sum |k| x max |q|; softcap and slopes
      work on what is as large as the largest logit, by 8 operations more;
    - an output: twice the largest error of a logit, which moves weights and their sum, 16 eps for the exponential and
      the sums, and a quarter of an eps a slot for weights of 24 bits of the largest: all of the largest value.
    """
    stack, given = fill(case)
    want_o, want_lse = attend(exact_ring(case, stack), tuple(x.double() for x in given), case, "eager")
    q = given[0].double().abs().amax(-1)
    keys = torch.cat([exact_ring(case, stack)[0].k.abs().sum(-1).flatten(), given[1].double().abs().sum(-1).flatten()])
    values = max(float(exact_ring(case, stack)[0].v.abs().max()), float(given[2].abs().max()))
    product = case.dim**-0.5 * float(q.max() * keys.max())
    distance = 0.1 * case.slots if case.alibi else 0.0
    logit = 8 * EPS * (2 * product + case.softcap + distance)
    with instruction_set(isa):
        o, lse = attend(stack, given, case, "cpu")
    error = float((lse.double() - want_lse).abs().max())
    allowed = logit + 16 * EPS * (1 + float(want_lse.abs().max()))
    assert error <= allowed, f"lse: error {error:.2e}, allowed {allowed:.2e}"
    error = float((o.double() - want_o).abs().max())
    allowed = values * (2 * logit + (16 + case.slots / 4) * EPS) + torch.finfo(torch.float32).tiny
    assert error <= allowed, f"o: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (4, 1), (8, 1), (8, 8)])
def test_bytes_err_no_more_than_floats_do(heads: tuple[int, int], isa: str) -> None:
    """The bound of the definition is that of the worst case, below which a forgotten third byte would hide: its error
    is 100 times that of floats. Root of the mean square over 64 outputs a head, at most twice that of `scalar`."""
    case = Case(slots=1000, heads=heads, size=0.1)
    stack, given = fill(case)
    want, _ = attend(exact_ring(case, stack), tuple(x.double() for x in given), case, "eager")
    errors = []
    for each in (isa, "scalar"):
        with instruction_set(each):
            o, _ = attend(stack, given, case, "cpu")
        errors.append(float((o.double() - want).square().mean().sqrt()))
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("isa", AVAILABLE)
@pytest.mark.parametrize("slots", [1, 2, 3, 4, 15, 17, 63, 64, 65, 129])
def test_what_lies_beyond_the_last_slot_is_not_read(isa: str, slots: int) -> None:
    """Rings of many slots of which a few are visible: the others are hidden, whatever they hold."""
    case = Case(slots=slots, heads=(3, 1))
    answers = []
    for poison in (0.0, float("nan")):
        stack = MemoryStack([slots], 1, 1, 64, 40, torch.float32, storage="int8")
        stack.clock.state.copy_(torch.tensor([[slots], [slots], [0]]))
        filled, given = fill(case)
        for name in ("k", "v", "k_scale", "v_scale"):
            whole, part = getattr(stack[0], name), getattr(filled[0], name)
            whole.fill_(poison) if whole.is_floating_point() else whole.fill_(77)
            whole[:, :, :slots] = part[:, :, :slots]
        with instruction_set(isa):
            answers.append(attend(stack, given, case, "cpu"))
    for x, y in zip(*answers, strict=True):
        assert x.isfinite().all()
        assert torch.equal(x, y)


@pytest.mark.parametrize("isa", [name for name in AVAILABLE if name != "scalar"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -1.0])
@pytest.mark.parametrize("where", ["q", "k_scale", "v_scale"])
def test_what_is_no_number_stays_none(isa: str, where: str, bad: float) -> None:
    """As among floats, which is what `scalar` computes with; negative scales are unusual, and no error."""
    case = Case(slots=100, heads=(4, 2))
    found = []
    for name in ("scalar", isa):
        stack, given = fill(case)
        if where == "q":
            given[0][0, 0, 1, 5] = bad
        else:
            getattr(stack[0], where)[0, 0, 7] *= bad
        with instruction_set(name):
            found.append(attend(stack, given, case, "cpu"))
    for want, got in zip(*found, strict=True):
        assert torch.equal(want.isnan(), got.isnan())
        assert torch.equal(want.isinf(), got.isinf())
        assert torch.allclose(want.nan_to_num(0, 0, 0), got.nan_to_num(0, 0, 0), rtol=1e-4, atol=1e-5)
    others = [0, 2, 3] if where == "q" else [2, 3]
    assert found[1][0][0, 0, others].isfinite().all()  # rows and heads that do not notice
