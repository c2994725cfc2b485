"""Where tokens live in a ring and which of them a query sees: `dsmr_kernels/geometry.py`, on the device.

Positions are relative: token i of the segment stands at i. The visible entries of a part of the ring stand at the
places -n ... -1 in the order of their age, which are their positions if the ring keeps every token. A query sees
all from its lower bound to itself.

A ring has one part, or two under retention: the archive and, behind it, the recent part that holds the open segment's
tokens. The visible entries of a part lie in at most two runs of consecutive slots, which one loop walks: two loops make
ptxas serialise the tensor-core instructions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

BEFORE_ALL = tl.constexpr(-(2**30))  # a lower bound below every place: the query sees all that is older
AFTER_ALL = tl.constexpr(2**30)

# Which tokens the ring keeps (KEEP): all, or of each group the last or one chosen by a hash.
ALL = tl.constexpr(0)
LAST = tl.constexpr(1)
HASHED = tl.constexpr(2)


class Lane(NamedTuple):
    """One lane of a call: its index, its tokens and how many of them are real, the horizon, and its clock (int64)."""

    index: Any
    tokens: Any
    real: Any
    horizon: Any
    position: Any
    length: Any
    phase: Any


class Span(NamedTuple):
    """The visible entries of one part of the ring, which begins at slot `base` and has `slots`.

    There are `count`, the oldest in slot `base + slot`. Under retention `groups` of the piece are complete.
    """

    base: Any
    slots: Any
    slot: Any
    count: Any
    groups: Any


class Runs(NamedTuple):
    """The entries from place `begin` on as two runs, in blocks that never span both; the second begins at slot 0.

    `head` is the first run's slot, the lengths count entries. The first `head_blocks` of all `blocks` are its own.
    """

    begin: Any
    head: Any
    head_length: Any
    tail_length: Any
    head_blocks: Any
    blocks: Any


class Bounds(NamedTuple):
    """The lower bounds of a tile's rows, of its first and of its last real row; and whether it has any real row."""

    low: Any
    first: Any
    last: Any
    real: Any


@triton.jit
def read_lane(lanes, index, T):
    """A lane's numbers. A wrong length must not lead out of bounds."""
    real = T
    if lanes.real is not None:
        real = tl.minimum(tl.maximum(tl.load(lanes.real + index), 0), T).to(tl.int32)
    clock, count = lanes.clock + index, tl.num_programs(2)
    position, length, phase = tl.load(clock), tl.load(clock + count), tl.load(clock + 2 * count)
    return Lane(index, T, real, tl.load(lanes.horizon), position, length, phase)


@triton.jit
def lower_bound(rows, lanes, lane, shape: tl.constexpr):
    """The lowest place that each query may see, for a vector of rows or one. Non-decreasing in the row."""
    low = rows * 0 + BEFORE_ALL
    if lanes.start is not None:
        index = tl.minimum(tl.maximum(rows, 0), lane.tokens - 1)
        start = tl.load(lanes.start + lane.index * lane.tokens + index).to(tl.int32)
        low = tl.where(start > 0, start, low)
    if shape.TOKEN:
        low = tl.maximum(low, rows - tl.minimum(lane.horizon, AFTER_ALL).to(tl.int32) + 1)
    return low


@triton.jit
def bounds_of(rows, first, stop, lanes, lane, shape: tl.constexpr):
    """The bounds of a tile whose rows are tokens from `first` on, the real ones before `stop`."""
    low = lower_bound(rows, lanes, lane, shape)
    low_first = lower_bound(first, lanes, lane, shape)
    low_last = lower_bound(stop - 1, lanes, lane, shape)
    return Bounds(low, low_first, low_last, first < lane.real)


@triton.jit
def archive_span(ring, lane, shape: tl.constexpr):
    """What a call sees of the archive."""
    position, length, phase = lane.position, lane.length, lane.phase
    if shape.KEEP == ALL:
        reach = tl.maximum(lane.horizon - 1, 0) if shape.TOKEN else lane.horizon + phase
        count = tl.minimum(tl.minimum(length, reach), ring.archive)
        slot, groups = position - count, length * 0
    else:
        groups = tl.maximum(length - phase, 0) // ring.stride
        count = tl.minimum(tl.minimum(groups, lane.horizon), ring.archive)
        slot = group_slot(position - length, groups - count, ring.stride)
    return Span(0, ring.archive, (slot % ring.archive).to(tl.int32), count.to(tl.int32), groups)


@triton.jit
def recent_span(ring, lane):
    """What a call sees of the recent part."""
    count = tl.minimum(tl.minimum(lane.length, lane.phase), ring.recent)
    slot = ((lane.position - count) % ring.recent).to(tl.int32)
    return Span(ring.archive, ring.recent, slot, count.to(tl.int32), count * 0)


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
def positions_of(place, entries, span, ring, lane, KEEP: tl.constexpr):
    """The positions of the `entries` from a place on, counted from that place."""
    if KEEP == ALL:
        positions = entries
    else:
        group = span.groups + place + entries
        position = group * ring.stride + kept_offset(group, ring.stride, KEEP) - lane.length
        positions = position.to(tl.int32) - place
    return positions


@triton.jit
def share(span, bounds, part, PARTS: tl.constexpr, BN: tl.constexpr):
    """Of the entries that any row of a tile sees share `part` of PARTS, as places from ... to (exclusive).

    Shares are whole blocks, as even as they go.
    """
    begin = tl.where(bounds.real, tl.minimum(tl.maximum(bounds.first, -span.count), 0), 0)
    stop = 0
    if PARTS > 1:
        size = tl.cdiv(tl.cdiv(-begin, PARTS), BN) * BN
        begin = tl.minimum(begin + part * size, 0)
        stop = tl.minimum(begin + size, 0)
    return begin, stop


@triton.jit
def runs_of(span, begin, stop, BN: tl.constexpr):
    """The entries of a span from place `begin` to `stop` (exclusive)."""
    head = span.slot + span.count + begin
    head = tl.where(head >= span.slots, head - span.slots, head)
    head_length = tl.minimum(stop - begin, span.slots - head)
    tail_length = stop - begin - head_length
    head_blocks = tl.cdiv(head_length, BN)
    return Runs(begin, head, head_length, tail_length, head_blocks, head_blocks + tl.cdiv(tail_length, BN))


@triton.jit
def block_of(i, runs, BN: tl.constexpr):
    """Block i of a walk: its first slot, the end of its run, and the place of its first entry."""
    in_head = i < runs.head_blocks
    first = tl.where(in_head, runs.head + i * BN, (i - runs.head_blocks) * BN)
    end = tl.where(in_head, runs.head + runs.head_length, runs.tail_length)
    place = runs.begin + tl.where(in_head, first - runs.head, runs.head_length + first)
    return first, end, place
