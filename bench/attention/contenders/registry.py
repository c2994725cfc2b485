"""The registry of everyone who contends in attention's cases."""

from __future__ import annotations

import torch

from bench.attention.contenders import append, broken, decode, flex, libraries, matmul, ours, sdpa
from bench.attention.contenders.contender import AttentionContender


def registry(device: torch.device) -> list[AttentionContender]:
    """Every contender there is for a device, available or not."""
    modules = (ours, sdpa, matmul, flex, decode, append, libraries, broken)
    return [contender for module in modules for contender in module.contenders(device)]
