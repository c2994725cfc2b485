"""Memories filled with given entries, without feeding them token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attention.shapes import Inputs, Shape
from dsmr_kernels import MemoryStack
from dsmr_kernels.storage import QUANTISED, quantise


def stack(shape: Shape, inputs: Inputs, storage: str | None) -> MemoryStack:
    """A stack of one layer whose full memory is `inputs.past_k, past_v`, wrapped a third of the way round the ring."""
    made = empty(shape, inputs.q.device, storage)
    ring = made[0]
    capacity = ring.geometry.capacity
    position = capacity + shape.horizon // 3
    slots = torch.arange(position - shape.horizon, position, device=inputs.q.device) % capacity
    for target, scale, past in ((ring.k, ring.k_scale, inputs.past_k), (ring.v, ring.v_scale, inputs.past_v)):
        if scale is None:
            target[:, :, slots] = past
        else:
            target[:, :, slots], scale[:, :, slots] = quantise(past, target.dtype)
    ring.written.fill_(position)
    made.clock.position.fill_(position)
    made.clock.length.fill_(shape.horizon)
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
