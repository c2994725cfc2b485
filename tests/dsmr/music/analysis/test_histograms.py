"""Histograms by hand, the divergence's laws, and what a corpus says of itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsmr.music.analysis.histograms import FEATURES, WIDEST, Profile, distances, divergence, histograms, profile
from dsmr.music.tokens import NOTE_DTYPE, PEDAL_DTYPE, Performance, decode, encode
from tests.dsmr.playing import performance

COUNTS = arrays(np.float64, 5, elements=st.integers(0, 9).map(float))
EPSILON = np.finfo(np.float64).eps


def filled(counts: np.ndarray, name: str) -> dict[str, float]:
    """What is in the bins that hold something, by label."""
    return {FEATURES[name].labels[i]: float(counts[i]) for i in np.flatnonzero(counts)}


def test_a_small_piece_by_hand() -> None:
    found = histograms(performance((0, 1, 60, 40), (0, 2, 64, 80), (0.05, 2, 100, 80), (6, 10, 61, 127)))
    assert filled(found["pitch_classes"], "pitch_classes") == {"C": 1, "C#": 1, "E": 2}
    assert filled(found["intervals"], "intervals") == {"4": 1, f"> {WIDEST}": 1, f"< -{WIDEST}": 1}
    assert filled(found["inter_onset"], "inter_onset") == {"0": 1, "50": 1, "1700": 1}
    assert filled(found["velocity"], "velocity") == {"40": 1, "80": 2, "124": 1}
    assert filled(found["polyphony"], "polyphony") == pytest.approx({"0": 4, "1": 4, "2": 0.05 + 1, "3": 0.95})
    assert filled(found["density"], "density") == {"0": 2}


def test_every_bin_has_a_label() -> None:
    for name, counts in histograms(performance((0, 1, 60, 64))).items():
        assert counts.shape == (len(FEATURES[name].labels),)


def test_counts_the_sound_and_a_known_length() -> None:
    notes = performance((0, 1, 60, 64), (3, 4, 62, 64))
    pedalled = Performance(notes.notes, np.array([(0.5, 127), (2.5, 0)], PEDAL_DTYPE))
    assert filled(histograms(pedalled, 5)["polyphony"], "polyphony") == pytest.approx({"0": 1.5, "1": 3.5})
    assert filled(histograms(notes, 2)["pitch_classes"], "pitch_classes") == {"C": 1}


@given(COUNTS, COUNTS)
def test_the_divergence_is_a_distance_between_0_and_1_bit(p: np.ndarray, q: np.ndarray) -> None:
    found = divergence(p, q)
    if not p.any() or not q.any():
        assert math.isnan(found)
        return
    # Three entropies of at most log2(10) bits, each a sum of five rounded products.
    rounding = 3 * 5 * math.log2(10) * EPSILON
    assert -rounding <= found <= 1 + rounding
    assert found == pytest.approx(divergence(q, p), abs=rounding)
    assert divergence(p, 7 * p) == pytest.approx(0, abs=rounding)
    if not (p * q).any():
        assert found == pytest.approx(1, abs=rounding)


def test_the_divergence_is_its_definition() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.25, 0.75])
    mean = (p + q) / 2
    kl = [sum(a * math.log2(a / b) for a, b in zip(x, mean, strict=True) if a) for x in (p, q)]
    assert divergence(p, q) == pytest.approx(sum(kl) / 2, rel=1e-12)


def pieces(*pitches: int) -> list[np.ndarray]:
    """Pieces of 20 seconds, each of one key struck twice a second."""
    played = [performance(*((i / 2, i / 2 + 0.5, pitch, 64) for i in range(40))) for pitch in pitches]
    return [encode(each) for each in played]


def test_excerpts_are_compared_with_the_other_pieces() -> None:
    corpus = profile(pieces(60, 62), 10)
    assert corpus.excerpts == 4
    # Were its own piece among them, no excerpt would be a whole bit away.
    assert corpus.distances["pitch_classes"] == pytest.approx(np.ones(4))
    assert corpus.distances["velocity"] == pytest.approx(np.zeros(4))
    assert corpus.counts["pitch_classes"][[0, 2]].tolist() == [40, 40]


def test_unlike_music_is_further_than_the_corpus_is_from_itself() -> None:
    alike = pieces(60, 60, 60)
    corpus = profile(alike, 10)
    found = {each.feature: each for each in distances(histograms(decode(alike[0]), 10), corpus)}
    assert all(each.further == 1 for each in found.values())
    unlike = histograms(performance(*((i / 10, i / 10 + 3, 20 + i, 127) for i in range(90))), 10)
    for each in distances(unlike, corpus):
        assert each.value > each.high
        assert each.further == 1 / 7
        assert each.far is None
    assert len(found) == len(FEATURES)


@pytest.mark.parametrize("excerpts", [1, 5, 18, 19, 20, 100, 399])
def test_a_verdict_from_few_excerpts_is_none_and_else_seldom_wrong(excerpts: int) -> None:
    def skewed(share: float) -> dict[str, np.ndarray]:
        return {"velocity": np.array([1.0, share])}

    # One of excerpts + 1 that are equally likely to be the furthest: by the rank of its share of the second bin.
    corpus = skewed(0.0)
    every = np.array([divergence(skewed(1 + i)["velocity"], corpus["velocity"]) for i in range(excerpts + 1)])
    far = []
    for i in range(excerpts + 1):
        (found,) = distances(skewed(1 + i), Profile(1.0, excerpts, corpus, {"velocity": np.delete(every, i)}))
        assert found.further == (excerpts + 1 - i) / (excerpts + 1)
        far.append(found.far)
    if excerpts < 19:
        assert far == [None] * (excerpts + 1)
    else:
        assert 0 < far.count(True) / len(far) <= 0.05


def test_one_note_has_no_intervals() -> None:
    corpus = profile(pieces(60, 62), 10)
    found = {each.feature: each for each in distances(histograms(performance((0, 1, 60, 64))), corpus)}
    assert math.isnan(found["intervals"].value)
    assert math.isnan(found["intervals"].further)
    assert found["velocity"].value == 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two with notes, got 1"):
        profile(pieces(60), 10)
    with pytest.raises(ValueError, match="seconds: expected a finite number above 0, got 0"):
        profile(pieces(60, 62), 0)
    with pytest.raises(ValueError, match="seconds: expected a finite number above 0"):
        histograms(Performance(np.empty(0, NOTE_DTYPE)))
