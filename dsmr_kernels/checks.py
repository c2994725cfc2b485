"""What a state must be before native code may index with it: types, shapes and devices, and the numbers of a saved one.

Tensors are checked where a `Clock` or a `RingMemory` is made, so that a call need not look at them again.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dsmr_kernels.geometry import LARGEST_POSITION, Geometry
from dsmr_kernels.storage import COMPUTE_DTYPES, QUANTISED

_QUANTISED = tuple(kind.dtype for kind in QUANTISED.values())
_STORED = (*COMPUTE_DTYPES, *_QUANTISED)


def is_integer(x: object) -> TypeGuard[int]:
    """Is it an integer, and no bool that passes for one?"""
    return isinstance(x, int) and not isinstance(x, bool)


def integers(name: str, values: Sequence[int] | Tensor) -> list[int]:
    """The integers of a sequence or a one-dimensional tensor; ValueError for anything else, bools among them."""
    if isinstance(values, Tensor) and values.dtype in (torch.bool, torch.uint8):
        raise ValueError(f"{name}: expected integers of a signed type, got a tensor of {values.dtype}")
    try:
        numbers = values.tolist() if isinstance(values, Tensor) else list(values)
        found = [operator.index(number) for number in numbers]
    except TypeError:
        raise ValueError(f"{name}: expected a sequence of integers, got {values!r}") from None
    if any(map(is_bool, numbers)):
        raise ValueError(f"{name}: expected integers, got bools: {numbers}")
    return found


def is_bool(x: object) -> bool:
    """Is it a bool, Python's or NumPy's?"""
    return isinstance(x, bool) or getattr(getattr(x, "dtype", None), "kind", None) == "b"


def check_clock(state: object) -> None:
    """Raise TypeError or ValueError for what is no clock's state: int64 `[3, B]`, contiguous."""
    if not isinstance(state, Tensor) or state.dtype != torch.int64:
        raise TypeError(f"clock: expected an int64 tensor, got {getattr(state, 'dtype', type(state).__name__)}")
    if state.dim() != 2 or state.shape[0] != 3 or not state.is_contiguous():
        raise ValueError(f"clock: expected a contiguous [3, B], got {list(state.shape)}, strides {state.stride()}")


MOST_SHIFT = 1024
"""The most tokens by which keys may be shifted: more is a mistake."""


def check_key_shift(key_shift: Any, kv_heads: int) -> tuple[int, ...] | None:
    """Tokens of shift for each KV head; None if no key is shifted. ValueError for what is no such thing."""
    if key_shift is None:
        return None
    shifts = tuple(integers("key_shift", key_shift))
    if len(shifts) != kv_heads or not all(0 <= shift <= MOST_SHIFT for shift in shifts):
        raise ValueError(
            f"key_shift: expected a number of tokens from 0 to {MOST_SHIFT:,} for each of {kv_heads} KV heads, "
            f"got {reprlib.repr(shifts)}"
        )
    return shifts if any(shifts) else None


def check_ring(
    tensors: Mapping[str, Tensor],
    horizon: Tensor,
    clock: Tensor,
    geometry: Geometry,
    key_shift: tuple[int, ...] | None = None,
) -> None:
    """Raise TypeError or ValueError for tensors that do not make up a ring; see `RingMemory`."""
    k = tensors["k"]
    shape, dtype, device = k.shape, k.dtype, k.device
    if dtype not in _STORED:
        raise TypeError(f"k: expected one of {_STORED}, got {dtype}")
    if len(shape) != 4 or shape[2] != geometry.capacity:
        raise ValueError(f"k: expected [B, Hkv, {geometry.capacity}, D], got {list(shape)}")
    scales = [name for name in ("k_scale", "v_scale") if name in tensors]
    if len(scales) != (2 if dtype in _QUANTISED else 0):
        raise ValueError(f"k_scale, v_scale: expected both for quantised storage and none for others, got {dtype}")
    for name, x, of_type, of_shape in (
        ("v", tensors["v"], dtype, shape),
        *((name, tensors[name], torch.float32, shape[:3]) for name in scales),
        ("written", tensors["written"], torch.int64, shape[:1]),
        ("horizon", horizon, torch.int64, ()),
        ("clock", clock, torch.int64, (3, shape[0])),
    ):
        if x.dtype != of_type:
            raise TypeError(f"{name}: expected {of_type}, got {x.dtype}")
        if x.shape != of_shape or x.device != device:
            raise ValueError(f"{name}: expected {list(of_shape)} on {device}, got {list(x.shape)} on {x.device}")
    _check_tail(tensors, clock, geometry, key_shift)
    for name, x in tensors.items():
        strides = x.stride()
        if 0 in strides and any(step == 0 and size > 1 for step, size in zip(strides, x.shape, strict=True)):
            raise ValueError(f"{name}: expected memory of its own for every entry, got strides {strides}")
        if name not in ("k", "v") and strides[-1] != 1 and x.shape[-1] > 1:
            raise ValueError(f"{name}: expected a contiguous last dimension, got strides {strides}")


def _check_tail(
    tensors: Mapping[str, Tensor], clock: Tensor, geometry: Geometry, key_shift: tuple[int, ...] | None
) -> None:
    lanes, kv_heads, _, head_dim = tensors["k"].shape
    shifts = check_key_shift(key_shift, kv_heads)
    given = [name for name in ("tail", "tail_written") if name in tensors]
    if len(given) != (2 if shifts else 0):
        raise ValueError(f"tail, tail_written: expected both with shifted keys and none without, got {given}")
    if not shifts:
        return
    tail, newest = tensors["tail"], tensors["tail_written"]
    if tail.dtype not in COMPUTE_DTYPES:
        raise TypeError(f"tail: expected one of {COMPUTE_DTYPES}, got {tail.dtype}")
    least = max(shifts) + geometry.max_segment
    heads = sum(shift > 0 for shift in shifts)
    if tail.dim() != 4 or tail.shape[2] < least or tail.shape != (lanes, heads, tail.shape[2], head_dim):
        raise ValueError(f"tail: expected {[lanes, heads, least, head_dim]} or more slots, got {list(tail.shape)}")
    if newest.dtype != torch.int64:
        raise TypeError(f"tail_written: expected {torch.int64}, got {newest.dtype}")
    if newest.shape != (lanes,):
        raise ValueError(f"tail_written: expected {[lanes]}, got {list(newest.shape)}")
    for name in given:
        if tensors[name].device != clock.device:
            raise ValueError(f"{name}: expected a tensor on {clock.device}, got one on {tensors[name].device}")


def check_saved_numbers(clock: Tensor, written: Mapping[str, Tensor], max_segment: int) -> None:
    """Raise ValueError for a saved clock, or numbers of tokens written, that no stack can have come to."""
    for lane, (position, length, phase) in enumerate(clock.t().tolist()):
        if not (0 <= length <= position <= LARGEST_POSITION and 0 <= phase <= position and phase < max_segment):
            raise ValueError(
                f"state['clock']: expected 0 <= length <= position <= 2^62 and 0 <= phase < max_segment={max_segment}, "
                f"got position {position}, length {length} and phase {phase} for lane {lane}"
            )
    positions = clock[0].tolist()
    for name, tensor in written.items():
        for lane, (newest, position) in enumerate(zip(tensor.tolist(), positions, strict=True)):
            if not 0 <= newest <= position + max_segment:
                raise ValueError(
                    f"state[{name!r}]: expected numbers from 0 to position + max_segment = {position + max_segment}, "
                    f"got {newest} for lane {lane}"
                )


def chosen_lanes(lanes: int, chosen: Any) -> Tensor | list[int]:
    """Lanes by a mask of `lanes` bools, as a bool tensor, or by their numbers, as a list; ValueError for others."""
    if isinstance(chosen, Tensor) and chosen.dtype == torch.bool:
        mask = chosen
    elif isinstance(chosen, Sequence) and chosen and all(map(is_bool, chosen)):
        mask = torch.tensor([bool(x) for x in chosen], device="cpu")
    elif is_bool(chosen) and not isinstance(chosen, bool) and chosen.ndim:  # an array of NumPy's
        mask = torch.tensor(chosen.tolist(), dtype=torch.bool, device="cpu")
    else:
        numbers = integers("lanes", chosen)
        if any(not 0 <= lane < lanes for lane in numbers):
            raise ValueError(f"lanes: expected numbers from 0 to {lanes - 1}, got {numbers}")
        return numbers
    if mask.shape != (lanes,):
        raise ValueError(f"lanes: expected a mask of shape [{lanes}], got {list(mask.shape)}")
    return mask
