"""A ring seen from outside: what it says it holds."""

from __future__ import annotations

import torch

from dsmr_kernels import MemoryStack, recurrent_attention


def test_export_is_in_age_order_across_the_wrap() -> None:
    stack = MemoryStack([6], lanes=1, kv_heads=2, head_dim=8, max_segment=8)
    written = torch.arange(1, 51, dtype=torch.float32).view(1, 50, 1, 1).expand(1, 50, 2, 8)
    for i in range(0, 50, 5):
        x = written[:, i : i + 5].contiguous()
        recurrent_attention(x, x, -x, stack[0])
        stack.advance(5)
        k, v, positions = stack[0].export(0)
        newest = torch.arange(max(i + 5 - 6, 0), i + 5) + 1.0
        assert torch.equal(k[0, :, 0], newest)
        assert torch.equal(v[1, :, 3], -newest)
        assert torch.equal(positions, torch.arange(-len(newest), 0))
