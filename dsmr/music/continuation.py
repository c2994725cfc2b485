"""Continuation: a performance with other music after it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import PEDAL_DOWN, PEDAL_DTYPE, PEDAL_UP, STEPS_PER_SECOND, Performance


def continued(played: Performance, seconds: float, new_notes: NDArray[np.void]) -> tuple[Performance, float]:
    """Put notes after a performance, whose own notes and pedal stay as they are.

    They begin when all keys are released and the pedal is up, so that it does not hold them; one that is left down is
    lifted.

    Args:
        played: what comes first.
        seconds: when its tokens end, where keys that are struck again are released at once, and a pedal is heard only
            while it holds something.
        new_notes: ``NOTE_DTYPE [N]``, timed from where they begin.

    Returns:
        All of it, and when the new notes begin, in seconds.
    """
    released = float(played.notes["offset"].max(initial=0.0))
    seconds = max(seconds, round(released * STEPS_PER_SECOND) / STEPS_PER_SECOND)
    pedal = played.pedal[np.argsort(played.pedal["time"], kind="stable")]
    downs = np.flatnonzero(pedal["value"] >= PEDAL_DOWN)
    if len(downs):
        since = pedal[downs[-1] :]
        lifts = since["time"][since["value"] < PEDAL_UP]
        seconds = max(seconds, float((lifts if len(lifts) else since["time"][-1:])[0]))
        if len(lifts) == 0:
            pedal = np.append(pedal, np.array([(seconds, 0)], PEDAL_DTYPE))
    moved = new_notes.copy()
    for field in ("onset", "offset"):
        moved[field] += seconds
    return Performance(np.append(played.notes, moved), pedal), seconds
