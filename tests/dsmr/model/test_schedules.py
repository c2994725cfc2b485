from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.model.schedules import NAMES, STORAGES, MemoryFormat, Schedule, default_budget, make_schedule
from dsmr_kernels import Geometry, MemoryStack, Retention

SHAPED = tuple(name for name in NAMES if name not in ("full", "explicit"))
BF16 = MemoryFormat(kv_heads=2, head_dim=64, storage="bf16")


def test_base_two_scale_is_two_long_layers_and_six_short():
    assert make_schedule("two_scale", 8).horizons == (8192, 8192, 512, 512, 512, 512, 512, 512)
    assert default_budget(8) == 2 * 8192 + 6 * 512 == 19456


def test_shapes_at_one_budget():
    horizons = {name: make_schedule(name, 4, budget_tokens=1000, ratio=3).horizons for name in SHAPED}
    assert horizons == {
        "uniform": (250, 250, 250, 250),
        "two_scale": (500, 167, 167, 166),
        "reverse_two_scale": (167, 167, 166, 500),
        "progressive_up": (125, 208, 292, 375),
        "progressive_down": (375, 292, 208, 125),
        "perceiver_like": (1000, 0, 0, 0),
        "selective": (250, 250, 250, 250),
    }


def test_the_remainder_goes_to_the_layers_that_lost_most_then_to_the_lowest():
    assert make_schedule("uniform", 3, budget_tokens=11).horizons == (4, 4, 3)
    # 10 in proportions 1 : 1 : 5 is 1.43 : 1.43 : 7.14.
    assert make_schedule("explicit", 3, horizons=[1, 1, 5], budget_tokens=10).horizons == (2, 1, 7)


@pytest.mark.parametrize("name", SHAPED)
@given(layers=st.integers(1, 24), budget=st.integers(1, 10**7), ratio=st.floats(1, 64))
def test_horizons_add_up_to_the_budget_in_tokens(name, layers, budget, ratio):
    schedule = make_schedule(name, layers, budget_tokens=budget, ratio=ratio)
    assert schedule.total == budget
    assert len(schedule.horizons) == layers
    assert min(schedule.horizons) >= 0


@given(
    name=st.sampled_from(SHAPED),
    layers=st.integers(1, 24),
    budget=st.integers(10**4, 10**10),
    storage=st.sampled_from(sorted(STORAGES)),
    kv_heads=st.integers(1, 16),
    head_dim=st.integers(8, 128),
)
def test_a_budget_in_bytes_is_used_to_the_last_whole_entry(name, layers, budget, storage, kv_heads, head_dim):
    memory = MemoryFormat(kv_heads, head_dim, storage)
    if budget < memory.bytes(1):
        return
    used = sum(make_schedule(name, layers, budget_bytes=budget, memory=memory).horizon_bytes(memory))
    assert budget - memory.bytes(1) < used <= budget


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=12).filter(any), st.integers(1, 10**6))
def test_an_explicit_list_keeps_its_proportions_at_a_budget(horizons, budget):
    scaled = make_schedule("explicit", len(horizons), horizons=horizons, budget_tokens=budget).horizons
    assert sum(scaled) == budget
    for horizon, got in zip(horizons, scaled, strict=True):
        assert abs(got - budget * horizon / sum(horizons)) < 1 + 1e-9 * budget


def test_an_explicit_list_without_a_budget_is_taken_as_it_is():
    assert make_schedule("explicit", 3, horizons=[8, 0, 64]).horizons == (8, 0, 64)


def test_without_a_budget_all_shapes_cost_the_same():
    assert {make_schedule(name, 6).total for name in SHAPED} == {default_budget(6)}


def test_full_remembers_the_longest_piece_in_every_layer():
    assert make_schedule("full", 3, longest=1000).horizons == (1000, 1000, 1000)
    assert make_schedule("full", 3, longest=1000, budget_tokens=3500).total == 3000


@pytest.mark.parametrize("key_shift", [None, (2, 0, 5)])
@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_bytes_are_those_of_the_memory(storage, key_shift):
    dtype, quantised = STORAGES[storage]
    schedule = Schedule("explicit", (40, 0, 7), Retention(4, "random"))
    stack = MemoryStack(
        schedule.horizons,
        lanes=2,
        kv_heads=3,
        head_dim=8,
        max_segment=16,
        dtype=dtype,
        storage=quantised,
        retention=schedule.retention,
        segments_in_flight=2,
        key_shift=key_shift,
    )
    memory = MemoryFormat(3, 8, storage, key_shift)
    assert schedule.capacity_bytes(memory, 16, 2) == stack.bytes_per_layer
    assert tuple(stack[layer].k.shape[2] for layer in range(3)) == schedule.capacities(16, 2)
    scales = 2 * 4 if quantised else 0
    item = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "float8_e4m3": 1}[storage]
    assert schedule.horizon_bytes(memory) == tuple(m * 3 * (2 * 8 * item + scales) for m in (40, 0, 7))


def brute_force_reach(schedule: Schedule, segment: int, window: str, segments: int) -> list[int]:
    """Follow what the last token sees, layer by layer, key by key, by the rule that the rings themselves use."""
    tokens = segment * segments
    earliest = list(range(tokens))  # of the layer's input: the oldest token that each token depends on
    reach = []
    for horizon in schedule.horizons:
        geometry = Geometry.of(horizon, segment, schedule.retention or Retention())
        above = []
        for p in range(tokens):
            begin = p // segment * segment
            runs = geometry.visible(horizon, "segment", begin, begin, 0)
            memory = [begin + position for run in runs for position in run.positions]
            keys = [*memory, *range(begin, p + 1)] if window == "segment" else range(max(p - horizon + 1, 0), p + 1)
            above.append(min((earliest[key] for key in keys), default=p))
        earliest = [min(mine, own) for mine, own in zip(above, earliest, strict=True)]  # the residual
        reach.append(tokens - earliest[-1])
    return reach


@settings(deadline=None)
@given(
    horizons=st.lists(st.integers(0, 24), min_size=1, max_size=4),
    segment=st.integers(1, 12),
    window=st.sampled_from(["segment", "token"]),
)
def test_reach_is_what_following_every_key_finds(horizons, segment, window):
    schedule = Schedule("explicit", tuple(horizons))
    enough = -(-sum(m + segment for m in horizons) // segment) + 2
    assert list(schedule.reach(segment, window)) == brute_force_reach(schedule, segment, window, enough)


@settings(deadline=None)
@given(
    horizons=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    segment=st.integers(1, 8),
    stride=st.integers(2, 4),
)
def test_reach_with_a_stride_is_what_following_every_key_finds(horizons, segment, stride):
    schedule = Schedule("explicit", tuple(horizons), Retention(stride, "last"))
    # The formula is for a segment and a group that begin together: put the last segment on such a border.
    periods = -(-sum(stride * (m + 1) + segment for m in horizons) // (segment * stride)) + 1
    assert list(schedule.reach(segment)) == brute_force_reach(schedule, segment, "segment", periods * stride + 1)


@settings(deadline=None)
@given(
    horizons=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    segment=st.integers(1, 8),
    stride=st.integers(2, 4),
)
def test_reach_with_a_random_entry_is_a_bound_that_the_last_entry_undercuts(horizons, segment, stride):
    random, last = (Schedule("explicit", tuple(horizons), Retention(stride, keep)) for keep in ("random", "last"))
    periods = -(-sum(stride * (m + 1) + segment for m in horizons) // (segment * stride)) + 1
    found = brute_force_reach(random, segment, "segment", periods * stride + 1)
    for least, got, most in zip(last.reach(segment), found, random.reach(segment), strict=True):
        assert least <= got <= most


def test_reach_adds_up_over_depth():
    schedule = make_schedule("two_scale", 8)
    assert schedule.reach(512) == tuple(512 + m for m in itertools.accumulate(schedule.horizons))
    assert schedule.receptive_field(512) == 512 + 19456
    assert schedule.receptive_field(512, "token") == 1 + 19456 - 8


@pytest.mark.parametrize(
    "retention", [None, Retention(4, "last"), Retention(3, "random")], ids=["all", "last", "random"]
)
def test_a_schedule_survives_json(retention):
    schedule = make_schedule("selective", 3, budget_tokens=100, retention=retention)
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two-scale"}, "unknown schedule 'two-scale'; the schedules are full, uniform, two_scale, "),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"budget_tokens": 0}, "budget_tokens: expected at least 1, got 0"),
        ({"budget_tokens": -5}, "budget_tokens: expected at least 1, got -5"),
        ({"budget_bytes": 511, "memory": BF16}, "budget_bytes: expected at least one entry of 512 bytes, got 511"),
        ({"budget_bytes": 10**6}, "memory: a budget in bytes needs"),
        ({"budget_bytes": 10**6, "budget_tokens": 8, "memory": BF16}, "expected tokens or bytes, got both"),
        ({"name": "full", "budget_tokens": 4 * 32768 - 1}, "full: 4 layers of 32,768 .* got 131,071"),
        ({"name": "full", "longest": 0}, "longest: expected at least 1 token, got 0"),
        ({"long_layers": 5}, r"long_layers: expected 1\.\.4, got 5"),
        ({"ratio": 0.5}, "ratio: expected at least 1 .* got 0.5"),
        ({"ratio": float("nan")}, "ratio: expected at least 1 .* got nan"),
        ({"horizons": [1, 2, 3, 4]}, r"horizons: needed by 'explicit' .* got \[1, 2, 3, 4\] for 'uniform'"),
        ({"name": "explicit"}, "horizons: needed by 'explicit' .* got None for 'explicit'"),
        ({"name": "explicit", "horizons": [1, 2]}, "horizons: expected one for each of 4 layers, got 2"),
        ({"name": "explicit", "horizons": [1, -2, 3, 4]}, r"horizons\[1\]: expected at least 0, got -2"),
        ({"name": "explicit", "horizons": [0] * 4, "budget_tokens": 9}, "all are 0, they cannot share a budget of 9"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**{"name": "uniform", "layers": 4, **arguments})


def test_bad_schedules_and_formats_are_named():
    with pytest.raises(TypeError, match=r"horizons\[0\]: expected an integer, got 1.5"):
        Schedule("explicit", (1.5,))
    with pytest.raises(ValueError, match="horizons: expected one per layer, got none"):
        Schedule("explicit", ())
    with pytest.raises(ValueError, match="unknown schedule 'mine'"):
        Schedule("mine", (1,))
    with pytest.raises(ValueError, match="storage: expected one of fp32, bf16, fp16, int8, float8_e4m3, got 'int4'"):
        MemoryFormat(1, 1, "int4")
    with pytest.raises(ValueError, match="head_dim: expected at least 1, got 0"):
        MemoryFormat(1, 0)
    with pytest.raises(ValueError, match="segment: expected at least 1 token, got 0"):
        Schedule("explicit", (1,)).reach(0)
    with pytest.raises(ValueError, match="window: 'token' needs every token kept, got a retention stride of 2"):
        Schedule("explicit", (1,), Retention(2)).reach(8, "token")
