"""Means over pieces: the interval that other pieces would leave a mean in, and whether two models differ.

Pieces, not tokens, are what varies: tokens of one piece are far from independent. Everything here is the sign-flip test
(Fisher 1935, section 21), which asks of a mean `theta`: if each piece were as likely to lie above it as below, by equal
amounts, how often would the pieces together lie as far from it as they do? It is exact for any number of pieces, of any
lengths; two models on the same pieces are compared by their differences, so what makes a piece hard cancels.

Flipping the signs of some pieces splits all pieces in two. The flipped sum is at least as large as the real one just
where `theta` lies between the mean of one half and the mean of the other. So one list of splits gives the p-value, how
many of them hold 0, and the interval, all `theta` that are not rejected (Tritchler 1984): the two always agree. SciPy
has the p-value but not its inversion.

n pieces have 2^(n - 1) splits, the one with an empty half included, which always counts: no p-value is below
1 / 2^(n - 1), and fewer than six pieces can neither reach 5 % nor have a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
EXACT_PIECES = 17
"""Up to so many pieces every split is looked at: at most 65,536."""
RANDOM_SPLITS = 2 ** (EXACT_PIECES - 1) - 1
"""Beyond, so many are drawn, the same ones in each call; the empty one joins them (Phipson and Smyth 2010)."""
ROUNDING = 2**-17
"""Nats per token, 8e-6: pieces whose means differ by less are equal. A token's NLL is the difference of two float32
numbers below 64, whose spacing is 2^-18 at most; two models' NLLs are two of them. Effects begin at 1e-4."""

SIGNS, BINS = 2**22, 32
"""How many of the drawn signs, and of how many bins the splits, are held at a time."""

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class PieceSums:
    """A quantity summed in bins, each piece for itself.

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
        """The plain mean over the bins that hold tokens; NaN if none does."""
        total, weight = self.shares_of_bins()
        return float(total.sum()) if weight.any() else math.nan

    @property
    def pooled(self) -> PieceSums:
        """All bins as one: every token counts the same."""
        return PieceSums(self.total.sum(1, keepdims=True), self.count.sum(1, keepdims=True))

    @property
    def without_rounding(self) -> PieceSums:
        """For sums of differences of NLLs: pieces that differ by no more than `ROUNDING` a token do not differ."""
        return PieceSums(np.where(np.abs(self.total) <= ROUNDING * self.count, 0.0, self.total), self.count)

    def bin(self, number: int) -> PieceSums:
        """One bin by itself."""
        return PieceSums(self.total[:, number : number + 1], self.count[:, number : number + 1])

    def intervals(self, *, confidence: float = CONFIDENCE) -> list[Interval | None]:
        """The interval of each bin's mean; None for bins that too few pieces reach: fewer than six at 95 %.

        There is none, either, for a bin where the sum of a piece is infinite or NaN.

        Raises:
            ValueError: a confidence that is not between 0 and 1.
        """
        return [each.interval(confidence) for each in _splits(self.total, self.count)]

    def interval_of_bins(self, *, confidence: float = CONFIDENCE) -> Interval | None:
        """The interval of `mean_of_bins`; None, and raises, as `intervals`."""
        (only,) = _splits(*self.shares_of_bins())
        return only.interval(confidence)

    def shares_of_bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What each piece adds to `mean_of_bins`, and its weight in it: `[P, 1]` both."""
        known = self.tokens > 0
        each = np.where(known, self.tokens, 1) * max(int(known.sum()), 1)
        return (self.total / each).sum(1, keepdims=True), (self.count / each).sum(1, keepdims=True)


@dataclass(frozen=True)
class Difference:
    """One model's mean minus another's on the same tokens.

    Args:
        value: the difference of the means.
        interval: its 95 % interval; None for fewer than six pieces, or if one of them has no finite sum.
        p: two-sided, of the sign-flip test; None where there is no interval.
    """

    value: float
    interval: Interval | None
    p: float | None


def compare_bins(ours: PieceSums, theirs: PieceSums) -> list[Difference]:
    """The difference `ours - theirs` of each bin's mean; NaN for bins without tokens.

    Raises:
        ValueError: the two do not count the same tokens of the same pieces.
    """
    paired = _paired(ours, theirs)
    tests = _splits(paired.total, paired.count)
    return [each.difference(value) for value, each in zip(paired.mean.tolist(), tests, strict=True)]


def compare_mean_of_bins(ours: PieceSums, theirs: PieceSums) -> Difference:
    """The difference `ours - theirs` of `mean_of_bins`; raises as `compare` does."""
    paired = _paired(ours, theirs)
    (only,) = _splits(*paired.shares_of_bins())
    return only.difference(paired.mean_of_bins)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for being many (Holm 1979): below 5 % one of all is wrong in at most 5 % of such tables.

    Six lines are no reason to depend on statsmodels, which has the same.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [1.0] * len(p_values), 0.0
    for smaller, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - smaller) * p_values[i]))
        corrected[i] = least
    return corrected


@dataclass(frozen=True, eq=False)
class _Splits:
    """The pieces split in two, in all ways or many: the smaller and the larger of the halves' means, `[S]` each.

    The split with an empty half is not among them. Means within `noise` of each other are equal.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    noise: float

    def rejected(self, confidence: float) -> int:
        """How many of the splits' smaller means lie outside the interval, and how many of the larger ones."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence: expected between 0 and 1, got {confidence}")
        return math.floor((1 - confidence) * (len(self.low) + 1))

    def p(self) -> float:
        """Of the mean being 0."""
        hold = int(((self.low <= self.noise) & (self.high >= -self.noise)).sum())
        return (1 + hold) / (1 + len(self.low))

    def interval(self, confidence: float) -> Interval | None:
        """All means whose p-value is above `1 - confidence`; None where every one's is."""
        if (rejected := self.rejected(confidence)) < 1:
            return None
        low = np.partition(self.low, rejected - 1)[rejected - 1]
        high = np.partition(self.high, -rejected)[-rejected]
        return self._without_noise(low), self._without_noise(high)

    def difference(self, value: float) -> Difference:
        if self.rejected(CONFIDENCE) < 1:
            return Difference(value, None, None)
        return Difference(value, self.interval(CONFIDENCE), self.p())

    def _without_noise(self, end: np.float64) -> float:
        return 0.0 if abs(end) <= self.noise else float(end)


def _splits(total: NDArray[np.float64], weight: NDArray[np.float64] | NDArray[np.int64]) -> Iterator[_Splits]:
    """Split the pieces that have a weight in a bin: of each bin of sums and weights `[P, B]`."""
    for begin in range(0, total.shape[1], BINS):
        z, w = (values[:, begin : begin + BINS].astype(np.float64) for values in (total, weight))
        known = np.isfinite(z).all(0)  # what is infinite or NaN in one piece has no order among the splits
        w = np.where(known, w, 0.0)
        many = (w > 0).sum(0) > EXACT_PIECES
        drawn: Iterator[NDArray[np.float64]] = iter(_random_splits(z[:, many], w[:, many]) if many.any() else ())
        for column, in_bin in enumerate((w > 0).T):
            z_here, w_here = z[in_bin, column], w[in_bin, column]
            halves = next(drawn) if many[column] else _all_splits(z_here, w_here)
            # A half's mean is a mean of pieces' means, so no larger, and n additions and a division round it.
            largest = np.abs(z_here / w_here).max(initial=0.0)
            noise = (len(z_here) + 2) * np.finfo(np.float64).eps * largest
            yield _Splits(halves.min(0), halves.max(0), float(noise))


def _all_splits(z: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """The means `[2, S]` of both halves of every split of pieces with sums `z` and weights `w` `[n]`, n <= 17."""
    if len(z) < 2:
        return np.empty((2, 0))
    halves = []
    for values in (z, w):
        one = np.zeros(1)
        for value in values[:-1]:
            one = np.concatenate([one, one + value])
        rest = one[::-1] + values[-1]  # subset i's complement is subset -1 - i and the last piece
        halves.append((one[1:], rest[1:]))
    (z_one, z_other), (w_one, w_other) = halves
    return np.stack([z_one / w_one, z_other / w_other])


def _random_splits(total: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The means `[B, 2, RANDOM_SPLITS]` of both halves of random splits, of each bin of `[P, B]`.

    Where one half is empty it holds everything: that split is the pieces as they are.
    """
    rng, pieces = np.random.default_rng(0), len(total)
    columns = np.concatenate([total, weight], axis=1)
    found = []
    step = max(1, SIGNS // pieces)
    for begin in range(0, RANDOM_SPLITS, step):
        inside = rng.integers(0, 2, (min(step, RANDOM_SPLITS - begin), pieces), dtype=np.bool_)
        halves = np.stack([inside.astype(np.float64) @ columns, (~inside).astype(np.float64) @ columns])
        z, w = np.split(halves, 2, axis=2)
        unknown = np.array([-np.inf, np.inf])[:, None, None]
        found.append(np.divide(z, w, out=np.broadcast_to(unknown, z.shape).copy(), where=w > 0))
    means = np.concatenate(found, axis=1)
    means = np.where(np.isinf(means).any(0), np.array([-np.inf, np.inf])[:, None, None], means)
    return np.ascontiguousarray(means.transpose(2, 0, 1))


def _paired(ours: PieceSums, theirs: PieceSums) -> PieceSums:
    if not np.array_equal(ours.count, theirs.count):
        raise ValueError("theirs: expected the same tokens of the same pieces as in ours")
    with np.errstate(invalid="ignore"):  # where both are infinite, the difference is unknown: NaN
        return PieceSums(ours.total - theirs.total, ours.count).without_rounding


def _ratio(total: NDArray[np.float64], count: NDArray[np.floating | np.integer]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return ratio
