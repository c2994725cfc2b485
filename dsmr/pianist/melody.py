"""Melody: motifs of rhythm and contour, and how they become notes over given chords."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Chord, Key, ladder
from dsmr.pianist.rhythm import Lengths, Metre


class Slot(NamedTuple):
    """A chord and the ticks it lasts, with the numeral it was written as."""

    start: int
    length: int
    symbol: str
    chord: Chord


class Tone(NamedTuple):
    """A melody note: start and length in ticks."""

    start: int
    length: int
    pitch: int


class Motif(NamedTuple):
    """A melodic thought without its pitches.

    Args:
        lengths: the rhythm.
        steps: for each sounding note, how many scale steps it lies above the one before; the first one's is not used.
    """

    lengths: Lengths
    steps: tuple[int, ...]


class Compass(NamedTuple):
    """The lowest and the highest pitch a voice should use."""

    low: int
    high: int


_SHAPES: dict[str, tuple[float, ...]] = {
    "arch": (0, 1, 0.2),
    "late arch": (0, 0.3, 1, 0),
    "early arch": (0, 1, 0.6, 0.2, -0.2),
    "rise": (0, 1),
    "fall": (0, -1),
    "valley": (0, -1, 0),
    "wave": (0, 0.7, -0.3, 0.6, -0.2),
    "plateau": (0, 0.8, 0.8, 0.7),
}
"""Broad outlines of a melody: heights at equal distances, with straight lines between."""

_TURNS = ((1, 1, -1), (2, -1), (-1, -1, 2), (-1, 1, 2, -1), (1, -2), (-1, 1, 1), (2, 2, -3), (-2, 1), (4, -1, -1, -1))
"""Short figures of scale steps that quick melodies are spun from, each leaving the line a little higher or lower."""


def draw_motif(dice: Dice, lengths: Lengths, leaps: float) -> Motif:
    """Draw a contour for a rhythm.

    The line keeps near one broad outline; mostly it moves by step, and a leap is answered by a step back. Rhythms of
    many notes may spin one short figure instead.

    Args:
        dice: the piece's dice.
        lengths: the rhythm.
        leaps: 0..1, how readily the melody leaves stepwise motion.
    """
    count = sum(length > 0 for length in lengths)
    outline = _SHAPES[dice.pick(tuple(_SHAPES))]
    height = dice.integer(2, 7)
    repeats = 0.25 if dice.chance(0.35) else 0.04
    turn = dice.pick(_TURNS) if count > 6 and dice.chance(0.4) else ()
    steps: list[int] = []
    line, answer = 0, 0
    for i in range(count):
        below = height * _outline(outline, i / max(1, count - 1)) - line
        direction = 1 if dice.chance(min(max(0.5 + 0.17 * below, 0.08), 0.92)) else -1
        if turn:
            step = turn[i % len(turn)] * (1 if abs(below) < 3 or below * sum(turn) > 0 else -1)
        elif answer:
            step = answer
        elif dice.chance(repeats):
            step = 0
        elif dice.chance(leaps):
            step = direction * dice.weighted({2: 5, 3: 3, 4: 2, 5: 1.5, 7: 0.6})
        else:
            step = direction
        answer = -direction if abs(step) > 2 and not answer and dice.chance(0.7) else 0
        line += step
        steps.append(step)
    return Motif(lengths, tuple(steps))


def _outline(heights: Sequence[float], at: float) -> float:
    """The height of an outline at a point from 0 to 1."""
    place = at * (len(heights) - 1)
    before = min(int(place), len(heights) - 2)
    return heights[before] + (place - before) * (heights[before + 1] - heights[before])


def inverted(motif: Motif) -> Motif:
    """Return the motif with every step turned upside down."""
    return Motif(motif.lengths, tuple(-step for step in motif.steps))


def concatenated(first: Motif, second: Motif) -> Motif:
    """Return one motif after the other."""
    return Motif(first.lengths + second.lengths, first.steps + second.steps)


def realise(
    dice: Dice,
    motif: Motif,
    harmony: Sequence[Slot],
    metre: Metre,
    start: int,
    voice: Compass,
    ending: tuple[int, ...] = (),
    dissonance: float = 1.0,
) -> list[Tone]:
    """Give a motif its notes over chords.

    Each note is the cheapest near the place the motif asks for: chord tones where the metre is strong, dissonance only
    approached and left by step, large leaps and the edges of the range dear.

    Args:
        dice: the piece's dice.
        motif: rhythm and contour; together as long as the harmony.
        harmony: the chords, in order and without gaps.
        metre: decides which ticks are strong.
        start: the pitch that the first note should be near.
        voice: the range to stay in.
        ending: pitch classes one of which the last note must have; empty for any.
        dissonance: price of non-chord tones; under 1 for styles that like them.
    """
    tones: list[Tone] = []
    tick, chord_at, note = 0, 0, 0
    last_note = sum(length > 0 for length in motif.lengths) - 1
    previous, previous_dissonant = start, False
    strength, bar = metre.strength, metre.bar
    low, high = voice
    for length in motif.lengths:
        if length < 0:
            tick -= length
            continue
        while chord_at + 1 < len(harmony) and harmony[chord_at + 1].start <= tick:
            chord_at += 1
        chord = harmony[chord_at].chord
        rungs = ladder(chord.scale)
        weight = strength[tick % bar] + min(length, metre.beat) / (4 * metre.beat)
        allowed = ending if note == last_note else ()
        reach = 6 if allowed else 3
        want = bisect_left(rungs, previous) + (motif.steps[note] if note else 0)
        want = min(max(want, bisect_left(rungs, low) - 1), bisect_right(rungs, high))  # one beyond the range at most
        best, best_cost = previous, 1e9
        for rung in range(max(0, want - reach), min(len(rungs), want + reach + 1)):
            pitch = rungs[rung]
            if allowed and pitch % 12 not in allowed:
                continue
            leap = abs(pitch - previous)
            cost = abs(rung - want) + 0.4 * dice.unit()
            if pitch % 12 not in chord.tones:
                cost += dissonance * (0.5 + 3.2 * weight) + (1.5 if leap > 2 else 0.0)
            if note:
                if previous_dissonant and leap > 2:
                    cost += 2.5
                if leap > 9:
                    cost += 0.4 * (leap - 9)
                elif leap == 6 or (leap == 3 and abs(rung - bisect_left(rungs, previous)) == 1):
                    cost += 0.8  # a tritone, an augmented second
                elif leap == 0 and motif.steps[note]:
                    cost += 0.8
            if pitch < low:
                cost += 1.5 * (low - pitch)
            elif pitch > high:
                cost += 1.5 * (pitch - high)
            if cost < best_cost:
                best, best_cost = pitch, cost
        previous_dissonant = best % 12 not in chord.tones
        previous = best
        tones.append(Tone(tick, length, best))
        tick += length
        note += 1
    return tones


def parallel(tones: Sequence[Tone], key: Key) -> list[Tone]:
    """Return a melody of a key in the key's other mode: third, sixth and seventh degree bend."""
    bend = {3: 1, 8: 1, 10: 1} if key.minor else {4: -1, 9: -1}
    return [Tone(t.start, t.length, t.pitch + bend.get((t.pitch - key.tonic) % 12, 0)) for t in tones]
