"""Means over pieces and seeds: against computations by hand, and against many studies of which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr.evaluation.bootstrap import PieceSums
from dsmr.study.estimates import LEAST_HELD, compare, estimate, student_p, student_quantile

Values = NDArray[np.float64]


def seeds_of(means: Values, tokens: Values | int = 100) -> list[PieceSums]:
    """Sums of pieces with these means `[S, P]`; `tokens` `[P]` or the same for all."""
    count = np.broadcast_to(np.asarray(tokens, dtype=np.int64), means.shape[1:])[:, None]
    return [PieceSums(row[:, None] * count, count) for row in means]


def test_of_equal_pieces_is_the_textbooks() -> None:
    """Two-way layout of 6 pieces and 2 seeds, by the mean squares themselves."""
    y = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 9.0], [2.0, 2.0, 5.0, 4.0, 6.0, 11.0]])
    seeds, pieces = y.shape
    ms_pieces = seeds * ((y.mean(0) - y.mean()) ** 2).sum() / (pieces - 1)
    ms_seeds = pieces * ((y.mean(1) - y.mean()) ** 2).sum() / (seeds - 1)
    found = estimate(seeds_of(y))
    assert found.value == pytest.approx(54 / 12)
    assert found.error == pytest.approx(math.sqrt((ms_pieces + ms_seeds) / (pieces * seeds)))
    assert found.freedom == pytest.approx(
        (ms_pieces + ms_seeds) ** 2 / (ms_pieces**2 / (pieces - 1) + ms_seeds**2 / (seeds - 1))
    )
    assert (found.pieces, found.seeds) == (6, 2)


def test_of_one_seed_is_students_over_pieces() -> None:
    y = np.array([[0.1, 0.3, -0.2, 0.4, 0.2, 0.6]])
    found = estimate(seeds_of(y))
    assert found.value == pytest.approx(1.4 / 6)
    assert found.error == pytest.approx(y.std(ddof=1) / math.sqrt(6))
    assert found.freedom == pytest.approx(5)
    assert found.half_width == pytest.approx(2.570582 * found.error, rel=1e-6)  # Student's t, 5 degrees of freedom


def test_long_pieces_weigh_more_and_pieces_without_tokens_nothing() -> None:
    found = estimate(seeds_of(np.array([[1.0, 2.0, 3.0, 9.0]]), np.array([100, 100, 200, 0])))
    assert found.value == pytest.approx(2.25)
    assert found.pieces == 3
    weight, away = np.array([0.25, 0.25, 0.5]), np.array([-1.25, -0.25, 0.75])
    assert found.error == pytest.approx(math.sqrt(((weight * away) ** 2 / (1 - weight)).sum()))
    assert found.freedom == pytest.approx(1 / (0.0625 + 0.0625 + 0.25) - 1)


def test_bins_count_the_same() -> None:
    sums = PieceSums(np.array([[10.0, 90.0], [30.0, 0.0]]), np.array([[10, 30], [10, 0]]))
    assert estimate([sums]).value == pytest.approx((40 / 20 + 90 / 30) / 2)


def test_fewer_than_six_pieces_have_no_interval() -> None:
    few, enough = (estimate(seeds_of(np.arange(count, dtype=float)[None])) for count in (5, 6))
    assert (few.interval, few.half_width, few.p) == (None, None, None)
    assert enough.interval is not None
    assert enough.p is not None
    nothing = estimate(seeds_of(np.ones((2, 3)), 0))
    assert math.isnan(nothing.value)
    assert nothing.interval is None
    assert estimate(seeds_of(np.ones((2, 1)))).interval is None


def test_nothing_differs_from_itself() -> None:
    sums = seeds_of(np.random.default_rng(0).normal(size=(3, 8)))
    found = compare(sums, sums)
    assert (found.value, found.interval, found.p) == (0, (0, 0), 1)
    constant = estimate(seeds_of(np.full((3, 8), 2.0)))
    assert constant.p == pytest.approx(0, abs=1e-12)


def test_other_tokens_are_refused() -> None:
    ours, theirs = seeds_of(np.ones((2, 8))), seeds_of(np.ones((2, 8)), 99)
    for wrong in (lambda: compare(ours, theirs), lambda: estimate([ours[0], theirs[0]]), lambda: estimate([])):
        with pytest.raises(ValueError, match="expected the same tokens of the same pieces"):
            wrong()
    with pytest.raises(ValueError, match="shorter"):
        compare(ours, ours[:1])


def test_students_t_with_a_formula_of_its_own() -> None:
    """With 1, 2 and 3 degrees of freedom the distribution is elementary."""
    for t in (1e-6, 0.3, 1.0, 4.0, 50.0):
        x = t / math.sqrt(3)
        assert student_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-7, abs=1e-12)
        assert student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-7, abs=1e-12)
        three = 1 - 2 / math.pi * (x / (1 + x * x) + math.atan(x))
        assert student_p(t, 3) == pytest.approx(three, rel=1e-7, abs=1e-12)


@given(st.floats(1e-6, 1), st.floats(1, 2000))
def test_students_quantile_is_the_inverse(p: float, freedom: float) -> None:
    assert student_p(student_quantile(p, freedom), freedom) == pytest.approx(p, rel=1e-6)


MEANS = st.lists(st.lists(st.floats(-5, 5), min_size=7, max_size=7), min_size=1, max_size=4).map(np.array)


@given(MEANS, st.floats(0.25, 4))
def test_scaling_scales_and_the_interval_holds_zero_where_p_is_large(means: Values, scale: float) -> None:
    tokens = np.array([50, 100, 100, 150, 200, 200, 400])
    found, scaled = estimate(seeds_of(means, tokens)), estimate(seeds_of(scale * means, tokens))
    # Sums of at most 28 numbers of at most 20: 1e-4 is far above rounding, and above what counts as rounding (2^-17).
    assert scaled.value == pytest.approx(scale * found.value, abs=1e-4)
    assert scaled.error == pytest.approx(scale * found.error, rel=1e-3, abs=1e-4)
    assert found.interval is not None
    assert found.p is not None
    if abs(found.p - 0.05) > 1e-6:
        assert (found.interval[0] <= 0 <= found.interval[1]) == (found.p > 0.05)


TRIALS, DEVIATIONS = 2000, 4
MARGIN = DEVIATIONS * math.sqrt(0.05 * 0.95 / TRIALS)
"""A share of 95 % comes out lower or higher by more than this in one table of 15,000; the trials never change."""


def covered(pieces: int, seeds: int, of_pieces: float, of_seeds: float, of_both: float) -> float:
    """How often the interval holds the truth, by the p-value of the truth, of `TRIALS` studies.

    Effects of pieces, of seeds and of both are normal with these deviations. Lengths differ fourfold.
    """
    rng = np.random.default_rng([pieces, seeds])
    tokens = rng.integers(500, 2000, pieces)
    held = 0
    for _ in range(TRIALS):
        y = of_pieces * rng.normal(size=(1, pieces)) + of_seeds * rng.normal(size=(seeds, 1))
        p = estimate(seeds_of(y + of_both * rng.normal(size=(seeds, pieces)), tokens)).p
        held += p is not None and p > 0.05
    return held / TRIALS


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_only_seeds_or_only_pieces_differ_95_per_cent_are_95(seeds: int) -> None:
    """There the interval is Student's own, of seeds or (nearly, since lengths differ) of pieces."""
    assert covered(30, seeds, 0, 1, 0) == pytest.approx(0.95, abs=MARGIN)
    assert covered(30, seeds, 1, 0, 0) == pytest.approx(0.95, abs=MARGIN)


@pytest.mark.parametrize("seeds", LEAST_HELD)
def test_at_the_worst_mixture_as_many_hold_as_is_said(seeds: int) -> None:
    """Nine tenths of the variance are of the seeds, and there is no residual."""
    held = covered(30, seeds, 1, math.sqrt(9 * seeds / 30), 0)
    assert held == pytest.approx(LEAST_HELD[seeds] + 0.005, abs=0.005 + MARGIN)


@pytest.mark.parametrize("of_seeds", [0.05, 0.5])
def test_a_residual_makes_intervals_wider_than_promised(of_seeds: float) -> None:
    """It counts twice."""
    held = covered(30, 3, 1, of_seeds, 2)
    assert 0.95 - MARGIN <= held < 1
