"""The codec: pedal and re-struck keys, exact streams, round trips for any performance and any ids."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsmr.music.tokens import (
    BEGIN,
    END,
    NOTE_DTYPE,
    NOTE_OFF,
    NOTE_ON,
    PAD,
    PEDAL_DOWN,
    PEDAL_DTYPE,
    PEDAL_UP,
    STEP_SECONDS,
    TIME_SHIFT,
    VELOCITY,
    VOCAB_SIZE,
    Performance,
    decode,
    duration_seconds,
    encode,
    encode_indexed,
    fold_pedal,
    token_name,
)
from tests.dsmr.playing import performance

HALF_STEP = STEP_SECONDS / 2 + 1e-9  # rounding to the nearest step, plus the rounding of seconds in float64
MEZZO_FORTE = VELOCITY + 64 // 4


def on(pitch: int) -> int:
    return NOTE_ON + pitch


def off(pitch: int) -> int:
    return NOTE_OFF + pitch


def shift(steps: int) -> int:
    return TIME_SHIFT + steps - 1


# Times on a 1 ms grid over a few keys, so that ties, re-strikes and notes shorter than a step all occur often.
times = st.integers(0, 400).map(lambda milliseconds: milliseconds / 1000)
notes = st.tuples(times, times, st.sampled_from([0, 60, 61, 127]), st.integers(1, 127)).map(
    lambda note: (note[0], note[0] + note[1], note[2], note[3])
)
pedals = st.lists(st.tuples(times, st.sampled_from([0, 40, 55, 56, 60, 63, 64, 127])), max_size=12)
performances = st.builds(
    lambda notes, pedal: performance(*notes, pedal=tuple(pedal)), st.lists(notes, max_size=24), pedals
)
any_ids = st.one_of(
    hnp.arrays(np.uint16, st.integers(0, 60), elements=st.integers(0, VOCAB_SIZE - 1)),
    # Few keys and short gaps: events that answer each other.
    hnp.arrays(
        np.uint16,
        st.integers(0, 60),
        elements=st.sampled_from(
            [on(60), on(60), on(61), off(60), off(61), shift(1), shift(100), 360, 370, BEGIN, END]
        ),
    ),
)


class TestSustainPedal:
    def test_held_note_ends_when_its_key_is_struck_again_before_the_pedal_lifts(self) -> None:
        played = performance((0.0, 0.1, 60, 80), (0.5, 0.6, 60, 80), pedal=((0.05, 127), (1.0, 0)))
        assert fold_pedal(played).notes["offset"].tolist() == [0.5, 1.0]

    def test_held_note_ends_when_the_pedal_lifts_before_its_key_is_struck_again(self) -> None:
        played = performance((0.0, 0.1, 60, 80), (0.5, 0.6, 60, 80), pedal=((0.05, 127), (0.3, 0)))
        assert fold_pedal(played).notes["offset"].tolist() == [0.3, 0.6]

    def test_another_key_does_not_end_a_held_note(self) -> None:
        played = performance((0.0, 0.1, 60, 80), (0.5, 0.6, 61, 80), pedal=((0.05, 127), (1.0, 0)))
        assert fold_pedal(played).notes["offset"].tolist() == [1.0, 1.0]

    def test_pedal_pressed_after_the_release_holds_nothing(self) -> None:
        played = performance((0.0, 0.1, 60, 80), pedal=((0.2, 127), (1.0, 0)))
        assert fold_pedal(played).notes["offset"].tolist() == [0.1]

    def test_key_held_past_the_lift_sounds_until_its_release(self) -> None:
        played = performance((0.0, 0.9, 60, 80), pedal=((0.2, 127), (0.5, 0)))
        assert fold_pedal(played).notes["offset"].tolist() == [0.9]

    def test_pedal_that_never_lifts_holds_until_the_last_event(self) -> None:
        played = performance((0.0, 0.1, 60, 80), (0.5, 2.0, 72, 80), pedal=((0.05, 127),))
        assert fold_pedal(played).notes["offset"].tolist() == [2.0, 2.0]

    def test_last_event_may_be_a_pedal_message_that_decides_nothing(self) -> None:
        played = performance((0.0, 0.1, 60, 80), pedal=((0.05, 127), (3.0, PEDAL_UP)))
        assert fold_pedal(played).notes["offset"].tolist() == [3.0]

    @pytest.mark.parametrize("flutter", [PEDAL_UP, PEDAL_DOWN - 1])
    def test_flutter_around_the_switch_point_does_not_lift(self, flutter: int) -> None:
        played = performance(
            (0.0, 0.1, 60, 80), pedal=((0.05, 70), (0.3, flutter), (0.4, PEDAL_DOWN), (1.0, PEDAL_UP - 1))
        )
        assert fold_pedal(played).notes["offset"].tolist() == [1.0]

    def test_pedal_on_its_way_down_is_not_down_before_the_switch_point(self) -> None:
        played = performance((0.0, 0.1, 60, 80), pedal=((0.05, PEDAL_DOWN - 1), (0.5, 127), (1.0, 0)))
        assert fold_pedal(played).notes["offset"].tolist() == [0.1]

    @given(performances)
    def test_equals_playing_the_events_one_by_one(self, played: Performance) -> None:
        np.testing.assert_array_equal(fold_pedal(played).notes, fold_by_events(played, PEDAL_UP))

    @given(st.lists(notes, max_size=24), st.lists(st.tuples(times, st.sampled_from([0, 127])), max_size=12))
    def test_switch_pedal_needs_no_hysteresis(self, notes: list, pedal: list) -> None:
        played = performance(*notes, pedal=tuple(pedal))
        np.testing.assert_array_equal(fold_pedal(played).notes, fold_by_events(played, PEDAL_DOWN))

    @given(performances)
    def test_folding_before_encoding_changes_nothing(self, played: Performance) -> None:
        np.testing.assert_array_equal(encode(fold_pedal(played)), encode(played))


def fold_by_events(played: Performance, lift_below: int) -> np.ndarray:
    """The meaning of `fold_pedal`, told event by event: an independent, slow version."""
    pedal = sorted(played.pedal.tolist(), key=lambda message: message[0])
    last_event = max([*played.notes["offset"], *played.pedal["time"]], default=0.0)
    folded = played.notes.copy()
    for note in folded:
        down = False
        for time, value in pedal:
            if time > note["offset"] and not down:
                break
            if value >= PEDAL_DOWN:
                down = True
            elif value < lift_below:
                down = False
                if time > note["offset"]:
                    note["offset"] = time
                    break
        else:
            if down:
                note["offset"] = last_event
    ordered = sorted(range(len(folded)), key=lambda i: (folded[i]["pitch"], folded[i]["onset"], folded[i]["offset"]))
    for earlier, later in pairwise(ordered):
        if folded[earlier]["pitch"] == folded[later]["pitch"]:
            folded[earlier]["offset"] = min(folded[earlier]["offset"], folded[later]["onset"])
    return folded


class TestEncode:
    def test_note_offs_come_before_note_ons_and_each_kind_goes_up_in_pitch(self) -> None:
        ids = encode(performance((0, 1, 64, 64), (0, 1, 60, 64), (1, 2, 62, 64), (1, 2, 55, 64)))
        assert ids.tolist() == [
            *(MEZZO_FORTE, on(60), on(64), shift(100), off(60), off(64), on(55), on(62)),
            *(shift(100), off(55), off(62)),
        ]
        assert ids.dtype == np.uint16

    def test_velocity_is_written_only_when_its_bin_changes(self) -> None:
        ids = encode(performance((0, 0.1, 60, 64), (0.1, 0.2, 61, 67), (0.2, 0.3, 62, 68)))
        written = [token for token in ids.tolist() if token >= VELOCITY]
        assert written == [MEZZO_FORTE, MEZZO_FORTE + 1]
        assert ids.tolist()[-4:] == [MEZZO_FORTE + 1, on(62), shift(10), off(62)]

    def test_gap_over_a_second_takes_the_largest_shifts_first(self) -> None:
        ids = encode(performance((2.5, 4.5, 60, 64)))
        expected = [shift(100), shift(100), shift(50), MEZZO_FORTE, on(60), shift(100), shift(100), off(60)]
        assert ids.tolist() == expected

    def test_times_are_rounded_before_gaps_are_taken(self) -> None:
        # A thousand gaps of 14 ms: rounded one by one they would lose 4 s.
        onsets = np.arange(1001) * 0.014
        played = performance(*((onset, onset + 0.001, 60, 64) for onset in onsets))
        assert decode(encode(played)).notes["onset"][-1] == 14.0

    def test_note_without_length_lasts_one_step(self) -> None:
        assert encode(performance((0.5, 0.5, 60, 64))).tolist()[-2:] == [shift(1), off(60)]

    def test_key_struck_while_it_sounds_ends_the_earlier_note(self) -> None:
        ids = encode(performance((0, 1, 60, 64), (0.5, 0.7, 60, 64)))
        assert ids.tolist() == [MEZZO_FORTE, on(60), shift(50), off(60), on(60), shift(20), off(60)]

    def test_key_struck_twice_in_one_step_keeps_both_notes(self) -> None:
        ids, note_token = encode_indexed(performance((0.001, 0.002, 60, 100), (0.003, 0.5, 60, 20)))
        assert ids.tolist() == [VELOCITY + 5, on(60), VELOCITY + 25, on(60), shift(50), off(60)]
        assert note_token.tolist() == [3, 1]

    def test_nothing_played_gives_no_tokens(self) -> None:
        assert encode(performance()).tolist() == []

    @given(performances, st.randoms(use_true_random=False))
    def test_order_of_the_notes_does_not_matter(self, played: Performance, random: Random) -> None:
        shuffled = list(range(len(played.notes)))
        random.shuffle(shuffled)
        np.testing.assert_array_equal(encode(Performance(played.notes[shuffled], played.pedal)), encode(played))

    @given(performances)
    def test_each_note_has_its_own_note_on_within_half_a_step(self, played: Performance) -> None:
        ids, note_token = encode_indexed(played)
        assert len(set(note_token.tolist())) == len(played.notes) == (ids < NOTE_OFF).sum()
        assert ids[note_token].tolist() == played.notes["pitch"].tolist()
        decoded = decode(ids).notes
        place = np.cumsum(ids < NOTE_OFF)[note_token] - 1  # the note's place among the note-ons
        assert (abs(decoded["onset"][place] - played.notes["onset"]) <= HALF_STEP).all()
        assert (decoded["velocity"][place] // 4 == played.notes["velocity"] // 4).all()


class TestDecode:
    def test_notes_come_in_the_order_of_their_note_ons(self) -> None:
        notes = decode([VELOCITY + 10, on(64), shift(5), on(60), shift(5), off(64), shift(5), off(60)]).notes
        assert notes.tolist() == [(0.0, 0.1, 64, 42), (0.05, 0.15, 60, 42)]

    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            pytest.param([], [], id="nothing"),
            pytest.param([off(60), shift(3)], [], id="off-without-on"),
            pytest.param([on(60), shift(3)], [(0.0, 0.03, 60, 66)], id="on-without-off-lasts-to-the-end"),
            pytest.param([on(60)], [(0.0, 0.01, 60, 66)], id="no-length-lasts-one-step"),
            pytest.param([on(60), off(60), shift(9)], [(0.0, 0.01, 60, 66)], id="off-in-the-same-step"),
            pytest.param(
                [on(60), shift(3), on(60), shift(3), off(60)],
                [(0.0, 0.03, 60, 66), (0.03, 0.06, 60, 66)],
                id="on-ends-the-sounding-note",
            ),
            pytest.param(
                [on(60), PAD, shift(1), END, BEGIN, shift(1), off(60)], [(0.0, 0.02, 60, 66)], id="specials-are-silent"
            ),
            pytest.param(
                [VELOCITY, VELOCITY + 31, VELOCITY + 31, on(60), shift(1)],
                [(0.0, 0.01, 60, 126)],
                id="redundant-velocity-last-counts",
            ),
        ],
    )
    def test_odd_sequences(self, ids: list[int], expected: list[tuple[float, float, int, int]]) -> None:
        assert decode(ids).notes.tolist() == expected

    @pytest.mark.parametrize("wrong", [-1, VOCAB_SIZE, 65_535])
    def test_id_outside_the_vocabulary_is_refused(self, wrong: int) -> None:
        with pytest.raises(ValueError, match=rf"ids: expected values in 0..390, got {wrong} at index 1"):
            decode([on(60), wrong])

    def test_ids_must_be_integers_in_one_dimension(self) -> None:
        with pytest.raises(TypeError, match="ids: expected integers, got float64"):
            decode([1.0, 2.0])
        with pytest.raises(ValueError, match=r"ids: expected one dimension \[L\], got shape \(1, 2\)"):
            decode([[1, 2]])


class TestRoundTrip:
    @given(performances)
    def test_of_any_performance(self, played: Performance) -> None:
        ids = encode(played)
        np.testing.assert_array_equal(encode(decode(ids)), ids)

    @given(any_ids)
    def test_of_any_ids(self, ids: np.ndarray) -> None:
        canonical = encode(decode(ids))
        np.testing.assert_array_equal(encode(decode(canonical)), canonical)

    @given(any_ids)
    def test_decoded_notes_are_those_of_a_player_of_events(self, ids: np.ndarray) -> None:
        assert decode(ids).notes.tolist() == decode_by_events(ids)

    def test_velocities_stay_in_their_bins_and_are_never_zero(self) -> None:
        velocities = np.arange(1, 128)
        decoded = decode(encode(performance(*((v, v + 0.5, 60, v) for v in velocities.tolist())))).notes["velocity"]
        assert (decoded > 0).all()
        assert (decoded // 4 == velocities // 4).all()

    def test_of_a_long_dense_pedalled_performance(self) -> None:
        random = np.random.default_rng(5)
        count = 5_000
        notes = np.empty(count, NOTE_DTYPE)
        notes["onset"] = np.cumsum(random.exponential(0.08, count))
        notes["offset"] = notes["onset"] + random.exponential(0.3, count)
        notes["pitch"] = random.normal(64, 10, count).clip(21, 108)
        notes["velocity"] = random.integers(1, 128, count)
        pedal = np.empty(4_000, PEDAL_DTYPE)
        pedal["time"] = np.sort(random.uniform(0, notes["onset"][-1], len(pedal)))
        pedal["value"] = random.integers(0, 128, len(pedal))
        ids = encode(Performance(notes, pedal))
        decoded = decode(ids)
        assert len(decoded.notes) == count
        assert abs(decoded.notes["onset"] - notes["onset"]).max() <= HALF_STEP
        np.testing.assert_array_equal(encode(decoded), ids)


def decode_by_events(ids: np.ndarray) -> list[tuple[float, float, int, int]]:
    """The meaning of `decode`, told event by event: an independent, slow version."""
    step, velocity = 0, 66
    notes: list[list[int]] = []
    sounding: dict[int, list[int]] = {}
    for token in ids.tolist():
        if token < TIME_SHIFT:
            pitch = token % 128
            if pitch in sounding:
                sounding.pop(pitch)[1] = step
            if token < NOTE_OFF:
                sounding[pitch] = [step, 0, pitch, velocity]
                notes.append(sounding[pitch])
        elif token < VELOCITY:
            step += token - TIME_SHIFT + 1
        elif token < PAD:
            velocity = (token - VELOCITY) * 4 + 2
    for note in sounding.values():
        note[1] = step
    return [(start / 100, max(end, start + 1) / 100, pitch, velocity) for start, end, pitch, velocity in notes]


class TestPerformance:
    @pytest.mark.parametrize(
        ("note", "expected"),
        [
            pytest.param((-0.1, 1, 60, 64), "a finite onset >= 0 s", id="negative-onset"),
            pytest.param((np.nan, 1, 60, 64), "a finite onset >= 0 s", id="nan-onset"),
            pytest.param((0, np.inf, 60, 64), "offset >= onset", id="endless"),
            pytest.param((1, 0.5, 60, 64), "offset >= onset", id="backwards"),
            pytest.param((0, 1, 128, 64), "a pitch in 0..127", id="pitch"),
            pytest.param((0, 1, 60, 0), "a velocity in 1..127", id="silent"),
            pytest.param((0, 1, 60, 128), "a velocity in 1..127", id="too-loud"),
        ],
    )
    def test_impossible_notes_are_refused(self, note: tuple[float, float, int, int], expected: str) -> None:
        with pytest.raises(ValueError, match=rf"notes: expected {expected}, got .* at index 1"):
            performance((0, 1, 60, 64), note)

    @pytest.mark.parametrize("message", [(-1.0, 0), (np.nan, 0), (0.0, 128)])
    def test_impossible_pedals_are_refused(self, message: tuple[float, int]) -> None:
        with pytest.raises(ValueError, match="pedal: expected"):
            performance(pedal=(message,))

    def test_arrays_must_have_the_right_type_and_shape(self) -> None:
        with pytest.raises(TypeError, match=r"notes: expected a numpy array of .*, got float64"):
            Performance(np.zeros(3))
        with pytest.raises(TypeError, match=r"notes: expected a numpy array of .*, got list"):
            Performance([])
        with pytest.raises(ValueError, match=r"notes: expected one dimension, got shape \(1, 1\)"):
            Performance(np.zeros((1, 1), NOTE_DTYPE))


@pytest.mark.parametrize(
    ("token", "name"),
    [
        (0, "note-on 0"),
        (127, "note-on 127"),
        (128, "note-off 0"),
        (256, "shift 10 ms"),
        (355, "shift 1000 ms"),
        (356, "velocity bin 0"),
        (387, "velocity bin 31"),
        (388, "PAD"),
        (389, "BEGIN"),
        (390, "END"),
    ],
)
def test_token_name(token: int, name: str) -> None:
    assert token_name(token) == name


def test_token_name_refuses_ids_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="got 391"):
        token_name(391)


def test_duration_counts_every_shift() -> None:
    assert duration_seconds([BEGIN, shift(100), on(60), shift(5), off(60), shift(1), END]) == 1.06
    assert duration_seconds([]) == 0.0
