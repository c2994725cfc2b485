"""Baselines that a model is scored beside, on the same tokens: its own context reset, and a bigram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.pieces import Evaluation, choose_beginnings, evaluate_pieces
from dsmr.generation.grammar import Grammar
from dsmr.generation.sampling import Sampling
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import BEGIN, STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, VOCAB_SIZE, Ids
from dsmr.progress import Progress, of_pass
from dsmr_kernels.storage import Storage

if TYPE_CHECKING:
    from dsmr.plots import Curve

RESET_EVERY = 2048
"""Tokens of the crops that most published models of performance events are trained and scored on."""


@dataclass(frozen=True, eq=False)
class Bigram:
    """Interpolated Kneser-Ney bigram (Kneser and Ney 1995; the interpolated form of Chen and Goodman 1999).

        p(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) * p1(w)

    with c(v, w) the pair's count, n(v) the number of different tokens seen after v, and d = n1 / (n1 + 2 n2) from the
    numbers of pairs seen once and twice. p1 is proportional to the number of different tokens seen before w, plus one,
    so that no token is impossible. NLTK has the same, but gives one probability a call; this
    is a table of all pairs.

    Args:
        log_probability: float64 `[V, V]`; entry v, w is log p(w | v).
    """

    log_probability: NDArray[np.float64]

    @classmethod
    def fit(cls, store: TokenStore, indices: Sequence[int]) -> Bigram:
        """Count the pairs of some pieces, e.g. `store.indices("train")`. ValueError for no pieces."""
        if len(indices) == 0:
            raise ValueError("indices: expected at least one piece of the store, got none")
        pairs = np.zeros(VOCAB_SIZE * VOCAB_SIZE, dtype=np.int64)
        for index in indices:
            ids = store.piece(index).astype(np.int64)
            pairs += np.bincount(ids[:-1] * VOCAB_SIZE + ids[1:], minlength=len(pairs))
        counts = pairs.reshape(VOCAB_SIZE, VOCAB_SIZE)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = once / (once + 2 * twice) if once and twice else 0.5
        unigram = 1.0 + (counts > 0).sum(0)
        unigram /= unigram.sum()
        before = counts.sum(1, keepdims=True)
        seen = np.maximum(before, 1)
        spared = np.where(before > 0, discount * (counts > 0).sum(1, keepdims=True) / seen, 1.0)
        return cls(np.log(np.maximum(counts - discount, 0.0) / seen + spared * unigram))

    def play(self, seconds: float, seed: int = 0) -> Ids:
        """Make music as `dsmr.generation.generate` does, each token from the one before: noise to test verdicts with.

        Args:
            seconds: of music; the last time shift is cut.
            seed: equal seeds give equal music.

        Returns:
            uint16 `[n]`: events, without BEGIN and END.
        """
        rng, grammar, sampling = np.random.default_rng(seed), Grammar(), Sampling()
        logits = self.log_probability.astype(np.float32)
        left = round(seconds * STEPS_PER_SECOND)
        token, ids = BEGIN, []
        while left > 0:
            token = sampling.draw(logits[token], grammar.allowed(end=False), rng.random())
            if TIME_SHIFT <= token < VELOCITY:
                token = min(token, TIME_SHIFT + left - 1)
                left -= token - TIME_SHIFT + 1
            grammar.accept(token)
            ids.append(token)
        return np.array(ids, np.uint16)

    def evaluate(self, store: TokenStore, indices: Sequence[int], *, max_tokens: int | None = None) -> Evaluation:
        """Score the same tokens as `evaluate_pieces` does with this `max_tokens`."""
        chosen = choose_beginnings(store, indices, max_tokens)
        pieces = [store.piece(index)[: count + 1].astype(np.int64) for index, count in chosen.items()]
        nll = tuple((-self.log_probability[ids[:-1], ids[1:]]).astype(np.float32) for ids in pieces)
        return Evaluation(tuple(chosen), nll)


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
    storage: Storage | None = None,
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
        storage: of the memory, see `dsmr.evaluation.score.score`.
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

    def read(number: int, reset_every: int | None) -> Evaluation:
        shown = of_pass(progress, number, passes)
        return evaluate_pieces(
            model, store, indices, lanes=lanes, reset_every=reset_every, storage=storage, progress=shown
        )

    return Assessment(
        split,
        whole=read(0, None),
        reset=None if reset_every is None else read(1, reset_every),
        bigram=Bigram.fit(store, train).evaluate(store, indices) if (train := store.indices("train")) else None,
    )
