"""Performances in a few numbers."""

from __future__ import annotations

import numpy as np

from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, Performance


def performance(*notes: tuple[float, float, int, int], pedal: tuple[tuple[float, int], ...] = ()) -> Performance:
    """Notes as `NOTE_DTYPE` has them: onset and offset in seconds, pitch, velocity; the pedal: seconds, value."""
    return Performance(np.array(list(notes), NOTE_DTYPE), np.array(list(pedal), PEDAL_DTYPE))
