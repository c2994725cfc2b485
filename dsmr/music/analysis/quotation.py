"""Quotations: the longest passages of some music that are found, transposed or not, in a corpus.

Three questions, from the loosest to the strictest; what counts as equal:

- ``pitches``: the same intervals from note to note, at any tempo and in any rhythm;
- ``rhythm``: besides, the times from note to note agree in their power of two: both in 40 - 80 ms, 80 - 160 ms, ...;
- ``tokens``: the same tokens, velocities and 10 ms steps included, with all keys moved by one interval.

Notes are read in order of time. Those that begin less than 40 ms after the one before are one chord and are read from
the lowest up: no two performances spread a chord alike.

Music in one style shares figures without any copying, so a length means something only beside what pieces have in
common with the corpus that are certainly not copied from it: those that were held out.

The longest match of every position is with a neighbour in the sorted order of all suffixes; the order is found by
doubling (Manber and Myers, "Suffix Arrays", 1993), exactly, without hashing. Neither NumPy nor SciPy sorts suffixes;
pydivsufsort does, in compiled code, but twelve lines are no reason to depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import (
    NOTE_OFF,
    PITCHES,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    Ids,
    Performance,
    decode,
    encode,
)

Equality = Literal["pitches", "rhythm", "tokens"]
EQUALITIES: tuple[Equality, ...] = get_args(Equality)

CHORD_STEPS = 4
"""Notes that begin fewer steps of 10 ms after the one before belong to its chord."""

Symbols = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """A piece that may be quoted: its index in its corpus, its title and its ids, uint16 `[n]`."""

    index: int
    title: str
    ids: Ids


@dataclass(frozen=True)
class Quotation:
    """The longest passage of some music that a corpus holds.

    Args:
        equality: what counted as equal.
        length: of the passage: notes, or tokens under ``tokens``; 0: nothing at all.
        seconds: where the passage begins in the music, and where its last note does.
        piece, title: the index of a source that holds it, and its title; None and "" if nothing was found.
        piece_seconds: where it begins there.
        semitones: how far the music's passage lies above the piece's.
    """

    equality: Equality
    length: int
    seconds: tuple[float, float] = (0.0, 0.0)
    piece: int | None = None
    piece_seconds: float = 0.0
    semitones: int = 0
    title: str = ""


@dataclass(frozen=True, eq=False)
class _Text:
    """Music as symbols `[S]`: when each begins (steps), the key it leaves from, and how many notes come before it."""

    symbols: Symbols
    steps: Symbols
    keys: Symbols


def longest_quotations(music: Sequence[Performance], sources: Sequence[Source], equality: Equality) -> list[Quotation]:
    """Find the longest passage of each piece of music in a corpus.

    Args:
        music: what may quote, all of it at once: a corpus is sorted once a call.
        sources: the pieces that may be quoted.
        equality: what counts as equal: see above.

    Raises:
        ValueError: no sources, or an unknown equality.
    """
    if equality not in EQUALITIES:
        raise ValueError(f"equality: expected one of {', '.join(EQUALITIES)}, got {equality!r}")
    if not sources:
        raise ValueError("sources: expected at least one piece, got none")
    corpus = [_text(decode(each.ids), equality) for each in sources]
    quoting = [_text(each, equality) for each in music]
    found = []
    matches = longest_matches([each.symbols for each in quoting], [each.symbols for each in corpus])
    more = 0 if equality == "tokens" else 1  # n intervals are n + 1 notes
    for text, (length, at, piece, piece_at) in zip(quoting, matches, strict=True):
        if length == 0:
            found.append(Quotation(equality, 0))
            continue
        source, quoted = sources[piece], corpus[piece]
        begins, ends = (float(text.steps[i]) / STEPS_PER_SECOND for i in (at, at + length + more - 1))
        semitones = int(text.keys[at] - quoted.keys[piece_at])
        piece_begins = float(quoted.steps[piece_at]) / STEPS_PER_SECOND
        found.append(
            Quotation(equality, length + more, (begins, ends), source.index, piece_begins, semitones, source.title)
        )
    return found


def longest_matches(texts: Sequence[Symbols], corpus: Sequence[Symbols]) -> list[tuple[int, int, int, int]]:
    """For each text its longest run of symbols that occurs in the corpus.

    Args:
        texts, corpus: sequences of integers >= 0, `[S]` each.

    Returns:
        For each text the run's length, where it begins in the text, which sequence of the corpus holds it, and where it
        begins there; all 0 if no symbol occurs. The first of several runs of one length.
    """
    sequences = [*corpus, *texts]
    # A sentinel of its own ends every sequence, so that no run goes on into the next one.
    joined = np.concatenate([np.append(each, -1 - number) for number, each in enumerate(sequences)])
    begins = np.cumsum([0, *(len(each) + 1 for each in sequences)])
    first = begins[len(corpus)]
    order = suffix_order(joined)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))

    of_corpus = order < first
    count = len(order)
    before = np.maximum.accumulate(np.where(of_corpus, np.arange(count), -1))
    after = np.minimum.accumulate(np.where(of_corpus, np.arange(count), count)[::-1])[::-1]
    at = np.arange(first, count)
    length, source = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
    for neighbour in (before[place[at]], after[place[at]]):
        there = (neighbour >= 0) & (neighbour < count)
        candidate = order[np.where(there, neighbour, 0)]
        common = _common_prefix(joined, at, candidate, there)
        better = common > length
        length, source = np.where(better, common, length), np.where(better, candidate, source)

    found = []
    for begin, end in zip(begins[len(corpus) : -1], begins[len(corpus) + 1 :], strict=True):
        best = int(np.argmax(length[begin - first : end - first]))
        longest, where = int(length[begin - first + best]), int(source[begin - first + best])
        piece = int(np.searchsorted(begins, where, side="right")) - 1
        found.append((longest, best, piece, where - int(begins[piece])) if longest else (0, 0, 0, 0))
    return found


def suffix_order(symbols: Symbols) -> Symbols:
    """Where the suffixes of a sequence begin, in sorted order; a suffix comes before those that it begins."""
    count = len(symbols)
    rank = np.unique(symbols, return_inverse=True)[1].astype(np.int64)
    width = 1
    while True:
        rest = np.zeros(count, np.int64)
        rest[:-width] = rank[width:] + 1
        key = rank * (count + 1) + rest
        order = np.argsort(key, kind="stable")
        rank = np.empty(count, np.int64)
        rank[order] = np.cumsum(np.diff(key[order], prepend=key[order[:1]]) > 0)
        width *= 2
        if rank.max(initial=0) == count - 1 or width >= count:
            return np.asarray(order)


def chords(steps: Symbols) -> Symbols:
    """The number, from 0 on, of the chord that each note belongs to; `steps` `[N]` ascend."""
    return np.asarray(np.cumsum(np.diff(steps, prepend=steps[:1]) >= CHORD_STEPS))


def reading_order(steps: Symbols, pitch: Symbols) -> Symbols:
    """The order in which notes are read, chords from the lowest up; `steps` `[N]` ascend."""
    return np.asarray(np.lexsort((pitch, chords(steps))))


def _common_prefix(text: Symbols, one: Symbols, other: Symbols, among: NDArray[np.bool_]) -> Symbols:
    """How many symbols from each `one` and `other` on are equal, `[Q]`; 0 where not `among`."""
    length = np.zeros(len(one), np.int64)
    active = np.flatnonzero(among)
    while len(active):
        active = active[text[one[active] + length[active]] == text[other[active] + length[active]]]
        length[active] += 1
    return length


def _text(music: Performance, equality: Equality) -> _Text:
    return _as_tokens(music) if equality == "tokens" else _as_intervals(music, with_rhythm=equality == "rhythm")


def _as_intervals(music: Performance, with_rhythm: bool) -> _Text:
    """Symbol i leads from note i to note i + 1."""
    notes = np.sort(music.notes, order=["onset", "pitch"])
    steps = np.rint(notes["onset"] * STEPS_PER_SECOND).astype(np.int64)
    pitch = notes["pitch"].astype(np.int64)
    order = reading_order(steps, pitch)
    pitch = pitch[order]
    symbols = np.diff(pitch) + PITCHES
    if with_rhythm:
        chord = chords(steps)
        begins = steps[np.searchsorted(chord, chord)]  # each note's time is that of its chord
        gap = np.maximum(np.diff(begins), 1)
        symbols = symbols * 32 + np.where(np.diff(chord) > 0, 1 + np.log2(gap / CHORD_STEPS).astype(np.int64), 0)
    return _Text(symbols, steps[order], pitch)


def _as_tokens(music: Performance) -> _Text:
    """Symbol i is token i, with the key of a note-on or note-off as its distance from the key before."""
    ids = encode(music).astype(np.int64)
    ids = ids[: np.max(np.flatnonzero(ids < NOTE_OFF), initial=-1) + 1]  # releasing the last keys is no music
    is_key = ids < TIME_SHIFT
    key = ids % PITCHES
    last = np.maximum.accumulate(np.where(is_key, np.arange(len(ids)), -1))
    before = np.concatenate([[-1], last[:-1]])[: len(ids)]
    interval = np.where(before >= 0, key - key[before], 0) + PITCHES
    kind = np.where(ids < NOTE_OFF, 1, 2)
    shift = np.where((ids >= TIME_SHIFT) & (ids < VELOCITY), ids - TIME_SHIFT + 1, 0)
    # The key in force: that of the last note token, or of the first one before there is any.
    in_force = key[np.where(last >= 0, last, np.argmax(is_key))] if len(ids) else key
    return _Text(np.where(is_key, kind * 1000 + interval, ids), np.cumsum(shift), in_force)
