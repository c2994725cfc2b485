"""Cases, who contends in them, and the verdict on a contender before its time counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from bench.harness.results import Row


class Work(NamedTuple):
    """What one call computes and must at least move."""

    flops: float
    bytes: float
    tokens: int


class Case(Protocol):
    """One thing to measure, whoever does it."""

    @property
    def task(self) -> str:
        """`forward`, `training`, `decode`, `train`, `generate`, ..."""

    @property
    def name(self) -> str:
        """A readable name that tells it from every other case of its task."""

    @property
    def fields(self) -> dict[str, Any]:
        """Its parameters, for results and plots."""

    def wrong(self, contender: Any, device: torch.device) -> str | None:
        """What is wrong with the contender's results, or None."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do a case's work: every room adds how it is called."""

    name: str
    version: str
    ours: bool = False
    storage: str | None = None  # of the memory; None: the type of the keys
    on_request: bool = False  # measured only if named
    unavailable: Callable[[Any, torch.device], str | None] = lambda case, device: None  # (case, device) -> why not

    @property
    def like_for_like(self) -> bool:
        """Does it compute what the case asks, as exactly?"""
        return self.storage is None


def new_row(case: Case, contender: Contender | None, status: str, reason: str = "") -> Row:
    """A contender's row before it is timed; the row of a whole case if there is none."""
    who = contender or Contender(name="", version="")
    return Row(
        task=case.task,
        case=case.name,
        fields=case.fields,
        contender=who.name,
        version=who.version,
        ours=who.ours,
        like_for_like=contender is not None and who.like_for_like,
        storage=who.storage,
        status=status,
        reason=reason,
    )


def judge(case: Case, contender: Contender, device: torch.device) -> Row:
    """The contender's row, its status `right`; or `unavailable`, `failed` or `wrong`, and why."""
    if reason := contender.unavailable(case, device):
        return new_row(case, contender, "unavailable", reason)
    try:
        reason = case.wrong(contender, device)
    except Exception as error:  # whatever a library, its compiler or its absence raises: reported, and never timed
        return new_row(case, contender, "failed", first_line(error))
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return new_row(case, contender, "wrong" if reason else "right", reason or "")


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
