"""Recurrent states as they are in the middle of a long piece: every memory full, every ring wrapped somewhere else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness import kernels
from dsmr.model import ModelConfig
from dsmr_kernels import MemoryStack


def position(config: ModelConfig) -> int:
    """How many tokens of a piece have gone by: every ring has been filled, and none is at its beginning."""
    return 2 * (max(config.schedule.horizons) + config.segment) + 37


def pasts(config: ModelConfig, lanes: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """What each layer remembers: `k, v [B, Hkv, M, D]`, float32, standard normal, oldest first, the same each time."""
    generator = torch.Generator(device).manual_seed(0)
    for horizon in config.schedule.horizons:
        size = (lanes, config.kv_heads, horizon, config.head_dim)
        k, v = (torch.randn(size, generator=generator, device=device) for _ in range(2))
        yield k, v


def fill(state: MemoryStack, config: ModelConfig) -> None:
    """Fill the rings with `pasts`, the clock at `position(config)`."""
    kernels.fill(state, pasts(config, state.lanes, state.device), position(config))
