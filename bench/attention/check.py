"""Tests of a contender's results against the oracle in float64, with derived tolerances, before its time counts.

A result may be off by twice the error of the oracle computed in the case's own precision, plus rounding. Rounding: once
to the result's type, once more in float32 where constants are folded into the logits (as in the kernels' tests), and by
the order of summation: adding n keys one after the other comes to about sqrt(n) roundings of the result in float32,
where the oracle's matrix products add them in blocks.
After a step that appends, the memory must hold the newest M entries, bit for bit if it is not quantised.

Lanes and KV heads do not depend on each other, so in a large case the oracle looks at the first and the last of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.attention import fill
from bench.attention.shapes import Inputs, Shape
from dsmr_kernels.reference import reference_attention

LARGE = 2**22  # visible pairs, all heads and lanes together


class Expected(NamedTuple):
    """The exact value of one result and the largest error allowed."""

    value: Tensor
    allowed: float


def misshapen(results: dict[str, Tensor], names: list[str], inputs: Inputs) -> str | None:
    """Which of the results that are asked for is missing, or has another shape or type than q and k have; or None."""
    if list(results) != names:
        return f"returned {list(results)}, expected {names}"
    for name, result in results.items():
        whole = inputs.q if name in ("o", "dq") else inputs.k
        if result.shape != whole.shape or result.dtype != whole.dtype:
            return f"{name}: {list(result.shape)} {result.dtype}, expected {list(whole.shape)} {whole.dtype}"
    return None


def off(results: dict[str, Tensor], shape: Shape, storage: str | None, causal: bool = True) -> str | None:
    """Which of some results (o, dq, dk, dv) on the inputs of seed 0 is off by more than is allowed, or None."""
    device = results[next(iter(results))].device
    expected = oracle(Question(shape, storage, causal, device), any(name != "o" for name in results))
    for name, result in results.items():
        value, allowed = expected[name]
        error = float((_sample(result.detach(), shape).double() - value).abs().max())
        if not error <= allowed:  # NaN is wrong, too
            return f"{name}: off by {error:.2g}, allowed {allowed:.2g}"
    return None


def as_named(results: Any) -> dict[str, Tensor]:
    """A step's return value by name: o alone, or `(o, dq, dk, dv)`."""
    return {"o": results} if isinstance(results, Tensor) else dict(zip(("o", "dq", "dk", "dv"), results, strict=False))


def wrong_memory(held: tuple[Tensor, Tensor], shape: Shape, inputs: Inputs, storage: str | None) -> str | None:
    """Compare `k, v [B, Hkv, M, D]`, oldest first, with what must be there after the segment; None: they are equal."""
    given = (inputs.past_k, inputs.k), (inputs.past_v, inputs.v)
    for name, found, (past, new) in zip("kv", held, given, strict=True):
        want = torch.cat([past, new.detach().transpose(1, 2)], 2)[:, :, new.shape[1] :]
        if storage:
            want = fill.dequantised(want, storage)
        if found.shape != want.shape or not torch.equal(found.to(want.dtype), want):
            return f"memory: {name} does not hold the newest {shape.horizon} entries"
    return None


class Question(NamedTuple):
    """What the right results depend on, of inputs of seed 0."""

    shape: Shape
    storage: str | None
    causal: bool
    device: torch.device


_known: dict[Question, dict[str, Expected]] = {}  # of one shape: the cases of a shape follow each other


def oracle(question: Question, gradients: bool) -> dict[str, Expected]:
    """What a step must return (a sample of it); more than asked if that is known already."""
    if question in _known and (not gradients or "dq" in _known[question]):
        return _known[question]
    shape = question.shape
    if any(known.shape != shape for known in _known):
        _known.clear()
    inputs = Inputs.random(shape, question.device, 0, False)
    segment = (_sample(x, shape) for x in (inputs.q, inputs.k, inputs.v, inputs.do))
    chosen = Inputs(*segment, *(_sample(x, shape, axis=1) for x in (inputs.past_k, inputs.past_v)))
    lanes, kv_heads = chosen.k.shape[0], chosen.k.shape[2]
    few = question._replace(shape=replace(shape, lanes=lanes, kv_heads=kv_heads, heads=chosen.q.shape[2]))
    exact, lse = _attended(few, chosen, torch.float64, gradients)
    rough, _ = _attended(few, chosen, shape.torch_dtype, gradients)
    folding = torch.finfo(torch.float32).eps * (1 + float(lse.abs().max()))
    summing = torch.finfo(torch.float32).eps * (shape.horizon + shape.tokens) ** 0.5
    rounding = torch.finfo(shape.torch_dtype).eps + folding + summing
    _known[question] = {
        name: Expected(x, 2 * float((rough[name].double() - x).abs().max()) + rounding * float(x.abs().max()))
        for name, x in exact.items()
    }
    return _known[question]


def _sample(x: Tensor, shape: Shape, axis: int = 2) -> Tensor:
    """The first and last lane and KV head (`axis`, with its query heads) of a large shape; all of a small one."""
    if shape.lanes * shape.heads * sum(shape.pairs()) <= LARGE:
        return x
    lanes, kv_heads = (torch.tensor(sorted({0, n - 1}), device=x.device) for n in (shape.lanes, shape.kv_heads))
    per_kv_head = x.index_select(0, lanes).unflatten(axis, (shape.kv_heads, -1))
    return per_kv_head.index_select(axis, kv_heads).flatten(axis, axis + 1)


def _attended(
    question: Question, inputs: Inputs, dtype: torch.dtype, gradients: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """The oracle's results by name, computed in `dtype`, and the log-sum-exp of its logits."""
    q, k, v = (x.to(dtype).requires_grad_(gradients) for x in (inputs.q, inputs.k, inputs.v))
    if question.causal:
        memory = fill.stack(question.shape, inputs, question.storage)[0]
        o, lse = reference_attention(q, k, v, memory, window=question.shape.window)
    else:
        o, lse = _unmasked(q, k, v, inputs)
    grads = torch.autograd.grad(o, (q, k, v), inputs.do.to(o.dtype)) if gradients else ()
    return as_named((o.detach(), *grads)), lse.detach()


def _unmasked(q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """For contenders that are a bound, not a competitor: every query sees the whole segment."""
    keys, values = (
        torch.cat([past.to(x.dtype), x.transpose(1, 2)], 2).repeat_interleave(q.shape[2] // k.shape[2], 1)
        for past, x in ((inputs.past_k, k), (inputs.past_v, v))
    )
    scores = q.transpose(1, 2) @ keys.transpose(2, 3) * q.shape[3] ** -0.5
    return (scores.softmax(-1) @ values).transpose(1, 2), scores.logsumexp(-1)
