"""Means over pieces and seeds: what other pieces and other seeds would leave a mean in.

Both are samples: the pieces of the music, the seeds of the trainings. So a quantity that was measured for every piece
with every seed varies in two crossed ways, and a mean over both has the variance

    Var = MS_pieces / (P S) + MS_seeds / (P S)

with P pieces, S seeds and the mean squares of a two-way layout. Each mean square also holds the residual, so this
counts it twice and errs on the careful side. The degrees of freedom are Satterthwaite's (1946), which makes the test
Clark's quasi-F (1973, "The language-as-fixed-effect fallacy") and the interval Student's. With one seed there is
nothing to know of seeds, and the variance is that of the pieces alone.

The degrees of freedom are estimated, too. So of 95 % intervals 95 % hold the truth if one of both varies far more than
the other; at the worst mixture 94 % do with five seeds, 92 % with three, and 87 % with two (`LEAST_HELD`).

Means are per token, so pieces weigh differently: with weights w_p, which sum to 1, the first term is the sum of
(w_p d_p)^2 / (1 - w_p), d_p being how far a piece's mean is from that of all, and its degrees of freedom are
1 / sum(w_p^2) - 1. With equal weights both are the textbook's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsmr.evaluation.bootstrap import CONFIDENCE, Interval, PieceSums

FEWEST_PIECES = 6
"""As few as the sign-flip test needs for an interval; fewer say nothing about others."""
LEAST_HELD = {2: 0.87, 3: 0.92, 5: 0.94}
"""By the number of seeds, how many intervals hold the truth at the worst: of 400,000, with 24 and 150 pieces."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(128)


@dataclass(frozen=True)
class Estimate:
    """A mean, and how well it is known.

    Args:
        value: the mean over seeds of the mean over tokens.
        error: its standard error.
        freedom: the error's degrees of freedom, at least 1.
        pieces, seeds: how many it rests on.
    """

    value: float
    error: float
    freedom: float
    pieces: int
    seeds: int

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval; None for fewer than six pieces."""
        if (half := self.half_width) is None:
            return None
        return self.value - half, self.value + half

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.pieces < FEWEST_PIECES else self.error * student_quantile(1 - CONFIDENCE, self.freedom)

    @property
    def p(self) -> float | None:
        """Two-sided, of the mean being 0; None where there is no interval."""
        if self.pieces < FEWEST_PIECES:
            return None
        if self.error == 0:
            return float(self.value == 0)
        return student_p(self.value / self.error, self.freedom)


def estimate(seeds: Sequence[PieceSums]) -> Estimate:
    """The mean of bins (see `PieceSums.mean_of_bins`) over pieces and seeds.

    Args:
        seeds: one for each seed, at least one, all of the same tokens of the same pieces.

    Raises:
        ValueError: no seed, or other tokens.
    """
    if not seeds or any(not np.array_equal(each.count, seeds[0].count) for each in seeds):
        raise ValueError("seeds: expected the same tokens of the same pieces with each of one or more seeds")
    shares = [each.without_rounding.shares_of_bins() for each in seeds]
    weight = shares[0][1][:, 0]
    here = weight > 0
    weight = weight[here]
    total = np.array([total[here, 0] for total, _ in shares])
    pieces, count = len(weight), len(seeds)
    if not pieces:
        return Estimate(math.nan, math.nan, 1.0, 0, count)
    value = float(total.sum(1).mean())
    if pieces == 1:
        return Estimate(value, math.nan, 1.0, 1, count)
    of_pieces = float(((total.mean(0) - value * weight) ** 2 / (1 - weight)).sum())
    freedom_of_pieces = max(1.0, 1 / float((weight**2).sum()) - 1)
    if count == 1:
        return Estimate(value, math.sqrt(of_pieces), freedom_of_pieces, pieces, 1)
    of_seeds = float(total.sum(1).var(ddof=1)) / count
    variance = of_pieces + of_seeds
    spread = of_pieces**2 / freedom_of_pieces + of_seeds**2 / (count - 1)
    return Estimate(value, math.sqrt(variance), variance**2 / spread if spread else 1.0, pieces, count)


def compare(ours: Sequence[PieceSums], theirs: Sequence[PieceSums]) -> Estimate:
    """The difference `ours - theirs` of that mean, piece by piece and seed by seed; raises as `estimate` does."""
    for mine, other in zip(ours, theirs, strict=True):
        if not np.array_equal(mine.count, other.count):
            raise ValueError("theirs: expected the same tokens of the same pieces as in ours")
    pairs = zip(ours, theirs, strict=True)
    return estimate([PieceSums(mine.total - other.total, mine.count) for mine, other in pairs])


def student_p(t: float, freedom: float) -> float:
    """How often Student's t with so many degrees of freedom, at least 1, is as far from 0 as `t`.

    With t = sqrt(freedom) tan(a) the density is that of cos(a)^(freedom - 1), whose integral Gauss's rule gives to
    seven digits. Six lines are no reason to depend on SciPy, which has the same.
    """
    lowest = math.atan(abs(t) / math.sqrt(freedom))
    half = (math.pi / 2 - lowest) / 2
    angle_from_end = half * (1 + NODES)
    integral = half * float(WEIGHTS @ np.sin(angle_from_end) ** (freedom - 1))
    log_beta = math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    return min(1.0, 2 * integral * math.exp(-log_beta))


def student_quantile(p: float, freedom: float) -> float:
    """The `t` of which `student_p` is `p`."""
    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        t = math.sqrt(freedom) * math.tan(middle)
        low, high = (middle, high) if student_p(t, freedom) > p else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
