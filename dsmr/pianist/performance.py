"""Performance: how a score becomes key strokes and pedal, in whole 10 ms steps.

What is performed here is a cell, a passage that leaves nothing sounding and the pedal up when it ends. Cells can be put
one after the other in any order and moved up or down, and each still encodes to the same tokens: that is what makes
exact returns exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, STEPS_PER_SECOND, Performance, encode
from dsmr.pianist.dice import Dice
from dsmr.pianist.rhythm import Metre
from dsmr.pianist.texture import MELODY, ScoreNote, Texture
from dsmr.pianist.theme import Idea

SHORTEST = 4  # steps; a key is never down for less
PEDAL_DELAY = 7  # steps from a stroke until the pedal catches it
SHORTEST_PEDAL = 12  # steps
SOFTEST, LOUDEST = 16, 118

Grid = NDArray[np.int64]


@dataclass(frozen=True)
class Touch:
    """One performer's habits.

    Args:
        steady: whether tempo and nuances stay the same from beat to beat.
        arch: how much slower than their middle the ends of phrases are, as a share of the tempo.
        ritardando: how much slower than the tempo the end of a cadence is, as a share.
        jitter: steps by which a beat may come late.
        lead: steps by which the melody may come before the rest.
        spread: steps over which the notes of one chord may fall.
        roll: probability that a wide chord is rolled.
        accent: velocity between a weak and a strong beat.
        noise: velocity by which equal notes differ.
        voicing: velocity of the melody above the accompaniment.
        overlap: steps by which a legato note may reach into the next.
    """

    steady: bool
    arch: float
    ritardando: float
    jitter: int
    lead: int
    spread: int
    roll: float
    accent: float
    noise: float
    voicing: float
    overlap: int


@dataclass(frozen=True, eq=False)
class Setting:
    """How a passage is to be played; the same idea in the same setting can be the same cell.

    Args:
        texture: the layout for two hands.
        pace: steps to a tick.
        level: velocity of the accompaniment.
        swell: velocity that the middle of a phrase gains.
        octave: semitones that the melody is lifted.
        hold: share of its length that a melody note is held.
        accompaniment_hold: the same for the other notes.
        pedal: ``none``, ``harmony`` (changed with each chord), ``bar`` or ``touch`` (only after strong beats).
    """

    texture: Texture
    pace: float
    level: float
    swell: float
    octave: int
    hold: float
    accompaniment_hold: float
    pedal: str


class Place(NamedTuple):
    """Where in its phrase a cell is: from 0 to 1, and the steps of rest that follow it."""

    start: float
    stop: float
    rest: int


@dataclass(frozen=True, eq=False)
class Cell:
    """A performed passage. Cells are equal only when they are the same object.

    Args:
        notes: int64 [N, 4], onset, offset (steps), pitch, velocity; by onset, then pitch; no offset is beyond length.
        pedal: int64 [P, 2], step and CC64 value; the last one lifts the pedal.
        length: steps.
        tokens: how many tokens it encodes to.
        idea: what it performs; None for passages that are no theme.
        setting: how it was to be played.
        place: where in the phrase.
    """

    notes: Grid
    pedal: Grid
    length: int
    tokens: int
    idea: Idea | None
    setting: Setting
    place: Place


@dataclass(frozen=True)
class Score:
    """A passage to be played.

    Args:
        notes: in any order.
        changes: the ticks at which the harmony changes, the first being 0.
        ticks: how long it is.
        metre: its metre.
    """

    notes: Sequence[ScoreNote]
    changes: Sequence[int]
    ticks: int
    metre: Metre


class Nuance(NamedTuple):
    """How one stroke differs from the plain score: steps later, steps held longer, velocity added."""

    later: int
    longer: int
    louder: float


class Nuances:
    """The small deviations of one performer in one setting.

    A free performer's are new each time. A steady one's belong to the place in the beat, so that a figure repeated
    there sounds, and encodes, the same.

    Args:
        dice: the piece's dice.
        touch: the performer's.
    """

    def __init__(self, dice: Dice, touch: Touch) -> None:
        self._dice = dice
        self._touch = touch
        self._beats: dict[tuple[int, bool], tuple[int, int]] = {}
        self._strokes: dict[tuple[int, int, int], Nuance] = {}

    def beat(self, place: int, wide: bool) -> tuple[int, int]:
        """Return by how many steps a tick of the beat is late, and the steps between the notes of a rolled chord."""
        if not self._touch.steady or (place, wide) not in self._beats:
            late = self._dice.integer(0, self._touch.jitter)
            roll = self._dice.integer(2, 4) if wide and self._dice.chance(self._touch.roll) else 0
            self._beats[place, wide] = late, roll
        return self._beats[place, wide]

    def stroke(self, place: int, part: int, order: int) -> Nuance:
        """Return the nuance of a part's stroke at a tick of the beat, where `order` notes are struck before it."""
        key = place, part, order
        if not self._touch.steady or key not in self._strokes:
            touch = self._touch
            later = -self._dice.integer(0, touch.lead) if part == MELODY else self._dice.integer(0, touch.spread)
            longer = self._dice.integer(0, self._touch.overlap)
            self._strokes[key] = Nuance(later, longer, self._touch.noise * self._dice.bell())
        return self._strokes[key]


def perform(
    touch: Touch, nuances: Nuances, score: Score, setting: Setting, place: Place, idea: Idea | None = None
) -> Cell:
    """Play a passage.

    Args:
        touch: the performer.
        nuances: the performer's in this setting.
        score: what to play.
        setting: how to play it.
        place: where in the phrase it is.
        idea: what the cell will be known to perform.
    """
    at = _clock(score.ticks, setting.pace, touch, place)
    length = at(score.ticks) + place.rest
    notes = np.array(_strokes(touch, nuances, score, at, length, setting, place), np.int64).reshape(-1, 4)
    pedal = np.array(_pedal(score, at, length - place.rest // 2, setting), np.int64).reshape(-1, 2)
    tokens = len(encode(to_performance(notes, pedal)))
    return Cell(notes, pedal, length, tokens, idea, setting, place)


def to_performance(notes: Grid, pedal: Grid) -> Performance:
    """Turn steps into seconds.

    Args:
        notes: int64 [N, 4] as in :class:`Cell`.
        pedal: int64 [P, 2].
    """
    played = np.empty(len(notes), NOTE_DTYPE)
    played["onset"] = notes[:, 0] / STEPS_PER_SECOND
    played["offset"] = notes[:, 1] / STEPS_PER_SECOND
    played["pitch"] = notes[:, 2]
    played["velocity"] = notes[:, 3]
    feet = np.empty(len(pedal), PEDAL_DTYPE)
    feet["time"] = pedal[:, 0] / STEPS_PER_SECOND
    feet["value"] = pedal[:, 1]
    return Performance(played, feet)


def _clock(ticks: int, pace: float, touch: Touch, place: Place) -> Callable[[int], int]:
    """Return the map from ticks to steps: parabolic phrase arches, and cadences that slow down.

    The parabola is N. P. M. Todd's model of phrasing ("The dynamics of dynamics", 1992). At phrase position u a tick is
    ``1 + arch * ((2u - 1)^2 - 1/3)`` times as long as on average, integrated in closed form: no rounding adds up.
    """
    width = place.stop - place.start
    origin = _cube(2 * place.start - 1)
    slowing = touch.ritardando if place.rest else 0.0

    def at(tick: int) -> int:
        x = tick / ticks
        time = tick * pace
        if touch.arch:
            u = place.start + width * x
            time += ticks * pace * touch.arch * ((_cube(2 * u - 1) - origin) / (6 * width) - x / 3)
        if slowing and x > 0.5:
            time += ticks * pace * slowing * _cube(2 * x - 1) / 6
        return int(time + 0.501)  # a shade over a half: halves go the same way at every beat

    return at


def _cube(x: float) -> float:
    return x * x * x  # not a power: the last bit of that one depends on the platform


def _strokes(
    touch: Touch,
    nuances: Nuances,
    score: Score,
    at: Callable[[int], int],
    length: int,
    setting: Setting,
    place: Place,
) -> list[tuple[int, int, int, int]]:
    """The key strokes as (onset, offset, pitch, velocity), sorted, no two sounding on one key."""
    rows: list[tuple[int, int, int, int]] = []
    strength, bar = score.metre.strength, score.metre.bar
    hold = (setting.hold, setting.accompaniment_hold, setting.accompaniment_hold)
    gain = (touch.voicing, -3.0, 1.0)
    width = place.stop - place.start
    for start, chord in groupby(sorted(score.notes), key=lambda note: note.start):
        together = list(chord)
        in_bar = start % bar
        in_beat = start % score.metre.beat
        late, roll = nuances.beat(in_beat, len(together) > 3)
        beat = at(start) + late
        u = place.start + width * (0.5 if touch.steady else start / score.ticks)
        from_peak = 2.2 * u - 1.2
        shared = setting.level - setting.swell * from_peak * from_peak + touch.accent * (strength[in_bar] - 0.4)
        for order, (_, ticks, pitch, part) in enumerate(together):
            nuance = nuances.stroke(in_beat, part, order)
            onset = min(max(beat + (roll * order if roll else nuance.later), 0), length - SHORTEST)
            held = (at(start + ticks) - beat) * hold[part] + (nuance.longer if hold[part] >= 1 else 0)
            offset = min(max(beat + int(held + 0.5), onset + SHORTEST), length)
            velocity = shared + gain[part] + nuance.louder + (0.4 * (pitch - 72) if part == MELODY else 0.0)
            rows.append((onset, offset, pitch, min(max(int(velocity + 0.5), SOFTEST), LOUDEST)))
    rows.sort(key=lambda row: (row[0], row[2], -row[1]))
    return _one_finger_a_key(rows)


def _one_finger_a_key(rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Release a key before it is struck again; drop a stroke that falls together with another on its key."""
    kept: list[tuple[int, int, int, int]] = []
    last: dict[int, int] = {}
    for row in rows:
        before = last.get(row[2])
        if before is not None:
            onset, offset, pitch, velocity = kept[before]
            if row[0] - onset < 2:
                continue
            kept[before] = (onset, min(offset, row[0] - 1), pitch, velocity)
        last[row[2]] = len(kept)
        kept.append(row)
    return kept


def _pedal(score: Score, at: Callable[[int], int], end: int, setting: Setting) -> list[tuple[int, int]]:
    """Syncopated pedalling: lifted as a chord is struck, pressed just after; up when the passage ends."""
    feet: list[tuple[int, int]] = []
    if setting.pedal == "none":
        return feet
    changes = score.changes if setting.pedal == "harmony" else range(0, score.ticks, score.metre.bar)
    for start, stop in pairwise([*changes, score.ticks]):
        down = at(start) + PEDAL_DELAY
        if setting.pedal == "touch":
            up = at(start) + (at(stop) - at(start)) * 2 // 3
        else:
            up = end if stop == score.ticks else at(stop)
        if up - down >= SHORTEST_PEDAL:
            feet += [(down, 127), (up, 0)]
    return feet
