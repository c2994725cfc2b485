"""Built-in piano: stiff strings struck by felt hammers, each the sum of its partials.

Sources. Partials of stiff strings, and where the hammer strikes: N. H. Fletcher and T. D. Rossing, "The Physics of
Musical Instruments", chapters 2 and 12. Stiffness and decay: J. Bensa, S. Bilbao, R. Kronland-Martinet and J. O. Smith,
"The simulation of piano string vibration", J. Acoust. Soc. Am. 114 (2003), whose strings C2, C4 and C7 the formulas
below follow. Early and late decay: G. Weinreich, "Coupled piano strings", J. Acoust. Soc. Am. 62 (1977). Harder blows
are brighter: A. Askenfelt and E. V. Jansson, "From touch to string vibrations III", J. Acoust. Soc. Am. 93 (1993).
Velocity and level: R. B. Dannenberg, "The interpretation of MIDI velocity", ICMC 2006.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 44_100

Samples = NDArray[np.float32]
"""Left and right: float32 [2, samples]."""

_BLOCK = 1 << 16  # samples that are made at a time

_ROW = 1024  # samples of a note that one row of a matrix product makes

_PARTIALS = 64

_HIGHEST_HZ = 16_000.0

_FAINTEST = 1e-4  # beside the strongest partial, in fortissimo: what is fainter is left out

_SLOPE = 0.7

_LATE_PARTIALS, _LATE_LEVEL, _LATE_DECAY, _LATE_PITCH = 6, 0.12, 0.25, 1.0003  # the late sound beside the early one

_SOFT_HZ, _HARD_HZ = 800.0, 2_000.0  # the felt takes away what is above, by e for as much again: velocity 1 and 127

_ATTACK_SECONDS = 0.002

_DAMPER_SECONDS, _RELEASE_SECONDS = 0.04, 0.3  # in which a damper takes a string's level by e; by all that is heard

_FIRST_UNDAMPED = 90  # F#6: the strings above have no dampers

_LONGEST_SECONDS = 15.0  # a bass string rings for longer; by then it is about 50 dB down

_CENTRE, _WIDTH = 64, 0.3  # the key that is in the middle; how far to the sides an octave times four is, of 1


class _String(NamedTuple):
    hertz: NDArray[np.float64]  # [partials]
    early: int  # how many of them are of the early sound
    motion: NDArray[np.complex128]  # [partials], exponent per sample: decay and phase
    row: NDArray[np.float32]  # [2 * partials, _ROW], the first samples of each: real parts, negative imaginary parts


def play(notes: NDArray[np.void]) -> Iterator[Samples]:
    """Play notes, seen from the player's seat: low keys to the left, high ones to the right.

    Memory does not grow with the music.

    Args:
        notes: ``NOTE_DTYPE [N]`` in any order, without a pedal: a damper falls at each offset.

    Yields:
        Block after block at `SAMPLE_RATE`, until the last note has died away.
    """
    notes = np.sort(notes, order="onset")
    seconds = [_sounding(pitch, offset - onset) for onset, offset, pitch, _ in notes.tolist()]
    begin = np.rint(notes["onset"] * SAMPLE_RATE).astype(np.int64)
    frames = np.ceil(np.array(seconds) * SAMPLE_RATE).astype(np.int64)
    end = int((begin + frames).max(initial=0))
    mix = np.zeros((2, _BLOCK + int(frames.max(initial=0))), np.float32)
    for start in range(0, end, _BLOCK):
        for i in range(*np.searchsorted(begin, (start, start + _BLOCK))):
            _, _, pitch, velocity = notes[i].tolist()
            at = begin[i] - start
            wave = _strike(pitch, velocity, frames[i])
            for side, gain in zip(mix, _pan(pitch), strict=True):
                side[at : at + len(wave)] += gain * wave
        yield mix[:, : min(_BLOCK, end - start)].copy()
        mix[:, :-_BLOCK] = mix[:, _BLOCK:]
        mix[:, -_BLOCK:] = 0


def _sounding(pitch: int, held: float) -> float:
    """For how many seconds a string is heard whose key is held for so long."""
    slowest = -_string(pitch).motion[-_LATE_PARTIALS].real * SAMPLE_RATE
    rings = min(np.log(1000 * _LATE_LEVEL) / slowest, _LONGEST_SECONDS)  # until it is 60 dB down
    return float(rings if pitch >= _FIRST_UNDAMPED else min(held, rings) + _RELEASE_SECONDS)


def _strike(pitch: int, velocity: int, frames: int) -> NDArray[np.float32]:
    """A note: float32 [frames].

    Partial p is ``level exp(motion n)`` at sample n. With n = r _ROW + c that is a product of two factors, one of r and
    one of c, and the sum over partials a product of two matrices.
    """
    string = _string(pitch)
    steps = np.arange(0, frames, _ROW)[:, None] * string.motion
    factor = _levels(string, velocity) * np.exp(steps)
    wave = (np.hstack([factor.imag, factor.real]).astype(np.float32) @ string.row).reshape(-1)[:frames]
    attack = int(_ATTACK_SECONDS * SAMPLE_RATE)
    wave[:attack] *= np.sin(np.linspace(0, np.pi / 2, attack, dtype=np.float32)) ** 2
    released = max(frames - int(_RELEASE_SECONDS * SAMPLE_RATE), 0)
    if pitch < _FIRST_UNDAMPED:
        falling = np.arange(frames - released, dtype=np.float32) / np.float32(_DAMPER_SECONDS * SAMPLE_RATE)
        wave[released:] *= np.exp(-falling)
    return wave


def _levels(string: _String, velocity: int) -> NDArray[np.float64]:
    """The partials' levels: [partials]. Together they have a power of 1 at velocity 127."""
    felt = _SOFT_HZ * (_HARD_HZ / _SOFT_HZ) ** (velocity / 127)
    level = _number(string) ** -_SLOPE / (1 + (string.hertz / felt) ** 2)
    level[string.early :] *= _LATE_LEVEL
    return np.asarray((velocity / 127) ** 2 * level / np.linalg.norm(level))


def _number(string: _String) -> NDArray[np.int64]:
    count = np.arange(1.0, string.early + 1)
    return np.concatenate([count, count[: len(string.hertz) - string.early]])


@lru_cache(maxsize=None)
def _string(pitch: int) -> _String:
    fundamental = 440 * 2 ** ((pitch - 69) / 12)
    number = np.arange(1, _PARTIALS + 1)
    stiffness = 3.6e-4 * (fundamental / 261.6) ** 1.2
    hertz = number * fundamental * np.sqrt((1 + stiffness * number**2) / (1 + stiffness))
    hertz = hertz[hertz < _HIGHEST_HZ]
    decay = fundamental / 240 + 1e-7 * hertz**2
    late = slice(_LATE_PARTIALS)
    decay, frequency = np.append(decay, _LATE_DECAY * decay[late]), np.append(hertz, _LATE_PITCH * hertz[late])
    motion = (-decay + 2j * np.pi * frequency) / SAMPLE_RATE
    row = np.exp(np.arange(_ROW) * motion[:, None])
    return _String(frequency, len(hertz), motion, np.vstack([row.real, row.imag]).astype(np.float32))


def _pan(pitch: int) -> tuple[np.float32, np.float32]:
    """Gains of left and right, of equal power wherever a key is."""
    angle = np.pi / 4 * (1 + _WIDTH * (pitch - _CENTRE) / 48)
    return np.float32(np.cos(angle)), np.float32(np.sin(angle))
