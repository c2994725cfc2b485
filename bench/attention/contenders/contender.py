"""Who is measured: the registry of contenders, each configured as its own experts would.

A contender turns inputs into a step, a function that does the work once and returns the results. Everything that a
model would do once rather than at every call (allocate a ring, build a mask) is done while preparing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.attention.cases import Case
from bench.attention.shapes import Inputs


@dataclass(frozen=True)
class Prepared:
    """`step()` returns `o`, or `(o, dq, dk, dv)` in training. `memory()`: `k, v [B, Hkv, M, D]` held now, oldest first.

    `context` is entered around a step and its time is not counted (choosing an SDPA back end, for one).
    """

    step: Callable[[], Any]
    memory: Callable[[], tuple[Tensor, Tensor]] | None = None
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True)
class Contender:
    """One way of computing a case, with what there is to know about it."""

    name: str
    tasks: frozenset[str]
    version: str
    prepare: Callable[[Any, Any], Prepared]  # (case, inputs)
    unavailable: Callable[[Any, torch.device], str | None] = lambda case, device: None
    ours: bool = False
    storage: str | None = None  # of the memory; None: the segment's type
    causal: bool = True  # False: a bound that computes something easier, checked against that
    minus: str | None = None  # report time beyond this contender's, round by round
    on_request: bool = False  # measured only if named

    @property
    def like_for_like(self) -> bool:
        """Does it compute what the case asks, at the case's precision?"""
        return self.causal and self.storage is None and self.minus is None


def differentiated(case: Case, inputs: Inputs, forward: Callable[[], Tensor]) -> Callable[[], Any]:
    """The forward pass alone without autograd, or, in training, with the gradients of q, k and v."""
    if case.task != "training":

        def step() -> Tensor:
            with torch.no_grad():
                return forward()

        return step

    def train() -> tuple[Tensor, ...]:
        o = forward()
        return o, *torch.autograd.grad(o, (inputs.q, inputs.k, inputs.v), inputs.do)

    return train


def registry(device: torch.device) -> list[Contender]:
    """Every contender there is for a device, available or not."""
    from bench.attention.contenders import append, broken, decode, flex, libraries, matmul, ours, sdpa

    modules = (ours, sdpa, matmul, flex, decode, append, libraries, broken)
    return [contender for module in modules for contender in module.contenders(device)]


def for_case(case: Case, device: torch.device, names: Sequence[str] = ()) -> list[Contender]:
    """The contenders of a case's task; `names` chooses some (a part of the name is enough)."""
    listed = [contender for contender in registry(device) if case.task in contender.tasks]
    if not names:
        return [contender for contender in listed if not contender.on_request]
    return [contender for contender in listed if any(name in contender.name for name in names)]
