"""Performance: how a score becomes key strokes and pedal, in whole 10 ms steps.

What is performed here is a cell, a passage that leaves nothing sounding and the pedal up when it ends. Cells can be put
one after the other in any order and moved up or down, and each still encodes to the same tokens: that is what makes
exact returns exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmr.corpus.pianist.dice import Dice
from dsmr.corpus.pianist.texture import BASS, INNER, MELODY, ScoreNote, Texture
from dsmr.corpus.pianist.theme import Idea
from dsmr.tokens import NOTE_DTYPE, PEDAL_DTYPE, STEPS_PER_SECOND, Performance, encode

SHORTEST = 4  # steps; a key is never down for less
SOFTEST, LOUDEST = 16, 118

Grid = NDArray[np.int64]


@dataclass(frozen=True)
class Touch:
    """One performer's habits.

    Args:
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


def perform(
    dice: Dice,
    touch: Touch,
    score: Sequence[ScoreNote],
    changes: Sequence[int],
    ticks: int,
    strength: Sequence[float],
    setting: Setting,
    place: Place,
    idea: Idea | None = None,
) -> Cell:
    """Play a passage.

    Args:
        dice: the piece's dice.
        touch: the performer.
        score: the notes, in any order.
        changes: the ticks at which the harmony changes, the first being 0.
        ticks: how long the passage is.
        strength: metric weight of each tick of a bar.
        setting: how to play it.
        place: where in the phrase it is.
        idea: what the cell will be known to perform.
    """
    at = _clock(ticks, setting.pace, touch, place)
    length = at(ticks) + place.rest
    rows = _strokes(dice, touch, score, at, length, ticks, strength, setting, place)
    pedal = _pedal(dice, [*changes, ticks], at, length - place.rest // 2, setting)
    notes = np.array(rows, np.int64).reshape(-1, 4)
    feet = np.array(pedal, np.int64).reshape(-1, 2)
    tokens = len(encode(to_performance(notes, feet)))
    return Cell(notes, feet, length, tokens, idea, setting, place)


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
    """Return the map from ticks to steps: parabolic phrase arches after Todd (1992), and a cadence that slows down.

    At phrase position u a tick is ``1 + arch * ((2u - 1)^2 - 1/3)`` times as long as on average; integrated in closed
    form, so that no rounding adds up.
    """
    width = place.stop - place.start
    origin = (2 * place.start - 1) ** 3
    slowing = touch.ritardando if place.rest else 0.0

    def at(tick: int) -> int:
        x = tick / ticks
        u = place.start + width * x
        time = x * (1 - touch.arch / 3) + touch.arch * ((2 * u - 1) ** 3 - origin) / (6 * width)
        if slowing and x > 0.5:
            time += slowing * (2 * x - 1) ** 3 / 6
        return int(ticks * pace * time + 0.5)

    return at


def _strokes(
    dice: Dice,
    touch: Touch,
    score: Sequence[ScoreNote],
    at: Callable[[int], int],
    length: int,
    ticks: int,
    strength: Sequence[float],
    setting: Setting,
    place: Place,
) -> list[tuple[int, int, int, int]]:
    """The key strokes as (onset, offset, pitch, velocity), sorted, no two sounding on one key."""
    rows: list[tuple[int, int, int, int]] = []
    bar = len(strength)
    width = place.stop - place.start
    last_onset = length - SHORTEST
    tick_now, beat_step, roll, rolled = -1, 0, 0, 0
    hold = (setting.hold, setting.accompaniment_hold, setting.accompaniment_hold)
    gain = (touch.voicing, -3.0, 1.0)
    score = sorted(score)
    chord_sizes: dict[int, int] = {}
    for note in score:
        chord_sizes[note.start] = chord_sizes.get(note.start, 0) + 1
    for start, ticks_long, pitch, part in score:
        if start != tick_now:
            tick_now, rolled = start, 0
            beat_step = at(start) + (dice.integer(0, touch.jitter) if touch.jitter else 0)
            roll = dice.integer(2, 4) if chord_sizes[start] > 3 and dice.chance(touch.roll) else 0
            u = place.start + width * start / ticks
            shared = setting.level - setting.swell * (2.2 * u - 1.2) ** 2 + touch.accent * (strength[start % bar] - 0.4)
        onset = beat_step
        if roll:
            onset += roll * rolled
            rolled += 1
        elif part == MELODY:
            onset -= dice.integer(0, touch.lead) if touch.lead and start else 0
        elif touch.spread:
            onset += dice.integer(0, touch.spread)
        onset = min(max(onset, 0), last_onset)
        held = (at(start + ticks_long) - beat_step) * hold[part]
        if hold[part] >= 1.0 and touch.overlap:
            held += dice.integer(0, touch.overlap)
        offset = min(max(beat_step + int(held + 0.5), onset + SHORTEST), length)
        velocity = shared + gain[part] + touch.noise * dice.bell()
        if part == MELODY:
            velocity += 0.4 * (pitch - 72)
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


def _pedal(
    dice: Dice, changes: Sequence[int], at: Callable[[int], int], end: int, setting: Setting
) -> list[tuple[int, int]]:
    """Syncopated pedalling: lifted as a chord is struck, pressed just after; up when the passage ends."""
    feet: list[tuple[int, int]] = []
    if setting.pedal == "none":
        return feet
    for start, stop in pairwise(changes):
        down = at(start) + dice.integer(4, 9)
        if setting.pedal == "touch":
            up = at(start) + (at(stop) - at(start)) * 2 // 3
        elif stop == changes[-1]:
            up = end
        else:
            up = at(stop) + dice.integer(0, 2)
        if up - down >= 12:
            feet += [(down, 127), (up, 0)]
    return feet


__all__ = ["BASS", "INNER", "MELODY", "Cell", "Grid", "Place", "Setting", "Touch", "perform", "to_performance"]
