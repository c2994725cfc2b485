"""The bootstrap over pieces: means, intervals and paired tests whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.bootstrap import PieceSums, compare, compare_mean_of_bins, draws, interval, p_value


def sums(*pieces: list[tuple[int, float]], bins: int = 2) -> PieceSums:
    """Each piece is its tokens' bins and values."""
    return PieceSums.of([(np.array([b for b, _ in p], int), np.array([v for _, v in p], float)) for p in pieces], bins)


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


def test_draws_are_with_replacement_and_the_same_each_time() -> None:
    drawn = draws(5, 1000, seed=3)
    assert (drawn.sum(1) == 5).all()
    np.testing.assert_array_equal(drawn, draws(5, 1000, seed=3))
    assert (drawn != draws(5, 1000, seed=4)).any()
    # How often one piece is drawn is binomial(5, 1/5): variance 0.8; five deviations of its mean over 1,000 draws.
    assert np.abs(drawn.mean(0) - 1).max() < 5 * np.sqrt(0.8 / 1000)


def test_the_spread_of_resampled_means_is_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=100)
    found = PieceSums(values[:, None], np.ones((100, 1), dtype=np.int64))
    expected = values.std() / np.sqrt(100)
    # The deviation of R = 2,000 draws is known to 1 / sqrt(2 R) = 1.6 %.
    assert found.resampled().std() == pytest.approx(expected, rel=5 / np.sqrt(2 * 2000))
    low, high = found.intervals()[0]
    assert low < values.mean() < high


def test_a_constant_difference_is_certain_however_much_pieces_differ() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 9, (20, 2))
    theirs = PieceSums(rng.normal(size=(20, 2)) * count * 10, count)
    ours = PieceSums(theirs.total + 0.5 * count, count)
    for found in (*compare(ours, theirs), compare_mean_of_bins(ours, theirs)):
        assert found.value == pytest.approx(0.5)
        assert found.interval == pytest.approx((0.5, 0.5))
        assert found.p == 2 / 2001


def test_no_difference_has_a_p_value_of_one() -> None:
    same = sums([(0, 1.0), (1, 2.0)], [(0, 3.0), (1, 2.0)])
    for found in (*compare(same, same), compare_mean_of_bins(same, same)):
        assert (found.value, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_one_piece_has_a_difference_but_no_test() -> None:
    one, other = sums([(0, 1.0), (1, 2.0)]), sums([(0, 3.0), (1, 2.0)])
    assert [(d.value, d.interval, d.p) for d in compare(one, other)] == [(-2.0, None, None), (0.0, None, None)]


def test_the_p_value_counts_the_smaller_tail_twice() -> None:
    assert p_value(np.array([-1.0, 1.0, 2.0, 3.0])) == 2 * 2 / 5
    assert p_value(np.array([-1.0, 1.0, 2.0, np.nan])) == 1.0  # 2 * 2 / 4
    assert p_value(np.ones(99)) == 2 / 100


def test_other_tokens_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="theirs: expected the same tokens"):
        compare(sums([(0, 1.0)]), sums([(1, 1.0)]))


def test_bad_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="resamples: expected at least 1, got 0"):
        sums([(0, 1.0)]).resampled(resamples=0)
    with pytest.raises(ValueError, match="confidence: expected between 0 and 1, got 1"):
        interval(np.ones(3), 1.0)


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
