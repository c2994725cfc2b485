"""Performances in and out: MIDI files read with symusic and written with pretty_midi, and sound.

Needs the extra ``music``. Sound needs nothing more; with a soundfont and FluidSynth it is better.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
from numpy.typing import NDArray
from symusic.core import ScoreTick, TrackTick

from dsmr.tokens import NOTE_DTYPE, PEDAL_DTYPE, STEP_SECONDS, Performance, fold_pedal

MAX_NOTES = 500_000
MAX_SECONDS = 4 * 3600.0
MAX_BYTES = 6 * 2**20
"""Bounds on what is taken for music. Ticks say nothing (a file may have 32,767 a beat), seconds and events do: silence
becomes one token a second. So many notes take 4 MB; in so many bytes no file was found that needs 300 MB to be read."""

SAMPLE_RATE = 44_100

_TOO_MANY_TICKS = "expected fewer than 2^31 ticks, got times below 0, where the reader's 32 bits end up after more"

_SUSTAIN_PEDAL = 64
_MICROSECONDS_PER_BEAT = 500_000  # MIDI's tempo where a file states none: 120 beats a minute
_TICKS_PER_BEAT = 500  # of the files written: at that tempo a tick is 1 ms and every step of the codec a whole number

_WINDOW_SECONDS = 10
_RING_SECONDS = 8.0  # pretty_midi lets a note fade by e a second: after 8 s it is 70 dB down
_RELEASE_SECONDS = 0.08  # a damper needs this long to stop a string
_STIFFNESS = 4e-4
_HIGHEST_PARTIAL_HZ = 12_000.0

Samples = NDArray[np.float32]
TicksToSeconds = Callable[[NDArray[np.integer[Any]]], NDArray[np.float64]]


class MidiError(ValueError):
    """A MIDI file that cannot be read, holds no notes, or is too long to be a piece of music."""


def read_midi(source: str | os.PathLike[str] | bytes) -> Performance:
    """Read a MIDI file, given by path or as its bytes.

    All tracks but drums are merged into one piano. Its sustain pedal is down while any track's is; what a track leaves
    down comes up after the track's last event. A note that nothing ends is no note.

    Raises:
        FileNotFoundError: there is no such file.
        MidiError: the file is corrupt, holds no notes or independent sequences (type 2), or goes beyond ``MAX_BYTES``,
            ``MAX_NOTES`` or ``MAX_SECONDS``.
    """
    name = "MIDI data" if isinstance(source, bytes) else os.fspath(source)
    size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    if size > MAX_BYTES:
        raise MidiError(f"{name}: expected at most {MAX_BYTES} bytes, got {size}")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if _ends_inside_a_meta_event(data):
        raise MidiError(f"{name}: expected a MIDI file, got one that ends inside a tempo, metre or key")
    if data[-1:] >= b"\x80":  # symusic 0.6 goes on after a quantity without end, where CPython has but one zero
        data += bytes(8)
    try:
        score = ScoreTick.from_midi(data)
    except (RuntimeError, ValueError) as error:
        raise MidiError(f"{name}: expected a MIDI file, got an error from its reader: {error}") from error
    if (kind := int.from_bytes(data[8:10], "big")) not in (0, 1):
        raise MidiError(f"{name}: expected a MIDI file of type 0 or 1, whose tracks sound together, got type {kind}")
    if score.ticks_per_quarter < 1:
        raise MidiError(f"{name}: expected at least one tick a beat, got {score.ticks_per_quarter}")
    tracks = [track for track in score.tracks if not track.is_drum]
    if (count := sum(len(track.notes) for track in tracks)) > MAX_NOTES:
        raise MidiError(f"{name}: expected at most {MAX_NOTES} notes, got {count}")
    if count == 0:
        raise MidiError(f"{name}: expected notes of pitched instruments, got none")
    seconds_at = _tempo_map(name, score)
    notes = np.concatenate([_notes(track, seconds_at) for track in tracks])
    pedal = _merge_pedals([_pedal(track, seconds_at) for track in tracks])
    if min(notes["onset"].min(), pedal["time"].min(initial=0.0)) < 0:
        raise MidiError(f"{name}: {_TOO_MANY_TICKS}")
    if (last := max(notes["offset"].max(), pedal["time"].max(initial=0.0))) > MAX_SECONDS:
        raise MidiError(f"{name}: expected at most {MAX_SECONDS:.0f} s of music, got {last:.0f} s")
    try:
        return Performance(notes, pedal)
    except ValueError as error:
        raise MidiError(f"{name}: {error}") from error


def write_midi(performance: Performance, path: str | os.PathLike[str]) -> None:
    """Write a performance as a MIDI file of one piano track, at 1 ms a tick.

    The pedal is folded into the notes, as in the codec, and a note shorter than a step is written as long as a step. A
    performance that :func:`dsmr.tokens.decode` gave encodes to the same tokens when it is read again.
    """
    score = pretty_midi.PrettyMIDI(resolution=_TICKS_PER_BEAT, initial_tempo=60e6 / _MICROSECONDS_PER_BEAT)
    piano = pretty_midi.Instrument(program=0, name="Piano")
    for onset, offset, pitch, velocity in fold_pedal(performance).notes.tolist():
        piano.notes.append(pretty_midi.Note(velocity, pitch, onset, max(offset, onset + STEP_SECONDS)))
    score.instruments.append(piano)
    score.write(os.fspath(path))


def write_wav(
    performance: Performance, path: str | os.PathLike[str], soundfont: str | os.PathLike[str] | None = None
) -> None:
    """Write a performance as sound: mono, 16 bits, 44.1 kHz, the loudest sample at -1 dB.

    Args:
        performance: what to play.
        path: the WAV file to write.
        soundfont: an ``.sf2`` file to play with FluidSynth. Without one a simple struck string is synthesised.

    Raises:
        FileNotFoundError: there is no such soundfont.
        ImportError: a soundfont is given, and pyfluidsynth or the FluidSynth library is missing.
    """
    notes = fold_pedal(performance).notes
    samples = _synthesize(notes) if soundfont is None else _play_soundfont(notes, Path(soundfont))
    peak = max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))
    gain = 10 ** (-1 / 20) * np.iinfo(np.int16).max / peak if peak > 0 else 0.0
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for start in range(0, len(samples), SAMPLE_RATE):  # second by second, so that no second copy is made
            block = samples[start : start + SAMPLE_RATE] * gain
            file.writeframesraw(np.rint(block).astype("<i2").tobytes())


def _ends_inside_a_meta_event(data: bytes) -> bool:
    """Whether symusic 0.6 would read beyond the data: it takes these events to be as long as they should be."""
    ends = {kind: data[-(length + 2) :] for kind, length in ((0x51, 3), (0x58, 4), (0x59, 2))}
    return any(bytes([0xFF, kind]) in end for kind, end in ends.items())


def _tempo_map(name: str, score: ScoreTick) -> TicksToSeconds:
    """The function from ticks to seconds that a file's tempo changes make, in float64 (symusic's own gives float32)."""
    changes = score.tempos.numpy()
    ticks = np.concatenate([[0], changes["time"]]).astype(np.float64)
    per_beat = np.concatenate([[_MICROSECONDS_PER_BEAT], changes["mspq"]]).astype(np.float64)
    order = np.argsort(ticks, kind="stable")
    ticks, per_beat = ticks[order], per_beat[order]
    microticks_per_beat = 1e6 * score.ticks_per_quarter
    if ticks[0] < 0:
        raise MidiError(f"{name}: {_TOO_MANY_TICKS}")
    if per_beat.min() <= 0:
        at = ticks[per_beat.argmin()]
        raise MidiError(f"{name}: expected at least 1 microsecond a beat, got {per_beat.min():.0f} at tick {at:.0f}")
    seconds = np.concatenate([[0.0], np.cumsum(np.diff(ticks) * per_beat[:-1]) / microticks_per_beat])

    def seconds_at(tick: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        change = np.maximum(np.searchsorted(ticks, tick, side="right") - 1, 0)
        return np.asarray(seconds[change] + (tick - ticks[change]) * per_beat[change] / microticks_per_beat)

    return seconds_at


def _notes(track: TrackTick, seconds_at: TicksToSeconds) -> NDArray[np.void]:
    """A track's notes, NOTE_DTYPE [N]. symusic's columns are int32 and int8: each is widened before arithmetic."""
    columns = track.notes.numpy()
    onset = columns["time"].astype(np.int64)
    notes = np.empty(len(onset), NOTE_DTYPE)
    notes["onset"] = seconds_at(onset)
    notes["offset"] = seconds_at(onset + columns["duration"])
    notes["pitch"] = columns["pitch"].astype(np.uint8)
    notes["velocity"] = columns["velocity"].astype(np.uint8)
    return notes


def _pedal(track: TrackTick, seconds_at: TicksToSeconds) -> NDArray[np.void]:
    """A track's CC64 messages, PEDAL_DTYPE [P], ending with a lift if the track leaves the pedal down."""
    columns = track.controls.numpy()
    sustain = np.flatnonzero(columns["number"] == _SUSTAIN_PEDAL)
    sustain = sustain[np.argsort(columns["time"][sustain], kind="stable")]
    value = columns["value"][sustain]
    ticks = columns["time"][sustain].astype(np.int64)
    if len(value) and value[-1] > 0:
        value = np.append(value, 0)
        ticks = np.append(ticks, track.end())
    pedal = np.empty(len(value), PEDAL_DTYPE)
    pedal["time"] = seconds_at(ticks)
    pedal["value"] = value
    return pedal


def _merge_pedals(pedals: list[NDArray[np.void]]) -> NDArray[np.void]:
    """One piano's pedal: at any time as deep as the deepest of these."""
    pedals = [pedal for pedal in pedals if len(pedal)]
    if len(pedals) < 2:
        return pedals[0] if pedals else np.empty(0, PEDAL_DTYPE)
    messages = np.concatenate(pedals)
    before = np.concatenate([np.append(np.uint8(0), pedal["value"][:-1]) for pedal in pedals])
    order = np.argsort(messages["time"], kind="stable")
    time, depth, before = messages["time"][order], messages["value"][order], before[order]
    last = np.append(time[1:] != time[:-1], True)  # messages of one time count together
    merged = np.zeros(np.count_nonzero(last), PEDAL_DTYPE)
    merged["time"] = time[last]
    for level in np.unique(depth):  # 128 at most, however many pedals there are
        pedals_as_deep = np.cumsum((depth >= level).astype(np.int64) - (before >= level))
        merged["value"][pedals_as_deep[last] > 0] = level
    return merged


def _synthesize(notes: NDArray[np.void]) -> Samples:
    """Play notes on a simple struck string with pretty_midi's synthesis.

    pretty_midi makes whole-piece float64 arrays, so the notes are handed to it window by window and added up here.
    """
    last = notes["offset"].max(initial=0.0) + _RELEASE_SECONDS
    mix = np.zeros(int(SAMPLE_RATE * (last + 1)) + 1, np.float32)  # pretty_midi adds a second of silence
    sounding = np.minimum(notes["offset"] - notes["onset"], _RING_SECONDS) + _RELEASE_SECONDS
    strings = {
        pitch: _string(pitch, sounding[notes["pitch"] == pitch].max()) for pitch in np.unique(notes["pitch"]).tolist()
    }

    def waveform(phase: NDArray[np.float64]) -> Samples:
        pitch = pretty_midi.hz_to_note_number(phase[1] / (2 * np.pi) * SAMPLE_RATE)
        return strings[round(pitch)][: len(phase)]

    window = (notes["onset"] // _WINDOW_SECONDS).astype(np.int64)
    for index in np.unique(window).tolist():
        piano = pretty_midi.Instrument(program=0)
        begin = index * _WINDOW_SECONDS
        for note, seconds in zip(notes[window == index], sounding[window == index], strict=True):
            start = note["onset"] - begin
            loudness = (note["velocity"] / 127) ** 2
            piano.notes.append(pretty_midi.Note(loudness, int(note["pitch"]), start, start + seconds))
        played = piano.synthesize(fs=SAMPLE_RATE, wave=waveform)
        at = begin * SAMPLE_RATE
        mix[at : at + len(played)] += played
    return mix


def _string(pitch: int, seconds: float) -> Samples:
    """A struck string: float32 samples. Its partials are a little sharp, and the higher, the sooner they die away.

    Partial k of a stiff string lies at k f sqrt(1 + B k^2): Fletcher and Rossing, "The Physics of Musical Instruments".
    """
    fundamental = pretty_midi.note_number_to_hz(pitch)
    time = np.arange(int(SAMPLE_RATE * seconds) + 2) / SAMPLE_RATE
    samples = np.zeros(len(time))
    power = 0.0
    for k in range(1, 11):
        frequency = k * fundamental * np.sqrt(1 + _STIFFNESS * k * k)
        if k > 1 and frequency > _HIGHEST_PARTIAL_HZ:
            break
        amplitude = k**-1.4
        decay = 0.4 * (k - 1) + fundamental / 600  # per second, beside pretty_midi's own of 1
        samples += amplitude * np.exp(-decay * time) * np.sin(2 * np.pi * frequency * time)
        power += amplitude**2
    return np.asarray(samples / np.sqrt(power), np.float32)


def _play_soundfont(notes: NDArray[np.void], soundfont: Path) -> Samples:
    if not soundfont.is_file():
        raise FileNotFoundError(f"soundfont: expected an .sf2 file, got {soundfont}, which does not exist")
    score = pretty_midi.PrettyMIDI()
    piano = pretty_midi.Instrument(program=0)
    for onset, offset, pitch, velocity in notes.tolist():
        piano.notes.append(pretty_midi.Note(velocity, pitch, onset, offset))
    score.instruments.append(piano)
    try:
        played = score.fluidsynth(fs=SAMPLE_RATE, synthesizer=os.fspath(soundfont))
    except ImportError as error:
        raise ImportError(
            "soundfont: playing one needs pyfluidsynth (pip install pyfluidsynth) and the FluidSynth library; "
            "without a soundfont the built-in synthesis needs neither"
        ) from error
    return np.asarray(played, np.float32)
