"""A contender that is wrong on purpose, to show that its time is refused: `--contenders broken`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.attention.cases import AttentionCase
from bench.attention.contenders.contender import AttentionContender, Prepared, differentiated, torch_contender
from bench.attention.contenders.sdpa import attend, concatenated
from bench.attention.shapes import Inputs


def contenders(device: torch.device) -> list[AttentionContender]:
    """Forgets the oldest memory entry: fast, plausible, wrong."""
    return [torch_contender("broken on purpose", "forward", "training", "decode", prepare=_prepare, on_request=True)]


def _prepare(case: AttentionCase, inputs: Inputs) -> Prepared:
    shorter = replace(inputs, past_k=inputs.past_k[:, :, 1:], past_v=inputs.past_v[:, :, 1:])
    mask = case.shape.visible(inputs.q.device)[:, 1:]

    def forward() -> Tensor:
        return attend(inputs.q, *concatenated(shorter), mask)

    return Prepared(differentiated(case, inputs, forward))
