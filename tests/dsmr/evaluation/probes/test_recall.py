"""Recall: returns read again with their sources forgotten, by models of which it is known what they lose."""

from __future__ import annotations

import json

import pytest

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.pieces import Evaluation, evaluate_pieces
from dsmr.evaluation.probes.recall import CONTEXT as LEAST
from dsmr.evaluation.probes.recall import recall
from tests.dsmr.evaluation.copying import CONTEXT, COPIED, FLOAT32, GUESSED, Copier, Writer

FAR, LONG = 200, 30
COPY_GAIN = GUESSED - COPIED


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """In every piece a return too near to its source, a far one, and a transposed one."""
    writer = Writer(tmp_path_factory.mktemp("store") / "corpus.tokens")
    near, far, moved = (40 + LEAST - 1, 10, LONG, 0), (160 + FAR, 160, LONG, 0), (300, 200, LONG, 5)
    for events in (450, 420, 400):
        writer.piece(events, near, moved, far)
    writer.piece(100)
    return writer.store()


def test_what_is_lost_is_what_can_be_copied_and_nothing_else(store: TokenStore) -> None:
    for memory, expected in ((0, 0.0), (FAR + CONTEXT - 1, 0.0), (FAR + CONTEXT, COPY_GAIN), (10_000, COPY_GAIN)):
        model = Copier(memory)
        found = recall(model, store, evaluate_pieces(model, store, store.indices("test")), skip=CONTEXT)
        (far,) = found.distance_bins("exact")
        assert (far.name, far.tokens, far.pieces) == ("128-256", 3 * (LONG - CONTEXT), 3)
        assert far.mean == pytest.approx(expected, abs=2 * FLOAT32)
        assert far.interval is None  # three pieces are too few
        assert [each.mean for each in found.distance_bins("transposed")] == [0]
    # The tokens by which the theme is recognised are not copied.
    (whole,) = recall(model, store, evaluate_pieces(model, store, [0, 1]), skip=0).distance_bins("exact")
    assert whole.mean == pytest.approx(COPY_GAIN * (LONG - CONTEXT) / LONG, abs=2 * FLOAT32)


def test_a_sample_is_the_same_each_time_and_reads_no_more_than_it_needs(store: TokenStore) -> None:
    model = Copier(10_000)
    scores = evaluate_pieces(model, store, store.indices("test"))
    model.fed = 0
    found = recall(model, store, scores, sample=1)
    # From the source's end to the last but one token of the return.
    assert model.fed == found.read == (FAR - 1) + (100 - 1)
    assert found.returns == {"exact": 1, "transposed": 1}
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read == json.loads(json.dumps(recall(model, store, scores, sample=1).to_dict()))
    assert read["kinds"]["exact"]["by_distance"][0]["gain"] == pytest.approx(COPY_GAIN, abs=2 * FLOAT32)
    assert read["kinds"]["exact"]["by_distance"][0]["interval"] is None


def test_far_sources_can_be_left_out(store: TokenStore) -> None:
    model = Copier(10_000)
    scores = evaluate_pieces(model, store, store.indices("test"))
    assert recall(model, store, scores, farthest=FAR).returns == {"exact": 3, "transposed": 3}
    found = recall(model, store, scores, farthest=FAR - 1)
    assert found.returns == {"exact": 0, "transposed": 3}
    assert found.read == 3 * (100 - 1)
    with pytest.raises(
        ValueError, match="64 tokens or more after their sources, and no more than 99 after these begin"
    ):
        recall(model, store, scores, farthest=99)


def test_bad_input_is_named(store: TokenStore) -> None:
    scores = evaluate_pieces(Copier(0), store, [3])
    with pytest.raises(ValueError, match="expected labelled returns 64 tokens or more after their sources, got none"):
        recall(Copier(0), store, scores)
    with pytest.raises(ValueError, match="sample: expected at least 1, got 0"):
        recall(Copier(0), store, scores, sample=0)
    with pytest.raises(ValueError, match="scores: expected whole pieces"):
        recall(Copier(0), store, Evaluation(scores.pieces, scores.token_nll, reset_every=7))
