"""Sampling: how a token is drawn from a model's distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import NOTE_OFF, TIME_SHIFT


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the model's distribution, once impossible tokens are out and releases are aimed.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        min_p: drops tokens less probable than this fraction of the most probable one (Nguyen et al. 2024).
        top_p: then keeps the fewest most probable tokens that make up this much of the rest (Holtzman et al. 2020).

    Raises:
        ValueError: a negative temperature, `min_p` outside [0, 1] or `top_p` outside (0, 1].
    """

    temperature: float = 1.0
    min_p: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected a finite number >= 0, got {self.temperature}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected a number from 0 to 1, got {self.min_p}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number above 0, at most 1, got {self.top_p}")

    def draw(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_], uniform: float) -> int:
        """The token that `uniform`, a number in [0, 1), picks.

        Args:
            logits: float32 `[V]`.
            allowed: bool `[V]`, true for at least one token; no other is ever drawn.

        Raises:
            ValueError: the logits are not finite.
        """
        scores = np.where(allowed, aim_releases(logits, allowed), -np.inf).astype(np.float64)
        best = int(scores.argmax())
        if not math.isfinite(scores[best]):
            raise ValueError("logits: expected finite numbers, got NaN or infinity: are the weights those of a model?")
        if self.temperature == 0:
            return best
        scores -= scores[best]
        scores /= self.temperature
        weights = np.exp(scores, out=scores)  # the most probable token's is 1
        if self.min_p > 0:
            weights[weights < self.min_p] = 0
        if self.top_p < 1:
            falling = np.sort(weights)[::-1]
            mass = falling.cumsum()
            weights[weights < falling[mass.searchsorted(self.top_p * mass[-1])]] = 0
        mass = weights.cumsum()
        # With a threshold above 0 the first entry to reach it always has a weight of its own.
        return int(mass.searchsorted((1 - uniform) * mass[-1]))


def aim_releases(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits `[V]` in which the probability of releasing some key is all on keys that can be released.

    A young model knows that it is time for a note-off, but not well which keys sound. If what it gives to silent keys
    were lost with them, fewer keys would be released than struck, and they would pile up.
    """
    releases = slice(NOTE_OFF, TIME_SHIFT)
    possible = logits[releases][allowed[releases]]
    if not len(possible):
        return logits
    aimed = logits.copy()
    aimed[releases] += np.logaddexp.reduce(logits[releases]) - np.logaddexp.reduce(possible)
    return aimed
