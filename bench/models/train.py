"""Training, `python -m bench train`: tokens/s, peak memory and recurrent-state bytes, by schedule and attention.

All schedules and all contenders take turns in the same rounds, so that every ratio is one of the same run: against ours
on the same schedule, and against the full schedule with the same attention (what the paper reports).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.harness import measure, memory
from bench.harness.case import Work, first_line, judge, new_row
from bench.harness.measure import Trial
from bench.harness.results import Row
from bench.harness.settings import Part, Settings
from bench.models import check, peers, step
from bench.models.peers import Attention
from dsmr.model import ModelConfig

SIZES = {"cpu": (("small", 1),), "cuda": (("base", 16), ("small", 32))}
"""Presets and lanes. 16 lanes x 8 heads x 8 blocks of 128 queries are 1,024 blocks of work."""


@dataclass(frozen=True)
class TrainCase:
    """A training step of a model of one size under one schedule, all memories full."""

    size: str
    schedule: str
    config: ModelConfig
    lanes: int
    dtype: str
    task: str = "train"

    @property
    def name(self) -> str:
        """`small-B1-T512-two_scale`."""
        return f"{self.size}-B{self.lanes}-T{self.config.segment}-{self.schedule}"

    @property
    def fields(self) -> dict[str, Any]:
        """What tells this case from others, for results and plots."""
        return {
            "size": self.size,
            "schedule": self.schedule,
            "lanes": self.lanes,
            "segment": self.config.segment,
            "horizons": list(self.config.schedule.horizons),
            "heads": self.config.heads,
            "kv_heads": self.config.kv_heads,
            "head_dim": self.config.head_dim,
            "dtype": self.dtype,
        }

    @property
    def work(self) -> Work:
        """By the formulas of `bench.models.step.flops`; what is moved is not counted."""
        tokens = self.lanes * self.config.segment
        return Work(step.flops(self.config, self.lanes), 0, tokens)

    def wrong(self, attention: Attention, device: torch.device) -> str | None:
        """Compare with the oracle: see `bench.models.check`."""
        return check.wrong(self.config, attention, device)


def cases(device: torch.device, quick: bool) -> list[list[TrainCase]]:
    """The schedules of every size; those of one size are measured in turns."""
    dtype = "bf16" if step.compute_dtype(device) == torch.bfloat16 else "fp32"
    sizes = (("tiny", 2),) if quick else SIZES[device.type]
    return [
        [
            TrainCase(name, schedule, config, lanes, dtype)
            for schedule, config in step.schedules(step.measured_preset(name, quick, device)).items()
        ]
        for name, lanes in sizes
    ]


def parts(settings: Settings) -> list[Part]:
    """One part a size."""
    chosen = settings.chosen(peers.attentions(settings.device))
    groups = cases(settings.device, settings.quick)
    return [(group[0], partial(_measure, group, chosen, settings)) for group in groups]


def _measure(group: list[TrainCase], chosen: list[Attention], settings: Settings) -> list[Row]:
    """One row a case and contender. The first case of the group is the full schedule.

    Half of the time is for making ready: contenders are asked in turn, those that compile last.
    """
    begin = time.monotonic()
    rows, trainings = {}, {}
    for pair in [(case, attention) for attention in chosen for case in group]:
        if time.monotonic() - begin > settings.seconds / 2:
            rows[pair] = new_row(*pair, "skipped", "there was no time to make it ready")
            continue
        rows[pair] = judge(*pair, settings.device)
        if rows[pair].status == "right" and (training := _ready(*pair, rows[pair], settings.device)):
            trainings[pair] = training
    if trainings:
        names = {pair: f"{pair[0].name}: {pair[1].name}" for pair in trainings}
        trials = [Trial(names[pair], [training.step], pair[1].context) for pair, training in trainings.items()]
        limits = settings.limits.for_all(len(trials))
        samples = measure.rounds(trials, settings.device, False, limits)
        for pair, training in trainings.items():
            rows[pair].extra["state_bytes"] = training.state_bytes
        _note(rows, {pair: samples[name] for pair, name in names.items()}, group[0])
    return [rows[case, attention] for case in group for attention in chosen]


def _ready(case: TrainCase, attention: Attention, row: Row, device: torch.device) -> step.Training | None:
    """Weigh a training and make it ready to be timed; None, and why in the row, if that fails."""
    try:
        row.peak_bytes = memory.peak_allocated(lambda: _two_steps(case, attention, device), device)
        return step.Training(case.config, case.lanes, attention, device)
    except RuntimeError as error:  # too little memory, or sizes that only the smaller model of the check had
        row.status, row.reason = "failed", first_line(error)
        return None


Pair = tuple[TrainCase, Attention]


def _note(rows: dict[Pair, Row], samples: dict[Pair, list[float]], full: TrainCase) -> None:
    """Times; each against ours under the same schedule, and against the full schedule with the same attention."""
    for (case, attention), own in samples.items():
        row = rows[case, attention]
        ours = {other.name: times for (same, other), times in samples.items() if same is case and other.ours}
        row.time(own, case.work._asdict(), ours)
        row.extra["tokens_per_second"] = measure.rates(case.work.tokens, own)
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
