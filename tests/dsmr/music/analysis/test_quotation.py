"""Quotations: every one that was planted is found, as long as it is, and what counts as equal is what is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.music.analysis.quotation import (
    CHORD_STEPS,
    EQUALITIES,
    Source,
    longest_matches,
    longest_quotations,
    reading_order,
    suffix_order,
)
from dsmr.music.tokens import NOTE_DTYPE, Performance, encode

SYMBOLS = st.lists(st.integers(0, 2), max_size=12)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=40))
def test_suffixes_are_sorted(symbols: list[int]) -> None:
    assert suffix_order(np.array(symbols)).tolist() == sorted(range(len(symbols)), key=lambda i: symbols[i:])


@given(st.lists(SYMBOLS, min_size=1, max_size=4), st.lists(SYMBOLS, min_size=1, max_size=4))
def test_matches_are_those_that_trying_all_finds(texts: list[list[int]], corpus: list[list[int]]) -> None:
    found = longest_matches([np.array(each, np.int64) for each in texts], [np.array(each, np.int64) for each in corpus])
    for text, (length, at, piece, piece_at) in zip(texts, found, strict=True):
        runs = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
        shared = [
            run for run in runs if any(run == each[k : k + len(run)] for each in corpus for k in range(len(each)))
        ]
        assert length == max(map(len, shared), default=0)
        assert text[at : at + length] == corpus[piece][piece_at : piece_at + length]
        assert len(text[at : at + length]) == length


def random_notes(seed: int, count: int) -> Performance:
    """A note every 150 ms or more, of any pitch."""
    rng = np.random.default_rng(seed)
    notes = np.zeros(count, NOTE_DTYPE)
    notes["onset"] = np.cumsum(rng.integers(15, 60, count)) / 100
    notes["offset"] = notes["onset"] + 0.14
    notes["pitch"] = rng.integers(30, 90, count)
    notes["velocity"] = 64
    return Performance(notes)


SOURCES = [Source(seed, str(seed), encode(random_notes(seed, 200))) for seed in range(3)]


def quoting(start: int, stop: int, semitones: int = 0, stretch: float = 1.0) -> Performance:
    """Music of its own that holds notes `start:stop` of piece 1 from its 30th second on."""
    own, source = random_notes(99, 40).notes, random_notes(1, 200).notes[start:stop].copy()
    moved = (source["onset"] - source["onset"][0]) * stretch
    source["offset"] += 30 + moved - source["onset"]
    source["onset"] = 30 + moved
    source["pitch"] += np.uint8(semitones)
    return Performance(np.concatenate([own, source]))


@pytest.mark.parametrize("semitones", [0, 5])
def test_finds_what_was_planted(semitones: int) -> None:
    for equality in EQUALITIES:
        (found,) = longest_quotations([quoting(50, 80, semitones)], SOURCES, equality)
        assert found.piece == 1
        assert found.semitones == semitones
        # Of the tokens between 30 note-ons the passage has at least the note-offs and a shift each.
        assert found.length == 30 if equality != "tokens" else found.length >= 3 * 29
        begins = random_notes(1, 200).notes["onset"][50]
        assert found.seconds[0] == pytest.approx(30, abs=0.3)
        assert found.piece_seconds == pytest.approx(begins, abs=0.3)


def test_what_was_not_planted_is_short() -> None:
    for equality in EQUALITIES:
        (found,) = longest_quotations([random_notes(99, 40)], SOURCES, equality)
        assert found.length < 8


def test_a_tempo_changes_rhythm_and_tokens_but_no_pitches() -> None:
    slower = quoting(50, 80, stretch=2.1)
    lengths = {e: longest_quotations([slower], SOURCES, e)[0].length for e in EQUALITIES}
    assert lengths["pitches"] == 30
    assert lengths["rhythm"] < 8
    assert lengths["tokens"] < 8


def test_another_velocity_is_only_another_token() -> None:
    louder = quoting(50, 80)
    louder.notes["velocity"][60] = 120
    lengths = {e: longest_quotations([louder], SOURCES, e)[0].length for e in EQUALITIES}
    assert (lengths["pitches"], lengths["rhythm"]) == (30, 30)
    assert 4 * 19 <= lengths["tokens"] <= 4 * 20  # on, shift, off, shift: 20 times until the louder one


def test_a_chord_is_the_same_however_it_is_spread() -> None:
    spread = reading_order(np.array([0, 2, 5, 20]), np.array([67, 60, 64, 50]))
    assert spread.tolist() == [1, 2, 0, 3]
    apart = np.array([0, CHORD_STEPS, 2 * CHORD_STEPS])
    assert reading_order(apart, np.array([67, 60, 64])).tolist() == [0, 1, 2]


def test_no_passage_goes_from_one_piece_into_the_next() -> None:
    both = [random_notes(seed, 200).notes for seed in (0, 1)]
    both[1]["onset"] += both[0]["onset"][-1]
    both[1]["offset"] += both[0]["onset"][-1]
    (found,) = longest_quotations([Performance(np.concatenate(both))], SOURCES, "pitches")
    assert found.length == 200


def test_short_music_quotes_little() -> None:
    for equality in EQUALITIES:
        empty, one = longest_quotations(
            [Performance(np.empty(0, NOTE_DTYPE)), random_notes(7, 1)], SOURCES[:1], equality
        )
        assert (empty.length, empty.piece) == (0, None)
        assert one.length <= 3


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="equality: expected one of pitches, rhythm, tokens, got 'ears'"):
        longest_quotations([], SOURCES[:1], "ears")
    with pytest.raises(ValueError, match="sources: expected at least one piece"):
        longest_quotations([], [], "pitches")
