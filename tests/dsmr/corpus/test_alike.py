"""Sketches: nearly the same music is found among many pieces, other music is not."""

from __future__ import annotations

import numpy as np
import pytest

from dsmr.corpus.alike import ALIKE, FIGURE, alike_across, sketch
from dsmr.music.tokens import NOTE_DTYPE, Performance


def piece(seed: int, count: int = 600, other: float = 0.0, key: int = 0, tempo: float = 1.0) -> Performance:
    """Random music; some of its notes, a part of `other`, are others than of this seed."""
    score, dice = np.random.default_rng(seed), np.random.default_rng([seed, round(1000 * other), key])
    notes = np.zeros(count, NOTE_DTYPE)
    notes["onset"] = np.cumsum(score.uniform(0.05, 0.5, count)) * tempo
    notes["offset"] = notes["onset"] + 0.1
    notes["pitch"] = score.integers(40, 80, count) + key + (dice.random(count) < other)
    notes["velocity"] = 64
    return Performance(notes)


@pytest.mark.parametrize(
    "change", [{}, {"other": 0.1}, {"key": 5}, {"tempo": 1.7}], ids=["half-of-it", "other-notes", "other-key", "slower"]
)
def test_nearly_the_same_music_is_found_among_other_music(change: dict[str, float]) -> None:
    others = [sketch(piece(seed)) for seed in range(100)]
    again = sketch(Performance(piece(17, **change).notes[:300])) if change == {} else sketch(piece(17, **change))
    assert alike_across([*others, again], ["a"] * 100 + ["b"]) == [(17, 100)]
    assert alike_across([*others, again], ["a"] * 101) == []


def test_figures_that_all_pieces_share_make_none_alike() -> None:
    def with_theme(seed: int) -> Performance:
        notes = piece(seed, 1200).notes
        notes["pitch"][:60] = piece(1000, 60).notes["pitch"]
        return Performance(notes)

    sketches = [sketch(with_theme(seed)) for seed in range(60)]
    common = set.intersection(*(set(each.tolist()) for each in sketches))
    assert 0 < len(common) < ALIKE * min(map(len, sketches))
    assert alike_across(sketches, ["a", "b"] * 30) == []


def test_many_performances_of_one_work_are_all_found() -> None:
    # More than those that each is compared with.
    sketches = [sketch(piece(0, other=0.05, key=key)) for key in range(40)]
    sides = ["a"] * 20 + ["b"] + ["a"] * 19
    assert {number for pair in alike_across(sketches, sides) for number in pair} >= {19, 20, 21}


@pytest.mark.parametrize("count", [0, 1, FIGURE, FIGURE + 1])
def test_music_too_short_for_a_figure(count: int) -> None:
    short = sketch(piece(0, count))
    assert len(short) <= max(count - FIGURE, 0)
    assert alike_across([short, short], ["a", "b"]) == []


def test_nothing_to_compare() -> None:
    assert alike_across([], []) == []
