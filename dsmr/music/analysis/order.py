"""Order: whether music's notes must come as they do, or are noise that has the right density, range and loudness.

Three numbers, each the higher the less order there is:

- `out_of_key`: the share of notes outside the diatonic scale that fits best, in windows of 16 notes: the complement of
  scale consistency (Mogren, "C-RNN-GAN", 2016), for each passage, because music modulates;
- `figures`: how many different figures of three notes there are, compared with the same pitches in random order;
- `rhythms`: how many different figures of three times from chord to chord there are, as ratios from each to the next,
  compared with the same times in random order.

The last two count n-grams of intervals (Downie, "Evaluating a Simple Approach to Music Information Retrieval", 1999)
and set music beside itself scrambled (von Hippel and Huron, "Why Do Skips Precede Reversals?", 2000): music uses few
figures and uses them again, and 1 is what chance makes of its notes. No number depends on key or tempo, but for what
makes a chord: notes that begin less than 40 ms after the one before.

The verdict takes key and figures together, so that what it promises holds for both together. Rhythms stand beside it:
music whose notes are in order and whose rhythm is free is no noise. For each number there is a share of the corpus that
is as high. Music counts by the lesser of these, beside the corpus's excerpts, which are counted in the same way by all
other pieces: the min-P test of Westfall and Young ("Resampling-Based Multiple Testing", 1993). Each piece counts once,
whatever its length, because excerpts of one piece are alike (Lee, Barber and Willett, "Distribution-Free Inference with
Hierarchical Data", 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dsmr.music.analysis.quotation import chords, reading_order
from dsmr.music.analysis.statistics import check_seconds, excerpts
from dsmr.music.tokens import PITCHES, STEPS_PER_SECOND, Ids, decode

FALSE_ALARM = 0.05
"""So much of a corpus's own music may be called noise."""
FEWEST_PIECES = 19
"""The excerpt of one more piece is stranger than those of n others once in n + 1 times: of fewer, more often."""
EXCERPTS_OF_PIECE = 8
"""More excerpts of a piece, which are alike, would tell little more."""
FEWEST = 16
"""Notes or times that a number is counted from, at least; also the notes of a window."""
ROUNDS = 16
"""How often the notes are put in random order."""

_SCALES = np.array([np.isin((np.arange(12) - tonic) % 12, (0, 2, 4, 5, 7, 9, 11)) for tonic in range(12)])
_PER_OCTAVE = 2
"""Bins of a ratio of times, a factor of two apart."""


@dataclass(frozen=True)
class Order:
    """How little order there is: see above. NaN where there is too little to count."""

    out_of_key: float
    figures: float
    rhythms: float


ORDER_NUMBERS = tuple(each.name for each in fields(Order))
DECIDING = ("out_of_key", "figures")
"""Of `ORDER_NUMBERS`, the first: those that the verdict rests on."""


@dataclass(frozen=True)
class OrderNumber:
    """A number of `Order` beside a corpus: the median of its excerpts, and the limit.

    Above the limit of a number of `DECIDING` music is noise. Above that of another it is less regular than all but
    `FALSE_ALARM` of the corpus.
    """

    name: str
    value: float
    median: float
    limit: float


@dataclass(frozen=True)
class OrderVerdict:
    """Whether music is in order, the numbers of `DECIDING` together.

    Args:
        numbers: each beside the corpus; one that decides is above its limit if, and only if, the music is noise.
        p: the share, of the music and the corpus's pieces together, that is as disordered; NaN where the music has too
            few notes to tell.
        pieces: of the corpus.
    """

    numbers: tuple[OrderNumber, ...]
    p: float
    pieces: int

    @property
    def ordered(self) -> bool | None:
        """False for noise; None: too few notes, or fewer than `FEWEST_PIECES` pieces, cannot tell."""
        return None if math.isnan(self.p) or self.pieces < FEWEST_PIECES else self.p > FALSE_ALARM

    @property
    def sentence(self) -> str:
        """The verdict for people."""
        if math.isnan(self.p):
            return "it has too few notes to tell music from noise"
        if self.ordered is None:
            return f"{self.pieces} pieces are too few to tell music from noise, {FEWEST_PIECES} would do"
        above = {
            each.name: f"{each.name.replace('_', ' ')} {each.value:.2f} (usual are up to {each.limit:.2f})"
            for each in self.numbers
            if each.value > each.limit
        }
        if not self.ordered:
            return "it is noise, not music: " + ", ".join(above[name] for name in DECIDING if name in above)
        free = "".join(f"; not so its {text}" for text in above.values())
        return f"it is in order, as music is: {self.p:.0%} of the corpus is no more so{free}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for NaN and for limits that nothing exceeds."""
        numbers = [
            {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in each}
            for each in (asdict(number).items() for number in self.numbers)
        ]
        p = None if math.isnan(self.p) else self.p
        return {"numbers": numbers, "p": p, "pieces": self.pieces, "ordered": self.ordered, "verdict": self.sentence}


@dataclass(frozen=True, eq=False)
class UsualOrder:
    """How ordered a corpus's excerpts of one length are.

    Args:
        values: the numbers of the excerpts, `[E, 3]`; NaN where there is too little to count.
        piece: whose excerpt each is, `[E]`: from 0 on, each with at least one.
    """

    values: NDArray[np.float64]
    piece: NDArray[np.int64]

    @property
    def pieces(self) -> int:
        """How many pieces have enough notes."""
        return int(self.piece.max(initial=-1)) + 1

    def judge(self, order: Order) -> OrderVerdict:
        """Set music beside the corpus."""
        tails, values = self._tails(), np.array(astuple(order))
        least = min(tail.share(values[number : number + 1])[0] for number, tail in enumerate(tails[: len(DECIDING)]))
        as_strange = 1 + self._weights[self._least <= least].sum()
        p = float(as_strange / (1 + self.pieces)) if np.isfinite(values[: len(DECIDING)]).any() else math.nan
        limits = [
            tail.highest(self._limit if name in DECIDING else FALSE_ALARM) if self.pieces >= FEWEST_PIECES else math.inf
            for name, tail in zip(ORDER_NUMBERS, tails, strict=True)
        ]
        rows = zip(ORDER_NUMBERS, values.tolist(), [tail.median for tail in tails], limits, strict=True)
        return OrderVerdict(tuple(OrderNumber(*row) for row in rows), p, self.pieces)

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """Of the excerpts, `[E]`: those of a piece make up 1."""
        return np.asarray(1 / np.bincount(self.piece)[self.piece])

    @cached_property
    def _least(self) -> NDArray[np.float64]:
        """The least of each excerpt's shares that decide, `[E]`: of what is as high in the other pieces."""
        least = np.ones(len(self.values))
        for piece in range(self.pieces):
            own = self.piece == piece
            tails = self._tails(~own)[: len(DECIDING)]
            shares = [tail.share(self.values[own, number]) for number, tail in enumerate(tails)]
            least[own] = np.min(shares, axis=0)
        return least

    @cached_property
    def _limit(self) -> float:
        """The greatest share that is no false alarm: what is less makes `p` at most `FALSE_ALARM`."""
        order = np.argsort(self._least)
        least, below = self._least[order], np.cumsum(self._weights[order])
        as_low = 1 + below[np.searchsorted(least, least, side="right") - 1]
        return float(least[as_low > FALSE_ALARM * (1 + self.pieces)].min())

    def _tails(self, among: NDArray[np.bool_] | None = None) -> list[_Tail]:
        among = np.ones(len(self.values), np.bool_) if among is None else among
        return [_Tail(column[among], self._weights[among], self.pieces) for column in self.values.T]


class _Tail:
    """How rare high values are in a corpus.

    Args:
        values, weights: of excerpts, `[E]`; NaN does not count.
        pieces: of the whole corpus. With one of them left out what is above all others is still as strange.
    """

    def __init__(self, values: NDArray[np.float64], weights: NDArray[np.float64], pieces: int) -> None:
        counted = np.isfinite(values)
        order = np.argsort(values[counted])
        self._values = values[counted][order]
        weights = weights[counted][order]
        self._as_high = (1 + np.append(np.cumsum(weights[::-1])[::-1], 0.0)) / (1 + pieces)
        middle = np.searchsorted(np.cumsum(weights), weights.sum() / 2)
        self.median, self._highest = (float(self._values[at]) if len(order) else math.nan for at in (middle, -1))

    def share(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share that is as high as each value `[M]`, itself included; 1 for NaN.

        Beyond the highest it goes on to fall, by the distance from the median: all that matters is the order.
        """
        if len(self._values) == 0:
            return np.ones(len(values))
        shares = self._as_high[np.searchsorted(self._values, values)]
        distance, beyond = self._highest - self.median, values > self._highest
        shares[beyond] *= distance / (values[beyond] - self.median)
        return np.where(np.isnan(values), 1.0, shares)

    def highest(self, share: float) -> float:
        """The highest value of which there is at least this share."""
        if len(self._values) == 0:
            return math.inf
        if share <= self._as_high[-1]:
            return self.median + (self._highest - self.median) * float(self._as_high[-1]) / share
        return float(self._values[self._as_high[:-1] >= share].max(initial=-math.inf))


def measure_order(notes: NDArray[np.void]) -> Order:
    """Count notes.

    Args:
        notes: ``NOTE_DTYPE [N]``, in any order.
    """
    notes = np.sort(notes, order=["onset", "pitch"])
    steps = np.rint(notes["onset"] * STEPS_PER_SECOND).astype(np.int64)
    chord = chords(steps)
    pitch = notes["pitch"].astype(np.int64)[reading_order(steps, notes["pitch"].astype(np.int64))]
    begins = notes["onset"][np.flatnonzero(np.diff(chord, prepend=-1))]
    rng = np.random.default_rng(0)
    return Order(_out_of_key(pitch), _figures(pitch, chord, rng), _rhythms(begins, rng))


def usual_order(pieces: Iterable[Ids], seconds: float) -> UsualOrder:
    """How ordered excerpts of a corpus are, `EXCERPTS_OF_PIECE` of each piece at most.

    Args:
        pieces: the corpus, uint16 `[n]` each.
        seconds: the excerpts' length: that of the music to compare.

    Raises:
        ValueError: a length that is not above 0.
    """
    check_seconds(seconds)
    counted = [each for piece in pieces if len(each := _of_excerpts(decode(piece).notes, seconds))]
    values = np.concatenate([np.empty((0, len(ORDER_NUMBERS))), *counted])
    return UsualOrder(values, np.repeat(np.arange(len(counted)), list(map(len, counted))))


def shuffled_notes(notes: NDArray[np.void], rng: np.random.Generator) -> NDArray[np.void]:
    """The same notes with their pitches in random order: same density, range and rhythm, but noise."""
    disordered = notes.copy()
    disordered["pitch"] = rng.permutation(notes["pitch"])
    return disordered


def _of_excerpts(notes: NDArray[np.void], seconds: float) -> NDArray[np.float64]:
    """Numbers of some of a piece's excerpts, spread over it, `[E, 3]`; without those that have too few notes."""
    cut = [own for own, _ in excerpts(notes, seconds)]
    chosen = np.unique(np.linspace(0, len(cut) - 1, min(EXCERPTS_OF_PIECE, len(cut))).astype(int)).tolist()
    values = np.array([astuple(measure_order(cut[number])) for number in chosen]).reshape(-1, len(ORDER_NUMBERS))
    return np.asarray(values[np.isfinite(values).any(axis=1)])


def _out_of_key(pitch: NDArray[np.int64]) -> float:
    if len(pitch) < FEWEST:
        return math.nan
    classes = np.cumsum(np.eye(12, dtype=np.int64)[pitch % 12], axis=0)
    ends = np.arange(FEWEST, len(pitch) + 1, FEWEST // 2)
    in_window = classes[ends - 1] - np.where(ends[:, None] > FEWEST, classes[ends - FEWEST - 1], 0)
    return float(1 - (in_window @ _SCALES.T).max(axis=1).mean() / FEWEST)


def _figures(pitch: NDArray[np.int64], chord: NDArray[np.int64], rng: np.random.Generator) -> float:
    if len(pitch) < FEWEST:
        return math.nan
    disordered = rng.permuted(np.tile(pitch, (ROUNDS, 1)), axis=1)
    disordered = np.sort(chord * PITCHES + disordered, axis=1) % PITCHES  # chords are read from the lowest up
    return _compared(*(_different(np.diff(each) + PITCHES) for each in (pitch[None], disordered)))


def _rhythms(begins: NDArray[np.float64], rng: np.random.Generator) -> float:
    times = np.diff(begins)
    if len(times) < FEWEST:
        return math.nan
    disordered = rng.permuted(np.tile(times, (ROUNDS, 1)), axis=1)
    ratios = (np.rint(_PER_OCTAVE * np.diff(np.log2(each))).astype(np.int64) for each in (times[None], disordered))
    return _compared(*(_different(each + PITCHES) for each in ratios))


def _different(symbols: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many different pairs of neighbours there are in each row of symbols in `[0, 256)`, `[rows]`."""
    left, right = np.moveaxis(sliding_window_view(symbols, 2, axis=1), 2, 0)
    pairs = np.sort(left * 2 * PITCHES + right, axis=1)
    return np.asarray(1 + np.count_nonzero(np.diff(pairs, axis=1), axis=1))


def _compared(own: NDArray[np.int64], disordered: NDArray[np.int64]) -> float:
    return float(own[0] / disordered.mean())
