"""Metrics writer: `metrics.jsonl` always, a console and TensorBoard if wanted."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dsmr.audience import Audience
from dsmr.claim import saving
from dsmr.corpus.stream import LaneStream
from dsmr.fields import is_integer, shown
from dsmr.model.checkpoint import CheckpointError
from dsmr.model.transformer import Transformer
from dsmr.training.config import TrainingConfig
from dsmr.training.folder import EVENTS, LAST, METRICS_FILE, TENSORBOARD
from dsmr.training.trainer import Run, perplexity
from dsmr.units import format_bytes
from dsmr_kernels import MemoryStack

if TYPE_CHECKING:
    from rich.console import Console


class Report:
    """The measurements of a run; a context manager that keeps their files open.

    Args:
        out: the run's folder.
        log_every: steps between two rows.
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
        console: Console | None = None,
        tensorboard: bool = False,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        self._file, self._log_every = out / METRICS_FILE, log_every
        # The pace is that of training alone: a budget of minutes counts no others, and so the time left is exact.
        self.audience = Audience(console, "training", clock=lambda: self._training_seconds)
        self._training_seconds, self._tensorboard = 0.0, tensorboard
        self._state = resumed or {"bytes": 0, "step": 0, "tokens": 0, "training_seconds": 0.0, "losses": []}
        self._losses: list[float] = list(self._state["losses"])
        self._val_ppl: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            with saving(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                # Unbuffered: a row is the system's as soon as it is written, and a failed one is not tried again later.
                self._metrics = opened.enter_context(open(self._file, "ab+", buffering=0, opener=_open_no_link))
                self._drop_later_rows()
            self._writer: Any = None
            if self._tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                folder = str(self._file.parent / TENSORBOARD)
                purge = self._state["step"] + 1
                self._writer = opened.enter_context(SummaryWriter(folder, purge_step=purge, filename_suffix=EVENTS))
            opened.enter_context(self.audience)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def _drop_later_rows(self) -> None:
        """Cut the file to the rows that were there when the state was saved."""
        expected, there = self._state["bytes"], self._metrics.seek(0, os.SEEK_END)
        if there < expected:
            raise CheckpointError(f"{self._file}: expected {expected} bytes at least, got {there}")
        self._metrics.seek(0)
        rows = self._metrics.readall()[:expected].split(b"\n")
        begins = b'{"step": %d,' % self._state["step"]
        if rows[-1] or not (rows[-2].startswith(begins) if expected else self._state["step"] == 0):
            raise CheckpointError(f"{self._file}: expected rows up to step {self._state['step']} in {expected} bytes")
        if there > expected:
            self._metrics.truncate(expected)
        self._metrics.seek(expected)

    def state_dict(self) -> dict[str, Any]:
        """Where the measurements stand, as plain JSON values; all rows so far are on the disk then."""
        with saving(self._file):
            os.fsync(self._metrics.fileno())
        return {**self._state, "losses": list(self._losses)}

    def print(self, text: str) -> None:
        """For people, above the line of progress."""
        self.audience.print(text)

    def step(self, run: Run, loss: float, val_loss: float | None) -> None:
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
            "learning_rate": run.learning_rate,
            "tokens_per_second": speed,
            "seconds": run.seconds,
        }
        if val_loss is not None:
            self._val_ppl = (f"val PPL {perplexity(val_loss):.2f}",)
            self.print(
                f"step {run.step:,}: train loss {train_loss:.4f}, val loss {val_loss:.4f}, "
                f"val PPL {perplexity(val_loss):.2f}, {run.tokens:,} tokens, {run.seconds:,.0f} s"
            )
        self._training_seconds = run.training_seconds
        self.audience.show(
            run.progress,
            1.0,
            f"step {run.step:,}",
            f"loss {train_loss:.3f}",
            *self._val_ppl,
            f"{speed:,.0f} tok/s",
            f"PPL {perplexity(train_loss):.2f}",
            f"lr {run.learning_rate:.1e}",
        )
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
        with saving(self._file):
            while rest:
                rest = rest[self._metrics.write(rest) :]
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name, value, row["step"])


def check_report(state: Any) -> None:
    """ValueError unless a value from a file is what `Report.state_dict` gives."""
    values = dict(state) if isinstance(state, dict) else {}
    losses = values.pop("losses", None)
    if values.keys() != (counts := {"bytes", "step", "tokens", "training_seconds"}):
        raise ValueError(f"report: expected the numbers {sorted(counts)} and losses, got {shown(state)}")
    for name, value in values.items():
        if (
            not (is_integer(value) or (name == "training_seconds" and isinstance(value, float)))
            or not 0 <= value < math.inf
        ):
            raise ValueError(f"report: expected a number of at least 0 for {name}, got {shown(value)}")
    if not isinstance(losses, list) or not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
        raise ValueError(f"report: expected finite losses, got {shown(losses)}")


def _open_no_link(path: str, flags: int) -> int:
    """For `open`: a link is an error."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class NoReport:
    """The report of a process that is not the first: nothing is printed or written twice."""

    def __init__(self) -> None:
        self.audience = Audience(None)

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

    def step(self, run: Run, loss: float, val_loss: float | None) -> None:
        """Does not report it."""


def describe_run(
    model: Transformer, state: MemoryStack, stream: LaneStream, config: TrainingConfig, processes: int = 1
) -> str:
    """What a run costs, for people: parameters, recurrent state per lane and layer, tokens per step and epoch."""
    step = config.lanes * stream.segment * config.accumulate
    lanes = f"{config.lanes} lanes" + (f" on {processes} processes" if processes > 1 else "")
    layers = ", ".join(
        f"{horizon:,} tokens in {format_bytes(count)}"
        for horizon, count in zip(state.horizons, state.bytes_per_layer, strict=True)
    )
    heads, kv_heads = model.config.heads, model.config.kv_heads
    shared = "every head has its own, so nothing is saved" if heads == kv_heads else f"{heads // kv_heads} share each"
    return "\n".join(
        [
            f"{model.parameters_count:,} parameters",
            f"{kv_heads} KV heads for {heads} heads: {shared}",
            f"recurrent state: {format_bytes(state.bytes_per_lane)} per lane, "
            f"{format_bytes(state.bytes_per_lane * config.lanes)} in all; by layer: {layers}",
            f"{lanes} x {stream.segment} tokens x {config.accumulate} segments = {step:,} tokens per step",
            f"{stream.epoch_positions:,} tokens per epoch, {stream.epoch_positions / step:,.0f} steps",
        ]
    )


def describe_result(run: Run, stream: LaneStream, out: Path) -> str:
    """What a run came to, for people."""
    lines = [
        f"{run.step:,} steps, {run.tokens:,} tokens ({run.tokens / stream.epoch_positions:.2f} epochs) "
        f"in {run.seconds:,.0f} s, {run.tokens_per_second:,.0f} tokens/s, "
        f"{stream.waste:.2%} padding"
    ]
    if run.peak_memory is not None:
        lines.append(f"peak memory: {format_bytes(run.peak_memory)}")
    if run.best_ppl is not None and run.last_ppl is not None:
        bigram = "" if run.bigram_ppl is None else f"; a bigram's {run.bigram_ppl:.2f}"
        lines.append(f"validation PPL {run.last_ppl:.2f}; best {run.best_ppl:.2f} at step {run.best_step:,}{bigram}")
    if run.interrupted:
        lines.append(f"interrupted; the run as it is now lies in {out / LAST}, and --resume goes on with it")
    return "\n".join(lines)
