"""Runs with another budget, and validations that a signal breaks off: neither is forgotten, however a run ends."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import read_info
from dsmr.model.transformer import Transformer
from dsmr.training import Run, RunFolder, Trainer, TrainingConfig, loop, train
from dsmr.training.state import load_state
from tests.dsmr.training.kill_and_resume import outcome
from tests.dsmr.training.resuming.runs import SHORT, go_on, model


def test_a_run_can_be_lengthened(store: TokenStore, tmp_path: Path) -> None:
    """With a learning rate that no budget changes, it is the longer run; each budget has its own validations."""
    even = replace(SHORT, warmup=0.0, min_learning_rate=SHORT.learning_rate, log_every=1)
    train(model(), store, replace(even, steps=12), tmp_path / "long")
    train(model(), store, even, tmp_path / "short")
    done = train(model(), store, replace(even, steps=12), tmp_path / "short", resume=True)
    long, lengthened = outcome(tmp_path / "long"), outcome(tmp_path / "short")
    assert (done.step, done.progress) == (12, 1)
    assert [{**row, "val_loss": None} for row in long[0]] == [{**row, "val_loss": None} for row in lengthened[0]]
    assert [row["step"] for row in lengthened[0] if row["val_loss"] is not None] == [4, 8, 12]
    assert long[1] == lengthened[1]
    again = train(model(), store, replace(even, steps=12), tmp_path / "short", resume=True)  # its budget is this now
    assert (again.step, outcome(tmp_path / "short")) == (12, lengthened)


def test_another_budget_is_not_forgotten_by_a_run_that_is_killed_at_once(store: TokenStore, tmp_path: Path) -> None:
    even = replace(SHORT, warmup=0.0, min_learning_rate=SHORT.learning_rate, log_every=1)
    longer = replace(even, steps=12)
    train(model(), store, longer, tmp_path / "long")
    train(model(), store, even, tmp_path / "short")

    def die(net: Transformer, *_: Any) -> None:
        raise MemoryError

    doomed = model()
    doomed.register_forward_pre_hook(die)
    with pytest.raises(MemoryError):
        train(doomed, store, longer, tmp_path / "short", resume=True)
    assert read_info(tmp_path / "short" / "last").training["config"]["steps"] == 12
    done = train(model(), store, longer, tmp_path / "short", resume=True)
    assert (done.step, done.progress, done.lengthened) == (12, 1, False)
    assert [row["step"] for row in outcome(tmp_path / "short")[0] if row["val_loss"] is not None] == [4, 8, 12]
    assert outcome(tmp_path / "short")[1] == outcome(tmp_path / "long")[1]


def test_another_budget_waits_for_a_validation_of_the_old_one_however_often_that_is_broken_off(
    undisturbed: Path, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", -1.0)

    def stopped_in_the_validation_after(step: int, config: TrainingConfig, resume: bool) -> Run:
        net = model()

        def interrupt(net: Transformer, *_: Any) -> None:
            if not net.training and trainers[0].run.step == step and not stopped:
                stopped.append(os.kill(os.getpid(), signal.SIGTERM))

        trainers: list[Trainer] = []
        stopped: list[None] = []
        made = Trainer.__init__

        def remember(trainer: Trainer, *rest: Any, **options: Any) -> None:
            made(trainer, *rest, **options)
            trainers.append(trainer)

        net.register_forward_pre_hook(interrupt)
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "__init__", remember)
            return train(net, store, config, tmp_path, resume=resume)

    longer = replace(SHORT, steps=12)
    for config, resume in ((SHORT, False), (longer, True), (longer, True)):
        broken_off = stopped_in_the_validation_after(8, config, resume)
        assert (broken_off.step, broken_off.interrupted) == (8, signal.SIGTERM)
        assert broken_off.lengthened == resume
    done = train(model(), store, longer, tmp_path, resume=True)
    assert (done.step, done.progress, done.interrupted) == (12, 1, None)
    rows, before = outcome(tmp_path)[0], outcome(undisturbed)[0]
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows if row["val_loss"] is not None] == [4, 8, 12]


def test_a_run_of_steps_goes_on_for_minutes(undisturbed: Path, store: TokenStore, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run", symlinks=True)
    used = load_state(RunFolder(undisturbed).newest()).document["run"]["training_seconds"] / 60
    done = go_on(tmp_path / "run", store, steps=None, minutes=used + 0.05)
    assert done.step > 8
    assert done.progress == 1


@pytest.mark.parametrize("number", [1, 2], ids=["halfway", "at the end"])
def test_a_validation_that_a_signal_broke_off_is_done_anew(
    undisturbed: Path, store: TokenStore, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", -1.0)
    net, begun = model(), []

    def interrupt(net: Transformer, *_: Any) -> None:
        if not net.training:
            begun.append(None)
            if len(begun) == 2:  # the second segment of the validation
                os.kill(os.getpid(), signal.SIGTERM)

    def watch(net: Transformer, *_: Any) -> None:
        begun.clear()

    validate = Trainer.validate
    calls = []

    def counted(trainer: Trainer, *rest: Any) -> float | None:
        calls.append(trainer.run.step)
        if len(calls) == number:
            trainer.model.register_forward_hook(interrupt)
        return validate(trainer, *rest)

    monkeypatch.setattr(Trainer, "validate", counted)
    first = train(net, store, SHORT, tmp_path)
    assert (first.interrupted, first.step) == (signal.SIGTERM, 4 * number)
    assert len(begun) == 2
    assert read_info(tmp_path / "last").training["step"] == 4 * number
    monkeypatch.setattr(Trainer, "validate", validate)
    done = go_on(tmp_path, store)
    assert (done.step, done.interrupted) == (8, None)
    assert outcome(tmp_path) == outcome(undisturbed)
    for name in ("last", "best"):
        ours, theirs = read_info(tmp_path / name), read_info(undisturbed / name)
        assert (ours.digest, ours.training["best_step"]) == (theirs.digest, theirs.training["best_step"])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    go_on(tmp_path, store)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
