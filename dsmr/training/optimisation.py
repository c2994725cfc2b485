"""Optimisation: from batches to gradients, and the optimiser that follows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsmr.corpus.stream import Batch
from dsmr.model.transformer import Transformer
from dsmr.training.config import TrainingConfig
from dsmr.training.distributed import World, WorldError, joining_gradients
from dsmr_kernels import MemoryStack

TokenNLL = Callable[[nn.Module, MemoryStack, Batch], Tensor]


def eager_token_nll(model: nn.Module, state: MemoryStack, batch: Batch) -> Tensor:
    """Read a segment; the NLL of every token, float32 `[B, T]`."""
    logits: Tensor = model(batch.tokens, state, batch.segment_start)
    nll = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    return nll.view_as(batch.targets)


def compiled_token_nll() -> TokenNLL:
    """`eager_token_nll` and its backward pass as one compiled graph each; compiled at the first call, and only then."""
    compiled: TokenNLL = torch.compile(eager_token_nll, fullgraph=True, dynamic=False)
    return compiled


def accumulate_gradients(
    model: nn.Module,
    state: MemoryStack,
    batches: Sequence[Batch],
    precision: torch.autocast,
    token_nll: TokenNLL = eager_token_nll,
) -> Tensor:
    """Add to the parameters' gradients that of the mean NLL over all tokens of some consecutive segments.

    The segments are read one after another with the memory in `state`, each followed by its own backward pass, so that
    activations of one segment at a time are kept. The memory is detached: the result is the gradient of the segments'
    mean loss, all of them read with the same parameters, with all memory taken as constant.

    Args:
        model, state: a `Transformer`, or what `parallelise` makes of one; the gradients are then the mean over all
            processes. The state is moved past the segments.
        batches: full segments (no padding), as an endless `LaneStream` gives them, on the model's device.
        precision: the autocast to run the forward passes under.
        token_nll: `eager_token_nll`, or what `compiled_token_nll` returned.

    Returns:
        The NLL of every segment and lane, float32 `[segments, B]` on the CPU, nats per token.
    """
    nll = []
    for number, batch in enumerate(batches, 1):
        state.reset(batch.reset)
        with joining_gradients(model, last=number == len(batches)):
            with precision:
                per_token = token_nll(model, state, batch)
            (per_token.mean() / len(batches)).backward()
        nll.append(per_token.detach().mean(1).cpu())
    return torch.stack(nll)


class Optimizers:
    """Optimisers of different parameters of one model, stepped as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts; a learning rate set here is set there."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One step of every part."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad()


def check_world(config: TrainingConfig, world: World, shard: bool) -> None:
    """WorldError for what has not been shown to do the same with several processes, or with sharded parameters."""
    if config.compile and world.size > 1:
        raise WorldError(f"compile: expected one process, got {world.size}")
    if config.optimizer != "adamw" and shard:  # Muon's bfloat16 products came out 10 % apart on two processes
        raise WorldError(f"optimizer: expected adamw where parameters are sharded, got {config.optimizer}")


def make_optimizer(model: Transformer, config: TrainingConfig) -> Optimizers:
    """The optimisers that `config` asks for. Matrices decay; the embedding, biases and norms do not."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() >= 2 and not name.startswith("embedding") else exempt).append(parameter)
    if config.optimizer == "adamw":
        return Optimizers(_adamw([(decayed, config.weight_decay), (exempt, 0.0)], config))
    muon = torch.optim.Muon(
        decayed, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Optimizers(muon, _adamw([(exempt, 0.0)], config))


def _adamw(groups: list[tuple[list[nn.Parameter], float]], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW for groups of parameters, each with its weight decay."""
    decays = [{"params": parameters, "weight_decay": decay} for parameters, decay in groups]
    return torch.optim.AdamW(decays, lr=config.learning_rate, betas=config.betas, fused=True)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed PyTorch's generators for one step: dropout is a function of seed, step and rank: nothing to be saved."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def make_precision(setting: bool | Literal["auto"], device: torch.device) -> torch.autocast:
    """The autocast that `TrainingConfig.autocast` asks for."""
    if setting == "auto":
        setting = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=setting)
