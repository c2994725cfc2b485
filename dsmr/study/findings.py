"""Findings of a study: what its results say of each variant, of differences, and of published orderings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dsmr.evaluation.bootstrap import PieceSums, holm
from dsmr.evaluation.probes.returns import KINDS, RETURN_DISTANCES
from dsmr.study.config import Study, Variant
from dsmr.study.estimates import FEWEST_PIECES, Estimate, compare, estimate
from dsmr.study.results import Result, Results
from dsmr.units import format_span

NEAREST = 512
"""Recall is summed up over returns at least so many tokens away: those that ask for more than the last bars."""
NLL, KRCU = "NLL", "KRCU-AUC"
Verdict = Literal["holds", "reversed", "below the noise"]


def recall_from(kind: str) -> str:
    """The name of the recall of all returns of a kind from `NEAREST` on."""
    return f"recall, {kind}, {format_span(NEAREST, None)}"


@dataclass(frozen=True, eq=False)
class Row:
    """A variant that has results.

    Args:
        variant: its configuration.
        results: by seed.
    """

    variant: Variant
    results: Mapping[int, Result]

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    def fact(self, name: str) -> float:
        """The mean over seeds of a number in the results, e.g. "horizon_bytes"."""
        return float(np.mean([result.facts[name] for result in self.results.values()]))

    @property
    def best_ppl(self) -> float:
        """The best perplexity while training: of the mean over seeds, in nats."""
        return math.exp(np.mean([math.log(result.facts["run"]["best_ppl"]) for result in self.results.values()]))

    @property
    def peak_memory(self) -> int | None:
        """The largest peak of the training processes, in bytes; None where the system does not tell."""
        peaks = [result.facts["run"]["peak_memory"] for result in self.results.values()]
        return None if None in peaks else max(peaks)

    def estimate(self, quantity: str) -> Estimate:
        """The mean of a quantity, see `quantities`."""
        return estimate([quantities(result.sums)[quantity] for result in self.results.values()])

    def bins(self, probe: str) -> list[Estimate]:
        """The mean of each bin of a probe's sums."""
        found = [result.sums[probe] for result in self.results.values()]
        return [estimate([sums.bin(number) for sums in found]) for number in range(found[0].count.shape[1])]


@dataclass(frozen=True)
class Test:
    """A quantity's difference `first - second`, by the seeds that both variants have.

    Args:
        quantity: see `quantities`.
        first, second: the variants' names.
        difference: paired by piece and seed.
        p_holm: its p-value corrected for all others of the table; None where there is none.
    """

    quantity: str
    first: str
    second: str
    difference: Estimate
    p_holm: float | None


@dataclass(frozen=True)
class Ordering:
    """Two variants that a publication orders.

    Args:
        better, worse: their names, as published.
        published: how far apart they are there: nats of perplexity, or the difference of KRCU.
        test: `worse - better` of the NLL, `better - worse` of KRCU: above 0 where the ordering holds.
    """

    better: str
    worse: str
    published: float
    test: Test

    @property
    def verdict(self) -> Verdict:
        """By the interval of the difference."""
        interval = self.test.difference.interval
        if interval is None or interval[0] <= 0 <= interval[1]:
            return "below the noise"
        return "holds" if interval[0] > 0 else "reversed"


class Findings:
    """What the results of a study say.

    Args:
        study: what was asked.
        results: of the study; some may be missing, and those of variants that it does not have do not count.

    Raises:
        ValueError: there are none, or they are of other settings or questions.
    """

    def __init__(self, study: Study, results: Results) -> None:
        results.check_frame(study)
        self.study = study
        self.missing: dict[str, list[int]] = {}
        for seed in study.seeds:
            for variant in results.missing(seed, study.variants):
                self.missing.setdefault(variant.name, []).append(seed)
        found = {(each.variant, each.seed): each for each in results.all}
        by_variant = (
            Row(variant, {seed: found[key] for seed in study.seeds if (key := (variant.name, seed)) in found})
            for variant in study.variants
        )
        self.rows = [row for row in by_variant if row.results]
        if not self.rows:
            raise ValueError(f"{results.path}: expected results of the study {study.name!r}, got none")
        first = next(iter(self.rows[0].results.values()))
        self.sums = first.sums
        self.quantities = quantities(first.sums)

    @property
    def baseline(self) -> Row | None:
        """The row that others are compared with; None while it has no results."""
        return next((row for row in self.rows if row.name == self.study.baseline), None)

    def tests(self) -> list[Test]:
        """Every quantity's difference of every variant from the baseline; none without the baseline."""
        base = self.baseline
        others = [row for row in self.rows if row is not base]
        if base is None:
            return []
        return _corrected([(name, row, base) for row in others if _share(row, base) for name in self.quantities])

    def front(self, quantity: str) -> list[Row]:
        """The rows that no other one beats in memory or in a quantity without being worse in the other.

        The one with the least memory comes first.
        """
        sign = 1 if quantity == NLL else -1
        costs = sorted(
            ((row.fact("horizon_bytes"), sign * row.estimate(quantity).value, row) for row in self.rows),
            key=lambda cost: cost[:2],
        )
        best: list[Row] = []
        least = math.inf
        for _, loss, row in costs:
            if loss < least:
                best.append(row)
                least = loss
        return best

    def orderings(self, published: Literal["ppl", "krcu"]) -> list[Ordering]:
        """All pairs of variants whose published numbers differ, those that differ most first."""
        known = [row for row in self.rows if row.variant.paper and published in row.variant.paper]
        if published == "krcu" and KRCU not in self.quantities:
            return []
        pairs = []
        for one, other in itertools.combinations(known, 2):
            low, high = sorted((one, other), key=lambda row: _published(row, published))
            if _share(low, high) and (apart := _apart(low, high, published)) > 0:
                pairs.append((apart, low, high))
        pairs.sort(key=lambda pair: -pair[0])
        # Low perplexity is better, high KRCU: either way the test is the higher number's row minus the lower one's.
        tests = _corrected([(NLL if published == "ppl" else KRCU, high, low) for _, low, high in pairs])
        return [
            Ordering(*((low.name, high.name) if published == "ppl" else (high.name, low.name)), apart, test)
            for (apart, low, high), test in zip(pairs, tests, strict=True)
        ]


def quantities(sums: Mapping[str, PieceSums]) -> dict[str, PieceSums]:
    """What variants are compared by, each by its name: the mean of the bins of some sums."""
    found = {NLL: sums["nll"]}
    if "krcu" in sums:
        found[KRCU] = sums["krcu"]
    if "recall exact" in sums:
        found |= {f"recall, exact, {name}": each for name, each in _by_distance(sums["recall exact"])}
    for kind in KINDS:
        if (recalled := sums.get(f"recall {kind}")) is not None:
            far = RETURN_DISTANCES.index(NEAREST)
            pooled = PieceSums(recalled.total[:, far:], recalled.count[:, far:]).pooled
            if pooled.tokens.any():
                found[recall_from(kind)] = pooled
    return found


def _by_distance(recalled: PieceSums) -> Iterator[tuple[str, PieceSums]]:
    """The bins from `NEAREST` on that enough pieces reach, each by its name."""
    for number, start in enumerate(RETURN_DISTANCES):
        stop = RETURN_DISTANCES[number + 1] if number + 1 < len(RETURN_DISTANCES) else None
        if start >= NEAREST and recalled.pieces[number] >= FEWEST_PIECES:
            yield format_span(start, stop), recalled.bin(number)


def _corrected(pairs: Sequence[tuple[str, Row, Row]]) -> list[Test]:
    """Test the difference of a quantity between two rows that share seeds; the p-values are one family."""
    differences = []
    for quantity, first, second in pairs:
        ours, theirs = (
            [quantities(row.results[seed].sums)[quantity] for seed in _share(first, second)] for row in (first, second)
        )
        differences.append((quantity, first.name, second.name, compare(ours, theirs)))
    corrected = iter(holm([p for *_, each in differences if (p := each.p) is not None]))
    return [Test(*each, None if each[3].p is None else next(corrected)) for each in differences]


def _share(one: Row, other: Row) -> list[int]:
    """The seeds that two rows have in common."""
    return sorted(one.results.keys() & other.results.keys())


def _published(row: Row, name: str) -> float:
    assert row.variant.paper is not None
    return row.variant.paper[name]


def _apart(low: Row, high: Row, name: str) -> float:
    """How far two published numbers are apart; perplexities in nats."""
    below, above = _published(low, name), _published(high, name)
    return math.log(above / below) if name == "ppl" else above - below
