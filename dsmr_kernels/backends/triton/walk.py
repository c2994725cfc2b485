"""The walk of a tile of queries over all that it sees, in blocks: the memory, then the segment.

What is done with a block is the kernel's: a function `TAKE(state, tile, source, keys, block, rule, shape) -> state`.
The mask lies in a branch that few blocks take.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dsmr_kernels.backends.triton.geometry import (
    ALL,
    archive_span,
    block_of,
    positions_of,
    recent_span,
    runs_of,
    share,
)
from dsmr_kernels.backends.triton.logits import logits, visible
from dsmr_kernels.backends.triton.tile import dot


class Queries(NamedTuple):
    """A tile of queries `q [BM, BD]`: their tokens `[BM]`, their bounds, and what makes logits of their products."""

    q: Any
    rows: Any
    bounds: Any
    factor: Any
    steep: Any


class Block(NamedTuple):
    """Rows `first ... end - 1` of keys and values, the first at `place`; what follows counts from there.

    Their positions `[BN]`; the last key that each query may see, `[BM, 1]` or one for all; and whether the block
    `hides` any from any query.
    """

    first: Any
    end: Any
    place: Any
    positions: Any
    last: Any
    hides: Any


@triton.jit
def scores(tile, k, k_scale, block, rule, shape: tl.constexpr):
    """The logits `[BM, BN]` of a block's keys `k [BN, BD]`, and their slope: see `logits`."""
    x = dot(tile.q, tl.trans(k), PRECISION=shape.PRECISION)  # [BM, BD] @ [BD, BN]
    if k_scale is not None:
        x = x * k_scale[None, :]
    return logits(x, (tile.rows - block.place)[:, None], block.positions[None, :], tile.steep, rule, shape)


@triton.jit
def seen(tile, block, shape: tl.constexpr):
    """Which of a block's keys each query sees. `[BM, BN]` or `[1, BN]`"""
    low = (tile.bounds.low - block.place)[:, None]
    return visible(tl.arange(0, shape.BN)[None, :], low, block.last, shape)


@triton.jit
def over_span(
    state,
    tile,
    ring,
    source,
    keys,
    lane,
    span,
    part,
    rule,
    shape: tl.constexpr,
    PARTS: tl.constexpr,
    KEEP: tl.constexpr,
    TAKE: tl.constexpr,
):
    """Share `part` of PARTS of one part of the ring."""
    columns = tl.arange(0, shape.BN)
    begin, stop = share(span, tile.bounds, part, PARTS, shape.BN)
    runs = runs_of(span, begin, stop, shape.BN)
    for i in tl.range(0, runs.blocks):
        first, end, place = block_of(i, runs, shape.BN)
        positions = positions_of(place, columns, span, ring, lane, KEEP)
        hides = first + shape.BN > end
        if shape.BOUNDED:
            hides = hides | (place < tile.bounds.last)
        block = Block(span.base + first, span.base + end, place, positions, end - first - 1, hides)
        state = TAKE(state, tile, source, keys, block, rule, shape)
    return state


@triton.jit
def over_memory(
    state,
    tile,
    ring,
    source,
    keys,
    lane,
    part,
    rule,
    shape: tl.constexpr,
    PARTS: tl.constexpr,
    TAKE: tl.constexpr,
):
    """Share `part` of PARTS of all that the tile sees of the memory."""
    span = archive_span(ring, lane, shape)
    state = over_span(state, tile, ring, source, keys, lane, span, part, rule, shape, PARTS, shape.KEEP, TAKE)
    if shape.KEEP != ALL:
        span = recent_span(ring, lane)
        state = over_span(state, tile, ring, source, keys, lane, span, part, rule, shape, PARTS, ALL, TAKE)
    return state


@triton.jit
def over_segment(state, tile, source, keys, whole, end, rule, shape: tl.constexpr, TAKE: tl.constexpr):
    """The segment before token `end`. No row is hidden from those before `whole`; None: every block is masked."""
    columns = tl.arange(0, shape.BN)
    for n0 in tl.range(tl.maximum(tile.bounds.first, 0), end, shape.BN):
        hides = True
        if whole is not None:
            hides = n0 + shape.BN > whole
            if shape.BOUNDED:
                hides = hides | (n0 < tile.bounds.last)
        block = Block(n0, end, n0, columns, (tile.rows - n0)[:, None], hides)
        state = TAKE(state, tile, source, keys, block, rule, shape)
    return state
