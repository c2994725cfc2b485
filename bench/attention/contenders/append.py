"""The append alone, a segment written into memory and nothing else: what a cache costs to keep.

Ours is fused into the attention call, so it is measured as the call with `append=True` beyond the same call with
`append=False`, round by round (see `bench.attention.contenders.ours`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, torch_contender
from bench.attention.shapes import Inputs


def contenders(device: torch.device) -> list[AttentionContender]:
    """A ring written by `index_copy_`, and a fresh concatenation of what remains and what is new."""
    ways = {"ring, index_copy_": _prepare_ring, "torch.roll and a slice": _prepare_roll, "torch.cat": _prepare_cat}
    return [torch_contender(name, "append", prepare=way) for name, way in ways.items()]


def _prepare_ring(case: AttentionCase, inputs: Inputs) -> Prepared:
    """The capacity and the wrap of our own ring: M + T slots, a third of the way round."""
    tokens, horizon = case.shape.tokens, case.shape.horizon
    capacity = horizon + tokens
    order = torch.arange(horizon // 3 - horizon, horizon // 3 + tokens, device=inputs.q.device) % capacity
    rings = []
    for past in (inputs.past_k, inputs.past_v):
        ring = past.new_zeros(*past.shape[:2], capacity, past.shape[3])
        ring[:, :, order[:horizon]] = past
        rings.append(ring)
    slots = order[horizon:]

    def step() -> None:
        for ring, new in zip(rings, (inputs.k, inputs.v), strict=True):
            ring.index_copy_(2, slots, new.transpose(1, 2))

    return Prepared(step, lambda: (rings[0][:, :, order[tokens:]], rings[1][:, :, order[tokens:]]))


def _prepare_roll(case: AttentionCase, inputs: Inputs) -> Prepared:
    held = [inputs.past_k.clone(), inputs.past_v.clone()]
    tokens = case.shape.tokens

    def step() -> None:
        for i, new in enumerate((inputs.k, inputs.v)):
            held[i] = torch.roll(held[i], -tokens, 2)
            held[i][:, :, -tokens:] = new.transpose(1, 2)

    return Prepared(step, lambda: (held[0], held[1]))


def _prepare_cat(case: AttentionCase, inputs: Inputs) -> Prepared:
    held: list[Tensor] = [inputs.past_k.clone(), inputs.past_v.clone()]
    tokens = case.shape.tokens

    def step() -> None:
        for i, new in enumerate((inputs.k, inputs.v)):
            held[i] = torch.cat([held[i][:, :, tokens:], new.transpose(1, 2)], 2)

    return Prepared(step, lambda: (held[0], held[1]))
