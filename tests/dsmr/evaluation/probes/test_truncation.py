"""Context truncation: histories cut by hand, models whose dNLL is known, and the sample of blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.pieces import Evaluation, evaluate_pieces
from dsmr.evaluation.probes.truncation import Cuts, _sample, truncation
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from tests.dsmr.evaluation.copying import CONTEXT, COPIED, FLOAT32, GUESSED, Copier, three_that_return

START, SOURCE, LONG = 352, 152, 40
"""The return that is planted in every piece: its distance is 200."""
DISTANCE = START - SOURCE


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return three_that_return(tmp_path_factory.mktemp("store"), (START, SOURCE, LONG, 0))


def test_a_copier_misses_what_was_cut_off_and_nothing_else(store: TokenStore) -> None:
    scores = evaluate_pieces(Copier(10_000), store, store.indices("test"))
    # Blocks of 16 tokens, of which the second begins with the return's 16th token.
    keeps = (DISTANCE - 32, DISTANCE + CONTEXT - 1, DISTANCE + 100)
    cuts = Cuts(keeps, buckets=(32, START, START + 32, 10_000), block=16, blocks=1000)
    found = truncation(Copier(10_000), store, scores, cuts)
    lost, kept, longer = (found.row(number) for number in range(3))
    # Entries START ... START + 31 predict the ids START + 1 ... START + 32, copied from the third on.
    copied = (32 - (CONTEXT - 1)) * (GUESSED - COPIED) / 32
    assert [cell.mean for cell in lost[:2]] == pytest.approx([0, copied], abs=2 * FLOAT32)
    assert [cell.mean for cell in kept[:2]] == [0, 0]
    assert [cell.mean for cell in longer] == [0, 0, 0]
    assert [cell.tokens for cell in lost[:2]] == [3 * (START - 32) + 90 + 1 - 32, 3 * 32]
    assert [cell.pieces for cell in lost] == [4, 3, 3]
    assert lost[1].interval is None  # three pieces are too few


@pytest.mark.parametrize("position", ["rotary", "sinusoidal"])
def test_blocks_are_scored_as_if_the_rest_had_been_hidden(store: TokenStore, position: str) -> None:
    torch.manual_seed(0)
    schedule = make_schedule("explicit", 2, horizons=[60, 40])
    config = ModelConfig(16, 2, 1, schedule, segment=16, position=position, dropout=0.0)
    model = Transformer(config).double().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter *= 10  # predictions that depend on what is remembered
    scores = evaluate_pieces(model, store, [0])
    found = truncation(model, store, scores, Cuts((32,), buckets=(160, 192), block=32, blocks=1))
    ids = torch.from_numpy(store.piece(0).astype(np.int64))
    state, cut = model.new_state(1), 0.0
    for start in range(0, 192, 16):
        state.set_horizons([min(horizon, max(start - 128, 0)) for horizon in (60, 40)])
        logits = model(ids[None, start : start + 16], state)[0]
        if start >= 160:
            cut += float(torch.nn.functional.cross_entropy(logits, ids[start + 1 : start + 17], reduction="sum"))
    expected = (cut - scores.token_nll[0][160:192].sum(dtype=np.float64)) / 32
    (only,) = found.row(0)
    rounding = 2 * 2**-19  # NLLs below 64 nats in float32
    assert only.mean == pytest.approx(expected, abs=rounding)
    assert abs(only.mean) > 10 * rounding
    assert only.interval is None
    assert found.read == 64


def test_a_history_that_reaches_the_beginning_is_not_cut(store: TokenStore) -> None:
    model = Copier(10_000)
    scores = evaluate_pieces(model, store, store.indices("test"))
    model.fed = 0
    found = truncation(model, store, scores, Cuts((1024,), buckets=(64, 10_000), block=64, blocks=9))
    assert [cell.mean for cell in found.row(0)] == [0]
    assert model.fed == found.read == 0


def test_the_sample_takes_every_piece_before_it_takes_one_twice() -> None:
    cuts = Cuts((10,), buckets=(100, 200, 300), block=10, blocks=7)
    lengths = [1000, 50, 250, 1000, 205]
    chosen = _sample(lengths, cuts)
    rows = [each.row for each in chosen if each.bucket == 0]
    assert sorted(rows[:4]) == [0, 2, 3, 4]
    assert len(rows) == 7
    assert len({(each.row, each.start) for each in chosen}) == len(chosen)
    for each in chosen:
        assert cuts.buckets[each.bucket] <= each.start < each.stop <= cuts.buckets[each.bucket + 1]
        assert each.stop <= lengths[each.row]
        assert (each.start - cuts.buckets[each.bucket]) % 10 == 0
    assert next(each for each in chosen if each.row == 4 and each.bucket == 1).stop == 205
    assert chosen == _sample(lengths, cuts)
    assert chosen != _sample(lengths, Cuts(cuts.keeps, cuts.buckets, 10, 7, seed=1))


def test_the_dictionary_is_json(store: TokenStore) -> None:
    scores = evaluate_pieces(Copier(10_000), store, store.indices("test"))
    cuts = Cuts((64, 128), buckets=(128, 256, 512, 4096), block=64, blocks=2)
    found = truncation(Copier(10_000), store, scores, cuts)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [(cell["keep"], cell["start"]) for cell in read["cells"]] == [(64, 128), (64, 256), (128, 128), (128, 256)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keeps": ()}, "context: expected 1 or more increasing numbers of at least 1"),
        ({"keeps": (0, 4)}, "context: expected"),
        ({"keeps": (4, 4)}, "context: expected"),
        ({"buckets": (4,)}, "buckets: expected 2 or more increasing numbers of at least 0"),
        ({"buckets": (8, 4)}, "buckets: expected"),
        ({"block": 0}, "block: expected at least 1, got 0"),
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
    ],
    ids=str,
)
def test_bad_cuts_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cuts(**arguments)


def test_bad_input_is_named(store: TokenStore) -> None:
    scores = evaluate_pieces(Copier(0), store, store.indices("test"))
    with pytest.raises(ValueError, match="buckets: expected a piece longer than 1024 tokens; the longest has 471"):
        truncation(Copier(0), store, scores)
    with pytest.raises(ValueError, match="scores: expected whole pieces"):
        truncation(Copier(0), store, Evaluation(scores.pieces, scores.token_nll, reset_every=7))
