"""A model beside its baselines, on the same tokens: whole pieces, the context reset, and a bigram."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.bigram import Bigram
from dsmr.evaluation.pieces import Evaluation, evaluate_pieces
from dsmr.evaluation.score import Progress
from dsmr.model.transformer import Transformer

if TYPE_CHECKING:
    from dsmr.plots import Curve

RESET_EVERY = 2048
"""Tokens of the crops that most published models of performance events are trained and scored on."""


@dataclass(frozen=True, eq=False)
class Assessment:
    """What `assess` found; each score is of the same tokens.

    Args:
        split: whose pieces were scored.
        whole: the model over whole pieces, its memory carried from beginning to end.
        reset: the model with its context cleared every so many tokens; None if that was not asked for.
        bigram: the bigram baseline, fitted to the store's training split; None where the store has none.
    """

    split: str
    whole: Evaluation
    reset: Evaluation | None
    bigram: Evaluation | None

    @property
    def scores(self) -> dict[str, Evaluation]:
        """The evaluations there are, by a name for people."""
        return dict(self._named())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "split": self.split,
            "whole": self.whole.to_dict(),
            "reset": self.reset and self.reset.to_dict(),
            "bigram": self.bigram and self.bigram.to_dict(),
        }

    def curves(self) -> list[Curve]:
        """The NLL by position of each score, for `dsmr.plots.nll_by_position`."""
        from dsmr.plots import Curve, band

        named = ((name, score.by_position()) for name, score in self._named())
        return [
            Curve(name, [b.start for b in bins], [b.nll for b in bins], *band([b.interval for b in bins]))
            for name, bins in named
        ]

    def _named(self) -> Iterator[tuple[str, Evaluation]]:
        yield "whole pieces", self.whole
        if self.reset is not None:
            yield f"context reset every {self.reset.reset_every:,} tokens", self.reset
        if self.bigram is not None:
            yield "bigram", self.bigram


def assess(
    model: Transformer,
    store: TokenStore,
    split: str,
    *,
    pieces: int | None = None,
    reset_every: int | None = RESET_EVERY,
    lanes: int = 4,
    progress: Progress | None = None,
) -> Assessment:
    """Score a split's pieces with a model, whole and with resets, and with the bigram baseline.

    Args:
        model: scores the pieces, on its own device.
        store: its split "train" is what the bigram is fitted to.
        split: "train", "validation" or "test".
        pieces: score a sample of so many, which is the same in each call; None, or more than there are: all.
        reset_every: see `evaluate_pieces`; None leaves that score out.
        lanes: pieces streamed side by side.
        progress: called with the tokens scored so far and in all, both passes together.

    Raises:
        ValueError: an unknown split or one without pieces, or a number out of its range.
    """
    indices = store.indices(split)
    if not indices:
        raise ValueError(f"split: expected one with pieces, got {split!r}, which has none in {store.path}")
    if pieces is not None:
        if pieces < 1:
            raise ValueError(f"pieces: expected at least 1, got {pieces}")
        indices = sorted(np.random.default_rng(0).permutation(indices)[:pieces].tolist())
    passes = 1 if reset_every is None else 2

    def of_pass(number: int) -> Progress | None:
        return progress and (lambda done, total: progress(number * total + done, passes * total))

    return Assessment(
        split,
        whole=evaluate_pieces(model, store, indices, lanes=lanes, progress=of_pass(0)),
        reset=evaluate_pieces(model, store, indices, lanes=lanes, reset_every=reset_every, progress=of_pass(1))
        if reset_every is not None
        else None,
        bigram=Bigram.fit(store, train).evaluate(store, indices) if (train := store.indices("train")) else None,
    )
