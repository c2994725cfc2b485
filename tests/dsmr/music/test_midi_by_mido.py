"""Any file as mido reads it: its merged messages, played one by one on one piano, against `read_midi`."""

from __future__ import annotations

import io

import mido
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmr.music.midi import DRUMS, MAX_SECONDS, MidiError, read_midi
from tests.midi_bytes import END, chunk, header, varlen

Event = tuple[int, bytes]

CHANNELS = st.sampled_from([0, 0, 0, 1, DRUMS])
KEYS = st.integers(60, 62)
DATA = st.integers(0, 127)
VALUES = st.sampled_from([0, 1, 63, 64, 127])
CONTROLLERS = st.sampled_from([64] * 8 + [66, 67, 7, 120, 121, 122, 123, 124, 125, 126, 127])


def _three(kind: int, *numbers: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.tuples(CHANNELS, *numbers).map(lambda drawn: bytes([kind | drawn[0], *drawn[1:]]))


VOICE = st.one_of(
    *[_three(0x90, KEYS, st.integers(1, 127))] * 3,
    *[_three(0x90, KEYS, st.just(0)), _three(0x80, KEYS, DATA)] * 2,
    *[_three(0xB0, CONTROLLERS, VALUES)] * 2,
    _three(0xA0, KEYS, DATA),
    _three(0xC0, DATA),
    _three(0xD0, DATA),
    _three(0xE0, DATA, DATA),
)
TEMPO = st.sampled_from([1, 1_000, 300_000, 2_000_000, 0xFFFFFF]).map(
    lambda each: b"\xff\x51\x03" + each.to_bytes(3, "big")
)
FOREIGN = st.sampled_from([b"\xff\x01\x02hm", b"\xf0\x03\x41\x10\xf7", b"\xf7\x02\x01\x02", b"\xf8", b"\xfe"])
"""What neither sounds nor changes the tempo, and what a status may go on after."""


@st.composite
def tracks_of_events(draw: st.DrawFn) -> list[list[Event]]:
    """Tracks whose events lie on ticks of their own, so that no order of events on one tick is to be guessed."""
    messages = draw(st.lists(st.one_of(*[VOICE] * 9, TEMPO, FOREIGN), min_size=12, max_size=60))
    gaps = draw(st.lists(st.sampled_from([1, 2, 100, 200, 20_000]), min_size=len(messages), max_size=len(messages)))
    tracks: list[list[Event]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for tick, message in zip(np.cumsum(gaps).tolist(), messages, strict=True):
        tracks[draw(st.integers(0, len(tracks) - 1))].append((tick, message))
    return tracks


def written(events: list[Event], *, running: bool, end: int) -> bytes:
    """A track; in running status a status goes on over whatever else comes between."""
    found, last, now = b"", 0, 0
    for tick, message in events:
        goes_on = running and message[0] == last
        found += varlen(tick - now) + (message[1:] if goes_on else message)
        last, now = (message[0] if message[0] < 0xF0 else last), tick
    return found + varlen(end) + END[1:]


def played(data: bytes) -> tuple[list[tuple[float, float, int, int]], list[tuple[float, float, int]]]:
    """Notes as (onset, offset, pitch, velocity); and from when to when the pedal is how deep: a slow reading."""
    seconds, per_beat = 0.0, 500_000
    file = mido.MidiFile(file=io.BytesIO(data))
    channels_last: dict[int, float] = {}
    notes: list[tuple[float, float, int, int]] = []
    spans: list[tuple[float, float, int]] = []
    sounding: dict[tuple[int, int], list[tuple[float, int]]] = {}
    depth: dict[int, int] = {}
    since, line = 0.0, []
    for message in mido.merge_tracks(file.tracks):
        seconds += mido.tick2second(message.time, file.ticks_per_beat, per_beat)
        per_beat = message.tempo if message.type == "set_tempo" else per_beat
        line.append((seconds, message))
        if message.type in ("note_on", "note_off", "control_change"):
            channels_last[message.channel] = seconds
    for now, message in line:
        if getattr(message, "channel", DRUMS) == DRUMS:
            continue
        channel, before = message.channel, max(depth.values(), default=0)
        if message.type == "note_on" and message.velocity > 0:
            sounding.setdefault((channel, message.note), []).append((now, message.velocity))
        elif message.type in ("note_on", "note_off"):
            if sounding.get((channel, message.note)):
                onset, velocity = sounding[channel, message.note].pop(0)
                notes.append((onset, now, message.note, velocity))
        elif message.type == "control_change" and message.control in (120, 123, 124, 125, 126, 127):
            for key in [key for key in sounding if key[0] == channel]:
                notes += [(onset, now, key[1], velocity) for onset, velocity in sounding.pop(key)]
        if message.type == "control_change" and message.control in (64, 121):
            depth[channel] = message.value if message.control == 64 else 0
        if channels_last.get(channel) == now:
            depth[channel] = 0
        if max(depth.values(), default=0) != before:
            spans.append((since, now, before))
            since = now
    return sorted(notes), [*spans, (since, np.inf, 0)]


class TestAsMidoReadsIt:
    @given(tracks_of_events(), st.booleans(), st.sampled_from([24, 96, 480, 10_000, 32_767]), st.sampled_from([0, 999]))
    def test_notes_and_pedals_of_any_file(
        self, tracks: list[list[Event]], running: bool, per_beat: int, end: int
    ) -> None:
        head = header(len(tracks), kind=min(1, len(tracks) - 1), division=per_beat)
        plain = head + b"".join(chunk(b"MTrk", written(each, running=False, end=0)) for each in tracks)
        data = head + b"".join(chunk(b"MTrk", written(each, running=running, end=end)) for each in tracks)
        notes, spans = played(plain)
        if not notes or max(notes[-1][0], *(each[1] for each in notes), spans[-1][0]) > MAX_SECONDS:
            with pytest.raises(MidiError, match="of music, got" if notes else "notes of pitched instruments, got none"):
                read_midi(data)
            return
        performance = read_midi(data)
        found = sorted(performance.notes.tolist())
        assert [each[2:] for each in sorted(found)] == [each[2:] for each in notes]
        np.testing.assert_allclose([each[:2] for each in found], [each[:2] for each in notes], rtol=1e-9)
        times, values = performance.pedal["time"], performance.pedal["value"]
        for begin, stop, depth in spans:
            if stop - begin < 1e-4:
                continue
            middle = begin + min(0.9 * (stop - begin), 1.0)
            at = int(np.searchsorted(times, middle, side="right")) - 1
            assert (int(values[at]) if at >= 0 else 0) == depth, (begin, stop)
