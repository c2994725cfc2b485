"""The grammar of ids: it allows what the codec writes, and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dsmr.generation.grammar import Grammar
from dsmr.generation.sampling import Sampling
from dsmr.music.tokens import (
    BEGIN,
    END,
    NOTE_DTYPE,
    NOTE_OFF,
    PAD,
    TIME_SHIFT,
    VELOCITY,
    VOCAB_SIZE,
    Performance,
    decode,
    encode,
)


@st.composite
def performances(draw: st.DrawFn) -> Performance:
    """Notes on the codec's grid, few keys so that they meet, none struck twice in one step."""
    struck = draw(st.sets(st.tuples(st.integers(0, 400), st.integers(60, 63)), max_size=25))
    notes = np.empty(len(struck), NOTE_DTYPE)
    for i, (onset, pitch) in enumerate(sorted(struck)):
        lasts, velocity = draw(st.integers(1, 300)), draw(st.sampled_from([1, 40, 44, 127]))
        notes[i] = (onset / 100, (onset + lasts) / 100, pitch, velocity)
    return Performance(notes)


@given(performances())
def test_whatever_the_codec_writes_is_allowed(performance: Performance) -> None:
    grammar = Grammar()
    ids = encode(performance).tolist()
    for token in ids:
        assert grammar.allowed(end=True)[token]
        grammar.accept(token)
    assert grammar.allowed(end=True)[END] == (len(ids) > 0)


@given(st.integers(0, 2**32), st.integers(0, 120), st.sampled_from([(0, 0), (3, 0), (0, 3), (2, 2)]))
def test_whatever_is_allowed_is_what_the_codec_writes(seed: int, length: int, bias: tuple[int, int]) -> None:
    """Random tokens, with more note-offs or time shifts or not, until END; then a canonical piece."""
    rng = np.random.default_rng(seed)
    grammar, ids = Grammar(), []
    while True:
        logits = rng.normal(size=VOCAB_SIZE).astype(np.float32)
        logits[NOTE_OFF:TIME_SHIFT] += bias[0] if len(ids) < length else 20
        logits[TIME_SHIFT:VELOCITY] += bias[1] if len(ids) < length else 10
        logits[END] = 40
        token = Sampling().draw(logits, grammar.allowed(end=len(ids) >= length), rng.random())
        if token == END:
            break
        grammar.accept(token)
        ids.append(token)
        assert len(ids) < length + 1000
    assert encode(decode(ids)).tolist() == ids


@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, PAD - 1)))
def test_after_any_prompt_something_is_allowed_and_it_ends_well(ids: np.ndarray) -> None:
    grammar = Grammar()
    for token in ids.tolist():
        grammar.accept(token)
    for _ in range(300):
        allowed = grammar.allowed(end=True)
        assert not allowed[[PAD, BEGIN]].any()
        if allowed[END]:
            return
        released = np.flatnonzero(allowed[NOTE_OFF:TIME_SHIFT]) + NOTE_OFF
        other = np.flatnonzero(allowed)
        grammar.accept(int(released[0] if len(released) else other[-1] if other[-1] < TIME_SHIFT else other[0]))
    raise AssertionError("no END in 300 tokens")


def test_rules_one_by_one() -> None:
    def allowed(*ids: int) -> np.ndarray:
        grammar = Grammar()
        for token in ids:
            grammar.accept(token)
        return grammar.allowed(end=True)

    loud, shift = VELOCITY + 25, TIME_SHIFT + 9
    start = allowed()
    assert not start[:TIME_SHIFT].any(), "the first note-on needs a velocity, nothing sounds"
    assert start[TIME_SHIFT:PAD].all()
    assert not start[END], "a piece has notes"
    assert np.flatnonzero(allowed(loud)).tolist() == list(range(21, 109)), "a note-on follows a velocity"
    assert not allowed(loud, 60)[loud], "a velocity says something new"
    assert np.flatnonzero(allowed(loud, 60)[:NOTE_OFF]).tolist() == list(range(61, 109)), "note-ons go up"
    assert not allowed(loud, 60)[NOTE_OFF:TIME_SHIFT].any(), "note-offs come before note-ons"
    sounding = allowed(loud, 60, 64, shift)
    assert np.flatnonzero(sounding[NOTE_OFF:TIME_SHIFT]).tolist() == [60, 64], "what sounds can be released"
    assert not sounding[[60, 64]].any(), "what sounds is not struck"
    assert not sounding[END], "a piece ends when nothing sounds"
    assert np.flatnonzero(allowed(loud, 60, 64, shift, NOTE_OFF + 64)[NOTE_OFF:TIME_SHIFT]).tolist() == []
    assert allowed(loud, 60, shift, NOTE_OFF + 60)[[60, END]].all(), "what was released is struck again, or all ends"
    assert not allowed(loud, 60, shift)[TIME_SHIFT:VELOCITY].any(), "one shift that is not a whole second"
    assert allowed(loud, 60, VELOCITY - 1)[TIME_SHIFT:VELOCITY].all(), "after a whole second another shift"


def test_a_forgotten_key_is_released_after_its_longest_time() -> None:
    """The lowest first, nothing else before, and only then: one second short of it everything is still open."""
    grammar, second = Grammar(), VELOCITY - 1
    for token in (VELOCITY + 20, 60, 64, *[second] * 7):
        grammar.accept(token)
    assert np.flatnonzero(grammar.allowed(end=True)).size > 2
    grammar.accept(second)
    for key in (60, 64):
        assert np.flatnonzero(grammar.allowed(end=True)).tolist() == [NOTE_OFF + key]
        grammar.accept(NOTE_OFF + key)
    assert grammar.allowed(end=True)[[60, END]].all()
