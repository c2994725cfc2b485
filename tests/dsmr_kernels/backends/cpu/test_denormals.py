"""Sharp attention on CPUs: probabilities that make denormal products become 0, which keeps kernels fast."""

from __future__ import annotations

import pytest
import torch

from dsmr_kernels import MemoryStack, recurrent_attention
from dsmr_kernels.backends.cpu import library

pytestmark = pytest.mark.skipif(library.absence() is not None, reason=str(library.absence()))
LOGIT = -75.0
"""exp(-75) is 3e-33: its products with values of 1e-6 are denormal, below 1e-38."""
LARGE = 1e30


@pytest.mark.parametrize("tokens", [2, 80], ids=["decode", "segment"])
def test_denormal_probabilities_are_zero(tokens: int) -> None:
    """Else a large value behind one would show: 3e-33 * 1e30. (Denormals made sharp attention 40 times slower.)"""
    stack = MemoryStack([128], 1, 1, 16, tokens)
    q, k, v = (torch.zeros(1, tokens, 1, 16) for _ in range(3))
    q[..., 0] = 1.0
    k[:, 1:, :, 0] = LOGIT
    v[:, 1:] = LARGE
    for each in (q, k, v):
        each.requires_grad_()
    out = recurrent_attention(q, k, v, stack[0], scale=1.0, impl="cpu")
    assert isinstance(out, torch.Tensor)
    assert (out == 0).all()
    out.sum().backward()
    assert q.grad is not None
    assert (q.grad == 0).all()
    assert v.grad is not None
    assert (v.grad[:, 1:] == 0).all()
    assert (v.grad[:, 0] == tokens).all()
