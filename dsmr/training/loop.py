"""`train`: the whole loop, with a folder that survives whatever ends it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsmr.checkpoint import CheckpointError
from dsmr.corpus.store import TokenStore
from dsmr.model import Transformer
from dsmr.training.config import TrainingConfig
from dsmr.training.folder import METRICS_FILE, RunFolder
from dsmr.training.report import Report, describe_result, describe_run
from dsmr.training.run import Run
from dsmr.training.signals import StopSignals
from dsmr.training.state import TrainingState
from dsmr.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console


def train(
    model: Transformer,
    store: TokenStore,
    config: TrainingConfig,
    out_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    keep: int = 2,
    save_minutes: float = 10.0,
    console: Console | None = None,
    tensorboard: bool = False,
) -> Run:
    """Train `model` in place on a store's "train" pieces; validate on whole "validation" pieces, with memory.

    Writes into `out_dir` (see `dsmr.training.folder`): `checkpoints/`, `best` and `last` (the checkpoints of the lowest
    validation PPL and of the newest state) and `metrics.jsonl` (a JSON object a line: step, tokens, train_loss,
    val_loss, learning_rate, tokens_per_second, seconds; train_loss is the mean since the last line, val_loss null but
    after a validation; nats per token). The state is saved before the first step, after every validation and by the
    clock; saving changes nothing in what is computed. Ctrl-C and SIGTERM save it and end the run between two steps; a
    second one ends the process at once. Seeds PyTorch's generators.

    A run that was killed and resumed computes what it would have computed: with a budget of steps the same losses (bit
    for bit on a CPU of the same kind, with as many threads) and the same rows of `metrics.jsonl`, apart from times;
    with a budget of minutes it goes on with the minutes that were left at the last saved state.

    Args:
        model: on the device to train on.
        store: its splits "train" and "validation" must not be empty.
        config: see there.
        out_dir: made if missing; it must not hold another run.
        resume: go on with the run in `out_dir` from its newest state. `model` (whose weights do not matter), `store`
            and `config` must be those it was begun with.
        keep: how many of the newest states to keep, besides the best.
        save_minutes: save when that much time has passed since the last saved state.
        console: where to print what the run costs, a progress line and the validations; None: nowhere.
        tensorboard: write the measurements for TensorBoard too, into `out_dir/tensorboard`.

    Raises:
        DivergedError: a loss or a gradient is not finite, or the loss has exploded. What was saved stays as it was.
        FileExistsError: `out_dir` holds a run, and `resume` is not asked for.
        CheckpointError: there is nothing to resume, or it is damaged, or it is of another model, store or config.
        SaveError: `out_dir` cannot be written. What was saved before stays as it was.
        ValueError: a split without pieces, or an argument out of its range.
    """
    if not save_minutes > 0:
        raise ValueError(f"save_minutes: expected a number above 0, got {save_minutes}")
    folder = RunFolder(out_dir, keep)
    if not resume and folder.holds_run:
        raise FileExistsError(f"{folder.path}: expected a folder without a run, got one with {METRICS_FILE}")
    trainer = Trainer(model, store, config)
    run, reported = trainer.run, None
    if resume:
        reported = restore(trainer, folder)
        run = trainer.run
    with (
        Report(folder.path, config.log_every, trainer.memory, console, tensorboard, reported) as report,
        StopSignals(lambda: report.print("finishing the step and saving; once more ends at once")) as stop,
    ):

        def save() -> float:
            trainer.count_seconds()
            state = trainer.state()
            folder.save(model, TrainingState({**state.document, "report": report.state_dict()}, state.tensors))
            return time.monotonic()

        report.print(describe_run(model, trainer.memory, trainer.stream, config))
        if resume:
            report.print(f"resumed at step {run.step:,}, {run.tokens:,} tokens, {run.seconds:,.0f} s")
        saved_at, due = time.monotonic() if resume else save(), False
        while run.progress < 1 and stop.received is None:
            loss = trainer.step()
            val_loss = trainer.validate() if trainer.validation_due else None
            report.step(run, loss, val_loss, trainer.learning_rate)
            due |= val_loss is not None or time.monotonic() - saved_at >= 60 * save_minutes
            if due and (run.best_step == run.step or not trainer.watch.alarmed):
                saved_at, due = save(), False
        if folder.steps()[-1] != run.step:
            save()
        run.interrupted = stop.received if run.progress < 1 else None
        report.print(describe_result(run, trainer.stream, folder.path))
    return run


def restore(trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """Put a trainer where the folder's newest state stood; returns the state of its `Report`.

    Raises:
        CheckpointError: see `train`.
    """
    checkpoint = folder.newest()
    model, info, state = folder.load(checkpoint)
    began = {"store": state.document["store"], **info.config.to_dict(), **state.document["config"]}
    now = {"store": trainer.store.digest, **trainer.model.config.to_dict(), **asdict(trainer.config)}
    for name, value in json.loads(json.dumps(now)).items():
        if began.get(name) != value:
            raise CheckpointError(f"{checkpoint}: expected to go on with {name}={began.get(name)!r}, got {value!r}")
    try:
        trainer.load_state(state)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: expected the state of this training, got: {error}") from error
    trainer.model.load_state_dict(model.state_dict())
    folder.point(trainer.run.best_step)
    report: dict[str, Any] = state.document["report"]
    return report
