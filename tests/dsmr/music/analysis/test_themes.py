"""Returns of a theme: found where they were put, in any key and tempo, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsmr.music.analysis.themes import SHORTEST_THEME, SHUFFLES, compare_theme, returns_of_theme
from dsmr.music.tokens import NOTE_DTYPE, Performance, encode


def played(pitches: NDArray[np.int64] | list[int], every: float = 0.25, begin: float = 0.0) -> NDArray[np.void]:
    notes = np.zeros(len(pitches), NOTE_DTYPE)
    notes["pitch"], notes["velocity"] = pitches, 64
    notes["onset"] = begin + every * np.arange(len(pitches))
    notes["offset"] = notes["onset"] + every / 2
    return notes


def random_pitches(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(40, 80, count)


THEME = random_pitches(0, 32)
OTHER = random_pitches(1, 200)


def music(*parts: NDArray[np.int64]) -> Performance:
    return Performance(played(np.concatenate(parts)))


@settings(max_examples=40)
@given(st.integers(-12, 12), st.integers(0, 200), st.sampled_from([0.15, 0.25, 0.4]))
def test_a_return_is_found_where_it_is_in_any_key_and_tempo(semitones: int, before: int, every: float) -> None:
    parts = [played(OTHER[:before]), played(THEME + semitones, every, before / 4)]
    end = parts[1]["onset"][-1] + every
    (found,) = returns_of_theme(
        Performance(played(THEME)), Performance(np.concatenate([*parts, played(OTHER, 0.25, end)]))
    )
    assert (found.semitones, found.share) == (semitones, 1.0)
    assert found.seconds == pytest.approx((before / 4, before / 4 + 31 * every), abs=0.01)


def test_a_return_may_be_ornamented_cut_and_changed() -> None:
    theme = Performance(played(THEME))
    ornamented = np.insert(THEME, [10, 22], 100)
    changed = THEME.copy()
    changed[[8, 20]] += 1
    for version, most in ((ornamented, 1.0), (changed, 30 / 32), (THEME[:20], 20 / 32)):
        (found,) = returns_of_theme(theme, music(OTHER[:50], version + 5, OTHER[50:]))
        assert (found.semitones, found.seconds[0]) == (5, 12.5)
        assert 0.5 <= found.share <= most


def test_half_of_it_too_slow_or_in_another_order_is_no_return() -> None:
    theme = Performance(played(THEME))
    assert returns_of_theme(theme, music(OTHER, THEME[:15], OTHER)) == []
    assert returns_of_theme(theme, Performance(played(THEME, every=0.6))) == []
    assert returns_of_theme(theme, music(OTHER, THEME[::-1], OTHER)) == []
    assert returns_of_theme(theme, Performance(np.empty(0, NOTE_DTYPE))) == []


def test_a_chord_is_read_from_the_lowest_up_however_it_is_spread() -> None:
    chords = np.repeat(played(THEME[:16]), 3)
    chords["pitch"] += np.tile([0, 4, 7], 16).astype(np.uint8)
    spread = chords.copy()
    spread["onset"] += np.tile([0.02, 0.0, 0.01], 16)
    (found,) = returns_of_theme(Performance(chords), Performance(spread))
    assert found.share == 1


def test_every_return_counts_once_and_a_prompt_does_not() -> None:
    theme = Performance(played(THEME))
    pieces = [encode(Performance(played(random_pitches(10 + seed, 300)))) for seed in range(30)]
    pieces.append(encode(music(OTHER[:100], THEME, OTHER[100:])))
    prompted = music(THEME, OTHER[:60], THEME, OTHER[60:], THEME - 7)
    free = music(OTHER[:60], THEME, OTHER[60:], THEME - 7)
    none = music(OTHER)
    found = compare_theme(theme, {"prompted": prompted, "free": free, "none": none}, pieces)
    assert [each.begins_with_theme for each in found] == [True, False, False]
    assert [[each.semitones for each in one.returns] for one in found] == [[0, -7], [0, -7], []]
    assert [one.shuffled for one in found] == [0, 0, 0]
    assert found[0].corpus.tolist() == [0] * 30 + [1]
    assert [one.p for one in found] == [1 / 32, 1 / 32, 1]
    assert found[0].to_dict()["returns"][1]["semitones"] == -7


def test_chance_is_measured_where_the_notes_are_few() -> None:
    """A theme of one repeated note returns in anything that repeats it: the controls say so."""
    theme = Performance(played([60] * SHORTEST_THEME))
    (found,) = compare_theme(theme, {"x": Performance(played([60] * 100))}, [encode(Performance(played([62] * 100)))])
    assert found.p == 1
    assert found.shuffled >= len(found.returns) > SHUFFLES / 2


def test_a_theme_has_notes() -> None:
    with pytest.raises(ValueError, match="theme: expected at least 8 notes, got 7"):
        returns_of_theme(Performance(played(THEME[:7])), music(OTHER))
