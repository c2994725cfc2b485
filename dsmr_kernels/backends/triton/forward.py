"""Forward: one pass of online softmax over the memory's runs and the segment, which is then appended.

One program a (block of queries, head, lane). The memory loop walks both runs of the ring, because two loops make ptxas
serialise the tensor-core instructions; the mask lies in a branch that only the last block of a run takes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dsmr_kernels.backends import Call
from dsmr_kernels.backends.triton.configs import Config
from dsmr_kernels.backends.triton.launch import Launch, common_arguments, padded_dim, tile_source
from dsmr_kernels.backends.triton.geometry import (
    ALL,
    append,
    archive_span,
    block_of,
    cut,
    entry_positions,
    read_clock,
    recent_span,
)
from dsmr_kernels.backends.triton.tile import (
    EXACT,
    LN2,
    LOG2E,
    base2_logits,
    decoded,
    dot,
    fetch,
    load_rows,
    load_scales,
    narrow,
    real_tokens,
    row_bounds,
    store_rows,
)


def launch_forward(call: Call, o: Tensor, lse: Tensor, config: Config) -> Launch:
    """The launch that fills `o` and `lse` and appends the segment if `call.append`."""
    batch, tokens, heads, _ = call.q.shape
    arguments = common_arguments(call, config)
    block = config.block_n, padded_dim(call)
    arguments |= {
        **{"o_ptr": o, "lse_ptr": lse, "written_ptr": call.memory.written, "APPEND": call.append},
        **{"k_source": tile_source(call.k.transpose(1, 2), block, arguments["DESCRIPTOR"])},
        **{"ring_k_source": tile_source(arguments["ring_k_ptr"], block, arguments["DESCRIPTOR"])},
    }
    return Launch(forward_kernel, (triton.cdiv(tokens, config.block_m), heads, batch), arguments)


@triton.jit
def softmax_step(acc, peak, total, x, factor, v, v_scale, STORAGE: tl.constexpr, PRECISION: tl.constexpr):
    """Take one block's base-2 logits `x * factor [BM, BN]` and values `v [BN, BD]` into the running softmax."""
    new_peak = tl.maximum(peak, tl.max(x, 1) * factor)
    weights = tl.exp2(x * factor - new_peak[:, None])  # [BM, BN]
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    if STORAGE != EXACT:
        weights = weights * v_scale[None, :]
    acc = dot(narrow(weights, v.dtype), v, acc * shrink[:, None], PRECISION)  # [BM, BN] @ [BN, BD]
    return acc, new_peak, total


@triton.jit
def attend_part(
    acc,
    peak,
    total,
    q,
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
    stop,
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
    """Take entries `skipped ... stop - 1` of one part of the ring, which begins at slot `part`, into the softmax.

    Of the part's `count` visible entries the oldest lies in slot `part + slot`; query i sees those from `bound[i]` on.
    """
    columns = tl.arange(0, BN)
    head_slot, head_len, tail_len, head_blocks, blocks = cut(slot, stop, skipped, slots, BN)
    for i in tl.range(0, blocks):
        first, end, entry = block_of(i, head_slot, head_len, tail_len, head_blocks, skipped, BN)
        k = fetch(source, lane, head, k_ptr, D, part + first, part + end, D, BD, BN, DESCRIPTOR)  # [BN, BD]
        v = load_rows(v_ptr, D, part + first, part + end, D, BD, BN)  # [BN, BD]
        k, v = decoded(k, q.dtype, STORAGE), decoded(v, q.dtype, STORAGE)
        x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
        if STORAGE != EXACT:
            x = x * load_scales(k_scale_ptr, part + first, part + end, BN, STORAGE)[None, :]
        if not FACTORED:
            x = base2_logits(x, scale, softcap, CAPPED)[0]
        if ALIBI:
            positions = entry_positions(entry + columns, count, first_group, length, stride, KEEP)
            x -= steep * (rows[:, None] - positions[None, :]).to(tl.float32)
        hides = first + BN > end
        seen = (columns < end - first)[None, :]
        if BOUNDED:
            hides = hides | (entry < bound_last)
            seen = seen & (columns[None, :] >= (bound - entry)[:, None])
        if hides:
            x = tl.where(seen, x, float("-inf"))
        v_scale = load_scales(v_scale_ptr, part + first, part + end, BN, STORAGE)
        acc, peak, total = softmax_step(acc, peak, total, x, factor, v, v_scale, STORAGE, PRECISION)
    return acc, peak, total


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    lse_ptr,
    k_source,
    ring_k_source,
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
    DESCRIPTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`o [B, T, H, D]` and `lse [B, H, T]`, contiguous; strides of q, k and v count units of UNIT elements."""
    BOUNDED: tl.constexpr = TOKEN or STARTS
    m0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # the longest rows start first
    head, lane = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads, lanes = tl.num_programs(1), tl.num_programs(2)
    kv_head = head // group
    rows, columns = m0 + tl.arange(0, BM), tl.arange(0, BN)
    real = real_tokens(len_ptr + lane, T, LENGTHS)
    start_ptr += lane * T
    k_ptr += (lane * k_lane + kv_head * k_head) * UNIT
    v_ptr += (lane * v_lane + kv_head * v_head) * UNIT
    q_ptr += (lane * q_lane + head * q_head) * UNIT
    q = load_rows(q_ptr, q_row * UNIT, m0, real, D, BD, BM)  # [BM, BD]
    factor = scale * LOG2E if FACTORED else 1.0
    steep = tl.load(slopes_ptr + head).to(tl.float32) * LOG2E if ALIBI else 0.0

    acc = tl.zeros([BM, BD], tl.float32)
    peak = tl.full([BM], -1.0e30, tl.float32)  # finite: a row that sees nothing must not meet inf - inf
    total = tl.zeros([BM], tl.float32)
    horizon = tl.load(horizon_ptr)
    low, low_first, low_last = row_bounds(m0, real, start_ptr, T, horizon, BM, TOKEN, STARTS)

    if MEMORY:
        position, length, phase = read_clock(clock_ptr, lane, lanes)
        ring_head = lane * (heads // group) + kv_head
        ring_k_ptr += ring_head * (archive + recent) * D
        ring_v_ptr += ring_head * (archive + recent) * D
        k_scale_ptr += ring_head * (archive + recent)
        v_scale_ptr += ring_head * (archive + recent)
        count, slot, first_group = archive_span(position, length, phase, horizon, archive, stride, TOKEN, KEEP)
        skipped = tl.where(m0 < real, tl.minimum(tl.maximum(low_first + count, 0), count), count)
        acc, peak, total = attend_part(
            *(acc, peak, total, q, ring_k_source, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane, kv_head),
            *(0, archive, slot, skipped, count, count, rows, low + count, low_last + count, first_group, length),
            *(stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED, STORAGE, KEEP),
            *(DESCRIPTOR, PRECISION),
        )
        if KEEP != ALL:
            count, slot = recent_span(position, length, phase, recent)
            skipped = tl.where(m0 < real, tl.minimum(tl.maximum(low_first + count, 0), count), count)
            acc, peak, total = attend_part(
                *(acc, peak, total, q, ring_k_source, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr, lane, kv_head),
                *(archive, recent, slot, skipped, count, count, rows, low + count, low_last + count, first_group),
                *(length, stride, scale, factor, softcap, steep, D, BD, BN, BOUNDED, CAPPED, ALIBI, FACTORED),
                *(STORAGE, ALL, DESCRIPTOR, PRECISION),
            )

    end = tl.minimum(m0 + BM, real)
    for n0 in tl.range(tl.maximum(low_first, 0), end, BN):
        k = fetch(k_source, lane, kv_head, k_ptr, k_row * UNIT, n0, end, D, BD, BN, DESCRIPTOR)  # [BN, BD]
        v = load_rows(v_ptr, v_row * UNIT, n0, end, D, BD, BN)  # [BN, BD]
        x = dot(q, tl.trans(k), PRECISION=PRECISION)  # [BM, BD] @ [BD, BN]
        if not FACTORED:
            x = base2_logits(x, scale, softcap, CAPPED)[0]
        if ALIBI:
            x -= steep * (rows[:, None] - n0 - columns[None, :]).to(tl.float32)
        hides = n0 + BN > m0
        seen = columns[None, :] <= (rows - n0)[:, None]
        if BOUNDED:
            hides = hides | (n0 < low_last)
            seen = seen & (columns[None, :] >= (low - n0)[:, None])
        if hides:
            x = tl.where(seen, x, float("-inf"))
        acc, peak, total = softmax_step(acc, peak, total, x, factor, v, 0.0, EXACT, PRECISION)

    seeing = (rows < real) & (total != 0)
    total = tl.where(seeing, total, 1.0)
    out = tl.where(seeing[:, None], acc / total[:, None], 0.0)  # [BM, BD]
    lse = tl.where(seeing, (peak + tl.log2(total)) * LN2, float("-inf"))
    tl.store(lse_ptr + (lane * heads + head) * T + rows, lse, mask=rows < T)
    store_rows(o_ptr + (lane * T * heads + head) * D, heads * D, rows, rows < T, out, D, BD)

    if APPEND:
        if head % group == 0:
            append(
                *(k_ptr, v_ptr, k_row * UNIT, v_row * UNIT, ring_k_ptr, ring_v_ptr, k_scale_ptr, v_scale_ptr),
                *(start_ptr, m0, real, position, length, archive, recent, stride, D, BD, BM, STORAGE, KEEP, STARTS),
            )
            if (head == 0) & (m0 == 0):
                tl.store(written_ptr + lane, position + real)
