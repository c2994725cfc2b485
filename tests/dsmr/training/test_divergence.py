"""A loss or gradient that explodes or is no number stops the run and spares its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dsmr.corpus.store import TokenStore
from dsmr.evaluation.pieces import Evaluation
from dsmr.model.checkpoint import load_checkpoint, read_info
from dsmr.music.tokens import VOCAB_SIZE
from dsmr.training import DivergedError, train, trainer
from dsmr.training.trainer import LossWatch
from tests.dsmr.training.small import config, from_training_call, model


def test_non_finite_loss_stops_the_run_and_spares_the_checkpoints(store: TokenStore, tmp_path: Path) -> None:
    net = model()
    net.register_forward_hook(from_training_call(5, lambda logits: logits * math.inf))
    named = r"step 5: expected a finite loss and gradient norm, got nan, nan; worst is lane 0, piece \d \('train \d'\)"
    with pytest.raises(DivergedError, match=named):
        train(net, store, config(validations=3), tmp_path)
    assert read_info(tmp_path / "best").training["step"] in (2, 4)
    assert read_info(tmp_path / "last").training["step"] == 4
    assert all(bool(parameter.isfinite().all()) for parameter in load_checkpoint(tmp_path / "last")[0].parameters())


def test_non_finite_gradient_stops_the_run(store: TokenStore, tmp_path: Path) -> None:
    net = model()
    net.norm.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(DivergedError, match=r"step 1: expected a finite loss and gradient norm, got [0-9.]+, nan"):
        train(net, store, config(), tmp_path)
    assert read_info(tmp_path / "last").training["step"] == 0
    assert all(bool(parameter.isfinite().all()) for parameter in net.parameters())


def test_non_finite_validation_loss_stops_the_run(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trainer, "evaluate_pieces", lambda *_, **__: Evaluation((0,), (np.array([np.nan], np.float32),))
    )
    with pytest.raises(DivergedError, match="step 3: expected a finite validation PPL, got"):
        train(model(), store, config(), tmp_path)
    assert not (tmp_path / "best").exists()


def watch(*losses: float) -> LossWatch:
    made = LossWatch(VOCAB_SIZE)
    for loss in losses:
        made.add(loss)
    return made


def test_losses_that_end_a_run_and_losses_that_do_not() -> None:
    ignorance = math.log(VOCAB_SIZE)
    assert not watch().exploded
    assert not watch(*[ignorance + 0.9] * 500).exploded  # bad, and no worse than that
    assert not watch(*[ignorance + 1.1] * 90).exploded
    assert watch(*[ignorance + 1.1] * 91).exploded
    assert watch(*[ignorance + 11] * 10).exploded
    assert not watch(*[2.0] * 100, *[50.0] * 10).exploded  # a spike in a run that has learned
    assert watch(*[2.0] * 100, *[50.0] * 13).exploded
    assert not watch(*[1e9] * 100, *[2.0] * 100).exploded  # long ago


def test_an_exploding_loss_stops_the_run_and_is_not_saved(store: TokenStore, tmp_path: Path) -> None:
    net = model()
    net.register_forward_hook(from_training_call(5, lambda logits: logits * 1e4))
    named = r"step \d+: expected the last 100 steps to cost less than a nat more .*; worst is lane \d, piece \d"
    with pytest.raises(DivergedError, match=named):
        train(net, store, config(steps=100, validations=1), tmp_path, save_minutes=1e-9, keep=100)
    assert read_info(tmp_path / "last").training["step"] == 4  # the last good one
