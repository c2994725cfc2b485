"""Tiles on the device: loads, stores and products.

A tile fetched by descriptor may hold rows that the caller never wrote, NaN included: only what a later select hides may
be fetched so. The operand that a product sums over the hidden axis (V forward, K in dQ) is loaded with a mask, because
0 x NaN is NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Keys(NamedTuple):
    """Keys and values of one lane's KV head: their first rows, the elements from row to row, the factors of rows.

    A quantised ring holds int8, or e4m3 as bytes (uint8), and has factors. Elsewhere they are never read.
    """

    lane: Any
    head: Any
    k: Any
    v: Any
    k_row: Any
    v_row: Any
    k_scale: Any
    v_scale: Any


@triton.jit
def segment_keys(k, v, lane, head, shape: tl.constexpr):
    """One head of the segment."""
    k_ptr = k.ptr + (lane.index * k.lane + head * k.head) * shape.UNIT
    v_ptr = v.ptr + (lane.index * v.lane + head * v.head) * shape.UNIT
    return Keys(lane.index, head, k_ptr, v_ptr, k.row * shape.UNIT, v.row * shape.UNIT, k_ptr, v_ptr)


@triton.jit
def ring_keys(ring, lane, head, heads, shape: tl.constexpr):
    """One of a ring's `heads`."""
    at = (lane.index * heads + head) * (ring.archive + ring.recent)
    k_ptr, v_ptr = ring.k + at * shape.D, ring.v + at * shape.D
    return Keys(lane.index, head, k_ptr, v_ptr, shape.D, shape.D, ring.k_scale + at, ring.v_scale + at)


@triton.jit
def dot(a, b, acc=None, PRECISION: tl.constexpr = "ieee"):
    """`acc + a @ b` in float32."""
    if INTERPRETED:  # the interpreter multiplies the bit patterns of bfloat16 as integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(x, TYPE: tl.constexpr):
    """float32 `x` rounded to TYPE, to nearest even."""
    if INTERPRETED and TYPE == tl.bfloat16:  # the interpreter truncates: round by hand, then nothing is left to cut
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(TYPE)


@triton.jit
def load_rows(base_ptr, row_step, first, end, shape: tl.constexpr, ROWS: tl.constexpr):
    """Rows `first ... first + ROWS - 1` of a matrix; zero from row `end` and column D on. `[ROWS, BD]`"""
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, shape.BD)
    ptrs = base_ptr + rows[:, None] * row_step + columns[None, :]
    mask = (rows < end)[:, None]
    if shape.D != shape.BD:
        mask = mask & (columns < shape.D)[None, :]
    return tl.load(ptrs, mask=mask, other=0)


@triton.jit
def load_heads(x, lane, head, first, end, shape: tl.constexpr):
    """BM rows of one head of `x [B, T, heads, D]`: see `load_rows`."""
    ptr = x.ptr + (lane.index * x.lane + head * x.head) * shape.UNIT
    return load_rows(ptr, x.row * shape.UNIT, first, end, shape, shape.BM)


@triton.jit
def store_rows(base_ptr, row_step, rows, mask, x, shape: tl.constexpr):
    """Write float32 `x [ROWS, BD]` to the rows where `mask`, rounded to the matrix's type."""
    columns = tl.arange(0, shape.BD)
    ptrs = base_ptr + rows[:, None] * row_step + columns[None, :]
    tl.store(ptrs, narrow(x, base_ptr.dtype.element_ty), mask=mask[:, None] & (columns < shape.D)[None, :])


@triton.jit
def fetch(source, keys, base_ptr, row_step, first, end, shape: tl.constexpr, ROWS: tl.constexpr):
    """Like `load_rows`, but all rows by bulk copy if there is a descriptor `source` of `[B, Hkv, rows, D]`."""
    if source is None:
        x = load_rows(base_ptr, row_step, first, end, shape, ROWS)
    else:
        x = source.load([keys.lane.to(tl.int32), keys.head, first, 0]).reshape([ROWS, shape.BD])
    return x


@triton.jit
def decoded(x, TYPE: tl.constexpr):
    """A tile of keys or values in the type of q. float8 comes out 2^8 times too small: see `load_scales`."""
    if x.dtype == tl.int8:
        x = narrow(x.to(tl.float32), TYPE)
    elif x.dtype == tl.uint8:
        # The bits of e4m3 are those of a float16 but for the width of the exponent, whose bias is 7 instead of 15.
        bits = x.to(tl.uint16)
        x = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        if TYPE != tl.float16:
            x = narrow(x.to(tl.float32), TYPE)
    return x


@triton.jit
def load_scales(scale_ptr, first, end, TYPE: tl.constexpr, ROWS: tl.constexpr):
    """The factors of decoded rows that are stored as TYPE, zero from row `end` on. `[ROWS]`"""
    rows = first + tl.arange(0, ROWS)
    scale = tl.load(scale_ptr + rows, mask=rows < end, other=0.0)
    if TYPE == tl.uint8:
        scale = scale * 256.0
    return scale
