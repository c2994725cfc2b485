"""What the arguments of a call must be. Every error names the argument, what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from dsmr_kernels import autograd
from dsmr_kernels.checks import is_bool
from dsmr_kernels.execution import unrecorded, values_are_real
from dsmr_kernels.ring import RingMemory
from dsmr_kernels.storage import COMPUTE_DTYPES

# Slopes that were looked at, and their version then: once is enough, and looking makes a GPU's queue stop.
_known_finite: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@unrecorded
def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memory: RingMemory,
    window: str,
    scale: float | None,
    softcap: float,
    append: bool,
) -> None:
    """Raise if one of these arguments is wrong."""
    check_tensors(q, k, v)
    _check_memory(q, k, memory, window)
    for name, x in (("scale", 1.0 if scale is None else scale), ("softcap", softcap)):
        if is_bool(x) or not isinstance(x, int | float | torch.SymInt | torch.SymFloat):
            raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
    if not (scale is None or math.isfinite(scale)) or not 0 <= softcap < math.inf:
        raise ValueError(f"scale, softcap: expected finite numbers and softcap >= 0, got {scale} and {softcap}")
    if not isinstance(append, bool):
        raise TypeError(f"append: expected a bool, got {type(append).__name__}")
    if append and not memory.geometry.archive:
        raise ValueError("append: expected False for a ring of no slots, got True")


@unrecorded
def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise if q, k and v are no segment."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(f"{name}: expected 4 dimensions [B, T, heads, D], got shape {list(x.shape)}")
        if x.dtype not in COMPUTE_DTYPES or x.dtype != q.dtype:
            expected = f"q's type {q.dtype}" if q.dtype in COMPUTE_DTYPES else f"one of {COMPUTE_DTYPES}"
            raise TypeError(f"{name}: expected {expected}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name}: expected q's device {q.device}, got {x.device}")
        if x.stride(3) != 1 and x.shape[3] != 1:
            raise ValueError(f"{name}: expected a contiguous last dimension, got strides {x.stride()}")
    batch, tokens, heads, dim = q.shape
    kv_heads = k.shape[2]
    if tokens < 1 or dim < 1:
        raise ValueError(f"q: expected T >= 1 and D >= 1, got shape {list(q.shape)}")
    if k.shape != (batch, tokens, kv_heads, dim) or v.shape != k.shape:
        raise ValueError(
            f"k, v: expected the shape [{batch}, {tokens}, Hkv, {dim}] that goes with q {list(q.shape)}, "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"q: expected a number of heads divisible by the {kv_heads} KV heads of k, got {heads}")


def _check_memory(q: Tensor, k: Tensor, memory: RingMemory, window: str) -> None:
    if not isinstance(memory, RingMemory):
        raise TypeError(f"memory: expected a RingMemory, stack[layer] of a MemoryStack, got {type(memory).__name__}")
    if window not in ("segment", "token"):
        raise ValueError(f"window: expected 'segment' or 'token', got {window!r}")
    geometry = memory.geometry
    batch, tokens, kv_heads, dim = k.shape
    ring = memory.k.shape
    if (ring[0], ring[1], ring[3]) != (batch, kv_heads, dim):
        raise ValueError(
            f"memory: expected B, Hkv, D of k = {batch}, {kv_heads}, {dim}, "
            f"got a ring of {ring[0]}, {ring[1]}, {ring[3]}"
        )
    if memory.k_scale is None and memory.k.dtype != q.dtype:
        raise TypeError(f"memory: expected a ring of q's type {q.dtype} or a quantised one, got {memory.k.dtype}")
    if memory.k.device != q.device:
        raise ValueError(f"memory: expected q's device {q.device}, got {memory.k.device}")
    if tokens > geometry.max_segment:
        raise ValueError(f"q: expected T <= max_segment={geometry.max_segment}, the ring's slack, got {tokens}")
    if window == "token" and geometry.retention.stride > 1:
        raise ValueError("window: 'token' needs a ring that keeps every token, got one with a retention stride above 1")


@unrecorded
def check_slopes(q: Tensor, slopes: Tensor) -> None:
    """Raise if these are no slopes for q's heads."""
    if not isinstance(slopes, Tensor) or not slopes.is_floating_point():
        raise TypeError(f"alibi_slopes: expected a float tensor, got {getattr(slopes, 'dtype', type(slopes).__name__)}")
    if slopes.shape != (q.shape[2],) or slopes.device != q.device:
        raise ValueError(
            f"alibi_slopes: expected [{q.shape[2]}] on {q.device}, got {list(slopes.shape)} on {slopes.device}"
        )
    if slopes.requires_grad:
        raise ValueError("alibi_slopes: expected constants, got a tensor that requires grad")
    if type(slopes) is not Tensor or not values_are_real():
        return
    version = autograd.writes(slopes)
    if version is not None and _known_finite.get(slopes) == version:
        return
    if not bool(slopes.isfinite().all()):
        raise ValueError(f"alibi_slopes: expected finite numbers, got {slopes.tolist()}")
    _known_finite[slopes] = version
