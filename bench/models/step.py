"""The training step, a real one on full memories: forward, loss, backward, clipping, AdamW, and time moves on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch
from torch import nn

from bench.models.peers import Attention, state_bytes
from dsmr.corpus.stream import Batch
from dsmr.model import ModelConfig, Transformer, preset
from dsmr.model.schedules import Schedule
from dsmr.training import TrainingConfig, accumulate_gradients, make_optimizer

TRAINING = TrainingConfig(steps=1)  # its defaults: of the optimiser, and of clipping


def schedules(config: ModelConfig) -> dict[str, ModelConfig]:
    """A two-scale preset's long horizon in every layer; the preset as it is; and the first with 2 KV heads (1 of 2)."""
    full = replace(config, schedule=Schedule("explicit", (max(config.schedule.horizons),) * config.layers))
    few = 2 if config.kv_heads > 2 else 1
    return {
        "full": full,
        "two_scale": config,
        f"full, {few} of {config.heads} KV heads": replace(full, kv_heads=few),
    }


def reduced(config: ModelConfig, segment: int) -> ModelConfig:
    """The same model with everything along time scaled down to a segment of `segment` tokens."""
    horizons = tuple(horizon * segment // config.segment for horizon in config.schedule.horizons)
    return replace(config, segment=segment, schedule=Schedule("explicit", horizons))


def measured_preset(name: str, quick: bool, device: torch.device) -> ModelConfig:
    """A preset, as it is measured: on CPUs with a quarter of the segment; scaled down to show that it runs.

    Its heads are all alike, with keys that stay where they are, because they do so in the peers' memories.
    """
    config = preset(name, key_shift=None, rotary_share=None)
    if quick:
        return reduced(config, 32)
    return replace(config, segment=config.segment // 4) if device.type == "cpu" else config


def precision(device: torch.device) -> torch.autocast:
    """As in `dsmr.training`: bfloat16 autocast on GPUs; float32 on CPUs, where it brings no gain."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type of q, k and v under `precision`."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def batches(config: ModelConfig, lanes: int, count: int, device: torch.device) -> list[Batch]:
    """Segments in the middle of pieces, of random ids: their speed is that of music."""
    generator = torch.Generator().manual_seed(0)
    shape = (lanes, config.segment)
    made = []
    for _ in range(count):
        tokens, targets = (torch.randint(config.vocab_size, shape, generator=generator) for _ in range(2))
        zeros, whole = torch.zeros(shape, dtype=torch.int64), torch.full((lanes,), config.segment)
        made.append(Batch(tokens, targets, zeros, whole, torch.zeros(lanes, dtype=torch.bool), zeros).to(device))
    return made


class Training:
    """A model in the middle of its training: `step()` is what `dsmr.training.train` does with a batch it was handed."""

    def __init__(self, config: ModelConfig, lanes: int, attention: Attention, device: torch.device) -> None:
        torch.manual_seed(0)
        self._model = Transformer(config).to(device).train()
        self._precision = precision(device)
        self._state = attention.full_state(self._model, lanes, compute_dtype(device))
        self._optimizer = make_optimizer(self._model, TRAINING)
        self._batches: Iterator[Batch] = cycle(batches(config, lanes, 4, device))

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state as it is held."""
        return state_bytes(self._state)

    def step(self) -> float:
        """The loss, nats per token. Needs the attention's `context`."""
        loss = accumulate_gradients(self._model, self._state, [next(self._batches)], self._precision)
        float(nn.utils.clip_grad_norm_(self._model.parameters(), TRAINING.clip))  # training looks at it, too
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.mean())


def flops(config: ModelConfig, lanes: int) -> float:
    """Of a training step with full memories, by formula.

    2 a token and weight of every matrix forward (the embedding counts as the output's), 4 backward. Attention: a
    query-key pair costs 2 products of D multiply-adds forward, 3 backward if the key is memory, 5 if the segment's.
    """
    attention = config.width * (config.heads + 2 * config.kv_heads) * config.head_dim + config.width**2
    layer = attention + 2 * config.feed_forward * config.width**2
    weights = config.layers * layer + config.vocab_size * config.width
    memory_pairs = config.segment * sum(config.schedule.horizons)
    segment_pairs = config.layers * config.segment * (config.segment + 1) // 2
    product = 2 * config.heads * config.head_dim
    return lanes * (6 * weights * config.segment + product * (5 * memory_pairs + 7 * segment_pairs))
