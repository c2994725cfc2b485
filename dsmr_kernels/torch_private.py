"""What this package asks of PyTorch by names that PyTorch keeps to itself.

Nothing public answers these questions, or only in several times as long: a call of one token has a few microseconds.
All such names stand in this file, so that a release which renames one breaks it and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _current_autograd_node,
    _current_graph_task_id,
    _get_tracing_state,
    _increment_version,
    _is_tracing,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _get_sequence_nr, _profiler_enabled
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["is_functorch_wrapped_tensor"]

# Autograd. `torch.autograd.graph` numbers nothing for its readers, and its `increment_version` goes a longer way.
backward_pass_number = _current_graph_task_id  # of the one that this thread runs, or -1
next_node_number = _get_sequence_nr
increment_version = _increment_version  # of several tensors at once


def running_node_number() -> int:
    """The number of the node whose backward this thread runs, or -1."""
    node: Any = _current_autograd_node()
    return -1 if node is None else node._sequence_nr()


def version(x: Tensor) -> int:
    """How often `x` was written; RuntimeError for inference tensors."""
    return x._version


# Who looks on. Modes, transforms and tracers have stacks and states of their own, and no common question.
dispatch_modes = _len_torch_dispatch_stack
function_modes = _len_torch_function_stack
innermost_transform = peek_interpreter_stack  # of torch.func, or None
is_traced = _is_tracing  # by torch.jit.trace
is_profiled = _profiler_enabled


def in_forward_mode() -> bool:
    """Is a level of forward-mode AD open?"""
    return forward_ad._current_level >= 0


# torch.jit.trace can be told to look away only by taking its state from it.
tracing_state = _get_tracing_state
set_tracing_state = torch._C._set_tracing_state  # type: ignore[attr-defined]  # torch ships no type for it
