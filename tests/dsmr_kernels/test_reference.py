"""Is the oracle right? It is compared with PyTorch's own attention under an explicit [memory | segment] mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsmr_kernels import MemoryStack, recurrent_attention
from dsmr_kernels.reference import reference_attention


@pytest.mark.parametrize("window", ["segment", "token"])
def test_the_oracle_is_attention_under_an_explicit_mask(window: str) -> None:
    past, tokens, horizon = 30, 12, 16
    q, k, v = (torch.randn(2, past + tokens, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    stack = MemoryStack([horizon], 2, 2, 8, past, torch.float64)
    recurrent_attention(q[:, :past], k[:, :past], v[:, :past], stack[0])
    stack.advance(past)
    new = [x[:, past:] for x in (q, k, v)]
    row, column = torch.arange(past, past + tokens)[:, None], torch.arange(past + tokens)
    oldest = past - horizon if window == "segment" else row - horizon + 1
    mask = (column <= row) & (column >= oldest)
    q_, k_, v_ = (x.transpose(1, 2) for x in (new[0], k, v))
    expected = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    o, lse = reference_attention(*new, stack[0], window=window)
    torch.testing.assert_close(o, expected)
    scores = torch.einsum("bthd,bnhd->bhtn", new[0], k.repeat_interleave(2, 2)) / 8**0.5
    torch.testing.assert_close(lse, scores.masked_fill(~mask, -torch.inf).logsumexp(-1))


def test_the_oracle_keeps_pieces_apart() -> None:
    q, k, v = (torch.randn(1, 10, 2, 8, dtype=torch.float64) for _ in range(3))
    stack = MemoryStack([16], 1, 2, 8, 10, torch.float64)
    recurrent_attention(q, k, v, stack[0])
    stack.advance(10)
    start = torch.tensor([[0] * 4 + [4] * 6])
    o, lse = reference_attention(q, k, v, stack[0], segment_start=start, segment_len=torch.tensor([9]))
    alone, alone_lse = reference_attention(q[:, 4:9], k[:, 4:9], v[:, 4:9])
    torch.testing.assert_close(o[:, 4:9], alone)
    torch.testing.assert_close(lse[:, :, 4:9], alone_lse)
    assert not o[:, 9].any()
    assert lse[:, :, 9].isneginf().all()
