"""`python -m bench train`: tokens/s, peak memory and recurrent-state bytes of training, by schedule and attention.

All schedules and all contenders take turns in the same rounds, so that every ratio is one of the same run: against ours
on the same schedule, and against the full schedule with the same attention (what the paper reports).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench import runner
from bench.harness import measure
from bench.harness.measure import Quantiles, Trial
from bench.harness.results import Row
from bench.models import check, memory, peers, step
from bench.models.peers import Attention
from dsmr.model.config import ModelConfig

SIZES = {"cpu": (("small", 1),), "cuda": (("base", 16), ("small", 32))}
"""Presets and lanes. 16 lanes x 8 heads x 8 blocks of 128 queries are 1,024 blocks of work."""


@dataclass(frozen=True)
class TrainCase:
    """A training step of a model of one size under one schedule, all memories full."""

    size: str
    variant: str
    config: ModelConfig
    lanes: int
    dtype: str
    task: str = "train"

    @property
    def name(self) -> str:
        """`small-B1-T512-two_scale`."""
        return f"{self.size}-B{self.lanes}-T{self.config.segment}-{self.variant}"

    @property
    def fields(self) -> dict[str, Any]:
        """What tells this case from others, for results and plots."""
        return {
            "size": self.size,
            "schedule": self.variant,
            "lanes": self.lanes,
            "segment": self.config.segment,
            "horizons": list(self.config.schedule.horizons),
            "heads": self.config.heads,
            "kv_heads": self.config.kv_heads,
            "head_dim": self.config.head_dim,
            "dtype": self.dtype,
        }

    @property
    def work(self) -> dict[str, float]:
        """By the formulas of `bench.models.step.flops`; what is moved is not counted."""
        tokens = self.lanes * self.config.segment
        return {"flops": step.flops(self.config, self.lanes), "bytes": 0, "tokens": tokens}

    def wrong(self, attention: Attention, device: torch.device) -> str | None:
        """Compare with the oracle: see `bench.models.check`."""
        return check.wrong(self.config, attention, device)


def cases(device: torch.device, quick: bool) -> list[list[TrainCase]]:
    """The schedules of every size; those of one size are measured in turns."""
    dtype = "bf16" if step.compute_dtype(device) == torch.bfloat16 else "fp32"
    sizes = (("tiny", 2),) if quick else SIZES[device.type]
    return [
        [TrainCase(name, v.name, v.config, lanes, dtype) for v in step.variants(step.size(name, quick, device))]
        for name, lanes in sizes
    ]


def parts(settings: runner.Settings) -> list[runner.Part]:
    """One part a size."""
    chosen = peers.chosen(settings.device, settings.contenders)
    groups = cases(settings.device, settings.quick)
    return [(group[0], partial(_measure, group, chosen, settings)) for group in groups]


def _measure(group: list[TrainCase], chosen: list[Attention], settings: runner.Settings) -> list[Row]:
    """One row a case and contender. The first case of the group is the full schedule.

    Half of the time is for making ready: contenders are asked in turn, those that compile last.
    """
    begin = time.monotonic()
    rows, trainings = {}, {}
    for pair in [(case, attention) for attention in chosen for case in group]:
        if time.monotonic() - begin > settings.seconds / 2:
            rows[pair] = runner.new_row(*pair, "skipped", "there was no time to make it ready")
            continue
        rows[pair] = runner.new_row(*pair, *runner.judge(*pair, settings.device))
        if rows[pair].status == "right" and (training := _ready(*pair, rows[pair], settings.device)):
            trainings[pair] = training
    if trainings:
        names = {pair: f"{pair[0].name}: {pair[1].name}" for pair in trainings}
        trials = [Trial(names[pair], [training.step], pair[1].context) for pair, training in trainings.items()]
        limits = settings.limits.for_all(len(trials))
        samples = measure.rounds(trials, settings.device, False, limits)
        for pair, training in trainings.items():
            rows[pair].extra["state_bytes"] = training.state_bytes
            _fill(rows[pair], samples[names[pair]], pair[0].work)
        _compare(rows, {pair: samples[name] for pair, name in names.items()}, group[0])
    return [rows[case, attention] for case in group for attention in chosen]


def _ready(case: TrainCase, attention: Attention, row: Row, device: torch.device) -> step.Training | None:
    """Weigh a training and make it ready to be timed; None, and why in the row, if that fails."""
    try:
        row.peak_bytes = memory.peak_bytes(lambda: _two_steps(case, attention, device), device)
        return step.Training(case.config, case.lanes, attention, device)
    except RuntimeError as error:  # too little memory, or sizes that only the smaller model of the check had
        row.status, row.reason = "failed", runner.first_line(error)
        return None


def _fill(row: Row, seconds: list[float], work: dict[str, float]) -> None:
    row.status, row.rounds, row.work = "timed", len(seconds), work
    row.seconds = Quantiles.of(seconds).rounded()
    row.extra["tokens_per_second"] = Quantiles.of([work["tokens"] / t for t in seconds]).rounded()


Pair = tuple[TrainCase, Attention]


def _compare(rows: dict[Pair, Row], samples: dict[Pair, list[float]], full: TrainCase) -> None:
    """Each with ours under the same schedule, and with the full schedule under the same attention."""
    for (case, attention), own in samples.items():
        row = rows[case, attention]
        for (other_case, other), seconds in samples.items():
            if other_case is case and other.ours and other is not attention:
                row.against[other.name] = measure.ratio(own, seconds).rounded()
        if case is not full and (full, attention) in samples:
            base = rows[full, attention]
            row.extra["against_full"] = {
                "tokens_per_second": measure.ratio(samples[full, attention], own).rounded(),
                "peak_bytes": row.peak_bytes / base.peak_bytes,
                "state_bytes": row.extra["state_bytes"] / base.extra["state_bytes"],
            }


def _two_steps(case: TrainCase, attention: Attention, device: torch.device) -> None:
    """All that training takes: weights, gradients, the optimiser's moments, recurrent state, activations."""
    with attention.context():
        training = step.Training(case.config, case.lanes, attention, device)
        training.step()
        training.step()
