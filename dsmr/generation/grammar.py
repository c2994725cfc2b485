"""Grammar of ids: which token may come next, if all of them are to be what the codec writes for a piano."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import (
    BEGIN,
    END,
    HIGHEST_KEY,
    LOWEST_KEY,
    NOTE_OFF,
    PAD,
    PITCHES,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VOCAB_SIZE,
)

LONGEST_NOTE_SECONDS = 8.0
"""A key that has sounded for so long is released: about what a string rings, and longer than 99 % of real notes."""


class Grammar:
    """Which tokens may come next, given those so far, if the ids are to be what `encode` writes.

    - In one step note-offs come before note-ons, and each kind goes up in pitch.
    - Only a sounding key is released, and only a silent one is struck: one that is struck again is released first.
    - Only the 88 keys of a piano are struck, and one that has sounded for `LONGEST_NOTE_SECONDS` is released. That is
      not the codec's rule but the instrument's: models that are young forget keys that they hold.
    - A velocity differs from the one in force, and a note-on follows it; the first note-on has one.
    - Only a shift of a whole second is followed by another.
    - END follows the release of the last sounding key: a piece has notes. PAD and BEGIN are never allowed.

    Some token always is. The ids of a prompt may break the rules; any events are accepted.
    """

    _LONGEST = round(LONGEST_NOTE_SECONDS * STEPS_PER_SECOND)

    def __init__(self) -> None:
        self._last = BEGIN
        self._struck: dict[int, int] = {}  # the keys that sound, and the step in which each was struck
        self._now = 0
        self._velocity_bin: int | None = None
        self._order = -1  # of the last event in this step: pitch for note-offs, PITCHES + pitch for note-ons

    def accept(self, token: int) -> None:
        """Move on past an event."""
        if token < NOTE_OFF:
            self._struck[token] = self._now
            self._order = PITCHES + token
        elif token < TIME_SHIFT:
            self._struck.pop(token - NOTE_OFF, None)
            self._order = token - NOTE_OFF
        elif token < VELOCITY:
            self._order = -1
            self._now += token - TIME_SHIFT + 1
        else:
            self._velocity_bin = token - VELOCITY
        self._last = token

    def allowed(self, *, end: bool) -> NDArray[np.bool_]:
        """bool `[V]`: what may come next; `end` says whether END may, where the piece can end at all.

        Keys that sound are few: going through them one by one is cheaper than arrays of all keys.
        """
        mask = np.zeros(VOCAB_SIZE, dtype=np.bool_)
        after_velocity = VELOCITY <= self._last < PAD
        releasable = [pitch for pitch in self._struck if pitch > self._order]
        overdue = [pitch for pitch in releasable if self._now - self._struck[pitch] >= self._LONGEST]
        if overdue and not after_velocity:
            mask[NOTE_OFF + min(overdue)] = True
            return mask
        lowest = max(LOWEST_KEY, self._order - PITCHES + 1)
        strikable = mask[lowest : HIGHEST_KEY + 1]
        strikable[:] = True
        for pitch in self._struck:
            mask[pitch] = False
        if strikable.any():
            if self._velocity_bin is None:
                strikable[:] = False
            if after_velocity:
                return mask
            mask[VELOCITY:PAD] = True
            if self._velocity_bin is not None:
                mask[VELOCITY + self._velocity_bin] = False
        for pitch in releasable:
            mask[NOTE_OFF + pitch] = True
        mask[TIME_SHIFT:VELOCITY] = not TIME_SHIFT <= self._last < VELOCITY - 1
        mask[END] = end and self._last < TIME_SHIFT and not self._struck
        return mask
