"""Loop of training: `train` steps, validates, reports and saves, in a folder that survives whatever ends it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dsmr.corpus.store import TokenStore
from dsmr.model.checkpoint import CheckpointError
from dsmr.model.transformer import Transformer
from dsmr.process import own_random_numbers
from dsmr.training.config import TrainingConfig
from dsmr.training.distributed import World, spread_like, unsharded
from dsmr.training.folder import METRICS_FILE, RunFolder
from dsmr.training.ground import same_ground
from dsmr.training.report import NoReport, Report, check_report, describe_result, describe_run
from dsmr.training.signals import StopSignals
from dsmr.training.state import TrainingState
from dsmr.training.trainer import Run, Trainer

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 2.0
"""Seconds that a validation goes on after a signal: one that ends meanwhile need not be done again."""


def train(
    model: Transformer,
    store: TokenStore,
    config: TrainingConfig,
    out_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    force: bool = False,
    keep: int = 2,
    save_minutes: float = 10.0,
    world: World | None = None,
    shard: bool = False,
    console: Console | None = None,
    tensorboard: bool = False,
) -> Run:
    """Train `model` in place on a store's "train" pieces; validate on its "validation" pieces, with memory.

    Writes into `out_dir` (see `dsmr.training.folder`): `checkpoints/`, `best` and `last` (the checkpoints of the lowest
    validation PPL and of the newest state) and `metrics.jsonl` (a JSON object a line: step, tokens, train_loss,
    val_loss, learning_rate, tokens_per_second, seconds; train_loss is the mean since the last line, val_loss null but
    after a validation; nats per token). The state is saved before the first step, after every validation and by the
    clock; saving changes nothing in what is computed. Ctrl-C, SIGTERM, SIGHUP and a terminal that goes away save it and
    end the run between two steps or in the middle of a validation, which is then done anew when the run is resumed; a
    second signal ends the process at once. PyTorch's generators and threads are afterwards as they were before.

    One process at a time writes into `out_dir`, only if it is empty or a run's, and only over what a run wrote: see
    `dsmr.training.folder`.

    A run that was killed and resumed computes what it would have computed: with a budget of steps the same losses (bit
    for bit on a CPU of the same kind) and the same rows of `metrics.jsonl`, apart from times; with a budget of minutes
    it goes on with the minutes that were left at the last saved state. On a CPU that has so many cores it goes on with
    as many threads as it had; what else is not as it was that bits depend on is printed: see `dsmr.training.ground`.
    It may be given another budget, which must not be used up: from there on the learning rate and the validations
    follow that one.

    Args:
        model: on the device to train on.
        store: its splits "train" and "validation" must not be empty.
        config: see there.
        out_dir: made if missing; it must not hold another run.
        resume: go on with the run in `out_dir` from its newest state. `model` (whose weights do not matter), `store`
            and, but for `steps` and `minutes`, `config` must be those it was begun with.
        force: remove the run that is in `out_dir`, and nothing else that is there.
        keep: how many of the newest states to keep, besides the best.
        save_minutes: save when that much time has passed since the last saved state.
        world: the processes that train together, from `dsmr.training.distributed.joined`; every one of them calls
            this. The first alone prints and writes.
        shard: spread the parameters over them, see `dsmr.training.distributed.parallelise`.
        console: where to print what the run costs, its progress and the validations; None: nowhere.
        tensorboard: write the measurements for TensorBoard too, into `out_dir/tensorboard`.

    Raises:
        DivergedError: a loss or a gradient is not finite, or the loss has exploded. What was saved stays as it was.
        FileExistsError: `out_dir` holds a run, and neither `resume` nor `force` is asked for; or, an `OccupiedError`,
            files of something else, or another process writes there. All processes of `world` raise it.
        CheckpointError: there is nothing to resume, or it is damaged, or it is of another model, store or config, or
            its budget is used up.
        SaveError: `out_dir` cannot be written. What was saved before stays as it was.
        LostProcessError: another process of `world` has ended or does not answer, if `world` is entered.
        ValueError: a split without pieces, an argument out of its range, or lanes that the processes cannot share out.
    """
    if not save_minutes > 0:
        raise ValueError(f"save_minutes: expected a number above 0, got {save_minutes}")
    folder, world = RunFolder(out_dir, keep), world or World()
    trainer = Trainer(model, store, config, world, shard=shard)
    with _claimed(folder, world, resume, force):
        reported = restore(trainer, folder) if resume else None
        run = trainer.run
        reporting: Report | NoReport = NoReport()
        if world.first:
            reporting = Report(folder.path, config.log_every, console, tensorboard, reported)
        with (
            own_random_numbers(),
            same_ground(trainer.began_on, trainer.device, world.size) as remarks,
            reporting as report,
            StopSignals(lambda: report.print("finishing the step and saving; once more ends at once")) as stop,
        ):
            report.print(describe_run(model, trainer.memory, trainer.stream, config, world.size))
            if resume:
                resumed = f"resumed at step {run.step:,}, {run.tokens:,} tokens, {run.seconds:,.0f} s"
                report.print("\n".join([resumed, *remarks]))
            _run(trainer, folder, report, stop, save_minutes, resumed=resume)
            report.print(describe_result(run, trainer.stream, folder.path))
    return run


@contextmanager
def _claimed(folder: RunFolder, world: World, resume: bool, force: bool) -> Iterator[None]:
    """Within, the folder is the first process's, and free for a run, or holds one to go on with; else all raise."""
    with ExitStack() as held:
        refusal = None
        if world.first:
            try:
                if resume:
                    folder.newest()  # before a folder without a run is marked as one
                held.enter_context(folder.claimed())
                if not resume and folder.holds_run:
                    if not force:
                        raise FileExistsError(
                            f"{folder.path}: expected a folder without a run, got one with {METRICS_FILE}: "
                            "a run exists already; --force replaces it"
                        )
                    folder.clear()
            except (CheckpointError, OSError) as error:
                refusal = error
        if (refusal := world.gather(refusal)[0]) is not None:
            raise refusal
        yield


def _run(
    trainer: Trainer,
    folder: RunFolder,
    report: Report | NoReport,
    stop: StopSignals,
    save_minutes: float,
    *,
    resumed: bool,
) -> None:
    """Step, validate, report and save until the budget is used up or a signal comes."""
    run, world = trainer.run, trainer.world

    def save() -> float:
        trainer.count_seconds()
        whole_model, state = unsharded(trainer.model, world), trainer.state()
        if world.first:
            document = {**state.document, "report": report.state_dict()}
            folder.save(whole_model, TrainingState(document, state.tensors))
        return time.monotonic()

    received, unvalidated = 0.0, trainer.validation_due  # a validation that a signal broke off is done anew
    saved = resumed and not run.lengthened  # another budget must not be forgotten
    if run.lengthened and not unvalidated:  # what was due by the old budget comes first
        trainer.renew_budget()
    saved_at, saved_step, due = time.monotonic() if saved else save(), run.step, False
    while not received:
        if run.progress >= 1 and not unvalidated:
            break
        loss = trainer.watch.losses[-1] if unvalidated else trainer.step()
        val_loss = trainer.validate(lambda: stop.waiting > PATIENCE) if trainer.validation_due else None
        if not (unvalidated := trainer.validation_due):  # else its row is written when it is done
            report.step(run, loss, val_loss)
            if run.lengthened:
                trainer.renew_budget()
        if report.audience.terminal_gone:
            stop.hang_up()
        # Whichever process was told to stop, all do; and the first one's clock tells all of them when to save.
        long_ago = world.first and time.monotonic() - saved_at >= 60 * save_minutes
        received, by_clock = world.max(stop.received or 0, long_ago)
        due |= val_loss is not None or bool(by_clock)
        if due and not received and (run.best_step == run.step or not trainer.watch.alarmed):
            saved_at, saved_step, due = save(), run.step, False
    if due or saved_step != run.step:
        save()
    run.interrupted = int(received) if received and (run.progress < 1 or unvalidated) else None


def restore(trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """Put a trainer where the folder's newest state stood; its run is `lengthened` if it had another budget there.

    Returns:
        The state of its `Report`.

    Raises:
        CheckpointError: see `train`.
    """
    checkpoint = folder.newest()
    model, info, state = folder.load(checkpoint)
    try:
        config = TrainingConfig.from_dict(state.document["config"])
        began = {"store": state.document["store"], **info.config.to_dict(), **asdict(config)}
        _check_same(began, {"store": trainer.store.digest, **trainer.model.config.to_dict(), **asdict(trainer.config)})
        trainer.load_state(state)
        check_report(state.document["report"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: expected the state of this training, got: {error}") from error
    run, budget = trainer.run, (trainer.config.steps, trainer.config.minutes)
    if (lengthened := budget != (config.steps, config.minutes)) and trainer.budget_used >= 1:
        raise CheckpointError(
            f"{checkpoint}: expected a budget beyond the {run.step:,} steps and "
            f"{run.training_seconds / 60:.4g} minutes that the run has used, got steps={budget[0]}, minutes={budget[1]}"
        )
    own = trainer.model.state_dict()
    trainer.model.load_state_dict({name: spread_like(t, own[name]) for name, t in model.state_dict().items()})
    if trainer.world.first:
        folder.point(run.best_step)
    run.lengthened |= lengthened
    return dict(state.document["report"])


def _check_same(began: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError for a setting that is not what the run was begun with, but for its budget."""
    for name, value in json.loads(json.dumps(now)).items():
        if name not in ("steps", "minutes") and (was := json.loads(json.dumps(began[name]))) != value:
            raise ValueError(f"expected to go on with {name}={was!r}, got {value!r}")
