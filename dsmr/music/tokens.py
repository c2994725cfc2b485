"""Codec of performance events: piano performances to token ids and back.

A performance becomes one stream of events: 128 note-ons, 128 note-offs, 100 time shifts of 10 ms to 1 s and 32 velocity
bins, after Oore et al., "This Time with Feeling" (2018), plus PAD, BEGIN and END. The rules that make the stream
canonical:

- Absolute times are rounded to 10 ms steps; gaps are differences of rounded times, so errors never add up. An onset
  moves by 5 ms at most, and a note that would have no length lasts one step.
- A gap over 1 s takes several shifts, the largest first.
- A velocity is written only when its bin changes, just before the note-on that it belongs to.
- In one step note-offs come before note-ons, and each kind goes up in pitch.
- The sustain pedal is folded into the lengths of the notes (:func:`fold_pedal`).
- A key struck while it still sounds ends the earlier note. When that happens within one step, all its note-ons are
  written, the softest first, and only the last has a note-off: no note is lost and none is moved.

Nothing in the vocabulary depends on how long a piece is. :func:`decode` accepts any sequence of ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOWEST_KEY, HIGHEST_KEY = 21, 108
"""MIDI pitches of the piano's outermost keys, A0 and C8."""

NOTE_ON = 0
NOTE_OFF = 128
TIME_SHIFT = 256
VELOCITY = 356
PAD = 388
BEGIN = 389
END = 390
VOCAB_SIZE = 391

PITCHES = 128
LONGEST_SHIFT = VELOCITY - TIME_SHIFT  # steps
VELOCITY_BINS = PAD - VELOCITY
STEPS_PER_SECOND = 100
STEP_SECONDS = 1 / STEPS_PER_SECOND
CODEC = "performance-388+3/1"
"""Names the vocabulary and the rules above; stored with tokens and with checkpoints."""

PEDAL_DOWN = 64
"""CC64 value from which the pedal is down: the MIDI specification's switch point."""
PEDAL_UP = 56
"""CC64 value below which a pressed pedal is up again. In 977 recordings with a continuous pedal, dips below 64 that
stay at 60 or above last 40 ms (median) and those down to 56 last 77 ms: a foot that trembles, 9 % of all dips. Deeper
ones last 100 ms and more and are meant. A switch that sends 0 and 127 never comes between the two thresholds."""

_VELOCITY_BIN_WIDTH = 128 // VELOCITY_BINS
_UNSTATED_VELOCITY_BIN = 64 // _VELOCITY_BIN_WIDTH  # mezzo-forte, for note-ons that no velocity token precedes

NOTE_DTYPE = np.dtype([("onset", "f8"), ("offset", "f8"), ("pitch", "u1"), ("velocity", "u1")])
"""One note: onset and offset in seconds from the beginning, pitch 0..127, velocity 1..127."""
PEDAL_DTYPE = np.dtype([("time", "f8"), ("value", "u1")])
"""One sustain-pedal message (CC64): time in seconds, value 0..127."""

Ids = NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Performance:
    """Notes and sustain pedal of one piece, in seconds.

    Args:
        notes: ``NOTE_DTYPE [N]``, in any order; offset is when the key was released, not when the sound stopped.
        pedal: ``PEDAL_DTYPE [P]``, in any order; messages of equal time apply as listed. Empty when there was no pedal.

    Raises:
        TypeError: an array of another dtype.
        ValueError: an array that is not one-dimensional, a time that is negative or not finite, an offset before its
            onset, or a pitch, velocity or pedal value that MIDI does not have.
    """

    notes: NDArray[np.void]
    pedal: NDArray[np.void] = field(default_factory=lambda: np.empty(0, PEDAL_DTYPE))

    def __post_init__(self) -> None:
        _check_array("notes", self.notes, NOTE_DTYPE)
        _check_array("pedal", self.pedal, PEDAL_DTYPE)
        notes, pedal = self.notes, self.pedal
        _check_all("notes", notes, np.isfinite(notes["onset"]) & (notes["onset"] >= 0), "a finite onset >= 0 s")
        _check_all(
            "notes", notes, np.isfinite(notes["offset"]) & (notes["offset"] >= notes["onset"]), "offset >= onset"
        )
        _check_all("notes", notes, notes["pitch"] < PITCHES, "a pitch in 0..127")
        _check_all("notes", notes, (notes["velocity"] >= 1) & (notes["velocity"] <= 127), "a velocity in 1..127")
        _check_all("pedal", pedal, np.isfinite(pedal["time"]) & (pedal["time"] >= 0), "a finite time >= 0 s")
        _check_all("pedal", pedal, pedal["value"] <= 127, "a value in 0..127")


def fold_pedal(performance: Performance) -> Performance:
    """Return the performance as it sounds: pedalled notes prolonged, no pedal, no two notes sounding on one key.

    A note released while the pedal is down is held until the pedal lifts or the same key is struck again, whichever is
    first; if neither happens, until the last event of the performance. The notes keep their order. Folding twice
    changes nothing.
    """
    notes = performance.notes.copy()
    notes["offset"] = _held_until(notes["offset"], performance.pedal)
    order = np.lexsort((notes["offset"], notes["onset"], notes["pitch"]))
    pitch, onset, offset = notes["pitch"][order], notes["onset"][order], notes["offset"][order]
    struck_again = np.flatnonzero(pitch[1:] == pitch[:-1])
    offset[struck_again] = np.minimum(offset[struck_again], onset[struck_again + 1])
    notes["offset"][order] = offset
    return Performance(notes)


def encode(performance: Performance) -> Ids:
    """Return the token ids of a performance: uint16 [L], events only, without BEGIN and END."""
    return encode_indexed(performance)[0]


def encode_indexed(performance: Performance) -> tuple[Ids, NDArray[np.int64]]:
    """Encode a performance and say where each note went.

    Returns:
        ids: uint16 [L], as :func:`encode`.
        note_token: int64 [N]; ``ids[note_token[i]]`` is the note-on of ``performance.notes[i]``.
    """
    order, on, off = _on_grid(performance)
    pitch = performance.notes["pitch"][order].astype(np.int64)

    # One sortable number an event: step, then note-offs before note-ons, then pitch. The sort is stable, so notes of
    # one key and one step stay in the order of the grid.
    has_off = off > on
    off_key = off[has_off] * (2 * PITCHES) + pitch[has_off]
    on_key = on * (2 * PITCHES) + PITCHES + pitch
    key = np.concatenate([off_key, on_key])
    by_key = np.argsort(key, kind="stable")
    key = key[by_key]
    step, is_on, key_pitch = key // (2 * PITCHES), key % (2 * PITCHES) >= PITCHES, key % PITCHES
    note = order[by_key[is_on] - len(off_key)]

    gap = np.diff(step, prepend=0)
    full_shifts, rest = np.divmod(gap, LONGEST_SHIFT)
    velocity_bin = _to_bin(performance.notes["velocity"][note])
    new_velocity = np.zeros(len(key), bool)
    new_velocity[is_on] = np.diff(velocity_bin, prepend=-1) != 0

    # An event is written as: full shifts, the rest of the gap, its velocity, itself; `at` is where itself goes.
    at = np.cumsum(full_shifts + (rest > 0) + new_velocity + 1) - 1
    ids = np.full(at[-1] + 1 if len(at) else 0, TIME_SHIFT + LONGEST_SHIFT - 1, np.uint16)
    ids[at] = np.where(is_on, NOTE_ON, NOTE_OFF) + key_pitch
    ids[at[new_velocity] - 1] = VELOCITY + velocity_bin[new_velocity[is_on]]
    ids[(at - new_velocity - 1)[rest > 0]] = TIME_SHIFT + rest[rest > 0] - 1

    note_token = np.empty(len(note), np.int64)
    note_token[note] = at[is_on]
    return ids, note_token


def decode(ids: ArrayLike) -> Performance:
    """Return the performance that token ids describe; any sequence of ids describes one.

    A note ends at the next note-on or note-off of its key, or else where the ids end; one that would have no length
    lasts one step. A note-off of a silent key and PAD, BEGIN and END anywhere have no effect. Before the first velocity
    token notes are mezzo-forte. Notes come in the order of their note-ons. ``encode(decode(encode(x))) == encode(x)``
    for every performance x.

    Args:
        ids: integers [L], each in ``0 .. VOCAB_SIZE - 1``.

    Raises:
        TypeError: ids that are not integers.
        ValueError: ids that are not one-dimensional, or an id outside the vocabulary.
    """
    tokens = _check_ids(ids)
    step = np.cumsum(_shift_steps(tokens))
    velocity = _velocity_bins(tokens) * _VELOCITY_BIN_WIDTH + _VELOCITY_BIN_WIDTH // 2

    at = np.flatnonzero(tokens < TIME_SHIFT)
    at = at[np.argsort(tokens[at] % PITCHES, kind="stable")]  # key by key, each in the order of its events
    pitch = tokens[at] % PITCHES
    end = step[at]
    if len(at):
        same_key_next = pitch[1:] == pitch[:-1]
        end = np.append(np.where(same_key_next, step[at[1:]], step[-1]), step[-1])

    is_on = tokens[at] < NOTE_OFF
    at, pitch, end = at[is_on], pitch[is_on], end[is_on]
    in_order = np.argsort(at)
    at, pitch, end = at[in_order], pitch[in_order], end[in_order]
    notes = np.empty(len(at), NOTE_DTYPE)
    notes["onset"] = step[at] / STEPS_PER_SECOND
    notes["offset"] = np.maximum(end, step[at] + 1) / STEPS_PER_SECOND
    notes["pitch"] = pitch
    notes["velocity"] = velocity[at]
    return Performance(notes)


def duration_seconds(ids: ArrayLike) -> float:
    """Return the music's length in seconds: the sum of all time shifts. Raises as :func:`decode`."""
    return int(_shift_steps(_check_ids(ids)).sum()) / STEPS_PER_SECOND


def token_name(token: int) -> str:
    """Return what an id means, for messages: ``note-on 60``, ``note-off 60``, ``shift 250 ms``, ``velocity bin 16``,
    ``BEGIN``.

    Raises:
        ValueError: an id outside the vocabulary.
    """
    token = int(_check_ids([token])[0])
    if token < NOTE_OFF:
        return f"note-on {token - NOTE_ON}"
    if token < TIME_SHIFT:
        return f"note-off {token - NOTE_OFF}"
    if token < VELOCITY:
        return f"shift {(token - TIME_SHIFT + 1) * 1000 // STEPS_PER_SECOND} ms"
    if token < PAD:
        return f"velocity bin {token - VELOCITY}"
    return {PAD: "PAD", BEGIN: "BEGIN", END: "END"}[token]


def _held_until(released: NDArray[np.float64], pedal: NDArray[np.void]) -> NDArray[np.float64]:
    """When notes released at these times stop sounding, were no key ever struck again: float64 [N], seconds."""
    if len(pedal) == 0:
        return released
    last_event = max(released.max(initial=0.0), pedal["time"].max())
    pedal = pedal[np.argsort(pedal["time"], kind="stable")]
    # A value between the two thresholds leaves the pedal as the last decisive value put it.
    decisive = (pedal["value"] >= PEDAL_DOWN) | (pedal["value"] < PEDAL_UP)
    pedal = pedal[decisive]
    down = pedal["value"] >= PEDAL_DOWN
    last_message = np.searchsorted(pedal["time"], released, side="right") - 1
    held = (last_message >= 0) & down[last_message] if len(pedal) else np.zeros(len(released), bool)
    lifts = np.append(pedal["time"][~down], last_event)
    return np.where(
        held, lifts[np.minimum(np.searchsorted(lifts[:-1], released, side="right"), len(lifts) - 1)], released
    )


def _on_grid(performance: Performance) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Quantise notes: their indices by key and time, and the steps where each begins and ends, int64 [N] each.

    Only when a key is struck again within the step does a note end where it begins: no note-off is written then.
    """
    notes = fold_pedal(performance).notes
    order = np.lexsort((notes["offset"], notes["onset"], notes["pitch"]))
    notes = notes[order]
    on = _to_steps(notes["onset"])
    off = np.maximum(_to_steps(notes["offset"]), on + 1)
    struck_again = np.flatnonzero(notes["pitch"][1:] == notes["pitch"][:-1])
    off[struck_again] = np.minimum(off[struck_again], on[struck_again + 1])
    # Of the notes of one key and step any may come first: the softest does, because MIDI writers sort them so.
    order = order[np.lexsort((_to_bin(notes["velocity"]), on, notes["pitch"]))]
    return order, on, off


def _to_steps(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(seconds * STEPS_PER_SECOND).astype(np.int64)


def _to_bin(velocity: NDArray[np.uint8]) -> NDArray[np.int64]:
    return (velocity // _VELOCITY_BIN_WIDTH).astype(np.int64)


def _shift_steps(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """How far each token moves time: int64 [L], steps."""
    return np.where((tokens >= TIME_SHIFT) & (tokens < VELOCITY), tokens - TIME_SHIFT + 1, 0)


def _velocity_bins(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The velocity bin in force at each token: int64 [L]."""
    is_velocity = (tokens >= VELOCITY) & (tokens < PAD)
    last = np.maximum.accumulate(np.where(is_velocity, np.arange(len(tokens)), -1))
    return np.where(last >= 0, tokens[last] - VELOCITY, _UNSTATED_VELOCITY_BIN)


def _check_ids(ids: ArrayLike) -> NDArray[np.int64]:
    tokens = np.asarray(ids)
    if tokens.ndim != 1:
        raise ValueError(f"ids: expected one dimension [L], got shape {tokens.shape}")
    if tokens.size == 0:
        return np.empty(0, np.int64)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"ids: expected integers, got {tokens.dtype}")
    wrong = np.flatnonzero((tokens < 0) | (tokens >= VOCAB_SIZE))
    if len(wrong):
        raise ValueError(f"ids: expected values in 0..{VOCAB_SIZE - 1}, got {tokens[wrong[0]]} at index {wrong[0]}")
    return tokens.astype(np.int64)


def _check_array(name: str, array: Any, dtype: np.dtype[np.void]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise TypeError(
            f"{name}: expected a numpy array of {dtype}, got {getattr(array, 'dtype', type(array).__name__)}"
        )
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")


def _check_all(name: str, rows: NDArray[np.void], valid: NDArray[np.bool_], expected: str) -> None:
    wrong = np.flatnonzero(~valid)
    if len(wrong):
        raise ValueError(f"{name}: expected {expected}, got {rows[wrong[0]]} at index {wrong[0]}")
