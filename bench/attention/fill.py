"""Memories of one layer: filled with a case's inputs, and read back."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attention.shapes import Inputs, Shape
from bench.harness import kernels
from dsmr_kernels import MemoryStack
from dsmr_kernels.storage import QUANTISED, quantise


def stack(shape: Shape, inputs: Inputs, storage: str | None) -> MemoryStack:
    """A stack of one layer whose full memory is `inputs.past_k, past_v`, wrapped a third of the way round the ring."""
    made = empty(shape, inputs.q.device, storage)
    position = made[0].geometry.capacity + shape.horizon // 3
    kernels.fill(made, [(inputs.past_k, inputs.past_v)], position)
    return made


def empty(shape: Shape, device: torch.device, storage: str | None) -> MemoryStack:
    """A stack of one layer for calls of this shape, with nothing in its memory."""
    return MemoryStack(
        [shape.horizon],
        shape.lanes,
        shape.kv_heads,
        shape.head_dim,
        max_segment=shape.tokens,
        dtype=shape.torch_dtype,
        device=device,
        storage=storage,
    )


def exported(stack: MemoryStack) -> tuple[Tensor, Tensor]:
    """What the first layer's memory holds for every lane, oldest first: `k, v [B, Hkv, n, D]`."""
    lanes = [stack[0].export(lane)[:2] for lane in range(stack.lanes)]
    return torch.stack([k for k, _ in lanes]), torch.stack([v for _, v in lanes])


def dequantised(x: Tensor, storage: str) -> Tensor:
    """What remains of `x [..., D]` after quantisation, in float64."""
    values, scale = quantise(x, QUANTISED[storage].dtype)
    return values.double() * scale[..., None]
