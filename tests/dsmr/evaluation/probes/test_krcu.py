"""KRCU: two full passes by hand, models whose dNLL is known, and the positions that go on counting."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.pieces import Evaluation, evaluate_pieces
from dsmr.evaluation.probes.krcu import PUBLISHED_RESETS, Resets, krcu
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from tests.dsmr.evaluation.copying import CONTEXT, COPIED, FLOAT32, GUESSED, SURE, Copier, three_that_return

START, SOURCE, LONG = 360, 160, 30
"""The return that is planted in every piece: its distance is 200."""
TWO_ROUNDED = 2 * 2**-19
"""Half the spacing of float32 from 32 to 64 nats, for two NLLs."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return three_that_return(tmp_path_factory.mktemp("store"), (START, SOURCE, LONG, 0))


def make_model(window: str, position: str) -> Transformer:
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[40, 12])
    config = ModelConfig(16, 2, 1, schedule, segment=16, window=window, position=position, dropout=0.0)
    model = Transformer(config).double().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter *= 10  # predictions that depend on what is remembered
    return model


def read_twice(model: Transformer, ids: np.ndarray, reset: int) -> np.ndarray:
    """dNLL of every prediction from `reset` on, by two whole passes: in the second, what came before is hidden.

    Hidden by shrinking the horizons to what was read since the reset, so that the clock knows nothing of it.
    """
    token_by_token = model.config.window == "token"
    last = len(ids) - 1
    passes = []
    for clears in (False, True):
        state, nll = model.new_state(1), []
        cuts = sorted({*range(0, last, 1 if token_by_token else 16), *([reset] if clears else []), last})
        for start, stop in itertools.pairwise(cuts):
            if clears and start >= reset:
                most = start - reset + token_by_token
                state.set_horizons([min(horizon, most) for horizon in model.config.schedule.horizons])
            logits = model(torch.from_numpy(ids[None, start:stop].astype(np.int64)), state)[0]
            targets = torch.from_numpy(ids[start + 1 : stop + 1].astype(np.int64))
            nll += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        passes.append(np.array(nll))
    np.testing.assert_allclose(passes[0][:reset], passes[1][:reset], rtol=1e-12)
    return (passes[1] - passes[0])[reset:]


@pytest.mark.parametrize("position", ["rotary", "sinusoidal"])
@pytest.mark.parametrize("window", ["segment", "token"])
@pytest.mark.parametrize("reset", [64, 72], ids=["between-segments", "inside-a-segment"])
def test_one_pass_over_what_follows_equals_two_whole_passes(
    store: TokenStore, window: str, position: str, reset: int
) -> None:
    model = make_model(window, position)
    scores = evaluate_pieces(model, store, [0, 3])
    found = krcu(model, store, scores, Resets((reset,), width=1, end=130))
    for row, piece in enumerate((0, 3)):
        expected = read_twice(model, store.piece(piece)[:131], reset)
        got = found.sums.total[row, : len(expected)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TWO_ROUNDED)
        assert np.abs(expected).max() > 0.1
        assert found.sums.count[row].sum() == len(expected)


def test_nothing_is_lost_beyond_the_models_reach(store: TokenStore) -> None:
    model = make_model("segment", "sinusoidal")
    found = krcu(model, store, evaluate_pieces(model, store, [0]), Resets((64,), width=1, end=400))
    reach = model.config.schedule.receptive_field(16)
    np.testing.assert_allclose(found.sums.total[0, reach:], 0, rtol=0, atol=TWO_ROUNDED)
    assert np.abs(found.sums.total[0, :reach]).max() > 0.1


def test_a_copier_loses_what_lies_before_the_reset(store: TokenStore) -> None:
    scores = evaluate_pieces(Copier(10_000), store, store.indices("test"))
    found = krcu(Copier(10_000), store, scores, Resets((256,), width=64, end=512))
    assert (found.pieces, found.short) == ((0, 1, 2), 1)
    copied = GUESSED - COPIED
    # Entry i predicts id i + 1: the ids START + 3 ... START + 29 are copied; the id after them is guessed wrong.
    dnll = np.zeros(256)
    dnll[START + CONTEXT - 1 - 256 : START + LONG - 1 - 256] = copied
    dnll[START + LONG - 1 - 256] = GUESSED - (COPIED + SURE)
    bins = found.bins
    for number, each in enumerate(bins[:2]):  # all pieces fill these
        assert each.tokens == 3 * 64
        assert each.mean == pytest.approx(dnll[64 * number : 64 * number + 64].mean(), abs=2 * FLOAT32)
        assert each.interval is None  # three pieces are too few
    assert found.auc == pytest.approx(np.mean([each.mean for each in bins]))


def test_memory_that_does_not_reach_across_has_a_krcu_of_exactly_nothing(store: TokenStore) -> None:
    for memory in (0, 50):
        scores = evaluate_pieces(Copier(memory), store, store.indices("test"))
        found = krcu(Copier(memory), store, scores, Resets((256, 300), width=64, end=512))
        assert found.auc == 0
        assert not found.sums.total.any()
        assert found.auc_interval is None


def test_several_resets_are_pooled_by_the_tokens_since_each(store: TokenStore) -> None:
    model = make_model("segment", "rotary")
    scores = evaluate_pieces(model, store, store.indices("test"))
    one, two = (krcu(model, store, scores, Resets((at,), width=16, end=400)) for at in (80, 160))
    both = krcu(model, store, scores, Resets((80, 160), width=16, end=400), lanes=7)
    assert one.pieces == both.pieces == (0, 1, 2, 3)
    assert two.pieces == (0, 1, 2)
    rest = np.zeros((1, two.resets.bins)), np.zeros((1, two.resets.bins), np.int64)
    width = two.resets.bins
    np.testing.assert_array_equal(both.sums.count[:, width:], one.sums.count[:, width:])
    np.testing.assert_array_equal(
        both.sums.count[:, :width], one.sums.count[:, :width] + np.vstack([two.sums.count, rest[1]])
    )
    np.testing.assert_allclose(
        both.sums.total[:, :width], one.sums.total[:, :width] + np.vstack([two.sums.total, rest[0]]), atol=16 * 2**-18
    )


def test_the_published_bins_give_the_published_mean() -> None:
    assert (PUBLISHED_RESETS.at, PUBLISHED_RESETS.width, PUBLISHED_RESETS.end, PUBLISHED_RESETS.bins) == (
        (8192,),
        1024,
        30 * 1024,
        22,
    )
    curve = [0.197, 0.053, 0.038, 0.033, 0.035, 0.025, 0.026, 0.016, 0.024, 0.018, 0.020, 0.018, 0.021, 0.015, 0.005]
    assert sum(curve) / PUBLISHED_RESETS.bins == pytest.approx(0.0248, abs=0.0001)


def test_the_dictionary_is_json(store: TokenStore) -> None:
    scores = evaluate_pieces(Copier(10_000), store, store.indices("test"))
    found = krcu(Copier(10_000), store, scores, Resets((256,), width=64, end=1024))
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (read["bins"], read["bins_with_tokens"]) == (12, 4)
    assert (read["pieces"], read["pieces_too_short"]) == (3, 1)
    assert read["auc"] == found.auc
    assert found.read == sum(store.pieces[piece].length - 1 - 256 for piece in found.pieces)


def test_bad_input_is_named(store: TokenStore, tmp_path: Path) -> None:
    scores = evaluate_pieces(Copier(0), store, store.indices("test"))
    with pytest.raises(ValueError, match="expected a piece longer than 8192 tokens, got none; the longest has 471"):
        krcu(Copier(0), store, scores)
    with pytest.raises(ValueError, match="scores: expected whole pieces, got context cleared every 7 tokens"):
        krcu(Copier(0), store, Evaluation(scores.pieces, scores.token_nll, reset_every=7))
    for at in ((), (0,), (5, 5), (9, 5), (100,)):
        with pytest.raises(ValueError, match=r"resets: expected increasing positions from 1 to below the end, 100"):
            Resets(at, end=100)
    with pytest.raises(ValueError, match="width: expected at least 1 token, got 0"):
        Resets(width=0)
