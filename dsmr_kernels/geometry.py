"""Where a token lives in a ring, and which tokens a segment may see: integer arithmetic only, for one lane at a time.

Words. A token's *position* counts from the beginning of its lane's stream. A call's first token stands at the clock's
`position`; *relative positions* count from there, so memory entries are negative and segment tokens are 0 ... T-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Window = Literal["segment", "token"]

LARGEST_POSITION = 2**62
"""The largest position of a clock: a segment, a group of tokens and a ring more still are an int64."""
_LARGEST_STRIDE = 2**31 - 1  # a hash of 32 bits chooses among a group's tokens


@dataclass(frozen=True)
class Retention:
    """Keep one entry in every `stride` tokens of a piece: the last of each group, or one chosen by a hash of its index.

    Groups count from the beginning of the piece, so a reset lane keeps what a fresh lane would keep. An entry becomes
    visible when its group is complete and its segment is over; the tokens of the open segment are always kept exactly.
    """

    stride: int = 1
    keep: Literal["last", "random"] = "last"

    def __post_init__(self) -> None:
        if not isinstance(self.stride, int) or isinstance(self.stride, bool) or not 1 <= self.stride <= _LARGEST_STRIDE:
            raise ValueError(f"stride: expected an integer of at least 1 and below 2^31, got {self.stride!r}")
        if self.keep not in ("last", "random"):
            raise ValueError(f"keep: expected 'last' or 'random', got {self.keep!r}")

    def offset(self, group: int) -> int:
        """Index inside group `group` (0, 1, ... since the piece began) of the token that is kept."""
        if self.keep == "last":
            return self.stride - 1
        return (mix32(group) * self.stride) >> 32


def mix32(x: int) -> int:
    """Mix the low 32 bits of `x` into a well-distributed 32-bit integer, as every back end does, on a GPU too.

    Source: C. Wellons, "Prospecting for hash functions" (2018), the two-round multiply-xorshift function `lowbias32`.
    """
    x &= 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


class Run(NamedTuple):
    """Consecutive slots `[start, stop)` of a ring and the relative position (negative) of the token in each."""

    start: int
    stop: int
    positions: Sequence[int]


class Slots(NamedTuple):
    """Tokens `tokens[i]` of a segment go to slots `slots[i]`: two index sequences of equal length."""

    tokens: Sequence[int]
    slots: Sequence[int]


@dataclass(frozen=True)
class Geometry:
    """The fixed shape of one ring: how many slots hold memory, and, under retention, how many hold the open segment.

    Slots `[0, archive)` are the ring proper, one entry per `retention.stride` tokens. Under a stride above 1 the slots
    `[archive, archive + recent)` hold the newest tokens exactly, those of all segments in flight, so that a segment fed
    piecemeal sees all of itself.
    """

    archive: int
    recent: int
    max_segment: int
    retention: Retention

    def __post_init__(self) -> None:
        sizes = self.archive, self.recent, self.max_segment
        if min(sizes) < 0:
            raise ValueError(f"archive, recent, max_segment: expected numbers of slots and tokens, got {sizes}")

    @classmethod
    def of(cls, horizon: int, max_segment: int, retention: Retention, segments_in_flight: int = 1) -> Geometry:
        """Size a ring for `horizon` entries and `segments_in_flight` segments of up to `max_segment` tokens.

        The archive must hold the horizon and every group that the segments in flight can open. Those span
        `ceil((T - 2) / stride) + 2` slots for T tokens (a group may be open on both sides), which is T for stride 1.
        """
        tokens = segments_in_flight * max_segment
        stride = retention.stride
        archive = horizon + (tokens + stride - 3) // stride + 2
        return cls(archive, tokens if stride > 1 else 0, max_segment, retention)

    @classmethod
    def of_numbers(cls, archive: int, recent: int, max_segment: int, stride: int, random: int) -> Geometry:
        """The inverse of `numbers`."""
        return cls(archive, recent, max_segment, Retention(stride, "random" if random else "last"))

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """What tells two geometries apart, for those who keep or pass numbers only."""
        return self.archive, self.recent, self.max_segment, self.retention.stride, int(self.retention.keep == "random")

    @property
    def capacity(self) -> int:
        """Slots in all: the size C of the ring's third dimension."""
        return self.archive + self.recent

    def visible(self, horizon: int, window: Window, position: int, length: int, phase: int) -> list[Run]:
        """Runs of slots, oldest first, that a call at this clock may see: at most four, two without stride.

        Raises ValueError for numbers that no stack comes to.
        """
        self._check_clock(horizon, window, position, length, phase)
        if self.retention.stride == 1:
            count = min(length, horizon + phase if window == "segment" else max(horizon - 1, 0))
            return list(_runs(position - count, self.archive, 0, range(-count, 0)))
        first, count = self._settled(horizon, length, phase)
        stride, offset = self.retention.stride, self.retention.offset
        positions = [group * stride + offset(group) - length for group in range(first, first + count)]
        open_tokens = min(length, phase)
        return [
            *_runs(self._group_slot(position - length, first), self.archive, 0, positions),
            *_runs(position - open_tokens, self.recent, self.archive, range(-open_tokens, 0)),
        ]

    def written(self, position: int, length: int, starts: Sequence[int] | None, tokens: int) -> list[Slots]:
        """Where a call's first `tokens` tokens go; `starts` is the lane's row of `segment_start` (None: all zero).

        No two of the returned pairs name the same slot twice, so the order of writing does not matter.
        """
        stride = self.retention.stride
        if stride == 1:
            return [
                Slots(range(run.positions[0], run.positions[-1] + 1), range(run.start, run.stop))
                for run in _runs(position, self.archive, 0, range(tokens))
            ]
        kept: dict[int, int] = {}  # slot to token: a piece that ends in mid-group leaves its slot to the next piece
        for token in range(tokens):
            start = starts[token] if starts is not None else 0
            index = token - start if start else length + token  # since the token's piece began
            group = index // stride
            if index % stride == self.retention.offset(group):
                kept[self._group_slot(position + token - index, group) % self.archive] = token
        recent = [self.archive + (position + token) % self.recent for token in range(tokens)]
        return [Slots([*kept.values()], [*kept]), Slots(range(tokens), recent)]

    def needed(
        self, horizon: int, window: Window, position: int, length: int, phase: int, newest: int
    ) -> tuple[int, int]:
        """`(need, have)`: slots that keep what this clock sees intact after tokens up to `newest` (exclusive).

        The memory that a call saw is still whole if and only if `need <= have`. Of the ring's two parts it reports the
        one that is shorter.
        """
        if self.retention.stride == 1:
            count = sum(run.stop - run.start for run in self.visible(horizon, window, position, length, phase))
            return (newest - position + count if count else 0), self.archive
        first, count = self._settled(horizon, length, phase)
        open_tokens = min(length, phase)
        last_group = (newest + self.retention.stride - 2) // self.retention.stride
        archive_need = last_group - self._group_slot(position - length, first) + 1 if count else 0
        recent_need = newest - position + open_tokens if open_tokens else 0
        return max((archive_need, self.archive), (recent_need, self.recent), key=lambda part: part[0] - part[1])

    def _check_clock(self, horizon: int, window: Window, position: int, length: int, phase: int) -> None:
        if self.retention.stride > 1:
            most = self.recent
        else:
            most = self.archive - horizon if window == "segment" else LARGEST_POSITION
        counts = 0 <= position <= LARGEST_POSITION and 0 <= length <= LARGEST_POSITION
        if not (counts and 0 <= horizon <= self.archive and 0 <= phase <= most):
            raise bad_clock(position, length, phase, horizon)

    def _settled(self, horizon: int, length: int, phase: int) -> tuple[int, int]:
        """First and number of the newest `horizon` groups that were complete when the open segment began."""
        complete = max(length - phase, 0) // self.retention.stride
        count = min(horizon, complete)
        return complete - count, count

    def _group_slot(self, piece_start: int, group: int) -> int:
        """Unwrapped slot of a group: groups of one piece are neighbours, and complete groups of two pieces never meet.

        The last token of a group stands at `piece_start + group * stride + stride - 1`; those positions are at least a
        stride apart, also across pieces, so dividing by the stride gives every complete group a number of its own.
        """
        stride = self.retention.stride
        return (piece_start + group * stride + stride - 1) // stride


def bad_clock(position: int, length: int, phase: int, horizon: int) -> ValueError:
    """The error for a lane whose numbers would lead out of its ring."""
    return ValueError(
        "memory: expected a position and a length from 0 to 2^62, and a phase and a horizon that the ring has room "
        f"for, got position {position}, length {length}, phase {phase}, horizon {horizon}"
    )


def _runs(first: int, size: int, base: int, positions: Sequence[int]) -> Iterator[Run]:
    """Split `len(positions)` consecutive ring indices from `first` on into at most two runs of physical slots."""
    count = len(positions)
    start = first % size if size else 0
    head = min(count, size - start)
    if head:
        yield Run(base + start, base + start + head, positions[:head])
    if count > head:
        yield Run(base, base + count - head, positions[head:])
