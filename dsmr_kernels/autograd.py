"""What autograd tells about the code that runs now: whether a backward pass runs it, and what came before what."""

from __future__ import annotations

import sys
import threading

import torch
from torch import Tensor

from dsmr_kernels import torch_private

FORWARD = -1
"""`backward_pass()` outside every backward pass."""
UNKNOWN = sys.maxsize
"""`now()` while a compiled graph is made: later than everything."""


def backward_pass() -> int:
    """The number of the backward pass that this thread runs, one of its own for each, or `FORWARD`."""
    return FORWARD if torch.compiler.is_compiling() else torch_private.backward_pass_number()


def now() -> int:
    """The number that autograd will give to the next node of a graph: all that was made before has a smaller one."""
    return UNKNOWN if torch.compiler.is_compiling() else torch_private.next_node_number()


def writes(x: Tensor) -> int | None:
    """How often `x` was written; None where nobody counts: while compiling, and for inference tensors."""
    return torch_private.version(x) if type(x) is Tensor and not x.is_inference() else None


def untouched(x: Tensor, counted: int | None) -> bool:
    """Is it known that `x` was not written since `writes` was `counted`?"""
    return counted is not None and writes(x) == counted


class Here(threading.local):
    """This thread, by a `token` that no other ever has: each thread numbers its nodes from 0."""

    def __init__(self) -> None:
        self.token = object()


here = Here()
