"""Repetition: what music plays again, in whatever key and tempo, that it has played long before.

What is compared are passages of eight notes, by the intervals from note to note. Those of few keys are left out: a
trill is like every other one, and music that is stuck remembers nothing. Even so, music in one style shares passages
without any memory. So the share of notes in such passages stands beside that of
excerpts of a corpus that are as long, and beside that of music in which nothing can be remembered: snippets, each of
another piece, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from dsmr.music.analysis.quotation import reading_order
from dsmr.music.tokens import NOTE_OFF, STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, Ids

PASSAGE = 8
"""Notes that must come in the same intervals to be a passage that returns."""
FEWEST_KEYS = 4
"""Different keys that a passage must have to tell a theme from a trill or a broken chord."""
LONG_BEFORE = 500
"""Tokens that lie between a passage and what it repeats, at least: about twelve seconds."""
SAMPLE = 60
"""Excerpts of a corpus, and as many of the shuffled one, that music stands beside."""


class Passages:
    """Every passage of `PASSAGE` notes that follow each other in reading order.

    Args:
        tokens: int64 `[L]`.

    Attributes: of each note, `[N]`, its token `at`, and `steps`, when it begins, in the codec's steps; of each passage,
    `[max(N - PASSAGE + 1, 0)]`, `name`, a number that passages of equal intervals share, and `keys`, how many different
    ones it has.
    """

    def __init__(self, tokens: NDArray[np.int64]) -> None:
        at = np.flatnonzero(tokens < NOTE_OFF)
        steps = np.cumsum(np.where((tokens >= TIME_SHIFT) & (tokens < VELOCITY), tokens - TIME_SHIFT + 1, 0))
        self.at = at[reading_order(steps[at], tokens[at])]
        self.steps = steps[self.at]
        self.name, self.keys = np.empty((2, 0), np.int64)
        if len(self.at) >= PASSAGE:
            pitches = sliding_window_view(tokens[self.at], PASSAGE)
            self.name = np.unique(np.diff(pitches), axis=0, return_inverse=True)[1].ravel()
            self.keys = 1 + (np.diff(np.sort(pitches)) > 0).sum(1)

    def again(self, least: int, most: int) -> NDArray[np.bool_]:
        """Which notes are in a passage that was heard `least` to `most` tokens before, both included: bool `[N]`.

        Passages of fewer than `FEWEST_KEYS` do not count.
        """
        begins = self.at[: len(self.name)]
        # One ascending number an occurrence, so that those of a name within a stretch of tokens are found by searching.
        stride = int(self.at.max(initial=0)) + most + 1
        key = self.name * stride + begins
        ordered = np.sort(key)
        earlier = np.searchsorted(ordered, key - least, "right") - np.searchsorted(ordered, key - most, "left")
        returns = (earlier > 0) & (self.keys >= FEWEST_KEYS)
        heard = np.zeros(len(self.at), bool)
        for offset in range(PASSAGE):
            heard[offset : offset + len(returns)] |= returns
        return heard


def repeated(ids: ArrayLike, least: int = LONG_BEFORE) -> list[tuple[float, float]]:
    """When music plays what it has played before.

    Args:
        ids: tokens [L]; BEGIN and END have no effect.
        least: how many tokens before, at the least.

    Returns:
        Stretches of notes in such passages, in order: when the first and the last note of each begin, in seconds.

    Raises:
        ValueError: `least` below 1.
    """
    passages, again = _repeated(ids, least)
    edges = np.flatnonzero(np.diff(again, prepend=False, append=False))
    seconds = passages.steps / STEPS_PER_SECOND
    return [(float(seconds[first]), float(seconds[end - 1])) for first, end in edges.reshape(-1, 2).tolist()]


def repeated_share(ids: ArrayLike, least: int = LONG_BEFORE) -> float:
    """The share of notes in passages that were played before; NaN if the music is too short for any to be.

    Args, Raises: as for `repeated`.
    """
    again = _repeated(ids, least)[1]
    return float(again.mean()) if np.size(ids) > least and len(again) else math.nan


def _repeated(ids: ArrayLike, least: int) -> tuple[Passages, NDArray[np.bool_]]:
    if least < 1:
        raise ValueError(f"least: expected at least 1 token, got {least}")
    passages = Passages(np.asarray(ids).astype(np.int64))
    return passages, passages.again(least, np.size(ids))


def excerpts_of(pieces: Iterable[Ids], tokens: int) -> Iterator[Ids]:
    """Cut pieces into excerpts, end to end; what remains counts if it is at least half as long, or all there is."""
    for piece in pieces:
        for start in range(0, len(piece), tokens):
            if start == 0 or len(piece) - start >= tokens / 2:
                yield piece[start : start + tokens]


def shuffled(pieces: Sequence[Ids], tokens: int, count: int, snippet: int = LONG_BEFORE, seed: int = 0) -> list[Ids]:
    """Music in which what is at least a snippet apart is of two pieces; within a snippet all is as in its piece.

    Args:
        pieces: uint16 `[n]` each; those shorter than a snippet are left out.
        tokens: the length of the music.
        count: how many to make.
        snippet: the length of a snippet in tokens.
        seed: equal seeds draw equal snippets.

    Returns:
        uint16 `[tokens]` each.

    Raises:
        ValueError: fewer pieces that are long enough than snippets in the music.
    """
    long, needed = [piece for piece in pieces if len(piece) >= snippet], -(-tokens // snippet)
    if len(long) < needed:
        raise ValueError(f"pieces: expected {needed} of at least {snippet} tokens, got {len(long)}")
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        drawn = [long[number] for number in rng.choice(len(long), needed, replace=False).tolist()]
        starts = [int(rng.integers(len(piece) - snippet + 1)) for piece in drawn]
        cut = [piece[start : start + snippet] for piece, start in zip(drawn, starts, strict=True)]
        made.append(np.concatenate(cut)[:tokens])
    return made


@dataclass(frozen=True, eq=False)
class Repetition:
    """The share of notes that music plays again, beside that of a corpus and of its shuffled snippets.

    Args:
        name: of the music.
        tokens: how many of it were looked at, and how many each excerpt has.
        share: the music's; NaN if it is too short for passages to return.
        corpus, shuffled: those of excerpts, `[E]` and `[S]`; empty if the music is too short.
    """

    name: str
    tokens: int
    share: float
    corpus: NDArray[np.float64]
    shuffled: NDArray[np.float64]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for NaN."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "share": None if math.isnan(self.share) else self.share,
            "corpus": self.corpus.tolist(),
            "shuffled": self.shuffled.tolist(),
        }


def compare_repetition(music: Mapping[str, Ids], pieces: Sequence[Ids], seed: int = 0) -> list[Repetition]:
    """Set what music plays again beside a corpus.

    Music that is longer than a snippet of each piece of the corpus is looked at from its beginning so far.

    Args:
        music: ids by name, uint16 `[n]` each.
        pieces: the corpus, uint16 `[n]` each.
        seed: of the draws: excerpts of the corpus, and snippets.
    """
    rng = np.random.default_rng(seed)
    most = LONG_BEFORE * sum(len(piece) >= LONG_BEFORE for piece in pieces)
    found = []
    for name, ids in music.items():
        tokens = min(len(ids), most)
        share = repeated_share(ids[:tokens])
        if math.isnan(share):
            found.append(Repetition(name, tokens, share, np.empty(0), np.empty(0)))
            continue
        excerpts = [excerpt for excerpt in excerpts_of(pieces, tokens) if len(excerpt) > LONG_BEFORE]
        drawn = [excerpts[number] for number in rng.permutation(len(excerpts))[:SAMPLE].tolist()]
        disordered = shuffled(pieces, tokens, SAMPLE, seed=seed)
        found.append(Repetition(name, tokens, share, _shares(drawn), _shares(disordered)))
    return found


def _shares(music: Sequence[Ids]) -> NDArray[np.float64]:
    shares = np.array([repeated_share(each) for each in music], np.float64)
    return shares[np.isfinite(shares)]
