"""Self-similarity: whether music at one moment is like what was heard thousands of tokens before.

At a distance of D tokens two numbers are measured, over all pairs of moments that are D/2 to 2D tokens apart:

- `harmony`: the mean cosine similarity of their pitch-class histograms, in windows of 256 tokens: music that stays in
  its keys;
- `recurrence`: the share of notes in passages of 8 notes, of at least 4 keys, whose intervals were heard so long ago:
  music that comes back, whatever its key and tempo.

Both depend on how much there is to compare, so music is set beside excerpts of a corpus of as many tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsmr.music.analysis.repetition import PASSAGE, Passages, excerpts_of
from dsmr.music.analysis.statistics import Comparison, Range, usual_range
from dsmr.music.tokens import NOTE_OFF, Ids

DISTANCES = (1_000, 4_000, 16_000)
"""Tokens."""
HARMONY_WINDOW = 256
"""Tokens whose notes make one pitch-class histogram: about six seconds."""
MEASURES = ("harmony", "recurrence")


@dataclass(frozen=True)
class SelfSimilarity:
    """How much music is like itself at a distance (tokens): see above. NaN where it is too short to say."""

    distance: int
    harmony: float
    recurrence: float


def self_similarity(ids: ArrayLike, distances: Sequence[int] = DISTANCES) -> list[SelfSimilarity]:
    """Measure music against its own past.

    Args:
        ids: tokens [L]; BEGIN and END have no effect.
        distances: tokens, each at least 2.

    Raises:
        ValueError: a distance below 2.
    """
    if min(distances, default=2) < 2:
        raise ValueError(f"distances: expected at least 2 tokens each, got {min(distances)}")
    tokens = np.asarray(ids).astype(np.int64)
    harmony, recurrence = _harmony(tokens, distances), _recurrence(tokens, distances)
    return [SelfSimilarity(*each) for each in zip(distances, harmony, recurrence, strict=True)]


def usual_self_similarity(
    pieces: Iterable[Ids],
    tokens: int,
    distances: Sequence[int] = DISTANCES,
) -> list[dict[str, Range]]:
    """What is usual in a corpus: for each distance the range of each of `MEASURES`.

    Pieces are cut into excerpts, end to end; what remains counts if it is at least half as long, or all there is.

    Args:
        pieces: the corpus, uint16 `[n]` each.
        tokens: the excerpts' length: that of the music to compare.
        distances: as for `self_similarity`.

    Returns:
        For each distance and measure its range; of NaN where no excerpt is long enough.
    """
    if tokens < 1:
        raise ValueError(f"tokens: expected at least 1, got {tokens}")
    found = [self_similarity(excerpt, distances) for excerpt in excerpts_of(pieces, tokens)]
    return [
        {measure: usual_range(np.array([getattr(each[at], measure) for each in found])) for measure in MEASURES}
        for at in range(len(distances))
    ]


def compare_self_similarity(
    music: Sequence[SelfSimilarity], usual: Sequence[dict[str, Range]]
) -> list[list[Comparison]]:
    """Set music beside what `usual_self_similarity` found: for each distance one comparison for each of `MEASURES`."""
    return [
        [Comparison(measure, getattr(own, measure), *borders[measure]) for measure in MEASURES]
        for own, borders in zip(music, usual, strict=True)
    ]


def _harmony(tokens: NDArray[np.int64], distances: Sequence[int]) -> list[float]:
    windows = len(tokens) // HARMONY_WINDOW
    at = np.flatnonzero(tokens[: windows * HARMONY_WINDOW] < NOTE_OFF)
    classes = np.zeros((windows, 12))
    np.add.at(classes, (at // HARMONY_WINDOW, tokens[at] % 12), 1.0)
    sounding = np.flatnonzero(classes.any(axis=1))
    classes = classes[sounding] / np.linalg.norm(classes[sounding], axis=1, keepdims=True)
    alike = classes @ classes.T
    apart = (sounding[:, None] - sounding[None, :]) * HARMONY_WINDOW
    found = []
    for distance in distances:
        pairs = (apart >= distance / 2) & (apart < 2 * distance)
        found.append(float(alike[pairs].mean()) if pairs.any() else float("nan"))
    return found


def _recurrence(tokens: NDArray[np.int64], distances: Sequence[int]) -> list[float]:
    passages = Passages(tokens)
    found = []
    for distance in distances:
        if len(passages.at) < PASSAGE or tokens.size <= distance / 2:
            found.append(float("nan"))
        else:
            found.append(float(passages.again((distance + 1) // 2, 2 * distance - 1).mean()))
    return found
