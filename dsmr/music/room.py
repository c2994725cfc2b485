"""A small room: a few early reflections, then a tail of noise that dies away, the high frequencies first.

After J. A. Moorer, "About this reverberation business", Computer Music Journal 3 (1979), who found that noise which
decays exponentially sounds like a good hall. Noise of random signs has a flat spectrum and is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dsmr.music.piano import BLOCK, SAMPLE_RATE, Samples

_SECONDS = 1.2

_LOW_SECONDS, _HIGH_SECONDS, _CROSSOVER_HZ = 1.2, 0.7, 2_000.0  # until the tail is 60 dB down, below and above

_REFLECTIONS = (0.011, 0.019, 0.023, 0.037), (0.013, 0.017, 0.029, 0.041)  # seconds, on the left and on the right

_REFLECTED, _TAIL = 0.2, 0.3  # levels beside the direct sound

_SIZE = 2 * BLOCK  # of the Fourier transforms; a block and what it leaves in the room must fit in


def reverberate(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """Play music in the room.

    What comes back differs between left and right, wherever in the music it came from. Memory does not grow.

    Args:
        blocks: the music in blocks of at most `dsmr.music.piano.BLOCK` samples.

    Yields:
        Each block with what the room adds to it; in the end, what the room still plays when the music is over.
    """
    response = _response()
    answer = np.fft.rfft(response, _SIZE)
    tail = np.zeros((2, response.shape[1] - 1), np.float32)
    for block in blocks:
        now, whole = block.shape[1], block.shape[1] + tail.shape[1]
        wet = np.fft.irfft(answer * np.fft.rfft(block.mean(axis=0), _SIZE), _SIZE)[:, :whole].astype(np.float32)
        wet[:, : tail.shape[1]] += tail
        tail = wet[:, now:]
        yield block + wet[:, :now]
    yield tail


def _response() -> NDArray[np.float32]:
    """What the room makes of a click: float32 [2, samples]."""
    count = int(_SECONDS * SAMPLE_RATE)
    time = np.arange(count) / SAMPLE_RATE
    signs = 2.0 * (np.random.PCG64(1).random_raw(2 * count).reshape(2, count) >> 63) - 1
    lows = 1 / (1 + (np.fft.rfftfreq(count, 1 / SAMPLE_RATE) / _CROSSOVER_HZ) ** 4)
    spectrum = np.fft.rfft(signs)
    low, high = np.fft.irfft(spectrum * lows, count), np.fft.irfft(spectrum * (1 - lows), count)
    tail = low * 0.001 ** (time / _LOW_SECONDS) + high * 0.001 ** (time / _HIGH_SECONDS)
    tail[:, time < max(map(max, _REFLECTIONS))] = 0
    early = np.zeros((2, count))
    for side, seconds in zip(early, np.array(_REFLECTIONS), strict=True):
        side[np.rint(seconds * SAMPLE_RATE).astype(int)] = 1 / seconds
    early *= _REFLECTED / np.linalg.norm(early, axis=1, keepdims=True)
    tail *= _TAIL / np.linalg.norm(tail, axis=1, keepdims=True)
    return np.asarray(early + tail, np.float32)
