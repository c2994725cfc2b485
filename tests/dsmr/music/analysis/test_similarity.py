"""Self-similarity: what comes back is heard at its distance, in any key, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.store import TokenStore
from dsmr.music.analysis.repetition import FEWEST_KEYS, PASSAGE
from dsmr.music.analysis.similarity import (
    HARMONY_WINDOW,
    MEASURES,
    compare_self_similarity,
    self_similarity,
    usual_self_similarity,
)
from dsmr.music.tokens import NOTE_OFF, TIME_SHIFT


def notes_as_tokens(pitches: np.ndarray) -> np.ndarray:
    """Four tokens a note: on, 100 ms, off, 100 ms."""
    shift = np.full_like(pitches, TIME_SHIFT + 9)
    return np.stack([pitches, shift, pitches + NOTE_OFF, shift], axis=-1).ravel()


def random_pitches(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(30, 90, count)


@pytest.mark.parametrize("semitones", [0, 7])
def test_a_passage_comes_back_at_its_distance(semitones: int) -> None:
    theme = random_pitches(0, 250)
    pitches = np.concatenate([theme, random_pitches(1, 750), theme + semitones])  # 4,000 tokens apart
    near, there, far = self_similarity(notes_as_tokens(pitches), [1_000, 4_000, 16_000])
    assert there.recurrence == pytest.approx(250 / 1250)
    # By chance 8 of 60 pitches fall in the same 7 intervals once in 10^12 times.
    assert near.recurrence == 0
    assert math.isnan(far.recurrence)


def test_distances_have_borders() -> None:
    theme = random_pitches(0, 25)
    tokens = notes_as_tokens(np.concatenate([theme, random_pitches(1, 225), theme]))  # 1,000 tokens apart
    found = self_similarity(tokens, [500, 501, 1_000, 2_000, 2_001])
    assert [each.recurrence > 0 for each in found] == [False, True, True, True, False]


def test_one_key_is_more_alike_than_many() -> None:
    white = np.array([0, 2, 4, 5, 7, 9, 11])
    same = 60 + white[np.random.default_rng(0).integers(0, 7, 600)]
    moving = same + np.repeat(np.arange(10), 60) * 6 % 12
    for start in (same, moving):
        assert self_similarity(notes_as_tokens(start), [1_000])[0].harmony <= 1
    one, many = (self_similarity(notes_as_tokens(pitches), [1_000])[0].harmony for pitches in (same, moving))
    assert one > 0.9 > many


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(2, 300))
def test_recurrence_is_what_trying_all_pairs_finds(seed: int, keys: int, distance: int) -> None:
    pitches = 60 + np.random.default_rng(seed).integers(0, keys, 60)
    tokens = notes_as_tokens(pitches)
    passages = [tuple(np.diff(pitches[i : i + PASSAGE])) for i in range(len(pitches) - PASSAGE + 1)]
    again = np.zeros(len(pitches), bool)
    for late, one in enumerate(passages):
        for early, other in enumerate(passages):
            varied = len(set(pitches[late : late + PASSAGE])) >= FEWEST_KEYS
            if one == other and varied and distance / 2 <= 4 * (late - early) < 2 * distance:
                again[late : late + PASSAGE] = True
    assert self_similarity(tokens, [distance])[0].recurrence == pytest.approx(again.mean())


def test_short_music_has_none() -> None:
    for tokens in ([], notes_as_tokens(random_pitches(0, 5)), notes_as_tokens(random_pitches(0, HARMONY_WINDOW))):
        (found,) = self_similarity(tokens, [10_000])
        assert math.isnan(found.harmony)
        assert math.isnan(found.recurrence)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path: Path = tmp_path_factory.mktemp("store") / "corpus.tokens"
    prepare_pianist(path, seed=1, tokens=60_000, longest=6_000)
    return TokenStore.open(path)


def test_the_pianists_returns_are_heard(store: TokenStore) -> None:
    """In pieces whose labels say that something returns, more recurs than in the same notes in disorder."""
    rng = np.random.default_rng(0)
    recurring, disordered = [], []
    for index, piece in enumerate(store.pieces):
        if any(each.start - each.source_start > 600 for each in piece.returns):
            pitches = store.piece(index)[store.piece(index) < NOTE_OFF].astype(np.int64)
            recurring.append(self_similarity(store.piece(index), [1_000])[0].recurrence)
            disordered.append(self_similarity(notes_as_tokens(rng.permutation(pitches)), [1_000])[0].recurrence)
    assert len(recurring) >= 3
    assert np.mean(recurring) > 0.1 > np.mean(disordered)


def test_a_corpus_is_as_usual_as_itself(store: TokenStore) -> None:
    indices = store.indices("train")
    usual = usual_self_similarity(map(store.piece, indices), 2_000, [1_000, 16_000])
    (compared, too_far) = compare_self_similarity(
        self_similarity(store.piece(indices[0])[:2_000], [1_000, 16_000]), usual
    )
    assert [each.name for each in compared] == list(MEASURES)
    assert all(each.low <= each.value <= each.high and each.within is None for each in compared)
    assert all(math.isnan(each.low) and each.within is None for each in too_far)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="distances: expected at least 2 tokens each, got 1"):
        self_similarity([], [1])
    with pytest.raises(ValueError, match="tokens: expected at least 1, got 0"):
        usual_self_similarity([], 0)
