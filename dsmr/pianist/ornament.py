"""Ornament: long melody notes divided into turns, trills, runs and figures that lead to the next note."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Chord, ladder
from dsmr.pianist.melody import Slot, Tone
from dsmr.pianist.rhythm import Metre

_SHORTEST_DIVIDED = 12  # ticks
_QUICK = 3  # ticks of the notes of trills and runs
_RUN = 8  # notes of a run


def ornamented(dice: Dice, tones: Sequence[Tone], harmony: Sequence[Slot], metre: Metre, busy: float) -> list[Tone]:
    """Return a melody with some of its notes divided into smaller ones.

    Args:
        dice: the piece's dice.
        tones: the melody.
        harmony: its chords.
        metre: its metre.
        busy: 0..1, the share of notes long enough that are divided.
    """
    result: list[Tone] = []
    chord_at = 0
    for i, tone in enumerate(tones):
        while chord_at + 1 < len(harmony) and harmony[chord_at + 1].start <= tone.start:
            chord_at += 1
        if tone.length < _SHORTEST_DIVIDED or tone.length % 4 or not dice.chance(busy):
            result.append(tone)
            continue
        following = tones[i + 1].pitch if i + 1 < len(tones) else tone.pitch
        if tone.length > metre.beat and tone.length % metre.beat == 0 and dice.chance(0.6):
            # A long note sings first and moves in its last beat.
            result.append(tone._replace(length=tone.length - metre.beat))
            tone = Tone(tone.start + tone.length - metre.beat, metre.beat, tone.pitch)
        result += _divided(dice, tone, following, harmony[chord_at].chord)
    return result


def _divided(dice: Dice, tone: Tone, following: int, chord: Chord) -> list[Tone]:
    pitch, length = tone.pitch, tone.length
    scale = ladder(chord.scale)
    at, goal = bisect_left(scale, pitch), bisect_left(scale, following)
    upper, lower = _rung(scale, at + 1), pitch - 1 if dice.chance(0.5) else _rung(scale, at - 1)
    long = length >= _QUICK * _RUN
    manner = dice.weighted(
        {
            "lead": 4,
            "turn": 2,
            "chord": 2,
            "mordent": 1,
            "again": 0.7,
            "trill": 1 if long else 0,
            "run": 1 if long else 0,
        }
    )
    if manner == "trill":
        shakes = length // _QUICK - 2
        return _spelled(tone, _QUICK, [upper if k % 2 else pitch for k in range(shakes)] + [lower, pitch])
    if manner == "run":
        direction = 1 if dice.chance(0.65) else -1
        run = [_rung(scale, goal - direction * k) for k in range(_RUN, 0, -1)]
        before = length - _QUICK * _RUN
        held = [Tone(tone.start, before, pitch)] if before else []
        return held + _spelled(Tone(tone.start + before, length - before, pitch), _QUICK, run)
    if manner == "mordent":
        return _spelled(tone, _QUICK, [pitch, upper, pitch])
    if manner == "again":
        return _spelled(tone, length // 2, [pitch, pitch])
    if manner == "turn":
        pitches = [pitch, upper, pitch, lower]
    elif manner == "chord":
        rungs = ladder(chord.tones)
        nearest = bisect_left(rungs, pitch)
        pitches = [pitch] + [_rung(rungs, nearest + k) for k in dice.pick(((1, 2, 1), (-1, 1, -1), (-1, -2, -1)))]
    else:
        pitches = [_rung(scale, rung) for rung in _leading(at, goal)]
    return _spelled(tone, length // 4, pitches)


def _spelled(tone: Tone, step: int, pitches: Sequence[int]) -> list[Tone]:
    """Pitches in even steps in the place of one note; the last one takes what is left of it."""
    last = len(pitches) - 1
    return [
        Tone(tone.start + k * step, step if k < last else tone.length - last * step, pitch)
        for k, pitch in enumerate(pitches)
    ]


def _leading(here: int, there: int) -> list[int]:
    """Four rungs from one that run into another one."""
    distance = there - here
    if abs(distance) >= 4:
        return [here + distance * k // 4 for k in range(4)]
    back = 1 if distance > 0 else -1
    return [here, there - 3 * back, there - 2 * back, there - back]


def _rung(rungs: Sequence[int], at: int) -> int:
    return rungs[min(max(at, 0), len(rungs) - 1)]
