"""Tempo map: how a MIDI file measures time, in ticks, and how long they last.

It is our own because mido converts by one tempo at a time, and pretty_midi by an array with an entry for every tick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MICROSECONDS_PER_BEAT = 500_000
"""MIDI's tempo where a file states none: 120 beats a minute."""

SLOWEST = 0xFFFFFF
"""The most microseconds a beat that a file can state."""

TEMPO_DTYPE = np.dtype([("tick", "i8"), ("microseconds_per_beat", "i8")])
"""One change of tempo: from which tick on, and how long a beat then lasts."""


@dataclass(frozen=True, eq=False)
class TempoMap:
    """The way between ticks and seconds.

    Args:
        ticks_per_beat: at least 1.
        changes: ``TEMPO_DTYPE [C]``, in order of their ticks; of those on one tick the last counts. Until the first one
            a beat lasts ``MICROSECONDS_PER_BEAT``.

    Raises:
        ValueError: a number out of its range.
    """

    ticks_per_beat: int
    changes: NDArray[np.void] = field(default_factory=lambda: np.empty(0, TEMPO_DTYPE))

    def __post_init__(self) -> None:
        if self.ticks_per_beat < 1:
            raise ValueError(f"expected at least one tick a beat, got {self.ticks_per_beat}")
        per_beat, ticks = self.changes["microseconds_per_beat"], self.changes["tick"]
        if per_beat.min(initial=1) < 1:
            worst = per_beat.argmin()
            raise ValueError(f"expected at least 1 microsecond a beat, got {per_beat[worst]} at tick {ticks[worst]}")
        if ticks.min(initial=0) < 0 or (np.diff(ticks) < 0).any():
            raise ValueError("expected changes of tempo in order of their ticks, from 0 on")

    def seconds_at(self, tick: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """When ticks are, in seconds: float64, of the shape of `tick`."""
        ticks, per_beat, seconds = self._pieces()
        piece = np.searchsorted(ticks, tick, side="right") - 1
        return np.asarray(seconds[piece] + (tick - ticks[piece]) * per_beat[piece] / self._microticks_per_beat)

    def ticks_at(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """The ticks next to these times."""
        ticks, per_beat, begins = self._pieces()
        piece = np.searchsorted(begins, seconds, side="right") - 1
        since = (seconds - begins[piece]) * self._microticks_per_beat / per_beat[piece]
        return np.rint(ticks[piece] + since).astype(np.int64)

    def fine_from(self, seconds: float, longest: float) -> TempoMap:
        """This map, if ticks last at most `longest` seconds from a time on; else with another tempo from there on."""
        ticks, per_beat, begins = self._pieces()
        piece = int(np.searchsorted(begins, seconds, side="right")) - 1
        if per_beat[piece:].max() <= longest * self._microticks_per_beat:
            return self
        tick = int(np.ceil(ticks[piece] + (seconds - begins[piece]) * self._microticks_per_beat / per_beat[piece]))
        slowest = min(int(longest * self._microticks_per_beat), SLOWEST)
        kept = self.changes[self.changes["tick"] < tick]
        return TempoMap(self.ticks_per_beat, np.append(kept, np.array([(tick, slowest)], TEMPO_DTYPE)))

    @property
    def _microticks_per_beat(self) -> float:
        return 1e6 * self.ticks_per_beat

    def _pieces(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Where tempo is constant: from which tick on, a beat's microseconds, and from which second on."""
        ticks = np.concatenate([[0], self.changes["tick"]]).astype(np.float64)
        per_beat = np.concatenate([[MICROSECONDS_PER_BEAT], self.changes["microseconds_per_beat"]]).astype(np.float64)
        lasted = np.cumsum(np.diff(ticks) * per_beat[:-1]) / self._microticks_per_beat
        return ticks, per_beat, np.concatenate([[0.0], lasted])
