"""MIDI in and out: merged tracks, tempo and pedal; bad files refused; tokens survive a file."""

from __future__ import annotations

import io
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mido import Message, MetaMessage

from dsmr.music import midi
from dsmr.music.midi import MidiError, read_midi, write_midi
from dsmr.music.tempo import TEMPO_DTYPE, TempoMap
from dsmr.music.tokens import (
    NOTE_DTYPE,
    NOTE_OFF,
    PEDAL_DTYPE,
    TIME_SHIFT,
    VOCAB_SIZE,
    Performance,
    decode,
    encode,
    fold_pedal,
)
from tests.dsmr.playing import performance

DRUMS = 9
Event = tuple[int, Message | MetaMessage]


def on(pitch: int, velocity: int = 64, channel: int = 0) -> Message:
    return Message("note_on", note=pitch, velocity=velocity, channel=channel)


def off(pitch: int, channel: int = 0) -> Message:
    return Message("note_off", note=pitch, channel=channel)


def sustain(value: int, channel: int = 0) -> Message:
    return Message("control_change", control=64, value=value, channel=channel)


def tempo(milliseconds_per_beat: int) -> MetaMessage:
    return MetaMessage("set_tempo", tempo=1000 * milliseconds_per_beat)


def midi_file(*tracks: list[Event], ticks_per_beat: int = 500) -> bytes:
    """A MIDI file of tracks of (tick, message); by default a tick is 1 ms."""
    file = mido.MidiFile(ticks_per_beat=ticks_per_beat)
    for events in tracks:
        before = [0, *(tick for tick, _ in events)]
        file.tracks.append(
            mido.MidiTrack(
                message.copy(time=tick - last) for (tick, message), last in zip(events, before, strict=False)
            )
        )
    raw = io.BytesIO()
    file.save(file=raw)
    return raw.getvalue()


A_NOTE = midi_file([(0, on(60)), (100, off(60))])
TWO_HANDS = midi_file(
    [(0, tempo(400)), (700, tempo(900))],
    [(0, on(72, 80)), (100, sustain(127)), (500, off(72)), (900, sustain(0))],
    [(0, on(48, 90, channel=1)), (400, off(48, channel=1)), (450, on(36, 99, DRUMS)), (460, off(36, DRUMS))],
)


class TestRead:
    def test_path_and_bytes_read_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "piece.mid"
        path.write_bytes(A_NOTE)
        for source in (path, str(path), A_NOTE):
            assert read_midi(source).notes.tolist() == [(0.0, 0.1, 60, 64)]

    def test_times_follow_the_tempo(self) -> None:
        # 1 s at the tempo that files have until they state one, then 2 beats in 2 s, then in 0.5 s.
        data = midi_file(
            [(1000, tempo(1000)), (2000, tempo(250))],
            [(500, on(60)), (1500, off(60)), (2000, on(62)), (3000, off(62))],
        )
        assert read_midi(data).notes.tolist() == [(0.5, 2.0, 60, 64), (3.0, 3.5, 62, 64)]

    def test_highest_pitch_and_velocity(self) -> None:
        assert read_midi(midi_file([(0, on(127, 127)), (100, off(127))])).notes.tolist() == [(0.0, 0.1, 127, 127)]

    def test_tracks_are_merged_and_drums_left_out(self) -> None:
        data = midi_file(
            [(0, on(72, 80)), (100, off(72))],
            [(0, on(48, 90, channel=1)), (200, off(48, channel=1))],
            [(0, on(36, 99, DRUMS)), (9000, off(36, DRUMS)), (9000, sustain(127, DRUMS))],
        )
        played = read_midi(data)
        assert sorted(played.notes.tolist()) == [(0.0, 0.1, 72, 80), (0.0, 0.2, 48, 90)]
        assert len(played.pedal) == 0

    def test_notes_without_length_are_kept(self) -> None:
        played = read_midi(midi_file([(100, on(60)), (100, off(60)), (200, on(60)), (300, off(60))]))
        assert played.notes.tolist() == [(0.1, 0.1, 60, 64), (0.2, 0.3, 60, 64)]

    def test_resolution_is_no_reason_to_refuse(self) -> None:
        data = midi_file([(0, on(60)), (32_767 * 2, off(60))], ticks_per_beat=32_767)
        assert read_midi(data).notes.tolist() == [(0.0, 1.0, 60, 64)]

    def test_pedal_keeps_every_message(self) -> None:
        data = midi_file(
            [(0, on(60)), (10, sustain(90)), (20, sustain(0)), (20, sustain(70)), (90, sustain(0)), (100, off(60))]
        )
        assert read_midi(data).pedal.tolist() == [(0.01, 90), (0.02, 0), (0.02, 70), (0.09, 0)]

    def test_pedal_is_down_while_any_track_holds_it(self) -> None:
        data = midi_file(
            [(0, on(72)), (100, sustain(127)), (200, off(72)), (500, sustain(0))],
            [(0, on(48, 64, 1)), (150, sustain(0, 1)), (300, sustain(100, 1)), (400, off(48, 1)), (700, sustain(0, 1))],
        )
        assert fold_pedal(read_midi(data)).notes["offset"].tolist() == [0.7, 0.7]
        assert read_midi(data).pedal.tolist() == [(0.1, 127), (0.15, 127), (0.3, 127), (0.5, 100), (0.7, 0)]

    @given(
        st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 63, 64, 127])), min_size=1), min_size=2)
    )
    def test_merged_pedal_is_as_deep_as_the_deepest(self, tracks: list[list[tuple[int, int]]]) -> None:
        tracks = [sorted(track, key=lambda message: message[0]) for track in tracks]
        merged = midi._merge_pedals([np.array(track, PEDAL_DTYPE) for track in tracks]).tolist()
        # A moment is a time and how many moves of the same pedal at that time came before.
        moments = [
            [((time, sum(at == time for at, _ in track[:i])), value) for i, (time, value) in enumerate(track)]
            for track in tracks
        ]
        expected = []
        for now in sorted({at for track in moments for at, _ in track}):
            depths = [[0, *(value for at, value in track if at <= now)][-1] for track in moments]
            expected.append((now[0], max(depths)))
        assert merged == expected

    @pytest.mark.parametrize("channels", [1, 2, 15])
    def test_pedals_that_move_alike_are_one_that_moves_like_them(self, channels: int, tmp_path: Path) -> None:
        # Lifted for no time at all, on one tick: it ends what it held, and holds what comes.
        pedal = np.array([(0.0, 127), (1.0, 0), (1.0, 127), (2.0, 64), (2.0, 64), (3.0, 0)], PEDAL_DTYPE)
        notes = np.array([(0.0, 0.5, 60, 64)] + [(1.0 + i / 10, 4.0, 72, 64) for i in range(channels)], NOTE_DTYPE)
        write_midi(Performance(notes, pedal), tmp_path / "x.mid")
        found = read_midi(tmp_path / "x.mid")
        assert found.pedal.tolist() == pedal.tolist()
        assert fold_pedal(found).notes["offset"].tolist()[0] == 1.0

    def test_pedal_left_down_lifts_after_the_last_event_of_its_channel(self) -> None:
        data = midi_file(
            [(0, on(60)), (50, sustain(127)), (100, off(60)), (150, on(62)), (200, off(62))],
            [(0, on(64, channel=1)), (990, off(64, channel=1))],
        )
        assert dict(fold_pedal(read_midi(data)).notes[["pitch", "offset"]].tolist()) == {60: 0.2, 62: 0.2, 64: 0.99}


class TestRefuse:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(b"", "expected a MIDI file", id="empty"),
            pytest.param(b"RIFF" * 9, "expected a MIDI file", id="another-format"),
            pytest.param(A_NOTE[:-9], "expected a MIDI file", id="cut-short"),
            pytest.param(A_NOTE[:12] + b"\0\0" + A_NOTE[14:], "at least one tick a beat, got 0", id="no-ticks"),
            pytest.param(A_NOTE.replace(b"\x90\x3c\x40", b"\x90\x3c\xff"), "expected a MIDI file", id="velocity-255"),
            pytest.param(midi_file([]), "expected notes of pitched instruments, got none", id="no-events"),
            pytest.param(midi_file([(0, on(36, 9, DRUMS)), (9, off(36, DRUMS))]), "got none", id="drums-only"),
            pytest.param(
                midi_file([(0, tempo(0))], [(0, on(60)), (9, off(60))]),
                "at least 1 microsecond a beat, got 0 at tick 0",
                id="tempo-0",
            ),
            pytest.param(midi_file([(0, on(60)), (14_400_001, off(60))]), "at most 14400 s of music", id="long-note"),
            pytest.param(
                midi_file([(0, on(60)), (9, off(60)), (14_400_001, sustain(0))]), "at most 14400 s", id="long-pedal"
            ),
        ],
    )
    def test_what_is_not_music(self, data: bytes, message: str) -> None:
        with pytest.raises(MidiError, match=rf"^MIDI data: .*{message}"):
            read_midi(data)

    def test_message_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.mid"
        path.write_bytes(b"MThd")
        with pytest.raises(MidiError, match=r"broken\.mid: expected a MIDI file"):
            read_midi(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_midi(tmp_path / "nowhere.mid")

    def test_bounds_on_bytes_and_notes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(midi, "MAX_NOTES", 1)
        with pytest.raises(MidiError, match="expected at most 1 notes, got 2"):
            read_midi(TWO_HANDS)
        monkeypatch.setattr(midi, "MAX_BYTES", 10)
        with pytest.raises(MidiError, match=f"expected at most 10 bytes, got {len(TWO_HANDS)}"):
            read_midi(TWO_HANDS)

    @given(st.data())
    def test_damaged_files_are_read_or_refused(self, data: st.DataObject) -> None:
        raw = bytearray(data.draw(st.sampled_from([A_NOTE, TWO_HANDS])))
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(raw) - 1))
            raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        try:
            ids = encode(read_midi(bytes(raw)))
        except MidiError:
            return
        np.testing.assert_array_equal(encode(decode(ids)), ids)


# Few keys and short gaps, so that keys are struck again at once; then anything.
any_ids = st.one_of(
    hnp.arrays(
        np.uint16,
        st.integers(1, 60),
        elements=st.sampled_from([60, 60, 61, NOTE_OFF + 60, TIME_SHIFT, TIME_SHIFT + 99, 360, 370, 387]),
    ),
    hnp.arrays(np.uint16, st.integers(1, 60), elements=st.integers(0, VOCAB_SIZE - 1)),
).filter(lambda ids: (ids < NOTE_OFF).any())


class TestWrite:
    @given(any_ids)
    def test_tokens_survive_a_file(self, tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray) -> None:
        path = tmp_path_factory.mktemp("midi") / "piece.mid"
        played = decode(ids)
        write_midi(played, path)
        again = read_midi(path)
        assert len(again.notes) == len(played.notes)
        np.testing.assert_array_equal(encode(again), encode(played))

    def test_tokens_survive_a_file_of_three_hours(self, tmp_path: Path) -> None:
        random = np.random.default_rng(3)
        notes = np.empty(2_000, NOTE_DTYPE)
        notes["onset"] = np.sort(random.uniform(0, 3 * 3600, len(notes)))
        notes["offset"] = notes["onset"] + random.exponential(1.0, len(notes))
        notes["pitch"] = random.integers(21, 109, len(notes))
        notes["velocity"] = random.integers(1, 128, len(notes))
        ids = encode(Performance(notes))
        write_midi(decode(ids), tmp_path / "long.mid")
        np.testing.assert_array_equal(encode(read_midi(tmp_path / "long.mid")), ids)

    def test_one_piano_and_its_pedal(self, tmp_path: Path) -> None:
        played = performance((0.0, 0.1, 60, 80), (0.5, 0.51, 62, 90), pedal=((0.05, 127), (0.4, 0)))
        write_midi(played, tmp_path / "piece.mid")
        (piano,) = pretty_midi.PrettyMIDI(str(tmp_path / "piece.mid")).instruments
        assert (piano.program, piano.is_drum) == (0, False)
        assert [(each.number, each.value, each.time) for each in piano.control_changes] == [
            (64, 127, 0.05),
            (64, 0, 0.4),
        ]
        assert [(note.start, note.end, note.pitch, note.velocity) for note in piano.notes] == [
            (0.0, 0.1, 60, 80),
            (0.5, 0.51, 62, 90),
        ]

    any_notes = st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 20), st.sampled_from([60, 61]), st.integers(1, 127)),
        min_size=1,
        max_size=14,  # as many as there are channels without drums, less one
    )
    any_pedal = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 127)), max_size=6)

    @given(
        any_notes,
        any_pedal,
        st.sampled_from([None, TempoMap(480), TempoMap(96, np.array([(7, 300_000)], TEMPO_DTYPE))]),
    )
    def test_performance_survives_a_file(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        notes: list[tuple[int, int, int, int]],
        pedal: list[tuple[int, int]],
        tempo: TempoMap | None,
    ) -> None:
        """Notes that overlap on one key, that have no length, and every message of the pedal."""
        at = (tempo or TempoMap(500)).seconds_at
        written = np.array([(0, 0, pitch, velocity) for _, _, pitch, velocity in notes], NOTE_DTYPE)
        written["onset"] = at(np.array([onset for onset, *_ in notes]))
        written["offset"] = at(np.array([onset + length for onset, length, *_ in notes]))
        pressed = np.array([*sorted(pedal, key=lambda message: message[0]), (50, 0)], PEDAL_DTYPE)
        pressed["time"] = at(pressed["time"].astype(np.int64))
        path = tmp_path_factory.mktemp("midi") / "piece.mid"
        write_midi(Performance(written, pressed), path, tempo)
        again = read_midi(path)
        assert sorted(again.notes.tolist()) == sorted(written.tolist())
        # A key that is struck again takes a second channel, and pedals of several channels count once a time.
        assert depths(again.pedal) == depths(pressed)

    def test_gap_beyond_what_midi_can_state(self, tmp_path: Path) -> None:
        tempo = TempoMap(32_767, np.array([(0, 1_000)], TEMPO_DTYPE))  # 2^28 ticks are 8.2 s
        write_midi(performance((0.0, 0.5, 60, 80), (30.0, 31.0, 62, 90)), tmp_path / "piece.mid", tempo)
        assert read_midi(tmp_path / "piece.mid").notes["onset"].tolist() == pytest.approx([0.0, 30.0], abs=1e-6)


def depths(pedal: np.ndarray) -> dict[float, int]:
    """How deep the pedal is from each time on."""
    return dict(pedal[["time", "value"]].tolist())
