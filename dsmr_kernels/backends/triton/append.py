"""The writing of a segment into its ring, quantised if the ring is."""

from __future__ import annotations

import triton
import triton.language as tl

from dsmr_kernels.backends.triton.geometry import ALL, group_slot, kept_offset
from dsmr_kernels.backends.triton.tile import load_rows, narrow


@triton.jit
def quantised(x, TYPE: tl.constexpr):
    """float32 `x [n, BD]` as a ring of TYPE stores it, with one scale per row: `storage.quantise`, bit for bit."""
    largest = 127.0 if TYPE == tl.int8 else 448.0
    scale = tl.div_rn(tl.max(tl.abs(x), 1), largest)
    scale += tl.sum(x - x, 1)  # the maximum ignores NaN: let it reach the scale
    y = tl.div_rn(x, tl.where(scale > 0, scale, 1.0)[:, None])
    if TYPE == tl.int8:
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
def store_entries(x, ring_ptr, scale_ptr, slots, mask, shape: tl.constexpr):
    """Write float32 rows `x [n, BD]` to the slots of one lane's head."""
    columns = tl.arange(0, shape.BD)
    TYPE: tl.constexpr = ring_ptr.dtype.element_ty
    if TYPE == tl.int8 or TYPE == tl.uint8:
        values, scale = quantised(x, TYPE)
        tl.store(scale_ptr + slots, scale, mask=mask)
    else:
        values = narrow(x, TYPE)
    ptrs = ring_ptr + slots[:, None] * shape.D + columns[None, :]
    tl.store(ptrs, values, mask=mask[:, None] & (columns < shape.D)[None, :])


@triton.jit
def store_pair(k, v, stored, slots, mask, shape: tl.constexpr):
    """Write keys and values to their slots."""
    store_entries(k, stored.k, stored.k_scale, slots, mask, shape)
    store_entries(v, stored.v, stored.v_scale, slots, mask, shape)


@triton.jit
def archive_slots(rows, lanes, lane, ring, shape: tl.constexpr):
    """For each token: does the archive keep it, and in which slot (not yet wrapped)?"""
    index = lane.length + rows  # since the token's piece began
    if lanes.start is not None:
        start_ptr = lanes.start + lane.index * lane.tokens
        start = tl.load(start_ptr + rows, mask=rows < lane.real, other=0).to(tl.int64)
        index = tl.where(start > 0, rows - start, index)
    group = index // ring.stride
    kept = (index % ring.stride == kept_offset(group, ring.stride, shape.KEEP)) & (rows < lane.real)
    return kept, group_slot(lane.position + rows - index, group, ring.stride)


@triton.jit
def append(segment, stored, first, lanes, lane, ring, shape: tl.constexpr, ROWS: tl.constexpr):
    """Write a lane's tokens `first ... first + ROWS - 1` of one KV head from the segment into the ring.

    Safe beside programs that read: C >= M + T keeps visible slots and written slots apart. The clock does not move, so
    doing it twice changes nothing.
    """
    rows = first + tl.arange(0, ROWS)
    mask = rows < lane.real
    k = load_rows(segment.k, segment.k_row, first, lane.real, shape, ROWS).to(tl.float32)  # [ROWS, BD]
    v = load_rows(segment.v, segment.v_row, first, lane.real, shape, ROWS).to(tl.float32)  # [ROWS, BD]
    if shape.KEEP == ALL:
        slots = (lane.position % ring.archive).to(tl.int32) + rows
        store_pair(k, v, stored, tl.where(slots >= ring.archive, slots - ring.archive, slots), mask, shape)
    else:
        kept, slots = archive_slots(rows, lanes, lane, ring, shape)
        if lanes.start is not None:
            # A piece that ends in mid-group leaves its slot to the next piece, at most two groups further on.
            for later in range(1, 2 * ring.stride - 1):
                kept_later, taken = archive_slots(rows + later, lanes, lane, ring, shape)
                kept = kept & ~(kept_later & (taken == slots))
        store_pair(k, v, stored, (slots % ring.archive).to(tl.int32), kept, shape)
        slots = (lane.position % ring.recent).to(tl.int32) + rows
        store_pair(k, v, stored, ring.archive + tl.where(slots >= ring.recent, slots - ring.recent, slots), mask, shape)
