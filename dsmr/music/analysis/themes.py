"""Returns of a theme: where a few bars come back in music, exactly or transposed, and how often they would by chance.

Theme and music are read note by note, chords from the lowest up. They share a figure where five notes follow each other
in the same intervals: n-grams of intervals find music in any key and tempo (Downie, "Evaluating a Simple Approach to
Music Information Retrieval", 1999). A theme returns where shared figures, all moved by one interval and in the theme's
order, cover at least half of its notes, in at most twice and at least half its time: notes may be left out, changed and
added.

A theme of one style is never without likeness to other music of that style. So the returns stand beside those of the
same theme in other pieces, an excerpt of each that is as long, and in the same music with its notes shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsmr.music.analysis.order import shuffled_notes
from dsmr.music.analysis.quotation import reading_order
from dsmr.music.analysis.statistics import excerpts
from dsmr.music.tokens import PITCHES, STEPS_PER_SECOND, Ids, Performance, decode

FIGURE = 5
"""Notes that must follow each other in the same intervals to be a figure that theme and music share."""
SHORTEST_THEME = 8
"""Notes of a theme, at least: fewer come back in any music."""
RETURNING = 0.5
"""The share of a theme's notes that makes a return."""
SLACK = 0.25
"""So many notes may be added in a return or left out, as a share of the theme's."""
THEME_ITSELF = 0.9
"""Music that begins with so much of the theme was made from it as a prompt: that is no return."""
SHUFFLES = 10


@dataclass(frozen=True)
class ThemeReturn:
    """One return of a theme.

    Args:
        seconds: when its first and its last note begin.
        semitones: how far it lies above the theme; 0: an exact return.
        share: how much of the theme's notes it has.
    """

    seconds: tuple[float, float]
    semitones: int
    share: float


@dataclass(frozen=True, eq=False)
class ThemeCompared:
    """Returns of a theme in music, beside chance.

    Args:
        name: of the music.
        begins_with_theme: whether the music begins with the theme, which is not among the returns.
        returns: in order.
        corpus: how many there are in an excerpt of each other piece that is as long, `[P]`; 0 pieces: nothing is known.
        shuffled: how many there are in the music with its notes shuffled, on average.
    """

    name: str
    begins_with_theme: bool
    returns: list[ThemeReturn]
    corpus: NDArray[np.int64]
    shuffled: float

    @property
    def p(self) -> float:
        """The share, of the music and the other pieces together, in which the theme returns as often."""
        return float((1 + np.count_nonzero(self.corpus >= len(self.returns))) / (1 + len(self.corpus)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "begins_with_theme": self.begins_with_theme,
            "returns": [asdict(each) for each in self.returns],
            "corpus": self.corpus.tolist(),
            "shuffled": self.shuffled,
            "p": self.p,
        }


def returns_of_theme(theme: Performance, music: Performance) -> list[ThemeReturn]:
    """Find where a theme returns; the theme itself, if the music has it, is the first of them.

    Args:
        theme: at least `SHORTEST_THEME` notes.
        music: where to look.

    Returns:
        The returns in order; no two overlap.

    Raises:
        ValueError: a theme that is too short.
    """
    if len(theme.notes) < SHORTEST_THEME:
        raise ValueError(f"theme: expected at least {SHORTEST_THEME} notes, got {len(theme.notes)}")
    found: list[tuple[int, int, ThemeReturn]] = []
    candidates = sorted(_candidates(_Read(theme.notes), _Read(music.notes)), key=lambda each: (-each[2].share, each[0]))
    for first, last, each in candidates:
        if all(last < other_first or first > other_last for other_first, other_last, _ in found):
            found.append((first, last, each))
    return [each for _, _, each in sorted(found, key=lambda each: each[0])]


def compare_theme(
    theme: Performance, music: Mapping[str, Performance], pieces: Sequence[Ids], seed: int = 0
) -> list[ThemeCompared]:
    """Find a theme's returns in music and say how many there are by chance.

    Args:
        theme: at least `SHORTEST_THEME` notes.
        music: by name; what begins with the theme counts from there on.
        pieces: other pieces, uint16 `[n]` each.
        seed: of the shuffling, and of where the pieces' excerpts begin.

    Raises:
        ValueError: a theme that is too short.
    """
    compared, notes_of_pieces = [], [decode(piece).notes for piece in pieces]
    for name, each in music.items():
        returns = returns_of_theme(theme, each)
        prompted = bool(returns) and _is_the_theme(returns[0], each)
        returns = returns[prompted:]
        rng = np.random.default_rng(seed)
        length = float(each.notes["offset"].max(initial=1.0))
        other = [notes for own in notes_of_pieces if (notes := _excerpt(own, length, rng)) is not None]
        corpus = [len(returns_of_theme(theme, Performance(notes))) for notes in other]
        shuffled = [len(returns_of_theme(theme, Performance(shuffled_notes(each.notes, rng)))) for _ in range(SHUFFLES)]
        compared.append(ThemeCompared(name, prompted, returns, np.array(corpus, np.int64), float(np.mean(shuffled))))
    return compared


class _Read:
    """Notes in reading order: their `pitch` and `steps`, `[N]`, and `figures`, a number for each run of `FIGURE`."""

    def __init__(self, notes: NDArray[np.void]) -> None:
        notes = np.sort(notes, order=["onset", "pitch"])
        steps = np.rint(notes["onset"] * STEPS_PER_SECOND).astype(np.int64)
        order = reading_order(steps, notes["pitch"].astype(np.int64))
        self.pitch, self.steps = notes["pitch"].astype(np.int64)[order], steps[order]
        intervals = np.diff(self.pitch) + PITCHES
        self.figures = np.zeros(max(len(self.pitch) - FIGURE + 1, 0), np.int64)
        for offset in range(FIGURE - 1):
            self.figures = self.figures * 2 * PITCHES + intervals[offset : offset + len(self.figures)]


def _candidates(theme: _Read, music: _Read) -> Iterator[tuple[int, int, ThemeReturn]]:
    """Where enough of the theme is found: the music's first and last note of it, and the return."""
    in_theme, in_music = _shared_figures(theme.figures, music.figures)
    semitones, shift = music.pitch[in_music] - theme.pitch[in_theme], in_music - in_theme
    slack = int(SLACK * len(theme.pitch))
    for moved in np.unique(semitones).tolist():
        of_this = semitones == moved
        order = np.argsort(shift[of_this], kind="stable")
        i, j, shifts = (each[of_this][order] for each in (in_theme, in_music, shift))
        begins = np.unique(shifts)
        ends = np.searchsorted(shifts, begins + slack, side="right")
        for begin, end in zip(np.searchsorted(shifts, begins).tolist(), ends.tolist(), strict=True):
            own, its = i[begin:end], j[begin:end]
            covered = np.zeros(len(theme.pitch), np.bool_)
            covered[(own[:, None] + np.arange(FIGURE)).ravel()] = True
            first, last = int(its.min()), int(its.max()) + FIGURE - 1
            lasts = music.steps[last] - music.steps[first]
            lasted = theme.steps[own.max() + FIGURE - 1] - theme.steps[own.min()]
            if covered.mean() >= RETURNING and lasted / 2 <= lasts <= 2 * lasted:
                seconds = (music.steps[first] / STEPS_PER_SECOND, music.steps[last] / STEPS_PER_SECOND)
                yield first, last, ThemeReturn((float(seconds[0]), float(seconds[1])), moved, float(covered.mean()))


def _shared_figures(theme: NDArray[np.int64], music: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of a place in the theme and one in the music that have the same figure: `[S]` and `[S]`."""
    order = np.argsort(music, kind="stable")
    begins, ends = (np.searchsorted(music[order], theme, side=side) for side in ("left", "right"))
    counts = ends - begins
    in_theme = np.repeat(np.arange(len(theme)), counts)
    nth = np.arange(len(in_theme)) - np.repeat(np.cumsum(counts) - counts, counts)
    return in_theme, order[np.repeat(begins, counts) + nth]


def _is_the_theme(first: ThemeReturn, music: Performance) -> bool:
    """Whether what was found first is the prompt that the music begins with."""
    begins = float(music.notes["onset"].min())
    return first.semitones == 0 and first.share >= THEME_ITSELF and first.seconds[0] <= begins + 1.0


def _excerpt(notes: NDArray[np.void], seconds: float, rng: np.random.Generator) -> NDArray[np.void] | None:
    """One of a piece's excerpts; None if it has no notes."""
    cut = [own for own, _ in excerpts(notes, seconds)]
    return cut[rng.integers(len(cut))] if cut else None
