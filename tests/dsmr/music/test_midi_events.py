"""Whole files or a reason: events of a channel on one time line, whatever track, program, status or wrapping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.music.midi import DRUMS, MidiError, read_midi
from dsmr.music.midi_events import STATUS_CONTROL, STATUS_NOTE_OFF, STATUS_NOTE_ON, read_events
from dsmr.music.tempo import TEMPO_DTYPE, TempoMap
from dsmr.music.tokens import encode, fold_pedal
from tests.midi_bytes import END, NOTE, chunk, file, header, note, pedal, tempo, varlen

TICK = 1 / 960  # seconds, in the files that `file` builds

Event = tuple[int, bytes]


def track(*events: Event) -> bytes:
    """A track's bytes of (tick, message)."""
    ticks = [0, *(tick for tick, _ in events)]
    return b"".join(varlen(tick - before) + message for before, (tick, message) in zip(ticks, events, strict=False))


def on(pitch: int, velocity: int = 64, channel: int = 0) -> bytes:
    return bytes([STATUS_NOTE_ON | channel, pitch, velocity])


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes([STATUS_NOTE_OFF | channel, pitch, 0])


def control(number: int, value: int = 0, channel: int = 0) -> bytes:
    return bytes([STATUS_CONTROL | channel, number, value])


def notes_of(data: bytes) -> list[tuple[int, int, int, int]]:
    """Notes as (tick of onset, tick of offset, pitch, velocity), sorted."""
    notes = read_midi(data).notes
    return sorted((round(on / TICK), round(off / TICK), pitch, velocity) for on, off, pitch, velocity in notes.tolist())


def pedal_of(data: bytes) -> list[tuple[int, int]]:
    return [(round(time / TICK), value) for time, value in read_midi(data).pedal.tolist()]


class TestOneTimeLine:
    @pytest.mark.parametrize("order", [1, -1], ids=["pedal-after", "pedal-before"])
    @pytest.mark.parametrize("conductor", [b"", tempo(500_000)], ids=["own-track", "conductor"])
    def test_pedal_of_a_track_without_notes(self, order: int, conductor: bytes) -> None:
        keys = track((0, on(60)), (480, off(60)), (1920, on(62)), (2400, off(62)))
        foot = conductor + track((0, control(64, 127)), (1440, control(64, 0)))
        data = file(*[keys, foot][::order])
        assert pedal_of(data) == [(0, 127), (1440, 0)]
        assert (fold_pedal(read_midi(data)).notes["offset"] / TICK).tolist() == [1440, 2400]

    def test_pedal_across_a_change_of_program(self) -> None:
        keys = track(
            *((0, on(60)), (50, control(64, 127)), (100, off(60)), (150, b"\xc0\x05"), (200, on(62))),
            *((210, control(64, 0)), (990, off(62))),
        )
        assert pedal_of(file(keys)) == [(50, 127), (210, 0)]

    def test_note_across_a_change_of_program(self) -> None:
        assert notes_of(file(track((0, on(60)), (50, b"\xc0\x05"), (100, off(60))))) == [(0, 100, 60, 64)]

    def test_note_off_in_another_track(self) -> None:
        data = file(track((0, on(60)), (960, on(62))), track((480, off(60)), (1000, off(62))))
        assert notes_of(data) == [(0, 480, 60, 64), (960, 1000, 62, 64)]

    def test_note_off_of_a_silent_key_ends_nothing(self) -> None:
        data = file(track((0, off(60)), (10, on(60)), (20, off(60)), (30, off(60)), (40, on(60)), (50, off(60))))
        assert notes_of(data) == [(10, 20, 60, 64), (40, 50, 60, 64)]

    def test_note_off_of_another_channel_ends_nothing(self) -> None:
        data = file(track((0, on(60)), (480, off(60, channel=1)), (960, off(60))))
        assert notes_of(data) == [(0, 960, 60, 64)]

    def test_first_note_off_ends_the_note_struck_first(self) -> None:
        data = file(track((0, on(60, 10)), (50, on(60, 20)), (80, off(60)), (100, off(60)), (110, off(60))))
        assert notes_of(data) == [(0, 80, 60, 10), (50, 100, 60, 20)]

    @pytest.mark.parametrize("number", [120, 123, 124, 125, 126, 127])
    def test_notes_are_ended_by_messages_that_end_all(self, number: int) -> None:
        data = file(
            track((0, on(60)), (0, on(64)), (0, on(60, channel=1)), (480, control(number)), (960, on(62))),
            track((700, off(60, channel=1)), (1000, off(62)), (1010, off(60))),
        )
        assert notes_of(data) == [(0, 480, 60, 64), (0, 480, 64, 64), (0, 700, 60, 64), (960, 1000, 62, 64)]

    def test_messages_that_end_all_at_the_beginning_end_no_note_of_another_track(self) -> None:
        first = track((0, control(123)), (0, on(60)), (480, off(60)), (480, on(60)), (960, off(60)))
        second = track((0, control(123)), (0, control(121)), (0, on(72)), (480, control(123)), (500, off(72)))
        assert notes_of(file(first, second)) == [(0, 480, 60, 64), (0, 480, 72, 64), (480, 960, 60, 64)]

    def test_resetting_all_controllers_lifts_the_pedal(self) -> None:
        keys = track((0, control(64, 127)), (0, on(60)), (480, off(60)), (960, control(121)), (1920, on(62)))
        data = file(keys, track((2400, off(62)), (2500, control(121))))
        assert pedal_of(data) == [(0, 127), (960, 0)]

    def test_all_sound_off_silences_what_the_pedal_holds(self) -> None:
        held = ((0, control(64, 127)), (0, on(60)), (10, off(60)), (20, on(62)), (960, control(120)), (961, on(64)))
        data = file(track(*held, (970, off(64)), (1920, control(64, 0))))
        assert (fold_pedal(read_midi(data)).notes["offset"] / TICK).tolist() == [960, 960, 1920]

    def test_all_notes_off_leaves_them_to_the_pedal(self) -> None:
        data = file(track((0, control(64, 127)), (0, on(60)), (480, control(123)), (960, control(64, 0))))
        assert (fold_pedal(read_midi(data)).notes["offset"] / TICK).tolist() == [960]

    def test_drums_play_and_press_nothing(self) -> None:
        drums = track((0, on(36, 99, DRUMS)), (0, control(64, 127, DRUMS)), (9000, off(36, DRUMS)))
        assert notes_of(file(NOTE, drums)) == [(0, 96, 60, 64)]
        assert pedal_of(file(NOTE, drums)) == []

    messages = st.sampled_from(
        [
            *([on(60, 1), on(60, 100), off(60), off(60), off(60, channel=1), on(60, channel=1)] * 3),
            *(on(61), on(61, 0), off(61), on(60, channel=DRUMS), off(60, channel=DRUMS)),
            *(control(120), control(123), control(127, channel=1), control(7)),
            *(b"\xc0\x05", b"\xff\x01\x02hm", b"\xf0\x02\x41\xf7"),
        ]
    )
    tracks = st.lists(st.lists(st.tuples(st.integers(0, 30), messages), min_size=5), min_size=1, max_size=3)

    @given(tracks)
    def test_notes_are_those_of_a_slow_reader(self, tracks: list[list[Event]]) -> None:
        tracks = [sorted(events, key=lambda event: event[0]) for events in tracks]
        expected = read_slowly(tracks)
        data = file(*(track(*events) for events in tracks))
        if expected:
            assert notes_of(data) == expected
        else:
            with pytest.raises(MidiError, match="got none"):
                read_midi(data)


def read_slowly(tracks: list[list[Event]]) -> list[tuple[int, int, int, int]]:
    """What is meant by one time line, told event by event."""
    line = []
    for number, events in enumerate(tracks):
        struck = -1
        for tick, message in events:
            if message[0] & 0xF0 == STATUS_NOTE_ON and message[2] > 0:
                struck = tick
            line.append((tick, struck == tick, number, message))
    found, sounding = [], {}
    for tick, _, _, message in sorted(line, key=lambda each: each[:3]):
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if channel == DRUMS or message[0] >= 0xF0:
            continue
        if kind == STATUS_NOTE_ON and message[2] > 0:
            sounding.setdefault((channel, message[1]), []).append((tick, message[2]))
        elif kind in (STATUS_NOTE_ON, STATUS_NOTE_OFF):
            for begun, velocity in sounding.get((channel, message[1]), [])[:1]:
                found.append((begun, tick, message[1], velocity))
                sounding[channel, message[1]].pop(0)
        elif kind == STATUS_CONTROL and message[1] in (120, 123, 124, 125, 126, 127):
            for key in [key for key in sounding if key[0] == channel]:
                found += [(begun, tick, key[1], velocity) for begun, velocity in sounding.pop(key)]
    return sorted(found)


def performed(count: int = 40) -> list[Event]:
    """Notes with a pedal, so many that hops go far."""
    dice = np.random.default_rng(count)
    events = [(0, control(64, 100))]
    for onset in np.sort(dice.integers(0, 4000, count)).tolist():
        pitch = int(dice.integers(30, 90))
        events += [(onset, on(pitch)), (onset + int(dice.integers(1, 2000)), off(pitch))]
    return sorted([*events, (3000, control(64, 0))], key=lambda event: event[0])


def running(events: list[Event], inserted: int | None = None, what: bytes = b"") -> bytes:
    """Events in running status, note-offs as note-ons, something put in before one of them."""
    found, last, now = b"", b"", 0
    for number, (tick, message) in enumerate(events):
        if message[0] & 0xF0 == STATUS_NOTE_OFF:
            message = bytes([message[0] | 0x10]) + message[1:]
        if number == inserted:
            found += b"\x00" + what
        found += varlen(tick - now) + (message[1:] if message[:1] == last else message)
        last, now = message[:1], tick
    return found


class TestWholeOrAReason:
    @pytest.mark.parametrize(
        "what",
        [b"\xf0\x03\x41\x10\xf7", b"\xf7\x02\x01\x02", b"\xff\x01\x03abc", b"\xff\x51\x03\x07\xa1\x20", b"\xf8"],
        ids=["system-exclusive", "escape", "text", "tempo", "clock"],
    )
    def test_running_status_goes_on(self, what: bytes) -> None:
        events = performed()
        expected = notes_of(file(track(*events)))
        for at in range(len(events)):
            assert notes_of(file(running(events, at, what))) == expected

    @pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "RIFF"])
    def test_cut_anywhere(self, wrapped: bool) -> None:
        data = file(tempo(500_000), running(performed(12)), track(*performed(5)))
        if wrapped:
            size = len(data).to_bytes(4, "little")
            data = b"RIFF" + (len(data) + 12).to_bytes(4, "little") + b"RMIDdata" + size + data
        assert len(read_midi(data).notes) == 17
        for end in range(len(data)):
            with pytest.raises(MidiError):
                read_midi(data[:end])

    def test_length_of_a_track_that_lies(self) -> None:
        first, second = running(performed(12)) + END, track(*performed(5)) + END
        head, tail = header(2), chunk(b"MTrk", second)
        whole = notes_of(head + chunk(b"MTrk", first) + tail)
        for length in range(len(first) + len(tail) + 20):
            data = head + b"MTrk" + length.to_bytes(4, "big") + first + tail
            try:
                assert notes_of(data) == whole
            except MidiError:
                assert length != len(first)

    @pytest.mark.parametrize("size", [6, 7, 10, 300])
    def test_header_of_any_length(self, size: int) -> None:
        data = chunk(b"MThd", header()[8:14] + bytes(size - 6)) + chunk(b"MTrk", NOTE + END)
        assert notes_of(data) == [(0, 96, 60, 64)]

    @pytest.mark.parametrize("division", [0xE728, 0xE828, 0xE264, 0xE350])
    def test_smpte_time(self, division: int) -> None:
        frames = {0xE7: 25, 0xE8: 24, 0xE2: 30, 0xE3: 30_000 / 1_001}[division >> 8]
        played = read_midi(file(tempo(1_000), note(length=10_000), division=division)).notes
        np.testing.assert_allclose(played["offset"], 10_000 / frames / (division & 0xFF), rtol=1e-14)

    def test_track_that_goes_on_after_its_length(self) -> None:
        with pytest.raises(MidiError, match="whose tracks have an end, got none"):
            read_midi(header() + b"MTrk" + len(NOTE).to_bytes(4, "big") + NOTE + NOTE + END)

    def test_far_hops_end_with_their_track(self) -> None:
        # Tracks without an end, of notes alone: what hops over eight events must not hop into the next header.
        events = [note(60 + number) for number in range(20)]
        for count in range(1, 20):
            data = header(2) + chunk(b"MTrk", b"".join(events[:count])) + chunk(b"MTrk", events[0])
            assert len(read_midi(data).notes) == count + 1

    @given(
        st.lists(st.sampled_from([NOTE, b"\x00\xc0\x05", b"\x00\xd0\x05\x00\x06", b"\x00\xf8", b"\x00\xff\x01\x00"]))
    )
    def test_data_bytes_belong_to_the_status_in_force(self, events: list[bytes]) -> None:
        goes_on = b"\x00\x05\x00\x06\x00\x07"
        programs = [event + goes_on if event[1] in (0xC0, 0xD0) else event for event in events]
        assert len(read_midi(file(b"\x00\xc0\x01", NOTE, b"".join(programs))).notes) == 1 + events.count(NOTE)

    def test_reading_and_writing_of_files_in_parts_give_equal_tokens(self) -> None:
        events = performed()
        together = encode(read_midi(file(track(*events))))
        apart = file(*(track(*events[part::3]) for part in range(3)))
        np.testing.assert_array_equal(encode(read_midi(apart)), together)


class TestTempo:
    changes = st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(1_000, 2_000_000)), max_size=5, unique_by=lambda change: change[0]
    )

    @given(st.integers(24, 32_767), changes, st.lists(st.integers(0, 20_000)))
    def test_ticks_survive_seconds(self, per_beat: int, changes: list[tuple[int, int]], ticks: list[int]) -> None:
        tempo_map = TempoMap(per_beat, np.array(sorted(changes), TEMPO_DTYPE))
        assert tempo_map.ticks_at(tempo_map.seconds_at(np.array(ticks, np.int64))).tolist() == ticks

    @given(st.integers(1, 32_767), changes, st.floats(0, 10))
    def test_fine_from_a_time_on_and_as_it_was_before(
        self, per_beat: int, changes: list[tuple[int, int]], seconds: float
    ) -> None:
        tempo_map = TempoMap(per_beat, np.array(sorted(changes), TEMPO_DTYPE))
        fine = tempo_map.fine_from(seconds, 0.002)
        before = np.arange(int(tempo_map.ticks_at(np.array([seconds]))[0]))
        np.testing.assert_array_equal(fine.seconds_at(before), tempo_map.seconds_at(before))
        begin = int(fine.ticks_at(np.array([seconds]))[0]) + 1
        steps = np.diff(fine.seconds_at(np.arange(begin, begin + 50)))
        assert steps.max() <= 0.002 + 1e-9

    def test_events_of_all_tracks_share_the_tempo(self) -> None:
        events = read_events(file(tempo(250_000, gap=480), track((0, on(60)), (960, off(60))) + pedal(0)))
        assert events.tempo.seconds_at(events.tick).tolist() == [0.0, 0.75, 0.75]
