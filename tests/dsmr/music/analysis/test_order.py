"""Order: a bigram's music and shuffled notes are noise, the corpus's own music is not more often than promised."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.store import TokenStore
from dsmr.evaluation.baselines import Bigram
from dsmr.music.analysis.order import (
    DECIDING,
    FALSE_ALARM,
    FEWEST,
    FEWEST_PIECES,
    ORDER_NUMBERS,
    Order,
    OrderVerdict,
    UsualOrder,
    measure_order,
    shuffled_notes,
    usual_order,
)
from dsmr.music.analysis.statistics import excerpts
from dsmr.music.tokens import NOTE_DTYPE, decode, duration_seconds, encode

SECONDS = 20.0


def played(pitches: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.void]:
    notes = np.zeros(len(pitches), NOTE_DTYPE)
    notes["pitch"], notes["velocity"] = pitches, 64
    notes["onset"] = times
    notes["offset"] = times + 0.1
    return notes


def numbers(order: Order) -> list[float]:
    return [getattr(order, name) for name in ORDER_NUMBERS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Many short pieces: those whose excerpts judge, and as many that are judged."""
    path: Path = tmp_path_factory.mktemp("store") / "corpus.tokens"
    prepare_pianist(path, seed=5, tokens=240_000, longest=2_500)
    return TokenStore.open(path)


@pytest.fixture(scope="module")
def judges(store: TokenStore) -> list[int]:
    return list(range(0, len(store.pieces), 2))


@pytest.fixture(scope="module")
def order(store: TokenStore, judges: list[int]) -> UsualOrder:
    found = usual_order(map(store.piece, judges), SECONDS)
    assert found.pieces > 2 * FEWEST_PIECES
    return found


@pytest.fixture(scope="module")
def others(store: TokenStore) -> list[NDArray[np.void]]:
    """One excerpt of each piece that judges nothing, so that verdicts on them are independent."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(1, len(store.pieces), 2):
        cut = [notes for notes, _ in excerpts(decode(store.piece(index)).notes, SECONDS)]
        found.append(cut[rng.integers(len(cut))])
    return found


def above_a_limit(verdict: OrderVerdict) -> bool:
    return any(each.value > each.limit for each in verdict.numbers if each.name in DECIDING)


def called_noise(order: UsualOrder, music: list[NDArray[np.void]]) -> int:
    verdicts = [order.judge(measure_order(notes)) for notes in music]
    for verdict in verdicts:
        assert verdict.ordered is not above_a_limit(verdict)
    return sum(verdict.ordered is False for verdict in verdicts)


def highest_likely(count: int, rate: float) -> int:
    """What a binomial of so many exceeds once in 10,000 times."""
    chances = [math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(count + 1)]
    return int(np.searchsorted(np.cumsum(chances), 1 - 1e-4))


def test_music_of_the_corpus_is_called_noise_as_seldom_as_promised(
    order: UsualOrder, others: list[NDArray[np.void]]
) -> None:
    assert called_noise(order, others) <= highest_likely(len(others), FALSE_ALARM)


def test_shuffled_notes_are_noise(order: UsualOrder, others: list[NDArray[np.void]]) -> None:
    rng = np.random.default_rng(1)
    missed = len(others) - called_noise(order, [shuffled_notes(notes, rng) for notes in others])
    assert missed <= highest_likely(len(others), 0.05)


def test_music_by_a_bigram_is_noise(store: TokenStore, order: UsualOrder, judges: list[int]) -> None:
    bigram = Bigram.fit(store, judges)
    takes = [bigram.play(SECONDS, seed) for seed in range(20)]
    assert called_noise(order, [decode(ids).notes for ids in takes]) == len(takes)
    for ids in takes:
        assert duration_seconds(ids) == SECONDS
        np.testing.assert_array_equal(encode(decode(ids))[: len(ids) - 5], ids[:-5])  # but keys that the end cuts off
    np.testing.assert_array_equal(bigram.play(SECONDS, 3), takes[3])


def test_each_number_hears_its_own_kind_of_disorder() -> None:
    rng = np.random.default_rng(0)
    scale = 60 + np.array([0, 2, 4, 5, 7, 9, 11, 12])
    tune = np.tile(np.concatenate([scale, scale[::-1]]), 8)
    rhythm = np.tile([0.4, 0.2, 0.2, 0.8], 32).cumsum()
    good = measure_order(played(tune, rhythm))
    assert good.out_of_key == 0
    assert good.figures < 0.4
    assert good.rhythms < 0.4
    chromatic = measure_order(played(tune + rng.integers(0, 2, len(tune)), rhythm))
    assert chromatic.out_of_key > 0.1
    disordered = measure_order(played(rng.permutation(tune), rhythm))
    assert disordered.figures > 0.9
    assert disordered.rhythms == good.rhythms
    unsteady = measure_order(played(tune, rng.permutation(np.diff(rhythm, prepend=0)).cumsum()))
    assert unsteady.rhythms > 0.9
    assert unsteady.figures == good.figures


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(-12, 12), st.floats(0.8, 1.25))
def test_neither_key_nor_tempo_matters(seed: int, semitones: int, slower: float) -> None:
    """With chords of notes that begin together, and at least 100 ms from one to the next."""
    rng = np.random.default_rng(seed)
    pitches = rng.integers(40, 80, 120)
    times = np.repeat(rng.integers(10, 60, 60).cumsum() / 100, 2)
    one, other = measure_order(played(pitches, times)), measure_order(played(pitches + semitones, times * slower))
    # A ratio of whole numbers never lies on the border of two bins, 2^(1/4): rounding moves none across.
    assert numbers(other) == pytest.approx(numbers(one), rel=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(FEWEST_PIECES, 40), st.integers(1, 4))
def test_a_number_is_above_its_limit_if_and_only_if_the_verdict_is_noise(seed: int, pieces: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    piece = np.repeat(np.arange(pieces), rng.integers(1, most + 1, pieces))
    values = np.round(rng.exponential(size=(len(piece), 3)), 1)  # with ties
    values[rng.random(values.shape) < 0.1] = np.nan
    values[np.isnan(values).all(axis=1)] = 1.0
    order = UsualOrder(values, piece)
    for music in np.round(3 * rng.exponential(size=(40, 3)), 1):
        verdict = order.judge(Order(*music))
        assert verdict.ordered is not above_a_limit(verdict)
        if verdict.ordered is False:
            assert "noise" in verdict.sentence


def test_one_more_piece_is_called_noise_as_seldom_as_promised() -> None:
    """Pieces of unequal length, whose excerpts are alike: each counts once."""
    rng = np.random.default_rng(0)
    trials, alarms = 200, 0
    for _ in range(trials):
        lengths = rng.integers(1, 8, 41)
        piece = np.repeat(np.arange(41), lengths)
        # The longer, the stranger: by excerpts instead of pieces, short ones would be judged by long ones.
        values = (rng.normal(size=(41, 3)) + lengths[:, None] / 2)[piece] + rng.normal(size=(len(piece), 3)) / 3
        alarms += UsualOrder(values[piece < 40], piece[piece < 40]).judge(Order(*values[-1])).ordered is False
    assert alarms <= highest_likely(trials, FALSE_ALARM)


def test_too_little_cannot_tell() -> None:
    few = played(np.arange(60, 60 + FEWEST - 1), np.arange(FEWEST - 1.0))
    assert all(map(math.isnan, numbers(measure_order(few))))
    values = np.random.default_rng(0).random((2 * FEWEST_PIECES, 3))
    order = UsualOrder(values, np.arange(2 * FEWEST_PIECES))
    verdict = order.judge(measure_order(few))
    assert (verdict.ordered, verdict.sentence) == (None, "it has too few notes to tell music from noise")
    small = UsualOrder(values[: FEWEST_PIECES - 1], np.arange(FEWEST_PIECES - 1)).judge(Order(9.0, 9.0, 9.0))
    assert (small.ordered, small.sentence) == (None, "18 pieces are too few to tell music from noise, 19 would do")
    nothing = usual_order([np.empty(0, np.uint16)], SECONDS).judge(Order(9.0, 9.0, 9.0))
    assert (nothing.ordered, nothing.pieces) == (None, 0)
    for each in (verdict, small, nothing):
        assert json.loads(json.dumps(each.to_dict(), allow_nan=False))["ordered"] is None
    with pytest.raises(ValueError, match="seconds: expected a finite number above 0, got 0"):
        usual_order([], 0)


def test_a_free_rhythm_is_said_and_is_no_noise() -> None:
    values = np.random.default_rng(0).random((40, 3))
    verdict = UsualOrder(values, np.arange(40)).judge(Order(0.5, 0.5, 9.0))
    assert verdict.ordered is True
    limit = verdict.numbers[2].limit
    assert np.count_nonzero(values[:, 2] > limit) / 41 <= FALSE_ALARM
    assert verdict.sentence.endswith(f"; not so its rhythms 9.00 (usual are up to {limit:.2f})")


def test_what_no_piece_has_is_not_strange() -> None:
    """Music without chords one after the other has no rhythms: that other music has some says nothing against it."""
    values = np.random.default_rng(0).random((40, 3))
    values[:, 2] = np.nan
    verdict = UsualOrder(values, np.arange(40)).judge(Order(0.5, 0.5, 9.0))
    assert verdict.ordered is True
    assert "rhythms" not in verdict.sentence
    assert math.isinf(verdict.numbers[2].limit)
