"""Attention written by hand with matrix products: detached memory costs 3 products in the backward pass by itself.

Whoever writes this well beats SDPA on CPUs in bf16, where `matmul` (oneDNN) has kernels that SDPA's have not.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated, torch_contender
from bench.attention.shapes import Inputs

QUERY_CHUNK = 256  # with one KV head at a time: logits of 256 x (M + T), some MB


def contenders(device: torch.device) -> list[AttentionContender]:
    """Chunked over queries and heads; not chunked; not chunked and the memory's keys stored transposed."""
    both, forward = ("forward", "training"), ("forward",)
    variants = {
        "matmul, chunked": (both, partial(_prepare, chunk=QUERY_CHUNK, transposed=False)),
        "matmul": (both, partial(_prepare, chunk=None, transposed=False)),
        "matmul, K stored transposed": (forward, partial(_prepare, chunk=None, transposed=True)),
    }
    return [
        torch_contender(name, *tasks, prepare=prepare, unavailable=_unavailable)
        for name, (tasks, prepare) in variants.items()
    ]


def _unavailable(case: AttentionCase, device: torch.device) -> str | None:
    scores = case.shape.lanes * case.shape.heads * case.shape.tokens * (case.shape.horizon + case.shape.tokens)
    if device.type == "cuda" and scores * 4 > 2**35:
        return "the logits would take more than 32 GiB"
    return None


def _prepare(case: AttentionCase, inputs: Inputs, *, chunk: int | None, transposed: bool) -> Prepared:
    shape = case.shape
    group = shape.heads // shape.kv_heads
    past_kt, past_v = (x.flatten(0, 1) for x in (inputs.past_k.transpose(2, 3), inputs.past_v))
    if transposed:
        past_kt = past_kt.contiguous()
    hidden = ~shape.visible(inputs.q.device)  # [T, M + T]
    scale = shape.head_dim**-0.5

    def attend(q: Tensor, kt: Tensor, v: Tensor, heads: slice, first: int, last: int) -> Tensor:
        """Queries `first ... last - 1`, `q [n, G, t, D]`, of some heads; keys after `last` are not looked at."""
        q = q.flatten(1, 2)  # [n, G * t, D]
        logits = torch.cat([q @ past_kt[heads], q @ kt[..., :last]], -1).unflatten(1, (group, -1))
        start = 0 if shape.window == "token" else shape.horizon  # a full memory hides nothing from a whole segment
        logits[..., start:].masked_fill_(hidden[first:last, start : shape.horizon + last], -math.inf)
        weights = logits.softmax(-1).flatten(1, 2)
        o = weights[..., : shape.horizon] @ past_v[heads]
        return torch.baddbmm(o, weights[..., shape.horizon :], v[:, :last]).unflatten(1, (group, -1))

    def forward() -> Tensor:
        q = (inputs.q * scale).transpose(1, 2).reshape(-1, group, shape.tokens, shape.head_dim)
        kt = inputs.k.permute(0, 2, 3, 1).flatten(0, 1)
        v = inputs.v.transpose(1, 2).flatten(0, 1)
        rows, size = (1, chunk) if chunk else (len(q), shape.tokens)
        blocks = []
        for h in range(0, len(q), rows):
            heads = slice(h, h + rows)
            parts = [
                attend(q[heads, :, t : t + size], kt[heads], v[heads], heads, t, min(t + size, shape.tokens))
                for t in range(0, shape.tokens, size)
            ]
            blocks.append(torch.cat(parts, 2) if len(parts) > 1 else parts[0])
        o = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        return o.view(shape.lanes, shape.heads, shape.tokens, shape.head_dim).transpose(1, 2)

    return Prepared(differentiated(case, inputs, forward))
