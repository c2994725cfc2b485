"""Contenders turn inputs into a step, a function that does the work once and returns the results.

Everything that a model would do once rather than at every call (allocate a ring, build a mask) is done while preparing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.shapes import Inputs
from bench.harness.case import Contender


@dataclass(frozen=True)
class Prepared:
    """`step()` returns `o`, or `(o, dq, dk, dv)` in training. `memory()`: `k, v [B, Hkv, M, D]` held now, oldest first.

    `context` is entered around a step and its time is not counted (choosing an SDPA back end, for one).
    """

    step: Callable[[], Any]
    memory: Callable[[], tuple[Tensor, Tensor]] | None = None
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


@dataclass(frozen=True, kw_only=True)
class AttentionContender(Contender):
    """One way of computing attention, or a part of it, in the cases of some tasks."""

    tasks: frozenset[str]
    prepare: Callable[[AttentionCase, Inputs], Prepared]
    causal: bool = True  # False: a bound that computes something easier, checked against that
    minus: str | None = None  # report time beyond this contender's, round by round

    @property
    def like_for_like(self) -> bool:
        """Does it compute what the case asks, at the case's precision?"""
        return self.causal and self.storage is None and self.minus is None


def torch_contender(name: str, *tasks: str, prepare: Callable[..., Prepared], **options: Any) -> AttentionContender:
    """A contender that consists of PyTorch's own operators."""
    version = f"torch {torch.__version__}"
    return AttentionContender(name=name, version=version, tasks=frozenset(tasks), prepare=prepare, **options)


def differentiated(case: AttentionCase, inputs: Inputs, forward: Callable[[], Tensor]) -> Callable[[], Any]:
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
