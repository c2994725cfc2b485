"""Where measurements go: `metrics.jsonl` always, a console and TensorBoard if wanted."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dsmr.checkpoint import CheckpointError
from dsmr.corpus.stream import LaneStream
from dsmr.model import Transformer
from dsmr.schedules import format_bytes
from dsmr.training.config import TrainingConfig
from dsmr.training.folder import LAST, METRICS_FILE, TENSORBOARD, writing
from dsmr.training.run import Run, perplexity
from dsmr_kernels import MemoryStack

if TYPE_CHECKING:
    from rich.console import Console


class Report:
    """The measurements of a run; a context manager that keeps their files open.

    Args:
        out: the run's folder.
        log_every: steps between two rows.
        state_bytes: of the recurrent state of all lanes, to be shown.
        console: where to print; None: nowhere.
        tensorboard: write for TensorBoard too.
        resumed: `state_dict()` of a report to go on with: rows that came after it are dropped.

    Raises:
        CheckpointError: `resumed` is of a report whose rows are gone.
        SaveError: a file cannot be written.
    """

    def __init__(
        self,
        out: Path,
        log_every: int,
        state_bytes: int,
        console: Console | None = None,
        tensorboard: bool = False,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        self._file, self._log_every = out / METRICS_FILE, log_every
        self._console, self._tensorboard = console, tensorboard
        self._state_size = format_bytes(state_bytes)
        self._state = resumed or {"bytes": 0, "step": 0, "tokens": 0, "training_seconds": 0.0, "losses": []}
        self._losses: list[float] = list(self._state["losses"])
        self._val_ppl = ""

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            with writing(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                # Unbuffered: a row is the system's as soon as it is written, and a failed one is not tried again later.
                self._metrics = opened.enter_context(open(self._file, "ab", buffering=0))
                if (there := self._metrics.tell()) < self._state["bytes"]:
                    raise CheckpointError(f"{self._file}: expected {self._state['bytes']} bytes at least, got {there}")
                if there > self._state["bytes"]:
                    self._metrics.truncate(self._state["bytes"])
            self._writer: Any = None
            if self._tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                folder = str(self._file.parent / TENSORBOARD)
                self._writer = opened.enter_context(SummaryWriter(folder, purge_step=self._state["step"] + 1))
            self._progress: Any = None
            if self._console is not None:
                from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

                columns = (TextColumn("{task.description}"), BarColumn(20), TimeRemainingColumn())
                self._progress = opened.enter_context(Progress(*columns, console=self._console))
                self._task = self._progress.add_task("", total=1.0)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def state_dict(self) -> dict[str, Any]:
        """Where the measurements stand, as plain JSON values; all rows so far are on the disk then."""
        with writing(self._file):
            os.fsync(self._metrics.fileno())
        return {**self._state, "losses": list(self._losses)}

    def print(self, text: str) -> None:
        """For people, above the progress line."""
        if self._console is not None:
            self._console.print(*text.split("\n"), sep="\n", markup=False, highlight=False)

    def step(self, run: Run, loss: float, val_loss: float | None, learning_rate: float) -> None:
        """Report a step that has been made, and its validation if there was one."""
        self._losses.append(loss)
        train_loss = sum(self._losses) / len(self._losses)
        seconds = run.training_seconds - self._state["training_seconds"]
        speed = (run.tokens - self._state["tokens"]) / seconds if seconds else 0.0
        row = {
            "step": run.step,
            "tokens": run.tokens,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "learning_rate": learning_rate,
            "tokens_per_second": speed,
            "seconds": run.seconds,
        }
        if val_loss is not None:
            self._val_ppl = f"  val PPL {perplexity(val_loss):.2f}"
            self.print(
                f"step {run.step:,}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, "
                f"val PPL {perplexity(val_loss):.2f}, {run.tokens:,} tokens, {run.seconds:,.0f} s"
            )
        if self._progress is not None:
            line = (
                f"step {run.step:,}  loss {train_loss:.3f}  PPL {perplexity(train_loss):.2f}{self._val_ppl}  "
                f"{speed:,.0f} tok/s  lr {learning_rate:.1e}  state {self._state_size}"
            )
            self._progress.update(self._task, completed=run.progress, description=line)
        if run.step % self._log_every == 0 or val_loss is not None:
            self._write(row)
            self._losses = []
            self._state = {
                "bytes": self._metrics.tell(),
                "step": run.step,
                "tokens": run.tokens,
                "training_seconds": run.training_seconds,
            }

    def _write(self, row: dict[str, Any]) -> None:
        rest = f"{json.dumps(row, allow_nan=False)}\n".encode()
        with writing(self._file):
            while rest:
                rest = rest[self._metrics.write(rest) :]
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name, value, row["step"])


class NoReport:
    """The report of a process that is not the first: nothing is printed or written twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def print(self, text: str) -> None:
        """Does not."""

    def step(self, run: Run, loss: float, val_loss: float | None, learning_rate: float) -> None:
        """Does not report it."""


def describe_run(
    model: Transformer, state: MemoryStack, stream: LaneStream, config: TrainingConfig, processes: int = 1
) -> str:
    """What a run costs, for people: parameters, recurrent state per lane and layer, tokens a step and an epoch."""
    step = config.lanes * stream.segment * config.accumulate
    lanes = f"{config.lanes} lanes" + (f" on {processes} processes" if processes > 1 else "")
    layers = ", ".join(
        f"{horizon:,} tokens in {format_bytes(count)}"
        for horizon, count in zip(state.horizons, state.bytes_per_layer, strict=True)
    )
    return "\n".join(
        [
            f"{model.parameters_count:,} parameters",
            f"recurrent state: {format_bytes(state.bytes_per_lane)} per lane, "
            f"{format_bytes(state.bytes_per_lane * config.lanes)} in all; by layer: {layers}",
            f"{lanes} x {stream.segment} tokens x {config.accumulate} segments = {step:,} tokens a step",
            f"{stream.epoch_positions:,} tokens an epoch, {stream.epoch_positions / step:,.0f} steps",
        ]
    )


def describe_result(run: Run, stream: LaneStream, out: Path) -> str:
    """What a run came to, for people."""
    lines = [
        f"{run.step:,} steps, {run.tokens:,} tokens ({run.tokens / stream.epoch_positions:.2f} epochs) "
        f"in {run.seconds:,.0f} s, {run.tokens_per_second:,.0f} tokens/s, "
        f"{stream.waste:.2%} of all positions without a token"
    ]
    if run.peak_memory is not None:
        lines.append(f"peak memory: {format_bytes(run.peak_memory)}")
    if run.best_ppl is not None and run.last_ppl is not None:
        lines.append(f"validation PPL {run.last_ppl:.2f}; best {run.best_ppl:.2f} at step {run.best_step:,}")
    if run.interrupted:
        lines.append(f"interrupted; the run as it is now lies in {out / LAST}, and --resume goes on with it")
    return "\n".join(lines)
