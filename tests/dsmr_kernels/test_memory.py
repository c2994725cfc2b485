"""The state: bytes, saving, moving, resetting, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from dsmr_kernels import MemoryStack, Retention, recurrent_attention, ring_bytes

STORAGES = [None, "int8", "float8_e4m3"]


def make(horizons: tuple[int, ...] = (6, 0, 20), storage: str | None = None, **changes) -> MemoryStack:
    arguments = {"lanes": 2, "kv_heads": 2, "head_dim": 8, "max_segment": 8, "storage": storage} | changes
    return MemoryStack(horizons, **arguments)


def feed(stack: MemoryStack, segments: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for _ in range(segments):
        for ring in stack:
            q, k, v = (torch.randn(2, 5, heads, 8, generator=generator) for heads in (4, 2, 2))
            outputs.append(recurrent_attention(q, k, v, ring))
        stack.advance(5)
    return outputs


@pytest.mark.parametrize("storage", STORAGES)
def test_saved_state_continues_exactly(storage: str | None) -> None:
    stack, restored = make(storage=storage), make(storage=storage)
    feed(stack, 4)
    stack.reset([1])
    restored.load_state_dict(load(save({k: v.clone() for k, v in stack.state_dict().items()})))
    for x, y in zip(feed(stack, 3, seed=1), feed(restored, 3, seed=1), strict=True):
        assert torch.equal(x, y)


def test_moved_state_is_a_copy() -> None:
    stack = make()
    feed(stack, 3)
    copy = stack.to("cpu")
    before = {name: x.clone() for name, x in copy.state_dict().items()}
    feed(stack, 2)
    for name, x in copy.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert all(ring.clock is copy.clock for ring in copy)
    assert repr(copy).startswith("MemoryStack(horizons=[6, 0, 20], lanes=2")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("retention", [None, Retention(4)], ids=["all", "stride4"])
def test_bytes_are_those_of_the_tensors(storage: str | None, dtype: torch.dtype, retention: Retention | None) -> None:
    stack = make(storage=storage, dtype=dtype, retention=retention)
    for ring, size in zip(stack, stack.bytes_per_layer, strict=True):
        held = sum(x.nbytes for name, x in ring.tensors().items() if name != "written")
        assert held == 2 * size == 2 * ring_bytes(ring.geometry.capacity, 2, 8, dtype, storage)
    assert stack.bytes_per_lane == sum(stack.bytes_per_layer)


def test_reset_takes_numbers_masks_or_nothing() -> None:
    for lanes in ([1], torch.tensor([False, True]), torch.tensor([1])):
        stack = make()
        feed(stack, 2)
        stack.reset(lanes)
        assert stack.clock.length.tolist() == [10, 0]
        assert stack.clock.position.tolist() == [10, 10]
    stack.advance(3, segment_size=8)
    stack.reset()
    assert stack.clock.length.tolist() == stack.clock.phase.tolist() == [0, 0]


def test_advance_follows_ragged_segments() -> None:
    stack = make(lanes=4)
    feed_start = torch.tensor([[0] * 8, [0] * 3 + [3] * 5, [0] * 8, [0] * 2 + [2] * 3 + [5] * 3])
    stack.advance(8)
    stack.advance(8, segment_start=feed_start, segment_len=torch.tensor([8, 8, 0, 4]))
    assert stack.clock.position.tolist() == [16, 16, 8, 12]
    assert stack.clock.length.tolist() == [16, 5, 8, 2]


def test_phase_counts_the_open_segment_and_idle_lanes_keep_theirs() -> None:
    stack = make()
    for count in (3, 3):
        stack.advance(count, segment_len=torch.tensor([count, 0]), segment_size=8)
    assert stack.clock.phase.tolist() == [6, 0]
    stack.advance(2, segment_len=torch.tensor([2, 1]), segment_size=8)
    assert stack.clock.phase.tolist() == [0, 1]


def test_a_clock_that_a_graph_may_need_is_replaced_and_any_other_moved_in_place() -> None:
    stack = make()
    state = stack.clock.state
    with torch.no_grad():
        feed(stack, 1)
    assert stack.clock.state is state
    x = torch.randn(2, 5, 2, 8, requires_grad=True)
    recurrent_attention(x, x, x, stack[0])
    with torch.no_grad():
        stack.advance(5)
    assert stack.clock.state is not state
    assert state[0].tolist() == [5, 5]
    old = stack.clock.state
    stack.advance(5)  # reentrant checkpointing runs its first pass without a graph
    assert stack.clock.state is not old
    assert old[0].tolist() == [10, 10]


def test_horizons_that_a_graph_may_need_are_replaced_and_any_other_written_in_place() -> None:
    stack = make()
    horizons = [ring.horizon for ring in stack]
    with torch.no_grad():
        stack.set_horizons([1, 0, 2])
    assert all(ring.horizon is old for ring, old in zip(stack, horizons, strict=True))
    stack.set_horizons([6, 0, 20])
    assert [int(x) for x in horizons] == [1, 0, 2]
    old = stack[2].horizon
    stack.advance(5)
    with torch.no_grad():
        stack.set_horizons([1, 0, 1])
    assert int(old) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizons": ()}, "horizons: expected"),
        ({"horizons": (4, -1)}, r"horizons: expected integers >= 0, one per layer, got \[4, -1\]"),
        ({"horizons": (1.5,)}, r"horizons: expected a sequence of integers, got \(1.5,\)"),
        ({"horizons": 8}, "horizons: expected a sequence of integers, got 8"),
        ({"lanes": 0}, "lanes: expected an integer of at least 1, got 0"),
        ({"kv_heads": 0}, "kv_heads: expected"),
        ({"head_dim": -3}, "head_dim: expected"),
        ({"max_segment": 2.0}, "max_segment: expected"),
        ({"segments_in_flight": 0}, "segments_in_flight: expected"),
        ({"storage": "int4"}, r"storage: expected None or one of \['float8_e4m3', 'int8'\], got 'int4'"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_bad_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_arguments_of_a_wrong_type_are_named() -> None:
    with pytest.raises(TypeError, match=r"dtype: expected one of .* got torch.int8"):
        make(dtype=torch.int8)
    with pytest.raises(TypeError, match=r"retention: expected None or a Retention, got int"):
        make(retention=3)
    with pytest.raises(TypeError, match=r"segment_len: expected an int64 or int32 tensor, got list"):
        make().advance(2, segment_len=[1, 2])


def test_piecemeal_tokens_end_with_their_segment() -> None:
    stack = make()
    stack.advance(3, segment_size=4)
    with pytest.raises(ValueError, match=r"tokens: expected a segment to end after segment_size=4, got \[5, 5\]"):
        stack.advance(2, segment_size=4)
    stack.advance(1, segment_size=4)
    assert stack.clock.phase.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.advance(0), "tokens: expected an integer from 1 to max_segment=8, got 0"),
        (lambda s: s.advance(9), "tokens: expected"),
        (lambda s: s.advance(4, segment_size=3), "segment_size: expected an integer from tokens=4 to 8, got 3"),
        (lambda s: s.advance(4, segment_size=9), "segment_size: expected"),
        (lambda s: s.advance(4, segment_size=4.5), "segment_size: expected an integer"),
        (
            lambda s: s.advance(4, segment_len=torch.tensor([4])),
            r"segment_len: expected \[2\] on cpu, got \[1\] on cpu",
        ),
        (lambda s: s.advance(4, segment_len=torch.tensor([4, 5])), "segment_len: expected values from 0 to T=4"),
        (lambda s: s.advance(4, torch.zeros(2, 5, dtype=torch.int64)), r"segment_start: expected \[2, 4\] on cpu"),
        (lambda s: s.advance(2, torch.tensor([[0, 2], [0, 0]])), "segment_start: expected non-decreasing rows"),
        (lambda s: s.reset(1), "lanes: expected a sequence of integers, got 1"),
        (lambda s: s.reset([0.7]), "lanes: expected a sequence of integers"),
        (lambda s: s.reset([2]), r"lanes: expected numbers from 0 to 1, got \[2\]"),
        (lambda s: s.reset(torch.tensor([True])), r"lanes: expected a mask of shape \[2\], got \[1\]"),
        (
            lambda s: s.set_horizons([7, 0, 20]),
            r"horizons: expected one per layer, at most \[6, 0, 20\], got \[7, 0, 20\]",
        ),
        (lambda s: s.set_horizons([6, 0]), "horizons: expected one per layer"),
        (lambda s: s.load_state_dict({}), "state: expected the names"),
        (lambda s: s.load_state_dict(make(lanes=3).state_dict()), r"state\['clock'\]: expected \[3, 2\]"),
        (lambda s: s.load_state_dict(make(horizons=(7, 0, 20)).state_dict()), r"state\['layers.0.k'\]: expected"),
        (lambda s: s.load_state_dict(make(horizons=(2, 0, 20), max_segment=8).state_dict()), "state"),
    ],
    ids=lambda x: "" if callable(x) else x[:24],
)
def test_bad_use_is_refused_and_changes_nothing(call, message: str) -> None:
    stack = make()
    feed(stack, 2)
    before = {name: x.clone() for name, x in stack.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        call(stack)
    for name, x in stack.state_dict().items():
        assert torch.equal(x, before[name]), name


def test_a_state_of_another_retention_is_refused() -> None:
    ours, theirs = make((8,), retention=Retention(2)), make((8,), retention=Retention(2, "random"))
    with pytest.raises(ValueError, match=r"state\['geometry'\]: expected"):
        ours.load_state_dict(theirs.state_dict())


def test_a_saved_state_may_lie_in_memory_in_any_way() -> None:
    """As it does where lanes of several processes are put together."""
    saved, stack = stack_of_two(), stack_of_two()
    saved.advance(3)
    permuted = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in saved.state_dict().items()}
    with torch.enable_grad():
        stack.load_state_dict(permuted)
    assert torch.equal(stack.clock.state, saved.clock.state)


def stack_of_two() -> MemoryStack:
    return MemoryStack([8], 2, 1, 16, 4)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_stack_on_the_meta_device_gives_shapes(gradients: bool) -> None:
    stack = MemoryStack([11], 2, 2, 8, 4).to("meta")
    inputs = [torch.empty(2, 4, 2, 8, device="meta", requires_grad=gradients) for _ in range(3)]
    for _ in range(2):
        out = recurrent_attention(*inputs, stack[0])
        stack.advance(4)
    assert out.is_meta
    assert out.shape == inputs[0].shape
    if gradients:
        out.sum().backward()
        assert all(x.grad.is_meta and x.grad.shape == x.shape for x in inputs)
