"""Who looks on while a call runs: nobody, or somebody who has to see the operator, or one who has to be refused.

In plain eager execution a call may go round PyTorch's dispatcher. Tracers, modes, profilers and the transforms of
`torch.func` work in the dispatcher, so for them there is the operator, which is recorded, or refuses with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.jit import is_tracing  # type: ignore[attr-defined]  # documented, but not exported

from dsmr_kernels import torch_private
from dsmr_kernels.torch_private import (
    dispatch_modes,
    function_modes,
    in_forward_mode,
    innermost_transform,
    is_functorch_wrapped_tensor,
    is_profiled,
    is_traced,
)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def is_plain(q: object, k: object, v: object) -> bool:
    """Are these tensors, and nothing else, what a call would run on, with nobody looking on?

    PyTorch has no such question. All that can look on is asked for here, in less than half a microsecond.
    """
    return (
        type(q) is type(k) is type(v) is Tensor
        and not is_dynamo_compiling()
        and not dispatch_modes()  # TorchDispatchMode: make_fx, FLOP counters, fake tensors
        and not function_modes()  # TorchFunctionMode
        and innermost_transform() is None  # torch.func
        and not is_traced()  # torch.jit.trace
        and not in_forward_mode()
        and not is_profiled()
    )


def values_are_real() -> bool:
    """May numbers in tensors be looked at? Not while a graph of what happens to them is recorded."""
    return not (torch.compiler.is_compiling() or is_tracing() or dispatch_modes() or innermost_transform() is not None)


def unrecorded(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let `torch.jit.trace`, for which every size is a tensor, see nothing of what `function` does."""

    @wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if not is_tracing():
            return function(*args, **kwargs)
        state = torch_private.tracing_state()
        torch_private.set_tracing_state(None)
        try:
            return function(*args, **kwargs)
        finally:
            torch_private.set_tracing_state(state)

    return call


def refuse_mapping(*_: object) -> NoReturn:
    """What `torch.vmap` calls for an operator of a mapped tensor."""
    raise RuntimeError(
        "torch.vmap is not supported by recurrent_attention: fold the mapped dimension into the lanes (B)"
    )


def refuse_forward_mode(arguments: Iterable[object]) -> None:
    """Raise RuntimeError if one of an operator's arguments has a tangent, which would be lost."""
    if not in_forward_mode():
        return
    for x in arguments:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                "forward-mode AD is not supported by recurrent_attention: use reverse mode, backward() or "
                "torch.autograd.grad"
            )


def refuse_functional_gradients(*tensors: Tensor) -> None:
    """Raise RuntimeError if `torch.func` is to differentiate: it does not know of memory that is written in place."""
    if any(map(is_functorch_wrapped_tensor, tensors)):
        raise RuntimeError(
            "torch.func.grad, vjp and jacrev are not supported by recurrent_attention: use backward() or "
            "torch.autograd.grad"
        )
