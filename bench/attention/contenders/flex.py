"""FlexAttention, compiled: with its block mask made once, and made anew at every call (as moving memory may need)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.attention.cases import MAIN_CPU, MAIN_CUDA, AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated, torch_contender
from bench.attention.contenders.sdpa import concatenated
from bench.attention.shapes import Inputs


def contenders(device: torch.device) -> list[AttentionContender]:
    """With either way to come by a block mask."""
    return [
        torch_contender(
            f"FlexAttention compiled, {what}, cat",
            *("forward", "training"),
            prepare=partial(_prepare, rebuild=rebuild),
            unavailable=_unavailable,
        )
        for what, rebuild in (("block mask made once", False), ("block mask made each call", True))
    ]


def _unavailable(case: AttentionCase, device: torch.device) -> str | None:
    if device.type == "cpu" and case.task == "training":
        return "FlexAttention has no backward pass on CPUs"
    main = MAIN_CPU if device.type == "cpu" else (MAIN_CUDA,)
    if replace(case.shape, window="segment") not in main:
        return "it compiles for every shape anew: measured at the main ones"
    return None


@cache
def _compiled():
    return torch.compile(flex_attention), torch.compile(create_block_mask)


@cache  # one function a window: a new one would be compiled anew
def _visible(horizon: int, window: str):
    def visible(b, h, query, key):
        past = key - horizon
        if window == "segment":
            return past <= query
        return (past <= query) & (query - past < horizon)

    return visible


def _prepare(case: AttentionCase, inputs: Inputs, rebuild: bool) -> Prepared:
    shape = case.shape
    attend, make_mask = _compiled()

    sizes = (_visible(shape.horizon, shape.window), None, None, shape.tokens, shape.horizon + shape.tokens)
    made_once = create_block_mask(*sizes, device=str(inputs.q.device))

    def forward() -> Tensor:
        mask = make_mask(*sizes, device=str(inputs.q.device)) if rebuild else made_once
        grouped = shape.heads != shape.kv_heads
        o = attend(inputs.q.transpose(1, 2), *concatenated(inputs), block_mask=mask, enable_gqa=grouped)
        return o.transpose(1, 2)

    return Prepared(differentiated(case, inputs, forward))
