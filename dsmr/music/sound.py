"""Sound of performances: WAV files of the built-in piano in a small room or, by an extra, of a soundfont."""

from __future__ import annotations

import os
import wave
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from dsmr.music.piano import SAMPLE_RATE, play
from dsmr.music.room import reverberate
from dsmr.music.soundfont import play_soundfont
from dsmr.music.tokens import Performance, fold_pedal

MAX_SECONDS = 6 * 3600.0
"""A WAV file counts its bytes with 32 bits, which end after 6.2 hours at 48 kHz."""

_LOUDEST = 10 ** (-1 / 20) * np.iinfo(np.int16).max


def write_wav(
    performance: Performance, path: str | os.PathLike[str], soundfont: str | os.PathLike[str] | None = None
) -> None:
    """Write a performance as sound: stereo, 16 bits, the loudest sample at -1 dB.

    The built-in piano plays at 44.1 kHz, and its memory does not grow with the music: until it is known what is
    loudest, the samples wait in a file of twice the size beside the one to be written.

    Args:
        performance: what to play; at most `MAX_SECONDS`.
        path: the WAV file to write.
        soundfont: an ``.sf2`` file to play with, or `dsmr.music.soundfont.PIANO`. None: the built-in piano.

    Raises:
        FileNotFoundError: there is no such soundfont.
        ImportError: a soundfont is asked for, and the extra ``soundfont`` is not installed.
        ValueError: the performance is too long, or the soundfont is none.
    """
    if (seconds := performance.notes["offset"].max(initial=0.0)) > MAX_SECONDS:
        raise ValueError(f"sound: expected at most {MAX_SECONDS:.0f} s of music, got {seconds:.0f} s")
    rate, blocks = SAMPLE_RATE, reverberate(play(fold_pedal(performance).notes))
    if soundfont is not None:
        rate, samples = play_soundfont(performance, soundfont)
        blocks = iter([samples])
    with TemporaryFile(dir=Path(path).parent) as waiting:
        peak = 0.0
        for block in blocks:
            peak = max(peak, float(abs(block).max(initial=0.0)))
            waiting.write(block.T.astype("<f4").tobytes())
        waiting.seek(0)
        gain = np.float32(_LOUDEST / peak if peak > 0 else 0.0)
        with wave.open(os.fspath(path), "wb") as file:
            _begin(file, rate)
            while some := waiting.read(1 << 20):
                file.writeframesraw(np.rint(np.frombuffer(some, "<f4") * gain).astype("<i2").tobytes())


def _begin(file: wave.Wave_write, rate: int) -> None:
    """Stereo, 16 bits."""
    file.setnchannels(2)
    file.setsampwidth(2)
    file.setframerate(rate)
