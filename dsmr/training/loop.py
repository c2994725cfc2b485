"""`train`: the whole loop, with a folder that survives whatever ends it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsmr.checkpoint import CheckpointError
from dsmr.corpus.store import TokenStore
from dsmr.distributed import World, spread_like, unsharded
from dsmr.model import Transformer
from dsmr.training.config import TrainingConfig
from dsmr.training.folder import METRICS_FILE, RunFolder
from dsmr.training.report import NoReport, Report, describe_result, describe_run
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
    world: World | None = None,
    shard: bool = False,
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
        world: the processes that train together, from `dsmr.distributed.joined`; every one of them calls this. The
            first alone prints and writes.
        shard: spread the parameters over them, see `dsmr.distributed.parallelise`.
        console: where to print what the run costs, a progress line and the validations; None: nowhere.
        tensorboard: write the measurements for TensorBoard too, into `out_dir/tensorboard`.

    Raises:
        DivergedError: a loss or a gradient is not finite, or the loss has exploded. What was saved stays as it was.
        FileExistsError: `out_dir` holds a run, and `resume` is not asked for.
        CheckpointError: there is nothing to resume, or it is damaged, or it is of another model, store or config.
        SaveError: `out_dir` cannot be written. What was saved before stays as it was.
        LostProcessError: another process of `world` has ended or does not answer, if `world` is entered.
        ValueError: a split without pieces, an argument out of its range, or lanes that the processes cannot share out.
    """
    if not save_minutes > 0:
        raise ValueError(f"save_minutes: expected a number above 0, got {save_minutes}")
    folder, world = RunFolder(out_dir, keep), world or World()
    if world.first and not resume and folder.holds_run:  # the first process alone: for the others it may have begun
        raise FileExistsError(f"{folder.path}: expected a folder without a run, got one with {METRICS_FILE}")
    trainer = Trainer(model, store, config, world, shard=shard)
    run, reported = trainer.run, None
    if resume:
        reported = restore(trainer, folder)
        run = trainer.run
    reporting: Report | NoReport = NoReport()
    if world.first:
        state_bytes = trainer.memory.bytes_per_lane * config.lanes
        reporting = Report(folder.path, config.log_every, state_bytes, console, tensorboard, reported)
    with (
        reporting as report,
        StopSignals(lambda: report.print("finishing the step and saving; once more ends at once")) as stop,
    ):

        def save() -> float:
            trainer.count_seconds()
            whole_model, state = unsharded(model, world), trainer.state()
            if world.first:
                document = {**state.document, "report": report.state_dict()}
                folder.save(whole_model, TrainingState(document, state.tensors))
            return time.monotonic()

        report.print(describe_run(model, trainer.memory, trainer.stream, config, world.size))
        if resume:
            report.print(f"resumed at step {run.step:,}, {run.tokens:,} tokens, {run.seconds:,.0f} s")
        saved_at, due = time.monotonic() if resume else save(), False
        saved_step, received = run.step, 0.0
        while run.progress < 1 and not received:
            loss = trainer.step()
            val_loss = trainer.validate() if trainer.validation_due else None
            report.step(run, loss, val_loss, trainer.learning_rate)
            # Whichever process was told to stop, all do; and the first one's clock tells all of them when to save.
            long_ago = world.first and time.monotonic() - saved_at >= 60 * save_minutes
            received, by_clock = world.max(stop.received or 0, long_ago)
            due |= val_loss is not None or bool(by_clock)
            if due and (run.best_step == run.step or not trainer.watch.alarmed):
                saved_at, saved_step, due = save(), run.step, False
        if saved_step != run.step:
            save()
        run.interrupted = int(received) if received and run.progress < 1 else None
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
    own = trainer.model.state_dict()
    trainer.model.load_state_dict({name: spread_like(t, own[name]) for name, t in model.state_dict().items()})
    if trainer.world.first:
        folder.point(trainer.run.best_step)
    report: dict[str, Any] = state.document["report"]
    return report
