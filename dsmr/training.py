"""Training: whole pieces streamed through lanes, backpropagation one segment long, the memory carried on.

`train` is the whole loop. A step reads `accumulate` segments of every lane; what one segment leaves in the memory the
next one sees, but no gradient flows back through it.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn

from dsmr.checkpoint import save_checkpoint
from dsmr.corpus.augment import Augmentation
from dsmr.corpus.store import TokenStore
from dsmr.corpus.stream import Batch, LaneStream
from dsmr.evaluation import evaluate_pieces
from dsmr.model import Transformer
from dsmr.schedules import format_bytes
from dsmr_kernels import MemoryStack

if TYPE_CHECKING:
    from rich.console import Console

METRICS_FILE = "metrics.jsonl"
BEST, LAST = "best", "last"
"""What a run's folder holds: its measurements and two checkpoints."""


class DivergedError(RuntimeError):
    """A loss or a gradient stopped being finite."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; stored in every checkpoint that training writes.

    Args:
        steps, minutes: the budget: optimiser steps, minutes on the clock, or both (whichever ends first). With steps
            alone a run is deterministic; with minutes the learning rate follows the clock, so that a run is complete
            when its time is over, on any machine.
        lanes: B, pieces streamed side by side.
        accumulate: segments of every lane in one optimiser step.
        learning_rate: the highest, reached at the end of the warm-up.
        min_learning_rate: the last, at the end of a cosine (Loshchilov & Hutter 2017, without restarts).
        warmup: the fraction of the budget in which the learning rate rises evenly from 0.
        weight_decay: of AdamW (Loshchilov & Hutter 2019), for matrices; biases, norms and the embedding are exempt.
        betas: of AdamW.
        clip: the largest norm of all gradients together.
        semitones, tempo: augmentation, see `dsmr.corpus.augment.Augmentation`; both 0: none.
        validations: how many, spread evenly over the budget; the last one is at its end.
        validation_tokens: how many tokens each of them scores, always the same ones; None: the whole split.
        log_every: steps between two rows of `metrics.jsonl`.
        autocast: compute in bfloat16 where PyTorch deems it safe; "auto": on GPUs that have it. (On a CPU with
            AVX512-BF16 it brought `tiny` no clear gain: there attention computes in float32 all the same.)
        seed: of the order of pieces, the augmentation and the dropout.

    Raises:
        ValueError: a value out of its range, or no budget.
    """

    steps: int | None = None
    minutes: float | None = None
    lanes: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0
    warmup: float = 0.02
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    semitones: int = 3
    tempo: float = 0.05
    validations: int = 10
    validation_tokens: int | None = 32_768
    log_every: int = 10
    autocast: bool | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("steps, minutes: expected a budget in at least one of them, got none")
        for name in ("steps", "lanes", "accumulate", "validations", "validation_tokens", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("minutes", "learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"min_learning_rate: expected 0 to learning_rate={self.learning_rate}, got {self.min_learning_rate}"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a fraction of the budget below 1, got {self.warmup}")
        if self.autocast not in (True, False, "auto"):
            raise ValueError(f"autocast: expected True, False or 'auto', got {self.autocast!r}")

    def progress(self, step: int, seconds: float, reserve: float = 0.0) -> float:
        """The fraction of the budget used up by step `step` (from 1), begun `seconds` after the beginning.

        `reserve`: seconds of the budget that are not for training.
        """
        by_step = step / self.steps if self.steps else 0.0
        by_clock = seconds / max(60 * self.minutes - reserve, 1e-9) if self.minutes else 0.0
        return min(max(by_step, by_clock), 1.0)

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at a fraction of the budget."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        cosine = math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * (1 + cosine) / 2


@dataclass
class Run:
    """How far a run has come.

    `training_seconds` leaves validation and saving out. PPL is exp of the validation loss; None before the first
    validation. `interrupted`: Ctrl-C ended the run. `peak_memory` is in bytes: of the GPU, or else of the whole process
    (None where the system does not tell).
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    last_ppl: float | None = None
    best_ppl: float | None = None
    best_step: int | None = None
    peak_memory: int | None = None
    interrupted: bool = False

    @property
    def tokens_per_second(self) -> float:
        """Speed of training alone."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0


def train(
    model: Transformer,
    store: TokenStore,
    config: TrainingConfig,
    out_dir: str | os.PathLike[str],
    *,
    console: Console | None = None,
    tensorboard: bool = False,
) -> Run:
    """Train `model` in place on a store's "train" pieces; validate on whole "validation" pieces, with memory.

    Writes into `out_dir`: `best/` and `last/` (checkpoints: lowest validation PPL, newest) and `metrics.jsonl` (a JSON
    object a line: step, tokens, train_loss, val_loss, learning_rate, tokens_per_second, seconds; train_loss is the mean
    since the last line, val_loss null but after a validation; nats per token). Ctrl-C saves `last/` and ends the run.
    Seeds PyTorch's generators.

    Args:
        model: on the device to train on.
        store: its splits "train" and "validation" must not be empty.
        config: see there.
        out_dir: made if missing; it must not hold another run.
        console: where to print what the run costs, a progress line and the validations; None: nowhere.
        tensorboard: write the measurements for TensorBoard too, into `out_dir/tensorboard`.

    Raises:
        DivergedError: a loss or a gradient is not finite. The checkpoints stay as they were before.
        FileExistsError: `out_dir` holds a run.
        ValueError: a split without pieces.
    """
    out = Path(out_dir)
    if (out / METRICS_FILE).exists():
        raise FileExistsError(f"{out}: expected a folder without a run, got one with {METRICS_FILE}")
    if not (held_out := store.indices("validation")) or not store.indices("train"):
        raise ValueError(f"store: expected pieces in the splits train and validation of {store.path}, got none in one")
    torch.manual_seed(config.seed)
    device = model.embedding.weight.device
    precision = _precision(config.autocast, device)
    with precision:
        state = model.new_state(config.lanes)
    stream = LaneStream(
        store,
        store.indices("train"),
        lanes=config.lanes,
        segment=model.config.segment,
        seed=config.seed,
        transform=Augmentation(config.semitones, config.tempo, config.seed),
    )
    optimizer = make_optimizer(model, config)
    model.train()
    run, begun, progress, validations = Run(), time.monotonic(), 0.0, 0
    reserve = 0.0  # seconds kept free for the validation that ends the run: what the last one took

    def validate() -> float:
        with precision:
            nll = evaluate_pieces(model, store, held_out, lanes=config.lanes, max_tokens=config.validation_tokens).nll
        run.last_ppl = perplexity(nll)
        _check_finite(run.step, "validation PPL", run.last_ppl)
        if run.best_ppl is None or run.last_ppl < run.best_ppl:
            run.best_ppl, run.best_step = run.last_ppl, run.step
        return nll

    def save(name: str) -> None:
        run.seconds, run.peak_memory = time.monotonic() - begun, _peak_memory(device)
        save_checkpoint(out / name, model, {**asdict(run), "store": store.digest, "config": asdict(config)})

    with _Report(out, config, state, console, tensorboard) as report:
        report.print(describe_run(model, state, stream, config))
        try:
            while progress < 1:
                step_begun = time.monotonic()
                progress = config.progress(run.step + 1, step_begun - begun, reserve)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate_at(progress)
                batches = [next(stream).to(device) for _ in range(config.accumulate)]
                loss = accumulate_gradients(model, state, batches, precision)
                norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip))
                _check_finite(run.step + 1, "loss and gradient norm", loss, norm)
                optimizer.step()
                optimizer.zero_grad()
                run.step += 1
                run.tokens += config.accumulate * config.lanes * stream.segment
                run.training_seconds += (trained := time.monotonic()) - step_begun

                val_loss = None
                if (due := int(progress * config.validations)) > validations:
                    validations, val_loss = due, validate()
                    reserve = time.monotonic() - trained
                    if run.best_step == run.step:
                        save(BEST)
                    save(LAST)
                run.seconds = time.monotonic() - begun
                report.step(run, progress, loss, val_loss, config.learning_rate_at(progress))
        except KeyboardInterrupt:
            run.interrupted = True
            save(LAST)
        report.print(describe_result(run, stream, out))
    return run


def accumulate_gradients(
    model: Transformer, state: MemoryStack, batches: Sequence[Batch], precision: torch.autocast
) -> float:
    """Add to the parameters' gradients that of the mean NLL over all tokens of some consecutive segments.

    The segments are read one after another with the memory in `state`, each followed by its own backward pass, so that
    activations of one segment at a time are kept. The memory is detached: the result is the gradient of the segments'
    mean loss, all of them read with the same parameters, with all memory taken as constant.

    Args:
        model, state: the state is moved past the segments.
        batches: full segments (no padding), as an endless `LaneStream` gives them, on the model's device.
        precision: the autocast to run the forward passes under.

    Returns:
        The mean NLL, nats per token.
    """
    total = 0.0
    for batch in batches:
        state.reset(batch.reset)
        with precision:
            logits = model(batch.tokens, state, batch.segment_start)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()) / len(batches)
        loss.backward()
        total += loss.item()
    return total


def perplexity(nll: float) -> float:
    """Exp of nats per token; infinite where a float ends."""
    return math.exp(nll) if nll < 700 else math.inf


def make_optimizer(model: Transformer, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with two groups: matrices decay; the embedding, biases and norms do not."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() >= 2 and not name.startswith("embedding") else exempt).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def describe_run(model: Transformer, state: MemoryStack, stream: LaneStream, config: TrainingConfig) -> str:
    """What a run costs, for people: parameters, recurrent state per lane and layer, tokens a step and an epoch."""
    step = config.lanes * stream.segment * config.accumulate
    layers = ", ".join(
        f"{horizon:,} tokens in {format_bytes(count)}"
        for horizon, count in zip(state.horizons, state.bytes_per_layer, strict=True)
    )
    return "\n".join(
        [
            f"{model.parameters_count:,} parameters",
            f"recurrent state: {format_bytes(state.bytes_per_lane)} per lane, "
            f"{format_bytes(state.bytes_per_lane * state.lanes)} in all; by layer: {layers}",
            f"{config.lanes} lanes x {stream.segment} tokens x {config.accumulate} segments = {step:,} tokens a step",
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
        lines.append(f"interrupted; the model as it is now lies in {out / LAST}")
    return "\n".join(lines)


class _Report:
    """Where measurements go: `metrics.jsonl` always, a console and TensorBoard if wanted."""

    def __init__(
        self, out: Path, config: TrainingConfig, state: MemoryStack, console: Console | None, tensorboard: bool
    ) -> None:
        self._out, self._config, self._console, self._tensorboard = out, config, console, tensorboard
        self._state_size = format_bytes(state.bytes_per_lane * state.lanes)
        self._losses: list[float] = []
        self._written = Run()
        self._val_ppl = ""

    def __enter__(self) -> Self:
        self._out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            self._metrics = opened.enter_context(open(self._out / METRICS_FILE, "w", encoding="utf-8", buffering=1))
            self._writer: Any = None
            if self._tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = opened.enter_context(SummaryWriter(str(self._out / "tensorboard")))
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

    def print(self, text: str) -> None:
        """For people, above the progress line."""
        if self._console is not None:
            self._console.print(text, highlight=False)

    def step(self, run: Run, progress: float, loss: float, val_loss: float | None, learning_rate: float) -> None:
        """Report a step that has been made, and its validation if there was one."""
        self._losses.append(loss)
        train_loss = sum(self._losses) / len(self._losses)
        seconds = run.training_seconds - self._written.training_seconds
        speed = (run.tokens - self._written.tokens) / seconds if seconds else 0.0
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
            self._progress.update(self._task, completed=progress, description=line)
        if run.step % self._config.log_every == 0 or val_loss is not None:
            self._write(row)
            self._losses, self._written = [], replace(run)

    def _write(self, row: dict[str, Any]) -> None:
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._writer.add_scalar(name, value, row["step"])


def _precision(setting: bool | Literal["auto"], device: torch.device) -> torch.autocast:
    if setting == "auto":
        setting = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=setting)


def _check_finite(step: int, what: str, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise DivergedError(
            f"step {step}: expected a finite {what}, got {', '.join(map(str, values))}; "
            "try a lower learning rate. Checkpoints saved before are as they were"
        )


def _peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU, else of the process where the system keeps count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
