"""Where a lane's memory lies in its ring, and the writing of a segment into it: `geometry.py`, on the device.

A ring has one part, or two under retention: the archive and, behind it, the recent part that holds the open segment's
tokens. The visible entries of a part lie in at most two runs of consecutive slots, which one loop walks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dsmr_kernels.backends.triton.tile import EXACT, INT8, load_rows, narrow

# Which tokens the ring keeps (KEEP): all, or of each group the last or one chosen by a hash.
ALL = tl.constexpr(0)
LAST = tl.constexpr(1)
HASHED = tl.constexpr(2)


@triton.jit
def read_clock(clock_ptr, lane, lanes):
    """A lane's position, length and phase, int64."""
    position = tl.load(clock_ptr + lane)
    length = tl.load(clock_ptr + lanes + lane)
    phase = tl.load(clock_ptr + 2 * lanes + lane)
    return position, length, phase


@triton.jit
def archive_span(position, length, phase, horizon, slots, stride, TOKEN: tl.constexpr, KEEP: tl.constexpr):
    """The archive's visible entries: their number, the slot of the oldest and its group (0 if all tokens are kept)."""
    if KEEP == ALL:
        reach = tl.maximum(horizon - 1, 0) if TOKEN else horizon + phase
        count = tl.minimum(tl.minimum(length, reach), slots)
        slot, first_group = ((position - count) % slots).to(tl.int32), position * 0
    else:
        complete = tl.maximum(length - phase, 0) // stride
        count = tl.minimum(tl.minimum(complete, horizon), slots)
        first_group = complete - count
        slot = (group_slot(position - length, first_group, stride) % slots).to(tl.int32)
    return count.to(tl.int32), slot, first_group


@triton.jit
def recent_span(position, length, phase, slots):
    """The recent part's visible entries: their number and the slot of the oldest."""
    count = tl.minimum(tl.minimum(length, phase), slots)
    return count.to(tl.int32), ((position - count) % slots).to(tl.int32)


@triton.jit
def group_slot(piece_start, group, stride):
    """Unwrapped slot of a group of the piece that began at `piece_start`: see `Geometry._group_slot`."""
    return (piece_start + group * stride + stride - 1) // stride


@triton.jit
def kept_offset(group, stride, KEEP: tl.constexpr):
    """Index inside each group of the token that is kept: see `Retention.offset`."""
    if KEEP == LAST:
        offset = group * 0 + stride - 1
    else:
        x = group.to(tl.uint32)
        x = (x ^ (x >> 16)) * 0x7FEB352D
        x = (x ^ (x >> 15)) * 0x846CA68B
        x = x ^ (x >> 16)
        offset = ((x.to(tl.uint64) * stride.to(tl.uint64)) >> 32).to(tl.int64)
    return offset


@triton.jit
def entry_positions(entries, count, first_group, length, stride, KEEP: tl.constexpr):
    """Positions of a part's visible entries, 0 being the oldest; `count` is their number."""
    if KEEP == ALL:
        positions = entries - count
    else:
        group = first_group + entries
        positions = (group * stride + kept_offset(group, stride, KEEP) - length).to(tl.int32)
    return positions


@triton.jit
def cut(slot, stop, skipped, slots, BN: tl.constexpr):
    """Entries `skipped ... stop - 1` as two runs: the first's slot and length, the second's length, their blocks.

    The second run begins at slot 0. Blocks of BN entries never span both.
    """
    head = slot + skipped
    head = tl.where(head >= slots, head - slots, head)
    todo = stop - skipped
    head_len = tl.minimum(todo, slots - head)
    head_blocks = tl.cdiv(head_len, BN)
    return head, head_len, todo - head_len, head_blocks, head_blocks + tl.cdiv(todo - head_len, BN)


@triton.jit
def block_of(i, head, head_len, tail_len, head_blocks, skipped, BN: tl.constexpr):
    """Block i of a walk: its first slot, the end of its run, and the entry in its first slot."""
    in_head = i < head_blocks
    first = tl.where(in_head, head + i * BN, (i - head_blocks) * BN)
    end = tl.where(in_head, head + head_len, tail_len)
    entry = skipped + tl.where(in_head, first - head, head_len + first)
    return first, end, entry


@triton.jit
def quantised(x, STORAGE: tl.constexpr):
    """float32 `x [n, BD]` as a quantised ring stores it, with one scale per row: `storage.quantise`, bit for bit."""
    largest = 127.0 if STORAGE == INT8 else 448.0
    scale = tl.div_rn(tl.max(tl.abs(x), 1), largest)
    scale += tl.sum(x - x, 1)  # the maximum ignores NaN: let it reach the scale
    y = tl.div_rn(x, tl.where(scale > 0, scale, 1.0)[:, None])
    if STORAGE == INT8:
        values = ((y + 12582912.0) - 12582912.0).to(tl.int8)  # adding 1.5 * 2^23 rounds to an integer
    else:
        bits = y.to(tl.uint32, bitcast=True)
        sign = (bits >> 24) & 0x80
        bits &= 0x7FFFFFFF
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # 3 bits of mantissa; bias 7, not 127
        # Below 2^-6 values are multiples of 2^-9, which is the last place of 2^14.
        small = (bits.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
        values = (tl.where(bits < 0x3C800000, small, normal) | sign).to(tl.uint8)
    return values, scale


@triton.jit
def store_entries(x, ring_ptr, scale_ptr, slots, mask, D: tl.constexpr, BD: tl.constexpr, STORAGE: tl.constexpr):
    """Write float32 rows `x [n, BD]` to the slots of one lane's head."""
    columns = tl.arange(0, BD)
    if STORAGE == EXACT:
        values = narrow(x, ring_ptr.dtype.element_ty)
    else:
        values, scale = quantised(x, STORAGE)
        tl.store(scale_ptr + slots, scale, mask=mask)
    ptrs = ring_ptr + slots[:, None] * D + columns[None, :]
    tl.store(ptrs, values, mask=mask[:, None] & (columns < D)[None, :])


@triton.jit
def archive_slots(rows, real, start_ptr, position, length, stride, KEEP: tl.constexpr, STARTS: tl.constexpr):
    """For each token: does the archive keep it, and in which slot (not yet wrapped)?"""
    index = length + rows  # since the token's piece began
    if STARTS:
        start = tl.load(start_ptr + rows, mask=rows < real, other=0).to(tl.int64)
        index = tl.where(start > 0, rows - start, index)
    group = index // stride
    kept = (index % stride == kept_offset(group, stride, KEEP)) & (rows < real)
    return kept, group_slot(position + rows - index, group, stride)


@triton.jit
def append(
    k_ptr,
    v_ptr,
    k_row,
    v_row,
    ring_k_ptr,
    ring_v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    start_ptr,
    first,
    real,
    position,
    length,
    archive,
    recent,
    stride,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
    STORAGE: tl.constexpr,
    KEEP: tl.constexpr,
    STARTS: tl.constexpr,
):
    """Write the segment's tokens `first ... first + ROWS - 1` into one lane's head; all pointers are the head's own.

    Safe beside programs that read: C >= M + T keeps visible slots and written slots apart. The clock does not move, so
    doing it twice changes nothing.
    """
    rows = first + tl.arange(0, ROWS)
    mask = rows < real
    k = load_rows(k_ptr, k_row, first, real, D, BD, ROWS).to(tl.float32)  # [ROWS, BD]
    v = load_rows(v_ptr, v_row, first, real, D, BD, ROWS).to(tl.float32)  # [ROWS, BD]
    if KEEP == ALL:
        slots = (position % archive).to(tl.int32) + rows
        slots = tl.where(slots >= archive, slots - archive, slots)
        store_entries(k, ring_k_ptr, k_scale_ptr, slots, mask, D, BD, STORAGE)
        store_entries(v, ring_v_ptr, v_scale_ptr, slots, mask, D, BD, STORAGE)
    else:
        kept, slots = archive_slots(rows, real, start_ptr, position, length, stride, KEEP, STARTS)
        if STARTS:  # a piece that ends in mid-group leaves its slot to the next piece, at most two groups further on
            for later in range(1, 2 * stride - 1):
                kept_later, taken = archive_slots(rows + later, real, start_ptr, position, length, stride, KEEP, STARTS)
                kept = kept & ~(kept_later & (taken == slots))
        slots = (slots % archive).to(tl.int32)
        store_entries(k, ring_k_ptr, k_scale_ptr, slots, kept, D, BD, STORAGE)
        store_entries(v, ring_v_ptr, v_scale_ptr, slots, kept, D, BD, STORAGE)
        slots = (position % recent).to(tl.int32) + rows
        slots = archive + tl.where(slots >= recent, slots - recent, slots)
        store_entries(k, ring_k_ptr, k_scale_ptr, slots, mask, D, BD, STORAGE)
        store_entries(v, ring_v_ptr, v_scale_ptr, slots, mask, D, BD, STORAGE)
