"""Metre and rhythm. Musical time is counted in ticks, 24 to a quarter note, so that triplets and 32nds are whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from dsmr.pianist.dice import Dice

QUARTER = 24
DOTTED_QUARTER = 36

Lengths = tuple[int, ...]
"""Note lengths in ticks, one after the other; a negative one is a rest."""


@dataclass(frozen=True)
class Metre:
    """A time signature: its beats and how long each lasts.

    Args:
        name: as written, ``6/8``.
        beats: beats in a bar.
        beat: ticks in a beat: a quarter in simple metres, a dotted quarter in compound ones.
    """

    name: str
    beats: int
    beat: int

    @property
    def bar(self) -> int:
        """Ticks in a bar."""
        return self.beats * self.beat

    @property
    def compound(self) -> bool:
        """Whether beats divide by three."""
        return self.beat == DOTTED_QUARTER

    @cached_property
    def strength(self) -> tuple[float, ...]:
        """The metric weight of each tick of a bar, from 1 on the downbeat to 0.1 between the subdivisions."""
        weights = [0.1] * self.bar
        for tick in range(0, self.bar, self.beat // (3 if self.compound else 2)):
            weights[tick] = 0.3
        for beat in range(self.beats):
            weights[beat * self.beat] = 0.55
        if self.beats in (4, 5):
            weights[2 * self.beat] = 0.75
        weights[0] = 1.0
        return tuple(weights)

    def shares(self, count: int) -> list[tuple[int, int]]:
        """Part a bar among count chords: (start, length) of each, on beats where there are enough beats."""
        if count <= self.beats:
            edges = [-(-i * self.beats // count) * self.beat for i in range(count + 1)]
        else:
            edges = [i * self.bar // count for i in range(count + 1)]
        return [(a, b - a) for a, b in pairwise(edges)]


METRES = {
    name: Metre(name, beats, beat)
    for name, beats, beat in (
        ("2/4", 2, QUARTER),
        ("3/4", 3, QUARTER),
        ("4/4", 4, QUARTER),
        ("5/4", 5, QUARTER),
        ("6/8", 2, DOTTED_QUARTER),
        ("9/8", 3, DOTTED_QUARTER),
        ("12/8", 4, DOTTED_QUARTER),
    )
}

# Cells of one beat or two that rhythms are made of, with their weights, by manner; for simple and compound beats.
_CELLS: dict[str, tuple[dict[Lengths, float], dict[Lengths, float]]] = {
    "lyrical": (
        {(24,): 3, (12, 12): 3, (36, 12): 3, (48,): 1, (18, 6): 1, (12, 6, 6): 1, (24, 12, 12): 2},
        {(36,): 2, (24, 12): 3, (12, 12, 12): 2, (36, 24, 12): 2, (18, 6, 12): 1, (60, 12): 1},
    ),
    "flowing": (
        {(12, 12): 4, (6, 6, 6, 6): 2, (24,): 2, (12, 6, 6): 2, (36, 6, 6): 1, (8, 8, 8): 1},
        {(12, 12, 12): 4, (24, 12): 2, (36,): 1, (12, 6, 6, 12): 2, (6, 6, 6, 6, 6, 6): 1},
    ),
    "dotted": (
        {(18, 6): 4, (24,): 2, (36, 12): 2, (12, 12): 1, (18, 3, 3): 1, (-6, 6, 6, 6): 1},
        {(18, 6, 12): 4, (24, 12): 3, (36,): 1, (30, 6): 1, (12, 12, 12): 1},
    ),
    "motoric": (
        {(6, 6, 6, 6): 5, (12, 6, 6): 2, (6, 6, 12): 2, (12, 12): 2, (-6, 6, 6, 6): 1},
        {(6, 6, 6, 6, 6, 6): 3, (12, 12, 12): 4, (12, 6, 6, 6, 6): 2, (6, 6, 12, 12): 1},
    ),
    "dance": (
        {(24,): 3, (12, 12): 3, (6, 6, 12): 2, (12, 6, 6): 2, (18, 6): 1, (-12, 12): 1},
        {(24, 12): 4, (12, 12, 12): 3, (36,): 1, (12, 24): 1, (-12, 12, 12): 1},
    ),
    "syncopated": (
        {(12, 24, 12): 3, (6, 12, 6): 3, (24,): 2, (12, 12): 2, (18, 18, 12): 2, (6, 6, 6, 6): 1, (-6, 12, 6): 1},
        {(12, 24): 3, (24, 24, 24): 2, (12, 12, 12): 2, (18, 18): 2, (24, 12): 1},
    ),
    "rippling": (
        {(8, 8, 8): 4, (24,): 2, (16, 8): 2, (12, 12): 1, (8, 8, 8, 24): 1, (4, 4, 4, 12): 1},
        {(6, 6, 6, 6, 6, 6): 2, (12, 12, 12): 3, (24, 6, 6): 2, (36,): 1, (9, 9, 9, 9): 1},
    ),
}
MANNERS = tuple(_CELLS)

Palette = dict[Lengths, float]
"""The few rhythmic cells of one theme, with weights."""


def draw_palette(dice: Dice, manner: str, metre: Metre) -> Palette:
    """Choose the cells that one theme is made of: three or four, since a theme is known by its rhythm."""
    cells = _CELLS[manner][metre.compound]
    palette = {cell: cells[cell] for cell in dice.sample(cells, dice.integer(3, 4))}
    if all(_length(cell) > metre.beat for cell in palette):
        palette[(metre.beat,)] = 1.0  # otherwise an odd number of beats could not be filled
    return palette


def draw_bar(dice: Dice, palette: Palette, metre: Metre) -> Lengths:
    """Return the rhythm of one bar out of a palette's cells."""
    lengths: list[int] = []
    left = metre.bar
    while left:
        fitting = {cell: weight for cell, weight in palette.items() if _length(cell) <= left}
        cell = dice.weighted(fitting) if fitting else (left,)
        lengths += cell
        left -= _length(cell)
    return tuple(lengths)


def calm(lengths: Lengths, ending: int) -> Lengths:
    """Return a bar's rhythm whose last notes are joined to one of at least so many ticks: how phrases breathe."""
    joined = list(lengths)
    last = abs(joined.pop())
    while joined and last < ending:
        last += abs(joined.pop())
    return (*joined, last)


def _length(cell: Lengths) -> int:
    return sum(abs(ticks) for ticks in cell)
