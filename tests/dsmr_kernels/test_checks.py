"""All that native code relies on is checked where it enters: types, shapes and devices of a state, and its numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from dsmr_kernels import Clock, Geometry, MemoryStack, Retention, RingMemory, ops, recurrent_attention
from dsmr_kernels.backends import Call

LARGEST = 2**63 - 1


def make(storage: str | None = None, **changes: object) -> MemoryStack:
    arguments = {"lanes": 2, "kv_heads": 1, "head_dim": 16, "max_segment": 8, "storage": storage} | changes
    return MemoryStack([8], **arguments)


def segment(tokens: int = 4) -> Tensor:
    return torch.randn(2, tokens, 1, 16)


def fed(impl: str | None = None, **changes: object) -> MemoryStack:
    """Two calls on the same ring: the next one would be repeated."""
    stack = make(**changes)
    for _ in range(2):
        recurrent_attention(*(segment(1),) * 3, stack[0], impl=impl)
        stack.advance(1)
    return stack


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def unchanged(stack: MemoryStack, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float32, torch.float64, torch.int8, None, 1.5])
def test_a_stack_moves_to_devices_only(target: object) -> None:
    with pytest.raises(TypeError, match=r"device: expected a device, got .*made anew, MemoryStack\(..., dtype=...\)"):
        make().to(target)
    assert make().to("cpu").device == make().to(torch.device("cpu")).device == torch.device("cpu")


WRONG_RINGS: dict[str, tuple[Callable[[RingMemory], dict[str, object]], str]] = {
    "written int32": (lambda r: {"written": r.written.int()}, "written: expected torch.int64"),
    "written float": (lambda r: {"written": r.written.bfloat16()}, "written: expected torch.int64"),
    "written shape": (lambda r: {"written": r.written[:1]}, r"written: expected \[2\]"),
    "written expanded": (lambda r: {"written": r.written[:1].expand(2)}, "written: expected memory of its own"),
    "written strided": (lambda r: {"written": torch.zeros(4, dtype=torch.int64)[::2]}, "written: expected a contig"),
    "horizon int32": (lambda r: {"horizon": r.horizon.int()}, "horizon: expected torch.int64"),
    "horizon shape": (lambda r: {"horizon": r.horizon[None]}, r"horizon: expected \[\]"),
    "horizon device": (lambda r: {"horizon": r.horizon.to("meta")}, "horizon: expected .* on cpu, got .* on meta"),
    "k int32": (lambda r: {"k": r.k.int()}, "k: expected one of"),
    "k slots": (lambda r: {"k": r.k[:, :, 1:]}, r"k: expected \[B, Hkv, 16, D\]"),
    "k expanded": (lambda r: {"k": r.k[:, :, :1].expand_as(r.k)}, "k: expected memory of its own"),
    "v dtype": (lambda r: {"v": r.v.double()}, "v: expected torch"),
    "v shape": (lambda r: {"v": r.v[:1]}, r"v: expected \[2, 1, 16, 16\]"),
    "v device": (lambda r: {"v": r.v.to("meta")}, "v: expected .* on cpu, got .* on meta"),
    "clock lanes": (lambda r: {"clock": Clock(torch.zeros(3, 1, dtype=torch.int64))}, r"clock: expected \[3, 2\]"),
    "clock device": (lambda r: {"clock": Clock(r.clock.state.to("meta"))}, "clock: expected .* on cpu, got"),
    "geometry": (lambda r: {"geometry": replace(r.geometry, archive=10**6)}, r"k: expected \[B, Hkv, 1000000, D\]"),
}


@pytest.mark.parametrize("storage", [None, "int8", "float8_e4m3"])
@pytest.mark.parametrize(("change", "message"), WRONG_RINGS.values(), ids=WRONG_RINGS.keys())
def test_rings_made_by_hand_are_checked(
    change: Callable[[RingMemory], dict[str, object]], message: str, storage: str | None
) -> None:
    ring = make(storage)[0]
    with pytest.raises((TypeError, ValueError), match=message):
        replace(ring, **change(ring))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"k_scale": r.k_scale.half()}, "k_scale: expected torch.float32"),
        (lambda r: {"v_scale": r.v_scale[:, :, 1:]}, r"v_scale: expected \[2, 1, 16\]"),
        (lambda r: {"v_scale": r.v_scale[:, :, :1].expand(2, 1, 16)}, "v_scale: expected memory of its own"),
        (lambda r: {"k_scale": None}, "k_scale, v_scale: expected both"),
        (lambda r: {"k": r.k.float(), "v": r.v.float()}, "k_scale, v_scale: expected both .* none for others"),
    ],
    ids=["half", "shape", "expanded", "missing", "exact"],
)
def test_scales_are_checked(change: Callable[[RingMemory], dict[str, object]], message: str) -> None:
    ring = make("int8")[0]
    with pytest.raises((TypeError, ValueError), match=message):
        replace(ring, **change(ring))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(3, 2), "clock: expected an int64 tensor, got torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int32), "clock: expected an int64 tensor, got torch.int32"),
        ([[0], [0], [0]], "clock: expected an int64 tensor, got list"),
        (torch.zeros(2, 3, dtype=torch.int64), r"clock: expected a contiguous \[3, B\], got \[2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.int64).T, r"clock: expected a contiguous \[3, B\], got \[3, 2\], strides"),
        (torch.zeros(3, dtype=torch.int64), r"clock: expected a contiguous \[3, B\]"),
    ],
    ids=["float", "int32", "list", "shape", "transposed", "vector"],
)
def test_clocks_made_by_hand_are_checked(state: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Clock(state)


def test_a_clocks_tensor_and_a_rings_tensors_cannot_be_exchanged() -> None:
    stack = fed()
    with pytest.raises(AttributeError):
        stack.clock.state = stack.clock.state.bfloat16()
    with pytest.raises(AttributeError):
        stack[0].written = stack[0].written.int()


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_stack_go_on(way: Callable[[MemoryStack], MemoryStack]) -> None:
    stack = fed()
    before = copied(stack.state_dict())
    twin = way(stack)
    x = segment()
    assert torch.equal(
        recurrent_attention(x, x, x, twin[0], append=False), recurrent_attention(x, x, x, stack[0], append=False)
    )
    assert unchanged(twin, before)


ANY_NUMBER = st.one_of(
    st.integers(-(2**63), LARGEST), st.sampled_from([LARGEST, -(2**63), -1, 2**62, 2**62 + 1, 9, 40])
)


@given(
    row=st.integers(0, 3),
    number=ANY_NUMBER,
    tokens=st.sampled_from([1, 4, 8]),
    window=st.sampled_from(["segment", "token"]),
    options=st.sampled_from([{}, {"storage": "int8"}, {"retention": Retention(3)}]),
)
@example(row=2, number=LARGEST, tokens=8, window="segment", options={})
@example(row=3, number=LARGEST, tokens=1, window="segment", options={})
def test_no_number_of_a_clock_leads_out_of_a_ring(
    impl: str, row: int, number: int, tokens: int, window: str, options: dict[str, object]
) -> None:
    """Refused, with nothing written, or served within the ring: `row` 3 is the horizon."""
    if "retention" in options:
        window = "segment"
    stack = make(**options)
    x = segment(tokens)
    for _ in range(2):
        recurrent_attention(x, x, x, stack[0], window=window, impl=impl)
    stack.advance(tokens)
    (stack[0].horizon if row == 3 else stack.clock.state[row])[...] = number
    position, length, phase = stack.clock.state[:, 0].tolist()
    before = copied(stack.state_dict())
    possible = 0 <= length <= position <= 2**62 and 0 <= phase <= 8 - tokens and 0 <= int(stack[0].horizon) <= 8
    refused = ""
    try:
        out = recurrent_attention(x, x, x, stack[0], window=window, impl=impl)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert not possible
        assert refused.startswith(("memory: expected a position and a length", "q: lane 0 is at token"))
        assert unchanged(stack, before)
    else:
        assert out.isfinite().all()
        assert all(tensor.float().isfinite().all() for tensor in (stack[0].k, stack[0].v))


def strangers() -> Iterator[tuple[str, dict[str, object], str]]:
    """A saved state's tensor, numbers to write into it and what is said of them."""
    for row in range(3):
        for number in (LARGEST, -(2**63), -1, 2**62 + 1):
            yield "clock", {"row": row, "number": number}, r"state\['clock'\]: expected 0 <= length <= position"
    yield "clock", {"row": 1, "number": 3}, r"state\['clock'\]: .* got position 2, length 3 and phase 0 for lane 1"
    yield "clock", {"row": 2, "number": 8}, r"state\['clock'\]: .* phase < max_segment=8"
    for number in (LARGEST, -1, 11):
        yield "layers.0.written", {"number": number}, r"state\['layers.0.written'\]: expected numbers from 0 to"
    for number in (LARGEST, -1, 9):
        yield "horizons", {"number": number}, "horizons: expected"


@pytest.mark.parametrize(("name", "written", "message"), list(strangers()))
@pytest.mark.parametrize("in_graph", [False, True], ids=["idle", "in-graph"])
def test_a_strangers_state_is_refused_and_changes_nothing(
    name: str, written: dict[str, int], message: str, in_graph: bool
) -> None:
    stack = fed()
    stack.clock.in_graph = in_graph
    before, state = copied(stack.state_dict()), copied(stack.state_dict())
    state["layers.0.k"].fill_(7)
    target = state[name][written["row"], 1:] if "row" in written else state[name][-1:]
    target.fill_(written["number"])
    with pytest.raises(ValueError, match=message):
        stack.load_state_dict(state)
    assert unchanged(stack, before)


@pytest.mark.parametrize("value", [[1, 2], None, np.zeros((3, 2), dtype=np.int64)], ids=["list", "None", "array"])
def test_a_saved_state_holds_tensors(value: object) -> None:
    stack = fed()
    with pytest.raises(ValueError, match=r"state\['clock'\]: expected a tensor, got"):
        stack.load_state_dict({**stack.state_dict(), "clock": value})


@pytest.mark.parametrize("starts", [[0, 3, 3, 3], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, LARGEST]])
def test_starts_of_an_operators_call_are_checked(impl: str, starts: list[int]) -> None:
    """A recorded graph brings them without the check of `recurrent_attention`."""
    stack, x = make(), segment()
    for start, length in ((torch.tensor([[0] * 4, starts]), None), (None, torch.tensor([4, LARGEST]))):
        call = Call(x, x, x, stack[0], "segment", start, length, None, 0.25, 0.0, True)
        with pytest.raises(ValueError, match=r"segment_start: expected non-decreasing|segment_len: expected values"):
            torch.ops.dsmr_kernels.attend_(*ops._flatten(call, impl))
    assert not stack[0].written.any()


def test_a_ring_of_no_slots_takes_no_append(impl: str) -> None:
    lanes, clock = 2, Clock(torch.zeros(3, 2, dtype=torch.int64))
    geometry = Geometry(archive=0, recent=0, max_segment=4, retention=Retention())
    ring = RingMemory.empty(lanes, 1, 16, 0, geometry, clock, torch.float32, torch.device("cpu"))
    x = segment()
    with pytest.raises(ValueError, match="append: expected False for a ring of no slots, got True"):
        recurrent_attention(x, x, x, ring, impl=impl)
    assert torch.equal(
        recurrent_attention(x, x, x, ring, append=False, impl=impl), recurrent_attention(x, x, x, impl=impl)
    )


@pytest.mark.parametrize("name", ["lanes", "kv_heads", "head_dim", "max_segment", "segments_in_flight"])
def test_sizes_are_no_bools(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1, got True"):
        make(**{name: True})


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.advance(True),
        lambda s: s.advance(1, segment_size=True),
        lambda s: s.set_horizons([True]),
        lambda s: s.set_horizons(torch.tensor([True])),
        lambda s: MemoryStack([True, 8], 1, 1, 16, 4),
        lambda s: Retention(True),
        lambda s: s[0].export(True),
        lambda s: s[0].export(-1),
        lambda s: s[0].export(0, "sentence"),
        lambda s: recurrent_attention(*(segment(),) * 3, s[0], scale=True),
        lambda s: recurrent_attention(*(segment(),) * 3, s[0], softcap=True),
        lambda s: s.reset([True, 1]),
        lambda s: s.reset([1, False]),
        lambda s: s.reset(True),
        lambda s: s.reset(np.True_),
        lambda s: s.reset([False, False, True]),
        lambda s: s.reset(np.array([True])),
        lambda s: s.reset([[False, True]]),
        lambda s: s.reset(torch.tensor([0, 1], dtype=torch.uint8)),
        lambda s: s.reset(torch.tensor([0.0, 1.0])),
    ],
)
def test_bools_and_integers_are_not_mistaken_for_each_other(call: Callable[[MemoryStack], object]) -> None:
    stack = fed()
    before = copied(stack.state_dict())
    with pytest.raises((TypeError, ValueError), match=": expected"):
        call(stack)
    assert unchanged(stack, before)


@pytest.mark.parametrize(
    "lanes",
    [
        [False, True],
        (False, True),
        [np.False_, np.True_],
        np.array([False, True]),
        torch.tensor([False, True]),
        [1],
        np.array([1]),
        torch.tensor([1], dtype=torch.int32),
        range(1, 2),
    ],
    ids=repr,
)
def test_reset_takes_masks_and_numbers_of_every_kind(lanes: object) -> None:
    stack = fed()
    stack.reset(lanes)
    assert stack.clock.length.tolist() == [2, 0]
    stack.reset([])
    assert stack.clock.length.tolist() == [2, 0]


@pytest.mark.parametrize("in_graph", [False, True], ids=["idle", "in-graph"])
def test_a_loaded_state_stays_the_callers(in_graph: bool) -> None:
    stack = fed()
    saved, before = copied(stack.state_dict()), copied(stack.state_dict())
    x = segment().requires_grad_(in_graph)
    recurrent_attention(x, x, x, stack[0]).sum()
    stack.load_state_dict(saved)
    assert unchanged(stack, before)
    for _ in range(2):
        with torch.no_grad():
            recurrent_attention(x, x, x, stack[0])
            stack.advance(4)
        stack.set_horizons([3])
        stack.reset()
    assert all(torch.equal(saved[name], before[name]) for name in saved)
    own = {tensor.data_ptr() for tensor in stack.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in saved.values()}


@pytest.fixture
def other_default_device() -> Iterator[None]:
    """A default device that is not the stack's: "meta" stands for a GPU."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("other_default_device")
@pytest.mark.parametrize("options", [{}, {"storage": "int8"}, {"retention": Retention(3)}], ids=str)
def test_the_default_device_changes_nothing(impl: str, options: dict[str, object]) -> None:
    stack = make(device="cpu", **options)
    x = torch.randn(2, 4, 1, 16, device="cpu").requires_grad_()
    start = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]], device="cpu")
    length = torch.tensor([4, 3], device="cpu")
    slopes = torch.tensor([0.5], device="cpu")
    recurrent_attention(x, x, x, stack[0], segment_start=start, segment_len=length, impl=impl).sum().backward()
    stack.advance(4, start, length)
    recurrent_attention(x, x, x, stack[0], alibi_slopes=slopes, impl=impl).sum().backward()
    recurrent_attention(x, x, x, impl=impl)
    stack.reset([1])
    stack.reset([True, False])
    stack.set_horizons([4])
    stack[0].export(0)
    saved = copied(stack.state_dict())
    assert {tensor.device.type for tensor in saved.values()} == {"cpu"}
    twin = make(device="cpu", **options)
    twin.load_state_dict(saved)
    assert unchanged(twin.to("cpu"), saved)
