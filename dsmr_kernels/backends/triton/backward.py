"""Backward: dQ over memory and segment, dK and dV over the segment. Weights are recomputed from the logarithmic sums.

No program adds to what another writes, so results are the same bit for bit from run to run. The logarithm of a row that
sees nothing is -inf; it is read as +inf, which makes every weight zero.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.launch import Launch, common_arguments, padded_dim, strides, tile_source
from dsmr_kernels.backends.triton.geometry import (
    ALL,
    archive_span,
    block_of,
    cut,
    entry_positions,
    read_clock,
    recent_span,
)
from dsmr_kernels.backends.triton.tile import (
    EXACT,
    LOG2E,
    base2_logits,
    decoded,
    dot,
    fetch,
    load_rows,
    load_scales,
    lower_bound,
    narrow,
    real_tokens,
    row_bounds,
    store_rows,
)

DELTA_ROWS = 32  # rows a program of the smallest kernel


def launch_delta(call: Call, o: Tensor, do: Tensor, dlse: Tensor, delta: Tensor) -> Launch:
    """The launch that fills `delta [B, H, T]`, what all weights' gradients of a row have in common."""
    batch, tokens, heads, _ = o.shape
    config = Config(DELTA_ROWS, DELTA_ROWS, 4, 1)
    shared = common_arguments(call, config)
    own = ("T", "len_ptr", "D", "BD", "BM", "UNIT", "LENGTHS", *config.options)
    arguments = {name: shared[name] for name in own}
    arguments |= {"o_ptr": o, "do_ptr": do, "dlse_ptr": dlse, "delta_ptr": delta, **strides("do", do)}
    return Launch(delta_kernel, (triton.cdiv(tokens, DELTA_ROWS), heads, batch), arguments)


def launch_dq(call: Call, do: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, config: Config) -> Launch:
    """The launch that fills `dq`, contiguous."""
    batch, tokens, heads, _ = call.q.shape
    arguments = common_arguments(call, config)
    block = config.block_n, padded_dim(call)
    arguments |= {
        **{"do_ptr": do, "lse_ptr": lse, "delta_ptr": delta, "dq_ptr": dq, **strides("do", do)},
        **{"v_source": tile_source(call.v.transpose(1, 2), block, arguments["DESCRIPTOR"])},
        **{"ring_v_source": tile_source(arguments["ring_v_ptr"], block, arguments["DESCRIPTOR"])},
    }
    return Launch(dq_kernel, (triton.cdiv(tokens, config.block_m), heads, batch), arguments)


def launch_dkdv(call: Call, do: Tensor, lse: Tensor, delta: Tensor, dk: Tensor, dv: Tensor, config: Config) -> Launch:
    """The launch that fills `dk` and `dv`, contiguous."""
    batch, tokens, kv_heads, _ = call.k.shape
    absent = {"ring_k_ptr", "ring_v_ptr", "k_scale_ptr", "v_scale_ptr", "clock_ptr", "archive", "recent", "stride"}
    absent |= {"STORAGE", "KEEP", "MEMORY", "DESCRIPTOR"}
    arguments = {name: x for name, x in common_arguments(call, config).items() if name not in absent}
    arguments |= {"do_ptr": do, "lse_ptr": lse, "delta_ptr": delta, "dk_ptr": dk, "dv_ptr": dv, **strides("do", do)}
    return Launch(dkdv_kernel, (triton.cdiv(tokens, config.block_n), kv_heads, batch), arguments)


@triton.jit(do_not_specialize=["T"])
def delta_kernel(
    o_ptr,
    do_ptr,
    dlse_ptr,
    delta_ptr,
    len_ptr,
    T,
    do_lane,
    do_row,
    do_head,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    UNIT: tl.constexpr,
    LENGTHS: tl.constexpr,
):
    """`delta = sum(o * do) - dlse`, zero where a row is not real."""
    m0 = tl.program_id(0) * BM
    head, lane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    rows = m0 + tl.arange(0, BM)
    o = load_rows(o_ptr + (lane * T * heads + head) * D, heads * D, m0, real, D, BD, BM)  # [BM, BD]
    do = load_rows(do_ptr + (lane * do_lane + head * do_head) * UNIT, do_row * UNIT, m0, real, D, BD, BM)  # [BM, BD]
    at = (lane * heads + head) * T + rows
    dlse = tl.load(dlse_ptr + at, mask=rows < real, other=0.0)
    tl.store(delta_ptr + at, tl.sum(o.to(tl.float32) * do.to(tl.float32), 1) - dlse, mask=rows < T)


@triton.jit
def dq_step(
    dq,
    q,
    do,
    k,
    v,
    x,
    slope,
    factor,
    lse,
    delta,
    k_scale,
    v_scale,
    hides,
    seen,
    STORAGE: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add one block's share to `dq / scale [BM, BD]`; `x * factor [BM, BN]` are its base-2 logits.

    The gradient of the logits, not the weights, is hidden: hidden rows of `v` may hold anything.
    """
    weights = tl.exp2(x * factor - lse[:, None])  # [BM, BN]
    dweights = dot(do, tl.trans(v), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
    if STORAGE != EXACT:
        dweights = dweights * v_scale[None, :]
    dx = weights * (dweights - delta[:, None])
    if CAPPED:
        dx = dx * slope
    if hides:
        dx = tl.where(seen, dx, 0.0)
    if STORAGE != EXACT:
        dx = dx * k_scale[None, :]
    return dot(narrow(dx, k.dtype), k, dq, PRECISION)  # [BM, BN] @ [BN, BD]


@triton.jit
def dq_part(
    dq,
    q,
    do,
    lse,
    delta,
    source,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    lane,
    head,
    part,
    slots,
    slot,
    skipped,
    count,
    rows,
    bound,
    bound_last,
    first_group,
    length,
    stride,
    scale,
    factor,
    softcap,
    steep,
    D: tl.constexpr,
    BD: tl.constexpr,
    BN: tl.constexpr,
    BOUNDED: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    FACTORED: tl.constexpr,
    STORAGE: tl.constexpr,
    KEEP: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the share of entries `skipped ... count - 1` of one part of the ring: see `forward.attend_part`."""
    columns = tl.arange(0, BN)
    head_slot, head_len, tail_len, head_blocks, blocks = cut(slot, count, skipped, slots, BN)
    for i in tl.range(0, blocks):
        first, end, entry = block_of(i, head_slot, head_len, tail_len, head_blocks, skipped, BN)
        k = load_rows(k_ptr, D, part + first, part + end, D, BD, BN)  # [BN, BD]
        v = fetch(source, lane, head, v_ptr, D, part + first, part + end, D, BD, BN, DESCRIPTOR)  # [BN, BD]
        k, v = decoded(k, q.dtype, STORAGE), decoded(v, q.dtype, STORAGE)
        k_scale = load_scales(k_scale_ptr, part + first, part + end, BN, STORAGE)
        v_scale = load_scales(v_scale_ptr, part + first, part + end, BN, STORAGE)
        x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
        slope = 1.0
        if STORAGE != EXACT:
            x = x * k_scale[None, :]
        if not FACTORED:
            x, slope = base2_logits(x, scale, softcap, CAPPED)
        if ALIBI:
            positions = entry_positions(entry + columns, count, first_group, length, stride, KEEP)
            x -= steep * (rows[:, None] - positions[None, :]).to(tl.float32)
        hides = first + BN > end
        seen = (columns < end - first)[None, :]
        if BOUNDED:
            hides = hides | (entry < bound_last)
            seen = seen & (columns[None, :] >= (bound - entry)[:, None])
        dq = dq_step(
            *(dq, q, do, k, v, x, slope, factor, lse, delta, k_scale, v_scale, hides, seen),
            *(STORAGE, CAPPED, PRECISION),
        )
    return dq


@triton.jit(do_not_specialize=["T"])
def dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    v_source,
    ring_v_source,
    ring_k_ptr,
    ring_v_ptr,
    k_scale_ptr,
    v_scale_ptr,
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
    do_lane,
    do_row,
    do_head,
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
    DESCRIPTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program a (block of queries, head, lane), three products a block: like the forward kernel, line by line."""
    BOUNDED: tl.constexpr = TOKEN or STARTS
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # the longest rows start first
    head, lane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads, lanes = tl.num_programs(1), tl.num_programs(2)
    kv_head = head // group
    rows, columns = m0 + tl.arange(0, BM), tl.arange(0, BN)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    k_ptr += (lane * k_lane + kv_head * k_head) * UNIT
    v_ptr += (lane * v_lane + kv_head * v_head) * UNIT
    q = load_rows(q_ptr + (lane * q_lane + head * q_head) * UNIT, q_row * UNIT, m0, real, D, BD, BM)  # [BM, BD]
    do = load_rows(do_ptr + (lane * do_lane + head * do_head) * UNIT, do_row * UNIT, m0, real, D, BD, BM)  # [BM, BD]
    at = (lane * heads + head) * T + rows
    lse = tl.load(lse_ptr + at, mask=rows < real, other=float("-inf")) * LOG2E  # [BM]
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    delta = tl.load(delta_ptr + at, mask=rows < real, other=0.0)  # [BM]
    factor = scale * LOG2E if FACTORED else 1.0
    steep = tl.load(slopes_ptr + head).to(tl.float32) * LOG2E if ALIBI else 0.0
    horizon = tl.load(horizon_ptr)
    low, low_first, low_last = row_bounds(m0, real, start_ptr + lane * T, T, horizon, BM, TOKEN, STARTS)

    dq = tl.zeros([BM, BD], tl.float32)
    if MEMORY:
        position, length, phase = read_clock(clock_ptr, lane, lanes)
        ring_head = lane * (heads // group) + kv_head
        ring_k_ptr += ring_head * (archive + recent) * D
        ring_v_ptr += ring_head * (archive + recent) * D
        k_scale_ptr += ring_head * (archive + recent)
        v_scale_ptr += ring_head * (archive + recent)
        count, slot, first_group = archive_span(position, length, phase, horizon, archive, stride, TOKEN, KEEP)
        skipped = tl.where(m0 < real, tl.minimum(tl.maximum(low_first + count, 0), count), count)
        dq = dq_part(
            *(dq, q, do, lse, delta, ring_v_source, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane, kv_head),
            *(0, archive, slot, skipped, count, rows, low + count, low_last + count, first_group, length, stride),
            *(scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED, STORAGE, KEEP),
            *(DESCRIPTOR, PRECISION),
        )
        if KEEP != ALL:
            count, slot = recent_span(position, length, phase, recent)
            skipped = tl.where(m0 < real, tl.minimum(tl.maximum(low_first + count, 0), count), count)
            dq = dq_part(
                *(dq, q, do, lse, delta, ring_v_source, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane),
                *(kv_head, archive, recent, slot, skipped, count, rows, low + count, low_last + count, first_group),
                *(length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED),
                *(STORAGE, ALL, DESCRIPTOR, PRECISION),
            )

    end = tl.minimum(m0 + BM, real)
    for n0 in tl.range(tl.maximum(low_first, 0), end, BN):
        k = load_rows(k_ptr, k_row * UNIT, n0, end, D, BD, BN)  # [BN, BD]
        v = fetch(v_source, lane, kv_head, v_ptr, v_row * UNIT, n0, end, D, BD, BN, DESCRIPTOR)  # [BN, BD]
        x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
        slope = 1.0
        if not FACTORED:
            x, slope = base2_logits(x, scale, softcap, CAPPED)
        if ALIBI:
            x -= steep * (rows[:, None] - n0 - columns[None, :]).to(tl.float32)
        hides = n0 + BN > m0
        seen = columns[None, :] <= (rows - n0)[:, None]
        if BOUNDED:
            hides = hides | (n0 < low_last)
            seen = seen & (columns[None, :] >= (low - n0)[:, None])
        dq = dq_step(
            *(dq, q, do, k, v, x, slope, factor, lse, delta, 0.0, 0.0, hides, seen),
            *(EXACT, CAPPED, PRECISION),
        )
    dq = tl.where((rows < real)[:, None], dq * scale, 0.0)  # the other rows may have met the padding of V
    store_rows(dq_ptr + (lane * T * heads + head) * D, heads * D, rows, rows < T, dq, D, BD)


@triton.jit
def last_row(n0, real, start_ptr, horizon, BN: tl.constexpr, TOKEN: tl.constexpr, STARTS: tl.constexpr):
    """The end (exclusive) of the rows that may see a key before `n0 + BN`, which are consecutive."""
    end = real
    if TOKEN:
        end = tl.minimum(end, n0 + BN - 1 + horizon)
    if STARTS:
        rows = tl.arange(0, 1024)
        reached = 0  # rows whose piece begins before the block's end: starts are non-decreasing
        for first in range(0, end, 1024):
            start = tl.load(start_ptr + first + rows, mask=first + rows < end, other=n0 + BN)
            reached += tl.sum((start < n0 + BN).to(tl.int32))
        end = reached
    return end


@triton.jit(do_not_specialize=["T"])
def dkdv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    horizon_ptr,
    start_ptr,
    len_ptr,
    slopes_ptr,
    scale,
    softcap,
    T,
    group,
    q_lane,
    q_row,
    q_head,
    k_lane,
    k_row,
    k_head,
    v_lane,
    v_row,
    v_head,
    do_lane,
    do_row,
    do_head,
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
    PRECISION: tl.constexpr,
):
    """One program a (block of segment keys, KV head, lane). It walks all query heads of its group: no atomics.

    Every block is masked: a branch around the mask saves little here, and makes ptxas serialise some tiles.
    """
    n0 = tl.program_id(0) * BN  # the first blocks are seen by the most rows, and start first
    kv_head, lane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(1)
    heads = kv_heads * group
    keys = n0 + tl.arange(0, BN)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    start_ptr += lane * T
    k = load_rows(k_ptr + (lane * k_lane + kv_head * k_head) * UNIT, k_row * UNIT, n0, real, D, BD, BN)  # [BN, BD]
    v = load_rows(v_ptr + (lane * v_lane + kv_head * v_head) * UNIT, v_row * UNIT, n0, real, D, BD, BN)  # [BN, BD]
    factor = scale * LOG2E if FACTORED else 1.0
    horizon = tl.minimum(tl.load(horizon_ptr), 2**30).to(tl.int32)
    end = last_row(n0, real, start_ptr, horizon, BN, TOKEN, STARTS)
    blocks = tl.cdiv(tl.maximum(end - n0, 0), BM)

    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for i in tl.range(0, blocks * group):
        head = kv_head * group + i // blocks
        m0 = n0 + i % blocks * BM
        rows = m0 + tl.arange(0, BM)
        q = load_rows(q_ptr + (lane * q_lane + head * q_head) * UNIT, q_row * UNIT, m0, end, D, BD, BM)  # [BM, BD]
        do = load_rows(do_ptr + (lane * do_lane + head * do_head) * UNIT, do_row * UNIT, m0, end, D, BD, BM)
        at = (lane * heads + head) * T + rows
        lse = tl.load(lse_ptr + at, mask=rows < end, other=float("-inf")) * LOG2E  # [BM]
        lse = tl.where(lse == float("-inf"), float("inf"), lse)
        delta = tl.load(delta_ptr + at, mask=rows < end, other=0.0)  # [BM]
        x = dot(k, tl.trans(q), PRECISION=PRECISION)  # [BN, BD] @ [BD, BM]
        slope = 1.0
        if not FACTORED:
            x, slope = base2_logits(x, scale, softcap, CAPPED)
        if ALIBI:
            steep = tl.load(slopes_ptr + head).to(tl.float32) * LOG2E
            x -= steep * (rows[None, :] - keys[:, None]).to(tl.float32)
        seen = keys[:, None] <= rows[None, :]
        if TOKEN or STARTS:
            low = lower_bound(rows, start_ptr, T - 1, horizon, TOKEN, STARTS)
            seen = seen & (keys[:, None] >= low[None, :])
        weights = tl.where(seen, tl.exp2(x * factor - lse[None, :]), 0.0)  # [BN, BM]
        dv = dot(narrow(weights, do.dtype), do, dv, PRECISION)  # [BN, BM] @ [BM, BD]
        dweights = dot(v, tl.trans(do), PRECISION=PRECISION)  # [BN, BD] @ [BD, BM]
        dx = weights * (dweights - delta[None, :])
        if CAPPED:
            dx = dx * slope
        dk = dot(narrow(dx, q.dtype), q, dk, PRECISION)  # [BN, BM] @ [BM, BD]
    base = (lane * T * kv_heads + kv_head) * D
    store_rows(dk_ptr + base, kv_heads * D, keys, keys < T, dk * scale, D, BD)
    store_rows(dv_ptr + base, kv_heads * D, keys, keys < T, dv, D, BD)
