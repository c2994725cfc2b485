"""Tiles on the device: loads, products, logits, and the interval of keys that a query sees.

Conventions of all kernels here. Positions are relative: token i of the segment stands at i, memory entries at negative
positions, in the order of their age. Logits are kept in base 2. A tile fetched by descriptor may hold rows that the
caller never wrote, NaN included: only what a later select hides may be fetched so. The operand that a product sums over
the hidden axis (V forward, K in dQ) is loaded with a mask, because 0 x NaN is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
BEFORE_ALL = tl.constexpr(-(2**30))  # a lower bound below every position: the query sees all that is older

# How the ring holds numbers (STORAGE).
EXACT = tl.constexpr(0)
INT8 = tl.constexpr(1)
FLOAT8 = tl.constexpr(2)


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
def load_rows(base_ptr, row_step, first, end, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr):
    """Rows `first ... first + ROWS - 1` of a matrix; zero from row `end` and column D on. `[ROWS, BD]`"""
    rows = first + tl.arange(0, ROWS)
    columns = tl.arange(0, BD)
    ptrs = base_ptr + rows[:, None] * row_step + columns[None, :]
    mask = (rows < end)[:, None]
    if D != BD:
        mask = mask & (columns < D)[None, :]
    return tl.load(ptrs, mask=mask, other=0)


@triton.jit
def store_rows(base_ptr, row_step, rows, mask, x, D: tl.constexpr, BD: tl.constexpr):
    """Write float32 `x [ROWS, BD]` to the rows where `mask`, rounded to the matrix's type."""
    columns = tl.arange(0, BD)
    ptrs = base_ptr + rows[:, None] * row_step + columns[None, :]
    tl.store(ptrs, narrow(x, base_ptr.dtype.element_ty), mask=mask[:, None] & (columns < D)[None, :])


@triton.jit
def fetch(
    source,
    lane,
    head,
    base_ptr,
    row_step,
    first,
    end,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Like `load_rows`, by bulk copy where `source` is a descriptor of `[B, Hkv, rows, D]`; then `end` is ignored."""
    if DESCRIPTOR:
        x = source.load([lane.to(tl.int32), head, first, 0]).reshape([ROWS, BD])
    else:
        x = load_rows(base_ptr, row_step, first, end, D, BD, ROWS)
    return x


@triton.jit
def decoded(x, TYPE: tl.constexpr, STORAGE: tl.constexpr):
    """A tile of the ring in the type of q. float8 comes out 2^8 times too small: see `load_scales`."""
    if STORAGE == INT8:
        x = narrow(x.to(tl.float32), TYPE)
    if STORAGE == FLOAT8:
        # The bits of e4m3 are those of a float16 but for the width of the exponent, whose bias is 7 instead of 15.
        bits = x.to(tl.uint16)
        x = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        if TYPE != tl.float16:
            x = narrow(x.to(tl.float32), TYPE)
    return x


@triton.jit
def load_scales(ptr, first, end, ROWS: tl.constexpr, STORAGE: tl.constexpr):
    """The factors of decoded rows, zero from row `end` on; ones for an exact ring. `[ROWS]`"""
    if STORAGE == EXACT:
        scale = tl.full([ROWS], 1.0, tl.float32)
    else:
        rows = first + tl.arange(0, ROWS)
        scale = tl.load(ptr + rows, mask=rows < end, other=0.0)
        if STORAGE == FLOAT8:
            scale = scale * 256.0
    return scale


@triton.jit
def real_tokens(len_ptr, T, LENGTHS: tl.constexpr):
    """How many of a lane's T tokens are real; a wrong length must not lead out of bounds."""
    real = T
    if LENGTHS:
        real = tl.minimum(tl.maximum(tl.load(len_ptr), 0), T).to(tl.int32)
    return real


@triton.jit
def lower_bound(rows, start_ptr, last_row, horizon, TOKEN: tl.constexpr, STARTS: tl.constexpr):
    """The lowest position that each query may see, for a vector of rows or one. Non-decreasing in the row.

    `start_ptr` is the lane's row of segment_start, `last_row` the last one that may be read.
    """
    low = rows * 0 + BEFORE_ALL
    if STARTS:
        start = tl.load(start_ptr + tl.minimum(tl.maximum(rows, 0), last_row)).to(tl.int32)
        low = tl.where(start > 0, start, low)
    if TOKEN:
        low = tl.maximum(low, rows - horizon + 1)
    return low


@triton.jit
def row_bounds(m0, real, start_ptr, T, horizon, BM: tl.constexpr, TOKEN: tl.constexpr, STARTS: tl.constexpr):
    """`lower_bound` of the rows `m0 ... m0 + BM - 1`, of the first and of the last real one."""
    rows = m0 + tl.arange(0, BM)
    reach = tl.minimum(horizon, -BEFORE_ALL).to(tl.int32)
    low = lower_bound(rows, start_ptr, T - 1, reach, TOKEN, STARTS)
    first = lower_bound(m0, start_ptr, T - 1, reach, TOKEN, STARTS)
    last = lower_bound(tl.minimum(m0 + BM, real) - 1, start_ptr, T - 1, reach, TOKEN, STARTS)
    return low, first, last


@triton.jit
def saturated(x, cap):
    """`tanh(x / cap)`."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E) / cap)
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def base2_logits(products, scale, softcap, CAPPED: tl.constexpr):
    """Base-2 logits of `q . k`, and their derivative by the scaled product (1 without softcap)."""
    if CAPPED:
        saturation = saturated(products * scale, softcap)
        x, slope = saturation * (softcap * LOG2E), 1.0 - saturation * saturation
    else:
        x, slope = products * (scale * LOG2E), 1.0
    return x, slope
