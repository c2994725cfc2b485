from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmr.music.augment import Augmentation, stretch, transpose
from dsmr.music.tokens import (
    BEGIN,
    END,
    HIGHEST_KEY,
    LOWEST_KEY,
    NOTE_DTYPE,
    PAD,
    STEP_SECONDS,
    VELOCITY,
    Performance,
    decode,
    encode,
)


def stored(ids: np.ndarray) -> np.ndarray:
    return np.concatenate([[BEGIN], ids, [END]]).astype(np.uint16)


def notes_of(*rows: tuple[float, float, int, int]) -> np.ndarray:
    return stored(encode(Performance(np.array(list(rows), NOTE_DTYPE))))


# Ids in any order decode to dense, rude music: re-struck keys, notes within one step, long gaps.
events = st.one_of(
    st.integers(0, 255), st.sampled_from([40, 60, 60 + 128, 256, 257, 300, 355]), st.integers(256, PAD - 1)
)
pieces = st.lists(events, max_size=60).map(lambda ids: stored(encode(decode(ids))))


def is_canonical(ids: np.ndarray) -> bool:
    return np.array_equal(stored(encode(decode(ids))), ids)


@settings(deadline=None)
@given(pieces, st.integers(-12, 12))
def test_transposing_moves_pitches_and_nothing_else(ids, semitones):
    shifted = transpose(ids, semitones)
    assert is_canonical(shifted)
    assert shifted.dtype == np.uint16
    before, after = decode(ids).notes, decode(shifted).notes
    moved = after["pitch"].astype(int) - before["pitch"].astype(int)
    assert len(set(moved)) <= 1
    for name in ("onset", "offset", "velocity"):
        np.testing.assert_array_equal(before[name], after[name])


@settings(deadline=None)
@given(pieces, st.integers(-12, 12))
def test_transposing_goes_as_far_as_the_keyboard_allows(ids, semitones):
    pitches = decode(ids).notes["pitch"].astype(int)
    if len(pitches) == 0:
        return
    got = decode(transpose(ids, semitones)).notes["pitch"].astype(int)[0] - pitches[0]
    room = HIGHEST_KEY - pitches.max() if semitones > 0 else pitches.min() - LOWEST_KEY
    assert got == np.sign(semitones) * min(abs(semitones), max(room, 0))


def test_transposing_stops_at_the_outermost_keys():
    ids = notes_of((0.0, 0.5, 22, 64), (0.5, 1.0, 106, 64))
    assert decode(transpose(ids, 5)).notes["pitch"].tolist() == [24, 108]
    assert decode(transpose(ids, -5)).notes["pitch"].tolist() == [21, 105]
    np.testing.assert_array_equal(transpose(transpose(ids, 2), -2), ids)


def test_a_piece_beyond_the_keyboard_is_not_moved_further_nor_back():
    ids = notes_of((0.0, 0.5, 15, 64), (0.5, 1.0, 120, 64))
    for semitones in (5, -5):
        np.testing.assert_array_equal(transpose(ids, semitones), ids)


def test_a_piece_without_notes_is_left_alone():
    ids = stored(np.array([VELOCITY + 3]))
    np.testing.assert_array_equal(transpose(ids, 3), ids)


@settings(deadline=None)
@given(pieces, st.floats(0.5, 2.0))
def test_stretching_scales_every_onset_and_loses_no_note(ids, factor):
    slower = stretch(ids, factor)
    assert is_canonical(slower)
    assert slower.dtype == np.uint16
    before, after = decode(ids).notes, decode(slower).notes

    def by_key(notes: np.ndarray) -> np.ndarray:
        # Notes of one key keep their order; among keys that fall into one step it may change.
        return notes[np.argsort(notes["pitch"], kind="stable")]

    before, after = by_key(before), by_key(after)
    np.testing.assert_array_equal(before["pitch"], after["pitch"])
    np.testing.assert_array_equal(before["velocity"], after["velocity"])
    # Half a step by rounding; times are at most hundreds of seconds, so a nanosecond covers the float arithmetic.
    np.testing.assert_allclose(after["onset"], before["onset"] * factor, rtol=0, atol=STEP_SECONDS / 2 + 1e-9)


@settings(deadline=None)
@given(pieces)
def test_stretching_by_one_changes_nothing(ids):
    np.testing.assert_array_equal(stretch(ids, 1.0), ids)


def test_stretching_scales_lengths():
    notes = decode(stretch(notes_of((1.0, 2.0, 60, 64), (4.0, 4.5, 62, 90)), 1.2)).notes
    np.testing.assert_allclose(notes["onset"], [1.2, 4.8])
    np.testing.assert_allclose(notes["offset"], [2.4, 5.4])


def test_stretching_does_not_add_up_rounding():
    onsets = np.arange(2000) * 0.13  # times 1.05 each gap is 13.65 steps
    ids = notes_of(*((t, t + 0.05, 60, 64) for t in onsets))
    last = decode(stretch(ids, 1.05)).notes["onset"][-1]
    assert last == pytest.approx(onsets[-1] * 1.05, abs=STEP_SECONDS / 2 + 1e-9)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_factor_that_is_not_positive_is_refused(factor):
    with pytest.raises(ValueError, match="factor: expected a number above 0"):
        stretch(notes_of((0, 1, 60, 64)), factor)


def test_stretching_needs_a_stored_piece():
    with pytest.raises(ValueError, match="BEGIN first and END last"):
        stretch(np.array([60, 300, 188], np.uint16), 1.1)


def test_augmentation_is_a_function_of_seed_piece_and_epoch():
    ids = notes_of(*((0.3 * i, 0.3 * i + 0.2, 50 + i % 20, 64) for i in range(50)))
    augment = Augmentation()
    np.testing.assert_array_equal(augment(ids, 3, 1), augment(ids, 3, 1))
    variants = [augment(ids, 3, 1), augment(ids, 3, 2), augment(ids, 4, 1), Augmentation(seed=1)(ids, 3, 1)]
    assert len({variant.tobytes() for variant in variants}) == 4


def test_augmentation_stays_in_its_range_and_uses_it():
    ids = notes_of((0.0, 1.0, 60, 64), (100.0, 101.0, 62, 64))
    heard = [decode(Augmentation(semitones=2, tempo=0.1)(ids, 0, epoch)).notes for epoch in range(200)]
    assert {int(notes["pitch"][0]) - 60 for notes in heard} == {-2, -1, 0, 1, 2}
    factors = np.array([notes["onset"][1] / 100 for notes in heard])
    assert ((factors > 1 / 1.1 - 1e-4) & (factors < 1.1 + 1e-4)).all()
    assert factors.min() < 0.93
    assert factors.max() > 1.07


def test_augmentation_of_nothing_is_the_piece_itself():
    ids = notes_of((0.0, 1.0, 60, 64), (1.5, 2.0, 62, 90))
    np.testing.assert_array_equal(Augmentation(semitones=0, tempo=0.0)(ids, 0, 0), ids)


@pytest.mark.parametrize("field", ["semitones", "tempo", "seed"])
def test_negative_fields_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: expected a finite number of at least 0, got -1"):
        Augmentation(**{field: -1})
