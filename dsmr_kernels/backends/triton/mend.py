"""Rows that met something hidden, computed again: a small launch behind each of the large ones.

A tile shows its keys to several rows. A row that must not see one gives it a weight of zero; but where a key or value
is infinite or NaN, 0 x NaN is NaN. Selecting operands would slow every tile down, for numbers that hardly anybody has.
So these kernels look at the results. Where they find a NaN that the row's own logits do not explain, they compute the
row anew, alone: all that it loads is its own, and nothing is hidden. Calls of one token have no such tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.backward import dq_part, dq_step, last_row
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.forward import attend_part, softmax_step
from dsmr_kernels.backends.triton.launch import Launch, common_arguments, strides
from dsmr_kernels.backends.triton.geometry import ALL, archive_span, read_clock, recent_span
from dsmr_kernels.backends.triton.tile import (
    EXACT,
    LOG2E,
    base2_logits,
    dot,
    load_rows,
    lower_bound,
    narrow,
    real_tokens,
)

CONFIG = Config(16, 32, 4, 1)  # rows are few or none: small enough for every head dimension


def mend_forward(call: Call, o: Tensor, lse: Tensor) -> Launch:
    """The launch behind the forward pass."""
    arguments = common_arguments(call, CONFIG) | {"o_ptr": o, "lse_ptr": lse}
    del arguments["DESCRIPTOR"]
    batch, tokens, heads, _ = o.shape
    return Launch(mend_forward_kernel, (triton.cdiv(tokens, CONFIG.block_m), heads, batch), arguments)


def mend_dq(call: Call, do: Tensor, lse: Tensor, delta: Tensor, dq: Tensor) -> Launch:
    """The launch behind that of `dq`."""
    arguments = common_arguments(call, CONFIG) | strides("do", do)
    arguments |= {"do_ptr": do, "lse_ptr": lse, "delta_ptr": delta, "dq_ptr": dq}
    del arguments["DESCRIPTOR"]
    batch, tokens, heads, _ = dq.shape
    return Launch(mend_dq_kernel, (triton.cdiv(tokens, CONFIG.block_m), heads, batch), arguments)


def mend_dkdv(call: Call, do: Tensor, lse: Tensor, delta: Tensor, dk: Tensor, dv: Tensor) -> Launch:
    """The launch behind that of `dk` and `dv`."""
    absent = {"ring_k_ptr", "ring_v_ptr", "k_scale_ptr", "v_scale_ptr", "clock_ptr", "archive", "recent", "stride"}
    absent |= {"STORAGE", "KEEP", "MEMORY", "DESCRIPTOR", "BN", "PRECISION"}
    arguments = {name: x for name, x in common_arguments(call, CONFIG).items() if name not in absent}
    arguments |= strides("do", do)
    arguments |= {"do_ptr": do, "lse_ptr": lse, "delta_ptr": delta, "dk_ptr": dk, "dv_ptr": dv}
    batch, tokens, kv_heads, _ = dk.shape
    return Launch(mend_dkdv_kernel, (triton.cdiv(tokens, CONFIG.block_m), kv_heads, batch), arguments)


@triton.jit
def has_nan(x):
    """Of each row of `x [n, BD]`: is something NaN?"""
    x = x.to(tl.float32)
    return tl.max((x != x).to(tl.int32), 1) > 0


@triton.jit
def picked(flags, rows, row):
    """The flag of one row."""
    return tl.max(tl.where(rows == row, flags.to(tl.int32), 0), 0) > 0


@triton.jit
def load_row(ptr, D: tl.constexpr, BD: tl.constexpr):
    """One row, zero from column D on. `[BD]`"""
    columns = tl.arange(0, BD)
    return tl.load(ptr + columns, mask=columns < D, other=0)


@triton.jit(do_not_specialize=["T"])
def mend_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
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
    PRECISION: tl.constexpr,
):
    """One program a (block of queries, head, lane). A row's tile is that row BM times, as a product needs."""
    BOUNDED: tl.constexpr = TOKEN or STARTS
    m0, head, lane = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads, lanes = tl.num_programs(1), tl.num_programs(2)
    kv_head = head // group
    rows, columns, dims = m0 + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BD)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    o_ptr += (lane * T * heads + head) * D
    lse = tl.load(lse_ptr + (lane * heads + head) * T + rows, mask=rows < real, other=0.0)
    spoilt = has_nan(load_rows(o_ptr, heads * D, m0, real, D, BD, BM)) & (lse == lse)
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        start_ptr += lane * T
        k_ptr += (lane * k_lane + kv_head * k_head) * UNIT
        v_ptr += (lane * v_lane + kv_head * v_head) * UNIT
        q_ptr += (lane * q_lane + head * q_head) * UNIT
        ring_head = lane * (heads // group) + kv_head
        ring_k_ptr += ring_head * (archive + recent) * D
        ring_v_ptr += ring_head * (archive + recent) * D
        k_scale_ptr += ring_head * (archive + recent)
        v_scale_ptr += ring_head * (archive + recent)
        factor = scale * LOG2E if FACTORED else 1.0
        steep = tl.load(slopes_ptr + head).to(tl.float32) * LOG2E if ALIBI else 0.0
        horizon = tl.load(horizon_ptr)
        reach = tl.minimum(horizon, 2**30).to(tl.int32)
        for row in range(m0, tl.minimum(m0 + BM, real)):
            if picked(spoilt, rows, row):
                q = tl.broadcast_to(load_row(q_ptr + row * q_row * UNIT, D, BD)[None, :], [BM, BD])
                same = rows * 0 + row
                low = lower_bound(row, start_ptr, T - 1, reach, TOKEN, STARTS)
                acc = tl.zeros([BM, BD], tl.float32)
                peak = tl.full([BM], -1.0e30, tl.float32)
                total = tl.zeros([BM], tl.float32)
                if MEMORY:
                    position, length, phase = read_clock(clock_ptr, lane, lanes)
                    count, slot, group0 = archive_span(position, length, phase, horizon, archive, stride, TOKEN, KEEP)
                    skipped = tl.minimum(tl.maximum(low + count, 0), count)
                    acc, peak, total = attend_part(
                        *(acc, peak, total, q, ring_k_ptr, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane),
                        *(kv_head, 0, archive, slot, skipped, count, count, same, same * 0 + low + count, low + count),
                        *(group0, length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI),
                        *(FACTORED, STORAGE, KEEP, False, PRECISION),
                    )
                    if KEEP != ALL:
                        count, slot = recent_span(position, length, phase, recent)
                        skipped = tl.minimum(tl.maximum(low + count, 0), count)
                        acc, peak, total = attend_part(
                            *(acc, peak, total, q, ring_k_ptr, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane),
                            *(kv_head, archive, recent, slot, skipped, count, count, same, same * 0 + low + count),
                            *(low + count, group0, length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED),
                            *(CAPPED, ALIBI, FACTORED, STORAGE, ALL, False, PRECISION),
                        )
                for n0 in range(tl.maximum(low, 0), row + 1, BN):
                    k = load_rows(k_ptr, k_row * UNIT, n0, row + 1, D, BD, BN)  # [BN, BD]
                    v = load_rows(v_ptr, v_row * UNIT, n0, row + 1, D, BD, BN)  # [BN, BD]
                    x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
                    if not FACTORED:
                        x = base2_logits(x, scale, softcap, CAPPED)[0]
                    if ALIBI:
                        x -= steep * (row - n0 - columns[None, :]).to(tl.float32)
                    x = tl.where(columns[None, :] <= row - n0, x, float("-inf"))
                    acc, peak, total = softmax_step(acc, peak, total, x, factor, v, 0.0, EXACT, PRECISION)
                out = acc / tl.where(total == 0, 1.0, total)[:, None]
                first = (tl.arange(0, BM) == 0)[:, None] & (dims < D)[None, :]
                ptrs = o_ptr + row * heads * D + same[:, None] * 0 + dims[None, :]
                tl.store(ptrs, narrow(out, o_ptr.dtype.element_ty), mask=first)


@triton.jit(do_not_specialize=["T"])
def mend_dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
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
    PRECISION: tl.constexpr,
):
    """Like `mend_forward_kernel`, line by line."""
    BOUNDED: tl.constexpr = TOKEN or STARTS
    m0, head, lane = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads, lanes = tl.num_programs(1), tl.num_programs(2)
    kv_head = head // group
    rows, columns, dims = m0 + tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BD)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    dq_ptr += (lane * T * heads + head) * D
    at = (lane * heads + head) * T
    fit = tl.load(lse_ptr + at + rows, mask=rows < real, other=0.0)
    fit += tl.load(delta_ptr + at + rows, mask=rows < real, other=0.0)
    spoilt = has_nan(load_rows(dq_ptr, heads * D, m0, real, D, BD, BM)) & (fit == fit)
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        start_ptr += lane * T
        k_ptr += (lane * k_lane + kv_head * k_head) * UNIT
        v_ptr += (lane * v_lane + kv_head * v_head) * UNIT
        q_ptr += (lane * q_lane + head * q_head) * UNIT
        do_ptr += (lane * do_lane + head * do_head) * UNIT
        ring_head = lane * (heads // group) + kv_head
        ring_k_ptr += ring_head * (archive + recent) * D
        ring_v_ptr += ring_head * (archive + recent) * D
        k_scale_ptr += ring_head * (archive + recent)
        v_scale_ptr += ring_head * (archive + recent)
        factor = scale * LOG2E if FACTORED else 1.0
        steep = tl.load(slopes_ptr + head).to(tl.float32) * LOG2E if ALIBI else 0.0
        horizon = tl.load(horizon_ptr)
        reach = tl.minimum(horizon, 2**30).to(tl.int32)
        for row in range(m0, tl.minimum(m0 + BM, real)):
            if picked(spoilt, rows, row):
                q = tl.broadcast_to(load_row(q_ptr + row * q_row * UNIT, D, BD)[None, :], [BM, BD])
                do = tl.broadcast_to(load_row(do_ptr + row * do_row * UNIT, D, BD)[None, :], [BM, BD])
                same = rows * 0 + row
                lse = tl.load(lse_ptr + at + same) * LOG2E  # [BM]
                lse = tl.where(lse == float("-inf"), float("inf"), lse)
                delta = tl.load(delta_ptr + at + same)  # [BM]
                low = lower_bound(row, start_ptr, T - 1, reach, TOKEN, STARTS)
                dq = tl.zeros([BM, BD], tl.float32)
                if MEMORY:
                    position, length, phase = read_clock(clock_ptr, lane, lanes)
                    count, slot, group0 = archive_span(position, length, phase, horizon, archive, stride, TOKEN, KEEP)
                    skipped = tl.minimum(tl.maximum(low + count, 0), count)
                    dq = dq_part(
                        *(dq, q, do, lse, delta, ring_v_ptr, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane),
                        *(kv_head, 0, archive, slot, skipped, count, same, same * 0 + low + count, low + count, group0),
                        *(length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED),
                        *(STORAGE, KEEP, False, PRECISION),
                    )
                    if KEEP != ALL:
                        count, slot = recent_span(position, length, phase, recent)
                        skipped = tl.minimum(tl.maximum(low + count, 0), count)
                        dq = dq_part(
                            *(dq, q, do, lse, delta, ring_v_ptr, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr),
                            *(lane, kv_head, archive, recent, slot, skipped, count, same, same * 0 + low + count),
                            *(low + count, group0, length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED),
                            *(CAPPED, ALIBI, FACTORED, STORAGE, ALL, False, PRECISION),
                        )
                for n0 in range(tl.maximum(low, 0), row + 1, BN):
                    k = load_rows(k_ptr, k_row * UNIT, n0, row + 1, D, BD, BN)  # [BN, BD]
                    v = load_rows(v_ptr, v_row * UNIT, n0, row + 1, D, BD, BN)  # [BN, BD]
                    x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
                    slope = 1.0
                    if not FACTORED:
                        x, slope = base2_logits(x, scale, softcap, CAPPED)
                    if ALIBI:
                        x -= steep * (row - n0 - columns[None, :]).to(tl.float32)
                    seen = columns[None, :] <= (same - n0)[:, None]
                    dq = dq_step(
                        *(dq, q, do, k, v, x, slope, factor, lse, delta, 0.0, 0.0, True, seen),
                        *(EXACT, CAPPED, PRECISION),
                    )
                first = (tl.arange(0, BM) == 0)[:, None] & (dims < D)[None, :]
                ptrs = dq_ptr + row * heads * D + same[:, None] * 0 + dims[None, :]
                tl.store(ptrs, narrow(dq * scale, dq_ptr.dtype.element_ty), mask=first)


@triton.jit(do_not_specialize=["T"])
def mend_dkdv_kernel(
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
    UNIT: tl.constexpr,
    TOKEN: tl.constexpr,
    STARTS: tl.constexpr,
    LENGTHS: tl.constexpr,
    CAPPED: tl.constexpr,
    ALIBI: tl.constexpr,
    FACTORED: tl.constexpr,
):
    """One program a (block of segment keys, KV head, lane); a key anew is the sum over the rows that see it."""
    n0, kv_head, lane = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(1)
    heads = kv_heads * group
    keys, dims = n0 + tl.arange(0, BM), tl.arange(0, BD)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    base = (lane * T * kv_heads + kv_head) * D
    k_ptr += (lane * k_lane + kv_head * k_head) * UNIT
    v_ptr += (lane * v_lane + kv_head * v_head) * UNIT
    spoilt = has_nan(load_rows(dk_ptr + base, kv_heads * D, n0, T, D, BD, BM))
    spoilt = spoilt | has_nan(load_rows(dv_ptr + base, kv_heads * D, n0, T, D, BD, BM))
    spoilt = spoilt & ~has_nan(load_rows(k_ptr, k_row * UNIT, n0, real, D, BD, BM))  # its own row saw that
    if tl.max(spoilt.to(tl.int32), 0) > 0:
        start_ptr += lane * T
        factor = scale * LOG2E if FACTORED else 1.0
        horizon = tl.minimum(tl.load(horizon_ptr), 2**30).to(tl.int32)
        for key in range(n0, tl.minimum(n0 + BM, T)):  # no row sees those that are not real
            if picked(spoilt, keys, key):
                k = load_row(k_ptr + key * k_row * UNIT, D, BD).to(tl.float32)
                v = load_row(v_ptr + key * v_row * UNIT, D, BD).to(tl.float32)
                end = last_row(key, real, start_ptr, horizon, 1, TOKEN, STARTS)
                dk, dv = tl.zeros([BD], tl.float32), tl.zeros([BD], tl.float32)
                for head in range(kv_head * group, (kv_head + 1) * group):
                    steep = tl.load(slopes_ptr + head).to(tl.float32) * LOG2E if ALIBI else 0.0
                    for m0 in range(key, end, BM):
                        rows = m0 + tl.arange(0, BM)
                        seen = rows < end
                        q = load_rows(q_ptr + (lane * q_lane + head * q_head) * UNIT, q_row * UNIT, m0, end, D, BD, BM)
                        do = load_rows(
                            do_ptr + (lane * do_lane + head * do_head) * UNIT, do_row * UNIT, m0, end, D, BD, BM
                        )
                        q, do = q.to(tl.float32), do.to(tl.float32)
                        at = (lane * heads + head) * T + rows
                        lse = tl.load(lse_ptr + at, mask=seen, other=float("-inf")) * LOG2E  # [BM]
                        lse = tl.where(lse == float("-inf"), float("inf"), lse)
                        delta = tl.load(delta_ptr + at, mask=seen, other=0.0)  # [BM]
                        x = tl.sum(q * k[None, :], 1)  # [BM]
                        slope = 1.0
                        if not FACTORED:
                            x, slope = base2_logits(x, scale, softcap, CAPPED)
                        if ALIBI:
                            x -= steep * (rows - key).to(tl.float32)
                        weights = tl.where(seen, tl.exp2(x * factor - lse), 0.0)
                        dx = weights * (tl.sum(do * v[None, :], 1) - delta)
                        if CAPPED:
                            dx = dx * slope
                        dx = tl.where(seen, dx, 0.0)
                        dv += tl.sum(weights[:, None] * do, 0)
                        dk += tl.sum(dx[:, None] * q, 0)
                at_key = base + key * kv_heads * D + dims
                tl.store(dk_ptr + at_key, narrow(dk * scale, dk_ptr.dtype.element_ty), mask=dims < D)
                tl.store(dv_ptr + at_key, narrow(dv, dv_ptr.dtype.element_ty), mask=dims < D)
