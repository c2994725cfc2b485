"""What only a GPU shows: captured graphs, a long soak, the same bits every time. The laws run there, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsmr_kernels import MemoryStack, Retention, recurrent_attention
from dsmr_kernels.reference import reference_attention

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("storage", [None, "int8", "float8_e4m3"])
def test_a_captured_step_replays_for_the_life_of_a_stream(storage: str | None) -> None:
    """Through wrap-around, borders of segments and resets of lanes, every replay is what an uncaptured call is."""
    captured, plain, warm = (MemoryStack([300, 7], 3, 2, 64, 16, torch.bfloat16, storage=storage) for _ in range(3))
    q, k, v = (torch.randn(3, 1, heads, 64, dtype=torch.bfloat16) for heads in (8, 2, 2))

    def step(stack: MemoryStack) -> list[Tensor]:
        outs = [recurrent_attention(q, k, v, ring, impl="triton") for ring in stack]
        stack.advance(1, segment_size=16)
        return outs

    side = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(side):
        step(warm)  # compiles
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        with torch.cuda.graph(graph):
            outs = step(captured)
        for i in range(1000):
            for x in (q, k, v):
                x.normal_()
            if i % 70 == 69:
                lane = torch.arange(3) == i % 3
                captured.reset(lane)
                plain.reset(lane)
            graph.replay()
            for out, expected in zip(outs, step(plain), strict=True):
                assert torch.equal(out, expected), f"step {i}"
    for name, x in captured.state_dict().items():
        assert torch.equal(x.view(torch.uint8), plain.state_dict()[name].view(torch.uint8)), name


@pytest.mark.parametrize("window", ["segment", "token"])
@pytest.mark.parametrize("retention", [Retention(), Retention(3, "random")], ids=["all", "hashed"])
def test_ten_thousand_random_steps_against_the_oracle(window: str, retention: Retention) -> None:
    """Random numbers of tokens, ragged lanes, borders of pieces, resets and horizons; gradients every 20th step."""
    if window == "token" and retention.stride > 1:
        pytest.skip("the token window needs every token")
    numbers = torch.Generator("cpu").manual_seed(4)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=numbers, device="cpu"))

    lanes, heads, kv_heads, dim, longest = 3, 4, 2, 32, 80
    stack = MemoryStack([100], lanes, kv_heads, dim, longest, retention=retention)
    for i in range(10_000):
        tokens = 1 + below(16 if below(4) else longest)
        q, k, v = (torch.randn(lanes, tokens, n, dim) for n in (heads, kv_heads, kv_heads))
        real = torch.tensor([below(tokens + 1) for _ in range(lanes)])
        start = torch.tensor([below(tokens) if below(6) == 0 else 0 for _ in range(lanes)])
        start = torch.where(torch.arange(tokens) >= start[:, None], start[:, None], 0)
        if below(8) == 0:
            stack.reset([below(lanes)])
        if below(50) == 0:
            stack.set_horizons([below(101)])
        options = {"window": window, "segment_start": start, "segment_len": real}
        grads = i % 20 == 0
        exact, peer, got = (
            results(q, k, v, stack, dtype, grads, options) for dtype in (torch.float64, torch.float32, None)
        )
        for name, x, y, z in zip(("o", "lse", "dq", "dk", "dv"), got, exact, peer, strict=False):
            assert torch.equal(x.isinf(), y.isinf()), f"step {i}: {name}"
            x, y, z = (t.double().masked_fill(y.isinf(), 0) for t in (x, y, z))
            allowed = 2 * float((z - y).abs().max()) + 2**-20 * float(y.abs().max())
            assert float((x - y).abs().max()) <= allowed, f"step {i}: {name}"
        stack.advance(tokens, start, real)


def results(
    q: Tensor, k: Tensor, v: Tensor, stack: MemoryStack, dtype: torch.dtype | None, grads: bool, options: dict
) -> list[Tensor]:
    """o, lse and, if wanted, dq, dk, dv: of the oracle in `dtype`, or of the kernels, which append."""
    q, k, v = (x.to(dtype or x.dtype).detach().requires_grad_(grads) for x in (q, k, v))
    if dtype is None:
        o, lse = recurrent_attention(q, k, v, stack[0], impl="triton", return_lse=True, **options)
    else:
        o, lse = reference_attention(q, k, v, stack[0], **options)
    if not grads:
        return [o, lse]
    return [o.detach(), lse.detach(), *torch.autograd.grad(o.square().sum(), (q, k, v))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
def test_the_same_bits_every_time(dtype: torch.dtype, dim: int) -> None:
    stack = MemoryStack([1000], 2, 2, dim, 512, dtype)
    q, k, v = (torch.randn(2, 512, heads, dim, dtype=dtype, requires_grad=True) for heads in (8, 2, 2))
    recurrent_attention(q, k, v, stack[0], impl="triton")
    stack.advance(512)
    runs = []
    for _ in range(3):
        out = recurrent_attention(q, k, v, stack[0], window="token", impl="triton")
        runs.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for other in runs[1:]:
        for x, y in zip(runs[0], other, strict=True):
            assert torch.equal(x, y)
