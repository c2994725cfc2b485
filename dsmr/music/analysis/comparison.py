"""Comparison of music with a corpus: numbers, order, histograms, self-similarity, quotations, beside excerpts' own.

A number of generated music means nothing alone. Every one here stands beside the same number of excerpts of the corpus
that are as long; quotations stand beside those of held-out pieces, which were certainly not copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsmr.music.analysis.histograms import Counts, Distance, Profile, distances, histograms, profile
from dsmr.music.analysis.order import OrderVerdict, UsualOrder, measure_order, usual_order
from dsmr.music.analysis.quotation import EQUALITIES, Equality, Quotation, Source, longest_quotations
from dsmr.music.analysis.similarity import (
    SelfSimilarity,
    compare_self_similarity,
    self_similarity,
    usual_self_similarity,
)
from dsmr.music.analysis.statistics import Comparison, Range, Statistics, compare_statistics, excerpts, measure, usual
from dsmr.music.tokens import Ids, Performance, decode, encode

NUMBERS = (
    "notes_per_second",
    "busiest",
    "pitch_range",
    "silence",
    "polyphony",
    "velocity_mean",
    "velocity_deviation",
    "note_seconds_median",
)
"""Of `Statistics`, those that are set beside the corpus's."""
LENGTHS_ALIKE = 1.1
"""Music at most so many times as long as other music is compared with the same excerpts."""
FEWEST_HELD_OUT = 19
"""One more excerpt quotes more than n others do by chance once in n + 1 times: of fewer, more often than 1 in 20."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """What music is set beside.

    Args:
        split: the name of the split whose pieces these are.
        pieces: what the music is compared with, and may quote.
        held_out: ids of pieces of other splits, uint16 `[n]` each: they say how much music quotes that does not copy.
    """

    split: str
    pieces: Sequence[Source]
    held_out: Sequence[Ids]


@dataclass(frozen=True, eq=False)
class Reference:
    """What a corpus's excerpts of one length are like.

    Args:
        split: whose pieces they are from.
        seconds, tokens: the excerpts' length, for what is measured by time and by tokens.
        ranges: what is usual for each number of `Statistics`.
        order: how ordered the excerpts are.
        profile: the histograms, and how far excerpts are from them.
        self_similarity: for each of `DISTANCES` what is usual for each of `MEASURES`.
        held_out: how many excerpts of other splits there are.
        quoted: the median and the greatest length of what these have in common with the split; None if there are none.
    """

    split: str
    seconds: float
    tokens: int
    ranges: dict[str, Range]
    order: UsualOrder
    profile: Profile
    self_similarity: list[dict[str, Range]]
    held_out: int
    quoted: dict[Equality, tuple[float, int]] | None

    def quotes_as_usual(self, quotation: Quotation) -> bool | None:
        """Whether music quotes no more than held-out excerpts do; None: fewer than `FEWEST_HELD_OUT` cannot tell."""
        if self.quoted is None or self.held_out < FEWEST_HELD_OUT:
            return None
        return quotation.length <= self.quoted[quotation.equality][1]


@dataclass(frozen=True, eq=False)
class Compared:
    """Music beside its `Reference`."""

    name: str
    statistics: Statistics
    numbers: list[Comparison]
    order: OrderVerdict
    histograms: dict[str, Counts]
    distances: list[Distance]
    self_similarity: list[SelfSimilarity]
    similar: list[list[Comparison]]
    quotations: list[Quotation]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for NaN."""
        return {
            "name": self.name,
            "statistics": self.statistics.to_dict(),
            "numbers": [{**_plain(asdict(each)), "within": each.within} for each in self.numbers],
            "order": self.order.to_dict(),
            "histograms": {name: counts.tolist() for name, counts in self.histograms.items()},
            "distances": [{**_plain(asdict(each)), "far": each.far} for each in self.distances],
            "self_similarity": [
                {"distance": own.distance, **{c.name: {**_plain(asdict(c)), "within": c.within} for c in compared}}
                for own, compared in zip(self.self_similarity, self.similar, strict=True)
            ],
            "quotations": [asdict(each) for each in self.quotations],
        }


@dataclass(frozen=True, eq=False)
class Group:
    """Music of about one length, and what it is compared with."""

    reference: Reference
    music: list[Compared]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for NaN."""
        reference = self.reference
        return {
            "split": reference.split,
            "seconds": reference.seconds,
            "tokens": reference.tokens,
            "excerpts": reference.profile.excerpts,
            "histograms": {name: counts.tolist() for name, counts in reference.profile.counts.items()},
            "held_out": reference.held_out,
            "quoted_by_held_out": reference.quoted
            and {name: {"median": median, "longest": most} for name, (median, most) in reference.quoted.items()},
            "music": [each.to_dict() for each in self.music],
        }


def compare_music(music: Mapping[str, Performance], corpus: Corpus, *, seconds: float | None = None) -> list[Group]:
    """Set music beside a corpus.

    Args:
        music: by name.
        corpus: at least two pieces with notes.
        seconds: the length of all music, if it is known; None: each ends with its last note.

    Returns:
        The music in groups of about one length (see `LENGTHS_ALIKE`), the shortest first.

    Raises:
        ValueError: music without notes, fewer than two pieces, or a length that is not above 0.
    """
    for name, each in music.items():
        if not len(each.notes):
            raise ValueError(f"{name}: expected music with notes, got none")
    lengths = {name: seconds or float(each.notes["offset"].max()) for name, each in music.items()}
    groups: list[list[str]] = []
    for name in sorted(lengths, key=lambda name: lengths[name]):
        if groups and lengths[name] <= LENGTHS_ALIKE * lengths[groups[-1][0]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    return [_compare({name: music[name] for name in group}, lengths, corpus) for group in groups]


def _compare(music: dict[str, Performance], lengths: dict[str, float], corpus: Corpus) -> Group:
    pieces = [piece.ids for piece in corpus.pieces]
    shortest = lengths[next(iter(music))]
    encoded = {name: encode(each) for name, each in music.items()}
    tokens = min(map(len, encoded.values()))
    held_out = [Performance(notes) for ids in corpus.held_out for notes, _ in excerpts(decode(ids).notes, shortest)]
    quotations: dict[str, list[Quotation]] = {name: [] for name in music}
    quoted: dict[Equality, tuple[float, int]] = {}
    for equality in EQUALITIES:
        found = longest_quotations([*music.values(), *held_out], corpus.pieces, equality)
        for name, each in zip(music, found[: len(music)], strict=True):
            quotations[name].append(each)
        if held_out:
            common = [each.length for each in found[len(music) :]]
            quoted[equality] = (float(np.median(common)), max(common))
    reference = Reference(
        corpus.split,
        shortest,
        tokens,
        usual(pieces, shortest),
        usual_order(pieces, shortest),
        profile(pieces, shortest),
        usual_self_similarity(pieces, tokens),
        len(held_out),
        quoted or None,
    )
    return Group(
        reference,
        [_one(name, each, lengths[name], encoded[name], reference, quotations[name]) for name, each in music.items()],
    )


def _one(
    name: str,
    performance: Performance,
    seconds: float,
    ids: Ids,
    reference: Reference,
    quotations: list[Quotation],
) -> Compared:
    statistics, counts = measure(performance, seconds), histograms(performance, seconds)
    notes = decode(ids).notes  # on the corpus's grid of time
    similar = self_similarity(ids)
    return Compared(
        name,
        statistics,
        compare_statistics(statistics, reference.ranges, NUMBERS),
        reference.order.judge(measure_order(notes[notes["onset"] < reference.seconds])),
        counts,
        distances(counts, reference.profile),
        similar,
        compare_self_similarity(similar, reference.self_similarity),
        quotations,
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in values.items()
    }
