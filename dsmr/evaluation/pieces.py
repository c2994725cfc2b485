"""Whole-piece evaluation: the negative log-likelihood of every token, and perplexity with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.bootstrap import CONFIDENCE, Interval, PieceSums
from dsmr.evaluation.score import Stretch, score
from dsmr.model.transformer import Transformer
from dsmr.progress import Progress
from dsmr_kernels.storage import Storage

POSITION_BIN = 1024
"""Tokens a bin when the NLL is shown by position in the piece."""

BEGINNING = 1024
"""Tokens that a part of a piece has at least, unless the piece is shorter; see `evaluate_pieces`."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The NLL of every token of some pieces, in nats, and what follows from it.

    Args:
        pieces: store indices, in the order in which they were asked for.
        token_nll: for each piece float32 `[n]`: entry i is the NLL of the piece's token i + 1 given what came before
            (BEGIN, token 0, is given). A piece cut short by `max_tokens` has fewer entries than tokens to predict.
        reset_every: tokens after which the context was cleared; None: never inside a piece.
    """

    pieces: tuple[int, ...]
    token_nll: tuple[NDArray[np.float32], ...]
    reset_every: int | None = None

    @property
    def piece_nll(self) -> NDArray[np.float64]:
        """Each piece's summed NLL, float64 `[P]`."""
        return np.array([nll.sum(dtype=np.float64) for nll in self.token_nll])

    @property
    def piece_tokens(self) -> NDArray[np.int64]:
        """Each piece's number of scored tokens, int64 `[P]`."""
        return np.array([len(nll) for nll in self.token_nll], dtype=np.int64)

    @property
    def sums(self) -> PieceSums:
        """The NLL of each piece in one bin."""
        return PieceSums(self.piece_nll[:, None], self.piece_tokens[:, None])

    @property
    def nll_sum(self) -> float:
        """Nats, all tokens together."""
        return float(self.piece_nll.sum())

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.piece_tokens.sum())

    @property
    def nll(self) -> float:
        """Nats per token; every token counts the same, so long pieces weigh more."""
        return self.nll_sum / self.tokens

    @property
    def ppl(self) -> float:
        """Perplexity: exp of the mean NLL."""
        return math.exp(self.nll)

    def ppl_interval(self, *, confidence: float = CONFIDENCE) -> Interval | None:
        """The perplexity's interval over pieces, that of the mean NLL; None for fewer than six pieces at 95 %.

        Args:
            confidence: coverage, between 0 and 1.
        """
        (of_nll,) = self.sums.intervals(confidence=confidence)
        return of_nll and (math.exp(of_nll[0]), math.exp(of_nll[1]))

    def by_position(self, width: int = POSITION_BIN) -> list[PositionBin]:
        """Mean NLL of each `width` positions, counted from the beginning of the piece, with its interval."""
        if width < 1:
            raise ValueError(f"width: expected at least 1 token, got {width}")
        bins = -(-int(self.piece_tokens.max(initial=0)) // width)
        sums = PieceSums.of([(np.arange(len(nll)) // width, nll) for nll in self.token_nll], bins)
        rows = zip(sums.tokens.tolist(), sums.mean.tolist(), sums.intervals(), strict=True)
        return [PositionBin(i * width, *row) for i, row in enumerate(rows)]

    def check_whole(self) -> None:
        """ValueError if the context was cleared inside pieces: probes compare with an unbroken reading."""
        if self.reset_every is not None:
            raise ValueError(f"scores: expected whole pieces, got context cleared every {self.reset_every} tokens")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single tokens, as plain values for JSON."""
        return {
            "tokens": self.tokens,
            "nll": self.nll,
            "ppl": self.ppl,
            "ppl_interval_95": self.ppl_interval(),
            "reset_every": self.reset_every,
            "pieces": [
                {"index": index, "tokens": int(tokens), "nll_sum": float(nll)}
                for index, tokens, nll in zip(self.pieces, self.piece_tokens, self.piece_nll, strict=True)
            ],
            "by_position": [
                {"start": b.start, "tokens": b.tokens, "nll": b.nll, "interval_95": b.interval}
                for b in self.by_position()
            ],
        }


@dataclass(frozen=True)
class PositionBin:
    """Tokens at positions `start ...` of their pieces: how many, and their mean NLL in nats.

    `interval` is its 95 % interval over pieces; None for fewer than six pieces.
    """

    start: int
    tokens: int
    nll: float
    interval: Interval | None = None


def evaluate_pieces(
    model: Transformer,
    store: TokenStore,
    indices: Sequence[int],
    *,
    lanes: int = 4,
    segment: int | None = None,
    max_tokens: int | None = None,
    reset_every: int | None = None,
    storage: Storage | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Stream each piece once, left to right, with memory, and score every token but BEGIN.

    Each piece begins a segment of its own, as in generation: with `window="segment"` what a token sees depends on where
    segments begin, and results would otherwise depend on which pieces share a lane. So they do not depend on `lanes`,
    up to rounding. Dropout is off while this runs; the model's mode is restored. Runs under the caller's autocast.

    Args:
        model: scores the pieces, on its own device.
        store, indices: the pieces, e.g. `store.indices("validation")`.
        lanes: pieces streamed side by side; costs memory, saves time.
        segment: tokens a step; None: the model's training segment.
        max_tokens: score no more than that: the beginnings of all pieces, equally long but for pieces that are shorter;
            where these would be shorter than `BEGINNING` tokens, of fewer pieces, chosen at random but the same in each
            call. Pieces differ by more than their parts do: few tokens of many pieces say more than many of few. None:
            everything.
        reset_every: clear the context, memory and positions alike, after that many tokens of a piece. Models trained
            on crops of 2,048 tokens are scored like this. Every token is still scored: the first of a crop is predicted
            from the one token before it.
        storage: see `dsmr.evaluation.score.score`.
        progress: called after each step.
        rank, world_size: score this rank's share of the pieces, perhaps none; ranks share them out by length.

    Returns:
        An `Evaluation` of the pieces in the order of `indices` (those that `max_tokens` left out, and those of other
        ranks, are missing).

    Raises:
        ValueError: an argument out of its range, or no pieces.
    """
    for name, value in (
        ("lanes", lanes),
        ("segment", segment),
        ("max_tokens", max_tokens),
        ("reset_every", reset_every),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 to {world_size - 1} (world_size {world_size}), got {rank}")
    pieces = choose_beginnings(store, indices, max_tokens)
    own = set(sorted(pieces, key=lambda index: -pieces[index])[rank::world_size])
    pieces = {index: count for index, count in pieces.items() if index in own}
    crops = [
        Stretch(index, start, start, min(start + (reset_every or count), count))
        for index, count in pieces.items()
        for start in range(0, count, reset_every or count)
    ]
    scores = {index: np.empty(count, dtype=np.float32) for index, count in pieces.items()}
    read = score(model, store, crops, lanes=lanes, segment=segment, storage=storage, progress=progress)
    for crop, nll in zip(crops, read, strict=True):
        scores[crop.piece][crop.start : crop.stop] = nll
    return Evaluation(tuple(scores), tuple(scores.values()), reset_every)


def count_steps(store: TokenStore, indices: Sequence[int], max_tokens: int | None, lanes: int, segment: int) -> int:
    """How many times `evaluate_pieces` calls the model, at least, with one process."""
    counts = choose_beginnings(store, indices, max_tokens).values()
    return max(-(-max(counts) // segment), -(-sum(counts) // (min(lanes, len(counts)) * segment)))


def choose_beginnings(store: TokenStore, indices: Sequence[int], max_tokens: int | None) -> dict[int, int]:
    """Piece index to the number of its tokens that `evaluate_pieces` scores, in the order of `indices`."""
    if len(indices) == 0:
        raise ValueError("indices: expected at least one piece of the store, got none")
    for index in indices:
        if not 0 <= index < len(store.pieces):
            raise ValueError(f"indices: expected numbers below {len(store.pieces)}, got {index}")
    if len(set(indices)) != len(indices):
        raise ValueError("indices: expected every piece at most once")
    lengths = {index: store.pieces[index].length - 1 for index in indices}
    if max_tokens is None:
        return lengths
    left, among = max_tokens, []
    for place in np.random.default_rng(0).permutation(len(indices)):
        if left > 0:
            among.append(indices[place])
            left -= min(lengths[indices[place]], BEGINNING)
    left, chosen = max_tokens, {}
    for number, index in enumerate(sorted(among, key=lambda index: lengths[index])):
        chosen[index] = min(lengths[index], left // (len(among) - number))  # what short pieces leave, longer ones get
        left -= chosen[index]
    return {index: chosen[index] for index in indices if chosen.get(index)}
