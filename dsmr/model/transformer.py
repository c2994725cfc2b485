"""The Transformer: pre-LayerNorm blocks whose attention reads a ring memory with a horizon per layer."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsmr.fields import check_names, check_types, shown
from dsmr.model.schedules import Schedule, make_schedule
from dsmr.music.tokens import VOCAB_SIZE
from dsmr_kernels import MemoryStack, RingMemory, recurrent_attention
from dsmr_kernels.geometry import Window
from dsmr_kernels.storage import Storage

MOST_LAYERS, MOST_TOKENS = 1024, 1 << 24
"""Sizes that no weights vouch for are bounded: layers, and the tokens of a segment or a horizon. More are a mistake."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a model's shape and what it computes; stored inside every checkpoint.

    Args:
        width: size of the residual stream; `heads` must divide it.
        heads, kv_heads: query heads H and KV heads Hkv; H must be a multiple of Hkv.
        schedule: one memory horizon per layer; its length is the number of layers.
        segment: T, the tokens of a training segment; `window="segment"` makes generation keep to the same segments.
        window: "segment" (all queries of a segment see the same memory) or "token" (a sliding window per query).
        position: "rotary" rotates q and k (Su et al. 2021); "sinusoidal" adds Vaswani et al.'s (2017) signal to the
            input of the Q and K projections, as Depth-Structured Music Recurrence does. Both count from the beginning
            of the piece.
        position_base: the base of either position's geometric series of wavelengths.
        feed_forward: hidden size of the feed-forward network as a multiple of `width`.
        dropout: probability, applied to the embedding and to both residual branches.
    """

    width: int
    heads: int
    kv_heads: int
    schedule: Schedule
    segment: int = 1024
    window: Window = "segment"
    position: str = "rotary"
    position_base: float = 10_000.0
    feed_forward: int = 4
    dropout: float = 0.1
    vocab_size: int = VOCAB_SIZE

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("width", "heads", "kv_heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"heads: expected a divisor of width={self.width} with an even quotient, got {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}")
        if self.position not in ("sinusoidal", "rotary"):
            raise ValueError(f"position: expected 'sinusoidal' or 'rotary', got {shown(self.position)}")
        if self.window not in ("segment", "token"):
            raise ValueError(f"window: expected 'segment' or 'token', got {shown(self.window)}")
        if self.segment < 1:
            raise ValueError(f"segment: expected at least 1 token, got {self.segment}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a probability below 1, got {self.dropout}")
        if not 0 < self.position_base < math.inf:
            raise ValueError(f"position_base: expected a finite number above 0, got {self.position_base}")
        retention = self.schedule.retention
        if self.window == "token" and retention is not None and retention.stride > 1:
            raise ValueError(f"window: 'token' needs every token kept, got a retention stride of {retention.stride}")
        if self.layers > MOST_LAYERS:
            raise ValueError(f"schedule: expected at most {MOST_LAYERS:,} layers, got {self.layers:,}")
        tokens = {"segment": self.segment, "schedule": max(self.schedule.horizons)}
        tokens["schedule"] = max(tokens["schedule"], retention.stride if retention else 0)
        for name, count in tokens.items():
            if count > MOST_TOKENS:
                raise ValueError(f"{name}: expected at most {MOST_TOKENS:,} tokens, got {count:,}")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.schedule.horizons)

    @property
    def head_dim(self) -> int:
        """D, the size of one head."""
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "schedule": self.schedule.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """The inverse of `to_dict`, but that a field with a default may be missing: older versions lacked it.

        ValueError names a field that is missing, unknown, or has a value that it cannot have.
        """
        fields = check_names(cls, values, "config")
        return cls(**{**fields, "schedule": Schedule.from_dict(fields["schedule"])})


def preset(name: str, **changes: Any) -> ModelConfig:
    """A named configuration: tiny (about 1 M parameters), small (5 M), base (25 M) or large (85 M).

    Every preset is a two-scale schedule; `changes` replace fields. ValueError for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return replace(PRESETS[name], **changes)


def _two_scale(layers: int, long: int, short: int, **sizes: Any) -> ModelConfig:
    long_layers = max(1, layers // 4)
    budget = long_layers * long + (layers - long_layers) * short
    schedule = make_schedule(
        "two_scale", layers, budget_tokens=budget, long_layers=long_layers, ratio=long / short if short else 1.0
    )
    return ModelConfig(schedule=schedule, **sizes)


PRESETS = {
    "tiny": _two_scale(5, long=2048, short=256, width=128, heads=2, kv_heads=2, segment=256, dropout=0.0),
    "small": _two_scale(6, long=4096, short=512, width=256, heads=4, kv_heads=4),
    "base": _two_scale(8, long=8192, short=512, width=512, heads=8, kv_heads=8),
    "large": _two_scale(12, long=8192, short=512, width=768, heads=12, kv_heads=12),
}


class Transformer(nn.Module):
    """A decoder-only Transformer over segments; its recurrent state is a `MemoryStack` and nothing else.

    Source: the block of Depth-Structured Music Recurrence (arXiv 2602.19816), as its authors describe it: positions
    enter queries and keys only, and the segment's keys and values join the layer's detached memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Normal with deviation 0.02; what writes into the residual stream is scaled down by depth (as in GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def parameters_count(self) -> int:
        """Number of trainable parameters; the tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint into the folder `path`; see `dsmr.model.checkpoint.save_checkpoint`."""
        from dsmr.model.checkpoint import save_checkpoint

        save_checkpoint(path, self)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], device: torch.device | str = "cpu") -> Transformer:
        """Load a checkpoint's folder or a hub id, ready to evaluate; see `dsmr.model.checkpoint.load_checkpoint`."""
        from dsmr.model.checkpoint import load_checkpoint

        return load_checkpoint(source, device)[0]

    def new_state(
        self,
        lanes: int,
        *,
        max_segment: int | None = None,
        dtype: torch.dtype | None = None,
        storage: Storage | None = None,
        segments_in_flight: int = 1,
    ) -> MemoryStack:
        """An empty memory for `lanes` streams, on the model's device.

        `max_segment` defaults to the training segment, `dtype` to the type that q, k and v will have: autocast's, if it
        is on, else the weights'. `storage` quantises the rings.
        """
        device = self.embedding.weight.device
        if dtype is None:
            autocast = torch.is_autocast_enabled(device.type)
            dtype = torch.get_autocast_dtype(device.type) if autocast else self.embedding.weight.dtype
        return MemoryStack(
            self.config.schedule.horizons,
            lanes,
            self.config.kv_heads,
            self.config.head_dim,
            max_segment or self.config.segment,
            dtype,
            device,
            storage,
            self.config.schedule.retention,
            segments_in_flight,
        )

    def forward(
        self,
        tokens: Tensor,
        state: MemoryStack,
        segment_start: Tensor | None = None,
        segment_len: Tensor | None = None,
        segment_size: int | None = None,
        origin: Tensor | None = None,
    ) -> Tensor:
        """Read one segment, append it to the memory and move the clock.

        Args:
            tokens: ids int64 `[B, T]`.
            state: the recurrent state, from `new_state`.
            segment_start, segment_len: see `dsmr_kernels.recurrent_attention`.
            segment_size: see `MemoryStack.advance`: these tokens are part of a segment of that many.
            origin: how many tokens of each lane's piece came before those that its memory knows of, int64 `[B]`:
                positions count from the piece's beginning all the same. None: the memory began with the piece.

        Returns:
            logits `[B, T, vocab_size]`.
        """
        position = self._position(tokens, state, segment_start, origin)
        x = self.dropout(self.embedding(tokens))
        for block, memory in zip(self.blocks, state, strict=True):
            x = block(x, position, memory, segment_start, segment_len)
        state.advance(tokens.shape[1], segment_start, segment_len, segment_size)
        return F.linear(self.norm(x), self.embedding.weight)

    def _position(
        self, tokens: Tensor, state: MemoryStack, segment_start: Tensor | None, origin: Tensor | None = None
    ) -> Tensor:
        """The position signal of all layers, by each token's index in its piece.

        Sinusoidal: `[B, T, width]`. Rotary: cosines and sines `[2, B, T, 1, D / 2]`.
        """
        rows = torch.arange(tokens.shape[1], device=tokens.device)
        index = state.clock.length[:, None] + rows
        if origin is not None:
            index = index + origin[:, None]
        if segment_start is not None:
            index = torch.where(segment_start > 0, rows - segment_start, index)
        size = self.config.width if self.config.position == "sinusoidal" else self.config.head_dim
        dtype = torch.promote_types(self.embedding.weight.dtype, torch.float32)  # half precision cannot count tokens
        exponent = torch.arange(0, size, 2, device=tokens.device, dtype=dtype) / size
        angles = index[..., None] * self.config.position_base**-exponent
        if self.config.position == "sinusoidal":
            return torch.cat([angles.sin(), angles.cos()], -1)
        return torch.stack([angles.cos(), angles.sin()])[:, :, :, None]


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key = nn.Linear(config.width, (config.heads + config.kv_heads) * config.head_dim, bias=False)
        self.value = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.feed_forward * config.width)
        self.down = nn.Linear(config.feed_forward * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memory: RingMemory,
        segment_start: Tensor | None,
        segment_len: Tensor | None,
    ) -> Tensor:
        """`x [B, T, width]` to the same shape; appends this layer's keys and values to `memory`."""
        x = x + self.dropout(self._attend(self.attention_norm(x), position, memory, segment_start, segment_len))
        x = x + self.dropout(self.down(F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh")))
        return x

    def _attend(
        self,
        h: Tensor,
        position: Tensor,
        memory: RingMemory,
        segment_start: Tensor | None,
        segment_len: Tensor | None,
    ) -> Tensor:
        heads = self.config.heads
        positioned = h + position.to(h.dtype) if self.config.position == "sinusoidal" else h
        q_and_k = self.query_key(positioned).unflatten(-1, (-1, self.config.head_dim))  # [B, T, H + Hkv, D]
        if self.config.position == "rotary":
            q_and_k = rotate(q_and_k, position)
        v = self.value(h).unflatten(-1, (-1, self.config.head_dim))  # [B, T, Hkv, D]
        o = recurrent_attention(
            q_and_k[:, :, :heads],
            q_and_k[:, :, heads:],
            v,
            memory,
            window=self.config.window,
            segment_start=segment_start,
            segment_len=segment_len,
        )
        assert isinstance(o, Tensor)  # only return_lse makes it a pair
        out: Tensor = self.out(o.flatten(2))
        return out


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Su et al. (2021), "RoFormer": rotate the halves of `x [B, T, heads, D]` by `position`, cosines and sines."""
    cos, sin = position
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(x.dtype)
