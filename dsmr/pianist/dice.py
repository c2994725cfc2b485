"""Dice, the one source of chance: they decide everything a piece leaves open, in one order, from one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_REFILL = 1024


class Dice:
    """Random choices made from one PCG64 stream of uniform numbers by arithmetic alone.

    Only additions and multiplications follow the generator, no library function whose last bit differs between
    platforms, so one seed gives one piece everywhere. The numbers are drawn in blocks because a numpy call for a single
    one costs more than composing a note.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._block: list[float] = []

    def unit(self) -> float:
        """Return a number in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(_REFILL).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.unit() < probability

    def bell(self) -> float:
        """Return a number around 0, bell-shaped with standard deviation 0.5, never beyond 1.5 either way."""
        return self.unit() + self.unit() + self.unit() - 1.5

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, all equally likely."""
        return options[int(self.unit() * len(options))]

    def weighted(self, options: Mapping[T, float]) -> T:
        """Return one of the keys, each as likely as its weight."""
        left = self.unit() * sum(options.values())
        for option, weight in options.items():  # noqa: B007 - rounding may run past the last weight: the last one then
            left -= weight
            if left < 0:
                break
        return option

    def sample(self, options: Mapping[T, float], count: int) -> list[T]:
        """Return up to count different keys, drawn one after the other by weight."""
        rest = dict(options)
        drawn: list[T] = []
        while rest and len(drawn) < count:
            drawn.append(self.weighted(rest))
            del rest[drawn[-1]]
        return drawn
