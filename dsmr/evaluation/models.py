"""Models beside each other, on the same tokens: their numbers, and paired tests of the differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.baselines import RESET_EVERY, Assessment, assess
from dsmr.evaluation.bootstrap import Difference, PieceSums, compare_mean_of_bins, holm
from dsmr.evaluation.probes.krcu import Krcu, Resets, krcu
from dsmr.evaluation.probes.recall import Recall, recall
from dsmr.evaluation.probes.returns import KINDS, SKIP, ReturnGain, return_gain
from dsmr.evaluation.probes.truncation import Cuts, Truncation, truncation
from dsmr.model.config import ModelConfig
from dsmr.model.transformer import Transformer
from dsmr.progress import Progress, of_pass
from dsmr.units import format_tokens
from dsmr_kernels.storage import Storage


@dataclass(frozen=True)
class Span:
    """How far a model's memory goes, in tokens.

    Args:
        horizons: what each layer remembers by itself, the lowest layer's first.
        reach: what the last token of a segment can depend on, over all layers; see `Schedule.reach`.
    """

    horizons: tuple[int, ...]
    reach: int

    @classmethod
    def of(cls, config: ModelConfig) -> Span:
        """The span of a model's schedule; an entry of a memory that keeps one token in s stands for s."""
        schedule = config.schedule
        stride = schedule.retention.stride if schedule.retention else 1
        horizons = tuple(horizon * stride for horizon in schedule.horizons)
        return cls(horizons, schedule.receptive_field(config.segment, config.window))


@dataclass(frozen=True)
class Questions:
    """What to find out about every model.

    Args:
        pieces, reset_every, lanes: see `assess`.
        returns: whether to look at returns, which only the built-in pianist's stores label.
        skip: see `dsmr.evaluation.probes.returns.SKIP`.
        resets: where to clear the memory in the middle of pieces; None: nowhere.
        cuts: how to cut the history; None: not at all.
        recall: how many returns of each kind and distance to read with their sources forgotten; 0: none.
        farthest: of these, how far away the sources may be; see `recall`.
        storage: quantises the memory; None: it keeps the type that keys and values have.
    """

    pieces: int | None = None
    reset_every: int | None = RESET_EVERY
    lanes: int = 4
    returns: bool = False
    skip: int = SKIP
    resets: Resets | None = None
    cuts: Cuts | None = None
    recall: int = 0
    farthest: int | None = None
    storage: Storage | None = None


@dataclass(frozen=True, eq=False)
class Probed:
    """What was found out about one model.

    Args:
        label: its name in tables and figures.
        checkpoint: where it was loaded from.
        digest: of its weights.
        span: how far its memory goes.
        assessment: its scores over whole pieces, and its baselines.
        returns, krcu, truncation, recall: what the probes found; None for those that were not asked for.
    """

    label: str
    checkpoint: str
    digest: str
    span: Span
    assessment: Assessment
    returns: ReturnGain | None = None
    krcu: Krcu | None = None
    truncation: Truncation | None = None
    recall: Recall | None = None

    @property
    def scored(self) -> int:
        """How many tokens the model was given, all passes together."""
        reset = self.assessment.reset
        again = sum(found.read for found in (self.krcu, self.truncation, self.recall) if found)
        return self.assessment.whole.tokens + (reset.tokens if reset else 0) + again

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; probes that were not asked for are left out."""
        found: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "label": self.label,
            "weights": self.digest,
            "memory": {"horizons": list(self.span.horizons), "reach": self.span.reach},
            **self.assessment.to_dict(),
        }
        for name in ("returns", "recall", "krcu", "truncation"):
            if (probe := getattr(self, name)) is not None:
                found[name] = probe.to_dict()
        return found

    def quantities(self) -> Iterator[tuple[str, PieceSums]]:
        """What models are compared by: the mean of the bins of some sums, each by its name."""
        yield "NLL", self.assessment.whole.sums
        if self.krcu is not None:
            yield "KRCU-AUC", self.krcu.sums
            for each in self.krcu.bins:
                yield f"KRCU, {each.name}", self.krcu.sums.bin(each.start // self.krcu.resets.width)
        if self.truncation is not None:
            cuts = self.truncation.cuts
            for number, keep in enumerate(cuts.keeps):
                for cell in self.truncation.row(number):
                    sums = self.truncation.sums[number].bin(cuts.buckets.index(cell.start))
                    yield f"keep {format_tokens(keep)}, {cell.name}", sums
        if self.returns is not None:
            for kind in KINDS:
                sums = self.returns.by_distance(kind)
                yield f"gain, {kind}", sums.pooled
                for bin_ in self.returns.distance_bins(kind):
                    yield f"gain, {kind}, {bin_.name}", sums.bin(self.returns.distances.index(bin_.start))
        if self.recall is not None:
            for kind in KINDS:
                for part in self.recall.distance_bins(kind):
                    sums = self.recall.sums[kind].bin(self.recall.distances.index(part.start))
                    yield f"recall, {kind}, {part.name}", sums


def probe(
    model: Transformer,
    store: TokenStore,
    split: str,
    asked: Questions,
    *,
    label: str,
    checkpoint: str,
    digest: str,
    progress: Progress | None = None,
) -> Probed:
    """Find out about one model what `asked` asks for.

    Args:
        model: on its own device.
        store, split: the pieces.
        label, checkpoint, digest: what the model is called, and where it comes from.
        progress: called with the tokens scored so far and in all.

    Raises:
        ValueError: a split without pieces, a number out of its range, or a probe for which the pieces do not do.
    """
    _check_pieces(store, split, asked)
    passes = 1 + (asked.resets is not None) + (asked.cuts is not None) + (asked.recall > 0)
    each = (of_pass(progress, number, passes) for number in range(passes))
    found = assess(
        model,
        store,
        split,
        pieces=asked.pieces,
        reset_every=asked.reset_every,
        lanes=asked.lanes,
        storage=asked.storage,
        progress=next(each),
    )
    whole, lanes, storage = found.whole, asked.lanes, asked.storage
    return Probed(
        label,
        checkpoint,
        digest,
        Span.of(model.config),
        found,
        return_gain(store, whole, skip=asked.skip) if asked.returns else None,
        krcu(model, store, whole, asked.resets, lanes=lanes, storage=storage, progress=next(each))
        if asked.resets
        else None,
        truncation(model, store, whole, asked.cuts, lanes=lanes, storage=storage, progress=next(each))
        if asked.cuts
        else None,
        recall(
            model,
            store,
            whole,
            sample=asked.recall,
            skip=asked.skip,
            farthest=asked.farthest,
            lanes=lanes,
            storage=storage,
            progress=next(each),
        )
        if asked.recall
        else None,
    )


def _check_pieces(store: TokenStore, split: str, asked: Questions) -> None:
    """Say before minutes of scoring, not after, that the pieces will not do."""
    pieces = [store.pieces[index] for index in store.indices(split)]
    if (asked.returns or asked.recall) and not any(piece.returns for piece in pieces):
        raise ValueError(f"{store.path}: expected labelled returns, got none; `dsmr prepare pianist` makes such stores")
    longest = max((piece.length - 1 for piece in pieces), default=0)
    for name, first in (
        ("resets", asked.resets.at[0] if asked.resets else -1),
        ("buckets", asked.cuts.buckets[0] if asked.cuts else -1),
    ):
        if longest <= first:
            raise ValueError(
                f"{name}: expected a piece longer than {first} tokens, got none; the longest has {longest}"
            )


@dataclass(frozen=True)
class ModelDifference:
    """A quantity's difference `first - second` between two models, by their labels.

    `p_holm` is its p-value corrected for all others of the table; None where there is none.
    """

    quantity: str
    first: str
    second: str
    difference: Difference
    p_holm: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "quantity": self.quantity,
            "first": self.first,
            "second": self.second,
            "difference": self.difference.value,
            "interval_95": self.difference.interval,
            "p": self.difference.p,
            "p_holm": self.p_holm,
        }


def differences(models: Sequence[Probed], baseline: str | None = None) -> list[ModelDifference]:
    """Paired tests over pieces, quantity by quantity; those that no piece reaches are left out.

    Args:
        models: two or more.
        baseline: the label of the one that all others are compared with, other - baseline; None: every pair.

    Raises:
        ValueError: no model has the baseline's label.
    """
    tests = [
        (name, first.label, second.label, compare_mean_of_bins(ours, theirs))
        for first, second in _pairs(models, baseline)
        for (name, ours), (_, theirs) in zip(first.quantities(), second.quantities(), strict=True)
        if ours.tokens.any()
    ]
    corrected = iter(holm([each.p for *_, each in tests if each.p is not None]))
    return [ModelDifference(*test, None if test[3].p is None else next(corrected)) for test in tests]


def _pairs(models: Sequence[Probed], baseline: str | None) -> list[tuple[Probed, Probed]]:
    if baseline is None:
        return list(itertools.combinations(models, 2))
    check_baseline(baseline, [model.label for model in models])
    (second,) = (model for model in models if model.label == baseline)
    return [(first, second) for first in models if first is not second]


def check_baseline(baseline: str, labels: Sequence[str]) -> None:
    """ValueError for a baseline that is none of several models."""
    if len(labels) < 2 or baseline not in labels:
        raise ValueError(f"baseline: expected one of several models, {', '.join(labels)}, got {baseline!r}")


def to_dict(models: Sequence[Probed], store: TokenStore, found: Sequence[ModelDifference]) -> dict[str, Any]:
    """Plain values for JSON: one model's own, or those of several and what `differences` found."""
    if len(models) == 1:
        return {"store": store.digest, **models[0].to_dict()}
    return {
        "store": store.digest,
        "models": [model.to_dict() for model in models],
        "differences": [each.to_dict() for each in found],
    }


def labels(checkpoints: Sequence[str]) -> list[str]:
    """Short names: the parts of the paths in which they differ, numbered where they do not (runs/a/best: a)."""
    paths = [PurePath(checkpoint).parts for checkpoint in checkpoints]
    if len(paths) == 1:
        return [checkpoints[0]]
    first = next((i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), 0)
    ends = zip(*(reversed(parts[first:]) for parts in paths), strict=False)
    last = next((i for i, parts in enumerate(ends) if len(set(parts)) > 1), 0)
    names = [
        str(PurePath(*kept)) if (kept := parts[first : len(parts) - last]) else checkpoint
        for parts, checkpoint in zip(paths, checkpoints, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
