"""A recurrent state as it is in the middle of a long piece: every memory full, every ring wrapped somewhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dsmr.model.config import ModelConfig
from dsmr_kernels import MemoryStack
from dsmr_kernels.storage import quantise


def position(config: ModelConfig) -> int:
    """How many tokens of a piece have gone by: every ring has been filled, and none is at its beginning."""
    return 2 * (max(config.schedule.horizons) + config.segment) + 37


def pasts(
    horizons: Sequence[int], lanes: int, kv_heads: int, head_dim: int, device: torch.device, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each layer remembers: `k, v [B, Hkv, M, D]`, float32, standard normal, oldest first."""
    generator = torch.Generator(device).manual_seed(seed)
    for horizon in horizons:
        size = (lanes, kv_heads, horizon, head_dim)
        k, v = (torch.randn(size, generator=generator, device=device) for _ in range(2))
        yield k, v


def fill(state: MemoryStack, config: ModelConfig, seed: int = 0) -> None:
    """Fill the rings, without feeding the tokens one by one, and set the clock to `position(config)`, phase 0."""
    now = position(config)
    given = pasts(config.schedule.horizons, state.lanes, config.kv_heads, config.head_dim, state.device, seed)
    for ring, past in zip(state, given, strict=True):
        capacity = ring.geometry.archive
        slots = torch.arange(now - past[0].shape[2], now, device=state.device) % capacity
        for target, scale, values in zip((ring.k, ring.v), (ring.k_scale, ring.v_scale), past, strict=True):
            if scale is None:
                target[:, :, slots] = values.to(target.dtype)
            else:
                target[:, :, slots], scale[:, :, slots] = quantise(values, target.dtype)
        ring.written.fill_(now)
    state.clock.position.fill_(now)
    state.clock.length.fill_(now)
