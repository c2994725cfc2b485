"""Decode: a few tokens against a long memory, which many programs share; a second small launch joins their parts.

Reading the memory once is what takes the time: the tokens and the query heads that share a KV head are the rows of one
tile. How many programs share a lane's memory depends on sizes only, never on the clock, so that a captured graph holds
for the whole life of a stream.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import Config, Kind, kind, processors
from dsmr_kernels.backends.triton.forward import attend_part, softmax_step
from dsmr_kernels.backends.triton.launch import Launch, common_arguments, padded_dim
from dsmr_kernels.backends.triton.geometry import ALL, append, archive_span, read_clock, recent_span
from dsmr_kernels.backends.triton.tile import (
    EXACT,
    LN2,
    LOG2E,
    base2_logits,
    dot,
    load_rows,
    lower_bound,
    narrow,
    real_tokens,
    row_bounds,
)

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


def launches_decode(call: Call, o: Tensor, lse: Tensor, config: Config) -> list[Launch]:
    """The one or two launches that fill `o` and `lse` and append the segment if `call.append`.

    Programs sharing a memory read at least two blocks each, and together are about twice the processors.
    """
    batch, tokens, heads, _ = call.q.shape
    kv_heads = call.k.shape[2]
    rows = max(16, _power_of_2(tokens * heads // kv_heads))
    wanted = triton.cdiv(2 * processors(call.q.device), batch * kv_heads)
    splits = max(1, min(wanted, triton.cdiv(call.memory.geometry.capacity, 2 * config.block_n)))
    arguments = common_arguments(call, config._replace(block_m=rows, descriptors=False))
    parts = batch * kv_heads * splits * rows if splits > 1 else 0
    part = call.q.new_empty(parts * (padded_dim(call) + 2), dtype=torch.float32)  # sums, then peaks, then totals
    outputs = {"o_ptr": o, "lse_ptr": lse, "part_ptr": part}
    arguments |= outputs | {
        **{"written_ptr": call.memory.written, "APPEND": call.append},
        **{"TOKENS": max(16, _power_of_2(tokens)), "SPLITS": splits},
    }
    del arguments["DESCRIPTOR"]
    launches = [Launch(decode_kernel, (splits, kv_heads, batch), arguments)]
    if splits > 1:
        shared = {name: arguments[name] for name in ("T", "group", "D", "BD", "BM", "SPLITS")}
        join = outputs | shared | JOIN.options
        launches.append(Launch(join_kernel, (tokens * heads // kv_heads, kv_heads, batch), join))
    return launches


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@triton.jit
def share(skipped, count, split, SPLITS: tl.constexpr, BN: tl.constexpr):
    """Of the entries `skipped ... count - 1` those that program `split` reads: whole blocks, as evenly as they go."""
    size = tl.cdiv(tl.cdiv(count - skipped, SPLITS), BN) * BN
    first = tl.minimum(skipped + split * size, count)
    return first, tl.minimum(first + size, count)


@triton.jit(do_not_specialize=["T"])
def decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    part_ptr,
    ring_k_ptr,
    ring_v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    written_ptr,
    clock_ptr,
    horizon_ptr,
    start_ptr,
    len_ptr,
    slopes_ptr,
    scale,
    softcap,
    T,
    group,
    archive,
    recent,
    stride,
    q_lane,
    q_row,
    q_head,
    k_lane,
    k_row,
    k_head,
    v_lane,
    v_row,
    v_head,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    UNIT: tl.constexpr,
    TOKEN: tl.constexpr,
    STARTS: tl.constexpr,
    LENGTHS: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    FACTORED: tl.constexpr,
    STORAGE: tl.constexpr,
    KEEP: tl.constexpr,
    MEMORY: tl.constexpr,
    APPEND: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program a (share of the memory, KV head, lane). Row r of its tile is token `r // group`, head `r % group`.

    The last share takes the segment and appends it.
    """
    BOUNDED: tl.constexpr = TOKEN or STARTS
    split, kv_head, lane = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads, lanes = tl.num_programs(1), tl.num_programs(2)
    heads = kv_heads * group
    packed, columns, dims = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BD)
    rows, head = packed // group, kv_head * group + packed % group
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    start_ptr += lane * T
    k_ptr += (lane * k_lane + kv_head * k_head) * UNIT
    v_ptr += (lane * v_lane + kv_head * v_head) * UNIT
    q_at = (lane * q_lane + rows * q_row + head * q_head) * UNIT
    q = tl.load(q_ptr + q_at[:, None] + dims[None, :], mask=(rows < real)[:, None] & (dims < D)[None, :], other=0)
    factor = scale * LOG2E if FACTORED else 1.0
    steep = 0.0
    if ALIBI:
        steep = tl.load(slopes_ptr + head, mask=rows < real, other=0.0).to(tl.float32)[:, None] * LOG2E

    acc = tl.zeros([BM, BD], tl.float32)
    peak = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    horizon = tl.load(horizon_ptr)
    _, low_first, low_last = row_bounds(0, real, start_ptr, T, horizon, TOKENS, TOKEN, STARTS)
    low = lower_bound(rows, start_ptr, T - 1, tl.minimum(horizon, 2**30).to(tl.int32), TOKEN, STARTS)  # [BM]

    if MEMORY:
        position, length, phase = read_clock(clock_ptr, lane, lanes)
        ring_head = lane * kv_heads + kv_head
        ring_k_ptr += ring_head * (archive + recent) * D
        ring_v_ptr += ring_head * (archive + recent) * D
        k_scale_ptr += ring_head * (archive + recent)
        v_scale_ptr += ring_head * (archive + recent)
        count, slot, first_group = archive_span(position, length, phase, horizon, archive, stride, TOKEN, KEEP)
        skipped = tl.where(real > 0, tl.minimum(tl.maximum(low_first + count, 0), count), count)
        skipped, stop = share(skipped, count, split, SPLITS, BN)
        acc, peak, total = attend_part(
            *(acc, peak, total, q, ring_k_ptr, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane, kv_head),
            *(0, archive, slot, skipped, stop, count, rows, low + count, low_last + count, first_group, length),
            *(stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED, STORAGE, KEEP),
            *(False, PRECISION),
        )
        if KEEP != ALL:
            count, slot = recent_span(position, length, phase, recent)
            skipped = tl.where(real > 0, tl.minimum(tl.maximum(low_first + count, 0), count), count)
            skipped, stop = share(skipped, count, split, SPLITS, BN)
            acc, peak, total = attend_part(
                *(acc, peak, total, q, ring_k_ptr, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane, kv_head),
                *(archive, recent, slot, skipped, stop, count, rows, low + count, low_last + count, first_group),
                *(length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED),
                *(STORAGE, ALL, False, PRECISION),
            )

    if split == SPLITS - 1:
        for n0 in range(0, real, BN):
            k = load_rows(k_ptr, k_row * UNIT, n0, real, D, BD, BN)  # [BN, BD]
            v = load_rows(v_ptr, v_row * UNIT, n0, real, D, BD, BN)  # [BN, BD]
            x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
            if not FACTORED:
                x = base2_logits(x, scale, softcap, CAPPED)[0]
            if ALIBI:
                x -= steep * (rows[:, None] - n0 - columns[None, :]).to(tl.float32)
            seen = columns[None, :] <= (rows - n0)[:, None]
            if BOUNDED:
                seen = seen & (columns[None, :] >= (low - n0)[:, None])
            x = tl.where(seen, x, float("-inf"))
            acc, peak, total = softmax_step(acc, peak, total, x, factor, v, 0.0, EXACT, PRECISION)
        if APPEND:
            append(
                *(k_ptr, v_ptr, k_row * UNIT, v_row * UNIT, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr),
                *(start_ptr, 0, real, position, length, archive, recent, stride, D, BD, TOKENS, STORAGE, KEEP, STARTS),
            )
            if kv_head == 0:
                tl.store(written_ptr + lane, position + real)

    acc = tl.where((rows < real)[:, None], acc, 0.0)
    total = tl.where(rows < real, total, 0.0)
    if SPLITS == 1:
        at = (lane * T + rows) * heads + head
        finish(acc, peak, total, o_ptr + at * D, lse_ptr + (lane * heads + head) * T + rows, rows < T, D, BD)
    else:
        parts = lanes.to(tl.int64) * kv_heads * SPLITS * BM
        part = ((lane * kv_heads + kv_head) * SPLITS + split) * BM + packed
        tl.store(part_ptr + part[:, None] * BD + dims[None, :], acc)
        tl.store(part_ptr + parts * BD + part, peak)
        tl.store(part_ptr + parts * (BD + 1) + part, total)


@triton.jit
def finish(acc, peak, total, o_ptrs, lse_ptrs, mask, D: tl.constexpr, BD: tl.constexpr):
    """Divide by the sums and store rows of `o` and `lse`; a sum of 0 is that of a row that sees nothing."""
    dims = tl.arange(0, BD)
    blind = total == 0
    divisor = tl.where(blind, 1.0, total)
    out = narrow(acc / divisor[:, None], o_ptrs.dtype.element_ty)
    tl.store(o_ptrs[:, None] + dims[None, :], out, mask=mask[:, None] & (dims < D)[None, :])
    tl.store(lse_ptrs, tl.where(blind, float("-inf"), (peak + tl.log2(divisor)) * LN2), mask=mask)


@triton.jit(do_not_specialize=["T"])
def join_kernel(
    o_ptr,
    lse_ptr,
    part_ptr,
    T,
    group,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One program a (row of the tile, KV head, lane): the softmax over all shares from the softmax over each."""
    packed, kv_head, lane = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads, lanes = tl.num_programs(1), tl.num_programs(2)
    heads = kv_heads * group
    dims = tl.arange(0, BD)
    row, head = packed // group, kv_head * group + packed % group
    parts = lanes.to(tl.int64) * kv_heads * SPLITS * BM
    acc = tl.zeros([BD], tl.float32)
    highest, total = -1.0e30, 0.0
    for first in range(0, SPLITS, JOINED):
        splits = first + tl.arange(0, JOINED)
        valid = splits < SPLITS
        part = ((lane * kv_heads + kv_head) * SPLITS + splits) * BM + packed
        peaks = tl.load(part_ptr + parts * BD + part, mask=valid, other=-1.0e30)  # [JOINED]
        totals = tl.load(part_ptr + parts * (BD + 1) + part, mask=valid, other=0.0)  # [JOINED]
        accs = tl.load(part_ptr + part[:, None] * BD + dims[None, :], mask=valid[:, None], other=0.0)  # [JOINED, BD]
        new_highest = tl.maximum(highest, tl.max(peaks, 0))
        shrink, weights = tl.exp2(highest - new_highest), tl.exp2(peaks - new_highest)
        acc = acc * shrink + tl.sum(accs * weights[:, None], 0)
        total = total * shrink + tl.sum(totals * weights, 0)
        highest = new_highest
    one = tl.arange(0, 1)
    o_ptrs = o_ptr + ((lane * T + row) * heads + head) * D + one
    lse_ptrs = lse_ptr + (lane * heads + head) * T + row + one
    finish(acc[None, :], highest + one, total + one, o_ptrs, lse_ptrs, one == 0, D, BD)
