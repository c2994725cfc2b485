"""Sampling: draws have the probabilities that temperature, top_p and min_p say, among what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsmr.generation.sampling import Sampling, aim_releases
from dsmr.music.tokens import NOTE_OFF, TIME_SHIFT, VOCAB_SIZE

ANYTHING = np.ones(VOCAB_SIZE, dtype=np.bool_)


def test_releases_are_aimed_at_keys_that_sound() -> None:
    """The probability of a release stays what the model says, and its proportions among sounding keys do, too."""
    logits = np.random.default_rng(0).normal(size=VOCAB_SIZE).astype(np.float32)
    allowed = np.ones(VOCAB_SIZE, dtype=np.bool_)
    allowed[NOTE_OFF:TIME_SHIFT] = False
    assert np.array_equal(aim_releases(logits, allowed), logits), "no key to release: nothing changes"
    allowed[[NOTE_OFF + 60, NOTE_OFF + 64]] = True
    before, after = (np.exp(x.astype(np.float64)) for x in (logits, aim_releases(logits, allowed)))
    wanted = before[NOTE_OFF:TIME_SHIFT].sum()
    np.testing.assert_allclose(after[[NOTE_OFF + 60, NOTE_OFF + 64]].sum(), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        after[NOTE_OFF + 60] / after[NOTE_OFF + 64], before[NOTE_OFF + 60] / before[NOTE_OFF + 64], rtol=1e-5
    )
    assert np.array_equal(np.delete(after, range(NOTE_OFF, TIME_SHIFT)), np.delete(before, range(NOTE_OFF, TIME_SHIFT)))


def reference_weights(logits: np.ndarray, allowed: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities by the definitions, one token after the other."""
    aimed = aim_releases(logits, allowed).astype(np.float64)
    p = np.where(allowed, np.exp(aimed / sampling.temperature), 0)
    p /= p.sum()
    p[p < sampling.min_p * p.max()] = 0
    p /= p.sum()
    kept = np.zeros_like(p)
    for token in np.argsort(-p, kind="stable"):
        if kept.sum() >= sampling.top_p:
            break
        kept[token] = p[token]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.5, min_p=0.1),
        Sampling(top_p=0.6),
        Sampling(temperature=1.2, min_p=0.02, top_p=0.9),
        Sampling(top_p=1e-9),
        Sampling(min_p=1.0),
    ],
    ids=lambda s: f"T{s.temperature}-min{s.min_p}-top{s.top_p}",
)
def test_draws_share_the_unit_interval_as_probabilities_say(sampling: Sampling) -> None:
    rng = np.random.default_rng(1)
    logits = (2 * rng.normal(size=VOCAB_SIZE)).astype(np.float32)
    allowed = rng.random(VOCAB_SIZE) < 0.2
    points = 5000
    drawn = [sampling.draw(logits, allowed, (i + 0.5) / points) for i in range(points)]
    share = np.bincount(drawn, minlength=VOCAB_SIZE) / points
    # An interval of width p holds p * points of the evenly spaced ones, give or take one.
    np.testing.assert_allclose(share, reference_weights(logits, allowed, sampling), rtol=0, atol=1.01 / points)


@given(
    hnp.arrays(np.float32, VOCAB_SIZE, elements=st.floats(-50, 50, width=32)),
    hnp.arrays(np.bool_, VOCAB_SIZE),
    st.sampled_from([0.0, 0.5, float(np.nextafter(1, 0))]),
    st.sampled_from([Sampling(), Sampling(temperature=0), Sampling(0.1, 0.1, 0.5), Sampling(10, 1e-300, 1e-300)]),
)
def test_only_what_is_allowed_is_drawn(
    logits: np.ndarray, allowed: np.ndarray, uniform: float, sampling: Sampling
) -> None:
    allowed[7] = True
    assert allowed[sampling.draw(logits, allowed, uniform)]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = np.zeros(VOCAB_SIZE, dtype=np.float32)
    logits[9] = bad
    with pytest.raises(ValueError, match="logits: expected finite numbers"):
        Sampling().draw(logits, ANYTHING, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"min_p": 1.1}, "min_p"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
    ids=str,
)
def test_bad_sampling_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)
