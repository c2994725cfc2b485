"""The bigram baseline: what can be predicted from the last token alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.pieces import Evaluation
from dsmr.music.tokens import VOCAB_SIZE


@dataclass(frozen=True, eq=False)
class Bigram:
    """Interpolated Kneser-Ney bigram (Kneser and Ney 1995; the interpolated form of Chen and Goodman 1999).

        p(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) * p1(w)

    with c(v, w) the pair's count, n(v) the number of different tokens seen after v, and d = n1 / (n1 + 2 n2) from the
    numbers of pairs seen once and twice. p1 is proportional to the number of different tokens seen before w, plus one,
    so that no token is impossible.

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

    def evaluate(self, store: TokenStore, indices: Sequence[int]) -> Evaluation:
        """Score the same tokens as `evaluate_pieces` does."""
        pieces = [store.piece(index).astype(np.int64) for index in indices]
        nll = tuple((-self.log_probability[ids[:-1], ids[1:]]).astype(np.float32) for ids in pieces)
        return Evaluation(tuple(indices), nll)
