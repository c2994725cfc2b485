"""Augmentation of stored token ids: the same piece, a little higher or lower, a little faster or slower.

Both changes keep the codec's canonical form, so a changed piece is one that could have been stored, and both keep every
note. `Augmentation` draws them for a piece and an epoch; give it to `LaneStream` as its `transform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dsmr.music.tokens import (
    BEGIN,
    END,
    HIGHEST_KEY,
    LOWEST_KEY,
    NOTE_DTYPE,
    PITCHES,
    TIME_SHIFT,
    Ids,
    Performance,
    decode,
    encode,
)


def transpose(ids: Ids, semitones: int) -> Ids:
    """Shift all notes by `semitones`, or by as much of it as keeps every note on the piano's keyboard.

    Args:
        ids: uint16 [n], with or without BEGIN and END.
        semitones: up if positive. A piece that already leaves the keyboard on that side is not shifted.

    Returns:
        uint16 [n], a new array.
    """
    is_note = ids < TIME_SHIFT
    shifted = ids.astype(np.int64)
    if not is_note.any():
        return ids.copy()
    pitches = shifted[is_note] % PITCHES
    if semitones > 0:
        shift = max(0, min(semitones, HIGHEST_KEY - int(pitches.max())))
    else:
        shift = min(0, max(semitones, LOWEST_KEY - int(pitches.min())))
    shifted[is_note] += shift
    return shifted.astype(np.uint16)


def stretch(ids: Ids, factor: float) -> Ids:
    """Multiply all times by `factor`: 1.05 plays 5 % slower.

    Onsets and offsets are scaled as absolute times and rounded to the codec's steps once, so errors do not add up.

    Args:
        ids: uint16 [n], a stored piece: BEGIN, events, END.
        factor: above 0.

    Returns:
        uint16, a stored piece again; its length may differ.

    Raises:
        ValueError: a factor that is not above 0, or ids that BEGIN and END do not enclose.
    """
    if not factor > 0:
        raise ValueError(f"factor: expected a number above 0, got {factor}")
    if len(ids) < 2 or ids[0] != BEGIN or ids[-1] != END:
        raise ValueError("ids: expected a stored piece, BEGIN first and END last")
    notes = decode(ids).notes
    scaled = np.empty(len(notes), NOTE_DTYPE)
    scaled["onset"], scaled["offset"] = notes["onset"] * factor, notes["offset"] * factor
    scaled["pitch"], scaled["velocity"] = notes["pitch"], notes["velocity"]
    return np.concatenate([[BEGIN], encode(Performance(scaled)), [END]]).astype(np.uint16)


@dataclass(frozen=True)
class Augmentation:
    """Draws a transposition and a tempo for each piece and epoch; a function of its fields and arguments alone.

    Args:
        semitones: the shift is uniform over the integers `-semitones .. semitones`.
        tempo: the tempo changes by a factor uniform on a logarithmic scale between `1 / (1 + tempo)` and `1 + tempo`.
        seed: another seed, other draws.

    Raises:
        ValueError: a negative field.
    """

    semitones: int = 3
    tempo: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("semitones", "tempo", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")

    def __call__(self, ids: Ids, piece: int, epoch: int) -> Ids:
        """The piece as it is to be heard in `epoch`: uint16, BEGIN and END included before and after."""
        rng = np.random.default_rng([self.seed, epoch, piece])
        semitones = int(rng.integers(-self.semitones, self.semitones, endpoint=True))
        factor = (1 + self.tempo) ** rng.uniform(-1, 1)
        return stretch(transpose(ids, semitones), factor) if self.tempo > 0 else transpose(ids, semitones)
