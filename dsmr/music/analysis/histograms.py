"""Histograms of music, and how far they are from a corpus's, beside how far excerpts of the corpus are from each other.

The distance is the Jensen-Shannon divergence in bits (Lin, "Divergence Measures Based on the Shannon Entropy", 1991): 0
for equal histograms, 1 for two that share no bin. A short piece is never as a whole corpus is, so a distance alone says
little: it is set beside those of excerpts of the corpus that are as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr.music.analysis.statistics import WINDOW_SECONDS, check_seconds, densities, excerpts, spans
from dsmr.music.tokens import STEPS_PER_SECOND, VELOCITY_BINS, Ids, Performance, decode, fold_pedal

Counts = NDArray[np.float64]
"""A histogram: what each bin holds, `[bins]`; notes or seconds, not shares."""

WIDEST = 24
"""Semitones: intervals beyond share the outermost bins."""
FAR = 0.05
"""Music is far from a corpus if no more than this share of excerpts is."""
FEWEST_DISTANCES = 19
"""So many excerpts must be nearer for `further` to come down to `FAR`."""
FULLEST = 12
"""Notes sounding at once: more share the last bin."""
DENSITY_BIN, DENSEST = 2, 30
"""Notes per second: the width of a bin, and where the last one begins."""
INTER_ONSET_FROM = (0, 1, 2, 3, 5, 7, 10, 15, 22, 33, 50, 75, 110, 170)
"""Steps of 10 ms at which each bin begins, about a factor of 1.5 apart; the first holds notes of one step."""


@dataclass(frozen=True)
class Feature:
    """One histogram: its name for people, what its bins mean, and how notes are counted into them.

    Args:
        title: with the unit.
        labels: of the bins: where each begins.
        count: from folded notes with onsets in `[0, seconds)`, and `seconds`.
    """

    title: str
    labels: tuple[str, ...]
    count: Callable[[NDArray[np.void], float], Counts]


def _pitch_classes(notes: NDArray[np.void], _: float) -> Counts:
    return _binned(notes["pitch"] % 12, 12)


def _intervals(notes: NDArray[np.void], _: float) -> Counts:
    pitch = notes["pitch"][np.lexsort((notes["pitch"], notes["onset"]))].astype(np.int64)
    return _binned(np.clip(np.diff(pitch), -WIDEST - 1, WIDEST + 1) + WIDEST + 1, 2 * WIDEST + 3)


def _inter_onset(notes: NDArray[np.void], _: float) -> Counts:
    steps = np.diff(np.rint(np.sort(notes["onset"]) * STEPS_PER_SECOND).astype(np.int64))
    return _binned(np.searchsorted(INTER_ONSET_FROM, steps, side="right") - 1, len(INTER_ONSET_FROM))


def _velocity(notes: NDArray[np.void], _: float) -> Counts:
    return _binned(notes["velocity"] // (128 // VELOCITY_BINS), VELOCITY_BINS)


def _polyphony(notes: NDArray[np.void], seconds: float) -> Counts:
    span, sounding = spans(notes, seconds)
    return np.asarray(np.bincount(np.minimum(sounding, FULLEST), weights=span, minlength=FULLEST + 1), np.float64)


def _density(notes: NDArray[np.void], seconds: float) -> Counts:
    """Windows, by how many notes begin in each; what is left after the last whole window is not counted."""
    last = DENSEST // DENSITY_BIN
    return _binned(np.minimum(densities(notes, seconds) // DENSITY_BIN, last).astype(np.int64), last + 1)


def _binned(bins: NDArray[Any], count: int) -> Counts:
    return np.bincount(bins, minlength=count).astype(np.float64)


FEATURES: dict[str, Feature] = {
    "pitch_classes": Feature(
        "pitch class", ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"), _pitch_classes
    ),
    "intervals": Feature(
        "interval to the next note (semitones)",
        (f"< -{WIDEST}", *map(str, range(-WIDEST, WIDEST + 1)), f"> {WIDEST}"),
        _intervals,
    ),
    "inter_onset": Feature(
        "time to the next note (ms)",
        tuple(str(steps * 1000 // STEPS_PER_SECOND) for steps in INTER_ONSET_FROM),
        _inter_onset,
    ),
    "velocity": Feature("velocity", tuple(str(i * 128 // VELOCITY_BINS) for i in range(VELOCITY_BINS)), _velocity),
    "polyphony": Feature("notes at once (share of time)", (*map(str, range(FULLEST)), f"{FULLEST}+"), _polyphony),
    "density": Feature(
        f"notes per second, in windows of {WINDOW_SECONDS:.0f} s",
        (*map(str, range(0, DENSEST, DENSITY_BIN)), f"{DENSEST}+"),
        _density,
    ),
}
"""Every histogram, by a name for programs."""


@dataclass(frozen=True, eq=False)
class Profile:
    """What a corpus's excerpts of one length are like.

    Args:
        seconds: the excerpts' length.
        excerpts: how many there are.
        counts: for each feature the histogram of all of them together.
        distances: for each feature the divergence of every excerpt from all other pieces together, `[excerpts]`, bits.
    """

    seconds: float
    excerpts: int
    counts: dict[str, Counts]
    distances: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Distance:
    """How far music is from a corpus in one feature, and how far excerpts of the corpus are from the rest of it.

    `value`, `median` and `high`, the excerpts' 95th percentile (the greatest of fewer than 19), are divergences in
    bits; NaN where there is nothing to count. `further` is the share, of the music and the excerpts together, that is
    as far from the rest or further: the p-value of the music being an excerpt like the others.
    """

    feature: str
    value: float
    median: float
    high: float
    further: float
    excerpts: int

    @property
    def far(self) -> bool | None:
        """Whether the music is unlike the corpus in this feature; None: unknown, or too few excerpts to tell."""
        if not math.isfinite(self.further) or self.excerpts < FEWEST_DISTANCES:
            return None
        return self.further <= FAR


def histograms(performance: Performance, seconds: float | None = None) -> dict[str, Counts]:
    """Count a performance, as it sounds: with the pedal folded into the notes.

    Args:
        performance: what to count.
        seconds: its length, as for `dsmr.music.analysis.statistics.measure`.
    """
    notes = fold_pedal(performance).notes
    seconds = float(notes["offset"].max(initial=0.0)) if seconds is None else seconds
    check_seconds(seconds)
    return _count(notes[notes["onset"] < seconds], seconds)


def divergence(p: Counts, q: Counts) -> float:
    """The Jensen-Shannon divergence of two histograms of equal bins, in bits; NaN if one of them is empty.

    Three lines are no reason to depend on SciPy, which has its square root.
    """
    if not (p.sum() > 0 and q.sum() > 0):
        return float("nan")
    return float(_entropy((p / p.sum() + q / q.sum()) / 2) - (_entropy(p / p.sum()) + _entropy(q / q.sum())) / 2)


def profile(pieces: Iterable[Ids], seconds: float) -> Profile:
    """Count a corpus's excerpts: pieces cut end to end, as `dsmr.music.analysis.statistics.excerpts` does.

    Args:
        pieces: the corpus, uint16 `[n]` each, at least two of them with notes.
        seconds: the excerpts' length: that of the music to compare.

    Raises:
        ValueError: a length that is not above 0, or fewer than two pieces with notes.
    """
    check_seconds(seconds)
    counted = [[_count(notes, length) for notes, length in excerpts(decode(piece).notes, seconds)] for piece in pieces]
    counted = [piece for piece in counted if piece]
    if len(counted) < 2:
        raise ValueError(f"pieces: expected at least two with notes, got {len(counted)}")
    counts, distances = {}, {}
    for name in FEATURES:
        of_piece = [np.sum([excerpt[name] for excerpt in piece], axis=0) for piece in counted]
        counts[name] = np.sum(of_piece, axis=0)
        distances[name] = np.array(
            [
                divergence(excerpt[name], counts[name] - own)
                for piece, own in zip(counted, of_piece, strict=True)
                for excerpt in piece
            ]
        )
    return Profile(seconds, sum(map(len, counted)), counts, distances)


def distances(counts: dict[str, Counts], corpus: Profile) -> list[Distance]:
    """How far histograms are from a corpus, feature by feature; NaN where the music has nothing to count."""
    found = []
    for name, usual in corpus.distances.items():
        value = divergence(counts[name], corpus.counts[name])
        usual = usual[np.isfinite(usual)]
        median, high = np.quantile(usual, [0.5, 1 - FAR], method="weibull") if len(usual) else (np.nan, np.nan)
        as_far = 1 + int(np.count_nonzero(usual >= value))
        further = as_far / (1 + len(usual)) if np.isfinite(value) and len(usual) else float("nan")
        found.append(Distance(name, value, float(median), float(high), further, len(usual)))
    return found


def _count(notes: NDArray[np.void], seconds: float) -> dict[str, Counts]:
    return {name: feature.count(notes, seconds) for name, feature in FEATURES.items()}


def _entropy(shares: Counts) -> float:
    """In bits."""
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())
