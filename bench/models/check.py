"""Is the model right with a contender's attention? Asked before its time counts, of the oracle in float64.

The model, scaled down along time, reads three segments from full memories. Logits and gradients may be off by twice the
error of the oracle in the contender's own precision and storage, plus rounding to that precision. Logits are compared
by the largest error, a parameter's gradient by the norm of the error (a maximum over sums is a matter of luck).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.models import step
from bench.models.peers import Attention
from dsmr.model.config import ModelConfig
from dsmr.model.transformer import Transformer
from dsmr_kernels import RingMemory, recurrent_attention
from dsmr_kernels.reference import reference_attention

SEGMENT = {"cpu": 64, "cuda": 128}  # tokens: what takes a few seconds, with more than one block of any kernel
SEGMENTS, LANES = 3, 2


def wrong(config: ModelConfig, attention: Attention, device: torch.device) -> str | None:
    """What is wrong with three segments of the model with this attention, or None."""
    config = step.reduced(config, min(SEGMENT[device.type], config.segment))
    got = results(config, attention, device, step.compute_dtype(device))
    for name, (exact, allowed) in expected(config, attention.storage, device).items():
        error = distance(name, got[name], exact)
        if not error <= allowed:  # NaN is wrong, too
            return f"{name}: off by {error:.2g}, allowed {allowed:.2g}"
    return None


@lru_cache(maxsize=8)
def expected(config: ModelConfig, storage: str | None, device: torch.device) -> dict[str, tuple[Tensor, float]]:
    """Every result by name: its exact value, and the largest `distance` from it that is allowed."""
    dtype = step.compute_dtype(device)
    exact = results(config, _oracle(None), device, torch.float64)
    rough = results(config, _oracle(storage), device, dtype)
    return {
        name: (
            value,
            2 * distance(name, rough[name], value) + torch.finfo(dtype).eps * distance(name, value, 0 * value),
        )
        for name, value in exact.items()
    }


def distance(name: str, a: Tensor, b: Tensor) -> float:
    """The largest difference of logits, the norm of the difference of gradients."""
    difference = a.double() - b.double()
    return float(difference.abs().max() if name.startswith("logits") else difference.norm())


def results(config: ModelConfig, attention: Attention, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Logits of each segment and the gradient of their mean loss by every parameter, by name.

    Matrices are three times as large as they begin: attention is then neither flat nor a minor part of the result.
    """
    torch.manual_seed(1)
    model = Transformer(config).eval()  # without dropout
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    model = model.to(device, torch.promote_types(dtype, torch.float32))
    found: dict[str, Tensor] = {}
    with attention.context():
        state: Any = attention.full_state(model, LANES, dtype)
        for number, batch in enumerate(step.batches(config, LANES, SEGMENTS, device)):
            state.reset(batch.reset)
            with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
                logits = model(batch.tokens, state, batch.segment_start)
            loss = F.cross_entropy(logits.flatten(0, 1).to(model.embedding.weight.dtype), batch.targets.flatten())
            (loss / SEGMENTS).backward()
            found[f"logits of segment {number}"] = logits.detach()
    for name, parameter in model.named_parameters():
        found[f"gradient of {name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return found


def _oracle(storage: str | None) -> Attention:
    return Attention("the oracle", "", attend_and_append, ours=True, storage=storage)


def attend_and_append(q: Tensor, k: Tensor, v: Tensor, memory: RingMemory, **arguments: Any) -> Tensor:
    """`reference_attention`, and then the segment becomes memory."""
    o, _ = reference_attention(q, k, v, memory, **arguments)
    with torch.no_grad():
        recurrent_attention(q, k, v, memory, impl="eager", **arguments)
    return o
