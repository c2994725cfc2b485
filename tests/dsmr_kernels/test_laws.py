"""The laws of recurrent attention, each on every back end, forward and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from dsmr_kernels import MemoryStack, Retention, recurrent_attention
from dsmr_kernels.reference import reference_attention
from tests.dsmr_kernels.history import (
    Inputs,
    Plan,
    assert_as_exact,
    explicit,
    new_stack,
    random_normal,
    refusal,
    run,
)
from tests.interpreter import INTERPRETED

RETENTIONS = [Retention(), Retention(3), Retention(4, "random")]
KEPT = [pytest.param(r, id=f"stride{r.stride}-{r.keep}") for r in RETENTIONS]
WINDOWS = ["segment", "token"]
RAGGED = Plan(
    pieces=[[40], [5, 1, 20, 30], [3, 3, 3, 40]],
    segments=[[7, 8, 8], [8, 0, 8], [8, 8, 8], [1, 8, 8], [8, 8, 3]],
    horizon=6,
)


def check(
    plan: Plan, impl: str, dtype: torch.dtype = torch.float32, seed: int = 0, poison: bool = True, **options
) -> None:
    """The operator against the definition. In steps, k and v get gradients from their own call only: not compared."""
    if reason := refusal(impl, dtype):
        pytest.skip(reason)
    inputs = Inputs.random(plan, heads=4, kv_heads=2, dim=16, seed=seed, dtype=dtype)
    options = {name: torch.tensor(x) if isinstance(x, list) else x for name, x in options.items()}
    exact, peer = explicit(plan, inputs.to(torch.float64), **options), explicit(plan, inputs, **options)
    names = "o lse dq dk dv" if plan.steps is None else "o lse dq"
    assert_as_exact(run(plan, inputs, impl, poison, **options), exact, peer, dtype, names)


# Law 1: segments in a row mean what the definition says of the whole past; law 6: NaN in hidden slots is never seen.


@pytest.mark.parametrize("window", WINDOWS)
def test_law_1_segments_equal_the_definition(impl: str, window: str) -> None:
    check(replace(RAGGED, window=window), impl)


@pytest.mark.parametrize("retention", KEPT)
def test_law_1_holds_under_retention(impl: str, retention: Retention) -> None:
    check(replace(RAGGED, retention=retention), impl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_law_1_holds_in_every_type(impl: str, dtype: torch.dtype) -> None:
    check(RAGGED, impl, dtype)


@pytest.mark.parametrize(
    "options",
    [{"softcap": 2.0}, {"alibi_slopes": [0.5, 0.25, 0.1, 0.0]}, {"scale": 0.7}],
    ids=["softcap", "alibi", "scale"],
)
@pytest.mark.parametrize("retention", KEPT)
def test_law_1_holds_with_options(impl: str, options: dict, retention: Retention) -> None:
    check(replace(RAGGED, retention=retention), impl, **options)


def test_law_1_one_long_sequence_equals_its_segments(impl: str) -> None:
    whole = Plan(pieces=[[90]], segments=[[90]], horizon=20, window="token")
    cut = replace(whole, segments=[[32], [1], [30], [27]])
    inputs = Inputs.random(whole, 4, 2, 16)
    exact, peer = explicit(whole, inputs.to(torch.float64)), explicit(whole, inputs)
    assert_as_exact(run(whole, inputs, impl), exact, peer, torch.float32)
    assert_as_exact(run(cut, inputs, impl), exact, peer, torch.float32, "o lse dq")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    lanes = draw(st.integers(1, 3))
    segments = draw(st.lists(st.lists(st.integers(0, 9), min_size=lanes, max_size=lanes), min_size=1, max_size=6))
    segments[0] = [max(count, 1) for count in segments[0]]
    total = sum(map(max, segments))
    pieces = [[*draw(st.lists(st.integers(1, 14), max_size=4)), total] for _ in range(lanes)]
    window = draw(st.sampled_from(WINDOWS))
    retention = draw(st.sampled_from(RETENTIONS)) if window == "segment" else Retention()
    return Plan(pieces, segments, draw(st.integers(0, 20)), window, retention, draw(st.sampled_from([None, 1, 4])))


@settings(max_examples=4 if INTERPRETED else 60)
@given(plan=plans(), seed=st.integers(0, 1000))
def test_laws_1_2_and_5_hold_for_any_plan(impl: str, plan: Plan, seed: int) -> None:
    check(plan, impl, seed=seed)


# Law 2: feeding a segment token by token gives what the whole segment gives.


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("window", WINDOWS)
def test_law_2_steps_equal_the_segment(impl: str, window: str, steps: int) -> None:
    check(replace(RAGGED, window=window, steps=steps), impl)


@pytest.mark.parametrize("retention", KEPT[1:])
def test_law_2_holds_under_retention(impl: str, retention: Retention) -> None:
    check(replace(RAGGED, retention=retention, steps=1), impl)


# Law 3: without memory this is causal attention.


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("memory", ["none", "empty", "hidden"])
def test_law_3_without_memory_it_is_causal_attention(impl: str, memory: str) -> None:
    tokens = 33
    dtype = torch.float32 if refusal(impl, torch.float64) else torch.float64
    q, k, v = (torch.randn(2, tokens, heads, 32, dtype=dtype).requires_grad_() for heads in (6, 2, 2))
    stack = MemoryStack([0 if memory == "hidden" else 8], 2, 2, 32, tokens, dtype)
    if memory == "hidden":
        recurrent_attention(torch.randn_like(q), k.detach() + 1, v.detach() + 1, stack[0])
        stack.advance(tokens)
    out = recurrent_attention(q, k, v, None if memory == "none" else stack[0], impl=impl)
    expected = sdpa(q, k, v)
    cotangent = torch.randn_like(out)
    pairs = [(out, expected)]
    pairs += zip(*(torch.autograd.grad((o * cotangent).sum(), (q, k, v)) for o in (out, expected)), strict=True)
    for got, want in pairs:
        # Two computations of one thing: sums of up to `tokens` terms, each rounded.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=0, atol=tokens * eps * float(want.detach().abs().max()))


# Law 4: lanes are strangers.


def streams(lanes: int, segments: int = 4, tokens: int = 16) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator("cpu").manual_seed(5)
    return [tuple(random_normal(generator, lanes, tokens, heads, 8) for heads in (4, 2, 2)) for _ in range(segments)]


def feed(impl: str, stack: MemoryStack, segments: list[tuple[torch.Tensor, ...]], reset: dict[int, list[int]]) -> list:
    """Outputs and gradients of every segment; `reset[i]` names the lanes that start anew before segment i."""
    results = []
    for i, segment in enumerate(segments):
        if i in reset:
            stack.reset(reset[i])
        q, k, v = (x.clone().requires_grad_() for x in segment)
        out = recurrent_attention(q, k, v, stack[0], impl=impl)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v))
        stack.advance(q.shape[1])
        results.append((out.detach(), *grads))
    return results


def test_law_4_other_lanes_do_not_notice_a_reset(impl: str) -> None:
    segments = streams(lanes=3)
    plain, with_reset = (feed(impl, MemoryStack([20], 3, 2, 8, 16), segments, reset) for reset in ({}, {2: [1]}))
    for before, after in zip(plain, with_reset, strict=True):
        for x, y in zip(before, after, strict=True):
            assert torch.equal(x[[0, 2]], y[[0, 2]])
    assert not torch.equal(plain[2][0][1], with_reset[2][0][1])


def test_law_4_a_reset_lane_is_a_fresh_lane(impl: str) -> None:
    segments = streams(lanes=1)
    reset = feed(impl, MemoryStack([20], 1, 2, 8, 16), segments, {2: [0]})[2:]
    fresh = feed(impl, MemoryStack([20], 1, 2, 8, 16), segments[2:], {})
    for before, after in zip(reset, fresh, strict=True):
        for x, y in zip(before, after, strict=True):
            # The same terms, summed in two parts where the ring wraps: at most one rounding a term apart.
            torch.testing.assert_close(x, y, rtol=0, atol=36 * 2**-23 * float(y.abs().max()))


def test_law_4_permuting_lanes_permutes_results(impl: str) -> None:
    order = [2, 0, 1]
    segments = streams(lanes=3)
    plain = feed(impl, MemoryStack([20], 3, 2, 8, 16), segments, {1: [0], 3: [2]})
    permuted = feed(
        impl, MemoryStack([20], 3, 2, 8, 16), [tuple(x[order] for x in s) for s in segments], {1: [1], 3: [0]}
    )
    for before, after in zip(plain, permuted, strict=True):
        for x, y in zip(before, after, strict=True):
            assert torch.equal(x[order], y)


# Law 5: sizes and wrap positions.


@pytest.mark.parametrize("lead", [1, 5, 16, 23, 24, 25, 47])
def test_law_5_any_wrap_position(impl: str, lead: int) -> None:
    check(Plan(pieces=[[lead, 60]], segments=[*[[1]] * lead, [16], [16], [9]], horizon=8), impl)


@pytest.mark.parametrize(
    ("tokens", "horizon"), [(1, 4), (1, 0), (12, 0), (12, 3), (13, 12), (12, 13), (7, 100)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("window", WINDOWS)
def test_law_5_sizes(impl: str, tokens: int, horizon: int, window: str) -> None:
    check(Plan(pieces=[[1000]], segments=[[tokens]] * 4, horizon=horizon, window=window), impl)


@pytest.mark.parametrize(
    "shape", [(1, 1, 32), (6, 2, 80), (3, 1, 96), (8, 8, 24)], ids="H{0[0]}-Hkv{0[1]}-D{0[2]}".format
)
def test_law_5_heads_and_dims(impl: str, shape: tuple[int, int, int]) -> None:
    inputs = Inputs.random(RAGGED, *shape)
    exact, peer = explicit(RAGGED, inputs.to(torch.float64)), explicit(RAGGED, inputs)
    assert_as_exact(run(RAGGED, inputs, impl), exact, peer, torch.float32)


def test_law_5_many_tiles(impl: str) -> None:
    """Long enough for several query blocks and key chunks, with the borders of pieces inside them."""
    plan = Plan(pieces=[[700, 300, 2000]], segments=[[600], [600], [333]], horizon=900, window="token")
    inputs = Inputs.random(plan, 2, 1, 8)
    exact, peer = explicit(plan, inputs.to(torch.float64)), explicit(plan, inputs)
    assert_as_exact(run(plan, inputs, impl), exact, peer, torch.float32)


# Law 8: time and memory are the caller's.


def test_law_8_checkpoint_replay_changes_nothing(impl: str) -> None:
    segments = streams(lanes=2)
    plain_stack, replay_stack = (MemoryStack([20], 2, 2, 8, 16) for _ in range(2))
    plain = feed(impl, plain_stack, segments, {2: [1]})
    for i, (segment, expected) in enumerate(zip(segments, plain, strict=True)):
        if i == 2:
            replay_stack.reset([1])
        q, k, v = (x.clone().requires_grad_() for x in segment)
        # The clock moves before backward replays the segment, as it does when a model advances it in its forward pass.
        out = checkpoint(recurrent_attention, q, k, v, replay_stack[0], impl=impl, use_reentrant=False)
        replay_stack.advance(16)
        grads = torch.autograd.grad(out.square().sum(), (q, k, v))
        for got, want in zip((out.detach(), *grads), expected, strict=True):
            assert torch.equal(got, want)
    for name, x in plain_stack.state_dict().items():
        assert torch.equal(x, replay_stack.state_dict()[name]), name


@pytest.mark.parametrize("retention", KEPT)
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_law_8_backward_after_overwritten_memory_raises(impl: str, in_flight: int, retention: Retention) -> None:
    """A full ring holds exactly `segments_in_flight` segments; one more and the oldest backward pass must refuse."""
    stack = MemoryStack([8], 2, 2, 8, 16, retention=retention, segments_in_flight=in_flight)
    segments = streams(lanes=2, segments=in_flight + 5)
    expected = feed(impl, MemoryStack([8], 2, 2, 8, 16, retention=retention), segments, {})
    for q, k, v in segments[:4]:
        recurrent_attention(q, k, v, stack[0], impl=impl)
        stack.advance(16)
    pending = []
    for segment in segments[4 : 4 + in_flight]:
        q, k, v = (x.clone().requires_grad_() for x in segment)
        pending.append((recurrent_attention(q, k, v, stack[0], impl=impl), (q, k, v)))
        stack.advance(16)
    for (out, inputs), (_, *want) in zip(reversed(pending), reversed(expected[4 : 4 + in_flight]), strict=True):
        for x, y in zip(torch.autograd.grad(out.square().sum(), inputs, retain_graph=True), want, strict=True):
            torch.testing.assert_close(x, y)
    q, k, v = segments[-1]
    recurrent_attention(q, k, v, stack[0], impl=impl)
    with pytest.raises(RuntimeError, match=r"overwritten .* needs a capacity of \d+ slots and the ring has \d+"):
        torch.autograd.grad(pending[0][0].square().sum(), pending[0][1])


def test_law_8_a_ring_kept_across_advance_is_refused(impl: str) -> None:
    stack = MemoryStack([8], 1, 2, 8, 16)
    ring = stack[0]
    q, k, v = (x.requires_grad_() for x in streams(lanes=1)[0])
    recurrent_attention(q, k, v, ring, impl=impl)
    stack.advance(16)
    with pytest.raises(RuntimeError, match="anew after each advance"):
        recurrent_attention(q, k, v, ring, impl=impl)


# Law 9: a quantised ring is the reference over the dequantised ring.


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("storage", ["int8", "float8_e4m3"])
def test_law_9_quantised_rings_equal_the_dequantised(impl: str, storage: str, window: str) -> None:
    """Exact rings hold what the quantised ones hold, dequantised: the same call must give the same on both."""
    segments = streams(lanes=2, segments=5)
    peer = "eager" if refusal(impl, torch.float64) else impl
    quantised = MemoryStack([20], 2, 2, 8, 16, storage=storage)
    for segment in segments:
        exact = MemoryStack([20], 2, 2, 8, 16, torch.float64)
        exact.clock.state.copy_(quantised.clock.state)
        exact[0].k.copy_(quantised[0].k.double() * quantised[0].k_scale[..., None])
        exact[0].v.copy_(quantised[0].v.double() * quantised[0].v_scale[..., None])
        results = []
        for stack, dtype, name in ((quantised, torch.float32, impl), (exact, torch.float64, peer)):
            q, k, v = (x.to(dtype).requires_grad_() for x in segment)
            out = recurrent_attention(q, k, v, stack[0], window=window, impl=name)
            results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
        for got, want in zip(*results, strict=True):
            # float32 against float64 over up to 36 terms of logits and weights.
            torch.testing.assert_close(got.double(), want, rtol=0, atol=36 * 2**-23 * float(want.detach().abs().max()))
        quantised.advance(16)


def test_law_9_poisoned_scales_are_never_seen(impl: str) -> None:
    plan = replace(RAGGED, storage="int8")
    inputs = Inputs.random(plan, 4, 2, 16)
    clean, poisoned = (run(plan, inputs, impl, poison) for poison in (False, True))
    for name in ("o", "lse", "dq", "dk", "dv"):
        for x, y in zip(getattr(clean, name), getattr(poisoned, name), strict=True):
            assert torch.equal(x, y)


# Law 10: strongly unequal horizons in one model.


def test_law_10_unequal_horizons_share_one_clock(impl: str) -> None:
    horizons = [8, 64, 1024]
    plans = [Plan(pieces=[[2000], [700, 2000]], segments=[[128, 128]] * 9, horizon=h) for h in horizons]
    inputs = Inputs.random(plans[0], 2, 1, 8)
    stack = MemoryStack(horizons, 2, 1, 8, 128)
    separate = [run(plan, inputs, impl) for plan in plans]
    done = 0
    for _ in plans[0].segments:
        start = torch.zeros(2, 128, dtype=torch.int64)
        if done <= 700 < done + 128:
            start[1, 700 - done :] = 700 - done
        q, k, v = (torch.stack([x[done : done + 128] for x in group]) for group in (inputs.q, inputs.k, inputs.v))
        for layer, alone in enumerate(separate):
            out = recurrent_attention(q, k, v, stack[layer], segment_start=start, impl=impl)
            assert torch.equal(out, torch.stack([x[done : done + 128] for x in alone.o]))
        stack.advance(128, segment_start=start)
        done += 128


def test_shrinking_a_horizon_equals_a_ring_made_for_it(impl: str) -> None:
    """`set_horizons` on a large ring shows what a small ring would hold, and growing back loses nothing."""
    segments = streams(lanes=2, segments=6)
    large, small, untouched = (MemoryStack([h], 2, 2, 8, 16) for h in (40, 10, 40))
    for i, (q, k, v) in enumerate(segments):
        large.set_horizons([10 if i < 4 else 40])
        outs = [recurrent_attention(q, k, v, stack[0], impl=impl) for stack in (large, small, untouched)]
        torch.testing.assert_close(outs[0], outs[1 if i < 4 else 2])
        for stack in (large, small, untouched):
            stack.advance(16)


def test_append_false_leaves_the_ring_alone(impl: str) -> None:
    plan = Plan(pieces=[[100]], segments=[[8]], horizon=8)
    stack = new_stack(plan, 2, 8, torch.float32)
    q, k, v = (x[:, :8] for x in streams(lanes=1)[0])
    before = {name: x.clone() for name, x in stack.state_dict().items()}
    recurrent_attention(q, k, v, stack[0], append=False, impl=impl)
    for name, x in stack.state_dict().items():
        assert torch.equal(x, before[name]), name


# What neither definition nor law names: how tensors lie in memory, and what else goes on, makes no difference.


def permuted(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, stored `[H, B, T, D]`."""
    return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


def expanded(x: torch.Tensor) -> torch.Tensor:
    """The first head and lane for all, by strides of 0."""
    return x[:1, :, :1].expand(x.shape)


TOKENS = [1, 16, 256]


def step(impl: str, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """o, lse, dq, dk and dv of the third segment."""
    tokens = inputs[0].shape[1]
    stack = MemoryStack([20], 2, 2, 16, tokens)
    for _ in range(2):
        recurrent_attention(*inputs[:3], stack[0], impl=impl)
        stack.advance(tokens)
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    o, lse = recurrent_attention(q, k, v, stack[0], return_lse=True, impl=impl)
    assert o.is_contiguous()
    return [o, lse, *torch.autograd.grad(o, (q, k, v), inputs[3])]


def four(tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator("cpu").manual_seed(1)
    return tuple(random_normal(generator, 2, tokens, heads, 16) for heads in (4, 2, 2, 4))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("laid", [permuted, expanded], ids=["permuted", "expanded"])
def test_how_tensors_lie_in_memory_makes_no_difference(impl: str, laid, tokens: int) -> None:
    strided = tuple(map(laid, four(tokens)))
    for got, want in zip(step(impl, strided), step(impl, tuple(x.contiguous() for x in strided)), strict=True):
        # The same terms; matrix products may sum them in another order.
        torch.testing.assert_close(got, want, rtol=0, atol=(tokens + 20) * 2**-23 * float(want.detach().abs().max()))


@pytest.mark.parametrize("tokens", TOKENS)
def test_autocast_makes_no_difference(impl: str, tokens: int) -> None:
    inputs = four(tokens)
    plain = step(impl, inputs)
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        cast = step(impl, inputs)
    assert all(map(torch.equal, cast, plain))


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("size", [1e3, 1e16, -1e16, -1e18], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_logits_of_any_size_are_logits(impl: str, tokens: int, size: float, dtype: torch.dtype, softcap: float) -> None:
    """Up to 4e36, either sign: equal ones share the weight, however far they are from zero."""
    if reason := refusal(impl, dtype):
        pytest.skip(reason)
    largest = math.copysign(min(abs(size), 6e4), size) if dtype == torch.float16 else size
    if impl == "triton" and not softcap and abs(largest) > 1e15:
        pytest.skip("the maximum of the GPU's kernels starts from -1e30")
    q = torch.full((1, tokens, 1, 16), abs(largest), dtype=dtype)
    k = torch.full_like(q, largest)
    v = torch.arange(tokens, dtype=dtype)[None, :, None, None].expand(q.shape).contiguous()
    o, lse = recurrent_attention(q, k, v, softcap=softcap, return_lse=True, impl=impl)
    _, exact_lse = reference_attention(q.double(), k.double(), v.double(), softcap=softcap)
    mean = torch.arange(tokens) / 2
    # Means of up to 16 numbers up to 15, and their rounding to the type.
    torch.testing.assert_close(o[0, :, 0, 0].double(), mean.double(), rtol=0, atol=16 * torch.finfo(dtype).eps + 2**-18)
    # In bfloat16, weights may err by 1e-4 of themselves, which is less than their rounding.
    atol = 1e-4 if dtype == torch.bfloat16 else 2**-20
    torch.testing.assert_close(lse.double(), exact_lse, rtol=2**-20, atol=atol)
