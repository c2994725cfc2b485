"""Repetition: what comes back long after it was played is found, in any key, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.store import TokenStore
from dsmr.music.analysis.panels import repetition_rows
from dsmr.music.analysis.repetition import (
    FEWEST_KEYS,
    LONG_BEFORE,
    PASSAGE,
    SAMPLE,
    compare_repetition,
    excerpts_of,
    repeated,
    repeated_share,
    shuffled,
)
from dsmr.music.tokens import NOTE_OFF, TIME_SHIFT

NOTE_SECONDS = 0.2
TOKENS_A_NOTE = 4


def notes_as_tokens(pitches: np.ndarray) -> np.ndarray:
    """Four tokens a note: on, 100 ms, off, 100 ms."""
    shift = np.full_like(pitches, TIME_SHIFT + 9)
    return np.stack([pitches, shift, pitches + NOTE_OFF, shift], axis=-1).ravel().astype(np.uint16)


def random_pitches(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(30, 90, count)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    path: Path = tmp_path_factory.mktemp("store") / "corpus.tokens"
    prepare_pianist(path, seed=1, tokens=60_000, longest=6_000, workers=0)
    store = TokenStore.open(path)
    return [store.piece(index) for index in store.indices("train")]


@pytest.mark.parametrize("semitones", [0, 7])
def test_a_theme_is_found_where_it_comes_back(semitones: int) -> None:
    theme = random_pitches(0, 50)
    tokens = notes_as_tokens(np.concatenate([theme, random_pitches(1, 150), theme + semitones, random_pitches(2, 50)]))
    ((begin, end),) = repeated(tokens)
    assert begin == pytest.approx(200 * NOTE_SECONDS)
    assert end == pytest.approx(249 * NOTE_SECONDS)
    assert repeated_share(tokens) == pytest.approx(50 / 300)


def test_what_comes_back_soon_is_no_memory() -> None:
    apart, theme = LONG_BEFORE // TOKENS_A_NOTE, random_pitches(0, 20)
    soon, later = (
        notes_as_tokens(np.concatenate([theme, random_pitches(1, n - 20), theme])) for n in (apart - 1, apart)
    )
    assert repeated(soon) == []
    ((begin, end),) = repeated(later)
    assert (begin, end) == pytest.approx((apart * NOTE_SECONDS, (apart + 19) * NOTE_SECONDS))


@pytest.mark.parametrize("figure", [[60], [60, 62], [48, 55, 52, 55]], ids=["tremolo", "trill", "broken chord"])
def test_music_that_is_stuck_remembers_nothing(figure: list[int]) -> None:
    tokens = notes_as_tokens(np.resize(figure, 400))
    assert repeated_share(tokens) == 0
    assert repeated(tokens) == []


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(1, 300))
def test_finds_what_trying_all_pairs_finds(seed: int, keys: int, least: int) -> None:
    pitches = 60 + np.random.default_rng(seed).integers(0, keys, 80)
    passages = [tuple(np.diff(pitches[i : i + PASSAGE])) for i in range(len(pitches) - PASSAGE + 1)]
    again = np.zeros(len(pitches), bool)
    for late, one in enumerate(passages):
        for early, other in enumerate(passages):
            varied = len(set(pitches[late : late + PASSAGE])) >= FEWEST_KEYS
            if one == other and varied and TOKENS_A_NOTE * (late - early) >= least:
                again[late : late + PASSAGE] = True
    tokens = notes_as_tokens(pitches)
    marked = np.zeros(len(pitches), bool)
    for begin, end in repeated(tokens, least):
        marked[round(begin / NOTE_SECONDS) : round(end / NOTE_SECONDS) + 1] = True
    np.testing.assert_array_equal(marked, again)
    assert repeated_share(tokens, least) == pytest.approx(again.mean())


@pytest.mark.parametrize("notes", [0, 5, LONG_BEFORE // TOKENS_A_NOTE])
def test_short_music_has_no_share(notes: int) -> None:
    assert math.isnan(repeated_share(notes_as_tokens(random_pitches(0, notes))))
    assert repeated(notes_as_tokens(random_pitches(0, notes))) == []


def test_snippets_are_of_different_pieces() -> None:
    pieces = [np.full(length, number, np.uint16) for number, length in enumerate([30, 10, 25, 9, 40])]
    made = shuffled(pieces, 35, count=50, snippet=10)
    assert all(each.shape == (35,) and each.dtype == np.uint16 for each in made)
    for each in made:
        snippets = [set(each[at : at + 10].tolist()) for at in range(0, 35, 10)]
        assert all(len(snippet) == 1 for snippet in snippets)
        assert len(set.union(*snippets)) == 4
        assert 3 not in set.union(*snippets)  # shorter than a snippet
    again = shuffled(pieces, 35, count=50, snippet=10)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    with pytest.raises(ValueError, match="pieces: expected 5 of at least 10 tokens, got 4"):
        shuffled(pieces, 41, count=1, snippet=10)


def test_what_returns_in_the_corpus_does_not_in_its_snippets(corpus: list[np.ndarray]) -> None:
    music = {"a piece": max(corpus, key=len)[:2_000], "short": corpus[0][:LONG_BEFORE]}
    piece, short = compare_repetition(music, corpus)
    assert (piece.name, piece.tokens, len(piece.shuffled)) == ("a piece", 2_000, SAMPLE)
    assert piece.share == repeated_share(music["a piece"])
    assert np.median(piece.corpus) > 0.1 > np.percentile(piece.shuffled, 95)
    assert math.isnan(short.share)
    assert (len(short.corpus), len(short.shuffled)) == (0, 0)
    assert short.to_dict()["share"] is None


def test_a_few_pieces_are_enough_for_the_beginning_of_long_music(corpus: list[np.ndarray]) -> None:
    few = [piece for piece in corpus if len(piece) >= LONG_BEFORE][:3]
    (found,) = compare_repetition({"long": np.concatenate(corpus)}, few)
    assert found.tokens == 3 * LONG_BEFORE
    assert len(found.shuffled) == SAMPLE


def test_excerpts_leave_out_short_ends() -> None:
    pieces = [np.arange(n, dtype=np.uint16) for n in (4, 10, 14, 15)]
    assert [len(each) for each in excerpts_of(pieces, 10)] == [4, 10, 10, 10, 5]


def test_bad_arguments_are_named() -> None:
    for function in (repeated, repeated_share):
        with pytest.raises(ValueError, match="least: expected at least 1 token, got 0"):
            function([], 0)


@pytest.mark.usefixtures("no_pyplot")
def test_every_take_has_a_row(corpus: list[np.ndarray], tmp_path: Path) -> None:
    music = {f"take {number}": corpus[number] for number in range(3)} | {"short": corpus[0][:9]}
    first, second, third, short = compare_repetition(music, corpus)
    repetition_rows({"one": [first, second], "_other": [third, short]}, tmp_path / "rows.svg")
    repetition_rows({"one": [short]}, tmp_path / "short.png")
    svg = (tmp_path / "rows.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in svg for name in (*music, "one", " _other"))
