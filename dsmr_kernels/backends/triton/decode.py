"""Decode: a few tokens against a long memory, which many programs share; a second small launch joins their parts.

Reading the memory once is what takes the time: the tokens and the query heads that share a KV head are the rows of one
tile. How many programs share a lane's memory depends on sizes only, never on the clock, so that a captured graph holds
for the whole life of a stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.append import append
from dsmr_kernels.backends.triton.configs import Config, Kind, kind, processors
from dsmr_kernels.backends.triton.forward import attend_block
from dsmr_kernels.backends.triton.geometry import bounds_of, read_lane
from dsmr_kernels.backends.triton.launch import Launch, shape_of
from dsmr_kernels.backends.triton.logits import factor_of, steepness
from dsmr_kernels.backends.triton.softmax import Sums, finish, merge, no_sums, only
from dsmr_kernels.backends.triton.tile import ring_keys, segment_keys, store_rows
from dsmr_kernels.backends.triton.walk import Queries, over_memory, over_segment

JOIN = Config(0, 0, 4, 1)  # the joining launch has no tiles
JOINED = tl.constexpr(16)  # parts that it takes at once
MOST_TOKENS = 16
MOST_ROWS: dict[Kind, int] = {  # tokens x query heads per KV head
    **{"half": 64, "quantised": 64, "special": 64, "float32": 64},
    "float32 special": 16,  # with more, what stands between its products does not fit into the registers
}


def suits(call: Call) -> bool:
    """Whether a call is a decode step: one whose rows fit a tile."""
    tokens, heads = call.q.shape[1:3]
    rows = tokens * heads // call.k.shape[2]
    return tokens <= MOST_TOKENS and rows <= MOST_ROWS[kind("decode", call)]


def launches_decode(call: Call, inputs: dict[str, Any], o: Tensor, lse: Tensor, config: Config) -> list[Launch]:
    """The one or two launches that fill `o` and `lse`, and append the segment if the call does.

    Programs sharing a memory read at least two blocks each, and together are about twice the processors.
    """
    batch, tokens, heads, _ = call.q.shape
    kv_heads = call.k.shape[2]
    group = heads // kv_heads
    rows = max(16, _power_of_2(tokens * group))
    wanted = triton.cdiv(2 * processors(call.q.device), batch * kv_heads)
    splits = max(1, min(wanted, triton.cdiv(call.memory.geometry.capacity, 2 * config.block_n)))
    shape = shape_of(call, config._replace(block_m=rows))
    parts = batch * kv_heads * splits * rows if splits > 1 else 0
    part = call.q.new_empty(parts * (shape.BD + 2), dtype=torch.float32)  # sums, then peaks, then totals
    own = {"o_ptr": o, "lse_ptr": lse, "part_ptr": part, "shape": shape, "SPLITS": splits}
    everything = inputs | own | {"TOKENS": max(16, _power_of_2(tokens))} | config.options
    launches = [Launch(decode_kernel, (splits, kv_heads, batch), everything)]
    if splits > 1:
        join = own | {"T": tokens, "group": group} | JOIN.options
        launches.append(Launch(join_kernel, (tokens * group, kv_heads, batch), join))
    return launches


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


class Parts(NamedTuple):
    """Where the sums `[B, Hkv, SPLITS, BM]` of all shares lie: their `acc` of BD each, then peaks, then totals."""

    acc: Any
    peak: Any
    total: Any


@triton.jit
def parts_of(part_ptr, shape: tl.constexpr, SPLITS: tl.constexpr):
    """The parts of one lane's KV head, for the programs of both kernels."""
    kv_head, lane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads, lanes = tl.num_programs(1), tl.num_programs(2)
    first = (lane * kv_heads + kv_head) * SPLITS * shape.BM
    peak_ptr = part_ptr + lanes.to(tl.int64) * kv_heads * SPLITS * shape.BM * shape.BD
    total_ptr = peak_ptr + lanes.to(tl.int64) * kv_heads * SPLITS * shape.BM
    return Parts(part_ptr + first * shape.BD, peak_ptr + first, total_ptr + first)


@triton.jit(do_not_specialize=["T"])
def decode_kernel(
    q,
    k,
    v,
    ring,
    lanes,
    rule,
    o_ptr,
    lse_ptr,
    part_ptr,
    T,
    group,
    shape: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program a (share of the memory, KV head, lane). Row r of its tile is token `r // group`, head `r % group`.

    The last share takes the segment and appends it.
    """
    split, kv_head = tl.program_id(0), tl.program_id(1)
    kv_heads = tl.num_programs(1)
    lane = read_lane(lanes, tl.program_id(2).to(tl.int64), T)
    packed, dims = tl.arange(0, shape.BM), tl.arange(0, shape.BD)
    rows, head = packed // group, kv_head * group + packed % group
    segment = segment_keys(k, v, lane, kv_head, shape)
    q_at = (lane.index * q.lane + rows * q.row + head * q.head) * shape.UNIT
    mask = (rows < lane.real)[:, None] & (dims < shape.D)[None, :]
    tile = Queries(
        tl.load(q.ptr + q_at[:, None] + dims[None, :], mask=mask, other=0),  # [BM, BD]
        *(rows, bounds_of(rows, 0, lane.real, lanes, lane, shape)),
        *(factor_of(rule, shape), steepness(rule, head[:, None])),
    )
    sums = no_sums(shape.BM, shape.BD)
    if ring is not None:
        stored = ring_keys(ring, lane, kv_head, kv_heads, shape)
        sums = over_memory(sums, tile, ring, None, stored, lane, split, rule, shape, SPLITS, attend_block)
    if split == SPLITS - 1:
        sums = over_segment(sums, tile, None, segment, None, lane.real, rule, shape, attend_block)
        if lanes.written is not None:
            append(segment, stored, 0, lanes, lane, ring, shape, TOKENS)
            if kv_head == 0:
                tl.store(lanes.written + lane.index, lane.position + lane.real)

    sums = only(sums, rows < lane.real)
    if SPLITS == 1:
        out, lse = finish(sums)
        heads = kv_heads * group
        tl.store(lse_ptr + (lane.index * heads + head) * T + rows, lse, mask=rows < T)
        store_rows(o_ptr, shape.D, (lane.index * T + rows) * heads + head, rows < T, out, shape)
    else:
        parts, at = parts_of(part_ptr, shape, SPLITS), split * shape.BM + packed
        tl.store(parts.acc + at[:, None] * shape.BD + dims[None, :], sums.acc)
        tl.store(parts.peak + at, sums.peak)
        tl.store(parts.total + at, sums.total)


@triton.jit(do_not_specialize=["T"])
def join_kernel(
    o_ptr,
    lse_ptr,
    part_ptr,
    T,
    group,
    shape: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program a (row of the tile, KV head, lane): the softmax over all shares from the softmax over each."""
    packed, kv_head, lane = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1) * group
    row, head = packed // group + tl.arange(0, 1), kv_head * group + packed % group
    parts, dims = parts_of(part_ptr, shape, SPLITS), tl.arange(0, shape.BD)
    sums = no_sums(1, shape.BD)
    for first in range(0, SPLITS, JOINED):
        splits = first + tl.arange(0, JOINED)
        valid, at = splits < SPLITS, splits * shape.BM + packed
        accs = tl.load(parts.acc + at[:, None] * shape.BD + dims[None, :], mask=valid[:, None], other=0.0)
        peaks = tl.load(parts.peak + at, mask=valid, other=-1.0e30)
        sums = merge(sums, Sums(accs, peaks, tl.load(parts.total + at, mask=valid, other=0.0)))
    out, lse = finish(sums)
    tl.store(lse_ptr + (lane * heads + head) * T + row, lse)
    store_rows(o_ptr, shape.D, (lane * T + row) * heads + head, row < T, out, shape)
