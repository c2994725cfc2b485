"""Settings that the command line chose, and the parts that a command is measured in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from bench.harness.case import Case, Contender
from bench.harness.measure import Limits
from bench.harness.results import Row

Part = tuple[Case, Callable[[], list[Row]]]
"""A case to name what is skipped for want of time, and a function that measures it, and what takes turns with it."""

SomeContender = TypeVar("SomeContender", bound=Contender)


@dataclass(frozen=True)
class Settings:
    """What the command line chose."""

    device: torch.device
    quick: bool = False
    shapes: tuple[str, ...] = ()
    contenders: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    seconds: float = float("inf")  # no new case after this

    def chosen(self, contenders: Iterable[SomeContender]) -> list[SomeContender]:
        """Those that were asked for by parts of their names; if none was, all but those on request."""
        if not self.contenders:
            return [contender for contender in contenders if not contender.on_request]
        return [contender for contender in contenders if any(part in contender.name for part in self.contenders)]
