"""Ragged segments: what `segment_start` and `segment_len` must be."""

from __future__ import annotations

import torch
from torch import Tensor

from dsmr_kernels.execution import unrecorded, values_are_real


@unrecorded
def check_ragged(
    lanes: int, tokens: int, device: torch.device, segment_start: Tensor | None, segment_len: Tensor | None
) -> None:
    """Raise ValueError or TypeError for what does not describe a segment `[lanes, tokens]` on `device`.

    Values are looked at on CPUs only: on a GPU its queue would have to stop for that, and while tracing there are none.
    """
    shapes = {"segment_start": (lanes, tokens), "segment_len": (lanes,)}
    for (name, shape), x in zip(shapes.items(), (segment_start, segment_len), strict=True):
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name}: expected an int64 or int32 tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if tuple(x.shape) != shape or x.device != device:
            raise ValueError(f"{name}: expected {list(shape)} on {device}, got {list(x.shape)} on {x.device}")
    if not values_are_at_hand(device, segment_start, segment_len):
        return
    if segment_len is not None and not bool(((segment_len >= 0) & (segment_len <= tokens)).all()):
        raise ValueError(f"segment_len: expected values from 0 to T={tokens}, got {segment_len.tolist()}")
    if segment_start is not None:
        inside = (segment_start >= 0) & (segment_start <= torch.arange(tokens, device=device))
        if not bool(inside.all()) or bool((segment_start.diff() < 0).any()):
            raise ValueError("segment_start: expected non-decreasing rows with 0 <= segment_start[b, i] <= i")


def values_are_at_hand(device: torch.device, *tensors: Tensor | None) -> bool:
    """Can numbers be read without waiting for a GPU, and are there any? Not while a graph is recorded."""
    plain = all(x is None or type(x) is Tensor for x in tensors)
    return device.type == "cpu" and plain and values_are_real()
