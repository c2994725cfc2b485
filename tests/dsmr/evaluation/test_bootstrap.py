"""Means over pieces: values that are known, the sign-flip test against its definition, and Holm's correction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr.evaluation import bootstrap
from dsmr.evaluation.bootstrap import ROUNDING, PieceSums, compare_bins, compare_mean_of_bins, holm

FEWEST = 6
"""Pieces: 2 / 2^6 is the first below 5 %."""


def sums(*pieces: list[tuple[int, float]], bins: int = 2) -> PieceSums:
    """Each piece is its tokens' bins and values."""
    return PieceSums.of([(np.array([b for b, _ in p], int), np.array([v for _, v in p], float)) for p in pieces], bins)


def nothing(like: PieceSums) -> PieceSums:
    return PieceSums(np.zeros_like(like.total), like.count)


def flipped(total: NDArray[np.float64]) -> float:
    """The definition: of all signs of the pieces' sums, how many give a sum at least as large as the real one."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(total))))
    rounding = 1e-12 * np.abs(total).sum()
    return float((np.abs(signs @ total) >= abs(total.sum()) - rounding).mean())


def test_every_token_of_a_bin_counts_the_same() -> None:
    found = sums([(0, 1.0), (0, 3.0), (1, 8.0)], [(0, 5.0)])
    assert found.mean.tolist() == [3.0, 8.0]
    assert found.tokens.tolist() == [3, 1]
    assert found.pieces.tolist() == [2, 1]
    assert found.mean_of_bins == 5.5
    assert found.pooled.mean.tolist() == [17 / 4]


def test_empty_bins_are_unknown_and_left_out_of_the_mean() -> None:
    found = sums([(0, 1.0)], [], bins=3)
    np.testing.assert_array_equal(found.mean, [1.0, np.nan, np.nan])
    assert found.mean_of_bins == 1.0
    assert found.intervals() == [None, None, None]
    assert found.interval_of_bins() is None
    assert np.isnan(sums([], [], bins=3).mean_of_bins)


pieces_of_tokens = st.lists(
    st.tuples(st.floats(-9, 9).map(lambda value: round(value, 2)), st.integers(1, 50)), min_size=FEWEST, max_size=11
)


@given(pieces_of_tokens)
@settings(max_examples=60)
def test_the_p_value_is_the_share_of_all_sign_flips(pieces: list[tuple[float, int]]) -> None:
    mean, count = np.array(pieces).T[:, :, None]
    found = PieceSums(mean * count, count.astype(np.int64))
    (only,) = compare_bins(found, nothing(found))
    assert only.p == flipped((mean * count)[:, 0])


@given(pieces_of_tokens, st.floats(-9, 9))
@settings(max_examples=60)
def test_the_interval_holds_what_the_test_does_not_reject(pieces: list[tuple[float, int]], theta: float) -> None:
    mean, count = np.array(pieces).T[:, :, None]
    (interval,) = PieceSums(mean * count, count.astype(np.int64)).intervals()
    assert interval is not None
    low, high = interval
    for inside in (low, high, (low + high) / 2):
        assert flipped(((mean - inside) * count)[:, 0]) > 0.05
    if not low - 1e-9 <= theta <= high + 1e-9:
        assert flipped(((mean - theta) * count)[:, 0]) <= 0.05


@given(pieces_of_tokens, st.sampled_from([0.5, 0.8, 0.9]))
@settings(max_examples=40)
def test_a_wider_interval_holds_a_narrower_one(pieces: list[tuple[float, int]], confidence: float) -> None:
    mean, count = np.array(pieces).T[:, :, None]
    found = PieceSums(mean * count, count.astype(np.int64))
    ((low, high),), ((outer_low, outer_high),) = found.intervals(confidence=confidence), found.intervals()
    assert outer_low <= low <= high <= outer_high


def test_random_splits_agree_with_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(50, 2000, (16, 4))
    ours = PieceSums((rng.normal(size=(16, 4)) + 0.4) * count, count)
    exact = compare_bins(ours, nothing(ours))
    monkeypatch.setattr(bootstrap, "EXACT_PIECES", 0)
    drawn = compare_bins(ours, nothing(ours))
    for all_of_them, many in zip(exact, drawn, strict=True):
        assert all_of_them.p is not None
        # Five deviations of the share of 65,535 draws.
        spread = 5 * np.sqrt(all_of_them.p / bootstrap.RANDOM_SPLITS)
        assert many.p == pytest.approx(all_of_them.p, abs=spread)
        assert many.interval == pytest.approx(all_of_them.interval, abs=0.05)
    assert drawn == compare_bins(ours, nothing(ours))


def test_bins_that_few_and_many_pieces_reach_are_tested_as_if_alone() -> None:
    rng = np.random.default_rng(1)
    count = rng.integers(1, 9, (40, 50))
    count[rng.permutation(40)[:25], ::3] = 0
    ours = PieceSums(rng.normal(size=(40, 50)) * count, count)
    together = compare_bins(ours, nothing(ours))
    for number in (0, 3, 48):  # 15 pieces: every split
        (alone,) = compare_bins(ours.bin(number), nothing(ours.bin(number)))
        assert (alone.p, alone.interval) == (together[number].p, together[number].interval)
    assert all(each.p is not None for each in together)


@pytest.mark.parametrize("pieces", [FEWEST, 17, 18, 40])
def test_a_constant_difference_is_certain_however_much_pieces_differ(pieces: int) -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 9, (pieces, 2))
    theirs = PieceSums(rng.normal(size=(pieces, 2)) * count * 10, count)
    ours = PieceSums(theirs.total + 0.5 * count, count)
    least = 2 ** -(min(pieces, 17) - 1)
    for found in (*compare_bins(ours, theirs), compare_mean_of_bins(ours, theirs)):
        assert found.value == pytest.approx(0.5)
        assert found.interval == pytest.approx((0.5, 0.5))
        assert found.p == pytest.approx(least, abs=2**-16)


def test_no_difference_has_a_p_value_of_one() -> None:
    same = sums(*[[(0, 1.0 + number), (1, 2.0)] for number in range(8)])
    for found in (*compare_bins(same, same), compare_mean_of_bins(same, same)):
        assert (found.value, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("pieces", [8, 20])
@pytest.mark.parametrize("noise", [1e-12, 1e-7, 0.9 * ROUNDING], ids=lambda noise: f"{noise:.0e}")
def test_rounding_is_no_difference_although_all_of_it_has_one_sign(pieces: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(100, 999, (pieces, 3))
    theirs = PieceSums(rng.uniform(2, 5, (pieces, 3)) * count, count)
    ours = PieceSums(theirs.total + noise * count, count)
    for found in (*compare_bins(ours, theirs), compare_mean_of_bins(ours, theirs)):
        assert (found.value, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_rounding_beside_one_real_difference_is_no_evidence() -> None:
    count = np.full((20, 1), 100)
    real = np.where(np.arange(20) == 3, 0.3, 0.5 * ROUNDING)[:, None]
    ours = PieceSums(real * count, count)
    (found,) = compare_bins(ours, nothing(ours))
    assert found.value == pytest.approx(0.3 / 20)
    assert found.p == 1.0  # whatever its sign, the one piece is as large


@pytest.mark.parametrize("pieces", range(1, FEWEST))
def test_too_few_pieces_have_a_difference_but_no_test(pieces: int) -> None:
    count = np.full((pieces, 2), 100)
    ours = PieceSums(count * np.arange(1.0, 1.0 + pieces)[:, None], count)
    expected = (1 + pieces) / 2
    for found in (*compare_bins(ours, nothing(ours)), compare_mean_of_bins(ours, nothing(ours))):
        assert (found.value, found.interval, found.p) == (pytest.approx(expected), None, None)
    assert ours.intervals() == [None, None]
    assert ours.interval_of_bins() is None


def test_pieces_without_tokens_in_a_bin_do_not_help_it() -> None:
    count = np.full((9, 2), 100)
    count[5:, 1] = 0
    ours = PieceSums(count * 0.5, count)
    first, second = compare_bins(ours, nothing(ours))
    assert first.p == 2 / 2**9
    assert (second.value, second.p) == (0.5, None)
    assert compare_mean_of_bins(ours, nothing(ours)).p == 2 / 2**9


def test_fewer_pieces_have_an_interval_of_less_confidence() -> None:
    count = np.full((5, 1), 100)
    found = PieceSums(count * np.arange(5.0)[:, None], count)
    assert found.intervals() == [None]
    assert found.intervals(confidence=0.9) == [(0.0, 4.0)]  # 2 / 2^5 outside: from the least to the largest


@pytest.mark.parametrize("pieces", [7, 40])
@pytest.mark.parametrize(("ours", "theirs"), [(np.nan, 0), (np.inf, 0), (0, np.inf), (np.inf, np.inf)])
def test_a_loss_that_is_no_number_shows_nothing(pieces: int, ours: float, theirs: float) -> None:
    count = np.full((pieces, 2), 100)
    first, second = (PieceSums(count * level, count) for level in (0.5, 0.25))
    first.total[3, 1], second.total[3, 1] = ours, theirs
    sound, spoilt = compare_bins(first, second)
    assert sound.p is not None
    assert sound.p < 0.05
    assert not np.isfinite(spoilt.value)
    assert (spoilt.interval, spoilt.p) == (None, None)
    assert compare_mean_of_bins(first, second).p is None
    if not np.isfinite(ours):
        assert first.intervals()[1] is None


def test_holms_correction() -> None:
    # Holm (1979), by hand: 3 * 0.01, then 2 * 0.02, then 0.5, in the order of the arguments.
    assert holm([0.02, 0.5, 0.01]) == pytest.approx([0.04, 0.5, 0.03])
    assert holm([0.02, 0.019, 0.021]) == pytest.approx([0.057, 0.057, 0.057])  # no larger p below a smaller one
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_corrected_p_values_keep_their_order_and_lie_between_plain_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, holms in zip(p_values, corrected, strict=True):
        assert p <= holms <= min(1.0, len(p_values) * p) or holms == max(corrected)
    in_order = [corrected[i] for i in np.argsort(p_values)]
    assert in_order == sorted(in_order)


def test_other_tokens_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="theirs: expected the same tokens"):
        compare_bins(sums([(0, 1.0)]), sums([(1, 1.0)]))


def test_bad_confidence_is_named() -> None:
    for confidence in (0.0, 1.0):
        with pytest.raises(ValueError, match="confidence: expected between 0 and 1, got"):
            sums([(0, 1.0)]).intervals(confidence=confidence)


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.floats(-9, 9)), max_size=6), min_size=1, max_size=5))
def test_bins_and_pooling_agree_with_plain_sums(pieces: list[list[tuple[int, float]]]) -> None:
    found = sums(*pieces, bins=4)
    tokens = [token for piece in pieces for token in piece]
    for b in range(4):
        values = [value for at, value in tokens if at == b]
        assert found.tokens[b] == len(values)
        if values:
            assert found.mean[b] == pytest.approx(np.mean(values), abs=1e-12)
    if tokens:
        assert found.pooled.mean[0] == pytest.approx(np.mean([value for _, value in tokens]), abs=1e-12)
