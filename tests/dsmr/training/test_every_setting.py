"""Every field of `TrainingConfig`: changing it changes training, in what it is there to change and in nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.training import Run, TrainingConfig, loop, make_optimizer, optimisation, train, trainer
from dsmr.training.optimisation import eager_token_nll
from tests.dsmr.training.small import SEGMENT, config, model, untimed

STEPS = 6


@dataclass
class Trained:
    """What came of a run: its weights, its rows without times, and what its optimiser and its model were given."""

    config: TrainingConfig
    run: Run
    weights: dict[str, Tensor]
    rows: list[dict[str, Any]]
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    validated: list[Tensor] = field(default_factory=list)
    types: set[torch.dtype] = field(default_factory=set)
    compiled: int = 0

    @property
    def losses(self) -> list[float]:
        return [row["train_loss"] for row in self.rows]

    def same_weights(self, other: Trained) -> bool:
        return all(torch.equal(weight, other.weights[name]) for name, weight in self.weights.items())


@pytest.fixture
def trained(store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trained]:
    """Train with some settings; `dropout` is the model's."""

    def run(dropout: float = 0.0, **changes: Any) -> Trained:
        settings = config(steps=STEPS, **changes) if "steps" not in changes else config(**changes)
        net, out = model(dropout=dropout), tmp_path / str(len(list(tmp_path.iterdir())))
        found = Trained(settings, Run(), {}, [])
        make = optimisation.make_optimizer

        def watched(*arguments: Any) -> optimisation.Optimizers:
            made = make(*arguments)
            step = made.step

            def noted() -> None:
                grads = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
                found.norms.append(float(torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))))
                found.rates.append(made.param_groups[0]["lr"])
                step()

            made.step = noted
            return made

        def compiled() -> Any:
            found.compiled += 1
            return eager_token_nll

        def heard(_: Any, arguments: tuple[Tensor, ...]) -> None:
            (found.tokens if net.training else found.validated).append(arguments[0].clone())

        monkeypatch.setattr(trainer, "make_optimizer", watched)
        monkeypatch.setattr(trainer, "compiled_token_nll", compiled)
        net.register_forward_pre_hook(heard)
        net.blocks[0].value.register_forward_hook(lambda _, __, v: found.types.add(v.dtype))
        found.run = train(net, store, settings, out)
        found.weights = {name: weight.detach().clone() for name, weight in net.named_parameters()}
        found.rows = untimed(out)
        return found

    return run


Check = Callable[[Callable[..., Trained]], None]
CHECKS: dict[str, Check] = {}


def of(name: str) -> Callable[[Check], Check]:
    def keep(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return keep


def test_every_field_has_a_check() -> None:
    assert set(CHECKS) == set(TrainingConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", TrainingConfig.__dataclass_fields__)
def test_changing_it_changes_training(name: str, trained: Callable[..., Trained]) -> None:
    CHECKS[name](trained)


@of("steps")
def _(trained: Callable[..., Trained]) -> None:
    assert [trained(steps=steps).run.step for steps in (2, 5)] == [2, 5]


@of("minutes")
def _(trained: Callable[..., Trained]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        now = [0.0]

        def a_second_each() -> float:
            now[0] += 1.0  # whenever somebody looks
            return now[0]

        patch.setattr(loop.time, "monotonic", a_second_each)
        short, long = (trained(steps=None, minutes=minutes, validations=1).run.step for minutes in (1.0, 4.0))
    assert 2 * short < long


@of("lanes")
def _(trained: Callable[..., Trained]) -> None:
    for lanes in (1, 3):
        found = trained(lanes=lanes)
        assert {tokens.shape for tokens in found.tokens} == {(lanes, SEGMENT)}
        assert found.run.tokens == STEPS * lanes * SEGMENT


@of("accumulate")
def _(trained: Callable[..., Trained]) -> None:
    for accumulate in (1, 3):
        found = trained(accumulate=accumulate)
        assert len(found.tokens) == STEPS * accumulate
        assert len(found.norms) == STEPS


@of("optimizer")
def _(trained: Callable[..., Trained]) -> None:
    assert not trained(optimizer="muon").same_weights(trained(optimizer="adamw"))


@of("learning_rate")
def _(trained: Callable[..., Trained]) -> None:
    slow, fast = (trained(learning_rate=rate, warmup=0.0) for rate in (1e-3, 2e-3))
    assert fast.rates == pytest.approx([2 * rate for rate in slow.rates])
    assert not slow.same_weights(fast)


@of("min_learning_rate")
def _(trained: Callable[..., Trained]) -> None:
    low, high = (trained(min_learning_rate=rate) for rate in (1e-4, 9e-3))
    assert high.rates[-1] > 10 * low.rates[-1]
    assert not low.same_weights(high)


@of("warmup")
def _(trained: Callable[..., Trained]) -> None:
    cold, warm = (trained(warmup=warmup) for warmup in (0.0, 0.9))
    assert warm.rates[0] < cold.rates[0] / 2
    assert warm.rates[:5] == sorted(warm.rates[:5])
    assert not cold.same_weights(warm)


@of("weight_decay")
def _(trained: Callable[..., Trained]) -> None:
    for optimizer in ("adamw", "muon"):
        free, decayed = (trained(weight_decay=decay, learning_rate=1e-2, optimizer=optimizer) for decay in (0.0, 5.0))
        for name in ("blocks.0.up.weight", "blocks.1.value.weight"):
            assert decayed.weights[name].norm() < 0.95 * free.weights[name].norm()


@of("betas")
def _(trained: Callable[..., Trained]) -> None:
    for optimizer in ("adamw", "muon"):  # Muon's companion for all but the matrices is AdamW, too
        plain = trained(optimizer=optimizer)
        for betas in ((0.5, 0.95), (0.9, 0.5)):
            assert not plain.same_weights(trained(optimizer=optimizer, betas=betas))


@of("clip")
def _(trained: Callable[..., Trained]) -> None:
    free, clipped = trained(clip=1e6), trained(clip=0.01)
    assert min(free.norms) > 0.02
    assert clipped.norms == pytest.approx([0.01] * STEPS, rel=1e-3)
    assert not free.same_weights(clipped)


@of("semitones")
def _(trained: Callable[..., Trained]) -> None:
    plain, moved = trained(), trained(semitones=5)
    assert {token for tokens in plain.tokens for token in tokens[tokens < 128].tolist()} <= {60, 64, 67}
    assert not {token for tokens in moved.tokens for token in tokens[tokens < 128].tolist()} <= {60, 64, 67}
    assert all(torch.equal(a, b) for a, b in zip(plain.validated, moved.validated, strict=True))


@of("tempo")
def _(trained: Callable[..., Trained]) -> None:
    plain, moved = trained(), trained(tempo=0.4)
    assert plain.losses != moved.losses
    assert any(not torch.equal(a, b) for a, b in zip(plain.tokens, moved.tokens, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.validated, moved.validated, strict=True))


@of("validations")
def _(trained: Callable[..., Trained]) -> None:
    for validations in (1, 3):
        found = trained(validations=validations)
        assert sum(row["val_loss"] is not None for row in found.rows) == validations


@of("validation_tokens")
def _(trained: Callable[..., Trained]) -> None:
    some, whole = trained(validation_tokens=20), trained(validation_tokens=None)
    assert some.same_weights(whole)
    assert len(some.validated) < len(whole.validated)
    assert some.rows[-1]["val_loss"] != whole.rows[-1]["val_loss"]


@of("log_every")
def _(trained: Callable[..., Trained]) -> None:
    often, rarely = trained(log_every=1, validations=1), trained(log_every=3, validations=1)
    assert often.same_weights(rarely)
    assert [row["step"] for row in rarely.rows] == [3, 6]
    assert len(often.rows) == STEPS


@of("autocast")
def _(trained: Callable[..., Trained]) -> None:
    exact, rounded = trained(autocast=False), trained(autocast=True)
    assert (exact.types, rounded.types) == ({torch.float32}, {torch.bfloat16})
    assert not exact.same_weights(rounded)


@of("compile")
def _(trained: Callable[..., Trained]) -> None:
    assert [trained(compile=setting).compiled for setting in (False, True)] == [0, 1]


@of("seed")
def _(trained: Callable[..., Trained]) -> None:
    for changes in ({}, {"dropout": 0.3}, {"semitones": 6}):  # of the order, of dropout and of augmentation
        first, again, other = (trained(seed=seed, **changes) for seed in (1, 1, 2))
        assert first.same_weights(again)
        assert not first.same_weights(other)
    one_lane = [trained(seed=seed, dropout=0.3, lanes=1).losses[0] for seed in range(4)]
    assert len(set(one_lane)) == 4  # the order alone would repeat: there are three pieces


def test_augmentation_is_on_unless_it_is_switched_off(trained: Callable[..., Trained]) -> None:
    own = TrainingConfig(steps=1)
    assert own.semitones > 0
    assert own.tempo > 0
    usual = trained(semitones=own.semitones, tempo=own.tempo)
    assert any(not torch.equal(a, b) for a, b in zip(usual.tokens, trained().tokens, strict=True))


def test_muons_steps_are_as_large_as_adamws() -> None:
    """Liu et al. (2025): a root mean square of 0.2 learning rates, whatever the matrix's shape.

    Muon's five iterations leave singular values from 0.7 to 1.2 (Jordan et al. 2024). Without the adjustment the root
    mean square of a matrix of this width would be 1 / sqrt(256) = 0.06.
    """
    net = model(width=256)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = make_optimizer(net, replace(config(), optimizer="muon", weight_decay=0.0, learning_rate=0.01))
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, weight in net.named_parameters():
        if name.startswith("blocks") and weight.dim() == 2:
            size = float((weight.detach() - before[name]).square().mean().sqrt()) / 0.01
            assert 0.2 * 0.7 < size < 0.2 * 1.2 * math.sqrt(1.01), name
