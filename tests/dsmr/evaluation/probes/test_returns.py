"""Return gain: the map to first statements, and models whose gain is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dsmr.corpus.prepare import prepare_pianist
from dsmr.corpus.store import Return, TokenStore
from dsmr.evaluation.pieces import Evaluation, evaluate_pieces
from dsmr.evaluation.probes.returns import KINDS, ReturnGain, restated, return_gain
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr.music.tokens import TIME_SHIFT
from tests.dsmr.evaluation.copying import CONTEXT, COPIED, FLOAT32, GUESSED, Copier, Writer

NEAR, FAR, LONG = 60, 200, 30
"""The distances of the exact returns that are planted in every piece, and how many tokens each has."""
COPY_GAIN = GUESSED - COPIED


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Pieces with a theme that returns near by, and there returns again; one that returns far off; one transposed."""
    writer = Writer(tmp_path_factory.mktemp("store") / "corpus.tokens")
    near, again = (10 + NEAR, 10, LONG, 0), (10 + 2 * NEAR, 10 + NEAR, LONG - 5, 0)
    far, moved = (160 + FAR, 160, LONG, 0), (300, 200, LONG, 5)
    for events in (450, 420, 400):
        writer.piece(events, near, again, moved, far)
    return writer.store()


def scores(store: TokenStore, memory: int) -> Evaluation:
    return evaluate_pieces(Copier(memory), store, store.indices("test"))


def gains(found: ReturnGain, **arguments: int) -> dict[str, float]:
    """The gain of exact returns by the name of its bin of distances."""
    return {each.name: each.mean for each in found.distance_bins("exact", **arguments)}


def test_a_memory_longer_than_the_distance_gains_and_a_shorter_one_does_not(store: TokenStore) -> None:
    for memory, near, far in (
        (0, 0.0, 0.0),
        (NEAR + CONTEXT - 1, 0.0, 0.0),
        (NEAR + CONTEXT, COPY_GAIN, 0.0),
        (FAR + CONTEXT - 1, COPY_GAIN, 0.0),
        (FAR + CONTEXT, COPY_GAIN, COPY_GAIN),
        (10_000, COPY_GAIN, COPY_GAIN),
    ):
        found = return_gain(store, scores(store, memory), skip=CONTEXT, distances=(0, NEAR, 128, 256))
        nearer = {"60-128": near, "128-256": far}
        assert {k: v for k, v in gains(found).items() if k in nearer} == pytest.approx(nearer, abs=2 * FLOAT32)


def test_a_model_without_reach_gains_nothing_and_one_with_reach_gains_after_it_recognised_the_theme(
    store: TokenStore,
) -> None:
    found = return_gain(store, scores(store, 10_000))
    by_index = {each.name: each.mean for each in found.offset_bins("exact")}
    # A token is copied if the three before it are of the theme: not the tokens 0, 1 and 2.
    expected = {"0-1": 0.0, "1-2": 0.0, "2-4": COPY_GAIN / 2, "4-8": COPY_GAIN, "8-16": COPY_GAIN, "16-32": COPY_GAIN}
    assert by_index == pytest.approx(expected, abs=2 * FLOAT32)
    assert found.returns("exact") == 3 * 3
    assert found.returns("transposed") == 3
    # The whole span of 30 tokens: 27 of them are copied.
    assert gains(found, skip=0)["128-256"] == pytest.approx(COPY_GAIN * (LONG - CONTEXT) / LONG, abs=2 * FLOAT32)
    # A copier knows nothing of transposition.
    assert [each.mean for each in found.distance_bins("transposed", skip=0)] == pytest.approx([0], abs=2 * FLOAT32)
    assert all(each.mean == 0 for each in return_gain(store, scores(store, 0)).distance_bins("exact", skip=0))


def test_the_first_statement_is_what_a_return_of_a_return_goes_back_to(store: TokenStore) -> None:
    tokens = restated(store.pieces[0])
    again = tokens[(tokens["token"] >= 10 + 2 * NEAR) & (tokens["token"] < 10 + 2 * NEAR + LONG - 5)]
    assert again["first"].tolist() == list(range(10, 10 + LONG - 5))
    assert set(again["distance"].tolist()) == {NEAR}
    assert again["offset"].tolist() == list(range(LONG - 5))
    assert not again["transposed"].any()


def test_first_statements_in_the_pianists_pieces_are_the_same_tokens_and_in_no_return(tmp_path: Path) -> None:
    prepare_pianist(tmp_path / "corpus.tokens", tokens=12_000, shortest=1_000, longest=3_000, workers=1)
    store = TokenStore.open(tmp_path / "corpus.tokens")
    compared = 0
    for index, piece in enumerate(store.pieces):
        tokens, ids = restated(piece), store.piece(index).astype(int)
        assert len(np.unique(tokens["token"])) == len(tokens) == sum(each.stop - each.start for each in piece.returns)
        assert not np.isin(tokens["first"], tokens["token"]).any()
        notes = ids[tokens["token"]] < TIME_SHIFT
        assert np.array_equal(ids[tokens["token"]][~notes], ids[tokens["first"]][~notes])
        moved = {t: each.semitones for each in piece.returns for t in range(each.start, each.stop)}
        source = {t: t - each.start + each.source_start for each in piece.returns for t in range(each.start, each.stop)}
        for token, first in tokens[["token", "first"]][notes].tolist():
            at, semitones = token, 0
            while at in source:
                semitones, at = semitones + moved[at], source[at]
            assert at == first
            assert ids[token] == ids[first] + semitones
            compared += 1
    assert compared > 500


def test_what_sees_only_the_span_gains_nothing_on_exact_returns(store: TokenStore) -> None:
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[6, 6])
    config = ModelConfig(16, 2, 1, schedule, segment=16, window="token")
    model = Transformer(config).double()
    model.requires_grad_(False)
    model.embedding.weight *= 50  # predictions that differ, so that the gain of tokens that see more is not 0
    reach = schedule.receptive_field(16, "token")
    found = return_gain(store, evaluate_pieces(model, store, store.indices("test")), skip=reach - 1)
    assert list(gains(found).values()) == pytest.approx([0, 0], abs=2**-20)  # float32 NLLs from 8 to 32 nats
    assert abs(gains(found, skip=0)["128-256"]) > 0.01


def test_intervals_and_numbers_are_of_the_pieces_that_have_returns(store: TokenStore) -> None:
    found = return_gain(store, scores(store, 10_000))
    (far,) = (each for each in found.distance_bins("exact") if each.start == 128)
    assert (far.tokens, far.pieces) == (3 * (LONG - 16), 3)
    assert far.interval is None  # three pieces are too few
    assert (far.nll_first, far.nll_return) == pytest.approx((GUESSED, COPIED), abs=FLOAT32)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(read["kinds"]) == set(KINDS)
    assert read["kinds"]["exact"]["gain"] == pytest.approx(COPY_GAIN, abs=2 * FLOAT32)
    assert read["kinds"]["exact"]["by_distance"][0]["tokens"] == 3 * (LONG - 16 + LONG - 5 - 16)


def test_tokens_that_were_not_scored_do_not_count(store: TokenStore) -> None:
    cut = Evaluation(
        (0,), (scores(store, 10_000).token_nll[0][: 10 + NEAR + 19],)
    )  # scores tokens 1 ... 10 + NEAR + 19
    (only,) = return_gain(store, cut).distance_bins("exact")
    assert only.tokens == 20 - 16
    assert only.interval is None


def test_bad_input_is_named(store: TokenStore, tmp_path: Path) -> None:
    whole = scores(store, 0)
    with pytest.raises(ValueError, match="scores: expected whole pieces, got context cleared every 7 tokens"):
        return_gain(store, Evaluation(whole.pieces, whole.token_nll, reset_every=7))
    with pytest.raises(ValueError, match="distances: expected increasing numbers that begin with 0"):
        return_gain(store, whole, distances=[0, 5, 5])
    with pytest.raises(ValueError, match="skip: expected at least 0, got -1"):
        return_gain(store, whole, skip=-1)
    writer = Writer(tmp_path / "plain.tokens")
    writer.piece(40)
    plain = writer.store()
    with pytest.raises(ValueError, match=r"expected labelled returns in the 1 pieces, got none; .dsmr prepare pianist"):
        return_gain(plain, scores(plain, 0))


@pytest.mark.parametrize("bad", [Return("exact", 0, 20, 30, 5, 14), Return("exact", 0, 20, 30, 11, 21)], ids=str)
def test_returns_that_do_not_restate_are_refused(store: TokenStore, bad: Return) -> None:
    with pytest.raises(ValueError, match="passages of equal length, the source first"):
        restated(replace(store.pieces[0], returns=(bad,)))
