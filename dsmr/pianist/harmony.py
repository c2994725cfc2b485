"""Harmony: keys, chords written as Roman numerals, and how chords lie on the keyboard and follow each other there."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cache, lru_cache
from typing import NamedTuple

from dsmr.music.tokens import HIGHEST_KEY, LOWEST_KEY

_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_MINOR = (0, 2, 3, 5, 7, 8, 10)
_NUMERALS = {"I": 0, "II": 1, "III": 2, "IV": 3, "V": 4, "VI": 5, "VII": 6}
_INVERSIONS = {"": 0, "6": 1, "64": 2, "7": 0, "65": 1, "43": 2, "42": 3}
_SYMBOL = re.compile(r"([b#]?)([IViv]+)(o|ø|\+)?(7|65|64|6|43|42)?(?:/([IViv]+))?")

_FLAT_NAMES = ("C", "D-flat", "D", "E-flat", "E", "F", "G-flat", "G", "A-flat", "A", "B-flat", "B")
_SHARP_NAMES = ("C", "C-sharp", "D", "E-flat", "E", "F", "F-sharp", "G", "G-sharp", "A", "B-flat", "B")


class Key(NamedTuple):
    """A tonic (pitch class, 0 is C) and its mode."""

    tonic: int
    minor: bool

    def on(self, semitones: int, minor: bool) -> Key:
        """Return the key whose tonic lies so many semitones above this one's."""
        return Key((self.tonic + semitones) % 12, minor)

    @property
    def scale(self) -> tuple[int, ...]:
        """The seven pitch classes from the tonic up; the minor scale is the natural one."""
        return tuple((self.tonic + s) % 12 for s in (_MINOR if self.minor else _MAJOR))

    @property
    def parallel(self) -> Key:
        """The other mode on the same tonic."""
        return Key(self.tonic, not self.minor)

    @property
    def name(self) -> str:
        """As a title says it: ``E-flat minor``."""
        return f"{(_SHARP_NAMES if self.minor else _FLAT_NAMES)[self.tonic]} {'minor' if self.minor else 'major'}"


class Chord(NamedTuple):
    """A chord as a key understands it; all pitch classes.

    Args:
        tones: root, third, fifth and possibly seventh.
        bass: the tone that lies lowest.
        scale: the seven scale degrees of the key, bent to the chord where it is chromatic: what a melody moves in.
        degrees: which scale degree (0 is the tonic) each tone is a form of.
    """

    tones: tuple[int, ...]
    bass: int
    scale: tuple[int, ...]
    degrees: tuple[int, ...]


@cache
def chord(symbol: str, key: Key) -> Chord:
    """Return the chord that a Roman numeral means in a key.

    Case gives the third, ``o``, ``ø`` and ``+`` the diminished, half-diminished and augmented chord, figures the
    seventh and the inversion, ``/`` the key it is borrowed from, ``Ger`` the German augmented sixth: ``V65/ii``,
    ``bII6``, ``viio7``.

    Raises:
        ValueError: a symbol that is not one.
    """
    if symbol == "Ger":
        tones = tuple((key.tonic + s) % 12 for s in (8, 0, 3, 6))
        return _bent(key, tones, (5, 0, 2, 3), tones[0])
    match = _SYMBOL.fullmatch(symbol)
    if match is None or match[2].upper() not in _NUMERALS:
        raise ValueError(f"symbol: expected a Roman numeral such as V65/ii, got {symbol!r}")
    accidental, numeral, quality, figures, borrowed_from = match.groups(default="")
    if borrowed_from:
        target = chord(borrowed_from, key)
        borrowed = chord(symbol.rpartition("/")[0], Key(target.tones[0], borrowed_from.islower()))
        degrees = tuple((d + target.degrees[0]) % 7 for d in borrowed.degrees)
        return _bent(key, borrowed.tones, degrees, borrowed.bass)
    degree = _NUMERALS[numeral.upper()]
    root = (_MINOR if key.minor else _MAJOR)[degree] + {"b": -1, "#": 1, "": 0}[accidental]
    if numeral == "vii" and key.minor:
        root = 11  # the leading tone carries it, not the natural seventh degree
    third = 4 if numeral.isupper() else 3
    fifth = {"o": 6, "ø": 6, "+": 8, "": 7}[quality]
    if quality in ("o", "ø"):
        third = 3
    offsets = [0, third, fifth]
    if figures in ("7", "65", "43", "42"):
        dominant = degree == 4 or (degree == 6 and numeral.isupper())
        offsets.append(9 if quality == "o" else 11 if numeral.isupper() and not dominant else 10)
    tones = tuple((key.tonic + root + o) % 12 for o in offsets)
    degrees = tuple((degree + 2 * i) % 7 for i in range(len(tones)))
    return _bent(key, tones, degrees, tones[_INVERSIONS[figures]])


def _bent(key: Key, tones: tuple[int, ...], degrees: tuple[int, ...], bass: int) -> Chord:
    scale = list(key.scale)
    for tone, degree in zip(tones, degrees, strict=True):
        scale[degree] = tone
    return Chord(tones, bass, tuple(scale), degrees)


_TO_MINOR = {"I": "i", "ii": "iio", "iii": "III", "IV": "iv", "vi": "VI", "bVI": "VI", "bVII": "VII", "bIII": "III"}
_TO_MAJOR = {"i": "I", "iio": "ii", "iiø": "ii", "III": "iii", "iv": "IV", "VI": "vi", "VII": "V", "v": "V"}


def parallel_symbol(symbol: str, to_minor: bool) -> str:
    """Return the chord that plays the same part in the other mode: ``ii6`` in major is ``iio6`` in minor."""
    match = _SYMBOL.fullmatch(symbol)
    if match is None:
        return symbol
    accidental, numeral, quality, figures, borrowed_from = match.groups(default="")
    if borrowed_from:
        target = parallel_symbol(borrowed_from, to_minor)
        return f"{accidental}{numeral}{quality}{figures}/{'iv' if target == 'iio' else target}"
    head = (_TO_MINOR if to_minor else _TO_MAJOR).get(accidental + numeral + quality, accidental + numeral + quality)
    if head == "iio" and figures in ("7", "65", "43", "42"):
        head = "iiø"
    return head + figures


@cache
def ladder(pitch_classes: tuple[int, ...]) -> tuple[int, ...]:
    """Return every key of the piano with one of these pitch classes, from the lowest up."""
    return tuple(p for p in range(LOWEST_KEY, HIGHEST_KEY + 1) if p % 12 in pitch_classes)


@lru_cache(maxsize=1 << 15)
def stack(tones: tuple[int, ...], lowest: int, count: int) -> tuple[int, ...]:
    """Return count chord tones in close position from the pitch lowest on (the first tone at or above it)."""
    rungs = ladder(tones)
    at = bisect_left(rungs, lowest)
    return rungs[at : at + count]


@lru_cache(maxsize=1 << 15)
def nearest(pitch_class: int, near: int, low: int, high: int) -> int:
    """Return the pitch of a class nearest to another pitch, within low..high if the class occurs there."""
    inside = [p for p in ladder((pitch_class,)) if low <= p <= high] or list(ladder((pitch_class,)))
    return min(inside, key=lambda p: (abs(p - near), p))


@lru_cache(maxsize=1 << 15)
def lead(tones: tuple[int, ...], count: int, low: int, high: int, previous: tuple[int, ...]) -> tuple[int, ...]:
    """Return a close-position voicing inside low..high that moves the voices least from the previous one."""
    rungs = ladder(tones)
    first = bisect_left(rungs, low)
    best, best_cost = rungs[first : first + count], 1e9
    centre = (low + high) / 2
    for at in range(first, min(first + len(tones) + 2, len(rungs) - count)):
        voicing = rungs[at : at + count]
        cost = 0.3 * abs(voicing[0] + voicing[-1] - 2 * centre) + 4 * max(0, voicing[-1] - high)
        if len(previous) == count:
            cost += sum(abs(a - b) for a, b in zip(voicing, previous, strict=True))
        if cost < best_cost:
            best, best_cost = voicing, cost
    return best
