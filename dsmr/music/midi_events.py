"""MIDI events of a file, those of all tracks on one time line: the whole file, or the reason why not.

The reader is our own because a channel is one instrument, in whichever tracks and under whichever programs its events
are. symusic, three times as fast, splits by track and program before it gives controllers, so that a pedal in a track
without notes is lost; mido gives all events and takes minutes for a thousand files. The format is that of "Standard
MIDI Files 1.0" (MIDI Manufacturers Association, 1996).

An event must be read to know where the next one begins, and Python takes its time over ten million. So numpy finds, for
every byte, where a plain event that began there would end, and where the last of a few such events would; Python hops
from one to the next, and reads by hand only what is not plain.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tempo import TEMPO_DTYPE, TempoMap

STATUS_NOTE_OFF, STATUS_NOTE_ON, STATUS_CONTROL = 0x80, 0x90, 0xB0

_KINDS = (0, 1)  # one track; several that sound together
_LONGEST_QUANTITY = 4  # bytes
_META = 0xFF
_META_END, _META_TEMPO = 0x2F, 0x51
_SYSTEM_EXCLUSIVE = (0xF0, 0xF7)
_SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
_ONE_DATA_BYTE = range(0xC0, 0xE0)  # programs and the pressure on a whole channel
_FAR = 3  # doublings: a far hop is over 8 plain events
_SMPTE = {24: (24, 1_000_000), 25: (25, 1_000_000), 29: (30, 1_001_000), 30: (30, 1_000_000)}
"""Frames a second, as a file states them: how many frames make a beat of how many microseconds."""

_PLAIN = np.zeros(256, np.int32)
"""How many bytes a plain event takes after its gap, by the byte that follows the gap: a status and two data bytes, or
the two alone, where the status before goes on. 0: not plain."""
_PLAIN[:0x80] = 2
_PLAIN[0x80:0xC0] = _PLAIN[0xE0:0xF0] = 3

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int32]


class MidiError(ValueError):
    """A MIDI file that cannot be read, holds no notes, or is too long to be a piece of music."""


@dataclass(frozen=True, eq=False)
class MidiEvents:
    """Notes and controllers of a file, in order of time.

    Args:
        tick: int64 `[E]`.
        kind: uint8 `[E]`: ``STATUS_NOTE_OFF`` (also for a note-on of velocity 0), ``STATUS_NOTE_ON`` or
            ``STATUS_CONTROL``.
        channel: uint8 `[E]`, 0..15.
        number, value: uint8 `[E]`, 0..127: pitch and velocity, or the controller and its value.
        tempo: what the ticks mean.
    """

    tick: NDArray[np.int64]
    kind: Bytes
    channel: Bytes
    number: Bytes
    value: Bytes
    tempo: TempoMap

    def select(self, among: NDArray[np.bool_]) -> MidiEvents:
        """Some of the events."""
        return MidiEvents(
            self.tick[among],
            self.kind[among],
            self.channel[among],
            self.number[among],
            self.value[among],
            self.tempo,
        )


def read_events(data: bytes) -> MidiEvents:
    """Read a Standard MIDI File of type 0 or 1, or one wrapped in RIFF.

    Events of one tick keep the order of their tracks, and in a track their own; but what a track sends before it
    strikes its first note of the tick comes before the notes of all tracks.

    Raises:
        MidiError: not all of it can be read, or it holds independent sequences (type 2).
    """
    data = _unwrapped(data)
    content = np.frombuffer(data, np.uint8)
    announced, division, at = _header(data)
    gap_ends, hops = _hops(content)
    tracks = list(_tracks(data, at, announced))
    begins, tempos = _begins(data, tracks, hops)
    firsts = np.searchsorted(begins, np.array([start for start, _ in tracks], np.int64))
    ticks = _ticks(content, begins, gap_ends, firsts)
    changes = np.empty(len(tempos), TEMPO_DTYPE)
    changes["tick"] = ticks[np.searchsorted(begins, [at for at, _ in tempos])]
    changes["microseconds_per_beat"] = [per_beat for _, per_beat in tempos]
    tempo = _tempo_map(division, changes[np.argsort(changes["tick"], kind="stable")])
    return _events(content, ticks, gap_ends[begins] + 1, firsts, tempo)


def _unwrapped(data: bytes) -> bytes:
    """A file without the RIFF around it, if there is one (RP-029)."""
    if data[:4] != b"RIFF" or data[8:12] != b"RMID":
        return data
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data" and at + 8 + size <= len(data):
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    raise MidiError("expected a MIDI file, got a RIFF file without one, or that ends inside it")


def _header(data: bytes) -> tuple[int, int, int]:
    """How many tracks a file announces, its division of time, and where the header ends, of whatever length."""
    if data[:4] != b"MThd":
        raise MidiError(f"expected a MIDI file, which begins with MThd, got {data[:4]!r}")
    size = int.from_bytes(data[4:8], "big")
    if len(data) < 14 or size < 6 or 8 + size > len(data):
        raise MidiError(f"expected a MIDI file with a header of 6 bytes or more, got {size} in a file of {len(data)}")
    kind, announced, division = struct.unpack(">HHH", data[8:14])
    if kind not in _KINDS:
        raise MidiError(f"expected a MIDI file of type 0 or 1, whose tracks sound together, got type {kind}")
    return announced, division, 8 + size


def _tracks(data: bytes, at: int, announced: int) -> Iterator[tuple[int, int]]:
    """Where the content of each track begins and ends; chunks of other kinds are passed over."""
    found = 0
    while at < len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "big")
        start, at = at + 8, at + 8 + size
        if at > len(data):
            if kind == b"MTrk" or found < announced:
                raise MidiError(f"expected a MIDI file, got one that ends inside a chunk, after {found} tracks")
            break  # rubbish after the last track
        if kind == b"MTrk":
            yield start, at
            found += 1
    if found < announced:
        raise MidiError(f"expected a MIDI file with the {announced} tracks that it announces, got {found}")


def _tempo_map(division: int, changes: NDArray[np.void]) -> TempoMap:
    try:
        if division < 0x8000:
            return TempoMap(division, changes)
        frames, ticks = 256 - (division >> 8), division & 0xFF  # a tick is a part of a frame: tempo has no effect
        if frames not in _SMPTE:
            raise MidiError(f"expected a MIDI file of {', '.join(map(str, _SMPTE))} frames a second, got {frames}")
        frames_per_beat, microseconds = _SMPTE[frames]
        return TempoMap(frames_per_beat * ticks, np.array([(0, microseconds)], TEMPO_DTYPE))
    except ValueError as error:
        raise MidiError(str(error)) from error


def _hops(content: Bytes) -> tuple[Positions, Positions]:
    """For every byte: the last byte of a gap that begins there, and where a plain event ends that does; 0 if none."""
    count = len(content)
    at = np.arange(count, dtype=np.int32)
    gap_ends = np.where(content < 0x80, at, np.int32(count))
    np.minimum.accumulate(gap_ends[::-1], out=gap_ends[::-1])
    after = np.append(content, np.full(2, _META, np.uint8))[gap_ends + 1]
    ends = gap_ends + 1 + _PLAIN[after]
    is_plain = (_PLAIN[after] > 0) & (gap_ends - at < _LONGEST_QUANTITY) & (ends <= count)
    is_plain[:1] = False  # nothing is to begin at byte 0, so that a hop on from 0 is none
    return gap_ends, np.where(is_plain, ends, np.int32(0))


def _begins(data: bytes, tracks: list[tuple[int, int]], hops: Positions) -> tuple[Positions, list[tuple[int, int]]]:
    """Where each event of each track begins; and the changes of tempo: where they begin, and microseconds a beat."""
    closed = np.append(hops, np.int32(0))  # an event may end where the file does
    far = closed
    for _ in range(_FAR):
        far = far[far]
    found, tempos = array("i"), []
    near, farther, by_hand = closed.data, far.data, bytes(len(data))
    for start, stop in tracks:
        tempos += _scan(data, start, stop, (near, farther, by_hand), found)
    steps = np.array(found, np.int32)
    events = np.empty((len(steps), 2**_FAR), np.int32)
    events[:, 0] = np.abs(steps)
    for column in range(1, 2**_FAR):
        events[:, column] = closed[events[:, column - 1]]
    events[steps > 0, 1:] = 0  # a step of one event
    return events[events > 0], tempos


def _scan(
    data: bytes, start: int, stop: int, hops: tuple[memoryview, memoryview, bytes], found: array[int]
) -> list[tuple[int, int]]:
    """Add to `found` where each event of a track begins, or less than nothing: -(where eight events begin).

    A status goes on after a system exclusive message or a meta event: the standard ends it there, but where data bytes
    follow, nothing else can be meant.
    """
    plain, plain_far, by_hand = hops
    near: memoryview | bytes = by_hand
    far: memoryview | bytes = by_hand
    at, running, ended = start, 0, False
    tempos = []
    while at < stop and not ended:
        if (hop := far[at]) and hop <= stop:
            found.append(-at)
            at = hop
            continue
        found.append(at)
        if hop := near[at]:
            at = hop
            continue
        begun = at
        status, body, at = _event(data, at, stop, running)
        if status < 0xF0:
            running = status
            near, far = (by_hand, by_hand) if status in _ONE_DATA_BYTE else (plain, plain_far)
        elif status == _META and data[body] == _META_TEMPO:
            tempos.append((begun, _tempo(data, body + 1, at)))
        ended = status == _META and data[body] == _META_END
    if at > stop:
        raise _ends_inside(start)
    if data[at:stop].strip(b"\0"):
        raise MidiError(f"expected a MIDI file, got {stop - at} bytes after the end of the track at byte {start}")
    if not ended and data[stop : stop + 4] not in (b"", b"MTrk"):
        raise MidiError(f"expected a MIDI file, whose tracks have an end, got none at byte {start}")
    return tempos


def _event(data: bytes, at: int, stop: int, running: int) -> tuple[int, int, int]:
    """The event that begins at a byte of a track: its status, where its content begins, and where it ends."""
    start = at
    _, at = _quantity(data, at, stop)
    if at >= stop:
        raise _ends_inside(start)
    status = data[at]
    if status >= 0x80:
        at += 1
    elif running:
        status = running
    else:
        raise MidiError(f"expected a MIDI file, got a data byte at byte {at} of it, where no status goes on")
    body = at
    if status == _META:
        if at >= stop:
            raise _ends_inside(start)
        size, at = _quantity(data, at + 1, stop)
    elif status in _SYSTEM_EXCLUSIVE:
        size, at = _quantity(data, at, stop)
    elif status < 0xF0:
        size = 1 if status in _ONE_DATA_BYTE else 2
    elif status in _SYSTEM_DATA_BYTES:
        size = _SYSTEM_DATA_BYTES[status]
    else:
        raise MidiError(f"expected a MIDI file, got the reserved status {status:#x} at byte {body - 1} of it")
    if at + size > stop:
        raise _ends_inside(start)
    return status, body, at + size


def _quantity(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for end in range(at, min(at + _LONGEST_QUANTITY, stop)):
        value = value << 7 | data[end] & 0x7F
        if data[end] < 0x80:
            return value, end + 1
    if at + _LONGEST_QUANTITY > stop:
        raise _ends_inside(at)
    raise MidiError(f"expected a MIDI file, got a quantity of more than {_LONGEST_QUANTITY} bytes at byte {at} of it")


def _tempo(data: bytes, at: int, end: int) -> int:
    """Microseconds a beat; whatever a later standard adds is passed over."""
    size, at = _quantity(data, at, end)
    if size < 3:
        raise MidiError(f"expected a MIDI file, whose tempos have 3 bytes, got {size} at byte {at} of it")
    return int.from_bytes(data[at : at + 3], "big")


def _ends_inside(at: int) -> MidiError:
    return MidiError(f"expected a MIDI file, got one with a track that ends inside an event, at byte {at} of the file")


def _ticks(content: Bytes, at: Positions, gap_ends: Positions, firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """When each event is, counted from the beginning of its track: int64 `[E]`."""
    length = gap_ends[at] - at
    gap = np.zeros(len(at), np.int64)
    for more in range(int(length.max(initial=0)) + 1):
        longer = np.flatnonzero(length >= more)
        gap[longer] = gap[longer] << 7 | content[at[longer] + more] & np.uint8(0x7F)
    ticks = np.cumsum(gap)
    counts = np.diff(firsts, append=len(at))
    begun = np.concatenate([[0], ticks])[firsts]
    return np.asarray(ticks - np.repeat(begun, counts))


def _events(
    content: Bytes, ticks: NDArray[np.int64], at: Positions, firsts: NDArray[np.int64], tempo: TempoMap
) -> MidiEvents:
    """Notes and controllers, of events whose gaps end before the bytes `at` `[E]`."""
    padded = np.append(content, np.zeros(2, np.uint8))
    given = padded[at]
    # A status goes on until the next one in the track; a track's first event has none to go on from.
    states = (given >= 0x80) & (given < 0xF0)
    index = np.arange(len(at), dtype=np.int32)
    status = np.where(given < 0xF0, given[np.maximum.accumulate(np.where(states, index, 0))], given)
    number = padded[at + states]
    value = padded[at + states + 1]
    value[(status >= _ONE_DATA_BYTE.start) & (status < _ONE_DATA_BYTE.stop)] = 0
    wrong = np.flatnonzero((status < 0xF0) & ((number | value) >= 0x80))
    if len(wrong):
        raise MidiError(f"expected a MIDI file, got data above 127 in the event at byte {at[wrong[0]]} of it")
    kind = status & np.uint8(0xF0)
    kind[(kind == STATUS_NOTE_ON) & (value == 0)] = STATUS_NOTE_OFF
    wanted = np.flatnonzero((kind == STATUS_NOTE_OFF) | (kind == STATUS_NOTE_ON) | (kind == STATUS_CONTROL))
    track = np.repeat(np.arange(len(firsts)), np.diff(firsts, append=len(at)))[wanted]
    order = wanted[_one_time_line(ticks[wanted], track, kind[wanted] == STATUS_NOTE_ON)]
    return MidiEvents(ticks[order], kind[order], status[order] & np.uint8(0x0F), number[order], value[order], tempo)


def _one_time_line(ticks: NDArray[np.int64], track: NDArray[np.int64], strikes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The order of events that come track by track: see :func:`read_events`."""
    if len(track) == 0 or track[-1] == track[0]:
        return np.arange(len(ticks))
    begins = np.append(True, (np.diff(ticks) != 0) | (np.diff(track) != 0))
    struck = np.cumsum(strikes)
    before = np.maximum.accumulate(np.where(begins, struck - strikes, 0))
    return np.asarray(np.lexsort((struck > before, ticks)))
