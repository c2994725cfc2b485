"""MIDI files of performances: read, and written with mido.

Needs the extra ``music``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import mido
import numpy as np
from numpy.typing import NDArray

from dsmr.music.midi_events import STATUS_CONTROL, STATUS_NOTE_ON, MidiEvents, read_events
from dsmr.music.midi_events import MidiError as MidiError
from dsmr.music.tempo import MICROSECONDS_PER_BEAT, TempoMap
from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, PITCHES, Performance

MAX_NOTES = 500_000
MAX_SECONDS = 4 * 3600.0
MAX_BYTES = 6 * 2**20
"""Bounds on what is taken for music. Ticks say nothing (a file may have 32,767 a beat), seconds and events do: silence
becomes one token a second. So many notes take 4 MB; in so many bytes no file was found that needs 300 MB to be read."""


CHANNELS = 16
DRUMS = 9
"""General MIDI's channel of percussion, counted from 0."""

_SUSTAIN_PEDAL = 64
_ALL_SOUND_OFF, _RESET_ALL_CONTROLLERS, _ALL_NOTES_OFF = 120, 121, 123
_END_ALL_NOTES = (_ALL_SOUND_OFF, _ALL_NOTES_OFF, 124, 125, 126, 127)  # what changes the mode ends all notes, too
_MOVE_PEDAL = (_SUSTAIN_PEDAL, _RESET_ALL_CONTROLLERS, _ALL_SOUND_OFF)

_TICKS_PER_BEAT = (
    500  # of the files written: at MIDI's own tempo a tick is 1 ms and every step of the codec a whole number
)
_LONGEST_GAP = 2**28 - 1  # ticks
_RELEASES, _STRIKES, _RELEASES_AT_ONCE = range(3)  # the order of events on one tick


def read_midi(source: str | os.PathLike[str] | bytes) -> Performance:
    """Read a MIDI file, given by path or as its bytes.

    All channels but that of drums are merged into one piano. A channel is one instrument, in whichever tracks and under
    whichever programs its events are. A note-off, or a note-on of velocity 0, ends the note of its key that was struck
    first; all-notes-off, all-sound-off and changes of mode end all notes of the channel. A note that nothing ends is no
    note. The piano's sustain pedal is down while any channel's is; what a channel leaves down comes up after its last
    event, and resetting all controllers lifts it.

    Raises:
        FileNotFoundError: there is no such file.
        MidiError: the file cannot be read whole, holds no notes or independent sequences (type 2), or goes beyond
            ``MAX_BYTES``, ``MAX_NOTES`` or ``MAX_SECONDS``.
    """
    return read_midi_with_tempo(source)[0]


def read_midi_with_tempo(source: str | os.PathLike[str] | bytes) -> tuple[Performance, TempoMap]:
    """Read a MIDI file as :func:`read_midi` does, and how it measures time."""
    name = "MIDI data" if isinstance(source, bytes) else os.fspath(source)
    size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    if size > MAX_BYTES:
        raise MidiError(f"{name}: expected at most {MAX_BYTES} bytes, got {size}")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        events = read_events(data)
        return _performance(events), events.tempo
    except ValueError as error:
        raise MidiError(f"{name}: {error}") from error


def _performance(events: MidiEvents) -> Performance:
    pitched = events.select(events.channel != DRUMS)
    seconds_at = events.tempo.seconds_at
    if (count := np.count_nonzero(pitched.kind == STATUS_NOTE_ON)) > MAX_NOTES:
        raise MidiError(f"expected at most {MAX_NOTES} notes, got {count}")
    strikes, ends = _notes(pitched)
    if len(strikes) == 0:
        raise MidiError("expected notes of pitched instruments, got none")
    notes = np.empty(len(strikes), NOTE_DTYPE)
    notes["onset"], notes["offset"] = seconds_at(pitched.tick[strikes]), seconds_at(pitched.tick[ends])
    notes["pitch"], notes["velocity"] = pitched.number[strikes], pitched.value[strikes]
    pedal = _merge_pedals(_pedals(pitched))
    if (last := max(notes["offset"].max(), pedal["time"].max(initial=0.0))) > MAX_SECONDS:
        raise MidiError(f"expected at most {MAX_SECONDS:.0f} s of music, got {last:.0f} s")
    return Performance(notes, pedal)


def write_midi(performance: Performance, path: str | os.PathLike[str], tempo: TempoMap | None = None) -> None:
    """Write a performance as a MIDI file of one piano, keys and pedal as they are, all times rounded to ticks.

    A key that is struck again while it is held goes to another channel, so that every note-off has one meaning, and the
    pedal to all channels there are. A performance that :func:`dsmr.music.tokens.decode` gave encodes to the same
    tokens when it is read again.

    Args:
        performance: what to write.
        path: the file to write.
        tempo: how the file is to measure time; None: ticks of 1 ms, at 120 beats a minute.
    """
    tempo = tempo or TempoMap(_TICKS_PER_BEAT)
    notes, pedal = performance.notes, performance.pedal
    notes = notes[np.argsort(notes["onset"], kind="stable")]
    channel = _free_channels(notes)
    events: list[tuple[int, int, mido.Message]] = []
    columns = (tempo.ticks_at(notes["onset"]), tempo.ticks_at(notes["offset"]), notes["pitch"], notes["velocity"])
    for on, off, pitch, velocity, own in zip(*(column.tolist() for column in columns), channel, strict=True):
        events.append((on, _STRIKES, mido.Message("note_on", channel=own, note=pitch, velocity=velocity)))
        late = _RELEASES if off > on else _RELEASES_AT_ONCE
        events.append((off, late, mido.Message("note_off", channel=own, note=pitch, velocity=0)))
    for tick, value in zip(tempo.ticks_at(pedal["time"]).tolist(), pedal["value"].tolist(), strict=True):
        for each in sorted({0, *channel}):
            message = mido.Message("control_change", channel=each, control=_SUSTAIN_PEDAL, value=value)
            events.append((tick, _RELEASES, message))
    changes: list[tuple[int, mido.MetaMessage]] = [
        (tick, mido.MetaMessage("set_tempo", tempo=per_beat)) for tick, per_beat in tempo.changes.tolist()
    ]
    if not changes:
        changes = [(0, mido.MetaMessage("set_tempo", tempo=MICROSECONDS_PER_BEAT))]
    name = [(0, mido.MetaMessage("track_name", name="Piano"))]
    programs = [(0, mido.Message("program_change", channel=each, program=0)) for each in sorted({0, *channel})]
    events.sort(key=lambda event: event[:2])
    file = mido.MidiFile(type=1, ticks_per_beat=tempo.ticks_per_beat)
    file.tracks.append(_track(changes))
    file.tracks.append(_track(name + programs + [(tick, message) for tick, _, message in events]))
    file.save(os.fspath(path))


def _free_channels(notes: NDArray[np.void]) -> list[int]:
    """For each note, in order of onset, the first channel where its key is free; the last one, should there be none."""
    channels = [channel for channel in range(CHANNELS) if channel != DRUMS]
    busy_until: dict[int, list[float]] = {}
    found = []
    for onset, offset, pitch, _ in notes.tolist():
        until = busy_until.setdefault(pitch, [])
        at = next((at for at, end in enumerate(until) if end <= onset), len(until))
        if at == len(until) < len(channels):
            until.append(offset)
        at = min(at, len(channels) - 1)
        until[at] = max(until[at], offset)
        found.append(channels[at])
    return found


def _track(events: Sequence[tuple[int, mido.Message | mido.MetaMessage]]) -> mido.MidiTrack:
    """A track of events at ticks, which ascend; a gap beyond what MIDI can state is filled with empty texts."""
    track = mido.MidiTrack()
    now = 0
    for tick, message in events:
        while tick - now > _LONGEST_GAP:
            track.append(mido.MetaMessage("text", text="", time=_LONGEST_GAP))
            now += _LONGEST_GAP
        track.append(message.copy(time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track", time=0))
    return track


def _notes(events: MidiEvents) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which events begin and end notes, in order of the former: their indices, int64 `[N]` each."""
    index = np.flatnonzero(events.kind != STATUS_CONTROL)
    era, era_ends = _eras(events, index)
    # A voice is a key of a channel, from one message that ends all notes to the next: the first of its note-offs is
    # that of the first of its note-ons. The sort is stable: the events of a voice stay in order of time.
    voice = (era * CHANNELS + events.channel[index]) * PITCHES + events.number[index]
    order = np.argsort(voice, kind="stable")
    index, voice, era_ends = index[order], voice[order], era_ends[order]
    is_on = events.kind[index] == STATUS_NOTE_ON
    is_off = ~is_on & ~_of_silent_keys(voice, is_on)
    on, off = index[is_on], index[is_off]
    first_on, first_off = (np.searchsorted(voice[each], voice[is_on]) for each in (is_on, is_off))
    matching = first_off + np.arange(len(on)) - first_on
    released = matching < np.searchsorted(voice[is_off], voice[is_on], side="right")
    ends = era_ends[is_on]
    ends[released] = off[matching[released]]
    ended = np.flatnonzero(ends >= 0)
    ended = ended[np.argsort(on[ended])]
    return on[ended], ends[ended]


def _eras(events: MidiEvents, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For events: how many messages that end all notes of the channel come before, and the index of the next, or -1."""
    era, following = np.zeros(len(index), np.int64), np.full(len(index), -1)
    messages = np.flatnonzero((events.kind == STATUS_CONTROL) & _is_in(events.number, _END_ALL_NOTES))
    for channel in np.unique(events.channel[messages]):
        own = np.flatnonzero(events.channel[index] == channel)
        of_channel = messages[events.channel[messages] == channel]
        era[own] = np.searchsorted(of_channel, index[own])
        following[own] = np.append(of_channel, -1)[era[own]]
    return era, following


def _is_in(numbers: NDArray[np.uint8], wanted: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(np.bincount(wanted, minlength=PITCHES).astype(bool)[numbers])


def _of_silent_keys(voice: NDArray[np.int64], is_on: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which note-offs come while no note of their voice sounds; events come voice by voice."""
    begins = np.append(True, np.diff(voice) != 0)[: len(voice)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(voice)), 0))
    step = np.where(is_on, 1, -1)
    sounding = np.cumsum(step)
    sounding -= sounding[first] - step[first]
    # They are those that bring ons less offs to a new low in the voice. Each voice lies below all those before it, so
    # that one running minimum serves them all.
    floor = -np.cumsum(begins) * (len(voice) + 1)
    depth = np.minimum(sounding, 0) + floor
    lowest = np.append(np.int64(0), np.minimum.accumulate(depth))[: len(voice)]
    return np.asarray(depth < np.minimum(lowest, floor))


def _pedals(events: MidiEvents) -> list[NDArray[np.void]]:
    """The pedal of each channel that has one, PEDAL_DTYPE [P], ending with a lift if the channel leaves it down."""
    moves = events.select((events.kind == STATUS_CONTROL) & _is_in(events.number, _MOVE_PEDAL))
    pedals = []
    for channel in np.unique(moves.channel):
        ticks, values = _pedal(moves.select(moves.channel == channel))
        if len(values) and values[-1] > 0:
            last = events.tick[np.flatnonzero(events.channel == channel)[-1]]
            ticks, values = np.append(ticks, max(last, ticks[-1])), np.append(values, 0)
        pedal = np.empty(len(values), PEDAL_DTYPE)
        pedal["time"], pedal["value"] = events.tempo.seconds_at(ticks), values
        pedals.append(pedal)
    return pedals


def _pedal(moves: MidiEvents) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """When a channel's pedal moves, ticks, and how deep, of all messages that move it.

    Resetting all controllers lifts it (RP-015). All-sound-off silences what it holds and leaves it where it is: it
    lifts for a tick.
    """
    tick, index = moves.tick, np.arange(len(moves.tick))
    value = np.where(moves.number == _SUSTAIN_PEDAL, moves.value, np.uint8(0))
    is_silence = moves.number == _ALL_SOUND_OFF
    last_move = np.maximum.accumulate(np.where(is_silence, -1, index))
    depth = np.where(last_move >= 0, value[last_move], np.uint8(0))
    was_down = np.append(np.uint8(0), depth[:-1]) > 0
    silences = np.flatnonzero(is_silence & was_down)
    again = depth[np.searchsorted(tick, tick[silences], side="right") - 1]
    said = (moves.number == _SUSTAIN_PEDAL) | was_down
    ticks, values = np.append(tick[silences] + 1, tick[said]), np.append(again, value[said])
    order = np.argsort(ticks, kind="stable")
    return ticks[order], values[order]


def _merge_pedals(pedals: list[NDArray[np.void]]) -> NDArray[np.void]:
    """One piano's pedal: at any time as deep as the deepest of these.

    A pedal may move more than once at one time, as it does when it lifts only for a new chord. The first moves of a
    time count together, then the second ones, so that pedals that move alike are merged into one that moves like them.
    """
    pedals = [pedal for pedal in pedals if len(pedal)]
    if len(pedals) < 2:
        return pedals[0] if pedals else np.empty(0, PEDAL_DTYPE)
    messages = np.concatenate(pedals)
    before = np.concatenate([np.append(np.uint8(0), pedal["value"][:-1]) for pedal in pedals])
    nth = np.concatenate([np.arange(len(pedal)) - np.searchsorted(pedal["time"], pedal["time"]) for pedal in pedals])
    order = np.lexsort((nth, messages["time"]))
    time, nth, depth, before = messages["time"][order], nth[order], messages["value"][order], before[order]
    last = np.append((time[1:] != time[:-1]) | (nth[1:] != nth[:-1]), True)
    merged = np.zeros(np.count_nonzero(last), PEDAL_DTYPE)
    merged["time"] = time[last]
    for level in np.unique(depth):  # 128 at most, however many pedals there are
        pedals_as_deep = np.cumsum((depth >= level).astype(np.int64) - (before >= level))
        merged["value"][pedals_as_deep[last] > 0] = level
    return merged
