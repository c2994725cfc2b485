"""How far a run has come."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dsmr.fields import check_names, check_types


@dataclass
class Run:
    """How far a run has come; every field but `interrupted` is saved and restored.

    `progress` is the fraction of the budget used up, `learning_rate` that of the last step. `training_seconds` leaves
    validation and saving out. `validations` is how many have been made or passed over, `validation_seconds` what they
    took together and `last_validation_seconds` the last of them. PPL is exp of the validation loss; None before the
    first validation.
    `peak_memory` is in bytes: of the GPU, or else of the whole process (None where the system does not tell).
    `lengthened`: it was given another budget, which `progress` and `validations` do not follow yet.
    `interrupted`: the number of the signal that ended the run before its time.
    """

    step: int = 0
    tokens: int = 0
    progress: float = 0.0
    learning_rate: float = 0.0
    seconds: float = 0.0
    training_seconds: float = 0.0
    validations: int = 0
    validation_seconds: float = 0.0
    last_validation_seconds: float | None = None
    last_ppl: float | None = None
    best_ppl: float | None = None
    best_step: int | None = None
    peak_memory: int | None = None
    lengthened: bool = False
    interrupted: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """Speed of training alone."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0

    def __post_init__(self) -> None:
        """ValueError that names a field of another type or out of its range, as a damaged file may hold it."""
        check_types(self)
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if self.progress > 1:
            raise ValueError(f"progress: expected a fraction of the budget, got {self.progress}")
        if self.best_step is not None and self.best_step > self.step:
            raise ValueError(f"best_step: expected at most step={self.step}, got {self.best_step}")

    @classmethod
    def from_dict(cls, values: Any) -> Run:
        """The inverse of `counters`; ValueError names what is wrong."""
        return cls(**check_names(cls, values, "run"))

    def counters(self) -> dict[str, Any]:
        """What is saved: plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "interrupted"}


def perplexity(nll: float) -> float:
    """Exp of nats per token; infinite where a float ends."""
    return math.exp(nll) if nll < 700 else math.inf


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU, else of the process where the system keeps count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
