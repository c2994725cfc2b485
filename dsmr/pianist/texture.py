"""Textures: how melody and harmony are laid out for two hands."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from dsmr.pianist.dice import Dice
from dsmr.pianist.harmony import Chord, ladder, lead, nearest, stack
from dsmr.pianist.melody import Compass, Motif, Slot, Tone, realise
from dsmr.pianist.theme import Idea

MELODY, INNER, BASS = range(3)
"""What a note is in the texture; the performer plays each part in its own way."""


class ScoreNote(NamedTuple):
    """A note of the score: start and length in ticks, pitch, part."""

    start: int
    length: int
    pitch: int
    part: int


class Figure(NamedTuple):
    """An accompaniment figure.

    Args:
        pattern: one group a step; digits are chord notes from the bass (0) up, ``o`` the bass note in
            another octave, ``a`` the other bass note, ``-`` holds the group before. It starts over with each chord.
        simple: steps in a beat of a simple metre.
        compound: steps in a beat of a compound metre.
        spacing: ``close`` (all in one hand's span), ``wide`` (open, rising far above the bass) or ``split`` (a low bass
            and a chord in the middle).
    """

    pattern: str
    simple: int
    compound: int
    spacing: str


FIGURES = {
    "alberti": Figure("0 2 1 2", 2, 3, "close"),
    "alberti 16": Figure("0 2 1 2", 4, 6, "close"),
    "rolling": Figure("0 1 2 3 2 1", 3, 3, "close"),
    "rolling 16": Figure("0 1 2 3 2 1 2 1", 4, 6, "close"),
    "nocturne": Figure("0 1 2 3 2 1", 3, 3, "wide"),
    "nocturne 8": Figure("0 1 2 3", 2, 3, "wide"),
    "harp": Figure("0 1 2 3 4 5 4 3", 4, 6, "wide"),
    "surge": Figure("0 1 2 3 4 5 6 7 6 5 4 3", 4, 6, "wide"),
    "waltz": Figure("0 123 123", 1, 3, "split"),
    "waltz light": Figure("0 12 12", 1, 3, "split"),
    "stride": Figure("0 123 a 123", 1, 1, "split"),
    "stride 8": Figure("0 123 a 123", 2, 3, "split"),
    "after-beat": Figure("0 12 23 12", 2, 3, "split"),
    "pulse": Figure("012", 2, 3, "close"),
    "pulse high": Figure("0123 123 123 123", 2, 3, "split"),
    "triplets": Figure("0123 123 123", 3, 3, "split"),
    "octaves": Figure("0 o", 2, 3, "close"),
    "murky": Figure("0 o", 4, 6, "close"),
    "drone": Figure("0 2 1 2 3 2 1 2", 4, 6, "close"),
    "habanera": Figure("0 - - 12 012 - 12 -", 4, 6, "split"),
    "march": Figure("0 - 123 - a - 123 123", 4, 6, "split"),
    "polonaise": Figure("0 - 123 123 123 - 123 - 123 - 123 -", 4, 6, "split"),
    "tarantella": Figure("0 123 123", 3, 3, "split"),
    "song": Figure("01 2 3 2 1 2 3 2", 4, 6, "split"),
    "song 8": Figure("0 1 2 3 2 1", 3, 3, "split"),
    "blocks": Figure("0123 - - -", 1, 1, "split"),
    "heavy": Figure("0o - 123 -", 2, 3, "split"),
    "ostinato": Figure("0 2 3 2", 4, 6, "close"),
}
"""Left hands by name."""

LEFT_HANDS = (*FIGURES, "walking", "running", "imitation", "chorale")
RIGHT_HANDS = ("single", "thirds", "octaves", "chords", "broken", "broken octaves", "filled", "tenor")


class Texture(NamedTuple):
    """A right hand of ``RIGHT_HANDS`` over a left hand of ``LEFT_HANDS``."""

    right: str
    left: str


@dataclass
class Hands:
    """Where the hands were last, so that the next chord is near."""

    bass: int = 45
    upper: tuple[int, ...] = field(default=())
    inner: tuple[int, ...] = field(default=())


def arrange(dice: Dice, idea: Idea, texture: Texture, hands: Hands, octave: int) -> list[ScoreNote]:
    """Lay an idea out in a texture.

    Args:
        dice: the piece's dice.
        idea: melody and harmony.
        texture: the layout.
        hands: where the hands are; moved.
        octave: semitones the melody is lifted, a multiple of 12.
    """
    melody = [tone._replace(pitch=tone.pitch + octave) for tone in idea.melody]
    if texture.right == "tenor":
        melody = [tone._replace(pitch=tone.pitch - 12) for tone in melody]
    right = _right_hand(idea, melody, texture.right)
    floor = _lowest_by_slot(idea.harmony, right)
    if texture.left == "chorale":
        left = _chorale(idea, floor, hands)
    elif texture.left in ("walking", "running"):
        left = _walking(
            idea, hands, idea.metre.beat // (3 if idea.metre.compound else 2) // (2 if texture.left == "running" else 1)
        )
    elif texture.left == "imitation":
        left = _imitation(dice, idea, hands)
    else:
        left = _accompany(idea, FIGURES[texture.left], floor, hands)
    return right + left


def _lowest_by_slot(harmony: Sequence[Slot], notes: Sequence[ScoreNote]) -> list[int]:
    """The lowest pitch of the right hand during each chord, where the left hand has to stop."""
    lowest = []
    for slot in harmony:
        end = slot.start + slot.length
        lowest.append(min((n.pitch for n in notes if n.start < end and n.start + n.length > slot.start), default=79))
    return lowest


def _chord_at(harmony: Sequence[Slot], tick: int) -> Chord:
    return next(slot.chord for slot in reversed(harmony) if slot.start <= tick)


def _below(tones: tuple[int, ...], pitch: int, count: int, gap: int = 3) -> list[int]:
    """The chord tones next below a pitch, at least gap semitones away."""
    rungs = ladder(tones)
    at = bisect_right(rungs, pitch - gap)
    return list(rungs[max(0, at - count) : at][::-1])


def _right_hand(idea: Idea, melody: Sequence[Tone], manner: str) -> list[ScoreNote]:
    notes: list[ScoreNote] = []
    strength, bar, beat = idea.metre.strength, idea.metre.bar, idea.metre.beat
    step = beat // (6 if idea.metre.compound else 4)
    for start, length, pitch in melody:
        chord = _chord_at(idea.harmony, start)
        weight = strength[start % bar]
        if manner in ("single", "tenor"):
            notes.append(ScoreNote(start, length, pitch, MELODY))
        elif manner == "thirds":
            notes.append(ScoreNote(start, length, pitch, MELODY))
            source = chord.tones if weight >= 0.5 else chord.scale
            notes += [ScoreNote(start, length, p, INNER) for p in _below(source, pitch, 1)]
        elif manner == "octaves":
            notes.append(ScoreNote(start, length, pitch, MELODY))
            notes.append(ScoreNote(start, length, pitch - 12, INNER))
        elif manner == "chords":
            notes.append(ScoreNote(start, length, pitch, MELODY))
            if weight >= 0.5 or length >= beat:
                inside = [p for p in _below(chord.tones, pitch, 3) if p > pitch - 12]
                notes += [ScoreNote(start, length, p, INNER) for p in inside[: 2 if weight >= 0.7 else 1]]
            if length >= beat // 2:
                notes.append(ScoreNote(start, length, pitch - 12, INNER))
        elif manner == "filled":
            notes.append(ScoreNote(start, length, pitch, MELODY))
            under = _below(chord.tones, pitch, 3)
            for k in range(1, length // (2 * step)):
                notes.append(ScoreNote(start + 2 * k * step, 2 * step, under[(k - 1) % 3 % len(under)], INNER))
        else:
            notes += _broken(start, length, pitch, _below(chord.tones, pitch, 3), step, manner)
    if manner == "tenor":
        notes += _descant(idea, step)
    return notes


def _broken(start: int, length: int, pitch: int, under: Sequence[int], step: int, manner: str) -> list[ScoreNote]:
    """A melody note broken into sixteenths: itself, then chord tones (or its octave) below it."""
    if length < 2 * step:
        return [ScoreNote(start, length, pitch, MELODY)]
    turn = (pitch - 12,) if manner == "broken octaves" else (under[0], under[-1], under[0])
    notes = [ScoreNote(start, step, pitch, MELODY)]
    for k in range(1, length // step):
        again = k % (len(turn) + 1) == 0
        notes.append(ScoreNote(start + k * step, step, pitch if again else turn[k % (len(turn) + 1) - 1], INNER))
    return notes


def _descant(idea: Idea, step: int) -> list[ScoreNote]:
    """Broken chords high above a melody in the middle of the keyboard; silent where the melody strikes."""
    notes: list[ScoreNote] = []
    for slot in idea.harmony:
        rungs = stack(slot.chord.tones, 70, 4)
        notes += [
            ScoreNote(slot.start + k * step, step, rungs[(0, 1, 3, 2)[k % 4]], INNER)
            for k in range(slot.length // step)
            if k % 4
        ]
    return notes


def _accompany(idea: Idea, figure: Figure, floor: Sequence[int], hands: Hands) -> list[ScoreNote]:
    notes: list[ScoreNote] = []
    step = idea.metre.beat // (figure.compound if idea.metre.compound else figure.simple)
    groups = _parsed(figure.pattern)
    cycle = len(figure.pattern.split())
    for slot, ceiling in zip(idea.harmony, floor, strict=True):
        keys = _voicing(slot.chord, figure.spacing, ceiling, hands)
        bass = hands.bass
        end = slot.start + slot.length
        for lap in range(slot.start, end, cycle * step):
            for at, span, indices in groups:
                start = lap + at * step
                if start >= end:
                    break
                length = min(span * step, end - start)
                for index in indices:
                    if index == "o":
                        notes.append(ScoreNote(start, length, bass - 12 if bass > 47 else bass + 12, BASS))
                    elif index == "a":
                        notes.append(ScoreNote(start, length, _other_bass(slot.chord, bass), BASS))
                    else:
                        at_key = int(index)
                        if at_key < len(keys):
                            notes.append(ScoreNote(start, length, keys[at_key], INNER if at_key else BASS))
    return notes


@cache
def _parsed(pattern: str) -> tuple[tuple[int, int, str], ...]:
    """A figure's pattern as (step, steps it lasts, chord notes)."""
    groups: list[tuple[int, int, str]] = []
    for at, group in enumerate(pattern.split()):
        if group == "-":
            start, span, indices = groups[-1]
            groups[-1] = (start, span + 1, indices)
        else:
            groups.append((at, 1, group))
    return tuple(groups)


def _voicing(chord: Chord, spacing: str, ceiling: int, hands: Hands) -> tuple[int, ...]:
    """The keys of a chord from the bass up, below the ceiling."""
    if spacing == "close":
        hands.bass = nearest(
            chord.bass, hands.bass if 42 <= hands.bass <= 58 else 50, 41, max(53, min(59, ceiling - 9))
        )
        keys = (hands.bass, *stack(chord.tones, hands.bass + 3, 4))
    elif spacing == "wide":
        hands.bass = nearest(chord.bass, min(hands.bass, 46), 29, 48)
        above = stack(chord.tones, hands.bass + 7, 9)
        keys = (hands.bass, above[0], *above[2:])
    else:
        hands.bass = nearest(chord.bass, min(hands.bass, 45), 31, 48)
        high = max(56, min(69, ceiling - 1))
        hands.upper = lead(chord.tones, 3, high - 15, high, hands.upper)
        keys = (hands.bass, *hands.upper)
    return tuple(k for i, k in enumerate(keys) if i < 2 or k < ceiling) if ceiling > keys[1] else keys[:2]


def _other_bass(chord: Chord, bass: int) -> int:
    """The fifth of the chord below the bass, or above it where the keyboard would end."""
    fifth = chord.tones[2] if chord.tones[2] != bass % 12 else chord.tones[0]
    return nearest(fifth, bass - 5, 26, 50)


def _chorale(idea: Idea, floor: Sequence[int], hands: Hands) -> list[ScoreNote]:
    """Three lower voices that move with the chords, the bass filling its thirds with passing notes."""
    notes: list[ScoreNote] = []
    slots = idea.harmony
    for i, (slot, ceiling) in enumerate(zip(slots, floor, strict=True)):
        hands.bass = nearest(slot.chord.bass, hands.bass, 36, 52)
        high = max(58, min(69, ceiling - 1))
        hands.inner = lead(slot.chord.tones, 2, high - 13, high, hands.inner)
        beat = idea.metre.beat
        for start in range(slot.start, slot.start + slot.length, 2 * beat if slot.length >= 2 * beat else slot.length):
            length = min(2 * beat, slot.start + slot.length - start)
            notes += [ScoreNote(start, length, p, INNER) for p in hands.inner]
        target = nearest(slots[i + 1].chord.bass, hands.bass, 36, 52) if i + 1 < len(slots) else hands.bass
        if abs(target - hands.bass) in (3, 4) and slot.length >= beat:
            rungs = ladder(slot.chord.scale)
            passing = rungs[bisect_left(rungs, min(target, hands.bass)) + 1]
            notes.append(ScoreNote(slot.start, slot.length - beat // 2, hands.bass, BASS))
            notes.append(ScoreNote(slot.start + slot.length - beat // 2, beat // 2, passing, BASS))
        else:
            notes.append(ScoreNote(slot.start, slot.length, hands.bass, BASS))
    return notes


def _walking(idea: Idea, hands: Hands, step: int) -> list[ScoreNote]:
    """A bass line in even notes that reaches each chord's bass note by step or by chord tones."""
    notes: list[ScoreNote] = []
    slots = idea.harmony
    for i, slot in enumerate(slots):
        here = nearest(slot.chord.bass, hands.bass, 38, 57)
        there = nearest(slots[i + 1].chord.bass if i + 1 < len(slots) else slots[0].chord.bass, here, 38, 57)
        count = slot.length // step
        scale, tones = ladder(slot.chord.scale), ladder(slot.chord.tones)
        line = [here]
        while len(line) < count:
            left = count - len(line)
            at, goal = bisect_left(scale, line[-1]), bisect_left(scale, there)
            if abs(goal - at) >= left and goal != at:
                line.append(scale[at + (1 if goal > at else -1)])
            else:  # time to spare: a broken chord, around the bass note
                climb = bisect_left(tones, here)
                line.append(tones[climb + (2, 1, 3, 1)[len(line) % 4]])
        hands.bass = line[-1] if abs(line[-1] - 47) < 10 else here
        notes += [ScoreNote(slot.start + k * step, step, pitch, BASS) for k, pitch in enumerate(line)]
    return notes


def _imitation(dice: Dice, idea: Idea, hands: Hands) -> list[ScoreNote]:
    """A second voice: in the first bar it waits under the melody, in the second it takes the melody's first bar."""
    bar = idea.metre.bar
    theme = [tone for tone in idea.melody if tone.start < bar]
    lengths, steps, tick = [], [], bar
    for i, tone in enumerate(theme):
        if tone.start + bar > tick:
            lengths.append(tick - tone.start - bar)
        length = min(tone.length, bar - tone.start)
        lengths.append(length)
        steps.append(_scale_distance(idea, theme[i - 1].pitch, tone.pitch) if i else 0)
        tick = bar + tone.start + length
    second = [slot._replace(start=slot.start - bar) for slot in idea.harmony if slot.start >= bar]
    voice = Compass(43, 60)
    answer = realise(dice, Motif(tuple(lengths), tuple(steps)), second, idea.metre, 52, voice)
    notes = [ScoreNote(t.start + bar, t.length, t.pitch, BASS) for t in answer]
    half = idea.metre.beat // (3 if idea.metre.compound else 2)
    waiting = Idea(idea.metre, idea.key, (), tuple(slot for slot in idea.harmony if slot.start < bar))
    return _walking(waiting, hands, half) + notes


def _scale_distance(idea: Idea, low: int, high: int) -> int:
    rungs = ladder(idea.key.scale)
    return bisect_left(rungs, high) - bisect_left(rungs, low)
