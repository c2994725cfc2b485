"""Learning rate, budget and optimiser do as the settings say, and wrong settings are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.model.transformer import Transformer
from dsmr.training import TrainingConfig, loop, make_optimizer, train
from dsmr.training.config import VALIDATION_SHARE
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
    ("budget", "steps", "seconds", "expected"),
    [
        ({"steps": 8}, 2, 1e9, 0.25),
        ({"steps": 8}, 9, 0.0, 1.0),
        ({"minutes": 2.0}, 10_000, 30.0, 0.25),
        ({"minutes": 2.0}, 1, 500.0, 1.0),
        ({"minutes": 2.0, "steps": 8}, 2, 60.0, 0.5),
        ({"minutes": 2.0, "steps": 8}, 6, 60.0, 0.75),
    ],
    ids=["steps", "steps-over", "clock", "clock-over", "clock-first", "steps-first"],
)
def test_progress(budget: dict[str, Any], steps: int, seconds: float, expected: float) -> None:
    assert TrainingConfig(**budget).progress(steps, seconds) == pytest.approx(expected)


@pytest.fixture
def a_second_a_segment(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Transformer]:
    """Makes a model for which the clock goes on by a second with every segment of training, by another time else."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def make(validation: float) -> Transformer:
        def slow(net: Any, __: Any, ___: Tensor) -> None:
            now[0] += 1.0 if net.training else validation

        net = model()
        net.register_forward_hook(slow)
        return net

    return make


SEGMENTS = 6  # of the validation split: 91 tokens to predict, 16 a segment


@pytest.mark.parametrize(
    ("minutes", "validation", "count"),
    [(5, 0.01, 9), (5, 1.0, 5), (1, 1.0, 1), (1, 10.0, 1)],
    ids=["cheap", "as-training", "short-run", "dear"],
)
@pytest.mark.parametrize("and_steps", [False, True], ids=["minutes", "and-steps"])
def test_minutes_count_training_and_validation_takes_a_tenth_of_them(
    store: TokenStore,
    tmp_path: Path,
    a_second_a_segment: Any,
    minutes: int,
    validation: float,
    count: int,
    and_steps: bool,
) -> None:
    steps = 60 * minutes
    settings = config(steps=steps if and_steps else None, minutes=minutes, validations=10, warmup=0.1)
    run = train(a_second_a_segment(validation), store, settings, tmp_path)
    assert run.training_seconds == run.step == steps
    assert [row["learning_rate"] for row in rows(tmp_path)] == pytest.approx(
        [settings.learning_rate_at((step + 0.5) / steps) for step in range(steps)]
    )
    validated = [row["step"] for row in rows(tmp_path) if row["val_loss"] is not None]
    assert len(validated) == count
    assert validated[-1] == steps  # one is at the end, whatever it takes
    each = SEGMENTS * validation
    assert run.validation_seconds == pytest.approx(len(validated) * each)
    assert run.validation_seconds <= max(VALIDATION_SHARE * run.training_seconds, each)
    assert run.seconds == pytest.approx(run.training_seconds + run.validation_seconds)


def test_steps_alone_validate_as_often_as_they_are_told_to(
    store: TokenStore, tmp_path: Path, a_second_a_segment: Any
) -> None:
    """The clock has no say in what such a run computes: it could not be repeated."""
    train(a_second_a_segment(10.0), store, config(steps=6, validations=3), tmp_path)
    assert [row["step"] for row in rows(tmp_path) if row["val_loss"] is not None] == [2, 4, 6]


@given(
    steps=st.integers(1, 10_000), warmup=st.sampled_from([0.0, 0.02, 0.5, 0.99]), minutes=st.sampled_from([None, 1.0])
)
def test_no_step_is_made_with_a_rate_of_zero(steps: int, warmup: float, minutes: float | None) -> None:
    schedule = TrainingConfig(steps=steps, minutes=minutes, warmup=warmup)
    ends = [schedule.progress(step, 0.0) for step in (0, 1, steps - 1, steps)]
    for before, after in zip(ends[::2], ends[1::2], strict=True):
        assert 0 < schedule.learning_rate_at((before + after) / 2) <= schedule.learning_rate


def test_neither_the_first_step_nor_the_last_is_wasted(store: TokenStore, tmp_path: Path) -> None:
    for name, budget in (("steps", {"steps": 5}), ("minutes", {"steps": None, "minutes": 1 / 600})):
        train(model(), store, config(warmup=0.5, validations=1, **budget), tmp_path / name)
        rates = [row["learning_rate"] for row in rows(tmp_path / name)]
        assert min(rates[0], rates[-1]) > 0


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
        ({"min_learning_rate": 0.1}, "min_learning_rate: expected 0 to learning_rate=0.01, got 0.1"),
        ({"warmup": 1.0}, "warmup: expected a fraction of the budget below 1, got 1.0"),
        ({"validation_tokens": 0}, "validation_tokens"),
        ({"autocast": "bf16"}, "autocast: expected True, False or 'auto', got 'bf16'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)
