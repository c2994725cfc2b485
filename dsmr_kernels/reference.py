"""The oracle: what `recurrent_attention` means, in plain PyTorch, at any precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsmr_kernels.geometry import Window
from dsmr_kernels.ring import RingMemory


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memory: RingMemory | None = None,
    *,
    window: Window = "segment",
    segment_start: Tensor | None = None,
    segment_len: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`(o [B, T, H, D], lse [B, H, T])` in q's type, by autograd differentiable in q, k and v; appends nothing.

    Arguments as in `recurrent_attention`. The memory is read through `RingMemory.export` and detached.
    """
    batch, tokens, heads, dim = q.shape
    group = heads // k.shape[2]
    rows = torch.arange(tokens, device=q.device)
    outputs, lses = [], []
    for b in range(batch):
        keys, values, positions = k[b].transpose(0, 1), v[b].transpose(0, 1), rows  # [Hkv, T, D]
        if memory is not None:
            past_k, past_v, past = memory.export(b, window)
            keys = torch.cat([past_k.detach().to(q.dtype), keys], 1)  # [Hkv, n + T, D]
            values = torch.cat([past_v.detach().to(q.dtype), values], 1)
            positions = torch.cat([past, rows])  # [n + T]
        start = segment_start[b] if segment_start is not None else torch.zeros_like(rows)
        real = int(segment_len[b]) if segment_len is not None else tokens
        visible = positions[None] <= rows[:, None]  # [T, n + T]
        visible &= (start == 0)[:, None] | (positions[None] >= start[:, None])
        visible &= (rows < real)[:, None]
        if window == "token" and memory is not None:
            visible &= rows[:, None] - positions[None] < memory.horizon
        scores = torch.einsum("thd,hnd->htn", q[b], keys.repeat_interleave(group, 0))
        scores = scores * (dim**-0.5 if scale is None else scale)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if alibi_slopes is not None:
            scores = scores - alibi_slopes.to(q.dtype)[:, None, None] * (rows[:, None] - positions[None])
        lse = scores.masked_fill(~visible, -math.inf).logsumexp(-1)  # [H, T]
        weights = (scores - lse.masked_fill(lse.isinf(), 0)[..., None]).exp().masked_fill(~visible, 0)
        outputs.append(torch.einsum("htn,hnd->thd", weights, values.repeat_interleave(group, 0)))
        lses.append(lse)
    return torch.stack(outputs), torch.stack(lses)
