"""Our kernels as attention's and whole models' cases use them: refusals of a back end, and rings that are full."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from dsmr_kernels import MemoryStack, backends
from dsmr_kernels.backends import Call
from dsmr_kernels.storage import quantise


def refusal(impl: str, call: Call) -> str | None:
    """Why a back end does not serve the very call that would be measured, or None."""
    try:
        backend = backends.load(impl)
    except ImportError as error:
        return f"not built: {error}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what it warns of is the reason that it returns
        return backend.unsupported(call)


def fill(stack: MemoryStack, pasts: Iterable[tuple[Tensor, Tensor]], position: int) -> None:
    """Write each layer's `k, v [B, Hkv, n, D]`, oldest first, as what came just before token `position` of a piece.

    Tokens need not be fed one by one; the clock stands at `position`, phase 0.
    """
    for ring, past in zip(stack, pasts, strict=True):
        slots = torch.arange(position - past[0].shape[2], position, device=ring.k.device) % ring.geometry.capacity
        for target, scale, values in zip((ring.k, ring.v), (ring.k_scale, ring.v_scale), past, strict=True):
            if scale is None:
                target[:, :, slots] = values.to(target.dtype)
            else:
                target[:, :, slots], scale[:, :, slots] = quantise(values, target.dtype)
        ring.written.fill_(position)
    stack.clock.position.fill_(position)
    stack.clock.length.fill_(position)
