"""What only the PyTorch back end promises: how much it allocates."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsmr_kernels import MemoryStack
from dsmr_kernels.backends import Call, eager


class LargestResult(TorchDispatchMode):
    """Remembers the largest storage that any operation's result occupies."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known  # storages that were there before
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.itemsize)
        return result


def test_no_full_score_matrix_and_no_copy_of_the_memory() -> None:
    tokens, horizon, kv_heads, heads, dim = 512, 20_000, 2, 4, 8
    stack = MemoryStack([horizon], 1, kv_heads, dim, tokens)
    stack.clock.state[:2] = horizon + 300  # full, and wrapped
    q, k, v = (torch.randn(1, tokens, h, dim) for h in (heads, kv_heads, kv_heads))
    call = Call(q, k, v, stack[0], "segment", None, None, None, 1.0, 0.0, True)
    ring = stack[0].tensors().values()
    known = {x.untyped_storage().data_ptr() for x in (q, k, v, *ring, stack.clock.state, stack[0].horizon)}
    with LargestResult(known) as largest:
        o, lse = eager.forward(call)
        eager.backward(call, o, lse, torch.randn_like(o), torch.zeros_like(lse), (True, True))
    block = max(eager.BLOCK_LOGITS, heads * eager.TILE_TOKENS * eager.MIN_KEYS)
    assert largest.elements <= block < horizon * kv_heads * dim
    assert largest.elements >= eager.TILE_TOKENS * eager.MIN_KEYS  # it did look
