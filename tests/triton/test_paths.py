"""The ways through the kernels that depend on sizes and configurations: each must give what the definition says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dsmr_kernels import MemoryStack, Retention, recurrent_attention
from dsmr_kernels.backends import triton
from dsmr_kernels.backends.triton import decode
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.reference import reference_attention
from dsmr_kernels.storage import QUANTISED, quantise
from tests.dsmr_kernels.history import Inputs, Plan, assert_as_exact, explicit, new_stack, poison_ring, run

# Longer than the tiles below in both directions; pieces end inside tiles; the ring wraps.
LONG = Plan(
    pieces=[[70, 9, 200], [25, 200]],
    segments=[[37, 40], [40, 40], [40, 21]],
    horizon=45,
)
DTYPES = (torch.float64, torch.float32)
SHORT = Plan(pieces=[[30, 100], [3, 4, 100]], segments=[[9, 8]] * 6, horizon=40)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let all kernels use these tiles, and K or V come by descriptor or not."""

    def use(block_m: int, block_n: int, descriptors: bool = False) -> None:
        monkeypatch.setattr(triton, "lookup", lambda *_: Config(block_m, block_n, 4, 2, descriptors))

    return use


@pytest.fixture
def no_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MOST_TOKENS", 0)


def check(plan: Plan, dtype: torch.dtype = torch.float32, heads: tuple[int, int] = (2, 1), **options) -> None:
    inputs = Inputs.random(plan, *heads, 16, dtype=dtype)
    exact, peer = explicit(plan, inputs.to(torch.float64), **options), explicit(plan, inputs, **options)
    names = "o lse dq dk dv" if plan.steps is None else "o lse dq"
    assert_as_exact(run(plan, inputs, "triton", poison=True, **options), exact, peer, dtype, names)


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        ({}, (16, 16)),
        ({"window": "token"}, (32, 16)),
        ({"window": "token"}, (16, 32)),
        ({"retention": Retention(4, "random")}, (16, 16)),
    ],
    ids=["segment", "token-32x16", "token-16x32", "hashed"],
)
@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
def test_many_tiles(impl: str, tiles, change: dict, blocks: tuple[int, int], descriptors: bool) -> None:
    """Tiles fetched by descriptor hold poisoned slots: they must be hidden all the same."""
    tiles(*blocks, descriptors)
    check(replace(LONG, **change))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_tiles_in_narrow_types(impl: str, tiles, dtype: torch.dtype) -> None:
    tiles(16, 16, True)
    check(LONG, dtype)


@pytest.mark.parametrize(
    "change",
    [{}, {"window": "token"}, {"retention": Retention(3)}, {"retention": Retention(3), "steps": 3}],
    ids=["segment", "token", "stride3", "stride3-steps"],
)
def test_few_tokens_without_the_decode_kernel(impl: str, no_decode: None, change: dict) -> None:
    check(replace(SHORT, segments=SHORT.segments[:4], horizon=12, **change))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {}),
        ({"window": "token"}, {}),
        ({"retention": Retention(2, "random"), "steps": 4}, {"alibi_slopes": [0.5, 0.1]}),
    ],
    ids=["segment", "token", "hashed-alibi"],
)
def test_decode_shares_a_memory(impl: str, tiles, monkeypatch: pytest.MonkeyPatch, change: dict, options: dict) -> None:
    """Several programs per lane and a launch that joins them, some of them with nothing to read."""
    tiles(64, 16)
    monkeypatch.setattr(decode, "processors", lambda _: 64)
    joined = []
    monkeypatch.setattr(decode, "join_kernel", Recorder(decode.join_kernel, joined))
    check(replace(SHORT, **change), **{name: torch.tensor(x) for name, x in options.items()})
    assert joined


def test_decode_joins_many_shares(impl: str, tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """More programs on one memory than the joining launch takes at once."""
    tiles(16, 16)
    monkeypatch.setattr(decode, "processors", lambda _: 64)
    launched = []
    monkeypatch.setattr(decode, "decode_kernel", Recorder(decode.decode_kernel, launched))
    stack = MemoryStack([700], 1, 1, 16, 8)
    stack.clock.state[:2] = 1000
    stack[0].k.normal_()
    stack[0].v.normal_()
    q, k, v = (torch.randn(1, 2, heads, 16) for heads in (3, 1, 1))
    exact, peer = (reference_attention(*(x.to(dtype) for x in (q, k, v)), stack[0]) for dtype in DTYPES)
    got = recurrent_attention(q, k, v, stack[0], return_lse=True, impl=impl)
    assert launched[0][0] > decode.JOINED.value
    for x, y, z in zip(got, exact, peer, strict=True):
        allowed = 2 * float((z - y).abs().max()) + 2**-23 * (1 + float(y.abs().max()))
        assert float((x - y).abs().max()) <= allowed


class Recorder:
    """A kernel that notes its launches."""

    def __init__(self, kernel, launches: list) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]):
        self.launches.append(grid)
        return self.kernel[grid]


def hard_to_round(tokens: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows `[1, tokens, 1, dim]` whose quotients by the scale lie on ties, below the smallest normal, and at zero."""
    generator = torch.Generator("cpu").manual_seed(2)
    x = (
        torch.randn(tokens, dim, generator=generator, device="cpu")
        * torch.logspace(-30, 4, tokens, 2, device="cpu")[:, None]
    )
    x[0] = 0
    x[1] = torch.arange(dim, device="cpu") + 0.5  # ties of int8 once the largest is 127
    x[1, 0] = 127
    x[2] = torch.arange(dim, device="cpu") * 2.0**-10  # ties of float8's multiples of 2^-9
    x[2, 0] = 448
    return x[None, :, None].to(dtype).to(torch.get_default_device())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("storage", sorted(QUANTISED))
@pytest.mark.parametrize("tokens", [12, 40], ids=["decode", "forward"])
def test_the_ring_holds_what_quantise_makes(impl: str, storage: str, dtype: torch.dtype, tokens: int) -> None:
    k = hard_to_round(tokens, 32, dtype)
    v = k.flip(1)
    stack = MemoryStack([8], 1, 1, 32, tokens, dtype, storage=storage)
    recurrent_attention(k, k, v, stack[0], impl=impl)
    for x, ring, scales in ((k, stack[0].k, stack[0].k_scale), (v, stack[0].v, stack[0].v_scale)):
        values, scale = quantise(x[0, :, 0].cpu(), QUANTISED[storage].dtype)
        assert torch.equal(scales[0, 0, :tokens].cpu(), scale)
        assert torch.equal(ring[0, 0, :tokens].cpu().view(torch.uint8), values.view(torch.uint8))


def test_badly_aligned_inputs_are_copied(impl: str) -> None:
    """Views that begin off a border of 16 bytes, and a cotangent that is one number seen through zero strides."""
    base = torch.randn(2, 9, 4 * 16 + 1)
    views = base[..., 1:].unflatten(-1, (4, 16)).split([2, 1, 1], 2)
    results = []
    for q, k, v in (views, [x.contiguous() for x in views]):
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = recurrent_attention(q, k, v, MemoryStack([6], 2, 1, 16, 9)[0], impl=impl)
        results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


def test_a_negative_scale_is_a_scale(impl: str) -> None:
    check(replace(LONG, segments=LONG.segments[:2]), scale=-0.5)


def test_poisoned_padding_reaches_nothing_by_descriptor(impl: str, tiles) -> None:
    """`history.run` fills what lies behind `segment_len` with NaN; whole tiles of it here."""
    tiles(16, 16, True)
    check(Plan(pieces=[[100], [100]], segments=[[60, 5], [1, 33]], horizon=20))


def test_narrow_rows_of_a_quantised_ring_do_without_descriptors(impl: str, tiles) -> None:
    """24 bytes a row, which no descriptor can have; those of q's type could."""
    results = []
    for descriptors in (False, True):
        tiles(16, 16, descriptors)
        plan = replace(LONG, segments=LONG.segments[:2], storage="int8")
        results.append(run(plan, Inputs.random(plan, 2, 1, 24), "triton"))
    for x, y in zip(results[0].o + results[0].dq, results[1].o + results[1].dq, strict=True):
        assert torch.equal(x, y)


def test_visible_nan_is_not_swallowed(impl: str) -> None:
    q, k, v = (torch.randn(1, 20, 1, 16) for _ in range(3))
    stack = new_stack(Plan([[100]], [[20]], 8), 1, 16, torch.float32)
    poison_ring(stack)
    v[0, 10] = torch.nan
    assert recurrent_attention(q, k, v, stack[0], impl=impl)[0, 10:].isnan().all()


@pytest.mark.parametrize("retention", [Retention(), Retention(3)], ids=["every", "stride3"])
def test_what_a_launch_writes_it_does_not_read(impl: str, no_decode: None, retention: Retention) -> None:
    """A segment that goes beyond its end, which a GPU cannot raise: the entries that it overwrites are left out."""
    results = []
    for poisoned in (False, True):
        stack = MemoryStack([20], 1, 1, 16, 12, retention=retention)
        stack.clock.state[:, 0] = torch.tensor([400, 300, 9])
        ring = stack[0]
        generator = torch.Generator("cpu").manual_seed(0)
        for x in (ring.k, ring.v):
            x.copy_(torch.randn(x.shape, generator=generator, device="cpu"))
        q, k, v = (torch.randn(1, 12, 1, 16, generator=generator, device="cpu").to(x.device) for _ in range(3))
        if poisoned:  # as if the append had come first
            for tokens, slots in ring.geometry.written(400, 300, None, 12):
                for target, source in ((ring.k, k), (ring.v, v)):
                    target[0, 0, list(slots)] = source[0, list(tokens), 0]
        results.append(recurrent_attention(q, k, v, ring, impl=impl))
    assert torch.equal(*results)
