"""From batches to gradients, and the optimiser that follows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsmr.corpus.stream import Batch
from dsmr.model import Transformer
from dsmr.training.config import TrainingConfig
from dsmr_kernels import MemoryStack


def accumulate_gradients(
    model: Transformer, state: MemoryStack, batches: Sequence[Batch], precision: torch.autocast
) -> Tensor:
    """Add to the parameters' gradients that of the mean NLL over all tokens of some consecutive segments.

    The segments are read one after another with the memory in `state`, each followed by its own backward pass, so that
    activations of one segment at a time are kept. The memory is detached: the result is the gradient of the segments'
    mean loss, all of them read with the same parameters, with all memory taken as constant.

    Args:
        model, state: the state is moved past the segments.
        batches: full segments (no padding), as an endless `LaneStream` gives them, on the model's device.
        precision: the autocast to run the forward passes under.

    Returns:
        The NLL of every segment and lane, float32 `[segments, B]` on the CPU, nats per token.
    """
    nll = []
    for batch in batches:
        state.reset(batch.reset)
        per_token = _nll(model, state, batch, precision)
        (per_token.mean() / len(batches)).backward()
        nll.append(per_token.detach().mean(1).cpu())
    return torch.stack(nll)


def _nll(model: Transformer, state: MemoryStack, batch: Batch, precision: torch.autocast) -> Tensor:
    """NLL of every token, float32 `[B, T]`."""
    with precision:
        logits = model(batch.tokens, state, batch.segment_start)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none").view_as(
        batch.targets
    )


def make_optimizer(model: Transformer, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with two groups: matrices decay; the embedding, biases and norms do not."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() >= 2 and not name.startswith("embedding") else exempt).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def seed_step(seed: int, step: int) -> None:
    """Seed PyTorch's generators for one step: dropout is a function of seed and step, and so nothing to be saved."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def make_precision(setting: bool | Literal["auto"], device: torch.device) -> torch.autocast:
    """The autocast that `TrainingConfig.autocast` asks for."""
    if setting == "auto":
        setting = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=setting)
