"""Built-in piano: stiff strings struck by felt hammers, each the sum of its partials.

Sources. Partials of stiff strings: N. H. Fletcher and T. D. Rossing, "The Physics of Musical Instruments", chapter 2.
Stiffness and decay: J. Bensa, S. Bilbao, R. Kronland-Martinet and J. O. Smith, "The simulation of piano string
vibration", J. Acoust. Soc. Am. 114 (2003); the formulas below follow its strings C2, C4 and C7. Early and late decay:
G. Weinreich, "Coupled piano strings", J. Acoust. Soc. Am. 62 (1977). Harder blows are brighter: A. Askenfelt and E. V.
Jansson, "From touch to string vibrations III", J. Acoust. Soc. Am. 93 (1993). Velocity and level: R. B. Dannenberg,
"The interpretation of MIDI velocity", ICMC 2006.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 44_100

BLOCK = 1 << 16
"""Samples that are made at a time, at most."""

Samples = NDArray[np.float32]
"""Left and right: float32 [2, samples]."""

_ROW = 1024  # samples of a note that one row of a matrix product makes

_PARTIALS, _HIGHEST_HZ = 64, 16_000.0

_SLOPE = -0.7  # partial k of a string has a level of k to this power, before the felt takes away the high ones

_SOFT_HZ, _HARD_HZ = 2_650.0, 4_900.0  # where the felt takes half, at velocity 0 and at 127; above, 12 dB an octave

_LATE_PARTIALS, _LATE_LEVEL, _LATE_DECAY, _LATE_PITCH = 6, 0.12, 0.25, 1.0003  # the late sound beside the early one

_ATTACK_SECONDS = 0.002

_DAMPER_SECONDS, _RELEASE_SECONDS = 0.04, 0.3  # in which a damper takes a string's level by e; until it is silent

_FIRST_UNDAMPED = 90  # F#6: from here on strings have no dampers

_LONGEST_SECONDS = 15.0  # bass strings ring longer than this

_CENTRE, _WIDTH = 65, 0.22  # the key in the middle; how far to the side four octaves are, 1 being one side alone


class _String(NamedTuple):
    hertz: NDArray[np.float64]  # [partials]
    level: NDArray[np.float64]  # [partials], as if there were no felt
    motion: NDArray[np.complex128]  # [partials], what a sample adds to the exponent: decay and phase
    row: NDArray[np.float32]  # [2 * partials, _ROW], the first samples of each: real parts, then imaginary ones


def play(notes: NDArray[np.void]) -> Iterator[Samples]:
    """Play notes as the player hears them: low keys to the left, high ones to the right.

    Memory does not grow with the music.

    Args:
        notes: ``NOTE_DTYPE [N]`` in any order, without a pedal: a damper falls at each offset.

    Yields:
        Blocks of at most `BLOCK` samples at `SAMPLE_RATE`, until the last note has ended and died away.
    """
    notes = np.sort(notes, order="onset")
    begin = np.rint(notes["onset"] * SAMPLE_RATE).astype(np.int64)
    frames = np.array([_frames(pitch, offset - onset) for onset, offset, pitch, _ in notes.tolist()], np.int64)
    end = max(int((begin + frames).max(initial=0)), round(float(notes["offset"].max(initial=0)) * SAMPLE_RATE))
    mix = np.zeros((2, BLOCK + int(frames.max(initial=0))), np.float32)
    for start in range(0, end, BLOCK):
        for i in range(*np.searchsorted(begin, (start, start + BLOCK))):
            pitch, at = int(notes["pitch"][i]), begin[i] - start
            wave = _strike(pitch, int(notes["velocity"][i]), frames[i])
            for side, gain in zip(mix, _pan(pitch), strict=True):
                side[at : at + frames[i]] += gain * wave
        yield mix[:, : min(BLOCK, end - start)].copy()
        mix[:, :-BLOCK] = mix[:, BLOCK:]
        mix[:, -BLOCK:] = 0


def _frames(pitch: int, held: float) -> int:
    """How many samples of a string are heard whose key is held for so many seconds."""
    slowest = -_string(pitch).motion.real.max() * SAMPLE_RATE  # of the late sound
    rings = min(np.log(1000 * _LATE_LEVEL) / slowest, _LONGEST_SECONDS)  # until it is 60 dB down
    seconds = rings if pitch >= _FIRST_UNDAMPED else min(held, rings)
    return int((seconds + _RELEASE_SECONDS) * SAMPLE_RATE)


def _strike(pitch: int, velocity: int, frames: int) -> NDArray[np.float32]:
    """A note, which a damper ends: float32 [frames].

    Partial p is ``level exp(motion n)`` at sample n. With n = r _ROW + c that is a factor of r times a factor of c, so
    the sum of all partials is a product of two matrices.
    """
    string = _string(pitch)
    steps = np.exp(np.arange(0, frames, _ROW)[:, None] * string.motion) * _levels(string, velocity)
    wave = (np.hstack([steps.imag, steps.real]).astype(np.float32) @ string.row).reshape(-1)[:frames]
    attack, release = int(_ATTACK_SECONDS * SAMPLE_RATE), int(_RELEASE_SECONDS * SAMPLE_RATE)
    wave[:attack] *= np.sin(np.linspace(0, np.pi / 2, attack, dtype=np.float32)) ** 2
    wave[-release:] *= np.exp(np.arange(release, dtype=np.float32) / np.float32(-_DAMPER_SECONDS * SAMPLE_RATE))
    return wave


def _levels(string: _String, velocity: int) -> NDArray[np.float64]:
    """Levels of partials: [partials]. All together have a power of 1 at velocity 127."""
    felt = _SOFT_HZ * (_HARD_HZ / _SOFT_HZ) ** (velocity / 127)
    levels = string.level / (1 + (string.hertz / felt) ** 2)
    return np.asarray((velocity / 127) ** 2 / np.linalg.norm(levels) * levels)


@lru_cache(maxsize=128)
def _string(pitch: int) -> _String:
    fundamental = 440 * 2 ** ((pitch - 69) / 12)
    number = np.arange(1.0, _PARTIALS + 1)
    stiffness = 3.6e-4 * (fundamental / 261.6) ** 1.2
    hertz = number * fundamental * np.sqrt((1 + stiffness * number**2) / (1 + stiffness))
    hertz = hertz[(hertz < _HIGHEST_HZ) | (number == 1)]
    decay, level = fundamental / 240 + 1e-7 * hertz**2, number[: len(hertz)] ** _SLOPE
    late = slice(_LATE_PARTIALS)
    decay = np.append(decay, _LATE_DECAY * decay[late])  # per second
    level = np.append(level, _LATE_LEVEL * level[late])
    hertz = np.append(hertz, _LATE_PITCH * hertz[late])
    motion = (2j * np.pi * hertz - decay) / SAMPLE_RATE
    row = np.exp(np.arange(_ROW) * motion[:, None])
    return _String(hertz, level, motion, np.vstack([row.real, row.imag]).astype(np.float32))


def _pan(pitch: int) -> tuple[np.float32, np.float32]:
    """Gains of left and right, together of equal power for all keys."""
    angle = np.pi / 4 * (1 + _WIDTH * (pitch - _CENTRE) / 48)
    return np.float32(np.cos(angle)), np.float32(np.sin(angle))
