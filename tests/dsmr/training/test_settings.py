"""Learning rate, budget and optimiser do as the settings say, and wrong settings are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.training import TrainingConfig, loop, make_optimizer, train
from tests.dsmr.training.small import config, model, rows


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.55), (1.0, 0.1), (0.2 + 0.8 / 3, 0.1 + 0.9 * 0.75)],
    ids=["start", "half-warm", "warm", "half-way", "end", "a-third"],
)
def test_learning_rate(progress: float, expected: float) -> None:
    schedule = TrainingConfig(steps=1, learning_rate=1.0, min_learning_rate=0.1, warmup=0.2)
    assert schedule.learning_rate_at(progress) == pytest.approx(expected)


def test_learning_rate_without_warmup_begins_at_its_highest() -> None:
    assert TrainingConfig(steps=1, learning_rate=0.25, warmup=0.0).learning_rate_at(0.0) == 0.25


@pytest.mark.parametrize(
    ("budget", "step", "seconds", "reserve", "expected"),
    [
        ({"steps": 8}, 2, 1e9, 0.0, 0.25),
        ({"steps": 8}, 9, 0.0, 0.0, 1.0),
        ({"minutes": 2.0}, 10_000, 30.0, 0.0, 0.25),
        ({"minutes": 2.0}, 1, 30.0, 20.0, 0.3),
        ({"minutes": 2.0}, 1, 30.0, 500.0, 1.0),
        ({"minutes": 2.0, "steps": 8}, 2, 60.0, 0.0, 0.5),
        ({"minutes": 2.0, "steps": 8}, 6, 60.0, 0.0, 0.75),
    ],
    ids=["steps", "steps-over", "clock", "clock-reserve", "no-time-left", "clock-first", "steps-first"],
)
def test_progress(budget: dict[str, Any], step: int, seconds: float, reserve: float, expected: float) -> None:
    assert TrainingConfig(**budget).progress(step, seconds, reserve) == pytest.approx(expected)


def test_run_by_the_clock_ends_in_time_and_completes_its_schedule(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def slow(_: Any, __: Any, logits: Tensor) -> None:
        now[0] += 1.0  # every segment, of training or validation, takes a second

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    net = model()
    net.register_forward_hook(slow)
    run = train(net, store, config(steps=None, minutes=1.0, validations=3, warmup=0.1), tmp_path)
    assert 59 <= run.seconds <= 61  # at most one step late
    assert run.training_seconds == run.step < 60
    assert rows(tmp_path)[-1]["learning_rate"] == 0.0
    assert [row["val_loss"] is not None for row in rows(tmp_path)].count(True) == 3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_nothing_else_does(name: str) -> None:
    net = model()
    optimizer = make_optimizer(net, config(weight_decay=0.3, optimizer=name))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | exempt == set(names.values())
    assert all(name.startswith("blocks") and name.endswith("weight") and "norm" not in name for name in decayed)
    assert all("norm" in name or name.endswith("bias") or name == "embedding.weight" for name in exempt)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    muon, adamw = make_optimizer(model(), config(optimizer="muon")).parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert all(parameter.dim() == 2 for group in muon.param_groups for parameter in group["params"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": None}, "steps, minutes: expected a budget"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"minutes": 0.0}, "minutes: expected a finite number above 0, got 0"),
        ({"lanes": 0}, "lanes: expected at least 1, got 0"),
        ({"accumulate": 0}, "accumulate"),
        ({"semitones": -1}, "semitones: expected a finite number of at least 0, got -1"),
        ({"tempo": math.inf}, "tempo: expected a finite number of at least 0, got inf"),
        ({"learning_rate": math.nan}, "learning_rate: expected a finite number above 0, got nan"),
        ({"optimizer": "sgd"}, "optimizer: expected 'adamw' or 'muon', got 'sgd'"),
        ({"min_learning_rate": 0.1}, "min_learning_rate: expected 0 to learning_rate=0.001, got 0.1"),
        ({"warmup": 1.0}, "warmup: expected a fraction of the budget below 1, got 1.0"),
        ({"validation_tokens": 0}, "validation_tokens"),
        ({"autocast": "bf16"}, "autocast: expected True, False or 'auto', got 'bf16'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)
