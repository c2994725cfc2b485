"""Training settings: everything that the result of a training depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from dsmr.fields import check_names, check_types, shown
from dsmr.music.augment import Augmentation

VALIDATION_SHARE = 0.1
"""How much time validation may take where time counts, as a fraction of that of training."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; stored in every checkpoint that training writes.

    Args:
        steps, minutes: the budget: optimiser steps, minutes of training (validation and saving do not count), or both
            (whichever ends first). With steps alone a run is deterministic; with minutes the learning rate follows the
            clock, so that a run is complete when its time is over, on any machine.
        lanes: B, pieces streamed side by side.
        accumulate: segments of every lane in one optimiser step.
        optimizer: "muon" (Jordan et al. 2024): orthogonalised momentum for the matrices of the blocks, scaled to the
            size of AdamW's updates (Liu et al. 2025), and AdamW for all else; or "adamw" (Loshchilov & Hutter 2019).
        learning_rate: the highest, reached at the end of the warm-up. The default was the best of those tried for Muon
            and `tiny`; docs/memory-study.md has the others.
        min_learning_rate: at the end of a cosine (Loshchilov & Hutter 2017, without restarts). Every step takes the
            rate of the middle of what it uses of the budget, so that neither the first nor the last is made with 0.
        warmup: the fraction of the budget in which the learning rate rises evenly from 0.
        weight_decay: of matrices; biases, norms and the embedding are exempt.
        betas: of AdamW.
        clip: the largest norm of all gradients together.
        semitones, tempo: augmentation, see `dsmr.music.augment.Augmentation`; both 0: none.
        validations: how many, spread evenly over the budget; the last one is at its end. With minutes there are fewer
            of them where so many would take more than `VALIDATION_SHARE` of the time.
        validation_tokens: how many tokens each of them scores, always the same ones: of as many pieces as possible
            their beginnings, see `dsmr.evaluation.pieces.evaluate_pieces`; None: the whole split.
        log_every: steps between two rows of `metrics.jsonl`.
        autocast: compute in bfloat16 where PyTorch deems it safe; "auto": on GPUs that have it. (On a CPU with
            AVX512-BF16 it brought `tiny` no clear gain: there attention computes in float32 all the same.)
        compile: compile the forward and the backward pass of a segment with `torch.compile`. (The optimiser is one
            fused kernel without it.) Losses equal those without, up to rounding, and but for dropout, whose random
            numbers are others.
        seed: of the order of pieces, the augmentation and the dropout.

    Raises:
        ValueError: a value out of its range, or no budget.
    """

    steps: int | None = None
    minutes: float | None = None
    lanes: int = 8
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 1e-2
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
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
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
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected a finite number of at least 0, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers from 0 to below 1, got {self.betas}")
        Augmentation(self.semitones, self.tempo, self.seed)  # refuses what it cannot be
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"min_learning_rate: expected 0 to learning_rate={self.learning_rate}, got {self.min_learning_rate}"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a fraction of the budget below 1, got {self.warmup}")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer: expected 'adamw' or 'muon', got {shown(self.optimizer)}")
        if self.autocast not in (True, False, "auto"):
            raise ValueError(f"autocast: expected True, False or 'auto', got {shown(self.autocast)}")

    def progress(self, steps: int, seconds: float) -> float:
        """The fraction of the budget that so many steps and so many seconds of training have used up."""
        by_step = steps / self.steps if self.steps else 0.0
        by_clock = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(max(by_step, by_clock), 1.0)

    def can_afford(self, validation: float, spent: float, progress: float, seconds: float) -> bool:
        """Whether a validation now leaves all of them within their share of the time, the last one included.

        A budget of steps alone affords every one: the clock must not decide what it does.

        Args:
            validation: seconds that one takes, about.
            spent: seconds that those so far have taken.
            progress, seconds: of training so far.
        """
        if self.minutes is None or progress >= 1:
            return True
        so_far, in_all = VALIDATION_SHARE * seconds, VALIDATION_SHARE * seconds / max(progress, 1e-9)
        return spent + validation <= so_far and spent + 2 * validation <= in_all

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate at a fraction of the budget: of minutes, too, where PyTorch's schedulers count steps."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        cosine = math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * (1 + cosine) / 2

    @classmethod
    def from_dict(cls, values: Any) -> TrainingConfig:
        """The inverse of `dataclasses.asdict`, by way of JSON; a field may be missing: older versions lacked it.

        ValueError names a field that is unknown, or has a value that it cannot have.
        """
        fields = check_names(cls, values, "config")
        if isinstance(betas := fields.get("betas"), list):  # JSON has no tuples
            fields["betas"] = tuple(betas)
        return cls(**fields)
