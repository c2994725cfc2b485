"""What recurrent attention means, told without a ring: the past is kept, and every query looks up what it may see.

`Plan` says how tokens of several lanes are cut into pieces, segments and calls. `explicit` computes the outputs
straight from the contract's definitions; `run` feeds the same tokens to the operator. They share no line of code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsmr_kernels import MemoryStack, Retention, backends, recurrent_attention
from dsmr_kernels.backends import Call


@dataclass(frozen=True)
class Plan:
    """`pieces[b]`: lengths of lane b's pieces. `segments[s][b]`: real tokens lane b reads in segment s.

    `steps`: None feeds a segment in one call; otherwise calls of at most that many tokens, as generation does.
    """

    pieces: list[list[int]]
    segments: list[list[int]]
    horizon: int
    window: str = "segment"
    retention: Retention = field(default_factory=Retention)
    steps: int | None = None
    storage: str | None = None

    @property
    def lanes(self) -> int:
        return len(self.pieces)

    @property
    def longest(self) -> int:
        return max(max(counts) for counts in self.segments)

    def length(self, lane: int) -> int:
        return sum(counts[lane] for counts in self.segments)

    def index(self, lane: int) -> list[tuple[int, int]]:
        """(piece, index in the piece) of each of the lane's tokens."""
        pairs = [(piece, i) for piece, length in enumerate(self.pieces[lane]) for i in range(length)]
        return pairs[: self.length(lane)]


@dataclass
class Inputs:
    """`q[b] [N_b, H, D]`, `k[b], v[b] [N_b, Hkv, D]` and cotangents `do[b] [N_b, H, D]`, `dlse[b] [N_b, H]`."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    do: list[Tensor]
    dlse: list[Tensor]

    @classmethod
    def random(cls, plan: Plan, heads: int, kv_heads: int, dim: int, seed: int = 0, dtype=torch.float32) -> Inputs:
        generator = torch.Generator("cpu").manual_seed(seed)
        sizes = {"q": (heads, dim), "k": (kv_heads, dim), "v": (kv_heads, dim), "do": (heads, dim), "dlse": (heads,)}
        return cls(
            **{
                name: [
                    random_normal(generator, plan.length(b), *size, dtype=torch.float64).to(dtype)
                    for b in range(plan.lanes)
                ]
                for name, size in sizes.items()
            }
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*([x.to(dtype) for x in group] for group in (self.q, self.k, self.v, self.do, self.dlse)))


def random_normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers on every device: drawn by a CPU's generator, then moved to the default device."""
    return torch.randn(shape, generator=generator, dtype=dtype, device="cpu").to(torch.get_default_device())


def refusal(impl: str, dtype: torch.dtype) -> str | None:
    """Why a back end cannot compute in `dtype`, or None."""
    q, k, v = (torch.zeros(1, 1, 1, 16, dtype=dtype) for _ in range(3))
    ring = MemoryStack([1], 1, 1, 16, 1, dtype)[0]
    return backends.load(impl).unsupported(Call(q, k, v, ring, "segment", None, None, None, 1.0, 0.0, True))


@dataclass
class Results:
    """Per lane: `o [N, H, D]`, `lse [N, H]` and the gradients of `sum(o * do) + sum(lse * dlse)`.

    `magnitude`: the largest value each could take if nothing cancelled, from `explicit` only.
    """

    o: list[Tensor]
    lse: list[Tensor]
    dq: list[Tensor]
    dk: list[Tensor]
    dv: list[Tensor]
    magnitude: dict[str, float] = field(default_factory=dict)


def seen(plan: Plan, lane: int) -> tuple[Tensor, Tensor]:
    """Which tokens (columns) each token (row) sees, `[N, N]` bool each: as memory, and in its own segment."""
    piece, index = torch.tensor(plan.index(lane)).reshape(-1, 2).unbind(1)
    token = torch.arange(len(piece))
    counts = torch.tensor([counts[lane] for counts in plan.segments])
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)  # of each token's segment
    same = piece[:, None] == piece
    own = same & (token >= first[:, None]) & (token <= token[:, None])
    memory = same & (token < first[:, None])
    stride = plan.retention.stride
    if stride > 1:
        kept = torch.tensor([i % stride == plan.retention.offset(i // stride) for i in index.tolist()])
        complete = memory.sum(1) // stride
        memory &= kept & (index // stride < complete[:, None])
    if plan.window == "token":
        near = token[:, None] - token < plan.horizon
        return memory & near, own & near
    newer = memory.flip(1).cumsum(1).flip(1)  # itself included
    return memory & (newer <= plan.horizon), own


def explicit(plan: Plan, inputs: Inputs, **options) -> Results:
    """The outputs and gradients by definition, in the type of `inputs`."""
    results = Results([], [], [], [], [])
    for b in range(plan.lanes):
        q, k, v = (x[b].clone().requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
        do, dlse = inputs.do[b], inputs.dlse[b]
        o, lse, weights = _attend(q, k, v, *seen(plan, b), **options)
        loss = (o * do).sum() + (lse.masked_fill(lse.isinf(), 0) * dlse).sum()
        grads = torch.autograd.grad(loss, (q, k, v))
        for name, x in zip(("o", "lse", "dq", "dk", "dv"), (o, lse, *grads), strict=True):
            getattr(results, name).append(x.detach())
        for name, x in _magnitudes(q, k, v, do, dlse, weights, options.get("scale")).items():
            results.magnitude[name] = max(results.magnitude.get(name, 0.0), float(x.max()) if x.numel() else 0.0)
    return results


def _attend(q, k, v, memory, own, scale=None, softcap=0.0, alibi_slopes=None):
    """One lane, every token twice as a key: once as detached memory, once as a segment key.

    Returns `o [N, H, D]`, `lse [N, H]` and the weights `[H, N, 2 N]`.
    """
    group, dim = q.shape[1] // k.shape[1], q.shape[2]
    keys, values = (torch.cat([x.detach(), x]).repeat_interleave(group, 1) for x in (k, v))  # [2 N, H, D]
    visible = torch.cat([memory, own], 1)
    scores = torch.einsum("nhd,mhd->hnm", q, keys) * (scale if scale is not None else dim**-0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        token = torch.arange(len(q))
        distance = (token[:, None] - token).repeat(1, 2)
        scores = scores - alibi_slopes.to(scores.dtype)[:, None, None] * distance
    blind = ~visible.any(1)  # softmax and its gradient need one key: give such rows all, then discard them
    scores = scores.masked_fill(~(visible | blind[:, None]), -math.inf)
    weights = scores.softmax(-1).masked_fill(blind[:, None], 0)
    o = torch.einsum("hnm,mhd->nhd", weights, values)
    return o, scores.logsumexp(-1).T.masked_fill(blind[:, None], -math.inf), weights


def _magnitudes(q, k, v, do, dlse, weights, scale):
    """The same sums with every term positive: no computation can be expected to be exact beyond eps times these.

    Gradient of a logit: p (do . v - do . o + dlse), whose terms may cancel, so each counts with its absolute value.
    """
    group, scale = q.shape[1] // k.shape[1], scale if scale is not None else q.shape[2] ** -0.5
    keys, values = (x.detach().abs().repeat(2, 1, 1).repeat_interleave(group, 1) for x in (k, v))
    weights, q, do = weights.detach(), q.detach().abs(), do.abs()
    o = torch.einsum("hnm,mhd->nhd", weights, values)
    terms = torch.einsum("nhd,mhd->hnm", do, values) + ((do * o).sum(-1) + dlse.abs()).T[..., None]
    logits = weights * terms * scale
    return {
        "o": o,
        "dq": torch.einsum("hnm,mhd->nhd", logits, keys),
        "dk": torch.einsum("hnm,nhd->mhd", logits, q).unflatten(1, (-1, group)).sum(2),
        "dv": torch.einsum("hnm,nhd->mhd", weights, do).unflatten(1, (-1, group)).sum(2),
    }


def run(
    plan: Plan, inputs: Inputs, impl: str, poison: bool = False, stack: MemoryStack | None = None, **options
) -> Results:
    """Feed the tokens to the operator segment by segment, with a backward pass after each segment."""
    lanes, dim, kv_heads = plan.lanes, inputs.q[0].shape[2], inputs.k[0].shape[1]
    dtype = inputs.q[0].dtype
    stack = stack or new_stack(plan, kv_heads, dim, dtype)
    if poison:
        poison_ring(stack)
    results = Results(
        *([torch.zeros_like(x) for x in group] for group in (inputs.q, inputs.dlse, inputs.q, inputs.k, inputs.v))
    )
    results.lse = [x.to(torch.float64 if dtype == torch.float64 else torch.float32) for x in results.lse]
    done = [0] * lanes
    for counts in plan.segments:
        for taken in _calls(counts, plan.steps):
            tokens = max(max(taken), 1)
            reset, start = _borders(plan, done, taken, tokens)
            stack.reset(torch.tensor(reset))
            packed = []
            for group in (inputs.q, inputs.k, inputs.v, inputs.do, inputs.dlse):
                x = torch.full((lanes, tokens, *group[0].shape[1:]), math.nan, dtype=dtype)  # padding must not matter
                for b in range(lanes):
                    x[b, : taken[b]] = group[b][done[b] : done[b] + taken[b]]
                packed.append(x)
            q, k, v, do, dlse = packed
            q, k, v = (x.requires_grad_() for x in (q, k, v))
            length = torch.tensor(taken)
            o, lse = recurrent_attention(
                q,
                k,
                v,
                stack[0],
                window=plan.window,
                segment_start=torch.tensor(start) if any(map(any, start)) else None,
                segment_len=length if min(taken) < tokens else None,
                return_lse=True,
                impl=impl,
                **options,
            )
            real = torch.arange(tokens)[None] < length[:, None]
            finite = lse.transpose(1, 2).masked_fill(lse.transpose(1, 2).isinf(), 0)
            loss = (o * do)[real].sum() + (finite * dlse.to(finite.dtype))[real].sum()
            grads = torch.autograd.grad(loss, (q, k, v))
            assert not o[~real].any()
            assert not any(g[~real].any() for g in grads)
            for name, x in zip(("o", "lse", "dq", "dk", "dv"), (o, lse.transpose(1, 2), *grads), strict=True):
                for b in range(lanes):
                    getattr(results, name)[b][done[b] : done[b] + taken[b]] = x.detach()[b, : taken[b]]
            stack.advance(tokens, torch.tensor(start), length, None if plan.steps is None else stack.max_segment)
            done = [d + t for d, t in zip(done, taken, strict=True)]
        if plan.steps is not None:
            _close_segment(stack)
    return results


def new_stack(plan: Plan, kv_heads: int, dim: int, dtype: torch.dtype, **options) -> MemoryStack:
    return MemoryStack(
        [plan.horizon],
        plan.lanes,
        kv_heads,
        dim,
        max_segment=plan.longest,
        dtype=dtype,
        retention=plan.retention,
        storage=plan.storage,
        **options,
    )


def poison_ring(stack: MemoryStack) -> None:
    """Fill every slot and scale with NaN; int8 has none, so its scales alone carry it."""
    for ring in stack:
        for name, x in ring.tensors().items():
            if name != "written" and x.is_floating_point():
                x.view(torch.uint8).fill_(0x7F) if x.itemsize == 1 else x.fill_(math.nan)


def _close_segment(stack: MemoryStack) -> None:
    """Segments of different lengths fed in steps: the next call opens a new one."""
    stack.clock.phase.zero_()


def _calls(counts: list[int], steps: int | None) -> list[list[int]]:
    if steps is None:
        return [counts]
    rounds = max(1, -(-max(counts) // steps))
    return [[min(max(count - i * steps, 0), steps) for count in counts] for i in range(rounds)]


def _borders(plan: Plan, done: list[int], taken: list[int], tokens: int) -> tuple[list[bool], list[list[int]]]:
    """Which lanes begin a piece with this call's first token, and `segment_start`."""
    reset, starts = [], []
    for b, (first, count) in enumerate(zip(done, taken, strict=True)):
        index = plan.index(b)[first : first + count]
        reset.append(bool(index) and index[0][1] == 0)
        row, start = [], 0
        for i, (_, place) in enumerate(index):
            start = i if place == 0 and i else start
            row.append(start)
        starts.append(row + [start] * (tokens - count))
    return reset, starts


def assert_as_exact(
    actual: Results, exact: Results, peer: Results, dtype: torch.dtype, names: str = "o lse dq dk dv"
) -> None:
    """Error against float64 at most twice that of `peer`, the definition computed in `dtype`, plus rounding.

    Rounding: the result is rounded once to `dtype`. Before, in float32 (float64 for float64), folding constants into
    the logits rounds them once more, which moves a weight by |logit| eps, and so every positive term of the sums by as
    much. The largest |lse| stands for the largest |logit| that carries weight.
    """
    compute = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    logit = max((float(x[~x.isinf()].abs().max()) for x in exact.lse if (~x.isinf()).any()), default=0.0)
    for name in names.split():
        got, want, other = (torch.cat([x.double().flatten() for x in getattr(r, name)]) for r in (actual, exact, peer))
        assert torch.equal(got.isinf(), want.isinf()), f"{name}: infinite in other places"
        got, want, other = (x[~want.isinf()] for x in (got, want, other))
        if not len(want):
            continue
        largest = float(want.abs().max())
        error, allowed = float((got - want).abs().max()), 2 * float((other - want).abs().max())
        rounding = torch.finfo(dtype).eps * largest + compute * (1 + logit) * exact.magnitude.get(name, largest)
        assert error <= allowed + rounding, f"{name}: error {error:.2e}, allowed {allowed:.2e} + {rounding:.2e}"
