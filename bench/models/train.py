"""`python -m bench train`: tokens/s, peak memory and recurrent-state bytes of training, by schedule and attention.

All schedules and all contenders take turns in the same rounds, so that every ratio is one of the same run: against ours
on the same schedule, and against the full schedule with the same attention (what the paper reports).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench import measure, runner
from bench.machine import Peaks
from bench.measure import Quantiles, Trial
from bench.models import check, memory, peers, step
from bench.models.peers import Attention
from bench.results import Row
from dsmr.model import ModelConfig

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


def parts(settings: runner.Settings, peaks: Peaks) -> list[runner.Part]:
    """One part a size."""
    chosen = peers.chosen(settings.device, settings.contenders)
    groups = cases(settings.device, settings.quick)
    return [(group[0], partial(_measure, group, chosen, settings, peaks)) for group in groups]


def _measure(group: list[TrainCase], chosen: list[Attention], settings: runner.Settings, peaks: Peaks) -> list[Row]:
    """One row a case and contender. The first case of the group is the full schedule."""
    device = settings.device
    pairs = [(case, attention) for case in group for attention in chosen]
    rows, trials, trainings = {}, {}, {}
    for case, attention in pairs:
        status, reason = runner.judge(case, attention, device)
        row = rows[case, attention] = runner.new_row(case, attention, status, reason)
        if status != "right":
            continue
        try:
            row.peak_bytes = memory.peak_bytes(lambda c=case, a=attention: _two_steps(c, a, device), device)
            training = trainings[case, attention] = step.Training(case.config, case.lanes, attention, device)
        except RuntimeError as error:  # too little memory, or sizes that only the smaller model of the check had
            row.status, row.reason = "failed", runner.first_line(error)
            continue
        trials[case, attention] = Trial(f"{case.name}: {attention.name}", [training.step], attention.context)
    limits = replace(settings.limits, seconds=settings.limits.seconds * len(trials), slow_factor=math.inf)
    by_name = measure.rounds(list(trials.values()), device, False, limits) if trials else {}
    samples = {pair: by_name[trial.name] for pair, trial in trials.items()}
    for case, attention in samples:  # the full schedule's come first
        row = rows[case, attention]
        _fill(row, samples[case, attention], case.work, peaks.flops[case.dtype])
        row.extra["state_bytes"] = trainings[case, attention].state_bytes
        for other in chosen:
            if other.ours and other is not attention and (case, other) in samples:
                row.against[other.name] = measure.ratio(samples[case, attention], samples[case, other]).rounded()
        full = (group[0], attention)
        if full in samples and case is not group[0]:
            row.extra["against_full"] = {
                "tokens_per_second": measure.ratio(samples[full], samples[case, attention]).rounded(),
                "peak_bytes": row.peak_bytes / rows[full].peak_bytes,
                "state_bytes": row.extra["state_bytes"] / rows[full].extra["state_bytes"],
            }
    return list(rows.values())


def _fill(row: Row, seconds: list[float], work: dict[str, float], peak_flops: float) -> None:
    row.status, row.rounds, row.work = "timed", len(seconds), work
    row.seconds = Quantiles.of(seconds).rounded()
    row.extra["tokens_per_second"] = Quantiles.of([work["tokens"] / t for t in seconds]).rounded()
    row.roofline = float(f"{work['flops'] / peak_flops / row.seconds[1]:.4g}")


def _two_steps(case: TrainCase, attention: Attention, device: torch.device) -> None:
    """All that training takes: weights, gradients, the optimiser's moments, recurrent state, activations."""
    with attention.context():
        training = step.Training(case.config, case.lanes, attention, device)
        training.step()
        training.step()
