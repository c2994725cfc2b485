"""Sound of performances: WAV files, synthesised with pretty_midi or, with a soundfont, by FluidSynth.

Needs the extra ``music``, and a soundfont pyfluidsynth and the FluidSynth library besides.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from dsmr.music.tokens import Performance, fold_pedal

SAMPLE_RATE = 44_100

_WINDOW_SECONDS = 10

_RING_SECONDS = 8.0  # pretty_midi lets a note fade by e a second: after 8 s it is 70 dB down

_RELEASE_SECONDS = 0.08  # a damper needs this long to stop a string

_STIFFNESS = 4e-4

_HIGHEST_PARTIAL_HZ = 12_000.0

Samples = NDArray[np.float32]


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
        _begin(file, SAMPLE_RATE)
        for start in range(0, len(samples), SAMPLE_RATE):  # second by second, so that no second copy is made
            block = samples[start : start + SAMPLE_RATE] * gain
            file.writeframesraw(np.rint(block).astype("<i2").tobytes())


def _begin(file: wave.Wave_write, rate: int) -> None:
    """Mono, 16 bits."""
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(rate)


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
