"""Calibration by simulation: how often the tests err where there is nothing, and how often intervals hold the truth.

A table of trials is one call, a bin a trial. Beyond 12 pieces 199 splits are drawn: the test is exact for any number
of them, and so many take a moment. The share of 8,000 trials that is in truth `r` comes out above `r` plus 4 of its
deviations once in 30,000 tables, and then in every run, for the trials are always the same: 5 % and 4 deviations are
below 6 %, 95 % less 4 deviations are above 94 %.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dsmr.evaluation import bootstrap
from dsmr.evaluation.bootstrap import Difference, PieceSums, compare_bins, compare_mean_of_bins, holm

TRIALS, DEVIATIONS = 8000, 4
MARGIN = DEVIATIONS * np.sqrt(0.05 * 0.95 / TRIALS)
assert MARGIN < 0.01

Values = NDArray[np.float64]
Shape = tuple[int, int]

NULLS: dict[str, Callable[[np.random.Generator, Shape], Values]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, size=shape),
    "difference of two skewed": lambda rng, shape: rng.lognormal(size=shape) - rng.lognormal(size=shape),
    "few values": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "many pieces alike": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.6),
}
"""What each piece's mean differs by where neither model is better."""


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "EXACT_PIECES", 12)
    monkeypatch.setattr(bootstrap, "RANDOM_SPLITS", 199)


def trials(pieces: int, effect: float = 0.0, *, nulls: tuple[str, ...] = tuple(NULLS), count: int = TRIALS) -> Values:
    """Differences of pieces' means `[pieces, count]`, of all nulls in turn, moved by `effect`."""
    rng = np.random.default_rng([pieces, count])
    shape = (pieces, count // len(nulls))
    return np.concatenate([NULLS[null](rng, shape) for null in nulls], axis=1) + effect


def examined(values: Values) -> list[Difference]:
    """Every second trial's pieces are of equal lengths, the others' lengths differ a hundredfold."""
    rng = np.random.default_rng(0)
    count = np.exp(rng.uniform(np.log(50), np.log(5000), values.shape)).astype(np.int64)
    count[:, ::2] = 500
    return compare_bins(PieceSums(values * count, count), PieceSums(np.zeros(values.shape), count))


def rejected(found: list[Difference]) -> float:
    return sum(each.p is not None and each.p <= 0.05 for each in found) / len(found)


def holding(found: list[Difference], truth: float) -> float:
    return sum(each.interval is None or each.interval[0] <= truth <= each.interval[1] for each in found) / len(found)


@pytest.mark.parametrize("pieces", [2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 20, 40])
def test_five_per_cent_are_no_more_than_six_and_are_what_the_intervals_leave(pieces: int) -> None:
    found = examined(trials(pieces))
    assert rejected(found) <= 0.05 + MARGIN
    assert holding(found, 0.0) == pytest.approx(1 - rejected(found))
    if pieces >= 6:  # it is not by never saying anything
        assert rejected(found) > 0.02


@pytest.mark.parametrize("pieces", [6, 7, 12, 25])
def test_intervals_of_95_per_cent_hold_the_truth_in_94_or_more(pieces: int) -> None:
    effect = 0.75
    assert holding(examined(trials(pieces, effect)), effect) >= 0.95 - MARGIN


def test_the_mean_of_bins_is_as_well_calibrated() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(TRIALS // 4):
        count = rng.integers(0, 300, (9, 4)) * (rng.random((9, 4)) < 0.8)
        values = (rng.normal(size=(9, 4)) + rng.normal(size=(9, 1))) * count  # the bins of a piece go together
        found.append(compare_mean_of_bins(PieceSums(values, count), PieceSums(np.zeros((9, 4)), count)))
    assert rejected(found) <= 0.05 + 2 * MARGIN  # a quarter of the trials: twice the deviation


@pytest.mark.parametrize(("pieces", "effect"), [(6, 3.0), (8, 2.0), (12, 1.3), (20, 1.0), (40, 0.7)])
def test_what_is_there_is_found(pieces: int, effect: float) -> None:
    """Student's test, which knows that they are normal, finds these in 97 % or more of pieces of equal lengths."""
    assert rejected(examined(trials(pieces, effect, nulls=("normal",), count=400))) > 0.75


@pytest.mark.parametrize("kind", ["independent", "equal", "in two groups"])
def test_a_table_of_many_errs_once_in_twenty(kind: str) -> None:
    rng = np.random.default_rng(0)
    tables = rng.random((TRIALS, 10))
    if kind == "equal":
        tables[:] = tables[:, :1]
    if kind == "in two groups":
        tables = np.repeat(tables[:, :2], 5, axis=1)
    wrong = sum(min(holm(table)) <= 0.05 for table in tables.tolist()) / TRIALS
    assert wrong <= 0.05 + MARGIN
