"""Rows that met something hidden, computed again: a small launch behind each of the large ones.

A tile shows its keys to several rows. A row that must not see one gives it a weight of zero; but where a key or value
is infinite or NaN, 0 x NaN is NaN. Selecting operands would slow every tile down, for numbers that hardly anybody has.
So these kernels look at the results. Where they find a NaN that the row's own logits do not explain, they compute the
row anew, alone, by the large kernel's own loops: its tile holds that row in every place, so that all it loads is the
row's own, and nothing is hidden. Calls of one token have no such tiles.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.backward import (
    Pulled,
    last_row,
    load_sums,
    pull_block,
    pull_keys,
    zeros,
)
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.forward import attend_block
from dsmr_kernels.backends.triton.geometry import bounds_of, read_lane
from dsmr_kernels.backends.triton.launch import Launch, shape_of
from dsmr_kernels.backends.triton.logits import factor_of, steepness
from dsmr_kernels.backends.triton.softmax import finish, no_sums
from dsmr_kernels.backends.triton.tile import load_rows, ring_keys, segment_keys, store_rows
from dsmr_kernels.backends.triton.walk import Queries, over_memory, over_segment

CONFIG = Config(16, 32, 4, 1)  # rows are few or none: small enough for every head dimension


def mend_forward(call: Call, inputs: dict[str, Any], o: Tensor, lse: Tensor) -> Launch:
    """The launch behind the forward pass."""
    return _launch(mend_forward_kernel, call, inputs, CONFIG.block_m, o, o_ptr=o, lse_ptr=lse)


def mend_dq(call: Call, inputs: dict[str, Any], dq: Tensor) -> Launch:
    """The launch behind that of `dq`."""
    return _launch(mend_dq_kernel, call, inputs, CONFIG.block_m, dq, dq_ptr=dq)


def mend_dkdv(call: Call, inputs: dict[str, Any], dk: Tensor, dv: Tensor) -> Launch:
    """The launch behind that of `dk` and `dv`."""
    shared = {name: x for name, x in inputs.items() if name != "ring"}
    return _launch(mend_dkdv_kernel, call, shared, CONFIG.block_n, dk, dk_ptr=dk, dv_ptr=dv)


def _launch(kernel: Any, call: Call, inputs: dict[str, Any], rows: int, result: Tensor, **own: Any) -> Launch:
    batch, tokens, heads, _ = result.shape
    arguments = inputs | own | {"shape": shape_of(call, CONFIG)} | CONFIG.options
    return Launch(kernel, (triton.cdiv(tokens, rows), heads, batch), arguments)


@triton.jit
def has_nan(ptr, row_step, first, end, shape: tl.constexpr, ROWS: tl.constexpr):
    """Of rows `first ... end - 1`: is something NaN? `[ROWS]`"""
    x = load_rows(ptr, row_step, first, end, shape, ROWS).to(tl.float32)
    return tl.max((x != x).to(tl.int32), 1) > 0


@triton.jit
def at(flags, i):
    """The flag `flags[i]`."""
    return tl.max(flags.to(tl.int32) * (tl.arange(0, flags.shape[0]) == i), 0) > 0


@triton.jit
def repeated(x, lane, head, row, shape: tl.constexpr):
    """One row of `x`, BM times. `[BM, BD]`"""
    ptr = x.ptr + (lane.index * x.lane + head * x.head + row * x.row) * shape.UNIT
    return load_rows(ptr, 0, 0, shape.BM, shape, shape.BM)


@triton.jit(do_not_specialize=["T"])
def mend_forward_kernel(q, k, v, ring, lanes, rule, o_ptr, lse_ptr, T, group, shape: tl.constexpr):
    """One program a (block of queries, head, lane)."""
    m0, head, heads = tl.program_id(0) * shape.BM, tl.program_id(1), tl.num_programs(1)
    kv_head, step = head // group, heads * shape.D
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    index, end = tl.arange(0, shape.BM), tl.minimum(m0 + shape.BM, lane.real)
    o_ptr += (lane.index * T * heads + head) * shape.D
    lse = tl.load(lse_ptr + (lane.index * heads + head) * T + m0 + index, mask=m0 + index < end, other=0.0)
    spoilt = has_nan(o_ptr, step, m0, end, shape, shape.BM) & (lse == lse)
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        segment = segment_keys(k, v, lane, kv_head, shape)
        for row in range(m0, end):
            if at(spoilt, row - m0):
                rows = index * 0 + row
                tile = Queries(
                    repeated(q, lane, head, row, shape),  # [BM, BD]
                    *(rows, bounds_of(rows, row, row + 1, lanes, lane, shape)),
                    *(factor_of(rule, shape), steepness(rule, head)),
                )
                sums = no_sums(shape.BM, shape.BD)
                if ring is not None:
                    stored = ring_keys(ring, lane, kv_head, heads // group, shape)
                    sums = over_memory(sums, tile, ring, None, stored, lane, 0, rule, shape, 1, attend_block)
                sums = over_segment(sums, tile, None, segment, None, row + 1, rule, shape, attend_block)
                store_rows(o_ptr, step, rows, index == 0, finish(sums)[0], shape)


@triton.jit(do_not_specialize=["T"])
def mend_dq_kernel(q, k, v, ring, lanes, rule, back, dq_ptr, T, group, shape: tl.constexpr):
    """One program a (block of queries, head, lane)."""
    m0, head, heads = tl.program_id(0) * shape.BM, tl.program_id(1), tl.num_programs(1)
    kv_head, step = head // group, heads * shape.D
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    index, end = tl.arange(0, shape.BM), tl.minimum(m0 + shape.BM, lane.real)
    dq_ptr += (lane.index * T * heads + head) * shape.D
    lse, delta = load_sums(back, lane, head, heads, m0 + index, end)
    spoilt = has_nan(dq_ptr, step, m0, end, shape, shape.BM) & (lse == lse) & (delta == delta)
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        segment = segment_keys(k, v, lane, kv_head, shape)
        for row in range(m0, end):
            if at(spoilt, row - m0):
                rows = index * 0 + row
                lse, delta = load_sums(back, lane, head, heads, rows, end)
                tile = Pulled(
                    repeated(q, lane, head, row, shape),  # [BM, BD]
                    *(rows, bounds_of(rows, row, row + 1, lanes, lane, shape)),
                    *(factor_of(rule, shape), steepness(rule, head)),
                    repeated(back.do, lane, head, row, shape),  # [BM, BD]
                    *(lse, delta),
                )
                dq = zeros(shape.BM, shape.BD)
                if ring is not None:
                    stored = ring_keys(ring, lane, kv_head, heads // group, shape)
                    dq = over_memory(dq, tile, ring, None, stored, lane, 0, rule, shape, 1, pull_block)
                dq = over_segment(dq, tile, None, segment, None, row + 1, rule, shape, pull_block)
                store_rows(dq_ptr, step, rows, index == 0, dq * rule.scale, shape)


@triton.jit(do_not_specialize=["T"])
def mend_dkdv_kernel(q, k, v, lanes, rule, back, dk_ptr, dv_ptr, T, group, shape: tl.constexpr):
    """One program a (block of segment keys, KV head, lane)."""
    n0, kv_head, kv_heads = tl.program_id(0) * shape.BN, tl.program_id(1), tl.num_programs(1)
    lane, step = read_lane(lanes, tl.program_id(2).to(tl.int64), T), kv_heads * shape.D
    index, segment = tl.arange(0, shape.BN), segment_keys(k, v, lane, kv_head, shape)
    dk_ptr += (lane.index * T * kv_heads + kv_head) * shape.D
    dv_ptr += (lane.index * T * kv_heads + kv_head) * shape.D
    spoilt = has_nan(dk_ptr, step, n0, T, shape, shape.BN) | has_nan(dv_ptr, step, n0, T, shape, shape.BN)
    spoilt = spoilt & ~has_nan(segment.k, segment.k_row, n0, lane.real, shape, shape.BN)  # its own row saw that
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        for key in range(n0, tl.minimum(n0 + shape.BN, T)):  # no row sees those that are not real
            if at(spoilt, key - n0):
                keys = index * 0 + key
                dk, dv = pull_keys(
                    load_rows(segment.k + key * segment.k_row, 0, 0, shape.BN, shape, shape.BN),  # [BN, BD]
                    load_rows(segment.v + key * segment.v_row, 0, 0, shape.BN, shape, shape.BN),  # [BN, BD]
                    *(keys, key, last_row(key, lanes, lane, shape)),
                    *(q, back, lanes, lane, kv_head, group, rule, shape),
                )
                store_rows(dk_ptr, step, keys, index == 0, dk * rule.scale, shape)
                store_rows(dv_ptr, step, keys, index == 0, dv, shape)
