"""Return gain: how much better a theme is predicted when it comes back than when it was first heard.

The built-in pianist labels what returns in its pieces: token `start + j` of a labelled span restates token
`source_start + j`, equal up to transposition. The source, the nearest earlier occurrence, may itself be a return;
followed back, the map ends at the token's *first statement*, a token of no return. Then

    gain = NLL(first statement) - NLL(at the return)        in nats; positive: having heard it helps
    distance = start - source_start                         in tokens: how far back a memory must reach

A model that sees the source can copy it and gains; one whose memory ends before it cannot.

What else could make a gain, and what is done about it:

- *The first tokens of a return* cannot be known to be one: what follows is known only once something was recognised.
  `skip` leaves them out (16 of them by default: about four notes); the whole span is reported, too, and so is the gain
  by token index within the return.
- *Content.* Some themes are easier than others. Each token is compared with itself, so this cancels: a model that sees
  nothing but the span gains exactly 0 on exact returns.
- *Position.* A return is later in the piece than what it returns to, and later tokens are easier because the composer's
  keys, textures and dynamics are known by then. So the gain of a model that cannot reach the source need not be 0, and
  the gain alone overstates memory. Two baselines remove that:
  *Between models* (`dsmr.evaluation.bootstrap.compare_bins` on `by_distance`): both gains are of the very same tokens,
  so what both know by then cancels and what remains is due to what the models differ in. For equally trained models
  with different memories this is the difference that tells the truth, and it costs nothing.
  *Within one model*, clearing the memory right before the return is not such a baseline, though it is the obvious one:
  it takes away the source, but also the key, the tempo and the last chord, which are worth more than a far source, so
  it overstates memory even more. `dsmr.evaluation.probes.recall` forgets the source and all before it, but nothing
  after.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr.corpus.store import Piece, ReturnKind, TokenStore
from dsmr.evaluation.bootstrap import PieceSums
from dsmr.evaluation.pieces import Evaluation
from dsmr.evaluation.probes.bins import Bin, bins_with_tokens

KINDS: tuple[ReturnKind, ...] = ("exact", "transposed")
RETURN_DISTANCES = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Where bins of distances begin, in tokens; the last one has no end."""
SKIP = 16
"""Tokens at the beginning of a return that are left out: about the four notes by which it can be recognised."""
OFFSETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Where bins of the token's index within its return begin; the last one has no end."""

RESTATED = np.dtype([("token", "i8"), ("first", "i8"), ("distance", "i8"), ("offset", "i8"), ("transposed", "?")])
"""A token of a return: its index in the piece and that of its first statement, the distance to the nearest earlier
occurrence, its index within the return, and whether the return is a transposed one."""


def restated(piece: Piece) -> NDArray[np.void]:
    """The tokens of a piece's labelled returns: `RESTATED [N]`, in the order in which they are heard.

    Raises:
        ValueError: a return whose passages differ in length, or one that begins before its source ends.
    """
    first = np.arange(piece.length)
    found = [np.empty(0, RESTATED)]
    for each in sorted(piece.returns, key=lambda each: each.start):
        length = each.stop - each.start
        if length != each.source_stop - each.source_start or each.source_stop > each.start:
            raise ValueError(f"returns: expected passages of equal length, the source first, got {each}")
        first[each.start : each.stop] = first[each.source_start : each.source_stop]
        tokens = np.empty(length, RESTATED)
        tokens["token"] = np.arange(each.start, each.stop)
        tokens["first"] = first[each.start : each.stop]
        tokens["distance"] = each.start - each.source_start
        tokens["offset"] = np.arange(length)
        tokens["transposed"] = each.kind == "transposed"
        found.append(tokens)
    return np.concatenate(found)


@dataclass(frozen=True)
class GainBin(Bin):
    """The gain of tokens of returns by distance, or by index within the return.

    `nll_first` and `nll_return` are mean nats per token at the first statement and at the return; the mean is their
    difference.
    """

    nll_first: float
    nll_return: float


@dataclass(frozen=True, eq=False)
class ReturnGain:
    """The NLL of every token of a return, there and at its first statement.

    Args:
        pieces: store indices, as in the evaluation.
        tokens: for each piece, its restated tokens, `RESTATED [N]`.
        nll_first, nll_return: for each piece float32 `[N]`, in nats.
        distances: see `RETURN_DISTANCES`.
        skip: see `SKIP`.
    """

    pieces: tuple[int, ...]
    tokens: tuple[NDArray[np.void], ...]
    nll_first: tuple[NDArray[np.float32], ...]
    nll_return: tuple[NDArray[np.float32], ...]
    distances: tuple[int, ...] = RETURN_DISTANCES
    skip: int = SKIP

    def by_distance(self, kind: ReturnKind, *, skip: int | None = None) -> PieceSums:
        """The gain summed by distance, a bin for each of `distances`; `skip` None: the usual one."""
        return self._sums("distance", self.distances, kind, self.skip if skip is None else skip)[2]

    def distance_bins(self, kind: ReturnKind, *, skip: int | None = None) -> list[GainBin]:
        """The gain by distance; bins without tokens are left out."""
        return self._bins("distance", self.distances, kind, self.skip if skip is None else skip)

    def offset_bins(self, kind: ReturnKind) -> list[GainBin]:
        """The gain by token index within the return, nothing skipped; bins without tokens are left out."""
        return self._bins("offset", OFFSETS, kind, 0)

    def returns(self, kind: ReturnKind) -> int:
        """How many labelled returns of a kind have at least one scored token."""
        chosen = ((t["offset"] == 0) & (t["transposed"] == (kind == "transposed")) for t in self.tokens)
        return int(sum(each.sum() for each in chosen))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: of each kind the gain of all tokens after `skip`, and by distance and by index."""
        return {
            "unit": "nats per token; gain = NLL at the first statement - NLL at the return",
            "skip": self.skip,
            "kinds": {kind: self._kind_to_dict(kind) for kind in KINDS},
        }

    def _kind_to_dict(self, kind: ReturnKind) -> dict[str, Any]:
        pooled = self.by_distance(kind).pooled.without_rounding
        tokens = int(pooled.tokens[0])
        return {
            "returns": self.returns(kind),
            "tokens": tokens,
            "gain": float(pooled.mean[0]) if tokens else None,
            "interval_95": pooled.intervals()[0],
            "by_distance": [each.to_dict("gain") for each in self.distance_bins(kind)],
            "by_distance_whole_span": [each.to_dict("gain") for each in self.distance_bins(kind, skip=0)],
            "by_index_within_return": [each.to_dict("gain") for each in self.offset_bins(kind)],
        }

    def _sums(
        self, by: str, edges: Sequence[int], kind: ReturnKind, skip: int
    ) -> tuple[PieceSums, PieceSums, PieceSums]:
        """NLL at the first statement, at the return, and the gain, in bins of `by` that begin at `edges`."""
        kept = [(t["transposed"] == (kind == "transposed")) & (t["offset"] >= skip) for t in self.tokens]
        at = [np.digitize(t[by][keep], edges) - 1 for t, keep in zip(self.tokens, kept, strict=True)]
        first, again = (
            PieceSums.of(
                [(b, v[keep].astype(np.float64)) for b, v, keep in zip(at, values, kept, strict=True)], len(edges)
            )
            for values in (self.nll_first, self.nll_return)
        )
        return first, again, PieceSums(first.total - again.total, first.count)

    def _bins(self, by: str, edges: Sequence[int], kind: ReturnKind, skip: int) -> list[GainBin]:
        first, again, gain = self._sums(by, edges, kind, skip)
        means = zip(first.mean.tolist(), again.mean.tolist(), strict=True)
        known = [pair for pair, tokens in zip(means, gain.tokens.tolist(), strict=True) if tokens]
        bins = bins_with_tokens(gain, edges, None)
        return [GainBin(**vars(each), nll_first=a, nll_return=b) for each, (a, b) in zip(bins, known, strict=True)]


def return_gain(
    store: TokenStore, scores: Evaluation, *, distances: Sequence[int] = RETURN_DISTANCES, skip: int = SKIP
) -> ReturnGain:
    """Look up the NLL of restated tokens and of their first statements in an evaluation of whole pieces.

    Args:
        store: has the labels; only the built-in pianist's stores do.
        scores: of some of the store's pieces, read whole. Tokens that it did not score do not count.
        distances: where the bins begin, increasing from 0; see `RETURN_DISTANCES`.
        skip: tokens at the beginning of each return that are left out; see `SKIP`.

    Raises:
        ValueError: none of the pieces has a scored return, the evaluation cleared the context, or a bad number.
    """
    scores.check_whole()
    if len(distances) == 0 or distances[0] != 0 or any(b <= a for a, b in itertools.pairwise(distances)):
        raise ValueError(f"distances: expected increasing numbers that begin with 0, got {list(distances)}")
    if skip < 0:
        raise ValueError(f"skip: expected at least 0, got {skip}")
    tokens, first, again = [], [], []
    for index, nll in zip(scores.pieces, scores.token_nll, strict=True):
        found = restated(store.pieces[index])
        found = found[found["token"] <= len(nll)]  # entry i is the NLL of token i + 1
        tokens.append(found)
        first.append(nll[found["first"] - 1])
        again.append(nll[found["token"] - 1])
    if not any(map(len, tokens)):
        raise ValueError(
            f"store: expected labelled returns in the {len(tokens)} pieces, got none; "
            "`dsmr prepare pianist` makes a store that has them"
        )
    return ReturnGain(scores.pieces, tuple(tokens), tuple(first), tuple(again), tuple(distances), skip)
