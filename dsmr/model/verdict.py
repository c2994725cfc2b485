"""Verdict on a model by what training left in its checkpoint: whether music of it can be more than noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def expect_noise(training: Mapping[str, Any]) -> str | None:
    """One line for people on a model that has learned too little; None for others, and where nothing tells.

    A bigram model knows nothing but which token follows which. Whoever predicts no better has no music to make.

    Args:
        training: `CheckpointInfo.training`, where `dsmr.training` keeps the fields of its `Run`. Checkpoints of older
            versions, and those that other programs saved, do not hold a bigram's perplexity.
    """
    if training.get("step") == 0:
        return "this model has not been trained: expect noise"
    ppl, bigram = training.get("last_ppl"), training.get("bigram_ppl")
    if isinstance(ppl, float) and isinstance(bigram, float) and ppl >= bigram:
        against = f"PPL {ppl:.2f} against {bigram:.2f}"
        return f"this model predicts worse than a bigram ({against}): expect noise; train it longer"
    return None
