"""The running softmax: over blocks of keys, over shares of the memory, and its end. Logits are in base 2."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dsmr_kernels.backends.triton.logits import LN2
from dsmr_kernels.backends.triton.tile import dot, narrow


class Sums(NamedTuple):
    """Of rows: the weighted values `acc [BM, BD]`, the largest logit and the sum of weights `[BM]`, in float32.

    Weights are relative to the peak.
    """

    acc: Any
    peak: Any
    total: Any


@triton.jit
def no_sums(BM: tl.constexpr, BD: tl.constexpr):
    """The softmax over nothing. Its peak is finite: a row that sees nothing must not meet inf - inf."""
    return Sums(tl.zeros([BM, BD], tl.float32), tl.full([BM], -1.0e30, tl.float32), tl.zeros([BM], tl.float32))


@triton.jit
def step(sums, x, factor, v, v_scale, PRECISION: tl.constexpr):
    """Take one block's logits `x * factor [BM, BN]` and values `v [BN, BD]` in; `v_scale [BN]` are factors or None."""
    peak = tl.maximum(sums.peak, tl.max(x, 1) * factor)
    weights = tl.exp2(x * factor - peak[:, None])  # [BM, BN]
    shrink = tl.exp2(sums.peak - peak)
    total = sums.total * shrink + tl.sum(weights, 1)
    if v_scale is not None:
        weights = weights * v_scale[None, :]
    acc = dot(narrow(weights, v.dtype), v, sums.acc * shrink[:, None], PRECISION)  # [BM, BN] @ [BN, BD]
    return Sums(acc, peak, total)


@triton.jit
def merge(sums, parts):
    """Take `parts`, n softmaxes of one row over other keys, into that of this row, BM being 1."""
    peak = tl.maximum(sums.peak, tl.max(parts.peak, 0))  # [1]
    shrink, weights = tl.exp2(sums.peak - peak), tl.exp2(parts.peak - peak)
    acc = sums.acc * shrink[:, None] + tl.sum(parts.acc * weights[:, None], 0)[None, :]
    return Sums(acc, peak, sums.total * shrink + tl.sum(parts.total * weights, 0))


@triton.jit
def only(sums, rows):
    """The softmax of these rows; that of the others is over nothing."""
    return Sums(sums.acc, sums.peak, tl.where(rows, sums.total, 0.0))


@triton.jit
def finish(sums):
    """Outputs `[BM, BD]` and logarithmic sums `[BM]`, natural; a sum of 0 is that of a row that sees nothing."""
    blind = sums.total == 0
    total = tl.where(blind, 1.0, sums.total)
    out = tl.where(blind[:, None], 0.0, sums.acc / total[:, None])
    return out, tl.where(blind, float("-inf"), (sums.peak + tl.log2(total)) * LN2)
