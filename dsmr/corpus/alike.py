"""Near-duplicates: pieces that are nearly the same music, such as two performances of one composition.

A piece is sketched by its figures: passages of ``FIGURE`` intervals from note to note, whatever the key, the tempo and
the rhythm (see :mod:`dsmr.music.analysis.quotation` for the order in which notes are read). Of their hashes those
below a bound are kept, the same ones in every piece (Broder, "On the resemblance and containment of documents", 1997),
so that pieces can be compared by what they keep. Time and memory grow with the number of notes, not with the pairs of
pieces: where a figure is in many pieces, each of them is compared with the next few.

The library for this, datasketch, takes one figure after the other from Python; NumPy hashes all of a piece at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsmr.music.analysis.quotation import reading_order
from dsmr.music.tokens import PITCHES, STEPS_PER_SECOND, Performance

FIGURE = 6
"""Intervals."""
KEPT = 16
"""One figure in so many is kept: 100 or 200 of a piece's."""
ALIKE = 0.1
"""Pieces of which the smaller shares so much of its figures are nearly the same music. Of 992 recordings every two of
one composition share 0.10 and more, half of them 0.37; of 20,000 pairs of different ones none shares 0.09."""
FEWEST = 3
"""So many kept figures, at least, must be shared."""

_NEIGHBOURS = 8  # each piece is compared with so many of those that have a figure, too
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: spreads small numbers
_MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))

Sketch = NDArray[np.uint64]


def sketch(performance: Performance) -> Sketch:
    """The figures kept of a piece: ascending, each once."""
    steps = np.rint(performance.notes["onset"] * STEPS_PER_SECOND).astype(np.int64)
    steps, pitch = np.divmod(np.sort(steps * PITCHES + performance.notes["pitch"]), PITCHES)
    intervals = (np.diff(pitch[reading_order(steps, pitch)]) + PITCHES).astype(np.uint64)
    figures = np.zeros(max(len(intervals) - FIGURE + 1, 0), np.uint64)
    for place in range(FIGURE):
        figures = (figures + intervals[place : place + len(figures)]) * _MULTIPLIER
    for shift, multiplier in _MIXERS:  # the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)
        figures = (figures ^ figures >> shift) * multiplier
    return np.unique(figures[figures < np.uint64(2**64 // KEPT)])


def alike_across(sketches: Sequence[Sketch], sides: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of pieces that are nearly the same music and lie on different sides: indices, the lower first, sorted."""
    pieces = np.repeat(np.arange(len(sketches)), [len(each) for each in sketches])
    figures = np.concatenate([np.empty(0, np.uint64), *sketches])
    order = np.argsort(figures, kind="stable")
    pieces, figures = pieces[order], figures[order]
    _, side = np.unique(np.asarray(sides), return_inverse=True)
    pairs = []
    for apart in range(1, _NEIGHBOURS + 1):
        one, other = pieces[:-apart], pieces[apart:]
        both = np.flatnonzero((figures[:-apart] == figures[apart:]) & (side[one] != side[other]))
        pairs.append(one[both] * len(sketches) + other[both])
    found, shared = np.unique(np.concatenate(pairs), return_counts=True)
    one, other = np.divmod(found, max(len(sketches), 1))
    size = np.array([len(each) for each in sketches])
    alike = (shared >= FEWEST) & (shared >= ALIKE * np.minimum(size[one], size[other]))
    return list(zip(one[alike].tolist(), other[alike].tolist(), strict=True))
