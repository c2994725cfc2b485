"""Statistics of music: how dense, wide, loud, full and silent a performance is, and what excerpts of a corpus have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsmr.music.tokens import Ids, Performance, decode, fold_pedal

WINDOW_SECONDS = 5.0
"""Length of the windows in which the busiest and the quietest moment are looked for."""

ESSENTIAL = ("notes_per_second", "pitch_range", "silence")
"""What must be as in a corpus for a performance to pass for music: its density, its range, its share of silence."""

PERCENTILES = (1, 99)
"""Between these percentiles of excerpts a number is usual. Fewer than 99 excerpts have neither: then it is between the
least and the greatest."""
FEWEST_EXCERPTS = 39
"""One more excerpt lies outside all of n others by chance twice in n + 1 times: of fewer, more often than 1 in 20."""


class Range(NamedTuple):
    """Between which numbers all but about 2 % of a corpus's excerpts lie, or all of them; and how many there are."""

    low: float
    high: float
    excerpts: int


@dataclass(frozen=True)
class Statistics:
    """Numbers of one performance, as it sounds: with the pedal folded into the notes. NaN where there are no notes.

    - `notes`; `seconds`, from time 0 to the performance's end; `notes_per_second`.
    - `busiest`, `quietest`: notes per second where they are most and fewest, of all whole windows of 5 s from time 0 on
      (a shorter performance is one window).
    - `pitch_low`, `pitch_high`: lowest and highest MIDI pitch; `pitch_range`, their distance in semitones; `pitch_p10`,
      `pitch_median`, `pitch_p90`: percentiles over notes.
    - `pitch_class_entropy`: of `pitch_classes`, in bits; log2(12) = 3.58 when all twelve are equally frequent.
    - `silence`: the share of `seconds` when no note sounds; `longest_silence` in seconds.
    - `polyphony`: notes sounding at once, on average over the time when any does; `polyphony_max`.
    - `velocity_mean`, `velocity_deviation` over notes; `note_seconds_median`: of the notes' lengths.
    - `pitch_classes`: the share of notes of each pitch class from C to B, 12 numbers.
    """

    notes: int
    seconds: float
    notes_per_second: float
    busiest: float
    quietest: float
    pitch_low: float
    pitch_high: float
    pitch_range: float
    pitch_p10: float
    pitch_median: float
    pitch_p90: float
    pitch_class_entropy: float
    silence: float
    longest_silence: float
    polyphony: float
    polyphony_max: int
    velocity_mean: float
    velocity_deviation: float
    note_seconds_median: float
    pitch_classes: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for NaN."""
        values = {**asdict(self), "pitch_classes": list(self.pitch_classes)}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class Comparison:
    """A number of a performance beside what is usual in a corpus's excerpts: between `low` and `high`."""

    name: str
    value: float
    low: float
    high: float
    excerpts: int

    @property
    def within(self) -> bool | None:
        """Whether the number is a usual one; NaN never is. None: fewer than `FEWEST_EXCERPTS` cannot tell."""
        return self.low <= self.value <= self.high if self.excerpts >= FEWEST_EXCERPTS else None


def measure(performance: Performance, seconds: float | None = None) -> Statistics:
    """Count a performance.

    Args:
        performance: what to count.
        seconds: the performance's length, if it is known to end after (or is to be cut at) another moment than the end
            of its last note.

    Raises:
        ValueError: a length that is not above 0, or none given for a performance without notes.
    """
    notes = fold_pedal(performance).notes
    seconds = float(notes["offset"].max(initial=0.0)) if seconds is None else seconds
    check_seconds(seconds)
    return _count(notes[notes["onset"] < seconds], seconds)


def usual(pieces: Iterable[Ids], seconds: float) -> dict[str, Range]:
    """What is usual in excerpts of a corpus, for every single number of `Statistics`.

    Numbers such as the range grow with the length of what is looked at, so pieces are cut into `excerpts`.

    Args:
        pieces: the corpus, uint16 `[n]` each.
        seconds: the excerpts' length: that of the performance to compare.

    Raises:
        ValueError: a length that is not above 0, or no pieces with notes.
    """
    check_seconds(seconds)
    counted = [_count(notes, length) for piece in pieces for notes, length in excerpts(decode(piece).notes, seconds)]
    if not counted:
        raise ValueError("pieces: expected pieces with notes, got none")
    names = [name for name in Statistics.__dataclass_fields__ if name != "pitch_classes"]
    table = np.array([[getattr(excerpt, name) for name in names] for excerpt in counted], dtype=np.float64)
    return {name: usual_range(values) for name, values in zip(names, table.T, strict=True)}


def usual_range(values: NDArray[np.float64]) -> Range:
    """What is usual of numbers `[n]` of excerpts; NaN, where music was too short to have one, does not count.

    The percentiles are those that one more number falls below so often, if it is as likely to be anywhere among these.
    """
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Range(math.nan, math.nan, 0)
    low, high = np.percentile(values, PERCENTILES, method="weibull")
    return Range(float(low), float(high), len(values))


def compare_statistics(
    statistics: Statistics, ranges: Mapping[str, Range], names: Sequence[str] = ESSENTIAL
) -> list[Comparison]:
    """Set numbers of a performance beside the ranges that `usual` found."""
    return [Comparison(name, getattr(statistics, name), *ranges[name]) for name in names]


def excerpts(notes: NDArray[np.void], seconds: float) -> Iterator[tuple[NDArray[np.void], float]]:
    """Cut folded notes by their onsets into excerpts, end to end.

    What remains counts if it is at least half as long as an excerpt, or all there is.

    Yields:
        Each excerpt's notes, with times from its own beginning on, and its length in seconds.
    """
    end = float(notes["offset"].max(initial=0.0))
    start = 0.0
    while start < end and (start == 0 or end - start >= seconds / 2):
        length = min(seconds, end - start)
        inside = notes[(notes["onset"] >= start) & (notes["onset"] < start + length)].copy()
        inside["onset"] -= start
        inside["offset"] -= start
        yield inside, length
        start += seconds


def _count(notes: NDArray[np.void], seconds: float) -> Statistics:
    """Statistics of folded notes with onsets in `[0, seconds)`."""
    pitch, velocity = notes["pitch"].astype(np.float64), notes["velocity"].astype(np.float64)
    density = densities(notes, seconds)
    classes = np.bincount(notes["pitch"] % 12, minlength=12) / max(len(notes), 1)
    low, p10, median, p90, high = _quantiles(pitch, [0, 0.1, 0.5, 0.9, 1])
    span, sounding = spans(notes, seconds)
    silent, some = span[sounding == 0], len(notes) > 0
    lengths = np.minimum(notes["offset"], seconds) - notes["onset"]
    return Statistics(
        notes=len(notes),
        seconds=seconds,
        notes_per_second=len(notes) / seconds,
        busiest=float(density.max()),
        quietest=float(density.min()),
        pitch_low=low,
        pitch_high=high,
        pitch_range=high - low,
        pitch_p10=p10,
        pitch_median=median,
        pitch_p90=p90,
        pitch_class_entropy=-sum(p * math.log2(p) for p in classes.tolist() if p) if some else math.nan,
        silence=float(silent.sum()) / seconds,
        longest_silence=float(silent.max(initial=0.0)),
        polyphony=float(span @ sounding / span[sounding > 0].sum()) if sounding.any() else math.nan,
        polyphony_max=int(sounding.max()),
        velocity_mean=float(velocity.mean()) if some else math.nan,
        velocity_deviation=float(velocity.std()) if some else math.nan,
        note_seconds_median=_quantiles(lengths, [0.5])[0],
        pitch_classes=tuple(classes.tolist()),
    )


def densities(notes: NDArray[np.void], seconds: float) -> NDArray[np.float64]:
    """Notes per second in each whole window of `WINDOW_SECONDS` (a shorter performance is one window), `[windows]`."""
    windows, width = max(1, int(seconds // WINDOW_SECONDS)), min(WINDOW_SECONDS, seconds)
    window = (notes["onset"] // width).astype(np.int64)
    return np.asarray(np.bincount(window[window < windows], minlength=windows) / width)


def spans(notes: NDArray[np.void], seconds: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut `[0, seconds]` where folded notes begin and end: the lengths of the spans, and how many notes sound in each.

    Notes begin before `seconds`; what rings on longer is cut there.
    """
    onset, offset = notes["onset"], np.minimum(notes["offset"], seconds)
    edges = np.unique(np.concatenate([[0.0, seconds], onset, offset]))
    begun, over = (np.searchsorted(np.sort(times), edges[:-1], side="right") for times in (onset, offset))
    return np.diff(edges), begun - over


def _quantiles(values: NDArray[np.float64], at: list[float]) -> list[float]:
    """NaN for each if there are no values."""
    found: list[float] = np.quantile(values, at).tolist() if len(values) else [math.nan] * len(at)
    return found


def check_seconds(seconds: float) -> None:
    """ValueError for a length that is not above 0."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: expected a finite number above 0, got {seconds}")
