"""Forward: one pass of online softmax over the memory's runs and the segment, which is then appended.

One program a (block of queries, head, lane).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.append import append
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.geometry import bounds_of, read_lane
from dsmr_kernels.backends.triton.launch import Launch, shape_of, source_of
from dsmr_kernels.backends.triton.logits import factor_of, steepness
from dsmr_kernels.backends.triton.softmax import finish, no_sums, only, step
from dsmr_kernels.backends.triton.tile import (
    decoded,
    fetch,
    load_heads,
    load_rows,
    load_scales,
    ring_keys,
    segment_keys,
    store_rows,
)
from dsmr_kernels.backends.triton.walk import Queries, over_memory, over_segment, scores, seen


def launch_forward(call: Call, inputs: dict[str, Any], o: Tensor, lse: Tensor, config: Config) -> Launch:
    """The launch that fills `o` and `lse`, and appends the segment if the call does."""
    batch, tokens, heads, _ = call.q.shape
    shape, ring = shape_of(call, config), inputs["ring"]
    own = {
        **{"k_source": source_of(call.k.transpose(1, 2), shape, config), "o_ptr": o, "lse_ptr": lse, "shape": shape},
        "ring_source": source_of(ring.k, shape, config) if ring else None,
    }
    grid = triton.cdiv(tokens, config.block_m), heads, batch
    return Launch(forward_kernel, grid, inputs | own | config.options)


@triton.jit
def attend_block(sums, tile, source, keys, block, rule, shape: tl.constexpr):
    """Take one block of keys and values into the running softmax of a tile."""
    TYPE: tl.constexpr = keys.k.dtype.element_ty
    k_scale, v_scale = None, None
    k = fetch(source, keys, keys.k, keys.k_row, block.first, block.end, shape, shape.BN)  # [BN, BD]
    v = load_rows(keys.v, keys.v_row, block.first, block.end, shape, shape.BN)  # [BN, BD]
    k, v = decoded(k, tile.q.dtype), decoded(v, tile.q.dtype)
    if TYPE != tile.q.dtype:
        k_scale = load_scales(keys.k_scale, block.first, block.end, TYPE, shape.BN)
    x, _ = scores(tile, k, k_scale, block, rule, shape)
    sees = seen(tile, block, shape)
    if block.hides:
        x = tl.where(sees, x, float("-inf"))
    if TYPE != tile.q.dtype:
        v_scale = load_scales(keys.v_scale, block.first, block.end, TYPE, shape.BN)
    return step(sums, x, tile.factor, v, v_scale, shape.PRECISION)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q,
    k,
    v,
    k_source,
    ring,
    ring_source,
    lanes,
    rule,
    o_ptr,
    lse_ptr,
    T,
    group,
    shape: tl.constexpr,
):
    """`o [B, T, H, D]` and `lse [B, H, T]`, contiguous."""
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * shape.BM  # the longest rows start first
    head, heads = tl.program_id(1), tl.num_programs(1)
    kv_head = head // group
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    rows, end = m0 + tl.arange(0, shape.BM), tl.minimum(m0 + shape.BM, lane.real)
    segment = segment_keys(k, v, lane, kv_head, shape)
    tile = Queries(
        load_heads(q, lane, head, m0, lane.real, shape),  # [BM, BD]
        *(rows, bounds_of(rows, m0, end, lanes, lane, shape)),
        *(factor_of(rule, shape), steepness(rule, head)),
    )
    sums = no_sums(shape.BM, shape.BD)
    if ring is not None:
        stored = ring_keys(ring, lane, kv_head, heads // group, shape)
        sums = over_memory(sums, tile, ring, ring_source, stored, lane, 0, rule, shape, 1, attend_block)
    sums = over_segment(sums, tile, k_source, segment, m0, end, rule, shape, attend_block)

    out, lse = finish(only(sums, rows < lane.real))
    tl.store(lse_ptr + (lane.index * heads + head) * T + rows, lse, mask=rows < T)
    o_ptr += (lane.index * T * heads + head) * shape.D
    store_rows(o_ptr, heads * shape.D, rows, rows < T, out, shape)
    if lanes.written is not None:
        if head % group == 0:
            append(segment, stored, m0, lanes, lane, ring, shape, shape.BM)
            if (head == 0) & (m0 == 0):
                tl.store(lanes.written + lane.index, lane.position + lane.real)
