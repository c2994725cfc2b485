"""Context truncation: what a model loses when it knows only the last K tokens of a piece.

    dNLL = NLL(only the last K tokens known) - NLL(all known)        in nats; positive: older music helps

for several K, by where in the piece the predicted tokens lie. The defaults are the published ones: K of 1k, 4k, 8k and
16k tokens, positions 1-4k, 4-8k, 8-16k, 16-24k and 24-32k.

A token whose history is cut to K is scored by reading the last K tokens again with an empty memory; positions go on
counting and segments end where they did, so that nothing but the memory differs. To read K tokens for each token would
cost K times as much as it should, so tokens are scored in *blocks*: the block that begins at position t is read from
t - K on, and its later tokens know up to one block more than K. Nor is every block scored: of each bucket a sample, as
many pieces as possible and as evenly as possible, random but the same in each call and for each model. Where K reaches
to the beginning of the piece, nothing is cut and dNLL is 0 by definition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.bootstrap import PieceSums
from dsmr.evaluation.pieces import Evaluation
from dsmr.evaluation.probes.bins import Bin, bins_with_tokens
from dsmr.evaluation.score import Stretch, score
from dsmr.fields import check_types
from dsmr.model.transformer import Transformer
from dsmr.progress import Progress
from dsmr_kernels.storage import Storage


@dataclass(frozen=True)
class Cuts:
    """How much history is kept, and which tokens are scored with it.

    Args:
        keeps: how many tokens before its block a token knows, increasing.
        buckets: positions at which buckets begin, and where the last one ends, increasing.
        block: tokens that are scored together; the last of a bucket or a piece may be fewer.
        blocks: how many blocks of each bucket are scored at most.
        seed: equal seeds choose equal blocks.

    Raises:
        ValueError: a value of another type, numbers that do not increase, or a number out of its range.
    """

    keeps: tuple[int, ...] = (1024, 4096, 8192, 16384)
    buckets: tuple[int, ...] = (1024, 4096, 8192, 16384, 24576, 32768)
    block: int = 1024
    blocks: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name, values, fewest, least in (("context", self.keeps, 1, 1), ("buckets", self.buckets, 2, 0)):
            if len(values) < fewest or values[0] < least or list(values) != sorted(set(values)):
                raise ValueError(
                    f"{name}: expected {fewest} or more increasing numbers of at least {least}, got {list(values)}"
                )
        for name in ("block", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Truncation:
    """The dNLL of sampled blocks with their history cut.

    Args:
        cuts: how the history was cut.
        sums: for each K the dNLL by bucket, a row for each piece.
        read: tokens that were read again.
    """

    cuts: Cuts
    sums: tuple[PieceSums, ...]
    read: int

    def row(self, number: int) -> list[Bin]:
        """The dNLL with `cuts.keeps[number]` tokens known, by position; buckets that no piece reaches are left out."""
        return bins_with_tokens(self.sums[number], self.cuts.buckets[:-1], self.cuts.buckets[-1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "unit": "nats per token; dNLL = NLL(last K tokens known) - NLL(all known)",
            "keep": list(self.cuts.keeps),
            "buckets": list(self.cuts.buckets),
            "block": self.cuts.block,
            "blocks_per_bucket_at_most": self.cuts.blocks,
            "cells": [
                {"keep": keep, **cell.to_dict("dnll")}
                for number, keep in enumerate(self.cuts.keeps)
                for cell in self.row(number)
            ],
        }


PUBLISHED_CUTS = Cuts()
"""The histories and buckets of the published table."""


def truncation(
    model: Transformer,
    store: TokenStore,
    scores: Evaluation,
    cuts: Cuts = PUBLISHED_CUTS,
    *,
    lanes: int = 4,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> Truncation:
    """Score a sample of blocks with their history cut and compare with the NLL of an unbroken reading.

    Args:
        model: on its own device.
        store: holds the pieces.
        scores: of the same model, of whole pieces: everything known.
        cuts: how the history is cut; the published way by default.
        lanes: readings side by side.
        storage: of the memory, the same as in `scores`; see `dsmr.evaluation.score.score`.
        progress: called with the tokens read so far and in all.

    Raises:
        ValueError: no piece reaches the first bucket, or the evaluation cleared the context.
    """
    scores.check_whole()
    chosen = _sample([len(nll) for nll in scores.token_nll], cuts)
    if not chosen:
        longest = max((len(nll) for nll in scores.token_nll), default=0)
        raise ValueError(f"buckets: expected a piece longer than {cuts.buckets[0]} tokens; the longest has {longest}")
    plan = [
        (number, each, Stretch(scores.pieces[each.row], each.start - keep, each.start, each.stop, each.start - keep))
        for number, keep in enumerate(cuts.keeps)
        for each in chosen
        if keep < each.start
    ]
    cut = score(model, store, [stretch for _, _, stretch in plan], lanes=lanes, storage=storage, progress=progress)
    shape = (len(cuts.keeps), len(scores.pieces), len(cuts.buckets) - 1)
    total, count = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for each in chosen:
        count[:, each.row, each.bucket] += each.stop - each.start
    for (number, each, _), nll in zip(plan, cut, strict=True):
        known = scores.token_nll[each.row][each.start : each.stop]
        total[number, each.row, each.bucket] += (nll.astype(np.float64) - known).sum()
    return Truncation(
        cuts,
        tuple(PieceSums(t, c) for t, c in zip(total, count, strict=True)),
        sum(stretch.stop - stretch.begin for _, _, stretch in plan),
    )


@dataclass(frozen=True)
class _Block:
    """Positions `start ... stop - 1` of the evaluation's piece number `row`, and the bucket they lie in."""

    row: int
    bucket: int
    start: int
    stop: int


def _sample(lengths: Sequence[int], cuts: Cuts) -> list[_Block]:
    """At most `blocks` of each bucket: one of every piece in random order, then a second of every piece, and so on."""
    rng = np.random.default_rng(cuts.seed)
    chosen: list[_Block] = []
    for bucket, (begin, end) in enumerate(itertools.pairwise(cuts.buckets)):
        of_pieces = []
        for row in rng.permutation(len(lengths)).tolist():
            last = min(end, lengths[row])
            starts = rng.permutation(np.arange(begin, last, cuts.block)).tolist()
            of_pieces.append([_Block(row, bucket, start, min(start + cuts.block, last)) for start in starts])
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*of_pieces))
        chosen += itertools.islice((each for each in rounds if each is not None), cuts.blocks)
    return chosen
