"""Slot arithmetic against a ring that remembers which token was written where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr_kernels import Retention
from dsmr_kernels.geometry import Geometry, mix32

retentions = st.builds(Retention, st.integers(1, 6), st.sampled_from(["last", "random"]))


class Simulation:
    """One lane of one ring whose slots hold stream positions instead of keys."""

    def __init__(self, horizon: int, max_segment: int, retention: Retention, in_flight: int) -> None:
        self.geometry = Geometry.of(horizon, max_segment, retention, in_flight)
        self.horizon = horizon
        self.slots: list[int | None] = [None] * self.geometry.capacity
        self.position = self.length = self.phase = 0

    def entries(self) -> list[tuple[int, int]]:
        """(slot, stream position it should hold) of everything visible."""
        runs = self.geometry.visible(self.horizon, "segment", self.position, self.length, self.phase)
        slots = [slot for run in runs for slot in range(run.start, run.stop)]
        return list(zip(slots, [self.position + p for run in runs for p in run.positions], strict=True))

    def intact(self, entries: list[tuple[int, int]]) -> bool:
        return all(self.slots[slot] == position for slot, position in entries)

    def feed(self, tokens: int, starts: list[int] | None = None, segment_size: int | None = None) -> None:
        for source, slots in self.geometry.written(self.position, self.length, starts, tokens):
            assert len(set(slots)) == len(slots)
            for token, slot in zip(source, slots, strict=True):
                self.slots[slot] = self.position + token
        start = starts[tokens - 1] if starts and tokens else 0
        self.length = tokens - start if start else self.length + tokens
        self.position += tokens
        self.phase = (self.phase + tokens) % segment_size if segment_size else 0


segments = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=40)


@given(segments=segments, horizon=st.integers(0, 12), retention=retentions)
def test_visible_slots_hold_the_tokens_they_should(
    segments: list[tuple[int, int, bool]], horizon: int, retention: Retention
) -> None:
    """Each segment: `tokens` tokens, a new piece `border` tokens in (if inside), in one call or token by token."""
    ring = Simulation(horizon, 9, retention, in_flight=1)
    for tokens, border, piecemeal in segments:
        if border == 0:
            ring.length = 0
        if piecemeal:
            for i in range(tokens):
                assert ring.intact(ring.entries())
                ring.feed(1, segment_size=tokens)
                assert ring.phase == (i + 1) % tokens
        else:
            assert ring.intact(ring.entries())
            ring.feed(tokens, [border if i >= border else 0 for i in range(tokens)])


@given(
    segments=segments,
    horizon=st.integers(0, 12),
    retention=retentions,
    in_flight=st.integers(1, 3),
    opened=st.integers(0, 8),
)
def test_needed_tells_exactly_when_memory_was_overwritten(
    segments: list[tuple[int, int, bool]], horizon: int, retention: Retention, in_flight: int, opened: int
) -> None:
    """The memory that a call saw is intact if and only if `need <= have`: no false alarm, no missed one."""
    ring = Simulation(horizon, 9, retention, in_flight)
    for tokens, _, _ in segments * 3:
        ring.feed(tokens)
    ring.feed(opened, segment_size=9)
    seen, then = ring.entries(), (ring.position, ring.length, ring.phase)
    appended = 0
    for tokens, _, _ in segments:
        ring.feed(tokens)
        appended += tokens
        need, have = ring.geometry.needed(horizon, "segment", *then, ring.position)
        if retention.stride == 1:
            assert (need <= have) == ring.intact(seen)
        elif need <= have:  # groups count as written when they open, which may be before their kept token comes
            assert ring.intact(seen)
        if opened + appended <= 9 * in_flight:
            assert need <= have  # what the ring was made for


@given(group=st.integers(0, 10**12), stride=st.integers(1, 1000))
def test_random_retention_keeps_a_token_of_the_group(group: int, stride: int) -> None:
    assert 0 <= Retention(stride, "random").offset(group) < stride


def test_random_retention_spreads_evenly() -> None:
    """Counts of 8 offsets over 8,000 groups: a fair choice deviates by more than 5 sigma once in 1.7 million."""
    counts = [0] * 8
    for group in range(8000):
        counts[Retention(8, "random").offset(group)] += 1
    sigma = (8000 * (1 / 8) * (7 / 8)) ** 0.5
    assert all(abs(count - 1000) < 5 * sigma for count in counts)


def test_mix32_is_a_permutation_of_small_integers() -> None:
    assert len({mix32(x) for x in range(100_000)}) == 100_000


def test_a_ring_without_stride_holds_the_horizon_and_its_segments() -> None:
    assert Geometry.of(100, 32, Retention()).capacity == 132
    assert Geometry.of(100, 32, Retention(), segments_in_flight=3).capacity == 196


@pytest.mark.parametrize(("stride", "keep"), [(0, "last"), (1.5, "last"), (2, "first")])
def test_retention_refuses_nonsense(stride: object, keep: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Retention(stride, keep)  # type: ignore[arg-type]  # that is what is tested


@given(horizon=st.integers(0, 12), max_segment=st.integers(1, 9), retention=retentions, in_flight=st.integers(1, 3))
def test_numbers_tell_geometries_apart(horizon: int, max_segment: int, retention: Retention, in_flight: int) -> None:
    geometry = Geometry.of(horizon, max_segment, retention, in_flight)
    assert Geometry.of_numbers(*geometry.numbers) == geometry
