"""Backward: dQ over memory and segment, dK and dV over the segment. Weights are recomputed from the logarithmic sums.

No program adds to what another writes, so results are the same bit for bit from run to run. The logarithm of a row that
sees nothing is -inf; it is read as +inf, which makes every weight zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.geometry import AFTER_ALL, bounds_of, lower_bound, read_lane
from dsmr_kernels.backends.triton.launch import Heads, Launch, shape_of, source_of
from dsmr_kernels.backends.triton.logits import LOG2E, factor_of, logits, steepness, visible
from dsmr_kernels.backends.triton.tile import (
    decoded,
    dot,
    fetch,
    load_heads,
    load_rows,
    load_scales,
    narrow,
    ring_keys,
    segment_keys,
    store_rows,
)
from dsmr_kernels.backends.triton.walk import over_memory, over_segment, scores, seen

DELTA = Config(32, 32, 4, 1)  # of the smallest kernel: rows a program


class Cotangent(NamedTuple):
    """What backward knows of the rows: `do [B, T, H, D]`, aligned, and `lse` and `delta [B, H, T]`, float32."""

    do: Heads
    lse: Tensor
    delta: Tensor


class Pulled(NamedTuple):
    """A tile of queries, as `walk.Queries`, and what came back for its rows: `do [BM, BD]`, `lse` and `delta [BM]`."""

    q: Any
    rows: Any
    bounds: Any
    factor: Any
    steep: Any
    do: Any
    lse: Any
    delta: Any


def launch_delta(call: Call, inputs: dict[str, Any], o: Tensor, dlse: Tensor) -> Launch:
    """The launch that fills `delta`, what all weights' gradients of a row have in common."""
    batch, tokens, heads, _ = o.shape
    own = {"o_ptr": o, "dlse_ptr": dlse, "shape": shape_of(call, DELTA)}
    shared = {name: inputs[name] for name in ("lanes", "back", "T")}
    grid = triton.cdiv(tokens, DELTA.block_m), heads, batch
    return Launch(delta_kernel, grid, shared | own | DELTA.options)


def launch_dq(call: Call, inputs: dict[str, Any], dq: Tensor, config: Config) -> Launch:
    """The launch that fills `dq`, contiguous."""
    batch, tokens, heads, _ = dq.shape
    shape, ring = shape_of(call, config), inputs["ring"]
    own = {
        **{"v_source": source_of(call.v.transpose(1, 2), shape, config), "dq_ptr": dq, "shape": shape},
        "ring_source": source_of(ring.v, shape, config) if ring else None,
    }
    grid = triton.cdiv(tokens, config.block_m), heads, batch
    return Launch(dq_kernel, grid, inputs | own | config.options)


def launch_dkdv(call: Call, inputs: dict[str, Any], dk: Tensor, dv: Tensor, config: Config) -> Launch:
    """The launch that fills `dk` and `dv`, contiguous."""
    batch, tokens, kv_heads, _ = dk.shape
    own = {"dk_ptr": dk, "dv_ptr": dv, "shape": shape_of(call, config)}
    shared = {name: x for name, x in inputs.items() if name != "ring"}
    grid = triton.cdiv(tokens, config.block_n), kv_heads, batch
    return Launch(dkdv_kernel, grid, shared | own | config.options)


@triton.jit(do_not_specialize=["T"])
def delta_kernel(lanes, back, o_ptr, dlse_ptr, T, shape: tl.constexpr):
    """`delta = sum(o * do) - dlse`, zero where a row is not real."""
    m0, head, heads = tl.program_id(0) * shape.BM, tl.program_id(1), tl.num_programs(1)
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    rows = m0 + tl.arange(0, shape.BM)
    o_ptr += (lane.index * T * heads + head) * shape.D
    o = load_rows(o_ptr, heads * shape.D, m0, lane.real, shape, shape.BM)  # [BM, BD]
    do = load_heads(back.do, lane, head, m0, lane.real, shape)  # [BM, BD]
    at = (lane.index * heads + head) * T + rows
    dlse = tl.load(dlse_ptr + at, mask=rows < lane.real, other=0.0)
    tl.store(back.delta + at, tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) - dlse, mask=rows < T)


@triton.jit
def zeros(ROWS: tl.constexpr, BD: tl.constexpr):
    """The gradient of nothing. `[ROWS, BD]`"""
    return tl.zeros([ROWS, BD], tl.float32)


@triton.jit
def load_sums(back, lane, head, heads, rows, end):
    """The logarithmic sums of rows, in base 2, and their delta. `[BM]`"""
    at = (lane.index * heads + head) * lane.tokens + rows
    lse = tl.load(back.lse + at, mask=rows < end, other=float("-inf")) * LOG2E
    delta = tl.load(back.delta + at, mask=rows < end, other=0.0)
    return tl.where(lse == float("-inf"), float("inf"), lse), delta


@triton.jit
def pull_block(dq, tile, source, keys, block, rule, shape: tl.constexpr):
    """Add one block's share to `dq / scale [BM, BD]`.

    The gradient of the logits, not the weights, is hidden: hidden rows of `v` may hold anything.
    """
    TYPE: tl.constexpr = keys.k.dtype.element_ty
    k_scale, v_scale = None, None
    k = load_rows(keys.k, keys.k_row, block.first, block.end, shape, shape.BN)  # [BN, BD]
    v = fetch(source, keys, keys.v, keys.v_row, block.first, block.end, shape, shape.BN)  # [BN, BD]
    k, v = decoded(k, tile.q.dtype), decoded(v, tile.q.dtype)
    if TYPE != tile.q.dtype:
        k_scale = load_scales(keys.k_scale, block.first, block.end, TYPE, shape.BN)
        v_scale = load_scales(keys.v_scale, block.first, block.end, TYPE, shape.BN)
    x, slope = scores(tile, k, k_scale, block, rule, shape)
    sees = seen(tile, block, shape)
    weights = tl.exp2(x * tile.factor - tile.lse[:, None])  # [BM, BN]
    dweights = dot(tile.do, tl.trans(v), PRECISION=shape.PRECISION)  # [BM, BD] @ [BD, BN]
    if v_scale is not None:
        dweights = dweights * v_scale[None, :]
    dx = weights * (dweights - tile.delta[:, None]) * slope
    if block.hides:
        dx = tl.where(sees, dx, 0.0)
    if k_scale is not None:
        dx = dx * k_scale[None, :]
    return dot(narrow(dx, k.dtype), k, dq, shape.PRECISION)  # [BM, BN] @ [BN, BD]


@triton.jit(do_not_specialize=["T"])
def dq_kernel(
    q,
    k,
    v,
    v_source,
    ring,
    ring_source,
    lanes,
    rule,
    back,
    dq_ptr,
    T,
    group,
    shape: tl.constexpr,
):
    """One program a (block of queries, head, lane), three products a block of keys."""
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * shape.BM  # the longest rows start first
    head, heads = tl.program_id(1), tl.num_programs(1)
    kv_head = head // group
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    rows, end = m0 + tl.arange(0, shape.BM), tl.minimum(m0 + shape.BM, lane.real)
    segment = segment_keys(k, v, lane, kv_head, shape)
    lse, delta = load_sums(back, lane, head, heads, rows, lane.real)
    tile = Pulled(
        load_heads(q, lane, head, m0, lane.real, shape),  # [BM, BD]
        *(rows, bounds_of(rows, m0, end, lanes, lane, shape)),
        *(factor_of(rule, shape), steepness(rule, head)),
        load_heads(back.do, lane, head, m0, lane.real, shape),  # [BM, BD]
        *(lse, delta),
    )
    dq = zeros(shape.BM, shape.BD)
    if ring is not None:
        stored = ring_keys(ring, lane, kv_head, heads // group, shape)
        dq = over_memory(dq, tile, ring, ring_source, stored, lane, 0, rule, shape, 1, pull_block)
    dq = over_segment(dq, tile, v_source, segment, m0, end, rule, shape, pull_block)
    dq = tl.where((rows < lane.real)[:, None], dq * rule.scale, 0.0)  # the others may have met the padding of V
    store_rows(dq_ptr + (lane.index * T * heads + head) * shape.D, heads * shape.D, rows, rows < T, dq, shape)


@triton.jit
def last_row(key, lanes, lane, shape: tl.constexpr):
    """The end (exclusive) of the rows that may see a key up to this one, which are consecutive."""
    end = lane.real
    if shape.TOKEN:
        end = tl.minimum(end, key + tl.minimum(lane.horizon, AFTER_ALL).to(tl.int32))
    if lanes.start is not None:
        rows = tl.arange(0, 1024)
        reached = 0  # rows whose piece begins no later than the key: starts are non-decreasing
        start_ptr = lanes.start + lane.index * lane.tokens
        for first in range(0, end, 1024):
            start = tl.load(start_ptr + first + rows, mask=first + rows < end, other=key + 1)
            reached += tl.sum((start <= key).to(tl.int32))
        end = reached
    return end


@triton.jit
def pull_keys(k, v, keys, first, end, q, back, lanes, lane, kv_head, group, rule, shape: tl.constexpr):
    """`dk / scale` and `dv [BN, BD]` of segment keys `k` and `v`, which rows `first ... end - 1` of all heads may see.

    Every block is masked: a branch around the mask saves little here, and makes ptxas serialise some tiles.
    """
    heads, factor = tl.num_programs(1) * group, factor_of(rule, shape)
    blocks = tl.cdiv(tl.maximum(end - first, 0), shape.BM)
    dk = zeros(shape.BN, shape.BD)
    dv = zeros(shape.BN, shape.BD)
    for i in tl.range(0, blocks * group):
        head = kv_head * group + i // blocks
        m0 = first + i % blocks * shape.BM
        rows = m0 + tl.arange(0, shape.BM)
        queries = load_heads(q, lane, head, m0, end, shape)  # [BM, BD]
        do = load_heads(back.do, lane, head, m0, end, shape)  # [BM, BD]
        lse, delta = load_sums(back, lane, head, heads, rows, end)  # [BM]
        x = dot(k, tl.trans(queries), PRECISION=shape.PRECISION)  # [BN, BD] @ [BD, BM]
        x, slope = logits(x, rows[None, :], keys[:, None], steepness(rule, head), rule, shape)
        sees = visible(keys[:, None], lower_bound(rows, lanes, lane, shape)[None, :], rows[None, :], shape)
        weights = tl.where(sees, tl.exp2(x * factor - lse[None, :]), 0.0)  # [BN, BM]
        dv = dot(narrow(weights, do.dtype), do, dv, shape.PRECISION)  # [BN, BM] @ [BM, BD]
        dweights = dot(v, tl.trans(do), PRECISION=shape.PRECISION)  # [BN, BD] @ [BD, BM]
        dx = weights * (dweights - delta[None, :]) * slope
        dk = dot(narrow(dx, queries.dtype), queries, dk, shape.PRECISION)  # [BN, BM] @ [BM, BD]
    return dk, dv


@triton.jit(do_not_specialize=["T"])
def dkdv_kernel(q, k, v, lanes, rule, back, dk_ptr, dv_ptr, T, group, shape: tl.constexpr):
    """One program a (block of segment keys, KV head, lane). It walks all query heads of its group: no atomics."""
    n0 = tl.program_id(0) * shape.BN  # the first blocks are seen by the most rows, and start first
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    keys, segment = n0 + tl.arange(0, shape.BN), segment_keys(k, v, lane, kv_head, shape)
    dk, dv = pull_keys(
        load_rows(segment.k, segment.k_row, n0, lane.real, shape, shape.BN),  # [BN, BD]
        load_rows(segment.v, segment.v_row, n0, lane.real, shape, shape.BN),  # [BN, BD]
        *(keys, n0, last_row(n0 + shape.BN - 1, lanes, lane, shape), q, back, lanes, lane, kv_head, group, rule, shape),
    )
    base = (lane.index * T * kv_heads + kv_head) * shape.D
    store_rows(dk_ptr + base, kv_heads * shape.D, keys, keys < T, dk * rule.scale, shape)
    store_rows(dv_ptr + base, kv_heads * shape.D, keys, keys < T, dv, shape)
