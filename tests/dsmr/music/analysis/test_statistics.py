"""Statistics of performances: by hand, by counting every step, and beside a corpus."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.music.analysis.statistics import (
    ESSENTIAL,
    FEWEST_EXCERPTS,
    Comparison,
    Range,
    compare_statistics,
    measure,
    usual,
    usual_range,
)
from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, STEPS_PER_SECOND, Performance, decode, encode
from tests.dsmr.playing import performance

NO_NOTES = Performance(np.empty(0, NOTE_DTYPE))


def approx(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-12)


def test_a_small_piece_by_hand() -> None:
    found = measure(performance((1, 2, 60, 40), (1.5, 3, 64, 80), (1.5, 3, 72, 60), (4, 10, 60, 60)))
    assert (found.notes, found.seconds) == (4, 10)
    assert found.notes_per_second == approx(0.4)
    assert (found.busiest, found.quietest) == (approx(0.8), 0)
    assert (found.pitch_low, found.pitch_high, found.pitch_range) == (60, 72, 12)
    assert found.pitch_median == 62
    assert found.silence == approx(0.2)
    assert found.longest_silence == approx(1)
    assert found.polyphony == approx((0.5 + 3 * 0.5 + 2 + 6) / 8)
    assert found.polyphony_max == 3
    assert found.velocity_mean == 60
    assert found.velocity_deviation == approx(math.sqrt(200))
    assert found.note_seconds_median == approx(1.5)
    assert found.pitch_classes == (0.75, 0, 0, 0, 0.25, 0, 0, 0, 0, 0, 0, 0)
    assert found.pitch_class_entropy == approx(-0.75 * math.log2(0.75) - 0.25 * math.log2(0.25))


def test_twelve_equal_pitch_classes_have_the_greatest_entropy() -> None:
    found = measure(performance(*((i, i + 1, 60 + i, 64) for i in range(12))))
    assert found.pitch_class_entropy == approx(math.log2(12))


def test_the_pedal_counts_as_sound() -> None:
    notes = performance((0, 1, 60, 64), (3, 4, 62, 64))
    pedal = np.array([(0.5, 127), (2.5, 0)], PEDAL_DTYPE)
    assert measure(notes).silence == approx(0.5)
    assert measure(Performance(notes.notes, pedal)).silence == approx(0.125)


def test_a_known_length_cuts_and_fills_up() -> None:
    notes = performance((0, 2, 60, 64), (4, 6, 62, 64))
    longer, shorter = measure(notes, 12), measure(notes, 4)
    assert (longer.notes, longer.silence, longer.longest_silence) == (2, approx(8 / 12), 6)
    assert (shorter.notes, shorter.silence, shorter.longest_silence) == (1, approx(0.5), 2)
    assert measure(notes, 5).note_seconds_median == approx(1.5)


def test_no_notes_are_silence_and_numbers_that_json_has() -> None:
    found = measure(NO_NOTES, 3)
    assert (found.notes, found.notes_per_second, found.silence, found.polyphony_max) == (0, 0, 1, 0)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["pitch_range"] is None
    assert read["silence"] == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_bad_length_is_refused(seconds: float, corpus: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="seconds: expected a finite number above 0"):
        measure(NO_NOTES, seconds)
    with pytest.raises(ValueError, match="seconds: expected a finite number above 0"):
        usual([corpus[0]], seconds)


def test_no_notes_need_a_length() -> None:
    with pytest.raises(ValueError, match="seconds"):
        measure(NO_NOTES)


@st.composite
def grid_performances(draw: st.DrawFn) -> Performance:
    notes = draw(
        st.lists(
            st.tuples(st.integers(0, 900), st.integers(1, 300), st.integers(55, 65), st.integers(1, 127)),
            min_size=1,
            max_size=20,
            unique_by=lambda note: (note[0], note[2]),
        )
    )
    return decode(encode(performance(*((on / 100, (on + lasts) / 100, p, v) for on, lasts, p, v in notes))))


@given(grid_performances(), st.integers(1, 1500))
def test_time_is_shared_out_as_counting_each_step_does(played: Performance, steps: int) -> None:
    found = measure(played, steps / STEPS_PER_SECOND)
    sounding = np.zeros(steps, dtype=int)
    starts = np.zeros(steps, dtype=int)
    for note in played.notes:
        on, off = round(note["onset"] * STEPS_PER_SECOND), round(note["offset"] * STEPS_PER_SECOND)
        sounding[on:off] += 1
        starts[on : on + 1] += 1
    assert found.notes == starts.sum()
    assert found.silence == pytest.approx((sounding == 0).mean(), abs=1e-9)
    assert found.polyphony_max == sounding.max()
    if sounding.any():
        assert found.polyphony == pytest.approx(sounding[sounding > 0].mean(), rel=1e-9)
    else:
        assert math.isnan(found.polyphony)
    runs = "".join("1" if count else "0" for count in sounding).split("1")
    assert found.longest_silence == pytest.approx(max(map(len, runs)) / STEPS_PER_SECOND, abs=1e-9)
    windows = [starts[i : i + 500].sum() for i in range(0, steps - 499, 500)] or [starts.sum()]
    width = min(5.0, steps / STEPS_PER_SECOND)
    assert found.busiest == pytest.approx(max(windows) / width)
    assert found.quietest == pytest.approx(min(windows) / width)


@pytest.fixture(scope="module")
def corpus() -> list[np.ndarray]:
    """Three pieces of 60, 25 and 4 seconds: scales of two, four and eight notes a second; and an empty one."""
    scales = [
        performance(*((i / rate, (i + 1) / rate, 40 + i % 40, 64) for i in range(rate * seconds)))
        for rate, seconds in ((2, 60), (4, 25), (8, 4))
    ]
    return [encode(each) for each in [*scales, NO_NOTES]]


def test_ranges_are_those_of_excerpts_as_long(corpus: list[np.ndarray]) -> None:
    everything = usual(corpus, 10)
    assert everything["notes_per_second"] == (approx(2), approx(8), 10)
    assert everything["seconds"] == (approx(4), approx(10), 10)
    assert everything["notes"] == (20, 40, 10)
    # The first piece's excerpts have 20 notes of a scale over 40 pitches.
    assert usual([corpus[0]], 10)["pitch_range"] == (19, 19, 6)
    assert usual([corpus[0]], 30)["pitch_range"] == (39, 39, 2)


def test_what_remains_of_a_piece_counts_if_it_is_long_enough(corpus: list[np.ndarray]) -> None:
    half, less = (usual([corpus[1]], seconds)["seconds"] for seconds in (10, 11))
    assert half == (approx(5), approx(10), 3)
    assert less == (approx(11), approx(11), 2)
    assert usual([corpus[2]], 100)["seconds"] == (approx(4), approx(4), 1)


@pytest.mark.parametrize("excerpts", [1, 2, 5, 20, 38, 39, 98, 99, 250, 400])
def test_a_verdict_from_few_excerpts_is_none_and_else_seldom_wrong(excerpts: int) -> None:
    # Of equally likely orders, so many put one more excerpt outside the others' range.
    inside = []
    for left_out in range(excerpts + 1):
        found = usual_range(np.delete(np.arange(excerpts + 1.0), left_out))
        assert found.excerpts == excerpts
        inside.append(Comparison("notes", left_out, *found).within)
    if excerpts < FEWEST_EXCERPTS:
        assert inside == [None] * (excerpts + 1)
    else:
        wrong = inside.count(False) / len(inside)
        assert 0 < wrong <= (0.05 if excerpts < 99 else 0.02 + 2 / excerpts)  # where a percentile lies between two


def test_numbers_that_no_excerpt_has_have_no_range() -> None:
    assert usual_range(np.array([2.0, np.nan, 1.0])) == (1.0, 2.0, 2)
    low, high, excerpts = usual_range(np.array([np.nan]))
    assert math.isnan(low)
    assert math.isnan(high)
    assert excerpts == 0


def test_usual_music_is_within_and_odd_music_is_not(corpus: list[np.ndarray]) -> None:
    ranges = usual(corpus[:3], 1.5)
    excerpt = measure(decode(corpus[1]), 1.5)
    assert [each.name for each in compare_statistics(excerpt, ranges)] == list(ESSENTIAL)
    assert all(each.within for each in compare_statistics(excerpt, ranges))
    cluster = measure(performance(*((i / 100, (i + 1) / 100, i % 128, 64) for i in range(500))), 10)
    assert not any(each.within for each in compare_statistics(cluster, ranges))
    assert not any(each.within for each in compare_statistics(measure(NO_NOTES, 10), ranges))


def test_a_comparison_names_the_number_and_its_range() -> None:
    found = measure(performance((0, 1, 60, 64)))
    assert compare_statistics(found, {"velocity_mean": Range(10.0, 64.0, 99)}, ["velocity_mean"]) == [
        Comparison("velocity_mean", 64.0, 10.0, 64.0, 99)
    ]


def test_a_corpus_without_notes_is_refused(corpus: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="pieces: expected pieces with notes"):
        usual([corpus[3]], 10)
