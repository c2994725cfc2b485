"""The bootstrap over pieces (Efron 1979): how far a mean would move had other pieces been drawn.

Pieces, not tokens, are drawn: tokens of one piece are far from independent. All draws of one number of pieces are the
same, so what is resampled for two models on the same pieces is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class PieceSums:
    """A quantity summed in bins, each piece for itself, so that pieces can be drawn anew.

    Args:
        total: float64 `[P, B]`: the sum over the tokens of piece p that lie in bin b.
        count: int64 `[P, B]`: how many tokens those are.
    """

    total: NDArray[np.float64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[tuple[NDArray[np.integer], NDArray[np.floating]]], bins: int) -> PieceSums:
        """Sum the values of each piece: its tokens' bins, integers `[n]` from 0 to `bins - 1`, and values `[n]`."""
        total = np.array([np.bincount(at, weights=values, minlength=bins) for at, values in pieces])
        count = np.array([np.bincount(at, minlength=bins) for at, _ in pieces], dtype=np.int64)
        return cls(total.reshape(len(pieces), bins), count.reshape(len(pieces), bins))

    @property
    def tokens(self) -> NDArray[np.int64]:
        """How many tokens each bin holds, `[B]`."""
        tokens: NDArray[np.int64] = self.count.sum(0)
        return tokens

    @property
    def pieces(self) -> NDArray[np.int64]:
        """How many pieces have tokens in each bin, `[B]`."""
        pieces: NDArray[np.int64] = (self.count > 0).sum(0)
        return pieces

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean per token of each bin, `[B]`; NaN where there is none."""
        return _ratio(self.total.sum(0), self.tokens)

    @property
    def mean_of_bins(self) -> float:
        """The plain mean over the bins that hold tokens."""
        return float(_mean_where_known(self.mean))

    @property
    def pooled(self) -> PieceSums:
        """All bins as one: every token counts the same."""
        return PieceSums(self.total.sum(1, keepdims=True), self.count.sum(1, keepdims=True))

    def bin(self, number: int) -> PieceSums:
        """One bin by itself."""
        return PieceSums(self.total[:, number : number + 1], self.count[:, number : number + 1])

    def resampled(self, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
        """`mean` of corpora of as many pieces, drawn with replacement: `[resamples, B]`, NaN where a bin is empty."""
        if resamples < 1:
            raise ValueError(f"resamples: expected at least 1, got {resamples}")
        weights = draws(len(self.count), resamples, seed)
        return _ratio(weights @ self.total, weights @ self.count)

    def intervals(self, *, confidence: float = CONFIDENCE, seed: int = 0) -> list[Interval | None]:
        """The percentile interval of each bin's mean; None for bins that fewer than two pieces reach."""
        samples = self.resampled(seed=seed)
        return [
            interval(samples[:, b], confidence) if pieces >= 2 else None
            for b, pieces in enumerate(self.pieces.tolist())
        ]

    def interval_of_bins(self, *, confidence: float = CONFIDENCE, seed: int = 0) -> Interval | None:
        """The percentile interval of `mean_of_bins`; None for fewer than two pieces with tokens."""
        if (self.count.sum(1) > 0).sum() < 2:
            return None
        return interval(_mean_where_known(self.resampled(seed=seed)), confidence)


@dataclass(frozen=True)
class Difference:
    """One model's mean minus another's on the same tokens: the paired bootstrap.

    Args:
        value: the difference of the means.
        interval: its percentile interval; None for fewer than two pieces.
        p: two-sided, how often the resampled difference lies on the other side of 0, counted twice; None as above.
            The least value that R resamples can give is 2 / (R + 1).
    """

    value: float
    interval: Interval | None
    p: float | None


def compare(ours: PieceSums, theirs: PieceSums, *, confidence: float = CONFIDENCE, seed: int = 0) -> list[Difference]:
    """The difference `ours - theirs` of each bin's mean; NaN for bins without tokens.

    Raises:
        ValueError: the two do not count the same tokens of the same pieces.
    """
    paired = _paired(ours, theirs)
    samples = paired.resampled(seed=seed).T
    return [
        _difference(value, column, pieces, confidence)
        for value, column, pieces in zip(paired.mean.tolist(), samples, paired.pieces.tolist(), strict=True)
    ]


def compare_mean_of_bins(
    ours: PieceSums, theirs: PieceSums, *, confidence: float = CONFIDENCE, seed: int = 0
) -> Difference:
    """The difference `ours - theirs` of `mean_of_bins`; raises as `compare` does."""
    paired = _paired(ours, theirs)
    samples = _mean_where_known(paired.resampled(seed=seed))
    return _difference(paired.mean_of_bins, samples, int((paired.count.sum(1) > 0).sum()), confidence)


def draws(pieces: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each piece is in each of the resampled corpora: `[resamples, pieces]`, rows that sum to `pieces`."""
    drawn = np.random.default_rng(seed).integers(pieces, size=(resamples, pieces))
    flat = drawn + np.arange(resamples)[:, None] * pieces
    return np.bincount(flat.ravel(), minlength=resamples * pieces).reshape(resamples, pieces).astype(np.float64)


def interval(samples: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of resampled values `[R]`; draws with nothing to average (NaN) are left out.

    Raises:
        ValueError: a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected between 0 and 1, got {confidence}")
    known = samples[~np.isnan(samples)]
    if len(known) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def p_value(samples: NDArray[np.float64]) -> float:
    """Two-sided p-value of resampled differences `[R]` against 0 (Davison and Hinkley 1997, section 4.4).

    Twice the smaller tail, one added to the tail's count and to R so that no finite number of draws proves anything.
    """
    known = samples[~np.isnan(samples)]
    tail = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2.0 * (float(tail) + 1) / (len(known) + 1))


def _paired(ours: PieceSums, theirs: PieceSums) -> PieceSums:
    if not np.array_equal(ours.count, theirs.count):
        raise ValueError("theirs: expected the same tokens of the same pieces as in ours")
    return PieceSums(ours.total - theirs.total, ours.count)


def _difference(value: float, samples: NDArray[np.float64], pieces: int, confidence: float) -> Difference:
    if pieces < 2:
        return Difference(value, None, None)
    return Difference(value, interval(samples, confidence), p_value(samples))


def _ratio(total: NDArray[np.float64], count: NDArray[np.floating | np.integer]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return ratio


def _mean_where_known(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the last axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(means)
    return _ratio(np.where(known, means, 0.0).sum(-1), known.sum(-1))
